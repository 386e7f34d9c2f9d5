"""Donors from the explained image itself."""

import pytest
import torch
from donor_cases import SPATIAL, box, numbered, windows

from captum_causalseg import SameImage, regions


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
