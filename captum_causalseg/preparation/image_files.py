"""How image files become what the network is shown: as a bundle or an nnU-Net prepares them, or as they are."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.bundle import Bundle
from captum_causalseg.images import load_image
from captum_causalseg.nnunet import NnunetModel
from captum_causalseg.preparation.grid import Grids, grids_of_bundle, is_picture

__all__ = ["BundlePreparation", "DonorFolder", "FilePreparation", "NnunetPreparation", "Preparation"]


class Preparation(ABC):
    """Reads the files of one image; what the network is shown of it, and where that lies in the files."""

    whose = ""
    """Who prepares, in words, where that leaves nothing to choose; empty where the user says how."""

    @property
    def labels(self) -> Mapping[str, int]:
        """Names of classes."""
        return {}

    @property
    def channels(self) -> Sequence[str]:
        """Names of the image's channels; empty where they are not known."""
        return ()

    def named(self, name: str, labels: Tensor) -> Tensor:
        """Where a class of :attr:`labels` is in a label map, boolean ``(*spatial)``."""
        return labels == self.labels[name]

    @abstractmethod
    def image(self, files: Sequence[Path]) -> Any:
        """``(1, C, *spatial)``, on the CPU.

        Raises:
            ValueError, OSError: the files cannot be read or prepared.
        """

    @abstractmethod
    def grids(self, files: Sequence[Path], prepared: Any) -> Grids:
        """The files' own grid and the prepared one."""

    def cases(self, folder: Path, n_files: int = 1) -> list[tuple[Path, ...]]:
        """The images of a folder, each by its files.

        Args:
            folder: of files; of images of several files a folder for each, or all of them, told apart by the numbers that their names end in.
            n_files: of one image.
        """
        if n_files > 1:
            return _cases_of_several(folder, n_files)
        found = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        # Folders are DICOM series, where there are no files beside them.
        files = [file for file in found if file.is_file()] or found
        if not files:
            raise ValueError(f"there is no file in {folder}")
        return [(file,) for file in files]

    def reference(self, labels: Tensor) -> Tensor:
        """A label map ``(*spatial)`` as the model's target takes it."""
        return labels


def _cases_of_several(folder: Path, n_files: int) -> list[tuple[Path, ...]]:
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    groups: dict[Path, list[tuple[int, Path]]] = {}
    for entry in found:
        if entry.is_dir():
            files = sorted(file for file in entry.iterdir() if not file.name.startswith("."))
            groups[entry] = list(enumerate(files))
        elif any(other.is_dir() for other in found):
            raise ValueError(f"expected a folder for each image, or files alone, got both in {folder}")
        else:
            name = re.fullmatch(r"(.+)_(\d+)((?:\.[A-Za-z]\w*)+)", entry.name)
            if name is None:
                raise ValueError(
                    f"expected {n_files} files of each image, in a folder of its own or with names that end in numbers, such as case_0000.nii.gz "
                    f"and case_0001.nii.gz, got {entry.name}"
                )
            groups.setdefault(folder / name[1], []).append((int(name[2]), entry))
    if not groups:
        raise ValueError(f"there is no file in {folder}")
    for case, numbered in groups.items():
        if len(numbered) != n_files:
            raise ValueError(f"expected {n_files} files of each image, as the explained one has, got {len(numbered)} of {case}")
    return [tuple(file for _, file in sorted(numbered)) for numbered in groups.values()]


def _checked_axes(image: Any, files: Sequence[Path], dims: int | None, who: str) -> Any:
    if dims is not None and image.ndim - 2 != dims:
        raise ValueError(f"{who} makes {image.ndim - 2} spatial axes of {files[0]}, expected {dims}")
    return image


@dataclass(frozen=True)
class FilePreparation(Preparation):
    """Files as they are, or normalized in one of a few simple ways.

    Args:
        normalize: ``"none"``, ``"255"`` (divided by 255), ``"range"`` (from 0 to 1) or ``"zscore"`` (mean 0, standard deviation 1).
        dims: how many spatial axes there must be.
    """

    normalize: str
    dims: int | None

    def image(self, files: Sequence[Path]) -> Any:
        """See :meth:`Preparation.image`."""
        if len(files) != 1:
            raise ValueError(f"expected one file, got {len(files)}; several, one per channel, go with a bundle or an nnU-Net")
        return self.normalized(load_image(files[0], spatial_dims=self.dims), str(files[0]))

    def normalized(self, image: Any, name: str) -> Any:
        """The values of an image as the network takes them.

        Args:
            image: as it was read.
            name: what it is called in messages.

        Raises:
            ValueError: it is the same everywhere.
        """
        values = image.as_subclass(Tensor)
        low, high, spread = float(values.min()), float(values.max()), float(values.std())
        if self.normalize in ("range", "zscore") and low == high:
            raise ValueError(f"{name} is {low:g} everywhere, it cannot be normalized")
        if self.normalize == "255":
            return image / 255
        if self.normalize == "range":
            return (image - low) / (high - low)
        return (image - float(values.mean())) / spread if self.normalize == "zscore" else image

    def grids(self, files: Sequence[Path], prepared: Any) -> Grids:
        """See :meth:`Preparation.grids`."""
        return Grids(prepared, prepared, is_picture(files[0]))


@dataclass(frozen=True)
class BundlePreparation(Preparation):
    """A MONAI bundle's own pre-processing.

    Args:
        bundle: that has one.
        dims: how many spatial axes there must be.
    """

    bundle: Bundle
    dims: int | None

    whose = "the bundle"

    @property
    def channels(self) -> Sequence[str]:
        """See :attr:`Preparation.channels`; as its metadata define them."""
        inputs = self.bundle.network_data_format.get("inputs") or {}
        found = (inputs.get(self.bundle.image_key) or {}).get("channel_def") or {}
        return tuple(str(found[number]) for number in sorted(found, key=int))

    def image(self, files: Sequence[Path]) -> Any:
        """See :meth:`Preparation.image`."""
        prepared = self.bundle.prepare(files[0] if len(files) == 1 else list(files)).cpu()
        return _checked_axes(prepared, files, self.dims, who=self.whose)

    def grids(self, files: Sequence[Path], prepared: Any) -> Grids:
        """See :meth:`Preparation.grids`; of several files the first one's."""
        return grids_of_bundle(self.bundle, files[0], prepared)


@dataclass(frozen=True)
class NnunetPreparation(Preparation):
    """nnU-Net's own pre-processing.

    Args:
        net: whose.
        dims: how many spatial axes there must be.
    """

    net: NnunetModel
    dims: int | None

    whose = "nnU-Net"

    @property
    def labels(self) -> Mapping[str, int]:
        """See :attr:`Preparation.labels`."""
        return self.net.labels

    @property
    def channels(self) -> Sequence[str]:
        """See :attr:`Preparation.channels`."""
        return self.net.channels

    def image(self, files: Sequence[Path]) -> Any:
        """See :meth:`Preparation.image`."""
        prepared = self.net.prepare(files[0] if len(files) == 1 else list(files)).cpu()
        return _checked_axes(prepared, files, self.dims, who=self.whose)

    def grids(self, files: Sequence[Path], prepared: Any) -> Grids:
        """See :meth:`Preparation.grids`."""
        shown = self.net.to_scan(torch.ones(prepared.shape[2:]), prepared)
        own = load_image(self.net.files_of(prepared)[0])
        axes = prepared.ndim - 2
        used = [*range(axes), 3]
        affine = np.linalg.inv(np.asarray(shown.affine)) @ np.asarray(prepared.affine)
        return Grids(
            own=own,
            prepared=prepared,
            picture=is_picture(files[0]),
            matrix=affine[np.ix_(used, used)],
            shown=shown[0, 0].as_subclass(Tensor) > 0.5,
        )

    def named(self, name: str, labels: Tensor) -> Tensor:
        """See :meth:`Preparation.named`; regions hold several labels."""
        return self.net.masks(labels)[self.net.labels[name]] if self.net.has_regions else super().named(name, labels)

    def cases(self, folder: Path, n_files: int = 1) -> list[tuple[Path, ...]]:
        """See :meth:`Preparation.cases`; files of an image are found by nnU-Net's names."""
        return self.net.cases_in(folder)

    def reference(self, labels: Tensor) -> Tensor:
        """See :meth:`Preparation.reference`; of regions a mask for each."""
        return self.net.masks(labels) if self.net.has_regions else labels


class DonorFolder(Sequence[Tensor]):
    """Donor images of a folder but the explained one, prepared as that was. By its ``files`` a study tells whether donors are still the same.

    Args:
        folder: of images.
        preparation: of the explained image.
        channels: how many it has.
        explained: its files.

    Raises:
        ValueError: there is no such folder, nothing in it, or what cannot be used; also later, of an image that is asked for.
    """

    def __init__(self, folder: Path, preparation: Preparation, channels: int, *, explained: Sequence[Path]) -> None:
        if not folder.is_dir():
            raise ValueError(f"baselines: there is no folder {folder}")
        own = {file.resolve() for file in explained}
        cases = preparation.cases(folder, max(1, len(explained)))
        self._cases = [files for files in cases if own.isdisjoint(file.resolve() for file in files)]
        if not self._cases:
            raise ValueError(f"baselines: there is no image in {folder} but the explained one")
        self._preparation, self._channels = preparation, channels
        # What is wrong with them all is said before anything is computed.
        self[0]

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def files(self) -> list[Path]:
        """Of all images."""
        return [file for files in self._cases for file in files]

    def __getitem__(self, index: Any) -> Any:
        try:
            image = self._preparation.image(self._cases[index]).as_subclass(Tensor)[0].cpu()
        except (ImportError, OSError, ValueError) as error:
            # In place of an argument's name, such as a path's, that the user never saw.
            raise ValueError(f"baselines: {re.sub(r'^[a-z_]+: ', '', str(error))}") from error
        if len(image) != self._channels:
            raise ValueError(f"baselines: {self._cases[index][0]} holds {len(image)} channel(s), the image {self._channels}")
        return image
