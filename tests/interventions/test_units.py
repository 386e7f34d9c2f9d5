"""Units of the inputs against loops over pixels: where they lie, what they hold, and what is pasted into them."""

import itertools

import numpy as np
import pytest
import torch

from captum_causalseg import PatchBank, regions
from captum_causalseg.donors import as_donor_source
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.units import Frame, Units, gather, paste

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


@pytest.mark.parametrize("in_a_window", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pasted_is_the_donors_in_the_units_and_nothing_else(kind, shape, in_a_window):
    tensor, ids, units = units_of(kind, shape)
    donors = as_donor_source(PatchBank(2 + torch.rand(3, 2, *shape)), tensor).bind(tensor)
    asked = [(n, u) for n, u in itertools.product(range(2), range(len(units))) if units.present[n, u]]
    example, unit = np.array(asked).T
    numbers = np.arange(len(asked))[:, None] % 3
    frame = Frame(np.array([[1] * len(shape), [2] * len(shape)]), [length - 2 for length in shape]) if in_a_window else None
    (rows,) = gather([tensor], example)
    expected = rows.clone()
    for row, (n, u) in enumerate(asked):
        (piece,) = units.pieces(n, u)
        read = donors.read(n, piece.box, int(numbers[row, 0]))
        donor = torch.zeros(tensor.shape[1:])
        donor[(slice(None), *piece.box)] = read
        for place in itertools.product(*map(range, tensor.shape[1:])):
            if ids[(n, *place)] == units.ids[u]:
                expected[(row, *place)] = donor[place]
    if frame is not None:
        of_rows = Frame(frame.starts[example], frame.size)
        rows, expected = of_rows.crop(rows), of_rows.crop(expected)
    interventions = Interventions.single(example, unit, numbers)
    paste([rows], units, [donors], interventions, None if frame is None else [frame])
    assert torch.equal(rows, expected)
    assert tensor.max() < 1, "the images themselves are left alone"


def test_one_unit_in_two_tensors_has_a_piece_in_each():
    shapes = [(1, 1, 4), (1, 2, 3, 3)]
    units = Units([torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([1, 1, 5]).view(1, 1, 1, 3)], shapes)
    assert units.ids.tolist() == [0, 1, 5]
    assert [[piece.slot for piece in units.pieces(0, unit)] for unit in range(3)] == [[0], [0, 1], [1]]
    # An axis of length 1 in the mask stands for all of the tensor's.
    assert units.pieces(0, 1, slot=1)[0].box == (slice(0, 3), slice(0, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_is_put_back_where_it_was_cut(shape):
    values = torch.rand(2, 3, *shape)
    frame = Frame(np.array([[1] * len(shape), [0] * len(shape)]), [length - 1 for length in shape])
    back = frame.uncrop(frame.crop(values), shape)
    places = torch.zeros(values.shape, dtype=torch.bool)
    for example, first in enumerate((1, 0)):
        places[(example, slice(None), *(slice(first, first + length - 1) for length in shape))] = True
    assert torch.equal(back, torch.where(places, values, 0.0))


def test_what_is_gathered_are_copies():
    tensor = torch.arange(6.0).view(3, 2)
    found, scalar, word = gather([tensor, torch.tensor(2.0), "word"], np.array([2, 0, 0]))
    assert torch.equal(found, tensor[[2, 0, 0]])
    assert (scalar, word) == (2, "word")
    found.zero_()
    assert tensor.sum() == 15
