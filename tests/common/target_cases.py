"""Targets and models that tests of them share."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget, regions

SIZES = {1: (10,), 2: (8, 9), 3: (6, 5, 7)}
CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """Two convolutions from one channel to ``classes``, and a count of how often it ran."""

    def __init__(self, n_spatial: int, classes: int) -> None:
        super().__init__()
        self.first = CONVOLUTION[n_spatial](1, 4, 3, padding=1)
        self.last = CONVOLUTION[n_spatial](4, classes, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 3 * self.last(torch.tanh(self.first(x)))


def dice(first: Tensor, second: Tensor, roi: Tensor, empty_score: float = 1.0) -> float:
    """Of one class of one example, by counting."""
    first, second = first.numpy().astype(bool) & roi.numpy(), second.numpy().astype(bool) & roi.numpy()
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else empty_score


def dices(prediction: Tensor, reference: Tensor, rois: Tensor) -> Tensor:
    """``(N, C, R)`` of one-hot ``(N, C, ...)`` and RoIs ``(N, R, ...)``."""
    n, classes = prediction.shape[:2]
    return torch.tensor(
        [[[dice(prediction[i, c], reference[i, c], roi) for roi in rois[i]] for c in range(classes)] for i in range(n)]
    )


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return functional.one_hot(labels, classes).movedim(-1, 1)


def random_rois(*shape: int) -> Tensor:
    return torch.rand(shape) < 0.5


every_size = pytest.mark.parametrize(("n_spatial", "n"), [(1, 3), (2, 1), (2, 3), (3, 1), (3, 3)])
S = (8, 9)


class Case:
    """A model, a batch of 2, a target with two RoIs and one with the examples' own masks."""

    def __init__(self, n_spatial: int) -> None:
        spatial = {2: (16, 16), 3: (8, 8, 8)}[n_spatial]
        self.model = Net(n_spatial, 3)
        # No class is rare: hard scores have something to lose.
        nn.init.zeros_(self.model.last.bias)
        # Captum's gradient methods warn of an input that does not require gradients.
        self.images = torch.randn(2, 1, *spatial, requires_grad=True)
        rois = torch.stack([regions.box(spatial, 1, 5), regions.box(spatial, 3, 5)])
        labels = torch.randint(0, 3, (2, *spatial))
        self.target = SegmentationTarget(self.model, rois, labels[0])
        self.travelling = SegmentationTarget(self.model, "argument", "argument")
        self.masks = torch.stack([rois, rois.flip(0)]), labels
        self.window = (1, *(4,) * n_spatial)
        self.blocks = regions.grid(spatial, 4)[None, None]
