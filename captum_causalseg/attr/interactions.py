"""Which units stand in for each other, and which need each other."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, NONE, checked, instance, integer, renamed, sequence
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.effort import EFFORT, Effort
from captum_causalseg.attr.estimate import Running, estimate, running
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.engine.contexts import Shapley
from captum_causalseg.engine.pairs import PairOutcome, run_pairs
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics import adjust_p_values
from captum_causalseg.statistics.intervals import half_width, p_value
from captum_causalseg.statistics.moderation import moderated_errors
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.target import SegmentationTarget

__all__ = ["interaction_effects"]

# Of every unit, to find the strongest.
_DRAWS_TO_CHOOSE = 16

Pairs = Sequence[tuple[int, int]]


@checked(
    EFFORT,
    target=instance(SegmentationTarget, nn.Module, expected="a SegmentationTarget or another module"),
    pairs=NONE | sequence(sequence(integer(0), length=2, expected="a pair of unit ids"), 1, expected="pairs of unit ids"),
    top=NONE | integer(2),
    n_draws=integer(2),
    alpha=FRACTION,
    channels=CHANNELS,
    units=UNITS,
)
def interaction_effects(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    *,
    output: TargetType = None,
    pairs: Pairs | None = None,
    top: int | None = None,
    additional_forward_args: Any = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    channels: Channels = None,
    units: UnitKind = "block",
    n_draws: int = 50,
    alpha: float = 0.05,
    support: Literal["auto", "always"] | None = "auto",
    exclude: Exclude = "roi",
    perturbations_per_eval: int = 16,
    seed: int | Sequence[int] = 0,
    show_progress: bool = False,
) -> pd.DataFrame:
    """What pairs of units do together that they do not do one by one.

    For a pair ``p, q`` and donors ``b`` of both, the interaction is the effect of replacing both, less the sum of the effects of replacing either:

        ``interaction = [M(x) - M(do p, q)] - [M(x) - M(do p)] - [M(x) - M(do q)]``

    Every draw gives all of them with the same donors. The interaction has the sign of the joint effect where the units **stand in for each other**
    (redundant: either is enough, so that replacing one does little), and the opposite sign where they **need each other** (synergistic: either alone is
    of little use, so that replacing one does as much as replacing both).

    Args:
        target: what is scored, a :class:`~captum_causalseg.SegmentationTarget` or another module that returns scores.
        inputs, baselines, additional_forward_args, feature_mask, block_size, channels, units, support, exclude, perturbations_per_eval, seed, show_progress: as in
            :meth:`AverageTreatmentEffect.attribute`.
        output: which output, as Captum's ``target``; of a class and a RoI, the pair.
        pairs: of unit ids; or
        top: all pairs of so many units of each example, those with the largest joint effects (:class:`~captum_causalseg.JointTreatmentEffect`, 16 further
            draws of all units, which are not used again).
        n_draws: of every pair, at least 2. ``m`` units in ``k`` pairs take ``m + k`` forwards per draw.
        alpha: the false discovery rate at which a pair is called redundant or synergistic (Benjamini and Hochberg, over the pairs of an example).

    Returns:
        One row per example and pair, the strongest interactions first. Columns: ``example``, ``first``, ``second`` (unit ids), ``effect_first``,
        ``effect_second`` (single effects), ``joint`` with ``joint_lower`` and ``joint_upper``, ``interaction`` with its ``standard_error``, ``lower`` and
        ``upper`` (95 % intervals, variances moderated over the pairs of an example), ``p_value``, ``p_adjusted``, ``n_draws``, and ``kind``: ``"redundant"``,
        ``"synergistic"``, ``"unclear"`` where there is an interaction but the sign of the joint effect is open, or ``"none"`` where none was found; ``first_0``, ``first_1``, ..., ``second_0``, ...: the middles of the
        units along the axes, in pixels. A pair with a unit that cannot reach the RoI interacts by exactly 0. ``table.attrs["forwards"]`` says what the forwards were spent on.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

    Example:
        >>> import torch
        >>> from captum_causalseg import interaction_effects
        >>> class Score(torch.nn.Module):
        ...     def forward(self, image):  # either of the first two pixels is enough; the last two are both needed
        ...         a, b, c, d = image.flatten(1).T
        ...         return torch.maximum(a, b) + torch.minimum(c, d)
        >>> image, donors = torch.ones(1, 1, 1, 4), torch.rand(20, 1, 1, 4) / 10
        >>> table = interaction_effects(Score(), image, donors, pairs=[(0, 1), (2, 3), (0, 2)], block_size=1)
        >>> sorted(zip(table["first"], table["second"], table["kind"]))
        [(0, 1, 'redundant'), (0, 2, 'none'), (2, 3, 'synergistic')]
    """
    if (pairs is None) == (top is None):
        raise ValueError(f"pairs, top: give one of them, got {'both' if top is not None else 'neither'}")
    options = Options(
        name="Interactions",
        forward_func=target,
        inputs=inputs,
        baselines=baselines,
        target=output,
        additional_forward_args=additional_forward_args,
        units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units),
        effort=Effort(n_draws=n_draws, n_screening_draws=0, seed=seed, sampling="uniform", support=support),
        execution=Execution(perturbations_per_eval=perturbations_per_eval),
        show_progress=show_progress,
        return_statistics=True,
    )
    with renamed(target="output", forward_func="target"):
        chosen, forwards = ({}, {}) if top is None else _strongest(options, top)
        with running(options) as now:
            asked = _asked(now, chosen if pairs is None else dict.fromkeys(range(now.problem.n_examples), _distinct(pairs)))
            reach = now.plan.active[asked, now.outputs.chosen[now.plan.example[asked]]].all(1)
            found = None
            if reach.any():
                how: dict[str, Any] = {"batch_size": now.batch_size, "on_progress": now.forecast(in_context=True).run}
                found = run_pairs(now.plan, asked[reach], now.evaluator, observed=now.baseline, **how)
    table = _table(now, asked, reach, found=found, alpha=alpha)
    spent = now.forwards(0 if found is None else found.n_forwards)
    table.attrs["forwards"] = {**spent, **({"choosing the units": sum(forwards.values())} if forwards else {})}
    return table


def _distinct(pairs: Pairs) -> list[tuple[int, int]]:
    """Each pair once, the smaller id first."""
    alike = next((first for first, second in pairs if first == second), None)
    if alike is not None:
        raise ValueError(f"pairs: expected two different units, got {alike} twice")
    return list(dict.fromkeys((int(min(pair)), int(max(pair))) for pair in pairs))


def _strongest(options: Options, top: int) -> tuple[dict[int, list[tuple[int, int]]], dict[str, int]]:
    """For each example all pairs of its units with the largest joint effects, and the forwards that were spent."""
    effort = replace(options.effort, n_draws=_DRAWS_TO_CHOOSE)
    _, statistics = estimate(replace(options, context=Shapley(), effort=effort))
    one = statistics.of_output(options.target)
    found = {}
    for n, (effects, asked) in enumerate(zip(one.effect.numpy(), one.hypotheses.numpy())):
        ranked = np.argsort(-np.where(asked, np.abs(effects), -1.0), kind="stable")[: min(top, int(asked.sum()))]
        ids = sorted(one.unit_ids.numpy()[ranked].tolist())
        found[n] = list(itertools.combinations(ids, 2))
    return found, dict(statistics.settings["forwards"])


def _asked(now: Running, pairs: dict[int, list[tuple[int, int]]]) -> np.ndarray:
    """Pairs of ids as pairs of rows of the plan, ``(P, 2)``.

    Raises:
        ValueError: there is no such unit, or it is left as it is for the output's sake.
    """
    plan, rows = now.plan, []
    may = now.treated[np.arange(len(plan)), now.outputs.chosen[plan.example]]
    place = {(n, key): row for row, (n, key) in enumerate(zip(plan.example.tolist(), plan.key.tolist())) if may[row]}
    known = set(now.problem.units.ids.tolist())
    for n, of_example in pairs.items():
        for pair in of_example:
            for unit in pair:
                if unit not in known:
                    raise ValueError(f"pairs: there is no unit {unit}; the ids are {min(known)} to {max(known)}")
                if (n, unit) not in place:
                    raise ValueError(
                        f"pairs: unit {unit} of example {n} is excluded or absent, so that its effects are not known"
                    )
            rows.append([place[n, unit] for unit in pair])
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _table(now: Running, asked: np.ndarray, reach: np.ndarray, *, found: PairOutcome | None, alpha: float) -> pd.DataFrame:
    plan = now.plan
    example = plan.example[asked[:, 0]]
    columns: dict[str, np.ndarray] = {"example": example, "first": plan.key[asked[:, 0]], "second": plan.key[asked[:, 1]]}
    names = (
        "effect_first",
        "effect_second",
        "joint",
        "joint_lower",
        "joint_upper",
        "interaction",
        "standard_error",
        "lower",
        "upper",
    )
    columns |= {name: np.zeros(len(asked)) for name in names}
    centers = {"first": _centers(now, asked[:, 0]), "second": _centers(now, asked[:, 1])}
    columns |= {f"{name}_{axis}": found[:, axis] for name, found in centers.items() for axis in range(found.shape[1])}
    columns |= {
        "p_value": np.ones(len(asked)),
        "p_adjusted": np.ones(len(asked)),
        "n_draws": np.zeros(len(asked), dtype=np.int64),
    }
    settled = np.zeros(len(asked))
    for n in np.unique(example[reach]).tolist() if found is not None else ():
        assert found is not None
        mine, here = reach & (example == n), example[reach] == n
        k = int(now.outputs.chosen[n])
        joint, _, joint_half, joint_p = _inferred(found.together, here, k)
        effect, error, half, p = _inferred(found.interaction, here, k)
        written = (
            *found.single[here][..., k].T,
            joint,
            joint - joint_half,
            joint + joint_half,
            effect,
            error,
            effect - half,
            effect + half,
        )
        for name, values in zip(names, written):
            columns[name][mine] = values
        columns["p_value"][mine], columns["p_adjusted"][mine] = p, adjust_p_values(p, "fdr_bh")
        columns["n_draws"][mine] = plan.n_draws
        settled[mine] = np.where(joint_p <= alpha, np.sign(joint), 0)
    agrees = settled * np.sign(columns["interaction"])
    kind = np.select([agrees > 0, agrees < 0], ["redundant", "synergistic"], "unclear")
    table = pd.DataFrame(columns | {"kind": np.where(columns["p_adjusted"] <= alpha, kind, "none")})
    order = np.lexsort((-np.abs(columns["interaction"]), columns["example"]))
    return table.iloc[order].reset_index(drop=True)


def _centers(now: Running, rows: np.ndarray) -> np.ndarray:
    """The middle of each row's unit in the first input that it has places in, in pixels, ``(P, d)``."""
    found = []
    for example, unit in zip(now.plan.example[rows].tolist(), now.plan.unit[rows].tolist()):
        boxes = [piece.box for piece in now.problem.units.pieces(example, unit)]
        found.append([(side.start + side.stop - 1) / 2 for side in boxes[0]])
    most = max(map(len, found), default=0)
    return np.array([[*one, *[np.nan] * (most - len(one))] for one in found]).reshape(len(rows), most)


def _inferred(moments: UnitMoments, which: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Of some pairs of one example and one output: effects, standard errors, half-widths of 95 % intervals, and p-values."""
    one = [values[which][:, [k]] for values in (moments.sample_variance, moments.variance_factor, moments.variance_freedom)]
    error, freedom = (values[:, 0] for values in moderated_errors(*one))
    effect = moments.effect[which][:, k]
    return effect, error, half_width(error, freedom, 0.95), p_value(effect, error, freedom)
