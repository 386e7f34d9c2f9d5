"""Scores of a segmentation inside regions of interest: a table of named functions, open to the user's own.

Every function here has the signature ``(prediction, reference, roi, ...) -> scores`` with

- ``prediction``: ``(N, C, *spatial)``, what :class:`Metric` ``.domain`` names: hard 0/1 labels, probabilities, logits (the
  model's output as it is) or log odds (the output before its activation, recovered where the model activates it);
- ``reference``: ``(N or 1, C, *spatial)``, one-hot, or ``None`` for the metrics that need none;
- ``roi``: ``(N or 1, R, *spatial)``, boolean;
- the result: ``(N, C, R)``, in the metric's own units (Dice in [0, 1], volume in pixels or voxels), never in percent.

Scores are oriented so that **larger is better** wherever there is a better: ``cross_entropy`` is the *negated* cross
entropy (a log-likelihood), so that a positive treatment effect always means "supports the segmentation".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

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
    """

    name: str
    function: Callable[..., Tensor]
    domain: Domain
    needs_reference: bool
    surrogate: str
    options: frozenset[str] = field(default_factory=frozenset)
    inside_roi: bool = False


METRICS: dict[str, Metric] = {}


def register(
    name: str,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    domain: Domain = "probabilities",
    needs_reference: bool = True,
    surrogate: str | None = None,
    inside_roi: bool = False,
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

    Example:
        >>> from captum_causalseg import metrics
        >>> def coverage(prediction, reference, roi):
        ...     return metrics.sum_inside(prediction, roi) / roi.flatten(2).sum(-1)[:, None]
        >>> metrics.register("coverage", coverage, needs_reference=False)
        >>> del metrics.METRICS["coverage"]
    """
    if name in METRICS:
        raise ValueError(f"name: a metric called {name!r} exists already")
    if domain not in get_args(Domain):
        raise ValueError(f"domain: expected one of {get_args(Domain)}, got {domain!r}")
    METRICS[name] = Metric(name, function, domain, needs_reference, surrogate or name, inside_roi=inside_roi)


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


def surface_dice(
    prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0, tolerance: float = 1.0
) -> Tensor:
    """Surface Dice at ``tolerance`` pixels: the share of both boundaries that lies within it of the other boundary.

    Nikolov et al. 2018 (arXiv 1809.04430), with boundary pixels as MONAI counts them. Everything is computed from the
    RoI alone: a boundary pixel is one whose neighborhood leaves the object *inside the RoI* or at the image's edge, so
    that cutting an object at the RoI's border makes no boundary there. Where neither has a boundary, they agree (1;
    ``empty_score`` if both are empty) or not (0).
    """
    examples = prediction.shape[0]
    hard = prediction.detach().bool().cpu().numpy()
    other = reference.detach().bool().expand(examples, *reference.shape[1:]).cpu().numpy()
    regions = roi.detach().bool().expand(examples, *roi.shape[1:]).cpu().numpy()
    scores = np.empty((examples, hard.shape[1], regions.shape[1]))
    for n, c, r in np.ndindex(*scores.shape):
        first, second = hard[n, c] & regions[n, r], other[n, c] & regions[n, r]
        same = empty_score if not (first.any() or second.any()) else float((first == second).all())
        edges = _boundary(first, regions[n, r]), _boundary(second, regions[n, r])
        scores[n, c, r] = _surface_agreement(*edges, tolerance=tolerance, without_edges=same)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return torch.from_numpy(scores).to(device=prediction.device, dtype=dtype)


def _ratio(numerator: Tensor, denominator: Tensor, empty_score: float) -> Tensor:
    empty = denominator == 0
    return torch.where(empty, empty_score, numerator / torch.where(empty, 1, denominator))


def _boundary(mask: np.ndarray, roi: np.ndarray) -> np.ndarray:
    outline: np.ndarray = mask & ~ndimage.binary_erosion(mask | ~roi)
    return outline


def _surface_agreement(first: np.ndarray, second: np.ndarray, *, tolerance: float, without_edges: float) -> float:
    n_first, n_second = int(first.sum()), int(second.sum())
    if n_first + n_second == 0:
        return without_edges
    if n_first == 0 or n_second == 0:
        return 0.0
    near = (ndimage.distance_transform_edt(~second)[first] <= tolerance).sum()
    near += (ndimage.distance_transform_edt(~first)[second] <= tolerance).sum()
    return float(near / (n_first + n_second))


def _add(name: str, function: Callable[..., Tensor], domain: Domain, reference: bool, twin: str, *options: str) -> None:
    METRICS[name] = Metric(name, function, domain, reference, twin, frozenset(options), inside_roi=True)


_add("dice", dice, "labels", True, "soft_dice", "empty_score")
_add("soft_dice", dice, "probabilities", True, "soft_dice", "empty_score")
_add("iou", iou, "labels", True, "soft_iou", "empty_score")
_add("soft_iou", iou, "probabilities", True, "soft_iou", "empty_score")
# Surface Dice has no smooth twin of its own; soft Dice moves with it and has gradients.
_add("surface_dice", surface_dice, "labels", True, "soft_dice", "empty_score")
_add("logit_sum", inside_sum, "logits", False, "logit_sum")
_add("logit_mean", inside_mean, "logits", False, "logit_mean")
_add("probability_mean", inside_mean, "probabilities", False, "probability_mean")
_add("cross_entropy", negated_cross_entropy, "log_odds", True, "cross_entropy", "exclusive")
_add("volume", inside_sum, "labels", False, "soft_volume")
_add("soft_volume", inside_sum, "probabilities", False, "soft_volume")
