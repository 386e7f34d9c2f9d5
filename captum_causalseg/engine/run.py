"""Carry a plan out: batches of interventions, running moments, screening, halving the batch when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.plan import Plan

__all__ = ["Evaluator", "Moments", "Outcome", "observe", "run"]

logger = logging.getLogger(__name__)


class Evaluator(Protocol):
    """How a score under an intervention is computed."""

    def observe(self, examples: np.ndarray) -> Tensor:
        """The scores without intervention ``(B, K)`` of the examples ``(B,)``."""

    def __call__(self, examples: np.ndarray, units: np.ndarray, donors: np.ndarray) -> Tensor:
        """The scores ``(B, K)`` of ``B`` interventions: example ``(B,)``, unit ``(B,)``, donor per slot ``(B, slots)``."""


@dataclass
class Moments:
    """Running sums of ``observed - intervened`` per row and output, in double precision."""

    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def zeros(cls, rows: int, outputs: int) -> "Moments":
        """Nothing added yet."""
        shape = (rows, outputs)
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))

    def add(self, rows: np.ndarray, differences: np.ndarray, wanted: np.ndarray) -> None:
        """Add one batch; ``wanted`` ``(B, K)`` says which outputs take part. The order of adding is the order of draws."""
        np.add.at(self.n, rows, wanted)
        np.add.at(self.total, rows, np.where(wanted, differences, 0.0))
        np.add.at(self.squares, rows, np.where(wanted, differences**2, 0.0))

    def clear(self, which: np.ndarray) -> None:
        """Forget what was added where ``which`` ``(M, K)`` holds."""
        for values in (self.n, self.total, self.squares):
            values[which] = 0

    @property
    def mean(self) -> np.ndarray:
        """``(M, K)``; NaN without draws."""
        with np.errstate(invalid="ignore"):
            return self.total / np.where(self.n > 0, self.n, np.nan)

    @property
    def variance(self) -> np.ndarray:
        """Sample variance ``(M, K)``; NaN with fewer than two draws."""
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = self.squares - self.n * self.mean**2
            variance = spread / np.where(self.n > 1, self.n - 1, np.nan)
        # What is left of a cancellation is no variance: identical draws must give exactly 0.
        noise = 1e-13 * self.squares / np.maximum(self.n, 1)
        return np.where(variance <= noise, 0.0, variance)


@dataclass
class Outcome:
    """What a run leaves: moments and, per row and output, whether it was screened out."""

    observed: np.ndarray
    moments: Moments
    screened: np.ndarray
    n_forwards: int
    """Images that went through the model, the observed ones not counted."""
    batch_size: int


def observe(evaluator: Evaluator, n_examples: int) -> np.ndarray:
    """The observed scores ``(N, K)`` of all examples, in one batch if memory allows.

    Raises:
        ValueError: a score is not finite.
    """
    size, left, parts = n_examples, np.arange(n_examples), list[np.ndarray]()
    while len(left):
        scores = _attempt(partial(evaluator.observe, left[:size]), size)
        if scores is None:
            size = _halve(size)
        else:
            parts.append(scores)
            left = left[size:]
    observed = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(observed).all(1))
    if len(bad):
        raise ValueError(f"forward_func: the score of example {bad[0]} is not finite: {observed[bad[0]].tolist()}")
    return observed


def run(
    plan: Plan,
    evaluator: Evaluator,
    observed: np.ndarray,
    *,
    batch_size: int,
    screening_threshold: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Carry out a plan.

    Args:
        plan: what to do.
        evaluator: how scores are computed.
        observed: the scores without intervention, ``(N, K)``.
        batch_size: interventions per call of the evaluator; halved whenever memory runs out.
        screening_threshold: a row and output whose screening draws all move the score by less than this is left there.
        on_progress: called with the interventions done and the most that there will be.

    Raises:
        ValueError: a score is not finite.
    """
    loop = _Loop(plan, evaluator, observed, batch_size, on_progress)
    wanted = plan.active.copy()
    screened = np.zeros_like(wanted)
    counts = np.array([plan.count(row) for row in range(len(plan))], dtype=np.int64)
    if plan.screens:
        first = np.minimum(plan.n_screening_draws, counts)
        loop.expect(int((wanted.any(1) * counts).sum()))
        largest = loop.round(np.zeros_like(first), first, wanted)
        # A drained bank leaves nothing to screen: the estimate is exact already.
        screened = wanted & (largest < screening_threshold) & (first < counts)[:, None]
        wanted = wanted & ~screened & (first < counts)[:, None]
        if plan.fresh_draws:
            loop.moments.clear(wanted)
        loop.expect(loop.done + int((wanted.any(1) * (counts - first)).sum()))
        loop.round(first, counts, wanted)
    else:
        loop.expect(int((wanted.any(1) * counts).sum()))
        loop.round(np.zeros_like(counts), counts, wanted)
    return Outcome(observed, loop.moments, screened, loop.done, loop.batch_size)


class _Loop:
    def __init__(
        self,
        plan: Plan,
        evaluator: Evaluator,
        observed: np.ndarray,
        batch_size: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.plan, self.evaluator, self.observed = plan, evaluator, observed
        self.batch_size = batch_size
        self.moments = Moments.zeros(len(plan), observed.shape[1])
        self.done = 0
        self._total = 0
        self._on_progress = on_progress

    def expect(self, total: int) -> None:
        self._total = total
        self._on_progress(self.done, total)

    def round(self, start: np.ndarray, stop: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Draws ``start[row]..stop[row]`` of every row with a wanted output; the largest ``|difference|`` ``(M, K)``."""
        largest = np.zeros(wanted.shape)
        for rows, donors in self._batches(start, stop, np.any(wanted, axis=1)):
            begin = 0
            while begin < len(rows):
                part = slice(begin, begin + self.batch_size)
                scores = self._evaluate(rows[part], donors[part])
                if scores is None:
                    continue
                examples = self.plan.example[rows[part]]
                differences = self.observed[examples] - scores
                self.moments.add(rows[part], differences, wanted[rows[part]])
                np.maximum.at(largest, rows[part], np.abs(differences))
                begin += len(scores)
                self.done += len(scores)
                self._on_progress(self.done, self._total)
        return largest

    def _batches(self, start: np.ndarray, stop: np.ndarray, active: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Full batches across rows: ``(rows (B,), donors (B, slots))``."""
        rows: list[np.ndarray] = []
        donors: list[np.ndarray] = []
        held = 0
        for row in np.flatnonzero(active & (stop > start)).tolist():
            drawn = self.plan.donors(row)[start[row] : stop[row]]
            rows.append(np.full(len(drawn), row))
            donors.append(drawn)
            held += len(drawn)
            if held < self.batch_size:
                continue
            all_rows, all_donors = np.concatenate(rows), np.concatenate(donors)
            whole = held - held % self.batch_size
            yield all_rows[:whole], all_donors[:whole]
            rows, donors, held = [all_rows[whole:]], [all_donors[whole:]], held - whole
        if held:
            yield np.concatenate(rows), np.concatenate(donors)

    def _evaluate(self, rows: np.ndarray, donors: np.ndarray) -> np.ndarray | None:
        """The scores of one batch, or None if memory ran out and a smaller batch is to be tried."""
        examples, units = self.plan.example[rows], self.plan.unit[rows]
        scores = _attempt(partial(self.evaluator, examples, units, donors), len(rows))
        if scores is None:
            self.batch_size = _halve(len(rows))
            return None
        bad = ~np.isfinite(scores).all(1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"forward_func: it returned a score that is not finite ({scores[first].tolist()}) for example {examples[first]} "
                f"with unit {self.plan.key[rows[first]]} replaced by donor {donors[first].tolist()}"
            )
        return scores


def _attempt(evaluate: Callable[[], Tensor], batch_size: int) -> np.ndarray | None:
    """Scores in double precision on the CPU; None if memory ran out on a batch that can still be made smaller."""
    try:
        scores: np.ndarray = evaluate().double().cpu().numpy()
        return scores
    except torch.OutOfMemoryError:
        if batch_size <= 1:
            raise
    return None


def _halve(batch_size: int) -> int:
    smaller = max(1, batch_size // 2)
    logger.warning("Out of memory: going on with %d interventions per batch", smaller)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return smaller
