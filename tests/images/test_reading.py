"""Images and labels read from files that other libraries wrote."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from image_files import OBLIQUE, VOLUME, write_nifti
from monai.data import MetaTensor

from captum_causalseg import images

nibabel = pytest.importorskip("nibabel")


def test_importing_the_module_does_not_import_monai():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, captum_causalseg.images; sys.exit('monai' in sys.modules)"], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["float32", ">i2", "uint8", "float64"])
def test_a_volume_keeps_its_values_axes_and_affine(tmp_path, ending, dtype):
    values = (10 * np.abs(VOLUME)).astype(dtype)
    image = images.load_image(str(write_nifti(tmp_path / f"scan{ending}", values)))
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    assert image.shape == (1, 1, 4, 5, 6)
    np.testing.assert_allclose(image.as_tensor()[0, 0], values.astype("float32"), rtol=1e-6)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def test_a_fourth_axis_is_channels_only_where_that_is_said(tmp_path):
    values = np.stack([VOLUME, 2 * VOLUME, -VOLUME], axis=-1)
    path = write_nifti(tmp_path / "series.nii.gz", values)
    with pytest.raises(
        ValueError,
        match=r"series\.nii\.gz holds 3 spatial axes and another of length 3; pass n_channels=3 if these are channels",
    ):
        images.load_image(path)
    with pytest.raises(ValueError, match=r"holds 3 channel\(s\), expected n_channels=4"):
        images.load_image(path, n_channels=4)
    image = images.load_image(path, n_channels=3)
    assert image.shape == (1, 3, 4, 5, 6)
    np.testing.assert_array_equal(image.as_tensor()[0], np.moveaxis(values, -1, 0))
    single = write_nifti(tmp_path / "single.nii.gz", VOLUME[..., None])
    assert images.load_image(single).shape == (1, 1, 4, 5, 6)
    vectors = write_nifti(tmp_path / "vectors.nii.gz", values[:, :, :, None])
    assert images.load_image(vectors, n_channels=3).shape == (1, 3, 4, 5, 6)


def test_a_volume_of_one_slice_is_a_slice_where_one_is_asked_for(tmp_path):
    path = write_nifti(tmp_path / "slice.nii.gz", VOLUME[..., :1])
    assert images.load_image(path).shape == (1, 1, 4, 5, 1)
    image = images.load_image(path, spatial_dims=2)
    np.testing.assert_array_equal(image.as_tensor()[0, 0], VOLUME[..., 0])
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    with pytest.raises(ValueError, match=r"volume\.nii holds 3 spatial axes \(4, 5, 6\), expected 2"):
        images.load_image(write_nifti(tmp_path / "volume.nii", VOLUME), spatial_dims=2)
    with pytest.raises(ValueError, match=r"flat\.nii holds 2 spatial axes \(4, 5\), expected 3"):
        images.load_image(write_nifti(tmp_path / "flat.nii", VOLUME[..., 0]), spatial_dims=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = VOLUME.copy()
    values[1, 2, 3] = bad
    path = write_nifti(tmp_path / "scan.nii", values)
    with pytest.raises(ValueError, match=r"scan\.nii holds 1 NaN or infinite values"):
        images.load_image(path)
    with pytest.raises(ValueError, match=r"scan\.nii holds fractions or NaN"):
        images.load_label(path)


def test_labels_are_whole_numbers_of_the_file(tmp_path):
    values = np.array([[[0, 3, 614454277]]], dtype=np.int32)  # float32 does not hold the last
    label = images.load_label(write_nifti(tmp_path / "label.nii.gz", values))
    assert isinstance(label, MetaTensor)
    assert label.dtype == torch.int64
    assert label.shape == (1, 1, 1, 1, 3)
    assert label.flatten().tolist() == [0, 3, 614454277]
    np.testing.assert_allclose(label.affine, OBLIQUE, atol=1e-5)
    for name, wrong, match in [
        ("fractions.nii", np.array([[[0, 0.5]]], np.float32), "holds fractions or NaN, expected whole numbers"),
        ("channels.nii", np.zeros((2, 2, 2, 3), np.uint8), "holds 3 channels, expected one, with a label per pixel"),
    ]:
        with pytest.raises(ValueError, match=match):
            images.load_label(write_nifti(tmp_path / name, wrong))


def test_labels_behind_a_scale_factor_are_rounded(tmp_path):
    picture = nibabel.Nifti1Image(np.array([[[0, 1, 7]]], np.int16), np.eye(4))
    picture.header.set_slope_inter(1 - 1e-6, 0)
    nibabel.save(picture, tmp_path / "label.nii")
    assert images.load_label(tmp_path / "label.nii").flatten().tolist() == [0, 1, 7]


def test_image_and_label_turned_alike_lie_on_one_grid(tmp_path):
    image = images.load_image(write_nifti(tmp_path / "scan.nii", VOLUME), orientation="RAS")
    label = images.load_label(write_nifti(tmp_path / "label.nii", (VOLUME > 0).astype(np.uint8)), orientation="RAS")
    images.check_same_grid(image, label)
    assert torch.equal(label.as_tensor(), (image.as_tensor() > 0).long())
