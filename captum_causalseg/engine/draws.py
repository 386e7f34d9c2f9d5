"""Donors drawn from a unit's population: numbers ``(n, slots)``, of which each row is one donor."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["candidates", "with_replacement", "without_replacement"]

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
