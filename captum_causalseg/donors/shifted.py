"""The unit's own tissue, moved by a pixel or two: what is pasted is what was there, but for the joint."""

import numpy as np
from torch import Tensor

from captum_causalseg._checks import checked, integer
from captum_causalseg.boxes import Box, box_at, size_of
from captum_causalseg.donors.gather import cut, some_channels
from captum_causalseg.donors.numbering import one_row
from captum_causalseg.donors.source import ALL_CHANNELS, BIND, BoundDonors, DonorSource

__all__ = ["BoundShifted", "Shifted"]


class BoundShifted(BoundDonors):
    """The values at the unit's place plus a shift, for every shift that fits.

    Args:
        images: that are explained, ``(N, C, *spatial)``.
        forbidden: boolean ``(N or 1, *spatial)``, pixels that no donor may hold.
        pixels: the longest shift.
    """

    def __init__(self, images: Tensor, forbidden: Tensor | None, pixels: int) -> None:
        self._images = images
        self._forbidden = None if forbidden is None else forbidden.cpu().numpy()
        d = images.ndim - 2
        steps = [sign * length for length in range(1, pixels + 1) for sign in (-1, 1)]
        # The shortest first, axis by axis.
        self._shifts = np.array([step * np.eye(d, dtype=np.int64)[axis] for step in steps for axis in range(d)])
        self._shifts = self._shifts.reshape(len(steps) * d, d)
        self._fitting: dict[tuple[int, tuple[int, ...], tuple[int, ...]], np.ndarray] = {}

    @property
    def most(self) -> int:
        """How many donors a unit has that lies far from the image's edge and from what is forbidden."""
        return len(self._shifts)

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        return len(self._places(example, tuple(side.start for side in box), size_of(box)))

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        return example, tuple(self._places(example, tuple(side.start for side in box), size_of(box))[number].tolist())

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        return self.read_many(*one_row(example, box, number))[0]

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`."""
        rows = zip(examples.tolist(), corners.tolist(), numbers.tolist())
        places = np.array([self._places(example, tuple(corner), size)[number] for example, corner, number in rows])
        return cut(some_channels(self._images, channels), examples, places, size=size)

    def _places(self, example: int, corner: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
        """Where ``(m, d)`` the unit's box lies once it is moved, for the shifts that fit."""
        key = example, corner, size
        if key not in self._fitting:
            places = np.array(corner, dtype=np.int64) + self._shifts
            inside = (places >= 0).all(1) & (places + np.array(size, dtype=np.int64) <= np.array(self._images.shape[2:])).all(1)
            if self._forbidden is not None:
                mask = self._forbidden[example if len(self._forbidden) > 1 else 0]
                inside[inside] = [not mask[box_at(place, size)].any() for place in places[inside].tolist()]
            self._fitting[key] = places[inside]
        return self._fitting[key]


class Shifted(DonorSource):
    """The unit's own tissue, moved by a pixel or two along each axis, forth and back: nothing is new but the joint.

    What comes of it is what a joint does by itself at this place, in tissue of the unit's own kind and brightness: a control for
    effects of pasted donors. It is what ``controls="edge"`` of :meth:`AverageTreatmentEffect.attribute` measures.

    A shift fits if the moved bounding box lies in the image and holds nothing of the RoI. A unit has at most ``2 * pixels`` donors per spatial
    axis, and none if it is as large as the image.

    Args:
        pixels: the longest shift; every shift from 1 up to it is a donor.

    Example:
        >>> import torch
        >>> from captum_causalseg.donors import Shifted
        >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # brighter by 1 from column to column
        >>> donors, middle = Shifted().bind(ramp), (slice(3, 5), slice(3, 5))
        >>> [donors.locate(0, middle, number)[1] for number in range(4)]  # up, left, down, right by one pixel; then by two
        [(2, 3), (3, 2), (4, 3), (3, 4)]
        >>> donors.population(0, middle), donors.population(0, (slice(0, 2), slice(0, 2)))  # in the corner: down and right
        (8, 4)
        >>> donors.read(0, middle, 3)[0, 0].tolist()
        [4.0, 5.0]
    """

    of_the_image = True

    @checked(pixels=integer(1))
    def __init__(self, pixels: int = 2) -> None:
        self.pixels = pixels

    def __repr__(self) -> str:
        return f"Shifted(pixels={self.pixels})"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if images.ndim < 3:
            raise ValueError(
                f"baselines: inputs of shape {tuple(images.shape)} have no spatial axes, so nothing can be shifted; give other baselines"
            )
        return BoundShifted(images.detach(), forbidden, self.pixels)
