"""A small network, and methods to be compared on it."""

import torch
from torch import nn

from captum_causalseg import PatchBank, SegmentationTarget, compare, regions

FEW = {"n_draws": 1, "n_steps": 3, "n_subsets": 6}


class Case:
    """A small network with a hidden layer, two examples, a bank of eight images."""

    def __init__(self, d: int = 2, n: int = 1, metric: str = "soft_dice") -> None:
        generator = torch.Generator().manual_seed(0)
        conv = (nn.Conv2d, nn.Conv3d)[d - 2]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(conv(1, 4, 5, padding=2, stride=2), nn.ReLU(), conv(4, 2, 5, padding=2))
        self.images = torch.rand(n, 1, *(16,) * d, generator=generator)
        self.rois = torch.stack([regions.box((16,) * d, 4, 4), regions.box((16,) * d, 8, 8)])
        self.bank = PatchBank(torch.rand(8, 1, *(16,) * d, generator=generator))
        self.target = SegmentationTarget.from_prediction(self.net, self.images, roi=self.rois, metric=metric)
        self.arguments = None
        if n > 1:
            self.arguments = self.target.predict(self.images)
            self.target = SegmentationTarget(self.net, roi=self.rois, reference="argument", metric=metric)
        self.output = (1, 0)

    def compare(self, methods, **options):
        options = {
            "output": self.output,
            "block_size": 4,
            "faithfulness": FEW,
            "baselines": self.bank,
            "n_controls": 1,
        } | options
        return compare(methods, self.target, self.images, additional_forward_args=self.arguments, **options)
