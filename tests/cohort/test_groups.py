"""Groups of cases, and pairs of them."""

import numpy as np
import pandas as pd
import pytest
from cohort_summaries import ROI, box_filter, cases_of, images, study_of, t_interval
from scipy import stats as scipy_stats

from captum_causalseg.cohort import plot_cohort_profile, summarize
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.statistics import adjust_p_values


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


def test_a_group_of_failures_and_missing_words(tmp_path):
    cases = cases_of(3)
    cases[1] |= {"site": None}
    cases[2] |= {"site": "C", "broken": True}
    summary = summarize(study_of(tmp_path / "study", cases, box_filter(3)), by="site")
    assert summary.groups == ("A", "missing", "C")
    assert summary.cases["n_finished"].tolist() == [1, 1, 0]
    assert summary.cases["mass"].isna().tolist() == [False, False, True]
    assert len(plot_cohort_profile(summary).axes[0].get_legend().get_texts()) == 2
