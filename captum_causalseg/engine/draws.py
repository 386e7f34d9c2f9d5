"""How one row's donors are drawn, and what may be concluded from the scores that they gave.

A row is one unit of one example. Its draws come in stages: the screening draws, the first sample, and, where an effect has to
be known better, further stages that each double the sample. Whatever stage was completed last, :meth:`Draws.estimate` gives
an unbiased estimate of the effect over all the row's donors, and the variance that goes with it.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Draws",
    "Estimate",
    "PaperDraws",
    "StratifiedDraws",
    "UniformDraws",
    "candidates",
    "with_replacement",
    "without_replacement",
]

# Beyond this many combinations of donors two of a few draws never meet, and the numbers leave 64-bit integers.
_COUNTABLE = 2**62


def without_replacement(generator: np.random.Generator, population: Sequence[int], n: int) -> np.ndarray:
    """``n`` different donors ``(n, slots)``, every set equally likely; all of them, in random order, if there are no more.

    The first draws do not depend on ``n``, so a longer sequence continues a shorter one.
    """
    total = math.prod(population)
    if total > _COUNTABLE:
        return with_replacement(generator, population, n)
    n = min(n, total)
    # Fisher-Yates on a virtual deck of `total` cards: only the cards that moved are held.
    moved: dict[int, int] = {}
    drawn = np.empty(n, dtype=np.int64)
    for i, j in enumerate(generator.integers(np.arange(n), total, dtype=np.int64).tolist()):
        drawn[i] = moved.get(j, j)
        moved[j] = moved.get(i, i)
    return np.stack(np.unravel_index(drawn, tuple(population)), axis=1)


def with_replacement(generator: np.random.Generator, population: Sequence[int], n: int) -> np.ndarray:
    """``n`` independent draws ``(n, slots)``, as the paper's protocol has them."""
    return np.stack([generator.integers(0, size, n, dtype=np.int64) for size in population], axis=1)


def candidates(generator: np.random.Generator, population: Sequence[int], m: int) -> np.ndarray:
    """``m`` different donors ``(m, slots)``, every set equally likely; all of them in ascending order if there are no more."""
    total = math.prod(population)
    if total > _COUNTABLE:
        return with_replacement(generator, population, m)
    numbers = np.arange(total) if m >= total else generator.choice(total, m, replace=False, shuffle=False)
    return np.stack(np.unravel_index(numbers, tuple(population)), axis=1)


@dataclass(frozen=True)
class Estimate:
    """What a row's draws say about ``K`` outputs.

    Args:
        mean: ``(K,)`` the estimated effects.
        variance: ``(K,)`` the spread of one draw; NaN where it cannot be seen.
        factor: the squared standard error is ``factor * variance``; 0 where every donor was used.
        freedom: degrees of freedom of ``variance``.
        n: draws that went into it.
    """

    mean: np.ndarray
    variance: np.ndarray
    factor: float
    freedom: float
    n: int


class Draws(ABC):
    """The draws of one row.

    Args:
        generator: where the draws come from.
        population: donors per slot.
        n_screening: how many screening draws there are; 0 for none.
        n_first: draws up to the end of the first stage after screening, the screening draws included.

    Attributes:
        total: the number of different donors; infinite when they are drawn with replacement.
    """

    total: float

    def __init__(self, generator: np.random.Generator, population: Sequence[int], n_screening: int, n_first: int) -> None:
        self._generator, self._population = generator, tuple(int(size) for size in population)
        self._n_screening, self._n_first = n_screening, n_first
        self.total = math.prod(self._population)

    @abstractmethod
    def end(self, stage: int) -> int:
        """How many draws have been made when a stage is complete (0: the screening draws)."""

    @abstractmethod
    def donors(self, n: int) -> np.ndarray:
        """The first ``n`` donors in the order of use, ``(n, slots)``."""

    @abstractmethod
    def weights(self, n: int) -> np.ndarray:
        """``(n,)``: the estimate is the sum of these times the draws, once the stage that ends with ``n`` is complete."""

    @abstractmethod
    def estimate(self, values: np.ndarray) -> Estimate:
        """The estimate from the values ``(n, K)`` of all draws up to the end of a stage, in the order of use."""

    def screened(self, values: np.ndarray) -> Estimate:
        """What is reported of a row that was given up after its screening draws ``(n, K)``."""
        return _plain(values, self.total)


class UniformDraws(Draws):
    """Different donors, every set equally likely."""

    def end(self, stage: int) -> int:
        """See :meth:`Draws.end`."""
        wanted = self._n_screening if stage == 0 else self._n_first * 2 ** (stage - 1)
        return int(min(wanted, self.total))

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Draws.donors`."""
        return without_replacement(_copy(self._generator), self._population, n)

    def weights(self, n: int) -> np.ndarray:
        """See :meth:`Draws.weights`."""
        return np.full(n, 1 / n)

    def estimate(self, values: np.ndarray) -> Estimate:
        """See :meth:`Draws.estimate`."""
        return _plain(values, self.total)


class PaperDraws(Draws):
    """The paper's: drawn with replacement; ``n_first`` draws after the screening ones, which are then forgotten."""

    def __init__(self, generator: np.random.Generator, population: Sequence[int], n_screening: int, n_first: int) -> None:
        super().__init__(generator, population, n_screening, n_first)
        self.total = math.inf

    def end(self, stage: int) -> int:
        """See :meth:`Draws.end`; there is no further stage."""
        return self._n_screening + (self._n_first if stage else 0)

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Draws.donors`."""
        return with_replacement(_copy(self._generator), self._population, self.end(1))[:n]

    def weights(self, n: int) -> np.ndarray:
        """See :meth:`Draws.weights`."""
        return np.repeat([0.0, 1 / (n - self._n_screening)], [self._n_screening, n - self._n_screening])

    def estimate(self, values: np.ndarray) -> Estimate:
        """See :meth:`Draws.estimate`."""
        return _plain(values[self._n_screening :], self.total)


class StratifiedDraws(Draws):
    """One draw from every stratum of the ranked candidates.

    The ``m`` candidates are a simple random sample of all donors (or all of them). They are cut along the ranking into strata of
    equal size (to one), and one donor is drawn from each, which stands for its stratum. In the next stage every stratum is
    halved, and one more donor drawn from the half that has none yet: again one draw per stratum, uniform within it. So every
    stage's estimate is unbiased over the candidates, whatever the ranking is worth.

    The screening draws are those from both ends of the ranking and evenly between them. (Those of the largest predicted effects
    alone are much alike, and where the prediction fails it fails for all of them: they miss more units than random ones.)

    The variance within strata is estimated by successive differences along the ranking, ``sum(c[i] (v[i+1] - v[i])**2) / (2n)``,
    which also hold part of the spread between strata: it errs to the safe side. Every stratum's spread is in two differences, but
    that of the strata at the ends in one only, where it is often largest: those two differences count twice (``c``). What the choice of the candidates adds,
    ``S**2 (1/m - 1/D)`` for ``D`` donors, is in the variance as well (two-phase sampling: Cochran, Sampling Techniques, 1977, ch. 12).

    Args:
        order: ``(m,)`` places among the :func:`candidates` that this generator gives, from the smallest predicted effect to the
            largest; there are more of them than ``n_first``.
    """

    def __init__(
        self, generator: np.random.Generator, population: Sequence[int], n_screening: int, n_first: int, order: np.ndarray
    ) -> None:
        super().__init__(generator, population, n_screening, n_first)
        self._draw = _copy(generator)
        self._ranked = candidates(self._draw, population, len(order))[order]
        edges = np.arange(n_first + 1) * len(order) // n_first
        ranks = edges[:-1] + (self._draw.random(n_first) * np.diff(edges)).astype(np.int64)
        first = _ends_first(n_first, n_screening)
        # Per stage, the ranks that it adds in the order of use, and the edges of its strata.
        self._stages = [np.concatenate([ranks[first], np.delete(ranks, first)])]
        self._edges = [edges]

    def end(self, stage: int) -> int:
        """See :meth:`Draws.end`."""
        if stage == 0:
            return self._n_screening
        self._grow(stage)
        return sum(map(len, self._stages[:stage]))

    def donors(self, n: int) -> np.ndarray:
        """See :meth:`Draws.donors`."""
        self._grow(self._stage_with(n))
        chosen: np.ndarray = self._ranked[np.concatenate(self._stages)[:n]]
        return chosen

    def weights(self, n: int) -> np.ndarray:
        """See :meth:`Draws.weights`."""
        order, sizes = self._strata(n)
        weights = np.empty(n)
        weights[order] = sizes / len(self._ranked)
        return weights

    def estimate(self, values: np.ndarray) -> Estimate:
        """See :meth:`Draws.estimate`."""
        (n, outputs), m = values.shape, len(self._ranked)
        order, sizes = self._strata(n)
        ranked, weights = values[order], sizes / m
        mean = weights @ ranked
        # One of the donors of each stratum is drawn: a stratum of one is known exactly.
        within = float((weights**2 * (1 - 1 / sizes)).sum())
        sampled = (1 / m - 1 / self.total) if self.total > m else 0.0
        if n < 2:
            return Estimate(mean, np.full(outputs, np.nan), within + sampled, 0.0, n)
        if within == 0:  # every candidate was used
            return Estimate(mean, ranked.var(0, ddof=1), sampled, n - 1, n)
        counts = _counts_of_differences(n)
        variance = counts @ np.diff(ranked, axis=0) ** 2 / (2 * n) + sampled / within * ranked.var(0, ddof=1)
        # Of normal values: a squared difference has variance 8, two that share a value covariance 2.
        freedom = 2 * counts.sum() ** 2 / (2 * (counts**2).sum() + (counts[:-1] * counts[1:]).sum())
        return Estimate(mean, variance, within, float(freedom), n)

    def _strata(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The draws' places in the order of use, sorted by rank, and the sizes of their strata."""
        stage = self._stage_with(n)
        return np.argsort(np.concatenate(self._stages[:stage])), np.diff(self._edges[stage - 1])

    def _stage_with(self, n: int) -> int:
        stage = 1
        while (end := self.end(stage)) < n and self.end(stage + 1) > end:
            stage += 1
        return stage

    def _grow(self, stage: int) -> None:
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


def _counts_of_differences(n: int) -> np.ndarray:
    """How often each of the ``n - 1`` successive differences counts, so that every one of ``n`` values counts twice at least."""
    counts = np.ones(n - 1)
    counts[0] += 1
    counts[-1] += 1
    return counts


def _ends_first(n: int, k: int) -> np.ndarray:
    """``k`` of ``0 .. n - 1``: both ends, then evenly between them."""
    spread = np.unique(np.linspace(0, n - 1, max(k, 2)).round().astype(np.int64))
    return np.concatenate([spread[[-1, 0]], spread[1:-1]])[:k]


def _plain(values: np.ndarray, total: float) -> Estimate:
    n = len(values)
    with np.errstate(invalid="ignore"):
        variance = values.var(0, ddof=1) if n > 1 else np.full(values.shape[1], np.nan)
    # Equal draws have exactly no variance, whatever is left of rounding the mean.
    variance = np.where((values == values[:1]).all(0) & (n > 1), 0.0, variance)
    return Estimate(values.mean(0), variance, max(0.0, 1 - n / total) / n, n - 1, n)


def _copy(generator: np.random.Generator) -> np.random.Generator:
    """A generator in the same state, so that a sequence can be drawn again."""
    return copy.deepcopy(generator)
