"""Joint effects, written literally: one set of units at a time, whole images, no batches, dictionaries for games."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.draws import without_replacement

Score = Callable[[Tensor], np.ndarray]
"""``(image (1, C, *spatial)) -> scores (K,)``."""


def replaced(image: Tensor, mask: Tensor, donors: Tensor, chosen: dict[int, int]) -> Tensor:
    """The image ``(1, C, *spatial)`` with each of these units (by id) replaced by that donor of ``(D, C, *spatial)``."""
    changed = image.clone()
    for unit, donor in chosen.items():
        here = (mask == unit).expand(image.shape)
        changed[here] = donors[donor : donor + 1][here]
    return changed


def drawn_donors(seed: int, unit: int, population: int, n: int) -> list[int]:
    """In rounds: all donors in random order, then all in another."""
    generator = np.random.default_rng((seed, unit))
    found: list[int] = []
    while len(found) < n:
        found += without_replacement(generator, [population], min(population, n - len(found)))[:, 0].tolist()
    return found


def orders(seed: int, units: Sequence[int], n_pairs: int) -> list[list[int]]:
    """The permutations of the units, each followed by its reverse."""
    places = {unit: np.random.default_rng((seed, unit, 1)).random(n_pairs) for unit in units}
    found = []
    for t in range(n_pairs):
        order = sorted(units, key=lambda unit: places[unit][t])
        found += [order, order[::-1]]
    return found


def contexts_of(q: float, seed: int, units: Sequence[int], n_pairs: int) -> list[set[int]]:
    """Sets into which each unit comes with probability q, each followed by that of the opposite draws."""
    places = {unit: np.random.default_rng((seed, unit, 1)).random(n_pairs) for unit in units}
    found = []
    for t in range(n_pairs):
        found += [{u for u in units if places[u][t] < q}, {u for u in units if 1 - places[u][t] < q}]
    return found


def values_of_pairs(worth: Callable[[int, frozenset[int]], np.ndarray], units, *, q=None, n_pairs, seed=0):
    """For each unit the mean difference of every pair, ``(n_pairs, K)``; ``worth(draw, set)`` are the scores with a set replaced by a draw's donors."""
    found: dict[int, list[list[np.ndarray]]] = {unit: [[] for _ in range(n_pairs)] for unit in units}
    if q is None:
        for number, order in enumerate(orders(seed, units, n_pairs)):
            for place, unit in enumerate(order):
                before, after = frozenset(order[:place]), frozenset(order[: place + 1])
                found[unit][number // 2].append(worth(number, before) - worth(number, after))
    else:
        for number, others in enumerate(contexts_of(q, seed, units, n_pairs)):
            for unit in units:
                before, after = frozenset(others - {unit}), frozenset(others | {unit})
                found[unit][number // 2].append(worth(number, before) - worth(number, after))
    return {unit: np.array([np.mean(pair, axis=0) for pair in pairs]) for unit, pairs in found.items()}


def literal(score: Score, image: Tensor, mask: Tensor, donors: Tensor, units, *, q=None, n_draws, seed=0):
    """Mean differences of every pair of draws, by unit: ``(n_draws / 2, K)``."""
    numbers = {unit: drawn_donors(seed, unit, len(donors), n_draws) for unit in units}

    def worth(draw, chosen):
        return score(replaced(image, mask, donors, {unit: numbers[unit][draw] for unit in chosen}))

    return values_of_pairs(worth, units, q=q, n_pairs=n_draws // 2, seed=seed)


def exact_worths(score: Callable[[Tensor], np.ndarray], image: Tensor, donors: Tensor) -> dict[frozenset[int], float]:
    """The mean score over all combinations of donors for every set of the elements of a flat image ``(m,)``; donors are ``(D, m)``."""
    m, worths = len(image), {}
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(m), size) for size in range(m + 1)):
        choices = list(itertools.product(range(len(donors)), repeat=len(chosen)))
        combinations = np.array(choices, dtype=np.int64).reshape(len(choices), len(chosen))
        images = image.repeat(len(combinations), 1)
        for column, unit in enumerate(chosen):
            images[:, unit] = donors[combinations[:, column], unit]
        worths[frozenset(chosen)] = float(score(images).mean())
    return worths


def exact_effects(worths: dict[frozenset[int], float], m: int, weight: Callable[[int], float]) -> np.ndarray:
    """Of every unit the sum over sets of others of ``weight(size) * (worth without it - worth with it)``."""
    found = np.zeros(m)
    for unit in range(m):
        for chosen, worth in worths.items():
            if unit not in chosen:
                found[unit] += weight(len(chosen)) * (worth - worths[chosen | {unit}])
    return found


def shapley_weight(m: int) -> Callable[[int], float]:
    return lambda size: math.factorial(size) * math.factorial(m - size - 1) / math.factorial(m)


def binomial_weight(m: int, q: float) -> Callable[[int], float]:
    return lambda size: q**size * (1 - q) ** (m - 1 - size)


def scorer(function) -> Score:
    """A forward function as the literal loop calls it."""
    return lambda image: torch.as_tensor(function(image.clone())).detach().double().reshape(-1).numpy()
