"""Captum's test configurations, and cases of every kind of tensor."""

from typing import Any

import torch
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    SegmentationTarget,
    regions,
)

CONV = {2: nn.Conv2d, 3: nn.Conv3d}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tuple_of(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def largest(attributions: Any) -> float:
    return max(float(part.abs().amax()) for part in tuple_of(attributions))


class Net(nn.Module):
    def __init__(self, d: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.early, self.middle, self.late = (
                CONV[d](1, 4, 3, padding=1),
                CONV[d](4, 4, 3, padding=1),
                CONV[d](4, 2, 3, padding=1),
            )

    def forward(self, x: Tensor) -> Tensor:
        return 6 * self.late(torch.sin(3 * self.middle(torch.sin(3 * self.early(x)))))


class Case:
    """A segmentation problem and the faces over it; `dtype` of model, images and donors."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.quick = {"target": 1, "n_draws": 5, "n_screening_draws": 0}
        self.model = Net().to(dtype).eval()
        self.images, self.donors = random(2, 1, 8, 8).to(dtype), random(5, 1, 8, 8, seed=9).to(dtype)
        self.roi = regions.box((8, 8), start=2, size=4)
        self.reference = (random(8, 8, seed=1) > 0.5).long()

    def target(self, model: nn.Module | None = None) -> SegmentationTarget:
        model = self.model if model is None else model
        return SegmentationTarget(model, roi=self.roi, reference=self.reference, metric="soft_dice", activation="softmax")

    def input(self, model: nn.Module | None = None) -> AverageTreatmentEffect:
        return AverageTreatmentEffect(self.target(model))

    def layer(self, model: nn.Module | None = None, target: Any = None, **options: Any) -> LayerAverageTreatmentEffect:
        return LayerAverageTreatmentEffect(target or self.target(model), self.model.middle, **options)

    def attribute(self, face: str, images: Tensor | None = None, model: nn.Module | None = None, donors: Any = None) -> Tensor:
        images, donors = self.images if images is None else images, self.donors if donors is None else donors
        if face == "input":
            return self.input(model).attribute(images, baselines=donors, block_size=2, exclude=None, **self.quick)
        if face == "layer":
            return self.layer(model).attribute(images, layer_baselines=donors, **self.quick)
        if face == "gradient":
            return GradientTreatmentEffect(self.target(model)).attribute(images, baselines=donors, block_size=2, target=1)
        return LayerGradientTreatmentEffect(self.target(model), self.model.middle).attribute(
            images, layer_baselines=donors, target=1
        )


FACES = ["input", "layer"]
