"""What a cohort says: against the cases' own profiles."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from cohort_summaries import ROI, SHAPE, box_filter, cases_of, images, study_of, t_interval
from monai.data import MetaTensor
from scipy import stats as scipy_stats

from captum_causalseg import PatchBank, regions
from captum_causalseg.cohort import Cohort, CohortSummary, plot_cohort_profile, summarize
from captum_causalseg.evaluation.profile import perception_profile


class TwoClasses(torch.nn.Module):
    """Near surroundings and far ones."""

    def forward(self, image):
        return torch.cat([box_filter(3)(image), box_filter(9)(image)], 1)


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
    assert "distances of some cases are in mm, those of others in pixels" in caplog.text
    assert plot_cohort_profile(summary).axes[0].get_xlabel() == "distance from the region of interest (mm, pixels)"


def test_failed_cases_are_counted(near):
    assert summarize(near).distance_unit == "pixel"
    summary = summarize(near)
    assert summary.cases.loc[0, ["n_cases", "n_finished", "n_failed"]].tolist() == [6, 5, 1]
    assert repr(summary) == "CohortSummary(5 cases (1 failed), 1 bins of 4)"


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


def test_a_summary_is_the_same_each_time(near):
    one, two = summarize(near), summarize(Cohort(near.folder))
    assert isinstance(one, CohortSummary)
    for name in ("values", "cases", "profile", "components", "comparison"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    with pytest.raises(AttributeError):
        one.level = 0.5
