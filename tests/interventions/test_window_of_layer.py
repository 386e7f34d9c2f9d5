"""Windows of models with an intervention on a layer."""

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional
from window_cases import Coordinates, Local, is_outside, on_and_off, pixels

from captum_causalseg import LayerAverageTreatmentEffect, SegmentationTarget, Status, regions
from captum_causalseg.interventions import replay


class Net(nn.Module):
    """A layer at full and one at half resolution, and the image beside both."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.last = nn.Conv2d(11, 2, 3, padding=1)

    def forward(self, x: Tensor, number: Tensor | None = None) -> Tensor:
        early = torch.sin(4 * self.early(x))
        deep = functional.interpolate(torch.sin(4 * self.down(early)), scale_factor=2)
        if number is not None:
            deep = deep + number[:, :1, None, None] * x
        return 3 * self.last(torch.cat([x, early, deep], 1))


@pytest.mark.parametrize("replayed", [True, False])
@pytest.mark.parametrize(
    "units",
    [
        {"units": "channel"},
        {"units": "block", "block_size": 4},
        {"units": "channel_block", "block_size": 4},
        {"units": "layer"},
        {"layer_mask": (torch.arange(40) // 4 % 3)[None, None, None]},
    ],
    ids=lambda units: units.get("units", "layer_mask"),
)
@pytest.mark.parametrize("name", ["early", "down"])
def test_units_of_a_layer_have_the_same_effects_on_the_window(name, units, replayed, monkeypatch):
    # Whether it pays or not, or never.
    monkeypatch.setattr(replay, "COMPARED", 0 if replayed else float("inf"))
    if "layer_mask" in units and name == "down":
        units = {"layer_mask": units["layer_mask"][..., :20]}
    images = pixels(40, 40, count=2)
    rois = torch.stack([regions.box((40, 40), start=(9, 20), size=6), regions.box((40, 40), start=(30, 2), size=6)])[:, None]
    model = Net()
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, getattr(model, name))
    on, _ = on_and_off(face, images, layer_baselines=pixels(40, 40, count=4), target=1, **units)
    assert on.settings["window"] is not None
    assert on.n_forwards == sum(on.settings["forwards"].values())
    if units.get("units") in ("channel", "layer"):
        assert not is_outside(on)
    elif "units" in units:
        assert (on.status == Status.OUTSIDE_SUPPORT).flatten(1).any(1).all()
    assert ("replay compared" in on.settings["forwards"]) == replayed


@pytest.mark.parametrize("at_input", [True, False])
def test_a_layer_of_a_network_in_three_dimensions(at_input):
    model = nets.UNet(3, 1, 2, (4, 8), (2,), norm="batch", act=("relu", {"inplace": False})).eval()
    images, donors = torch.randn(1, 1, 32, 24, 24), torch.randn(4, 1, 32, 24, 24)
    target = SegmentationTarget.from_prediction(
        model, images, roi=regions.box((32, 24, 24), start=4, size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.model[1].submodule)
    arguments = {"layer_baselines": donors, "units": "block", "block_size": 4, "attribute_to_layer_input": at_input}
    on, _ = on_and_off(face, images, target=1, **arguments)
    assert on.settings["window"] is not None
    assert is_outside(on)


def test_arguments_of_a_model_with_a_layer_on_the_window():
    images, model = pixels(40, 40, count=2), Net()
    numbers = torch.rand(2, 2)
    target = SegmentationTarget.from_prediction(
        model, images, numbers, roi=regions.box((40, 40), start=(9, 20), size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.down)
    on, _ = on_and_off(face, images, layer_baselines=0.3, target=1, units="channel", additional_forward_args=numbers)
    assert on.settings["window"] is not None


def test_images_as_arguments_of_a_model_with_a_layer_are_cropped_along():
    class Two(Net):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return super().forward(x) + 3 * other

    images, other, model = pixels(40, 40, count=2), pixels(40, 40, count=2), Two()
    rois = torch.stack([regions.box((40, 40), start=(9, 20), size=6), regions.box((40, 40), start=(30, 2), size=6)])
    target = SegmentationTarget(model, roi="argument", metric="probability_mean")
    face = LayerAverageTreatmentEffect(target, model.down)
    on, _ = on_and_off(
        face,
        images,
        layer_baselines=0.3,
        target=1,
        units="channel",
        additional_forward_args=(other * torch.ones(2, 1, 1, 1), rois),
    )
    assert on.settings["window"] is not None


def test_the_window_holds_what_goes_past_the_layer_as_well():
    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = Local(), nn.Conv2d(1, 2, 13, padding=6)

        def forward(self, x: Tensor) -> Tensor:
            return self.near(x) + torch.sin(4 * self.far(x))

    model, images = Past(), pixels(48, 48, count=2)
    target = SegmentationTarget.from_prediction(
        model, images, roi=regions.box((48, 48), start=(9, 20), size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.near.first)
    on, _ = on_and_off(face, images, layer_baselines=pixels(48, 48, count=3), target=1, units="block", block_size=4)
    assert on.settings["window"] == [18, 18]
    # Of the layer, one pixel around the RoI: 8 to 16, and 19 to 27.
    assert (on.status[0, :, 1] != Status.OUTSIDE_SUPPORT).sum() == 2 * 3


class Ragged(nn.Module):
    """A layer whose grid does not divide the image: a convolution without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Conv2d(1, 4, 4), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.pad(torch.sin(4 * self.inner(x)), (1, 2, 1, 2)))


def test_a_layer_whose_grid_does_not_divide_the_image_has_no_window_but_units_are_left_out():
    images, model = pixels(40, 40, count=2), Ragged()
    target = SegmentationTarget.from_prediction(
        model, images, roi=regions.box((40, 40), start=(9, 20), size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.inner)
    on, _ = on_and_off(face, images, layer_baselines=pixels(40, 40, count=3), target=1, units="block", block_size=4)
    assert on.settings["window"] is None
    assert is_outside(on)


def test_a_layer_of_a_model_that_knows_its_place_has_no_window():
    model, images = Coordinates(), pixels(32, 32)
    target = SegmentationTarget(model, roi=regions.box((32, 32), start=9, size=6), metric="logit_mean", activation="softmax")
    # What lies upstream of the first layer is replaced; where the second one is, it is not.
    face = LayerAverageTreatmentEffect(target, model.first)
    on, _ = on_and_off(face, images, layer_baselines=pixels(32, 32, count=3), target=1, units="block", block_size=4)
    assert is_outside(on)
    face = LayerAverageTreatmentEffect(target, model.first)
    arguments = {"layer_baselines": torch.rand(3, 2, 32, 32), "attribute_to_layer_input": True}
    on, _ = on_and_off(face, images, target=1, units="block", block_size=4, **arguments)
    assert is_outside(on)
