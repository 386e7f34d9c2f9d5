"""Scores from what lies around the regions of interest only: the same scores as from the whole output, for less work."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import crop, hull

__all__ = ["LocalScores", "around"]


def around(rois: Tensor) -> tuple[slice, ...]:
    """The part of ``(N, C, *spatial)`` that holds all regions ``(N or 1, R, *spatial)``; all of it where these are empty.

    One pixel more than the regions: a region that ends at the box's edge would look as if the image ended there.
    """
    inside = rois.flatten(0, 1).any(0)
    if not bool(inside.any()):
        return (slice(None),) * rois.ndim
    return (slice(None), slice(None), *hull(inside, margin=1))


class LocalScores:
    """Scores of logits ``(B, C, *spatial)`` whose rows are interventions on given examples.

    Only a box around the regions of interest is looked at; masks and reference are prepared once and not for every batch.

    Args:
        score: logits ``(B, C, *box)``, regions of interest ``(B or 1, R, *box)`` and one-hot reference ``(B or 1, C, *box)`` or
            None, to scores ``(B, ...)`` that depend on nothing outside the regions.
        rois: boolean ``(N or 1, R, *spatial)``.
        reference: one-hot ``(N or 1, C, *spatial)``, or None.
    """

    def __init__(
        self, score: Callable[[Tensor, Tensor, Tensor | None], Tensor], rois: Tensor, reference: Tensor | None
    ) -> None:
        self._score, self.rois, self._reference = score, rois, reference
        self._box = around(rois)
        self._inside = rois[self._box]
        self._truth = None if reference is None else reference[self._box]

    def __call__(self, logits: Tensor, examples: np.ndarray) -> Tensor:
        """Scores ``(B, ...)``; NaN where the logits around the regions hold NaN."""
        # Sums depend in the last digits on how values lie in memory, which is to be the same for a window and the whole.
        near = logits[self._box].contiguous()
        truth = None if self._truth is None else _of(self._truth, examples)
        scores = self._score(near, _of(self._inside, examples), truth)
        unknown = near.flatten(1).isnan().any(1)
        # No `if`: that would wait for the device.
        return torch.where(unknown.view(-1, *(1,) * (scores.ndim - 1)), torch.nan, scores)

    def near(self, logits: Tensor) -> Tensor:
        """A copy of the part of the logits that is looked at."""
        return logits[self._box].clone()

    def of_rois(self, which: Sequence[int]) -> "LocalScores":
        """The scores of some of the regions alone."""
        return LocalScores(self._score, self.rois[:, list(which)], self._reference)

    def cropped(self, starts: np.ndarray, size: Sequence[int]) -> "LocalScores":
        """The same for logits of a window of each example, with corners ``(N, d)``; it holds the regions."""
        reference = None if self._reference is None else crop(self._reference, starts, size)
        return LocalScores(self._score, crop(self.rois, starts, size), reference)


def _of(values: Tensor, examples: np.ndarray) -> Tensor:
    return values if len(values) == 1 else values.index_select(0, torch.as_tensor(examples, device=values.device))
