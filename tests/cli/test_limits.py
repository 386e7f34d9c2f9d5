"""Intervals that reach beyond what a number can be."""

import math

import pytest
import torch
from command_line import status_of

from captum_causalseg.cli.limits import MARK, beyond, effects_beyond
from captum_causalseg.metrics import METRICS


def test_what_is_possible():
    assert beyond((-0.1, 0.5), (0, 1))
    assert beyond((0.5, 1.1), (0, 1))
    assert not beyond((0.0, 1.0 + 1e-12), (0, 1))
    assert not beyond((math.nan, math.nan), (0, 1))
    assert not beyond((-math.inf, math.inf), (-math.inf, math.inf))


def test_effects_have_twice_the_room_of_their_score():
    assert effects_beyond("dice", "Dice", [(-1.0, 0.9), (math.nan, math.nan)]) is None
    said = effects_beyond("brier", "brier", [(-1.2, 0.9), (-math.inf, math.inf), (0.0, 0.1)])
    assert said == (
        "2 intervals reach beyond what is possible (a brier lies in [-1, 0], an effect on it in [-1, 1]): so few draws do not bound the effect"
    )
    assert effects_beyond("volume", "volume", [(-1e9, math.inf)]) is None


@pytest.mark.parametrize("name", sorted(METRICS))
def test_scores_keep_to_their_limits(name):
    """On masks and probabilities at random, and where all of the object, or nothing, is found."""
    metric, generator = METRICS[name], torch.Generator().manual_seed(0)
    reference = torch.zeros(1, 1, 8, 8)
    reference[..., 2:6, 2:6] = 1
    roi = torch.ones(1, 8, 8, dtype=torch.bool)
    given = {"empty_score": 1.0, "exclusive": False, "instances": False}
    for prediction in (torch.rand(1, 1, 8, 8, generator=generator), reference, 1 - reference, 0 * reference):
        if metric.domain in ("logits", "log_odds"):
            prediction = 8 * prediction - 4
        elif metric.domain == "labels":
            prediction = (prediction > 0.5).float()
        value = metric.function(prediction, reference, roi[None], **{one: given[one] for one in metric.options}).item()
        assert metric.limits[0] - 1e-6 <= value <= metric.limits[1] + 1e-6


def test_a_study_of_two_cases_says_that_they_do_not_bound_a_mean(quick, capsys):
    folder, name = quick
    lines = [f"model: {name}:two", "weights: two.pt", 'normalize: "255"', "roi: box:8,8+8", "draws: 2", "units: 8"]
    (folder / "study.yaml").write_text("\n".join(lines))
    (folder / "cases.csv").write_text("id,image,label\na,image.png,mask.png\nb,donors/0.png,mask.png\n")
    assert status_of(["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "study"]) == 0
    said = capsys.readouterr().out
    marked = [line for line in said.splitlines() if line.endswith(f"]{MARK}")]
    assert any("sum of the effects" in line for line in marked)
    note = "* reaches beyond what is possible (a Dice lies in [0, 1], a share in [0, 1], no sum of sizes below 0): 2 cases do not bound the mean"
    assert note in said
    assert note in (folder / "study" / "report.html").read_text(encoding="utf-8")
