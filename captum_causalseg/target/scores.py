"""What a forward function returned: one score or several per example."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["WRAPPED", "checked_scores"]

WRAPPED = "SegmentationTarget(model, roi=..., reference=...)"
"""What to make of a segmentation model."""


def checked_scores(scores: Any, batch: int, output_shape: tuple[int, ...] | None) -> Tensor:
    """What a forward function returned, if it is one score (or ``output_shape`` scores) per example."""
    if not isinstance(scores, Tensor):
        holds_more = isinstance(scores, (Mapping, list, tuple)) or dataclasses.is_dataclass(scores)
        raise TypeError(
            f"forward_func: expected a tensor of one score per example, got {type(scores).__name__}"
            + f"; a segmentation model is wrapped first: {WRAPPED} finds the logits in what it returns and scores a region of them"
            * holds_more
        )
    if scores.ndim == 0 or scores.shape[0] != batch:
        raise ValueError(
            f"forward_func: expected one score per example, (N, ...) with N={batch}, got {tuple(scores.shape)}; a function "
            "that aggregates over the batch cannot be explained example by example"
        )
    if scores.is_complex():
        raise TypeError("forward_func: expected real scores, got complex ones")
    if output_shape is not None and tuple(scores.shape[1:]) != output_shape:
        raise ValueError(
            f"forward_func: its scores changed their shape, from {output_shape} per example to {tuple(scores.shape[1:])}"
        )
    return scores
