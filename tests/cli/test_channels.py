"""Effects of each channel (modality) on the command line."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from captum_causalseg import (
    AverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    TreatmentEffectStatistics,
    cli,
    regions,
    visualization,
)
from captum_causalseg.bundle import Bundle
from captum_causalseg.cli import job, report
from captum_causalseg.preparation.channels import Modalities, find_modalities
from captum_causalseg.preparation.image_files import BundlePreparation
from captum_causalseg.preparation.units import Units

# The red channel alone is looked at.
RED = """
import torch

def red():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, padding=1))
    with torch.no_grad():
        network[0].weight[:, 1:] = 0
    return network
"""


@pytest.fixture
def color(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"nets_{tmp_path.name}_{tmp_path.parent.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(RED)
    generator = np.random.default_rng(0)
    (tmp_path / "donors").mkdir()
    for file in ("image.png", "donors/0.png", "donors/1.png"):
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / file)
    given = ["--model", f"{name}:red", "--image", "image.png", "--normalize", "255", "--roi", "box:8,8+8", "--units", "8"]
    drawn = []

    def draw(*args, **options):
        one = (options["channel"], options["title"])
        if one not in drawn:  # a report has each of them for narrow screens as well
            drawn.append(one)
        return Figure()

    # Pictures take most of the time.
    monkeypatch.setattr(job, "plot_effects", draw)
    monkeypatch.setattr(visualization, "plot_comparison", draw)
    monkeypatch.setattr(report, "plot_profile", lambda *args, **options: Figure())
    return [*given, "--donors", "donors", "--metric", "logit_mean", "--draws", "3", "--out", "out"], drawn


def test_what_each_channel_does_is_in_table_picture_and_report(color, tmp_path, capsys):
    drawn = color[1]
    assert cli.main(["explain", *color[0], "--channels", "each"]) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv("out/effects.csv")
    table = table[(table["class"] == 1) & table["effect"].notna()]
    assert list(table["modality"].unique()) == ["channel 0", "channel 1", "channel 2"]
    assert bool((table.loc[table["channel"] > 0, "effect"] == 0).all())
    assert bool(table.loc[table["channel"] == 0, "effect"].abs().max() > 0.001)
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    assert stats.settings["channels"] == "each"
    mine = table[table["channel"] == 0]
    significant = int(stats.of_output(1).significant().sum())
    assert pytest.approx(mine["effect"].clip(lower=0).sum()) == stats.effect[0, :, 1].nan_to_num().clamp_min(0).sum()
    lines = printed.splitlines()
    assert any(line.split()[:4] == ["channel", "0", "8", str(significant)] for line in lines)
    assert "channel 0: " in printed
    # The report's own pictures have no file's name.
    assert [one for one in drawn if "image.png" in one[1]] == [(number, f"image.png, channel {number}") for number in range(3)]
    files = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert files == ["effects_channel_0.png", "effects_channel_1.png", "effects_channel_2.png"]
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for number in range(3):
        assert f"<h3>channel {number}</h3>" in html
    assert "blocks of 8 x 8 pixels, in each of channel 0, channel 1, channel 2 by itself" in html


def test_some_channels_are_replaced_together(color):
    assert cli.main(["explain", *color[0], "--channels", "1", "2"]) == 0
    table = pd.read_csv("out/effects.csv")
    assert list(table["modality"].unique()) == ["channel 1 + channel 2"]
    known = table.loc[table["class"] == 1, "effect"].dropna()
    assert len(known) == 8
    assert bool((known == 0).all())


def test_comparing_and_refuting_channel_by_channel(color, tmp_path):
    drawn = color[1]
    assert cli.main(["compare", *color[0], "--units", "channel_block"]) == 0
    files = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert [channel for channel, _ in drawn] == [0, 1, 2]
    assert files == ["comparison_channel_0.png", "comparison_channel_1.png", "comparison_channel_2.png"]
    assert cli.main(["refute", *color[0], "--channels", "each", "--refuters", "recompute"]) == 0
    assert (tmp_path / "out" / "effects_channel_0.png").is_file()


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("explain", ["T1"], "--channels: expected each, or some of 0..2, got 'T1'"),
        ("explain", ["3"], "--channels: expected each, or some of 0..2, got '3'"),
        ("compare", ["0"], "--channels: methods are compared on parts of the whole image, or of each channel by itself"),
        ("components", ["each"], "--channels: it is about parts of the image"),
        ("region", ["each"], "--channels: a region is found among parts of the image in all of its channels"),
    ],
)
def test_what_cannot_be_is_refused(color, capsys, command, words, said):
    assert cli.main([command, *color[0], "--channels", *words]) == 2
    assert said in capsys.readouterr().err


def test_names_and_numbers():
    names = ["T1", "T2", "FLAIR"]
    assert find_modalities(None, names, 3).asked is None
    assert find_modalities(["each"], names, 3).shown == [(0, "T1"), (1, "T2"), (2, "FLAIR")]
    chosen = find_modalities(["2", "T1"], names, 3)
    assert (chosen.asked, chosen.shown, chosen.described) == ((0, 2), [(0, "T1 + FLAIR")], "in T1 + FLAIR only")
    with pytest.raises(ValueError, match=r"expected each, or some of 0..2 \(T1, T2, FLAIR\), got 'PD'"):
        find_modalities(["PD"], names, 3)
    with pytest.raises(ValueError, match="expected an image of several channels, got one"):
        find_modalities(["each"], ["CT"], 1)
    assert find_modalities(["1"], ["T1"], 2).names == ("channel 0", "channel 1")  # names that do not fit
    of_files = Modalities("each", ("T1 (post)", "T1/post", "b"))
    assert [of_files.file_name("e", n, ".png") for n in range(3)] == ["e_0.png", "e_1.png", "e_b.png"]


def test_names_of_a_bundle():
    about = {"network_data_format": {"inputs": {"image": {"channel_def": {"1": "T2", "0": "T1"}}}}}
    bundle = Bundle("folder", torch.device("cpu"), torch.nn.Conv2d(2, 2, 1), None, None, None, about)
    assert BundlePreparation(bundle, None).channels == ("T1", "T2")


def test_the_map_of_each_channel_has_the_outlines_of_the_file():
    """On a file of twice the resolution, unit by unit and channel by channel."""

    class Grids:
        def to_own(self, values, outside):
            return values.repeat_interleave(2, 0).repeat_interleave(2, 1)

        def kept(self):
            return torch.ones(16, 16, dtype=torch.bool)

    image, mask = torch.rand(1, 2, 8, 8), regions.grid((8, 8), (4, 4))[None, None]
    target = SegmentationTarget.from_prediction(
        torch.nn.Conv2d(2, 2, 5, padding=2), image, roi=regions.box((8, 8), start=0, size=2), metric="soft_dice"
    )
    _, stats = AverageTreatmentEffect(target).attribute(
        image,
        PatchBank(torch.rand(3, 2, 8, 8)),
        1,
        feature_mask=mask,
        channels="each",
        exclude=None,
        n_draws=3,
        return_statistics=True,
    )
    own = regions.grid((16, 16), (8, 8))
    own[15, 15] = -1
    units = Units({"feature_mask": mask}, "blocks", own).of(Modalities("each", ("T1", "T2")))
    found = units.own_map(stats, 1, Grids())
    assert found.shape == (2, 16, 16)
    for channel in range(2):
        expected = stats.effect[0, own.clamp_min(0) * 2 + channel, 1]
        assert torch.equal(found[channel][own >= 0], expected[own >= 0].to(found.dtype))
    table = units.in_own_voxels(stats.of_output(1).to_dataframe())
    assert table["modality"].tolist() == ["T1", "T2"] * 4
    assert table["start_1"].tolist() == [0, 0, 8, 8] * 2
