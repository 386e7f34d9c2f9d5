"""Donors that lie where the unit does."""

import pytest
import torch
from donor_cases import box, three_examples

from captum_causalseg.donors import SelfDonor


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_a_units_own_values_are_its_only_donor(d):
    images = three_examples(d)
    bound = SelfDonor().bind(images)
    unit = box((1,) * d, (2, 3, 2)[:d])
    for example in range(3):
        assert bound.population(example, unit) == 1
        assert torch.equal(bound.read(example, unit, 0), images[example][(slice(None), *unit)])
