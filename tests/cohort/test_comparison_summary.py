"""What a comparison shows: against scipy and arithmetic by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from captum_causalseg import summarize_comparison
from captum_causalseg.statistics import adjust_p_values

GENERATOR = np.random.default_rng(0)
CASES = [f"case {k}" for k in range(6)]


def table(values: dict[str, list[float]], metric: str = "irof", direction: str = "higher", **columns) -> pd.DataFrame:
    rows = []
    for method, found in values.items():
        for k, value in enumerate(found):
            more = {name: given[k] for name, given in columns.items()}
            rows.append(
                {"case": CASES[k], "method": method, "metric": metric, "value": value, "score_direction": direction} | more
            )
    return pd.DataFrame(rows)


def random_values(*names: str) -> dict[str, list[float]]:
    return {name: GENERATOR.normal(k, 1, len(CASES)).tolist() for k, name in enumerate(names)}


def test_means_and_paired_differences():
    values = random_values("ours", "b", "c", "d")
    found = summarize_comparison(table(values), against="ours")
    assert repr(found) == "ComparisonSummary(6 cases, 4 methods, 1 metric, against ours)"
    for row in found.means.itertuples():
        mine = np.array(values[row.method])
        low, high = scipy_stats.t.interval(0.95, 5, mine.mean(), scipy_stats.sem(mine))
        np.testing.assert_allclose([row.mean, row.lower, row.upper], [mine.mean(), low, high])
        assert (row.n_cases, row.n_missing) == (6, 0)
    ours = np.array(values["ours"])
    raw = {name: scipy_stats.ttest_rel(values[name], ours).pvalue for name in "bcd"}
    holm = adjust_p_values(np.array([*raw.values()]), "holm")
    assert found.differences["method"].tolist() == [*raw]
    for row, adjusted in zip(found.differences.itertuples(), holm):
        mine = np.array(values[row.method])
        assert row.difference == pytest.approx((mine - ours).mean())
        assert row.mean_method == pytest.approx(mine.mean())
        assert row.mean_against == pytest.approx(ours.mean())
        assert row.p_value == pytest.approx(raw[row.method])
        assert row.p_adjusted == pytest.approx(adjusted)
        assert row.p_wilcoxon == pytest.approx(scipy_stats.wilcoxon(mine - ours).pvalue)
        assert row.win_rate == np.mean(mine > ours)


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_wins_and_ranks_know_which_way_is_better(direction):
    values = {"a": [3.0, 2.0, 5.0], "b": [1.0, 2.0, 4.0], "c": [0.0, 9.0, 1.0]}
    found = summarize_comparison(table(values, direction=direction))
    assert found.differences.empty
    wins = found.wins.set_index(["method", "other"])["win_rate"]
    better = {"higher": (2.5 / 3, 2 / 3), "lower": (0.5 / 3, 1 / 3)}[direction]
    assert (wins["a", "b"], wins["a", "c"]) == pytest.approx(better)
    assert wins["b", "a"] == pytest.approx(1 - wins["a", "b"])
    ranks = found.ranks.set_index("method")["mean_rank"]
    expected = {"higher": [(1 + 2.5 + 1) / 3, (2 + 2.5 + 2) / 3, 7 / 3], "lower": [(3 + 1.5 + 3) / 3, (2 + 1.5 + 2) / 3, 5 / 3]}
    np.testing.assert_allclose(ranks[["a", "b", "c"]], expected[direction])


def test_friedman_and_the_critical_difference():
    values = random_values("a", "b", "c", "d", "e")
    ranks = summarize_comparison(table(values)).ranks
    assert set(ranks["p_friedman"]) == {scipy_stats.friedmanchisquare(*values.values()).pvalue}
    # Demsar's table (2006): q is 2.728 for five methods at 0.05.
    assert ranks["critical_difference"].iloc[0] == pytest.approx(2.728 * math.sqrt(5 * 6 / (6 * 6)), rel=2e-4)
    two = summarize_comparison(table(random_values("a", "b")), alpha=0.05).ranks
    assert two["p_friedman"].isna().all()
    assert two["critical_difference"].iloc[0] == pytest.approx(1.960 * math.sqrt(2 * 3 / (6 * 6)), rel=2e-4)


def test_a_metric_that_has_nothing_to_say_is_no_number():
    values = random_values("ours", "b", "silent")
    values["silent"] = [math.nan] * 6
    values["b"][2] = math.nan
    found = summarize_comparison(table(values), against="ours")
    means = found.means.set_index("method")
    assert means.loc["b", ["n_cases", "n_missing"]].tolist() == [5, 1]
    assert means.loc["silent", ["n_cases", "n_missing"]].tolist() == [0, 6]
    differences = found.differences.set_index("method")
    kept = [k for k in range(6) if k != 2]
    assert differences.loc["b", "n_pairs"] == 5
    assert differences.loc["b", "mean_against"] == pytest.approx(np.array(values["ours"])[kept].mean())
    assert np.isnan(differences.loc["silent", "p_adjusted"])
    assert differences.loc["b", "p_adjusted"] == pytest.approx(differences.loc["b", "p_value"]), "a family of one"
    ranks = found.ranks.set_index("method")
    assert ranks["mean_rank"].notna().to_dict() == {"ours": True, "b": True, "silent": False}
    assert ranks.loc["ours", ["n_cases", "n_methods"]].tolist() == [5, 2]


def test_groups_and_clusters():
    values = random_values("ours", "b")
    place = {
        "kind": ["boundary"] * 3 + ["missed"] * 3,
        "roi_dice": [1.0, 0.96, 0.5, 0.2, math.nan, 0.97],
        "picture": [1, 1, 2, 3, 3, 4],
    }
    given = table(values, **place)
    by_kind = summarize_comparison(given, against="ours", by="kind")
    assert by_kind.means.set_index(["kind", "method"])["mean"]["missed", "b"] == pytest.approx(np.mean(values["b"][3:]))
    segmented = summarize_comparison(given, by="segmented").means.set_index(["segmented", "method"])
    assert segmented.loc["right", "ours"]["mean"] == pytest.approx(np.mean([values["ours"][k] for k in (0, 1, 5)]))
    assert segmented["n_cases"].to_dict() == {("right", "ours"): 3, ("right", "b"): 3, ("wrong", "ours"): 2, ("wrong", "b"): 2}
    pictures = summarize_comparison(given, cluster="picture")
    b = values["b"]
    four = [(b[0] + b[1]) / 2, b[2], (b[3] + b[4]) / 2, b[5]]
    row = pictures.means.set_index("method").loc["b"]
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(four), scipy_stats.sem(four))
    np.testing.assert_allclose(row[["mean", "lower", "upper"]].astype(float), [np.mean(four), low, high])
    assert row["n_cases"] == 4


def test_pairs_are_made_before_clusters_are_averaged():
    values = {
        "ours": [1.0, math.nan, 2.0, 3.0, 5.0, 4.0],
        "b": [1.5, 100.0, 2.5, 3.5, 5.5, 4.5],
    }  # half a point better wherever both are
    found = summarize_comparison(table(values, picture=[1, 1, 2, 2, 3, 3]), against="ours", cluster="picture").differences.iloc[
        0
    ]
    assert (found["difference"], found["n_pairs"], found["mean_method"], found["win_rate"]) == (
        0.5,
        3,
        pytest.approx(9.5 / 3),
        1,
    )


def test_correction_over_metrics_is_over_all_rows_of_a_group():
    given = pd.concat(
        [table(random_values("ours", "b", "c"), metric, kind=["x"] * 3 + ["y"] * 3) for metric in ("irof", "road")]
    )
    found = summarize_comparison(given, against="ours", by="kind").differences
    for _, rows in found.groupby("kind"):
        assert len(rows) == 4
        np.testing.assert_allclose(rows["p_adjusted_all"], adjust_p_values(rows["p_value"].to_numpy(), "holm"))
    assert (found["p_adjusted_all"] >= found["p_adjusted"]).all()


def test_intervals_and_holm_hold_what_they_say():
    """Where no method differs, Holm's correction finds one in at most 5 % of the studies, and nearly that; intervals of differences cover 0 in 95 %."""
    generator, wrong, covered, n = np.random.default_rng(1), 0, 0, 60
    names = ["ours", "b", "c", "d"]
    for _ in range(n):
        common = generator.normal(size=6)
        values = {name: (common + generator.normal(size=6)).tolist() for name in names}
        found = summarize_comparison(table(values), against="ours").differences
        wrong += int((found["p_adjusted"] < 0.05).any())
        covered += int(((found["lower"] < 0) & (found["upper"] > 0)).sum())
    # Binomial limits, 3 standard errors; tests against the same method depend on each other, which makes Holm conservative.
    assert wrong / n < 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)
    assert wrong > 0
    assert abs(covered / (3 * n) - 0.95) < 3 * math.sqrt(0.05 * 0.95 / n)


def test_bad_arguments(tmp_path):
    given = table(random_values("ours", "b"))
    for options, error, said in (
        ({"against": "c"}, ValueError, "against: expected one of the methods ours, b, got 'c'"),
        ({"by": "site"}, ValueError, "by: there is no column 'site'"),
        ({"cluster": "site"}, ValueError, "cluster: there is no column 'site'"),
        ({"metrics": ["irf"]}, ValueError, "metrics: expected some of irof"),
        ({"level": 1.5}, ValueError, "level"),
        ({"comparison": pd.concat([given, given])}, ValueError, "case 'case 0' has two values of 'irof' for 'ours'"),
        ({"comparison": given.drop(columns="value")}, ValueError, "comparison: expected the columns"),
        ({"comparison": given[:0]}, ValueError, "comparison: it has no row"),
        ({"comparison": 3}, TypeError, "comparison: expected"),
        ({"comparison": tmp_path}, ValueError, "there is no comparison in"),
    ):
        with pytest.raises(error) as caught:
            summarize_comparison(**{"comparison": given} | options)
        assert said in str(caught.value)
