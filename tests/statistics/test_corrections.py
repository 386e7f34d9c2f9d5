"""Corrections for many tests, against the textbooks'."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_statistics import make
from scipy import stats as scipy_stats

import captum_causalseg
from captum_causalseg.statistics import CORRECTIONS, adjust_p_values


def literal_benjamini_hochberg(p, alpha):
    order = sorted(range(len(p)), key=lambda i: p[i])
    passed = [rank for rank, i in enumerate(order, 1) if p[i] <= alpha * rank / len(p)]
    return {i for rank, i in enumerate(order, 1) if passed and rank <= max(passed)}


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=30), st.sampled_from([0.01, 0.05, 0.3]))
def test_significance_is_benjamini_hochberg_over_units(effects, alpha):
    n = len(effects)
    stats = make(effects, [1.0] * n, [4] * n, [math.inf] * n, [0] * n)
    found = set(np.flatnonzero(stats.significant(alpha)[0].numpy()).tolist())
    assert found == literal_benjamini_hochberg(stats.p_values()[0].tolist(), alpha)


def test_other_corrections():
    stats = make([2.0, 1.1, 0.9, 0.0], [1.0] * 4, [10] * 4, [math.inf] * 4)
    p = stats.p_values()[0]
    assert stats.significant(0.05, correction=None)[0].tolist() == (p <= 0.05).tolist()
    assert stats.significant(0.05, correction="bonferroni")[0].tolist() == (p * 4 <= 0.05).tolist()
    assert int(stats.significant(0.05, correction="fdr_by").sum()) <= int(stats.significant(0.05).sum())
    # Step down: the smallest of four times 4, the next times 3.
    assert stats.adjusted_p_values("holm")[0, :2].tolist() == pytest.approx([4 * float(p[0]), 3 * float(p[1])])
    with pytest.raises(ValueError, match=r"correction: expected \"fdr_bh\", .* or None, got 'sidak'"):
        stats.significant(correction="sidak")


@pytest.mark.parametrize("value", [0, 1, -0.5, 2, math.nan])
def test_levels_and_rates_outside_the_unit_interval_are_refused(value):
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        make().confidence_interval(value)
    with pytest.raises(ValueError, match="alpha: expected a number between 0 and 1"):
        make().significant(value)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_adjusted_p_values_are_the_textbooks(correction):
    p = np.array([0.001, 0.2, 0.012, 0.9, 0.03, 0.03])
    m, order = len(p), np.argsort(p, kind="stable")
    harmonic = sum(1 / k for k in range(1, m + 1))
    expected = np.empty(m)
    for rank, i in enumerate(order):
        at_least = [p[j] * m / (k + 1) for k, j in enumerate(order) if k >= rank]
        at_most = [(m - k) * p[j] for k, j in enumerate(order) if k <= rank]
        formula = {
            "fdr_bh": min(at_least),
            "fdr_by": harmonic * min(at_least),
            "holm": max(at_most),
            "bonferroni": m * p[i],
            None: p[i],
        }
        expected[i] = min(1, formula[correction])
    np.testing.assert_allclose(adjust_p_values(p, correction), expected, rtol=1e-12)
    # What is no test changes nothing and has none.
    more = np.insert(p, [0, 3, 6], [1.0, np.nan, 1e-9])
    tests = np.insert(np.ones(m, bool), [0, 3, 6], [False, True, False])
    found = adjust_p_values(more, correction, hypotheses=tests)
    np.testing.assert_allclose(found[[1, 2, 3, 5, 6, 7]], expected, rtol=1e-12)
    assert np.isnan(found[[0, 4, 8]]).all()
    # The smallest of many.
    small = p < 0.1
    np.testing.assert_allclose(adjust_p_values(p[small], correction, n_tests=m)[:2], expected[small][:2], rtol=1e-12)
    assert np.isnan(adjust_p_values(np.array([np.nan, np.nan]), correction)).all()


def test_p_values_that_are_none():
    with pytest.raises(ValueError, match=r"^p_values: expected numbers from 0 to 1, got 1\.5"):
        adjust_p_values(np.array([0.5, 1.5]))
    with pytest.raises(TypeError, match=r"^p_values: expected a tensor or an array"):
        adjust_p_values("0.5")
    with pytest.raises(ValueError, match=r"^correction: expected \"fdr_bh\".* got 'sidak'"):
        adjust_p_values(np.array([0.5]), "sidak")


def test_benjamini_hochberg_and_yekutieli_are_scipys():
    p = np.random.default_rng(0).random(50) ** 3
    for correction in ("fdr_bh", "fdr_by"):
        np.testing.assert_allclose(
            adjust_p_values(p, correction), scipy_stats.false_discovery_control(p, method=correction[-2:]), rtol=1e-12
        )


def test_p_values_are_adjusted_in_one_place():
    """Copies of a correction drift apart: five of them once took what cannot reach the region for tests."""
    package = Path(captum_causalseg.__file__).parent
    calls = [
        (file.relative_to(package).as_posix(), line)
        for file in sorted(package.rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"false_discovery_control\(|multipletests", line)
    ]
    assert [file for file, _ in calls] == ["statistics/corrections.py"]
