"""Prediction intervals against the bootstrap written out, with eigenvalues and random numbers."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from captum_causalseg.cohort.prediction import prediction_interval, q_survival

EFFECT = np.array([0.30, 0.10, 0.55, -0.05, 0.42, 0.20, 0.36])
ERROR = np.array([0.05, 0.20, 0.11, 0.08, 0.30, 0.10, 0.06])


def eigenvalues(tau2, variance, weight):
    """Of the quadratic form that Q is in independent standard normals."""
    matrix = np.diag(weight) - np.outer(weight, weight) / weight.sum()
    root = np.sqrt(variance + tau2)
    return np.linalg.eigvalsh(root[:, None] * matrix * root)[1:]


def survival_by_imhof(q, values):
    """Imhof (1961), by brute force."""
    u = np.linspace(1e-9, 200, 400_001)
    theta = 0.5 * np.arctan(np.outer(values, u)).sum(0) - 0.5 * q * u
    rho = (1 + np.outer(values, u) ** 2).prod(0) ** 0.25
    return 0.5 + np.trapezoid(np.sin(theta) / (u * rho), u) / math.pi


@pytest.mark.parametrize("tau2", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("equal", [False, True])
def test_the_distribution_of_q(tau2, equal):
    variance = ERROR**2
    weight = np.ones(7) if equal else 1 / variance
    values = eigenvalues(tau2, variance, weight)
    for share in (0.2, 1.0, 3.0):
        q = share * values.sum()
        # In units of its mean, so that the grid is fine enough.
        expected = survival_by_imhof(share * 7, 7 * values / values.sum())
        assert q_survival(q, np.array([tau2]), variance, weight)[0] == pytest.approx(expected, abs=1e-5)


def test_of_equal_variances_it_is_chi_squared():
    for n in (3, 10, 61, 400):  # one contour, then the other
        for p in (1e-6, 0.1, 0.9, 1 - 1e-6):
            q = scipy_stats.chi2.isf(p, n - 1)
            found = q_survival(q * 1.5, np.array([0.0, 0.5]), np.ones(n), np.ones(n))
            assert found == pytest.approx([scipy_stats.chi2.sf(1.5 * q, n - 1), p], rel=0, abs=1e-9)


def test_errors_of_very_different_size():
    # One weighs all and tells nothing of the others: their distances from it are what Q sums up.
    variance = np.array([1e-10, 1.0, 4.0])
    found = q_survival(3.0, np.zeros(1), variance, 1 / variance)
    assert found[0] == pytest.approx(scipy_stats.chi2.sf(3, 2), abs=1e-8)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_the_bootstraps(level):
    generator = np.random.default_rng(0)
    variance, n = ERROR**2, len(EFFECT)
    weight = 1 / variance
    q = (weight * (EFFECT - (weight * EFFECT).sum() / weight.sum()) ** 2).sum()
    # The confidence distribution of tau^2, inverted at a few thousand random shares by root finding on a table of its own.
    grid = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 3000)])
    table = q_survival(q, grid, variance, weight)
    tau2 = np.interp(generator.random(200_000), table, grid)
    w = 1 / (variance + tau2[:, None])
    mean = (w * EFFECT).sum(1) / w.sum(1)
    error = np.sqrt((w * (EFFECT - mean[:, None]) ** 2).sum(1) / (n - 1) / w.sum(1))
    drawn = mean + np.sqrt(tau2) * generator.standard_normal(len(mean)) - error * generator.standard_t(n - 1, len(mean))
    expected = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    assert prediction_interval(EFFECT, ERROR, level) == pytest.approx(expected, abs=0.02 * np.ptp(expected))


def test_the_shares_begin_where_no_difference_is_likely_enough():
    variance = ERROR**2
    weight = 1 / variance
    mean = (weight * EFFECT).sum() / weight.sum()
    q = (weight * (EFFECT - mean) ** 2).sum()
    half = optimize.brentq(lambda tau2: q_survival(q, np.array([tau2]), variance, weight)[0] - 0.5, 1e-9, 10)
    # Half of all cohorts with this tau^2 have a larger Q: by simulation.
    generator = np.random.default_rng(1)
    y = generator.normal(0, np.sqrt(variance + half), (100_000, 7))
    simulated = (weight * (y - (y @ weight / weight.sum())[:, None]) ** 2).sum(1)
    assert np.mean(simulated > q) == pytest.approx(0.5, abs=0.006)


def test_exact_effects_are_a_sample_of_what_is_predicted():
    half = scipy_stats.t.ppf(0.975, 6) * EFFECT.std(ddof=1) * math.sqrt(1 + 1 / 7)
    expected = EFFECT.mean() - half, EFFECT.mean() + half
    assert prediction_interval(EFFECT, np.zeros(7)) == pytest.approx(expected)
    # One that is not exact makes no jump; all weigh the same.
    nearly = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-4])
    assert prediction_interval(EFFECT, nearly) == pytest.approx(expected, abs=0.15 * np.ptp(expected))
    assert prediction_interval(np.full(3, 0.25), np.zeros(3)) == (0.25, 0.25)


def test_unit_origin_and_order_do_not_matter():
    low, high = prediction_interval(EFFECT, ERROR)
    moved = prediction_interval(-5 + 1e-6 * EFFECT[::-1], 1e-6 * ERROR[::-1])
    assert moved == pytest.approx((-5 + 1e-6 * low, -5 + 1e-6 * high), abs=1e-9)
    assert prediction_interval(EFFECT, ERROR) == (low, high)


def test_cases_that_agree_perfectly():
    low, high = prediction_interval(np.full(4, 0.2), np.full(4, 0.1))
    assert low == pytest.approx(0.2)
    assert high == pytest.approx(0.2)


@pytest.mark.parametrize("n", [3, 5, 20])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 2.0])
def test_another_case_lies_in_it_as_often_as_it_says(n, ratio):
    """500 cohorts; ``ratio``: tau over the typical error."""
    generator = np.random.default_rng(n)
    held = []
    for _ in range(500):
        error = generator.uniform(0.5, 1.5, n)
        effect = generator.normal(generator.normal(0, ratio, n), error)
        low, high = prediction_interval(effect, error)
        held.append(low <= generator.normal(0, ratio) <= high)
    # With hardly any difference between cases, what is not known of it makes the interval wide.
    assert 0.93 <= np.mean(held) <= (0.99 if ratio > 0.4 else 1)


def test_with_an_exact_case_among_them_it_holds_as_often():
    """500 cohorts of 8; one case's bank was used up."""
    generator = np.random.default_rng(12)
    held = []
    for _ in range(500):
        error = generator.uniform(0.5, 1.5, 8)
        error[0] = 0
        effect = generator.normal(generator.normal(0, 1, 8), error)
        low, high = prediction_interval(effect, error)
        held.append(low <= generator.normal(0, 1) <= high)
    assert 0.93 <= np.mean(held) <= 0.99
