"""Ratios of means: Fieller's set by its definition, its coverage, its limits."""

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from captum_causalseg.statistics.ratios import ratio_interval


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
