"""Prompts elsewhere nearby: clicks anywhere in a disk around their place, boxes with their sides moved by a share of their length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import checked, number
from captum_causalseg.boxes import Box
from captum_causalseg.donors.any_source import AnySource
from captum_causalseg.donors.source import BoundDonors

__all__ = ["BoundMoves", "MovedPrompts", "PromptPlace"]


@dataclass(frozen=True)
class PromptPlace:
    """Where a prompt lies, in the order of its coordinates.

    Args:
        lower, upper: its first and last corner; of a click both are the click.
        spatial: lengths of the image's axes, outside of which it is not moved; ``None`` where it has no bounds.
        is_box: whether its sides are moved, one by one, and not the whole.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    spatial: tuple[int, ...] | None
    is_box: bool = False


class BoundMoves(BoundDonors):
    """Where prompts are moved; they are the positions ``u`` of a tensor ``(N, 1, U)``, in which donor ``k`` is written as ``k + 1``.

    Args:
        source: how far.
        places: ``(N, U)`` of them; ``None`` where an example has no such prompt, or one that has no place.
    """

    def __init__(self, source: "MovedPrompts", places: Sequence[Sequence[PromptPlace | None]]) -> None:
        self._source, self._places = source, places
        self._disks: dict[tuple[int, int], np.ndarray] = {}

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        place = self._places[example][box[0].start]
        if place is None:
            return 0
        if not place.is_box:
            return len(self._disk(example, box[0].start))
        return math.prod(high - low + 1 for low, high in self._sides(place)) - 1

    def offset(self, example: int, unit: int, number: int) -> tuple[int, ...]:
        """What donor ``number`` adds to the prompt's coordinates: one number per axis, of a box one per side."""
        place = self._places[example][unit]
        assert place is not None
        if not place.is_box:
            return tuple(self._disk(example, unit)[number].tolist())
        sides = self._sides(place)
        lengths = [high - low + 1 for low, high in sides]
        # The box as it is, which is no donor, has a number as well.
        unmoved = int(np.ravel_multi_index([-low for low, _ in sides], lengths))
        steps = np.unravel_index(number + (number >= unmoved), lengths)
        return tuple(low + int(step) for (low, _), step in zip(sides, steps))

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`: a prompt comes from no image, its corner is where it is moved to."""
        return -1, self.offset(example, box[0].start, number)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        return torch.full((1, 1), number + 1, dtype=torch.float64, device="cpu")

    def _disk(self, example: int, unit: int) -> np.ndarray:
        """Whole steps ``(m, d)`` of at most the radius, the prompt's own place left out."""
        if (example, unit) not in self._disks:
            place = self._places[example][unit]
            assert place is not None
            reach, d = math.floor(self._source.radius), len(place.lower)
            steps = np.indices((2 * reach + 1,) * d).reshape(d, -1).T - reach
            squares = (steps**2).sum(1)
            fits = (squares > 0) & (squares <= self._source.radius**2)
            if place.spatial is not None:
                fits &= (np.array(place.lower) + steps >= 0).all(1)
                fits &= (np.array(place.upper) + steps <= np.array(place.spatial) - 1).all(1)
            self._disks[example, unit] = steps[fits]
        return self._disks[example, unit]

    def _sides(self, place: PromptPlace) -> list[tuple[int, int]]:
        """Of each of the ``2 d`` sides, the furthest steps down and up; they stay in the image."""
        farthest = [math.floor(self._source.share * (b - a)) for a, b in zip(place.lower, place.upper)]
        bounds = [math.inf] * len(farthest) if place.spatial is None else [length - 1 for length in place.spatial]
        sides = []
        for corner in (place.lower, place.upper):
            for at, far, last in zip(corner, farthest, bounds):
                low = far if place.spatial is None else min(far, max(math.floor(at), 0))
                high = min(far, max(math.floor(last - at), 0)) if math.isfinite(last) else far
                sides.append((-low, high))
        return sides


class MovedPrompts(AnySource):
    """Prompts elsewhere nearby, for :class:`~captum_causalseg.PromptTreatmentEffect`: what if the click had been made a little beside?

    A click (or what is drawn of one in a map of clicks, or a mask) is moved by whole steps to every place of the disk, in volumes the ball,
    of this radius around it, each as likely; each side of a box by at most this share of the box's length along that axis, by itself. Nothing is
    moved out of the image.

    Args:
        radius: of the disk, at least 1, in the prompt's own coordinates (pixels of the image as the model takes it; a mask's own pixels).
        share: of a box's length, above 0 and at most 0.49, so that it keeps an inside.

    Example:
        >>> from captum_causalseg.donors import MovedPrompts
        >>> MovedPrompts(radius=5)
        MovedPrompts(radius=5, share=0.1)
    """

    @checked(radius=number(1), share=number(above=0, most=0.49))
    def __init__(self, radius: float, share: float = 0.1) -> None:
        self.radius, self.share = radius, share

    def bind_places(self, places: Sequence[Sequence[PromptPlace | None]]) -> BoundMoves:
        """Tie the source to prompts ``(N, U)``; ``None`` for those that are not there."""
        return BoundMoves(self, places)
