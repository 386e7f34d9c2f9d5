"""Images read from files that other libraries wrote, and maps read back by them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel
from monai import transforms
from monai.data import MetaTensor, list_data_collate
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    images,
    regions,
)
from captum_causalseg.baselines import MiSuRe, RiseSegmentation

nibabel = pytest.importorskip("nibabel")

# Turned by 20 degrees about the third axis, voxels of 1 x 1.5 x 3 mm, one axis flipped.
TURN = np.array([[np.cos(0.35), -np.sin(0.35), 0], [np.sin(0.35), np.cos(0.35), 0], [0, 0, 1]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([1, -1.5, 3])
OBLIQUE[:3, 3] = [-7, 5, 9]
SHEARED = OBLIQUE.copy()
SHEARED[:3, 1] += 0.3 * OBLIQUE[:3, 0]

VOLUME = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


def write_nifti(path, values, affine=OBLIQUE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def scan(*shape, affine=OBLIQUE):
    return MetaTensor(torch.rand(*shape), affine=torch.tensor(affine))


def test_importing_the_module_does_not_import_monai():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, captum_causalseg.images; sys.exit('monai' in sys.modules)"], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


# Reading


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


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_turning_a_volume_moves_values_and_affine_together(tmp_path, codes):
    path = write_nifti(tmp_path / "scan.nii.gz", VOLUME)
    image = images.load_image(path, orientation=codes)
    assert "".join(nibabel.aff2axcodes(image.affine.numpy())) == codes
    values = image.as_tensor()[0, 0].numpy()
    for voxel in [(0, 0, 0), (3, 1, 2), (2, 4, 5)]:
        place = OBLIQUE @ [*voxel, 1]
        turned = np.linalg.solve(image.affine.numpy(), place)[:3].round().astype(int)
        assert values[tuple(turned)] == VOLUME[voxel]


@pytest.mark.parametrize("codes", ["RA", "RRS", "xyz", 3])
def test_orientation_refuses(tmp_path, codes):
    with pytest.raises(ValueError, match="orientation: expected one of R/L, of A/P and of S/I"):
        images.load_image(write_nifti(tmp_path / "scan.nii", VOLUME), orientation=codes)
    with pytest.raises(ValueError, match="orientation: expected a volume to turn to 'RAS'"):
        images.load_image(write_nifti(tmp_path / "flat.nii", VOLUME[..., 0]), orientation="RAS")


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures_come_rows_first(tmp_path, ending):
    from PIL import Image

    colors = np.random.default_rng(1).integers(0, 255, (4, 7, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / f"colors{ending}")
    image = images.load_image(tmp_path / f"colors{ending}")
    assert image.shape == (1, 3, 4, 7)
    np.testing.assert_array_equal(image.as_tensor()[0], np.moveaxis(colors, -1, 0))
    Image.fromarray(colors[..., 0]).save(tmp_path / f"gray{ending}")
    np.testing.assert_array_equal(images.load_image(tmp_path / f"gray{ending}", n_channels=1).as_tensor()[0, 0], colors[..., 0])
    assert list_data_collate([image[0], image[0]]).shape == (2, 3, 4, 7)
    with pytest.raises(ValueError, match=r"gray\..* holds 1 channel\(s\), expected n_channels=3"):
        images.load_image(tmp_path / f"gray{ending}", n_channels=3)


def test_a_jpeg_is_read(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((8, 16, 3), [200, 100, 50], np.uint8)).save(tmp_path / "photo.JPG", quality=95)
    image = images.load_image(tmp_path / "photo.JPG")
    assert image.shape == (1, 3, 8, 16)
    np.testing.assert_allclose(image.as_tensor()[0, :, 4, 8], [200, 100, 50], atol=4)


def test_a_palette_means_colors_in_an_image_and_labels_in_a_label_map(tmp_path):
    from PIL import Image

    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([0, 0, 0, 250, 0, 0, 0, 240, 0])
    picture.save(tmp_path / "palette.png")
    assert images.load_label(tmp_path / "palette.png")[0, 0].tolist() == indices.tolist()
    image = images.load_image(tmp_path / "palette.png")
    assert image[0, :, 0, 1].tolist() == [250, 0, 0]
    assert image[0, :, 1, 0].tolist() == [0, 240, 0]


def test_a_tiff_of_several_pages_is_refused(tmp_path):
    from PIL import Image

    pages = [Image.fromarray(np.full((3, 4), value, np.uint8)) for value in (1, 2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"pages\.tif cannot be read as .*TIFF: it holds 2 frames, expected one"):
        images.load_image(tmp_path / "pages.tif")


def test_nrrd_is_read_in_the_same_space_as_nifti(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    lps = np.diag([-1, -1, 1]) @ OBLIQUE[:3]
    header = {"space": "left-posterior-superior", "space directions": lps[:, :3].T, "space origin": lps[:, 3]}
    nrrd.write(str(tmp_path / "scan.nrrd"), VOLUME, header)
    image = images.load_image(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(image.as_tensor()[0, 0], VOLUME)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    images.check_same_grid(image, images.load_image(write_nifti(tmp_path / "scan.nii", VOLUME)))
    (tmp_path / "half.nrrd").write_bytes((tmp_path / "scan.nrrd").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"path: .*half\.nrrd cannot be read as NRRD: "):
        images.load_image(tmp_path / "half.nrrd")


def test_metaimage_is_read_in_the_same_space_as_nifti(tmp_path):
    itk = pytest.importorskip("itk")
    picture = itk.image_from_array(np.ascontiguousarray(VOLUME.T))
    lps = np.diag([-1, -1, 1]) @ OBLIQUE[:3]
    picture.SetSpacing([1, 1.5, 3])
    picture.SetOrigin(lps[:, 3].tolist())
    picture.SetDirection(itk.matrix_from_array(lps[:, :3] / [1, 1.5, 3]))
    itk.imwrite(picture, str(tmp_path / "scan.mha"))
    image = images.load_image(tmp_path / "scan.mha")
    np.testing.assert_array_equal(image.as_tensor()[0, 0], VOLUME)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


# DICOM


@pytest.fixture
def pydicom():
    return pytest.importorskip("pydicom")


ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
ORIGIN, SPACING, GAP = np.array([-12.0, 4.0, 30.0]), (1.5, 0.5), 2.5


def write_dicom(pydicom, path, pixels, number=1, position=ORIGIN, series="1.2.3", **more):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.SeriesInstanceUID, found.InstanceNumber = series, number
    found.ImagePositionPatient, found.ImageOrientationPatient = [*map(float, position)], [*ROW, *COLUMN]
    found.PixelSpacing = list(SPACING)
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit, found.PixelRepresentation = 15, 0
    found.PixelData = pixels.astype("<u2").tobytes()
    for name, value in more.items():
        setattr(found, name, value)
    found.save_as(path, enforce_file_format=True)
    return path


def write_series(pydicom, folder, volume, numbers=None, **more):
    """``volume`` (slices, rows, columns); names are in another order than the slices."""
    folder.mkdir(exist_ok=True)
    normal = np.cross(ROW, COLUMN)
    for k in range(len(volume)) if numbers is None else numbers:
        name = f"{more.get('series', '')}{(7 * k) % 11:02d}.dcm"
        write_dicom(pydicom, folder / name, volume[k], k + 1, ORIGIN + k * GAP * normal, **more)
    return folder


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


# What cannot be read


@pytest.mark.parametrize("load", [images.load_image, images.load_label, regions.from_file])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "picture.png"])
@pytest.mark.parametrize("damage", ["half", "empty", "other"])
def test_damaged_files_are_named_in_one_line(tmp_path, load, name, damage):
    path = tmp_path / name
    if name.endswith(".png"):
        from PIL import Image

        Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30), dtype=np.uint8)).save(path)
    else:
        write_nifti(path, np.random.default_rng(0).integers(0, 255, (9, 9, 9), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "other": b"this is no image" * 50}[damage])
    with pytest.raises(ValueError, match=f"^path: .*{name} cannot be read as (NIfTI|PNG, .*): ..") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_what_is_missing_or_of_no_known_kind_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: there is no file .*scan\.nii\.gz"):
        images.load_image(tmp_path / "scan.nii.gz")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(
        ValueError, match=r"path: the kind of .*notes\.txt is not known; expected a DICOM file or a name that ends in \.nii,"
    ):
        images.load_image(tmp_path / "notes.txt")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = VOLUME.copy()
    values[1, 2, 3] = bad
    path = write_nifti(tmp_path / "scan.nii", values)
    with pytest.raises(ValueError, match=r"scan\.nii holds 1 NaN or infinite values"):
        images.load_image(path)
    with pytest.raises(ValueError, match=r"scan\.nii holds fractions or NaN"):
        images.load_label(path)


@pytest.mark.parametrize(("name", "package", "say"), [("a.nii", "nibabel", "NIfTI files need nibabel"), ("a.nrrd", "nrrd", "need pynrrd"), ("a.png", "PIL", "need pillow"), ("a.dcm", "pydicom", "need pydicom")])  # fmt: skip
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, name, package, say):
    (tmp_path / name).write_bytes(b"0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{say}: pip install "captum-causalseg\[io\]"'):
        images.load_image(tmp_path / name)


# Labels


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


# Grids


def test_the_same_grid_is_the_same_shape_at_the_same_place():
    image = scan(1, 2, 40, 50, 60)
    images.check_same_grid(image, scan(1, 1, 40, 50, 60))
    images.check_same_grid(image, torch.zeros(1, 1, 40, 50, 60))
    images.check_same_grid(torch.zeros(3, 1, 8), torch.zeros(3, 2, 8))
    with pytest.raises(
        ValueError, match=r"expected the image's grid, 1 example\(s\) of \(40, 50, 60\), got 1 of \(40, 50, 61\)"
    ):
        images.check_same_grid(image, scan(1, 1, 40, 50, 61))
    with pytest.raises(ValueError, match=r"got 2 of \(40, 50, 60\)"):
        images.check_same_grid(image, scan(2, 1, 40, 50, 60))


@pytest.mark.parametrize("spatial", [(40, 50), (40, 50, 60)])
def test_the_farthest_corner_decides_whether_affines_agree(spatial):
    image = scan(1, 1, *spatial)
    # The smallest edge is 1 mm. The angle moves the far corner of the first axis by 39 times as much.
    for angle, agrees in [(0.009 / 39, True), (0.011 / 39, False)]:
        other = OBLIQUE.copy()
        other[2, 0] += angle
        if agrees:
            images.check_same_grid(image, scan(1, 1, *spatial, affine=other))
        else:
            with pytest.raises(
                ValueError, match=r"label: it lies elsewhere than the image. Affine of the image: \[\[0\.9.*; of the label"
            ):
                images.check_same_grid(image, scan(1, 1, *spatial, affine=other))
            images.check_same_grid(image, scan(1, 1, *spatial, affine=other), tolerance=0.02)


def test_in_a_collated_batch_each_example_has_its_own_grid():
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    batch = list_data_collate([scan(1, 4, 5, 6), scan(1, 4, 5, 6, affine=moved)])
    images.check_same_grid(batch, batch > 0.5)
    with pytest.raises(ValueError, match="lies elsewhere"):
        images.check_same_grid(batch, list_data_collate([scan(1, 4, 5, 6)] * 2))


# Maps


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED])
@pytest.mark.parametrize("lead", [(), (1,), (1, 1)])
@pytest.mark.parametrize("by_path", [True, False])
def test_a_map_opens_over_its_scan(tmp_path, affine, lead, by_path):
    path = write_nifti(tmp_path / "scan.nii.gz", VOLUME, affine)
    effects = torch.rand(*lead, 4, 5, 6, dtype=torch.float64)
    images.save_map(tmp_path / "effects.nii.gz", effects, like=path if by_path else images.load_image(path))
    written, original = nibabel.load(tmp_path / "effects.nii.gz"), nibabel.load(path)
    assert written.shape == original.shape
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.affine, original.affine, atol=1e-5)
    np.testing.assert_allclose(written.get_fdata(), effects.reshape(4, 5, 6), atol=1e-6)
    qform, code = written.get_qform(coded=True)
    if affine is OBLIQUE:
        np.testing.assert_allclose(qform, affine, atol=1e-5)
    assert (code > 0) == (affine is OBLIQUE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["effects.nii.gz", "scan.nii.gz"]


def test_a_map_of_a_turned_image_lies_where_the_scan_lies(tmp_path):
    bright = np.zeros((4, 5, 6), np.float32)
    bright[3, 1, 2] = 1
    image = images.load_image(write_nifti(tmp_path / "scan.nii.gz", bright), orientation="SAR")
    images.save_map(tmp_path / "map.nii", image.as_tensor(), like=image)
    written = nibabel.load(tmp_path / "map.nii")
    place = written.affine @ [*np.argwhere(written.get_fdata() == 1)[0], 1]
    np.testing.assert_allclose(place, OBLIQUE @ [3, 1, 2, 1], atol=1e-4)


def test_maps_of_slices_channels_and_arrays(tmp_path):
    path = tmp_path / "map.nii.gz"
    images.save_map(path, np.arange(6).reshape(2, 3), like=scan(1, 3, 2, 3))
    assert nibabel.load(path).shape == (2, 3, 1)
    channels = torch.rand(2, 4, 5, 6)
    channels[0, 0, 0, 0] = torch.nan
    images.save_map(str(path), channels, like=scan(1, 1, 4, 5, 6))
    np.testing.assert_array_equal(nibabel.load(path).get_fdata(), channels.movedim(0, -1))
    images.save_map(path, scan(2, 1, 4, 5, 6)[:1] > 0.5, like=list_data_collate([scan(1, 4, 5, 6)]))
    assert set(np.unique(nibabel.load(path).get_fdata())) == {0, 1}


def test_a_map_appears_when_it_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "map.nii.gz"
    path.write_text("an older map")

    save = nibabel.save

    def break_off(picture, destination):
        destination.write_text("half of it")
        raise OSError("no space left")

    monkeypatch.setattr(nibabel, "save", break_off)
    with pytest.raises(OSError, match="no space left"):
        images.save_map(path, torch.zeros(4, 5, 6), like=scan(1, 1, 4, 5, 6))
    assert [file.name for file in tmp_path.iterdir()] == ["map.nii.gz"]
    assert path.read_text() == "an older map"
    written = []
    monkeypatch.setattr(nibabel, "save", lambda picture, destination: written.append(destination) or save(picture, destination))
    images.save_map(path, torch.zeros(4, 5, 6), like=scan(1, 1, 4, 5, 6))
    assert [file.name for file in tmp_path.iterdir()] == ["map.nii.gz"]
    assert nibabel.load(path).shape == (4, 5, 6)
    assert path not in written


@pytest.mark.parametrize("shape", [(4, 5, 7), (5, 6), (2, 1, 4, 5, 6), (1, 1, 1, 4, 5, 6), (4, 5, 6, 1)])
def test_save_map_refuses_maps_of_another_shape(tmp_path, shape):
    with pytest.raises(ValueError, match=r"values: expected one map of the image's spatial shape \(4, 5, 6\) .*, got \("):
        images.save_map(tmp_path / "map.nii", torch.zeros(shape), like=scan(1, 1, 4, 5, 6))
    assert not list(tmp_path.iterdir())


def test_save_map_refuses(tmp_path):
    like = scan(1, 1, 4, 5, 6)
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.nii or \.nii\.gz, got map\.png"):
        images.save_map(tmp_path / "map.png", torch.zeros(4, 5, 6), like=like)
    with pytest.raises(FileNotFoundError, match=r"path: there is no folder .*nowhere"):
        images.save_map(tmp_path / "nowhere" / "map.nii", torch.zeros(4, 5, 6), like=like)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*scan\.nii"):
        images.save_map(tmp_path / "map.nii", torch.zeros(4, 5, 6), like=tmp_path / "scan.nii")
    with pytest.raises(TypeError, match="like: expected a MetaTensor or the path of an image file, got Tensor"):
        images.save_map(tmp_path / "map.nii", torch.zeros(4, 5, 6), like=torch.zeros(1, 1, 4, 5, 6))
    with pytest.raises(ValueError, match=r"like: expected one image \(1, C, \*spatial\), got \(2, 1, 4, 5, 6\)"):
        images.save_map(tmp_path / "map.nii", torch.zeros(4, 5, 6), like=scan(2, 1, 4, 5, 6))


# Attributions


class Watched(nn.Module):
    """Notes what kinds of tensors it is given."""

    def __init__(self, axes):
        super().__init__()
        self.conv = (nn.Conv2d if axes == 2 else nn.Conv3d)(1, 2, 3, padding=1)
        self.kinds = set()

    def forward(self, x):
        self.kinds.add(type(x))
        return self.conv(x)


FACES = {
    AverageTreatmentEffect: {"block_size": 2, "n_draws": 4},
    PdCR: {"block_size": 2, "n_draws": 4},
    GradientTreatmentEffect: {"block_size": 2},
    RiseSegmentation: {"n_masks": 6, "grid_size": 2},
    MiSuRe: {"n_steps": 2},
}


@pytest.mark.parametrize("spatial", [(8, 6), (6, 4, 4)])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("collated", [False, True])
def test_metatensor_in_metatensor_out_and_plain_tensors_inside(face, spatial, collated):
    affine = torch.tensor(OBLIQUE)
    one = MetaTensor(torch.rand(1, *spatial), affine=affine, meta={"patient": "a"})
    two = MetaTensor(torch.rand(1, *spatial), affine=2 * affine, meta={"patient": "b"})
    batch = list_data_collate([one, two]) if collated else one[None]
    model = Watched(len(spatial)).eval()
    if face is MiSuRe:
        # It explains what is predicted.
        model.conv.bias.data[1] += 2
    reference = (torch.rand(spatial) > 0.5).long()
    roi = regions.box(spatial, 0, 2)
    metric = "soft_dice" if face is GradientTreatmentEffect else "dice"
    explained = face(SegmentationTarget(model, roi=roi, reference=reference, metric=metric))
    more = dict(FACES[face])
    if face in (AverageTreatmentEffect, PdCR, GradientTreatmentEffect):
        more["baselines"] = PatchBank(torch.rand(9, 1, *spatial))
    plain = explained.attribute(batch.as_tensor(), target=1, **more)
    model.kinds.clear()
    attribution = explained.attribute(batch, target=1, **more)
    assert model.kinds == {torch.Tensor}
    assert type(plain) is torch.Tensor
    assert isinstance(attribution, MetaTensor)
    assert torch.equal(attribution.as_tensor(), plain)
    assert attribution.is_contiguous()
    assert not attribution.requires_grad
    assert attribution.is_batch == collated
    assert torch.equal(attribution.affine, batch.affine)
    assert attribution.meta["patient"] == (["a", "b"] if collated else "a")
    assert torch.equal(attribution[0].affine, affine)
    if collated:
        assert torch.equal(attribution[1].affine, 2 * affine)
    attribution.affine.fill_(0)
    assert batch.affine.any()


def test_of_several_inputs_each_keeps_what_it_is():
    model = nn.Conv2d(1, 2, 3, padding=1)
    roi = regions.box((8, 8), 0, 2)
    target = SegmentationTarget(lambda x, y: model(x + y), roi=roi, reference=(torch.rand(8, 8) > 0.5).long())
    image = scan(1, 1, 8, 8)
    first, second = AverageTreatmentEffect(target).attribute((image, torch.rand(1, 1, 8, 8)), target=1, block_size=4, n_draws=3)
    assert isinstance(first, MetaTensor)
    assert torch.equal(first.affine, image.affine)
    assert type(second) is torch.Tensor
    (only,) = AverageTreatmentEffect(SegmentationTarget(model, roi=roi, reference=(torch.rand(8, 8) > 0.5).long())).attribute(
        (image,), target=1, block_size=4, n_draws=3
    )
    assert isinstance(only, MetaTensor)


def test_captums_noise_tunnel_takes_metatensors():
    model = nn.Conv2d(1, 2, 3, padding=1)
    target = SegmentationTarget(
        model, roi=regions.box((8, 8), 0, 3), reference=(torch.rand(8, 8) > 0.5).long(), metric="soft_dice"
    )
    bank = PatchBank(torch.rand(5, 1, 8, 8))
    tunnel = NoiseTunnel(AverageTreatmentEffect(target, baselines=bank))
    for batch in (scan(1, 1, 8, 8), list_data_collate([scan(1, 8, 8), scan(1, 8, 8)])):
        found = tunnel.attribute(batch, target=1, nt_samples=2, stdevs=0.0, block_size=4, n_draws=3)
        assert found.shape == batch.shape


def test_with_metadata_shares_memory_and_refuses_tuples_of_another_length():
    values = torch.zeros(1, 1, 4, 4)
    image = scan(1, 1, 4, 4)
    result = images.with_metadata(values, image)
    assert result.data_ptr() == values.data_ptr()
    assert images.with_metadata(values, values) is values
    with pytest.raises(ValueError, match="like: expected a tuple of 2, as many as there are values"):
        images.with_metadata((values, values), (image,))


def test_an_attribution_is_written_over_the_scan_it_explains(tmp_path):
    image = images.load_image(write_nifti(tmp_path / "scan.nii.gz", VOLUME))
    roi = regions.box((4, 5, 6), 0, 2)
    target = SegmentationTarget(nn.Conv3d(1, 2, 3, padding=1), roi=roi, reference=(image[0, 0] > 0).long())
    attribution, statistics = AverageTreatmentEffect(target).attribute(
        image, target=1, block_size=2, n_draws=3, return_statistics=True
    )
    images.save_map(tmp_path / "effects.nii.gz", attribution, like=attribution)
    images.save_map(tmp_path / "errors.nii.gz", statistics.to_map("standard_error", 1), like=tmp_path / "scan.nii.gz")
    effects, errors = nibabel.load(tmp_path / "effects.nii.gz"), nibabel.load(tmp_path / "errors.nii.gz")
    np.testing.assert_array_equal(effects.get_fdata(dtype=np.float32), attribution.as_tensor()[0, 0])
    np.testing.assert_allclose(effects.affine, OBLIQUE, atol=1e-5)
    assert np.isnan(errors.get_fdata()[:2, :2, :2]).all()


# Back to the scan


def pre_processing():
    return transforms.Compose(
        [
            transforms.Orientationd("image", "RAS", labels=None),
            transforms.Spacingd("image", (1.0, 1.0, 2.0)),
            transforms.CenterSpatialCropd("image", (30, 30, 24)),
            transforms.SpatialPadd("image", (36, 36, 24)),
            transforms.Resized("image", (72, 72, 48), mode="trilinear"),
        ]
    )


def test_a_map_comes_back_to_the_grid_of_the_scan():
    volume = torch.zeros(1, 40, 32, 16)
    volume[0, 16:26, 12:22, 6:12] = 1
    original = MetaTensor(volume, affine=torch.tensor(OBLIQUE))
    prepare = pre_processing()
    image = prepare({"image": original})["image"]
    assert image.shape == (1, 72, 72, 48)
    both = torch.stack([(image.as_tensor()[0] > 0.5).float(), torch.ones(72, 72, 48)])
    back = images.invert(both[None], image[None], prepare)
    assert isinstance(back, MetaTensor)
    assert back.shape == (1, 2, 40, 32, 16)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-5)
    found, seen = back.as_tensor()[0]
    assert torch.equal(found, volume[0])
    # Cropped away along two axes, and 0 there.
    assert set(seen.unique().tolist()) == {0, 1}
    assert seen[20, 16].all()
    assert seen[0].sum() == seen[-1].sum() == seen[:, 0].sum() == 0


def test_batches_come_back_like_their_examples():
    prepare = transforms.Compose([transforms.Flipd("image", 0), transforms.SpatialPadd("image", (8, 8))])
    moved = OBLIQUE.copy()
    moved[:3, 3] = 0
    scans = [MetaTensor(torch.rand(1, 5, 6), affine=torch.tensor(affine)) for affine in (OBLIQUE, moved)]
    items = [prepare({"image": one}) for one in scans]
    batch = list_data_collate(items)["image"]
    values = torch.rand(2, 3, 8, 8)
    back = images.invert(values, batch, prepare)
    assert back.shape == (2, 3, 5, 6)
    for number, (one, item) in enumerate(zip(scans, items)):
        alone = images.invert(values[number : number + 1], item["image"][None], prepare)
        assert torch.equal(back[number].as_tensor(), alone[0].as_tensor())
        np.testing.assert_allclose(back[number].affine, one.affine, atol=1e-6)
        shown = images.invert(item["image"][None], item["image"][None], prepare)
        assert torch.equal(shown.as_tensor()[0], one.as_tensor())
    other = prepare({"image": MetaTensor(torch.rand(1, 4, 6))})
    with pytest.raises(ValueError, match=r"the scans of this batch differ in shape \(\[\(3, 4, 6\), \(3, 5, 6\)\]\)"):
        images.invert(values, list_data_collate([items[0], other])["image"], prepare)


def test_an_attribution_itself_knows_the_way_back(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((10, 8, 6)).astype(np.float32))
    original = images.load_image(path)
    prepare = transforms.Compose(
        [transforms.Orientationd("image", "RAS", labels=None), transforms.SpatialPadd("image", (12, 12, 8))]
    )
    image = prepare({"image": original[0]})["image"][None]
    target = SegmentationTarget.from_prediction(nn.Conv3d(1, 2, 3, padding=1), image, roi=regions.box((12, 12, 8), 4, 4))
    attribution = AverageTreatmentEffect(target).attribute(image, target=1, block_size=2, n_draws=3)
    back = images.invert(attribution, attribution, prepare)
    assert back.shape == original.shape
    images.save_map(tmp_path / "effects.nii.gz", back, like=path)
    # The scan's second axis runs backward; padding is split on both sides.
    np.testing.assert_array_equal(
        nibabel.load(tmp_path / "effects.nii.gz").get_fdata(dtype=np.float32),
        attribution.as_tensor()[0, 0, 1:11, 2:10, 1:7].flip(1),
    )


def test_invert_refuses():
    prepare = transforms.Compose([transforms.SpatialPadd("image", (8, 8))])
    image = prepare({"image": MetaTensor(torch.rand(1, 5, 6))})["image"][None]
    values = torch.zeros(1, 1, 8, 8)
    with pytest.raises(TypeError, match="image: expected a MetaTensor, which knows the transforms that made it, got Tensor"):
        images.invert(values, image.as_tensor(), prepare)
    with pytest.raises(ValueError, match="image: it has no record of transforms"):
        images.invert(values, MetaTensor(torch.zeros(1, 1, 8, 8)), prepare)
    with pytest.raises(
        ValueError, match=r"values: expected a map .* on the grid of the image \(1, 1, 8, 8\), got \(1, 1, 5, 6\)"
    ):
        images.invert(torch.zeros(1, 1, 5, 6), image, prepare)
    with pytest.raises(ValueError, match=r"key: transform has no step for 'scan'; its steps are for \['image'\]"):
        images.invert(values, image, prepare, key="scan")
    with pytest.raises(TypeError, match="transform: expected a MONAI Compose of dictionary transforms, got SpatialPad"):
        images.invert(values, image, transforms.SpatialPad((8, 8)))
    with pytest.raises(ValueError, match="transform: it is not what made the image: "):
        images.invert(values, image, transforms.Compose([transforms.Flipd("image", 0)]))


def test_spacing_is_the_length_of_a_step_whichever_way_the_axes_run():
    turned = torch.tensor([[0.0, -0.7, 0.0, 9.0], [0.5, 0.0, 0.0, -4.0], [0.0, 0.0, -3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    scan = torch.rand(2, 1, 4, 5, 6)
    assert images.spacing_of(MetaTensor(scan, affine=turned)) == pytest.approx((0.5, 0.7, 3.0))
    assert images.spacing_of(MetaTensor(scan[..., 0], affine=turned)) == pytest.approx((0.5, 0.7))
    collated = MetaTensor(scan, affine=turned)
    collated.affine = torch.stack([turned, torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))])
    assert images.spacing_of(collated, 1) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match=r"example: expected an integer from 0 to 1, got 2"):
        images.spacing_of(collated, 2)
    with pytest.raises(TypeError, match=r"image: expected a tensor of real numbers, got str"):
        images.spacing_of("scan.nii.gz")


@pytest.mark.parametrize(
    "affine", [torch.eye(4), torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])), torch.full((4, 4), torch.nan)]
)
def test_an_affine_that_says_nothing_is_no_spacing(affine):
    assert images.spacing_of(MetaTensor(torch.rand(1, 1, 4, 5, 6), affine=affine)) is None
    assert images.spacing_of(torch.rand(1, 1, 4, 5, 6)) is None
