"""What kind of place a region of interest is."""

import numpy as np
import pytest
import torch

from captum_causalseg import regions
from captum_causalseg.evaluation import roi_kind


@pytest.mark.parametrize("d", [1, 2, 3])
def test_kinds_in_any_dimension(d):
    lesion, seen = (regions.box((16,) * d, start=at, size=8) for at in (4, 8))
    for at, size, kind in (
        (4, 8, "boundary"),
        (9, 3, "inside"),
        (5, 3, "missed"),
        (13, 3, "false positive"),
        (0, 3, "outside"),
        (6, 4, "boundary"),
    ):
        roi = regions.box((16,) * d, start=at, size=size)
        assert roi_kind(seen, lesion, roi) == kind
        assert roi_kind(seen.numpy(), lesion.numpy(), roi.numpy()) == kind


def test_masks_that_are_none():
    mask = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match="prediction: expected booleans"):
        roi_kind(mask.float(), mask, mask)
    with pytest.raises(ValueError, match=r"roi: expected the prediction's shape \(4, 4\), got \(4, 3\)"):
        roi_kind(mask, mask, mask[:, :3])
    with pytest.raises(ValueError, match="roi: it is empty"):
        roi_kind(mask, mask, np.zeros((4, 4), dtype=bool))
