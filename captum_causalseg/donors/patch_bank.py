"""Donors cut from the images of a bank."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import FOLDER, FUNCTION, NONE, SEED, Check, checked, integer, one_of
from captum_causalseg.boxes import Box, box_at, size_of
from captum_causalseg.donors.fitted import FIT, Border, Fit, FittedDonors, Match
from captum_causalseg.donors.gather import ImageRows, Request, alike, read_boxes
from captum_causalseg.donors.images import (
    BankImages,
    DatasetImages,
    FolderImages,
    SizedImages,
    check_images,
    fingerprint,
    same_image,
)
from captum_causalseg.donors.means import BankSums, sum_over_places
from captum_causalseg.donors.numbering import n_places, one_row, skip_holes, touching, unravel
from captum_causalseg.donors.source import ALL_CHANNELS, BIND, BoundDonors, DonorSource

__all__ = ["BoundBank", "PatchBank"]


class BoundBank(BoundDonors):
    """Places in the images of a bank: any place, or (aligned) the unit's own.

    Args:
        images: the bank's.
        aligned: whether donors come from the unit's own place.
        own: per explained example, which of the bank's images are that very image.
        forbidden: its RoI, ``(N or 1, *spatial)``, which no donor of such an image may touch.
        sums: over the bank's images; they outlive this object.
    """

    def __init__(
        self, images: BankImages, aligned: bool, own: list[list[int]], forbidden: Tensor | None, sums: BankSums
    ) -> None:
        self._images, self._aligned, self._sums = images, aligned, sums
        self._own, self._forbidden = own, forbidden
        self._may_have_holes = np.array([forbidden is not None and bool(found) for found in own])
        self._lengths = np.array([shape[1:] for shape in images.shapes], dtype=np.int64)
        self._first: dict[tuple[int, ...], np.ndarray] = {}
        self._holes: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self._means: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def population(self, example: int, box: Box) -> int:
        """See :meth:`BoundDonors.population`."""
        return int(self._first_numbers(size_of(box))[-1]) - len(self._holes_of(example, box))

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """See :meth:`BoundDonors.locate`."""
        which, corners = self._locate_many(*one_row(example, box, number))
        return int(which[0]), tuple(corners[0].tolist())

    def read(self, example: int, box: Box, number: int) -> Tensor:
        """See :meth:`BoundDonors.read`."""
        donor, corner = self.locate(example, box, number)
        return self._images[donor][(slice(None), *box_at(corner, size_of(box)))]

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = ALL_CHANNELS,
    ) -> Tensor:
        """See :meth:`BoundDonors.read_many`."""
        which, places = self._locate_many(examples, corners, size, numbers=numbers)
        return read_boxes(self._images, which, places, size=size, channels=channels)

    def inner_products(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """See :meth:`BoundDonors.inner_products`."""
        if self._images.stacked is not None:
            return super().inner_products(requests)
        # Images outside, requests inside: an image that is read from a file is read once for all of them.
        by_shape: dict[tuple[object, ...], list[int]] = {}
        for index, request in enumerate(requests):
            key = *request.weights.shape, request.channels.start, request.channels.stop
            by_shape.setdefault(key, []).append(index)
        jobs = [(members, self._rows_of([requests[index] for index in members])) for members in by_shape.values()]
        used: set[int] = set().union(*(rows.images for _, rows in jobs))
        for which in sorted(used):
            image = self._images[which]
            for _, rows in jobs:
                rows.serve(which, image)
        products = [np.empty(0)] * len(requests)
        for members, rows in jobs:
            stops = np.cumsum([len(requests[index].numbers) for index in members])
            for index, found in zip(members, np.split(rows.products, stops)):
                products[index] = found
        return products

    def mean(self, example: int, box: Box) -> Tensor:
        """See :meth:`BoundDonors.mean`."""
        count = self.population(example, box)
        size, holes = size_of(box), self._holes_of(example, box)
        if self._aligned:
            inside = (slice(None), *box)
            total = self._sums.image()[inside]
            for donor in holes.tolist():
                total = total - self._images[donor][inside]
            return total / count
        if not len(holes):
            return self._sums.windows(size) / count
        if (example, size) not in self._means:
            first, total = self._first_numbers(size), self._sums.windows(size)
            for donor in self._own[example]:
                places = holes[(holes >= first[donor]) & (holes < first[donor + 1])] - first[donor]
                total = total - sum_over_places(self._images[donor], places, size)
            self._means[example, size] = total / count
        return self._means[example, size]

    def _rows_of(self, requests: Sequence[Request]) -> ImageRows:
        """The donors of all these requests, whose weights are of one shape."""
        owners = np.repeat(np.arange(len(requests)), [len(request.numbers) for request in requests])
        examples = np.array([request.example for request in requests])[owners]
        corners = np.array([[side.start for side in request.box] for request in requests], dtype=np.int64)[owners]
        numbers = np.concatenate([request.numbers for request in requests])
        which, places = self._locate_many(examples, corners, size_of(requests[0].box), numbers=numbers)
        weights = torch.stack([request.weights.double() for request in requests])
        return ImageRows(which=which, corners=places, weights=weights, owners=owners, channels=requests[0].channels)

    def _locate_many(
        self, examples: np.ndarray, corners: np.ndarray, size: tuple[int, ...], numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images ``(B,)`` and corners ``(B, d)`` of the donors of units of one size; arguments as in :meth:`read_many`."""
        first, numbers = self._first_numbers(size), numbers.copy()
        inside = np.flatnonzero(self._may_have_holes[examples])
        # Holes depend on a unit's place only if its donors do.
        for group in alike(examples[inside], corners[inside, : None if self._aligned else 0]):
            rows = inside[group]
            holes = self._holes_of(int(examples[rows[0]]), box_at(corners[rows[0]].tolist(), size))
            numbers[rows] = skip_holes(numbers[rows], holes)
        which = np.searchsorted(first, numbers, side="right") - 1
        if self._aligned:
            return which, corners
        return which, unravel(numbers - first[which], n_places(self._lengths[which], size))

    def _first_numbers(self, size: tuple[int, ...]) -> np.ndarray:
        """Number of each image's first place, and at the end the number of places in all."""
        if size not in self._first:
            grids = n_places(self._lengths, size)
            small = np.flatnonzero((grids < 1).any(1))
            if len(small):
                raise ValueError(
                    f"baselines: donor image {small[0]} of {tuple(self._lengths[small[0]].tolist())} pixels is smaller than a "
                    f"unit of {size} pixels"
                )
            counts = np.ones(len(grids), dtype=np.int64) if self._aligned else grids.prod(1)
            self._first[size] = np.concatenate([[0], np.cumsum(counts)])
        return self._first[size]

    def _holes_of(self, example: int, box: Box) -> np.ndarray:
        """Numbers of the places that touch the explained image's own RoI."""
        if self._forbidden is None or not self._may_have_holes[example]:
            return np.empty(0, dtype=np.int64)
        mask = self._forbidden[example if len(self._forbidden) > 1 else 0]
        size = size_of(box)
        first = self._first_numbers(size)
        if self._aligned:
            touches = bool(mask[box].any())
            return np.array(self._own[example] if touches else [], dtype=np.int64)
        if (example, size) not in self._holes:
            inside = np.flatnonzero(touching(mask, size))
            numbers = [inside + int(first[i]) for i in self._own[example]]
            self._holes[example, size] = np.concatenate(numbers)
        return self._holes[example, size]


_BANK = {
    "placement": one_of("anywhere", "aligned"),
    "n_images": NONE | integer(1),
    "seed": SEED,
    "cache_images": integer(1),
    **FIT,
}
_PATTERN = Check(
    "a pattern of file names",
    lambda value: isinstance(value, str),
    ("a pattern of names inside the folder", lambda value: value != "" and not Path(value).is_absolute()),
)


class PatchBank(DonorSource):
    """Donors cut from images of the data set: the natural choice, and the paper's.

    Args:
        images: ``(D, C, *spatial)``, or a sequence of ``D`` images ``(C, *spatial)``, which may differ in size and may be
            read lazily (anything with ``len`` and indexing). Normalized as the model expects its input. Images as large as the
            units are the paper's patches.
        placement: ``"anywhere"``: a unit's donor is cut at a random place of a random image, every place of every image being
            equally likely. ``"aligned"``: at the unit's own place, for registered images of the input's size.
        cache_images: how many lazily read images are held in memory.
        match: what of the unit's own values a donor is given, channel by channel, so that a patch does not bring a step of brightness
            with it, to which networks answer: ``"mean"`` shifts it to the unit's mean, ``"mean_std"`` scales it to the unit's
            standard deviation as well, ``"histogram"`` gives it the unit's very values in the donor's order. ``None``: raw, as the paper.
        blend: over how many pixels from the unit's border a donor is blended with what was there; 0 for an edge. Where the image
            ends there is no border.
        border: how: ``"feather"`` fades the donor in; ``"poisson"`` blends in the gradient domain (Perez et al. 2003,
            doi:10.1145/882262.882269): the unit's own values on its border, ``blend`` pixels wide (at least 1), and the donor's differences
            between neighbors inside.

    **Fitted donors** (``match``, ``blend``, ``border``) are the same donors in the same draws, each fitted to the place it is pasted into, so that maps with
    and without can be compared unit by unit. They ask another question: what the unit's texture does, not its brightness. All else
    knows of them: rankings, gradients, windows, layers; a bank that is used up is exact.

    Irregular units copy the pixels under their mask. If one of the images is the explained image itself, no donor is cut
    that touches its RoI. On first use the images are read through once, to learn their sizes and to check them.

    Raises:
        ValueError: images of unlike channels, or with NaN or infinite values; when donors are drawn, a match for a unit of one pixel,
            ``"mean_std"`` for a donor that is constant where the unit is not, a blend that leaves no pixel to the donor.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank
        >>> len(PatchBank(torch.rand(1000, 3, 8, 8)))
        1000
        >>> PatchBank(torch.rand(1000, 3, 8, 8), match="mean", blend=2)
        PatchBank(1000 images, placement='anywhere', match='mean', blend=2)
    """

    @checked(_BANK)
    def __init__(
        self,
        images: Tensor | np.ndarray | Sequence[Any] | SizedImages,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        cache_images: int = 64,
        match: Match | None = None,
        blend: int = 0,
        border: Border = "feather",
    ) -> None:
        check_images("images", images)
        self.placement = placement
        self._images = images if isinstance(images, BankImages) else BankImages(images, cache_images)
        self._sums = BankSums(self._images)
        self.fit = Fit(match, blend, border)
        # Fitted donors are made of the explained image, too.
        self.of_the_image = self.fit.changes
        self.fingerprints: list[tuple[float, ...]] | None = None

    @classmethod
    @checked(_BANK)
    def from_dataset(
        cls,
        dataset: Any,
        key: Any = None,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        n_images: int | None = None,
        seed: int = 0,
        cache_images: int = 64,
        match: Match | None = None,
        blend: int = 0,
        border: Border = "feather",
    ) -> "PatchBank":
        """A bank over a torch or MONAI dataset, read lazily. The dataset must return the same image each time.

        Args:
            dataset: anything with ``len`` and indexing.
            key: where an item holds its image: a dictionary key or an index; ``None`` where the item is the image (or a tuple
                that begins with it).
            placement: as in the constructor.
            n_images: take a random subset of this many images.
            seed: seed of that subset.
            cache_images: how many images are held in memory.
            match, blend, border: as in the constructor.

        Example:
            >>> import torch
            >>> from captum_causalseg import PatchBank
            >>> cases = [{"image": torch.rand(1, 16, 16), "label": torch.zeros(16, 16)} for _ in range(10)]
            >>> PatchBank.from_dataset(cases, "image", n_images=4)
            PatchBank(4 images, placement='anywhere')
        """
        check_images("dataset", dataset, are_items=True)
        indices = np.arange(len(dataset))
        if n_images is not None:
            if n_images > len(dataset):
                raise ValueError(f"n_images: expected 1..{len(dataset)}, got {n_images}")
            indices = np.sort(np.random.default_rng(seed).choice(indices, n_images, replace=False))
        return cls(
            DatasetImages(dataset, key, indices), placement, cache_images=cache_images, match=match, blend=blend, border=border
        )

    @classmethod
    @checked(_BANK, folder=FOLDER, pattern=_PATTERN, transform=NONE | FUNCTION)
    def from_folder(
        cls,
        folder: str | Path,
        pattern: str = "*",
        transform: Callable[[Tensor], Tensor] | None = None,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        n_images: int | None = None,
        seed: int = 0,
        cache_images: int = 64,
        match: Match | None = None,
        blend: int = 0,
        border: Border = "feather",
    ) -> "PatchBank":
        """A bank over the image files of a folder (whatever :func:`captum_causalseg.images.load_image` reads), read lazily, in order of name.

        Args:
            folder: where the files are.
            pattern: which of them, e.g. ``"*.nii.gz"``.
            transform: from the file's image ``(C, *spatial)``, float32, to what the model expects (normalization, spacing).
            placement, n_images, seed, cache_images, match, blend, border: as in :meth:`from_dataset`.

        Example:
            >>> import pathlib, tempfile
            >>> import numpy as np
            >>> from PIL import Image
            >>> from captum_causalseg import PatchBank
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> for number in range(3):
            ...     Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(folder / f"{number}.png")
            >>> PatchBank.from_folder(folder, "*.png", transform=lambda image: image / 255)
            PatchBank(3 images, placement='anywhere')
        """
        files = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if not files:
            raise ValueError(f"folder: no file matches {pattern!r} in {str(folder)!r}")
        dataset = FolderImages(files, transform)
        given: dict[str, Any] = {"cache_images": cache_images, "match": match, "blend": blend, "border": border}
        return cls.from_dataset(dataset, None, placement, n_images=n_images, seed=seed, **given)

    @property
    def n_images(self) -> int:
        """See :attr:`DonorSource.n_images`."""
        return len(self)

    @checked(FIT)
    def fitted(self, match: Match | None = None, blend: int = 0, border: Border = "feather") -> "PatchBank":
        """A bank of the same donors, fitted in another way to where they are pasted; nothing is read or copied.

        With the same seed a unit meets the same donors from both, so that their maps can be compared unit by unit.

        Args:
            match, blend, border: as in the constructor.

        Example:
            >>> import torch
            >>> from captum_causalseg import PatchBank
            >>> PatchBank(torch.rand(10, 1, 8, 8)).fitted(match="mean")
            PatchBank(10 images, placement='anywhere', match='mean')
        """
        bank = self._like(self._images, Fit(match, blend, border))
        bank._sums, bank.fingerprints = self._sums, self.fingerprints
        return bank

    def _like(self, images: BankImages, fit: Fit) -> "PatchBank":
        return PatchBank(images, self.placement, match=fit.match, blend=fit.blend, border=fit.border)

    def chosen(self, indices: Sequence[int]) -> "PatchBank":
        """See :meth:`DonorSource.chosen`; nothing is copied, placement and ``cache_images`` are this bank's."""
        part = self._like(self._images.chosen(indices), self.fit)
        if self.fingerprints is not None:
            part.fingerprints = [self.fingerprints[index] for index in indices]
        return part

    def describe(self) -> dict[str, Any]:
        """See :meth:`DonorSource.describe`."""
        kept = {key: one for key, one in super().describe().items() if key not in ("_images", "_sums", "fingerprints")}
        return kept | {"images": self._images}

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        fit = f", {self.fit}" if self.fit.changes else ""
        return f"PatchBank({len(self)} images, placement={self.placement!r}{fit})"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        self._index()
        channels, n_spatial = images.shape[1], images.ndim - 2
        for index, shape in enumerate(self._images.shapes):
            if len(shape) != n_spatial + 1 or shape[0] != channels:
                raise ValueError(
                    f"baselines: donor image {index} has shape {shape}; expected (C, *spatial) with C={channels} and {n_spatial} "
                    f"spatial axes, as the input {tuple(images.shape)} has"
                )
            if self.placement == "aligned" and shape[1:] != tuple(images.shape[2:]):
                raise ValueError(
                    f"baselines: with aligned placement every donor image must have the input's spatial shape "
                    f"{tuple(images.shape[2:])}; image {index} has {shape[1:]}"
                )
        if not self._images[0].is_floating_point():
            raise ValueError(
                f"baselines: donors are {self._images[0].dtype}, the input {images.dtype}: normalize them as the model's input"
            )
        places = BoundBank(
            images=self._images,
            aligned=self.placement == "aligned",
            own=self.own_images(images),
            forbidden=forbidden,
            sums=self._sums,
        )
        return FittedDonors(places, images.detach(), self.fit) if self.fit.changes else places

    @property
    def images(self) -> BankImages:
        """The bank's images, by number."""
        return self._images

    def _index(self) -> None:
        """Read through the images once: shapes, finiteness, and what it takes to recognize the explained image."""
        if self.fingerprints is not None:
            return
        fingerprints = []
        for index in range(len(self._images)):
            image = self._images[index]
            if image.is_floating_point() and not bool(image.isfinite().all()):
                raise ValueError(f"baselines: donor image {index} holds NaN or infinite values")
            fingerprints.append(fingerprint(image))
        self.fingerprints = fingerprints

    def own_images(self, images: Tensor) -> list[list[int]]:
        """Per example, which of the bank's images are that very image."""
        assert self.fingerprints is not None
        own = []
        for example in images:
            mark = fingerprint(example)
            candidates = [i for i, other in enumerate(self.fingerprints) if other == mark]
            own.append([i for i in candidates if same_image(self._images[i], example)])
        return own
