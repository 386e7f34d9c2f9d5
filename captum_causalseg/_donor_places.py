"""Donors of a unit, numbered: how many there are, where each lies, what it holds."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg._donor_images import BankImages
from captum_causalseg._donor_means import BankSums, sum_over_places, sum_over_windows
from captum_causalseg._donor_reading import (
    Box,
    ImageRows,
    Request,
    alike,
    box_at,
    cut,
    cut_each,
    rows_at_once,
    size_of,
    weighted_sums,
)

__all__ = ["BoundBank", "BoundDonors", "BoundSameImage", "BoundWhole", "Box", "Request", "skip_holes"]


_ALL = slice(None)


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

    def read_many(
        self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray, channels: slice = _ALL
    ) -> Tensor:
        """The values ``(B, C or 1, *size)`` of one donor each of ``B >= 1`` units: fresh, and on the donors' device.

        This reads them one by one; a source whose donors can be gathered by index replaces it.

        Args:
            examples: ``(B,)``.
            corners: ``(B, d)``, where the unit's box begins along each spatial axis.
            size: of all the boxes.
            numbers: ``(B,)``, of the donors.
            channels: which to read, where a donor has one value per channel.
        """
        rows = zip(examples.tolist(), corners.tolist(), numbers.tolist())
        donors = [self.read(example, box_at(corner, size), number) for example, corner, number in rows]
        return torch.stack([_some(donor[None], channels)[0].expand(-1, *size) for donor in donors])

    def inner_products(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """For each request, the sums ``(m,)`` over its donors' elements times the weights, in float64."""
        return [self._products_of(request) for request in requests]

    def _products_of(self, request: Request) -> np.ndarray:
        products = np.empty(len(request.numbers))
        size, weights = size_of(request.box), request.weights.double()
        corner = np.array([[side.start for side in request.box]], dtype=np.int64)
        start, most = 0, 1  # until a donor is there, its number of channels is not known
        while start < len(products):
            numbers = request.numbers[start : start + most]
            examples = np.full(len(numbers), request.example)
            values = self.read_many(examples, corner.repeat(len(numbers), 0), size, numbers, request.channels)
            weights = weights.to(values.device)
            products[start : start + len(numbers)] = weighted_sums(values, weights)
            start, most = start + len(numbers), rows_at_once(weights.shape, values.shape[1:])
        return products


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

    def read_many(
        self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray, channels: slice = _ALL
    ) -> Tensor:
        several = np.array([length > 1 for length in self._images.shape])
        inside = tuple(side if many else 1 for side, many in zip(size, several[2:]))
        found = cut(_some(self._images, channels), examples * several[0], corners * several[2:], inside)
        return found.expand(*found.shape[:2], *size).contiguous()


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
        self._may_have_holes = np.array([forbidden is not None and bool(found) for found in own])
        self._lengths = np.array([shape[1:] for shape in images.shapes], dtype=np.int64)
        self._first: dict[tuple[int, ...], np.ndarray] = {}
        self._holes: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self._means: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def population(self, example: int, box: Box) -> int:
        return int(self._first_numbers(size_of(box))[-1]) - len(self._holes_of(example, box))

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        which, corners = self._locate_many(*_one_row(example, box, number))
        return int(which[0]), tuple(corners[0].tolist())

    def read(self, example: int, box: Box, number: int) -> Tensor:
        donor, corner = self.locate(example, box, number)
        return self._images[donor][(slice(None), *box_at(corner, size_of(box)))]

    def read_many(
        self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray, channels: slice = _ALL
    ) -> Tensor:
        which, places = self._locate_many(examples, corners, size, numbers)
        if self._images.stacked is not None:
            return cut(_some(self._images.stacked, channels), which, places, size)
        return _some(cut_each(self._images, which, places, size), channels)

    def inner_products(self, requests: Sequence[Request]) -> list[np.ndarray]:
        if self._images.stacked is not None:
            return super().inner_products(requests)
        # Images outside, requests inside: an image that is read from a file is read once for all of them.
        by_shape: dict[tuple[object, ...], list[int]] = {}
        for index, request in enumerate(requests):
            key = *request.weights.shape, request.channels.start, request.channels.stop
            by_shape.setdefault(key, []).append(index)
        jobs = [(members, self._rows_of([requests[index] for index in members])) for members in by_shape.values()]
        used: set[int] = set().union(*(rows.images for _, rows in jobs))
        for number in sorted(used):
            image = self._images[number]
            for _, rows in jobs:
                rows.serve(number, image)
        products = [np.empty(0)] * len(requests)
        for members, rows in jobs:
            stops = np.cumsum([len(requests[index].numbers) for index in members])
            for index, found in zip(members, np.split(rows.products, stops)):
                products[index] = found
        return products

    def mean(self, example: int, box: Box) -> Tensor:
        count = self.population(example, box)
        size, holes = size_of(box), self._holes_of(example, box)
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

    def _rows_of(self, requests: Sequence[Request]) -> ImageRows:
        """The donors of all these requests, whose weights are of one shape."""
        owners = np.repeat(np.arange(len(requests)), [len(request.numbers) for request in requests])
        examples = np.array([request.example for request in requests])[owners]
        corners = np.array([[side.start for side in request.box] for request in requests], dtype=np.int64)[owners]
        numbers = np.concatenate([request.numbers for request in requests])
        which, places = self._locate_many(examples, corners, size_of(requests[0].box), numbers)
        weights = torch.stack([request.weights.double() for request in requests])
        return ImageRows(which, places, weights, owners, requests[0].channels)

    def _locate_many(
        self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images ``(B,)`` and corners ``(B, d)`` of the donors of units of one size; arguments as in :meth:`read_many`."""
        first, numbers = self._first_numbers(size), numbers.copy()
        inside = np.flatnonzero(self._may_have_holes[examples])
        # Holes depend on a unit's place only if its donors do.
        for group in alike(examples[inside], corners[inside, : None if self._aligned else 0]):
            rows = inside[group]
            holes = self._holes_of(int(examples[rows[0]]), box_at(corners[rows[0]].tolist(), size))
            numbers[rows] = skip_holes(numbers[rows], holes)
        which = np.searchsorted(first, numbers, side="right") - 1
        if self._aligned:
            return which, corners
        return which, _unravel(numbers - first[which], _places(self._lengths[which], size))

    def _first_numbers(self, size: tuple[int, ...]) -> np.ndarray:
        """Number of each image's first place, and at the end the number of places in all."""
        if size not in self._first:
            grids = _places(self._lengths, size)
            small = np.flatnonzero((grids < 1).any(1))
            if len(small):
                raise ValueError(
                    f"baselines: donor image {small[0]} of {tuple(self._lengths[small[0]].tolist())} pixels is smaller than a "
                    f"unit of {size} pixels"
                )
            counts = np.ones(len(grids), dtype=np.int64) if self._aligned else grids.prod(1)
            self._first[size] = np.concatenate([[0], np.cumsum(counts)])
        return self._first[size]

    def _holes_of(self, example: int, box: Box) -> np.ndarray:
        """Numbers of the places that touch the explained image's own RoI."""
        if self._forbidden is None or not self._may_have_holes[example]:
            return np.empty(0, dtype=np.int64)
        mask = self._forbidden[example if len(self._forbidden) > 1 else 0]
        size = size_of(box)
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
        count = len(self._allowed_places(example, size_of(box))) - len(self._overlapping(example, box))
        if count < 1:
            raise ValueError(
                f"baselines: the image of {self._spatial} pixels has no place for a donor of {size_of(box)} pixels that overlaps "
                "neither the unit nor the RoI; give baselines"
            )
        return count

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        return example, tuple(self._locate_many(*_one_row(example, box, number))[0].tolist())

    def read(self, example: int, box: Box, number: int) -> Tensor:
        _, corner = self.locate(example, box, number)
        return self._images[example][(slice(None), *box_at(corner, size_of(box)))]

    def read_many(
        self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray, channels: slice = _ALL
    ) -> Tensor:
        return cut(_some(self._images, channels), examples, self._locate_many(examples, corners, size, numbers), size)

    def mean(self, example: int, box: Box) -> Tensor:
        count = self.population(example, box)
        image, size = self._images[example], size_of(box)
        allowed = self._allowed_places(example, size)
        if (example, size) not in self._totals:
            touching = np.setdiff1d(np.arange(math.prod(_places(self._spatial, size))), allowed, assume_unique=True)
            self._totals[example, size] = sum_over_windows(image, size) - sum_over_places(image, touching, size)
        overlapping = sum_over_places(image, allowed[self._overlapping(example, box)], size)
        return (self._totals[example, size] - overlapping) / count

    def _locate_many(self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray) -> np.ndarray:
        """The corners ``(B, d)`` of the donors of units of one size; arguments as in :meth:`read_many`."""
        places = np.empty(len(numbers), dtype=np.int64)
        for rows in alike(examples, corners):
            example, box = int(examples[rows[0]]), box_at(corners[rows[0]].tolist(), size)
            ranks = skip_holes(numbers[rows], self._overlapping(example, box))
            places[rows] = self._allowed_places(example, size)[ranks]
        return _unravel(places, _places(self._spatial, size)[None])

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
        size = size_of(box)
        key = example, size, tuple(side.start for side in box)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        places = _places(self._spatial, size)
        near = [np.arange(max(0, s.start - n + 1), min(p, s.stop)) for s, n, p in zip(box, size, places)]
        flat = np.ravel_multi_index(np.ix_(*near), tuple(places)).ravel()
        allowed = self._allowed_places(example, size)
        ranks = np.searchsorted(allowed, flat)
        inside = ranks < len(allowed)
        ranks, flat = ranks[inside], flat[inside]
        self._last = key, ranks[allowed[ranks] == flat]
        return self._last[1]


def _some(images: Tensor, channels: slice) -> Tensor:
    """Channels of images ``(D, C, *spatial)``; one that stands for all stays."""
    return images[:, channels] if images.shape[1] > 1 else images


def skip_holes(numbers: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The ``number``-th of 0, 1, 2, ... when the ascending ``holes`` are left out, for each of the numbers."""
    skipped: np.ndarray = numbers + np.searchsorted(holes - np.arange(len(holes)), numbers, side="right")
    return skipped


def _one_row(example: int, box: Box, number: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], np.ndarray]:
    """One donor of one unit as the arguments of :meth:`BoundDonors.read_many`."""
    corner = np.array([[side.start for side in box]], dtype=np.int64)
    return np.array([example]), corner, size_of(box), np.array([number])


def _unravel(numbers: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """As ``np.unravel_index`` ``(B, d)`` of numbers ``(B,)``, each in a grid of its own ``(B or 1, d)``."""
    places = np.empty((len(numbers), grids.shape[1]), dtype=np.int64)
    for axis in reversed(range(grids.shape[1])):
        numbers, places[:, axis] = np.divmod(numbers, grids[:, axis])
    return places


def _places(spatial: Sequence[int] | np.ndarray, size: Sequence[int]) -> np.ndarray:
    """In how many places ``(..., d)`` a box fits along each axis of images of ``spatial`` ``(..., d)``."""
    return np.asarray(spatial, dtype=np.int64) - np.asarray(size, dtype=np.int64) + 1


def _touching(mask: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """For every place of a box of this size (flattened), whether it holds a pixel of the mask."""
    n_spatial = mask.ndim
    values = mask[None, None].float()
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[n_spatial]
    touched: np.ndarray = pool(values, kernel_size=size, stride=1).flatten().bool().cpu().numpy()
    return touched
