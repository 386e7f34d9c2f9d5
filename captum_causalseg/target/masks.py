"""RoIs and references as users give them, read for a batch of images: shapes, dtypes, who they belong to."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import listed, shown

__all__ = [
    "absent_classes",
    "batch_error",
    "check_roi",
    "instances_of",
    "is_one_hot",
    "mask_argument",
    "mask_source",
    "one_hot",
    "per_class_or_labels",
    "plain_tensor",
    "reference_of_batch",
    "refuse_other_classes",
    "roi_of_batch",
]


def mask_source(name: str, mask: Any) -> tuple[str, Tensor | None]:
    """Where a mask comes from (``"given"``, ``"argument"`` or ``"none"``), and the mask if it was given."""
    if isinstance(mask, str):
        if mask != "argument":
            raise ValueError(f'{name}: expected a mask, None or "argument", got {shown(mask)}')
        return "argument", None
    if mask is None:
        return "none", None
    if not isinstance(mask, (Tensor, np.ndarray)):
        raise TypeError(f"{name}: expected a tensor or an array, got {type(mask).__name__}")
    if isinstance(mask, np.ma.MaskedArray) and np.ma.is_masked(mask):
        raise ValueError(
            f"{name}: expected an array with a value everywhere, got a masked one; say what is under its mask: .filled(0)"
        )
    if isinstance(mask, np.ndarray):
        if mask.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected an array of numbers or booleans, got {mask.dtype}")
        # A copy in native byte order, for files are mapped read-only, flipped and big-endian; of no more than double precision.
        dtype = mask.dtype.newbyteorder("=") if mask.dtype.itemsize <= 8 else np.dtype(np.float64)
        mask = torch.from_numpy(np.asarray(mask).astype(dtype, order="C"))
    return "given", _mask_tensor(name, mask)


def mask_argument(name: str, inputs: tuple[Any, ...]) -> Tensor:
    """The mask that a call brings along as its last positional argument."""
    mask = inputs[-1] if len(inputs) > 1 else None
    if not isinstance(mask, Tensor):
        raise ValueError(
            f'{name}: this target takes it as its last positional argument ({name}="argument"): pass it after the inputs or in '
            "additional_forward_args, one entry per example"
        )
    return _mask_tensor(name, mask)


def _mask_tensor(name: str, mask: Tensor) -> Tensor:
    if mask.layout != torch.strided or mask.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got a {'quantized' if mask.is_quantized else 'sparse'} one")
    if mask.is_complex():
        raise TypeError(f"{name}: expected a mask or labels, got {mask.dtype}")
    return plain_tensor(mask)


def plain_tensor(mask: Tensor) -> Tensor:
    """Without gradient, metadata or a dtype that PyTorch computes little with."""
    mask = mask.detach()
    # Unsigned integers wider than a byte.
    mask = mask.long() if mask.dtype in (torch.uint16, torch.uint32, torch.uint64) else mask
    mask = mask.float() if mask.is_floating_point() and mask.dtype.itemsize == 1 else mask
    return mask.as_subclass(Tensor) if type(mask) is not Tensor else mask


def check_roi(roi: Tensor) -> Tensor:
    """A boolean mask that is not empty."""
    if roi.dtype != torch.bool:
        if not bool(((roi == 0) | (roi == 1)).all()):
            raise ValueError(f"roi: expected a boolean mask (or 0 and 1), got {roi.dtype} with other values{_scale(roi)}")
        roi = roi.bool()
    if not bool(roi.any()):
        raise ValueError("roi: it is empty, no pixel is True")
    return roi


def roi_of_batch(roi: Tensor, spatial: torch.Size, n: int, is_argument: bool) -> Tensor:
    """``(N or 1, R, *spatial)``; nothing is broadcast but a mask that was given for all examples."""
    lead = roi.ndim - len(spatial)
    if not 0 <= lead <= 2 or roi.shape[lead:] != spatial:
        raise ValueError(
            f"roi: expected a mask of the images' spatial shape {tuple(spatial)} (or a stack of such masks), "
            f"got {tuple(roi.shape)}"
        )
    if is_argument:
        if lead == 0:
            raise ValueError(f"roi: as an argument it needs a batch axis, got {tuple(roi.shape)}")
        masks = roi.unsqueeze(1) if lead == 1 else roi
    else:
        masks = roi.reshape((1,) * (2 - lead) + tuple(roi.shape))
    if masks.shape[0] not in ((n,) if is_argument else (1, n)):
        raise ValueError(batch_error("roi", masks.shape[0], n))
    empty = (~masks.flatten(2).any(-1)).nonzero().tolist()
    if empty:
        raise ValueError(f"roi: it is empty for (example, RoI) [{listed(empty)}]")
    return masks


def reference_of_batch(reference: Tensor, spatial: torch.Size, n: int, is_argument: bool) -> Tensor:
    """The reference as ``(*spatial)``, ``(K, *spatial)`` or ``(N or 1, K, *spatial)``, its shape checked."""
    lead = reference.ndim - len(spatial)
    if not 0 <= lead <= 2 or reference.shape[lead:] != spatial:
        raise ValueError(
            f"reference: expected a label map of the images' spatial shape {tuple(spatial)}, one per example, or one-hot, "
            f"got {tuple(reference.shape)}"
        )
    if is_argument:
        if lead == 0:
            raise ValueError(f"reference: as an argument it needs a batch axis, got {tuple(reference.shape)}")
        if reference.shape[0] != n:
            raise ValueError(batch_error("reference", reference.shape[0], n))
        return reference.unsqueeze(1) if lead == 1 else reference
    if lead == 2 and reference.shape[0] not in (1, n):
        raise ValueError(batch_error("reference", reference.shape[0], n))
    return reference if lead == 1 else reference.reshape((1,) * (2 - lead) + tuple(reference.shape))


def per_class_or_labels(reference: Tensor, n: int, channels: int, n_spatial: int, exclusive: bool) -> Tensor:
    """``(N or 1, K, *spatial)`` from a reference of checked shape: one mask per class, or label maps (``K`` is 1)."""
    if reference.ndim != n_spatial + 1:
        return reference
    # (K, *spatial) is one mask per class or one label map per example: its values and the class count tell.
    if is_one_hot(reference, channels, exclusive):
        return reference[None]
    refuse_other_classes(reference, channels)
    if reference.shape[0] not in (1, n):
        raise ValueError(batch_error("reference", reference.shape[0], n))
    return reference[:, None]


def one_hot(batch: Tensor, channels: int, activation: str, exclusive: bool) -> Tensor:
    """``(N or 1, C, *spatial)`` from what :func:`per_class_or_labels` returns."""
    if channels > 1 and batch.shape[1] == 1:
        return _from_labels(batch, channels, activation, exclusive=exclusive)
    if batch.shape[1] != channels:
        raise ValueError(
            f"reference: it has {batch.shape[1]} channels, the model {channels}; give a label map or one channel per class"
        )
    if not bool(((batch == 0) | (batch == 1)).all()):
        raise ValueError(
            f"reference: expected 0 and 1 for a model of {channels} channel(s), found {_range(batch)}{_scale(batch)}"
        )
    return batch


def instances_of(reference: Tensor, n: int, n_spatial: int) -> Tensor:
    """A mask for each object ``(N or 1, M, *spatial)``, from a reference of checked shape.

    In a label map every label but 0 is an object; one that an example does not have is empty there.

    Raises:
        ValueError: it cannot be told what the first axis is, or there are other values than labels or masks have.
    """
    if reference.ndim == n_spatial + 1:
        if len(reference) not in (1, n):
            raise ValueError(
                f"reference: expected a label map of objects, one per example (N, *spatial) with N={n}, or one mask per object (N or 1, objects, "
                f"*spatial), got {tuple(reference.shape)}; masks of objects need the axis of the examples in front: reference[None]"
            )
        reference = reference[:, None]
    if reference.shape[1] > 1:
        if not bool(((reference == 0) | (reference == 1)).all()):
            raise ValueError(
                f"reference: expected 0 and 1 in one mask per object, found {_range(reference)}{_scale(reference)}"
            )
        return reference
    _refuse_fractions(reference)
    labels: Tensor = torch.unique(reference)
    if bool((labels < 0).any()):
        raise ValueError(f"reference: expected labels of objects from 0 (none) on, found {_range(reference)}")
    labels = labels[labels > 0]
    if len(labels) == 0:
        return reference
    planes: Tensor = reference == labels.view(-1, *(1,) * n_spatial)
    return planes


def refuse_other_classes(reference: Tensor, channels: int) -> None:
    """Raise if ``(K, *spatial)`` is one mask per class, of another number of classes than the model's.

    As many label maps of 0 and 1 would have to complement each other in every pixel to be taken for that.
    """
    if len(reference) not in (1, channels) and is_one_hot(reference, len(reference), exclusive=True):
        raise ValueError(
            f"reference: it has {len(reference)} classes, one mask each, the model's output {channels}; give a label map or one mask "
            "per class of the model"
        )


def absent_classes(labels: Tensor, channels: int) -> tuple[bool, str] | None:
    """What to say of a label map whose labels do not reach the model's last class, and whether it may be meant otherwise.

    Classes that are absent from an image are nothing unusual; but 0 and 1 alone may be a mask, of whatever class.
    """
    largest = int(labels.max())
    if labels.dtype == torch.bool or not 0 < largest < channels - 1:
        return None
    said = f"reference: its largest label is {largest}, the model has {channels} classes; labels are read as classes 0..{largest} of these"
    if largest > 1:
        return False, said
    return True, f"{said}. If it is the mask of another class c, give mask.long() * c and look at target=c"


def _from_labels(labels: Tensor, channels: int, activation: str, exclusive: bool) -> Tensor:
    # Raw outputs (activation none) are thresholded class by class in the paper's protocol; a label map is fine there.
    if not exclusive and activation == "sigmoid":
        raise ValueError(
            f"reference: the model's {channels} labels may overlap (activation sigmoid), so a label map cannot say which "
            "hold; give one mask per label, (C, *spatial) or (N, C, *spatial)"
        )
    if labels.dtype == torch.bool and channels > 2:
        raise ValueError(
            f"reference: a boolean mask has 2 classes, the model's output {channels}; give a label map of the model's classes, or one "
            "mask per class; of class c alone, mask.long() * c and target=c"
        )
    if bool((labels < 0).any()) or bool((labels > channels - 1).any()):
        raise ValueError(
            f"reference: labels {_range(labels)} are outside the model's classes 0..{channels - 1}{_scale(labels)}"
        )
    _refuse_fractions(labels)
    classes = torch.arange(channels, device=labels.device).view(-1, *(1,) * (labels.ndim - 2))
    return labels == classes


def _refuse_fractions(labels: Tensor) -> None:
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise ValueError(
            f"reference: expected whole numbers as labels, got {'NaN' if bool(labels.isnan().any()) else 'fractions'}"
        )


def _scale(values: Tensor) -> str:
    """What helps where a mask was saved as an image, or holds what is neither class."""
    if not bool((values == 255).any()):
        return ""
    if bool(((values == 0) | (values == 255)).all()):
        return "; a mask of 0 and 255 has to be divided by 255"
    return "; where 255 stands for pixels to ignore, leave them out of the RoI and give them any class"


def _range(values: Tensor) -> str:
    numbers = values[~values.isnan()]
    said = f"{float(numbers.min()):g}..{float(numbers.max()):g}" if len(numbers) else ""
    return " and ".join(filter(None, [said, "NaN" if len(numbers) < values.numel() else ""]))


def is_one_hot(reference: Tensor, channels: int, exclusive: bool) -> bool:
    """Whether ``(K, *spatial)`` reads as one mask per class rather than as K examples."""
    if channels == 1 or reference.shape[0] != channels or not bool(((reference == 0) | (reference == 1)).all()):
        return False
    return not exclusive or bool((reference.sum(0) == 1).all())


def batch_error(name: str, got: int, expected: int) -> str:
    """What to say of masks for another number of examples, and what to do about it."""
    return (
        f"{name}: it holds {got} examples, the batch {expected}. Masks per example travel with the batch as call arguments: "
        f'SegmentationTarget(..., {name}="argument") and additional_forward_args={name}'
    )
