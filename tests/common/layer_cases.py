"""What interventions on layers are tested on."""

import torch
from torch import Tensor, nn

from captum_causalseg import regions

PLAIN = {"sampling": "uniform", "support": None}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """Early, middle and late layers, and a skip around the middle."""

    def __init__(self, d: int = 2, channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        conv = CONV[d]
        with torch.random.fork_rng():
            torch.manual_seed(d)
            self.early, self.middle = conv(channels, 4, 3, padding=1), conv(4, 5, 3, padding=1)
            self.late = conv(9, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        early = torch.sin(6 * self.early(x))
        return self.late(torch.cat([early, torch.sin(6 * self.middle(early))], 1))


def case(d: int, n: int = 2):
    spatial = {2: (12, 10), 3: (8, 6, 7)}[d]
    generator = torch.Generator().manual_seed(d * 10 + n)
    images = torch.rand((n, 1, *spatial), generator=generator)
    labels = torch.randint(0, 3, (n, *spatial), generator=generator)
    donors = torch.rand((6, 1, *spatial), generator=generator)
    roi = regions.box(spatial, start=2, size=4)
    model = Net(d).eval()
    return model, images, labels, donors, roi
