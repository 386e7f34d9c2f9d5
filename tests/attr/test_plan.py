"""What a planned intervention tells about its donors."""

import pytest
import torch

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank


def cut(images, number, corner, size):
    return images[number][(slice(None), *(slice(start, start + length) for start, length in zip(corner, size)))]


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_donors_are_read_where_the_plan_says_they_are(sampling):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 1, 8, 6, generator=generator), torch.rand(2, 2, 4, generator=generator)
    banks = torch.rand(5, 1, 9, 9, generator=generator), torch.rand(6, 2, 4, generator=generator)
    both = torch.arange(8)[None, None, :, None].expand(1, 1, 8, 6) // 4, torch.tensor([[[1, 1, 1, 2]]])
    planned = AverageTreatmentEffect(lambda x, y: x.amax((1, 2, 3)) * y.sum((1, 2))).plan(
        inputs, tuple(map(PatchBank, banks)), feature_mask=both, n_draws=4, sampling=sampling
    )
    sizes = {(0, 0): (4, 6), (0, 1): (4, 6), (1, 1): (3,), (1, 2): (1,)}
    assert len(planned) == 2 * 3 * 4
    for step in planned:
        assert len(step.numbers) == len(step.donors)
        for (slot, image, corner), values in zip(step.donors, step.read(), strict=True):
            assert torch.equal(values, cut(banks[slot], image, corner, sizes[slot, step.unit]))


def test_donors_of_a_layer_are_activations_with_channels_first():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(48, 1))
    donors = torch.rand(5, 1, 6, 6)
    activations = model[0](donors).detach()
    planned = LayerAverageTreatmentEffect(model, model[0]).plan(torch.rand(1, 1, 6, 6), donors, n_draws=3)
    assert {step.unit for step in planned} == {0, 1, 2}
    for step in planned:
        torch.testing.assert_close(step.read()[0], activations[step.donors[0][1], step.unit : step.unit + 1])
