"""Which positions of the tensors that are intervened on can reach a region of interest (RoI) of the model's output at all.

Parts are set to NaN and the logits tell whether NaN arrives in the RoI. NaN survives convolution, normalization, pooling, ReLU
and attention: a part from which it does not arrive has no influence, its effect is exactly 0 and costs no forward. Being wrong
about that would make results wrong, so NaN has to pass through the model where it must (positive control), and large random
values and natural images pasted over everything outside the support must leave the RoI as it is (falsification; gates such as
``where(x > t, a, b)`` swallow NaN). On any doubt everything counts as reaching, which costs time and nothing else.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.memory import fitting
from captum_causalseg.interventions.rounding import relative_tolerance
from captum_causalseg.interventions.units import gather

__all__ = ["Logits", "Support", "find_support"]

logger = logging.getLogger(__name__)

_MASKED = "NaN does not pass through this model"

Logits = Callable[[Sequence[Tensor], np.ndarray], Tensor]
"""``(tensors (B, ...), examples (B,)) -> logits (B, C, *spatial)``: the model's output with these tensors in the place of the
examples' own."""

_Row = tuple[int, Callable[[Sequence[Tensor]], None]]
"""An example, and what changes its tensors ``(C, *spatial)`` in place."""

_Trial = tuple[str, Callable[[int, int], Tensor]]
"""What is pasted: its name, and the values ``(C, *spatial)`` for an example and a tensor."""


@dataclass(frozen=True, eq=False)
class Support:
    """What of each tensor can reach each RoI.

    Attributes:
        masks: per tensor, bool on the CPU, ``(N, R, *spatial of that tensor)``; ``(N, R)`` for tensors without spatial axes.
        n_forwards: images run through the model to find it.
        doubt: why it was switched off (then all masks are True); ``None`` if it holds.

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

    def reaches(self, slot: int, example: int, box: Sequence[slice]) -> np.ndarray:
        """Which RoIs ``(R,)`` some position of ``box`` (a slice per spatial axis) of this tensor can reach."""
        inside = self.masks[slot][example][(slice(None), *box)]
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

    The model must be in evaluation mode and gradients switched off. ``logits`` gets fresh copies, which it may change.

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
    rois, edges = _checked(tensors, rois, stand_ins, block_size)
    prober = _Prober(logits, tensors, rois.numpy(), batch_size)
    try:
        prober.observe()
        _control(prober)
        if guess is not None and _stands(prober, guess, _hardest(_trials(tensors, stand_ins, seed))):
            return Support(tuple(guess), prober.n_forwards, None)
        masks = _bisect(prober)
        if block_size is not None:
            _refine(prober, masks, edges)
        _falsify(prober, masks, _trials(tensors, stand_ins, seed))
    except _Doubt as doubt:
        logger.info("support: switched off, every position counts as reaching the RoI: %s", doubt)
        return Support.everywhere(tensors, rois.shape[1], doubt=str(doubt), n_forwards=prober.n_forwards)
    return Support(tuple(torch.from_numpy(mask) for mask in masks), prober.n_forwards, None)


class _Doubt(Exception):
    """The support cannot be trusted; the message says why."""


class _Prober:
    """Runs the model on changed copies of the examples and compares the RoIs of the output with the plain ones.

    ``rois`` is ``(N, R, *spatial)``, ``shape`` is ``(N, R)``, ``spatial`` each tensor's spatial shape.
    """

    def __init__(self, logits: Logits, tensors: Sequence[Tensor], rois: np.ndarray, batch_size: int) -> None:
        self._logits, self._tensors, self._batch_size = logits, list(tensors), max(1, batch_size)
        self.shape, self.spatial = (len(tensors[0]), rois.shape[1]), [tuple(tensor.shape[2:]) for tensor in tensors]
        self.rois = np.broadcast_to(rois, (self.shape[0], *rois.shape[1:]))
        self.n_forwards = 0
        # Per example: its plain logits (C, P) at the pixels of its first RoI, then of the next, and so on; where in the output
        # these are; where among them each RoI begins; up to where differences in each RoI are rounding.
        self._plain: list[tuple[Tensor, Tensor, np.ndarray, np.ndarray]] = []

    def observe(self) -> None:
        """Keep the plain logits of every example."""
        if not all(tensor.is_floating_point() for tensor in self._tensors):
            raise _Doubt("tensors that are not floating point hold no NaN")
        for n, logits in enumerate(self._outputs([(n, lambda views: None) for n in range(self.shape[0])])):
            rois = self.rois[n].reshape(self.shape[1], -1)
            pixels = torch.from_numpy(np.nonzero(rois)[1]).to(logits.device)
            starts = np.concatenate([[0], rois.sum(1).cumsum()[:-1]])
            values = _single(logits.flatten(1)[:, pixels])
            if not bool(values.isfinite().all()):
                raise _Doubt(f"the logits of example {n} are not finite inside the RoI")
            largest = np.maximum.reduceat(values.abs().amax(0).cpu().numpy(), starts)
            self._plain.append((values, pixels, starts, relative_tolerance([*self._tensors, logits]) * largest))

    def compare(self, rows: Sequence[_Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per row and RoI ``(R,)``: is any logit inside not finite; by how much the others changed, 0 if by rounding only."""
        for (n, _), logits in zip(rows, self._outputs(rows)):
            plain, pixels, starts, tolerance = self._plain[n]
            values = _single(logits.flatten(1)[:, pixels])
            finite = values.isfinite()
            broken = np.logical_or.reduceat((~finite).any(0).cpu().numpy(), starts)
            change = np.maximum.reduceat(torch.where(finite, (values - plain).abs(), 0.0).amax(0).cpu().numpy(), starts)
            yield broken, np.where(change > tolerance, change, 0.0)

    def arrives(self, rows: Sequence[_Row]) -> Iterator[np.ndarray]:
        """Per row, which sets something to NaN, and RoI ``(R,)``: does NaN arrive."""
        for (n, _), (arrived, change) in zip(rows, self.compare(rows)):
            if change.any():
                # Something took NaN for a number; what else it lets pass unnoticed cannot be known.
                raise _Doubt(f"{_MASKED}: it moved finite logits inside an RoI of example {n} by {change.max():.3g}")
            yield arrived

    def _outputs(self, rows: Sequence[_Row]) -> Iterator[Tensor]:
        begin = 0
        while begin < len(rows):
            left, size = rows[begin:], min(self._batch_size, len(rows) - begin)
            try:
                logits, fits = fitting(partial(self._first, left), size, "images")
            except torch.OutOfMemoryError as error:
                raise _Doubt("memory ran out for a single image") from error
            if fits < size:
                self._batch_size = fits
            begin += fits
            self.n_forwards += fits
            yield from logits

    def _first(self, rows: Sequence[_Row], count: int) -> Tensor:
        return self._run(rows[:count])

    def _run(self, rows: Sequence[_Row]) -> Tensor:
        examples = np.array([n for n, _ in rows])
        copies: list[Tensor] = gather(self._tensors, examples)
        for b, (_, edit) in enumerate(rows):
            edit([copy[b] for copy in copies])
        try:
            logits = self._logits(copies, examples).detach()
            got, expected = tuple(logits.shape), (len(rows), *self.rois.shape[2:])
            if len(got) != 1 + len(expected) or (got[0], *got[2:]) != expected:
                raise ValueError(f"logits: expected (B, C, *spatial) with (B, *spatial) {expected}, got {got}")
            return logits
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or len(self._plain) < self.shape[0]:
                raise  # the second: on an example as it is, so no refusal of NaN
            reason = (str(error).strip().splitlines() or [""])[0]
            raise _Doubt(f"the model raised {type(error).__name__} on a changed input: {reason}") from error


def _control(prober: _Prober) -> None:
    """NaN must arrive where it has to; else it means nothing that it does not arrive from elsewhere."""
    claims: list[tuple[_Row, str, list[int]]] = []
    for n, (slot, spatial) in itertools.product(range(prober.shape[0]), enumerate(prober.spatial)):
        claims.append(((n, partial(_set_nan, slot, ())), f"everywhere in tensor {slot}", list(range(prober.shape[1]))))
        for members in _alike([prober.rois[n]]) if spatial == prober.rois.shape[2:] else ():
            pixels = torch.from_numpy(prober.rois[n, members[0]].copy())
            claims.append(((n, partial(_set_nan, slot, (pixels,))), f"on the RoI's own pixels in tensor {slot}", members))
    for ((n, _), where, members), arrived in zip(claims, prober.arrives([row for row, *_ in claims])):
        if not arrived[members].all():
            raise _Doubt(f"{_MASKED}: {where} it does not reach an RoI of example {n}")


def _bisect(prober: _Prober) -> list[np.ndarray]:
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
        rows: list[_Row] = []
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
            raise _Doubt(f"{_MASKED}: from more of tensor {slot} less of it arrives")
        for n, r in np.ndindex(*prober.shape):
            masks[slot][n, r : r + 1][(slice(None), *map(slice, start[n, r], stop[n, r]))] = True
    return masks


def _refine(prober: _Prober, masks: list[np.ndarray], edges: Sequence[tuple[int, ...]]) -> None:
    """Take the blocks from which no NaN arrives out of the masks, in place."""
    rows: list[_Row] = []
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


def _falsify(prober: _Prober, masks: Sequence[np.ndarray], trials: Sequence[_Trial]) -> None:
    """Whatever is pasted over everything outside the support must leave the RoI as it is."""
    claims: list[tuple[_Row, str, list[int]]] = []
    for n in range(prober.shape[0]):
        for members in _alike([mask[n] for mask in masks]):
            inside = [torch.from_numpy(mask)[n, members[0]] for mask in masks]
            if not all(bool(mask.all()) for mask in inside):
                claims += [((n, partial(_paste, inside, partial(values, n))), name, members) for name, values in trials]
    for ((n, _), name, members), (broken, change) in zip(claims, prober.compare([row for row, *_ in claims])):
        if broken[members].any() or change[members].any():
            by = "to no finite value" if broken[members].any() else f"by {change[members].max():.3g}"
            raise _Doubt(f"with {name} outside the support, logits inside an RoI of example {n} moved {by}")


def _stands(prober: _Prober, guess: Sequence[Tensor], trials: Sequence[_Trial]) -> bool:
    """Whether a guess passes the falsification; that it does not says nothing of the model."""
    try:
        _falsify(prober, [mask.numpy() for mask in guess], trials)
    except _Doubt:
        return False
    return True


def _trials(tensors: Sequence[Tensor], stand_ins: Sequence[Sequence[Tensor]], seed: int) -> list[_Trial]:
    """All but the first are finite in the tensors' type; large is relative to the example's largest absolute value."""

    def constant(factor: float, tint: int, n: int, slot: int) -> Tensor:
        image = tensors[slot][n]
        amplitude, largest = _amplitude(image)
        # Equal constants in all channels and tensors would not be seen by a difference of them.
        share = np.random.default_rng((seed, tint, n, slot)).uniform(-1, 1, (len(image), *(1,) * (image.ndim - 1)))
        return torch.from_numpy((share if tint else np.ones_like(share)) * np.clip(factor * amplitude, -largest, largest))

    def noise(factor: int, n: int, slot: int) -> Tensor:
        image = tensors[slot][n]
        amplitude, largest = _amplitude(image)
        mean, scale = 0.0, factor * amplitude
        if factor == 0 and (finite := _single(image[image.isfinite()])).numel():
            mean, scale = float(finite.mean()), float(finite.std(correction=0))
        drawn = np.random.default_rng((seed, factor, n, slot)).standard_normal(tuple(image.shape))
        return torch.from_numpy(drawn).mul_(scale).add_(mean).clamp_(-largest, largest)

    natural = list(stand_ins)
    if not natural:
        natural.append([t.flip(list(range(1, t.ndim))) for t in tensors])
        natural.append([t.roll([length // 2 for length in t.shape[1:]], list(range(1, t.ndim))) for t in tensors])
        natural += [[t.roll(1, 0) for t in tensors]] if len(tensors[0]) > 1 else []
    given = [partial(lambda values, n, slot: values[slot][n], values) for values in natural]
    trials: list[_Trial] = [("NaN", partial(constant, torch.nan, 0)), ("noise like the image", partial(noise, 0))]
    trials += [(f"natural stand-in {i}", values) for i, values in enumerate(given)]
    trials += [(f"noise ({f} times the largest value)", partial(noise, f)) for f in (10, 1000)]
    trials += [(f"{f} times the largest value", partial(constant, f, 0)) for f in (1, -1, 1000, -1000)]
    return trials + [(f"a constant per channel, number {i}", partial(constant, 1000, i)) for i in (1, 2)]


def _hardest(trials: Sequence[_Trial]) -> list[_Trial]:
    """NaN, natural stand-ins, and the largest values: what has been through all trials on a part of the image needs no more."""
    return [
        trial
        for trial in trials
        if trial[0] == "NaN" or "stand-in" in trial[0] or "(1000" in trial[0] or "number 1" in trial[0]
    ]


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


def _amplitude(image: Tensor) -> tuple[float, float]:
    """The largest absolute value, 1 if that is 0, and the largest that the type can hold."""
    values = _single(torch.where(image.isfinite(), image, 0.0))
    return float(values.abs().max()) or 1.0, torch.finfo(image.dtype).max


def _single(values: Tensor) -> Tensor:
    """At least single precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


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
