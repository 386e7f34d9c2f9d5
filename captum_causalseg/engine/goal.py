"""When an effect is known well enough."""

import math
from dataclasses import dataclass

import numpy as np

from captum_causalseg.statistics.intervals import half_width
from captum_causalseg.statistics.moderation import moderated_errors
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["Goal", "half_widths"]


@dataclass(frozen=True)
class Goal:
    """What has to be known about an effect before its unit is left alone; at least one of the two.

    Args:
        precision: half-width of its interval at ``level``, in the score's units.
        decide: a threshold that the effect shall be known to lie above or below.
        alpha: the chance of any wrong decision about one effect, over all looks at it.
        level: of the interval that ``precision`` is the half-width of.
        outputs: ``(N, K)``: of which outputs.
        budget: interventions in all; a stage of a row that would exceed it is not begun.
        most_draws: interventions per row.
    """

    precision: float | None
    decide: float | None
    alpha: float
    level: float
    outputs: np.ndarray
    budget: int
    most_draws: int

    def looks(self, n_first: int) -> int:
        """How often an effect may be looked at, when every look doubles the draws."""
        return 1 + max(0, math.ceil(math.log2(self.most_draws / n_first)))

    def decisions(self, mean: np.ndarray, half_width: np.ndarray) -> np.ndarray:
        """1 where the effect lies above the threshold, -1 where below, 0 where that is open; half-widths of :meth:`looks`."""
        assert self.decide is not None
        return np.where(mean - half_width > self.decide, 1, np.where(mean + half_width < self.decide, -1, 0))


def half_widths(example: np.ndarray, moments: UnitMoments, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors and half-widths of intervals ``(M, K)``, the variances moderated among each example's rows.

    Args:
        example: ``(M,)``.
        moments: of the rows, ``(M, K)``.
        level: of the intervals.
    """
    shape = moments.effect.shape
    error, freedom = np.full(shape, np.nan), np.full(shape, np.nan)
    for n in np.unique(example):
        rows = example == n
        known = moments.sample_variance[rows], moments.variance_factor[rows], moments.variance_freedom[rows]
        error[rows], freedom[rows] = moderated_errors(*known)
    return error, half_width(error, freedom, level)
