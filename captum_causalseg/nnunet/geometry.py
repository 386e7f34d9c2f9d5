"""From a scan's own voxels to the grid on which nnU-Net segments, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CaseGeometry"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class CaseGeometry:
    """What nnU-Net did to a scan's grid: its axes turned, air around it cut away, resampled.

    Arrays are as nnU-Net's readers give them, ``(slices, rows, columns)``, ``(1, rows, columns)`` for pictures; *scans* have the axes of
    their file: ``(columns, rows, slices)`` of volumes, ``(rows, columns)`` of pictures.

    Args:
        properties: nnU-Net's own record of the case.
        order: ``transpose_forward`` of the plans.
        shape: of the prepared grid, three axes.
        picture: whether the file is a picture, without geometry.
    """

    properties: Mapping[str, Any]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    picture: bool

    @property
    def spacing(self) -> list[float]:
        """Of the scan, in the order of the prepared grid's axes."""
        return [float(self.properties["spacing"][axis]) for axis in self.order]

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """Before resampling."""
        return tuple(map(int, self.properties["shape_after_cropping_and_before_resampling"]))

    @property
    def crop(self) -> tuple[slice, ...]:
        """What was left, on the turned grid."""
        return tuple(slice(int(low), int(high)) for low, high in self.properties["bbox_used_for_cropping"])

    def from_array(self, array: np.ndarray) -> np.ndarray:
        """``(*read)`` turned and cropped, not resampled yet."""
        return array.transpose(self.order)[self.crop]

    def to_array(self, cropped: np.ndarray) -> np.ndarray:
        """``(*cropped)`` as nnU-Net's reader would give it, 0 where it was cut away."""
        whole = np.zeros(tuple(map(int, self.properties["shape_before_cropping"])), dtype=cropped.dtype)
        whole[self.crop] = cropped
        return whole.transpose(np.argsort(self.order))

    def scan_of(self, array: np.ndarray) -> np.ndarray:
        """``(*read)`` with the axes of the file."""
        if self.picture:
            first: np.ndarray = array[0]
            return first
        values = array.transpose(2, 1, 0)
        turned = self._turned()
        if turned is not None:
            nibabel = _orientations()
            values = nibabel.apply_orientation(values, nibabel.ornt_transform(nibabel.axcodes2ornt("RAS"), turned))
        return values[..., 0] if self._is_flat() else values

    def array_of(self, scan: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`scan_of`."""
        if self.picture:
            return scan[None]
        values = scan[..., None] if scan.ndim == 2 else scan
        turned = self._turned()
        if turned is not None:
            values = _orientations().apply_orientation(values, turned)
        return values.transpose(2, 1, 0)

    @property
    def scan_shape(self) -> tuple[int, ...]:
        """Of the file."""
        read = np.array(self.properties["shape_before_cropping"], dtype=int)[np.argsort(self.order)]
        return self.scan_of(np.empty(read, dtype=bool)).shape

    @property
    def scan_affine(self) -> np.ndarray:
        """Voxels of the file to millimeters (right, anterior, superior), ``(4, 4)``; the identity of pictures."""
        if "nibabel_stuff" in self.properties:
            return np.asarray(self.properties["nibabel_stuff"]["original_affine"], dtype=np.float64)
        return np.eye(4) if self.picture else self._read_affine()

    @property
    def affine(self) -> np.ndarray:
        """Voxels of the prepared grid to millimeters, ``(4, 4)``; of pictures to rows and columns of the file."""
        steps = np.array(self.cropped_shape) / np.array(self.shape)
        first = np.array([side.start for side in self.crop])
        # The middle of the first of the coarser voxels lies half of its length in.
        prepared_to_turned = np.diag([*steps, 1.0])
        prepared_to_turned[:3, 3] = first + steps / 2 - 0.5
        turned_to_array = np.zeros((4, 4))
        turned_to_array[3, 3] = 1
        for axis, source in enumerate(self.order):
            turned_to_array[source, axis] = 1
        if self.picture:
            # Without the axis of its only slice.
            plane = np.eye(4)
            plane[np.ix_([0, 1, 3], [0, 1, 3])] = (turned_to_array @ prepared_to_turned)[1:, 1:]
            return plane
        backward = np.eye(4)[[2, 1, 0, 3]]
        return self._read_affine() @ backward @ turned_to_array @ prepared_to_turned

    def _read_affine(self) -> np.ndarray:
        """Of the voxels as nnU-Net reads them, ``(columns, rows, slices)``."""
        if "nibabel_stuff" in self.properties:
            about = self.properties["nibabel_stuff"]
            return np.asarray(about.get("reoriented_affine", about["original_affine"]), dtype=np.float64)
        if "sitk_stuff" not in self.properties:
            return np.diag([*map(float, self.properties["spacing"][::-1]), 1.0])
        about = self.properties["sitk_stuff"]
        d = len(about["spacing"])
        lps = np.eye(4)
        lps[:d, :d] = np.reshape(about["direction"], (d, d)) * np.asarray(about["spacing"])
        lps[:d, 3] = about["origin"]
        found: np.ndarray = _LPS_TO_RAS @ lps
        return found

    def _turned(self) -> Any:
        """How the axes of the file lie, where the reader turns them; else None."""
        about = self.properties.get("nibabel_stuff", {})
        if "reoriented_affine" not in about:
            return None
        return _orientations().io_orientation(np.asarray(about["original_affine"]))

    def _is_flat(self) -> bool:
        return "sitk_stuff" in self.properties and len(self.properties["sitk_stuff"]["spacing"]) == 2


def _orientations() -> Any:
    from nibabel import orientations

    return orientations


def spacing_on(grid: int, spacing: Sequence[float], own: Sequence[float]) -> list[float]:
    """The plans' spacing for so many axes: those of a 2D configuration leave the one between slices as it is."""
    return [own[0], *spacing] if len(spacing) < grid else list(spacing)
