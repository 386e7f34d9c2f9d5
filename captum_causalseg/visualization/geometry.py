"""Where the voxels of an image lie: how long their edges are, and which way its axes run through the patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._checks import number, per_axis
from captum_causalseg.images.formats import needed_package
from captum_causalseg.images.grid import known_affine

__all__ = ["Geometry", "geometry_of"]

# Radiological convention: the patient's left on the right of the picture, the back at the bottom or on the right, the feet at the bottom.
_ALONG = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_SHOWN = "LPI"
_CUTS = {"L": "sagittal", "P": "coronal", "I": "axial"}
# Scans lie askew by a degree or two.
_ASKEW = 5.0


@dataclass(frozen=True)
class Geometry:
    """Of the voxels of an image.

    Args:
        spacing: edges of a voxel, one per spatial axis.
        toward: of a volume, toward what each axis of the array runs, such as ``"RAS"``; empty where that is not known.
        in_mm: whether the edges are known to be millimeters.
        askew: by how many degrees the axes lie beside those of the patient, at most.
    """

    spacing: tuple[float, ...]
    toward: str = ""
    in_mm: bool = False
    askew: float = 0.0

    def turned(self, axis: int) -> bool:
        """Whether an axis is shown from its end to its beginning."""
        return bool(self.toward) and self.toward[axis] not in _SHOWN

    def beginning(self, axis: int) -> str:
        """The letter at the top or the left of a picture along this axis."""
        return _ALONG[self.end(axis)]

    def end(self, axis: int) -> str:
        """The letter at the bottom or the right of a picture along this axis."""
        return _ALONG[self.toward[axis]] if self.turned(axis) else self.toward[axis]

    def plane_axes(self, axis: int) -> tuple[int, int]:
        """The axes of the rows and of the columns of a plane across ``axis``."""
        row, column = (other for other in range(3) if other != axis)
        if self.toward and _SHOWN.index(self.end(row)) < _SHOWN.index(self.end(column)):
            return column, row
        return row, column

    def cuts(self) -> list[int]:
        """Across which axes the three planes of a volume go, in the order in which they are shown: axial, coronal, sagittal."""
        if not self.toward:
            return [2, 1, 0]
        return sorted(range(3), key=lambda axis: -_SHOWN.index(self.end(axis)))

    def cut_name(self, axis: int) -> str:
        """What a plane across this axis is called."""
        return _CUTS[self.end(axis)] if self.toward else f"axis {axis}"

    def notes(self) -> list[str]:
        """What has to be said of it."""
        if self.askew <= _ASKEW:
            return []
        return [f"the scan lies askew by up to {self.askew:.0f} degrees: letters name the nearest direction"]


def geometry_of(image: Tensor, spacing: float | Sequence[float] | None, affine: Any, *, example: int) -> Geometry:
    """As given, as the affine of a MetaTensor says, or voxels of edge 1 whose place is not known.

    Args:
        image: ``(N, C, *spatial)``.
        spacing: edges of a voxel; goes before those of the affine.
        affine: from voxels to millimeters, the axes running toward the right, the front and the head (RAS, as in NIfTI).
        example: whose affine, where each has its own.
    """
    axes = image.ndim - 2
    given = None if spacing is None else tuple(map(float, per_axis("spacing", spacing, axes, each=number(above=0))))
    matrix = known_affine(image, example) if affine is None else _checked(affine, axes)
    if matrix is None:
        return Geometry(given or (1.0,) * axes)
    lengths = tuple(map(float, np.linalg.norm(matrix[:-1, :axes], axis=0)))
    edges, in_mm = given or lengths, given is None or np.allclose(given, lengths)
    if axes != 3:
        return Geometry(edges, in_mm=in_mm)
    if affine is None and find_spec("nibabel") is None:
        # What came along with the image only adds letters to its picture.
        return Geometry(edges, in_mm=in_mm)
    nibabel = needed_package("nibabel", "pictures in the orientation of the patient")
    toward = "".join(map(str, nibabel.aff2axcodes(matrix)))
    askew = float(np.degrees(nibabel.affines.obliquity(matrix)).max())
    return Geometry(edges, toward, in_mm=in_mm, askew=askew)


def _checked(affine: Any, axes: int) -> np.ndarray:
    matrix = np.asarray(affine.detach().cpu() if isinstance(affine, Tensor) else affine, dtype=np.float64)
    size = axes + 1
    if matrix.shape != (size, size) or not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:-1, :-1]) < axes:
        raise ValueError(
            f"affine: expected a matrix ({size}, {size}) from voxels to millimeters (RAS, as in NIfTI) that can be inverted, "
            f"got {'shape ' + str(matrix.shape) if matrix.shape != (size, size) else matrix.tolist()}"
        )
    return matrix
