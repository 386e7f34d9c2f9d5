"""Donors whose surroundings resemble the unit's: what could stand there."""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree
from torch import Tensor

from captum_causalseg._checks import NONE, SEED, Check, checked, integer
from captum_causalseg.boxes import Box, box_at, size_of
from captum_causalseg.donors.fitted import FIT, Border, Fit, FittedDonors, Match
from captum_causalseg.donors.gather import alike, read_boxes
from captum_causalseg.donors.images import SizedImages
from captum_causalseg.donors.numbering import n_places, touching, unravel
from captum_causalseg.donors.patch_bank import PatchBank
from captum_causalseg.donors.source import ALL_CHANNELS, BIND, BoundDonors, DonorSource
from captum_causalseg.writing.files import written_whole

__all__ = ["BoundNeighbors", "NeighborBank"]

# How far the surroundings that are compared reach beyond the box, before and after it along each axis.
Reach = tuple[tuple[int, int], ...]


class BoundNeighbors(BoundDonors):
    """The places of a pool whose surroundings resemble those of the unit most.

    Args:
        pools: where they are looked for.
        images: the explained ones, ``(N, C, *spatial)``.
        own: per explained example, which of the bank's images are that very image.
        forbidden: its RoI, ``(N or 1, *spatial)``, which no donor of such an image may touch.
        k: how many neighbors a unit has.
    """

    def __init__(self, pools: "_Pools", images: Tensor, own: list[list[int]], forbidden: Tensor | None, k: int) -> None:
        self._pools, self._images, self._own, self._forbidden, self._k = pools, images, own, forbidden, k
        self._places: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}
        self._last: tuple[int, Surroundings] | None = None

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        return len(self._neighbors(example, box)[0])

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        which, corners = self._neighbors(example, box)
        return int(which[number]), tuple(corners[number].tolist())

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        donor, corner = self.locate(example, box, number)
        return self._pools.images[donor][(slice(None), *box_at(corner, size_of(box)))]

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`."""
        which, places = np.empty(len(numbers), dtype=np.int64), np.empty_like(corners)
        for rows in alike(examples, corners):
            found = self._neighbors(int(examples[rows[0]]), box_at(corners[rows[0]].tolist(), size))
            which[rows], places[rows] = found[0][numbers[rows]], found[1][numbers[rows]]
        return read_boxes(self._pools.images, which, places, size=size, channels=channels)

    def _neighbors(self, example: int, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """The images ``(k,)`` and corners ``(k, d)`` of the nearest places, the nearest first."""
        key = example, tuple(side.start for side in box), size_of(box)
        if key not in self._places:
            image, size = self._images[example], size_of(box)
            pool = self._pools.of(size, reach_in(image.shape[1:], box, self._pools.ring))
            usable = self._usable(example, size, pool)
            if len(usable) < self._k:
                raise ValueError(
                    f"k: expected at most {len(usable)}, the places with their surroundings that the bank's images have for a unit of "
                    f"{size} pixels, got {self._k}; more images, a smaller ring (now {self._pools.ring}) or smaller units give more"
                )
            here = self._surroundings(example).features(np.array([[side.start for side in box]]), size, pool.reach)[0]
            nearest = usable[pool.nearest(here, usable, self._k)]
            self._places[key] = pool.which[nearest], pool.corners[nearest]
        return self._places[key]

    def _surroundings(self, example: int) -> "Surroundings":
        # Units are asked for example by example: of one image, the last one, the tables are held.
        if self._last is None or self._last[0] != example:
            self._last = example, Surroundings(self._images[example])
        return self._last[1]

    def _usable(self, example: int, size: tuple[int, ...], pool: "_Pool") -> np.ndarray:
        """Which places of a pool do not touch the RoI of the explained image itself."""
        usable = np.ones(len(pool.which), dtype=bool)
        if self._forbidden is not None and self._own[example]:
            mask = self._forbidden[example if len(self._forbidden) > 1 else 0]
            grid = n_places(mask.shape, size)
            touches = touching(mask, size).reshape(grid)
            mine = np.isin(pool.which, self._own[example])
            usable[mine] = ~touches[tuple(pool.corners[mine].T)]
        return np.flatnonzero(usable)


class NeighborBank(DonorSource):
    """Donors whose surroundings resemble the unit's surroundings: what could stand there.

    A patch from anywhere asks what any tissue would do in the unit's place; most of it could never stand there, and where it is
    pasted it makes an edge. Here a unit's donors are the ``k`` places, among a stated pool, whose ring (the pixels up to
    ``ring`` around the place's box) is nearest to the unit's own ring in mean, spread and strength of edges, channel by channel.
    What lies inside the boxes is not looked at, neither the unit's nor the donors'.

    **The pool** is ``n_candidates`` places, drawn once per size of a unit at random from all places of the bank whose ring
    lies in their image (all of them, where there are no more). The effect is that of replacing the unit by one of its ``k`` neighbors, all equally
    likely: it is estimated without bias, and exactly once ``n_draws`` reaches ``k``. Another pool or another ``k`` is another question.

    Each feature is divided by its standard deviation over the pool, distances are Euclidean. At the image's edge the ring is what of
    it lies in the image, of the candidates the same part. Irregular units have the ring of their bounding box.

    Args:
        images: as of :class:`PatchBank`, or such a bank, whose images are taken (not its placement, nor how it fits them). Places that touch the explained image's own RoI are left out.
        k: how many neighbors a unit has.
        ring: width of the surroundings that are compared, in pixels.
        n_candidates: size of the pool.
        seed: of the pool.
        cache: a folder for the pools' features; large banks are then read through once per size of a unit, and not once per process.
        cache_images: how many lazily read images are held in memory.
        match, blend, border: how donors are fitted to the place they are pasted into, as of :class:`PatchBank`.

    Raises:
        ValueError: images of unlike channels, or with NaN or infinite values; when units are bound, a pool of fewer than ``k`` places, or
            images that are too small for a unit and its ring.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, NeighborBank
        >>> bank = NeighborBank(torch.rand(20, 1, 16, 16), k=5, ring=2)
        >>> ate = AverageTreatmentEffect(lambda image: image.mean((1, 2, 3)))
        >>> _, stats = ate.attribute(torch.rand(1, 1, 16, 16), bank, block_size=4, n_draws=5, return_statistics=True)
        >>> int(stats.population.max()), float(stats.standard_error.max())
        (5, 0.0)
    """

    @checked(
        k=integer(1),
        ring=integer(1),
        n_candidates=integer(1),
        seed=SEED,
        cache=NONE | Check("a folder's path", lambda value: isinstance(value, (str, Path))),
        cache_images=integer(1),
        **FIT,
    )
    def __init__(
        self,
        images: PatchBank | Tensor | np.ndarray | Sequence[Any] | SizedImages,
        k: int = 100,
        *,
        ring: int = 4,
        n_candidates: int = 20_000,
        seed: int = 0,
        cache: str | Path | None = None,
        cache_images: int = 64,
        match: Match | None = None,
        blend: int = 0,
        border: Border = "feather",
    ) -> None:
        if n_candidates < k:
            raise ValueError(f"k: expected at most n_candidates ({n_candidates}), got {k}")
        self.bank = images if isinstance(images, PatchBank) else PatchBank(images, cache_images=cache_images)
        self.k, self.ring, self.n_candidates, self.seed = k, ring, n_candidates, seed
        self.cache = None if cache is None else Path(cache)
        self.fit = Fit(match, blend, border)
        self.of_the_image = True  # which donors a unit has depends on what is around it
        self._pools: _Pools | None = None

    def __len__(self) -> int:
        return len(self.bank)

    @property
    def n_images(self) -> int:
        """See :attr:`DonorSource.n_images`."""
        return len(self)

    def chosen(self, indices: Sequence[int]) -> "NeighborBank":
        """See :meth:`DonorSource.chosen`; nothing is copied, and pools are drawn from these images alone."""
        return self._of(self.bank.chosen(indices))

    def describe(self) -> dict[str, Any]:
        """See :meth:`DonorSource.describe`; where pools are kept does not matter."""
        asked = {"k": self.k, "ring": self.ring, "n_candidates": self.n_candidates, "seed": self.seed, "fit": self.fit}
        return {"bank": self.bank, **asked}

    def fresh(self) -> "NeighborBank":
        """A bank of the same images with no pool looked through yet."""
        return self._of(self.bank)

    def _of(self, bank: PatchBank) -> "NeighborBank":
        asked: dict[str, Any] = {"ring": self.ring, "n_candidates": self.n_candidates, "seed": self.seed, "cache": self.cache}
        fit: dict[str, Any] = {"match": self.fit.match, "blend": self.fit.blend, "border": self.fit.border}
        return NeighborBank(bank, self.k, **asked, **fit)

    def __repr__(self) -> str:
        asked = f"k={self.k}, ring={self.ring}, n_candidates={self.n_candidates}, seed={self.seed}"
        return f"NeighborBank({len(self)} images, {asked}{f', {self.fit}' if self.fit.changes else ''})"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if images.ndim < 3:
            raise ValueError(f"baselines: inputs of shape {tuple(images.shape)} have no spatial axes, so no surroundings")
        self.bank.bind(images, forbidden)  # checks the bank's images against these
        if self._pools is None:
            self._pools = _Pools(self.bank, ring=self.ring, n_candidates=self.n_candidates, seed=self.seed, cache=self.cache)
        neighbors = BoundNeighbors(self._pools, images.detach(), self.bank.own_images(images), forbidden=forbidden, k=self.k)
        return FittedDonors(neighbors, images.detach(), self.fit) if self.fit.changes else neighbors


def reach_in(spatial: Sequence[int], box: Box, ring: int) -> Reach:
    """How far the ring around a box reaches in an image, before and after it along each axis."""
    return tuple((min(ring, side.start), min(ring, length - side.stop)) for side, length in zip(box, spatial))


class Surroundings:
    """What the rings around boxes of one image are like: mean, standard deviation and mean strength of edges, per channel.

    The strength of an edge is the length of the gradient, by central differences within the image.

    Args:
        image: ``(C, *spatial)``.
    """

    def __init__(self, image: Tensor) -> None:
        values = image.detach().double().cpu().numpy()
        squares = np.zeros_like(values)
        for axis in range(1, values.ndim):
            if values.shape[axis] > 1:
                squares += np.gradient(values, axis=axis) ** 2
        # Around a common level, so that squares keep their digits.
        level = values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
        self._level = level.reshape(1, -1)
        self._tables = [_summed_areas(one) for one in (values - level, (values - level) ** 2, np.sqrt(squares))]

    def features(self, corners: np.ndarray, size: Sequence[int], reach: Reach) -> np.ndarray:
        """The features of the rings around boxes, ``(m, 3 C)``.

        Args:
            corners: ``(m, d)``, of the boxes; their rings lie in the image.
            size: of the boxes.
            reach: how far the rings reach.
        """
        before = np.array([side[0] for side in reach])
        outer = np.array(size) + [sum(side) for side in reach]
        count = int(np.prod(outer) - np.prod(size))
        if count == 0:
            raise ValueError(f"ring: a unit of {tuple(size)} pixels fills its image: it has no surroundings")
        mean, square, edges = (
            (_box_sums(table, corners - before, outer) - _box_sums(table, corners, np.array(size))) / count
            for table in self._tables
        )
        return np.concatenate([mean + self._level, np.sqrt(np.maximum(square - mean**2, 0.0)), edges], axis=1)


@dataclass(frozen=True)
class _Pool:
    """Places of boxes of one size whose rings reach equally far, and what their surroundings are like.

    Args:
        which: ``(m,)``, the bank's image of each.
        corners: ``(m, d)``.
        features: ``(m, F)``, see :class:`Surroundings`.
        reach: of the rings.
    """

    which: np.ndarray
    corners: np.ndarray
    features: np.ndarray
    reach: Reach

    @functools.cached_property
    def _scale(self) -> np.ndarray:
        spread = self.features.std(0)
        # What is the same everywhere tells nobody apart; of rounding no feature is made.
        return np.where(spread > 1e-9 * np.abs(self.features).max(0, initial=0.0), spread, np.inf)

    @functools.cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.features / self._scale)

    def nearest(self, features: np.ndarray, usable: np.ndarray, k: int) -> np.ndarray:
        """Of the ascending ``usable`` places those ``k`` nearest to ``features`` ``(F,)``, as positions among them, nearest first."""
        banned = len(self.which) - len(usable)
        distances, found = self._tree.query(features / self._scale, k=k + banned)
        found = np.atleast_1d(found)[np.lexsort((np.atleast_1d(found), np.atleast_1d(distances)))]
        position = np.searchsorted(usable, found)
        kept = position < len(usable)
        kept[kept] = usable[position[kept]] == found[kept]
        nearest: np.ndarray = position[kept][:k]
        return nearest


class _Pools:
    """The pools of a bank, one per size of a unit and reach of its ring; found once, and kept on disk if that is wanted.

    Args:
        bank: whose images have been read through.
        ring, n_candidates, seed, cache: as of :class:`NeighborBank`.
    """

    def __init__(self, bank: PatchBank, ring: int, n_candidates: int, seed: int, cache: Path | None) -> None:
        self.images, self.ring = bank.images, ring
        self._n_candidates, self._seed, self._cache = n_candidates, seed, cache
        self._digest = hashlib.sha256(repr((bank.images.shapes, bank.fingerprints)).encode()).hexdigest()
        self._found: dict[tuple[tuple[int, ...], Reach], _Pool] = {}

    def of(self, size: tuple[int, ...], reach: Reach) -> _Pool:
        """The pool for units of this size whose rings reach so far."""
        if (size, reach) not in self._found:
            self._found[size, reach] = self._read(size, reach)
        return self._found[size, reach]

    def _read(self, size: tuple[int, ...], reach: Reach) -> _Pool:
        if self._cache is None:
            return self._make(size, reach)
        # Whatever the features depend on is in the name.
        asked = repr((2, self._digest, size, reach, self._n_candidates, self._seed))
        file = self._cache / f"neighbors-{hashlib.sha256(asked.encode()).hexdigest()[:32]}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as kept:
                return _Pool(which=kept["which"], corners=kept["corners"], features=kept["features"], reach=reach)
        pool = self._make(size, reach)
        with written_whole(file) as path, open(path, "wb") as stream:
            np.savez_compressed(stream, which=pool.which, corners=pool.corners, features=pool.features)
        return pool

    def _make(self, size: tuple[int, ...], reach: Reach) -> _Pool:
        outer = np.array(size) + [sum(side) for side in reach]
        grids = n_places(np.array([shape[1:] for shape in self.images.shapes]), outer.tolist())
        counts = np.where((grids < 1).any(1), 0, grids.clip(0).prod(1))
        first = np.concatenate([[0], np.cumsum(counts)])
        total = int(first[-1])
        numbers = np.arange(total)
        if total > self._n_candidates:
            generator = np.random.default_rng(self._seed)
            numbers = np.sort(generator.choice(total, self._n_candidates, replace=False, shuffle=False))
        which = np.searchsorted(first, numbers, side="right") - 1
        corners = unravel(numbers - first[which], np.maximum(grids[which], 1)) + [side[0] for side in reach]
        features = np.empty((len(numbers), 0))
        for rows in alike(which):
            found = Surroundings(self.images[int(which[rows[0]])]).features(corners[rows], size, reach)
            if not features.shape[1]:
                features = np.empty((len(numbers), found.shape[1]))
            features[rows] = found
        return _Pool(which=which, corners=corners, features=features, reach=reach)


def _summed_areas(values: np.ndarray) -> np.ndarray:
    """Of ``(C, *spatial)``, the sums over all boxes that begin at the origin, ``(C, *(spatial + 1))``."""
    table = np.pad(values, [(0, 0)] + [(1, 0)] * (values.ndim - 1))
    for axis in range(1, table.ndim):
        table = table.cumsum(axis)
    return table


def _box_sums(table: np.ndarray, corners: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Sums ``(m, C)`` over boxes, by inclusion and exclusion of their corners."""
    total = np.zeros((len(corners), table.shape[0]))
    for ends in itertools.product((0, 1), repeat=len(size)):
        at = corners + np.array(ends) * size
        total += (-1) ** (len(size) - sum(ends)) * table[(slice(None), *at.T)].T
    return total
