"""The arguments of an attribution call, checked before any forward is spent and tied together."""

import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import captum
import numpy as np
import torch
from torch import Tensor

from captum_causalseg import regions
from captum_causalseg._captum import format_additional_forward_args
from captum_causalseg._version import __version__
from captum_causalseg.donors import BoundDonors, as_donor_source
from captum_causalseg.interventions.units import Units
from captum_causalseg.target import SegmentationTarget

__all__ = ["Problem", "check_integer", "prepare"]

DEFAULT_BLOCK_SIZE = 8


@dataclass(frozen=True)
class Problem:
    """The checked arguments of one call."""

    inputs: tuple[Tensor, ...]
    inputs_are_tuple: bool
    forward_func: Callable[..., Any]
    arguments: tuple[Any, ...]
    units: Units
    donors: tuple[BoundDonors, ...]
    excluded: np.ndarray
    """``(N, U, R)``: units that touch RoI r; R is 1 where RoIs do not matter."""
    n_roi_outputs: int
    """How many RoIs the scores' last axis runs over."""
    settings: dict[str, Any]

    @property
    def n_examples(self) -> int:
        return self.inputs[0].shape[0]


def prepare(
    forward_func: Callable[..., Any],
    inputs: Any,
    baselines: Any,
    additional_forward_args: Any,
    feature_mask: Any,
    block_size: Any,
    exclude: Any,
    *,
    whole_blocks_only: bool = False,
) -> Problem:
    """Check every argument before any forward is spent, and tie donors to inputs."""
    tensors = _check_inputs(inputs)
    n_examples = tensors[0].shape[0]
    arguments = _check_arguments(additional_forward_args, n_examples)
    _check_call(forward_func, len(tensors), arguments)
    block_sizes = _block_sizes(tensors, isinstance(inputs, tuple), block_size)
    masks = _feature_masks(tensors, feature_mask, block_size, block_sizes)
    units = Units(masks, n_examples)
    rois = None
    if isinstance(forward_func, SegmentationTarget):
        image = next((t for t in tensors if t.ndim > 2), None)
        if image is not None:
            forward_func, arguments = forward_func.with_masks_as_arguments(n_examples, image.ndim - 2, arguments)
            rois = forward_func.roi_masks((*tensors, *arguments))
    excluded, n_roi_outputs = _excluded(units, tensors, rois, exclude)
    if whole_blocks_only:
        excluded = excluded | _remainders(units, block_sizes)[None, :, None]
    lost = np.flatnonzero((excluded.all(2) | ~units.present).all(1))
    if len(lost):
        if whole_blocks_only:
            raise ValueError(
                f"block_size: no whole block of example {lost[0]} lies outside the RoI; choose smaller blocks or a smaller RoI"
            )
        raise ValueError(
            f"exclude: every unit of example {lost[0]} is excluded; choose smaller units, a smaller RoI, or pass exclude=None"
        )
    donors = tuple(
        as_donor_source(source, tensor).bind(tensor, _forbidden(tensor, rois))
        for source, tensor in zip(_baselines(baselines, tensors), tensors)
    )
    settings = {
        "block_size": list(map(str, block_size)) if isinstance(block_size, (tuple, list)) else block_size and int(block_size),
        "baselines": repr(baselines) if not isinstance(baselines, Tensor) else f"tensor {tuple(baselines.shape)}",
        "exclude": exclude if isinstance(exclude, str) or exclude is None else "mask",
        "versions": {"captum_causalseg": __version__, "captum": captum.__version__, "torch": torch.__version__},
    }
    return Problem(
        tensors, isinstance(inputs, tuple), forward_func, arguments, units, donors, excluded, n_roi_outputs, settings
    )


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise unless ``value`` is an integer (no bool) of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _check_inputs(inputs: Any) -> tuple[Tensor, ...]:
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors:
        raise ValueError("inputs: the tuple is empty")
    checked = []
    for index, tensor in enumerate(tensors):
        name = f"inputs[{index}]" if isinstance(inputs, tuple) else "inputs"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor or a tuple of tensors, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point image as the model takes it, got {tensor.dtype}")
        if tensor.ndim < 2 or tensor.numel() == 0:
            raise ValueError(f"{name}: expected shape (N, C, *spatial) without empty axes, got {tuple(tensor.shape)}")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise ValueError(f"{name}: it holds {tensor.shape[0]} examples, the first input {tensors[0].shape[0]}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: it holds NaN or infinite values")
        tensor = tensor.detach()
        # Subclasses (MetaTensor) would carry their metadata through every operation of the loop.
        checked.append(tensor.as_subclass(Tensor) if type(tensor) is not Tensor else tensor)
    return tuple(checked)


def _check_arguments(additional_forward_args: Any, n_examples: int) -> tuple[Any, ...]:
    arguments: tuple[Any, ...] = format_additional_forward_args(additional_forward_args) or ()
    for index, argument in enumerate(arguments):
        if isinstance(argument, Tensor) and argument.ndim > 0 and argument.shape[0] != n_examples:
            raise ValueError(
                f"additional_forward_args[{index}]: a tensor needs one entry per example ({n_examples}), got shape "
                f"{tuple(argument.shape)}"
            )
    return arguments


def _check_call(forward_func: Callable[..., Any], n_inputs: int, arguments: tuple[Any, ...]) -> None:
    """Raise if a function cannot take so many arguments; modules say so only when they are called."""
    try:
        signature = inspect.signature(forward_func)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * (n_inputs + len(arguments)))
    except TypeError as error:
        raise TypeError(
            f"forward_func: it cannot be called with {n_inputs} input(s) and {len(arguments)} additional_forward_args: {error}"
        ) from error


def _block_sizes(tensors: tuple[Tensor, ...], is_tuple: bool, block_size: Any) -> list[tuple[int, ...]]:
    """Per input, the edges of its blocks along its spatial axes."""
    per_input = [block_size] * len(tensors)
    if is_tuple and isinstance(block_size, tuple) and any(isinstance(size, tuple) for size in block_size):
        if len(block_size) != len(tensors):
            raise ValueError(f"block_size: expected one per input ({len(tensors)}), got {len(block_size)}")
        per_input = list(block_size)
    sizes = []
    for tensor, size in zip(tensors, per_input):
        spatial = tensor.shape[2:]
        if size is None:
            size = tuple(min(DEFAULT_BLOCK_SIZE, length) for length in spatial)
        elif not isinstance(size, (tuple, list)):
            check_integer("block_size", size, 1)
            size = (int(size),) * len(spatial)
        sizes.append(tuple(size))
    return sizes


def _feature_masks(
    tensors: tuple[Tensor, ...], feature_mask: Any, block_size: Any, block_sizes: list[tuple[int, ...]]
) -> list[Tensor]:
    if feature_mask is not None and block_size is not None:
        raise ValueError("feature_mask, block_size: give one of them")
    if feature_mask is None:
        return _default_masks(tensors, block_sizes)
    given = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    if len(given) != len(tensors):
        raise ValueError(f"feature_mask: expected one mask per input ({len(tensors)}), got {len(given)}")
    masks = []
    for mask, tensor in zip(given, tensors):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"feature_mask: expected a tensor of integers, got {kind}")
        shape = (1,) * (tensor.ndim - mask.ndim) + tuple(mask.shape)
        if mask.ndim > tensor.ndim or any(m not in (1, t) for m, t in zip(shape, tensor.shape)):
            raise ValueError(
                f"feature_mask: shape {tuple(mask.shape)} cannot be broadcast to the input's {tuple(tensor.shape)}"
            )
        mask = mask.detach().cpu().long()  # unsigned ones can neither be compared nor broadcast
        if bool((mask < 0).any()):
            raise ValueError(f"feature_mask: expected ids of at least 0, got {int(mask.min())}")
        full = mask.reshape(shape).expand(*shape[:2], *tensor.shape[2:])
        masks.append(full.as_subclass(Tensor).contiguous())
    return masks


def _default_masks(tensors: tuple[Tensor, ...], block_sizes: list[tuple[int, ...]]) -> list[Tensor]:
    """Blocks across all channels where there are spatial axes, single features elsewhere; no unit spans two inputs."""
    masks: list[Tensor] = []
    first = 0
    for tensor, sizes in zip(tensors, block_sizes):
        spatial = tensor.shape[2:]
        mask = regions.grid(spatial, sizes)[None, None] if len(spatial) else torch.arange(tensor.shape[1])[None]
        masks.append(mask + first)
        first = int(masks[-1].max()) + 1
    return masks


def _excluded(units: Units, tensors: tuple[Tensor, ...], rois: Tensor | None, exclude: Any) -> tuple[np.ndarray, int]:
    """Which units are not intervened on, ``(N, U, R or 1)``, and how many RoIs the scores tell apart."""
    n_examples = tensors[0].shape[0]
    n_rois = 1 if rois is None else rois.shape[1]
    nothing = np.zeros((n_examples, len(units), n_rois), dtype=bool)
    if exclude is None:
        return nothing, n_rois
    if isinstance(exclude, str):
        if exclude != "roi":
            raise ValueError(f'exclude: expected "roi", a boolean mask or None, got {exclude!r}')
        if rois is None:
            return nothing, n_rois
        masks = rois
    else:
        if not isinstance(exclude, (Tensor, np.ndarray)):
            raise TypeError(f'exclude: expected "roi", a boolean mask or None, got {type(exclude).__name__}')
        mask = torch.as_tensor(exclude)
        spatial = next((t.shape[2:] for t in tensors if t.ndim > 2), torch.Size())
        if mask.dtype != torch.bool or mask.shape != spatial:
            raise ValueError(
                f"exclude: expected a boolean mask of spatial shape {tuple(spatial)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        masks = mask[None, None].expand(1, n_rois, *spatial)
    for n, r in np.ndindex(n_examples, n_rois):
        roi = masks[n if len(masks) > 1 else 0, r]
        for slot, tensor in enumerate(tensors):
            if tensor.shape[2:] == roi.shape:
                nothing[n, :, r] |= units.touching(slot, n, roi)
    return nothing, n_rois


def _remainders(units: Units, block_sizes: list[tuple[int, ...]]) -> np.ndarray:
    """Units at the edges that are smaller than a block."""
    pieces = [piece for u in range(len(units)) for piece in units.pieces(0, u)]
    return np.array([tuple(side.stop - side.start for side in p.box) != block_sizes[p.slot] for p in pieces])


def _forbidden(tensor: Tensor, rois: Tensor | None) -> Tensor | None:
    """The pixels of the explained image that no donor may hold: the union of its RoIs."""
    if rois is None or rois.shape[2:] != tensor.shape[2:]:
        return None
    return rois.any(1)


def _baselines(baselines: Any, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    if isinstance(baselines, tuple):
        if len(baselines) != len(tensors):
            raise ValueError(f"baselines: expected one per input ({len(tensors)}), got {len(baselines)}")
        given = baselines
    elif isinstance(baselines, Tensor) and len(tensors) > 1 and baselines.ndim > 0:
        raise ValueError(f"baselines: with {len(tensors)} inputs, give a tuple of as many baselines")
    else:
        given = (baselines,) * len(tensors)
    for source in given:
        if isinstance(source, Tensor) and source.ndim > 0 and len(source) == 0:
            raise ValueError(f"baselines: expected at least one donor, got a tensor of shape {tuple(source.shape)}")
        is_number = isinstance(source, numbers.Real) or (isinstance(source, Tensor) and source.ndim == 0)
        if is_number and not math.isfinite(source):
            raise ValueError(f"baselines: expected a finite number, got {float(source)}")
    return given
