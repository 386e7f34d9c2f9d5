"""Boxes against loops over pixels."""

import itertools

import numpy as np
import pytest
import torch

from captum_causalseg.boxes import box_at, crop, hull, number_blocks, size_of

SHAPES = [(7,), (5, 6), (3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("margin", [0, 2])
def test_the_hull_is_the_smallest_box_that_holds_every_pixel(shape, margin):
    for seed in range(20):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.9
        mask[tuple(length // 2 for length in shape)] = True
        places = [place for place in itertools.product(*map(range, shape)) if mask[place]]
        for axis, side in enumerate(hull(mask, margin)):
            along = [place[axis] for place in places]
            assert (side.start, side.stop) == (max(0, min(along) - margin), min(shape[axis], max(along) + 1 + margin))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_cut_out_of_each_example_at_its_own_corner(shape):
    values = torch.rand(3, 2, *shape)
    size = tuple(length - 2 for length in shape)
    starts = np.array([[0] * len(shape), [2] * len(shape), [1] * len(shape)])
    for one, corners in ((values, starts), (values[:1], starts), (values, np.ones_like(starts))):
        found = crop(one, corners, size)
        for example, place in itertools.product(range(len(found)), itertools.product(*map(range, size))):
            there = tuple(a + b for a, b in zip(corners[example].tolist(), place))
            held = one[example if len(one) > 1 else 0]
            assert torch.equal(found[(example, slice(None), *place)], held[(slice(None), *there)])


def test_a_box_has_a_corner_and_a_size():
    box = box_at((2, 0, 5), (3, 1, 4))
    assert box == (slice(2, 5), slice(0, 1), slice(5, 9))
    assert size_of(box) == (3, 1, 4)


@pytest.mark.parametrize(("shape", "sizes"), [((7,), (3,)), ((5, 6), (2, 4)), ((3, 4, 5), (1, 3, 2))])
def test_blocks_are_numbered_along_the_last_axis_first(shape, sizes):
    found = number_blocks(shape, sizes)
    corners = itertools.product(*(range(0, length, size) for length, size in zip(shape, sizes)))
    for number, corner in enumerate(corners):
        assert (found[box_at(corner, sizes)] == number).all()
    assert found.max() == number


def test_a_block_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"block_size: a block of \(4, 2\) is larger than the image of \(3, 5\)"):
        number_blocks((3, 5), (4, 2))
