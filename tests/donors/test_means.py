"""Exact means of donors, against the mean over every one of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_causalseg import Blur, Constant, PatchBank, SameImage, regions
from captum_causalseg.donors import BoundDonors

SPATIAL = {1: (11,), 2: (9, 12), 3: (6, 7, 5)}


class Lazy:
    """Images that are counted as they are read."""

    def __init__(self, images) -> None:
        self.images, self.reads = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.images[index]


def box(start, size):
    return tuple(slice(a, a + b) for a, b in zip(start, size))


def assert_mean_is_literal(bound: BoundDonors, example: int, unit) -> None:
    literal = torch.stack([bound.read(example, unit, k).double() for k in range(bound.population(example, unit))]).mean(0)
    found = bound.mean(example, unit)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, literal, atol=1e-11, rtol=0)


@given(st.data())
def test_means_over_a_bank_are_those_of_all_its_donors(data):
    d = data.draw(st.integers(1, 3), "axes")
    channels = data.draw(st.integers(1, 2), "channels")
    highest = {1: 14, 2: 9, 3: 6}[d]
    sizes = st.tuples(*[st.integers(4, highest)] * d)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    images = [torch.randn(channels, *data.draw(sizes), generator=generator) for _ in range(data.draw(st.integers(1, 3)))]
    explained = images[0][None]
    roi = torch.rand(1, *explained.shape[2:], generator=generator) > data.draw(st.sampled_from([0.0, 0.8, 0.97]))
    lazy = data.draw(st.booleans(), "lazy")
    bound = PatchBank(Lazy(images) if lazy else images, cache_images=1).bind(explained, roi)
    for _ in range(3):  # small boxes before large ones and the other way round
        size = data.draw(st.tuples(*[st.integers(1, 4)] * d), "size")
        unit = box([0] * d, size)
        if bound.population(0, unit):
            assert_mean_is_literal(bound, 0, unit)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_means_over_aligned_donors_leave_out_the_explained_images_roi(d):
    images = torch.randn(4, 2, *SPATIAL[d])
    roi = regions.box(SPATIAL[d], start=2, size=2)
    bound = PatchBank(images, placement="aligned").bind(images[[1, 2]], roi[None])
    for example in range(2):
        for start in ((0,) * d, (2,) * d):
            assert_mean_is_literal(bound, example, box(start, (2, 3, 2)[:d]))
    assert bound.population(0, box((2,) * d, (2, 3, 2)[:d])) == 3


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("masks", ["none", "shared", "per example"])
def test_means_over_the_same_image_leave_out_the_unit_and_the_roi(d, masks):
    images = torch.randn(2, 2, *SPATIAL[d])
    rois = torch.stack([regions.box(SPATIAL[d], start=start, size=1) for start in (1, 3)])
    bound = SameImage().bind(images, {"none": None, "shared": rois[:1], "per example": rois}[masks])
    for example in range(2):
        for start, size in (((4, 5, 2), (2, 3, 2)), ((0, 0, 0), (3, 2, 1)), ((0, 9, 3), (2, 3, 2))):
            assert_mean_is_literal(bound, example, box(start[:d], size[:d]))


def test_means_of_single_donors_are_the_donors():
    images = torch.rand(2, 3, 8, 8)
    unit = box((2, 3), (4, 4))
    assert float(Constant(0.25).bind(images).mean(1, unit)) == 0.25
    blurred = Blur(2.0).bind(images)
    assert torch.equal(blurred.mean(1, unit), blurred.read(1, unit, 0).double())


def test_a_bank_is_read_once_for_all_images_and_units():
    images = Lazy(torch.rand(5, 1, 16, 16))
    bank = PatchBank(images, cache_images=1)
    bank.bind(torch.rand(1, 1, 16, 16))
    before = images.reads
    for _ in range(3):
        bound = bank.bind(torch.rand(1, 1, 16, 16))
        for start in ((0, 0), (8, 0), (8, 8)):
            bound.mean(0, box(start, (8, 8)))
            bound.mean(0, box(start, (5, 8)))
    # Binding looks at the first image; every other read would be of all five.
    assert images.reads - before <= 5 + 3


def test_sources_of_ones_own_have_a_mean_too():
    class Numbered(BoundDonors):
        def population(self, example, box):
            return 3

        def locate(self, example, box, number):
            return number, ()

        def read(self, example, box, number):
            return torch.full((1, 2, 2), float(number**2))

    assert torch.equal(Numbered().mean(0, box((0, 0), (2, 2))), torch.full((1, 2, 2), 5 / 3, dtype=torch.float64))
