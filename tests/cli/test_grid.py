"""Bundles whose pre-processing changes the grid: places are named, and results written, in the scan's own voxels.

The networks look at a single place: their output at a voxel is the image some way from it. Which voxels of the scan have an effect is
therefore known beforehand, from the world coordinates alone.
"""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from captum_causalseg import cli
from captum_causalseg.bundle import load_bundle
from captum_causalseg.preparation.grid import Grids, grids_of_bundle

nibabel = pytest.importorskip("nibabel")
pillow = pytest.importorskip("PIL.Image")

# Voxel (i, j, k) lies at x = 100 - i, y = -50 + j, z = 20 + 3 k millimeters: the first axis runs to the left.
AFFINE = np.array([[-1.0, 0, 0, 100], [0, 1, 0, -50], [0, 0, 3, 20], [0, 0, 0, 1]])
SHAPE = (16, 12, 8)
LOADING = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
# Axes turned, and voxels of 3 x 3 x 1 mm: at x = 85, 88, ... (i = 15, 12, ...), y = -50, -47, ... and z = 20, 21, ...
TURNING = [
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [3.0, 3.0, 1.0]},
]
# x = 85 mm and z = 40, 41 mm are cut away: the voxels i > 13 and k > 6. Then as much and more is padded on both sides of each axis.
CROPPING = [
    {"_target_": "SpatialCropd", "keys": "image", "roi_start": [1, 0, 0], "roi_end": [6, 5, 20]},
    {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [7, 9, 24]},
]


def looks_elsewhere(shift, outputs=1):
    """A convolution whose output at a place is the image ``shift`` further, along each axis of the prepared image."""
    size = 2 * max(map(abs, shift)) + 1
    convolution = (torch.nn.Conv2d if len(shift) == 2 else torch.nn.Conv3d)(1, outputs, size, padding=size // 2)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.fill_(-5)
        convolution.weight[(outputs - 1, 0, *(size // 2 + step for step in shift))] = 10
    return convolution


def write_bundle(folder, preprocessing, shift, outputs=1):
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True)
    network = looks_elsewhere(shift, outputs)
    named = {"in_channels": 1, "out_channels": outputs, "kernel_size": network.kernel_size[0], "padding": network.padding[0]}
    config = {"network_def": {"_target_": f"torch.nn.{type(network).__name__}", **named}, "preprocessing": preprocessing}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(network.state_dict(), folder / "models" / "model.pt")


def write(values, name, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(values, affine), name)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A scan, donors, and a bundle whose network looks 6 mm further up."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    write(generator.random(SHAPE, dtype=np.float32), "scan.nii.gz")
    (tmp_path / "donors").mkdir()
    for number in range(3):
        write(generator.random(SHAPE, dtype=np.float32), f"donors/{number}.nii.gz")
    write_bundle(tmp_path / "bundle", [*LOADING, *TURNING, *CROPPING], shift=(0, 0, 6))
    return tmp_path


def explain(*more, roi="box:6,3,2+6,3,1", units="6x3x1", image="scan.nii.gz"):
    arguments = ["explain", "--bundle", "bundle", "--image", image, "--roi", roi, "--donors", "donors"]
    return [
        *arguments,
        "--metric",
        "probability_mean",
        *(["--units", units] if units else []),
        "--draws",
        "3",
        "--out",
        "out",
        *more,
    ]


def box(slices):
    found = np.zeros(SHAPE, dtype=bool)
    found[slices] = True
    return found


# Two slices of 3 mm further up.
REGION, SEEN = np.s_[6:12, 3:6, 2:3], np.s_[6:12, 3:6, 4:5]
SEEN_TEXT = "6-11 x 3-5 x 4-4"


def test_effects_lie_where_the_network_looked(place, capsys):
    assert cli.main(explain()) == 0
    written = nibabel.load("out/effects.nii.gz")
    np.testing.assert_array_equal(written.affine, AFFINE)
    found = written.get_fdata()
    assert found.shape == SHAPE
    # Nothing is known of what was cut away, though there is padding now, nor of the region of interest.
    unknown = box(np.s_[14:]) | box(np.s_[:, :, 7]) | box(REGION)
    np.testing.assert_array_equal(nibabel.load("out/standard_error.nii.gz").get_fdata() == -1, unknown)
    np.testing.assert_array_equal(found != 0, box(SEEN))

    table = pd.read_csv("out/effects.csv")
    seen = table[table["effect"].abs() > 0]
    assert len(seen) == 1
    corners = seen[["start_0", "stop_0", "start_1", "stop_1", "start_2", "stop_2"]].to_numpy().ravel().tolist()
    assert corners == [6, 12, 3, 6, 4, 5]
    assert seen["effect"].item() == pytest.approx(found[SEEN].mean())
    printed = capsys.readouterr().out
    assert re.search(rf"(raises|lowers) +{SEEN_TEXT} ", printed)
    assert "places: in voxels of the image file, counted from 0 (axes as in the file)" in printed
    html = (place / "out" / "report.html").read_text(encoding="utf-8")
    assert f"<td>{SEEN_TEXT}</td>" in html
    assert "scan.nii.gz (16 x 12 x 8 voxels, prepared: 7 x 9 x 24, 1 channel(s))" in html
    # x = 91, 94 mm; y = -47 mm; z = 25, 26, 27 mm.
    assert "box:6,3,2+6,3,1, 18 voxels of the image file, 6 of the prepared image</dd>" in html


def prepared_roi():
    """The same region on the prepared grid, from where its voxels lie in the world."""
    affine = np.diag([3.0, 3.0, 1.0, 1.0])
    # One, two and two voxels of padding; one that was cut away.
    affine[:3, 3] = 85 + 3 - 3, -50 - 6, 20 - 2
    indices = np.concatenate([np.indices((7, 9, 24)), np.ones((1, 7, 9, 24))])
    centers = np.einsum("ab,b...->a...", affine, indices)
    low, high = (88.5, -47.5, 24.5), (94.5, -44.5, 27.5)
    inside = np.all([(low[a] < centers[a]) & (centers[a] < high[a]) for a in range(3)], axis=0)
    assert inside.sum() == 6
    return inside.astype(np.uint8), affine


@pytest.mark.parametrize("way", ["file", "file on the prepared grid", "label", "label on the prepared grid", "point"])
def test_regions_and_labels_on_either_grid(quick, way):
    write(box(REGION).astype(np.uint8), "own.nii.gz")
    values, affine = prepared_roi()
    write(values, "prepared.nii.gz", affine)
    label = "prepared.nii.gz" if "prepared" in way else "own.nii.gz"
    roi = label if way.startswith("file") else "point:7,4,2" if way == "point" else "label:1"
    more = [] if way.startswith("file") else ["--label", label, "--metric", "soft_dice"]
    assert cli.main(explain(*more, roi=roi)) == 0
    found = np.nan_to_num(nibabel.load("out/effects.nii.gz").get_fdata())
    np.testing.assert_array_equal(found != 0, box(SEEN))


def test_the_label_is_compared_with_where_it_lies(quick, capsys):
    """The network finds what lies 6 mm further up: a label that has been moved down by as much is its own prediction."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[2:10, 2:8, 4:6] = 1
    write(values, "scan.nii.gz")
    for slices, least, most in ((-2, 1, 1), (2, 0, 0)):
        write(np.roll(values, slices, axis=2).astype(np.uint8), "label.nii.gz")
        assert cli.main(explain("--label", "label.nii.gz", "--metric", "dice", roi="label:1", units="4x4x1")) == 0
        assert least <= float(re.search(r"is (\d\.\d+)", capsys.readouterr().out)[1]) <= most


@pytest.mark.parametrize("on", ["own", "prepared"])
def test_units_of_a_file(quick, on):
    """Two units: the slice where the network looks, and the rest."""
    if on == "own":
        units = np.full(SHAPE, 3, dtype=np.uint8)
        units[:, :, 4] = 8
        write(units, "units.nii.gz")
    else:
        # z = 31, 32 and 33 mm.
        units = np.full((7, 9, 24), 3, dtype=np.uint8)
        units[:, :, 13:16] = 8
        write(units, "units.nii.gz", prepared_roi()[1])
    assert cli.main(explain(units="units.nii.gz")) == 0
    table = pd.read_csv("out/effects.csv")
    seen = table[table["effect"].abs() > 0]
    assert seen[["start_0", "stop_0", "start_1", "stop_1", "start_2", "stop_2"]].to_numpy().tolist() == [[0, 14, 0, 12, 4, 5]]
    found = np.nan_to_num(nibabel.load("out/effects.nii.gz").get_fdata())
    np.testing.assert_array_equal(found != 0, box(np.s_[:14, :, 4]))


def test_default_blocks_are_of_the_usual_size_for_the_network(quick):
    write_bundle(quick / "fine", [*LOADING, TURNING[0], TURNING[1] | {"pixdim": [0.5, 0.25, 4.0]}], shift=(0, 0, 1))
    assert cli.main(explain("--bundle", "fine", roi="box:0,0,0+1", units=None)) == 0
    html = (quick / "out" / "report.html").read_text(encoding="utf-8")
    assert "blocks of 4 x 2 x 8 voxels of the image file" in html


def test_what_was_cut_away_is_said(quick, capsys):
    assert cli.main(explain(roi="box:12,3,2+4,3,1")) == 0
    said = html.unescape((quick / "out" / "report.html").read_text(encoding="utf-8"))
    assert "pre-processing cut away 6 of the file's" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--roi", "box:14,0,0+2,4,4"],
            r"--roi: box:14,0,0\+2,4,4 lies outside of what the pre-processing leaves of the image, 0-13 x 0-11 x 0-6 of its voxels",
        ),
        (["--roi", "box:0,0,0+16,4,19"], r"--roi: the box 0..19 leaves axis 2 of the image, which has 8 pixels"),
        (["--roi", "point:15,4,2"], r"--roi: point:15,4,2 was cut away by the pre-processing"),
        (["--roi", "point:4,4,8"], r"--roi: \(4, 4, 8\) is no position in an image of shape \(16, 12, 8\)"),
        (["--roi", "point:4,0,5"], r"--roi: the label map or prediction is 0 at \(4, 0, 5\)"),
        (["--label", "moved.nii.gz"], r"--label: it is not on the image's grid"),
        (["--units", "moved.nii.gz"], r"--units: it is not on the image's grid"),
        (["--bundle", "away"], r"--image: the pre-processing of .*away moves scan.nii.gz to where none of its voxels are left"),
    ],
)
def test_places_that_cannot_be_used(quick, capsys, more, message):
    moved = AFFINE.copy()
    moved[0, 3] += 1
    write(box(REGION).astype(np.uint8), "moved.nii.gz", moved)
    # Only padding is left.
    away = [
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [40, 12, 8]},
        {"_target_": "SpatialCropd", "keys": "image", "roi_start": [0, 0, 0], "roi_end": [10, 12, 8]},
    ]
    write_bundle(quick / "away", [*LOADING, *away], shift=(0, 0, 1))
    assert cli.main(explain(*more)) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1
    assert re.match(f"causalseg explain: error: {message}", lines[0]), lines[0]
    assert not (quick / "out").exists()


@pytest.mark.parametrize("shape", [(20, 32), (32, 32)])
def test_pictures_that_the_bundle_s_loader_turns(tmp_path, monkeypatch, shape):
    """MONAI reads pictures as columns x rows; here a quarter as large, and looked at 3 pixels further right."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    (tmp_path / "donors").mkdir()
    for name in ("image.png", "donors/0.png", "donors/1.png"):
        pillow.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(name)
    scaling = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1}
    resizing = {"_target_": "Resized", "keys": "image", "spatial_size": [shape[1] // 4, shape[0] // 4]}
    write_bundle(tmp_path / "bundle", [*LOADING, scaling, resizing], shift=(3, 0))
    mask = np.zeros(shape, dtype=np.uint8)
    mask[8:12, 4:8] = 255
    pillow.fromarray(mask).save("roi.png")
    for roi in ("box:8,4+4", "roi.png"):
        assert cli.main(explain(image="image.png", roi=roi, units="4")) == 0
        table = pd.read_csv("out/effects.csv")
        seen = table[table["effect"].abs() > 0]
        assert seen[["start_0", "stop_0", "start_1", "stop_1"]].to_numpy().tolist() == [[8, 12, 16, 20]]
    assert not (tmp_path / "out" / "effects.nii.gz").exists()
    assert "rows x columns" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_picture_that_is_only_turned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pillow.fromarray(np.zeros((6, 6), dtype=np.uint8)).save("image.png")
    write_bundle(tmp_path / "bundle", LOADING, shift=(1, 0))
    bundle = load_bundle("bundle")
    grids = grids_of_bundle(bundle, tmp_path / "image.png", bundle.prepare("image.png"))
    assert grids.differ
    values = torch.arange(36).reshape(6, 6)
    assert torch.equal(grids.to_prepared(values), values.T)
    assert torch.equal(grids.to_own(values), values.T)
    assert grids.prepared_index((1, 4)) == (4, 1)
    assert torch.equal(torch.from_numpy(grids.own_indices()), torch.from_numpy(np.indices((6, 6)))[[1, 0]].mT.mT)


DROPPED = {"_target_": "EnsureTyped", "keys": "image", "track_meta": False}


def test_pre_processing_that_drops_the_geometry(quick, capsys):
    """As long as nothing has been moved, the grid is that of the file; else places are those of the prepared image, and files are refused."""
    write_bundle(quick / "still", [*LOADING, DROPPED], shift=(0, 0, 2))
    assert cli.main(explain("--bundle", "still")) == 0
    np.testing.assert_array_equal(nibabel.load("out/effects.nii.gz").affine, AFFINE)
    write_bundle(quick / "moved", [*LOADING, *TURNING, DROPPED], shift=(0, 0, 4))
    assert cli.main(explain("--bundle", "moved", "--out", "again", roi="box:2,2,4+2", units="2")) == 0
    assert not (quick / "again" / "effects.nii.gz").exists()
    assert "in voxels of the prepared image" in capsys.readouterr().out
    write(box(REGION).astype(np.uint8), "own.nii.gz")
    assert cli.main(explain("--bundle", "moved", "--out", "third", roi="own.nii.gz", units="2")) == 2
    assert re.match(
        r"causalseg explain: error: --roi: own.nii.gz cannot be laid over the prepared image", capsys.readouterr().err
    )


def test_carrying_there_and_back():
    """Voxels half as large, turned, and cropped by one file voxel on the side that is turned."""
    own, prepared = torch.zeros(1, 1, 4, 3), torch.zeros(1, 1, 6, 6)
    # Prepared (a, b) is file (3 - (a + 2) / 2 + 1/4, b / 2 - 1/4).
    grids = Grids(own, prepared, picture=True, matrix=np.array([[-0.5, 0, 2.25], [0, 0.5, -0.25], [0, 0, 1]]))
    values = torch.arange(12).reshape(4, 3)
    carried = values.flip(0)[1:].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(grids.to_prepared(values), carried)
    assert grids.kept().tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert torch.equal(grids.to_own(carried, -1), torch.where(grids.kept(), values, -1))
    assert grids.kept_box() == [(0, 2), (0, 2)]
    assert grids.own_per_prepared.tolist() == [0.5, 0.5]
    assert grids.prepared_index((3, 0)) is None


@pytest.mark.parametrize("command", ["compare", "refute"])
def test_the_other_commands(place, command):
    assert cli.main([command, *explain()[1:]]) == 0
    assert (place / "out" / "report.html").is_file()
    if command == "refute":
        found = np.nan_to_num(nibabel.load("out/effects.nii.gz").get_fdata())
        np.testing.assert_array_equal(found != 0, box(SEEN))
