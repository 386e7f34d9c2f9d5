"""Donor sources: populations, places, what is read, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg import ActivationBank, Blur, Constant, PatchBank, SameImage, regions
from captum_causalseg.donors import BoundDonors, SelfDonor, as_donor_source, gather
from captum_causalseg.donors.gather import Request
from captum_causalseg.donors.numbering import skip_holes

SPATIAL = {1: (9,), 2: (7, 9), 3: (5, 6, 7)}


def numbered(*shape):
    """Every element its own value."""
    return torch.arange(float(np.prod(shape)), device="cpu").reshape(shape)


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


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_a_units_own_values_are_its_only_donor(d):
    images = three_examples(d)
    bound = SelfDonor().bind(images)
    unit = box((1,) * d, (2, 3, 2)[:d])
    for example in range(3):
        assert bound.population(example, unit) == 1
        assert torch.equal(bound.read(example, unit, 0), images[example][(slice(None), *unit)])


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
    numbers = np.array([number, 0, number + 3])
    assert skip_holes(numbers, np.array(sorted(holes), dtype=np.int64)).tolist() == [left[k] for k in numbers]


# --- Many at once ----------------------------------------------------------------------------------------------------


class Steps(BoundDonors):
    """A source of a user's own, with no more than it must have; every other donor is one number."""

    def population(self, example, box):
        return 5

    def locate(self, example, box, number):
        return -1, tuple(side.start for side in box)

    def read(self, example, box, number):
        shape = tuple(side.stop - side.start for side in box)
        shape = shape if number % 2 else (1,) * len(shape)
        return numbered(2, *shape) + 100 * number + 1000 * example + sum(side.start for side in box)


def three_examples(d):
    return numbered(3, 2, *SPATIAL.get(d, ())).sin()


def another(d, count=2):
    return numbered(count, 2, *SPATIAL.get(d, ())).cos()


def with_the_explained(d):
    """A bank in which example 0 is not found, example 1 once and example 2 twice."""
    return torch.cat([another(d), three_examples(d)[[2, 1, 2]]])


def rois(d, count):
    spatial = SPATIAL.get(d, ())
    found = [regions.box(spatial, start=(1 + k, 2, 3 - k)[:d], size=2) for k in range(count)] if d else [torch.tensor(True)]
    return torch.stack(found)


ANYWHERE = {
    "bank": lambda d: PatchBank(another(d)),
    "bank, own RoI": lambda d: PatchBank(with_the_explained(d)),
    "bank, own RoI, of a list": lambda d: PatchBank(list(with_the_explained(d))),
    "bank, own RoI, read lazily": lambda d: PatchBank(Lazy(with_the_explained(d)), cache_images=2),
    "bank, of any memory order": lambda d: PatchBank(another(d).flip(1).transpose(0, 1).contiguous().transpose(0, 1)),
    "bank, of different sizes": lambda d: PatchBank([numbered(2, *(n + k,) * d) for k, n in enumerate((9, 5, 20))]),
    "same image": lambda d: SameImage(),
    "blur": lambda d: Blur(1.5),
}
ANY_AXES = {
    "constant": lambda d: Constant(0.3),
    "a unit's own values": lambda d: SelfDonor(),
    "constant per channel": lambda d: Constant([0.3, -2.0]),
    "aligned": lambda d: PatchBank(another(d, 4), placement="aligned"),
    "aligned, own RoI": lambda d: PatchBank(with_the_explained(d), placement="aligned"),
    "aligned, own RoI, of a list": lambda d: PatchBank(list(with_the_explained(d)), placement="aligned"),
    "aligned, own RoI, read lazily": lambda d: PatchBank(Lazy(with_the_explained(d)), placement="aligned", cache_images=2),
    "aligned, one value for all pixels": lambda d: as_donor_source(another(d).mean(tuple(range(2, d + 2)), True), another(d)),
}
SOURCES = [(name, source, d) for name, source in ANYWHERE.items() for d in (1, 2, 3)]
SOURCES += [(name, source, d) for name, source in ANY_AXES.items() for d in (0, 1, 2, 3)]
every_source = pytest.mark.parametrize(("source", "d"), [pytest.param(s, d, id=f"{n}, {d}D") for n, s, d in SOURCES])


def a_batch(bound, spatial, size, n_examples, count=60):
    """Random units of random examples, first donors and last ones among the drawn: ``examples, corners, size, numbers``."""
    rng = np.random.default_rng(0)
    examples = rng.integers(0, n_examples, count)
    grid = np.array([length - side + 1 for length, side in zip(spatial, size)], dtype=np.int64)
    corners = rng.integers(0, grid, (count, len(size)))
    populations = [bound.population(e, box(c, size)) for e, c in zip(examples.tolist(), corners.tolist())]
    numbers = rng.integers(0, populations)
    numbers[::5], numbers[1::5] = 0, np.array(populations)[1::5] - 1
    return examples, corners, size, numbers


def one_by_one(bound, examples, corners, size, numbers):
    rows = zip(examples.tolist(), corners.tolist(), numbers.tolist())
    return torch.stack([bound.read(e, box(c, size), k).expand(-1, *size) for e, c, k in rows])


def assert_many_are_each(bound, batch):
    expected = one_by_one(bound, *batch)
    with torch.device("meta"):  # whatever is made anywhere is of no use
        found = bound.read_many(*batch)
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    assert torch.equal(found, expected)
    assert torch.equal(found.add_(1), expected + 1)  # every element in a place of its own
    assert torch.equal(one_by_one(bound, *batch), expected)  # it was a copy


@every_source
@pytest.mark.parametrize("n_rois", [0, 1, 3])
def test_many_donors_at_once_are_the_donors_one_by_one(source, d, n_rois):
    size = (2, 3, 2)[:d]
    bound = source(d).bind(three_examples(d), rois(d, n_rois) if n_rois else None)
    assert_many_are_each(bound, a_batch(bound, SPATIAL.get(d, ()), size, 3))


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_a_source_of_ones_own_can_be_read_many_at_once(d):
    assert_many_are_each(Steps(), a_batch(Steps(), (9,) * d, (3, 1, 2)[:d], 4))


@pytest.mark.parametrize("listed", [False, True])
def test_many_donors_at_once_of_every_unit_leave_no_place_out(listed):
    """Against the literal list of places, not against ``read``: they have code in common."""
    images = with_the_explained(2)
    bound = PatchBank(list(images) if listed else images).bind(three_examples(2), rois(2, 3))
    for example, own in enumerate([(), (3,), (2, 4)]):
        roi = rois(2, 3)[example]
        truth = [
            values
            for index, image in enumerate(images)
            for corner, values in windows(image, (2, 3)).items()
            if index not in own or not roi[box(corner, (2, 3))].any()
        ]
        count = bound.population(example, box((1, 1), (2, 3)))
        assert count == len(truth)
        rows = np.full(count, example), np.ones((count, 2), dtype=int), (2, 3), np.arange(count)
        assert torch.equal(bound.read_many(*rows), torch.stack(truth))


def test_a_memory_mapped_bank_is_gathered_from(tmp_path):
    mapped = np.memmap(tmp_path / "bank", dtype=np.float32, mode="w+", shape=(4, 2, *SPATIAL[2]))
    mapped[:] = another(2, 4).numpy()
    bound = PatchBank(mapped).bind(three_examples(2))
    batch = a_batch(bound, SPATIAL[2], (2, 3), 3)
    assert_many_are_each(bound, batch)
    assert torch.equal(bound.read_many(*batch), PatchBank(another(2, 4)).bind(three_examples(2)).read_many(*batch))


@given(st.data(), st.integers(1, 3), st.sampled_from(["stacked", "listed", "lazy", "same image"]), st.booleans())
def test_many_donors_of_any_shape(data, d, kind, aligned):
    size = tuple(data.draw(st.lists(st.integers(1, 3), min_size=d, max_size=d)))
    spatial = tuple(3 * side + data.draw(st.integers(0, 2)) for side in size)
    images = torch.rand(4, data.draw(st.integers(1, 2)), *spatial)
    roi = torch.zeros(spatial, dtype=torch.bool)
    roi[box([data.draw(st.integers(0, side - 1)) for side in size], (1,) * d)] = True
    held = {"stacked": images, "listed": list(images), "lazy": Lazy(images), "same image": None}[kind]
    source = SameImage() if held is None else PatchBank(held, "aligned" if aligned else "anywhere", cache_images=1)
    bound = source.bind(images[1:3], roi[None] if data.draw(st.booleans()) else None)
    far = tuple(length - side for length, side in zip(spatial, size))  # leaves room for a donor beside the RoI
    corners = np.array([far, far, [0] * d] if held is not None else [far, far, far])
    examples = np.array([0, 1, 0])
    populations = [bound.population(e, box(c, size)) for e, c in zip(examples.tolist(), corners.tolist())]
    numbers = np.array([data.draw(st.integers(0, count - 1)) for count in populations])
    assert_many_are_each(bound, (examples, corners, size, numbers))


def some_requests(bound, d, sizes):
    """Two requests of each size, of different examples, weights with and without channels; and one for nothing."""
    requests = []
    for size, channels in itertools.product(sizes, (1, 2)):
        for example, corner in ((0, (1,) * d), (2, (0,) * d)):
            unit = box(corner, size)
            numbers = np.random.default_rng(len(requests)).integers(0, bound.population(example, unit), 7 + len(requests))
            requests.append(Request(example, unit, numbers, torch.rand(channels, *size) - 0.5))
    return [*requests, Request(0, unit, np.empty(0, dtype=np.int64), torch.rand(1, *size))]


def literal_products(bound, request):
    products = []
    for number in request.numbers.tolist():
        donor = bound.read(request.example, request.box, number)
        donor, weights = torch.broadcast_tensors(donor.double(), request.weights.double())
        products.append(sum(a * b for a, b in zip(donor.flatten().tolist(), weights.flatten().tolist())))
    return products


def assert_products_are_literal(bound, requests):
    with torch.device("meta"):
        found = bound.inner_products(requests)
    assert len(found) == len(requests)
    for products, request in zip(found, requests):
        assert products.dtype == np.float64
        np.testing.assert_allclose(products, literal_products(bound, request), rtol=1e-11, atol=1e-11)


@every_source
@pytest.mark.parametrize("most", [1, 40, 2**22])
def test_inner_products_are_the_sums_over_the_elements(monkeypatch, source, d, most):
    monkeypatch.setattr(gather, "_MOST_VALUES", most)
    bound = source(d).bind(three_examples(d), rois(d, 3) if d else None)
    assert_products_are_literal(bound, some_requests(bound, d, {(2, 3, 2)[:d], (1, 2, 3)[:d]}))


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_inner_products_with_donors_of_a_source_of_ones_own(d):
    assert_products_are_literal(Steps(), some_requests(Steps(), d, {(3, 1, 2)[:d]}))


def test_inner_products_are_summed_in_double_precision():
    donors = torch.tensor([1e8, 1.0, -1e8]).reshape(1, 1, 3)
    bound = PatchBank(donors).bind(torch.zeros(1, 1, 3))
    request = Request(0, box((0,), (3,)), np.array([0]), torch.ones(1, 3))
    assert bound.inner_products([request])[0].tolist() == [1.0]


def test_no_requests_no_products():
    for source in (Constant(0.0), PatchBank(another(2)), PatchBank(list(another(2)))):
        assert source.bind(three_examples(2)).inner_products([]) == []


def test_inner_products_read_every_lazy_image_once():
    images = Lazy(with_the_explained(2))
    bound = PatchBank(images, cache_images=1).bind(three_examples(2), rois(2, 1))
    requests = some_requests(bound, 2, {(2, 3), (3, 3), (1, 1)})
    bound.read(1, box((0, 0), (1, 1)), 0)  # image 0 is in the cache now
    before = images.reads
    bound.inner_products(requests)
    assert images.reads - before == len(images) - 1
    before = images.reads
    last = bound.population(1, box((0, 0), (1, 1))) - 1
    bound.inner_products([Request(1, box((0, 0), (1, 1)), np.array([last, 0, last, 0]), torch.ones(1, 1, 1))] * 3)
    assert images.reads - before == 2  # no other image


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_inner_products_hold_few_donors_at_once(monkeypatch, lazy, channels):
    bound = PatchBank(Lazy(another(2)) if lazy else another(2)).bind(three_examples(2))
    held = []

    def noting(values, weights, *, summed=gather.weighted_sums):
        held.append(values.numel())
        return summed(values, weights)

    monkeypatch.setattr(gather, "_MOST_VALUES", 50)
    monkeypatch.setattr("captum_causalseg.donors.source.weighted_sums", noting)
    monkeypatch.setattr("captum_causalseg.donors.gather.weighted_sums", noting)
    bound.inner_products([Request(0, box((0, 0), (2, 3)), np.arange(60), torch.ones(channels, 2, 3))])
    assert sum(held) == 60 * 12
    assert max(held) == 48


@pytest.mark.gpu
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("placement", ["anywhere", "aligned"])
def test_donors_are_gathered_where_they_are(placement, listed):
    images = with_the_explained(2)
    there = images.cuda()
    bound = PatchBank(images, placement).bind(three_examples(2), rois(2, 3))
    on_gpu = PatchBank(list(there) if listed else there, placement).bind(three_examples(2), rois(2, 3))
    batch = a_batch(bound, SPATIAL[2], (2, 3), 3)
    assert_many_are_each(on_gpu, batch)
    assert torch.equal(on_gpu.read_many(*batch).cpu(), bound.read_many(*batch))
    assert_products_are_literal(on_gpu, some_requests(bound, 2, {(2, 3), (3, 3)}))


def test_many_lazily_read_donors_read_every_image_once():
    images = Lazy(another(2, 6))
    bound = PatchBank(images, cache_images=1).bind(three_examples(2))
    batch = a_batch(bound, SPATIAL[2], (2, 3), 3)
    before = images.reads
    bound.read_many(*batch)
    assert images.reads - before == 5  # the first was still there


# --- What is refused -------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="cache_images: expected at least 1, got 0"):
        PatchBank(torch.rand(1, 1, 8), cache_images=0)
    with pytest.raises(ValueError, match="value: expected a finite number"):
        Constant(float("nan"))
    with pytest.raises(ValueError, match="baselines: 2 values given for images of 3 channels"):
        Constant([1.0, 2.0]).bind(torch.rand(1, 3, 8))
    with pytest.raises(ValueError, match="sigma: expected a positive number, got 0"):
        Blur(0)


def test_a_dataset_that_changes_under_our_hands_is_refused():
    class Fickle(Lazy):
        def __getitem__(self, index):
            self.reads += 1
            return torch.rand(1, 8 + self.reads, 8)

    bank = PatchBank(Fickle(torch.rand(2, 1, 8, 8)), cache_images=1)
    with pytest.raises(ValueError, match="changed its shape between two reads"):
        bank.bind(torch.rand(1, 1, 16, 16)).read(0, box((0, 0), (4, 4)), 0)


# --- What people give in the place of images -------------------------------------------------------------------------


def test_paths_are_no_images_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^images\[0\]: there is no file 'nope\.png'$"):
        PatchBank(["nope.png"])
    with pytest.raises(FileNotFoundError, match=r"^images: there is no file 'nope\.png'$"):
        PatchBank("nope.png")
    path = tmp_path / "there.png"
    path.touch()
    with pytest.raises(
        TypeError, match=r"^images\[1\]: expected an image .*there\.png'; PatchBank.from_folder reads the files of"
    ):
        PatchBank([torch.rand(1, 8, 8), path])
    with pytest.raises(FileNotFoundError, match=r"^folder: there is no folder '.*nowhere'$"):
        PatchBank.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ({"a": torch.rand(1, 8, 8)}, r"^images: expected a tensor or a sequence of images, got dict$"),
        (b"abc", r"^images: expected a tensor or a sequence of images, got bytes$"),
        ([torch.rand(1, 8, 8), 3], r"^images\[1\]: expected a tensor or an array of real numbers, got int$"),
        (torch.rand(8), r"^images: expected shape \(D, C, \*spatial\), got \(8,\)$"),
        (torch.rand(2, 1, 8, 8) + 0j, r"^images: expected real numbers, got torch\.complex64$"),
    ],
)
def test_what_is_no_images_is_refused_at_once(images, match):
    for make in (PatchBank, ActivationBank):
        with pytest.raises((TypeError, ValueError), match=match):
            make(images)


def test_items_of_a_data_set_that_are_no_images_are_refused_when_they_are_read():
    bank = PatchBank.from_dataset([{"image": 3}], key="image")
    with pytest.raises(TypeError, match=r"^images: expected tensors or arrays \(C, \*spatial\), got int for donor image 0$"):
        bank.bind(torch.rand(1, 1, 8, 8))
