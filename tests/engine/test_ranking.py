"""What is kept of predicted effects: exact, and no more than the design can need."""

import numpy as np
import pytest
from engine_cases import generator, stratified
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg.engine.design import Design, StratifiedDesign
from captum_causalseg.engine.draws import candidates
from captum_causalseg.engine.ranking import Ranking

OUTPUTS = np.array([False, True])


def case(donors, m, n_first, seed, most_draws):
    effects = generator(seed).normal(size=m)
    order = Ranking.order_of(effects)
    design = stratified(donors, n_first, order, seed=seed)
    return effects, design, Ranking.of(effects, order, design=design, outputs=OUTPUTS, most_draws=most_draws)


@given(st.data(), st.integers(3, 60), st.sampled_from([0, 25]), st.integers(0, 10**6))
def test_at_every_stage_that_may_be_reached_draws_and_strata_have_their_exact_predictions(data, m, more, seed):
    n_first = data.draw(st.integers(1, m - 1), "first sample")
    most = data.draw(st.integers(n_first, 2 * m), "most draws")
    effects, design, ranking = case(m + more, m, n_first, seed, most)
    predicted = dict(zip(candidates(generator(seed), [m + more], m)[:, 0].tolist(), effects.tolist()))
    ranked, kept = sorted(effects), ranking.first_order
    assert kept.mean == pytest.approx(np.mean(ranked), abs=1e-14)
    assert kept.outputs is OUTPUTS
    stage = 1
    while True:
        n, strata = design.end(stage), design.selection(stage).strata
        assert kept.drawn[:n].tolist() == [predicted[donor] for donor in design.donors(n)[:, 0].tolist()]
        means, variances = kept.within(strata)
        for h in range(n):
            own = ranked[strata.edges[h] : strata.edges[h + 1]]
            assert means[h] == pytest.approx(np.mean(own), abs=1e-12)
            assert variances[h] == pytest.approx(np.var(own), abs=1e-12)
        if design.end(stage + 1) == n or design.end(stage + 1) > most:
            break
        stage += 1
    assert len(kept.drawn) == design.end(stage)


def test_it_takes_24_bytes_per_draw_not_8_per_candidate():
    _, _, ranking = case(5000, 1000, 12, 0, 12)
    kept = ranking.first_order
    doubles = (kept.drawn, kept.stratum_means, kept.stratum_squares)
    assert all(values.shape == (12,) and values.dtype == np.float64 and values.base is None for values in doubles)
    assert ranking.order.dtype == np.uint16


def test_what_tells_no_donors_apart_is_no_ranking():
    assert Ranking.order_of(np.full(5, 0.1)) is None
    assert Ranking.order_of(np.array([1.0, np.nan])) is None
    assert Ranking.order_of(np.array([3.0, 1.0, 2.0])).tolist() == [1, 2, 0]


def test_of_a_design_without_strata_only_the_order_is_kept():
    class Best(Design):
        """The donors that are predicted to matter most."""

        needs_ranking = True

        def __init__(self, *given, ranking, **options):
            super().__init__(*given, **options)
            self.order = ranking

        def donors(self, n):
            return self.order[::-1][:n, None]

    order = Ranking.order_of(np.array([3.0, 1.0, 2.0]))
    design = Best(generator(), [3], n_first=2, ranking=order)
    ranking = Ranking.of(np.array([3.0, 1.0, 2.0]), order, design=design, outputs=OUTPUTS, most_draws=2)
    assert ranking.first_order is None
    assert design.donors(2)[:, 0].tolist() == [0, 2]


def test_a_stratified_design_needs_a_ranking():
    with pytest.raises(ValueError, match="ranking: expected the order of the candidates, got None; UniformDesign needs none"):
        StratifiedDesign(generator(), [3], n_first=2)
