"""Controls of an estimate: what units do that are given donors of which only the joint can matter."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from captum_causalseg._checks import one_of
from captum_causalseg.donors.fitted import Fit, FittedDonors, fewest_elements
from captum_causalseg.donors.shifted import BoundShifted, Shifted
from captum_causalseg.donors.source import BoundDonors, DonorSource
from captum_causalseg.engine.design import Design
from captum_causalseg.engine.draws import without_replacement
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import run
from captum_causalseg.engine.sampling import Sampling, SamplingScheme
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.statistics import EDGE_MATCHED, EDGE_SHIFTED, Status
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["CONTROLS", "Control", "Controls", "EveryJoint", "controlled", "edge_controls"]

Controls = Literal["edge"] | None
CONTROLS = {"controls": one_of("edge", None)}
"""What the argument that asks for controls has to be."""

_PIXELS = 2
# Donors that tell nothing but the step: their texture is the bank's, their level the unit's.
_MATCH = Fit(match="mean")


class EveryJoint(Design):
    """Every donor once: the shifts of a unit's own tissue are few. They stand for all the joints that there might be.

    Of several slots, each one's donors are taken in turn, those of the longest once. A slot of more than ``n_first`` is no list of shifts
    (the random states of a stochastic model): of these, different ones are drawn.
    """

    @classmethod
    def total(cls, population: Sequence[int]) -> float:
        """See :meth:`Design.total`: all shifts are made, and still they are a sample, of joints."""
        return math.inf

    def end(self, stage: int) -> int:
        """See :meth:`Design.end`; nothing is screened, and there is no further stage."""
        return max((count for count in self.population if count <= self.n_first), default=self.n_first) if stage else 0

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Design.donors`."""
        count, generator = self.end(1), self.generator()
        columns = [
            np.arange(count) % size if size <= self.n_first else without_replacement(generator, [size], count)[:, 0]
            for size in self.population
        ]
        return np.column_stack(columns)[:n]


@dataclass(frozen=True, eq=False)
class Control:
    """Donors that are a control for others, of the same units.

    Args:
        unit_donors: the units, and what they are given.
        possible: boolean ``(N, U)``, which units have such donors.
        sampling: how they are drawn.
        n_draws: of each unit, at most.
        in_words: what they are, for the statistics.
    """

    unit_donors: UnitDonors
    possible: np.ndarray
    sampling: Sampling
    n_draws: int
    in_words: str

    def most_draws(self, plan: Plan) -> int:
        """How many interventions it takes of the plan's rows, at most."""
        rows = plan.active.any(1)
        return int(self.possible[plan.example[rows], plan.unit[rows]].sum()) * max(self.n_draws, plan.drains)


class _Matched(DonorSource):
    """Donors at the unit's own mean, in whatever tensor they are pasted into: those that are bound already, or of a source that is made from it."""

    of_the_image = True

    def __init__(self, donors: BoundDonors, source: DonorSource | None) -> None:
        self._donors, self._source = donors, source

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        donors = self._donors if self._source is None else self._source.bind(images)
        return FittedDonors(donors, images.detach(), _MATCH)


def edge_controls(
    unit_donors: UnitDonors,
    tensors: Sequence[Tensor],
    *,
    treated: np.ndarray,
    ledger: Ledger,
    forbidden: Sequence[Tensor | None] = (),
) -> dict[str, Control]:
    """What a joint does by itself, by name: the unit's own tissue, shifted; and the donors at the unit's own level.

    Args:
        unit_donors: the units and the donors that these are controls for.
        tensors: what the units are parts of: the inputs, or a layer's activation.
        treated: boolean ``(N, U)``, which units are intervened on.
        ledger: where it is noted what has no control, and why.
        forbidden: per tensor, boolean ``(N or 1, *spatial)``: pixels that no donor may hold; by default none are.

    Raises:
        ValueError: no tensor has spatial axes.
    """
    if all(tensor.ndim < 3 for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f'controls: "edge" is about the joint between a unit and what is beside it, but tensors of shape {shapes} have no spatial axes; '
            "give controls=None"
        )
    units = unit_donors.units
    masks = tuple(forbidden) or (None,) * len(tensors)
    joints = tuple(BoundShifted(tensor.detach(), mask, _PIXELS) for tensor, mask in zip(tensors, masks))
    shifted = UnitDonors(units, joints, own=tuple(Shifted(_PIXELS) if tensor.ndim > 2 else None for tensor in tensors))
    example, unit = np.nonzero(treated)
    has_shift, has_level = (np.zeros(treated.shape, dtype=bool) for _ in range(2))
    has_shift[example, unit] = (shifted.counts(example, unit) > 0).all(1)
    has_level[example, unit] = [
        all(fewest_elements([side.stop - side.start for side in piece.box], piece.mask) > 1 for piece in units.pieces(n, u))
        for n, u in zip(example.tolist(), unit.tolist())
    ]
    most = max(one.most for one in joints)
    found = {
        EDGE_SHIFTED: Control(
            unit_donors=shifted,
            possible=has_shift,
            sampling=SamplingScheme(EveryJoint, name="every joint"),
            n_draws=most,
            in_words=f"the unit's own tissue, shifted by up to {_PIXELS} pixels",
        )
    }
    if not has_shift[treated].all():
        ledger.disable(
            EDGE_SHIFTED,
            "of some units (NaN) no shift lies in the image and beside the RoI"
            if has_shift.any()
            else "no unit has room for a shift",
        )
    if all(isinstance(donors, FittedDonors) for donors in unit_donors.donors):
        ledger.disable(EDGE_MATCHED, "the donors are fitted to the units already")
        return found
    if not has_level[treated].all():
        ledger.disable(EDGE_MATCHED, "units of one pixel (NaN) have nothing but their level")
    own = unit_donors.own or (None,) * len(tensors)
    fitted = [isinstance(donors, FittedDonors) for donors in unit_donors.donors]
    sources = [_Matched(donors, source) for donors, source in zip(unit_donors.donors, own)]
    matched = tuple(
        donors if is_fitted else source.bind(tensor)
        for donors, is_fitted, source, tensor in zip(unit_donors.donors, fitted, sources, tensors)
    )
    found[EDGE_MATCHED] = Control(
        unit_donors=replace(
            unit_donors,
            donors=matched,
            own=tuple(source if is_fitted else one for source, is_fitted, one in zip(own, fitted, sources)),
        ),
        possible=has_level,
        sampling="uniform",
        n_draws=most,
        in_words="the donors, shifted to the unit's own mean per channel",
    )
    return found


def controlled(
    controls: Mapping[str, Control],
    plan: Plan,
    evaluator: ModelEvaluator,
    *,
    observed: np.ndarray,
    moments: UnitMoments,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, UnitMoments]:
    """What the controls do, of the plan's rows ``(M, K)``, wherever a row's effect was estimated; the ledger is told the forwards.

    Args:
        controls: by name.
        plan: of the effects.
        evaluator: that computed them.
        observed: the scores without intervention, computed as those under interventions, ``(N, K)``.
        moments: what is known of the effects, ``(M, K)``.
        batch_size: interventions per batch.
        on_progress: called with the interventions done in all, and the forwards that those of the control at hand took.
    """
    found = {}
    wanted = plan.active & (moments.status == Status.ESTIMATED)
    before = 0
    for name, control in controls.items():
        one = evaluator.with_donors(control.unit_donors)
        active = wanted & control.possible[plan.example, plan.unit][:, None]
        rows = active.any(1)
        populations = one.populations(plan.example[rows], plan.unit[rows])
        population = np.ones((len(plan), populations.shape[1]), dtype=np.int64)
        population[rows] = populations
        own = replace(
            plan,
            population=population,
            active=active,
            n_draws=control.n_draws,
            n_first=None,
            n_screening_draws=0,
            sampling=control.sampling,
            rankings=(),
        )

        def report(done: int, total: int, one: ModelEvaluator = one, before: int = before) -> None:
            on_progress(before + done, sum(one.forwards(0, done).values()))

        outcome = run(own, one, observed, batch_size=batch_size, screening_threshold=0.0, on_progress=report)
        evaluator.ledger.count(name, sum(one.forwards(0, outcome.n_forwards).values()))
        before, batch_size = before + outcome.n_forwards, outcome.batch_size
        found[name] = outcome.moments
    return found
