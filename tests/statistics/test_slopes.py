"""Effects that lean on predicted ones: against the literal formula, all that chance may do, and what must not matter."""

import itertools

import numpy as np
import oracle
import pytest
from engine_cases import generator, stratified
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg.engine.estimator import StratifiedEstimator
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.engine.sample import Sample, Selection, Strata
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.statistics.slopes import SlopeSums, lean, leaning


def drawn(predicted, values, n_first, seed=0, stage=1):
    """One row's draws, scored: predicted effects ``(D,)`` and values ``(D, K)``."""
    order = np.argsort(predicted)
    design = stratified(len(predicted), n_first, order, seed=seed)
    n = design.end(stage)
    outputs = np.ones(values.shape[1], bool)
    known = Ranking.of(predicted, order, design=design, outputs=outputs, most_draws=8 * n_first).first_order
    return Sample(values[design.donors(n)[:, 0]], design.selection(stage), first_order=known)


def sums_of(samples):
    """``(U, K, C)``, missing where the estimator wants no control."""
    estimates = [StratifiedEstimator().estimate(sample) for sample in samples]
    shape = estimates[0].mean.shape
    return np.stack([SlopeSums.missing(shape) if one.sums is None else one.sums.array() for one in estimates])


def leaned(samples):
    return leaning(SlopeSums.of_array(sums_of(samples)))


def random_rows(seed, n_rows, donors, n_outputs=2):
    """Predicted effects ``(U, D)`` and values ``(U, D, K)``, steep and flat ones, with ties in the values."""
    random = generator(seed)
    predicted = random.normal(size=(n_rows, donors)) * random.exponential(size=(n_rows, 1))
    values = predicted[..., None] * random.normal(size=(n_rows, 1, n_outputs)) + random.normal(size=(n_rows, donors, n_outputs))
    values[..., -1] = values[..., -1].round()
    return predicted, values


@given(
    st.integers(1, 4), st.sampled_from([6, 9, 11, 12, 14]), st.integers(30, 44), st.sampled_from([1, 2]), st.integers(0, 10**6)
)
def test_estimates_and_variances_are_the_literal_ones(n_rows, n_first, donors, stage, seed):
    predicted, values = random_rows(seed, n_rows, donors)
    samples = [drawn(predicted[u], values[u], n_first, seed + u, stage) for u in range(n_rows)]
    found = leaned(samples)
    for k in range(2):
        units = []
        for u, sample in enumerate(samples):
            edges = sample.selection.strata.edges.tolist()
            cells = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
            at = dict(zip(sample.selection.strata.ranks.tolist(), sample.values[:, k].tolist()))
            units.append(oracle.RankedDraws(np.sort(predicted[u]).tolist(), cells, at))
        for u, unit in enumerate(units):
            expected = oracle.controlled_estimate(unit, units[:u] + units[u + 1 :])
            for name, value in expected.items():
                assert getattr(found, name)[u, k] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("predictions", ["good", "heavy tails", "useless"])
def test_over_all_that_chance_may_do_the_estimate_is_exactly_unbiased(predictions):
    """Six strata of two: 64 sets of draws; another unit lends its slope. The values are skewed, and bent along the ranking."""
    random = generator(3)
    predicted = np.sort(random.exponential(size=12) ** 3 if predictions == "heavy tails" else random.normal(size=12))
    values = np.exp(
        random.normal(size=12) if predictions == "useless" else predicted / predicted.std() + 0.3 * random.normal(size=12)
    )
    edges = np.arange(0, 13, 2)
    other = drawn(*(part[0] for part in random_rows(5, 1, 20, n_outputs=1)), 6)
    estimates = []
    for chosen in itertools.product((0, 1), repeat=6):
        ranks = edges[:-1] + np.array(chosen)
        strata = Strata(ranks, edges)
        known = Ranking.of(
            predicted, np.arange(12), design=stratified(12, 6, np.arange(12)), outputs=np.ones(1, bool), most_draws=6
        ).first_order
        known = type(known).of(predicted, strata, np.ones(1, bool))
        sample = Sample(values[ranks][:, None], Selection(np.full(6, 1 / 6), 12, strata), first_order=known)
        found = leaned([sample, other])
        assert found.adjustment[0, 0] != 0
        estimates.append(found.effect[0, 0])
    assert np.mean(estimates) == pytest.approx(values.mean(), rel=1e-12)


def test_a_control_that_predicts_everything_leaves_no_error_but_not_no_variance():
    """What is left is rounding, and is called that: a variance of 0 would be one that was not seen."""
    predicted, _ = random_rows(0, 8, 40)
    samples = [drawn(row, 3 * row[:, None] + 1, 6, seed) for seed, row in enumerate(predicted)]
    found = leaned(samples)
    plain = [StratifiedEstimator().estimate(sample).variance[0] for sample in samples]
    np.testing.assert_allclose(found.effect[:, 0], 3 * predicted.mean(1) + 1, rtol=1e-9)
    np.testing.assert_allclose(found.slope[:, 0], 3, rtol=1e-9)
    assert (found.variance[:, 0] > 0).all()
    assert (found.variance[:, 0] < 1e-9 * np.array(plain)).all()


def test_draws_that_are_all_equal_are_left_alone_and_their_unit_still_lends_its_slope():
    predicted, values = random_rows(1, 3, 40, n_outputs=1)
    values[0] = 0.25
    samples = [drawn(predicted[u], values[u], 6) for u in range(3)]
    found, without = leaned(samples), leaned(samples[1:])
    assert (found.effect[0], found.adjustment[0], found.variance[0], found.test_variance[0]) == (0.25, 0, 0, 0)
    # A slope of 0 is a slope: to leave such units out would be to choose those that are steep.
    assert found.slope[1] != without.slope[0]


def test_draws_that_are_predicted_to_do_the_same_take_the_others_slope():
    random = generator(2)
    predicted = np.concatenate([np.zeros(30), random.normal(size=6)])
    flat = drawn(predicted, random.normal(size=(36, 1)), 6)
    first = flat.first_order
    same = type(first)(np.zeros(6), first.mean, first.stratum_sizes, first.stratum_means, first.stratum_squares, first.outputs)
    sample = Sample(flat.values, flat.selection, first_order=same)
    steep = drawn(*(part[0] for part in random_rows(4, 1, 40, n_outputs=1)), 8)
    form = SlopeSums.of_array(sums_of([steep]))
    shared = form.differences[0, 0, 1] / form.differences[0, 0, 2]
    assert leaned([sample, steep]).slope[0, 0] == pytest.approx(shared, rel=1e-9)
    assert leaned([sample]).slope[0, 0] == 0


def test_below_six_draws_of_unranked_donors_and_of_drained_ones_nothing_leans():
    predicted, values = random_rows(0, 1, 12)
    few, enough = drawn(predicted[0], values[0], 5), drawn(predicted[0], values[0], 6)
    everything = drawn(predicted[0], values[0], 6, stage=2)
    unranked = Sample(enough.values, enough.selection)
    alike = drawn(np.full(12, 0.1), values[0], 6)
    for sample in (few, everything, unranked, alike):
        assert StratifiedEstimator().estimate(sample).sums is None
    assert StratifiedEstimator().estimate(enough).sums is not None
    moments = UnitMoments.missing((1,), (2,))
    assert lean(moments, sums_of([few]), np.array([0])).effect is not moments.effect
    np.testing.assert_array_equal(lean(moments, sums_of([few]), np.array([0])).effect, moments.effect)


def test_rows_without_a_control_and_other_examples_do_not_matter():
    """Not to the last bit: parts of a case are put together with units between that another process has."""
    predicted, values = random_rows(7, 5, 40)
    sums = sums_of([drawn(predicted[u], values[u], 6) for u in range(5)])
    example = np.array([0, 0, 1, 0, 1])
    moments = UnitMoments.missing((5,), (2,))
    whole = lean(moments, sums, example)
    for one in (0, 1):
        rows = np.flatnonzero(example == one)
        alone = lean(UnitMoments.missing((len(rows),), (2,)), sums[rows], example[rows])
        np.testing.assert_array_equal(whole.effect[rows], alone.effect)
        np.testing.assert_array_equal(whole.sample_variance[rows], alone.sample_variance)
    gaps = np.concatenate([SlopeSums.missing((2, 2)), sums[:2], SlopeSums.missing((1, 2)), sums[3:4]])
    found = lean(UnitMoments.missing((6,), (2,)), gaps, np.zeros(6, int))
    np.testing.assert_array_equal(found.effect[[2, 3, 5]], whole.effect[[0, 1, 3]])
    assert np.isnan(found.effect[[0, 1, 4]]).all()


def test_one_unit_may_be_larger_than_all_others_by_far():
    predicted, values = random_rows(8, 3, 40, n_outputs=1)
    predicted[1] *= 1e12
    samples = [drawn(predicted[u], values[u], 6) for u in range(3)]
    others = [SlopeSums.of_array(sums_of([samples[u]])).differences[0, 0] for u in (0, 2)]
    shared = sum(form[1] for form in others) / sum(form[2] for form in others)
    one = SlopeSums.of_array(sums_of([samples[1]]))
    expected = (5 * one.differences[0, 0, 1] + 4 * shared * one.scale[0, 0]) / (
        5 * one.differences[0, 0, 2] + 4 * one.scale[0, 0]
    )
    assert leaned(samples).slope[1, 0] == pytest.approx(expected, rel=1e-9)


def test_sums_of_squares_are_what_an_array_keeps():
    predicted, values = random_rows(9, 2, 40)
    array = sums_of([drawn(predicted[u], values[u], 7) for u in range(2)])
    assert array.shape == (*SlopeSums.missing((2, 2)).shape,)
    np.testing.assert_array_equal(SlopeSums.of_array(array).array(), array)
