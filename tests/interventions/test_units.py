"""Units of the inputs against loops over pixels: where they lie and what they hold."""

import itertools

import pytest
import torch

from captum_causalseg import regions
from captum_causalseg.interventions.units import Units

SHAPES = [(9,), (6, 8), (4, 5, 6)]
KINDS = ["blocks", "irregular", "of each example", "of each channel"]


def mask_of(kind, shape):
    generator = torch.Generator().manual_seed(len(shape))
    if kind == "blocks":
        return regions.grid(shape, 3)[None, None]
    if kind == "irregular":
        return torch.randint(0, 4, (1, 1, *shape), generator=generator)
    if kind == "of each example":
        # Not every example has every unit.
        return torch.stack([regions.grid(shape, 3), 100 + regions.grid(shape, 2)])[:, None]
    return torch.stack([regions.grid(shape, 3), 100 + regions.grid(shape, 4)])[None]


def units_of(kind, shape):
    tensor = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(1))
    mask = mask_of(kind, shape)
    return tensor, mask.expand(tensor.shape), Units([mask], [tensor.shape])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_hold_the_elements_with_the_units_id(kind, shape):
    tensor, ids, units = units_of(kind, shape)
    assert units.ids.tolist() == sorted(set(ids.flatten().tolist()))
    for example, unit in itertools.product(range(2), range(len(units))):
        held = torch.zeros(tensor.shape[1:], dtype=torch.bool)
        for piece in units.pieces(example, unit):
            held[(piece.channels, *piece.box)] = True if piece.mask is None else piece.mask
        assert torch.equal(held, ids[example] == units.ids[unit])
        assert units.present[example, unit] == held.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_touching_units_are_those_with_an_element_there(kind, shape):
    _, ids, units = units_of(kind, shape)
    place = regions.box(shape, 2, 2)
    for example in range(2):
        expected = [bool((ids[example][:, place] == one).any()) for one in units.ids]
        assert units.touching(0, example, place).tolist() == expected


def test_one_unit_in_two_tensors_has_a_piece_in_each():
    shapes = [(1, 1, 4), (1, 2, 3, 3)]
    units = Units([torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([1, 1, 5]).view(1, 1, 1, 3)], shapes)
    assert units.ids.tolist() == [0, 1, 5]
    assert [[piece.slot for piece in units.pieces(0, unit)] for unit in range(3)] == [[0], [0, 1], [1]]
    # An axis of length 1 in the mask stands for all of the tensor's.
    assert units.pieces(0, 1, slot=1)[0].box == (slice(0, 3), slice(0, 2))
