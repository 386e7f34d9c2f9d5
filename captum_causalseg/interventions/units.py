"""Units of the inputs: integer feature masks, and where each unit lies in each input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg.boxes import box_at, crop
from captum_causalseg.donors import BoundDonors
from captum_causalseg.donors.source import Recipients
from captum_causalseg.engine.interventions import Interventions

__all__ = ["Frame", "Piece", "Units", "gather", "paste"]


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


class Frame:
    """A window of each example: of one size, at its own place.

    Args:
        starts: ``(N, d)`` first index along the spatial axes.
        size: ``(d,)``.
    """

    def __init__(self, starts: np.ndarray, size: Sequence[int]) -> None:
        self.starts = np.asarray(starts, dtype=np.int64)
        self.size = tuple(int(length) for length in size)

    def crop(self, values: Tensor) -> Tensor:
        """``(N or 1, C, *spatial)`` to ``(N or 1, C, *size)``, a tensor of its own."""
        return crop(values, self.starts, self.size).clone()

    def uncrop(self, values: Tensor, spatial: Sequence[int], examples: Sequence[int] | None = None) -> Tensor:
        """``(B, C, *size)`` of these examples (or of all) to ``(B, C, *spatial)``, 0 outside the window."""
        whole = values.new_zeros((*values.shape[:2], *spatial))
        starts = self.starts if examples is None else self.starts[list(examples)]
        for held, one, corner in zip(values, whole, starts.tolist()):
            one[(slice(None), *box_at(corner, self.size))] = held
        return whole

    def frames(self, tensors: Sequence[Tensor], spatial: torch.Size) -> "list[Frame | None] | None":
        """This window for every tensor that is an image of this spatial shape; ``None`` if one is an image of another."""
        if any(x.ndim > 2 and x.shape[2:] != spatial for x in tensors):
            return None
        return [self if x.ndim > 2 else None for x in tensors]

    def crop_images(self, values: Sequence[Any], spatial: torch.Size) -> list[Any]:
        """Those among the values that are image batches of this spatial shape cut to the window, the others as they are."""
        return [self.crop(v) if isinstance(v, Tensor) and v.ndim > 2 and v.shape[2:] == spatial else v for v in values]


def paste(
    tensors: Sequence[Tensor],
    units: "Units",
    sources: Sequence[BoundDonors],
    interventions: Interventions,
    frames: Sequence[Frame | None] | None = None,
    *,
    first_slot: int = 0,
) -> None:
    """Make the interventions in the rows of the tensors, in place.

    Replacements are handled together where their units have the same size (or, irregular units, where they are the same unit).

    Args:
        tensors: ``(B, C, *spatial)``.
        units: the parts.
        sources: per slot.
        interventions: which units of which examples, and by which donors.
        frames: per slot, which window of it is held; what a unit has outside it is left out.
        first_slot: of the first of the tensors, which may be some of all only.
    """
    for slot, tensor in enumerate(tensors, start=first_slot):
        frame = None if frames is None else frames[slot]
        examples = interventions.example[interventions.row]
        for group in _alike(units, slot, frame=frame, examples=examples, which=interventions.unit):
            given = Recipients(
                examples=examples[group.rows],
                corners=group.corners,
                size=group.size,
                channels=group.channels,
                mask=group.mask,
            )
            donors = sources[slot].values(given, interventions.donor[group.rows, slot])
            _paste_alike(tensor, group, donors, onto=interventions.row[group.rows])


@dataclass(frozen=True)
class _Group:
    """Rows whose units can be pasted at once.

    Args:
        rows: ``(b,)``.
        corners: ``(b, d)`` of the units' boxes in the whole tensor.
        size: of the boxes.
        channels: of the units.
        mask: of irregular units, ``(channels or 1, *size)``.
        place: ``(b, d)`` where in the tensor at hand the part that lies in it begins.
        part: which part of the box that is.
    """

    rows: np.ndarray
    corners: np.ndarray
    size: tuple[int, ...]
    channels: slice
    mask: Tensor | None
    place: np.ndarray
    part: tuple[slice, ...]


def _alike(units: "Units", slot: int, frame: Frame | None, examples: np.ndarray, which: np.ndarray) -> Iterator[_Group]:
    rows, kinds, corners, sizes = units.boxes(slot, examples, which)
    if not len(rows):
        return
    place = corners if frame is None else corners - frame.starts[examples[rows]]
    first = np.maximum(-place, 0)
    last = sizes if frame is None else np.minimum(sizes, np.array(frame.size) - place)
    rows_by_key = np.concatenate([kinds[:, None], first, last, sizes], axis=1)
    keys, group_of = np.unique(rows_by_key, axis=0, return_inverse=True)
    for index, key in enumerate(keys):
        found = np.flatnonzero(group_of.ravel() == index)
        begin, end, size = np.split(key[1:], 3)
        if (begin >= end).any():
            continue
        piece = units.pieces(int(examples[rows[found[0]]]), int(which[rows[found[0]]]), slot)[0]
        yield _Group(
            rows=rows[found],
            corners=corners[found],
            size=tuple(size.tolist()),
            channels=piece.channels,
            mask=piece.mask,
            place=(place + first)[found],
            part=tuple(slice(a, b) for a, b in zip(begin.tolist(), end.tolist())),
        )


def _paste_alike(tensor: Tensor, group: _Group, values: Tensor, onto: np.ndarray) -> None:
    """Values ``(b, channels, *size)`` of a group's replacements into the rows ``onto`` ``(b,)`` of the tensor."""
    values = values[(slice(None), slice(None), *group.part)]
    device, d = tensor.device, len(group.size)
    # Not to the CPU: there the copy would be read before it is complete.
    values = values.to(device=device, dtype=tensor.dtype, non_blocking=tensor.is_cuda)
    rows = torch.from_numpy(onto).to(device).view(-1, *(1,) * (d + 1))
    channels = torch.arange(tensor.shape[1], device=device)[group.channels].view(1, -1, *(1,) * d)
    index = [rows, channels]
    for axis, side in enumerate(group.part):
        steps = torch.from_numpy(group.place[:, axis : axis + 1] + np.arange(side.stop - side.start)).to(device)
        index.append(steps.view(len(steps), 1, *(1,) * axis, -1, *(1,) * (d - axis - 1)))
    if group.mask is not None:
        # An axis of length 1 in the mask stands for all of the box's.
        part = (slice(None) if length == 1 else side for length, side in zip(group.mask.shape[1:], group.part))
        mask = group.mask[(slice(None), *part)].to(device)
        values = torch.where(mask, values, tensor[tuple(index)])
    shape = (len(group.rows), channels.shape[1], *values.shape[2:])
    tensor.index_put_(tuple(index), values.expand(shape))


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
