"""What the peers share: one image that is kept in part, the output that is explained, progress."""

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_causalseg._captum import TargetType, progress
from captum_causalseg.attr._problem import Call, check_integer, prepare_call
from captum_causalseg.interventions.evaluator import checked_scores, chosen_output
from captum_causalseg.target import SegmentationTarget

__all__ = ["INTERPOLATION", "baseline_of", "check_number", "counting", "prepare_image", "scores_of_outputs", "sizes_per_axis"]

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def prepare_image(
    forward_func: Callable[..., Any], inputs: Any, baselines: Any, additional_forward_args: Any
) -> tuple[Call, Tensor]:
    """A checked call with one image batch, and what stands in the place of what is not kept of it (see `baseline_of`)."""
    if isinstance(inputs, tuple) and len(inputs) > 1:
        raise TypeError(
            f"inputs: expected one image batch (N, C, *spatial), got a tuple of {len(inputs)}; stack modalities as channels, or pass "
            "what is not explained in additional_forward_args"
        )
    call = prepare_call(forward_func, inputs, additional_forward_args)
    image = call.inputs[0]
    if image.ndim - 2 not in INTERPOLATION:
        raise ValueError(f"inputs: expected an image batch (N, C, *spatial) with 1 to 3 spatial axes, got {tuple(image.shape)}")
    if isinstance(inputs, tuple) and isinstance(baselines, tuple) and len(baselines) == 1:
        baselines = baselines[0]
    return call, baseline_of(baselines, image)


def baseline_of(baselines: Any, image: Tensor) -> Tensor:
    """``baselines`` as a tensor ``(N, C, *spatial)`` like the image.

    Args:
        baselines: a number, or a tensor ``(1 or N, C, *spatial)``.
        image: ``(N, C, *spatial)``.
    """
    if isinstance(baselines, Tensor) and baselines.ndim > 0:
        if baselines.shape[1:] != image.shape[1:] or len(baselines) not in (1, len(image)):
            raise ValueError(
                f"baselines: expected a number or a tensor (1 or N, C, *spatial) for images {tuple(image.shape)}, got "
                f"{tuple(baselines.shape)}"
            )
        if not bool(baselines.isfinite().all()):
            raise ValueError("baselines: it holds NaN or infinite values")
        return baselines.detach().as_subclass(Tensor).to(image).expand_as(image).clone()
    is_number = isinstance(baselines, numbers.Real) and not isinstance(baselines, bool)
    if not is_number and not isinstance(baselines, Tensor):
        raise TypeError(f"baselines: expected a number or a tensor, got {type(baselines).__name__}")
    if not math.isfinite(baselines):
        raise ValueError(f"baselines: expected a finite number, got {float(baselines)}")
    return torch.full_like(image, float(baselines))


def sizes_per_axis(name: str, size: Any, n_axes: int) -> tuple[int, ...]:
    """An integer for all axes, or a tuple of one per axis; each at least 1."""
    if not isinstance(size, (tuple, list)):
        check_integer(name, size, 1)
        return (int(size),) * n_axes
    if len(size) != n_axes:
        raise ValueError(f"{name}: expected an integer or one per spatial axis ({n_axes}), got {size!r}")
    for one in size:
        check_integer(name, one, 1)
    return tuple(int(one) for one in size)


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise unless ``value`` is a finite number in ``[low, high]`` (``(low, high]`` with ``open_low``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number > high or number < low or (open_low and number == low):
        bounds = f"{'more than' if open_low else 'at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
        raise ValueError(f"{name}: expected a finite number of {bounds}, got {value}")


def scores_of_outputs(call: Call, scores: Any, target: TargetType) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The scores of a call, checked, which of them is explained and what their axes are.

    Returns:
        Scores ``(N, *output_shape)``, the flat index ``(N,)`` of the output that ``target`` picks, and the names of the axes in
        ``output_shape``.
    """
    checked = checked_scores(scores, len(call.inputs[0]), None)
    shape = checked.shape[1:]
    names: Sequence[str] = ("output",) * len(shape)
    if isinstance(call.forward_func, SegmentationTarget):
        names = call.forward_func.output_axes(len(shape), call.spatial)
    return checked, chosen_output(target, len(checked), tuple(shape), names, call.spatial), tuple(names)


@contextmanager
def counting(show: bool, total: int, description: str) -> Iterator[Callable[[int], None]]:
    """A function that is told how many steps have been made; it moves a progress bar, if there is to be one."""
    bar = progress(total=total, desc=description) if show else None
    try:
        yield lambda steps: None if bar is None else bar.update(steps)
    finally:
        if bar is not None:
            bar.close()
