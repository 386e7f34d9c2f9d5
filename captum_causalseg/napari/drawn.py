"""Regions that were drawn, as masks of the image's voxels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.path import Path

__all__ = ["mask_of_shapes"]

_KINDS = ("rectangle", "ellipse", "polygon")
# Of a shape in a volume, how far its corners may lie apart along the axis that it is drawn across.
_FLAT = 0.5
_SIDES_OF_ELLIPSE = 64


def mask_of_shapes(
    shapes: Sequence[tuple[str, np.ndarray[Any, Any]]], shape: tuple[int, ...], *, n_slices: int = 0
) -> np.ndarray[Any, Any]:
    """All voxels whose middle lies in one of the shapes.

    Args:
        shapes: kinds (``"rectangle"``, ``"ellipse"``, ``"polygon"``) and corners ``(n, D)``, in voxels of the image; of an ellipse the four corners around it.
        shape: of the image, ``D`` axes.
        n_slices: in a volume, so many slices on both sides of that on which a shape was drawn belong to it as well.

    Returns:
        Boolean ``(*shape)``.

    Raises:
        ValueError: a shape has no inside, other axes than the image, or lies across the slices of a volume.
    """
    found = np.zeros(shape, dtype=bool)
    for kind, corners in shapes:
        if kind not in _KINDS:
            raise ValueError(f"roi: expected rectangles, ellipses and polygons, got a {kind}, which has no inside")
        if corners.shape[1] != len(shape):
            raise ValueError(
                f"roi: the shapes have {corners.shape[1]} axes, the image {len(shape)}; draw in a layer made for the image"
            )
        if len(shape) == 2:
            found |= _inside(kind, corners, shape)
            continue
        across = int(np.argmin(np.ptp(corners, axis=0)))
        if np.ptp(corners[:, across]) > _FLAT:
            raise ValueError(
                "roi: a shape lies across the slices of the image; draw it on one slice, with axes as the image has them"
            )
        plane = [axis for axis in range(3) if axis != across]
        number = round(float(corners[:, across].mean()))
        first, last = max(number - n_slices, 0), min(number + n_slices, shape[across] - 1)
        moved = np.moveaxis(found, across, 0)
        moved[first : last + 1] |= _inside(kind, corners[:, plane], (shape[plane[0]], shape[plane[1]]))
    return found


def _inside(kind: str, corners: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Boolean ``(*shape)``, of two axes."""
    if kind == "ellipse":
        angles = np.linspace(0, 2 * np.pi, _SIDES_OF_ELLIPSE, endpoint=False)[:, None]
        one, other = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
        corners = corners[:4].mean(0) + np.cos(angles) * one + np.sin(angles) * other
    rows, columns = np.indices(shape)
    inside: np.ndarray[Any, Any] = (
        Path(corners).contains_points(np.stack([rows.ravel(), columns.ravel()], axis=1)).reshape(shape)
    )
    return inside
