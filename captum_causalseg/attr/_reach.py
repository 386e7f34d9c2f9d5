"""What of the problem can reach its regions of interest, and the window that is enough to compute them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from captum_causalseg._local_scores import LocalScores, hull
from captum_causalseg.attr._problem import Problem
from captum_causalseg.interventions.layer import LayerActivation
from captum_causalseg.interventions.support import Support, find_support
from captum_causalseg.interventions.units import paste
from captum_causalseg.interventions.whole import WholeInput
from captum_causalseg.interventions.window import find_window

__all__ = ["Reach", "everything_reaches", "find_reach"]

# Collages of donors that the support has to stand.
_N_COLLAGES = 2
_UNITS_AT_ONCE = 256


@dataclass(frozen=True)
class Reach:
    """What was found out.

    Args:
        reaches: ``(N, U, R)``: which units can reach which RoI; ``R`` is 1 where RoIs do not matter.
        evaluator: computes scores under interventions: on the window, if there is one.
        window: its size, or None.
    """

    reaches: np.ndarray
    evaluator: WholeInput | LayerActivation
    window: tuple[int, ...] | None


def everything_reaches(problem: Problem) -> Reach:
    """Nothing is left out."""
    return Reach(np.ones((problem.n_examples, len(problem.units), 1), dtype=bool), problem.evaluator, None)


def find_reach(problem: Problem, batch_size: int) -> Reach:
    """Probe the model; the forwards that it takes are added to what the evaluator has spent."""
    whole = problem.evaluator
    local = whole.local_scores()
    if local is None or problem.rois is None:
        # One's own metric may look anywhere, and nothing lies outside the whole image.
        return everything_reaches(problem)
    collages = [_collage(problem, k) for k in range(_N_COLLAGES)]
    found = find_support(whole.logits, problem.tensors, local.rois.cpu(), stand_ins=collages, batch_size=batch_size)
    whole.spent["support"] += found.n_forwards
    if found.doubt is not None:
        return everything_reaches(problem)
    reaches = _units_that_reach(problem, found)
    supports: list[tuple[Support, Sequence[Tensor]]] = [(found, problem.tensors)]
    if isinstance(whole, LayerActivation):
        # Besides the activation, the image must be there where it goes past the layer.
        images = find_support(whole.logits_of_inputs, whole.inputs, local.rois.cpu(), batch_size=batch_size)
        whole.spent["support"] += images.n_forwards
        supports.append((images, whole.inputs))
    needed = _hull(local, supports)
    if needed is None:
        return Reach(reaches, whole, None)
    window, evaluator, spent = find_window(whole, local, needed, [problem.tensors, *collages])
    whole.spent["window"] += spent
    return Reach(reaches, evaluator, None if window is None else window.size)


def _units_that_reach(problem: Problem, support: Support) -> np.ndarray:
    """``(N, U, R)``."""
    n_rois = support.masks[0].shape[1]
    reaches = np.zeros((problem.n_examples, len(problem.units), n_rois), dtype=bool)
    for example, unit in np.ndindex(reaches.shape[:2]):
        for piece in problem.units.pieces(example, unit):
            inside = support.masks[piece.slot][example][(slice(None), *piece.box)]
            if piece.mask is not None:
                inside = inside & piece.mask.any(0)
            reaches[example, unit] |= inside.reshape(n_rois, -1).any(1).numpy()
    return reaches


def _hull(local: LocalScores, supports: Sequence[tuple[Support, Sequence[Tensor]]]) -> np.ndarray | None:
    """What has to be in each example's window ``(N, d, 2)``, in the image's pixels; ``None`` if that cannot be said."""
    spatial = local.rois.shape[2:]
    n = len(supports[0][0].masks[0])
    # The pixels next to the RoIs are looked at as well.
    around = [hull(local.rois[example if len(local.rois) > 1 else 0].any(0), margin=1) for example in range(n)]
    needed = np.array([[(side.start, side.stop) for side in box] for box in around])
    for support, tensors in supports:
        for slot, tensor in enumerate(tensors):
            own = tensor.shape[2:]
            if not len(own):
                continue
            if len(own) != len(spatial) or any(length % side for length, side in zip(spatial, own)):
                return None
            stride = np.array([length // side for length, side in zip(spatial, own)])
            boxes = support.hull(slot) * stride[:, None]
            for r in range(boxes.shape[1]):
                there = boxes[:, r, 0, 1] > 0
                needed[there, :, 0] = np.minimum(needed[there, :, 0], boxes[there, r, :, 0])
                needed[there, :, 1] = np.maximum(needed[there, :, 1], boxes[there, r, :, 1])
    return needed


def _collage(problem: Problem, k: int) -> list[Tensor]:
    """The tensors with every unit that has donors replaced by one of them."""
    example, unit = np.nonzero(problem.units.present & ~problem.excluded.all(2))
    population = problem.populations(example, unit)
    donors = np.random.default_rng(k).integers(0, population)
    tensors = [tensor.clone() for tensor in problem.tensors]
    # In parts: the donors of a whole volume would be another volume per channel.
    for begin in range(0, len(example), _UNITS_AT_ONCE):
        part = slice(begin, begin + _UNITS_AT_ONCE)
        spread = problem.evaluator.spread(donors[part])
        paste(tensors, problem.units, problem.donors, example[part], unit[part], spread, onto=example[part])
    return tensors
