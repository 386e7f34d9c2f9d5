"""What people who come from Captum meet first: each mistake is answered with its name and with the one thing that helps."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    causal_support,
    component_effects,
    regions,
)


def network(channels: int = 3, axes: int = 2) -> nn.Sequential:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    return nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(), conv(4, 2, 3, padding=1))


SIZE = 64
ROI = regions.box((SIZE, SIZE), start=24, size=8)
LABELS = (torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).long()
IMAGE = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def target(model=None, **options) -> SegmentationTarget:
    return SegmentationTarget(model or network(), **{"roi": ROI, "reference": LABELS} | options)


# --- No batch axis ---------------------------------------------------------------------------------------------------

NO_BATCH = (
    r"^inputs: expected \(N, C, \*spatial\) with 2 spatial axes, got \(3, 64, 64\); add the batch axis with image\[None\]$"
)


@pytest.mark.parametrize(
    "call",
    [
        lambda image: target()(image),
        lambda image: AverageTreatmentEffect(target()).attribute(image, target=1),
        lambda image: AverageTreatmentEffect(target()).plan(image, target=1),
        lambda image: GradientTreatmentEffect(target()).attribute(image, target=1),
        lambda image: PdCR(target()).attribute(image, baselines=0.0, target=1),
        lambda image: causal_support(target(), image),
        lambda image: component_effects(target(), image, output=1),
        lambda image: target(roi=None)(image),
        lambda image: target(reference=None, metric="volume")(image),
        lambda image: target(roi=None, reference=None, metric="volume")(image),
        lambda image: target(lambda x: x[:, :1])(image),  # a function without convolutions: what else could it be
        lambda image: SegmentationTarget.from_prediction(network(), image),
        lambda image: SegmentationTarget.from_prediction(network(), image, roi=ROI),
    ],
)
def test_an_image_without_its_batch_axis(call):
    with pytest.raises(ValueError, match=NO_BATCH):
        call(IMAGE)


def test_a_volume_without_its_batch_axis():
    roi = regions.box((8, 8, 8), 0, 4)
    match = r"^inputs: expected \(N, C, \*spatial\) with 3 spatial axes, got \(2, 8, 8, 8\); add the batch axis"
    with pytest.raises(ValueError, match=match):
        SegmentationTarget(network(2, 3), roi=roi, metric="volume")(torch.rand(2, 8, 8, 8))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_stack_of_as_many_rois_as_channels_is_no_missing_axis(axes):
    roi = torch.ones(2, *(6,) * axes, dtype=torch.bool)
    assert SegmentationTarget(network(2, axes), roi=roi, metric="volume")(torch.rand(5, 2, *(6,) * axes)).shape == (5, 2, 2)


def test_a_model_that_adds_an_axis_is_left_alone():
    class Frames(nn.Module):
        """Frames as a volume's third axis."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)

        def forward(self, x):
            return self.conv(x[:, None])[:, :, 0]

    roi = regions.box((8, 8), 0, 4)
    assert SegmentationTarget(Frames(), roi=roi, metric="volume")(torch.rand(2, 4, 8, 8)).shape == (2, 2)


def test_many_empty_rois_are_not_listed_over_pages():
    roi = torch.zeros(500, 8, 8, dtype=torch.bool)
    roi[0] = True
    with pytest.raises(ValueError, match=r"^roi: it is empty for \(example, RoI\) \[\[0, 1\], .* and 494 more\]$") as caught:
        SegmentationTarget(nn.Conv2d(1, 2, 1), roi=roi, metric="volume")(torch.rand(1, 1, 8, 8))
    assert len(str(caught.value)) < 130


# --- Captum's keywords -----------------------------------------------------------------------------------------------

METHODS = {
    "attribute": lambda: AverageTreatmentEffect(target()).attribute,
    "plan": lambda: AverageTreatmentEffect(target()).plan,
    "PdCR": lambda: PdCR(target()).attribute,
    "gradient": lambda: GradientTreatmentEffect(target()).attribute,
}


@pytest.mark.parametrize(
    ("method", "keyword", "ours"),
    [
        *[(method, "sliding_window_shapes", "block_size") for method in METHODS],
        *[(method, "strides", "block_size") for method in METHODS],
        *[(method, "n_samples", "n_draws") for method in ("attribute", "plan", "PdCR")],
        *[(method, "n_steps", "n_draws") for method in ("attribute", "plan", "PdCR")],
        *[(method, "internal_batch_size", "perturbations_per_eval") for method in ("attribute", "plan", "PdCR")],
        *[(method, "stdevs", "baselines") for method in METHODS],
        *[(method, "layer_baselines", "baselines") for method in METHODS],
        ("attribute", "return_convergence_delta", "return_statistics"),
        ("attribute", "layer", "LayerAverageTreatmentEffect"),
        ("attribute", "layer_mask", "feature_mask"),
        ("attribute", "n_drawz", "n_draws"),
        ("attribute", "pertubations_per_eval", "perturbations_per_eval"),
        ("gradient", "n_step", "n_steps"),
    ],
)
def test_a_keyword_of_captums_methods_is_answered_with_ours(method, keyword, ours):
    with pytest.raises(TypeError) as caught:
        METHODS[method]()(IMAGE[None], **{keyword: 3})
    assert str(caught.value).startswith(f"{keyword}: ")
    assert ours in str(caught.value)


@pytest.mark.parametrize("face", [LayerAverageTreatmentEffect, LayerGradientTreatmentEffect])
@pytest.mark.parametrize(
    ("keyword", "ours"),
    [
        ("baselines", "layer_baselines"),
        ("feature_mask", "layer_mask"),
        ("attribute_to_neuron_input", "attribute_to_layer_input"),
    ],
)
def test_layers_have_names_of_their_own(face, keyword, ours):
    model = network()
    with pytest.raises(TypeError, match=rf"^{keyword}: .*; here it is {ours}"):
        face(target(model), model[0]).attribute(IMAGE[None], **{keyword: 0})


def test_constructors_too():
    with pytest.raises(TypeError, match=r"^metrics: SegmentationTarget\(\) got an unexpected .*; did you mean metric\?$"):
        SegmentationTarget(network(), metrics="dice")
    with pytest.raises(
        TypeError, match=r"^donors: AverageTreatmentEffect\(\) got an unexpected .*; it takes forward_func, baselines$"
    ):
        AverageTreatmentEffect(target(), donors=3)


# --- Arguments of the model ------------------------------------------------------------------------------------------


def test_arguments_that_the_model_does_not_take():
    match = r"^additional_forward_args: .*cannot be called with 1 of them: too many positional arguments$"
    with pytest.raises(TypeError, match=match):
        AverageTreatmentEffect(target()).attribute(IMAGE[None], target=1, additional_forward_args=3)
    with pytest.raises(TypeError, match=match):
        SegmentationTarget.from_prediction(network(), IMAGE[None], 3)
    with pytest.raises(TypeError, match=r"^inputs: forward_func cannot be called with 2 of them: too many"):
        AverageTreatmentEffect(target()).attribute((IMAGE[None], IMAGE[None]), target=1)


# --- Lists, files, names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", [LayerAverageTreatmentEffect, LayerGradientTreatmentEffect])
def test_lists_of_donors_for_a_layer(face):
    model = network()
    explainer = face(target(model, metric="soft_dice"), model[0])
    for given in ([torch.rand(3, SIZE, SIZE)] * 2, [IMAGE], [IMAGE.numpy()]):
        with pytest.raises(TypeError, match=r"^layer_baselines: expected .*, got .*; stack images with torch\.stack"):
            explainer.attribute(IMAGE[None], layer_baselines=given, target=1)


def test_lists_of_donors_for_the_inputs():
    with pytest.raises(TypeError, match=r"^baselines: expected a donor source .*, got .*; images are a PatchBank\(images\)"):
        AverageTreatmentEffect(target()).attribute(IMAGE[None], baselines=[IMAGE, IMAGE], target=1)
    with pytest.raises(TypeError, match=r"^baselines: expected a donor source .*, got an array of shape .*PatchBank"):
        AverageTreatmentEffect(target()).attribute(IMAGE[None], baselines=np.zeros((2, 3, SIZE, SIZE)), target=1)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"^images\[0\]: there is no file 'nope\.png'$"):
        PatchBank(["nope.png"])


def test_a_module_that_is_not_there_names_the_nearest():
    model = nn.Sequential()
    for number in range(40):
        model.add_module(f"encoder_{number}", nn.Conv2d(3 if number == 0 else 2, 2, 1))
    with pytest.raises(ValueError, match=r"^layers: no module is named 'encodr_12'; did you mean encoder_12, ") as caught:
        component_effects(target(model), IMAGE[None], "encodr_12", output=1)
    assert str(caught.value).count("encoder_") == 5
    with pytest.raises(ValueError, match=r"^layers: no module is named 'x'; there are encoder_0, .*encoder_4 and 35 more$"):
        component_effects(target(model), IMAGE[None], ["x"], output=1)
