"""Units of the inputs: integer feature masks, and where each unit lies in each input."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["Piece", "Units"]


@dataclass(frozen=True)
class Piece:
    """The part of a unit that lies in one input.

    Args:
        slot: which input.
        channels: which of its channels.
        box: the bounding box over its spatial axes.
        mask: which elements of the box belong to the unit, ``(channels or 1, *box)``; ``None`` for all of them.
    """

    slot: int
    channels: slice
    box: tuple[slice, ...]
    mask: Tensor | None


class Units:
    """The units of a batch, from feature masks with Captum's meaning.

    Args:
        masks: per tensor, integer ids that can be broadcast to it, ``(N or 1, C or 1, ...)``; the same id in several tensors is
            one unit.
        shapes: the tensors' shapes, ``(N, C, *spatial)``.

    Attributes:
        ids: ``(U,)`` all ids, ascending.
    """

    def __init__(self, masks: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> None:
        self.masks = tuple(masks)
        self.shapes = [tuple(shape) for shape in shapes]
        self.n_examples = self.shapes[0][0]
        self.ids: np.ndarray = np.unique(np.concatenate([np.unique(mask.numpy()) for mask in self.masks]))
        self._labels = [np.searchsorted(self.ids, mask.numpy()) + 1 for mask in self.masks]
        self._found = [
            [ndimage.find_objects(example, max_label=len(self.ids)) for example in labels] for labels in self._labels
        ]
        self._pieces: dict[tuple[int, int], list[Piece]] = {}
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @property
    def shared(self) -> bool:
        """Whether all examples have the same units."""
        return all(len(labels) == 1 for labels in self._labels)

    @property
    def present(self) -> np.ndarray:
        """``(N, U)``: which example has which unit."""
        if self.shared:
            return np.ones((self.n_examples, len(self)), dtype=bool)
        return np.array([[bool(self.pieces(n, u)) for u in range(len(self))] for n in range(self.n_examples)])

    def __len__(self) -> int:
        return len(self.ids)

    def pieces(self, example: int, unit: int, slot: int | None = None) -> list[Piece]:
        """Where the unit lies, input by input (or in one of them); empty if this example does not have it."""
        key = (0 if self.shared else example, unit)
        if key not in self._pieces:
            self._pieces[key] = [
                piece for slot in range(len(self.masks)) if (piece := self._piece(slot, example, unit)) is not None
            ]
        found = self._pieces[key]
        return found if slot is None else [piece for piece in found if piece.slot == slot]

    def boxes(
        self, slot: int, examples: np.ndarray, which: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the rows ``(B,)`` whose unit lies in this input: their numbers, kinds, corners and sizes ``(b, d)``.

        Units of one kind differ in place and size only; an irregular one, or one of some channels, is of a kind of its own.
        """
        kinds, corners, sizes = self._layout(slot)
        at = (examples if len(kinds) > 1 else np.zeros_like(examples)), which
        rows = np.flatnonzero(kinds[at] >= 0)
        at = at[0][rows], at[1][rows]
        return rows, kinds[at], corners[at], sizes[at]

    def _layout(self, slot: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kinds ``(N or 1, U)`` (-1: not in this input), corners and sizes ``(N or 1, U, d)`` of all units."""
        if slot not in self._layouts:
            n, d = (1 if self.shared else self.n_examples), len(self.shapes[slot]) - 2
            kinds = np.full((n, len(self)), -1, dtype=np.int64)
            corners, sizes = (np.zeros((n, len(self), d), dtype=np.int64) for _ in range(2))
            for example, unit in np.ndindex(n, len(self)):
                for piece in self.pieces(example, unit, slot):
                    plain = piece.mask is None and piece.channels == slice(None)
                    kinds[example, unit] = 0 if plain else 1 + example * len(self) + unit
                    corners[example, unit] = [side.start for side in piece.box]
                    sizes[example, unit] = [side.stop - side.start for side in piece.box]
            self._layouts[slot] = kinds, corners, sizes
        return self._layouts[slot]

    def touching(self, slot: int, example: int, mask: Tensor) -> np.ndarray:
        """Which units ``(U,)`` have an element where ``mask`` ``(*spatial)`` of this input holds."""
        labels = self._labels[slot][example if len(self._labels[slot]) > 1 else 0]
        touched = np.zeros(len(self.ids) + 1, dtype=bool)
        full = np.broadcast_to(labels, (len(labels), *self.shapes[slot][2:]))
        touched[full[:, mask.cpu().numpy()]] = True
        return touched[1:]

    def _piece(self, slot: int, example: int, unit: int) -> Piece | None:
        which = example if len(self._labels[slot]) > 1 else 0
        found = self._found[slot][which][unit]
        if found is None:
            return None
        channels, *box = found
        inside = self._labels[slot][which][found] == unit + 1
        # An axis of length 1 in the mask stands for all of the tensor's.
        lengths = self._labels[slot].shape
        if lengths[1] == 1 or channels == slice(0, lengths[1]):
            channels = slice(None)
        whole = tuple(slice(0, n) if m == 1 else side for side, m, n in zip(box, lengths[2:], self.shapes[slot][2:]))
        return Piece(slot=slot, channels=channels, box=whole, mask=None if inside.all() else torch.from_numpy(inside))
