"""Contexts: which other units are replaced as well when a unit is.

The effect of a unit in a context is ``M(others replaced) - M(others and the unit replaced)``. A context says how the others are drawn. A
*trial* is one draw for all units at once: the sets of units whose scores are needed, and which two of them make each unit's difference. It
may hold several differences of each unit (in a permutation and in its reverse), each with its own donor for every unit. Trials are
independent of each other; what is within a trial is not.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from captum_causalseg._checks import ArgumentTypeError, Check, misfit
from captum_causalseg.engine.draws import without_replacement

__all__ = [
    "CONTEXT",
    "Banzhaf",
    "Context",
    "ContextArgument",
    "Drawn",
    "Shapley",
    "Trial",
    "Units",
    "context_of",
    "donors_in_rounds",
]

DrawOthers = Callable[[np.random.Generator, np.ndarray], np.ndarray]
"""``(generator, unit_ids (n,)) -> boolean (n,)``: which units are replaced."""

ContextArgument = Literal["shapley", "banzhaf"] | float | DrawOthers
"""What ``context=`` takes."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Sets of ``n`` units whose scores are needed, and ``t`` differences of two of them for each unit.

    Args:
        sets: ``(s, n)`` boolean, none of them empty: the units that are replaced.
        which: ``(s,)``: for which of the ``t`` differences a set is needed. Each has donors of its own, and no set twice.
        before: ``(t, n)``: the set without the unit; -1 where nothing is replaced.
        after: ``(t, n)``: the same set with it.
    """

    sets: np.ndarray
    which: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def around(cls, bases: Sequence[np.ndarray]) -> "Trial":
        """For each of ``t`` sets ``(n,)``, every unit taken out of it and added to it."""
        sets: list[np.ndarray] = []
        which: list[int] = []
        places: list[tuple[int, int]] = []
        for t, base in enumerate(bases):
            number: dict[bytes, int] = {}
            for unit in range(len(base)):
                pair: list[int] = []
                for there in (False, True):
                    one = base.copy()
                    one[unit] = there
                    place = number.setdefault(one.tobytes(), len(sets)) if one.any() else -1
                    if place == len(sets):
                        sets.append(one)
                        which.append(t)
                    pair.append(place)
                places.append((pair[0], pair[1]))
        n = len(bases[0])
        found = np.array(places, dtype=np.int64).reshape(len(bases), n, 2)
        return cls(np.array(sets, dtype=bool).reshape(len(sets), n), np.array(which), found[..., 0], found[..., 1])

    def effects(self, scores: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Every unit's mean difference ``(n, K)``, from the scores ``(s, K)`` of the sets and those of the image as it is ``(K,)``."""
        every = np.concatenate([scores, observed[None]])  # -1 is the last
        difference: np.ndarray = (every[self.before] - every[self.after]).mean(0)
        return difference


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one example and output.

    Args:
        ids: ``(u,)`` of all that may be replaced.
        reach: ``(u,)`` boolean: which of them can change a score; the others need not be replaced. ``n`` of them.
        generator: for draws that are not each unit's own.
    """

    ids: np.ndarray
    reach: np.ndarray
    generator: np.random.Generator


class Context(ABC):
    """How the other units are drawn.

    Attributes:
        in_words: for ``settings["context"]``.
        per_trial: differences of each unit in one trial.
    """

    in_words: str | float
    per_trial: int = 2

    @property
    def alone(self) -> bool:
        """Whether all others stay as they are: the plain effect."""
        return False

    def most_sets(self, n: int) -> int:
        """The most sets that a trial of ``n`` units has."""
        return self.per_trial * (n + 1)

    @abstractmethod
    def trial(self, places: np.ndarray, units: Units) -> Trial:
        """One trial.

        Args:
            places: ``(n,)`` numbers between 0 and 1, one per unit that is replaced, drawn independently of the others.
            units: what else is known of them.
        """


class Shapley(Context):
    """The others are those that come before the unit in a random order: its mean difference is its Shapley value.

    An order is followed by its reverse, in which whoever came early comes late: what depends on that cancels in the mean of the two (antithetic
    sampling: Mitchell, Cooper, Frank and Holmes, Sampling Permutations for Shapley Value Estimation, JMLR 2022). Each has its own donors, for what depends on
    donors would not cancel. In each of them the differences of all units add up to ``M(x) - M(all replaced)``.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.engine.contexts import Shapley, Units
        >>> units = Units(np.arange(3), np.ones(3, dtype=bool), np.random.default_rng(0))
        >>> trial = Shapley().trial(np.array([0.2, 0.9, 0.1]), units)  # unit 2 first, then 0, then 1; and the reverse
        >>> trial.sets.astype(int).tolist()
        [[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    in_words = "shapley"

    def most_sets(self, n: int) -> int:
        """See :meth:`Context.most_sets`; nothing replaced is the image as it is."""
        return 2 * n

    def trial(self, places: np.ndarray, units: Units) -> Trial:
        """See :meth:`Context.trial`."""
        n = len(places)
        rank = np.empty(n, dtype=np.int64)
        rank[np.argsort(places, kind="stable")] = np.arange(n)
        ranks = np.stack([rank, n - 1 - rank])
        first = np.array([[0], [n]])  # the numbers of the sets with one unit
        before = np.where(ranks == 0, -1, first + ranks - 1)
        sets = np.concatenate([np.arange(1, n + 1)[:, None] > one for one in ranks])  # row j: the first j + 1 of the order
        return Trial(sets, np.repeat([0, 1], n), before=before, after=first + ranks)


class Banzhaf(Context):
    """Each other unit is replaced with probability ``q``; with 1/2 the mean difference is the Banzhaf value.

    One random set serves all units, each of which is added to it or taken out of it. It is followed by the set from the opposite draws
    (with 1/2, the complement), with donors of its own.

    Args:
        q: the probability.
        in_words: for ``settings["context"]``.
    """

    def __init__(self, q: float, in_words: str | float | None = None) -> None:
        self.q, self.in_words = q, q if in_words is None else in_words

    @property
    def alone(self) -> bool:
        """See :attr:`Context.alone`."""
        return self.q == 0

    def trial(self, places: np.ndarray, units: Units) -> Trial:
        """See :meth:`Context.trial`."""
        return Trial.around([places < self.q, 1 - places < self.q])


class Drawn(Context):
    """The others are those that a function draws.

    Args:
        draw: ``(generator, unit_ids (n,)) -> boolean (n,)``, the units that are replaced; each unit's own entry does not matter.

    Raises:
        TypeError: the function cannot be called with these.
    """

    per_trial = 1

    def __init__(self, draw: DrawOthers) -> None:
        reason = misfit(draw, 2)
        if reason is not None:
            raise ArgumentTypeError(f"context: the function cannot be called with a random generator and unit ids: {reason}")
        self.draw, self.in_words = draw, getattr(draw, "__qualname__", type(draw).__name__)

    def trial(self, places: np.ndarray, units: Units) -> Trial:
        """See :meth:`Context.trial`.

        Raises:
            TypeError, ValueError: the function returns something else.
        """
        drawn = self.draw(units.generator, units.ids.copy())
        chosen = np.asarray(drawn)
        if chosen.dtype != bool or chosen.shape != units.ids.shape:
            raise ArgumentTypeError(
                f"context: expected a function that returns booleans of shape {units.ids.shape}, one per unit id, got {chosen.dtype} of shape {chosen.shape}"
            )
        return Trial.around([chosen[units.reach]])


def _is_context(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("shapley", "banzhaf")
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return callable(value) or (is_number and bool(0 <= value <= 1))


CONTEXT = Check(
    '"shapley", "banzhaf", a number between 0 and 1 (with which probability each other unit is replaced), or a callable',
    _is_context,
)
"""What ``context=`` has to be."""


def context_of(given: ContextArgument) -> Context:
    """The context that is meant."""
    if isinstance(given, str):
        return Shapley() if given == "shapley" else Banzhaf(0.5, given)
    return Drawn(given) if callable(given) else Banzhaf(float(given))


def donors_in_rounds(generator: np.random.Generator, population: Sequence[int], n: int) -> np.ndarray:
    """``n`` donors ``(n, slots)``, each in its turn: all of them in random order, then all in another.

    The first draws do not depend on ``n``.
    """
    left, total = n, math.prod(population)
    rounds: list[np.ndarray] = []
    while left > 0:
        rounds.append(without_replacement(generator, population, min(left, total)))
        left -= len(rounds[-1])
    return np.concatenate(rounds) if rounds else np.empty((0, len(population)), dtype=np.int64)
