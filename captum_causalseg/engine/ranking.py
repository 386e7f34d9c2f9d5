"""Rows whose donors are ranked by what a first-order estimate says that they do, and what is kept of it."""

from dataclasses import dataclass

import numpy as np

from captum_causalseg.engine.design import Design
from captum_causalseg.engine.sample import Strata

__all__ = ["FirstOrder", "Ranking"]


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """The predicted effects ``<gradient, x[p] - b>`` of a row's donors ``b``: of those that may be drawn, and exact moments of all candidates.

    It takes 24 bytes per draw that the design may come to, instead of 8 per candidate.

    Args:
        drawn: ``(n,)`` of the draws in the order of use, up to the last stage that may be reached.
        mean: over all candidates.
        stratum_sizes: ``(H,)`` candidates in the strata of that stage, along the ranking.
        stratum_means: ``(H,)`` over the candidates of each.
        stratum_squares: ``(H,)`` sums of squared deviations from these means.
        outputs: ``(K,)`` the outputs whose sum the gradient is of.
    """

    drawn: np.ndarray
    mean: float
    stratum_sizes: np.ndarray
    stratum_means: np.ndarray
    stratum_squares: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, effects: np.ndarray, strata: Strata, outputs: np.ndarray) -> "FirstOrder":
        """From the predicted effects ``(m,)`` of all candidates along the ranking, and the strata of the last stage."""
        edges, sizes = strata.edges, strata.sizes
        means = np.add.reduceat(effects, edges[:-1]) / sizes
        squares = np.add.reduceat((effects - np.repeat(means, sizes)) ** 2, edges[:-1])
        return cls(effects[strata.ranks], float(effects.mean()), sizes, means, squares, outputs)

    def within(self, strata: Strata) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances ``(n,)`` over the candidates of each stratum of a stage, exact; the variance of one candidate is 0."""
        # Where each stratum begins among those of the last stage, by the number of candidates before it.
        first = np.zeros(len(strata.sizes), dtype=np.int64)
        first[1:] = np.searchsorted(np.cumsum(self.stratum_sizes), strata.edges[1:-1]) + 1
        means = np.add.reduceat(self.stratum_sizes * self.stratum_means, first) / strata.sizes
        parts = np.empty_like(first)
        parts[:-1], parts[-1] = first[1:] - first[:-1], len(self.stratum_sizes) - first[-1]
        between = self.stratum_sizes * (self.stratum_means - np.repeat(means, parts)) ** 2
        return means, np.add.reduceat(self.stratum_squares + between, first) / strata.sizes


@dataclass(frozen=True, eq=False)
class Ranking:
    """The order of a row's candidates.

    Args:
        order: ``(m,)`` places among the :func:`~captum_causalseg.engine.draws.candidates`, from the smallest predicted effect to the largest.
        first_order: what was predicted; ``None`` where that is not known, or the design has no strata.
    """

    order: np.ndarray
    first_order: FirstOrder | None = None

    @staticmethod
    def order_of(effects: np.ndarray) -> np.ndarray | None:
        """The order of predicted effects ``(m,)`` in as few bytes as it takes; ``None`` where they tell no donors apart."""
        if not np.isfinite(effects).all() or (effects == effects[0]).all():
            return None
        return np.argsort(effects, kind="stable").astype(np.min_scalar_type(len(effects)))

    @classmethod
    def of(cls, effects: np.ndarray, order: np.ndarray, *, design: Design, outputs: np.ndarray, most_draws: int) -> "Ranking":
        """What is kept of predicted effects ``(m,)``.

        Args:
            effects: of the candidates as they come.
            order: of them, as of :meth:`order_of`.
            design: of the row, with that order.
            outputs: ``(K,)`` the outputs that were differentiated.
            most_draws: that the row can come to.
        """
        stage, end = 1, design.end(1)
        while end < (further := design.end(stage + 1)) <= most_draws:
            stage, end = stage + 1, further
        strata = design.selection(stage).strata
        return cls(order, None if strata is None else FirstOrder.of(effects[order], strata, outputs))
