"""Larger units around the strongest ones: what they are, and that nothing is judged."""

import math

import pytest
import torch

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank
from captum_causalseg.evaluation.refute import dose, refute


def dosed(function, images, baselines=0.0, **options):
    return refute(AverageTreatmentEffect(function), images, baselines, refuters="dose", **options)


def test_a_larger_unit_is_the_unit_and_all_that_touch_it():
    """Every pixel counts 1, the middle 9: with 0 for a donor, effects are sums."""
    image = torch.ones(1, 1, 5, 5)
    image[0, 0, 2, 2] = 9.0
    report = dosed(lambda x: x.sum((1, 2, 3)), image, block_size=1)
    found = report["dose"]
    assert (found.verdict, found.statistic, found.n_units) == ("reported", pytest.approx(17 / 9), 3)
    assert math.isnan(found.threshold)
    first, second, _ = found.message.split("; ")
    assert first == "unit 12 of example 0 9, with its 8 neighbors 17 ± 0"
    assert second == "unit 0 of example 0 1, with its 3 neighbors 4 ± 0"  # a corner
    assert not report.passed
    assert str(report).splitlines()[-1].endswith("0 pass, 0 fail, 0 inconclusive, 1 reported")


@pytest.mark.parametrize("shape", [(7,), (4, 4, 4)])
def test_in_one_and_three_dimensions(shape):
    image = torch.ones(2, 1, *shape)
    image[1].flatten()[0] = 5.0
    found = dosed(lambda x: x.flatten(1).sum(1), image, block_size=1)["dose"]
    n = 2 ** len(shape)
    assert found.message.split("; ")[0] == f"unit 0 of example 1 5, with its {n - 1} neighbor{'s' * (n > 2)} {4 + n} ± 0"


def test_units_that_the_roi_excludes_do_not_take_part():
    image = torch.ones(1, 1, 3, 3)
    image[0, 0, 0, 0] = 2.0
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    excluded[1, 1] = True
    found = dosed(lambda x: x.sum((1, 2, 3)), image, block_size=1, exclude=excluded)["dose"]
    assert found.message.split("; ")[0] == "unit 0 of example 0 2, with its 2 neighbors 4 ± 0"


def test_what_has_no_larger_dose_is_inconclusive():
    image, model = torch.rand(1, 1, 4, 4) + 1, torch.nn.Conv2d(1, 1, 1)
    small = dosed(lambda x: x.sum((1, 2, 3)), image, PatchBank(torch.rand(9, 1, 2, 2)), block_size=2, n_draws=9)["dose"]
    assert (small.verdict, small.message) == (
        "inconclusive",
        "donor image 0 of (2, 2) pixels is smaller than a unit of (4, 4) pixels",
    )
    nothing = dosed(lambda x: 0 * x.sum((1, 2, 3)), image, block_size=2)["dose"]
    assert (nothing.verdict, nothing.message) == ("inconclusive", "no effect is significant")
    layer = LayerAverageTreatmentEffect(lambda x: model(x).sum((1, 2, 3)), model)
    found = refute(layer, image, refuters="dose")["dose"]
    assert (found.verdict, found.message) == ("inconclusive", "units of a layer have no surroundings in the image")


def test_how_many_units_is_checked():
    with pytest.raises(TypeError, match="context: expected"):
        dose(3)
