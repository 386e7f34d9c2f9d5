"""Designs: which donors a row gets, and in which order.

A row is one unit of one example. Its draws come in stages: the screening draws (stage 0), the first sample (stage 1), and, where an effect has to be
known better, further stages that each about double the sample. A new sampling scheme is one class:

    >>> import numpy as np
    >>> from captum_causalseg.engine.design import Design
    >>> from captum_causalseg.engine.draws import with_replacement
    >>> class Independent(Design):
    ...     "Every draw from all donors."
    ...
    ...     @classmethod
    ...     def total(cls, population):
    ...         return float("inf")  # draws may repeat
    ...
    ...     def donors(self, n):
    ...         return with_replacement(self.generator(), self.population, self.end(8))[:n]
    >>> design = Independent(np.random.default_rng(0), [3], n_first=4)
    >>> [design.end(stage) for stage in (1, 2, 3)], design.donors(4).shape, design.selection(1).weights.tolist()
    ([4, 8, 16], (4, 1), [0.25, 0.25, 0.25, 0.25])
"""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from captum_causalseg.engine.draws import candidates, with_replacement, without_replacement
from captum_causalseg.engine.sample import Selection, Strata

__all__ = ["Design", "PaperDesign", "StratifiedDesign", "UniformDesign"]


_ANY_SEED = np.random.SeedSequence(0)


class Design(ABC):
    """The donors of one row. As it stands, a simple random sample of them, of which :meth:`donors` says how it is drawn.

    Args:
        generator: where the draws come from.
        population: donors per slot.
        n_first: draws up to the end of the first stage after screening, the screening draws included.
        n_screening: how many screening draws there are; 0 for none.
        ranking: ``(m,)`` places among the :func:`~captum_causalseg.engine.draws.candidates` that this generator gives, from the smallest predicted effect
            to the largest; for designs that need one.
    """

    needs_ranking = False
    """Whether it draws along a ranking. Rows whose donors cannot be ranked are drawn uniformly instead."""
    keeps_screening_draws = True
    """Whether the screening draws are a part of the sample; else ``n_first`` draws come on top of them."""

    def __init__(
        self,
        generator: np.random.Generator,
        population: Sequence[int],
        *,
        n_first: int,
        n_screening: int = 0,
        ranking: np.ndarray | None = None,
    ) -> None:
        self._generator, self.population = generator, tuple(int(size) for size in population)
        self.n_first, self.n_screening = n_first, n_screening

    @classmethod
    def total(cls, population: Sequence[int]) -> float:
        """How many different donors there are, of so many per slot; infinite for draws with replacement."""
        return math.prod(int(size) for size in population)

    def generator(self) -> np.random.Generator:
        """The row's generator as it was in the beginning, so that a sequence can be drawn again."""
        if type(self._generator) is not np.random.Generator:
            return copy.deepcopy(self._generator)  # another kind may hold more than its bits
        bits = self._generator.bit_generator
        # A deep copy of a generator takes ten times as long, and a seed of its own twice as long.
        again = type(bits)(_ANY_SEED)
        again.state = bits.state
        return np.random.Generator(again)

    def end(self, stage: int) -> int:
        """How many draws have been made when a stage is complete (0: the screening draws)."""
        wanted = self.n_screening if stage == 0 else self.n_first * 2 ** (stage - 1)
        return int(min(wanted, self.total(self.population)))

    @abstractmethod
    def donors(self, n: int) -> np.ndarray:
        """The first ``n`` donors in the order of use, ``(n, slots)``; a longer sequence continues a shorter one."""

    def selection(self, stage: int) -> Selection:
        """How the draws up to the end of a stage were selected. Of the screening draws alone (0): as if they were a simple random sample."""
        n = self.end(stage)
        return Selection(np.full(n, 1 / n), self.total(self.population))


class UniformDesign(Design):
    """Different donors, every set equally likely: simple random sampling without replacement (Cochran, Sampling Techniques, 1977, ch. 2)."""

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Design.donors`."""
        return without_replacement(self.generator(), self.population, n)


class PaperDesign(Design):
    """The paper's: drawn with replacement; ``n_first`` draws after the screening ones, which are then forgotten (PdCR, arXiv 2602.20511)."""

    keeps_screening_draws = False

    @classmethod
    def total(cls, population: Sequence[int]) -> float:
        """See :meth:`Design.total`."""
        return math.inf

    def end(self, stage: int) -> int:
        """See :meth:`Design.end`; there is no further stage."""
        return self.n_screening + (self.n_first if stage else 0)

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Design.donors`."""
        return with_replacement(self.generator(), self.population, self.end(1))[:n]

    def selection(self, stage: int) -> Selection:
        """See :meth:`Design.selection`."""
        if stage == 0:
            return super().selection(0)
        return Selection(np.repeat([0.0, 1 / self.n_first], [self.n_screening, self.n_first]), math.inf)


class StratifiedDesign(Design):
    """One draw from every stratum of the ranked candidates.

    The ``m`` candidates are a simple random sample of all donors (or all of them). They are cut along the ranking into strata of
    equal size (to one), and one donor is drawn from each, which stands for its stratum. In the next stage every stratum is
    halved, and one more donor drawn from the half that has none yet: again one draw per stratum, uniform within it. So the sum of the values, each
    with its stratum's share of the candidates as weight, is unbiased at every stage, whatever the ranking is worth (stratified and two-phase
    sampling: Cochran, Sampling Techniques, 1977, ch. 5 and 12).

    The screening draws are those from both ends of the ranking and evenly between them. (Those of the largest predicted effects
    alone are much alike, and where the prediction fails it fails for all of them: they miss more units than random ones.)

    Args:
        generator, population, n_screening: as of every design.
        n_first: as of every design; fewer than there are candidates.
        ranking: ``(m,)``, needed.
    """

    needs_ranking = True

    def __init__(
        self,
        generator: np.random.Generator,
        population: Sequence[int],
        *,
        n_first: int,
        n_screening: int = 0,
        ranking: np.ndarray | None = None,
    ) -> None:
        super().__init__(generator, population, n_first=n_first, n_screening=n_screening)
        if ranking is None:
            raise ValueError("ranking: expected the order of the candidates, got None; UniformDesign needs none")
        self._ranking = ranking
        # Per stage, the ranks that it adds in the order of use, and the edges of its strata; made when they are needed.
        self._stages: list[np.ndarray] = []
        self._edges: list[np.ndarray] = []

    def end(self, stage: int) -> int:
        """See :meth:`Design.end`."""
        if stage < 2:
            return self.n_first if stage else self.n_screening
        # Which strata there are does not depend on what is drawn from them.
        sizes = np.diff(self._first_edges())
        for _ in range(stage - 1):
            halves = sizes // 2
            sizes = np.concatenate([halves[halves > 0], sizes - halves])
        return len(sizes)

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Design.donors`."""
        stage = 1
        while (end := self.end(stage)) < n and self.end(stage + 1) > end:
            stage += 1
        self._grow(stage)
        chosen: np.ndarray = self._ranked[np.concatenate(self._stages)[:n]]
        return chosen

    def selection(self, stage: int) -> Selection:
        """See :meth:`Design.selection`."""
        if stage == 0:
            return super().selection(0)
        self._grow(stage)
        strata = Strata(np.concatenate(self._stages[:stage]), self._edges[stage - 1])
        weights = np.empty(len(strata.ranks))
        weights[np.argsort(strata.ranks)] = strata.sizes / strata.n_candidates
        return Selection(weights, self.total(self.population), strata)

    def _first_edges(self) -> np.ndarray:
        return np.arange(self.n_first + 1) * len(self._ranking) // self.n_first

    def _begin(self) -> None:
        self._draw = self.generator()
        self._ranked = candidates(self._draw, self.population, len(self._ranking))[self._ranking]
        edges = self._first_edges()
        ranks = edges[:-1] + (self._draw.random(self.n_first) * (edges[1:] - edges[:-1])).astype(np.int64)
        self._stages.append(ranks[_ends_first(self.n_first, self.n_screening)])
        self._edges.append(edges)

    def _grow(self, stage: int) -> None:
        if not self._stages:
            self._begin()
        while len(self._stages) < stage:
            edges, taken = self._edges[-1], np.sort(np.concatenate(self._stages))
            start, sizes = edges[:-1], np.diff(edges)
            middle = start + sizes // 2
            split = sizes > 1
            upper = taken < middle
            low, high = np.where(upper, middle, start), np.where(upper, edges[1:], middle)
            new = low + (self._draw.random(len(low)) * (high - low)).astype(np.int64)
            self._stages.append(new[split])
            self._edges.append(np.sort(np.concatenate([edges, middle[split]])))


@functools.lru_cache
def _ends_first(n: int, k: int) -> np.ndarray:
    """``0 .. n - 1`` in another order: ``k`` from both ends and evenly between them, then the others. It is the same for most rows of a run."""
    spread = np.unique(np.linspace(0, n - 1, max(k, 2)).round().astype(np.int64))
    first = np.concatenate([spread[[-1, 0]], spread[1:-1]])[:k]
    order: np.ndarray = np.concatenate([first, np.delete(np.arange(n), first)])
    order.setflags(write=False)
    return order
