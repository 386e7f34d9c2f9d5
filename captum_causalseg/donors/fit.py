"""Donors fitted to the place they are pasted into: matched in brightness, blended at the unit's border.

A raw patch differs from the tissue around it, so pasting it adds a step of brightness and an edge, and networks answer to edges.
What is done here takes the step away and leaves the donor's texture. All of it acts on each donor alone, so that a donor keeps its
number, and draws are the same with and without it; and a unit that is given its own values is left as it is, exactly.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse.linalg import factorized
from torch import Tensor

__all__ = ["MATCHES", "Feather", "Poisson", "matched"]

MATCHES = ("mean", "mean_std", "histogram")
"""What of a unit's own values donors can be given, per channel: see :func:`matched`."""


def matched(donors: Tensor, own: Tensor, mask: Tensor | None, match: str) -> Tensor:
    """Donors with the mean, the mean and spread, or all the values of the unit that they replace, channel by channel.

    Args:
        donors: ``(B, C, *box)``.
        own: the unit's own values, ``(B, C, *box)``.
        mask: boolean ``(C or 1, *box or ones)``, which elements of the box are the unit's; ``None`` for all. Only these are looked
            at, and only these are meaningful in what is returned.
        match: ``"mean"``: the donor is shifted, ``b + mean(x) - mean(b)``. ``"mean_std"``: shifted and scaled,
            ``(b - mean(b)) std(x) / std(b) + mean(x)``. ``"histogram"``: the donor's smallest value becomes the unit's smallest, and
            so on in order (exact histogram specification); equal values keep the order of their places.

    Returns:
        ``(B, C, *box)`` in the donors' dtype.

    Raises:
        ValueError: ``"mean_std"`` of a donor that is constant while the unit is not.
    """
    inside = _flat(mask, donors)
    if match == "histogram":
        return _by_rank(donors, own, inside)
    axes = tuple(range(2, donors.ndim))
    weight = (donors.new_ones(donors.shape[1:]) if inside is None else inside.to(donors.device)).double()
    count = weight.sum(tuple(range(1, weight.ndim)), keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (values.double() * weight).sum(axes, keepdim=True) / count

    here, there = mean(own), mean(donors)
    scale: Tensor | float = 1.0
    if match == "mean_std":
        mine, theirs = (mean((values.double() - centre) ** 2).sqrt() for values, centre in ((own, here), (donors, there)))
        # A constant is what its rounded mean makes of it: all values are compared with the first.
        flat = _constant(donors, inside)
        if bool((flat & ~_constant(own, inside)).any()):
            row, channel = (int(index) for index in (flat & ~_constant(own, inside)).flatten(1).nonzero()[0])
            raise ConstantDonorError(row, channel)
        # Where both are constant, only the shift is left to do.
        scale = torch.where(flat, 1.0, mine / torch.where(flat, 1.0, theirs))
    # Of a donor that is the unit itself, scale and shift are exactly 1 and 0.
    return (donors.double() * scale + (here - there * scale)).to(donors.dtype)


class ConstantDonorError(ValueError):
    """A donor has no spread that could be scaled to the unit's.

    Args:
        row: which of the donors.
        channel: which of its channels.
    """

    def __init__(self, row: int, channel: int) -> None:
        super().__init__(
            f'match: "mean_std" scales a donor to the spread of the unit, but channel {channel} of a donor is constant; "mean" shifts '
            "it only"
        )
        self.row, self.channel = row, channel


class Feather:
    """Donors faded in from the unit's border: ``x + w (b - x)``, with ``w`` rising from the border inward.

    An element at distance ``d`` from what lies outside the unit (1 for the outermost ones) has ``w = min(1, d / (width + 1))``.
    At the image's edge nothing lies outside, and nothing is faded.

    Args:
        mask: boolean ``(*box)``, the unit.
        open_sides: per spatial axis, whether the image goes on before and after the box.
        width: in pixels.

    Raises:
        ValueError: no element of the unit is left at full weight.
    """

    def __init__(self, mask: np.ndarray, open_sides: Sequence[tuple[bool, bool]], width: int) -> None:
        distance = _distance(mask, open_sides)
        weight = np.where(mask, np.minimum(1.0, distance / (width + 1)), 0.0)
        if weight.max() < 1:
            raise ValueError(
                f"blend: expected less than {int(np.ceil(distance.max()))} pixel(s) for a unit of {mask.shape} pixels, got {width}: "
                "no pixel of the unit would be the donor's"
            )
        self._weight = torch.from_numpy(weight)

    def __call__(self, donors: Tensor, own: Tensor) -> Tensor:
        """The faded donors ``(B, C, *box)``."""
        weight = self._weight.to(donors)
        # Not (1 - w) x + w b: of equal values that would not be the value.
        return torch.where(weight == 1, donors, own + weight * (donors - own))

    def pulled_back(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What weights ``(C, *box)`` of the faded donors are as weights of the donors, and of the unit's own values."""
        of_donor = weights * self._weight.to(weights)
        return of_donor, weights - of_donor


class Poisson:
    """Donors in the gradient domain: their differences between neighbors inside the unit, its own values along its border.

    The seamless cloning of Perez, Gangnet and Blake 2003 (doi:10.1145/882262.882269): ``b + h``, where ``h`` is the harmonic
    function (of the grid of nearest neighbors) that makes up the difference ``x - b`` on the unit's border, its outermost elements
    toward the rest of the image. Of a donor that differs by a constant, nothing is left of the constant; the
    matrix is factored once.

    Args:
        mask: boolean ``(*box)``, the unit.
        open_sides: as of :class:`Feather`; without any open side there is no border to fit to.
        width: of the border, in pixels.

    Raises:
        ValueError: the unit has no element besides its border.
    """

    def __init__(self, mask: np.ndarray, open_sides: Sequence[tuple[bool, bool]], width: int = 1) -> None:
        distance = _distance(mask, open_sides)
        border = mask & (distance < width + 1)
        self._border = np.flatnonzero(border)
        inner = mask & ~border
        self._inner = np.flatnonzero(inner)
        if not len(self._inner):
            raise ValueError(
                f'border: "poisson" keeps the outermost pixels of a unit as they are, {width} deep, and a unit of {mask.shape} pixels has '
                "no others; choose larger units or a smaller blend"
            )
        self._solve: Callable[[np.ndarray], np.ndarray] | None = None
        if len(self._border):
            matrix = _laplacian(mask)
            rows = matrix[self._inner]
            self._solve = factorized(rows[:, self._inner].tocsc())
            self._coupling = rows[:, self._border]

    def __call__(self, donors: Tensor, own: Tensor) -> Tensor:
        """The blended donors ``(B, C, *box)``."""
        if self._solve is None:
            return donors
        flat = donors.flatten(2)
        border, inner = (torch.from_numpy(index).to(donors.device) for index in (self._border, self._inner))
        missing = own.expand_as(donors).flatten(2)[:, :, border].double() - flat[:, :, border].double()
        known = missing.cpu().numpy().reshape(-1, len(self._border))
        # Off the diagonal the matrix is -1, so what is known goes over with the opposite sign.
        found = self._solve(-(self._coupling @ known.T)).T.reshape(*flat.shape[:2], -1)
        height = torch.zeros_like(flat, dtype=torch.float64)
        height[:, :, inner] = torch.from_numpy(found).to(donors.device)
        height[:, :, border] = missing
        blended = (flat.double() + height).to(donors.dtype)
        blended[:, :, border] = own.expand_as(donors).flatten(2)[:, :, border].to(donors.dtype)
        return blended.view_as(donors)

    def pulled_back(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What weights ``(C, *box)`` of the blended donors are as weights of the donors, and of the unit's own values."""
        if self._solve is None:
            return weights, torch.zeros_like(weights)
        flat = weights.flatten(1).double().cpu().numpy()
        # The matrix is symmetric, so it is its own transpose.
        of_border = flat[:, self._border] - (self._coupling.T @ self._solve(flat[:, self._inner].T)).T
        of_own = np.zeros_like(flat)
        of_own[:, self._border] = of_border
        found = torch.from_numpy(of_own).to(weights).view_as(weights)
        return weights - found, found


def _flat(mask: Tensor | None, donors: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(donors.shape[1:]) if mask.shape[0] > 1 else mask.expand(1, *donors.shape[2:])


def _constant(values: Tensor, inside: Tensor | None) -> Tensor:
    """Where ``(B, C, 1, ...)`` all the unit's values are one."""
    flat = values.flatten(2)
    mask = torch.ones_like(flat[:1], dtype=torch.bool) if inside is None else inside.to(values.device).flatten(1)[None]
    low = torch.where(mask, flat, torch.inf).amin(2)
    high = torch.where(mask, flat, -torch.inf).amax(2)
    return (low == high).view(*low.shape, *(1,) * (values.ndim - 2))


def _by_rank(donors: Tensor, own: Tensor, inside: Tensor | None) -> Tensor:
    own = own.expand_as(donors).to(donors.dtype)
    result = donors.clone(memory_format=torch.contiguous_format).flatten(2)
    for channel in range(donors.shape[1]):
        chosen: Tensor | slice = slice(None)
        if inside is not None:
            chosen = inside[channel if len(inside) > 1 else 0].flatten().nonzero()[:, 0].to(donors.device)
        theirs, mine = (values[:, channel].flatten(1)[:, chosen] for values in (donors, own))
        order = theirs.argsort(dim=1, stable=True)
        # A unit's own values go back to their own places where it has equal ones.
        values = torch.empty_like(theirs).scatter_(1, order, mine.sort(1).values)
        result[:, channel, chosen] = values
    return result.view(donors.shape)


def _distance(mask: np.ndarray, open_sides: Sequence[tuple[bool, bool]]) -> np.ndarray:
    """Of every element of the unit, the distance to the nearest that lies outside it and in the image; infinite if there is none."""
    outside = np.pad(~mask, 1, constant_values=False)
    for axis, sides in enumerate(open_sides):
        for is_open, index in zip(sides, (0, -1)):
            if is_open:
                outside[(slice(None),) * axis + (index,)] = True
    # A corner of the frame belongs to the image only if the image goes on along all axes on which it lies outside the box.
    for axis, sides in enumerate(open_sides):
        for is_open, index in zip(sides, (0, -1)):
            if not is_open:
                outside[(slice(None),) * axis + (index,)] = False
    if not outside.any():
        return np.full(mask.shape, np.inf)
    inner = tuple(slice(1, -1) for _ in mask.shape)
    distance: np.ndarray = ndimage.distance_transform_edt(~outside)[inner]
    return distance


def _laplacian(mask: np.ndarray) -> sparse.csr_matrix:
    """``(P, P)`` over the box's elements: of the graph of neighbors along an axis that both lie in the unit."""
    numbers = np.arange(mask.size).reshape(mask.shape)
    pairs = []
    for axis in range(mask.ndim):
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        both = mask[before] & mask[after]
        pairs.append(np.stack([numbers[before][both], numbers[after][both]]))
    i, j = np.concatenate(pairs, axis=1)
    adjacency = sparse.coo_matrix(
        (np.ones(2 * len(i)), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(mask.size,) * 2
    )
    degree = sparse.diags(np.asarray(adjacency.sum(1)).ravel())
    return (degree - adjacency).tocsr()
