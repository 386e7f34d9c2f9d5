"""What a cohort says: statistics over cases against formulas written out here, and tables against the cases' own profiles."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from monai.data import MetaTensor
from scipy import optimize
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, component_effects, regions
from captum_causalseg.cohort import (
    Cohort,
    CohortSummary,
    explain_cohort,
    plot_cohort_components,
    plot_cohort_profile,
    summarize,
)
from captum_causalseg.cohort.between_cases import Discoveries, mean_of_cases, paired_difference, random_effects
from captum_causalseg.cohort.case_values import case_values, typical_width
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.evaluation.unit_space import Ruler, UnitSpace
from captum_causalseg.statistics import adjust_p_values

SHAPE = (16, 16)
ROI = regions.box(SHAPE, 4, 4)


# Means over cases.


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


# Random effects, literally.


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
        half = scipy_stats.t.ppf(0.95, n - 2) * math.sqrt(tau2 + se**2)
        expected |= {"prediction_lower": mean - half, "prediction_upper": mean + half}
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


@pytest.mark.parametrize(
    ("tau", "least", "most", "least_next"), [(0.3, 0.92, 0.98, 0.9), (0.1, 0.92, 0.98, 0.83), (0.0, 0.94, 1.0, 0.94)]
)
def test_intervals_between_cases_hold_the_mean_as_often_as_they_say(tau, least, most, least_next):
    """400 cohorts of 8 cases, errors between 0.05 and 0.2; without heterogeneity the interval may be too wide, not too narrow."""
    random = np.random.default_rng(7)
    held, held_by_next, plain = [], [], []
    for _ in range(400):
        error = random.uniform(0.05, 0.2, 8)
        effect = random.normal(random.normal(0.4, tau, 8), error)
        found = random_effects(effect, error)
        held.append(found["lower"] <= 0.4 <= found["upper"])
        held_by_next.append(found["prediction_lower"] <= random.normal(0.4, tau) <= found["prediction_upper"])
        interval = mean_of_cases(pd.DataFrame({"effect": effect})).iloc[0]
        plain.append(interval["lower"] <= 0.4 <= interval["upper"])
    assert least <= np.mean(held) <= most
    # Known to be optimistic where the heterogeneity is of the size of the errors.
    assert least_next <= np.mean(held_by_next)
    assert 0.92 <= np.mean(plain) <= 0.98


def test_without_an_effect_the_mean_differs_from_zero_one_time_in_twenty():
    random = np.random.default_rng(3)
    p = []
    for _ in range(600):
        error = random.uniform(0.05, 0.2, 10)
        p.append(random_effects(random.normal(random.normal(0, 0.2, 10), error), error)["p_value"])
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) <= 3 * math.sqrt(0.05 * 0.95 / 600)


# Pairs.


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


# False discoveries.


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


# The edge of units, from their table.


def table_of_units(labels, roi, spacing):
    """As a study writes it, of a grid of boxes."""
    space = UnitSpace(labels[None], roi, Ruler(spacing=spacing))
    rows = []
    for unit, distance in zip(space.ids, space.distance):
        where = np.argwhere(labels == unit)
        row = {"unit": unit, "status": "ESTIMATED", "distance": distance}
        row |= {f"start_{a}": v for a, v in enumerate(where.min(0))} | {f"stop_{a}": v + 1 for a, v in enumerate(where.max(0))}
        rows.append(row)
    return pd.DataFrame(rows), space.bin_width


@pytest.mark.parametrize(
    ("shape", "block", "start", "size", "spacing"),
    [
        ((32, 32), 4, 12, 8, None),
        ((30, 34), 4, 11, 7, None),  # neither on the grid nor whole blocks
        ((32, 64), (4, 8), 12, 8, (0.7, 0.5)),
        ((20,), 2, 8, 4, 0.3),
        ((24, 24, 12), (4, 4, 2), (8, 8, 4), (8, 8, 4), (1.0, 1.0, 3.0)),
    ],
)
def test_the_edge_of_blocks_is_read_from_their_table(shape, block, start, size, spacing):
    roi = regions.box(shape, start, size)
    table, width = table_of_units(regions.grid(shape, block).numpy(), roi, spacing)
    assert typical_width(table) == pytest.approx(width)
    # A unit in each channel: three at each place.
    assert typical_width(pd.concat([table] * 3, ignore_index=True)) == pytest.approx(width)


def test_the_edge_of_irregular_units_is_about_right():
    random = np.random.default_rng(0)
    seeds = random.uniform(0, 40, (60, 2))
    place = np.stack(np.meshgrid(np.arange(40), np.arange(40), indexing="ij"), -1)
    labels = ((place[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
    table, width = table_of_units(labels, regions.box((40, 40), 16, 8), 2.0)
    assert typical_width(table) == width
    assert math.isnan(typical_width(table.assign(distance=math.nan)))
    assert math.isnan(typical_width(table.assign(distance=0.0)))


# Studies.


def images(n, seed, shape=SHAPE):
    return torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(seed))


def box_filter(edge):
    """Answers with how bright the surroundings are; reaches ``edge // 2`` pixels far."""
    return torch.nn.AvgPool2d(edge, 1, edge // 2, count_include_pad=False)


class TwoClasses(torch.nn.Module):
    """Near surroundings and far ones."""

    def forward(self, image):
        return torch.cat([box_filter(3)(image), box_filter(9)(image)], 1)


def cases_of(n, seed=0):
    return [{"id": f"case-{k}", "image": image, "site": "AB"[k % 2], "age": 50 + k} for k, image in enumerate(images(n, seed))]


def study_of(out, cases, model, roi=ROI, image=None, **options):
    """One study of blocks; soft, so that every block within reach has an effect."""
    metric = {"metric": "probability_mean", "activation": "none"}

    def make_target(case):
        if case.get("broken"):
            raise RuntimeError("no such file")
        return SegmentationTarget(model, roi=roi, reference=torch.ones_like(case["image"][None]), **metric)

    options = {
        "method": AverageTreatmentEffect,
        "baselines": PatchBank(images(12, 99)),
        "block_size": 4,
        "n_draws": 6,
        "n_screening_draws": 0,
        "columns": ["site", "age"],
        "show_progress": False,
    } | options
    return explain_cohort(cases, make_target, out=out, **options)


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """Six cases, of which one failed."""
    cases = cases_of(6)
    cases[5]["broken"] = True
    return study_of(tmp_path_factory.mktemp("near") / "study", cases, box_filter(5))


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """The first four of the same cases, another model, screened."""
    out = tmp_path_factory.mktemp("far") / "study"
    return study_of(out, cases_of(4), box_filter(13), n_screening_draws=2, screening_threshold=0.002)


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    """Of five cases; the last two have a model with one more module."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1)]
    smaller, larger = torch.nn.Sequential(*layers), torch.nn.Sequential(*layers, torch.nn.Softmax(1))

    def make_target(case):
        model = smaller if case["age"] < 53 else larger
        return SegmentationTarget(
            model, roi=ROI, reference=torch.ones(1, *SHAPE, dtype=torch.int64), metric="probability_mean", activation="none"
        )

    return explain_cohort(
        cases_of(5),
        make_target,
        method=component_effects,
        out=tmp_path_factory.mktemp("components") / "study",
        columns=["site"],
        baselines=images(8, 99),
        target=1,
        n_draws=4,
        n_screening_draws=0,
        show_progress=False,
    )


def t_interval(values, level=0.95):
    values = np.asarray(values, dtype=float)
    spread = values.std(ddof=1) if len(np.unique(values)) > 1 else math.nan
    half = scipy_stats.t.ppf(0.5 + level / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return [values.mean(), values.mean() - half, values.mean() + half]


@pytest.mark.parametrize("study", ["near", "far"])
def test_values_and_profile_are_those_of_the_cases(study, request):
    """Case by case the numbers of ``perception_profile``; over cases their mean and t-interval."""
    cohort = request.getfixturevalue(study)
    summary = summarize(cohort, level=0.9)
    finished = cohort.cases().query("state == 'finished'")["id"].tolist()
    profiles = [perception_profile(cohort.statistics(case), ROI) for case in finished]
    assert any((profile.units["status"] == "SCREENED").any() for profile in profiles) == (study == "far")
    assert summary.values["case"].tolist() == finished
    assert summary.bin_width == profiles[0].bin_width == 4
    for (_, row), profile in zip(summary.values.iterrows(), profiles):
        expected = profile.summary()
        for name in ("mass", "supporting_mass", "harming_mass", "energy", "radius_50", "n_units"):
            assert row[name] == pytest.approx(expected[name]), name
        assert row["share_significant"] == pytest.approx(expected["share_supporting"] + expected["share_harming"])
    assert summary.values["observed_score"].tolist() == pytest.approx(finished_scores(cohort))
    for name in ("observed_score", "mass", "share_significant", "radius_50"):
        expected = t_interval(summary.values[name], 0.9)
        assert summary.cases.loc[0, [name, f"{name}_lower", f"{name}_upper"]].tolist() == pytest.approx(expected, nan_ok=True)

    tables = [profile.by_distance.set_index("bin") for profile in profiles]
    assert summary.profile["bin"].tolist() == tables[0].index.tolist()
    for _, row in summary.profile.iterrows():
        own = [table.loc[row["bin"]] for table in tables]
        assert row["n_cases"] == row["n_energy"] == len(finished)
        assert row["n_units"] == sum(one["n_units"] for one in own)
        assert [row["lower"], row["upper"]] == own[0][["lower", "upper"]].tolist()
        for name in ("mean_absolute_effect", "energy", "share", "cumulative_share"):
            expected = t_interval([one[name] for one in own], 0.9)
            assert row[[name, f"{name}_lower", f"{name}_upper"]].tolist() == pytest.approx(expected, nan_ok=True), name
        signed = [(one["supporting_mass"] - one["harming_mass"]) / one["n_units"] for one in own]
        assert row[["mean_effect", "mean_effect_lower", "mean_effect_upper"]].tolist() == pytest.approx(
            t_interval(signed, 0.9), nan_ok=True
        )
    assert summary.components.empty
    assert summary.comparison.empty


def finished_scores(cohort):
    return cohort.cases().query("state == 'finished'")["observed_score"].tolist()


def test_three_dimensions_and_bins_of_another_width(tmp_path):
    shape, roi = (8, 8, 8), regions.box((8, 8, 8), 2, 2)
    bank = PatchBank(images(4, 5, shape))
    cases = [{"id": k, "image": image} for k, image in enumerate(images(2, 3, shape))]
    model = torch.nn.AvgPool3d(5, 1, 2)
    cohort = study_of(tmp_path / "study", cases, model, roi=roi, baselines=bank, block_size=2, columns=[])
    assert summarize(cohort).bin_width == 2
    summary = summarize(cohort, bin_width=3.0)
    expected = [perception_profile(cohort.statistics(str(k)), roi, bin_width=3.0).by_distance for k in range(2)]
    assert summary.profile["bin"].tolist() == expected[0]["bin"].tolist()
    assert summary.profile["share"].tolist() == pytest.approx(np.mean([table["share"] for table in expected], axis=0))


def test_cases_with_and_without_geometry_are_told_apart(tmp_path, caplog):
    scan = MetaTensor(images(1, 3)[0], affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    cohort = study_of(
        tmp_path / "study", [{"id": 0, "image": scan}, {"id": 1, "image": images(1, 4)[0]}], box_filter(9), columns=[]
    )
    units = cohort.units()
    assert units.groupby("case")["distance_unit"].unique().map(list).to_dict() == {"0": ["mm"], "1": ["pixel"]}
    summary = summarize(cohort)
    assert summary.distance_unit == "mm, pixel"
    assert "distances of some cases are in mm, of others in pixels" in caplog.text
    assert plot_cohort_profile(summary).axes[0].get_xlabel() == "distance from the region of interest (mm, pixels)"


def test_failed_cases_are_counted(near):
    assert summarize(near).distance_unit == "pixel"
    summary = summarize(near)
    assert summary.cases.loc[0, ["n_cases", "n_finished", "n_failed"]].tolist() == [6, 5, 1]
    assert repr(summary) == "CohortSummary(5 cases (1 failed), 1 bins of 4)"


def test_groups_are_summarized_as_if_alone(near, tmp_path):
    summary = summarize(near, by="site")
    assert (summary.by, summary.groups) == (("site",), ("A", "B"))
    assert summary.cases[["site", "n_cases", "n_failed"]].values.tolist() == [["A", 3, 0], ["B", 3, 1]]
    alone = study_of(tmp_path / "a", cases_of(6)[::2], box_filter(5))
    expected = summarize(alone)
    pd.testing.assert_frame_equal(
        summary.profile.query("site == 'A'").drop(columns="site").reset_index(drop=True), expected.profile
    )
    assert summarize(near, by=["site", "age"]).groups[:2] == ("A, 50", "B, 51")
    assert repr(summary).startswith("CohortSummary(by site: A 3 cases; B 2 cases (1 failed), ")


def test_studies_by_name_are_groups_and_pairs(near, far):
    summary = summarize({"near": near.folder, "far": far})
    assert summary.by == ("study",)
    assert summary.groups == ("near", "far")
    table = summary.comparison
    assert table[["first", "second", "n_pairs", "n_unpaired_first", "n_unpaired_second"]].drop_duplicates().values.tolist() == [
        ["near", "far", 4, 1, 0]
    ]
    values = summary.values.pivot(index="case", columns="study", values="mass").dropna()
    row = table.query("measure == 'mass'").iloc[0]
    expected = t_interval(values["far"] - values["near"])
    assert row[["difference", "lower", "upper"]].tolist() == pytest.approx(expected)
    assert row["p_value"] == pytest.approx(scipy_stats.ttest_rel(values["far"], values["near"]).pvalue)
    assert [row["mean_first"], row["mean_second"]] == pytest.approx([values["near"].mean(), values["far"].mean()])

    # The second ring is beyond the reach of the one and within that of the other.
    ring = table.query("family == 'profile' and bin == 2").iloc[0]
    own = [perception_profile(far.statistics(case), ROI).by_distance.set_index("bin") for case in values.index]
    assert ring["mean_first"] == 0
    assert ring["difference"] == pytest.approx(np.mean([one.at[2, "mean_absolute_effect"] for one in own]))
    assert ring["difference"] > 0

    for family, method in (("case", "holm"), ("profile", "holm")):
        rows = table[table["family"] == family]
        assert (rows["correction"] == method).all()
        assert len(rows) == {"case": 7, "profile": 2}[family]
        assert rows["p_adjusted"].tolist() == pytest.approx(adjust_p_values(rows["p_value"], method).tolist(), nan_ok=True)
    assert "4 pairs of near and far" in repr(summary)


def test_each_two_of_several_groups_are_one_family(near, far, tmp_path):
    middle = study_of(tmp_path / "middle", cases_of(3), box_filter(9))
    table = summarize({"near": near, "middle": middle, "far": far}).comparison
    pairs = table[["first", "second", "n_pairs"]].drop_duplicates().values.tolist()
    assert pairs == [["near", "middle", 3], ["near", "far", 4], ["middle", "far", 3]]
    rows = table[table["family"] == "profile"]
    # The second ring is beyond the reach of both of the first pair.
    assert rows[["first", "second", "bin"]].values.tolist() == [
        *(["near", "middle", 1], ["near", "far", 1], ["near", "far", 2], ["middle", "far", 1], ["middle", "far", 2])
    ]
    assert rows["p_adjusted"].tolist() == pytest.approx(adjust_p_values(rows["p_value"], "holm").tolist(), nan_ok=True)


def test_pairs_by_a_column(tmp_path):
    """Two scans of each patient in one study; one patient was scanned once."""
    cases = [
        {"id": f"{patient}-{scan}", "image": image, "site": scan, "age": patient}
        for scan, seed in (("first", 1), ("second", 2))
        for patient, image in zip((31, 42, 53), images(3, seed))
    ][:-1]
    cohort = study_of(tmp_path / "study", cases, box_filter(5))
    row = summarize(cohort, "site", pair="age").comparison.query("measure == 'observed_score'").iloc[0]
    scores = dict(zip(cohort.cases()["id"], cohort.cases()["observed_score"]))
    changes = [scores[f"{patient}-second"] - scores[f"{patient}-first"] for patient in (31, 42)]
    assert row["difference"] == pytest.approx(np.mean(changes))
    assert row[["n_pairs", "n_unpaired_first", "n_unpaired_second"]].tolist() == [2, 1, 0]
    assert summarize(cohort, "site").comparison.empty
    with pytest.raises(ValueError, match=r"pair: cases '31-first' and '42-first' of the group 'first' both have device 'cpu'"):
        summarize(cohort, "site", pair="device")


def test_another_output(tmp_path):
    cohort = study_of(tmp_path / "study", cases_of(2), TwoClasses(), target=0)
    asked, other = summarize(cohort), summarize(cohort, output={"class": 1})
    for summary, target in ((asked, 0), (other, 1)):
        profiles = [perception_profile(cohort.statistics(f"case-{k}"), ROI, target) for k in range(2)]
        assert summary.values["mass"].tolist() == pytest.approx([profile.mass for profile in profiles])
        scores = [float(cohort.statistics(f"case-{k}").observed_score[0, target]) for k in range(2)]
        assert summary.values["observed_score"].tolist() == pytest.approx(scores)
    pd.testing.assert_frame_equal(summarize(cohort, output={"class": 0}).profile, asked.profile)
    with pytest.raises(
        ValueError, match=r"output: .*'class': 2.* picks 0 outputs of case 'case-0', expected one of class 0, 1"
    ):
        summarize(cohort, output={"class": 2})
    with pytest.raises(ValueError, match=r"output: .* no output axis 'roi'; its axes are 'class'"):
        summarize(cohort, output={"roi": 0})


def test_several_regions_need_both_axes(tmp_path):
    rois = torch.stack([regions.box(SHAPE, 0, 4), regions.box(SHAPE, 8, 4)])
    cohort = study_of(tmp_path / "study", cases_of(1), TwoClasses(), roi=rois, target=(1, 0), exclude=None)
    with pytest.raises(ValueError, match=r"output: .* picks 2 outputs of case 'case-0', expected one of class 0, 1; roi 0, 1"):
        summarize(cohort, output={"class": 1})
    summary = summarize(cohort, output={"class": 1, "roi": 1})
    expected = perception_profile(cohort.statistics("case-0"), rois[1], (1, 1))
    assert summary.values["radius_50"].tolist() == [expected.radius(0.5)]
    assert summary.profile["share"].tolist() == pytest.approx(expected.by_distance["share"])
    # Only one case: nothing is known about others.
    assert summary.profile[["share_lower", "share_upper"]].isna().all(axis=None)
    assert 0 in summary.profile["bin"].tolist()  # blocks that touch the region


def test_significant_units_over_the_cohort(near, far):
    summary = summarize({"near": near, "far": far})
    units = pd.concat([near.units().assign(study="near"), far.units().assign(study="far")], ignore_index=True)
    known = units["status"].isin(["ESTIMATED", "SCREENED"])
    assert (units["status"] == "OUTSIDE_SUPPORT").any()
    for correction in ("fdr_bh", "fdr_by"):
        units.loc[known, "q_value"] = scipy_stats.false_discovery_control(units.loc[known, "p_value"], method=correction[-2:])
        expected = units[units["q_value"] <= 0.2].reset_index(drop=True)
        found = summary.significant_units(0.2, correction)
        assert len(found) > 0
        pd.testing.assert_frame_equal(found, expected[found.columns.tolist()])
        assert found.attrs["n_tests"] == known.sum()
    assert list(found.columns[:3]) == ["study", "case", "unit"]
    assert summary.significant_units(1e-12).empty
    assert summary.significant_units(1e-12).columns.tolist() == found.columns.tolist()


def test_tables_are_read_case_by_case(near, monkeypatch):
    """One at a time, and for the false discovery rate first the p-values alone."""
    summary = summarize(near)
    read, reader = [], pd.read_parquet

    def spy(path, columns=None, **options):
        read.append((str(path), tuple(columns)))
        return reader(path, columns=columns, **options)

    monkeypatch.setattr(pd, "read_parquet", spy)
    summary.significant_units()
    assert len(read) == 10
    assert {columns for _, columns in read[:5]} == {("status", "p_value", "asked")}
    assert len({path for path, _ in read[:5]}) == 5


def test_exclusion_and_infinite_errors_in_one_case():
    """A single draw each: no error is known, the mass is, the energy is not."""
    units = pd.DataFrame(
        {
            "status": ["EXCLUDED", "ESTIMATED", "ESTIMATED", "OUTSIDE_SUPPORT", "SCREENED"],
            "effect": [math.nan, 0.3, -0.1, 0.0, 0.05],
            "standard_error": [math.nan, math.inf, math.inf, 0.0, 0.01],
            "p_value": [math.nan, 1.0, 1.0, 1.0, 1e-9],
            "observed_score": 0.8,
            "distance": [0.0, 1.0, 5.0, 9.0, 9.0],
        }
    )
    found = case_values(units, 0.05)
    assert {k: v for k, v in found.items() if k != "energy"} == pytest.approx(
        {
            "observed_score": 0.8,
            "share_significant": 0.0,  # the screened one counts as 0
            "mass": 0.4,
            "supporting_mass": 0.3,
            "harming_mass": 0.1,
            "radius_50": 1.0,
            "n_units": 3,
        }
    )
    assert math.isnan(found["energy"])
    assert case_values(units[:1], 0.05)["n_units"] == 0
    assert math.isnan(case_values(units[:1], 0.05)["mass"])


# Components.


def test_components_are_pooled_over_the_cases_that_have_them(components):
    summary = summarize(components)
    table = summary.components.set_index("module")
    assert table.index.tolist() == ["0", "1", "2", "3"]
    assert table["n_cases"].tolist() == [5, 5, 5, 2]
    units = components.units()
    for module, row in table.iterrows():
        own = units[units["module"] == module]
        expected = random_effects(own["effect"].to_numpy(), own["standard_error"].to_numpy())
        for name, value in expected.items():
            assert row[name] == value or (pd.isna(row[name]) and pd.isna(value)), name
    assert table["q_value"].tolist() == pytest.approx(scipy_stats.false_discovery_control(table["p_value"]).tolist())
    assert table["type"].tolist() == ["Conv2d", "ReLU", "Conv2d", "Softmax"]
    assert summary.profile.empty
    assert math.isnan(summary.bin_width)
    assert summary.values["mass"].isna().all()
    assert summary.values["n_units"].tolist() == [3, 3, 3, 4, 4]
    assert repr(summary) == "CohortSummary(5 cases, 4 modules)"
    found = summary.significant_units(0.5)
    assert {"module", "q_value"} < {*found.columns}
    assert found.attrs["n_tests"] == len(units)


def test_components_of_two_studies_are_paired(components):
    summary = summarize({"before": components, "after": components}, level=0.9)
    rows = summary.comparison[summary.comparison["family"] == "components"]
    assert rows[["module", "n_pairs", "difference", "p_value"]].values.tolist() == [
        ["0", 5, 0.0, 1.0],
        ["1", 5, 0.0, 1.0],
        ["2", 5, 0.0, 1.0],
        ["3", 2, 0.0, 1.0],
    ]
    assert (rows["correction"] == "fdr_bh").all()
    assert {*summary.comparison["family"]} == {"case", "components"}


def test_channels_are_pooled_one_by_one(tmp_path):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Conv2d(3, 1, 1))

    def make_target(case):
        return SegmentationTarget(model, roi=ROI, reference=torch.ones(1, *SHAPE), metric="probability_mean", activation="none")

    options = {"level": "channel", "baselines": images(4, 9), "n_draws": 2, "n_screening_draws": 0, "show_progress": False}
    cohort = explain_cohort(cases_of(3), make_target, method=component_effects, out=tmp_path / "study", **options)
    summary = summarize({"one": cohort, "two": cohort})
    table = summary.components.query("study == 'one'")
    assert table[["module", "channel", "n_cases"]].values.tolist() == [["0", 0, 3], ["0", 1, 3], ["0", 2, 3], ["1", 0, 3]]
    own = cohort.units().query("module == '0' and channel == 1")
    expected = random_effects(own["effect"].to_numpy(), own["standard_error"].to_numpy())
    assert table["effect"].iloc[1] == expected["effect"]
    assert summary.comparison.query("family == 'components'")["channel"].tolist() == [0, 1, 2, 0]
    assert "0 / 2" in [label.get_text() for label in plot_cohort_components(summary).axes[0].get_yticklabels()]


@pytest.mark.parametrize(("level", "count"), [("token", 16), ("head", 2)])
def test_tokens_and_heads_are_pooled_one_by_one(tmp_path, level, count):
    class Heads(torch.nn.Module):
        num_heads = 2

        def __init__(self):
            super().__init__()
            self.values, self.project = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.project(self.values(x).unflatten(2, (2, 2)).sin().flatten(2))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.heads = torch.nn.Conv2d(1, 4, 4, stride=4), Heads()
            self.expand = torch.nn.ConvTranspose2d(4, 1, 4, stride=4)

        def forward(self, x):
            tokens = self.heads(self.patches(x).flatten(2).transpose(1, 2))
            return self.expand(tokens.transpose(1, 2).unflatten(2, (SHAPE[0] // 4, SHAPE[1] // 4)))

    torch.manual_seed(1)
    model = Net()

    def make_target(case):
        return SegmentationTarget(model, roi=ROI, reference=torch.ones(1, *SHAPE), metric="probability_mean", activation="none")

    options = {"level": level, "baselines": images(4, 9), "n_draws": 2, "n_screening_draws": 0, "show_progress": False}
    layers = "heads.project"
    cohort = explain_cohort(cases_of(3), make_target, method=component_effects, out=tmp_path, layers=layers, **options)
    table = summarize(cohort).components
    assert table[["module", level, "n_cases"]].values.tolist() == [[layers, number, 3] for number in range(count)]


# Arguments.


def test_bad_arguments(near, components, tmp_path):
    with pytest.raises(ValueError, match=r"by: there is no column 'hospital'; the cases have id, state, error, site, age, "):
        summarize(near, "hospital")
    with pytest.raises(ValueError, match=r"by: expected different columns, got \('site', 'site'\)"):
        summarize(near, ["site", "site"])
    with pytest.raises(ValueError, match=r"pair: there is no column 'patient'; the cases have id"):
        summarize(near, "site", pair="patient")
    with pytest.raises(ValueError, match=r"pair: nothing can be paired by 'id': there is only one group"):
        summarize(near, pair="id")
    with pytest.raises(ValueError, match=r"pair: nothing can be paired by 'id': no two of the groups A, B share a value"):
        summarize(near, "site", pair="id")
    with pytest.raises(ValueError, match=r"cohort: expected at least one study"):
        summarize({})
    with pytest.raises(TypeError, match=r"cohort: expected a path, a Cohort or studies by name, got list"):
        summarize([near])
    with pytest.raises(ValueError, match=r"folder: there is no study in"):
        summarize(tmp_path)
    with pytest.raises(ValueError, match=r"cohort: some of the studies have effects of components, others of units"):
        summarize({"a": near, "b": components})
    with pytest.raises(ValueError, match=r"by: case 'case-0' of two studies is in the group 'A', where it would count twice"):
        summarize({"a": near, "b": near}, "site")
    for name, value in (("level", 95), ("level", True), ("alpha", 0)):
        with pytest.raises(ValueError, match=rf"{name}: expected a number between 0 and 1, got {value}"):
            summarize(near, **{name: value})
    for value in (0, -1.0, math.inf, math.nan, "4"):
        with pytest.raises(ValueError, match=r"bin_width: expected a positive number( or None)?, got "):
            summarize(near, bin_width=value)
    with pytest.raises(TypeError, match=r'output: expected a dict of output axes such as {"class": 1} or None, got 1'):
        summarize(near, output=1)
    with pytest.raises(ValueError, match=r"output: the units of case 'case-0' have no output axis 'class'"):
        summarize(components, output={"class": 1})
    with pytest.raises(ValueError, match=r"alpha: expected a number between 0 and 1, got 1.5"):
        summarize(near).significant_units(1.5)
    with pytest.raises(ValueError, match=r"correction: expected \"fdr_bh\" or \"fdr_by\", got 'holm'"):
        summarize(near).significant_units(correction="holm")


def test_nothing_finished(tmp_path):
    cohort = study_of(tmp_path / "study", [case | {"broken": True} for case in cases_of(2)], box_filter(3))
    with pytest.raises(ValueError, match=r"cohort: none of its 2 cases is finished"):
        summarize(cohort)


def test_a_group_of_failures_and_missing_words(tmp_path):
    cases = cases_of(3)
    cases[1] |= {"site": None}
    cases[2] |= {"site": "C", "broken": True}
    summary = summarize(study_of(tmp_path / "study", cases, box_filter(3)), by="site")
    assert summary.groups == ("A", "missing", "C")
    assert summary.cases["n_finished"].tolist() == [1, 1, 0]
    assert summary.cases["mass"].isna().tolist() == [False, False, True]
    assert len(plot_cohort_profile(summary).axes[0].get_legend().get_texts()) == 2


# Pictures.


def test_profile_picture_shows_each_group_with_its_intervals(near, far):
    summary = summarize({"near": near, "far": far})
    figure = plot_cohort_profile(summary, panels=("mean_absolute_effect", "share"), title="Two models", score_name="Dice")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["near (5 cases)", "far (4 cases)"]
    assert axes.get_ylabel() == "mean |effect| on the Dice"
    for study, drawn in zip(("near", "far"), axes.containers):
        rows = summary.profile[summary.profile["study"] == study]
        np.testing.assert_allclose(drawn.lines[0].get_ydata(), rows["mean_absolute_effect"])
        bars = np.array([segment[:, 1] for segment in drawn.lines[2][0].get_segments()])
        drawn_to = rows[["mean_absolute_effect_lower", "mean_absolute_effect_upper"]].dropna()
        np.testing.assert_allclose(bars[: len(drawn_to)], drawn_to)
    colors = [drawn.lines[0].get_color() for drawn in axes.containers]
    assert len({*colors}) == 2
    figure.savefig("/dev/null", format="png")


def test_components_picture_is_a_forest(components):
    summary = summarize({"one": components, "two": components})
    figure = plot_cohort_components(summary, max_rows=2)
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == 2
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 4
    assert all(text.startswith("n = ") for text in texts)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    first = summary.components.query("study == 'one'").set_index("module").loc[shown]
    # Prediction intervals first, the intervals of the mean above them.
    ends = [segment[:, 0] for segment in axes.collections[1].get_segments()]
    np.testing.assert_allclose(ends, first[["lower", "upper"]])
    figure.savefig("/dev/null", format="png")
    single = summarize(components, by="site")
    assert plot_cohort_components(single).axes[0].get_legend() is not None
    assert plot_cohort_components(summarize(components)).axes[0].get_legend() is None


def test_names_in_pictures_are_no_formulas(near, far, components):
    odd = r"$\nope$"
    for plot, first, second in ((plot_cohort_profile, near, far), (plot_cohort_components, components, components)):
        figure = plot(summarize({odd: first, "b": second}), title=odd, score_name=odd)
        assert odd in " ".join(text.get_text() for text in figure.axes[0].get_legend().get_texts())
        figure.savefig("/dev/null", format="png")


def test_pictures_of_something_else(near, components):
    with pytest.raises(TypeError, match=r"summary: expected a CohortSummary, got Cohort"):
        plot_cohort_profile(near)
    with pytest.raises(ValueError, match=r"summary: it has no profile"):
        plot_cohort_profile(summarize(components))
    with pytest.raises(ValueError, match=r"summary: it has no components"):
        plot_cohort_components(summarize(near))
    with pytest.raises(ValueError, match=r"panels: expected some of .*, got \('mass',\)"):
        plot_cohort_profile(summarize(near), panels=("mass",))
    with pytest.raises(ValueError, match=r"max_rows: expected at least 1, got 0"):
        plot_cohort_components(summarize(components), max_rows=0)


def test_a_summary_is_the_same_each_time(near):
    one, two = summarize(near), summarize(Cohort(near.folder))
    assert isinstance(one, CohortSummary)
    for name in ("values", "cases", "profile", "components", "comparison"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    with pytest.raises(AttributeError):
        one.level = 0.5
