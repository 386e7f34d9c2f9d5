"""What all baselines do alike: nothing is left behind, and Captum's wrappers take them."""

import random as python_random
from typing import Any

import numpy as np
import pytest
import torch
from baseline_cases import blurred, random
from captum.attr import LayerAttribution, NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, baselines, regions
from captum_causalseg.baselines import MiSuRe, RiseSegmentation, SegHiResGradCam


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
