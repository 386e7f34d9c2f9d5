"""The methods that the study compares, each at the same number of forwards, and with its own defaults."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerGradCam, Occlusion
from study_cases import BLOCK
from study_data import Data
from study_kinds import last_layer, lowest_layer
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    JointTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
)
from captum_causalseg.baselines import MiSuRe, RiseSegmentation, SegHiResGradCam

__all__ = ["DRAWS", "EFFORT", "METRICS", "OURS", "at_defaults", "at_equal_forwards", "donors"]

DRAWS = 4
"""Of every unit, at equal forwards."""
_LEAST_JOINT = 4
N_DONORS = 32
"""Pictures of each half of the donors, at most."""
OURS = "effects"
METRICS = (
    *("deletion, supporting, soft", "insertion, supporting, soft", "attribution score, soft"),
    *("attribution score, a fifth kept, soft", "mu fidelity, soft", "sensitivity n, soft"),
    *("deletion, supporting", "attribution score", "attribution score, a fifth kept", "road"),
)
"""By which maps are judged, hard Dice and soft."""
EFFORT = {"n_draws": 2, "n_steps": 6, "n_subsets": 40, "support": None}
"""Of the judges."""
Methods = Mapping[str, Callable[..., Any] | tuple[Callable[..., Any], Mapping[str, Any]]]


class Probabilities(nn.Module):
    """A network that ends with its activation, as the paper's protocol takes its output."""

    def __init__(self, network: nn.Module, binary: bool) -> None:
        super().__init__()
        self.network, self.binary = network, binary

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return logits.sigmoid() if self.binary else logits.softmax(1)


def donors(data: Data) -> tuple[PatchBank, PatchBank]:
    """Of the training pictures, one half for the methods and one to judge them with."""
    return PatchBank(_pictures(data, 0)), PatchBank(_pictures(data, 1))


def _pictures(data: Data, half: int) -> Tensor:
    """Training pictures that donors are cut from: many more bring nothing, and are read again and again."""
    return data.train_images[half::2][:N_DONORS].clone()


def at_equal_forwards(data: Data) -> Methods:
    """All methods at about as many forwards as four draws of every unit take; a gradient counts as three.

    Methods that take a fixed, smaller number (the two Grad-CAMs, zeros for donors, first-order effects) have what they take, and so has Occlusion without overlap. Joint effects take no fewer than four draws.
    """
    n_units = data.size[0] * data.size[1] // BLOCK**2
    forwards = DRAWS * n_units
    plain = {"n_draws": DRAWS, "n_screening_draws": 0}
    matched = PatchBank(_pictures(data, 0), match="mean")
    window = {"sliding_window_shapes": (data.test_images.shape[1], BLOCK, BLOCK), "perturbations_per_eval": 16}
    gradients = forwards // 3
    return {
        OURS: (AverageTreatmentEffect, plain),
        "effects, mean-matched": (AverageTreatmentEffect, {**plain, "baselines": matched}),
        "effects, soft": (soft_effects, plain),
        "effects, joint": (JointTreatmentEffect, {"n_draws": _LEAST_JOINT}),
        "effects, first order": GradientTreatmentEffect,
        "zero_local": (AverageTreatmentEffect, {"baselines": 0.0, "n_draws": 1, "n_screening_draws": 0}),
        "PdCR": (_PdCR(data.output is None), {"block_size": BLOCK, "n_draws": DRAWS, "n_screening_draws": 1}),
        "Occlusion": (Occlusion, {**window, "strides": (data.test_images.shape[1], BLOCK, BLOCK)}),
        "RISE": (RiseSegmentation, {"n_masks": forwards}),
        "MiSuRe": (MiSuRe, {"n_steps": gradients, "cell_size": 2}),
        "Seg-Grad-CAM": _SegGradCam(tuple(data.test_images.shape[1:])),
        "SegHiResGradCam": _HiRes(tuple(data.test_images.shape[1:]), data.n_outputs),
        "IntegratedGradients": (integrated_gradients, {"n_steps": gradients, "internal_batch_size": 16}),
        "GradientShap": (gradient_shap, {"n_samples": gradients, "baselines": _pictures(data, 0)[:16]}),
    }


def at_defaults(data: Data) -> Methods:
    """The same methods with the defaults of their classes, wherever they have any: units are the same."""
    matched = PatchBank(_pictures(data, 0), match="mean")
    channels = data.test_images.shape[1]
    window = {"sliding_window_shapes": (channels, BLOCK, BLOCK), "strides": (channels, BLOCK, BLOCK)}
    return {
        **at_equal_forwards(data),
        OURS: AverageTreatmentEffect,
        "effects, mean-matched": (AverageTreatmentEffect, {"baselines": matched}),
        "effects, soft": soft_effects,
        "effects, joint": JointTreatmentEffect,
        "zero_local": (AverageTreatmentEffect, {"baselines": 0.0}),
        "PdCR": (_PdCR(data.output is None), {"block_size": BLOCK}),
        "Occlusion": (Occlusion, window | {"perturbations_per_eval": 16}),
        "RISE": RiseSegmentation,
        "MiSuRe": MiSuRe,
        "IntegratedGradients": integrated_gradients,
        "GradientShap": (gradient_shap, {"baselines": _pictures(data, 0)[:16]}),
    }


def soft_effects(target: SegmentationTarget) -> AverageTreatmentEffect:
    return AverageTreatmentEffect(target.surrogate())


def integrated_gradients(target: SegmentationTarget) -> IntegratedGradients:
    return IntegratedGradients(target.surrogate())


def gradient_shap(target: SegmentationTarget) -> "SeededGradientShap":
    return SeededGradientShap(target.surrogate())


class SeededGradientShap(GradientShap):
    """Captum's, with numbers of its own: the global ones are those of whatever ran before."""

    def attribute(self, inputs: Any, baselines: Any, n_samples: int = 5, target: Any = None, seed: int = 0) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = np.random.get_state()
            np.random.seed(seed)
            try:
                return super().attribute(inputs, baselines, n_samples=n_samples, target=target)
            finally:
                np.random.set_state(state)


class _PdCR:
    """The paper's protocol on probabilities: it thresholds what a network returns."""

    def __init__(self, binary: bool) -> None:
        self.binary = binary

    def __call__(self, target: SegmentationTarget) -> PdCR:
        return PdCR(target.with_model(Probabilities(target.model, self.binary)))


class _SegGradCam:
    """Captum's ``LayerGradCam`` on the sum of the logits in the region, at the last convolution of the coarsest resolution."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, target: SegmentationTarget) -> LayerGradCam:
        layer = lowest_layer(target.model, torch.zeros(1, *self.shape))
        return LayerGradCam(target.surrogate("logit_sum"), layer)


class _HiRes:
    """At the last convolution before the logits."""

    def __init__(self, shape: tuple[int, ...], n_outputs: int) -> None:
        self.shape, self.n_outputs = shape, n_outputs

    def __call__(self, target: SegmentationTarget) -> SegHiResGradCam:
        layer = last_layer(target.model, torch.zeros(1, *self.shape), self.n_outputs)
        return SegHiResGradCam(target.surrogate("logit_sum"), layer)
