"""Donors fitted to the place they are pasted into: each fit against its formula, written out."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_causalseg.donors.fit import MATCHES, ConstantDonorError, Feather, Poisson, matched

BOXES = [(9,), (7, 6), (5, 6, 4)]


def patches(box: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(3, 2, *box, generator=generator, dtype=torch.float64)
    return 4 * torch.rand(3, 2, *box, generator=generator, dtype=torch.float64) - 1, own


def masks(box: tuple[int, ...]) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    return [None, torch.rand(1, *box, generator=generator) > 0.3, torch.rand(2, *box, generator=generator) > 0.3]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("match", MATCHES)
def test_matched_by_the_formula(box: tuple[int, ...], match: str) -> None:
    donors, own = patches(box)
    for mask in masks(box):
        found = matched(donors, own, mask, match)
        whole = torch.ones(2, *box, dtype=torch.bool) if mask is None else mask.expand(2, *box)
        for row, channel in itertools.product(range(3), range(2)):
            b, x = (values[row, channel][whole[channel]].numpy() for values in (donors, own))
            if match == "mean":
                wanted = b - b.mean() + x.mean()
            elif match == "mean_std":
                wanted = (b - b.mean()) / b.std() * x.std() + x.mean()
            else:
                wanted = np.sort(x)[np.argsort(np.argsort(b))]
            np.testing.assert_allclose(found[row, channel][whole[channel]].numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_unit_given_its_own_values_stays_as_it_is_to_the_last_bit(
    box: tuple[int, ...], match: str, dtype: torch.dtype
) -> None:
    own = (100 * patches(box)[1] - 7).to(dtype)
    own[0, 0] = own[0, 0].round()  # equal values, too
    for mask in masks(box):
        inside = torch.ones(2, *box, dtype=torch.bool) if mask is None else mask.expand(2, *box)
        assert torch.equal(matched(own, own, mask, match)[:, inside], own[:, inside])
    whole, sides = np.ones(box, dtype=bool), [(True, True)] * len(box)
    assert torch.equal(Feather(whole, sides, 1)(own, own), own)
    assert torch.equal(Poisson(whole, sides)(own, own), own)


def test_constant_donors_cannot_be_scaled() -> None:
    donors, own = patches((4, 4))
    donors[1, 1] = 0.1
    with pytest.raises(ConstantDonorError, match=r'match: "mean_std" scales .* channel 1 of a donor is constant'):
        matched(donors, own, None, "mean_std")
    # A constant unit makes any donor constant; a constant donor of a constant unit is shifted.
    own[1, 1], own[0, 0] = 0.7, 0.2
    found = matched(donors, own, None, "mean_std")
    np.testing.assert_allclose(found[1, 1].numpy(), 0.7)
    np.testing.assert_allclose(found[0, 0].numpy(), 0.2, atol=1e-12)


def test_feathering_by_hand() -> None:
    mask = np.ones((5, 6), dtype=bool)
    mask[0, 0] = False
    own, donors = torch.zeros(1, 1, 5, 6), torch.ones(1, 1, 5, 6)
    # Above, the image ends; a corner of the box is not the unit's. Distances are to the nearest pixel outside.
    found = Feather(mask, [(False, True), (True, True)], 2)(donors, own)[0, 0] * 3
    wanted = [
        [0, 1, 2, 3, 2, 1],
        [1, 2**0.5, 5**0.5, 3, 2, 1],
        [1, 2, 8**0.5, 3, 2, 1],
        [1, 2, 2, 2, 2, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_no_fading_where_the_unit_fills_the_image() -> None:
    mask = np.ones((3, 3), dtype=bool)
    closed = [(False, False)] * 2
    donors, own = torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3)
    assert torch.equal(Feather(mask, closed, 5)(donors, own), donors)
    assert torch.equal(Poisson(mask, closed)(donors, own), donors)


def test_a_blend_wider_than_the_unit() -> None:
    open_sides = [(True, True)] * 2
    Feather(np.ones((5, 9), dtype=bool), open_sides, 2)
    with pytest.raises(ValueError, match=r"blend: expected less than 3 pixel\(s\) for a unit of \(5, 9\) pixels, got 3"):
        Feather(np.ones((5, 9), dtype=bool), open_sides, 3)
    with pytest.raises(ValueError, match='border: "poisson" keeps the outermost pixels'):
        Poisson(np.ones((2, 9), dtype=bool), open_sides)


@pytest.mark.parametrize("box", BOXES)
def test_the_gradient_domain_literally(box: tuple[int, ...]) -> None:
    """Inside, every element's differences to its neighbors in the unit add up to the donor's; the border is the unit's own."""
    donors, own = patches(box)
    mask = np.ones(box, dtype=bool)
    mask[(0,) * len(box)] = False
    sides = [(True, True)] * (len(box) - 1) + [(False, True)]  # at the image's edge there is no border
    found = Poisson(mask, sides)(donors, own)
    n_inner = 0
    for place in itertools.product(*(range(side) for side in box)):
        if not mask[place]:
            continue
        around = [(*place[:axis], place[axis] + step, *place[axis + 1 :]) for axis in range(len(box)) for step in (-1, 1)]
        outside = [
            axis_step
            for axis_step, (axis, step) in zip(around, itertools.product(range(len(box)), (-1, 1)))
            if not (0 <= place[axis] + step < box[axis]) and sides[axis][(step + 1) // 2]
        ]
        neighbors = [other for other in around if all(0 <= o < side for o, side in zip(other, box)) and mask[other]]
        diagonal = any(
            all(abs(a - b) <= 1 for a, b in zip(place, other)) and not mask[other]
            for other in itertools.product(*(range(side) for side in box))
        )
        here = (slice(None), slice(None), *place)
        if outside or diagonal:
            np.testing.assert_allclose(found[here].numpy(), own[here].numpy(), atol=1e-12)
            continue
        n_inner += 1
        total = sum(
            (found[here] - found[(slice(None), slice(None), *other)])
            - (donors[here] - donors[(slice(None), slice(None), *other)])
            for other in neighbors
        )
        np.testing.assert_allclose(np.asarray(total), 0, atol=1e-10)
    assert n_inner > 0


def test_a_constant_step_leaves_nothing_behind_in_the_gradient_domain() -> None:
    donors, own = patches((8, 8))
    blend = Poisson(np.ones((8, 8), dtype=bool), [(True, True)] * 2)
    np.testing.assert_allclose(blend(donors + 50, own).numpy(), blend(donors, own).numpy(), atol=1e-10)
