"""Every other donor, and sources in two halves."""

from functools import partial

import numpy as np
import pytest
import torch
from donor_cases import a_batch, assert_many_are_each, box, numbered

from captum_causalseg import Constant, NeighborBank, PatchBank, SameImage
from captum_causalseg.donors.every_other import EveryOther
from captum_causalseg.donors.split import halves


def test_the_two_parts_are_all_donors_each_once():
    images, unit = numbered(2, 2, 6, 7), box((1, 2), (2, 3))
    whole, *parts = (source.bind(images) for source in (SameImage(), EveryOther(SameImage(), 0), EveryOther(SameImage(), 1)))
    places = [[part.locate(1, unit, k)[1] for k in range(part.population(1, unit))] for part in parts]
    everything = [whole.locate(1, unit, k)[1] for k in range(whole.population(1, unit))]
    assert sorted(places[0] + places[1]) == sorted(everything)
    assert abs(len(places[0]) - len(places[1])) <= 1
    for part, own in zip(parts, places):
        for k, corner in enumerate(own):
            assert torch.equal(part.read(1, unit, k), images[1][(slice(None), *box(corner, (2, 3)))])


@pytest.mark.parametrize("first", [0, 1])
def test_many_are_each(first):
    bound = EveryOther(SameImage(), first).bind(numbered(3, 2, 7, 9).sin())
    assert_many_are_each(bound, a_batch(bound, (7, 9), (2, 3), 3))


@pytest.mark.parametrize("first", [0, 1])
def test_a_single_donor_is_in_both(first):
    bound, unit = EveryOther(Constant(3.0), first).bind(numbered(1, 1, 4, 4)), box((0, 0), (2, 2))
    assert bound.population(0, unit) == 1
    assert bound.read(0, unit, 0).unique().tolist() == [3.0]
    corners, zero = np.zeros((2, 2), dtype=np.int64), np.zeros(2, dtype=np.int64)
    assert bound.read_many(zero, corners, size=(2, 2), numbers=zero).unique().tolist() == [3.0]


def test_donors_that_are_fitted_to_their_place_stay_fitted():
    image, unit = numbered(1, 1, 8, 8), box((2, 2), (2, 2))
    source = PatchBank(torch.rand(6, 1, 8, 8), match="mean")
    bound = EveryOther(source, 1).bind(image)
    mean = float(image[0][(slice(None), *unit)].mean())
    assert float(bound.mean_value(0, unit).mean()) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("kind", [PatchBank, partial(NeighborBank, k=2, ring=1)])
def test_images_are_parted_as_images(kind):
    images = torch.arange(10.0).view(10, 1, 1, 1) + torch.rand(10, 1, 8, 8) / 10
    first, second = halves(kind(images), seed=3)
    unit = box((0, 0), (4, 4))
    values = []
    for bound in (one.bind(torch.full((1, 1, 8, 8), 0.5)) for one in (first, second)):
        values.append({int(bound.read(0, unit, k).mean()) for k in range(bound.population(0, unit))})
    assert not values[0] & values[1]
    assert [one.n_images for one in (first, second)] == [5, 5]
    assert halves(kind(images), seed=3)[0].describe().keys() == first.describe().keys()


def test_too_few_images():
    with pytest.raises(ValueError, match=r"baselines: expected at least 4 donor images, .* got 3"):
        halves(PatchBank(torch.rand(3, 1, 4, 4)), seed=0)
