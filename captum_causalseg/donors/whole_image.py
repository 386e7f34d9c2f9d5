"""One donor only, given as an image; every unit's own values as a placebo."""

import numpy as np
from torch import Tensor

from captum_causalseg._checks import checked
from captum_causalseg.boxes import Box
from captum_causalseg.donors.gather import cut, some_channels
from captum_causalseg.donors.source import ALL_CHANNELS, BIND, BoundDonors, DonorSource

__all__ = ["BoundWhole", "SelfDonor"]


class BoundWhole(BoundDonors):
    """One donor only, given as an image ``(N or 1, C or 1, *spatial or ones)``."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        return 1

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        return -1, tuple(side.start for side in box)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        image = self._images[example if len(self._images) > 1 else 0]
        inside = tuple(side if length > 1 else slice(None) for side, length in zip(box, image.shape[1:]))
        return image[(slice(None), *inside)]

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`."""
        several = np.array([length > 1 for length in self._images.shape])
        inside = tuple(side if many else 1 for side, many in zip(size, several[2:]))
        found = cut(some_channels(self._images, channels), examples * several[0], corners * several[2:], size=inside)
        return found.expand(*found.shape[:2], *size).contiguous()


class SelfDonor(DonorSource):
    """Every unit's own values: replacing a unit by itself changes nothing, so its effect is 0. A placebo treatment.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.donors import SelfDonor
        >>> ate = AverageTreatmentEffect(lambda image: image.amax((1, 2, 3)))
        >>> float(ate.attribute(torch.rand(1, 1, 8, 8), baselines=SelfDonor(), block_size=4).abs().max())
        0.0
    """

    of_the_image = True

    def __repr__(self) -> str:
        return "SelfDonor()"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        return BoundWhole(images.detach())
