"""What is written down of rows, and read of them."""

import numpy as np
from engine_cases import generator, stratified

from captum_causalseg import Status
from captum_causalseg.engine.estimator import Estimate, StratifiedEstimator
from captum_causalseg.engine.notes import Notes
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.engine.sample import Sample

BOTH = np.ones(2, bool)


def estimate(seed=0, n=6, stage=1):
    """Of six strata of 40 ranked donors, two outputs; more at later stages."""
    predicted = generator(seed).normal(size=40)
    values = predicted[:, None] + generator(seed + 100).normal(size=(40, 2))
    order = np.argsort(predicted)
    design = stratified(40, n, order, seed=seed)
    known = Ranking.of(predicted, order, design=design, outputs=BOTH, most_draws=40).first_order
    drawn = design.donors(design.end(stage))[:, 0]
    return StratifiedEstimator().estimate(Sample(values[drawn], design.selection(stage), first_order=known))


def notes(n_rows):
    return Notes(np.zeros(n_rows, int), np.full(n_rows, 40.0), n_outputs=2)


def test_rows_in_any_order_and_again_with_more_draws_are_the_same():
    one, other = notes(3), notes(3)
    for row in range(3):
        one.write(row, estimate(row, stage=2), which=BOTH)
    for row in (2, 0, 1):
        other.write(row, estimate(row), which=BOTH)
    assert not np.array_equal(one.moments().effect, other.moments().effect)
    for row in (1, 0, 2):
        other.write(row, estimate(row, stage=2), which=BOTH)
    np.testing.assert_array_equal(one.moments().effect, other.moments().effect)
    np.testing.assert_array_equal(one.moments().sample_variance, other.moments().sample_variance)


def test_outputs_that_were_given_up_lend_no_slope():
    alone, beside = notes(2), notes(2)
    for one in (alone, beside):
        one.write(0, estimate(0), which=BOTH)
    beside.write(1, Estimate(np.zeros(2), variance=np.zeros(2), factor=0.3, freedom=2, n=3), which=np.array([True, False]))
    beside.write(1, estimate(1), which=np.array([False, True]))
    beside.alone.status[1, 0] = Status.SCREENED
    np.testing.assert_array_equal(alone.moments().effect[0, 0], beside.moments().effect[0, 0])
    assert alone.moments().effect[0, 1] != beside.moments().effect[0, 1]
    assert beside.moments().adjustment[1, 0] == 0
    assert beside.moments().n_draws[1].tolist() == [3, 6]


def test_a_row_that_is_drained_does_not_lean_any_more():
    drained = notes(1)
    drained.write(0, estimate(0), which=BOTH)
    assert (drained.moments().adjustment != 0).all()
    last = estimate(0, stage=4)
    assert last.factor == 0
    drained.write(0, last, which=BOTH)
    assert (drained.moments().adjustment == 0).all()
    np.testing.assert_array_equal(drained.moments().effect[0], last.mean)


def test_what_is_rounding_is_no_spread_and_what_is_still_has_no_effect():
    found = notes(1)
    noisy = estimate(0)
    found.write(0, noisy, which=BOTH, still=np.array([True, False]), rounding=np.array([1e3, 0.0]))
    moments = found.moments()
    assert (moments.effect[0, 0], moments.sample_variance[0, 0], moments.test_variance[0, 0]) == (0, 0, 0)
    assert moments.sample_variance[0, 1] > 0


def test_where_draws_went_on_until_errors_were_small_intervals_take_the_larger_variance():
    found = notes(4)
    for row in range(4):
        found.write(row, estimate(row, n=12), which=BOTH)
    plain, chosen = found.moments(), found.moments(chosen_by_errors=True)
    assert (plain.sample_variance < plain.test_variance).any()
    np.testing.assert_array_equal(chosen.sample_variance, plain.test_variance)
    np.testing.assert_array_equal(chosen.effect, plain.effect)
