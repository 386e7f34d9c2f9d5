"""Averages and ratios over regions of interest, with intervals that know which were measured on the same regions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def product(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """The sum over units of the products of two kinds' true effects, without bias.

    Each kind was estimated twice, with draws of its own: ``first`` and ``second`` are pairs of estimates ``(U,)``. Errors of the first draws are
    independent of those of the second, so that products across them have the right mean; a plain sum of squares would count the noise
    as effects. The product of a kind with itself is its energy, the sum of the squared effects. It can be below 0 where there is nothing but noise.
    """
    return float(first[0] @ second[1] + first[1] @ second[0]) / 2


@dataclass(frozen=True)
class Estimate:
    """A number that is made of several regions of interest.

    Args:
        value: the estimate.
        influence: ``(R,)``, how much each region moves it, times their number; of mean 0. A mean's are the deviations from it. Estimates over the same regions, in
            the same order, can be subtracted: what the regions have in common takes itself away.
    """

    value: float
    influence: np.ndarray

    @classmethod
    def mean(cls, values: Sequence[float]) -> "Estimate":
        """The mean over regions."""
        taken = np.asarray(values, dtype=float)
        return cls(float(taken.mean()), taken - taken.mean())

    @classmethod
    def ratio(cls, numerators: Sequence[float], denominators: Sequence[float]) -> "Estimate":
        """The ratio of two sums over regions, linearized (the delta method)."""
        above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
        if below.sum() == 0:
            return cls(math.nan, np.full(len(below), math.nan))
        value = float(above.sum() / below.sum())
        return cls(value, (above - value * below) / below.mean())

    @property
    def standard_error(self) -> float:
        """Of the value, over regions."""
        n = len(self.influence)
        return float(np.sqrt((self.influence**2).sum() / (n - 1) / n)) if n > 1 else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t over regions."""
        if len(self.influence) < 2:
            return math.nan, math.nan
        half = float(stats.t.ppf((1 + level) / 2, len(self.influence) - 1)) * self.standard_error
        return self.value - half, self.value + half

    def root(self) -> "Estimate":
        """The square root: of a ratio of energies, the ratio of root-mean-square effects. NaN below 0."""
        if not self.value > 0:
            return Estimate(math.nan if self.value != 0 else 0.0, np.full(len(self.influence), math.nan))
        root = math.sqrt(self.value)
        return Estimate(root, self.influence / (2 * root))

    def __sub__(self, other: "Estimate") -> "Estimate":
        if len(self.influence) != len(other.influence):
            raise ValueError(f"other: expected {len(self.influence)} regions, got {len(other.influence)}")
        return Estimate(self.value - other.value, self.influence - other.influence)

    def __rsub__(self, constant: float) -> "Estimate":
        return Estimate(constant - self.value, -self.influence)

    def __str__(self) -> str:
        # Adding 0 takes the sign from -0.
        value, low, high = (f"{round(one, 2) + 0.0:.2f}" for one in (self.value, *self.interval()))
        return value if low == "nan" else f"{value} ({low} to {high})"
