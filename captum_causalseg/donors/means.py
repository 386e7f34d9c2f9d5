"""Sums over all the places of a box in images, without cutting the donors out one by one; in float64."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.donors.images import BankImages

__all__ = ["BankSums", "sum_over_places", "sum_over_windows"]


class BankSums:
    """Sums over the images of a bank, taken once per bank whatever the number of explained images.

    For windows, an image is folded: along each axis its first and last elements, up to a margin, and the sum of all. That is
    enough for every box up to the margin, is small, and adds up over images of any size; a larger box folds the bank again
    with a margin that is at least twice as large.

    Args:
        images: the bank's; read one after the other.
    """

    def __init__(self, images: BankImages) -> None:
        self._images = images
        self._image: Tensor | None = None
        self._folded: Tensor | None = None
        self._margins: tuple[int, ...] = ()
        self._windows: dict[tuple[int, ...], Tensor] = {}

    def image(self) -> Tensor:
        """The sum of all images ``(C, *spatial)``, which are of one size."""
        if self._image is None:
            total = self._images[0].double()
            for index in range(1, len(self._images)):
                total = total + self._images[index]
            self._image = total
        return self._image

    def windows(self, size: tuple[int, ...]) -> Tensor:
        """The sum ``(C, *size)`` over every place of a box in every image; no image is smaller than the box."""
        if size not in self._windows:
            self._windows[size] = _unfold(self._fold_to(size), size)
        return self._windows[size]

    def _fold_to(self, size: tuple[int, ...]) -> Tensor:
        if self._folded is None or any(side > margin for side, margin in zip(size, self._margins)):
            shortest = np.array([shape[1:] for shape in self._images.shapes]).min(0).tolist()
            before = self._margins or (1,) * len(size)
            wanted = [max(old, 1 << (side - 1).bit_length()) for side, old in zip(size, before)]
            self._margins = tuple(min(pair) for pair in zip(wanted, shortest))
            folded = _fold(self._images[0], self._margins)
            for index in range(1, len(self._images)):
                folded = folded + _fold(self._images[index], self._margins)
            self._folded = folded
        return self._folded


def sum_over_windows(image: Tensor, size: Sequence[int]) -> Tensor:
    """The sum ``(C, *size)`` over every place of a box in one image ``(C, *spatial)``."""
    return _unfold(_fold(image, size), size)


def sum_over_places(image: Tensor, places: np.ndarray, size: Sequence[int]) -> Tensor:
    """The sum ``(C, *size)`` over some places of a box in one image, by a Fourier transform of the part that they cover.

    Args:
        image: ``(C, *spatial)``.
        places: different ones, as flat numbers in the grid of all places of the box.
        size: of the box.
    """
    if not len(places):
        return torch.zeros((image.shape[0], *size), dtype=torch.float64, device=image.device)
    grid = [length - side + 1 for length, side in zip(image.shape[1:], size)]
    corners = np.stack(np.unravel_index(places, grid))
    low, high = corners.min(1), corners.max(1)
    chosen = torch.zeros((1, *(high - low + 1).tolist()), dtype=torch.float64, device=image.device)
    chosen[(0, *torch.as_tensor(corners - low[:, None], device=image.device))] = 1
    covered = [slice(first, last + side) for first, last, side in zip(low.tolist(), high.tolist(), size)]
    part = image[(slice(None), *covered)].double()
    axes, lengths = tuple(range(1, part.ndim)), part.shape[1:]
    spectrum = torch.fft.rfftn(part, dim=axes) * torch.fft.rfftn(chosen, s=lengths, dim=axes).conj()
    total: Tensor = torch.fft.irfftn(spectrum, s=lengths, dim=axes)
    return total[(slice(None), *(slice(0, side) for side in size))]


def _fold(image: Tensor, margins: Sequence[int]) -> Tensor:
    """Along each axis: the first ``margin - 1`` elements, the sum of all, the last ``margin - 1``."""
    folded = image.double()
    for axis, margin in enumerate(margins, start=1):
        length, kept = folded.shape[axis], margin - 1
        parts = [folded.narrow(axis, 0, kept), folded.sum(axis, keepdim=True), folded.narrow(axis, length - kept, kept)]
        folded = torch.cat(parts, axis)
    return folded


def _unfold(folded: Tensor, size: Sequence[int]) -> Tensor:
    """Element ``r`` of a box lies on elements ``r .. L - size + r`` of an image: all but the first ``r`` and the last few."""
    total = folded
    for axis, side in enumerate(size, start=1):
        kept = total.shape[axis] // 2
        first, last = total.narrow(axis, 0, kept), total.narrow(axis, kept + 1, kept)
        total = (
            total.narrow(axis, kept, 1)
            - _sums_of_first(first, axis, side)
            - _sums_of_first(last.flip(axis), axis, side).flip(axis)
        )
    return total


def _sums_of_first(values: Tensor, axis: int, count: int) -> Tensor:
    """Sums of the first 0, 1, ..., ``count - 1`` elements along an axis."""
    return torch.cat([torch.zeros_like(values.sum(axis, keepdim=True)), values.cumsum(axis)], axis).narrow(axis, 0, count)
