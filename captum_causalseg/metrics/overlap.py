"""Overlap of prediction and reference inside regions of interest."""

import torch
from torch import Tensor

__all__ = ["dice", "iou", "ratio", "sum_inside"]


def sum_inside(values: Tensor, roi: Tensor) -> Tensor:
    """Sum ``values`` ``(N, C, *spatial)`` over each RoI ``(N or 1, R, *spatial)``: ``(N, C, R)``.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> values = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        >>> rois = torch.tensor([[[True, True, False, False], [False, False, True, True]]])
        >>> metrics.sum_inside(values, rois)
        tensor([[[3., 7.]]])
    """
    # Counts of more than 2**24 pixels are not exact in float32.
    dtype = torch.float64 if values[0, 0].numel() >= 2**24 or values.dtype == torch.float64 else torch.float32
    inside = roi.flatten(2)
    # What lies in no RoI is left out rather than multiplied by 0: it may be infinite.
    flat = torch.where(inside.any(1, keepdim=True), values.flatten(2), 0).to(dtype)
    return torch.matmul(flat, inside.to(dtype).transpose(1, 2)).to(torch.promote_types(values.dtype, torch.float32))


def dice(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Dice coefficient inside each RoI, ``2 sum(pr) / (sum(p) + sum(r))``; ``empty_score`` where both are empty.

    On 0/1 labels this is the usual (hard) Dice, on probabilities the soft Dice.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 6, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 1, 1, 1, 1, 0]]])
        >>> prediction = torch.tensor([[[0.0, 0, 1, 1, 0, 0]]])
        >>> round(metrics.dice(prediction, reference, roi).item(), 4)  # 2 * 2 / (2 + 4)
        0.6667
        >>> metrics.dice(0 * prediction, 0 * reference, roi, empty_score=0.0).item()
        0.0
    """
    overlap = sum_inside(prediction * reference, roi)
    total = sum_inside(prediction, roi) + sum_inside(reference, roi)
    return ratio(2 * overlap, total, empty_score)


def iou(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Intersection over union inside each RoI; ``empty_score`` where both are empty. Soft on probabilities.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 6, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 1, 1, 1, 1, 0]]])
        >>> prediction = torch.tensor([[[0.0, 0, 1, 1, 0, 0]]])
        >>> metrics.iou(prediction, reference, roi).item()
        0.5
    """
    overlap = sum_inside(prediction * reference, roi)
    total = sum_inside(prediction, roi) + sum_inside(reference, roi)
    return ratio(overlap, total - overlap, empty_score)


def ratio(numerator: Tensor, denominator: Tensor, empty_score: float) -> Tensor:
    """The quotient; ``empty_score`` where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, empty_score, numerator / torch.where(empty, 1, denominator))
