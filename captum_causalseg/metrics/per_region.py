"""Scores that SciPy computes on the CPU: one example, class and region at a time, in the region's bounding box.

What only reference and region decide is computed once for all interventions on an image, and equal predictions are scored once:
many interventions flip no label in the region.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import hull

__all__ = ["Score", "pairwise", "per_pixel"]


Score = Callable[[np.ndarray], float]


def pairwise(prediction: Tensor, reference: Tensor, roi: Tensor, prepare: Callable[[np.ndarray, np.ndarray], Score]) -> Tensor:
    """Scores ``(N, C, R)`` of hard predictions ``(N, C, *spatial)``.

    Args:
        prediction: 0 or 1.
        reference: the same, ``(N or 1, C, *spatial)``.
        roi: boolean, ``(N or 1, R, *spatial)``.
        prepare: given a reference's mask inside the region and the region, the function that scores a prediction's mask
            inside the region. All are boolean arrays of one shape, a box that is one pixel wider than the region where the
            image goes on: what ends at the box's edge ends at the image's.
    """
    examples = prediction.shape[0]
    hard, other, regions = (values.detach().bool().cpu() for values in (prediction, reference, roi))
    boxes = [[hull(mask, margin=1) if mask.any() else (slice(None),) * mask.ndim for mask in masks] for masks in regions]
    first, second, inside = hard.numpy(), other.numpy(), regions.numpy()
    prepared: dict[tuple[bytes, bytes], tuple[Score, dict[bytes, float]]] = {}
    scores = np.empty((examples, first.shape[1], inside.shape[1]))
    for n, c, r in np.ndindex(*scores.shape):
        k = n % len(inside)
        box = boxes[k][r]
        region = inside[k, r][box]
        mask, truth = first[n, c][box] & region, second[n % len(second), c][box] & region
        key = _key(truth), _key(region)
        if key not in prepared:
            prepared[key] = prepare(truth, region), {}
        score, known = prepared[key]
        own = _key(mask)
        if own not in known:
            known[own] = score(mask)
        scores[n, c, r] = known[own]
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return torch.from_numpy(scores).to(device=prediction.device, dtype=dtype)


def per_pixel(reference: Tensor, roi: Tensor, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Tensor:
    """Values ``(N or 1, C, R, *spatial)`` that ``measure`` gives the pixels from the reference and the region; 0 elsewhere.

    Masks and region are handed over as in :func:`pairwise`.
    """
    second, regions = reference.detach().bool().cpu(), roi.detach().bool().cpu()
    rows = max(len(second), len(regions))
    values = np.zeros((rows, second.shape[1], regions.shape[1], *second.shape[2:]))
    known: dict[tuple[bytes, bytes], np.ndarray] = {}
    for n, c, r in np.ndindex(*values.shape[:3]):
        region = regions[n % len(regions), r]
        if not region.any():
            continue
        box = hull(region, margin=1)
        inside = region[box].numpy()
        mask = second[n % len(second), c][box].numpy() & inside
        key = _key(mask), _key(inside)
        if key not in known:
            known[key] = measure(mask, inside)
        values[n, c, r][box] = known[key]
    dtype = torch.promote_types(reference.dtype, torch.float32) if reference.is_floating_point() else torch.float32
    return torch.from_numpy(values).to(device=reference.device, dtype=dtype)


def _key(mask: np.ndarray) -> bytes:
    # The shape belongs to it: two boxes may hold the same pixels in another arrangement.
    return bytes(str(mask.shape), "ascii") + np.packbits(mask).tobytes()
