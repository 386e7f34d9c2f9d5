"""Overlap of prediction and reference inside regions of interest."""

import torch
from torch import Tensor

__all__ = ["dice", "iou", "ratio", "sum_inside"]


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
    return ratio(2 * overlap, total, empty_score)


def iou(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """Intersection over union inside each RoI; ``empty_score`` where both are empty. Soft on probabilities."""
    overlap = sum_inside(prediction * reference, roi)
    total = sum_inside(prediction, roi) + sum_inside(reference, roi)
    return ratio(overlap, total - overlap, empty_score)


def ratio(numerator: Tensor, denominator: Tensor, empty_score: float) -> Tensor:
    """The quotient; ``empty_score`` where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, empty_score, numerator / torch.where(empty, 1, denominator))
