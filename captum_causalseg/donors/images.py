"""The images of a donor bank: in memory, or read when they are asked for."""

import itertools
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import ArgumentTypeError, array_of, shown_path
from captum_causalseg.images.formats import read_file

__all__ = ["BankImages", "ChosenImages", "DatasetImages", "FolderImages", "SizedImages", "check_images", "random_parts"]


_STACK = array_of("real", "(D, C, *spatial)", (2, math.inf))
_ONE = array_of("real", "(C, *spatial)", (1, math.inf), may_be_empty=False)


class SizedImages(Protocol):
    """Images ``(C, *spatial)`` by number, read when asked for; a torch or MONAI dataset of images is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def as_tensor(values: Any) -> Tensor:
    """A tensor where it is, or an array on the CPU: wherever new tensors are made by default."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def check_images(name: str, images: Any, are_items: bool = False) -> None:
    """Raise unless these are donor images, as one tensor, one by one, or read when they are asked for.

    With ``are_items`` they are a data set's, which hold their images somewhere inside.
    """
    if isinstance(images, (Tensor, np.ndarray)):
        _STACK(name, images)
    elif isinstance(images, (list, tuple)):
        for index, image in enumerate(images):
            if isinstance(image, (str, os.PathLike)):
                _refuse_path(f"{name}[{index}]", image)
            if not are_items:
                _ONE(f"{name}[{index}]", image)
    elif isinstance(images, (str, os.PathLike)):
        _refuse_path(name, images)
    elif (
        not (hasattr(images, "__len__") and hasattr(images, "__getitem__"))
        or isinstance(images, bytes)
        or hasattr(images, "keys")
    ):
        raise ArgumentTypeError(f"{name}: expected a tensor or a sequence of images, got {type(images).__name__}")
    if len(images) == 0:
        raise ValueError(f"{name}: the bank is empty")


def _refuse_path(name: str, path: Any) -> None:
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"{name}: there is no file {shown_path(path)}")
    raise ArgumentTypeError(
        f"{name}: expected an image (C, *spatial), got the path {shown_path(path)}; PatchBank.from_folder reads the files of a "
        "folder, images.load_image(path)[0] a single one"
    )


class BankImages:
    """Images of a bank by number, as tensors; lazily read ones pass through a small cache."""

    def __init__(self, images: Any, cache_images: int) -> None:
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images)
        if isinstance(images, Tensor):
            images = images.detach().as_subclass(Tensor)
        self._images = images
        self._in_memory = isinstance(images, (Tensor, list, tuple))
        self._limit = cache_images
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._shapes: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._images)

    @property
    def given(self) -> Any:
        """What holds the images: a tensor, a sequence, a data set."""
        return self._images

    @property
    def stacked(self) -> Tensor | None:
        """All images in one tensor ``(D, C, *spatial)``, if they are given as one."""
        return self._images if isinstance(self._images, Tensor) else None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """``(C, *spatial)`` of every image; those whose shape is not known yet are read."""
        return [self._shapes[i] if i in self._shapes else tuple(self[i].shape) for i in range(len(self))]

    def chosen(self, indices: Sequence[int]) -> "BankImages":
        """Some of the images, with a cache of their own; nothing is copied, and lazily read ones are still read lazily."""
        images = [self._images[i] for i in indices] if self._in_memory else ChosenImages(self._images, indices)
        chosen = BankImages(images, self._limit)
        chosen._shapes = {k: self._shapes[i] for k, i in enumerate(indices) if i in self._shapes}
        return chosen

    def __getitem__(self, index: int) -> Tensor:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        image = self._images[index]
        if not isinstance(image, (Tensor, np.ndarray)):
            raise TypeError(
                f"images: expected tensors or arrays (C, *spatial), got {type(image).__name__} for donor image {index}"
            )
        image = as_tensor(image).detach()
        image = image.as_subclass(Tensor) if type(image) is not Tensor else image
        if self._shapes.setdefault(index, tuple(image.shape)) != tuple(image.shape):
            raise ValueError(f"images: donor image {index} changed its shape between two reads; the data set must be fixed")
        if not self._in_memory:
            self._cache[index] = image
            if len(self._cache) > self._limit:
                self._cache.popitem(last=False)
        return image


class ChosenImages:
    """Some images of lazily read ones."""

    def __init__(self, images: SizedImages, indices: Sequence[int]) -> None:
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.images[self.indices[index]]


class DatasetImages:
    """The images of a torch or MONAI data set, whose items may hold more than an image."""

    def __init__(self, dataset: Any, key: Any, indices: np.ndarray) -> None:
        self.dataset, self.key, self.indices = dataset, key, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[int(self.indices[index])]
        if self.key is not None:
            return item[self.key]
        if isinstance(item, dict):
            raise ValueError(f"key: the data set's items are dictionaries; say which of {sorted(item)} holds the image")
        return item[0] if isinstance(item, (tuple, list)) else item


class FolderImages:
    """Images in files, read and transformed when asked for."""

    def __init__(self, files: list[Path], transform: Callable[[Tensor], Tensor] | None) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = read_file(self.files[index], labels=False)[0].as_subclass(Tensor)
        return image if self.transform is None else self.transform(image)


def random_parts(count: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Disjoint random subsets of ``0 .. count - 1``, ascending, of these shares (of sum 1 at most) to one element."""
    # Cumulative shares are rounded, so that parts of sum 1 leave nothing out.
    edges = np.floor(np.concatenate([[0.0], np.cumsum(shares)]) * count + 0.5).astype(np.int64).tolist()
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(order[start:stop]).tolist() for start, stop in itertools.pairwise(edges)]


def fingerprint(image: Tensor) -> tuple[float, ...]:
    """Cheap to compare and the same for equal images; equal marks are followed by a full comparison."""
    values = image.flatten().float()
    middle = values[len(values) // 2]
    return float(values[0]), float(middle), float(values[-1]), float(values.min()), float(values.max())


def same_image(first: Tensor, second: Tensor) -> bool:
    """Whether two images have the same shape and the same values."""
    return first.shape == second.shape and torch.equal(first.to(second), second)
