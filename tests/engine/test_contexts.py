"""Trials: which sets, and which two of them make a unit's difference; how often a set is some unit's context."""

import itertools
from collections import Counter

import numpy as np
import pytest

from captum_causalseg.engine.contexts import Banzhaf, Drawn, Shapley, Units, context_of, donors_in_rounds
from captum_causalseg.engine.draws import without_replacement


def units(n, reach=None):
    return Units(np.arange(n) + 10, np.ones(n, bool) if reach is None else reach, generator=np.random.default_rng(0))


def contexts(trial, unit):
    """The other units of each of the unit's differences, once it is seen that the unit makes the difference."""
    found = []
    for before, after in zip(trial.before[:, unit], trial.after[:, unit]):
        others = np.zeros(trial.sets.shape[1], bool) if before == -1 else trial.sets[before]
        assert not others[unit]
        assert before == -1 or trial.which[before] == trial.which[after]
        assert (trial.sets[after] == others | (np.arange(len(others)) == unit)).all()
        found.append(frozenset(np.flatnonzero(others).tolist()))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("context", [Shapley(), Banzhaf(0.5), Banzhaf(0.1), Banzhaf(1.0)])
def test_sets_differ_and_are_not_empty(n, context):
    for seed in range(20):
        trial = context.trial(np.random.default_rng(seed).random(n), units(n))
        distinct = {(which, one.tobytes()) for which, one in zip(trial.which.tolist(), trial.sets)}
        assert len(distinct) == len(trial.sets) <= context.most_sets(n)
        assert trial.sets.any(1).all()
        assert trial.before.shape == trial.after.shape == (2, n)
        for unit in range(n):
            contexts(trial, unit)


def test_a_permutation_and_its_reverse():
    trial = Shapley().trial(np.array([0.5, 0.1, 0.9, 0.3]), units(4))  # 1, 3, 0, 2
    assert len(trial.sets) == 8
    assert trial.which.tolist() == [0] * 4 + [1] * 4
    assert [contexts(trial, unit) for unit in range(4)] == [
        [{1, 3}, {2}],
        [set(), {0, 2, 3}],
        [{0, 1, 3}, set()],
        [{1}, {0, 2}],
    ]


def test_a_set_and_the_one_from_the_opposite_draws():
    trial = Banzhaf(0.5).trial(np.array([0.2, 0.9, 0.4]), units(3))
    assert [contexts(trial, unit) for unit in range(3)] == [[{2}, {1}], [{0, 2}, set()], [{0}, {1}]]


@pytest.mark.parametrize(
    ("context", "chance"),
    [
        (Shapley(), lambda size: [1 / 4, 1 / 12, 1 / 12, 1 / 4][size]),
        (Banzhaf(0.5), lambda size: 1 / 8),
        (Banzhaf(0.2), lambda size: 0.2**size * 0.8 ** (3 - size)),
    ],
)
def test_how_often_a_set_is_the_context_of_a_unit(context, chance):
    n_trials, seen = 4000, Counter()
    places = np.random.default_rng(1).random((n_trials, 4))
    for row in places:
        seen.update(contexts(context.trial(row, units(4)), 2))
    for size in range(4):
        for others in itertools.combinations([0, 1, 3], size):
            expected, n = chance(size), 2 * n_trials
            # The two of a pair are not independent: at most twice the variance.
            assert abs(seen[frozenset(others)] / n - expected) < 4 * np.sqrt(2 * expected * (1 - expected) / n)


def test_functions_get_all_ids_and_only_those_that_reach_are_replaced():
    given = []

    def odd(generator, ids):
        given.append(ids)
        ids = ids.copy()
        given[-1][:] = 0  # theirs to change
        return ids % 2 == 1

    reach = np.array([True, True, False, True])
    known = units(4, reach)
    trial = Drawn(odd).trial(np.zeros(3), known)
    assert known.ids.tolist() == [10, 11, 12, 13]
    assert [contexts(trial, unit) for unit in range(3)] == [[{1, 2}], [{2}], [{1}]]  # 11 and 13 among 10, 11, 13


def test_differences_are_means_over_a_trial():
    trial = Shapley().trial(np.array([0.1, 0.2]), units(2))  # 0, 1; then 1, 0
    scores = np.array([[5.0], [1.0], [4.0], [2.0]])  # {0}, {0, 1}; with other donors {1}, {1, 0}
    assert trial.sets.tolist() == [[True, False], [True, True], [False, True], [True, True]]
    assert trial.effects(scores, np.array([10.0])).tolist() == [[((10 - 5) + (4 - 2)) / 2], [((5 - 1) + (10 - 4)) / 2]]


def test_names():
    assert context_of("shapley").in_words == "shapley"
    assert context_of("banzhaf").in_words == "banzhaf"
    assert (context_of(0.3).in_words, context_of(0.3).alone) == (0.3, False)
    assert (context_of(0).in_words, context_of(0).alone) == (0.0, True)


def test_donors_come_in_rounds_and_the_first_do_not_depend_on_how_many():
    drawn = donors_in_rounds(np.random.default_rng(3), [2, 2], 11)
    assert drawn.shape == (11, 2)
    for start in (0, 4):
        assert len(np.unique(drawn[start : start + 4], axis=0)) == 4
    assert len(np.unique(drawn[8:], axis=0)) == 3
    for n in range(11):
        assert (donors_in_rounds(np.random.default_rng(3), [2, 2], n) == drawn[:n]).all()
    assert (drawn[:4] == without_replacement(np.random.default_rng(3), [2, 2], 4)).all()


def test_a_function_of_other_arguments_is_refused_before_anything_is_run():
    with pytest.raises(TypeError, match=r"context: the function cannot be called with a random generator and unit ids: "):
        context_of(lambda generator: generator.random() < 0.5)
