"""Tables of units and components over cases."""

import math

import pandas as pd
import pytest
import torch
from cohort_summaries import ROI, SHAPE, cases_of, images
from scipy import stats as scipy_stats

from captum_causalseg import SegmentationTarget, component_effects
from captum_causalseg.cohort import explain_cohort, plot_cohort_components, summarize
from captum_causalseg.cohort.between_cases import random_effects
from captum_causalseg.cohort.case_values import case_values


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
