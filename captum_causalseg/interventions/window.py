"""The window of the image that is enough to compute the region of interest, so that the rest need not be run."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.rounding import relative_tolerance

__all__ = ["find_window"]

logger = logging.getLogger(__name__)

# Networks halve the image up to six times; their grid has to fall on the same pixels in the window.
_ALIGNMENTS = (1, 2, 4, 8, 16, 32, 64)
# A larger share of the image saves less than the trial and the copying cost.
_LARGEST_SHARE = 0.8


def find_window(whole: ModelEvaluator, rois: Tensor, reach: np.ndarray, trials: Sequence[Sequence[Tensor]]) -> ModelEvaluator:
    """The evaluator on the smallest window that reproduces the regions of interest; the ledger is told how many images it took to find.

    Alignments to the model's stride are tried in turn: a window counts if on it the logits inside the regions agree with those
    of the whole image, for all the trials, to float tolerance. If none does, the evaluator is the one on whole images.

    Args:
        whole: the evaluator on whole images.
        rois: the regions of interest ``(N or 1, R, *spatial)``.
        reach: ``(N, d, 2)`` first and last plus one of the positions that can reach any of an example's regions.
        trials: tensors ``(N, ...)`` in the place of the evaluator's own; the first are the unchanged ones.
    """
    spatial = rois.shape[2:]
    examples = np.arange(len(reach))
    references: list[Tensor] = []
    tried: set[tuple[object, ...]] = set()
    whole.ledger.count("window", 0)
    for alignment in _ALIGNMENTS:
        window = _fit(reach, spatial, alignment)
        if math.prod(window.size) > _LARGEST_SHARE * math.prod(spatial):
            break
        key = window.starts.tobytes(), window.size
        if key in tried:
            continue
        tried.add(key)
        candidate = whole.windowed(window, spatial)
        if candidate is None:
            continue
        if not references:
            references = [whole.logits([x.clone() for x in trial], examples) for trial in trials]
            whole.ledger.count("window", len(examples) * len(trials))
        largest = 0.0
        for trial, expected in zip(trials, references):
            whole.ledger.count("window", len(examples))
            difference, allowed = _difference(candidate, window, trial=trial, expected=expected, rois=rois, examples=examples)
            if not bool((difference <= allowed).all()):
                break
            largest = max(largest, float(difference.max()))
        else:
            logger.info("window: %s of %s pixels is enough, outputs agree to %.2g", window.size, tuple(spatial), largest)
            return candidate
    logger.info("window: none is enough to compute the RoI, the whole image is run")
    return whole


def _difference(
    candidate: ModelEvaluator,
    window: Frame,
    trial: Sequence[Tensor],
    expected: Tensor,
    rois: Tensor,
    examples: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """The largest difference inside each region ``(N, R)``, and what may be rounding; infinite if the model refuses the window."""
    try:
        found = candidate.logits(candidate.site.crop(trial), examples)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model says to a size that it does not take
        logger.debug("window %s: %s", window.size, error)
        return torch.tensor(math.inf, device="cpu"), torch.tensor(0.0, device="cpu")
    inside, expected = window.crop(rois), window.crop(expected)

    def largest(values: Tensor) -> Tensor:
        return torch.where(inside, values.abs().amax(1, keepdim=True), 0.0).flatten(2).amax(2)

    # Of the region itself: beside large values elsewhere, another result would pass for rounding.
    return largest(found.double() - expected.double()), relative_tolerance([expected]) * largest(expected.double())


def _fit(reach: np.ndarray, spatial: Sequence[int], alignment: int) -> Frame:
    """The smallest windows of one size, with corners on multiples of ``alignment``, that hold what reaches."""
    length = np.array(spatial)
    starts = reach[..., 0] // alignment * alignment
    stops = np.minimum(-(-reach[..., 1] // alignment) * alignment, length)
    size = (stops - starts).max(0)
    while True:
        moved = np.minimum(starts, (length - size) // alignment * alignment)
        short = (moved + size < stops).any(0)
        if not short.any():
            return Frame(moved, size.tolist())
        # By single pixels: at the far border of a side that is no multiple, no aligned size would ever reach the end.
        size = np.where(short, np.minimum(size + 1, length), size)
