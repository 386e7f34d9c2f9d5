"""Ratios of means: Fieller's set by its definition, its coverage, its limits."""

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from captum_causalseg.statistics.ratios import fieller, ratio_interval


def test_its_ends_are_where_the_test_just_refuses():
    generator = np.random.default_rng(0)
    b = generator.normal(3, 1, 12)
    a = 0.6 * b + generator.normal(0, 0.5, 12)

    def p_value(ratio):
        return scipy_stats.ttest_1samp(a - ratio * b, 0).pvalue - 0.05

    middle = a.mean() / b.mean()
    lower, upper = optimize.brentq(p_value, middle - 2, middle), optimize.brentq(p_value, middle, middle + 2)
    assert ratio_interval(a, b) == pytest.approx((lower, upper), abs=1e-9)


def test_coverage():
    generator, held = np.random.default_rng(1), 0
    for _ in range(2000):
        b = generator.normal(1, 0.5, 10)
        a = 0.9 * b + generator.normal(0, 0.2, 10)
        lower, upper = ratio_interval(a, b)
        held += lower <= 0.9 <= upper
    assert 0.94 <= held / 2000 <= 0.96


def test_nothing_is_known_where_the_denominator_is_not_told_from_zero():
    generator = np.random.default_rng(2)
    assert ratio_interval(np.ones(8), generator.normal(0.01, 1, 8)) == (-np.inf, np.inf)
    assert ratio_interval(np.ones(8), np.zeros(8)) == (-np.inf, np.inf)
    assert ratio_interval(np.ones(1), np.ones(1)) == (-np.inf, np.inf)


def test_the_same_ratio_in_every_draw_is_exact():
    values = np.random.default_rng(3).normal(5, 1, 20)
    assert ratio_interval(values, values) == (1.0, 1.0)


def test_the_ends_are_where_the_rest_is_just_told_from_zero():
    """By definition the interval holds the ratios r for which numerator - r * denominator is not told from 0."""
    rng = np.random.default_rng(0)
    n = 50
    b, a = rng.uniform(2, 4, n), rng.normal(size=n)
    half = rng.normal(size=(n, 2, 2)) * 0.4
    covariances = half @ half.swapaxes(1, 2)
    va, vb, cov, t = covariances[:, 0, 0], covariances[:, 1, 1], covariances[:, 0, 1], rng.uniform(1.5, 3, n)
    ratio = a / b
    lower, upper = fieller(ratio, b, variances=(va - 2 * ratio * cov + ratio**2 * vb, vb), covariance=cov - ratio * vb, t=t)
    told = t**2 * vb < b**2
    assert 10 < told.sum() < n
    assert (np.isinf(lower) == ~told).all()
    for end in (lower, upper):
        r = end[told]
        distance = np.abs(a[told] - r * b[told])
        spread = np.sqrt(va[told] - 2 * r * cov[told] + r**2 * vb[told])
        np.testing.assert_allclose(distance, t[told] * spread, rtol=1e-6, atol=1e-9)
    assert ((lower <= ratio) & (ratio <= upper))[told].all()
