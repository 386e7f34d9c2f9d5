"""The grid that an image lies on: its affine, its voxels, its metadata."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from captum_causalseg._checks import checked, integer, number, tensor_of

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["GRID", "affines_of", "check_same_grid", "known_affine", "same_places", "spacing_of", "with_metadata"]


GRID = tensor_of("real", "(N, C, *spatial) with 1 to 3 spatial axes", (3, 5), may_be_empty=False)


@checked(image=GRID, label=GRID, tolerance=number(0))
def check_same_grid(image: Tensor, label: Tensor, tolerance: float = 0.01) -> None:
    """Raise unless two images have the same pixels at the same places.

    Args:
        image: ``(N, C, *spatial)``.
        label: ``(N, C, *spatial)``; both numbers of channels are free.
        tolerance: how far apart corners may lie, in edges of the smallest voxel side. Tensors without an affine are compared
            by their shapes.

    Raises:
        ValueError: shapes or affines differ; the message says both.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> scan = MetaTensor(torch.rand(1, 1, 8, 8, 4), affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))
        >>> images.check_same_grid(scan, scan > 0.5)
        >>> images.check_same_grid(scan, MetaTensor(scan.as_tensor() > 0.5))
        Traceback (most recent call last):
        ...
        ValueError: label: it is not on the image's grid. Affine of the image: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]; of the label: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    """
    if image.shape[2:] != label.shape[2:] or len(image) != len(label):
        raise ValueError(
            f"label: expected the image's grid, {len(image)} example(s) of {tuple(image.shape[2:])}, got {len(label)} of "
            f"{tuple(label.shape[2:])}"
        )
    for first, second in zip(_affines(image), _affines(label)):
        if first is None or second is None:
            continue
        if not same_places(first, second, tuple(image.shape[2:]), tolerance=tolerance):
            raise ValueError(
                "label: it is not on the image's grid. Affine of the image: "
                f"{_written(first)}; of the label: {_written(second)}"
            )


def same_places(first: np.ndarray, second: np.ndarray, spatial: tuple[int, ...], *, tolerance: float = 0.01) -> bool:
    """Whether two affines ``(4, 4)`` put the corners of a grid to the same places, to so many edges of its smallest voxel side."""
    axes = [(0, max(length - 1, 1)) for length in spatial] + [(0, 0)] * (3 - len(spatial))
    corners = np.array([*np.meshgrid(*axes, indexing="ij"), np.ones((2, 2, 2))]).reshape(4, -1)
    edges = np.linalg.norm(first[:3, : len(spatial)], axis=0)
    apart = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
    return bool(apart <= tolerance * edges.min())


def with_metadata(values: Any, like: Any) -> Any:
    """The same values with the metadata (affine, applied transforms) of the images they are about.

    Attributions of :class:`~captum_causalseg.AverageTreatmentEffect` and of its peers went through this already.

    Args:
        values: a tensor, or a tuple of them; metadata of its own is replaced.
        like: a ``MetaTensor`` of the same spatial shape, or a tuple of as many; what is no ``MetaTensor`` leaves the values as
            they are.

    Returns:
        ``MetaTensor`` (or a tuple of them), on the same memory.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> scan = MetaTensor(torch.rand(1, 1, 8, 8), affine=torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0])))
        >>> images.with_metadata(torch.zeros(1, 1, 8, 8), scan).affine.diagonal().tolist()
        [2.0, 2.0, 1.0, 1.0]
    """
    if isinstance(values, tuple):
        if not isinstance(like, (tuple, list)) or len(like) != len(values):
            raise ValueError(f"like: expected a tuple of {len(values)}, as many as there are values")
        return tuple(with_metadata(one, other) for one, other in zip(values, like))
    tensor_of()("values", values)
    tensor_of()("like", like)
    if type(like) is Tensor:
        return values
    from monai.data import MetaTensor

    if not isinstance(like, MetaTensor):
        return values
    if values.shape[2:] != like.shape[2:]:
        raise ValueError(
            f"values: expected the spatial shape of the images, {tuple(like.shape[2:])}, whose places they are about, got "
            f"{tuple(values.shape)}"
        )
    # MONAI's own copy_meta_from would share the affine: who changes one changes both.
    result = MetaTensor(values.as_subclass(Tensor))
    vars(result).update(deepcopy(vars(like)))
    return result


@checked(image=tensor_of("real", "(N, C, *spatial) with 1 to 3 spatial axes", (3, 5)), example=integer(0))
def spacing_of(image: Tensor, example: int = 0) -> tuple[float, ...] | None:
    """Edges of a voxel in millimeters, for distances: ``perception_profile(..., spacing=spacing_of(scan), length_unit="mm")``.

    Args:
        image: ``(N, C, *spatial)``; other tensors than a ``MetaTensor`` have no geometry.
        example: which of the batch, where each has an affine of its own.

    Returns:
        One length per spatial axis, whichever way the axes run; ``None`` where nothing is known of it: without an affine, and where
        that is the identity, which is what pictures and tensors without geometry have.

    Raises:
        TypeError, ValueError: no batch of images, or it has no such example.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> images.spacing_of(MetaTensor(torch.rand(1, 1, 8, 8, 4), affine=torch.diag(torch.tensor([-0.5, -0.5, 3.0, 1.0]))))
        (0.5, 0.5, 3.0)
        >>> images.spacing_of(MetaTensor(torch.rand(1, 1, 8, 8))), images.spacing_of(torch.rand(1, 1, 8, 8))
        (None, None)
    """
    integer(0, len(image) - 1)("example", example)
    affine = getattr(image, "affine", None)
    if affine is None:
        return None
    matrix = np.asarray(affine.detach().cpu() if isinstance(affine, Tensor) else affine, dtype=np.float64)
    # Collated by a data loader, each example has its own.
    matrix = matrix[example] if matrix.ndim == 3 else matrix
    axes = image.ndim - 2
    lengths = np.linalg.norm(matrix[:-1, :axes], axis=0)
    is_known = len(lengths) == axes and np.isfinite(lengths).all() and (lengths > 0).all()
    return tuple(map(float, lengths)) if is_known and not np.array_equal(matrix, np.eye(len(matrix))) else None


def known_affine(image: Tensor, example: int = 0) -> np.ndarray | None:
    """From voxels to millimeters (RAS), of as many axes as the image has, ``(D + 1, D + 1)``; ``None`` where :func:`spacing_of` knows nothing."""
    if spacing_of(image, example) is None:
        return None
    from monai.data.utils import to_affine_nd

    found = np.asarray(image.affine.detach().cpu(), dtype=np.float64)  # type: ignore[attr-defined]
    matrix: np.ndarray = found[example] if found.ndim == 3 else found
    # ITK's readers may keep the directions of their files.
    if str(getattr(image, "meta", {}).get("space", "RAS")).upper() == "LPS" and len(matrix) == 4:
        matrix = np.diag([-1.0, -1, 1, 1]) @ matrix
    shown: np.ndarray = to_affine_nd(image.ndim - 2, matrix)
    return shown


def _affines(image: Tensor) -> list[np.ndarray] | list[None]:
    """As :func:`affines_of`; None where nothing is known."""
    from monai.data import MetaTensor

    return affines_of(image) if isinstance(image, MetaTensor) else [None] * len(image)


def affines_of(image: "MetaTensor") -> list[np.ndarray]:
    """Per example, voxels to millimeters in three dimensions."""
    from monai.data.utils import to_affine_nd

    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    # Collated by a data loader, each example has its own.
    return [to_affine_nd(3, one) for one in (affine if affine.ndim == 3 else [affine] * len(image))]


def _written(affine: np.ndarray) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{value + 0.0:.6g}" for value in row) + "]" for row in affine[:3]) + "]"
