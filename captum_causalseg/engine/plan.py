"""Which unit gets which donor, in which order.

A plan is a list of *rows*, one per example and unit that may be intervened on. A row's donors are numbers drawn from its
``population``; the same seed and unit give the same numbers whatever the batch, and they are drawn anew whenever they are
asked for, so that a plan takes no memory per draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Plan", "Sampler", "with_replacement", "without_replacement"]

Sampler = Callable[[np.random.Generator, Sequence[int], int], np.ndarray]
"""``(generator, population per slot, n) -> (n, slots)`` donor numbers."""

# Beyond this many combinations of donors two of a few draws never meet, and the numbers leave 64-bit integers.
_COUNTABLE = 2**62


def without_replacement(generator: np.random.Generator, population: Sequence[int], n: int) -> np.ndarray:
    """``n`` different donors, every set equally likely; all of them, in random order, if there are no more than ``n``.

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
    """``n`` independent draws, as the paper's protocol has them."""
    return np.stack([generator.integers(0, size, n, dtype=np.int64) for size in population], axis=1)


@dataclass(frozen=True)
class Plan:
    """Rows to intervene on and how their donors are drawn.

    Args:
        example: ``(M,)`` index of each row's example.
        unit: ``(M,)`` index of each row's unit.
        key: ``(M,)`` what a row's draws are seeded with, besides ``seed``: the unit's id.
        population: ``(M, slots)`` number of donors per slot; 1 where the unit does not reach into the slot.
        active: ``(M, K)`` for which outputs the row's effect is wanted.
        n_draws: interventions per row, the screening draws included (see ``fresh_draws``).
        n_screening_draws: how many of them come first and decide whether the rest is needed; 0 for no screening.
        seed: one for all, or one per example.
        sampler: how donors are drawn.
        fresh_draws: the paper's protocol: ``n_draws`` further draws after the screening ones, which are then forgotten.
    """

    example: np.ndarray
    unit: np.ndarray
    key: np.ndarray
    population: np.ndarray
    active: np.ndarray
    n_draws: int
    n_screening_draws: int
    seed: tuple[int, ...]
    sampler: Sampler = without_replacement
    fresh_draws: bool = False

    def __len__(self) -> int:
        return len(self.example)

    def donors(self, row: int) -> np.ndarray:
        """The row's donor numbers in the order of use, ``(n, slots)``, ``n`` at most :attr:`max_draws`."""
        seed = self.seed[self.example[row]] if len(self.seed) > 1 else self.seed[0]
        generator = np.random.default_rng((seed, int(self.key[row])))
        return self.sampler(generator, self.population[row].tolist(), self.max_draws)

    @property
    def max_draws(self) -> int:
        """The most draws that a row can take."""
        return self.n_draws + (self.n_screening_draws if self.fresh_draws else 0)

    @property
    def screens(self) -> bool:
        """Whether there is a screening round at all."""
        return 0 < self.n_screening_draws < self.max_draws

    def count(self, row: int) -> int:
        """How many draws the row takes if it is not screened out."""
        if self.sampler is with_replacement:
            return self.max_draws
        return min(self.max_draws, self._combinations(row))

    def total(self, row: int) -> float:
        """The number of different donors of the row; infinite when they are drawn with replacement."""
        return math.inf if self.sampler is with_replacement else self._combinations(row)

    def _combinations(self, row: int) -> int:
        return math.prod(int(size) for size in self.population[row])
