"""Donors of the units' own brightness against raw ones: steps are found, textures are not accused."""

import pytest
import torch

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank
from captum_causalseg.evaluation.refute import refute


def joined(function, image, bank, **options):
    options = {"block_size": 4, "n_draws": 20} | options
    return refute(AverageTreatmentEffect(function), image, bank, refuters="joints", **options)["joints"]


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 1, 16, 16, generator=generator), 3 + torch.rand(20, 1, 16, 16, generator=generator)


def brightness(x):
    return x.sum((1, 2, 3))


def texture(x):
    """The differences between neighboring pixels of a row, inside blocks alone."""
    return x.unflatten(3, (4, 4)).diff(dim=4).abs().sum((1, 2, 3, 4)) + x.unflatten(3, (4, 4))[..., 0].mul(0).sum((1, 2, 3))


def sharp_texture(x):
    return texture(x * 2)


def test_an_effect_of_brightness_alone_is_the_step():
    image, donors = images()
    found = joined(brightness, image, PatchBank(donors))
    assert (found.verdict, found.threshold, found.n_units) == ("fail", 0.5, 16)
    assert found.statistic == pytest.approx(0, abs=1e-5)
    assert found.message.startswith("with donors of the units' own brightness ")
    assert found.message.endswith("% of the effects is left")


@pytest.mark.parametrize("given", ["bank", "tensor"])
def test_an_effect_of_texture_stays_as_it_is(given):
    image, donors = images()
    donors = 3 + 0.1 * donors
    found = joined(sharp_texture, image, PatchBank(donors) if given == "bank" else donors)
    assert found.verdict == "pass"
    assert found.statistic == pytest.approx(1, abs=1e-3)


def test_effects_that_change_their_sign_are_named():
    """Bright donors raise the score; of the same brightness, their stronger texture lowers it."""
    image, donors = images()

    def score(x):
        return brightness(x) - texture(x)

    found = joined(score, 0.01 * image, PatchBank(donors))
    assert found.verdict == "fail"
    assert "16 change their sign, unit " in found.message


def test_what_has_no_joints_is_inconclusive():
    image, donors = images()
    fitted = PatchBank(donors, match="mean")
    for bank, options, reason in (
        (0.0, {}, "there are no donor images to match (baselines=0.0)"),
        (fitted, {}, f"there are no donor images to match (baselines={fitted!r})"),
        (donors, {"block_size": 1}, "a unit of one pixel has only its own value to be given, and every effect would be 0"),
    ):
        found = joined(brightness, image, bank, **options)
        assert found.verdict == "inconclusive"
        assert found.message.startswith(reason)
    model = torch.nn.Conv2d(1, 1, 1)
    layer = LayerAverageTreatmentEffect(lambda x: model(x).sum((1, 2, 3)), model)
    found = refute(layer, image, refuters="joints")["joints"]
    assert (found.verdict, found.message) == ("inconclusive", "donors of a layer have no joints in the image")
