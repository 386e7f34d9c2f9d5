"""The search, on tables of sets: against all subsets, and what it does when the budget ends."""

import itertools

import numpy as np
import pytest

from captum_causalseg.engine.set_scores import BudgetSpentError
from captum_causalseg.engine.smallest_set import settled_set, smallest_set


class Judge:
    """Sets that reach are those for which a function of their members says so; so far beyond is how much a set has of its best member set."""

    def __init__(self, reaches, most=10**9):
        self.reaches, self.asked, self.most = reaches, 0, most

    def reach(self, sets):
        self.asked += len(sets)
        if self.asked > self.most:
            raise BudgetSpentError
        return np.array([self.reaches(frozenset(np.flatnonzero(one).tolist())) for one in sets], dtype=bool).reshape(len(sets))

    def surplus(self, sets, n_draws=None):
        return np.where(self.reach(sets), 1.0, -1.0)[:, None]


def any_of(*groups):
    return lambda chosen: any(set(group) <= chosen for group in groups)


def search(reaches, n=20, values=None, free=None, beam=1, most=10**9):
    judge = Judge(reaches, most)
    values = np.zeros(n) if values is None else np.asarray(values, dtype=float)
    found = smallest_set(judge, values, np.ones(n, bool) if free is None else free, beam=beam)
    return found, None if found.chosen is None else np.flatnonzero(found.chosen).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_no_smaller_subset_of_eight_reaches(seed):
    """Any game, monotone or not, in which all units together reach."""
    generator = np.random.default_rng(seed)
    everything = [frozenset(one) for size in range(9) for one in itertools.combinations(range(8), size)]
    good = {one for one in everything if generator.random() < (0.02, 0.2)[seed % 2] * len(one) / 8} | {frozenset(range(8))}
    found, chosen = search(lambda one: one in good, 8, values=generator.normal(size=8))
    assert found.smallest
    assert found.complete
    assert frozenset(chosen) in good
    assert len(chosen) == min(map(len, good))


def test_values_that_say_what_matters_lead_straight_to_it():
    values = np.zeros(200)
    values[[17, 101, 140]] = 1
    judge = Judge(any_of([17, 101, 140]))
    found = smallest_set(judge, values, np.ones(200, bool))
    assert np.flatnonzero(found.chosen).tolist() == [17, 101, 140]
    assert judge.asked < 30


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_values_no_unit_can_be_left_out(seed):
    generator = np.random.default_rng(seed)
    groups = [generator.choice(60, size, replace=False).tolist() for size in (3, 5, 9)]
    _, chosen = search(any_of(*groups), 60, values=generator.normal(size=60))
    assert sorted(chosen) in [sorted(group) for group in groups]


class Worthy(Judge):
    """The same, and a set with one unit of the pair 10, 11 is seen to come closer."""

    def surplus(self, sets, n_draws=None):
        return super().surplus(sets) + 0.5 * sets[:, [10, 11]].any(1)[:, None]


def test_a_beam_finds_a_smaller_set_that_the_values_hide():
    # The values speak for ten units that are enough together; the pair that is enough by itself comes next.
    values = np.concatenate([np.full(10, 2.0), np.full(2, 1.9), np.zeros(48)])
    found = [smallest_set(Worthy(any_of(range(10), [10, 11])), values, np.ones(60, bool), beam=beam).chosen for beam in (1, 2)]
    assert [np.flatnonzero(one).tolist() for one in found] == [list(range(10)), [10, 11]]


def test_only_what_is_free_is_taken_and_nothing_where_that_is_not_enough():
    free = np.ones(20, bool)
    free[3] = False
    assert search(any_of([3], [5, 6]), free=free)[1] == [5, 6]
    found, chosen = search(any_of([3]), free=free)
    assert chosen is None
    assert not found.smallest


def test_no_unit_may_be_needed():
    found, chosen = search(lambda chosen: True)
    assert chosen == []
    assert found.smallest


def test_where_the_budget_ends_the_best_that_is_known_is_returned():
    values = np.arange(40.0)
    reaches = any_of([0, 39])
    assert search(reaches, 40, values=values)[1] == [0, 39]
    for most in (1, 5, 12, 60):
        found, chosen = search(reaches, 40, values=values, most=most)
        assert not found.complete
        assert {0, 39} <= set(chosen)
    found, chosen = search(reaches, 40, values=values, most=0)
    assert (chosen, found.complete) == (None, False)


class Favored(Judge):
    """Judges by each of some draws what reaches: a set does if it does in all draws that are looked at."""

    def __init__(self, of_draws, n_draws=1, most=10**9):
        super().__init__(lambda chosen: all(one(chosen) for one in of_draws[:n_draws]), most)
        self.of_draws, self.n_draws = of_draws, n_draws

    def with_more_draws(self):
        if self.n_draws >= len(self.of_draws):
            return None
        return Favored(self.of_draws, 2 * self.n_draws, self.most)


def test_a_set_that_the_draws_favor_is_searched_for_with_more():
    everyone, values = np.ones(30, bool), np.zeros(30)

    def settled(*of_draws, **limits):
        found = settled_set(Favored(of_draws, **limits), values, everyone)
        return np.flatnonzero(found.chosen).tolist(), found.complete

    assert settled(any_of([3]), any_of([3])) == ([3], True)
    assert settled(any_of([3]), any_of([3, 4])) == ([3, 4], True)
    # It holds in the next draw, and so no further ones are asked.
    assert settled(any_of([3]), any_of([3]), any_of([5]), any_of([5])) == ([3], True)
    assert settled(any_of([3]), any_of([3, 4]), any_of([3, 4, 5]), any_of([3, 4])) == ([3, 4, 5], True)


def test_where_the_budget_ends_before_a_set_is_settled_that_is_said():
    class Spent(Favored):
        def with_more_draws(self):
            raise BudgetSpentError

    found = settled_set(Spent((any_of([3]),)), np.zeros(30), np.ones(30, bool))
    assert np.flatnonzero(found.chosen).tolist() == [3]
    assert not found.complete
