"""The scan's own grid of voxels, in which a user names places, and the grid that pre-processing makes of it for the network."""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg.bundle import Bundle
from captum_causalseg.images import check_same_grid, invert, load_label, spacing_of
from captum_causalseg.images.formats import read_file
from captum_causalseg.images.grid import known_affine

__all__ = ["Grids", "grids_of_bundle", "is_picture"]

# Files without geometry: their effects are no NIfTI.
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# In voxels. Affines of files are float32; voxels that lie halfway between two others should all go to the same side.
_TIE = 1e-3
# As in check_same_grid.
_APART = 0.01


def is_picture(file: Path) -> bool:
    """Whether a file has no geometry."""
    return file.name.lower().endswith(_PICTURES)


@dataclass(frozen=True, eq=False)
class Grids:
    """Carries masks, labels and maps between the file's own voxels and those that the network is shown, by the nearest voxel.

    Args:
        own: the image as its file has it, ``(1, C, *spatial)``.
        prepared: the image that the network is shown, ``(1, C', *spatial)``, with as many axes.
        picture: whether the file has no geometry; its axes are rows and columns.
        matrix: indices of the prepared image to indices of the file, homogeneous ``(D + 1, D + 1)``; ``None`` if they are the same.
        shown: which of the file's voxels are left, as the record of the pre-processing says, boolean ``(*spatial)``: of what was cut
            away, some may have been padded again. ``None`` if there is no record.
        known: whether ``own`` is what the file holds. Where that cannot be told, the prepared image takes its place.
        comparable: whether it can be told if another file lies on the grid of ``own``.
        whose: what ``own`` is, in words.
    """

    own: Any
    prepared: Any
    picture: bool
    matrix: np.ndarray | None = None
    shown: Tensor | None = None
    known: bool = True
    comparable: bool = True
    whose: str = "the image file"

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the file's grid."""
        return tuple(self.own.shape[2:])

    @property
    def prepared_shape(self) -> tuple[int, ...]:
        """Spatial shape of the prepared grid."""
        return tuple(self.prepared.shape[2:])

    @property
    def differ(self) -> bool:
        """Whether pre-processing changed the grid."""
        return self.matrix is not None

    @property
    def has_geometry(self) -> bool:
        """Whether maps can be written so that they open over the file."""
        return self.known and not self.picture and hasattr(self.own, "affine")

    @property
    def prepared_spacing(self) -> tuple[float, ...] | None:
        """Edges of a prepared voxel in millimeters; ``None`` where they are not known."""
        return None if self.picture else spacing_of(self.prepared)

    @property
    def prepared_affine(self) -> np.ndarray | None:
        """From voxels of a prepared volume to millimeters, ``(4, 4)``; ``None`` where it is not known, and of pictures."""
        return None if self.picture or len(self.prepared_shape) != 3 else known_affine(self.prepared)

    @property
    def noun(self) -> str:
        """What the file is made of."""
        return "pixels" if len(self.shape) == 2 else "voxels"

    @property
    def own_per_prepared(self) -> np.ndarray:
        """How many of the file's voxels a step of one prepared voxel is, along each axis of the file."""
        return np.ones(len(self.shape)) if self.matrix is None else np.linalg.norm(self.matrix[:-1, :-1], axis=1)

    def to_prepared(self, values: Tensor) -> Tensor:
        """What lies on the file's grid, ``(*spatial)``, on the prepared one; 0 in padding."""
        return values if self.matrix is None else _carried(values, self.matrix, self.prepared_shape, outside=0)

    def to_own(self, values: Tensor, outside: float = 0) -> Tensor:
        """What lies on the prepared grid, ``(*spatial)``, on the file's; ``outside`` where it was cropped away."""
        return values if self.matrix is None else _carried(values, np.linalg.inv(self.matrix), self.shape, outside=outside)

    def kept(self) -> Tensor:
        """Which of the file's voxels the network is shown, boolean ``(*spatial)``."""
        found = self.to_own(torch.ones(self.prepared_shape, dtype=torch.bool, device="cpu"))
        return found if self.shown is None else found & self.shown

    def own_indices(self) -> np.ndarray:
        """Per prepared voxel the index of the nearest voxel of the file, ``(D, *prepared)``; in padding it is not in the file."""
        found = np.indices(self.prepared_shape)
        return found if self.matrix is None else _nearest(self.matrix, found)

    def prepared_index(self, point: tuple[int, ...]) -> tuple[int, ...] | None:
        """The prepared voxel nearest to a voxel of the file; ``None`` if it was cropped away."""
        if self.matrix is None:
            return point
        return tuple(_nearest(np.linalg.inv(self.matrix), np.array(point)).tolist()) if bool(self.kept()[point]) else None

    def read_labels(self, file: str | Path) -> tuple[Tensor, bool]:
        """The label map of a file, int64 ``(*spatial)``, and whether it lies on the file's grid rather than on the prepared one.

        Raises:
            ValueError: it lies on neither; also as :func:`captum_causalseg.images.load_label`.
        """
        found = load_label(file, spatial_dims=len(self.shape))
        values = found.as_subclass(Tensor)[0, 0]
        if self.differ and not _on_one_grid(self.own, found) and _on_one_grid(self.prepared, found):
            return values, False
        if not self.comparable:
            raise ValueError(
                f"{file} cannot be laid over the prepared image: the pre-processing moves voxels and drops the affine"
            )
        check_same_grid(self.own, found)
        return values, True

    def kept_box(self) -> list[tuple[int, int]]:
        """First and last index along each axis of the file that the network is shown."""
        slices = ndimage.find_objects(self.kept().numpy().astype(np.uint8))[0]
        return [(side.start, side.stop - 1) for side in slices]

    def in_words(self) -> str:
        """Which voxels places are given in."""
        if not self.known:
            return f"in {self.noun} of the prepared image, counted from 0: it does not tell where in the file they come from"
        axes = "rows, columns" if self.picture else "axes as in the file"
        said = f"in {self.noun} of {self.whose}, counted from 0 ({axes})"
        return f"{said}; pictures show the prepared image" if self.differ else said


def grids_of_bundle(bundle: Bundle, file: Path, prepared: Any) -> Grids:
    """The grids of an image file and of what a bundle's pre-processing made of it.

    Voxels are matched by their places in the world: both affines say where they lie. Pictures have none, so there it is looked up
    which way round the bundle's loader turns them.

    Raises:
        ValueError: the prepared image lies somewhere else entirely.
    """
    from monai.data import MetaTensor
    from monai.data.utils import to_affine_nd
    from monai.transforms.traits import LazyTrait

    picture, axes = is_picture(file), prepared.ndim - 2
    assert bundle.preprocessing is not None
    # MONAI's marker of what can be resampled: all its spatial transforms, crops and pads.
    moves = any(isinstance(step, LazyTrait) for step in bundle.preprocessing.flatten().transforms)
    has_affine = isinstance(prepared, MetaTensor)
    own = _as_in_file(file, axes)
    turned = _turned(bundle, file) if picture and own is not None else np.eye(4)
    if own is None or turned is None or (moves and not has_affine):
        return Grids(prepared, prepared, picture, known=False, comparable=has_affine or not moves)
    file_affine = to_affine_nd(3, np.asarray(own.affine, dtype=np.float64)) @ turned
    if has_affine:
        affine = to_affine_nd(3, np.asarray(prepared.affine.cpu(), dtype=np.float64))
    else:
        affine = to_affine_nd(3, np.asarray(own.affine, dtype=np.float64))
    used = [*range(axes), 3]
    matrix = (np.linalg.inv(file_affine) @ affine)[np.ix_(used, used)]
    if own.shape[2:] == prepared.shape[2:] and _is_identity(matrix, own.shape[2:]):
        return Grids(own, prepared, picture)
    grids = Grids(
        own=own,
        prepared=prepared,
        picture=picture,
        matrix=matrix,
        shown=_left_over(bundle, prepared, turned) if has_affine else None,
    )
    if not bool(grids.kept().any()):
        raise ValueError(f"the pre-processing of {bundle.path} moves {file} to where none of its {grids.noun} are left")
    return grids


def _left_over(bundle: Bundle, prepared: Any, turned: np.ndarray) -> Tensor | None:
    """Which of the file's voxels the pre-processing leaves, by undoing its steps; ``None`` if they cannot be undone."""
    if not prepared.applied_operations:
        return None
    ones = torch.ones(1, 1, *prepared.shape[2:], device="cpu")
    try:
        found: Tensor = invert(ones, prepared, bundle.preprocessing, key=bundle.image_key).as_subclass(Tensor)[0, 0] > 0.5
    except (ValueError, NotImplementedError):
        # Steps of other people's making.
        return None
    return found if turned[0, 0] else found.mT


def _as_in_file(file: Path, axes: int) -> Any:
    """``(1, C, *spatial)`` with the file's affine; ``None`` if only the bundle's own loader reads it, or it has other axes."""
    try:
        image = read_file(file, labels=False)[0]
    except (ValueError, ImportError):
        return None
    if axes == 2 and image.ndim == 4 and image.shape[-1] == 1:
        image = image[..., 0]
    return image[None] if image.ndim == axes + 1 else None


def _turned(bundle: Bundle, file: Path) -> np.ndarray | None:
    """Rows and columns of a picture to the axes that the bundle's loader gives it, ``(4, 4)``; ``None`` if that cannot be told."""
    from monai.transforms import LoadImaged
    from PIL import Image

    assert bundle.preprocessing is not None
    steps = bundle.preprocessing.flatten().transforms
    loader = next((step for step in steps if isinstance(step, LoadImaged) and bundle.image_key in step.keys), None)
    if loader is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / f"probe{file.suffix}"
        Image.new("L", (3, 2)).save(probe)
        shape = [length for length in loader({bundle.image_key: str(probe)})[bundle.image_key].shape if length > 1]
    return np.eye(4) if shape == [2, 3] else np.eye(4)[[1, 0, 2, 3]]


def _carried(values: Tensor, matrix: np.ndarray, shape: tuple[int, ...], outside: float) -> Tensor:
    """Per voxel of ``shape``, the value at the index that ``matrix`` leads to."""
    array = values.detach().as_subclass(Tensor).cpu().numpy()
    shifted = matrix.copy()
    shifted[:-1, -1] += _TIE
    source = array.astype(np.uint8) if array.dtype == bool else array
    found = ndimage.affine_transform(source, shifted, output_shape=shape, order=0, mode="grid-constant", cval=outside)
    return torch.from_numpy(found.astype(array.dtype))


def _nearest(matrix: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Indices ``(D, ...)`` of one grid as indices of the other."""
    offset = matrix[:-1, -1].reshape(-1, *(1,) * (indices.ndim - 1))
    found: np.ndarray = np.floor(np.tensordot(matrix[:-1, :-1], indices, axes=1) + offset + (_TIE + 0.5)).astype(np.int64)
    return found


def _is_identity(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
    corners = np.array([*itertools.product(*((0, length - 1) for length in shape))], dtype=float)
    corners = np.c_[corners, np.ones(len(corners))].T
    return bool((np.abs(matrix @ corners - corners) <= _APART).all())


def _on_one_grid(image: Any, label: Any) -> bool:
    try:
        check_same_grid(image, label)
    except ValueError:
        return False
    return True
