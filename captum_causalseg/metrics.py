"""Scores of a segmentation inside regions of interest: a table of named functions, open to the user's own.

Every function here has the signature ``(prediction, reference, roi, ...) -> scores`` with

- ``prediction``: ``(N, C, *spatial)``, what :class:`Metric` ``.domain`` names: hard 0/1 labels, probabilities, logits (the
  model's output as it is) or log odds (the output before its activation, recovered where the model activates it);
- ``reference``: ``(N or 1, C, *spatial)``, one-hot, or ``None`` for the metrics that need none;
- ``roi``: ``(N or 1, R, *spatial)``, boolean;
- the result: ``(N, C, R)``, in the metric's own units (Dice in [0, 1], volume in pixels or voxels), never in percent.

Scores are oriented so that **larger is better** wherever there is a better, so that a positive treatment effect always means
"supports the segmentation": ``cross_entropy`` (a log-likelihood), ``brier``, ``average_surface_distance`` and ``hausdorff_95``
are *negated*. Sums, means and volumes, ``relative_volume`` among them, have no better: there a positive effect means "makes it
more". Every score of finite numbers is finite, also where prediction or reference is empty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg._checks import BOOLEAN, FUNCTION, NONE, TEXT, check_all, checked, instance, one_of
from captum_causalseg._mask_scores import (
    depth_weights,
    detected_share,
    outline_agreement,
    outline_distance,
    pairwise,
    per_pixel,
    uniform_share,
)

__all__ = ["METRICS", "Metric", "register"]

Domain = Literal["labels", "probabilities", "logits", "log_odds"]


@dataclass(frozen=True)
class Metric:
    """A named score and what it wants to be given.

    Args:
        name: its name in ``SegmentationTarget(metric=...)``.
        function: ``(prediction, reference, roi, **options) -> (N, C, R)``; see the module's docstring.
        domain: what ``prediction`` holds: ``"labels"`` (hard, 0 or 1), ``"probabilities"``, ``"logits"`` or ``"log_odds"``.
        needs_reference: whether a reference segmentation is compared with.
        surrogate: name of the differentiable metric that stands in where gradients are wanted.
        options: which of ``empty_score`` (float) and ``exclusive`` (bool: the classes exclude each other) it is passed.
        inside_roi: whether nothing outside the RoI has a part in it, so that it may be computed from a part of the image.
        larger_is_better: whether a larger score is a better segmentation. Sums, means and volumes have no better: their effects
            raise or lower, where others support or harm.
    """

    name: str
    function: Callable[..., Tensor]
    domain: Domain
    needs_reference: bool
    surrogate: str
    options: frozenset[str] = field(default_factory=frozenset)
    inside_roi: bool = False
    larger_is_better: bool = True

    def __post_init__(self) -> None:
        check_all(
            vars(self),
            name=TEXT,
            function=FUNCTION,
            domain=one_of(*get_args(Domain)),
            needs_reference=BOOLEAN,
            surrogate=TEXT,
            options=instance(frozenset),
            inside_roi=BOOLEAN,
            larger_is_better=BOOLEAN,
        )


METRICS: dict[str, Metric] = {}


@checked(surrogate=NONE | TEXT)
def register(
    name: str,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    domain: Domain = "probabilities",
    needs_reference: bool = True,
    surrogate: str | None = None,
    inside_roi: bool = False,
    larger_is_better: bool = True,
) -> None:
    """Add a metric of one's own to the table under ``name``.

    Args:
        name: the name to use in ``SegmentationTarget(metric=name)``; must not be taken.
        function: ``(prediction, reference, roi) -> (N, C, R)``.
        domain: what ``prediction`` should hold.
        needs_reference: whether a reference is needed.
        surrogate: the differentiable twin; by default the metric itself.
        inside_roi: say so if the score depends on nothing outside the RoI: parts of the image that cannot reach the RoI are
            then left out of the computation.
        larger_is_better: say so if it has no better or worse (``False``): reports then say "raises" instead of "supports".

    Example:
        >>> from captum_causalseg import metrics
        >>> def coverage(prediction, reference, roi):
        ...     return metrics.sum_inside(prediction, roi) / roi.flatten(2).sum(-1)[:, None]
        >>> metrics.register("coverage", coverage, needs_reference=False)
        >>> del metrics.METRICS["coverage"]
    """
    twin = name if surrogate is None else surrogate
    metric = Metric(name, function, domain, needs_reference, twin, inside_roi=inside_roi, larger_is_better=larger_is_better)
    if name in METRICS:
        raise ValueError(f"name: a metric called {name!r} exists already")
    METRICS[name] = metric


def sum_inside(values: Tensor, roi: Tensor) -> Tensor:
    """Sum ``values`` ``(N, C, *spatial)`` over each RoI ``(N or 1, R, *spatial)``: ``(N, C, R)``."""
    # Counts of more than 2**24 pixels are not exact in float32.
    dtype = torch.float64 if values[0, 0].numel() >= 2**24 or values.dtype == torch.float64 else torch.float32
    inside = roi.flatten(2)
    # What lies in no RoI is left out rather than multiplied by 0: it may be infinite.
    flat = torch.where(inside.any(1, keepdim=True), values.flatten(2), 0).to(dtype)
    return torch.matmul(flat, inside.to(dtype).transpose(1, 2)).to(torch.promote_types(values.dtype, torch.float32))


def dice(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Dice coefficient inside each RoI, ``2 sum(pr) / (sum(p) + sum(r))``; ``empty_score`` where both are empty.

    On 0/1 labels this is the usual (hard) Dice, on probabilities the soft Dice.
    """
    overlap = sum_inside(prediction * reference, roi)
    total = sum_inside(prediction, roi) + sum_inside(reference, roi)
    return _ratio(2 * overlap, total, empty_score)


def iou(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Intersection over union inside each RoI; ``empty_score`` where both are empty. Soft on probabilities."""
    overlap = sum_inside(prediction * reference, roi)
    total = sum_inside(prediction, roi) + sum_inside(reference, roi)
    return _ratio(overlap, total - overlap, empty_score)


def inside_sum(prediction: Tensor, reference: Tensor | None, roi: Tensor) -> Tensor:
    """Sum over the RoI: Seg-Grad-CAM's score on logits, the volume in voxels on labels, its soft twin on probabilities."""
    return sum_inside(prediction, roi)


def inside_mean(prediction: Tensor, reference: Tensor | None, roi: Tensor) -> Tensor:
    """Mean over the RoI's pixels, of logits or probabilities."""
    return sum_inside(prediction, roi) / roi.flatten(2).sum(-1)[:, None]


def negated_cross_entropy(prediction: Tensor, reference: Tensor, roi: Tensor, exclusive: bool) -> Tensor:
    """Mean log-likelihood of the reference over the RoI's pixels, i.e. **minus** the cross entropy; at most 0.

    With exclusive classes (softmax), column ``c`` is the share of the pixels that belong to class ``c``: the columns add
    up to ``-torch.nn.functional.cross_entropy`` on the RoI. Otherwise each column is minus the binary cross entropy.
    """
    if exclusive:
        likelihood = torch.where(reference.bool(), functional.log_softmax(prediction, dim=1), 0)
    else:
        likelihood = functional.logsigmoid(torch.where(reference.bool(), prediction, -prediction))
    return inside_mean(likelihood, None, roi)


def brier(prediction: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
    """**Minus** the Brier score: the mean squared difference of probability and truth over the RoI's pixels, in [-1, 0].

    It rewards probabilities that are right and calibrated (Brier 1950). Each column is its class's own share; with exclusive
    classes the columns add up to minus Brier's multi-class score.
    """
    return -inside_mean((prediction - reference) ** 2, None, roi)


def relative_volume(prediction: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
    """Volume of the prediction in the RoI divided by that of the reference: 1 is right, 2 is twice as large as it should be.

    Like ``volume`` it has no "better": an effect > 0 says that what is there makes the segmentation *larger*, an effect < 0
    that it makes it smaller; ``volumetric_similarity`` is the same comparison with a direction. Where the reference is empty
    it counts as one pixel, so that the score is then the volume.
    """
    return sum_inside(prediction, roi) / sum_inside(reference, roi).clamp_min(1)


def volumetric_similarity(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """``1 - |V(p) - V(r)| / (V(p) + V(r))`` in [0, 1], whatever lies where (Taha and Hanbury 2015, doi 10.1186/s12880-015-0068-x).

    ``empty_score`` where both are empty. Soft on probabilities.
    """
    first, second = sum_inside(prediction, roi), sum_inside(reference, roi)
    return _ratio(2 * torch.minimum(first, second), first + second, empty_score)


def surface_dice(
    prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, tolerance: float = 1.0
) -> Tensor:
    """Surface Dice at ``tolerance`` pixels: the share of both boundaries that lies within it of the other boundary.

    Nikolov et al. 2018 (arXiv 1809.04430), with boundary pixels as MONAI counts them. Everything is computed from the
    RoI alone: a boundary pixel is one whose neighborhood leaves the object *inside the RoI* or at the image's edge, so
    that cutting an object at the RoI's border makes no boundary there. Where neither has a boundary, they agree (1;
    ``empty_score`` if both are empty) or not (0).
    """
    agreement = partial(outline_agreement, tolerance=tolerance, empty_score=empty_score)
    return pairwise(prediction, reference, roi, agreement)


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
        >>> from captum_causalseg import metrics
        >>> in_millimeters = partial(metrics.average_surface_distance, spacing=(0.7, 0.7, 3.0))
        >>> metrics.register("asd_mm", in_millimeters, domain="labels", surrogate="soft_dice", inside_roi=True)
        >>> del metrics.METRICS["asd_mm"]
    """

    def mean(there: np.ndarray, back: np.ndarray) -> float:
        return float(np.concatenate([there, back]).mean())

    return -pairwise(prediction, reference, roi, partial(outline_distance, spacing=spacing, summary=mean))


def hausdorff_95(prediction: Tensor, reference: Tensor, roi: Tensor, spacing: float | Sequence[float] | None = None) -> Tensor:
    """**Minus** the Hausdorff distance at the 95th percentile; at most 0.

    MONAI's ``compute_hausdorff_distance(percentile=95)``, negated: the larger of the two directions' percentiles. Boundaries,
    units, empty cases and ``spacing`` are those of :func:`average_surface_distance`.
    """

    def percentile(there: np.ndarray, back: np.ndarray) -> float:
        return float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))

    return -pairwise(prediction, reference, roi, partial(outline_distance, spacing=spacing, summary=percentile))


def detection(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, threshold: float = 0.1) -> Tensor:
    """Share of the reference's objects in the RoI that are found, in [0, 1]; with one object it is found (1) or missed (0).

    Objects are connected components (diagonal neighbors included) of what lies inside the RoI. One is found if the predicted
    objects that touch it, taken together, reach an intersection over union with it of at least ``threshold`` (0.1, as in
    nnDetection, Baumgartner et al. 2021, arXiv 2106.00817); with ``threshold=0`` a single common pixel is enough. Where there
    is nothing to find, any prediction is a false alarm (0) and none is right (``empty_score``).

    Raises:
        ValueError: a threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected an intersection over union in [0, 1], got {threshold}")
    return pairwise(prediction, reference, roi, partial(detected_share, threshold=threshold, empty_score=empty_score))


def uniformity(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Whether every object that is found is found in one piece and on its own, in [0, 1].

    After the property of that name of the multi-modal evaluation approach (Modaresi et al. 2023, arXiv 2302.04135), with the
    counts of its authors' program: with objects as in :func:`detection`, which are related if they share a pixel, a found
    object of the reference is one true positive, each related predicted object beyond its first a false negative (it was
    split), and each related object of the reference beyond a predicted object's first a false positive (two were merged).
    Ours is that one number is made of them, the F1 score, ``2 TP / (2 TP + FP + FN)``; that it is counted inside the RoI; and
    what is undefined there: 0 where nothing is found, ``empty_score`` where both are empty. Objects that are missed and false
    alarms beside found objects do not count: :func:`detection` and Dice are for those.
    """
    return pairwise(prediction, reference, roi, partial(uniform_share, empty_score=empty_score))


def boundary_alignment(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Dice in which an error weighs the more the further it is from the reference's boundary, in [0, 1]; soft on probabilities.

    After the property of that name of the multi-modal evaluation approach (Modaresi et al. 2023, arXiv 2302.04135), which also
    forgives errors near the boundary, by the object's own thickness, but measures that along the object's skeleton. The formula
    is ours: ``2 sum(w p r) / (sum(w p) + sum(w r))`` with ``w = min(1, d / D)``, where ``d`` is a pixel's distance to the nearest
    pixel of the RoI on the other side of the reference's boundary and ``D`` the largest such distance in the object (connected
    component of the reference inside the RoI) that the pixel belongs to or is nearest to. Where the reference has no boundary in
    the RoI, ``w = 1`` and it is the Dice.
    """
    weights = per_pixel(reference, roi, depth_weights).to(prediction.dtype)
    columns = []
    for r in range(roi.shape[1]):
        weight, region = weights[:, :, r], roi[:, r : r + 1]
        total = sum_inside(weight * prediction, region) + sum_inside(weight * reference, region)
        columns.append(_ratio(2 * sum_inside(weight * prediction * reference, region), total, empty_score))
    return torch.cat(columns, dim=2)


def _ratio(numerator: Tensor, denominator: Tensor, empty_score: float) -> Tensor:
    empty = denominator == 0
    return torch.where(empty, empty_score, numerator / torch.where(empty, 1, denominator))


def _add(
    name: str, function: Callable[..., Tensor], domain: Domain, reference: bool, twin: str, *options: str, better: bool = True
) -> None:
    METRICS[name] = Metric(
        *(name, function, domain, reference, twin, frozenset(options)), inside_roi=True, larger_is_better=better
    )


_add("dice", dice, "labels", True, "soft_dice", "empty_score")
_add("soft_dice", dice, "probabilities", True, "soft_dice", "empty_score")
_add("iou", iou, "labels", True, "soft_iou", "empty_score")
_add("soft_iou", iou, "probabilities", True, "soft_iou", "empty_score")
# Outlines and components have no smooth twin of their own; soft Dice moves with them and has gradients.
_add("surface_dice", surface_dice, "labels", True, "soft_dice", "empty_score")
_add("average_surface_distance", average_surface_distance, "labels", True, "soft_dice")
_add("hausdorff_95", hausdorff_95, "labels", True, "soft_dice")
_add("detection", detection, "labels", True, "soft_dice", "empty_score")
_add("uniformity", uniformity, "labels", True, "soft_dice", "empty_score")
_add("logit_sum", inside_sum, "logits", False, "logit_sum", better=False)
_add("logit_mean", inside_mean, "logits", False, "logit_mean", better=False)
_add("probability_mean", inside_mean, "probabilities", False, "probability_mean", better=False)
_add("cross_entropy", negated_cross_entropy, "log_odds", True, "cross_entropy", "exclusive")
_add("brier", brier, "probabilities", True, "brier")
_add("volume", inside_sum, "labels", False, "soft_volume", better=False)
_add("soft_volume", inside_sum, "probabilities", False, "soft_volume", better=False)
_add("relative_volume", relative_volume, "labels", True, "soft_relative_volume", better=False)
_add("soft_relative_volume", relative_volume, "probabilities", True, "soft_relative_volume", better=False)
_add("volumetric_similarity", volumetric_similarity, "labels", True, "soft_volumetric_similarity", "empty_score")
_add("soft_volumetric_similarity", volumetric_similarity, "probabilities", True, "soft_volumetric_similarity", "empty_score")
_add("boundary_alignment", boundary_alignment, "labels", True, "soft_boundary_alignment", "empty_score")
_add("soft_boundary_alignment", boundary_alignment, "probabilities", True, "soft_boundary_alignment", "empty_score")
