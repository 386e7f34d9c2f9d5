"""Hard masks against hard masks, with scipy on the CPU: outlines, distances between them, connected components.

One example, class and region at a time, in the region's bounding box. What only reference and region decide is computed once
for all interventions on an image, and equal predictions are scored once: many interventions flip no label in the region.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg._checks import shown
from captum_causalseg._local_scores import hull

__all__ = ["depth_weights", "detected_share", "outline_agreement", "outline_distance", "pairwise", "per_pixel", "uniform_share"]

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


def outline(mask: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The mask's pixels with a face neighbor inside the region that is not in the mask, or at the image's edge."""
    filled = mask | ~region
    core = filled.copy()
    # scipy's binary erosion of the same thing takes four times as long in 3D.
    for axis in range(mask.ndim):
        along, kept = np.moveaxis(filled, axis, 0), np.moveaxis(core, axis, 0)
        kept[1:] &= along[:-1]
        kept[:-1] &= along[1:]
        kept[[0, -1]] = False
    outlined: np.ndarray = mask & ~core
    return outlined


def outline_agreement(mask: np.ndarray, region: np.ndarray, *, tolerance: float, empty_score: float) -> Score:
    """The share of both outlines that lies within ``tolerance`` pixels of the other one."""
    edges = outline(mask, region)
    to_reference = _distance_to(edges, None)

    def score(other: np.ndarray) -> float:
        own = outline(other, region)
        total = int(own.sum()) + int(edges.sum())
        if total == 0:
            return float((other == mask).all()) if other.any() or mask.any() else empty_score
        if not (own.any() and edges.any()):
            return 0.0
        near = (to_reference[own] <= tolerance).sum() + (_distance_to(own, None)[edges] <= tolerance).sum()
        return float(near / total)

    return score


def outline_distance(
    mask: np.ndarray,
    region: np.ndarray,
    *,
    spacing: float | Sequence[float] | None,
    summary: Callable[[np.ndarray, np.ndarray], float],
) -> Score:
    """A summary of the distances from either outline to the other one; the region's diagonal where one has no outline."""
    sampling = _spacing(spacing, mask.ndim)
    where = np.argwhere(region)
    sides = np.ptp(where, axis=0) + 1 if len(where) else np.zeros(mask.ndim)
    # Longer than any distance between two pixels of the region: nothing that is there is as bad as nothing there.
    worst = float(np.sqrt(((sides * sampling) ** 2).sum()))
    edges = outline(mask, region)
    to_reference = _distance_to(edges, sampling)

    def score(other: np.ndarray) -> float:
        if np.array_equal(other, mask):
            return 0.0
        own = outline(other, region)
        if not (own.any() and edges.any()):
            return worst
        return summary(to_reference[own], _distance_to(own, sampling)[edges])

    return score


def detected_share(mask: np.ndarray, region: np.ndarray, *, threshold: float, empty_score: float) -> Score:
    """The share of the reference's components that the predicted components that touch them find."""
    labels, count = _components(mask)

    def score(other: np.ndarray) -> float:
        if count == 0:
            return 0.0 if other.any() else empty_score
        shared, sizes, other_sizes = _overlaps(labels, count, other)
        overlap = shared.sum(1)
        union = sizes + (shared > 0) @ other_sizes - overlap
        return float(((overlap > 0) & (overlap >= threshold * union)).mean())

    return score


def uniform_share(mask: np.ndarray, region: np.ndarray, *, empty_score: float) -> Score:
    """The F1 score of "one component here, one component there"."""
    labels, count = _components(mask)

    def score(other: np.ndarray) -> float:
        if count == 0 and not other.any():
            return empty_score
        pairs = _overlaps(labels, count, other)[0] > 0
        found = int(pairs.any(1).sum())
        split = int(pairs.sum()) - found
        merged = int(pairs.sum()) - int(pairs.any(0).sum())
        return 2 * found / (2 * found + split + merged) if found else 0.0

    return score


def depth_weights(mask: np.ndarray, region: np.ndarray) -> np.ndarray:
    """How far every pixel of the region is from the outline of the nearest object, in units of that object's depth, at most 1."""
    weights = region.astype(float)
    beyond = region & ~mask
    if not mask.any() or not beyond.any():
        return weights
    inner = ndimage.distance_transform_edt(~beyond)
    outer, nearest = ndimage.distance_transform_edt(~mask, return_indices=True)
    labels, count = _components(mask)
    depths = np.asarray(ndimage.maximum(inner, labels, index=np.arange(1, count + 1)))
    own = depths[labels[tuple(nearest)] - 1]
    scaled: np.ndarray = weights * np.minimum(1, np.where(mask, inner, outer) / own)
    return scaled


def _key(mask: np.ndarray) -> bytes:
    # The shape belongs to it: two boxes may hold the same pixels in another arrangement.
    return bytes(str(mask.shape), "ascii") + np.packbits(mask).tobytes()


def _distance_to(edges: np.ndarray, sampling: np.ndarray | None) -> np.ndarray:
    distance: np.ndarray = ndimage.distance_transform_edt(~edges, sampling=sampling)
    return distance


def _spacing(spacing: float | Sequence[float] | None, n_spatial: int) -> np.ndarray:
    given = np.asarray(1.0 if spacing is None else spacing, dtype=float)
    if given.shape not in ((), (n_spatial,)) or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(
            f"spacing: expected one positive number or {n_spatial} of them (one per spatial axis), got {shown(spacing)}"
        )
    return np.broadcast_to(given, (n_spatial,)).copy()


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return labels, int(count)


def _overlaps(labels: np.ndarray, count: int, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels that component i of one mask shares with component j of the other; and the sizes of either's components."""
    other_labels, other_count = _components(other)
    table = np.bincount((labels * (other_count + 1) + other_labels).ravel(), minlength=(count + 1) * (other_count + 1))
    table = table.reshape(count + 1, other_count + 1)
    return table[1:, 1:], table[1:].sum(1), table[:, 1:].sum(0)
