"""What the benchmark of joints does with its numbers: products without bias, intervals over regions, places and units by hand."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import joints
import joints_report
import skin
from paired import Estimate, product

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg.evaluation.planted import planted_case


def test_a_product_crosses_the_estimates():
    raw, matched = [np.array([1.0, 2.0]), np.array([3.0, -1.0])], [np.array([5.0, 0.0]), np.array([2.0, 4.0])]
    assert product(raw, matched) == ((1 * 2 + 2 * 4) + (3 * 5 + -1 * 0)) / 2
    assert product(raw, raw) == 1 * 3 + 2 * -1


def test_noise_adds_nothing_to_an_energy():
    generator = np.random.default_rng(0)
    effects = np.array([0.5, -0.2, 0.0, 0.0])
    noisy = effects + generator.standard_normal((4000, 2, 4))
    # Both kinds meet the same donors, so their errors are correlated within a half; the kind's own effects are half of the raw ones.
    other = effects / 2 + 0.8 * (noisy - effects) + 0.1 * generator.standard_normal((4000, 2, 4))
    for found, truth in (
        ([product(one, one) for one in noisy], effects @ effects),
        ([product(one, two) for one, two in zip(noisy, other)], effects @ effects / 2),
    ):
        assert abs(np.mean(found) - truth) < 4 * np.std(found) / math.sqrt(len(found))
    assert np.mean((noisy**2).sum(-1)) > 4 > effects @ effects  # which plain squares would report


def test_a_mean_has_the_interval_of_a_t_test_and_a_difference_that_of_a_paired_one():
    one, other = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 2.5, 3.0, 6.0])
    assert Estimate.mean(one).interval() == pytest.approx(stats.ttest_1samp(one, 0).confidence_interval(0.95))
    difference = Estimate.mean(one) - Estimate.mean(other)
    assert difference.value == 0.75
    assert difference.interval() == pytest.approx(stats.ttest_rel(one, other).confidence_interval(0.95))
    assert (1 - Estimate.mean(one)).interval()[0] == pytest.approx(1 - Estimate.mean(one).interval()[1])


def test_a_ratio_is_that_of_the_sums():
    ratio = Estimate.ratio([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
    assert ratio.value == 6 / 15
    # (above - 0.4 below) / 5
    assert ratio.influence == pytest.approx([0.04, 0.08, -0.12])
    assert ratio.standard_error == pytest.approx(math.sqrt((0.04**2 + 0.08**2 + 0.12**2) / 2 / 3))
    same = Estimate.ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert same.interval() == (0.5, 0.5)
    root = Estimate.ratio([1.0, 2.0, 3.0], [4.0, 8.0, 12.5]).root()
    assert root.value == pytest.approx(math.sqrt(6 / 24.5))
    assert math.isnan(Estimate.ratio([-1.0, 0.0], [1.0, 1.0]).root().value)


def test_nineteen_of_twenty_intervals_of_a_ratio_hold_it():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        below = generator.gamma(2.0, size=20)
        above = 0.6 * below + 0.2 * generator.standard_normal(20)
        low, high = Estimate.ratio(above, below).interval()
        held += low <= 0.6 <= high
    assert stats.binomtest(held, 1000, 0.95).pvalue > 0.001, held


def test_regions_are_not_mixed_up():
    with pytest.raises(ValueError, match="other: expected 3 regions, got 2"):
        Estimate.mean([1.0, 2.0, 3.0]) - Estimate.mean([1.0, 2.0])


def test_the_share_of_the_step_by_hand():
    effects = {"raw": [[1.0, 2.0], [1.0, 2.0]], "mean": [[0.5, 1.0], [0.5, 1.0]]}
    one = {"effects": effects, "shift": [0.3, 0.4], "n_units": 2}
    share = joints_report.step_share([one, one])
    assert (share.value, share.standard_error) == (0.5, 0.0)
    assert joints_report.relative_size([one, one], "mean").value == 0.5
    assert joints_report.shift_size([one, one]).value == pytest.approx(math.sqrt(0.25 / 5))
    assert joints_report.raw_size([one, one]).value == math.sqrt(2.5)
    without = joints_report.others_of([{**one, "marker_unit": 1}])[0]
    assert [half.tolist() for half in without["effects"]["raw"]] == [[1.0], [1.0]]


def made_up(data, network, number, matched):
    scores = [
        {"judge": judge, "map": of, "metric": "mu fidelity", "value": 0.5 + 0.1 * (judge == of) + 0.01 * number}
        for judge in ("raw", "mean")
        for of in ("raw", "mean")
    ]
    raw = np.array([0.1, 0.2, -0.1]) * (1 + number)
    kinds = {"raw": raw, "mean": matched * raw, "blended": matched * raw / 2, "neighbors": raw / 2}
    return {
        **{"data": data, "network": network, "number": number, "reached": 0.9, "observed": 0.8, "n_units": 3},
        "effects": {kind: [values.tolist()] * 2 for kind, values in kinds.items()},
        **{"shift": [0.0, 0.01, 0.0], "outside_range": 0.1, "n_significant": 2, "n_trusted": 0},
        "n_sign_differs": {"mean": 1, "blended": 0, "neighbors": 0},
        **{"marker_unit": 1, "marker": {kind: {"found": True, "share": 0.5} for kind in kinds}, "faithfulness": scores},
    }


def test_the_report_says_what_was_found(tmp_path, capsys):
    records = [
        made_up(*of, number, matched)
        for number in range(3)
        for of, matched in (
            (("skin", "batch norm"), 0.25),
            (("skin", "instance norm"), 0.75),
            (("shortcut", "batch norm"), 1.0),
        )
    ]
    options = argparse.Namespace(quick=True, write=tmp_path / "joints.md", cache=tmp_path, work=tmp_path)
    joints_report.report(records, options)
    text = options.write.read_text()
    assert text in capsys.readouterr().out
    assert "| skin, batch norm | 0.900 | 3 | 0.80 |" in text
    assert "75% (75 to 75)" in text
    assert "| skin, instance norm minus batch norm | -50 points (-50 to -50) | 0.00 (0.00 to 0.00) |" in text
    assert "| matched | 3 of 3 | 0.40 (-0.10 to 0.90) |" in text  # 0.2, 0.4 and 0.6
    assert "**+0.100** (+0.100 to +0.100)" in text
    assert "**-0.100** (-0.100 to -0.100)" in text
    summary = (tmp_path / "joints_summary.md").read_text()
    assert "| skin, batch norm | 3 | 75% (75 to 75) | 0% (0 to 0) |" in summary
    assert "raw 3, matched 3" in summary
    assert (tmp_path / "joints.png").stat().st_size > 0


def test_a_share_of_units_stays_one():
    none = Estimate.ratio([0.0, 0.0, 0.0, 1.0], [9.0, 9.0, 9.0, 9.0])
    assert joints_report.percent(none) == "3% (-6 to 12)"
    assert joints_report.percent(none, of_units=True) == "3% (0 to 12)"


def test_two_estimates_together():
    case = planted_case((32, 32), roi_size=8)
    ate = AverageTreatmentEffect(case.target("soft_dice"))
    first, second = (
        ate.attribute(
            *(case.images, case.donors),
            **{"n_draws": 6, "n_screening_draws": 0, "sampling": "uniform", "seed": seed, "return_statistics": True},
        )[1]
        for seed in (0, 1)
    )
    both = joints.pooled(first, second)
    unit = case.cause_units[0]
    assert float(both.effect[0, unit]) == pytest.approx(float(first.effect[0, unit] + second.effect[0, unit]) / 2)
    assert int(both.n_draws[0, unit]) == 12
    assert float(both.variance_factor[0, unit]) == pytest.approx(float(first.variance_factor[0, unit]) / 2)
    assert float(both.variance_freedom[0, unit]) == 10
    assert both.n_forwards == first.n_forwards + second.n_forwards


def test_a_box_lies_on_the_border_and_units_around_it():
    mask = torch.zeros(192, 192, dtype=torch.bool)
    mask[:, 80:] = True
    assert joints.box_on_border(mask, range(32, 129, 16), range(32, 129, 16)) == (32, 64)
    assert joints.box_on_border(mask, (32,), (96,)) is None  # nothing but the class
    units = joints.near_units((192, 192), (64, 64), joints.Settings())
    assert units.unique().numel() == 33  # 6 x 6 blocks without the region's 4, and all else
    assert int(units[64:96, 64:96].max()) == 0
    assert units[32:128, 32:128].eq(0).sum() == 32 * 32
    assert int(units[:32].max()) == 0
    half = joints.near_units((192, 192), (64, 64), joints.Settings(), half=True)
    assert half.unique().numel() == 17
    assert bool((half[half > 0] == units[half > 0]).all())
    assert half[32, 32] > 0
    assert half[32, 48] == half[48, 32] == 0


def test_what_was_found_is_kept(tmp_path):
    file, made = tmp_path / "one.json", []

    def make():
        made.append(1)
        return {"value": np.float64(0.5), "flag": np.bool_(True)}

    for _ in range(2):
        assert joints.kept(file, make) == {"value": 0.5, "flag": True}
    assert len(made) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["one.json"]
    assert json.loads(file.read_text())["flag"] is True


def test_skin_is_left_out_without_its_data(tmp_path):
    assert not skin.has_data(None)
    assert not skin.has_data(tmp_path)


@pytest.mark.parametrize("name", skin.NETWORKS)
def test_skin_networks_are_the_same_each_time(name):
    before = torch.get_rng_state()
    one, other = (skin.build(name, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))
    with torch.no_grad():
        assert one.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32)
