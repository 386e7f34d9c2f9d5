"""Networks and images that baselines are tested on."""

from typing import Any

import torch
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, regions

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
