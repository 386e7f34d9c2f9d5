"""Donors of a unit, numbered: how many there are, where each lies, what it holds."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from captum_causalseg._donor_images import BankImages
from captum_causalseg._donor_means import BankSums, sum_over_places, sum_over_windows

__all__ = ["BoundBank", "BoundDonors", "BoundSameImage", "BoundWhole", "Box", "skip_holes"]

Box = tuple[slice, ...]
"""A unit's bounding box over the spatial axes."""


class BoundDonors(ABC):
    """A donor source for given images ``(N, C, *spatial)``; donors of a unit are numbered ``0 .. population - 1``."""

    @abstractmethod
    def population(self, example: int, box: Box) -> int:
        """How many different donors the unit in ``box`` of this example has."""

    @abstractmethod
    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """Which image donor ``number`` comes from (-1: none) and where in it the box lies (its first corner)."""

    @abstractmethod
    def read(self, example: int, box: Box, number: int) -> Tensor:
        """The donor's values, ``(C or 1, *box shape)``."""

    def mean(self, example: int, box: Box) -> Tensor:
        """The mean over all the unit's donors (there is at least one), exact: float64, shaped as :meth:`read` returns them.

        This reads every donor; a source that knows a shorter way to the same mean replaces it.
        """
        count = self.population(example, box)
        total = self.read(example, box, 0).double()
        for number in range(1, count):
            total = total + self.read(example, box, number)
        return total / count


class BoundWhole(BoundDonors):
    """One donor only, given as an image ``(N or 1, C or 1, *spatial or ones)``."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def population(self, example: int, box: Box) -> int:
        return 1

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        return -1, tuple(side.start for side in box)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        image = self._images[example if len(self._images) > 1 else 0]
        inside = tuple(side if length > 1 else slice(None) for side, length in zip(box, image.shape[1:]))
        return image[(slice(None), *inside)]


class BoundBank(BoundDonors):
    """Places in the images of a bank: any place, or (aligned) the unit's own.

    Args:
        images: the bank's.
        aligned: whether donors come from the unit's own place.
        own: per explained example, which of the bank's images are that very image.
        forbidden: its RoI, ``(N or 1, *spatial)``, which no donor of such an image may touch.
        sums: over the bank's images; they outlive this object.
    """

    def __init__(
        self, images: BankImages, aligned: bool, own: list[list[int]], forbidden: Tensor | None, sums: BankSums
    ) -> None:
        self._images, self._aligned, self._sums = images, aligned, sums
        self._own, self._forbidden = own, forbidden
        self._shapes = images.shapes
        self._first: dict[tuple[int, ...], np.ndarray] = {}
        self._holes: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self._means: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def population(self, example: int, box: Box) -> int:
        return int(self._first_numbers(_size(box))[-1]) - len(self._holes_of(example, box))

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        size = _size(box)
        first = self._first_numbers(size)
        number = skip_holes(number, self._holes_of(example, box))
        donor = int(np.searchsorted(first, number, side="right")) - 1
        if self._aligned:
            return donor, tuple(side.start for side in box)
        places = _places(self._shapes[donor][1:], size)
        return donor, tuple(int(i) for i in np.unravel_index(number - int(first[donor]), places)) if places else ()

    def read(self, example: int, box: Box, number: int) -> Tensor:
        donor, corner = self.locate(example, box, number)
        image = self._images[donor]
        inside = tuple(slice(start, start + length) for start, length in zip(corner, _size(box)))
        return image[(slice(None), *inside)]

    def mean(self, example: int, box: Box) -> Tensor:
        count = self.population(example, box)
        size, holes = _size(box), self._holes_of(example, box)
        if self._aligned:
            inside = (slice(None), *box)
            total = self._sums.image()[inside]
            for donor in holes.tolist():
                total = total - self._images[donor][inside]
            return total / count
        if not len(holes):
            return self._sums.windows(size) / count
        if (example, size) not in self._means:
            first, total = self._first_numbers(size), self._sums.windows(size)
            for donor in self._own[example]:
                places = holes[(holes >= first[donor]) & (holes < first[donor + 1])] - first[donor]
                total = total - sum_over_places(self._images[donor], places, size)
            self._means[example, size] = total / count
        return self._means[example, size]

    def _first_numbers(self, size: tuple[int, ...]) -> np.ndarray:
        """Number of each image's first place, and at the end the number of places in all."""
        if size not in self._first:
            if self._aligned:
                counts = np.ones(len(self._shapes), dtype=np.int64)
            else:
                for index, shape in enumerate(self._shapes):
                    if any(length < side for length, side in zip(shape[1:], size)):
                        raise ValueError(
                            f"baselines: donor image {index} of {shape[1:]} pixels is smaller than a unit of {size} pixels"
                        )
                counts = np.array([math.prod(_places(shape[1:], size)) for shape in self._shapes], dtype=np.int64)
            self._first[size] = np.concatenate([[0], np.cumsum(counts)])
        return self._first[size]

    def _holes_of(self, example: int, box: Box) -> np.ndarray:
        """Numbers of the places that touch the explained image's own RoI."""
        if self._forbidden is None or not self._own[example]:
            return np.empty(0, dtype=np.int64)
        mask = self._forbidden[example if len(self._forbidden) > 1 else 0]
        size = _size(box)
        first = self._first_numbers(size)
        if self._aligned:
            touches = bool(mask[box].any())
            return np.array(self._own[example] if touches else [], dtype=np.int64)
        if (example, size) not in self._holes:
            inside = np.flatnonzero(_touching(mask, size))
            numbers = [inside + int(first[i]) for i in self._own[example]]
            self._holes[example, size] = np.concatenate(numbers)
        return self._holes[example, size]


class BoundSameImage(BoundDonors):
    """Places in the explained image itself that overlap neither the unit nor the RoI."""

    def __init__(self, images: Tensor, forbidden: Tensor | None) -> None:
        self._images, self._forbidden = images, forbidden
        self._spatial = tuple(images.shape[2:])
        self._allowed: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self._totals: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        # Draws come unit by unit: what overlaps the last unit is asked for again and again.
        self._last: tuple[Any, np.ndarray] | None = None

    def population(self, example: int, box: Box) -> int:
        count = len(self._allowed_places(example, _size(box))) - len(self._overlapping(example, box))
        if count < 1:
            raise ValueError(
                f"baselines: the image of {self._spatial} pixels has no place for a donor of {_size(box)} pixels that overlaps "
                "neither the unit nor the RoI; give baselines"
            )
        return count

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        size = _size(box)
        place = self._allowed_places(example, size)[skip_holes(number, self._overlapping(example, box))]
        return example, tuple(int(i) for i in np.unravel_index(place, _places(self._spatial, size)))

    def read(self, example: int, box: Box, number: int) -> Tensor:
        _, corner = self.locate(example, box, number)
        inside = tuple(slice(start, start + length) for start, length in zip(corner, _size(box)))
        return self._images[example][(slice(None), *inside)]

    def mean(self, example: int, box: Box) -> Tensor:
        count = self.population(example, box)
        image, size = self._images[example], _size(box)
        allowed = self._allowed_places(example, size)
        if (example, size) not in self._totals:
            touching = np.setdiff1d(np.arange(math.prod(_places(self._spatial, size))), allowed, assume_unique=True)
            self._totals[example, size] = sum_over_windows(image, size) - sum_over_places(image, touching, size)
        overlapping = sum_over_places(image, allowed[self._overlapping(example, box)], size)
        return (self._totals[example, size] - overlapping) / count

    def _allowed_places(self, example: int, size: tuple[int, ...]) -> np.ndarray:
        shared = self._forbidden is None or len(self._forbidden) == 1
        key = (0 if shared else example, size)
        if key not in self._allowed:
            if self._forbidden is None:
                self._allowed[key] = np.arange(math.prod(_places(self._spatial, size)))
            else:
                self._allowed[key] = np.flatnonzero(~_touching(self._forbidden[key[0]], size))
        return self._allowed[key]

    def _overlapping(self, example: int, box: Box) -> np.ndarray:
        """Ranks, among the allowed places, of those that overlap the unit's own box."""
        size = _size(box)
        key = example, size, tuple(side.start for side in box)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        places = _places(self._spatial, size)
        near = [np.arange(max(0, s.start - n + 1), min(p, s.stop)) for s, n, p in zip(box, size, places)]
        flat = np.ravel_multi_index(np.meshgrid(*near, indexing="ij"), places).ravel()
        allowed = self._allowed_places(example, size)
        ranks = np.searchsorted(allowed, flat)
        inside = ranks < len(allowed)
        ranks, flat = ranks[inside], flat[inside]
        self._last = key, ranks[allowed[ranks] == flat]
        return self._last[1]


def skip_holes(number: int, holes: np.ndarray) -> int:
    """The ``number``-th of 0, 1, 2, ... when the ascending ``holes`` are left out."""
    return number + int(np.searchsorted(holes - np.arange(len(holes)), number, side="right"))


def _size(box: Box) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in box)


def _places(spatial: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """In how many places a box fits along each axis."""
    return tuple(length - side + 1 for length, side in zip(spatial, size))


def _touching(mask: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """For every place of a box of this size (flattened), whether it holds a pixel of the mask."""
    n_spatial = mask.ndim
    values = mask[None, None].float()
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[n_spatial]
    touched: np.ndarray = pool(values, kernel_size=size, stride=1).flatten().bool().cpu().numpy()
    return touched
