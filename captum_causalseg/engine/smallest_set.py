"""The search for the smallest set that reaches a share: greedy by value, backward elimination, a beam, all smaller sets where these are few."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from captum_causalseg.engine.set_scores import BudgetSpentError

__all__ = ["Found", "Judged", "settled_set", "smallest_set"]

# All smaller sets are tried where there are no more of them.
_FEW_SETS = 300
# Draws, of all, by which the units of a set are put in the order in which they are tried to be left out.
_GLANCE = 8
# Each set of a beam of width b is extended by this many times b units.
_EXTENSIONS = 8


class Judged(Protocol):
    """What says which sets ``(s, n)`` reach the share."""

    def reach(self, sets: np.ndarray) -> np.ndarray:
        """``(s,)``, boolean."""

    def surplus(self, sets: np.ndarray, n_draws: int | None = None) -> np.ndarray:
        """``(s, d)``: how far beyond the share they are in the first draws."""

    def with_more_draws(self) -> "Judged | None":
        """The same by twice as many draws, those at hand among them; ``None`` where there are no more."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to.

    Args:
        chosen: ``(n,)`` boolean; ``None`` where not even all units together reach the share.
        complete: the search ended by itself, and none of the set's units can be left out; otherwise the budget was spent.
        smallest: every smaller set was tried, and none reaches the share.
    """

    chosen: np.ndarray | None
    complete: bool
    smallest: bool


def smallest_set(judge: Judged, values: np.ndarray, free: np.ndarray, *, beam: int = 1) -> Found:
    """The smallest set found that reaches the share.

    Units are taken in the order of their values until the share is reached. Then those are left out that are not needed, the least needed first, until
    none can be. With ``beam > 1``, sets are also grown unit by unit, the best ``beam`` of each size going on, as long as they are smaller than what is
    known. Where there are few smaller sets, all of them are tried.

    Args:
        judge: says which sets reach it. Sets that contain one that does need not do so themselves.
        values: ``(n,)``: the larger, the sooner a unit is taken.
        free: ``(n,)`` boolean: the units that may be in the set.
        beam: how many sets of each size go on.
    """
    search = _Search(judge, values, free)
    try:
        search.run(beam)
    except BudgetSpentError:
        search.complete = False
    return Found(search.best, complete=search.complete, smallest=search.smallest)


def settled_set(judge: Judged, values: np.ndarray, free: np.ndarray, *, beam: int = 1) -> Found:
    """The same as :func:`smallest_set`, of a set that goes on to reach the share with further draws.

    Of very many sets, the smallest one that reaches a share is one that the draws at hand happen to favor. So it is looked at with as many draws again,
    in which the choice had no part. If it does not reach the share in all of them, all of them are searched with, and so on.
    """
    found = smallest_set(judge, values, free, beam=beam)
    while found.complete and found.chosen is not None:
        try:
            more = judge.with_more_draws()
            if more is None or more.reach(found.chosen[None])[0]:
                break
        except BudgetSpentError:
            return replace(found, complete=False)
        judge = more
        better = smallest_set(judge, values, free, beam=beam)
        if better.chosen is None and not better.complete:
            return replace(found, complete=False)
        found = better
    return found


class _Search:
    def __init__(self, judge: Judged, values: np.ndarray, free: np.ndarray) -> None:
        self.judge, self.values = judge, values
        members = np.flatnonzero(free)
        self.order: np.ndarray = members[np.argsort(-values[members], kind="stable")]
        self.best: np.ndarray | None = None
        self.complete, self.smallest = True, False

    def run(self, beam: int) -> None:
        if not self._reaches(self.order):
            return
        self.best = self._set(self.order)
        if self._reaches(self.order[:0]):
            self.best, self.smallest = self._set(self.order[:0]), True
            return
        self._take(_smallest_number(lambda k: self._reaches(self.order[:k]), len(self.order)))
        self._leave_out()
        if beam > 1:
            self._grow(beam)
        self._try_smaller()

    def _set(self, members: np.ndarray) -> np.ndarray:
        chosen = np.zeros(len(self.values), dtype=bool)
        chosen[members] = True
        return chosen

    def _reaches(self, members: np.ndarray) -> bool:
        return bool(self.judge.reach(self._set(members)[None])[0])

    def _take(self, count: int) -> None:
        self.best = self._set(self.order[:count])

    def _leave_out(self) -> None:
        """Leave out what is not needed, several units at a time while that goes."""
        assert self.best is not None
        while self.best.any():
            members = np.flatnonzero(self.best)
            without = np.repeat(self.best[None], len(members), axis=0)
            without[np.arange(len(members)), members] = False
            glance = self.judge.surplus(without, _GLANCE).mean(1)
            dispensable = members[np.lexsort((self.values[members], -glance))]

            def still(k: int, members: np.ndarray = dispensable) -> bool:
                return self._reaches(members[k:])

            most = _largest_number(still, len(members))
            if most:
                self.best = self._set(dispensable[most:])
                continue
            reaching = np.flatnonzero(self.judge.reach(without))
            if not len(reaching):
                return
            surplus = self.judge.surplus(without[reaching]).mean(1)
            self.best = without[reaching[int(surplus.argmax())]]

    def _grow(self, beam: int) -> None:
        """Sets unit by unit, from the empty one."""
        assert self.best is not None
        kept = [self._set(self.order[:0])]
        for _ in range(int(self.best.sum()) - 1):
            extended: dict[bytes, np.ndarray] = {}
            for one in kept:
                for unit in self.order[~one[self.order]][: _EXTENSIONS * beam].tolist():
                    larger = one.copy()
                    larger[unit] = True
                    extended.setdefault(larger.tobytes(), larger)
            if not extended:
                return
            sets = np.stack(list(extended.values()))
            reaching = np.flatnonzero(self.judge.reach(sets))
            surplus = self.judge.surplus(sets).mean(1)
            if len(reaching):
                self.best = sets[reaching[int(surplus[reaching].argmax())]]
                self._leave_out()
                return
            # Of equal ones, those of the larger values: two units that need each other are worth nothing one by one.
            worth = sets @ np.nan_to_num(self.values)
            kept = [sets[row] for row in np.lexsort((-worth, -surplus))[:beam].tolist()]

    def _try_smaller(self) -> None:
        assert self.best is not None
        sizes = range(1, int(self.best.sum()))
        if sum(math.comb(len(self.order), size) for size in sizes) > _FEW_SETS:
            return
        for size in sizes:
            sets = np.stack([self._set(np.array(one)) for one in itertools.combinations(self.order.tolist(), size)])
            reaching = np.flatnonzero(self.judge.reach(sets))
            if len(reaching):
                surplus = self.judge.surplus(sets[reaching]).mean(1)
                self.best = sets[reaching[int(surplus.argmax())]]
                break
        self.smallest = True


def _smallest_number(holds: Callable[[int], bool], n: int) -> int:
    """A number from 1 to ``n`` that holds while the one before it does not (or is 0), found by doubling; ``n`` holds."""
    below, at = 0, 1
    while at < n and not holds(at):
        below, at = at, 2 * at
    at = min(at, n)
    while at - below > 1:
        middle = (below + at) // 2
        below, at = (below, middle) if holds(middle) else (middle, at)
    return at


def _largest_number(holds: Callable[[int], bool], n: int) -> int:
    """A number from 0 to ``n`` that holds while the one after it does not (or is ``n + 1``), found by doubling; 0 holds."""
    return _smallest_number(lambda k: not holds(k), n + 1) - 1
