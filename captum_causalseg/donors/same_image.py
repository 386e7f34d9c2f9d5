"""Donors cut from the other places of the explained image."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._checks import checked
from captum_causalseg.boxes import Box, box_at, size_of
from captum_causalseg.donors.gather import alike, cut, some_channels
from captum_causalseg.donors.means import sum_over_places, sum_over_windows
from captum_causalseg.donors.numbering import n_places, one_row, skip_holes, touching, unravel
from captum_causalseg.donors.source import ALL_CHANNELS, BIND, BoundDonors, DonorSource

__all__ = ["BoundSameImage", "SameImage"]


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
        """See :meth:`BoundDonors.population`."""
        count = len(self._allowed_places(example, size_of(box))) - len(self._overlapping(example, box))
        if count < 1:
            raise ValueError(
                f"baselines: the image of {self._spatial} pixels has no place for a donor of {size_of(box)} pixels that overlaps "
                "neither the unit nor the RoI; give baselines"
            )
        return count

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        return example, tuple(self._locate_many(*one_row(example, box, number))[0].tolist())

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        _, corner = self.locate(example, box, number)
        return self._images[example][(slice(None), *box_at(corner, size_of(box)))]

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`."""
        return cut(
            some_channels(self._images, channels),
            examples,
            self._locate_many(examples, corners, size, numbers=numbers),
            size=size,
        )

    def mean(self, example: int, box: Box) -> Tensor:
        """See :meth:`BoundDonors.mean`."""
        count = self.population(example, box)
        image, size = self._images[example], size_of(box)
        allowed = self._allowed_places(example, size)
        if (example, size) not in self._totals:
            touching = np.setdiff1d(np.arange(math.prod(n_places(self._spatial, size))), allowed, assume_unique=True)
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
        return unravel(places, n_places(self._spatial, size)[None])

    def _allowed_places(self, example: int, size: tuple[int, ...]) -> np.ndarray:
        shared = self._forbidden is None or len(self._forbidden) == 1
        key = (0 if shared else example, size)
        if key not in self._allowed:
            if self._forbidden is None:
                self._allowed[key] = np.arange(math.prod(n_places(self._spatial, size)))
            else:
                self._allowed[key] = np.flatnonzero(~touching(self._forbidden[key[0]], size))
        return self._allowed[key]

    def _overlapping(self, example: int, box: Box) -> np.ndarray:
        """Ranks, among the allowed places, of those that overlap the unit's own box."""
        size = size_of(box)
        key = example, size, tuple(side.start for side in box)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        places = n_places(self._spatial, size)
        near = [np.arange(max(0, s.start - n + 1), min(p, s.stop)) for s, n, p in zip(box, size, places)]
        flat = np.ravel_multi_index(np.ix_(*near), tuple(places)).ravel()
        allowed = self._allowed_places(example, size)
        ranks = np.searchsorted(allowed, flat)
        inside = ranks < len(allowed)
        ranks, flat = ranks[inside], flat[inside]
        self._last = key, ranks[allowed[ranks] == flat]
        return self._last[1]


class SameImage(DonorSource):
    """Donors cut from the other positions of the explained image itself, never from its RoI: needs no data.

    This is what ``baselines=None`` means.

    Example:
        >>> import torch
        >>> from captum_causalseg import SameImage
        >>> donors = SameImage().bind(torch.rand(1, 1, 8, 8))
        >>> donors.population(0, (slice(0, 4), slice(0, 4)))  # of 5 x 5 places, those that do not overlap the unit
        9
    """

    of_the_image = True

    def __repr__(self) -> str:
        return "SameImage()"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if images.ndim < 3:
            raise ValueError(
                f"baselines: inputs of shape {tuple(images.shape)} have no spatial axes, so no other positions to take donors "
                "from; give baselines (0 is Captum's default)"
            )
        return BoundSameImage(images.detach(), forbidden)
