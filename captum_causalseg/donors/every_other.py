"""Every other donor of a source that is not made of images: two disjoint parts, to search with one and judge by the other."""

import numpy as np
from torch import Tensor

from captum_causalseg.boxes import Box, box_at
from captum_causalseg.donors.source import ALL_CHANNELS, BoundDonors, DonorSource, Recipients

__all__ = ["EveryOther"]


class BoundEveryOther(BoundDonors):
    """Donors ``first``, ``first + 2``, ``first + 4``, ... of bound donors; a unit's only donor is in both parts."""

    def __init__(self, bound: BoundDonors, first: int) -> None:
        self._bound, self._first = bound, first

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        count = self._bound.population(example, box)
        return count if count < 2 else (count + 1 - self._first) // 2

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        return self._bound.locate(example, box, self._number(example, box, number))

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        return self._bound.read(example, box, self._number(example, box, number))

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`."""
        units = Recipients(examples, corners, size, channels=channels)
        return self._bound.read_many(examples, corners, size=size, numbers=self._numbers(units, numbers), channels=channels)

    def values(self, units: Recipients, numbers: np.ndarray) -> Tensor:
        """See :meth:`BoundDonors.values`."""
        return self._bound.values(units, self._numbers(units, numbers))

    def _number(self, example: int, box: Box, number: int) -> int:
        return number if self._bound.population(example, box) < 2 else 2 * number + self._first

    def _numbers(self, units: Recipients, numbers: np.ndarray) -> np.ndarray:
        found = 2 * numbers + self._first
        # Only the first of few can be the only one.
        for row in np.flatnonzero(numbers == 0).tolist():
            found[row] = self._number(int(units.examples[row]), box_at(units.corners[row].tolist(), units.size), 0)
        return found


class EveryOther(DonorSource):
    """Every other donor of each unit, by its number.

    Args:
        source: whose.
        first: 0 for donors 0, 2, 4, ...; 1 for donors 1, 3, 5, ...
    """

    def __init__(self, source: DonorSource, first: int) -> None:
        self.source, self.first = source, first
        self.of_the_image = source.of_the_image

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        return BoundEveryOther(self.source.bind(images, forbidden), self.first)
