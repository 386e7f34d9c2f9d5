"""Models whose supports are known on paper, and supports found by brute force."""

import numpy as np
import torch
from torch.nn import functional

from captum_causalseg.interventions.support import find_support

NAN = float("nan")
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def box_mask(shape, *sides):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in sides)] = True
    return mask


def find(model, tensors, rois, **options):
    """The support, its count of forwards checked."""
    tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
    before = [t.clone() for t in tensors]
    counted = []

    def logits(changed, examples):
        assert len(changed) == len(tensors)
        assert examples.shape == (len(changed[0]),)
        output = model(*changed)
        counted.append(len(examples))
        return output

    support = find_support(logits, tensors, rois, **options)
    assert support.n_forwards == sum(counted)
    assert max(counted, default=0) <= options.get("batch_size", 16)
    for tensor, old, mask in zip(tensors, before, support.masks):
        assert torch.equal(tensor, old)
        assert mask.device.type == "cpu"
        assert mask.dtype == torch.bool
        assert mask.shape == (len(tensor), rois.shape[1], *tensor.shape[2:])
    if support.doubt is not None:
        assert all(bool(mask.all()) for mask in support.masks)
    return support


def smooth(x, k=3, dilation=1, stride=1):
    """A convolution whose taps are all positive; zero padding."""
    d = x.ndim - 2
    weight = torch.rand((1, x.shape[1], *(k,) * d), generator=torch.Generator().manual_seed(k)).to(x.dtype) + 0.1
    return CONV[d](x, weight, padding=dilation * (k // 2), dilation=dilation, stride=stride)


def holds(support, *hulls):
    assert support.doubt is None
    for slot, hull in enumerate(hulls):
        np.testing.assert_array_equal(support.hull(slot), hull)


def three_taps(x):
    padded = functional.pad(x, (1, 1))
    return padded[..., :-2] * 0.25 + padded[..., 1:-1] * 0.5 + padded[..., 2:] * 0.25
