"""DICOM files and folders as volumes."""

import numpy as np
import pytest
import torch
from image_files import COLUMN, GAP, ORIGIN, ROW, SPACING, write_dicom, write_series

from captum_causalseg import images

nibabel = pytest.importorskip("nibabel")


@pytest.fixture
def pydicom():
    return pytest.importorskip("pydicom")


def test_a_dicom_series_becomes_a_volume_whose_voxels_lie_where_the_slices_say(tmp_path, pydicom):
    volume = np.random.default_rng(2).integers(0, 4000, (5, 3, 4))
    folder = write_series(pydicom, tmp_path / "series", volume)
    (folder / "notes.txt").write_text("not a slice")
    image = images.load_image(folder)
    assert image.shape == (1, 1, 4, 3, 5)
    for k, row, column in [(0, 0, 0), (4, 2, 3), (2, 1, 0), (1, 0, 3)]:
        assert image[0, 0, column, row, k] == volume[k, row, column]
        lps = ORIGIN + column * SPACING[1] * ROW + row * SPACING[0] * COLUMN + k * GAP * np.cross(ROW, COLUMN)
        np.testing.assert_allclose(image.affine.numpy() @ [column, row, k, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-6)


def test_one_dicom_file_is_a_slice_whatever_its_name(tmp_path, pydicom):
    pixels = np.arange(12).reshape(3, 4)
    for name in ("slice.dcm", "IM000001"):
        image = images.load_image(write_dicom(pydicom, tmp_path / name, pixels))
        np.testing.assert_array_equal(image.as_tensor()[0, 0], pixels.T)
    # A map over it is a volume of one slice at its place.
    images.save_map(tmp_path / "map.nii.gz", torch.ones(4, 3), like=tmp_path / "slice.dcm")
    written = nibabel.load(tmp_path / "map.nii.gz")
    assert written.shape == (4, 3, 1)
    np.testing.assert_allclose(written.affine[:3, 3], ORIGIN * [-1, -1, 1])


def test_dicom_folders_that_are_no_volume_are_refused(tmp_path, pydicom):
    volume = np.zeros((5, 3, 4), int)
    gap = write_series(pydicom, tmp_path / "gap", volume, numbers=[0, 1, 3, 4])
    with pytest.raises(ValueError, match=r"slices in the folder .*gap are 2\.5 to 5 mm apart .*is a slice missing"):
        images.load_image(gap)
    two = write_series(pydicom, tmp_path / "two", volume, series="1.2.3")
    write_series(pydicom, two, volume[:2], series="1.2.4")
    with pytest.raises(ValueError, match=r"holds 2 DICOM series \(1\.2\.3: 5 file\(s\), 1\.2\.4: 2 file\(s\)\)"):
        images.load_image(two)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty holds no DICOM files"):
        images.load_image(tmp_path / "empty")
    shuffled = write_series(pydicom, tmp_path / "shuffled", volume, numbers=[0, 1, 2])
    write_dicom(pydicom, shuffled / "99.dcm", volume[0], 4, ORIGIN + 0.5 * GAP * np.cross(ROW, COLUMN))
    with pytest.raises(ValueError, match="expected one distance"):
        images.load_image(shuffled)
    unnumbered = write_series(pydicom, tmp_path / "unnumbered", volume, InstanceNumber=None)
    with pytest.raises(ValueError, match="say nothing of their InstanceNumber; they cannot be put in order"):
        images.load_image(unnumbered)
    tilted = write_series(pydicom, tmp_path / "tilted", volume, numbers=[0, 1])
    write_dicom(pydicom, tilted / "99.dcm", volume[0], 3, ORIGIN, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    with pytest.raises(ValueError, match=r"slices in the folder .*tilted are not parallel"):
        images.load_image(tilted)


def test_damaged_and_multi_frame_dicom_files_are_refused(tmp_path, pydicom):
    frames = write_dicom(pydicom, tmp_path / "frames.dcm", np.zeros((3, 4)), NumberOfFrames=2)
    with pytest.raises(ValueError, match=r"frames\.dcm is a multi-frame DICOM file; convert it"):
        images.load_image(frames)
    whole = write_dicom(pydicom, tmp_path / "whole.dcm", np.zeros((30, 40))).read_bytes()
    (tmp_path / "half.dcm").write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=r"path: .*half\.dcm cannot be read as DICOM: "):
        images.load_image(tmp_path / "half.dcm")
    (tmp_path / "text.dcm").write_text("no picture")
    with pytest.raises(ValueError, match=r"path: .*text\.dcm cannot be read as DICOM: "):
        images.load_image(tmp_path / "text.dcm")
