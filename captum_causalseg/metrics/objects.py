"""Connected components: objects that are found, split or merged, and how deep inside one a pixel lies."""

from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from captum_causalseg.metrics.overlap import dice, ratio, sum_inside
from captum_causalseg.metrics.per_region import Score, pairwise, per_pixel

__all__ = [
    "best_dice",
    "best_match",
    "best_share",
    "boundary_alignment",
    "components",
    "depth_weights",
    "detected_share",
    "detection",
    "soft_best_dice",
    "uniform_share",
    "uniformity",
]


def best_dice(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, instances: bool = False) -> Tensor:
    """Dice of the predicted object that matches the reference's object best, in [0, 1]; the mean over the reference's objects.

    ``1/M sum_m max_q 2 |p_q r_m| / (|p_q| + |r_m|)``, the *Best Dice* of Scharr et al. 2016 (doi 10.1007/s00138-015-0737-3), of what lies
    inside the RoI. Objects that match nothing do not count. An object of which nothing lies in the RoI is no object there. Where
    there is nothing to find, any prediction is a false alarm (0) and none is right (``empty_score``).

    The match is sought anew in every prediction: the score follows the reference's object, by whichever instance it is found.

    Args:
        prediction: ``(N, C, *spatial)``, hard.
        reference: ``(N or 1, C, *spatial)``; of instances ``(N or 1, M, *spatial)``, a mask for each.
        roi: ``(N or 1, R, *spatial)``.
        empty_score: where both are empty.
        instances: channels are instances, one object each; if not, they are classes, whose objects are connected components
            (diagonal neighbors included) of what lies inside the RoI.

    Returns:
        ``(N, C, R)``, of instances ``(N, 1, R)``.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 8, dtype=torch.bool)
        >>> reference = torch.tensor([[[1.0, 1, 1, 0, 0, 0, 0, 0]]])
        >>> prediction = torch.tensor([[[0.0, 1, 1, 0, 0, 1, 1, 1]]])  # the object, nearly, and another one
        >>> round(metrics.best_dice(prediction, reference, roi).item(), 4), metrics.dice(prediction, reference, roi).item()
        (0.8, 0.5)
        >>> queries = torch.tensor([[[0.0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]])
        >>> round(metrics.best_dice(queries, reference, roi, instances=True).item(), 4)
        0.8
    """
    if instances:
        return _best_of_channels(prediction, reference, roi, empty_score=empty_score)
    return pairwise(prediction, reference, roi, prepare=partial(best_share, empty_score=empty_score))


def soft_best_dice(
    prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, instances: bool = False
) -> Tensor:
    """The differentiable twin of :func:`best_dice`: soft Dice of the instance whose probabilities match the reference best.

    The gradient is that of the instance which matches where it is taken. Connected components of a class have no smooth twin; there
    it is the soft Dice of all of the class.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi, reference = torch.ones(1, 1, 4, dtype=torch.bool), torch.tensor([[[1.0, 1, 0, 0]]])
        >>> queries = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 0.9, 0.9]]])
        >>> round(metrics.soft_best_dice(queries, reference, roi, instances=True).item(), 4)  # 2 * 1 / (1 + 2)
        0.6667
    """
    if instances:
        return _best_of_channels(prediction, reference, roi, empty_score=empty_score)
    return dice(prediction, reference, roi, empty_score=empty_score)


def detection(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, threshold: float = 0.1) -> Tensor:
    """Share of the reference's objects in the RoI that are found, in [0, 1]; with one object it is found (1) or missed (0).

    Objects are connected components (diagonal neighbors included) of what lies inside the RoI. One is found if the predicted
    objects that touch it, taken together, reach an intersection over union with it of at least ``threshold`` (0.1, as in
    nnDetection, Baumgartner et al. 2021, arXiv 2106.00817); with ``threshold=0`` a single common pixel is enough. Where there
    is nothing to find, any prediction is a false alarm (0) and none is right (``empty_score``).

    Raises:
        ValueError: a threshold outside [0, 1].

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 7, dtype=torch.bool)
        >>> reference = torch.tensor([[[1.0, 1, 0, 1, 1, 0, 0]]])  # two objects
        >>> prediction = torch.tensor([[[1.0, 0, 0, 0, 0, 0, 1]]])  # one of them, and a false alarm
        >>> metrics.detection(prediction, reference, roi).item()
        0.5
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected an intersection over union in [0, 1], got {threshold}")
    return pairwise(prediction, reference, roi, prepare=partial(detected_share, threshold=threshold, empty_score=empty_score))


def uniformity(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Whether every object that is found is found in one piece and on its own, in [0, 1].

    After the property of that name of the multi-modal evaluation approach (Modaresi et al. 2023, arXiv 2302.04135), with the
    counts of its authors' program: with objects as in :func:`detection`, which are related if they share a pixel, a found
    object of the reference is one true positive, each related predicted object beyond its first a false negative (it was
    split), and each related object of the reference beyond a predicted object's first a false positive (two were merged).
    Ours is that one number is made of them, the F1 score, ``2 TP / (2 TP + FP + FN)``; that it is counted inside the RoI; and
    what is undefined there: 0 where nothing is found, ``empty_score`` where both are empty. Objects that are missed and false
    alarms beside found objects do not count: :func:`detection` and Dice are for those.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 5, dtype=torch.bool)
        >>> reference = torch.tensor([[[1.0, 1, 1, 1, 0]]])  # one object
        >>> split = torch.tensor([[[1.0, 0, 1, 1, 0]]])  # found in two pieces
        >>> round(metrics.uniformity(split, reference, roi).item(), 4), metrics.uniformity(reference, reference, roi).item()
        (0.6667, 1.0)
    """
    return pairwise(prediction, reference, roi, prepare=partial(uniform_share, empty_score=empty_score))


def boundary_alignment(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Dice in which an error weighs the more the further it is from the reference's boundary, in [0, 1]; soft on probabilities.

    After the property of that name of the multi-modal evaluation approach (Modaresi et al. 2023, arXiv 2302.04135), which also
    forgives errors near the boundary, by the object's own thickness, but measures that along the object's skeleton. The formula
    is ours: ``2 sum(w p r) / (sum(w p) + sum(w r))`` with ``w = min(1, d / D)``, where ``d`` is a pixel's distance to the nearest
    pixel of the RoI on the other side of the reference's boundary and ``D`` the largest such distance in the object (connected
    component of the reference inside the RoI) that the pixel belongs to or is nearest to. Where the reference has no boundary in
    the RoI, ``w = 1`` and it is the Dice.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 9, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 0, 1, 1, 1, 1, 1, 0, 0]]])
        >>> at_the_edge, in_the_middle = reference.clone(), reference.clone()
        >>> at_the_edge[..., 2] = 0
        >>> in_the_middle[..., 4] = 0  # the larger error
        >>> [round(metrics.boundary_alignment(one, reference, roi).item(), 3) for one in (at_the_edge, in_the_middle)]
        [0.941, 0.8]
    """
    weights = per_pixel(reference, roi, depth_weights).to(prediction.dtype)
    columns = []
    for r in range(roi.shape[1]):
        weight, region = weights[:, :, r], roi[:, r : r + 1]
        total = sum_inside(weight * prediction, region) + sum_inside(weight * reference, region)
        columns.append(ratio(2 * sum_inside(weight * prediction * reference, region), total, empty_score))
    return torch.cat(columns, dim=2)


def best_match(prediction: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
    """Boolean ``(N, 1, *spatial)``: the instances that match an object of the reference best, all together.

    Args:
        prediction: hard instances ``(N, Q, *spatial)``.
        reference: ``(N or 1, M, *spatial)``.
        roi: ``(N or 1, 1, *spatial)``, where they are compared.
    """
    shares, there = _dice_of_channels(prediction.float(), reference, roi)
    is_match = there & (shares.amax(1) > 0)
    chosen = (functional.one_hot(shares.argmax(1), prediction.shape[1]).bool() & is_match[..., None]).any(1)
    return (prediction.bool() & chosen.view(*chosen.shape, *(1,) * (prediction.ndim - 2))).any(1, keepdim=True)


def _best_of_channels(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float) -> Tensor:
    """``(N, 1, R)``."""
    columns = []
    for r in range(roi.shape[1]):
        region = roi[:, r : r + 1]
        shares, there = _dice_of_channels(prediction, reference, region)
        mean = ratio((shares.amax(1) * there).sum(1), there.sum(1), 0)
        is_found = sum_inside(prediction, region).sum((1, 2)) > 0
        columns.append(torch.where(there.any(1), mean, torch.where(is_found, 0, empty_score).to(mean.dtype)))
    return torch.stack(columns, 1)[:, None]


def _dice_of_channels(prediction: Tensor, reference: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Dice ``(N, Q, M)`` of each instance and each object of the reference; and which of these lie in the region, ``(N or 1, M)``."""
    objects = reference.bool() & region
    sizes = objects.flatten(2).sum(-1)
    total = sum_inside(prediction, region) + sizes[:, None]
    return ratio(2 * sum_inside(prediction, objects), total, 0), sizes > 0


def best_share(mask: np.ndarray, region: np.ndarray, *, empty_score: float) -> Score:
    """The mean over the reference's components of the Dice of the predicted component that matches best."""
    labels, count = components(mask)

    def score(other: np.ndarray) -> float:
        if count == 0:
            return 0.0 if other.any() else empty_score
        shared, sizes, other_sizes = _overlaps(labels, count, other)
        return float((2 * shared / (sizes[:, None] + other_sizes)).max(1, initial=0).mean())

    return score


def detected_share(mask: np.ndarray, region: np.ndarray, *, threshold: float, empty_score: float) -> Score:
    """The share of the reference's components that the predicted components that touch them find."""
    labels, count = components(mask)

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
    labels, count = components(mask)

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
    labels, count = components(mask)
    depths = np.asarray(ndimage.maximum(inner, labels, index=np.arange(1, count + 1)))
    own = depths[labels[tuple(nearest)] - 1]
    scaled: np.ndarray = weights * np.minimum(1, np.where(mask, inner, outer) / own)
    return scaled


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of a mask, diagonal neighbors included: labels from 1, and how many there are."""
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return labels, int(count)


def _overlaps(labels: np.ndarray, count: int, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels that component i of one mask shares with component j of the other; and the sizes of either's components."""
    other_labels, other_count = components(other)
    table = np.bincount((labels * (other_count + 1) + other_labels).ravel(), minlength=(count + 1) * (other_count + 1))
    table = table.reshape(count + 1, other_count + 1)
    return table[1:, 1:], table[1:].sum(1), table[:, 1:].sum(0)
