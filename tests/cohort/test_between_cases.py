"""Statistics over cases against formulas written out here."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from captum_causalseg.cohort.between_cases import Discoveries, mean_of_cases, paired_difference, random_effects
from captum_causalseg.cohort.prediction import prediction_interval
from captum_causalseg.statistics import adjust_p_values


def test_mean_of_cases_is_a_t_interval_of_each_column():
    values = pd.DataFrame({"a": [1.0, 2.0, 4.0, math.nan], "b": [math.nan, math.nan, 3.0, math.nan], "c": [math.nan] * 4})
    found = mean_of_cases(values, 0.9)
    a = np.array([1.0, 2.0, 4.0])
    half = scipy_stats.t.ppf(0.95, 2) * a.std(ddof=1) / math.sqrt(3)
    assert found.loc["a"].tolist() == pytest.approx([3, a.mean(), a.mean() - half, a.mean() + half])
    assert found.loc["b", ["n", "mean"]].tolist() == [1, 3.0]
    assert found.loc["b", ["lower", "upper"]].isna().all()
    assert found.at["c", "n"] == 0
    assert found.loc["c", ["mean", "lower", "upper"]].isna().all()


def paule_mandel(effect, error):
    """The root of sum w (y - m)^2 = n - 1, w = 1 / (se^2 + tau^2), or 0."""

    def excess(tau2):
        w = 1 / (error**2 + tau2)
        mean = (w * effect).sum() / w.sum()
        return (w * (effect - mean) ** 2).sum() - (len(effect) - 1)

    if excess(0.0) <= 0:
        return 0.0
    return optimize.brentq(excess, 0.0, 10 * np.ptp(effect) ** 2 + 1e-12, xtol=1e-16, rtol=1e-14, maxiter=1000)


COHORTS = {
    "heterogeneous": ([0.1, 0.5, -0.2, 0.9, 0.4], [0.05, 0.1, 0.08, 0.2, 0.1]),
    "homogeneous": ([0.30, 0.31, 0.29, 0.30], [0.1, 0.2, 0.1, 0.1]),
    "two": ([0.0, 1.0], [0.1, 0.3]),
    "tiny": ([1e-5, 3e-5, -2e-5], [4e-6, 5e-6, 1e-5]),
    "very different errors": ([0.0, 0.2, 0.5, 0.1], [1e-6, 0.1, 0.05, 1e-3]),
}


@pytest.mark.parametrize("name", COHORTS)
def test_random_effects_are_the_formulas(name):
    effect, error = map(np.array, COHORTS[name])
    n = len(effect)
    found = random_effects(effect, error, 0.9)

    fixed = 1 / error**2
    q = (fixed * (effect - (fixed * effect).sum() / fixed.sum()) ** 2).sum()
    tau2 = paule_mandel(effect, error)
    w = 1 / (error**2 + tau2)
    mean = (w * effect).sum() / w.sum()
    knapp = max(1.0, (w * (effect - mean) ** 2).sum() / (n - 1))
    se = math.sqrt(knapp / w.sum())
    half = scipy_stats.t.ppf(0.95, n - 1) * se
    expected = {
        "n_cases": n,
        "effect": mean,
        "standard_error": se,
        "lower": mean - half,
        "upper": mean + half,
        "p_value": 2 * scipy_stats.t.sf(abs(mean) / se, n - 1),
        "tau2": tau2,
        "tau": math.sqrt(tau2),
        "q": q,
        "q_p_value": scipy_stats.chi2.sf(q, n - 1),
        "i2": max(0.0, 1 - (n - 1) / q),
    }
    if n > 2:
        expected |= dict(zip(("prediction_lower", "prediction_upper"), prediction_interval(effect, error, 0.9)))
    else:
        assert math.isnan(found["prediction_lower"])
        assert math.isnan(found["prediction_upper"])
    assert found["weights"] == "inverse variance"
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4), key


def test_the_interval_is_never_narrower_than_the_weights_say():
    effect, error = map(np.array, COHORTS["homogeneous"])
    found = random_effects(effect, error)
    assert found["tau2"] == 0
    # Hartung and Knapp's factor alone would be 0.0025 here.
    assert found["standard_error"] == pytest.approx(1 / math.sqrt((1 / error**2).sum()))


def test_cases_that_agree_perfectly_are_no_division_by_zero():
    found = random_effects(np.full(3, 0.2), np.full(3, 0.1))
    assert (found["effect"], found["q"], found["i2"], found["tau2"]) == (pytest.approx(0.2), 0, 0, 0)
    assert found["q_p_value"] == 1


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=2, max_size=12), st.floats(0.01, 100), st.randoms())
@settings(max_examples=60, deadline=None)
def test_random_effects_do_not_depend_on_unit_or_order(cases, unit, random):
    effect, error = (np.array(column) for column in zip(*cases))
    found = random_effects(effect, error)
    scaled = random_effects(unit * effect, unit * error)
    order = list(range(len(cases)))
    random.shuffle(order)
    shuffled = random_effects(effect[order], error[order])
    for key in ("effect", "lower", "upper", "tau"):
        assert scaled[key] == pytest.approx(unit * found[key], rel=1e-3, abs=1e-4 * unit)
        assert shuffled[key] == pytest.approx(found[key], rel=1e-3, abs=1e-4)
    assert effect.min() - 1e-9 <= found["effect"] <= effect.max() + 1e-9


def test_exact_effects_weigh_the_same():
    effect = np.array([0.1, 0.4, 0.4, 0.7])
    found = random_effects(effect, np.zeros(4))
    half = scipy_stats.t.ppf(0.975, 3) * effect.std(ddof=1) / 2
    assert found["weights"] == "equal"
    assert [found[k] for k in ("effect", "lower", "upper")] == pytest.approx([0.4, 0.4 - half, 0.4 + half])
    assert found["tau2"] == pytest.approx(effect.var(ddof=1))
    assert (found["q"], found["q_p_value"], found["i2"]) == (math.inf, 0, 1)
    # Alone, it would be the mean of all.
    assert random_effects(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.5, 0.5]))["effect"] == pytest.approx(2 / 3)


def test_one_exact_effect_among_others():
    effect, error = np.array([0.0, 0.3, 0.5]), np.array([0.0, 0.1, 0.2])
    found = random_effects(effect, error)
    within = (0.01 + 0.04) / 3
    assert found["tau2"] == pytest.approx(effect.var(ddof=1) - within)
    assert found["standard_error"] == pytest.approx(effect.std(ddof=1) / math.sqrt(3))
    # Against the limit of tiny errors.
    w = 1 / np.array([1e-9, 0.1, 0.2]) ** 2
    q = (w * (effect - (w * effect).sum() / w.sum()) ** 2).sum()
    assert found["q"] == pytest.approx(q)
    # Effects that scatter less than their errors say: the errors count.
    calm = random_effects(np.array([0.1, 0.1, 0.1001]), error)
    assert calm["tau2"] == 0
    assert calm["standard_error"] == pytest.approx(math.sqrt(within / 3))


def test_all_effects_zero_and_exact():
    found = random_effects(np.zeros(5), np.zeros(5))
    assert [found[k] for k in ("effect", "tau2", "q", "i2", "p_value")] == [0, 0, 0, 0, 1]
    # Cases that do not differ do not show how cases do: nothing is claimed of others.
    assert all(math.isnan(found[k]) for k in ("standard_error", "lower", "upper", "prediction_lower"))
    alike = random_effects(np.full(3, 0.3), np.zeros(3))
    assert alike["effect"] == pytest.approx(0.3)
    assert all(math.isnan(alike[k]) for k in ("standard_error", "lower", "upper", "p_value"))


def test_a_spread_of_nothing_is_no_knowledge():
    found = mean_of_cases(pd.DataFrame({"radius": [0.1] * 7, "mass": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 2.0]}))
    assert found.loc["radius", "mean"] == pytest.approx(0.1)
    assert found.loc["radius", ["lower", "upper"]].isna().all()
    assert found.loc["mass", ["lower", "upper"]].notna().all()
    shifted = paired_difference(np.arange(8) / 7, np.arange(8) / 7 + 0.1)
    assert shifted["difference"] == pytest.approx(0.1)
    assert all(math.isnan(shifted[k]) for k in ("standard_error", "lower", "upper", "p_value"))
    assert shifted["p_wilcoxon"] == pytest.approx(2 / 2**8)


def test_an_infinite_error_does_not_drop_its_case():
    effect = np.array([0.0, 0.3, 0.6])
    found = random_effects(effect, np.array([math.inf, 0.1, 0.1]))
    assert found["weights"] == "equal"
    assert found["n_cases"] == 3
    assert found["effect"] == pytest.approx(0.3)
    assert found["standard_error"] == pytest.approx(0.3 / math.sqrt(3))
    assert all(math.isnan(found[k]) for k in ("tau", "tau2", "q", "q_p_value", "i2", "prediction_lower", "prediction_upper"))


def test_one_case_and_none():
    one = random_effects(np.array([0.3, math.nan]), np.array([0.1, math.nan]))
    assert (one["n_cases"], one["effect"], one["standard_error"]) == (1, 0.3, 0.1)
    assert all(math.isnan(one[k]) for k in ("lower", "upper", "p_value", "tau", "q", "prediction_upper"))
    none = random_effects(np.array([math.nan]), np.array([math.nan]))
    assert none["n_cases"] == 0
    assert math.isnan(none["effect"])


@pytest.mark.parametrize(("tau", "least", "most"), [(0.3, 0.92, 0.98), (0.1, 0.92, 0.98), (0.0, 0.94, 1.0)])
def test_intervals_between_cases_hold_the_mean_as_often_as_they_say(tau, least, most):
    """500 cohorts of 8 cases, errors between 0.05 and 0.2; without heterogeneity the interval may be too wide, not too narrow."""
    random = np.random.default_rng(7)
    held, held_by_next, plain = [], [], []
    for _ in range(500):
        error = random.uniform(0.05, 0.2, 8)
        effect = random.normal(random.normal(0.4, tau, 8), error)
        found = random_effects(effect, error)
        held.append(found["lower"] <= 0.4 <= found["upper"])
        held_by_next.append(found["prediction_lower"] <= random.normal(0.4, tau) <= found["prediction_upper"])
        interval = mean_of_cases(pd.DataFrame({"effect": effect})).iloc[0]
        plain.append(interval["lower"] <= 0.4 <= interval["upper"])
    assert least <= np.mean(held) <= most
    # Where cases do not differ, what is not known of their difference makes the interval too wide.
    assert 0.93 <= np.mean(held_by_next) <= (0.99 if tau else 1)
    assert 0.92 <= np.mean(plain) <= 0.98


def test_without_an_effect_the_mean_differs_from_zero_one_time_in_twenty():
    random = np.random.default_rng(3)
    p = []
    for _ in range(600):
        error = random.uniform(0.05, 0.2, 10)
        p.append(random_effects(random.normal(random.normal(0, 0.2, 10), error), error)["p_value"])
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) <= 3 * math.sqrt(0.05 * 0.95 / 600)


def test_paired_difference_is_second_minus_first():
    first, second = np.array([1.0, 2.0, 3.0, 4.0, math.nan]), np.array([2.0, 2.5, 3.2, 6.0, 9.0])
    found = paired_difference(first, second, 0.9)
    change = np.array([1.0, 0.5, 0.2, 2.0])
    se = change.std(ddof=1) / 2
    half = scipy_stats.t.ppf(0.95, 3) * se
    assert found["n_pairs"] == 4
    assert [found[k] for k in ("mean_first", "mean_second", "difference", "standard_error", "lower", "upper")] == pytest.approx(
        [2.5, 3.425, change.mean(), se, change.mean() - half, change.mean() + half]
    )
    assert found["p_value"] == pytest.approx(scipy_stats.ttest_rel(second[:4], first[:4]).pvalue)
    # All four have gone up: 2 of the 2^4 signs are as extreme.
    assert found["p_wilcoxon"] == pytest.approx(2 / 16)


def test_pairs_without_difference_or_alone():
    same = paired_difference(np.array([0.1, 0.7, 0.3]), np.array([0.1, 0.7, 0.3]))
    assert [same[k] for k in ("difference", "p_value", "p_wilcoxon")] == [0, 1, 1]
    assert math.isnan(same["lower"])
    one = paired_difference(np.array([1.0]), np.array([2.0]))
    assert (one["n_pairs"], one["difference"]) == (1, 1.0)
    assert all(math.isnan(one[k]) for k in ("lower", "p_value", "p_wilcoxon"))
    none = paired_difference(np.array([math.nan]), np.array([2.0]))
    assert none["n_pairs"] == 0
    assert math.isnan(none["difference"])


def test_without_a_difference_pairs_differ_one_time_in_twenty():
    """The cases differ much from each other; that must not hide in, nor make, a difference."""
    random = np.random.default_rng(11)
    n, p, ranks = 1000, [], []
    for _ in range(n):
        case = random.normal(0, 5, 10)
        found = paired_difference(case + random.normal(0, 1, 10), case + random.normal(0, 1, 10))
        p.append(found["p_value"])
        ranks.append(found["p_wilcoxon"])
    sigma = math.sqrt(0.05 * 0.95 / n)
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) <= 3 * sigma
    # With so few pairs its levels are discrete: at most one in twenty.
    assert np.mean(np.array(ranks) <= 0.05) <= 0.05 + 3 * sigma


def test_adjusted_is_holm_or_benjamini_hochberg():
    p = pd.Series([0.01, math.nan, 0.04, 0.03], index=[3, 1, 4, 9])
    assert adjust_p_values(p, "holm").tolist() == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert adjust_p_values(p, "fdr_bh").tolist() == pytest.approx([0.03, math.nan, 0.04, 0.04], nan_ok=True)
    assert np.isnan(adjust_p_values(pd.Series([math.nan]), "holm")).all()


@given(
    st.lists(st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1e-3), st.just(math.nan)), max_size=20), max_size=5),
    st.sampled_from(["bh", "by"]),
    st.sampled_from([0.01, 0.05, 0.3]),
)
@settings(max_examples=150, deadline=None)
def test_discoveries_are_those_of_all_p_values_at_once(parts, method, alpha):
    found = Discoveries(alpha, f"fdr_{method}")
    for part in parts:
        found.add(np.array(part, dtype=float))
    every = np.array([p for part in parts for p in part if not math.isnan(p)])
    expected = scipy_stats.false_discovery_control(every, method=method) if len(every) else every
    # A limit met to rounding may fall either way.
    passes = every <= found.threshold()
    clear = np.abs(expected - alpha) > 1e-12
    np.testing.assert_array_equal(passes[clear], (expected <= alpha)[clear])
    np.testing.assert_allclose(found.q_values(every[passes]), expected[passes], rtol=1e-12, atol=1e-300)
    assert found.n_tests == len(every)


@pytest.mark.parametrize("correction", ["fdr_bh", "fdr_by"])
def test_false_discovery_rate_holds(correction):
    """Twelve cases of 40 units: under no effect at all, and with a tenth of true ones, whose p-values come from t-tests."""
    random = np.random.default_rng(5)
    n, rates, any_false = 500, [], []
    true = np.arange(480) % 10 == 0
    for _ in range(n):
        for shift, result in ((4.0 * true, rates), (0 * true, any_false)):
            p = 2 * scipy_stats.t.sf(np.abs(scipy_stats.t.rvs(20, size=480, random_state=random) + shift), 20)
            found = Discoveries(0.1, correction)
            for part in p.reshape(12, 40):
                found.add(part)
            passes = p <= found.threshold()
            null = ~true if shift is not None and shift.any() else np.ones(480, dtype=bool)
            result.append((passes & null).sum() / max(1, passes.sum()))
    limit = 0.1 + 3 * math.sqrt(0.1 * 0.9 / n)
    assert np.mean(any_false) <= limit
    assert np.mean(rates) <= limit
    if correction == "fdr_bh":
        assert np.mean(rates) >= 0.1 * 0.9 * 0.7  # it is no other, stricter one
