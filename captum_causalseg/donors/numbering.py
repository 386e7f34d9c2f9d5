"""Numbers of donors: which places they stand for, and which places are left out."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional

from captum_causalseg.boxes import Box, size_of

__all__ = ["n_places", "one_row", "skip_holes", "touching", "unravel"]


def skip_holes(numbers: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The ``number``-th of 0, 1, 2, ... when the ascending ``holes`` are left out, for each of the numbers."""
    skipped: np.ndarray = numbers + np.searchsorted(holes - np.arange(len(holes)), numbers, side="right")
    return skipped


def one_row(example: int, box: Box, number: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], np.ndarray]:
    """One donor of one unit as the arguments of :meth:`BoundDonors.read_many`."""
    corner = np.array([[side.start for side in box]], dtype=np.int64)
    return np.array([example]), corner, size_of(box), np.array([number])


def unravel(numbers: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """As ``np.unravel_index`` ``(B, d)`` of numbers ``(B,)``, each in a grid of its own ``(B or 1, d)``."""
    places = np.empty((len(numbers), grids.shape[1]), dtype=np.int64)
    for axis in reversed(range(grids.shape[1])):
        numbers, places[:, axis] = np.divmod(numbers, grids[:, axis])
    return places


def n_places(spatial: Sequence[int] | np.ndarray, size: Sequence[int]) -> np.ndarray:
    """In how many places ``(..., d)`` a box fits along each axis of images of ``spatial`` ``(..., d)``."""
    return np.asarray(spatial, dtype=np.int64) - np.asarray(size, dtype=np.int64) + 1


def touching(mask: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """For every place of a box of this size (flattened), whether it holds a pixel of the mask."""
    n_spatial = mask.ndim
    values = mask[None, None].float()
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[n_spatial]
    touched: np.ndarray = pool(values, kernel_size=size, stride=1).flatten().bool().cpu().numpy()
    return touched
