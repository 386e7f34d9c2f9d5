"""Donors drawn from a population: different, independent, or candidates of a ranking."""

import math

import numpy as np
from engine_cases import generator
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from captum_causalseg.engine.draws import candidates, with_replacement, without_replacement


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 5))
def test_draws_without_replacement_are_different_donors_in_range(population, n, seed):
    drawn = without_replacement(generator(seed), population, n)
    assert drawn.shape == (min(n, math.prod(population)), len(population))
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn)
    assert (drawn >= 0).all()
    assert (drawn < np.array(population)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100_000))
def test_a_longer_sequence_continues_a_shorter_one(n, more, population):
    short = without_replacement(generator(), [population], n)
    long = without_replacement(generator(), [population], n + more)
    assert np.array_equal(long[: len(short)], short)


def test_every_donor_is_equally_likely_at_every_place():
    counts = np.zeros((3, 7))
    for seed in range(7000):
        for place, (donor,) in enumerate(without_replacement(generator(seed), [7], 3)):
            counts[place, donor] += 1
    for place in range(3):
        assert scipy_stats.chisquare(counts[place]).pvalue > 1e-3


def test_populations_beyond_64_bits_are_drawn_from():
    drawn = without_replacement(generator(), [10**9] * 4, 5)
    assert drawn.shape == (5, 4)
    assert drawn.max() > 10**8


def test_draws_with_replacement_repeat():
    drawn = with_replacement(generator(), [3], 50)
    assert drawn.shape == (50, 1)
    assert set(drawn.ravel()) == {0, 1, 2}


def test_candidates_are_all_donors_if_there_are_no_more_and_else_equally_likely():
    assert candidates(generator(), [3, 2], 6).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert candidates(generator(), [3, 2], 99).tolist() == candidates(generator(), [3, 2], 6).tolist()
    counts = np.zeros(7)
    for seed in range(3000):
        found = candidates(generator(seed), [7], 3)[:, 0]
        assert len(set(found.tolist())) == 3
        counts[found] += 1
    # Each of a set's three: the counts spread less than independent ones would.
    assert scipy_stats.chisquare(counts).pvalue > 1e-3
    assert candidates(generator(), [10**9] * 4, 5).shape == (5, 4)
