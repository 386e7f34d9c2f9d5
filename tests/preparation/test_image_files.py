from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from captum_causalseg import Bundle
from captum_causalseg.preparation.image_files import BundlePreparation, FilePreparation


@pytest.fixture
def files(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    for number in range(2):
        nibabel.save(nibabel.Nifti1Image(values * (number + 1), np.diag([1, 2, 3, 1])), tmp_path / f"t{number}.nii.gz")
    return [tmp_path / f"t{number}.nii.gz" for number in range(2)]


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("none", np.arange(60)),
        ("255", np.arange(60) / 255),
        ("range", np.arange(60) / 59),
        ("zscore", (np.arange(60) - 29.5) / np.arange(60).std(ddof=1)),
    ],
)
def test_a_file_as_it_is_or_normalized(files, normalize, expected):
    image = FilePreparation(normalize, None).image(files[:1])
    assert np.allclose(image.numpy().ravel(), expected, atol=1e-5)
    assert image.shape == (1, 1, 3, 4, 5)


def test_one_file_where_nothing_says_how_several_go_together(files):
    with pytest.raises(ValueError, match="expected one file, got 2; several, one per channel, go with a bundle or an nnU-Net"):
        FilePreparation("none", None).image(files)


def test_a_bundle_takes_a_file_per_channel(files):
    read = Compose([LoadImaged(keys="image"), EnsureChannelFirstd(keys="image")])
    bundle = Bundle(Path("brain"), torch.device("cpu"), torch.nn.Conv3d(2, 2, 1), read, None, None, {})
    preparation = BundlePreparation(bundle, None)
    image = preparation.image(files)
    assert torch.equal(image[0, 1].as_tensor(), 2 * image[0, 0].as_tensor())
    grids = preparation.grids(files, image)
    assert not grids.differ
    assert grids.shape == (3, 4, 5)
    with pytest.raises(ValueError, match=r"the bundle makes 3 spatial axes of .*t0\.nii\.gz, expected 2"):
        BundlePreparation(bundle, 2).image(files)


def test_the_images_of_a_folder(files):
    folder = files[0].parent
    (folder / ".hidden").touch()
    assert FilePreparation("none", None).cases(folder) == [(files[0],), (files[1],)]
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no file in .*empty"):
        FilePreparation("none", None).cases(folder / "empty")


def test_the_images_of_a_folder_where_an_image_has_several_files(tmp_path):
    preparation = FilePreparation("none", None)
    for name in ("b_0001.nii.gz", "b_0000.nii.gz", "a_10.nii.gz", "a_9.nii.gz", ".hidden"):
        (tmp_path / name).touch()
    names = [[file.name for file in case] for case in preparation.cases(tmp_path, 2)]
    assert names == [["a_9.nii.gz", "a_10.nii.gz"], ["b_0000.nii.gz", "b_0001.nii.gz"]]
    folders = tmp_path / "folders"
    for case in ("x", "y"):
        (folders / case).mkdir(parents=True)
        for channel in ("t2.nii", "t1.nii"):
            (folders / case / channel).touch()
    assert preparation.cases(folders, 2) == [tuple(folders / case / f"t{n}.nii" for n in (1, 2)) for case in ("x", "y")]
    (folders / "y" / "t3.nii").touch()
    with pytest.raises(ValueError, match=r"expected 2 files of each image, as the explained one has, got 3 of .*y$"):
        preparation.cases(folders, 2)
    (tmp_path / "plain.nii").touch()
    with pytest.raises(ValueError, match=r"expected a folder for each image, or files alone"):
        preparation.cases(tmp_path, 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plain.nii").touch()
    with pytest.raises(ValueError, match=r"such as case_0000\.nii\.gz and case_0001\.nii\.gz, got plain\.nii"):
        preparation.cases(tmp_path / "other", 2)
