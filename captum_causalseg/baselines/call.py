"""What the peers share: one image that is kept in part, the output that is explained, progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_causalseg._captum import TargetType, progress
from captum_causalseg._checks import number, tensor_of
from captum_causalseg.attr.problem import Call, prepare_call
from captum_causalseg.interventions.outputs import Outputs
from captum_causalseg.target.scores import checked_scores

__all__ = ["baseline_of", "counting", "prepare_image", "scores_of_outputs"]

_BASELINES = number() | tensor_of("real", finite=True)


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
    if not 1 <= image.ndim - 2 <= 3:
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
    _BASELINES("baselines", baselines)
    if isinstance(baselines, Tensor) and baselines.ndim > 0:
        if baselines.shape[1:] != image.shape[1:] or len(baselines) not in (1, len(image)):
            raise ValueError(
                f"baselines: expected a number or a tensor (1 or N, C, *spatial) for images {tuple(image.shape)}, got "
                f"{tuple(baselines.shape)}"
            )
        return baselines.detach().as_subclass(Tensor).to(image).expand_as(image).clone()
    return torch.full_like(image, float(baselines))


def scores_of_outputs(call: Call, scores: Any, target: TargetType) -> tuple[Tensor, Outputs]:
    """The scores of a call, checked, and which of them is explained.

    Returns:
        Scores ``(N, *output_shape)``, and what ``target`` picks of them.
    """
    checked = checked_scores(scores, len(call.inputs[0]), None)
    return checked, call.outputs(checked.shape[1:], target)


@contextmanager
def counting(show: bool, total: int, description: str) -> Iterator[Callable[[int], None]]:
    """A function that is told how many steps have been made; it moves a progress bar, if there is to be one."""
    bar = progress(total=total, desc=description) if show else None
    try:
        yield lambda steps: None if bar is None else bar.update(steps)
    finally:
        if bar is not None:
            bar.close()
