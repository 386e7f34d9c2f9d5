"""Regions of interest (RoIs) in groups, each with a box of its own, so that what lies between regions far apart is neither run nor held."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from captum_causalseg.interventions.frames import Frame

__all__ = ["RoiGroup", "hull_of", "roi_groups"]


@dataclass(frozen=True, eq=False)
class RoiGroup:
    """Some of the regions of interest, the same ones in each example.

    Args:
        rois: their numbers.
        frame: a box that holds what they need, in each example at its place.
        weight: how much a pixel of the box counts.
    """

    rois: tuple[int, ...]
    frame: Frame
    weight: float = 1.0

    @property
    def cost(self) -> float:
        """Pixels times weight."""
        return self.weight * math.prod(self.frame.size)


def roi_groups(
    boxes: np.ndarray, fit: Callable[[np.ndarray], Frame], weight: Callable[[tuple[int, ...]], float] = lambda rois: 1.0
) -> list[RoiGroup]:
    """The regions in groups, merged two by two, those that save most first, while a common box costs no more than the two.

    Args:
        boxes: ``(N, R, d, 2)`` first and last plus one of the positions that each region of each example needs.
        fit: from what is needed ``(N, d, 2)`` to boxes of one size that hold it.
        weight: of a pixel, by the numbers of the regions: how many interventions run it, for example.
    """
    made: dict[tuple[int, ...], RoiGroup] = {}

    def group(*rois: int) -> RoiGroup:
        rois = tuple(sorted(rois))
        if rois not in made:
            made[rois] = RoiGroup(rois, fit(hull_of(boxes[:, list(rois)])), weight(rois))
        return made[rois]

    groups = [group(region) for region in range(boxes.shape[1])]
    while len(groups) > 1:
        pairs = [(one, other, group(*one.rois, *other.rois)) for one, other in itertools.combinations(groups, 2)]
        one, other, joint = min(pairs, key=lambda pair: pair[2].cost - pair[0].cost - pair[1].cost)
        if joint.cost > one.cost + other.cost:
            break
        groups = [kept for kept in groups if kept not in (one, other)] + [joint]
    return sorted(groups, key=lambda found: found.rois)


def hull_of(boxes: np.ndarray) -> np.ndarray:
    """What the regions ``(N, R, d, 2)`` of an example need together, ``(N, d, 2)``."""
    return np.stack([boxes[..., 0].min(1), boxes[..., 1].max(1)], -1)
