"""What backpropagated effects are tested on."""

import torch
from torch import Tensor, nn

from captum_causalseg import regions

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Linear(nn.Module):
    """Convolutions and nothing else: linear from the image to the logits."""

    def __init__(self, d: int, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = CONV[d](channels, 4, 3, padding=1), CONV[d](4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Curved(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sin(3 * self.first(x)))


def case(d: int = 2, kind: type[Linear] = Linear, n: int = 2):
    spatial = {2: (12, 10), 3: (7, 7, 8)}[d]
    images, labels = torch.rand(n, 1, *spatial), torch.randint(0, 3, (n, *spatial))
    return kind(d).eval(), images, labels, regions.box(spatial, start=4, size=3)
