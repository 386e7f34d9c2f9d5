"""A region of the inputs as a single unit: several units replaced at once, by the same donor."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import NONE, array_of, integer, listed, sequence

__all__ = ["REGION", "RegionUnits", "one_region", "region_excluded"]

RegionUnits = int | Sequence[int] | Tensor | np.ndarray | None
"""The id of a unit, those of several, or a boolean mask ``(*spatial)``."""

REGION = (
    NONE
    | integer(0)
    | sequence(integer(0), 1, expected="unit ids")
    | array_of("boolean", "(*spatial)", (1, math.inf), may_be_empty=False)
)
"""What ``region_units=`` takes."""


def region_excluded(example: int) -> ValueError:
    """What to say where the region touches what is left as it is."""
    return ValueError(
        f"region_units: the region touches what is excluded in example {example} (by default, the RoI itself); leave those units out, or pass "
        "exclude=None"
    )


def one_region(masks: Sequence[Tensor], tensors: Sequence[Tensor], *, region: Any, left_out: int) -> tuple[list[Tensor], int]:
    """The units of a region as one unit, whose id is the smallest of theirs.

    Args:
        masks: per input ``(1 or N, 1 or C, *spatial or ones)``, ids of at least 0.
        tensors: the inputs ``(N, C, *spatial)``.
        region: as the user gave it; a mask is that of every input of its spatial shape.
        left_out: the id of what belongs to no unit already (-1: there is nothing).

    Returns:
        The masks, and the id of all that is not in the region.

    Raises:
        ValueError: there is no such unit, or no input of the mask's shape.
    """
    known = torch.cat([mask.flatten() for mask in masks])
    known = torch.unique(known[known != left_out])
    rest = max(int(known.max()), left_out) + 1
    if isinstance(region, (Tensor, np.ndarray)):
        mask = torch.as_tensor(region).detach().cpu()
        if not any(tensor.shape[2:] == mask.shape for tensor in tensors):
            shapes = ", ".join(str(tuple(tensor.shape[2:])) for tensor in tensors)
            raise ValueError(f"region_units: expected a mask of an input's spatial shape {shapes}, got {tuple(mask.shape)}")
        inside = [
            mask.expand(*one.shape[:2], *mask.shape) & (one != left_out)
            if tensor.shape[2:] == mask.shape
            else torch.zeros_like(one, dtype=torch.bool)
            for one, tensor in zip(masks, tensors)
        ]
        own = 0
    else:
        ids = sorted({int(one) for one in ((region,) if isinstance(region, (int, np.integer)) else region)})
        missing = sorted(set(ids) - set(known.tolist()))
        if missing:
            raise ValueError(
                f"region_units: there is no unit {listed(missing)}; the ids are {int(known.min())} to {int(known.max())}"
            )
        inside, own = [torch.isin(one, torch.tensor(ids)) for one in masks], ids[0]
    return [torch.where(there, own, rest) for there in inside], rest
