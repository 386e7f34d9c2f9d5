"""Maps written over their scan, and brought back to its grid; read by other libraries."""

import numpy as np
import pytest
import torch
from image_files import OBLIQUE, VOLUME, scan, write_nifti
from monai import transforms
from monai.data import MetaTensor, list_data_collate
from torch import nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, images, regions

nibabel = pytest.importorskip("nibabel")


SHEARED = OBLIQUE.copy()

SHEARED[:3, 1] += 0.3 * OBLIQUE[:3, 0]


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


def test_a_map_that_knows_its_geometry_needs_no_image_and_labels_stay_whole(tmp_path):
    image = images.load_image(write_nifti(tmp_path / "scan.nii.gz", VOLUME))
    images.save_map(tmp_path / "own.nii.gz", image)
    np.testing.assert_allclose(nibabel.load(tmp_path / "own.nii.gz").affine, OBLIQUE, atol=1e-5)
    for values, kind in ((torch.ones(4, 5, 6, dtype=torch.bool), np.uint8), (torch.full((4, 5, 6), 300), np.int16)):
        images.save_map(tmp_path / "labels.nii.gz", values, like=image)
        assert nibabel.load(tmp_path / "labels.nii.gz").get_data_dtype() == kind
    images.save_map(tmp_path / "labels.nii.gz", torch.full((4, 5, 6), 70000), like=image)
    assert (np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj) == 70000).all()
    with pytest.raises(TypeError, match="values: expected a MetaTensor where like is left out, got Tensor"):
        images.save_map(tmp_path / "own.nii.gz", torch.zeros(1, 1, 4, 5, 6))


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


def test_save_map_refuses_what_lies_on_the_grid_of_a_turned_scan(tmp_path):
    las, ras = torch.diag(torch.tensor([-2.0, 2, 3, 1])), torch.diag(torch.tensor([2.0, 2, 3, 1]))
    values, like = (MetaTensor(torch.rand(1, 1, 4, 5, 6), affine=affine) for affine in (ras, las))
    with pytest.raises(ValueError, match=r"values: they lie on another grid than the image, .* images.invert\(values"):
        images.save_map(tmp_path / "map.nii", values, like=like)
    assert not (tmp_path / "map.nii").exists()
    # What says nothing of its geometry is the caller's to know.
    images.save_map(tmp_path / "map.nii", values.as_tensor(), like=like)
    images.save_map(tmp_path / "map.nii", MetaTensor(values.as_tensor(), affine=las), like=like)


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
    with pytest.raises(
        ValueError, match=r"image: expected \(N, C, \*spatial\) .* got \(1, 8, 8\); add the batch axis with image\[None\]"
    ):
        images.invert(values, image[0], prepare)
    with pytest.raises(ValueError, match=r"key: transform has no step for 'scan'; its steps are for \['image'\]"):
        images.invert(values, image, prepare, key="scan")
    with pytest.raises(TypeError, match="transform: expected a MONAI Compose of dictionary transforms, got SpatialPad"):
        images.invert(values, image, transforms.SpatialPad((8, 8)))
    with pytest.raises(ValueError, match=r"transform: expected dictionary transforms, .* array transforms only \(SpatialPad\)"):
        images.invert(values, image, transforms.Compose([transforms.SpatialPad((8, 8))]))
    with pytest.raises(ValueError, match="transform: it is not what made the image: "):
        images.invert(values, image, transforms.Compose([transforms.Flipd("image", 0)]))
