"""Fixtures that tests of targets share."""

from types import SimpleNamespace

import pytest
import torch
from target_cases import SIZES, dices, one_hot, random_rois


@pytest.fixture(params=[(1, 3, 1), (2, 1, 3), (2, 3, 1), (2, 3, 3), (3, 1, 1), (3, 3, 3)])
def per_example(request):
    """Logits, and RoIs and labels of each example, with the Dice scores they must give."""
    n_spatial, n, channels = request.param
    spatial = SIZES[n_spatial]
    logits, labels = torch.randn(n, channels, *spatial), torch.randint(0, max(channels, 2), (n, *spatial))
    rois = random_rois(n, 2, *spatial)
    hard = (logits > 0) if channels == 1 else one_hot(logits.argmax(1), channels)
    expected = dices(hard, labels[:, None] if channels == 1 else one_hot(labels, channels), rois)
    return SimpleNamespace(logits=logits, labels=labels, rois=rois, expected=expected[:, 0] if channels == 1 else expected)
