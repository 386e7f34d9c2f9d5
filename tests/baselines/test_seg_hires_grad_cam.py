"""Seg-HiRes-Grad-CAM against its paper's formula, written out on small inputs."""

import itertools

import pytest
import torch
from baseline_cases import SHAPES, Net, random
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.baselines import SegHiResGradCam


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
