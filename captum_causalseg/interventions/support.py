"""Which positions of the tensors that are intervened on can reach a region of interest (RoI) of the model's output at all.

Parts are set to NaN and the logits tell whether NaN arrives in the RoI. NaN survives convolution, normalization, pooling, ReLU
and attention: a part from which it does not arrive has no influence, its effect is exactly 0 and costs no forward. Being wrong
about that would make results wrong, so NaN has to pass through the model where it must (positive control), and large random
values and natural images pasted over everything outside the support must leave the RoI as it is (falsification; gates such as
``where(x > t, a, b)`` swallow NaN). On any doubt everything counts as reaching, which costs time and nothing else.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.interventions.support_probes import MASKED, Logits, Prober, Row, Unverified
from captum_causalseg.interventions.support_trials import Trial, hardest, trials_of

__all__ = ["Logits", "Support", "arrives_from", "find_support", "most_probes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Support:
    """What of each tensor can reach each RoI.

    Attributes:
        masks: per tensor, bool on the CPU, ``(N, R, *spatial of that tensor)``; ``(N, R)`` for tensors without spatial axes.
        n_forwards: images run through the model to find it.
        doubt: why it could not be verified (then all masks are True); ``None`` if it holds.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, causal_support, regions
        >>> model, roi = torch.nn.Conv2d(1, 2, 5, padding=2), regions.box((32, 32), start=12, size=8)
        >>> target = SegmentationTarget(model, roi=roi, metric="logit_sum")
        >>> support = causal_support(target, torch.rand(1, 1, 32, 32))
        >>> support.masks[0].shape, support.doubt
        (torch.Size([1, 1, 32, 32]), None)
        >>> support.hull(0)[0, 0].tolist()  # the RoI and two pixels around it
        [[10, 22], [10, 22]]
        >>> support.reaches(0, 0, (slice(0, 8), slice(0, 8)))
        array([False])
    """

    masks: tuple[Tensor, ...]
    n_forwards: int
    doubt: str | None

    @classmethod
    def everywhere(cls, tensors: Sequence[Tensor], n_rois: int, *, doubt: str | None = None, n_forwards: int = 0) -> "Support":
        """Everything reaches everything, for tensors ``(N, C, *spatial)``."""
        masks = (torch.ones((t.shape[0], n_rois, *t.shape[2:]), dtype=torch.bool, device="cpu") for t in tensors)
        return cls(tuple(masks), n_forwards, doubt)

    def reaches(self, slot: int, example: int, box: Sequence[slice], mask: Tensor | None = None) -> np.ndarray:
        """Which RoIs ``(R,)`` some position of ``box`` (a slice per spatial axis) of this tensor can reach; of ``mask`` in it, if given."""
        inside = self.masks[slot][example][(slice(None), *box)]
        inside = inside if mask is None else inside & mask
        reached: np.ndarray = inside.reshape(len(inside), -1).any(1).numpy()
        return reached

    def hull(self, slot: int) -> np.ndarray:
        """Bounding boxes ``(N, R, d, 2)``: start and stop along each spatial axis; 0 and 0 where nothing reaches the RoI."""
        return _hull(self.masks[slot].numpy())


def find_support(
    logits: Logits,
    tensors: Sequence[Tensor],
    rois: Tensor,
    *,
    stand_ins: Sequence[Sequence[Tensor]] = (),
    block_size: int | tuple[int, ...] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    guess: Sequence[Tensor] | None = None,
) -> Support:
    """Find which positions of ``tensors`` can reach each RoI: a box per example and RoI, or the blocks of it that do.

    The model must be in evaluation mode and gradients off. ``logits`` gets fresh copies, which it may change.

    Args:
        logits: the model's output with other tensors in the place of the examples' own.
        tensors: what is intervened on, ``(N, C, *spatial)`` each, of any shapes; the axes from the third on count as spatial.
        rois: bool ``(N or 1, R, *spatial)`` over the spatial shape of the logits.
        stand_ins: natural replacements, each a sequence of tensors shaped like ``tensors``; by default made from ``tensors``.
        block_size: edge of blocks (one for all axes, or one per axis) that are probed one by one inside the box, to leave out
            those that do not reach the RoI; ``None`` for the box.
        batch_size: images per forward; halved whenever memory runs out.
        seed: of the random values, not negative.
        guess: masks shaped like the result's, from a smaller part of the image. If NaN everywhere outside them does not arrive, and
            the hardest of the trials leave the RoI as it is, they are the answer; if not, the search is made.

    Returns:
        The support; after any doubt (one line in the log at level INFO) it is everything.

    Raises:
        ValueError: shapes that do not fit, an empty RoI.
        Exception: what the model raises on the examples as they are; what it raises on changed ones is a doubt.
    """
    rois, edges = _checked(tensors, rois, stand_ins, block_size=block_size)
    prober = Prober(logits=logits, tensors=tensors, rois=rois.numpy(), batch_size=batch_size)
    try:
        prober.observe()
        _control(prober)
        if guess is not None and _holds(prober, guess, hardest(trials_of(tensors, stand_ins, seed))):
            return Support(tuple(guess), prober.n_forwards, None)
        masks = _bisect(prober)
        if block_size is not None:
            _refine(prober, masks, edges)
        _falsify(prober, masks, trials_of(tensors, stand_ins, seed))
    except Unverified as reason:
        logger.info("support: disabled, every position counts as reaching the RoI: %s", reason)
        return Support.everywhere(tensors, rois.shape[1], doubt=str(reason), n_forwards=prober.n_forwards)
    return Support(tuple(torch.from_numpy(mask) for mask in masks), prober.n_forwards, None)


def arrives_from(
    logits: Logits, tensors: Sequence[Tensor], rois: Tensor, *, sides: Sequence[tuple[int, int, int]], batch_size: int = 16
) -> tuple[bool | None, int]:
    """Whether NaN arrives in an RoI from the outermost positions of any of these sides, and how many images were run: few, where a search takes many.

    Args:
        logits, tensors, rois, batch_size: as of :func:`find_support`.
        sides: example, spatial axis, and 0 for its beginning or 1 for its end; of every tensor that has this axis.

    Returns:
        ``None`` instead of yes or no where that means nothing: NaN does not pass through the model, or moves finite values.
    """
    rois, _ = _checked(tensors, rois, (), block_size=None)
    prober = Prober(logits=logits, tensors=tensors, rois=rois.numpy(), batch_size=batch_size)
    rows: list[Row] = []
    for slot, spatial in enumerate(prober.spatial):
        for n, axis, end in sides:
            if axis < len(spatial):
                slab = slice(0, 1) if end == 0 else slice(spatial[axis] - 1, None)
                rows.append((n, partial(_set_nan, slot, (*(slice(None),) * axis, slab))))
    try:
        prober.observe()
        found = [bool(arrived.any()) for arrived in prober.arrives(rows)]
    except Unverified:
        return None, prober.n_forwards
    return any(found), prober.n_forwards


def most_probes(tensors: Sequence[Tensor]) -> int:
    """How many images :func:`find_support` may run for the boxes of these tensors, where the RoIs have edges in common."""
    trials = len(trials_of(tensors, (), seed=0))
    per_example = 1 + 2 * len(tensors) + trials
    for tensor in tensors:
        per_example += sum(2 * (1 + math.ceil(math.log2(max(length, 1)))) for length in tensor.shape[2:])
    return len(tensors[0]) * per_example


def _control(prober: Prober) -> None:
    """NaN must arrive where it has to; else it means nothing that it does not arrive from elsewhere."""
    claims: list[tuple[Row, str, list[int]]] = []
    for n, (slot, spatial) in itertools.product(range(prober.shape[0]), enumerate(prober.spatial)):
        claims.append(((n, partial(_set_nan, slot, ())), f"everywhere in tensor {slot}", list(range(prober.shape[1]))))
        for members in _alike([prober.rois[n]]) if spatial == prober.rois.shape[2:] else ():
            pixels = torch.from_numpy(prober.rois[n, members[0]].copy())
            claims.append(((n, partial(_set_nan, slot, (pixels,))), f"on the RoI's own pixels in tensor {slot}", members))
    for ((n, _), where, members), arrived in zip(claims, prober.arrives([row for row, *_ in claims])):
        if not arrived[members].all():
            raise Unverified(f"{MASKED}: {where} it does not reach an RoI of example {n}")


def _bisect(prober: Prober) -> list[np.ndarray]:
    """Masks ``(N, R, *spatial)`` of the bounding box in every tensor.

    All searches (example, RoI, tensor, axis, side) go on together; a probe for one of them tells all RoIs of the example.
    """
    lengths = [np.array(spatial, dtype=np.int64) for spatial in prober.spatial]
    # Widths of slabs along each side, (N, R, d, 2) per tensor: from these NaN does not arrive; from those it does (the positive
    # control: all of the tensor, or all pixels of the RoI).
    silent = [np.zeros((*prober.shape, len(length), 2), dtype=np.int64) for length in lengths]
    heard = [np.zeros_like(low) + length[:, None] for low, length in zip(silent, lengths)]
    for slot, spatial in enumerate(prober.spatial):
        if spatial == prober.rois.shape[2:]:
            hull = _hull(prober.rois)
            heard[slot] = np.stack([hull[..., 1], lengths[slot] - hull[..., 0]], -1)
    # The outermost slices first: a model with global support (instance norm, attention) is done with these.
    first = True
    while True:
        wanted: set[tuple[int, ...]] = set()
        for slot, (low, high) in enumerate(zip(silent, heard)):
            for n, r, axis, side in np.argwhere(high - low > 1).tolist():
                middle = int(low[n, r, axis, side] + high[n, r, axis, side]) // 2
                wanted.add((slot, n, axis, side, 1 if first else middle))
        if not wanted:
            break
        probes = sorted(wanted)
        rows: list[Row] = []
        for slot, n, axis, side, width in probes:
            slab = slice(0, width) if side == 0 else slice(prober.spatial[slot][axis] - width, None)
            rows.append((n, partial(_set_nan, slot, (*(slice(None),) * axis, slab))))
        for (slot, n, axis, side, width), arrived in zip(probes, prober.arrives(rows)):
            low, high = silent[slot][n, :, axis, side], heard[slot][n, :, axis, side]
            high[arrived] = np.minimum(high[arrived], width)
            low[~arrived] = np.maximum(low[~arrived], width)
        first = False
    masks = [np.zeros((*prober.shape, *spatial), dtype=bool) for spatial in prober.spatial]
    for slot, (low, high, length) in enumerate(zip(silent, heard, lengths)):
        start, stop = low[..., 0], length - low[..., 1]
        if (low >= high).any() or (start >= stop).any():
            raise Unverified(f"{MASKED}: from more of tensor {slot} less of it arrives")
        for n, r in np.ndindex(*prober.shape):
            masks[slot][n, r : r + 1][(slice(None), *map(slice, start[n, r], stop[n, r]))] = True
    return masks


def _refine(prober: Prober, masks: list[np.ndarray], edges: Sequence[tuple[int, ...]]) -> None:
    """Take the blocks from which no NaN arrives out of the masks, in place."""
    rows: list[Row] = []
    parts: list[np.ndarray] = []
    for slot, spatial in enumerate(prober.spatial):
        cuts = [[slice(i, i + edge) for i in range(0, length, edge)] for length, edge in zip(spatial, edges[slot])]
        for n, box in itertools.product(range(prober.shape[0]), itertools.product(*cuts) if spatial else ()):
            part = masks[slot][n][(slice(None), *box)]
            if part.any():
                rows.append((n, partial(_set_nan, slot, box)))
                parts.append(part)
    for part, arrived in zip(parts, prober.arrives(rows)):
        part[~arrived] = False


def _falsify(prober: Prober, masks: Sequence[np.ndarray], trials: Sequence[Trial]) -> None:
    """Whatever is pasted over everything outside the support must leave the RoI as it is."""
    claims: list[tuple[Row, str, list[int]]] = []
    for n in range(prober.shape[0]):
        for members in _alike([mask[n] for mask in masks]):
            inside = [torch.from_numpy(mask)[n, members[0]] for mask in masks]
            if not all(bool(mask.all()) for mask in inside):
                claims += [((n, partial(_paste, inside, partial(values, n))), name, members) for name, values in trials]
    for ((n, _), name, members), (broken, change) in zip(claims, prober.compare([row for row, *_ in claims])):
        if broken[members].any() or change[members].any():
            by = "to no finite value" if broken[members].any() else f"by {change[members].max():.3g}"
            raise Unverified(f"with {name} outside the support, logits inside an RoI of example {n} moved {by}")


def _holds(prober: Prober, guess: Sequence[Tensor], trials: Sequence[Trial]) -> bool:
    """Whether a guess passes the falsification; that it does not says nothing of the model."""
    try:
        _falsify(prober, [mask.numpy() for mask in guess], trials)
    except Unverified:
        return False
    return True


def _set_nan(slot: int, where: tuple[Any, ...], views: Sequence[Tensor]) -> None:
    """``where``: an index into the spatial axes."""
    views[slot][(slice(None), *where)] = torch.nan


def _paste(inside: Sequence[Tensor], values: Callable[[int], Tensor], views: Sequence[Tensor]) -> None:
    for slot, (mask, view) in enumerate(zip(inside, views)):
        if not bool(mask.all()):
            view.copy_(torch.where(mask.to(view.device), view, values(slot).to(device=view.device, dtype=view.dtype)))


def _hull(masks: np.ndarray) -> np.ndarray:
    """Bounding boxes ``(N, R, d, 2)`` of masks ``(N, R, *spatial)``; 0 and 0 for empty ones."""
    boxes = np.zeros((*masks.shape[:2], masks.ndim - 2, 2), dtype=np.int64)
    for axis in range(2, masks.ndim):
        line: np.ndarray = np.asarray(masks.any(tuple(i for i in range(2, masks.ndim) if i != axis)))
        boxes[:, :, axis - 2, 0] = line.argmax(-1)
        boxes[:, :, axis - 2, 1] = np.where(line.any(-1), masks.shape[axis] - line[..., ::-1].argmax(-1), 0)
    return boxes


def _alike(masks: Sequence[np.ndarray]) -> list[list[int]]:
    """The RoIs in groups that have the same entry in each of the masks ``(R, ...)``."""
    groups: dict[bytes, list[int]] = {}
    for r in range(len(masks[0])):
        groups.setdefault(b"".join(np.packbits(mask[r]).tobytes() for mask in masks), []).append(r)
    return list(groups.values())


def _checked(
    tensors: Sequence[Tensor], rois: Tensor, stand_ins: Sequence[Sequence[Tensor]], block_size: int | tuple[int, ...] | None
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The RoIs on the CPU and a block's edges in each tensor (none without spatial axes), if everything fits together."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if not shapes or any(len(shape) < 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"tensors: expected one or more of shape (N, C, *spatial) with the same N, got {shapes}")
    n, got = shapes[0][0], f"{rois.dtype} {tuple(rois.shape)}"
    if rois.dtype != torch.bool or rois.ndim < 3 or rois.shape[0] not in (1, n) or not bool(rois.flatten(2).any(2).all()):
        raise ValueError(f"rois: expected bool (N or 1, R, *spatial) with N={n}, none empty, got {got}")
    if any([tuple(tensor.shape) for tensor in stand_in] != shapes for stand_in in stand_ins):
        raise ValueError(f"stand_ins: expected tensors of shapes {shapes} in each")
    edges = [(block_size,) * len(shape[2:]) if isinstance(block_size, int) else block_size or () for shape in shapes]
    edges = [edge if len(shape) > 2 else () for edge, shape in zip(edges, shapes)]
    if block_size is not None and any(len(e) != len(s[2:]) or min(e, default=1) < 1 for e, s in zip(edges, shapes)):
        raise ValueError(f"block_size: expected a positive edge, or one per spatial axis of every tensor, got {block_size}")
    return rois.detach().cpu(), edges
