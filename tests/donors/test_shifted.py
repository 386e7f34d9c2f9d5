"""The unit's own tissue, shifted."""

import itertools

import numpy as np
import pytest
import torch
from donor_cases import SPATIAL, a_batch, assert_many_are_each, box, numbered

from captum_causalseg import AverageTreatmentEffect, PatchBank
from captum_causalseg.donors import Shifted


def places_by_hand(spatial, start, size, pixels, roi=None):
    """Every place that differs along one axis by 1 to ``pixels``, lies in the image and holds nothing of the RoI."""
    found = []
    for place in itertools.product(*(range(length) for length in spatial)):
        moved = [abs(a - b) for a, b in zip(place, start)]
        inside = all(a + n <= length for a, n, length in zip(place, size, spatial))
        free = roi is None or not bool(roi[box(place, size)].any())
        if sum(step > 0 for step in moved) == 1 and max(moved) <= pixels and inside and free:
            found.append(place)
    return found


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("pixels", [1, 2])
@pytest.mark.parametrize("with_roi", [False, True])
def test_every_shift_that_fits_is_a_donor_once(d, pixels, with_roi):
    spatial, size = SPATIAL[d], (2, 3, 2)[:d]
    image = numbered(2, 2, *spatial)
    roi = torch.zeros(spatial, dtype=torch.bool)
    roi[(3,) * d] = True
    bound = Shifted(pixels).bind(image, roi[None] if with_roi else None)
    for start in itertools.product(*(range(length - n + 1) for length, n in zip(spatial, size))):
        expected = places_by_hand(spatial, start, size, pixels, roi if with_roi else None)
        found = []
        for number in range(bound.population(1, box(start, size))):
            example, corner = bound.locate(1, box(start, size), number)
            assert example == 1
            assert torch.equal(bound.read(1, box(start, size), number), image[1][(slice(None), *box(corner, size))])
            found.append(corner)
        assert sorted(found) == expected
        assert len(found) <= 2 * pixels * d == bound.most


def test_many_are_each():
    images = numbered(3, 2, 7, 9).sin()
    bound = Shifted().bind(images)
    assert_many_are_each(bound, a_batch(bound, (7, 9), (2, 3), 3))


def test_each_example_has_its_own_forbidden_pixels():
    images, roi = numbered(2, 1, 6, 6), torch.zeros(2, 6, 6, dtype=torch.bool)
    roi[1, 3, 2] = True
    bound = Shifted(1).bind(images, roi)
    unit = box((1, 2), (2, 2))
    assert [bound.population(n, unit) for n in range(2)] == [4, 3]
    assert (2, 2) not in [bound.locate(1, unit, k)[1] for k in range(3)]  # down is where the RoI is


def test_as_a_source_it_is_exact_once_all_are_used():
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ate = AverageTreatmentEffect(lambda x: x.amax((1, 2, 3)) + x.square().mean((1, 2, 3)))
    _, stats = ate.attribute(image, Shifted(1), block_size=4, n_draws=10, return_statistics=True)
    assert stats.n_draws.tolist() == [[2, 2, 2, 2]]  # from a corner, into the image
    assert float(stats.standard_error.max()) == 0
    right, down = image.clone(), image.clone()
    right[..., :4, :4], down[..., :4, :4] = image[..., :4, 1:5], image[..., 1:5, :4]
    expected = ate.forward_func(image) - (ate.forward_func(right) + ate.forward_func(down)) / 2
    np.testing.assert_allclose(stats.effect[0, 0], expected[0], atol=1e-6)


def test_without_spatial_axes_there_is_no_shift():
    with pytest.raises(ValueError, match=r"baselines: inputs of shape \(2, 5\) have no spatial axes"):
        Shifted().bind(torch.rand(2, 5))


def test_a_unit_as_large_as_the_image_has_none():
    bound = Shifted().bind(torch.rand(1, 1, 4, 4))
    assert bound.population(0, box((0, 0), (4, 4))) == 0
    with pytest.raises(ValueError, match="no donor is left for unit 0"):
        AverageTreatmentEffect(lambda x: x.sum((1, 2, 3))).attribute(torch.rand(1, 1, 4, 4), Shifted(), block_size=4)


@pytest.mark.parametrize("pixels", [0, 1.5, "2"])
def test_bad_pixels(pixels):
    with pytest.raises((TypeError, ValueError), match=r"^pixels: expected"):
        Shifted(pixels)


def test_what_it_is_called():
    assert repr(Shifted()) == "Shifted(pixels=2)"
    assert Shifted().of_the_image
    assert not PatchBank(torch.rand(2, 1, 4, 4)).of_the_image
