"""Reading many donors at once: boxes gathered by index, and their inner products with weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import Box
from captum_causalseg.donors.images import BankImages

__all__ = ["ImageRows", "Request", "alike", "cut", "read_boxes", "rows_at_once", "some_channels", "weighted_sums"]


# So many values are held at once when inner products are taken: 32 MiB in float64.
_MOST_VALUES = 2**22


@dataclass(frozen=True)
class Request:
    """Inner products that are asked for: of some donors of one unit with the same weights.

    Args:
        example: which of the explained images.
        box: the unit's.
        numbers: ``(m,)``, of the donors.
        weights: ``(C or 1, *box shape)``, ``C`` of the channels asked for.
        channels: which channels of the donors.
        mask: of an irregular unit, which elements of the box are its own, ``(channels or 1, *box or ones)``; weights are 0 elsewhere.
    """

    example: int
    box: Box
    numbers: np.ndarray
    weights: Tensor
    channels: slice = field(default_factory=lambda: slice(None))
    mask: Tensor | None = None


class ImageRows:
    """Donors ``(B,)`` of one size that are spread over images, each row with its weights; served image by image.

    Args:
        which: ``(B,)``, the image of each row.
        corners: ``(B, d)``, where in it the row's box lies.
        weights: ``(R, C or 1, *size)``.
        owners: ``(B,)``, whose weights are the row's.
        channels: of the images.
    """

    def __init__(
        self, which: np.ndarray, corners: np.ndarray, weights: Tensor, owners: np.ndarray, channels: slice = slice(None)
    ) -> None:
        self._order = np.argsort(which, kind="stable")
        self._which, self._corners, self._owners = which[self._order], corners[self._order], owners[self._order]
        self._weights, self._channels = weights, channels
        self.products = np.empty(len(which))

    @property
    def images(self) -> set[int]:
        """Which images it takes."""
        return set(self._which.tolist())

    def serve(self, number: int, image: Tensor) -> None:
        """Fill in the products of the rows that lie in image ``number``, ``(C, *spatial)``."""
        image = image[self._channels] if image.shape[0] > 1 else image
        self._weights = self._weights.to(image.device)
        size = self._weights.shape[2:]
        first, stop = np.searchsorted(self._which, [number, number + 1]).tolist()
        most = rows_at_once(self._weights.shape[1:], (image.shape[0], *size))
        for start in range(first, stop, most):
            rows = slice(start, min(start + most, stop))
            corners = self._corners[rows]
            values = cut(image[None], np.zeros(len(corners), dtype=np.int64), corners, size=size)
            weights = self._weights[torch.from_numpy(self._owners[rows]).to(image.device)]
            self.products[self._order[rows]] = weighted_sums(values, weights)


def alike(*columns: np.ndarray) -> list[np.ndarray]:
    """Rows ``(B,)`` or ``(B, d)`` that agree in all columns, as indices ``(m,)``; group by group, a lone column's ascending."""
    if len(columns[0]) < 2:
        return [np.arange(1)] if len(columns[0]) else []
    rows = np.column_stack(columns)
    order = np.lexsort(rows.T)
    changes = np.flatnonzero((np.diff(rows[order], axis=0) != 0).any(1)) + 1
    return np.split(order, changes)


def cut(images: Tensor, which: np.ndarray, corners: np.ndarray, size: Sequence[int]) -> Tensor:
    """Copies ``(B, C, *size)`` of the boxes at ``corners`` ``(B, d)`` of images ``which`` ``(B,)`` of ``(D, C, *spatial)``."""
    # All boxes there are, as a view: an index per box is enough then, instead of one per element.
    boxes = images
    for axis, length in enumerate(size, start=2):
        boxes = boxes.unfold(axis, length, 1)
    index = torch.from_numpy(np.column_stack([which, corners]).T.copy()).to(images.device)
    return boxes[(index[0], slice(None), *index[1:])]


def cut_each(images: BankImages, which: np.ndarray, corners: np.ndarray, size: Sequence[int]) -> Tensor:
    """As :func:`cut`, from images that are not in one tensor: each of them is taken once, in ascending order."""
    groups = alike(which)
    parts = [
        cut(images[int(which[rows[0]])][None], np.zeros(len(rows), dtype=np.int64), corners[rows], size=size) for rows in groups
    ]
    found = torch.cat(parts)
    return found[torch.from_numpy(np.argsort(np.concatenate(groups))).to(found.device)]


def read_boxes(images: BankImages, which: np.ndarray, corners: np.ndarray, *, size: Sequence[int], channels: slice) -> Tensor:
    """As :func:`cut`, of a bank's images, in one tensor or not; some channels, or the one that stands for all."""
    if images.stacked is not None:
        return cut(some_channels(images.stacked, channels), which, corners, size=size)
    return some_channels(cut_each(images, which, corners, size=size), channels)


def some_channels(images: Tensor, channels: slice) -> Tensor:
    """Channels of images ``(D, C, *spatial)``; one that stands for all stays."""
    return images[:, channels] if images.shape[1] > 1 else images


def rows_at_once(weights: Sequence[int], donor: Sequence[int]) -> int:
    """How many donors of this shape are multiplied at once with weights of that shape, one of which is broadcast."""
    return max(1, _MOST_VALUES // max(math.prod(weights), math.prod(donor)))


def weighted_sums(values: Tensor, weights: Tensor) -> np.ndarray:
    """Sums ``(B,)`` over all elements of values ``(B, C or 1, *size)`` times float64 weights that broadcast to them."""
    sums: np.ndarray = (values * weights).flatten(1).sum(1).cpu().numpy()
    return sums
