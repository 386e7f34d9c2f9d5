"""Regions of interest of a network on pictures that it was not trained on: on the border of the object, where it sees too much, where it misses some."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from study_data import Data
from study_kinds import KINDS
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget, regions

__all__ = ["BLOCK", "PLACES", "ROI", "TargetOf", "border_case", "cases_of", "picture_order"]

BLOCK, ROI = 8, 8
"""Edges of the units and of the regions in pixels of the reduced pictures: 32 of the skin pictures' 256, as the paper's on its fundus pictures."""
PLACES = ("boundary", "false positive", "missed")
_STEP = BLOCK
"""Regions are blocks of the grid: no other unit is lost to them."""
_STRIDE = 10
"""Pictures by which a network starts later than the one before it."""
_LEAST = 4
"""Pixels that are wrong in a region, at least: a sixteenth of it."""


@dataclass(frozen=True)
class _Place:
    picture: int
    row: int
    column: int
    worth: float


def cases_of(kind: str, network: nn.Module, data: Data, n_regions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Cases of a network, the three kinds of regions by turns, at most one of each kind and picture.

    In a picture, the region of a kind is the one that shows it most: half object with the most border; no object, and the most pixels seen as such; the most
    pixels of the object, and none seen. Pictures come in an order of the seed, one of each group of pictures that depend on each other before a second of
    any; every network starts at another place of it (:data:`_STRIDE`) and takes groups first that it has the fewest regions of: the more independent
    groups there are, the better is known what methods differ by. A network that makes too few errors of a kind has more regions of the others.
    The first regions are the same however many are asked for.

    Returns:
        What :func:`captum_causalseg.compare_cohort` takes: ``id``, ``image``, ``roi``, ``reference`` (what the score is measured against),
        ``place``, ``picture``, ``cluster``.
    """
    with torch.no_grad():
        logits = torch.cat([network(part) for part in data.test_images.split(8)])
    seen, there = data.seen(logits), data.objects(data.test_labels)
    predicted = seen.long() if data.output is None else logits.argmax(1)
    order = picture_order(data, _STRIDE * list(KINDS).index(kind), seed)
    queues = {
        place: [one for picture in order for one in _best(place, picture, seen[picture], there[picture])] for place in PLACES
    }
    found: list[dict[str, Any]] = []
    used: Counter[str] = Counter()
    while len(found) < n_regions and any(queues.values()):
        for place in PLACES:
            if queues[place] and len(found) < n_regions:
                one = min(queues[place], key=lambda other: used[data.clusters[other.picture]])
                queues[place].remove(one)
                used[data.clusters[one.picture]] += 1
                # Against the truth, where there is nothing, Dice is 0 however sure the network is: nothing could move it but its last pixel.
                labels = predicted if place == "false positive" else data.test_labels
                found.append(_case(kind, data, place, one, labels[one.picture]))
    return found


def picture_order(data: Data, start: int = 0, seed: int = 0) -> list[int]:
    """Pictures, by their numbers: one of each group before a second of any, from a place on and around."""
    shuffled = np.random.default_rng(seed).permutation(len(data.test_names)).tolist()
    before: Counter[str] = Counter()
    rounds: dict[int, int] = {}
    for picture in shuffled:
        rounds[picture] = before[data.clusters[picture]]
        before[data.clusters[picture]] += 1
    order = sorted(shuffled, key=lambda picture: rounds[picture])
    return [order[(start + place) % len(order)] for place in range(len(order))]


def border_case(data: Data, picture: int) -> dict[str, Any] | None:
    """The region of a picture with the most border in it, whatever a network sees there, as of :func:`cases_of`; ``None`` without one."""
    there = data.objects(data.test_labels)[picture]
    best = _best("boundary", picture, there, there)
    return _case("any network", data, "boundary", best[0], data.test_labels[picture]) if best else None


def _case(kind: str, data: Data, place: str, one: _Place, reference: Tensor) -> dict[str, Any]:
    name = data.test_names[one.picture]
    return {
        "id": f"{kind}: {place}, {name}",
        "image": data.test_images[one.picture],
        "roi": regions.box(data.size, start=(one.row, one.column), size=ROI),
        "reference": reference.bool() if data.output is None else reference,
        "place": place,
        "picture": name,
        "cluster": data.clusters[one.picture],
    }


def _best(place: str, picture: int, seen: Tensor, there: Tensor) -> list[_Place]:
    """The region of a picture that shows a kind most, if any does."""
    inside, viewed = _counts(there), _counts(seen)
    if place == "boundary":
        border = torch.zeros_like(there)
        border[1:] |= there[1:] != there[:-1]
        border[:, 1:] |= there[:, 1:] != there[:, :-1]
        share = inside / ROI**2
        worth = torch.where((share >= 0.3) & (share <= 0.7) & (viewed >= _LEAST), _counts(border), 0)
    elif place == "false positive":
        worth = torch.where(inside == 0, viewed, 0)
    else:
        worth = torch.where(viewed == 0, inside, 0)
    most = int(worth.argmax())
    row, column = divmod(most, worth.shape[1])
    value = float(worth.flatten()[most])
    return [_Place(picture, row * _STEP, column * _STEP, value)] if value >= _LEAST else []


def _counts(mask: Tensor) -> Tensor:
    """How many pixels of every region that begins at a multiple of the step are in a mask."""
    return (functional.avg_pool2d(mask[None, None].float(), ROI, _STEP)[0, 0] * ROI**2).round()


@dataclass(frozen=True)
class TargetOf:
    """Makes the target of a case: the hard Dice in its region of interest. A class, so that it can be told from others by its network."""

    network: nn.Module

    def __call__(self, case: Mapping[str, Any]) -> SegmentationTarget:
        return SegmentationTarget(self.network, roi=case["roi"], reference=case["reference"])
