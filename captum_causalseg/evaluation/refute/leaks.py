"""Donors that are patches of the explained image itself, and say they are not."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg.attr.estimate import Intervention
from captum_causalseg.boxes import Box, size_of
from captum_causalseg.donors import BoundDonors, PatchBank
from captum_causalseg.evaluation.refute.by_hand import ByHand
from captum_causalseg.evaluation.refute.context import RefutationContext

__all__ = ["Leak", "find_leak"]

# So many planned donors show a leak, if there is one that matters.
_MOST = 500


@dataclass(frozen=True)
class Leak:
    """How many donors were found in the explained image.

    Args:
        p: of "no more than chance and the explained image's own share in the bank allow".
        message: what was found.
        n_forwards: what it cost.
    """

    p: float
    message: str
    n_forwards: int


def find_leak(context: RefutationContext) -> Leak:
    """Look for the planned donors in the explained image, exactly, value by value.

    The explained image may be in the bank: it is that one donor image all of whose donors are found in it, and is held against nobody unless
    its donors are drawn more often than its places are among all places. Of other images nothing should be found. What is, may be
    chance: natural images have alike corners, above all in 8 bits. How often that happens is counted on patches of the explained image
    that occur in it a second time. Patches that are constant say nothing.
    """
    by_hand = ByHand(
        explainer=context.explainer,
        inputs=context.inputs,
        target=context.target,
        arguments=context.arguments,
        statistics=context.statistics,
    )
    planned = context.plan(baselines=_as_they_are(context.baselines))
    if not planned:
        return Leak(1.0, "nothing is planned", context.n_forwards_of_plan)
    generator = np.random.default_rng(context.seed)
    chosen = sorted(generator.choice(len(planned), min(_MOST, len(planned)), replace=False).tolist())
    images: dict[tuple[int, int], _Searched] = {}
    found: dict[tuple[int, int], list[bool]] = defaultdict(list)
    by_chance: list[bool] = []
    elsewhere: list[tuple[int, int]] = []
    for step in (planned[index] for index in chosen):
        for (slot, which, _), number, (source, piece) in zip(step.donors, step.numbers, step.sources):
            box = piece.box
            # What a source without images has is all from one place, of which nothing is known.
            if (step.example, slot) not in images:
                for place, tensor in enumerate(by_hand.tensors(step.example)):
                    images[step.example, place] = _Searched(tensor)
            image = images[step.example, slot]
            donor = image.like(_read(source, step, box=box, number=number))
            if not _varies(donor):
                continue
            found[slot, which].append(image.holds(donor))
            own = image.random_patch(size_of(box), generator)
            if own is not None:
                by_chance.append(own)
            another = int(generator.integers(source.population(step.example, box)))
            elsewhere.append((slot, source.locate(step.example, box, another)[0]))
    forwards = context.n_forwards_of_plan + by_hand.n_forwards
    own_image = max(
        (key for key, hits in found.items() if key[1] >= 0 and all(hits)), key=lambda key: len(found[key]), default=None
    )
    others = [hit for key, hits in found.items() if key != own_image for hit in hits]
    p = _p_more(sum(others), len(others), sum(by_chance), of_expected=len(by_chance))
    message = f"{sum(others)} of {len(others)} planned donors are patches of the explained image itself"
    if own_image is not None:
        drawn, total = len(found[own_image]), sum(map(len, found.values()))
        share = elsewhere.count(own_image)
        p_share = _p_more(drawn, total, share, of_expected=len(elsewhere))
        if p_share < p:
            p = p_share
            message = f"{drawn} of {total} planned donors come from the explained image, of which the bank holds {share / len(elsewhere):.1%}"
    return Leak(min(1.0, 2 * p), message, forwards)


def _p_more(hits: int, of: int, expected: int, of_expected: int) -> float:
    """Fisher's exact test of "no larger a share than the other"."""
    if not of or not of_expected:
        return 1.0
    table = [[hits, of - hits], [expected, of_expected - expected]]
    return float(scipy_stats.fisher_exact(table, alternative="greater").pvalue)


def _as_they_are(baselines: Any) -> Any:
    """Donors that are not fitted to the units: those that are lie in no image."""
    if isinstance(baselines, tuple):
        return tuple(_as_they_are(one) for one in baselines)
    return baselines.fitted() if isinstance(baselines, PatchBank) and baselines.fit.changes else baselines


def _read(source: BoundDonors, step: Intervention, *, box: Box, number: int) -> Tensor:
    """A donor as the engine reads it, ``(C or 1, *size)``."""
    corner = np.array([[side.start for side in box]], dtype=np.int64)
    donor = source.read_many(np.array([step.example]), corner, size_of(box), numbers=np.array([number]))[0]
    return donor


def _varies(patch: np.ndarray) -> bool:
    """Whether a patch ``(C, *size)`` is not constant in each of its channels."""
    flat = patch.reshape(len(patch), -1)
    return bool((flat != flat[:, :1]).any())


class _Searched:
    """An image ``(C, *spatial)`` in which patches are looked for."""

    def __init__(self, tensor: Tensor) -> None:
        self._dtype, self._spatial = tensor.dtype, tuple(tensor.shape[1:])
        # In double precision every number is what it was, and NumPy knows it.
        self._image = image = tensor.double().cpu().numpy()
        # Of the channel with the most different values: where each of them lies.
        flat = image.reshape(len(image), -1)
        self._channel = int(np.argmax([len(np.unique(one)) for one in flat]))
        self._order = np.argsort(flat[self._channel], kind="stable")
        self._sorted = flat[self._channel][self._order]

    def like(self, donor: Tensor) -> np.ndarray:
        """A donor's values as they are pasted, for all channels."""
        values: np.ndarray = donor.to(self._dtype).double().expand(len(self._image), *donor.shape[1:]).cpu().numpy()
        return values

    def holds(self, patch: np.ndarray, besides: np.ndarray | None = None) -> bool:
        """Whether a patch ``(C, *size)`` lies somewhere, at a place that does not overlap the one at ``besides``."""
        size = patch.shape[1:]
        values = patch[self._channel].ravel()
        first, last = (np.searchsorted(self._sorted, values, side) for side in ("left", "right"))
        rarest = int(np.argmin(last - first))
        places = self._order[first[rarest] : last[rarest]]
        corners = np.stack(np.unravel_index(places, self._spatial), 1) - np.array(np.unravel_index(rarest, size))
        inside = (corners >= 0).all(1) & (corners + size <= self._spatial).all(1)
        if besides is not None:
            inside &= (np.abs(corners - besides) >= size).any(1)
        return any(
            bool((self._image[(slice(None), *map(slice, corner, corner + size))] == patch).all()) for corner in corners[inside]
        )

    def random_patch(self, size: tuple[int, ...], generator: np.random.Generator) -> bool | None:
        """Whether a patch of the image itself lies in it a second time; ``None`` for one that is constant."""
        room = np.array(self._spatial, dtype=np.int64) - np.array(size, dtype=np.int64)
        if math.prod(size) == 0 or (room < 0).any():
            return None
        corner = generator.integers(room + 1)
        patch = self._image[(slice(None), *map(slice, corner, corner + size))]
        return self.holds(patch, besides=corner) if _varies(patch) else None
