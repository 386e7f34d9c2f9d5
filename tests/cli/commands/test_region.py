"""`causalseg region`, as a person meets it."""

import dataclasses
import json
import math
import re
from pathlib import Path

import bundle_cases
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import on_picture, on_scan
from PIL import Image

from captum_causalseg import cli, sufficient_region
from captum_causalseg.cli.found_regions import region_rows, said_of

SOFT = ("--metric", "soft_dice")


@pytest.mark.parametrize("kind", ["sufficient", "necessary"])
def test_all_files_say_the_same_of_a_picture(place, capsys, kind):
    _, name = place
    more = ["--label", "mask.png", "--donors", "donors", *SOFT, "--kind", kind, "--share", "0.7", "--of-score"]
    # Half of the score is from the region of interest, which is kept.
    more += ["--units", "4", "--alternatives", "1"]
    assert cli.main(on_picture(name, *more, command="region")) == 0
    (found, *_), settings = (
        json.loads(Path("out/region.json").read_text(encoding="utf-8"))[part] for part in ("regions", "settings")
    )
    table = pd.read_csv("out/regions.csv")
    assert table["kind"].tolist() == [kind] * len(table)
    assert settings["share_of"] == "score"
    assert found["share_reached"] == pytest.approx(table["share_reached"][0])
    units = pd.read_csv("out/units.csv")
    expected = np.zeros((24, 32), dtype=np.uint8)
    for row in units[units["region"] == 0].itertuples():
        expected[row.start_0 : row.stop_0, row.start_1 : row.stop_1] = 255
        assert row.unit == row.start_0 // 4 * 8 + row.start_1 // 4
    assert np.array_equal(np.asarray(Image.open("out/mask.png")), expected)
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert f"Of this soft Dice, {found['share_reached']:.3f} is {'kept' if kind == 'sufficient' else 'lost'}; 0.7 was" in html
    said = capsys.readouterr().out
    assert f"{found['share_reached']:.3f} [" in said
    assert ("yes" in said) == found["reached"]


def test_the_labels_of_a_scan_are_the_region_and_its_alternatives(place, capsys):
    _, name = place
    more = ["--kind", "necessary", "--alternatives", "2", "--share", "0.3", *SOFT, "--draws", "6"]
    assert cli.main(on_scan(name, *more, command="region")) == 0
    written = nibabel.load("out/region.nii.gz")
    labels = np.asarray(written.dataobj)
    assert labels.shape == (16, 16, 8)
    assert np.array_equal(written.affine, nibabel.load("scan.nii.gz").affine)
    table, units = pd.read_csv("out/regions.csv"), pd.read_csv("out/units.csv")
    assert len(table) == labels.max()
    for number in range(len(table)):
        assert (labels == number + 1).sum() == 4 * 4 * 2 * table["n_units"][number]
        assert (units["region"] == number).sum() == table["n_units"][number]
    for row in units.itertuples():
        inside = labels[row.start_0 : row.stop_0, row.start_1 : row.stop_1, row.start_2 : row.stop_2]
        assert (inside == row.region + 1).all()
    said = capsys.readouterr().out
    first = units.iloc[0]
    assert f"{first.start_0}-{first.stop_0 - 1} x {first.start_1}-{first.stop_1 - 1}" in said


def test_a_bundle_that_runs_in_windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = bundle_cases.network(2).state_dict()
    bundle_cases.write(tmp_path / "bundle", weights, inference=bundle_cases.inference(2))
    (tmp_path / "donors").mkdir()
    generator = np.random.default_rng(0)
    for name in ("scan", *(f"donors/{k}" for k in range(4))):
        nibabel.save(nibabel.Nifti1Image(generator.uniform(0, 100, (32, 24)).astype("float32"), np.eye(4)), f"{name}.nii.gz")
    given = ["--bundle", "bundle", "--image", "scan.nii.gz", "--roi", "box:4,4+8", "--donors", "donors", *SOFT, "--private"]
    assert cli.main(["region", *given, "--draws", "2", "--max-forwards", "80", "--out", "out"]) == 0
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert "Forward passes of one window" in html
    assert "scan" not in re.sub("scan's|prepared", "", html)


class Brightest(torch.nn.Module):
    """The value of the brightest pixel."""

    def forward(self, image):
        return image.flatten(1).amax(1)


@pytest.mark.parametrize("share", [-0.0, float("nan")])
def test_a_share_of_a_span_that_is_not_told_from_0_is_not_known(share):
    found = sufficient_region(Brightest(), torch.ones(1, 1, 1, 2), 0.0, block_size=1, exclude=None)
    found = dataclasses.replace(
        found, share_reached=share, share_interval=(-math.inf, math.inf), reached=False, reason="so it is"
    )
    ((_, _, said, *_),) = region_rows(found)
    assert said == "not known"
    assert not any("asked for" in sentence for sentence in said_of(found, "dice"))
