"""The windows of the image that are enough to compute the regions of interest, so that the rest need not be run."""

import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.grouped import GroupsEvaluator
from captum_causalseg.interventions.roi_groups import RoiGroup, hull_of, roi_groups
from captum_causalseg.target.rounding import relative_tolerance

__all__ = ["find_window"]

logger = logging.getLogger(__name__)

# Networks halve the image up to six times; their grid has to fall on the same pixels in the window.
_ALIGNMENTS = (1, 2, 4, 8, 16, 32, 64)
# A larger share of the image saves less than the trial and the copying cost.
_LARGEST_SHARE = 0.8


def find_window(
    whole: ModelEvaluator, needed: np.ndarray, reaches: np.ndarray, trials: Sequence[Sequence[Tensor]]
) -> ModelEvaluator:
    """The evaluator on the smallest windows that reproduce the regions of interest; the ledger is told how many images they took to find.

    Regions far apart have a window each, as long as that takes fewer pixels than one around all of them. Alignments to the model's
    stride are tried in turn: windows count if on them the logits inside the regions agree with those of the whole image, for all the
    trials, to float tolerance. If none do, the evaluator is the one on whole images.

    Args:
        whole: the evaluator on whole images, which scores logits locally.
        needed: ``(N, R, d, 2)`` first and last plus one of the positions that can reach each of an example's regions.
        reaches: ``(N, U, R)``: which units can reach which region: in which windows they are replaced.
        trials: tensors ``(N, ...)`` in the place of the evaluator's own; the first are the unchanged ones.
    """
    assert whole.local is not None
    rois = whole.local.scores.rois
    spatial = rois.shape[2:]
    examples = np.arange(len(needed))
    references: list[Tensor] = []
    tried: set[tuple[object, ...]] = set()
    whole.ledger.count("window", 0)
    for alignment in _ALIGNMENTS:
        groups = _groups(whole, needed, reaches, alignment=alignment)
        if sum(group.cost for group in groups) > _LARGEST_SHARE * _weight(reaches) * math.prod(spatial):
            break
        key = tuple((group.rois, group.frame.starts.tobytes(), group.frame.size) for group in groups)
        if key in tried:
            continue
        tried.add(key)
        candidates = [whole.windowed(group.frame, spatial, None if len(groups) == 1 else group.rois) for group in groups]
        if any(candidate is None for candidate in candidates):
            continue
        if not references:
            references = [whole.logits([x.clone() for x in trial], examples) for trial in trials]
            whole.ledger.count("window", len(examples) * len(trials))
        largest = 0.0
        for (trial, expected), (group, candidate) in itertools.product(zip(trials, references), zip(groups, candidates)):
            assert candidate is not None
            whole.ledger.count("window", len(examples))
            inside = rois[:, list(group.rois)]
            difference, allowed = _difference(
                candidate, group.frame, trial=trial, expected=expected, rois=inside, examples=examples
            )
            if not bool((difference <= allowed).all()):
                break
            largest = max(largest, float(difference.max()))
        else:
            sizes = [group.frame.size for group in groups]
            logger.info("window: %s of %s pixels are enough, outputs agree to %.2g", sizes, tuple(spatial), largest)
            found = [candidate for candidate in candidates if candidate is not None]
            return found[0] if len(found) == 1 else GroupsEvaluator(whole, groups, parts=found, reaches=reaches)
    logger.info("window: none is enough to compute the RoI, the whole image is run")
    return whole


def _groups(whole: ModelEvaluator, needed: np.ndarray, reaches: np.ndarray, alignment: int) -> list[RoiGroup]:
    """The regions in groups with a window each, weighted by how many units are replaced in it."""
    assert whole.local is not None
    spatial = whole.local.scores.rois.shape[2:]
    if whole.execution.compile:
        # Another size would be compiled anew.
        everything = tuple(range(needed.shape[1]))
        return [RoiGroup(everything, _fit(hull_of(needed), spatial, alignment), _weight(reaches))]
    return roi_groups(needed, lambda box: _fit(box, spatial, alignment), lambda rois: _weight(reaches[..., list(rois)]))


def _weight(reaches: np.ndarray) -> int:
    """How many units reach any of the regions."""
    return max(1, int(reaches.any(2).sum()))


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
