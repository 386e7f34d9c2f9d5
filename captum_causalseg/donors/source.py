"""Where donors come from, and what a source is once it is bound to the images that are explained."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import NONE, tensor_of
from captum_causalseg.boxes import Box, box_at, size_of
from captum_causalseg.donors.any_source import AnySource
from captum_causalseg.donors.gather import Request, rows_at_once, some_channels, weighted_sums

__all__ = ["ALL_CHANNELS", "BIND", "IMAGES", "BoundDonors", "DonorSource", "Recipients"]


ALL_CHANNELS = slice(None)


@dataclass(frozen=True, eq=False)
class Recipients:
    """Units of one size and shape that are given donors.

    Args:
        examples: ``(B,)`` whose they are.
        corners: ``(B, d)`` where each one's box begins.
        size: of the boxes.
        channels: which channels of the image are theirs.
        mask: of irregular units, which elements of the box are theirs, boolean ``(channels or 1, *size or ones)``; ``None`` for all.

    Example:
        >>> from captum_causalseg.donors.source import Recipients
        >>> block = Recipients.one(0, (slice(8, 16), slice(0, 8)), count=3)  # one unit of the first image, given three donors
        >>> block.examples.tolist(), block.corners[0].tolist(), block.size
        ([0, 0, 0], [8, 0], (8, 8))
    """

    examples: np.ndarray
    corners: np.ndarray
    size: tuple[int, ...]
    channels: slice = field(default_factory=lambda: ALL_CHANNELS)
    mask: Tensor | None = None

    @classmethod
    def one(
        cls, example: int, box: Box, channels: slice = ALL_CHANNELS, mask: Tensor | None = None, count: int = 1
    ) -> "Recipients":
        """One unit, as often as it is given a donor."""
        corner = np.array([[side.start for side in box]], dtype=np.int64)
        return cls(np.full(count, example), corner.repeat(count, 0), size_of(box), channels, mask)


class BoundDonors(ABC):
    """A donor source for given images ``(N, C, *spatial)``; donors of a unit are numbered ``0 .. population - 1``.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank
        >>> images = torch.rand(1, 1, 16, 16)
        >>> donors = PatchBank(torch.rand(10, 1, 16, 16)).bind(images)  # a source, bound to the images that are explained
        >>> unit = (slice(0, 4), slice(0, 4))
        >>> donors.population(0, unit)  # 10 images, 13 x 13 places in each
        1690
        >>> image, corner = donors.locate(0, unit, 168)  # the last place of the first image
        >>> image, corner
        (0, (12, 12))
        >>> donors.read(0, unit, 168).shape, donors.mean(0, unit).dtype
        (torch.Size([1, 4, 4]), torch.float64)
    """

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
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """The values ``(B, C or 1, *size)`` of one donor each of ``B >= 1`` units: fresh, and on the donors' device.

        This reads them one by one; a source whose donors can be gathered by index replaces it.

        Args:
            examples: ``(B,)``.
            corners: ``(B, d)``, where the unit's box begins along each spatial axis.
            size: of all the boxes.
            numbers: ``(B,)``, of the donors.
            channels: which to read, where a donor has one value per channel.

        Example:
            >>> import numpy as np, torch
            >>> from captum_causalseg import PatchBank
            >>> donors = PatchBank(torch.rand(10, 1, 16, 16)).bind(torch.rand(1, 1, 16, 16))
            >>> two_units = np.array([[0, 0], [8, 8]])  # their first corners
            >>> donors.read_many(np.array([0, 0]), two_units, (4, 4), numbers=np.array([5, 168])).shape
            torch.Size([2, 1, 4, 4])
        """
        rows = zip(examples.tolist(), corners.tolist(), numbers.tolist())
        donors = [self.read(example, box_at(corner, size), number) for example, corner, number in rows]
        return torch.stack([some_channels(donor[None], channels)[0].expand(-1, *size) for donor in donors])

    def values(self, units: Recipients, numbers: np.ndarray) -> Tensor:
        """What units become that are given these donors ``(B,)``: ``(B, C or 1, *size)``, meaningful where an element is the unit's.

        These are the donors as they are; a source that fits its donors to the place replaces it.

        Example:
            >>> import numpy as np, torch
            >>> from captum_causalseg import PatchBank
            >>> from captum_causalseg.donors.source import Recipients
            >>> image, bank = torch.zeros(1, 1, 16, 16), PatchBank(torch.rand(10, 1, 16, 16), match="mean")
            >>> unit = Recipients.one(0, (slice(0, 4), slice(0, 4)), count=2)
            >>> given = bank.bind(image).values(unit, np.array([5, 168]))
            >>> given.shape, bool(given.mean((1, 2, 3)).abs().max() < 1e-6)
            (torch.Size([2, 1, 4, 4]), True)
        """
        return self.read_many(units.examples, units.corners, size=units.size, numbers=numbers, channels=units.channels)

    def mean_value(self, example: int, box: Box, channels: slice = ALL_CHANNELS, mask: Tensor | None = None) -> Tensor:
        """The mean over all donors of what one unit becomes, float64 ``(C or 1, *box shape)``, exact.

        Example:
            >>> import torch
            >>> from captum_causalseg import PatchBank
            >>> image, bank = torch.zeros(1, 1, 16, 16), PatchBank(torch.rand(10, 1, 16, 16), match="mean")
            >>> bool(bank.bind(image).mean_value(0, (slice(0, 4), slice(0, 4))).mean().abs() < 1e-6)
            True
        """
        return some_channels(self.mean(example, box)[None], channels)[0]

    def inner_products(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """For each request, the sums ``(m,)`` over its donors' elements times the weights, in float64.

        Example:
            >>> import numpy as np, torch
            >>> from captum_causalseg import PatchBank
            >>> from captum_causalseg.donors.gather import Request
            >>> donors = PatchBank(torch.ones(10, 1, 16, 16)).bind(torch.rand(1, 1, 16, 16))
            >>> unit, weights = (slice(0, 4), slice(0, 4)), torch.ones(1, 4, 4)
            >>> donors.inner_products([Request(0, unit, np.array([0, 7]), weights, slice(None))])[0].tolist()  # sums of 16 ones
            [16.0, 16.0]
        """
        return [self._products_of(request) for request in requests]

    def _products_of(self, request: Request) -> np.ndarray:
        products = np.empty(len(request.numbers))
        weights = request.weights.double()
        start, most = 0, 1  # until a donor is there, its number of channels is not known
        while start < len(products):
            numbers = request.numbers[start : start + most]
            unit = Recipients.one(
                request.example, request.box, channels=request.channels, mask=request.mask, count=len(numbers)
            )
            values = self.values(unit, numbers)
            weights = weights.to(values.device)
            products[start : start + len(numbers)] = weighted_sums(values, weights)
            start, most = start + len(numbers), rows_at_once(weights.shape, values.shape[1:])
        return products


IMAGES = tensor_of("real", "(N, C, *spatial)", (2, math.inf), may_be_empty=False)
BIND = {"images": IMAGES, "forbidden": NONE | tensor_of("boolean", "(N or 1, *spatial)", (1, math.inf))}


class DonorSource(AnySource, ABC):
    """Where donors come from. Subclass it, with a :class:`BoundDonors`, to add your own source.

    :meth:`bind` is all that has to be written. A source made of images also has ``n_images`` and :meth:`chosen`: refuters and
    comparisons then :meth:`split` it. One that keeps more than what it was made with says in :meth:`describe` what counts.

    Attributes:
        of_the_image: whether what a unit becomes is made from the explained image (or activation) itself, at least in part.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, Constant, DonorSource
        >>> class Ceiling(DonorSource):  # the largest value of the explained images, everywhere
        ...     def bind(self, images, forbidden=None):
        ...         return Constant(float(images.max())).bind(images, forbidden)
        >>> image = torch.rand(1, 1, 8, 8)
        >>> attr = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(image, Ceiling(), block_size=4)
        >>> bool((attr < 0).all())  # whatever is replaced, the mean grows
        True
    """

    of_the_image: bool = False

    @abstractmethod
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """Check the source against the images to be explained and tie it to them.

        Args:
            images: ``(N, C, *spatial)``.
            forbidden: boolean ``(N or 1, *spatial)``: pixels of the explained image (its RoI) that no donor may contain.

        Raises:
            ValueError: donors with other channels than the images, smaller than a unit, or not finite.
        """
