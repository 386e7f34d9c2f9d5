"""What scores are tested on."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget, regions

SPATIAL = {1: (11,), 2: (9, 12), 3: (6, 7, 8)}
BOX = {1: ((2,), (7,)), 2: ((1, 3), (6, 7)), 3: ((1, 2, 0), (4, 5, 6))}
per_case = pytest.mark.parametrize(
    ("n_spatial", "n", "channels", "exclusive"),
    [(1, 3, 3, True), (2, 1, 1, False), (2, 3, 3, True), (2, 3, 2, False), (3, 1, 3, True), (3, 3, 1, False)],
)


class Case:
    """Random logits, the reference in one-hot form, a box RoI and what lies in it. The model is the identity."""

    def __init__(self, n_spatial: int, n: int, channels: int, exclusive: bool, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1000 * n_spatial + 100 * n + 10 * channels + exclusive)
        self.spatial = SPATIAL[n_spatial]
        start, size = BOX[n_spatial]
        self.roi = regions.box(self.spatial, start, size)
        self.window = (..., *(slice(a, a + b) for a, b in zip(start, size)))
        self.logits = (4 * torch.randn((n, channels, *self.spatial), generator=generator)).to(dtype)
        self.labels = torch.randint(0, max(channels, 2), (n, *self.spatial), generator=generator)
        overlapping = torch.randint(0, 2, (n, channels, *self.spatial), generator=generator)
        self.reference = functional.one_hot(self.labels, channels).movedim(-1, 1) if exclusive else overlapping
        self.activation = "softmax" if exclusive else "sigmoid"
        self.probabilities = self.logits.softmax(1) if exclusive else self.logits.sigmoid()
        winners = functional.one_hot(self.logits.argmax(1), channels).movedim(-1, 1)
        self.prediction = winners if exclusive else (self.logits > 0).long()
        self.squeezed = (n,) if channels == 1 else (n, channels)

    def score(self, metric: str, **options) -> Tensor:
        options = {"roi": self.roi, "reference": self.reference, "activation": self.activation} | options
        return SegmentationTarget(nn.Identity(), metric=metric, **options)(self.logits)

    def crop(self, values: Tensor) -> Tensor:
        return values[self.window]

    def expect(self, scores: Tensor, expected, **tolerance) -> None:
        torch.testing.assert_close(
            scores,
            torch.as_tensor(expected).reshape(self.squeezed).to(scores.dtype),
            **({"rtol": 1e-6, "atol": 1e-6} | tolerance),
        )
