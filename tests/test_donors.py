"""Donor sources: populations, places, what is read, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg import Blur, Constant, PatchBank, SameImage, regions
from captum_causalseg._donor_places import skip_holes
from captum_causalseg.donors import as_donor_source

SPATIAL = {1: (9,), 2: (7, 9), 3: (5, 6, 7)}


def numbered(*shape):
    """Every element its own value."""
    return torch.arange(float(np.prod(shape))).reshape(shape)


def box(start, size):
    return tuple(slice(a, a + b) for a, b in zip(start, size))


def windows(image, size):
    """All places of a box in ``(C, *spatial)``, by a literal loop: ``{corner: values}``."""
    places = itertools.product(*(range(length - side + 1) for length, side in zip(image.shape[1:], size)))
    return {corner: image[(slice(None), *box(corner, size))] for corner in places}


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_bank_offers_every_place_of_every_image_once(d):
    images = numbered(3, 2, *SPATIAL[d])
    bound = PatchBank(images).bind(torch.zeros(1, 2, *(20,) * d))
    unit = box((4,) * d, (2, 3, 2)[:d])
    truth = {(i, corner): v for i in range(3) for corner, v in windows(images[i], (2, 3, 2)[:d]).items()}
    assert bound.population(0, unit) == len(truth)
    for number in range(len(truth)):
        place = bound.locate(0, unit, number)
        assert torch.equal(bound.read(0, unit, number), truth.pop(place))
    assert not truth


def test_images_of_different_sizes_count_by_their_places():
    images = [numbered(1, 4, 4), numbered(1, 9, 5) + 100, numbered(1, 4, 6) + 1000]
    bound = PatchBank(images).bind(torch.zeros(1, 1, 32, 32))
    unit = box((0, 0), (4, 4))
    found = [bound.locate(0, unit, k) for k in range(bound.population(0, unit))]
    assert found == [(0, (0, 0)), *[(1, (i, j)) for i in range(6) for j in range(2)], *[(2, (0, j)) for j in range(3)]]
    for k, (image, corner) in enumerate(found):
        assert torch.equal(bound.read(0, unit, k), images[image][(slice(None), *box(corner, (4, 4)))])


@pytest.mark.parametrize("d", [1, 2, 3])
def test_aligned_donors_come_from_the_units_own_place(d):
    images = numbered(4, 1, *SPATIAL[d])
    bound = PatchBank(images, placement="aligned").bind(torch.zeros(2, 1, *SPATIAL[d]))
    unit = box((2,) * d, (3, 2, 3)[:d])
    assert bound.population(1, unit) == 4
    for k in range(4):
        assert bound.locate(0, unit, k) == (k, (2,) * d)
        assert torch.equal(bound.read(0, unit, k), images[k][(slice(None), *unit)])


def test_the_papers_patches_are_whole_donors():
    patches = numbered(10, 3, 8, 8)
    bound = PatchBank(patches).bind(torch.zeros(1, 3, 64, 64))
    unit = box((8, 16), (8, 8))
    assert bound.population(0, unit) == 10
    assert all(torch.equal(bound.read(0, unit, k), patches[k]) for k in range(10))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("with_roi", [False, True])
def test_the_same_image_gives_every_place_but_its_own_and_the_rois(d, with_roi):
    spatial, size, start = SPATIAL[d], (2, 3, 2)[:d], (1, 2, 3)[:d]
    image = numbered(2, 1, *spatial)
    roi = regions.box(spatial, start=(4, 5, 2)[:d], size=1)
    bound = SameImage().bind(image, roi[None] if with_roi else None)
    unit = box(start, size)
    truth = {}
    for corner, values in windows(image[1], size).items():
        overlaps = all(abs(c - s) < n for c, s, n in zip(corner, start, size))
        touches = bool(roi[box(corner, size)].any())
        if not overlaps and not (with_roi and touches):
            truth[corner] = values
    assert bound.population(1, unit) == len(truth) > 0
    for k in range(len(truth)):
        example, corner = bound.locate(1, unit, k)
        assert example == 1
        assert torch.equal(bound.read(1, unit, k), truth.pop(corner))
    assert not truth


def test_an_image_without_another_place_is_refused():
    bound = SameImage().bind(torch.rand(1, 1, 6, 6))
    with pytest.raises(
        ValueError, match=r"baselines: the image of \(6, 6\) pixels has no place for a donor of \(4, 4\) pixels"
    ):
        bound.population(0, box((1, 1), (4, 4)))


@pytest.mark.parametrize("lazy", [False, True])
def test_the_explained_image_in_the_bank_never_gives_its_own_roi(lazy):
    images = numbered(3, 1, 8, 8)
    bank = PatchBank(Lazy(images) if lazy else images)
    explained = torch.stack([images[1], images[1] + 0.5])
    roi = regions.box((8, 8), start=(2, 3), size=2)
    bound = bank.bind(explained, roi[None])
    unit = box((0, 0), (3, 3))
    found = [bound.locate(0, unit, k) for k in range(bound.population(0, unit))]
    truth = [
        (i, corner) for i in range(3) for corner in windows(images[i], (3, 3)) if i != 1 or not roi[box(corner, (3, 3))].any()
    ]
    assert found == truth
    assert bound.population(1, unit) == 3 * 36  # another image: nothing to leave out
    aligned = PatchBank(images, placement="aligned").bind(explained, roi[None])
    assert [aligned.population(0, u) for u in (box((0, 0), (2, 2)), box((2, 2), (2, 2)))] == [3, 2]
    assert [aligned.locate(0, box((2, 2), (2, 2)), k)[0] for k in range(2)] == [0, 2]


class Lazy:
    """A data set that counts what is read."""

    def __init__(self, images):
        self.images, self.reads = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index]


def test_lazy_images_are_read_once_to_be_checked_and_then_as_they_are_drawn():
    images = Lazy(numbered(10, 1, 8, 8))
    bank = PatchBank(images, cache_images=2)
    assert images.reads == 0
    for _ in range(2):
        bound = bank.bind(torch.zeros(1, 1, 16, 16))
        assert images.reads <= 10 + 2
    before = images.reads
    unit = box((0, 0), (8, 8))
    for number in (3, 3, 4, 3, 5, 3):
        bound.read(0, unit, number)
    assert images.reads - before == 3
    assert len(bank._images._cache) == 2


def test_from_dataset_finds_the_image_in_an_item_and_takes_a_declared_subset():
    images = numbered(20, 1, 8, 8)
    for items, key in (
        ([{"image": image, "label": 0} for image in images], "image"),
        ([(image, 0) for image in images], None),
        ([(0, image) for image in images], 1),
        (images, None),
    ):
        bank = PatchBank.from_dataset(items, key, n_images=5, seed=3)
        chosen = [int(bank._images[i][0, 0, 0]) // 64 for i in range(5)]
        assert chosen == sorted(set(chosen))
        assert chosen == [int(PatchBank.from_dataset(images, n_images=5, seed=3)._images[i][0, 0, 0]) // 64 for i in range(5)]
    others = [int(PatchBank.from_dataset(images, n_images=5, seed=4)._images[i][0, 0, 0]) // 64 for i in range(5)]
    assert others != chosen
    with pytest.raises(ValueError, match="key: the data set's items are dictionaries"):
        PatchBank.from_dataset([{"image": images[0]}]).bind(images)
    with pytest.raises(ValueError, match=r"n_images: expected 1\.\.20, got 21"):
        PatchBank.from_dataset(images, n_images=21)


def test_from_folder_reads_pictures_in_order_of_name(tmp_path):
    from PIL import Image

    for index, value in enumerate((10, 200, 90)):
        Image.fromarray(np.full((12, 9), value, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    bank = PatchBank.from_folder(tmp_path, "*.png", transform=lambda image: image / 255)
    bound = bank.bind(torch.zeros(1, 1, 32, 32))
    unit = box((0, 0), (9, 9))
    first = [float(bound.read(0, unit, number)[0, 0, 0]) for number in (0, 4, 8)]
    assert first == pytest.approx([10 / 255, 200 / 255, 90 / 255])
    with pytest.raises(ValueError, match=r"folder: no file matches '\*\.nii' in "):
        PatchBank.from_folder(tmp_path, "*.nii")


def test_from_folder_reads_volumes(tmp_path):
    import nibabel

    volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    bound = PatchBank.from_folder(tmp_path, "*.nii.gz").bind(torch.zeros(1, 1, 8, 8, 8))
    unit = box((0, 0, 0), (4, 5, 6))
    assert bound.population(0, unit) == 1
    np.testing.assert_array_equal(bound.read(0, unit, 0)[0], volume)


def test_constants_and_blur_have_one_donor():
    image = torch.rand(2, 3, 16, 16)
    unit = box((4, 4), (4, 4))
    constant = Constant([1.0, 2.0, 3.0]).bind(image)
    assert constant.population(0, unit) == 1
    assert constant.read(0, unit, 0).flatten().tolist() == [1, 2, 3]
    blur = Blur(2.0).bind(image)
    assert blur.population(1, unit) == 1
    blurred = blur.read(1, unit, 0)
    assert blurred.shape == (3, 4, 4)
    assert blurred.std() < image[1, :, 4:8, 4:8].std() / 2
    flat = Blur(2.0).bind(torch.full((1, 1, 16, 16), 0.7)).read(0, box((0, 0), (16, 16)), 0)
    torch.testing.assert_close(flat, torch.full((1, 16, 16), 0.7))  # no dark rim at the edges


def test_what_baselines_mean():
    image = torch.rand(2, 3, 8, 8)
    assert isinstance(as_donor_source(None, image), SameImage)
    assert isinstance(as_donor_source(0, image), Constant)
    assert isinstance(as_donor_source(torch.tensor(0.5), image), Constant)
    tensor = as_donor_source(torch.rand(5, 3, 1, 1), image)
    assert isinstance(tensor, PatchBank)
    bound = tensor.bind(image)
    assert bound.population(0, box((1, 1), (2, 2))) == 5
    assert bound.read(0, box((1, 1), (2, 2)), 3).shape == (3, 2, 2)
    bank = PatchBank(image)
    assert as_donor_source(bank, image) is bank


@given(st.lists(st.integers(0, 40), unique=True, max_size=20), st.integers(0, 30))
def test_skipping_holes_is_counting_what_is_left(holes, number):
    left = [k for k in range(100) if k not in holes]
    assert skip_holes(number, np.array(sorted(holes), dtype=np.int64)) == left[number]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 2, 8, 8), r"donor image 0 has shape \(2, 8, 8\); expected .* C=3"),
        (torch.rand(4, 3, 8), r"donor image 0 has shape \(3, 8\); expected .* 2 spatial axes"),
        (torch.full((4, 3, 8, 8), float("nan")), "donor image 0 holds NaN or infinite"),
        ([torch.rand(3, 8, 8), torch.full((3, 8, 8), float("inf"))], "donor image 1 holds NaN or infinite"),
        (torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8), r"donors are torch\.uint8, the input torch\.float32"),
    ],
)
def test_donors_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=f"baselines: .*{message}"):
        PatchBank(images).bind(torch.rand(1, 3, 16, 16))


def test_donors_smaller_than_a_unit_are_refused():
    bound = PatchBank([torch.rand(1, 8, 8), torch.rand(1, 8, 3)]).bind(torch.rand(1, 1, 16, 16))
    with pytest.raises(
        ValueError, match=r"baselines: donor image 1 of \(8, 3\) pixels is smaller than a unit of \(4, 4\) pixels"
    ):
        bound.population(0, box((0, 0), (4, 4)))


def test_aligned_donors_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"baselines: with aligned placement .* \(16, 16\); image 0 has \(15, 16\)"):
        PatchBank(torch.rand(2, 1, 15, 16), placement="aligned").bind(torch.rand(1, 1, 16, 16))


def test_bad_banks_are_refused_at_once():
    with pytest.raises(ValueError, match="images: the bank is empty"):
        PatchBank([])
    with pytest.raises(ValueError, match='placement: expected "anywhere" or "aligned", got \'here\''):
        PatchBank(torch.rand(1, 1, 8), placement="here")
    with pytest.raises(TypeError, match="images: expected a tensor or a sequence of images, got int"):
        PatchBank(3)
    with pytest.raises(ValueError, match="cache_images: expected a positive integer, got 0"):
        PatchBank(torch.rand(1, 1, 8), cache_images=0)
    with pytest.raises(ValueError, match="value: expected a finite number"):
        Constant(float("nan"))
    with pytest.raises(ValueError, match="baselines: 2 values given for images of 3 channels"):
        Constant([1.0, 2.0]).bind(torch.rand(1, 3, 8))
    with pytest.raises(ValueError, match="sigma: expected a positive number of pixels, got 0"):
        Blur(0)


def test_a_dataset_that_changes_under_our_hands_is_refused():
    class Fickle(Lazy):
        def __getitem__(self, index):
            self.reads += 1
            return torch.rand(1, 8 + self.reads, 8)

    bank = PatchBank(Fickle(torch.rand(2, 1, 8, 8)), cache_images=1)
    with pytest.raises(ValueError, match="changed its shape between two reads"):
        bank.bind(torch.rand(1, 1, 16, 16)).read(0, box((0, 0), (4, 4)), 0)
