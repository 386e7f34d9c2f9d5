"""Kinds of units of a layer: the table, open to the user's own."""

import pytest
import torch

from captum_causalseg import LayerAverageTreatmentEffect
from captum_causalseg.layout import UNIT_KINDS, Layout, register_units, unit_mask

SHAPE = (2, 4, 6, 8)


@pytest.fixture(autouse=True)
def _table_as_it_was():
    before = dict(UNIT_KINDS)
    yield
    UNIT_KINDS.clear()
    UNIT_KINDS.update(before)


def checkerboard(layout, shape, block_size):
    """Two units: the positions whose coordinates have an even sum, and the others."""
    rows, columns = (torch.arange(length) for length in shape[2:])
    return ((rows[:, None] + columns) % 2)[None, None]


def bands(layout, shape, block_size):
    return (torch.arange(shape[2]) // block_size).view(1, 1, -1, 1)


def layer() -> tuple[LayerAverageTreatmentEffect, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 8, 2)
    )
    return LayerAverageTreatmentEffect(model.eval(), model[1]), torch.rand(2, 1, 6, 8)


def test_a_kind_of_ones_own_gives_what_its_mask_gives():
    register_units("checkerboard", checkerboard)
    method, image = layer()
    common = {"layer_baselines": torch.rand(5, 1, 6, 8), "target": 1, "n_draws": 5, "return_statistics": True}
    attributions, statistics = method.attribute(image, units="checkerboard", **common)
    expected, with_mask = method.attribute(image, layer_mask=checkerboard(None, SHAPE, None), **common)
    assert statistics.effect.shape == (2, 2, 2)
    assert torch.equal(statistics.effect, with_mask.effect)
    assert torch.equal(attributions, expected)


def test_a_kind_in_blocks_needs_a_size_and_others_take_none():
    register_units("bands", bands, in_blocks=True)
    register_units("checkerboard", checkerboard)
    method, image = layer()
    _, statistics = method.attribute(image, units="bands", block_size=2, target=0, n_draws=1, return_statistics=True)
    assert statistics.effect.shape[1] == Layout("NC*").n_units("bands", SHAPE, 2) == 3
    with pytest.raises(ValueError, match=r"^block_size: units='bands' needs it"):
        method.attribute(image, units="bands", target=0)
    with pytest.raises(ValueError, match=r'^block_size: it works only with units="block" or "channel_block" or "bands"$'):
        method.attribute(image, units="checkerboard", block_size=2, target=0)


def test_a_name_that_is_taken_or_unknown_is_refused():
    with pytest.raises(ValueError, match=r"^name: units called 'head' exist already$"):
        register_units("head", checkerboard)
    method, image = layer()
    known = '"channel", "token", "head", "block", "channel_block"(,| or) "layer"'
    with pytest.raises(TypeError, match=f"^units: expected {known}.*, got 'checkerboard'$"):
        method.attribute(image, units="checkerboard", target=0)
    register_units("checkerboard", checkerboard)
    assert method.attribute(image, units="checkerboard", target=0).shape == (2, 4, 6, 8)


def test_units_are_renumbered_in_ascending_order():
    register_units("far apart", lambda layout, shape, block_size: torch.tensor([7, -3, 7, 100]).view(1, 4, 1, 1))
    assert unit_mask(Layout("NC*"), "far apart", SHAPE).flatten().tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize(
    ("returned", "came"),
    [
        (torch.zeros(1, 1, 6, 8), r"torch.float32 of shape \(1, 1, 6, 8\)"),
        (torch.zeros(6, 8, dtype=torch.int64), r"torch.int64 of shape \(6, 8\)"),
        (torch.zeros(1, 1, 6, 7, dtype=torch.int64), r"torch.int64 of shape \(1, 1, 6, 7\)"),
        (torch.zeros(2, 1, 6, 8, dtype=torch.int64), r"torch.int64 of shape \(2, 1, 6, 8\)"),
        ([0, 1], "list"),
    ],
)
def test_what_is_no_mask_is_refused(returned, came):
    register_units("wrong", lambda layout, shape, block_size: returned)
    with pytest.raises(
        ValueError, match=rf"^units: expected the function of 'wrong' to return integers .* \(1, 4, 6, 8\), got {came}$"
    ):
        unit_mask(Layout("NC*"), "wrong", SHAPE)
