"""The arguments that say how donors are drawn, how the model is run and when to stop."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from captum_causalseg.attr._problem import check_integer
from captum_causalseg.interventions.whole import Execution

__all__ = ["Effort"]

# Of the first sample where draws go on until a goal is reached; it has to show something of the spread.
_FIRST_SAMPLE = 8
# A unit takes at most so many times the draws that it would have without a goal.
_AT_MOST = 16


@dataclass(frozen=True)
class Effort:
    """How donors are drawn and when to stop; checked on construction. See ``AverageTreatmentEffect.attribute``."""

    n_draws: int
    n_screening_draws: int
    screening_threshold: float
    perturbations_per_eval: int
    seed: int | Sequence[int]
    sampling: Literal["stratified", "uniform"] = "uniform"
    support: str | None = None
    precision: float | None = None
    decide: float | None = None
    alpha: float = 0.05
    paper: bool = False
    """Draw as the published protocol does, whatever ``sampling`` says."""

    def __post_init__(self) -> None:
        check_integer("n_draws", self.n_draws, 1)
        check_integer("n_screening_draws", self.n_screening_draws, 0)
        check_integer("perturbations_per_eval", self.perturbations_per_eval, 1)
        _check_number("screening_threshold", self.screening_threshold, 0)
        for seed in self.seeds:
            check_integer("seed", seed, 0)
        if self.sampling not in ("uniform", "stratified"):
            raise ValueError(f'sampling: expected "stratified" or "uniform", got {self.sampling!r}')
        if self.support not in ("auto", None):
            raise ValueError(f'support: expected "auto" or None, got {self.support!r}')
        if self.precision is not None:
            _check_number("precision", self.precision, 0)
            if self.precision == 0:
                raise ValueError("precision: expected a positive half-width, in the score's units, got 0")
        if self.decide is not None:
            _check_number("decide", self.decide, -math.inf)
        if not isinstance(self.alpha, numbers.Real) or not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected an error rate between 0 and 1, got {self.alpha!r}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for all examples, or one per example."""
        one = isinstance(self.seed, str) or not isinstance(self.seed, Sequence)
        return (self.seed,) if one else tuple(self.seed)  # type: ignore[return-value, arg-type]

    @property
    def has_goal(self) -> bool:
        """Whether draws go on until an effect is known well enough."""
        return self.precision is not None or self.decide is not None

    @property
    def n_first(self) -> int:
        """Draws of every unit that is not screened out, before it is looked whether more are needed."""
        screening = self.n_screening_draws if self.n_screening_draws < self.n_draws else 0
        return min(self.n_draws, screening + _FIRST_SAMPLE) if self.has_goal else self.n_draws

    @property
    def most_draws(self) -> int:
        """Draws of any one unit."""
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
            "sampling": self.sampling,
            "support": self.support,
            **goal,
            **({"alpha": float(self.alpha)} if "decide" in goal else {}),
        }


def checked_execution(compile: Any, autocast: Any) -> Execution:
    """How the model is run.

    Raises:
        TypeError: not a bool, or not a data type.
    """
    if not isinstance(compile, bool):
        raise TypeError(f"compile: expected True or False, got {compile!r}")
    if autocast is not None and autocast not in (torch.bfloat16, torch.float16):
        raise TypeError(f"autocast: expected torch.bfloat16, torch.float16 or None, got {autocast!r}")
    return Execution(compile, autocast)


def _check_number(name: str, value: Any, least: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not least <= float(value) < math.inf
        or value == -math.inf
    ):
        expected = "a finite number" if math.isinf(least) else f"a finite number of at least {least}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
