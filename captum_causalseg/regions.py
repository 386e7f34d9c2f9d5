"""Where to look and where to intervene: regions of interest (boolean masks) and units (integer feature masks).

Everything works on any number of spatial dimensions. Functions take numpy arrays or tensors (MONAI's ``MetaTensor`` among them) and
return plain CPU tensors.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg._checks import (
    NONE,
    PATH,
    array_of,
    checked,
    integer,
    number,
    one_of,
    per_axis,
    sequence,
    shown,
    tensor_of,
)
from captum_causalseg.boxes import number_blocks
from captum_causalseg.images import check_same_grid, load_label

__all__ = ["boundary", "box", "component", "errors", "from_file", "from_label", "from_mask", "grid", "predicted", "supervoxels"]

Array = Tensor | np.ndarray

_SHAPE = sequence(integer(1), 1, expected="a sequence of lengths") | array_of("integer", "(axes,)", (1, 1), may_be_empty=False)
_LABELS = array_of("real", "(*spatial)", (1, math.inf), may_be_empty=False)

# The most values of a label map that a message lists.
_MOST_LISTED = 20


@checked(spatial_shape=_SHAPE)
def box(spatial_shape: Sequence[int], start: int | Sequence[int], size: int | Sequence[int]) -> Tensor:
    """A rectangular RoI.

    Args:
        spatial_shape: the image's spatial shape, ``(H, W)`` or ``(H, W, D)``.
        start: first index inside, per axis (one number for all).
        size: number of pixels, per axis (one number for all).

    Returns:
        Boolean tensor of shape ``spatial_shape``.

    Raises:
        ValueError: the box does not lie inside the image.

    Example:
        >>> from captum_causalseg import regions
        >>> int(regions.box((256, 256), start=(72, 88), size=32).sum())
        1024
    """
    shape = tuple(int(length) for length in spatial_shape)
    starts, sizes = per_axis("start", start, len(shape), each=integer()), per_axis("size", size, len(shape), each=integer())
    for axis, (begin, length, total) in enumerate(zip(starts, sizes, shape)):
        if length < 1 or begin < 0 or begin + length > total:
            raise ValueError(
                f"start, size: the box {begin}..{begin + length} leaves axis {axis} of the image, which has {total} pixels"
            )
    mask = torch.zeros(shape, dtype=torch.bool, device="cpu")
    mask[tuple(slice(begin, begin + length) for begin, length in zip(starts, sizes))] = True
    return mask


@checked(mask=_LABELS, point=sequence(integer()))
def component(mask: Array, point: Sequence[int]) -> Tensor:
    """The connected component of ``mask`` (diagonal neighbors included) that holds ``point``.

    Args:
        mask: ``spatial``, boolean or a label map; in a label map the component is one of the label at ``point``.
        point: index of a pixel inside it.

    Returns:
        Boolean tensor of shape ``spatial``.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> regions.component(torch.tensor([1, 1, 0, 1]), point=(1,)).tolist()
        [True, True, False, False]
    """
    values = _numpy(mask)
    index = tuple(int(coordinate) for coordinate in point)
    if len(index) != values.ndim or any(not 0 <= i < n for i, n in zip(index, values.shape)):
        raise ValueError(f"point: {index} is no position in a mask of shape {values.shape}")
    if not values[index]:
        raise ValueError(f"point: the mask is 0 at {index}; choose a point inside the object")
    labels, _ = ndimage.label(values == values[index], structure=np.ones((3,) * values.ndim))
    return torch.from_numpy(labels == labels[index])


@checked(
    prediction=_LABELS,
    reference=_LABELS,
    kind=one_of("any", "false_positive", "missed"),
    rank=integer(1),
    label=NONE | integer(),
)
def errors(
    prediction: Array,
    reference: Array,
    kind: Literal["any", "false_positive", "missed"] = "any",
    rank: int = 1,
    *,
    label: int | None = None,
) -> Tensor:
    """The largest connected component (diagonal neighbors included) of what a model got wrong: where to ask why.

    Inside a false positive the reference is empty, and Dice is 0 until the last predicted pixel is gone: the ``volume`` of what is
    predicted is a score that moves. Inside a missed part nothing is predicted: ``detection`` says where a replacement makes the object
    appear, and ``soft_dice`` moves before it does.

    Args:
        prediction: of one image a boolean mask or a label map ``(*spatial)`` with 0 for the background; or hard masks of a batch,
            boolean ``(N, C, *spatial)``, as :meth:`SegmentationTarget.predict` returns them.
        reference: the truth. For a map ``(*spatial)`` of its shape; for hard masks such masks, or label maps ``(N, *spatial)``
            (``(*spatial)`` if ``N`` is 1).
        kind: ``"false_positive"``: predicted as an object, wrongly; ``"missed"``: an object, and not predicted as that; ``"any"``:
            all that differs. Where one label is taken for another, it is both.
        rank: 1 for the largest component, 2 for the next, ...; of equally large ones the first by position.
        label: count errors of this label (or channel) only; ``None``: of all of them.

    Returns:
        Boolean tensor ``(*spatial)``; for hard masks ``(N, 1, *spatial)``, the layout of one RoI per example.

    Raises:
        ValueError: there are fewer errors of that kind (the message says how many), or prediction and reference do not fit together.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> truth = torch.tensor([1, 1, 0, 0, 0, 0])
        >>> found = torch.tensor([1, 0, 0, 1, 1, 0])
        >>> regions.errors(found, truth).tolist()
        [False, False, False, True, True, False]
        >>> regions.errors(found, truth, kind="missed").tolist()
        [False, True, False, False, False, False]
    """
    found, truth = _numpy(prediction), _numpy(reference)
    # A single image has three spatial axes at most.
    if found.shape == truth.shape and found.ndim <= 3:
        return _error(found, truth, kind=kind, rank=rank, label=label)
    if found.ndim < 3 or truth.shape not in _shapes_of_truth(found.shape):
        expected = " or ".join(map(str, _shapes_of_truth(found.shape) if found.ndim > 3 else [found.shape]))
        raise ValueError(f"reference: expected the shape {expected}, as prediction is {found.shape}; got {truth.shape}")
    found = _labels_of("prediction", found, label)
    truth = _labels_of("reference", truth, label) if truth.ndim > found.ndim else truth.reshape(found.shape)
    return torch.stack([_error(*pair, kind=kind, rank=rank, label=label) for pair in zip(found, truth)])[:, None]


@checked(label_map=array_of("real", may_be_empty=False), value=integer())
def from_label(label_map: Array, value: int) -> Tensor:
    """The RoI of one value of a label map.

    Args:
        label_map: whole numbers, of any shape, as :func:`captum_causalseg.images.load_label` reads them.
        value: of the label.

    Returns:
        Boolean tensor of the same shape.

    Raises:
        ValueError: the value is not there (the message lists those that are), or the map holds fractions.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> regions.from_label(torch.tensor([[0, 2], [3, 2]]), value=2).tolist()
        [[False, True], [False, True]]
    """
    values = _numpy(label_map)
    if values.dtype.kind == "f" and bool((values != np.round(values)).any()):
        raise ValueError(f"label_map: expected whole numbers, got {values.dtype}, some of them fractions")
    found = values == value
    if not found.any():
        raise ValueError(f"value: the label map holds {_listed(values)}, got {shown(value)}")
    return torch.from_numpy(np.ascontiguousarray(found))


@checked(path=PATH, like=NONE | tensor_of(None, "(1, C, *spatial) with 2 or 3 spatial axes", (4, 5)))
def from_file(path: str | Path, like: Tensor | None = None) -> Tensor:
    """The RoI that a mask file draws: 0 outside, one other number inside (1 or 255, mostly).

    Args:
        path: NIfTI, NRRD, DICOM or a picture; see :func:`captum_causalseg.images.load_image`.
        like: the image ``(1, C, *spatial)`` that it is for: the mask must lie on its grid, and is read as a slice if that is one.

    Returns:
        Boolean tensor ``(*spatial)``.

    Raises:
        FileNotFoundError, ImportError, ValueError: as :func:`captum_causalseg.images.load_label` and
            :func:`captum_causalseg.images.check_same_grid` do; also if the file is empty or holds several labels.

    Example:
        >>> import tempfile, pathlib, nibabel, numpy
        >>> from captum_causalseg import regions
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "roi.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(numpy.array([[[0, 255, 255]]], dtype="uint8"), numpy.eye(4)), path)
        >>> regions.from_file(path).tolist()
        [[[False, True, True]]]
    """
    mask = load_label(path, spatial_dims=None if like is None else like.ndim - 2)
    if like is not None:
        check_same_grid(like[:1], mask)
    values = _numpy(mask[0, 0])
    labels = np.unique(values[values != 0])
    if len(labels) == 0:
        raise ValueError(f"path: {path} is 0 everywhere, so it contains no RoI")
    if len(labels) > 1:
        raise ValueError(
            f"path: {path} holds several labels, {_listed(values)}; choose one with regions.from_label(images.load_label(path), value)"
        )
    return torch.from_numpy(values != 0)


@checked(mask=_LABELS, width=number(above=0))
def boundary(mask: Array, width: float = 2.0) -> Tensor:
    """The band of pixels within ``width`` pixels of the mask's outline, on both sides of it.

    Args:
        mask: ``spatial``, boolean or 0/1.
        width: half-width of the band in pixels (Euclidean distance to the nearest pixel of the other side).

    Returns:
        Boolean tensor of shape ``spatial``.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> regions.boundary(torch.tensor([0, 0, 0, 1, 1, 1]), width=1).tolist()
        [False, False, True, True, False, False]
    """
    inside = _numpy(mask).astype(bool)
    if inside.all() or not inside.any():
        raise ValueError("mask: it is the same everywhere and has no outline")
    distance = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside)
    return torch.from_numpy(distance <= width)


@checked(prediction=array_of("real", "(N, C, *spatial)", (3, math.inf), may_be_empty=False), label=integer())
def predicted(prediction: Array, label: int = 1) -> Tensor:
    """The pixels that a model gives to ``label``, as one RoI per example.

    Args:
        prediction: hard one-hot masks ``(N, C, *spatial)``, as :meth:`SegmentationTarget.predict` returns them, or scores
            of the same shape (``C > 1``: the largest wins).
        label: the class; with a single channel, 1 is the object.

    Returns:
        Boolean tensor ``(N, 1, *spatial)``, the layout of one RoI per example.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> regions.predicted(torch.tensor([[[0.1, 0.9], [0.2, 0.8]]]).movedim(-1, 1), label=1).shape
        torch.Size([1, 1, 2])
    """
    values = prediction.as_subclass(Tensor) if isinstance(prediction, Tensor) else torch.from_numpy(np.asarray(prediction))
    classes = values.shape[1]
    if classes == 1:
        if label != 1 or values.dtype != torch.bool:
            raise ValueError("prediction: with a single channel, give a boolean mask and label=1")
        found = values
    elif not 0 <= label < classes:
        raise ValueError(f"label: expected 0..{classes - 1}, got {label}")
    elif values.dtype == torch.bool:
        found = values[:, label : label + 1]
    else:
        found = values.argmax(1, keepdim=True) == label
    empty = (~found.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"label: label {label} is not predicted anywhere in example(s) {empty}")
    return found.cpu()


@checked(spatial_shape=_SHAPE)
def grid(spatial_shape: Sequence[int], block_size: int | Sequence[int]) -> Tensor:
    """Units that are blocks, numbered along the last axis first; what the block does not divide is left to smaller ones.

    Args:
        spatial_shape: the image's spatial shape.
        block_size: block edge in pixels, per axis (one number for all).

    Returns:
        Integer tensor of shape ``spatial_shape``: a ``feature_mask``.

    Example:
        >>> from captum_causalseg import regions
        >>> regions.grid((2, 5), block_size=2)
        tensor([[0, 0, 1, 1, 2],
                [0, 0, 1, 1, 2]])
    """
    return number_blocks(spatial_shape, per_axis("block_size", block_size, len(spatial_shape), each=integer(1)))


@checked(mask=array_of("labels", may_be_empty=False))
def from_mask(mask: Array) -> Tensor:
    """Units from any label image (an atlas, a superpixel map): its values, renumbered 0, 1, ... in ascending order.

    Args:
        mask: ``spatial``, integers or booleans.

    Returns:
        Integer tensor of the same shape: a ``feature_mask``.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> regions.from_mask(torch.tensor([[0, 7], [7, 300]])).tolist()
        [[0, 1], [1, 2]]
    """
    values = _numpy(mask)
    return torch.from_numpy(np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int64))


@checked(
    image=array_of("real", "(C, H, W) or (C, H, W, D)", (3, 4), finite=True, may_be_empty=False),
    n_segments=integer(1),
    compactness=number(above=0),
)
def supervoxels(image: Array, n_segments: int = 200, compactness: float = 0.1) -> Tensor:
    """Units that follow the image: SLIC superpixels or supervoxels (Achanta et al. 2012, scikit-image).

    Args:
        image: one image ``(C, *spatial)`` in 2D or 3D, finite.
        n_segments: about how many units.
        compactness: balance of nearness in space against likeness in intensity; larger gives squarer units.

    Returns:
        Integer tensor ``spatial``: a ``feature_mask``.

    Raises:
        ImportError: scikit-image is not installed (``pip install "captum-causalseg[supervoxels]"``).

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> image = torch.zeros(1, 16, 16)
        >>> image[..., 8:] = 1  # two halves
        >>> units = regions.supervoxels(image, n_segments=8)
        >>> set(units[:, :8].unique().tolist()) & set(units[:, 8:].unique().tolist())  # no unit lies in both
        set()
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError('regions.supervoxels needs scikit-image: pip install "captum-causalseg[supervoxels]"') from error
    values = np.moveaxis(_numpy(image).astype(np.float64), 0, -1)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    labels = slic(scaled, n_segments=n_segments, compactness=compactness, channel_axis=-1, start_label=0, convert2lab=False)
    return from_mask(labels)


def _numpy(values: Array) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _shapes_of_truth(masks: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What a reference for hard masks ``(N, C, *spatial)`` may be: masks, a label map each, or for a single example a label map."""
    return [masks, (masks[0], *masks[2:])] + ([masks[2:]] if masks[0] == 1 else [])


def _labels_of(name: str, masks: np.ndarray, label: int | None) -> np.ndarray:
    """Label maps ``(N, *spatial)`` of hard masks ``(N, C, *spatial)``; those of one label are that label inside of its mask."""
    if masks.dtype != bool:
        raise ValueError(f"{name}: expected boolean hard masks, as SegmentationTarget.predict returns them, got {masks.dtype}")
    classes = masks.shape[1]
    if label is not None and not 0 <= label < max(classes, 2):
        raise ValueError(f"label: expected 0..{max(classes, 2) - 1}, got {label}")
    if classes == 1:
        return masks[:, 0].astype(np.int64)
    if label is not None:
        return np.where(masks[:, label], label, label - 1)
    if bool((masks.sum(1) != 1).any()):
        raise ValueError(f"label: the channels of {name} overlap or leave pixels out, so say of which one errors are counted")
    return np.asarray(masks.argmax(1))


def _error(prediction: np.ndarray, reference: np.ndarray, *, kind: str, rank: int, label: int | None) -> Tensor:
    """One component of what differs between two label maps ``(*spatial)``."""
    if label is not None:
        prediction, reference = prediction == label, reference == label
    wrong = prediction != reference
    if kind != "any":
        wrong = wrong & ((prediction if kind == "false_positive" else reference) != 0)
    components, _ = ndimage.label(wrong, structure=np.ones((3,) * wrong.ndim))
    sizes = np.bincount(components.ravel())[1:]
    if rank > len(sizes):
        said = {"any": "errors", "false_positive": "false positives", "missed": "missed parts"}[kind]
        raise ValueError(f"rank: prediction and reference differ in {len(sizes)} connected {said}, got {rank}")
    return torch.from_numpy(components == 1 + int(np.argsort(-sizes, kind="stable")[rank - 1]))


def _listed(values: np.ndarray) -> str:
    labels = np.unique(values)
    rest = f" and {len(labels) - _MOST_LISTED} more" if len(labels) > _MOST_LISTED else ""
    return ", ".join(f"{label:.0f}" for label in labels[:_MOST_LISTED].astype(float)) + rest
