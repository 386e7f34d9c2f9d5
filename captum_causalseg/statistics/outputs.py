"""Which of several outputs Captum's ``target`` picks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_causalseg._captum import TargetType, select_targets
from captum_causalseg._checks import TEXT, checked, integer, sequence, shown

__all__ = ["target_index"]


@checked(n_examples=integer(0), output_shape=sequence(integer(0)), output_axes=sequence(TEXT))
def target_index(target: TargetType, n_examples: int, output_shape: Sequence[int], output_axes: Sequence[str]) -> Tensor:
    """Per example, the flat index ``(N,)`` of the output that Captum's ``target`` (an int, tuple, tensor or list) picks.

    Raises:
        ValueError: it picks no output, or several.
    """
    count = math.prod(output_shape)
    described = f"{count} outputs"
    if output_axes:
        described += " (" + " x ".join(f"{length} {name}" for length, name in zip(output_shape, output_axes)) + ")"
    if target is None:
        if count != 1:
            raise ValueError(f"target: the forward function has {described} per example; say which one")
        return torch.zeros(n_examples, dtype=torch.int64, device="cpu")
    indices = torch.arange(count, device="cpu").reshape(1, *output_shape).expand(n_examples, *output_shape)
    try:
        chosen: Tensor = select_targets(indices, target)
    except (IndexError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"target: {shown(target)} does not pick one of {described} for each of {n_examples} example(s)"
        ) from error
    if chosen.shape != (n_examples,):
        raise ValueError(f"target: {shown(target)} picks {math.prod(chosen.shape[1:])} of {described} per example; pick one")
    return chosen
