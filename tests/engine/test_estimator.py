"""Estimators, against the formula written out, and against all that chance may do."""

import itertools
import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
from engine_cases import estimated, generator, ranks_of, stratified
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg.engine.design import PaperDesign, StratifiedDesign, UniformDesign
from captum_causalseg.engine.draws import candidates
from captum_causalseg.engine.estimator import MeanEstimator, RegressionEstimator
from captum_causalseg.engine.sample import Sample, Selection


@pytest.mark.parametrize("n", [2, 7, 50])
def test_equal_draws_have_exactly_no_variance(n):
    for sampling in ("uniform", "paper"):
        design = (UniformDesign if sampling == "uniform" else PaperDesign)(generator(), [100], n_first=n)
        estimate = estimated(design, np.full((n, 1), 0.1))
        assert estimate.variance[0] == 0
        assert estimate.mean[0] == pytest.approx(0.1)


@given(st.data(), st.integers(6, 40), st.sampled_from([0, 25]), st.integers(0, 10**6))
def test_the_stratified_estimate_is_the_literal_one(data, m, more_donors, seed):
    n_first = data.draw(st.integers(2, 5), "first sample")
    n_screening = data.draw(st.integers(0, n_first - 1), "screening draws")
    donors = m + more_donors
    order = generator(seed).permutation(m)
    values = generator(seed + 1).normal(size=(donors, 3))
    design = stratified(donors, n_first, order, n_screening, seed)
    ranked = candidates(generator(seed), [donors], m)[order][:, 0].tolist()
    for stage in range(1, 8):
        n = design.end(stage)
        found = design.donors(n)[:, 0].tolist()
        estimate = estimated(design, values[found], stage)
        assert estimate.n == n
        ranks, cells = ranks_of(design, n, ranked), oracle.strata(m, n_first, stage)
        for k in range(3):
            effect, squared_error = oracle.stratified_estimate(values[found, k].tolist(), ranks, cells, donors)
            assert estimate.mean[k] == pytest.approx(effect, abs=1e-12)
            assert estimate.factor * estimate.variance[k] == pytest.approx(squared_error, rel=1e-9, abs=1e-15)
        if n == m == donors:
            assert estimate.factor == 0
            np.testing.assert_allclose(estimate.mean, values.mean(0), atol=1e-12)
        assert 0 < estimate.freedom <= n - 1


@pytest.mark.parametrize("n", [2, 3, 4, 9, 40])
def test_the_degrees_of_freedom_are_those_of_the_stratified_variance_of_normal_values(n):
    values = generator(n).normal(size=(n, 40_000))
    estimate = estimated(stratified(10**6, n, np.arange(100 * n)), values)
    # Of chi-square variables: twice the squared mean over the variance. What the choice of candidates adds is a hundredth here.
    found = 2 * estimate.variance.mean() ** 2 / estimate.variance.var()
    assert found == pytest.approx(estimate.freedom, rel=0.06)
    assert estimate.variance.mean() == pytest.approx(1 + 1 / n, rel=0.05)


def test_of_one_stratum_the_spread_is_not_known():
    estimate = estimated(stratified(20, 1, np.arange(20)), np.arange(1.0)[:, None])
    assert np.isnan(estimate.variance).all()
    assert estimate.factor > 0
    assert estimate.freedom == 0


class Script:
    """A random generator that says what it is told: candidates, then numbers in [0, 1) stage by stage."""

    def __init__(self, chosen, numbers):
        self.chosen, self.numbers = chosen, list(numbers)

    def choice(self, total, m, replace, shuffle):
        return np.array(self.chosen)

    def random(self, n):
        found, self.numbers = self.numbers[:n], self.numbers[n:]
        return np.array(found)


RANKINGS = {"perfect": lambda v: v, "reversed": lambda v: -v, "useless": lambda v: np.sin(1e4 * v)}


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize(("donors", "m", "n_screening"), [(6, 6, 0), (6, 6, 1), (8, 6, 0), (8, 6, 1)])
def test_over_all_that_chance_may_do_the_stratified_estimate_is_exactly_unbiased(donors, m, n_screening, ranking):
    """Six ranks in two strata of three: thirds and halves are all the numbers that matter."""
    values = generator(donors).normal(size=donors)
    estimates = {1: [], 2: [], 3: []}
    for chosen in itertools.combinations(range(donors), m):
        order = np.argsort(RANKINGS[ranking](values[list(chosen)]))
        for first in itertools.product((0.1, 0.5, 0.9), repeat=2):
            for second in itertools.product((0.2, 0.7), repeat=2):
                script = Script(chosen, [*first, *second, *[0.0] * 8])
                design = StratifiedDesign(script, [donors], n_first=2, n_screening=n_screening, ranking=order)
                for stage, found in estimates.items():
                    n = design.end(stage)
                    found.append(estimated(design, values[design.donors(n)[:, 0]][:, None], stage).mean[0])
                assert design.end(3) == m
        # The last stage holds every candidate.
        np.testing.assert_allclose(estimates[3][-36:], values[list(chosen)].mean(), atol=1e-12)
    for found in estimates.values():
        assert np.mean(found) == pytest.approx(values.mean(), abs=1e-12)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("n_screening", [0, 3])
@pytest.mark.parametrize("m", [60, 35])
def test_stratified_estimates_are_unbiased_and_their_errors_hold_what_they_miss(m, n_screening, ranking):
    """Mean over seeds within four standard errors of the bank's; the squared error that is claimed not below the true one."""
    donors, n_seeds = 60, 1500
    values = generator(1).normal(size=donors)
    found, claimed = np.empty((n_seeds, 2)), np.empty((n_seeds, 2))
    for seed in range(n_seeds):
        predicted = RANKINGS[ranking](values[candidates(generator(seed), [donors], m)[:, 0]])
        design = stratified(donors, 6, np.argsort(predicted), n_screening, seed)
        for stage in (1, 2):
            estimate = estimated(design, values[design.donors(design.end(stage))[:, 0]][:, None], stage)
            found[seed, stage - 1] = estimate.mean[0]
            claimed[seed, stage - 1] = estimate.factor * estimate.variance[0]
    z = (found.mean(0) - values.mean()) / (found.std(0, ddof=1) / np.sqrt(n_seeds))
    assert np.abs(z).max() < 4
    true = ((found - values.mean()) ** 2).mean(0)
    noise = ((found - values.mean()) ** 2).std(0) / np.sqrt(n_seeds) + claimed.std(0) / np.sqrt(n_seeds)
    assert (claimed.mean(0) > true - 4 * noise).all()


@pytest.mark.parametrize("n_first", [8, 16])
def test_the_error_holds_a_spread_that_lies_at_the_ends_of_the_ranking(n_first):
    """As it does where only the donors that are predicted to move the score most ever flip a label."""
    donors, n_seeds = 400, 1000
    values = np.zeros(donors)
    values[:25], values[-25:] = generator().choice([-0.1, 0.1], size=(2, 25))
    found, claimed = np.empty(n_seeds), np.empty(n_seeds)
    for seed in range(n_seeds):
        design = stratified(donors, n_first, np.arange(donors), seed=seed)
        estimate = estimated(design, values[design.donors(n_first)[:, 0]][:, None])
        found[seed], claimed[seed] = estimate.mean[0], estimate.factor * estimate.variance[0]
    missed = (found - values.mean()) ** 2
    assert claimed.mean() > missed.mean() - 4 * (missed.std() + claimed.std()) / np.sqrt(n_seeds)


def test_a_good_ranking_makes_the_estimate_more_precise():
    values = generator(1).normal(size=200)

    def spread(order):
        return np.std(
            [
                estimated(design, values[design.donors(10)[:, 0]][:, None]).mean[0]
                for design in (stratified(200, 10, order, seed=seed) for seed in range(300))
            ]
        )

    plain = values.std() * math.sqrt((1 - 10 / 200) / 10)
    assert spread(np.argsort(values)) < plain / 3
    assert spread(np.argsort(generator(4).normal(size=200))) == pytest.approx(plain, rel=0.25)


# --- Control variates ------------------------------------------------------------------------------------------------


def controlled(values, controls, means, total, least_draws=3):
    """Of a simple random sample: values ``(n, K)``, controls ``(n, K, C)``, their means ``(K, C)``."""
    selection = Selection(np.full(len(values), 1 / len(values)), total)
    return RegressionEstimator(least_draws).estimate(Sample(values, selection, controls, means))


@given(st.integers(5, 12), st.integers(1, 2), st.sampled_from([12, 40, math.inf]), st.integers(0, 10**6))
def test_the_regression_estimate_is_the_literal_one(n, n_controls, total, seed):
    random = generator(seed)
    values, controls, means = (
        random.normal(size=(n, 2)),
        random.normal(size=(n, 2, n_controls)),
        random.normal(size=(2, n_controls)),
    )
    estimate = controlled(values, controls, means, total)
    f = n / total
    for k in range(2):
        terms, residuals = [], []
        for i in range(n):
            others = [j for j in range(n) if j != i]
            columns = np.column_stack([np.ones(n - 1), controls[others, k]])
            constant, *slope = np.linalg.lstsq(columns, values[others, k], rcond=None)[0]
            terms.append(values[i, k] - np.array(slope) @ ((1 - f) * controls[i, k] + f * controls[:, k].mean(0) - means[k]))
            residuals.append(values[i, k] - constant - np.array(slope) @ controls[i, k])
        assert estimate.mean[k] == pytest.approx(np.mean(terms), rel=1e-6, abs=1e-8)
        off = controls[:, k].mean(0) - means[k]
        squares = (n - 1) * np.cov(controls[:, k].T).reshape(n_controls, n_controls)
        further = 1 + n * off @ np.linalg.inv(squares) @ off
        assert estimate.variance[k] == pytest.approx((n - 1) / n * np.mean(np.square(residuals)) * further, rel=1e-6, abs=1e-8)
    assert estimate.factor == pytest.approx((1 - f) / n)
    assert estimate.freedom == n - 1 - n_controls
    assert estimate.n == n


@pytest.mark.parametrize("donors", [5, 7, 8])
@pytest.mark.parametrize("replaced", [False, True], ids=["without replacement", "with replacement"])
def test_over_all_samples_the_regression_estimate_is_exactly_unbiased(donors, replaced):
    """Skewed, bent and with a tie: nothing about it is linear."""
    x = generator(donors).exponential(size=donors)
    x[1] = x[0]
    values = np.column_stack([np.exp(x) + generator(1).normal(size=donors), x**2])
    controls = np.repeat(x[:, None, None], 2, 1)
    means = np.full((2, 1), x.mean())
    n = 4 if replaced else 5
    samples = itertools.product(range(donors), repeat=n) if replaced else itertools.combinations(range(donors), n)
    found = [
        controlled(values[list(s)], controls[list(s)], means, math.inf if replaced else donors, least_draws=1).mean
        for s in samples
    ]
    np.testing.assert_allclose(np.mean(found, 0), values.mean(0), rtol=1e-9)


def test_a_control_that_is_the_value_itself_leaves_no_error():
    values = generator().normal(size=(100, 1))
    drawn = values[:10]
    estimate = controlled(drawn, 3 - 2 * drawn[..., None], 3 - 2 * values.mean(0)[:, None], 100)
    assert estimate.mean[0] == pytest.approx(values.mean(), abs=1e-12)
    assert estimate.variance[0] < 1e-24


@pytest.mark.parametrize("n", [8, 100])
def test_a_bank_that_is_used_up_gives_its_mean_whatever_the_controls_are(n):
    values, controls = generator(1).normal(size=(n, 2)), generator(2).normal(size=(n, 2, 1))
    estimate = controlled(values, controls, controls.mean(0), n)
    np.testing.assert_allclose(estimate.mean, values.mean(0), rtol=1e-12)
    assert estimate.factor == 0


def test_controls_that_do_not_vary_and_values_that_do_not_are_no_trouble():
    values = generator().normal(size=(9, 2))
    values[:, 1] = 0.1
    controls = np.concatenate([np.full((9, 2, 1), 0.3), generator(1).normal(size=(9, 2, 1))], 2)
    one = controlled(values, controls[..., :1], np.full((2, 1), 0.3), 50)
    plain = MeanEstimator().estimate(Sample(values, Selection(np.full(9, 1 / 9), 50)))
    np.testing.assert_allclose(one.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(one.variance, plain.variance, rtol=1e-12)
    both = controlled(values, controls, np.array([[0.3, 0.5], [0.3, 0.5]]), 50)
    alone = controlled(values, controls[..., 1:], np.array([[0.5], [0.5]]), 50)
    np.testing.assert_allclose(both.mean, alone.mean, rtol=1e-9)
    assert both.mean[1] == pytest.approx(0.1)
    assert both.variance[1] == 0


def test_of_few_draws_and_without_controls_it_is_the_mean():
    values, controls, means = generator().normal(size=(7, 1)), generator(1).normal(size=(7, 1, 1)), np.zeros((1, 1))
    sample = Sample(values, Selection(np.full(7, 1 / 7), 50), controls, means)
    assert RegressionEstimator(least_draws=8).estimate(sample).mean == MeanEstimator().estimate(sample).mean
    assert RegressionEstimator(least_draws=7).estimate(sample).mean != MeanEstimator().estimate(sample).mean
    none = replace(sample, controls=None, control_means=None)
    assert RegressionEstimator(least_draws=7).estimate(none).mean == MeanEstimator().estimate(sample).mean


def test_what_the_regression_cannot_take_is_refused():
    values, controls = generator().normal(size=(9, 1)), generator(1).normal(size=(9, 1, 1))
    with pytest.raises(ValueError, match="control_means: RegressionEstimator needs the mean of every control"):
        controlled(values, controls, np.full((1, 1), np.nan), 50)
    design = stratified(50, 9, np.arange(50))
    with pytest.raises(ValueError, match="sampling: RegressionEstimator takes draws that are all alike, got strata"):
        RegressionEstimator().estimate(Sample(values, design.selection(1)))
