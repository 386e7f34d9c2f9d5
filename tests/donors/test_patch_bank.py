"""A bank of images: which donors there are, what is read, and parts of it."""

import numpy as np
import pytest
import torch
from donor_cases import SPATIAL, Lazy, a_batch, another, assert_many_are_each, box, numbered, three_examples, windows

from captum_causalseg import PatchBank, regions


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


def marks(bank):
    """The first element of every image of a bank."""
    return [int(bank._images[i].flatten()[0]) for i in range(len(bank))]


@pytest.mark.parametrize("kind", ["stacked", "listed", "array", "lazy"])
@pytest.mark.parametrize("placement", ["anywhere", "aligned"])
def test_a_bank_is_split_into_disjoint_parts(kind, placement):
    images = numbered(11, 1, 8, 8)
    held = {"stacked": images, "listed": list(images), "array": images.numpy(), "lazy": Lazy(images)}[kind]
    bank = PatchBank(held, placement, cache_images=2)
    for parts, lengths in (({}, (6, 5)), ({"parts": 3}, (4, 3, 4)), ({"parts": 11}, (1,) * 11)):
        split = bank.split(**parts)
        assert tuple(map(len, split)) == lengths
        assert sorted(mark for part in split for mark in marks(part)) == marks(bank)
        assert all(marks(part) == sorted(marks(part)) for part in split)
        assert {part.placement for part in split} == {placement}
    first, second = bank.split(0.3, 0.6, seed=1)  # a tenth is in no part
    assert (len(first), len(second)) == (3, 7)
    assert not set(marks(first)) & set(marks(second))
    (most,) = bank.split(0.8)
    assert len(most) == 9
    bound, unit = first.bind(torch.zeros(1, 1, 8, 8)), box((2, 3), (4, 4))
    places = 1 if placement == "aligned" else 25
    assert bound.population(0, unit) == 3 * places
    for number in range(3 * places):
        donor, corner = bound.locate(0, unit, number)
        truth = images[marks(first)[donor] // 64][(slice(None), *box(corner, (4, 4)))]
        assert torch.equal(bound.read(0, unit, number), truth)


def test_a_split_is_random_and_declared():
    bank = PatchBank(numbered(40, 1, 2, 2))
    splits = {seed: tuple(map(tuple, map(marks, bank.split(seed=seed)))) for seed in range(5)}
    assert len(set(splits.values())) == 5
    assert splits[3] == tuple(map(tuple, map(marks, bank.split(seed=3))))
    assert splits[0] == tuple(map(tuple, map(marks, bank.split())))
    in_first = sum(0 in marks(bank.split(seed=seed)[0]) for seed in range(200))
    assert 70 <= in_first <= 130


@pytest.mark.parametrize("listed", [False, True])
def test_a_split_copies_nothing(listed):
    images = numbered(6, 1, 8, 8)
    (part,) = PatchBank(list(images) if listed else images).split(0.5)
    assert {part._images[i].untyped_storage().data_ptr() for i in range(3)} == {images.untyped_storage().data_ptr()}


def test_a_split_of_lazy_images_reads_none_and_checks_only_what_is_new():
    images = Lazy(numbered(10, 1, 8, 8))
    bank = PatchBank(images, cache_images=2)
    first, _ = bank.split()
    assert images.reads == 0
    first.bind(torch.zeros(1, 1, 16, 16))
    assert images.reads <= 5 + 2
    bank.bind(torch.zeros(1, 1, 16, 16))
    before = images.reads
    checked, _ = bank.split()
    bound = checked.bind(torch.zeros(1, 1, 16, 16))
    assert bound.population(0, box((0, 0), (8, 8))) == 5
    assert images.reads - before <= 2
    for number in (3, 3, 4, 3, 2, 3):
        bound.read(0, box((0, 0), (8, 8)), number)
    assert len(checked._images._cache) == 2
    assert len(bank._images._cache) == 2


def test_part_of_a_bank_knows_the_explained_image():
    images = numbered(8, 1, 8, 8)
    roi = regions.box((8, 8), start=(2, 3), size=2)
    unit = box((0, 0), (3, 3))
    fresh, checked = PatchBank(images), PatchBank(images)
    checked.bind(images)
    populations = [part.bind(images[1:2], roi[None]).population(0, unit) for bank in (fresh, checked) for part in bank.split()]
    outside = sum(not bool(roi[box(corner, (3, 3))].any()) for corner in windows(images[1], (3, 3)))
    assert sorted(populations[:2]) == sorted(populations[2:]) == [3 * 36 + outside, 4 * 36]


def test_splits_that_cannot_be_are_refused():
    bank = PatchBank(numbered(5, 1, 4, 4))
    with pytest.raises(ValueError, match=r"parts: expected at least one image in every part, got 6 for a bank of 5 image"):
        bank.split(parts=6)
    with pytest.raises(
        ValueError, match=r"fractions: expected at least one image in every part, got \(0.95, 0.05\) for a bank"
    ):
        bank.split(0.95, 0.05)
    for fractions in ((0.7, 0.7), (0.5, 0.0), (-0.1,), (float("nan"),)):
        with pytest.raises(
            ValueError, match=r"fractions(\[0\])?: expected (positive numbers of sum 1 at most|a finite number), got "
        ):
            bank.split(*fractions)
    for parts in (0, 2.0, True):
        with pytest.raises(ValueError, match=f"parts: expected (at least 1|an integer or None), got {parts}"):
            bank.split(parts=parts)
    with pytest.raises(ValueError, match="parts: expected either fractions or parts"):
        bank.split(0.5, parts=2)


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


def test_a_memory_mapped_bank_is_gathered_from(tmp_path):
    mapped = np.memmap(tmp_path / "bank", dtype=np.float32, mode="w+", shape=(4, 2, *SPATIAL[2]))
    mapped[:] = another(2, 4).numpy()
    bound = PatchBank(mapped).bind(three_examples(2))
    batch = a_batch(bound, SPATIAL[2], (2, 3), 3)
    assert_many_are_each(bound, batch)
    assert torch.equal(bound.read_many(*batch), PatchBank(another(2, 4)).bind(three_examples(2)).read_many(*batch))


def test_donors_smaller_than_a_unit_are_refused():
    bound = PatchBank([torch.rand(1, 8, 8), torch.rand(1, 8, 3)]).bind(torch.rand(1, 1, 16, 16))
    with pytest.raises(
        ValueError, match=r"baselines: donor image 1 of \(8, 3\) pixels is smaller than a unit of \(4, 4\) pixels"
    ):
        bound.population(0, box((0, 0), (4, 4)))


def test_aligned_donors_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"baselines: with aligned placement .* \(16, 16\); image 0 has \(15, 16\)"):
        PatchBank(torch.rand(2, 1, 15, 16), placement="aligned").bind(torch.rand(1, 1, 16, 16))
