"""Boxes over the spatial axes: where a unit or a region of interest lies, and what lies in it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Box", "box_at", "crop", "hull", "number_blocks", "overlap", "seen_from", "size_of"]


def hull(mask: Tensor, margin: int = 0) -> tuple[slice, ...]:
    """The bounding box of a boolean mask ``(*spatial)`` that holds something, wider by ``margin`` where there is room."""
    sides = []
    for axis, length in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        inside = (mask.any(others) if others else mask).nonzero()
        sides.append(slice(max(0, int(inside.min()) - margin), min(length, int(inside.max()) + 1 + margin)))
    return tuple(sides)


def crop(values: Tensor, starts: np.ndarray, size: Sequence[int]) -> Tensor:
    """A box of one size out of every example: ``(N or 1, C, *spatial)``, corners ``(N, d)``, to ``(N or 1, C, *size)``."""
    same = bool((starts == starts[0]).all())

    def cut(batch: Tensor, corner: np.ndarray) -> Tensor:
        inside: tuple[Any, ...] = tuple(slice(a, a + n) for a, n in zip(corner.tolist(), size))
        return batch[(..., *inside)]

    if same:
        return cut(values, starts[0])
    return torch.stack([cut(values[n if len(values) > 1 else 0], corner) for n, corner in enumerate(starts)])


Box = tuple[slice, ...]
"""A unit's bounding box over the spatial axes."""


def box_at(corner: Sequence[int], size: Sequence[int]) -> Box:
    """The box of this size whose first element is ``corner``."""
    return tuple(slice(start, start + length) for start, length in zip(corner, size))


def overlap(one: Box, other: Box) -> Box | None:
    """What two boxes have in common; ``None`` for nothing."""
    sides = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other)]
    return tuple(slice(*side) for side in sides) if all(start < stop for start, stop in sides) else None


def seen_from(corner: Sequence[int], box: Box) -> Box:
    """The same box where ``corner`` is the first element."""
    return tuple(slice(side.start - at, side.stop - at) for side, at in zip(box, corner))


def size_of(box: Box) -> tuple[int, ...]:
    """The box's lengths."""
    return tuple(side.stop - side.start for side in box)


def number_blocks(spatial_shape: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """See :func:`captum_causalseg.regions.grid`; edges per axis, of at least 1."""
    shape, sizes = tuple(int(length) for length in spatial_shape), tuple(sizes)
    if any(size > length for size, length in zip(sizes, shape)):
        raise ValueError(f"block_size: a block of {sizes} is larger than the image of {shape}")
    units = torch.zeros(shape, dtype=torch.int64, device="cpu")
    for axis, (length, size) in enumerate(zip(shape, sizes)):
        along = torch.arange(length, device="cpu") // size
        units = units * math.ceil(length / size) + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return units
