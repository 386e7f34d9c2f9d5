"""What each format of files means, and which files are refused."""

import sys

import numpy as np
import pytest
from image_files import OBLIQUE, VOLUME, write_nifti
from monai.data import list_data_collate

from captum_causalseg import images, regions

nibabel = pytest.importorskip("nibabel")


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


@pytest.mark.parametrize(("name", "package", "say"), [("a.nii", "nibabel", "NIfTI files need nibabel"), ("a.nrrd", "nrrd", "need pynrrd"), ("a.png", "PIL", "need pillow"), ("a.dcm", "pydicom", "need pydicom")])  # fmt: skip
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, name, package, say):
    (tmp_path / name).write_bytes(b"0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{say}: pip install "captum-causalseg\[io\]"'):
        images.load_image(tmp_path / name)
