"""Donors of a source, each fitted to the place that it is pasted into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import NONE, integer, one_of
from captum_causalseg.boxes import Box
from captum_causalseg.donors.fit import MATCHES, ConstantDonorError, Feather, Poisson, matched
from captum_causalseg.donors.gather import Request, alike, cut, rows_at_once
from captum_causalseg.donors.source import ALL_CHANNELS, BoundDonors, Recipients

__all__ = ["FIT", "Border", "Fit", "FittedDonors", "Match", "fewest_elements"]

Match = Literal["mean", "mean_std", "histogram"]
Border = Literal["feather", "poisson"]
FIT = {"match": NONE | one_of(*MATCHES), "blend": integer(0), "border": one_of("feather", "poisson")}
"""What the arguments that say how donors are fitted have to be."""


@dataclass(frozen=True)
class Fit:
    """How donors are fitted to the place that they are pasted into.

    Args:
        match: what of the unit's own values a donor is given, per channel; ``None`` for nothing.
        blend: over how many pixels from the unit's border a donor is blended with what was there.
        border: how: ``"feather"`` fades it in; ``"poisson"`` keeps the donor's differences between neighbors and the unit's own values on
            its border, ``blend`` pixels wide (at least 1).
    """

    match: Match | None = None
    blend: int = 0
    border: Border = "feather"

    @property
    def changes(self) -> bool:
        """Whether donors are changed at all."""
        return self.match is not None or self.blends

    @property
    def blends(self) -> bool:
        """Whether donors are changed at the unit's border."""
        return self.blend > 0 or self.border == "poisson"

    @property
    def is_affine(self) -> bool:
        """Whether what a unit becomes is an affine function of the donor, so that the mean donor gives the mean of them."""
        return self.match in (None, "mean")

    def __repr__(self) -> str:
        parts = [f"match={self.match!r}"] * (self.match is not None) + [f"blend={self.blend}"] * (self.blend > 0)
        return ", ".join(parts + [f"border={self.border!r}"] * (self.border != "feather"))


def fewest_elements(size: Sequence[int], mask: Tensor | None) -> int:
    """How many elements a unit has, of its channels in the one with the fewest.

    Args:
        size: of its box.
        mask: boolean ``(channels or 1, *size or ones)``, which elements of the box are its own; ``None`` for all.
    """
    if mask is None:
        return math.prod(size)
    return int(mask.expand(len(mask), *size).flatten(1).sum(1).min())


class FittedDonors(BoundDonors):
    """The donors of a bound source, fitted to the units that are given them. Numbers, places and draws are the source's.

    Args:
        donors: the source, bound to the images.
        images: that are explained, ``(N, C, *spatial)``.
        fit: what is done.
    """

    def __init__(self, donors: BoundDonors, images: Tensor, fit: Fit) -> None:
        self._donors, self._images, self._fit = donors, images, fit
        self._borders: dict[tuple[object, ...], Feather | Poisson] = {}

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        return self._donors.population(example, box)

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        return self._donors.locate(example, box, number)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`; of a unit that fills its box."""
        return self.values(Recipients.one(example, box), np.array([number]))[0]

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`; of units that fill their boxes."""
        return self.values(Recipients(examples=examples, corners=corners, size=size, channels=channels), numbers)

    def mean(self, example: int, box: Box) -> Tensor:
        """See :meth:`BoundDonors.mean`; of a unit that fills its box."""
        return self.mean_value(example, box)

    def values(self, units: Recipients, numbers: np.ndarray) -> Tensor:
        """See :meth:`BoundDonors.values`."""
        found = self._donors.values(units, numbers)
        try:
            return self._fitted(found.to(self._images.dtype), units)
        except ConstantDonorError as error:
            box = tuple(slice(a, a + n) for a, n in zip(units.corners[error.row].tolist(), units.size))
            image, corner = self._donors.locate(int(units.examples[error.row]), box, int(numbers[error.row]))
            raise ValueError(f"{error} (donor image {image}, at {corner})") from None

    def mean_value(self, example: int, box: Box, channels: slice = ALL_CHANNELS, mask: Tensor | None = None) -> Tensor:
        """See :meth:`BoundDonors.mean_value`."""
        if self._fit.is_affine:
            mean = self._donors.mean_value(example, box, channels=channels, mask=mask)[None]
            return self._fitted(mean, Recipients.one(example, box, channels=channels, mask=mask))[0]
        count = self.population(example, box)
        total, start, most = torch.zeros(()), 0, 1
        while start < count:
            numbers = np.arange(start, min(start + most, count))
            values = self.values(Recipients.one(example, box, channels=channels, mask=mask, count=len(numbers)), numbers)
            total = total.to(values.device) + values.double().sum(0)
            start, most = start + len(numbers), rows_at_once((1,), values.shape[1:])
        return total / count

    def inner_products(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """See :meth:`BoundDonors.inner_products`."""
        if not self._fit.is_affine:
            return super().inner_products(requests)
        # Of the donors as they are, with weights that are pulled back through the fit: a bank of files is read as fast as without.
        pulled = [self._pulled_back(request) for request in requests]
        products = self._donors.inner_products([request for request, _ in pulled])
        return [found + constant for found, (_, constant) in zip(products, pulled)]

    def _fitted(self, donors: Tensor, units: Recipients) -> Tensor:
        own = self._own(units).to(donors)
        donors = donors.expand_as(own)
        self._check_size(units)
        if self._fit.match is not None:
            donors = matched(donors, own, mask=units.mask, match=self._fit.match)
        if not self._fit.blends:
            return donors
        blended = donors.clone(memory_format=torch.contiguous_format)
        open_sides = self._open_sides(units)
        for rows in alike(open_sides.reshape(len(donors), -1)):
            some = torch.from_numpy(rows).to(donors.device)
            for channels, border in self._borders_of(units, open_sides[rows[0]]):
                blended[some, channels] = border(donors[some, channels], own[some, channels])
        return blended

    def _pulled_back(self, request: Request) -> tuple[Request, float]:
        """Weights ``v`` and a constant, such that ``<v, b> + constant`` is ``<w, fitted b>``."""
        unit = Recipients.one(request.example, request.box, channels=request.channels, mask=request.mask)
        self._check_size(unit)
        own = self._own(unit)[0].double()
        weights = request.weights.double().to(own.device).expand(own.shape).clone()
        constant = 0.0
        if self._fit.blends:
            for channels, border in self._borders_of(unit, self._open_sides(unit)[0]):
                of_donor, of_own = border.pulled_back(weights[channels])
                weights[channels] = of_donor
                constant += float((of_own * own[channels]).sum())
        if self._fit.match == "mean":
            mask = torch.ones_like(own) if unit.mask is None else unit.mask.to(own).expand(own.shape)
            axes = tuple(range(1, own.ndim))
            share = mask * (weights.sum(axes, keepdim=True) / mask.sum(axes, keepdim=True))
            weights = weights - share
            constant += float((share * own).sum())
        return replace(request, weights=weights), constant

    def _own(self, units: Recipients) -> Tensor:
        return cut(self._images[:, units.channels], units.examples, units.corners, size=units.size)

    def _check_size(self, units: Recipients) -> None:
        if self._fit.match is None:
            return
        fewest = fewest_elements(units.size, units.mask)
        if fewest < 2:
            raise ValueError(
                f"match: a unit of one pixel has only its own value to be given, and every effect would be 0 (match={self._fit.match!r}); "
                "choose larger units, or match=None"
            )

    def _shape(self, units: Recipients) -> np.ndarray:
        """The unit within its box, boolean ``(channels or 1, *size)``."""
        if units.mask is None:
            return np.ones((1, *units.size), dtype=bool)
        return np.broadcast_to(units.mask.cpu().numpy(), (len(units.mask), *units.size))

    def _open_sides(self, units: Recipients) -> np.ndarray:
        """``(B, d, 2)``: whether the image goes on before and after each box."""
        lengths = np.array(self._images.shape[2:])
        return np.stack([units.corners > 0, units.corners + np.array(units.size) < lengths], axis=2)

    def _borders_of(self, units: Recipients, open_sides: np.ndarray) -> list[tuple[slice, Feather | Poisson]]:
        """What blends which channels; weights and factors are made once per shape of a unit."""
        shape = self._shape(units)
        sides = [(bool(before), bool(after)) for before, after in open_sides]
        found = []
        for channel, mask in enumerate(shape):
            key = units.size, mask.tobytes(), tuple(sides)
            if key not in self._borders:
                if self._fit.border == "poisson":
                    self._borders[key] = Poisson(mask, sides, max(self._fit.blend, 1))
                else:
                    self._borders[key] = Feather(mask, sides, self._fit.blend)
            found.append((slice(None) if len(shape) == 1 else slice(channel, channel + 1), self._borders[key]))
        return found
