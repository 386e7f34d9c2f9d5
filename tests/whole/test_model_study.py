"""The example that compares architectures: its pieces by hand, and a tiny run that is interrupted and goes on."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from captum_causalseg import TreatmentEffectStatistics, regions
from captum_causalseg.demo import BrainSlices

FILE = Path(__file__).resolve().parents[2] / "examples" / "model_study.py"


@pytest.fixture(scope="module")
def study():
    specification = importlib.util.spec_from_file_location("model_study", FILE)
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their module up.
    sys.modules["model_study"] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)  # as for the script, which imports its neighbors
        specification.loader.exec_module(module)
    yield module
    for name in ("model_study", "study_networks", "study_report"):
        del sys.modules[name]


def run(study, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["model_study.py", "--threads", str(torch.get_num_threads()), *map(str, arguments)])
    study.main()


@pytest.mark.parametrize(
    "name",
    [
        *("UNet", "UNet, batch norm", "BasicUNetPlusPlus", "SegResNet", "AttentionUnet", "DynUNet", "FlexibleUNet"),
        *("SwinUNETR", "UNETR"),
    ],
)
def test_every_architecture_is_built_alike_each_time_and_segments(study, name):
    network = study.ARCHITECTURES[name].build()
    torch.rand(1)
    before = torch.get_rng_state()
    again = study.ARCHITECTURES[name].build()
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(network.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)
    assert not network.training
    with torch.no_grad():
        assert network(torch.rand(1, 1, *study.SIZE)).shape == (1, 3, *study.SIZE)


def test_no_architecture_was_left_out_of_the_test_above(study):
    assert len(study.ARCHITECTURES) == 9


def test_two_by_two_pixels_become_one(study):
    images = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 6.0, 0.0, 4.0]])[None, None]
    # Three to one; two to two, where the lower right pixel decides.
    labels = torch.tensor([[1, 1, 0, 2], [1, 2, 2, 0]])[None]
    half = study.halved(BrainSlices(images, labels, torch.zeros(1)))
    assert half.images.tolist() == [[[[3.0, 1.0]]]]
    assert half.labels.tolist() == [[[1, 0]]]
    labels[0, 1, 2:] = torch.tensor([0, 2])
    assert study.halved(BrainSlices(images, labels, torch.zeros(1))).labels.tolist() == [[[1, 2]]]


def test_boxes_lie_where_both_tissues_are_at_the_side_that_was_asked_for(study):
    # A brain of 64 x 48 whose left half is grey and right half white: only boxes across the border hold both.
    labels = torch.zeros(128, 96, dtype=torch.long)
    labels[32:96, 24:48], labels[32:96, 48:72] = 1, 2
    rois = study.rois_of(labels, ("front", "back", "middle"), block=8)
    corners = [roi.nonzero().min(0).values.tolist() for roi in rois]
    assert corners == [[24, 40], [88, 40], [56, 40]]
    for roi in rois:
        assert roi.sum() == 256
        assert 0.25 <= (labels[roi] == 1).double().mean() <= 0.75
        assert (labels[roi] == 2).double().mean() >= 0.1
    assert rois.sum(0).max() == 1


def made(study, **columns):
    """A study of two networks on two slices with one RoI, in which only what is given is filled in."""
    rows = pd.DataFrame({"model": ["a", "a", "b", "b"], "slice": ["low", "high"] * 2, "roi": "front"})
    rows = rows.assign(**dict.fromkeys([*sys.modules["study_report"].MEASURES, "even_radius_50"], 0.0)).assign(**columns)
    rings = rows.loc[rows.index.repeat(2), ["model", "slice", "roi"]].reset_index(drop=True).assign(bin=[1, 2] * 4)
    return rows, rings


def test_cumulative_shares_are_means_over_cases_but_energies_are_added_up_first(study):
    rows, rings = made(study)
    rings = rings.assign(
        n_units=[1.0, 3.0] * 4, mass=[1.0, 1.0, 30.0, 10.0] + [1.0] * 4, energy=[4.0, -1.0, 5.0, 2.0] + [1.0] * 4
    )
    found = study.Study(pd.DataFrame(), rows, rings)
    assert found.cumulative("a", "mass").to_dict() == {1: (1 / 2 + 3 / 4) / 2, 2: 1.0}
    assert found.cumulative("a", "energy").to_dict() == {1: 0.9, 2: 1.0}
    assert found.cumulative("a", "n_units").to_dict() == {1: 0.25, 2: 1.0}


def test_spread_between_networks_and_slices(study):
    rows, rings = made(study, share_null=[0.1, 0.3, 0.6, 0.8], radius_50=[1.0, 4.0, 2.0, 3.0], share_within_2=[0, 0, 1, 1])
    found = study.Study(pd.DataFrame(), rows, rings)
    spread = found.spread()
    # Means of 0.2 and 0.7 for the networks, 0.35 and 0.55 for the slices, differences of 0.2 within each network.
    half = np.sqrt(0.5)
    np.testing.assert_allclose(spread.loc["share_null", ["models", "slices", "common"]], [0.5 * half, 0.2 * half, 0.2 * half])
    assert spread.loc["share_null", "rank_correlation"] == pytest.approx(1)
    np.testing.assert_allclose(spread.loc["radius_50", ["models", "slices", "common"]], [0, np.sqrt((9 + 1) / 4), 2 * half])
    assert spread.loc["radius_50", "rank_correlation"] == pytest.approx(-1)
    assert found.order == ["b", "a"]


def test_files_are_whole_or_not_there(study, tmp_path):
    def fails(part):
        part.write_text("half")
        raise OSError("the disk is full")

    study.keep(tmp_path / "folder" / "file.txt", lambda part: part.write_text("whole"))
    with pytest.raises(OSError, match="full"):
        study.keep(tmp_path / "folder" / "file.txt", fails)
    assert (tmp_path / "folder" / "file.txt").read_text() == "whole"


def test_a_tiny_run_is_resumed_and_writes_the_tables_and_the_picture(study, monkeypatch, tmp_path, capsys):
    pytest.importorskip("nilearn")
    # The same slices for every run: reading them takes longest.
    monkeypatch.setattr(study, "load_brain_slices", functools.cache(study.load_brain_slices))
    arguments = ("--quick", "--models", "UNet", "UNet, batch norm", "--out", tmp_path / "out", "--write", tmp_path / "docs")
    run(study, monkeypatch, *arguments)
    text = capsys.readouterr().out
    page = tmp_path / "docs" / "benchmarks" / "model_study.md"
    assert page.read_text() == text[:-1]
    assert "**Quick settings: the numbers mean nothing.**" in text
    assert (tmp_path / "docs" / "_static" / "model_study.png").read_bytes().startswith(b"\x89PNG")
    table = next((tmp_path / "out").glob("rows_*.csv"))
    rows = pd.read_csv(table)
    assert rows.groupby(["model", "roi"]).size().to_dict() == {
        (model, roi): 1 for model in ("UNet", "UNet, batch norm") for roi in ("front", "left")
    }
    # Instance norm carries every change everywhere; batch norm does not, and its network does not see the whole image.
    reached = rows.groupby("model")["share_reached"].max()
    assert reached["UNet"] == 1
    assert reached["UNet, batch norm"] < 1
    np.testing.assert_allclose(rows[["share_supporting", "share_harming", "share_null"]].sum(axis=1), 1)

    # All is there: nothing is trained or explained again, and the same is written.
    did = []
    for name in ("fit", "AverageTreatmentEffect"):
        original = getattr(study, name)
        monkeypatch.setattr(
            study,
            name,
            lambda *given, _name=name, _original=original, **more: (did.append(_name), _original(*given, **more))[1],
        )
    run(study, monkeypatch, *arguments)
    assert capsys.readouterr().out == text
    assert did == []

    # Interrupted before the effects of one network were whole: they are estimated again, to the same numbers.
    record = next((tmp_path / "out").glob("UNet_batch_norm_*/effects_*/*.json"))
    record.unlink()
    run(study, monkeypatch, *arguments)
    assert did == ["AverageTreatmentEffect"]
    pd.testing.assert_frame_equal(pd.read_csv(table), rows)


def test_files_of_other_settings_have_other_names(study, monkeypatch, tmp_path):
    did = []
    monkeypatch.setattr(study, "fit", lambda network, *given, **more: did.append(more["steps"]))
    slices = BrainSlices(torch.rand(2, 1, *study.SIZE), torch.randint(0, 3, (2, *study.SIZE)), torch.zeros(2))
    quick = study.Settings.quick()
    longer = study.Settings({**quick.training, "steps": 3}, quick.explanation)
    more_draws = study.Settings(quick.training, {**quick.explanation, "n_draws": 3})
    folders = [
        study.trained(name, slices, slices, tmp_path, settings)[1]
        for name, settings in (("UNet", quick), ("UNet", longer), ("UNet", more_draws), ("SegResNet", quick))
    ]
    assert did == [2, 3, 2]
    assert folders[0] == folders[2]
    assert len(set(folders)) == 3

    case = study.Case("z+0", "z = 0 mm", slices.images[:1], slices.labels[0], regions.box(study.SIZE, (48, 32), 16)[None])
    network, folder = study.trained("UNet", slices, slices, tmp_path, quick)
    for settings in (quick, more_draws, longer):
        study.explained(network, case, slices, folder, settings)
    draws = sorted(int(TreatmentEffectStatistics.load(file).n_draws.max()) for file in folder.glob("effects_*/z+0.npz"))
    assert draws == [3, 4]


def test_norms_are_told_apart(study, tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"dice": {"grey matter": 0.5}, "seconds": 1.0}))
    network = nn.Sequential(nn.InstanceNorm2d(3), nn.LayerNorm(3))
    scores = type("Statistics", (), {"observed_score": torch.full((1, 3, 2), 0.25), "n_forwards": 7})
    about = study.describe("UNETR", network, tmp_path, [(scores, {"seconds": 2.0})] * 2)
    assert about["norm"] == "instance + layer"
    assert (about["dice"], about["roi_dice"], about["forwards"], about["seconds"]) == (0.5, 0.25, 14, 4.0)
    assert study.describe("UNETR", nn.BatchNorm2d(3), tmp_path, [(scores, {"seconds": 2.0})])["norm"] == "batch"
