"""The arguments that say how donors are drawn, how the model is run and when to stop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from captum_causalseg._checks import BOOLEAN, FRACTION, NONE, SEED, Check, integer, number, one_of, sequence
from captum_causalseg.engine.allocation import FEWEST_DRAWS
from captum_causalseg.engine.sampling import SamplingScheme, scheme_of

__all__ = ["DRAWS", "EFFORT", "LAYER_DRAWS", "OPEN_DRAWS", "Effort", "draws_of"]

DRAWS = 12
"""Draws per unit of an input where nothing is said. With 10, the error was at most 0.9 of that of the paper's 50 uniform draws on each of three networks
(``benchmarks/against_paper.py``); from 12 on intervals are narrower, and draws can go where they are needed."""
LAYER_DRAWS = 32
"""The same of a layer: of up to twice as many donors all are used."""
_BUDGET = 50

EFFORT = {
    "n_draws": integer(1),
    "n_screening_draws": integer(0),
    "screening_threshold": number(0),
    "sampling": Check(
        '"stratified", "uniform" or a SamplingScheme',
        lambda value: isinstance(value, SamplingScheme) or (isinstance(value, str) and value in ("stratified", "uniform")),
    ),
    "allocation": one_of("needed", "equal"),
    "support": one_of("auto", "always", None),
    "perturbations_per_eval": integer(1),
    "seed": SEED | sequence(SEED, expected="one per example"),
    "show_progress": BOOLEAN,
    "return_statistics": BOOLEAN,
    "precision": NONE | number(above=0),
    "decide": NONE | number(),
    "alpha": FRACTION,
    "compile": BOOLEAN,
    "autocast": one_of(torch.bfloat16, torch.float16, None),
    "memory_format": one_of(torch.channels_last, torch.channels_last_3d, torch.contiguous_format, None),
}
"""What the arguments of ``attribute`` and ``plan`` that say how donors are drawn have to be."""

OPEN_DRAWS = NONE | EFFORT["n_draws"]
"""What ``n_draws`` has to be where it need not be said."""

# A layer that is one unit uses all of up to so many donors. There are no other units whose spread its own leans on, and of 12 of 25 donors, 95 %
# intervals held as little as 0.35 where one donor in its stratum had most of the effect (benchmarks/component_coverage.py).
_ALONE = 64
# Of the first sample where draws go on until a goal is reached; it has to show something of the spread.
_FIRST_SAMPLE = 8
# A unit takes at most so many times the draws that it would have without a goal.
_AT_MOST = 16


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How donors are drawn and when to stop. See ``AverageTreatmentEffect.attribute``."""

    n_draws: int = 50
    n_screening_draws: int = 3
    screening_threshold: float = 0.0
    seed: int | Sequence[int] = 0
    sampling: Literal["stratified", "uniform"] | SamplingScheme = "uniform"
    allocation: Literal["needed", "equal"] = "needed"
    support: str | None = None
    precision: float | None = None
    decide: float | None = None
    alpha: float = 0.05
    paper: bool = False
    """Draw as the published protocol does, whatever ``sampling`` says."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for all examples, or one per example."""
        return tuple(self.seed) if isinstance(self.seed, Sequence) else (self.seed,)

    @property
    def has_goal(self) -> bool:
        """Whether draws go on until an effect is known well enough."""
        return self.precision is not None or self.decide is not None

    @property
    def shares_out(self) -> bool:
        """Whether half of the draws go where they are needed.

        Not where there are few, or as many screening draws as half of them; not where a goal says which units are drawn on; and only where donors are
        ranked, by the library's own way: a scheme of one's own may have no further stages, and 95 % intervals of uniform draws would hold 0.91 of
        skewed effects where those of equal draws hold 0.93 (``benchmarks/allocation.py``). Where they turn out to have
        no ranks, all get as many (:meth:`~captum_causalseg.engine.plan.Plan.unranked`).
        """
        plain = not self.has_goal and not self.paper and self.sampling == "stratified"
        enough = self.n_draws >= FEWEST_DRAWS and (
            self.n_screening_draws < self.n_draws // 2 or self.n_screening_draws >= self.n_draws
        )
        return self.allocation == "needed" and plain and enough

    @property
    def n_first(self) -> int:
        """Draws of every unit that is not screened out, before it is looked whether more are needed."""
        if self.shares_out:
            return self.n_draws // 2
        screening = self.n_screening_draws if self.n_screening_draws < self.n_draws else 0
        return min(self.n_draws, screening + _FIRST_SAMPLE) if self.has_goal else self.n_draws

    def drains(self, n_units: int) -> int:
        """Of a layer of so many units, up to how many donors are all used, because the second half of them makes effects exact; 0: no more than are drawn."""
        if self.has_goal or self.paper:
            return 0  # with a goal, draws end where it is reached
        return max(2 * self.n_draws, _ALONE if n_units == 1 else 0)

    @property
    def most_draws(self) -> int:
        """Draws of any one unit, where a goal says which units are drawn on."""
        return self.n_draws * (_AT_MOST if self.has_goal else 1)

    def settings(self) -> dict[str, Any]:
        """What is kept with the statistics."""
        goal = {name: getattr(self, name) for name in ("precision", "decide") if getattr(self, name) is not None}
        goal = {name: float(value) for name, value in goal.items()}
        return {
            "n_draws": int(self.n_draws),
            "n_screening_draws": int(self.n_screening_draws),
            "screening_threshold": float(self.screening_threshold),
            "seed": list(map(int, self.seeds)) if isinstance(self.seed, Sequence) else int(self.seed),
            "sampling": scheme_of(self.sampling).name,
            "support": self.support,
            **goal,
            **({"alpha": float(self.alpha)} if "decide" in goal else {}),
        }


def draws_of(n_draws: int | None, usual: int, *goals: float | None) -> int:
    """How many draws per unit are meant: those given, or the usual ones; where draws go on until a goal is reached, the budget is larger."""
    if n_draws is not None:
        return n_draws
    return usual if all(goal is None for goal in goals) else _BUDGET
