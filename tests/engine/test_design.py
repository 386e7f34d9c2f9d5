"""Designs: stages, strata, screening draws."""

import numpy as np
import oracle
import pytest
from engine_cases import generator, ranks_of, stratified
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg.engine.draws import candidates


def test_strata_are_equal_parts_of_the_ranking_and_the_next_stage_halves_them():
    order = generator(5).permutation(10)
    stages = [
        [{0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}],
        [{0}, {1}, {2}, {3, 4}, {5}, {6}, {7}, {8, 9}],
        [{rank} for rank in range(10)],
    ]
    seen = set()
    for seed in range(60):
        design = stratified(10, 4, order, seed=seed)
        assert [design.end(stage) for stage in range(5)] == [0, 4, 8, 10, 10]
        for stage, strata in enumerate(stages, 1):
            ranks = ranks_of(design, design.end(stage), order)
            assert [len(stratum & set(ranks)) for stratum in strata] == [1] * len(strata)
        seen |= set(ranks_of(design, 4, order))
    assert seen == set(range(10)), "every rank can be the first of its stratum"


@given(st.data(), st.integers(2, 60), st.integers(0, 10**6))
def test_every_stage_takes_one_donor_of_every_stratum_and_keeps_the_earlier_ones(data, m, seed):
    n_first = data.draw(st.integers(1, m - 1), "first sample")
    n_screening = data.draw(st.integers(0, n_first - 1), "screening draws")
    order = generator(seed).permutation(m)
    design = stratified(m, n_first, order, n_screening, seed)
    assert design.end(0) == n_screening
    assert design.end(1) == n_first
    stage, before = 1, []
    while True:
        n = design.end(stage)
        found = design.donors(n)[:, 0].tolist()
        assert len(set(found)) == len(found) == n
        assert found[: len(before)] == before
        cells = oracle.strata(m, n_first, stage)
        ranks = ranks_of(design, n, order)
        assert len(ranks) == len(cells)
        assert all(len(set(cell) & set(ranks)) == 1 for cell in cells)
        sizes = {rank: len(cell) for cell in cells for rank in cell}
        np.testing.assert_allclose(design.selection(stage).weights, [sizes[rank] / m for rank in ranks], rtol=1e-12)
        assert design.selection(stage).weights.sum() == pytest.approx(1)
        for fewer in (0, n_screening, n // 2):
            assert design.donors(fewer)[:, 0].tolist() == found[:fewer]
        before = found
        if n == m:
            break
        assert n < design.end(stage + 1) <= 2 * n
        stage += 1
    assert sorted(before) == list(range(m))
    assert design.end(stage + 1) == m


@pytest.mark.parametrize(
    ("n_screening", "strata"),
    [(1, [9]), (2, [9, 0]), (3, [9, 0, 4]), (4, [9, 0, 3, 6]), (5, [9, 0, 2, 4, 7]), (9, [9, 0, 1, 2, 3, 4, 6, 7, 8])],
)
def test_screening_takes_both_ends_of_the_ranking_and_then_evenly_between_them(n_screening, strata):
    for seed in range(20):
        order = generator(seed).permutation(40)
        found = ranks_of(stratified(40, 10, order, n_screening, seed), 10, order)
        assert [rank // 4 for rank in found[:n_screening]] == strata
        # It changes the order of use and nothing else.
        plain = ranks_of(stratified(40, 10, order, 0, seed), 10, order)
        assert sorted(found) == plain


def test_of_many_donors_some_are_candidates_and_their_ranking_is_obeyed():
    donors, m = 500, 40
    order = generator(3).permutation(m)
    chosen = candidates(generator(8), [donors], m)
    assert sorted(set(chosen[:, 0].tolist())) == sorted(chosen[:, 0].tolist())
    design = stratified(donors, 11, order, 3, seed=8)
    ranked = chosen[order][:, 0].tolist()
    ranks = ranks_of(design, m, ranked)
    assert sorted(ranks) == list(range(m))
    assert ranks[0] >= 36 > 3 >= ranks[1]
    assert design.selection(1).total == donors
    assert [design.end(stage) for stage in range(5)] == [3, 11, 22, 40, 40]
