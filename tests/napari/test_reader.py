"""Files as layers: axes and values as the file has them."""

import numpy as np
import pytest
from PIL import Image

from captum_causalseg.napari.reader import find_reader, read
from captum_causalseg.napari.samples import brain

nibabel = pytest.importorskip("nibabel")


def test_a_scan_lies_where_its_affine_says(tmp_path):
    values = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    affine = np.array([[-1.0, 0, 0, 100], [0, 2, 0, -50], [0, 0, 3, 20], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    ((found, arguments, kind),) = find_reader(str(tmp_path / "scan.nii.gz"))(str(tmp_path / "scan.nii.gz"))
    assert kind == "image"
    assert np.array_equal(found, values)
    assert np.array_equal(arguments.pop("affine"), affine)
    assert arguments == {"name": "scan.nii.gz", "rgb": False}


def test_of_a_tilted_scan_only_the_edges_of_voxels_are_kept(tmp_path):
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), dtype=np.float32), affine), tmp_path / "scan.nii.gz")
    ((_, arguments, _),) = read(str(tmp_path / "scan.nii.gz"))
    assert arguments["scale"].tolist() == pytest.approx([2, 2, 1])
    assert "affine" not in arguments


def test_pictures_have_rows_columns_and_colors(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "color.png")
    Image.fromarray(colors[..., 0]).save(tmp_path / "gray.png")
    ((found, arguments, _),) = read(str(tmp_path / "color.png"))
    assert np.array_equal(found, colors)
    assert found.dtype == np.uint8
    assert arguments == {"name": "color.png", "rgb": True}
    ((found, arguments, _),) = read(str(tmp_path / "gray.png"))
    assert np.array_equal(found, colors[..., 0])
    assert arguments["rgb"] is False


def test_nobody_reads_a_stack():
    assert find_reader(["a.png", "b.png"]) is None


def test_the_sample_is_a_brain_and_its_tissue():
    pytest.importorskip("nilearn")
    (image, _, _), (labels, _, kind) = brain()
    assert image.shape == labels.shape
    assert kind == "labels"
    assert sorted(np.unique(labels)) == [0, 1, 2]
