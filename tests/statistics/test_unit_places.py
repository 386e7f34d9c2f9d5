"""What units have, painted where they lie, and sums over them: element by element."""

import numpy as np
import pytest
import torch

from captum_causalseg.statistics.unit_places import UnitPlaces

IDS = torch.tensor([2, 5, 9])


@pytest.mark.parametrize("mask_shape", [(1, 1, 3, 4), (2, 1, 3, 4), (2, 3, 3, 4), (1, 3, 1, 1), (1, 1, 1, 4)])
@pytest.mark.parametrize("value_shape", [(2, 3, 3, 4), (1, 1, 1, 1), (2, 1, 3, 4)])
def test_sums_and_what_is_painted(mask_shape, value_shape):
    generator = torch.Generator().manual_seed(0)
    mask = IDS[torch.randint(0, 3, mask_shape, generator=generator)]
    places = UnitPlaces(IDS, [torch.full((1, 1), 2), mask])
    values, per_unit = torch.rand(value_shape, generator=generator).double(), torch.rand(2, 3, generator=generator)
    shape = (2, 3, 3, 4)
    whole, spread = mask.expand(shape), values.expand(shape)
    sums, painted = np.zeros((2, 3)), torch.zeros(shape)
    for place in np.ndindex(*shape):
        unit = IDS.tolist().index(int(whole[place]))
        sums[place[0], unit] += float(spread[place])
        painted[place] = per_unit[place[0], unit]
    np.testing.assert_allclose(places.sums(1, values, shape), sums, rtol=1e-12)
    assert torch.equal(places.painted(1, per_unit).expand(shape), painted)
    assert torch.equal(places.painted(1, per_unit, torch.arange(2)).expand(shape), painted)


def test_several_rows_of_one_example():
    mask = IDS[torch.tensor([[[0, 1, 2]], [[2, 2, 0]]])]
    places = UnitPlaces(IDS, [mask])
    rows = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    painted = places.painted(0, rows, torch.tensor([1, 0, 1]))
    assert painted[:, 0].tolist() == [[3, 3, 1], [4, 5, 6], [9, 9, 7]]
