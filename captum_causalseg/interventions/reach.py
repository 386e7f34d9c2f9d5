"""Which units can reach the regions of interest (RoIs), and the window that is enough to compute their effects."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import hull
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.roi_groups import hull_of, roi_groups
from captum_causalseg.interventions.support import Support, arrives_from, find_support, most_probes
from captum_causalseg.interventions.units import Units
from captum_causalseg.interventions.window import find_window

__all__ = ["ImageSearch", "Reach", "most_forwards", "probe", "saved_at_best", "too_dear"]

logger = logging.getLogger(__name__)

# A crop around the RoIs is looked at first: so many pixels more on every side, on a grid that networks of five halvings share,
# doubled until nothing reaches the RoIs from its edges, up to a share of the image.
_FIRST_MARGIN, _GRID, _LARGEST_CROP = 32, 32, 0.5
# A window is tried on the image as it is and two others, beside the whole of them.
_TRIALS_OF_WINDOW = 6


@dataclass(frozen=True)
class Reach:
    """What was found out.

    Args:
        reaches: ``(N, U, R)``: which units can reach which RoI; ``R`` is 1 where RoIs do not matter.
        evaluator: computes scores under interventions: on the window, if there is one.
    """

    reaches: np.ndarray
    evaluator: ModelEvaluator

    @classmethod
    def everything(cls, evaluator: ModelEvaluator) -> "Reach":
        """Nothing is left out."""
        units = evaluator.unit_donors.units
        return cls(np.ones((units.n_examples, len(units), 1), dtype=bool), evaluator)

    @property
    def window(self) -> tuple[int, ...] | None:
        """The size of the window, if there is one."""
        window = self.evaluator.execution.window
        return None if window is None else window.size


class ImageSearch:
    """What of the images can reach the regions of interest, whatever layer is replaced: one search for many layers of a model.

    Attributes:
        found: ``None`` before the first search.
    """

    found: Support | None = None

    def run(self, whole: ModelEvaluator, batch_size: int) -> Support:
        """What is found; the ledger of who comes first is told how many images that takes."""
        if self.found is None:
            assert whole.local is not None
            rois = whole.local.scores.rois.cpu()
            self.found = find_support(whole.logits_of_inputs, whole.site.bypass, rois, batch_size=batch_size)
            whole.ledger.count("support", self.found.n_forwards)
        return self.found


def most_forwards(whole: ModelEvaluator, images: ImageSearch) -> int:
    """How many images :func:`probe` may run, from shapes alone and from what is known of the images."""
    site = whole.site
    window = 0 if site.no_window is not None else _TRIALS_OF_WINDOW * len(site.inputs[0])
    searched = [site.tensors] + ([site.bypass] if site.bypass and site.no_window is None and images.found is None else [])
    return window + sum(most_probes(tensors) for tensors in searched)


def saved_at_best(whole: ModelEvaluator, at_stake: int) -> int:
    """How many of so many forwards of whole images a window can save, where all units have to be run.

    A network looks beyond the regions of interest: the box of each group is taken with half of its edges more on every side.
    """
    assert whole.local is not None
    rois = whole.local.scores.rois
    boxes = _needed(rois, [], len(whole.site.inputs[0]))
    assert boxes is not None
    length = np.array(rois.shape[2:])

    def fit(needed: np.ndarray) -> Frame:
        return Frame(needed[..., 0], np.minimum(2 * (needed[..., 1] - needed[..., 0]).max(0), length).tolist())

    share = sum(group.cost for group in roi_groups(boxes, fit)) / length.prod()
    return max(0, int((1 - share) * at_stake))


def too_dear(cost: int, saved: int, at_stake: int) -> str:
    """Why the support is not searched."""
    return (
        f'finding it may take {cost} forwards, and save {saved} of {at_stake} interventions (support="always" does it anyway)'
    )


def probe(
    whole: ModelEvaluator,
    stand_ins: Sequence[Sequence[Tensor]],
    batch_size: int,
    *,
    images: ImageSearch,
    at_stake: int | None = None,
) -> Reach:
    """Probe the model; the ledger is told how many images that takes.

    Args:
        whole: the evaluator on whole images, which scores logits locally.
        stand_ins: natural replacements of the site's tensors, which must leave the RoI as it is outside the support.
        batch_size: images per forward.
        images: of layers, what is known of the images.
        at_stake: so many interventions are planned; if in crops of large images the support went up to the edges, whole images are searched only
            where that takes no more forwards. ``None``: they are, anyway.
    """
    assert whole.local is not None
    site, ledger, rois = whole.site, whole.ledger, whole.local.scores.rois
    guess = None if site.bypass else _guess_from_surroundings(whole, rois, batch_size)
    if guess is None and ledger.forwards["support"] and at_stake is not None:
        # The crops were for nothing: the support is large, and the image too.
        cost = most_probes(site.tensors)
        if cost > at_stake:
            ledger.disable("support", too_dear(cost, at_stake, at_stake))
            return Reach.everything(whole)
    found = find_support(whole.logits, site.tensors, rois.cpu(), stand_ins=stand_ins, batch_size=batch_size, guess=guess)
    ledger.count("support", found.n_forwards)
    if found.doubt is not None:
        ledger.disable("support", found.doubt)
        return Reach.everything(whole)
    reaches = _units_that_reach(whole.unit_donors.units, found)
    if site.no_window is not None:
        return Reach(reaches, whole)
    supports: list[tuple[Support, Sequence[Tensor]]] = [(found, site.tensors)]
    if site.bypass:
        # Besides the activation, the image must be there where it goes past the layer.
        supports.append((images.run(whole, batch_size), site.bypass))
    needed = _needed(rois, supports, whole.unit_donors.units.n_examples)
    if needed is None:
        return Reach(reaches, whole)
    return Reach(reaches, find_window(whole, needed, reaches, trials=[site.tensors, *stand_ins]))


def _guess_from_surroundings(whole: ModelEvaluator, rois: Tensor, batch_size: int) -> list[Tensor] | None:
    """Masks ``(N, R, *spatial)`` per input: what reaches the RoIs in crops around them, if nothing does from their edges.

    Of a large image this takes small forwards; whether it holds for the whole image is up to a few large ones.
    """
    n, inputs = len(whole.site.inputs[0]), whole.site.inputs
    needed = _needed(rois, [], n)
    assert needed is not None
    length = np.array(rois.shape[2:])
    masks = [torch.zeros((n, rois.shape[1], *x.shape[2:]), dtype=torch.bool, device="cpu") for x in inputs]
    for group in roi_groups(needed, lambda around: _crop_around(around, _FIRST_MARGIN, length)):
        found = _guess_of(whole, group.rois, hull_of(needed[:, list(group.rois)]), batch_size=batch_size)
        if found is None:
            return None
        for mask, of_group in zip(masks, found):
            mask[:, list(group.rois)] = of_group
    return masks


def _guess_of(whole: ModelEvaluator, rois: tuple[int, ...], around: np.ndarray, *, batch_size: int) -> list[Tensor] | None:
    """The same of some of the RoIs, which lie ``around`` ``(N, d, 2)``, in one crop."""
    assert whole.local is not None
    spatial = whole.local.scores.rois.shape[2:]
    length = np.array(spatial)
    margin = _FIRST_MARGIN
    while True:
        frame = _crop_around(around, margin, length)
        starts, size = frame.starts, np.array(frame.size)
        if (starts + size < np.minimum(around[..., 1] + margin, length)).any() or size.prod() > _LARGEST_CROP * length.prod():
            return None
        crop = whole.windowed(frame, spatial, rois)
        if crop is None or crop.local is None:
            return None
        inside: Any = (crop.logits, crop.site.tensors, crop.local.scores.rois.cpu())
        low, high = starts > 0, starts + size < length
        sides = [(n, axis, end) for end, open_ in enumerate((low, high)) for n, axis in np.argwhere(open_).tolist()]
        try:
            # First from the sides alone where the image goes on: if anything arrives from there, the rest of the search is for nothing.
            arrives, n_forwards = arrives_from(*inside, sides=sides, batch_size=batch_size)
            whole.ledger.count("support", n_forwards)
            if arrives:
                margin *= 2
                continue
            found = find_support(*inside, batch_size=batch_size)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model says to a size that it does not take
            logger.debug("crop %s: %s", size.tolist(), error)
            return None
        whole.ledger.count("support", found.n_forwards)
        if found.doubt is not None:
            return None
        if not _reaches_from_edge(found, starts, size, length=length):
            return [frame.uncrop(mask, spatial) if mask.ndim > 2 else mask for mask in found.masks]
        margin *= 2


def _crop_around(around: np.ndarray, margin: int, length: np.ndarray) -> Frame:
    """Crops of one size with so many pixels on every side, where there is room."""
    starts = np.maximum(around[..., 0] - margin, 0) // _GRID * _GRID
    size = (np.minimum(-(-(around[..., 1] + margin) // _GRID) * _GRID, length) - starts).max(0)
    # Of one size for all examples: those at the far edges of the image begin earlier.
    return Frame(np.minimum(starts, (length - size) // _GRID * _GRID), size.tolist())


def _reaches_from_edge(support: Support, starts: np.ndarray, size: np.ndarray, length: np.ndarray) -> bool:
    """Whether the support goes up to an edge of a crop beyond which the image goes on."""
    for slot, mask in enumerate(support.masks):
        if mask.ndim > 2:
            hulls = support.hull(slot)
            low = (hulls[..., 0] == 0) & (starts > 0)[:, None]
            high = (hulls[..., 1] == size) & (starts + size < length)[:, None]
            if low.any() or high.any():
                return True
    return False


def _units_that_reach(units: Units, support: Support) -> np.ndarray:
    """``(N, U, R)``."""
    n_rois = support.masks[0].shape[1]
    reaches = np.zeros((units.n_examples, len(units), n_rois), dtype=bool)
    for example, unit in np.ndindex(reaches.shape[:2]):
        for piece in units.pieces(example, unit):
            mask = None if piece.mask is None else piece.mask.any(0)
            reaches[example, unit] |= support.reaches(piece.slot, example, box=piece.box, mask=mask)
    return reaches


def _needed(rois: Tensor, supports: Sequence[tuple[Support, Sequence[Tensor]]], n: int) -> np.ndarray | None:
    """What has to be in a window for each example's regions ``(N, R, d, 2)``, in the image's pixels; ``None`` if that cannot be said."""
    spatial = rois.shape[2:]
    # The pixels next to the RoIs are looked at as well.
    around = [[[(side.start, side.stop) for side in hull(mask, margin=1)] for mask in example] for example in rois]
    needed: np.ndarray = np.broadcast_to(np.array(around), (n, rois.shape[1], len(spatial), 2)).copy()
    for support, tensors in supports:
        for slot, tensor in enumerate(tensors):
            own = tensor.shape[2:]
            if not len(own):
                continue
            if len(own) != len(spatial) or any(length % side for length, side in zip(spatial, own)):
                return None
            stride = np.array([length // side for length, side in zip(spatial, own)])
            boxes = support.hull(slot) * stride[:, None]
            there = boxes[..., 0, 1] > 0
            needed[there, :, 0] = np.minimum(needed[there, :, 0], boxes[there, :, 0])
            needed[there, :, 1] = np.maximum(needed[there, :, 1], boxes[there, :, 1])
    return needed
