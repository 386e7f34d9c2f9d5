"""Runs of a model on changed copies of examples, whose regions of interest are compared with the plain ones."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.memory import fitting
from captum_causalseg.interventions.frames import gather
from captum_causalseg.target.rounding import relative_tolerance

__all__ = ["MASKED", "Logits", "Prober", "Row", "Unverified", "at_least_single"]

MASKED = "NaN does not pass through this model"

Logits = Callable[[Sequence[Tensor], np.ndarray], Tensor]
"""``(tensors (B, ...), examples (B,)) -> logits (B, C, *spatial)``: the model's output with these tensors in the place of the
examples' own."""

Row = tuple[int, Callable[[Sequence[Tensor]], None]]
"""An example, and what changes its tensors ``(C, *spatial)`` in place."""


class Unverified(Exception):
    """The support cannot be trusted; the message says why."""


class Prober:
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
            raise Unverified("tensors that are not floating point hold no NaN")
        for n, logits in enumerate(self._outputs([(n, lambda views: None) for n in range(self.shape[0])])):
            rois = self.rois[n].reshape(self.shape[1], -1)
            pixels = torch.from_numpy(np.nonzero(rois)[1]).to(logits.device)
            starts = np.concatenate([[0], rois.sum(1).cumsum()[:-1]])
            values = at_least_single(logits.flatten(1)[:, pixels])
            if not bool(values.isfinite().all()):
                raise Unverified(f"the logits of example {n} are not finite inside the RoI")
            largest = np.maximum.reduceat(values.abs().amax(0).cpu().numpy(), starts)
            self._plain.append((values, pixels, starts, relative_tolerance([*self._tensors, logits]) * largest))

    def compare(self, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per row and RoI ``(R,)``: is any logit inside not finite; by how much the others changed, 0 if by rounding only."""
        for (n, _), logits in zip(rows, self._outputs(rows)):
            plain, pixels, starts, tolerance = self._plain[n]
            values = at_least_single(logits.flatten(1)[:, pixels])
            finite = values.isfinite()
            broken = np.logical_or.reduceat((~finite).any(0).cpu().numpy(), starts)
            change = np.maximum.reduceat(torch.where(finite, (values - plain).abs(), 0.0).amax(0).cpu().numpy(), starts)
            yield broken, np.where(change > tolerance, change, 0.0)

    def arrives(self, rows: Sequence[Row]) -> Iterator[np.ndarray]:
        """Per row, which sets something to NaN, and RoI ``(R,)``: does NaN arrive."""
        for (n, _), (arrived, change) in zip(rows, self.compare(rows)):
            if change.any():
                # Something took NaN for a number; what else it lets pass unnoticed cannot be known.
                raise Unverified(f"{MASKED}: it moved finite logits inside an RoI of example {n} by {change.max():.3g}")
            yield arrived

    def _outputs(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        begin = 0
        while begin < len(rows):
            left, size = rows[begin:], min(self._batch_size, len(rows) - begin)
            try:
                logits, fits = fitting(partial(self._first, left), size, "images")
            except torch.OutOfMemoryError as error:
                raise Unverified("memory ran out for a single image") from error
            if fits < size:
                self._batch_size = fits
            begin += fits
            self.n_forwards += fits
            yield from logits

    def _first(self, rows: Sequence[Row], count: int) -> Tensor:
        return self._run(rows[:count])

    def _run(self, rows: Sequence[Row]) -> Tensor:
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
            raise Unverified(f"the model raised {type(error).__name__} on a changed input: {reason}") from error


def at_least_single(values: Tensor) -> Tensor:
    """At least single precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
