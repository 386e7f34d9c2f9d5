"""Regions of interest that are what the model got wrong."""

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import on_picture, status_of
from PIL import Image

from captum_causalseg import TreatmentEffectStatistics, regions
from captum_causalseg.cli.mistakes import find_mistake, is_mistake, score_of_mistake
from captum_causalseg.preparation.grid import Grids


def found(text, prediction, truth):
    image = torch.zeros(1, 1, *prediction.shape)
    return find_mistake(text, Grids(image, image, picture=True), prediction, truth)


def test_kinds_of_mistakes_and_the_scores_that_fit():
    prediction, truth = torch.zeros(2, 12, 12, dtype=torch.bool)
    prediction[0:3, 0:3] = True  # nothing is there
    truth[9:11, 4:6] = True  # missed
    prediction[6:8, 8], truth[6:8, 9] = True, True  # beside it
    largest = found("error:1", prediction, truth)
    assert (largest.kind, largest.score, int(largest.mask.sum())) == ("false_positive", "volume", 9)
    assert largest.described == (
        "the largest part that the model got wrong: 9 pixels in 0-2 x 0-2, which is predicted and not in the reference"
    )
    missed = found("error:missed:1", prediction, truth)
    assert (missed.kind, missed.score) == ("missed", "detection")
    assert missed.described.startswith("the largest missed part: 4 pixels in 9-10 x 4-5, which is in the reference")
    both = found("error:2", prediction, truth)
    assert (both.kind, both.score) == ("both", "soft_dice")
    assert both.described.startswith("part that the model got wrong, number 2 by size: 4 pixels in 6-7 x 8-9, of which some")
    assert torch.equal(
        found("error:false_positive:2", prediction, truth).mask, regions.errors(prediction, truth, "false_positive", rank=2)
    )
    with pytest.raises(ValueError, match="differ in 3 connected errors, got 4"):
        found("error:4", prediction, truth)


@pytest.mark.parametrize("text", ["error", "error:", "error:0", "error:wrong:1", "error:missed", "error:1:missed"])
def test_what_is_no_mistake(text):
    assert is_mistake(text)
    with pytest.raises(ValueError, match="expected error:1, error:missed:1 or error:false_positive:1"):
        score_of_mistake(text)


def test_the_score_of_a_mistake_may_depend_on_the_image():
    assert [score_of_mistake(f"error:{kind}1") for kind in ("", "any:", "missed:", "false_positive:")] == [
        None,
        None,
        "detection",
        "volume",
    ]
    assert not is_mistake("errors.png")


def on_mistake(name, *more, roi="error:false_positive:1", command="explain"):
    arguments = on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--units", "8", *more, command=command)
    arguments[arguments.index("box:8,8+8")] = roi
    return arguments


def wrong():
    network = torch.jit.load("two.ts")
    image = torch.from_numpy(np.array(Image.open("image.png"))).float()[None, None] / 255
    with torch.no_grad():
        return network(image)[0].argmax(0) == 1, torch.from_numpy(np.array(Image.open("mask.png"))) > 0


def test_the_command_line_explains_what_is_wrong_by_a_score_that_fits(quick, capsys):
    folder, name = quick
    assert status_of(on_mistake(name)) == 0
    said = capsys.readouterr().out
    region = regions.errors(*wrong(), "false_positive")
    assert said.startswith(f"error:false_positive:1: the largest false positive: {int(region.sum())} pixels in ")
    assert "scored by volume: it says how much is predicted there" in said
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    assert float(stats.observed_score[0, 1]) == float(region.sum())
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "which is predicted and not in the reference" in page
    assert "--roi error:false_positive:1 --metric volume" in page or "--metric volume" in page
    assert set(pd.read_csv("out/effects.csv")["class"]) == {0, 1}
    # What the user chose is kept.
    assert status_of(on_mistake(name, "--metric", "soft_dice", roi="error:missed:1")) == 0
    said = capsys.readouterr().out
    assert "scored by soft_dice\n" in said
    assert "another" not in said
    # Without a word about it, the score is the Dice.
    assert status_of(on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--units", "8")) == 0
    assert "dice in box:8,8+8 is" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["refute", "compare", "components"])
def test_other_commands_take_mistakes_too(quick, capsys, command):
    _, name = quick
    more = ["--refuters", "seed"] if command == "refute" else []
    assert status_of(on_mistake(name, "--donors", "donors", *more, command=command)) == 0
    assert "scored by volume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--roi", "error:wrong:1"], "--roi: expected error:1, error:missed:1 or error:false_positive:1 (1: the largest)"),
        (["--roi", "error:999"], "--roi: prediction and reference differ in"),
    ],
)
def test_mistakes_that_are_not_there(quick, capsys, change, message):
    _, name = quick
    assert status_of(on_mistake(name, *change)) == 2
    assert message in capsys.readouterr().err


def test_a_mistake_needs_a_reference(quick, capsys):
    _, name = quick
    assert status_of(on_picture(name, "--roi", "error:1")) == 2
    assert "--roi: error:1 is where prediction and reference differ; give --label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        (("error:1", "error:1"), "roi: error:1 may be a false positive in one case and a missed part in another"),
        (("error:missed:1", "box:8,8+8"), "metric: cases would be scored by detection, dice, as fits their roi"),
        (("error:false_positive:1", "error:false_positive:2"), None),
    ],
)
def test_cases_of_a_study_are_scored_alike(quick, capsys, rois, message):
    folder, name = quick
    (folder / "study.yaml").write_text(f"model: {name}:two\nweights: two.pt\nnormalize: 255\ndraws: 2\nunits: 8\n")
    rows = [f'{number},image.png,mask.png,"{roi}"' for number, roi in enumerate(rois)]
    (folder / "cases.csv").write_text("\n".join(["id,image,label,roi", *rows]) + "\n")
    status = status_of(["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "study"])
    assert status == (0 if message is None else 2)
    assert message is None or f"--config: {message}" in capsys.readouterr().err
