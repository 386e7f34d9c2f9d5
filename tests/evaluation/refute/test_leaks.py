"""Donors of the explained image itself are found in the bank, and chance is not taken for a leak."""

import pytest
import torch
from refutation_cases import case

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank
from captum_causalseg.evaluation.refute import refute


def split(bank, images=None, donors=None, **options):
    target, explained, _ = case(2)
    options = {"n_draws": 12, "block_size": 2, "n_screening_draws": 0} | options
    return refute(
        AverageTreatmentEffect(target), explained if images is None else images, bank, 1, refuters="split", **options
    )["split"]


def patches(image, size):
    return [image[:, row : row + size, column : column + size] for row in range(5) for column in range(4)]


@pytest.mark.parametrize("kind", ["copies", "patches"])
def test_a_third_of_the_donors_is_of_the_image(kind):
    _, (image,), donors = case(2)
    if kind == "copies":
        found = split(PatchBank([*donors[:20], *[image] * 10]))
    else:
        found = split(PatchBank([*donors[:, :, :4, :4], *patches(image, 4)]), block_size=4)
    assert found.verdict == "fail"
    assert found.statistic <= found.threshold == 0.05 / 50
    assert found.message.endswith("planned donors are patches of the explained image itself")


def test_the_explained_image_may_be_one_of_the_bank():
    _, (image,), donors = case(2)
    assert split(PatchBank([*donors[:7], image, *donors[7:15]])).verdict == "pass"


def test_images_of_few_values_are_alike_by_chance():
    """Patches of 2 x 2 pixels of two values lie everywhere: that is no leak."""
    _, images, donors = case(2)
    assert split(PatchBank((donors > 0).float()), (images > 0).float()).verdict == "pass"


def test_activations_of_the_explained_image():
    target, images, donors = case(2)
    layer = LayerAverageTreatmentEffect(target, target.model[1])
    options = {"units": "block", "block_size": 4, "n_draws": 8, "refuters": "split"}
    assert refute(layer, images, donors, 1, **options)["split"].verdict == "pass"
    leaky = torch.cat([donors[:20], images.expand(10, -1, -1, -1)])
    assert refute(layer, images, leaky, 1, **options)["split"].verdict == "fail"


def test_donors_of_another_precision_are_compared_as_they_are_pasted():
    _, images, donors = case(2)
    leaky = torch.cat([donors[:20], images.expand(10, -1, -1, -1)]).double()
    assert split(PatchBank(leaky)).verdict == "fail"
