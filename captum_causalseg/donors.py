"""What a unit is replaced by: natural donors cut from images, constants, blur.

A :class:`DonorSource` is bound to the images that are explained and then answers two questions about a unit, given by
the spatial box around it: how many different donors are there (``population``), and what is donor number ``k``
(``locate``, ``read``). Donors are read when they are drawn, never all at once.
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Blur", "BoundDonors", "Constant", "DonorSource", "PatchBank", "SameImage", "as_donor_source"]

Box = tuple[slice, ...]
"""A unit's bounding box over the spatial axes."""


class SizedImages(Protocol):
    """Images ``(C, *spatial)`` by number, read when asked for; a torch or MONAI dataset of images is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class BoundDonors(ABC):
    """A donor source for given images ``(N, C, *spatial)``; donors of a unit are numbered ``0 .. population - 1``."""

    @abstractmethod
    def population(self, example: int, box: Box) -> int:
        """How many different donors the unit in ``box`` of this example has."""

    @abstractmethod
    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        """Which image donor ``number`` comes from (-1: none) and where in it the box lies (its first corner)."""

    @abstractmethod
    def read(self, example: int, box: Box, number: int) -> Tensor:
        """The donor's values, ``(C or 1, *box shape)``."""


class DonorSource(ABC):
    """Where donors come from. Subclass it, with a :class:`BoundDonors`, to add a source of one's own."""

    @abstractmethod
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """Check the source against the images to be explained and tie it to them.

        Args:
            images: ``(N, C, *spatial)``.
            forbidden: boolean ``(N or 1, *spatial)``: pixels of the explained image (its RoI) that no donor may contain.

        Raises:
            ValueError: donors with other channels than the images, smaller than a unit, or not finite.
        """


class Constant(DonorSource):
    """The same value everywhere: a number, or one per channel.

    Args:
        value: a finite number or a sequence of ``C`` numbers.

    Example:
        >>> from captum_causalseg.donors import Constant
        >>> Constant(0.0)
        Constant(0.0)
    """

    def __init__(self, value: float | Sequence[float]) -> None:
        self.value = value
        self._values = torch.as_tensor(value, dtype=torch.float64)
        if self._values.ndim > 1 or not bool(self._values.isfinite().all()):
            raise ValueError(f"value: expected a finite number, or one per channel, got {value}")

    def __repr__(self) -> str:
        return f"Constant({self.value})"

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if self._values.ndim == 1 and len(self._values) != images.shape[1]:
            raise ValueError(f"baselines: {len(self._values)} values given for images of {images.shape[1]} channels")
        return _BoundWhole(self._values.reshape(1, -1, *(1,) * (images.ndim - 2)))


class Blur(DonorSource):
    """The image itself, blurred: removes detail, keeps brightness.

    Args:
        sigma: standard deviation of the Gaussian, in pixels.
    """

    def __init__(self, sigma: float = 4.0) -> None:
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma: expected a positive number of pixels, got {sigma}")
        self.sigma = sigma

    def __repr__(self) -> str:
        return f"Blur(sigma={self.sigma})"

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        from monai.networks.layers import GaussianFilter

        n_spatial = images.ndim - 2
        if n_spatial < 1:
            raise ValueError("baselines: Blur needs images with spatial axes")
        smooth = GaussianFilter(n_spatial, self.sigma).to(images)
        with torch.no_grad():
            # A blurred field of ones makes up for the zeros that the filter sees beyond the image's edge.
            blurred = smooth(images.detach()) / smooth(torch.ones_like(images[:1, :1]))
        return _BoundWhole(blurred)


class PatchBank(DonorSource):
    """Donors cut from images of the data set: the natural choice, and the paper's.

    Args:
        images: ``(D, C, *spatial)``, or a sequence of ``D`` images ``(C, *spatial)``, which may differ in size and may be
            read lazily (anything with ``len`` and indexing). Normalized as the model expects its input. Images as large as the
            units are the paper's patches.
        placement: ``"anywhere"``: a unit's donor is cut at a random place of a random image, every place of every image being
            equally likely. ``"aligned"``: at the unit's own place, for registered images of the input's size.
        cache_images: how many lazily read images are held in memory.

    Irregular units copy the pixels under their mask. If one of the images is the explained image itself, no donor is cut
    that touches its RoI. On first use the images are read through once, to learn their sizes and to check them.

    Raises:
        ValueError: images of unlike channels, or with NaN or infinite values.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank
        >>> len(PatchBank(torch.rand(1000, 3, 8, 8)))
        1000
    """

    def __init__(
        self,
        images: Tensor | np.ndarray | Sequence[Any] | SizedImages,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        cache_images: int = 64,
    ) -> None:
        if placement not in ("anywhere", "aligned"):
            raise ValueError(f'placement: expected "anywhere" or "aligned", got {placement!r}')
        if isinstance(cache_images, bool) or not isinstance(cache_images, int) or cache_images < 1:
            raise ValueError(f"cache_images: expected a positive integer, got {cache_images!r}")
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise TypeError(f"images: expected a tensor or a sequence of images, got {type(images).__name__}")
        if len(images) == 0:
            raise ValueError("images: the bank is empty")
        self.placement = placement
        self._images = _Images(images, cache_images)
        self._fingerprints: list[tuple[float, ...]] | None = None

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        key: Any = None,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        n_images: int | None = None,
        seed: int = 0,
        cache_images: int = 64,
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
        """
        indices = np.arange(len(dataset))
        if n_images is not None:
            if not 1 <= n_images <= len(dataset):
                raise ValueError(f"n_images: expected 1..{len(dataset)}, got {n_images}")
            indices = np.sort(np.random.default_rng(seed).choice(indices, n_images, replace=False))
        return cls(_DatasetImages(dataset, key, indices), placement, cache_images=cache_images)

    @classmethod
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
    ) -> "PatchBank":
        """A bank over the image files of a folder (whatever MONAI's ``LoadImage`` reads), read lazily, in order of name.

        Args:
            folder: where the files are.
            pattern: which of them, e.g. ``"*.nii.gz"``.
            transform: from the file's image ``(C, *spatial)``, float32, to what the model expects (normalization, spacing).
            placement, n_images, seed, cache_images: as in :meth:`from_dataset`.
        """
        files = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if not files:
            raise ValueError(f"folder: no file matches {pattern!r} in {str(folder)!r}")
        dataset = _FolderImages(files, transform)
        return cls.from_dataset(dataset, None, placement, n_images=n_images, seed=seed, cache_images=cache_images)

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"PatchBank({len(self)} images, placement={self.placement!r})"

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        self._index()
        channels, n_spatial = images.shape[1], images.ndim - 2
        for index, shape in enumerate(self._images.shapes):
            if len(shape) != n_spatial + 1 or shape[0] not in (1, channels):
                raise ValueError(
                    f"baselines: donor image {index} has shape {shape}; expected (C, *spatial) with C={channels} and {n_spatial} "
                    f"spatial axes, as the input {tuple(images.shape)} has"
                )
            if self.placement == "aligned" and any(d not in (1, s) for d, s in zip(shape[1:], images.shape[2:])):
                raise ValueError(
                    f"baselines: with aligned placement every donor image must have the input's spatial shape "
                    f"{tuple(images.shape[2:])}; image {index} has {shape[1:]}"
                )
        if images.is_floating_point() and self._images[0].dtype.is_floating_point is False:
            raise ValueError(
                f"baselines: donors are {self._images[0].dtype}, the input {images.dtype}: normalize them as the model's input"
            )
        return _BoundBank(self, images, self._own_images(images), forbidden)

    def _index(self) -> None:
        """Read through the images once: shapes, finiteness, and what it takes to recognize the explained image."""
        if self._fingerprints is not None:
            return
        fingerprints = []
        for index in range(len(self._images)):
            image = self._images[index]
            if image.is_floating_point() and not bool(image.isfinite().all()):
                raise ValueError(f"baselines: donor image {index} holds NaN or infinite values")
            fingerprints.append(_fingerprint(image))
        self._fingerprints = fingerprints

    def _own_images(self, images: Tensor) -> list[list[int]]:
        """Per example, which of the bank's images are that very image."""
        assert self._fingerprints is not None
        own = []
        for example in images:
            mark = _fingerprint(example)
            candidates = [i for i, other in enumerate(self._fingerprints) if other == mark]
            own.append([i for i in candidates if _same(self._images[i], example)])
        return own


class SameImage(DonorSource):
    """Donors cut from the other positions of the explained image itself, never from its RoI: needs no data.

    This is what ``baselines=None`` means.
    """

    def __repr__(self) -> str:
        return "SameImage()"

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if images.ndim < 3:
            raise ValueError(
                f"baselines: inputs of shape {tuple(images.shape)} have no spatial axes, so no other positions to take donors "
                "from; give baselines (0 is Captum's default)"
            )
        return _BoundSameImage(images.detach(), forbidden)


def as_donor_source(baselines: Any, images: Tensor) -> DonorSource:
    """The donor source that a ``baselines`` argument means for one input.

    Args:
        baselines: a :class:`DonorSource`; a number; a tensor ``(D, C, *spatial)``, a distribution of ``D`` donor images taken
            at the unit's own place (as in Captum's ``GradientShap``); or ``None``, the image's other positions.
        images: the input, ``(N, C, *spatial)``.
    """
    if baselines is None:
        return SameImage()
    if isinstance(baselines, DonorSource):
        return baselines
    if isinstance(baselines, Tensor):
        if baselines.ndim == 0:
            return Constant(float(baselines))
        shape = tuple(baselines.shape)
        if len(shape) != images.ndim or any(d not in (1, s) for d, s in zip(shape[1:], images.shape[1:])):
            raise ValueError(
                f"baselines: expected a tensor (D, {', '.join(map(str, images.shape[1:]))}), a distribution along its first "
                f"axis, got {shape}; patches to be pasted anywhere are a PatchBank"
            )
        return PatchBank(baselines, placement="aligned")
    if isinstance(baselines, (int, float)) and not isinstance(baselines, bool):
        return Constant(float(baselines))
    raise TypeError(
        f"baselines: expected a donor source (PatchBank, ...), a number, a tensor or None, got {type(baselines).__name__}"
    )


class _Images:
    """Images of a bank by number, as tensors; lazily read ones pass through a small cache."""

    def __init__(self, images: Any, cache_images: int) -> None:
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images)
        if isinstance(images, Tensor):
            images = images.detach()
        self._images = images
        self._in_memory = isinstance(images, (Tensor, list, tuple))
        self._limit = cache_images
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._shapes: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [self._shapes[i] if i in self._shapes else tuple(self[i].shape) for i in range(len(self))]

    def __getitem__(self, index: int) -> Tensor:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        image = torch.as_tensor(self._images[index]).detach()
        image = image.as_subclass(Tensor) if type(image) is not Tensor else image
        if self._shapes.setdefault(index, tuple(image.shape)) != tuple(image.shape):
            raise ValueError(f"images: donor image {index} changed its shape between two reads; the data set must be fixed")
        if not self._in_memory:
            self._cache[index] = image
            if len(self._cache) > self._limit:
                self._cache.popitem(last=False)
        return image


class _DatasetImages:
    def __init__(self, dataset: Any, key: Any, indices: np.ndarray) -> None:
        self._dataset, self._key, self._indices = dataset, key, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        item = self._dataset[int(self._indices[index])]
        if self._key is not None:
            return item[self._key]
        if isinstance(item, dict):
            raise ValueError(f"key: the data set's items are dictionaries; say which of {sorted(item)} holds the image")
        return item[0] if isinstance(item, (tuple, list)) else item


class _FolderImages:
    def __init__(self, files: list[Path], transform: Callable[[Tensor], Tensor] | None) -> None:
        from monai.transforms import LoadImage

        self._files, self._transform = files, transform
        self._load = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        image = torch.as_tensor(self._load(self._files[index])).as_subclass(Tensor)
        return image if self._transform is None else self._transform(image)


class _BoundWhole(BoundDonors):
    """One donor only, given as an image ``(N or 1, C or 1, *spatial or ones)``."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def population(self, example: int, box: Box) -> int:
        return 1

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        return -1, tuple(side.start for side in box)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        image = self._images[example if len(self._images) > 1 else 0]
        inside = tuple(side if length > 1 else slice(None) for side, length in zip(box, image.shape[1:]))
        return image[(slice(None), *inside)]


class _BoundBank(BoundDonors):
    def __init__(self, bank: PatchBank, images: Tensor, own: list[list[int]], forbidden: Tensor | None) -> None:
        self._images = bank._images
        self._aligned = bank.placement == "aligned"
        self._spatial = tuple(images.shape[2:])
        self._own, self._forbidden = own, forbidden
        # Banks often hold images of one size: then the places of all are counted at once.
        self._shapes = bank._images.shapes
        self._first: dict[tuple[int, ...], np.ndarray] = {}
        self._holes: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

    def population(self, example: int, box: Box) -> int:
        return int(self._first_numbers(_size(box))[-1]) - len(self._holes_of(example, box))

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        size = _size(box)
        first = self._first_numbers(size)
        number = skip_holes(number, self._holes_of(example, box))
        donor = int(np.searchsorted(first, number, side="right")) - 1
        if self._aligned:
            return donor, tuple(side.start for side in box)
        places = _places(self._shapes[donor][1:], size)
        return donor, tuple(int(i) for i in np.unravel_index(number - int(first[donor]), places)) if places else ()

    def read(self, example: int, box: Box, number: int) -> Tensor:
        donor, corner = self.locate(example, box, number)
        image = self._images[donor]
        inside = tuple(
            slice(start, start + length) if extent > 1 or not self._aligned else slice(None)
            for start, length, extent in zip(corner, _size(box), image.shape[1:])
        )
        return image[(slice(None), *inside)]

    def _first_numbers(self, size: tuple[int, ...]) -> np.ndarray:
        """Number of each image's first place, and at the end the number of places in all."""
        if size not in self._first:
            if self._aligned:
                counts = np.ones(len(self._shapes), dtype=np.int64)
            else:
                for index, shape in enumerate(self._shapes):
                    if any(length < side for length, side in zip(shape[1:], size)):
                        raise ValueError(
                            f"baselines: donor image {index} of {shape[1:]} pixels is smaller than a unit of {size} pixels"
                        )
                counts = np.array([math.prod(_places(shape[1:], size)) for shape in self._shapes], dtype=np.int64)
            self._first[size] = np.concatenate([[0], np.cumsum(counts)])
        return self._first[size]

    def _holes_of(self, example: int, box: Box) -> np.ndarray:
        """Numbers of the places that touch the explained image's own RoI."""
        if self._forbidden is None or not self._own[example]:
            return np.empty(0, dtype=np.int64)
        mask = self._forbidden[example if len(self._forbidden) > 1 else 0]
        size = _size(box)
        first = self._first_numbers(size)
        if self._aligned:
            touches = bool(mask[box].any())
            return np.array(self._own[example] if touches else [], dtype=np.int64)
        if (example, size) not in self._holes:
            inside = np.flatnonzero(_touching(mask, size))
            numbers = [inside + int(first[i]) for i in self._own[example]]
            self._holes[example, size] = np.concatenate(numbers)
        return self._holes[example, size]


class _BoundSameImage(BoundDonors):
    def __init__(self, images: Tensor, forbidden: Tensor | None) -> None:
        self._images, self._forbidden = images, forbidden
        self._spatial = tuple(images.shape[2:])
        self._allowed: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        # Draws come unit by unit: what overlaps the last unit is asked for again and again.
        self._last: tuple[Any, np.ndarray] | None = None

    def population(self, example: int, box: Box) -> int:
        count = len(self._allowed_places(example, _size(box))) - len(self._overlapping(example, box))
        if count < 1:
            raise ValueError(
                f"baselines: the image of {self._spatial} pixels has no place for a donor of {_size(box)} pixels that overlaps "
                "neither the unit nor the RoI; give baselines"
            )
        return count

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        size = _size(box)
        place = self._allowed_places(example, size)[skip_holes(number, self._overlapping(example, box))]
        return example, tuple(int(i) for i in np.unravel_index(place, _places(self._spatial, size)))

    def read(self, example: int, box: Box, number: int) -> Tensor:
        _, corner = self.locate(example, box, number)
        inside = tuple(slice(start, start + length) for start, length in zip(corner, _size(box)))
        return self._images[example][(slice(None), *inside)]

    def _allowed_places(self, example: int, size: tuple[int, ...]) -> np.ndarray:
        shared = self._forbidden is None or len(self._forbidden) == 1
        key = (0 if shared else example, size)
        if key not in self._allowed:
            if self._forbidden is None:
                self._allowed[key] = np.arange(math.prod(_places(self._spatial, size)))
            else:
                self._allowed[key] = np.flatnonzero(~_touching(self._forbidden[key[0]], size))
        return self._allowed[key]

    def _overlapping(self, example: int, box: Box) -> np.ndarray:
        """Ranks, among the allowed places, of those that overlap the unit's own box."""
        size = _size(box)
        key = example, size, tuple(side.start for side in box)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        places = _places(self._spatial, size)
        near = [np.arange(max(0, s.start - n + 1), min(p, s.stop)) for s, n, p in zip(box, size, places)]
        flat = np.ravel_multi_index(np.meshgrid(*near, indexing="ij"), places).ravel()
        allowed = self._allowed_places(example, size)
        ranks = np.searchsorted(allowed, flat)
        inside = ranks < len(allowed)
        ranks, flat = ranks[inside], flat[inside]
        self._last = key, ranks[allowed[ranks] == flat]
        return self._last[1]


def skip_holes(number: int, holes: np.ndarray) -> int:
    """The ``number``-th of 0, 1, 2, ... when the ascending ``holes`` are left out."""
    return number + int(np.searchsorted(holes - np.arange(len(holes)), number, side="right"))


def _size(box: Box) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in box)


def _places(spatial: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """In how many places a box fits along each axis."""
    return tuple(length - side + 1 for length, side in zip(spatial, size))


def _touching(mask: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """For every place of a box of this size (flattened), whether it holds a pixel of the mask."""
    n_spatial = mask.ndim
    values = mask[None, None].float()
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[n_spatial]
    touched: np.ndarray = pool(values, kernel_size=size, stride=1).flatten().bool().cpu().numpy()
    return touched


def _fingerprint(image: Tensor) -> tuple[float, ...]:
    """Cheap to compare and the same for equal images; equal marks are followed by a full comparison."""
    values = image.flatten().float()
    middle = values[len(values) // 2]
    return float(values[0]), float(middle), float(values[-1]), float(values.min()), float(values.max())


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.to(second), second)
