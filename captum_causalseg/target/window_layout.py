"""Where the windows of a sliding-window model lie on images of one shape, and how much each of them counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg.boxes import Box, box_at, hull, overlap, seen_from

__all__ = ["Padding", "Starts", "Weight", "WindowLayout", "find_patch_size"]

Starts = Sequence[Sequence[int]] | Callable[[tuple[int, ...]], Sequence[Sequence[int]]]
"""Corners of the windows ``(W, d)`` on the padded image, or what gives them for a padded image's spatial shape."""

Weight = Tensor | Callable[[tuple[int, ...]], Tensor]
"""How much each element of a window counts ``(*patch_size)``, or what gives that for a size."""


@dataclass(frozen=True)
class Padding:
    """What lies beside an image that is smaller than a window, as :func:`torch.nn.functional.pad` has it.

    Args:
        mode: ``"constant"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        value: of the elements with ``"constant"``.
    """

    mode: str = "constant"
    value: float = 0.0


def find_patch_size(patch_size: int | Sequence[int | None], spatial: Sequence[int]) -> tuple[int, ...]:
    """A window's size on images of a spatial shape; where it says ``None``, 0 or less, it is the image's own length."""
    sizes = [patch_size] * len(spatial) if isinstance(patch_size, int) else list(patch_size)
    if len(sizes) != len(spatial):
        raise ValueError(
            f"patch_size: expected one number for each of the image's {len(spatial)} spatial axes {tuple(spatial)}, got {patch_size}"
        )
    return tuple(int(size) if size is not None and size > 0 else int(length) for size, length in zip(sizes, spatial))


class WindowLayout:
    """The windows of images of one spatial shape.

    An image that is smaller than a window is padded on both sides. A window holds the image as far as it reaches: that part is
    cut out and padded then. Padding goes axis by axis, and where an axis is padded, the window is all of it, so that this is the
    same as a window of the padded image. Corners and sizes are therefore those on the image itself.

    Args:
        spatial: the images'.
        patch_size: a window's, ``(d,)``.
        starts, weight: as :data:`Starts` and :data:`Weight` have them.
        padding: of images that are smaller.

    Attributes:
        size: how much of the image a window holds, ``(d,)``.
        starts: ``(W, d)`` where it begins, in the order in which windows are added up.
        weight: how much each of these elements counts, ``(*size)``, on the CPU.

    Raises:
        ValueError: windows that do not lie in the image or leave a part of it out, or a weight of another size.
    """

    def __init__(
        self, spatial: Sequence[int], patch_size: tuple[int, ...], starts: Starts, weight: Weight, padding: Padding
    ) -> None:
        self.spatial, self.patch_size, self._padding = tuple(spatial), patch_size, padding
        missing = [max(patch - length, 0) for patch, length in zip(patch_size, self.spatial)]
        self._before = [count // 2 for count in missing]
        self._after = [count - before for count, before in zip(missing, self._before)]
        self.size = tuple(min(patch, length) for patch, length in zip(patch_size, self.spatial))
        self.starts = _corners(starts, tuple(map(max, patch_size, self.spatial)), patch_size)
        found = weight(patch_size) if callable(weight) else weight
        if not isinstance(found, Tensor) or found.shape[-len(patch_size) :].numel() != found.numel():
            raise ValueError(f"weight: expected a tensor {patch_size}, got {getattr(found, 'shape', type(found).__name__)}")
        if found.shape[-len(patch_size) :] != patch_size:
            raise ValueError(
                f"weight: expected one number per element of a window {patch_size}, got shape {tuple(found.shape)}"
            )
        self.weight = found.detach().cpu().reshape(patch_size)[self._inner]
        self._counts: dict[torch.dtype, Tensor] = {}
        covered = self.count(torch.float32) > 0
        if not bool(covered.all()):
            place = tuple((~covered).nonzero()[0].tolist())
            raise ValueError(
                f"starts, weight: in an image of {self.spatial}, no window that counts there holds the element {place}"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def box(self, window: int) -> Box:
        """Where a window lies in the image."""
        return box_at(self.starts[window].tolist(), self.size)

    def touching(self, rois: Tensor) -> np.ndarray:
        """Of regions ``(N, R, *spatial)``, boolean ``(N, W, R)``: which window holds an element of which region."""
        n, r = rois.shape[:2]
        found = np.zeros((n, len(self), r), dtype=bool)
        for example, region in np.ndindex(n, r):
            mask = rois[example, region]
            if bool(mask.any()):
                around = hull(mask)
                parts = [overlap(self.box(window), around) for window in range(len(self))]
                found[example, :, region] = [part is not None and bool(mask[part].any()) for part in parts]
        return found

    def parts(self, box: Box) -> list[tuple[int, Box, Box]]:
        """The windows that meet a box, in their order: number, the common part in the window, and in the box."""
        corner = [side.start for side in box]
        common = [(window, overlap(self.box(window), box)) for window in range(len(self))]
        return [
            (window, seen_from(self.starts[window].tolist(), part), seen_from(corner, part))
            for window, part in common
            if part is not None
        ]

    def around(self, windows: np.ndarray) -> Box:
        """The box around these windows."""
        starts = self.starts[windows]
        return box_at(starts.min(0).tolist(), (starts.max(0) - starts.min(0) + self.size).tolist())

    def cut(self, images: Tensor, examples: np.ndarray, windows: np.ndarray, *, part: Box | None = None) -> Tensor:
        """Of each of these examples of ``(N, C, *spatial)`` one window, ``(B, C, *size)``, a tensor of its own.

        With ``part``, images are cut to that box already: the gradient of each window is as large as what it is cut from.
        """
        corner = [0] * len(self.size) if part is None else [side.start for side in part]
        boxes = [seen_from(corner, self.box(window)) for window in windows.tolist()]
        return torch.cat([images[(slice(n, n + 1), slice(None), *box)] for n, box in zip(examples.tolist(), boxes)])

    def padded(self, windows: Tensor) -> Tensor:
        """``(B, C, *size)`` to what the network sees, ``(B, C, *patch_size)``."""
        if self.size == self.patch_size:
            return windows
        sides = [side for pair in zip(self._before[::-1], self._after[::-1]) for side in pair]
        value = self._padding.value if self._padding.mode == "constant" else None
        return functional.pad(windows, sides, mode=self._padding.mode, value=value)

    def unpadded(self, values: Tensor) -> Tensor:
        """What the network says of the image itself: ``(B, C, *patch_size)`` to ``(B, C, *size)``."""
        return values[(slice(None), slice(None), *self._inner)]

    def count(self, dtype: torch.dtype) -> Tensor:
        """What all windows' weights add up to, window by window, ``(*spatial)``, on the CPU."""
        if dtype not in self._counts:
            weight = self.weight.to(dtype)
            total = torch.zeros(self.spatial, dtype=dtype, device="cpu")
            for window in range(len(self)):
                total[self.box(window)] += weight
            self._counts[dtype] = total
        return self._counts[dtype]

    @cached_property
    def _inner(self) -> tuple[slice, ...]:
        return tuple(slice(before, before + length) for before, length in zip(self._before, self.size))


def _corners(starts: Starts, padded: tuple[int, ...], patch_size: tuple[int, ...]) -> np.ndarray:
    given: Any = starts(padded) if callable(starts) else starts
    corners = np.asarray([list(corner) for corner in given])
    if corners.ndim != 2 or corners.shape[1] != len(padded) or not len(corners) or corners.dtype.kind not in "iu":
        raise ValueError(
            f"starts: expected corners of windows, each of {len(padded)} integers for an image of {padded}, got "
            f"{corners.dtype} {corners.shape}"
        )
    bad = np.flatnonzero(((corners < 0) | (corners + patch_size > padded)).any(1))
    if len(bad):
        raise ValueError(
            f"starts: the window of {patch_size} at {tuple(corners[bad[0]].tolist())} does not lie in an image of {padded}; a callable "
            "gives corners for every shape"
        )
    return corners.astype(np.int64)
