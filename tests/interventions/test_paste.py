"""What is pasted into copies of the tensors, against loops over pixels."""

import itertools

import numpy as np
import pytest
import torch

from captum_causalseg import PatchBank
from captum_causalseg.donors import as_donor_source
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.frames import Frame, gather
from captum_causalseg.interventions.paste import _equal_rows, paste
from tests.interventions.test_units import KINDS, SHAPES, units_of


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


@pytest.mark.parametrize("largest", [3, 2**40])
def test_rows_are_grouped_also_where_they_are_no_small_numbers(largest):
    values = np.random.default_rng(0).integers(-1, 2, (60, 4)) * largest // 3
    groups = _equal_rows(values)
    assert sorted(np.concatenate(groups).tolist()) == list(range(60))
    assert [tuple(values[group[0]].tolist()) for group in groups] == sorted(set(map(tuple, values.tolist())))
    for group in groups:
        assert (values[group] == values[group[0]]).all()
        assert (np.diff(group) > 0).all()
