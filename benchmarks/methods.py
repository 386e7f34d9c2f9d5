"""The attribution methods that the benchmarks compare, on any target around a MONAI ``UNet``."""

from typing import Any

from captum.attr import Attribution, IntegratedGradients, LayerGradCam, Occlusion
from monai.networks.nets import UNet
from torch import nn

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, SegmentationTarget
from captum_causalseg.baselines import MiSuRe, RiseSegmentation, SegHiResGradCam

BLOCK = 8


def bottleneck(network: UNet) -> nn.Module:
    """The lowest layer, of the coarsest resolution."""
    module: Any = network.model[1]
    while hasattr(module, "submodule"):
        inner = module.submodule
        module = inner[1] if isinstance(inner, nn.Sequential) else inner
    return module


def decoder(network: UNet) -> nn.Module:
    """The last layer but the output's own."""
    return network.model[1].submodule[2]


def methods(target: SegmentationTarget, network: UNet, channels: int = 1, n_draws: int = 50) -> dict[str, Any]:
    """By name: a Captum attribution object and the arguments of its ``attribute`` (but inputs, output, donors and units)."""
    soft, logits = target.surrogate(), target.surrogate("logit_sum")
    window = {
        "sliding_window_shapes": (channels, BLOCK, BLOCK),
        "strides": (channels, BLOCK, BLOCK),
        "perturbations_per_eval": 16,
    }
    found: dict[str, tuple[Attribution, dict[str, Any]]] = {
        "AverageTreatmentEffect": (AverageTreatmentEffect(target), {"n_draws": n_draws}),
        "GradientTreatmentEffect": (GradientTreatmentEffect(target), {}),
        "Occlusion": (Occlusion(target), window),
        "IntegratedGradients": (IntegratedGradients(soft), {"n_steps": 50, "internal_batch_size": 16}),
        "Seg-Grad-CAM, bottleneck": (LayerGradCam(logits, bottleneck(network)), {}),
        "Seg-Grad-CAM, decoder": (LayerGradCam(logits, decoder(network)), {}),
        "SegHiResGradCam, decoder": (SegHiResGradCam(logits, decoder(network)), {}),
        "MiSuRe": (MiSuRe(target), {}),
        "RiseSegmentation": (RiseSegmentation(target), {"n_masks": 1000}),
    }
    return found
