"""What a design hands to an estimator: the draws' values, how they were selected, and what is known besides."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from captum_causalseg.engine.ranking import FirstOrder

__all__ = ["Sample", "Selection", "Strata"]


@dataclass(frozen=True, eq=False)
class Strata:
    """Ranked candidates, cut along the ranking into ``n`` strata, from each of which one donor was drawn at random.

    Args:
        ranks: ``(n,)`` every draw's rank among the candidates, in the order of use.
        edges: ``(n + 1,)``: stratum ``h`` holds the ranks from ``edges[h]`` up to ``edges[h + 1]``; the last edge is the number of candidates.
    """

    ranks: np.ndarray
    edges: np.ndarray

    @property
    def n_candidates(self) -> int:
        """How many donors were ranked: all there are, or a simple random sample of them."""
        return int(self.edges[-1])

    @cached_property
    def sizes(self) -> np.ndarray:
        """Candidates per stratum, ``(n,)``, along the ranking."""
        found: np.ndarray = self.edges[1:] - self.edges[:-1]
        return found


@dataclass(frozen=True, eq=False)
class Selection:
    """How draws were selected from a row's donors: all that an estimator is told of a design.

    Args:
        weights: ``(n,)`` in the order of use, with sum 1: the sum of weights times values is unbiased for the mean over all donors. A draw of
            weight 0 is no part of the sample.
        total: how many different donors there are; infinite if they are drawn with replacement.
        strata: where there are any; ``None``: all draws of a weight are a simple random sample.
    """

    weights: np.ndarray
    total: float
    strata: Strata | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """The draws of one row, scored.

    Args:
        values: ``(n, K)``, ``observed - intervened`` of every draw and output, in the order of use.
        selection: how they were selected.
        controls: ``(n, K, C)``: what else is known of every draw. Of ranked donors, the first is the predicted effect, the same for every output;
            the others are those that the evaluator gave. ``None`` for none.
        control_means: ``(K, C)``: their means, of the predicted effect over all candidates, of the evaluator's over all donors; NaN where it does
            not know them.
        first_order: of ranked donors, what else is known of the first control: of which outputs it is a prediction, and its moments in the strata.
    """

    values: np.ndarray
    selection: Selection
    controls: np.ndarray | None = None
    control_means: np.ndarray | None = None
    first_order: "FirstOrder | None" = None
