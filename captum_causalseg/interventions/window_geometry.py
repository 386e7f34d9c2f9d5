"""Which windows of a sliding-window model touch the regions of interest, and which of these hold a unit."""

from functools import cached_property

import numpy as np
from torch import Tensor

from captum_causalseg.boxes import Box, box_at, hull
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
        n, r = self._n_examples, self._rois.shape[1]
        found = np.zeros((len(self._rois), len(self.layout), r), dtype=bool)
        for example, region in np.ndindex(len(self._rois), r):
            mask = self._rois[example, region]
            around = hull(mask)
            for window in range(len(self.layout)):
                part = _overlap(self.layout.box(window), around)
                found[example, window, region] = part is not None and bool(mask[part].any())
        return np.broadcast_to(found, (n, *found.shape[1:]))

    def parts(self, group: RoiGroup, example: int) -> list[tuple[int, Box, Box]]:
        """The windows that meet a group's box, in their order: number, the common part in the window, and in the box."""
        corner = group.frame.starts[example]
        box = box_at(corner.tolist(), group.frame.size)
        found: list[tuple[int, Box, Box]] = []
        for window, start in enumerate(self.layout.starts):
            part = _overlap(self.layout.box(window), box)
            if part is not None:
                found.append((window, _seen_from(start, part), _seen_from(corner, part)))
        return found


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
        part = _overlap(box, self._layout.box(window))
        assert part is not None
        inside = tuple(
            slice(None) if length == 1 else slice(side.start - whole.start, side.stop - whole.start)
            for side, whole, length in zip(part, box, mask.shape[1:])
        )
        return bool(mask[(slice(None), *inside)].any())


def _seen_from(corner: np.ndarray, box: Box) -> Box:
    return tuple(slice(side.start - at, side.stop - at) for side, at in zip(box, corner.tolist()))


def _overlap(one: Box, other: Box) -> Box | None:
    sides = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other)]
    return tuple(slice(*side) for side in sides) if all(start < stop for start, stop in sides) else None


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
