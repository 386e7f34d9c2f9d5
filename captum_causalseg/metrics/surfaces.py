"""Outlines and the distances between them, with SciPy on the CPU."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy import ndimage
from torch import Tensor

from captum_causalseg._checks import number, per_axis
from captum_causalseg.metrics.per_region import Score, pairwise

__all__ = ["average_surface_distance", "hausdorff_95", "outline", "outline_agreement", "outline_distance", "surface_dice"]


def surface_dice(
    prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, tolerance: float = 1.0
) -> Tensor:
    """Surface Dice at ``tolerance`` pixels: the share of both boundaries that lies within it of the other boundary.

    Nikolov et al. 2018 (arXiv 1809.04430), with boundary pixels as MONAI counts them. Everything is computed from the
    RoI alone: a boundary pixel is one whose neighborhood leaves the object *inside the RoI* or at the image's edge, so
    that cutting an object at the RoI's border makes no boundary there. Where neither has a boundary, they agree (1;
    ``empty_score`` if both are empty) or not (0).

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics, regions
        >>> roi = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        >>> reference = regions.box((16, 16), start=4, size=8)[None, None].float()
        >>> shifted = reference.roll(1, dims=-1)  # within the tolerance everywhere
        >>> [metrics.surface_dice(shifted, reference, roi, tolerance=t).item() for t in (0.0, 1.0)]
        [0.5, 1.0]
    """
    agreement = partial(outline_agreement, tolerance=tolerance, empty_score=empty_score)
    return pairwise(prediction, reference, roi, prepare=agreement)


def average_surface_distance(
    prediction: Tensor, reference: Tensor, roi: Tensor, spacing: float | Sequence[float] | None = None
) -> Tensor:
    """**Minus** the average symmetric surface distance: the mean distance from either boundary to the other one; at most 0.

    MONAI's ``compute_average_surface_distance(symmetric=True)``, negated, so that an effect > 0 supports the segmentation.
    Boundaries are those of :func:`surface_dice`. Where only one of the two has a boundary in the RoI (the prediction is
    empty, say) the distance is the diagonal of the RoI's bounding box, which is more than any two of its pixels are apart;
    where neither has, it is 0 if the two are equal and the diagonal if not.

    Args:
        prediction: hard labels.
        reference: one-hot.
        roi: where to score.
        spacing: size of a pixel or voxel, one number or one per axis. By default distances are in pixels or voxels, as in
            ``SegmentationTarget(metric="average_surface_distance")``; register the metric anew for millimeters.

    Raises:
        ValueError: a spacing that is not positive, or of another number of axes.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from captum_causalseg import metrics, regions
        >>> in_millimeters = partial(metrics.average_surface_distance, spacing=(0.7, 0.7, 3.0))
        >>> metrics.register("asd_mm", in_millimeters, domain="labels", surrogate="soft_dice", inside_roi=True)
        >>> metrics.METRICS.pop("asd_mm").larger_is_better  # it is negated
        True
        >>> reference = regions.box((9, 9, 5), start=2, size=(4, 4, 2))[None, None].float()
        >>> thick = reference.roll(1, dims=-1)  # one slice too high
        >>> round(in_millimeters(thick, reference, torch.ones(1, 1, 9, 9, 5, dtype=torch.bool)).item(), 2)
        -1.5
    """

    def mean(there: np.ndarray, back: np.ndarray) -> float:
        return float(np.concatenate([there, back]).mean())

    return -pairwise(prediction, reference, roi, prepare=partial(outline_distance, spacing=spacing, summary=mean))


def hausdorff_95(prediction: Tensor, reference: Tensor, roi: Tensor, spacing: float | Sequence[float] | None = None) -> Tensor:
    """**Minus** the Hausdorff distance at the 95th percentile; at most 0.

    MONAI's ``compute_hausdorff_distance(percentile=95)``, negated: the larger of the two directions' percentiles. Boundaries,
    units, empty cases and ``spacing`` are those of :func:`average_surface_distance`.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics, regions
        >>> roi = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        >>> reference = regions.box((16, 16), start=4, size=8)[None, None].float()
        >>> metrics.hausdorff_95(reference.roll(2, dims=-1), reference, roi).item()
        -2.0
        >>> metrics.hausdorff_95(reference.roll(2, dims=-1), reference, roi, spacing=0.5).item()
        -1.0
    """

    def percentile(there: np.ndarray, back: np.ndarray) -> float:
        return float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))

    return -pairwise(prediction, reference, roi, prepare=partial(outline_distance, spacing=spacing, summary=percentile))


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


def _distance_to(edges: np.ndarray, sampling: np.ndarray | None) -> np.ndarray:
    distance: np.ndarray = ndimage.distance_transform_edt(~edges, sampling=sampling)
    return distance


def _spacing(spacing: float | Sequence[float] | None, n_spatial: int) -> np.ndarray:
    return np.array(per_axis("spacing", 1.0 if spacing is None else spacing, n_spatial, each=number(above=0)), dtype=float)
