"""Scores as an evaluator gives them, and which differences between them are none."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["ROUNDING", "read"]

ROUNDING = 64
"""Scores that differ by this many units in the last place are equal: such a difference is rounding, neither an effect nor its spread.
(Measured: another batch size or order of sums moves a score by up to 21.)"""


def read(scores: Tensor) -> tuple[np.ndarray, float]:
    """What an evaluator gives, ``(B, K, 1 + C)`` in double precision on the CPU, and its resolution."""
    scores = scores[..., None] if scores.ndim < 3 else scores
    # A copy: scores may be a view of an evaluator's memory, which the next batch writes over.
    values: np.ndarray = scores.to(device="cpu", dtype=torch.float64, copy=True).numpy()
    return values, torch.finfo(scores.dtype).eps if scores.is_floating_point() else 0.0
