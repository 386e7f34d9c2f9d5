"""Donors pasted into copies of the tensors: all replacements of a batch at once, those of like units together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.donors import BoundDonors
from captum_causalseg.donors.source import Recipients
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.units import Units

__all__ = ["paste"]


def paste(
    tensors: Sequence[Tensor],
    units: Units,
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
        for group in _alike(units, slot, frame=frame, interventions=interventions):
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


def _alike(units: Units, slot: int, frame: Frame | None, interventions: Interventions) -> Iterator[_Group]:
    examples, which = interventions.example[interventions.row], interventions.unit
    rows, kinds, corners, sizes = units.boxes(slot, examples, which)
    if not len(rows):
        return
    place = corners if frame is None else corners - frame.starts_of(examples[rows], interventions.row[rows])
    first = np.maximum(-place, 0)
    last = sizes if frame is None else np.minimum(sizes, np.array(frame.size) - place)
    described = np.concatenate([kinds[:, None], first, last, sizes], axis=1)
    for found in _equal_rows(described):
        begin, end, size = np.split(described[found[0], 1:], 3)
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


def _equal_rows(values: np.ndarray) -> list[np.ndarray]:
    """The numbers of equal rows of ``(P, c)`` integers, each in ascending order; the smallest rows first."""
    least = values.min(0)
    sides = values.max(0) - least + 1
    if math.prod(sides.tolist()) < 2**62:
        # As one number each, which is sorted much sooner than rows.
        _, group_of = np.unique(np.ravel_multi_index(tuple((values - least).T), tuple(sides)), return_inverse=True)
    else:
        _, group_of = np.unique(values, axis=0, return_inverse=True)
    group_of = group_of.ravel()
    order = np.argsort(group_of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)


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
