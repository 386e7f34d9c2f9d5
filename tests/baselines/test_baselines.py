"""Peers without a Captum class: each against its paper's formula, written out on small inputs."""

import itertools
import math
import random as python_random
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from captum.metrics import sensitivity_max
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, baselines, regions
from captum_causalseg.baselines import MiSuRe, RiseSegmentation, SegHiResGradCam

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHAPES = {2: (9, 10), 3: (5, 6, 7)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Features at half the resolution, as in an encoder, then three classes."""

    def __init__(self, n_spatial: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        conv = CONV[n_spatial]
        self.encoder = conv(1, 4, 3, stride=stride, padding=1)
        self.act = nn.Tanh()
        self.head = conv(4, 3, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.encoder(x)))


def logit_sum(net: nn.Module, n_spatial: int) -> tuple[SegmentationTarget, Tensor]:
    spatial = SHAPES[n_spatial]
    roi = regions.box(spatial, start=2, size=3)
    return SegmentationTarget(net, roi=roi, metric="logit_sum"), roi


def by_hand(net: Net, image: Tensor, roi: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """The encoder's activation of one image (1, ...), and the gradient of the class's logits summed over the RoI."""
    activation = net.act(net.encoder(image)).detach().requires_grad_()
    net.head(activation)[0, target][roi].sum().backward()
    net.zero_grad()
    return activation.detach()[0], activation.grad[0]


# Seg-Grad-CAM and Seg-HiRes-Grad-CAM


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_seg_grad_cam_is_captums_layer_grad_cam_on_the_logit_sum(n_spatial):
    net = Net(n_spatial)
    target, roi = logit_sum(net, n_spatial)
    image = random(1, 1, *SHAPES[n_spatial])
    found = LayerGradCam(target.surrogate("logit_sum"), net.act).attribute(image, target=1, relu_attributions=True)
    activation, gradient = by_hand(net, image, roi, 1)
    expected = torch.zeros(SHAPES[n_spatial])
    for k in range(4):
        expected += gradient[k].mean() * activation[k]
    torch.testing.assert_close(found[0, 0], expected.clamp_min(0))
    assert found.any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_seg_hires_grad_cam_is_gradient_times_activation_summed_over_channels(n_spatial, relu):
    net = Net(n_spatial)
    target, roi = logit_sum(net, n_spatial)
    image = random(1, 1, *SHAPES[n_spatial])
    found = SegHiResGradCam(target, net.act).attribute(image, target=2, relu_attributions=relu)
    activation, gradient = by_hand(net, image, roi, 2)
    expected = torch.zeros(SHAPES[n_spatial])
    for k in range(4):
        expected += gradient[k] * activation[k]
    assert (expected < 0).any()
    assert (expected > 0).any()
    torch.testing.assert_close(found, (expected.clamp_min(0) if relu else expected)[None, None])
    assert not found.requires_grad
    assert found.is_contiguous()


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize(("n_spatial", "size"), [(2, 4), (2, (2, 5)), (2, (1, 3)), (3, 2), (3, (5, 4, 100))])
def test_pooled_gradients_are_those_of_their_window(n_spatial, size, pooling):
    net = Net(n_spatial)
    target, roi = logit_sum(net, n_spatial)
    image = random(1, 1, *SHAPES[n_spatial])
    found = SegHiResGradCam(target, net.act).attribute(
        image, target=1, relu_attributions=False, pool_size=size, pooling=pooling
    )
    activation, gradient = by_hand(net, image, roi, 1)
    edges = (size,) * n_spatial if isinstance(size, int) else size
    expected = torch.zeros(SHAPES[n_spatial])
    for place in itertools.product(*(range(length) for length in SHAPES[n_spatial])):
        window = tuple(slice(i // edge * edge, i // edge * edge + edge) for i, edge in zip(place, edges))
        for k in range(4):
            values = gradient[k][window]
            expected[place] += (values.mean() if pooling == "mean" else values.max()) * activation[k][place]
    torch.testing.assert_close(found[0, 0], expected)


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_one_window_over_the_whole_map_is_grad_cam(n_spatial):
    net = Net(n_spatial, stride=2)
    target, _ = logit_sum(net, n_spatial)
    images = random(3, 1, *SHAPES[n_spatial])
    for layer in (net.act, net.encoder):
        expected = LayerGradCam(target, layer).attribute(images, target=[0, 1, 2], relu_attributions=True)
        found = SegHiResGradCam(target, layer).attribute(images, target=[0, 1, 2], pool_size=None)
        assert found.shape == (3, 1, *(-(-length // 2) for length in SHAPES[n_spatial]))
        torch.testing.assert_close(found, expected.detach())


def test_a_batch_of_maps_is_the_loop_over_its_examples_and_targets():
    net = Net(2)
    target, _ = logit_sum(net, 2)
    images, classes = random(3, 1, *SHAPES[2]), [2, 0, 1]
    cam = SegHiResGradCam(target, net.act)
    batch = cam.attribute(images, target=classes, pool_size=2)
    for n, label in enumerate(classes):
        torch.testing.assert_close(batch[n : n + 1], cam.attribute(images[n : n + 1], target=label, pool_size=2))
    assert torch.equal(batch, cam.attribute(images, target=torch.tensor(classes), pool_size=2))


def test_a_class_and_roi_pair_of_a_stack_of_rois():
    net = Net(2)
    stack = torch.stack([regions.box(SHAPES[2], start=0, size=3), regions.box(SHAPES[2], start=5, size=3)])
    image = random(1, 1, *SHAPES[2])
    found = SegHiResGradCam(SegmentationTarget(net, roi=stack, metric="logit_sum"), net.act).attribute(image, target=(1, 1))
    one = SegmentationTarget(net, roi=stack[1], metric="logit_sum")
    torch.testing.assert_close(found, SegHiResGradCam(one, net.act).attribute(image, target=1))


def test_what_a_layer_takes_and_a_layer_without_spatial_axes():
    net = Net(2)
    target, _ = logit_sum(net, 2)
    image = random(2, 1, *SHAPES[2])
    taken = SegHiResGradCam(target, net.head).attribute(image, target=1, attribute_to_layer_input=True)
    torch.testing.assert_close(taken, SegHiResGradCam(target, net.act).attribute(image, target=1))
    linear = nn.Linear(5, 3)
    features = random(2, 5)
    model = nn.Sequential(linear, nn.Tanh(), nn.Linear(3, 2))
    found = SegHiResGradCam(model, linear).attribute(features, target=1, relu_attributions=False)
    activation = linear(features).detach()
    gradient = (1 - activation.tanh() ** 2) * model[2].weight[1].detach()
    torch.testing.assert_close(found, (gradient * activation).sum(1, keepdim=True))


def test_a_tuple_of_inputs_arguments_and_data_parallel():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return (self.first(x + y).sigmoid() * scale.view(-1, 1, 1, 1)).flatten(1).sum(1)

    model = Two()
    x, y, scale = random(2, 1, 6, 6), random(2, 1, 6, 6, seed=1), torch.tensor([1.0, -2.0])
    found = SegHiResGradCam(model, model.first).attribute((x, y), additional_forward_args=scale, relu_attributions=False)
    activation = model.first(x + y).detach()
    expected = (activation * activation.sigmoid() * (1 - activation.sigmoid())).sum(1, keepdim=True) * scale.view(2, 1, 1, 1)
    torch.testing.assert_close(found, expected)
    wrapped = SegHiResGradCam(nn.DataParallel(model), model.first)
    torch.testing.assert_close(wrapped.attribute((x, y), None, scale, relu_attributions=False), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_map_has_the_activations_dtype(dtype):
    net = Net(2).to(dtype)
    target, _ = logit_sum(net, 2)
    found = SegHiResGradCam(target, net.act).attribute(random(1, 1, *SHAPES[2]).to(dtype), target=1, pool_size=3)
    assert found.dtype == dtype


class Strange(nn.Module):
    """A layer that runs twice, one that runs never, one that returns two tensors, one that is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.cut = nn.Tanh(), nn.Tanh(), nn.Conv2d(1, 1, 1)
        self.pair, self.pooled = Pair(), nn.AdaptiveAvgPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pair(x)
        self.pooled(x.unsqueeze(0))
        return (self.twice(self.twice(first)) + second + self.cut(x).detach()).flatten(1).sum(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 3


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("twice", ValueError, "layer: Tanh is called 2 times"),
        ("never", ValueError, "layer: Tanh is not called"),
        ("pair", TypeError, "layer: expected one that returns .* one tensor, got 2 tensors"),
        ("pooled", ValueError, r"layer: expected an activation \(N, K, \*spatial\) with N=2 .* got \(1, 2"),
        ("cut", ValueError, r'forward_func: its score has no gradient .*surrogate\("logit_sum"\)'),
    ],
)
def test_layers_without_one_activation_to_explain_are_refused(layer, error, message):
    model = Strange()
    with pytest.raises(error, match=message):
        SegHiResGradCam(model, getattr(model, layer)).attribute(random(2, 1, 4, 4))


def test_bad_arguments_of_seg_hires_grad_cam():
    net = Net(2)
    target, roi = logit_sum(net, 2)
    image = random(1, 1, *SHAPES[2])
    cam = SegHiResGradCam(target, net.act)
    with pytest.raises(TypeError, match=r"layer: expected a torch\.nn\.Module, got str"):
        SegHiResGradCam(target, "act")
    with pytest.raises(ValueError, match='pooling: expected "mean" or "max", got \'median\''):
        cam.attribute(image, target=1, pooling="median")
    with pytest.raises(ValueError, match="pool_size: expected at least 1, got 0"):
        cam.attribute(image, target=1, pool_size=0)
    with pytest.raises(TypeError, match=r"pool_size: expected one integer or 2 of them .*, got .*2\.5"):
        cam.attribute(image, target=1, pool_size=(2.5, 2))
    with pytest.raises(
        ValueError, match=r"pool_size: expected one integer or 2 of them \(one per spatial axis\), got \(2, 2, 2\)"
    ):
        cam.attribute(image, target=1, pool_size=(2, 2, 2))
    with pytest.raises(ValueError, match=r"target: the forward function has 3 outputs \(3 class\) per example"):
        cam.attribute(image)
    with pytest.raises(ValueError, match="target: 3 does not pick one of 3 outputs"):
        cam.attribute(image, target=3)
    hard = SegmentationTarget(net, roi=roi, reference=torch.zeros(SHAPES[2], dtype=torch.long))
    with pytest.raises(ValueError, match="forward_func: its score has no gradient"):
        SegHiResGradCam(hard, net.act).attribute(image, target=1)
    with pytest.raises(TypeError, match="inputs: forward_func cannot be called with 2 of them"):
        SegHiResGradCam(net.forward, net.act).attribute((image, image), target=1)
    with pytest.raises(ValueError, match="forward_func: the gradient of its score holds NaN"):
        SegHiResGradCam(lambda x: (net(x) * 0).flatten(1).sum(1).sqrt(), net.act).attribute(image)


# RISE


def enlarged(grid: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation of cell centers along one axis, constant beyond the outermost centers."""
    count = grid.shape[axis]
    centers = (np.arange(size) + 0.5) * count / size - 0.5
    return np.apply_along_axis(lambda line: np.interp(centers, np.arange(count), line), axis, grid)


def mask_by_hand(seed: int, number: int, cells: tuple[int, ...], spatial: tuple[int, ...], probability: float) -> np.ndarray:
    generator = np.random.default_rng((seed, number))
    edges = [math.ceil(length / count) for length, count in zip(spatial, cells)]
    values = (generator.random(cells) < probability).astype(float)
    starts = [int(generator.integers(edge)) for edge in edges]
    for axis, (count, edge) in enumerate(zip(cells, edges)):
        values = enlarged(values, axis, (count + 1) * edge)
    return values[tuple(slice(start, start + length) for start, length in zip(starts, spatial))]


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("n_spatial", "grid"), [(2, 3), (2, (4, 2)), (3, (2, 3, 20))])
def test_rise_is_the_mean_of_masks_weighted_by_their_scores(n_spatial, grid, centered):
    spatial, n_masks = SHAPES[n_spatial], 13
    net, roi = Net(n_spatial), regions.box(SHAPES[n_spatial], start=2, size=3)
    image, baseline = random(1, 1, *spatial), random(1, 1, *spatial, seed=1)
    target = SegmentationTarget(net, roi=roi, reference=random(*spatial, seed=2).gt(0.5).long(), metric="soft_dice")
    found = RiseSegmentation(target).attribute(
        image, baselines=baseline, target=1, n_masks=n_masks, grid_size=grid, probability=0.3, seed=7, centered=centered
    )
    cells = tuple(min(g, s) for g, s in zip((grid,) * n_spatial if isinstance(grid, int) else grid, spatial))
    weighted, kept, scores = np.zeros(spatial), np.zeros(spatial), []
    for number in range(n_masks):
        mask = mask_by_hand(7, number, cells, spatial, 0.3)
        m = torch.from_numpy(mask).float()
        scores.append(target(image * m + baseline * (1 - m))[0, 1].item())
        weighted += scores[-1] * mask
        kept += mask
    expected = weighted / kept - (np.mean(scores) if centered else 0)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-6)
    assert found.shape == image.shape
    assert found.is_contiguous()
    assert not found.requires_grad


def recorded_masks(image: Tensor, **arguments: Any) -> Tensor:
    """What a function is shown when ones are hidden by zeros: the masks themselves, after the whole image."""
    shown: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        shown.append(x.clone())
        return x.flatten(1).sum(1)

    RiseSegmentation(function).attribute(torch.ones_like(image), **arguments)
    return torch.cat(shown[1:])


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_masks_lie_between_0_and_1_and_are_the_same_for_all_examples(spatial, grid, seed):
    arguments = {"grid_size": grid, "seed": seed, "n_masks": 4}
    masks = recorded_masks(torch.empty(2, 1, *spatial), perturbations_per_eval=3, **arguments)
    assert masks.shape == (8, 1, *spatial)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert torch.equal(masks[0::2], masks[1::2])
    alone = recorded_masks(torch.empty(1, 1, *spatial), perturbations_per_eval=1, **arguments)
    assert torch.equal(masks[0::2], alone)


def test_a_pixel_is_kept_with_the_probability():
    masks = recorded_masks(torch.empty(1, 1, 12, 12), n_masks=3000, grid_size=3, probability=0.3, perturbations_per_eval=500)
    # A cell's standard deviation over 3000 masks is 0.0084 at most.
    assert (masks.mean(0) - 0.3).abs().max() < 0.04
    assert (masks[0] != masks[1]).any()


def test_rise_says_what_supports_and_what_harms():
    def score(x: Tensor) -> Tensor:
        return x[:, 0, 2:6, 2:6].mean((1, 2)) - x[:, 0, 10:14, 10:14].mean((1, 2))

    found = RiseSegmentation(score).attribute(torch.ones(1, 1, 16, 16), n_masks=600, grid_size=8)[0, 0]
    assert found[2:6, 2:6].min() > 0.02
    assert found[10:14, 10:14].max() < -0.02
    assert found[10:14, 2:6].abs().max() < 0.02


def rise_case() -> tuple[SegmentationTarget, Tensor]:
    images = random(3, 1, *SHAPES[2])
    roi = torch.stack([regions.box(SHAPES[2], start=start, size=4) for start in (0, 2, 4)])
    return SegmentationTarget.from_prediction(Net(2), images, roi=roi[:, None], metric="soft_dice"), images


def test_a_batch_of_rise_maps_is_the_loop_over_its_examples_however_it_is_batched():
    target, images = rise_case()
    arguments = {"n_masks": 21, "grid_size": 4, "baselines": random(3, 1, *SHAPES[2], seed=4)}
    batch = RiseSegmentation(target).attribute(images, target=[1, 0, 2], **arguments)
    for size in (1, 8, 100):
        other = RiseSegmentation(target).attribute(images, target=[1, 0, 2], perturbations_per_eval=size, **arguments)
        torch.testing.assert_close(batch, other, atol=1e-6, rtol=0)
    for n, label in enumerate([1, 0, 2]):
        one = SegmentationTarget(target.model, roi=target.roi[n, 0], reference=target.reference[n], metric="soft_dice")
        arguments["baselines"] = random(3, 1, *SHAPES[2], seed=4)[n : n + 1]
        alone = RiseSegmentation(one).attribute(images[n : n + 1], target=label, **arguments)
        torch.testing.assert_close(batch[n : n + 1], alone, atol=1e-6, rtol=0)
    assert torch.equal(
        batch,
        RiseSegmentation(target).attribute(
            images, **(arguments | {"baselines": random(3, 1, *SHAPES[2], seed=4)}), target=[1, 0, 2]
        ),
    )


def test_the_outputs_of_any_function_in_captums_forms():
    def scores(x: Tensor, scale: Tensor) -> Tensor:
        columns = [x[..., start : start + 3].flatten(1).mean(1) * scale for start in (0, 3)]
        return torch.stack([torch.stack(columns, 1), -torch.stack(columns, 1)], 1)  # (N, 2, 2)

    images, scale = random(2, 2, 6, 6), torch.tensor([1.0, 3.0])
    rise = RiseSegmentation(scores)
    arguments = {"additional_forward_args": scale, "n_masks": 9, "grid_size": 3}
    pairs = {pair: rise.attribute(images, target=pair, **arguments) for pair in itertools.product(range(2), range(2))}
    torch.testing.assert_close(pairs[0, 1], -pairs[1, 1])
    assert not torch.allclose(pairs[0, 0], pairs[0, 1])
    mixed = rise.attribute(images, target=[(0, 1), (1, 0)], **arguments)
    assert torch.equal(mixed[0], pairs[0, 1][0])
    assert torch.equal(mixed[1], pairs[1, 0][1])
    assert torch.equal(mixed[:, 0], mixed[:, 1])  # all channels of a pixel alike
    with pytest.raises(ValueError, match=r"target: the forward function has 4 outputs \(2 output x 2 output\) per example"):
        rise.attribute(images, **arguments)


def test_a_pixel_that_no_mask_keeps_is_given_the_mean_score():
    arguments = {"n_masks": 3, "grid_size": 4, "probability": 1e-9}
    rise = RiseSegmentation(lambda x: x.flatten(1).sum(1) + 5)
    assert torch.equal(rise.attribute(random(1, 1, 8, 8), **arguments), torch.zeros(1, 1, 8, 8))
    assert torch.equal(rise.attribute(random(1, 1, 8, 8), centered=False, **arguments), torch.full((1, 1, 8, 8), 5.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_masks": 0}, ValueError, "n_masks: expected at least 1, got 0"),
        ({"n_masks": 2.0}, TypeError, r"n_masks: expected an integer, got 2\.0"),
        ({"perturbations_per_eval": 0}, ValueError, "perturbations_per_eval: expected at least 1"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"probability": 0}, ValueError, "probability: expected a finite number of more than 0 and at most 1, got 0"),
        ({"probability": 1.0}, ValueError, "probability: expected less than 1"),
        ({"probability": "half"}, TypeError, "probability: expected a finite number .*, got 'half'"),
        ({"grid_size": 0}, ValueError, "grid_size: expected at least 1, got 0"),
        ({"grid_size": (2, 2, 2)}, ValueError, r"grid_size: expected one integer or 2 of them \(one per spatial axis\)"),
        ({"baselines": random(1, 1, 3, 3)}, ValueError, r"baselines: expected a number or a tensor .* got \(1, 1, 3, 3\)"),
        ({"baselines": torch.full((1, 1, 6, 6), torch.nan)}, ValueError, "baselines: it holds NaN or infinite"),
        ({"baselines": math.inf}, ValueError, "baselines: expected a finite number, got inf"),
        ({"baselines": "black"}, TypeError, "baselines: expected a finite number or a tensor of real numbers, got str"),
        ({"baselines": True}, TypeError, "baselines: expected a finite number or a tensor of real numbers, got bool"),
        ({"target": 1}, ValueError, "target: 1 does not pick"),
        ({"masks": 3}, TypeError, "unexpected keyword"),
    ],
)
def test_bad_arguments_of_rise(arguments, error, message):
    with pytest.raises(error, match=message):
        RiseSegmentation(lambda x: x.flatten(1).sum(1)).attribute(random(2, 1, 6, 6), **arguments)


@pytest.mark.parametrize("method", [RiseSegmentation, MiSuRe])
def test_images_that_cannot_be_hidden_in_part(method):
    explained = method(rise_case()[0])
    image = random(3, 1, *SHAPES[2])
    with pytest.raises(TypeError, match=r"inputs: expected one image batch .* got a tuple of 2; stack modalities"):
        explained.attribute((image, image), target=1)
    with pytest.raises(ValueError, match=r"inputs: expected an image batch .* with 1 to 3 spatial axes, got \(3, 4\)"):
        method(SegmentationTarget(nn.Linear(4, 4), metric="volume")).attribute(random(3, 4))
    with pytest.raises(TypeError, match="inputs: expected a tensor or a tuple of tensors, got ndarray"):
        explained.attribute(image.numpy(), target=1)


def test_scores_that_are_not_finite_or_change_their_shape():
    with pytest.raises(ValueError, match="forward_func: a score under a mask is NaN or infinite"):
        RiseSegmentation(lambda x: x.flatten(1).sum(1).log() * torch.inf).attribute(random(1, 1, 6, 6))
    with pytest.raises(ValueError, match="a function that aggregates over the batch"):
        RiseSegmentation(lambda x: x.sum()).attribute(random(1, 1, 6, 6))
    with pytest.raises(ValueError, match="its scores changed their shape"):
        RiseSegmentation(lambda x: x.flatten(1).sum(1).view(-1, 1).expand(-1, len(x))).attribute(random(1, 1, 6, 6), target=0)


# MiSuRe


class Conditional(nn.Module):
    """Bright pixels are segmented, if a far block is bright as well; nothing else matters."""

    def __init__(self, spatial: tuple[int, ...], far: Tensor) -> None:
        super().__init__()
        self.register_buffer("far", far.float())

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.ndim))
        there = (x * self.far).sum(axes) / self.far.sum()
        return 12 * (x + there.view(-1, *(1,) * (x.ndim - 1)) - 1.5)


def conditional(n_spatial: int) -> tuple[SegmentationTarget, Tensor, Tensor, Tensor]:
    """A target, an image, where it is segmented in the RoI and the far block that this takes."""
    spatial = (14,) * n_spatial if n_spatial == 2 else (10,) * n_spatial
    near, far = regions.box(spatial, start=1, size=3), regions.box(spatial, start=7, size=2)
    image = torch.full((1, 1, *spatial), 0.25)
    image[0, 0][near | far] = 1.0
    target = SegmentationTarget(Conditional(spatial, far), roi=regions.box(spatial, start=0, size=5), metric="volume")
    return target, image, near, far


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_misure_keeps_what_suffices_and_drops_the_rest(n_spatial):
    target, image, near, far = conditional(n_spatial)
    assert float(target(image)) == near.sum()
    found = MiSuRe(target).attribute(image, l2=0.0, l1=0.02)
    region = MiSuRe(target).attribute(image, n_steps=0)
    assert found.shape == image.shape
    assert found.is_contiguous()
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    kept = found[0, 0]
    assert kept[near].min() > 0.5
    assert kept[far].mean() > 0.5  # without it nothing is segmented
    inside = region[0, 0].bool() & ~near & ~far
    assert inside.sum() > 30
    assert not kept[inside].any()
    assert not kept[~region[0, 0].bool()].any()
    # With the far block hidden as well, the mask would not suffice.
    assert float(target(image * found)) == near.sum()
    assert float(target(image * found * ~far)) == 0


def dice_by_hand(model: nn.Module, image: Tensor, truth: Tensor, roi: Tensor) -> float:
    predicted = (model(image)[0, 0] > 0) & roi
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


@pytest.mark.parametrize(("n_spatial", "dilation", "tau"), [(2, 1, 0.95), (2, 3, 0.95), (2, 1, 0.4), (3, 1, 1.0), (3, 2, 0.9)])
def test_the_region_grows_by_dilation_until_it_suffices(n_spatial, dilation, tau):
    target, image, near, _ = conditional(n_spatial)
    # Brighter pixels take less of the far block: the second example stops elsewhere.
    images = torch.cat([image, image])
    images[1, 0][near] = 1.2
    found = MiSuRe(target).attribute(images, n_steps=0, dilation=dilation, tau=tau, baselines=0.1)
    sizes = []
    for n in range(2):
        one = images[n : n + 1]
        truth = (target.model(one)[0, 0] > 0) & target.roi
        region = truth.clone()
        while dice_by_hand(target.model, torch.where(region, one, 0.1), truth, target.roi) < tau:
            box = np.ones((2 * dilation + 1,) * n_spatial, dtype=bool)
            region = torch.from_numpy(ndimage.binary_dilation(region.numpy(), structure=box))
        assert torch.equal(found[n, 0], region.float())
        sizes.append(int(region.sum()))
    if (n_spatial, dilation) == (2, 1):
        assert sizes[0] > sizes[1] > near.sum()


class Blurred(nn.Module):
    """Two classes (labels that may overlap) from a smooth filter."""

    def __init__(self, n_spatial: int = 2) -> None:
        super().__init__()
        self.conv = CONV[n_spatial](1, 2, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def blurred(n_spatial: int = 2, n: int = 1, **options: Any) -> tuple[SegmentationTarget, Tensor]:
    torch.manual_seed(1)
    model = Blurred(n_spatial).double()
    with torch.no_grad():
        model.conv.weight.uniform_(-0.2, 1)
        model.conv.bias.fill_(-2.5 if n_spatial == 2 else -12)
    spatial = (10, 9) if n_spatial == 2 else (6, 7, 6)
    roi = options.pop("roi", regions.box(spatial, start=2, size=3))
    return SegmentationTarget(model, roi=roi, metric="volume", activation="sigmoid", **options), random(n, 1, *spatial).double()


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_the_mask_is_what_adam_makes_of_the_papers_loss(n_spatial):
    target, image = blurred(n_spatial)
    l1, l2, rate, steps = 0.3, 0.2, 0.06, 7
    arguments = {"l1": l1, "l2": l2, "learning_rate": rate, "tau": 0.8}
    found = MiSuRe(target).attribute(image, target=1, n_steps=steps, **arguments)
    region = MiSuRe(target).attribute(image, target=1, n_steps=0, **arguments)[0, 0]
    truth = (target.model(image)[0, 1] > 0) & target.roi
    area = region.sum()

    def loss(m: Tensor) -> Tensor:
        probability = target.model(image * m)[0, 1].sigmoid()[target.roi]
        y0 = truth[target.roi].double()
        dice = 2 * (probability * y0).sum() / (probability.sum() + y0.sum())
        neighbors = [(m.roll(-1, axis) - m).abs().narrow(axis, 0, m.shape[axis] - 1).sum() for axis in range(n_spatial)]
        return 1 - dice + l1 * m.sum() / area + l2 * sum(neighbors) / area

    m, first, second = region.clone(), torch.zeros_like(region), torch.zeros_like(region)
    path = [(loss(m).item(), m)]
    for step in range(1, steps + 1):
        leaf = m.clone().requires_grad_()
        loss(leaf).backward()
        gradient = leaf.grad * region * area
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved = m - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        m = moved.clamp(0, 1) * region
        path.append((loss(m).item(), m))
    best = min(path, key=lambda pair: pair[0])[1]
    torch.testing.assert_close(found[0, 0], best.detach(), atol=1e-6, rtol=0)
    assert ((best > 0) & (best < 1)).any()
    assert path[-1][0] < path[0][0]


def test_the_result_is_the_mask_of_the_smallest_loss_and_not_the_last():
    target, image, near, _ = conditional(2)
    # Steps so large that the mask is gone at once, and the prediction with it.
    found = MiSuRe(target).attribute(image, n_steps=1, learning_rate=1.0, l1=0.9)
    assert torch.equal(found, MiSuRe(target).attribute(image, n_steps=0))
    assert found[0, 0][near].all()


def test_coarser_masks_are_enlarged_linearly():
    target, image = blurred()
    few = {"target": 0, "n_steps": 5, "l1": 0.9, "l2": 0.0}
    region = MiSuRe(target).attribute(image, target=0, n_steps=0) > 0
    one = MiSuRe(target).attribute(image, cell_size=100, **few)[region]
    assert one.std() < 1e-12  # one cell: one value in all of the region
    assert 0 < one[0] < 0.9
    assert float(MiSuRe(target).attribute(image, cell_size=2, **few)[region].std()) > 1e-4
    # Predicted everywhere, so that the whole image is the region.
    target = SegmentationTarget(lambda x: 8 * x + 0.1, metric="volume", activation="sigmoid")
    rows = MiSuRe(target).attribute(random(1, 1, 10, 9), cell_size=(2, 1), n_steps=30, l1=0.15, l2=0.0)[0, 0]
    assert rows.std() > 0.05
    # Cells of 2 rows have their centers at 0.5, 2.5, 4.5, ...: rows 1 and 2 lie on one line, rows 3 and 4 on the next.
    steps = rows[1:-1].diff(dim=0)
    torch.testing.assert_close(steps[1::2], (steps[0:-1:2] + steps[2::2]) / 2)


def test_a_batch_of_masks_is_the_loop_over_its_examples_classes_and_rois():
    spatial = (10, 9)
    stack = torch.stack([regions.box(spatial, start=1, size=4), regions.box(spatial, start=5, size=4)])
    target, images = blurred(n=3, roi=stack)
    outputs = [(0, 1), (1, 0), (1, 1)]
    arguments = {"n_steps": 12, "l2": 0.02, "baselines": random(3, 1, *spatial, seed=3).double() / 4}
    batch = MiSuRe(target).attribute(images, target=outputs, **arguments)
    for n, (label, place) in enumerate(outputs):
        one = SegmentationTarget(target.model, roi=stack[place], metric="volume", activation="sigmoid")
        rest = arguments | {"baselines": arguments["baselines"][n : n + 1]}
        torch.testing.assert_close(batch[n : n + 1], MiSuRe(one).attribute(images[n : n + 1], target=label, **rest))
    assert torch.equal(batch, MiSuRe(target).attribute(images, target=outputs, **arguments))
    assert not torch.allclose(batch, MiSuRe(target).attribute(images, target=(1, 1), **arguments))


def test_the_targets_own_metric_and_reference_play_no_part_and_its_roi_may_come_with_the_call():
    target, images = blurred(n=2)
    expected = MiSuRe(target).attribute(images, target=1, n_steps=8)
    options = {"activation": "sigmoid", "reference": torch.ones(2, 10, 9)}
    other = SegmentationTarget(target.model, roi=target.roi, metric="iou", **options)
    assert torch.equal(expected, MiSuRe(other).attribute(images, target=1, n_steps=8))
    called = SegmentationTarget(target.model, roi="argument", metric="volume", activation="sigmoid")
    masks = target.roi.expand(2, *target.roi.shape)
    assert torch.equal(expected, MiSuRe(called).attribute(images, 1, masks, n_steps=8))


def test_a_model_with_arguments_of_its_own_one_roi_axis_and_probabilities():
    class Shifted(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return (8 * (x - level.view(-1, 1, 1, 1))).sigmoid()

    image = torch.zeros(2, 1, 8, 8)
    image[:, :, 2:5, 2:5] = 1.0
    roi = regions.box((8, 8), start=1, size=5)[None]
    level = torch.tensor([0.3, 0.7])
    target = SegmentationTarget(Shifted(), roi=roi, metric="volume")
    found = MiSuRe(target).attribute(image, target=0, additional_forward_args=level, l1=0.4, l2=0.0)
    kept = found[:, 0, 2:5, 2:5].flatten(1).mean(1)
    assert 0.3 < kept[0] < kept[1] <= 1  # the higher level needs more of the brightness
    assert found.sum() == found[:, :, 2:5, 2:5].sum()


def test_a_target_that_has_read_its_activation_keeps_it():
    class Probable(nn.Module):
        """Logits on the whole image, which read like probabilities where only the RoI is kept."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([0.4 + 0 * x, x], 1)

    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:5, 2:5] = 0.9
    image[..., 7, 7] = 3.0
    roi = regions.box((8, 8), start=1, size=5)
    few = {"target": 1, "n_steps": 10, "l1": 0.2}
    found = MiSuRe(SegmentationTarget(Probable(), roi=roi, metric="volume")).attribute(image, **few)
    fixed = MiSuRe(SegmentationTarget(Probable(), roi=roi, metric="volume", activation="softmax")).attribute(image, **few)
    other = MiSuRe(SegmentationTarget(Probable(), roi=roi, metric="volume", activation="none")).attribute(image, **few)
    assert torch.equal(found, fixed)
    assert not torch.allclose(found, other)


def test_a_region_that_never_suffices_ends_as_the_whole_image():
    class Fickle(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x if self.calls <= 2 else -x  # after the observed score and the prediction

    image = torch.ones(1, 1, 9, 9)
    target = SegmentationTarget(Fickle(), roi=regions.box((9, 9), start=1, size=3), metric="volume", activation="sigmoid")
    assert MiSuRe(target).attribute(image, n_steps=0).all()


def test_misure_explains_targets_only():
    with pytest.raises(TypeError, match=r"forward_func: expected a SegmentationTarget, .* got Conv2d"):
        MiSuRe(nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match="forward_func: expected a target with a named metric"):
        MiSuRe(SegmentationTarget(nn.Conv2d(1, 2, 1), metric=lambda prediction, reference, roi: prediction.flatten(2).sum(2)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tau": 0}, ValueError, "tau: expected a finite number of more than 0 and at most 1, got 0"),
        ({"tau": 95}, ValueError, "tau: expected a finite number of more than 0 and at most 1, got 95"),
        ({"tau": None}, TypeError, "tau: expected a finite number .*, got None"),
        ({"dilation": 0}, ValueError, "dilation: expected at least 1, got 0"),
        ({"n_steps": -1}, ValueError, "n_steps: expected at least 0, got -1"),
        ({"learning_rate": 0.0}, ValueError, r"learning_rate: expected a positive number, got 0\.0"),
        ({"l1": -1}, ValueError, "l1: expected a finite number of at least 0, got -1"),
        ({"l2": math.nan}, ValueError, "l2: expected a finite number of at least 0, got nan"),
        ({"cell_size": 0}, ValueError, "cell_size: expected at least 1, got 0"),
        ({"cell_size": (1, 2, 3)}, ValueError, r"cell_size: expected one integer or 2 of them \(one per spatial axis\)"),
        ({"target": None}, ValueError, r"target: the forward function has 2 outputs \(2 class\) per example"),
        ({"target": 2}, ValueError, "target: 2 does not pick one of 2 outputs"),
        ({"baselines": random(3, 1, 10, 9)}, ValueError, "baselines: expected a number or a tensor"),
        ({"steps": 3}, TypeError, "unexpected keyword"),
    ],
)
def test_bad_arguments_of_misure(arguments, error, message):
    target, image = blurred()
    with pytest.raises(error, match=message):
        MiSuRe(target).attribute(image, **({"target": 1} | arguments))


def test_nothing_to_explain_and_nothing_to_descend():
    target, image, near, _ = conditional(2)
    images = torch.cat([image, image * 0])
    with pytest.raises(ValueError, match=r"inputs: the model predicts nothing of the class in the RoI for example\(s\) \[1\]"):
        MiSuRe(target).attribute(images)
    with torch.no_grad():
        detached = SegmentationTarget(lambda x: target.model(x).detach(), roi=near, metric="volume", activation="sigmoid")
    assert MiSuRe(detached).attribute(image, n_steps=0).any()
    with pytest.raises(ValueError, match="forward_func: the model's output has no gradient with respect to its input"):
        MiSuRe(detached).attribute(image)


# All three


class Restless(nn.Module):
    """Does to its surroundings what a model can do where gradients are wanted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.norm, self.dropout = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.act, self.head = nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        np.random.rand(2)
        python_random.random()
        torch.rand(2, device=x.device)
        return self.head(self.dropout(self.act(self.norm(self.conv(x.mul_(2))))))


def trace(model: nn.Module) -> list[Any]:
    modules = list(model.modules())
    return [
        [module.training for module in modules],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks) for module in modules],
        [(name, value.detach().numpy().tobytes(), value.requires_grad) for name, value in model.named_parameters()],
        [parameter.grad for parameter in model.parameters()],
        [(name, value.numpy().tobytes()) for name, value in model.named_buffers()],
        [python_random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()],
        torch.is_grad_enabled(),
    ]


def explainers(model: Restless, images: Tensor) -> dict[str, Any]:
    target = SegmentationTarget(model, roi=regions.box((8, 8), start=2, size=4), metric="logit_sum", activation="sigmoid")
    few = {"target": 1}
    return {
        "cam": lambda: SegHiResGradCam(target, model.norm).attribute(images, **few, pool_size=2),
        "rise": lambda: RiseSegmentation(target).attribute(images, **few, n_masks=5, show_progress=True),
        "misure": lambda: MiSuRe(target).attribute(images, **few, n_steps=3, show_progress=True),
    }


@pytest.mark.filterwarnings("ignore:The model is in training mode:UserWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["cam", "rise", "misure"])
def test_a_model_and_its_surroundings_are_left_as_they_were(name, training):
    model = Restless()
    with torch.no_grad():
        model.head.bias.fill_(1)
    model.train(training)
    images = random(2, 1, 8, 8).requires_grad_()
    kept = images.detach().clone()
    run = explainers(model, images)[name]
    before = trace(model)
    first = run()
    assert trace(model) == before
    assert torch.equal(images, kept)
    assert images.grad is None
    assert torch.equal(first, run()), "the same arguments give the same bits"
    assert not first.requires_grad
    with torch.inference_mode():
        assert torch.allclose(first, run())


@pytest.mark.parametrize("name", ["cam", "rise", "misure"])
def test_the_default_device_makes_no_difference(name):
    model = Restless().eval()
    with torch.no_grad():
        model.head.bias.fill_(1)
    run = explainers(model, random(2, 1, 8, 8))[name]
    expected = run()
    with torch.device("meta"):
        found = run()
    assert torch.equal(found, expected)


def test_names_and_progress(capsys):
    model = Restless().eval()
    run = explainers(model, random(1, 1, 8, 8))
    with torch.no_grad():
        model.head.bias.fill_(1)
    run["rise"]()
    assert "Rise Segmentation attribution: 100%" in capsys.readouterr().err
    run["misure"]()
    shown = capsys.readouterr().err
    assert "MiSuRe: growing the region" in shown
    assert "MiSuRe: reducing the mask: 100%" in shown
    assert SegHiResGradCam.get_name() == "Seg-HiRes-Grad-CAM"
    assert baselines.__all__ == ["MiSuRe", "RiseSegmentation", "SegHiResGradCam"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", [RiseSegmentation, MiSuRe])
def test_maps_are_like_the_images(method, dtype):
    target, image = blurred()
    target.model.to(dtype)
    few = {"n_masks": 3} if method is RiseSegmentation else {"n_steps": 2}
    images = image.to(dtype)
    found = method(target).attribute(images, target=1, **few)
    assert found.dtype == dtype
    assert found.shape == images.shape
    (as_tuple,) = method(target).attribute((images,), target=1, baselines=(0.0,), **few)
    assert torch.equal(found, as_tuple)


def test_under_captums_wrappers():
    target, image = blurred()
    smooth = NoiseTunnel(RiseSegmentation(target)).attribute(image, nt_samples=2, stdevs=0.01, target=1, n_masks=4)
    assert smooth.shape == image.shape
    cam = SegHiResGradCam(target.surrogate("logit_sum"), target.model.conv)
    torch.manual_seed(0)
    smooth = NoiseTunnel(cam).attribute(image, nt_samples=3, stdevs=0.0, target=1, relu_attributions=False)
    torch.testing.assert_close(smooth, cam.attribute(image, target=1, relu_attributions=False))
    assert LayerAttribution.interpolate(smooth, (20, 18)).shape == (1, 1, 20, 18)
    for method, few in ((RiseSegmentation(target), {"n_masks": 4}), (MiSuRe(target), {"n_steps": 2})):
        change = sensitivity_max(method.attribute, image, perturb_radius=0.01, n_perturb_samples=2, target=1, **few)
        assert change.isfinite().all()
