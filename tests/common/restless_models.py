"""Models that answer otherwise for another reason than their input."""

import torch
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, SegmentationTarget, regions

SIZE = 16
ROI = regions.box((SIZE, SIZE), 4, 8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.last(self.between(self.first(x)).relu())

    def between(self, hidden: Tensor) -> Tensor:
        return hidden


class Noisy(Plain):
    def between(self, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.randn_like(hidden)


def target_of(model, **options) -> SegmentationTarget:
    given = {"roi": ROI, "reference": random(SIZE, SIZE, seed=3) > 0.5, "metric": "soft_dice"} | options
    return SegmentationTarget(model, **given)


def statistics(target, images=None, face=AverageTreatmentEffect, **options):
    bank = PatchBank(random(9, 1, SIZE, SIZE, seed=9))
    given = {"baselines": bank, "block_size": 4, "n_draws": 6, "target": 1, "return_statistics": True}
    return face(target).attribute(random(1, 1, SIZE, SIZE) if images is None else images, **given | options)[1]


def of_layer(target, layer, images=None, **options):
    given = {"layer_baselines": random(9, 1, SIZE, SIZE, seed=9), "n_draws": 6, "target": 1, "return_statistics": True}
    images = random(1, 1, SIZE, SIZE) if images is None else images
    return LayerAverageTreatmentEffect(target, layer).attribute(images, **given | options)[1]
