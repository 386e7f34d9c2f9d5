"""Units of the inputs: integer feature masks, and where each unit lies in each input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg.donors import BoundDonors

__all__ = ["Piece", "Units", "gather", "paste"]


def gather(values: Sequence[Any], examples: np.ndarray) -> list[Any]:
    """Fresh copies of the tensors' entries for these examples; whatever is no tensor ``(N, ...)`` as it is.

    What a model does to them in place stays there.
    """

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 0:
            return value.detach().clone()
        return value.detach().index_select(0, torch.as_tensor(examples, device=value.device))

    return [one(value) for value in values]


def paste(
    tensors: Sequence[Tensor],
    units: "Units",
    sources: Sequence[BoundDonors],
    examples: np.ndarray,
    which: np.ndarray,
    donors: np.ndarray,
) -> None:
    """Replace, in row ``b`` of the tensors, unit ``which[b]`` of example ``examples[b]`` by its donors ``donors[b]``, in place."""
    for b, (example, unit) in enumerate(zip(examples.tolist(), which.tolist())):
        for piece in units.pieces(example, unit):
            value = sources[piece.slot].read(example, piece.box, int(donors[b, piece.slot]))
            if value.shape[0] > 1:
                value = value[piece.channels]
            place = tensors[piece.slot][b][(piece.channels, *piece.box)]
            # Not to the CPU: there the copy would be read before it is complete.
            value = value.to(device=place.device, dtype=place.dtype, non_blocking=place.is_cuda)
            if piece.mask is None:
                place.copy_(value)
            else:
                place.copy_(torch.where(piece.mask.to(place.device, non_blocking=True), value, place))


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

    def pieces(self, example: int, unit: int) -> list[Piece]:
        """Where the unit lies, input by input; empty if this example does not have it."""
        key = (0 if self.shared else example, unit)
        if key not in self._pieces:
            self._pieces[key] = [
                piece for slot in range(len(self.masks)) if (piece := self._piece(slot, example, unit)) is not None
            ]
        return self._pieces[key]

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
        if lengths[1] == 1:
            channels = slice(None)
        whole = tuple(slice(0, n) if m == 1 else side for side, m, n in zip(box, lengths[2:], self.shapes[slot][2:]))
        return Piece(slot, channels, whole, None if inside.all() else torch.from_numpy(inside))
