"""What is said before interventions begin is what they take at most, in the unit in which forwards are counted."""

import re

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn
from window_cases import Local, pixels

from captum_causalseg import (
    AverageTreatmentEffect,
    JointTreatmentEffect,
    LayerAverageTreatmentEffect,
    MediatedTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    WindowedModel,
    regions,
)
from captum_causalseg.attr import progress

IMAGES, BANK = pixels(40, 32, count=2), PatchBank(pixels(40, 32, count=30))
OPTIONS = {"block_size": 8, "n_draws": 8, "show_progress": True, "return_statistics": True}


@pytest.fixture(autouse=True)
def every_change(monkeypatch):
    """Everything is written, however soon."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_IN_FILES", 0.0)


def target(model, roi=None, **options):
    roi = regions.box((40, 32), start=12, size=4) if roi is None else roi
    return SegmentationTarget.from_prediction(model, IMAGES, roi=roi, metric="soft_dice", **options)


def windowed():
    return WindowedModel.from_monai(SlidingWindowInferer(16, 4, overlap=0.5, mode="gaussian"), Local())


def two():
    return torch.stack([regions.box((40, 32), start=4, size=4), regions.box((40, 32), start=(32, 24), size=4)])


def in_windows():
    model = windowed()
    return LayerAverageTreatmentEffect(target(model), model.network.first)


def layer_in_groups():
    model = Local()
    return LayerAverageTreatmentEffect(target(model, two()), model.first)


ALL = {"n_screening_draws": 0}
CASES = {
    "images": (lambda: AverageTreatmentEffect(target(Local())), {"support": None, **ALL}),
    "a window": (lambda: AverageTreatmentEffect(target(Local())), ALL),
    "groups": (lambda: AverageTreatmentEffect(target(Local(), two())), {"target": (1, 0), **ALL}),
    "windows": (lambda: AverageTreatmentEffect(target(windowed())), ALL),
    "controls": (lambda: AverageTreatmentEffect(target(windowed())), {"controls": "edge"}),
    "controls of images": (lambda: AverageTreatmentEffect(target(Local())), {"controls": "edge"}),
    "controls of groups": (lambda: AverageTreatmentEffect(target(Local(), two())), {"target": (1, 0), "controls": "edge"}),
    "screened": (lambda: AverageTreatmentEffect(target(Local())), {"screening_threshold": 0.01}),
    "a goal": (lambda: AverageTreatmentEffect(target(windowed())), {"precision": 0.02}),
    "in context": (lambda: JointTreatmentEffect(target(windowed())), {}),
    "in context, of images": (lambda: JointTreatmentEffect(target(Local())), {}),
    "blocks of a layer in windows": (in_windows, {"units": "block", **ALL}),
    "channels of a layer in windows": (in_windows, {"units": "channel", "block_size": None, **ALL}),
    "blocks of a layer in groups": (layer_in_groups, {"target": (1, 0), "units": "block", "support": "always", **ALL}),
    "one mediator": (lambda: MediatedTreatmentEffect(target(Local()), "first"), ALL),
    "mediators": (lambda: MediatedTreatmentEffect(target(Local()), ["first", "second"]), {"screening_threshold": 0.01}),
    "mediators of a stochastic model": (
        lambda: MediatedTreatmentEffect(target(nn.Sequential(nn.Dropout(0.2), Local()), n_samples=2), "1.first"),
        {"n_draws": 4, "block_size": 16},
    ),
    "stochastic": (
        lambda: AverageTreatmentEffect(target(nn.Sequential(nn.Dropout(0.2), Local()), n_samples=2)),
        {"n_draws": 4, "block_size": 16},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_no_more_is_run_than_was_said_and_the_bar_runs_forwards(name, capfd):
    face, options = CASES[name]
    face = face()
    donors = pixels(40, 32, count=30) if isinstance(face, LayerAverageTreatmentEffect) else BANK
    _, stats = face.attribute(IMAGES, donors, **{"target": 1} | OPTIONS | options)
    said = capfd.readouterr().err
    before, most, noun = re.search(r"attribution: (\d+) ([a-z ]+) so far, at most (\d+) to come", said).group(1, 3, 2)
    assert noun == ("windows" if "windows" in stats.settings else "forward passes")
    assert ", about " in said
    counts = [(int(n), int(total)) for n, total in re.findall(r"\| (\d+)/(\d+) ", said)]
    shares = [n / total for n, total in counts]
    assert shares == sorted(shares)
    assert counts[0] == (0, int(most))
    assert shares[-1] == 1
    forwards = stats.settings["forwards"]
    looked = forwards["answered again"]
    # When all is done, it is looked again whether answers can be compared: that is no progress.
    assert int(before) + counts[-1][0] < stats.n_forwards <= int(before) + int(most)
    if "stochastic" not in name:
        assert stats.n_forwards - int(before) - counts[-1][0] <= looked // 2
    if name in ("images", "a window", "groups", "windows"):
        # It is known to the last one, but for the looks.
        assert counts[-1][0] == forwards.get("windows", forwards.get("interventions"))
        assert counts[-1][0] < int(most) < counts[-1][0] + looked


def test_in_a_file_the_bar_is_written_a_few_times_only(monkeypatch, capfd):
    monkeypatch.undo()
    _, stats = AverageTreatmentEffect(target(Local())).attribute(IMAGES, BANK, 1, perturbations_per_eval=1, **OPTIONS)
    assert stats.settings["batch_size"] > 0
    said = capfd.readouterr().err
    assert said.count("\r") < 15
    assert said.count("\n") == 2


def test_what_is_done_before_the_interventions_is_said(capfd):
    AverageTreatmentEffect(target(Local())).attribute(IMAGES, BANK, 1, **OPTIONS)
    said = capfd.readouterr().err
    places = [said.index(what) for what in ("observed score", "what can reach the RoI", "ranking donors", "compared", "so far")]
    assert places == sorted(places)
