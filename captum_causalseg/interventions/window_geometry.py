"""Which windows of a sliding-window model touch the regions of interest, and which of these hold a unit."""

from functools import cached_property

import numpy as np
from torch import Tensor

from captum_causalseg.boxes import Box, box_at, hull, overlap, seen_from
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.roi_groups import RoiGroup, roi_groups
from captum_causalseg.interventions.units import Units
from captum_causalseg.target.window_layout import WindowLayout

__all__ = ["UnitWindows", "WindowGeometry"]


class WindowGeometry:
    """What is known of the windows before any is run.

    Args:
        layout: the windows.
        rois: boolean ``(N or 1, R, *spatial)``.
        n_examples: how many images there are.

    Attributes:
        groups: of the regions, each with a box of its own, one pixel wider than they are where there is room.
    """

    def __init__(self, layout: WindowLayout, rois: Tensor, n_examples: int) -> None:
        self.layout, self._rois, self._n_examples = layout, rois.cpu(), n_examples
        self.groups = _groups(self._rois, n_examples)

    @cached_property
    def touching(self) -> np.ndarray:
        """``(N, W, R)``: which window holds an element of which region."""
        found = self.layout.touching(self._rois)
        return np.broadcast_to(found, (self._n_examples, *found.shape[1:]))

    def parts(self, group: RoiGroup, example: int) -> list[tuple[int, Box, Box]]:
        """The windows that meet a group's box, in their order: number, the common part in the window, and in the box."""
        corner = group.frame.starts[example]
        box = box_at(corner.tolist(), group.frame.size)
        return self.layout.parts(box)


class UnitWindows:
    """Which windows hold a unit.

    Args:
        geometry: of the windows.
        units: of the images.
    """

    def __init__(self, geometry: WindowGeometry, units: Units) -> None:
        self._geometry, self._layout, self._units = geometry, geometry.layout, units
        self._held: dict[int, np.ndarray] = {}

    @cached_property
    def reaching(self) -> np.ndarray:
        """``(N, U, R)``: which unit is held by a window that touches which region."""
        return np.stack(
            [
                self.holding(n).astype(np.int32) @ self._geometry.touching[n].astype(np.int32) > 0
                for n in range(self._units.n_examples)
            ]
        )

    def holding(self, example: int) -> np.ndarray:
        """``(U, W)``: which unit has an element in which window."""
        key = 0 if self._units.shared else example
        if key not in self._held:
            self._held[key] = self._holding(key)
        return self._held[key]

    def _holding(self, example: int) -> np.ndarray:
        n_units, n_windows = len(self._units), len(self._layout)
        held = np.zeros((n_units, n_windows), dtype=bool)
        examples = np.full(n_units, example)
        rows, _, corners, sizes = self._units.boxes(0, examples, np.arange(n_units))
        starts, size = self._layout.starts, np.array(self._layout.size)
        meet = np.ones((len(rows), n_windows), dtype=bool)
        for axis in range(len(size)):
            low, high = corners[:, axis, None], (corners + sizes)[:, axis, None]
            meet &= (low < starts[None, :, axis] + size[axis]) & (starts[None, :, axis] < high)
        held[rows] = meet
        for unit in rows.tolist():
            for piece in self._units.pieces(example, unit, 0):
                if piece.mask is not None:
                    for window in np.flatnonzero(held[unit]).tolist():
                        held[unit, window] = self._has_element(piece.box, piece.mask, window)
        return held

    def _has_element(self, box: Box, mask: Tensor, window: int) -> bool:
        """Whether a unit's mask ``(channels or 1, *size or 1)`` has one of its elements in a window that its box meets."""
        part = overlap(box, self._layout.box(window))
        assert part is not None
        mine = seen_from([side.start for side in box], part)
        inside = tuple(slice(None) if length == 1 else side for side, length in zip(mine, mask.shape[1:]))
        return bool(mask[(slice(None), *inside)].any())


def _groups(rois: Tensor, n_examples: int) -> list[RoiGroup]:
    spatial = np.array(rois.shape[2:])
    boxes = np.array(
        [[[(side.start, side.stop) for side in hull(mask, margin=1)] for mask in example] for example in rois]
    )  # (N or 1, R, d, 2)

    def fit(needed: np.ndarray) -> Frame:
        size = (needed[..., 1] - needed[..., 0]).max(0)
        starts = np.minimum(needed[..., 0], spatial - size)
        return Frame(np.broadcast_to(starts, (n_examples, len(size))), size.tolist())

    return roi_groups(boxes, fit)
