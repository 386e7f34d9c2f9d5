"""Scores as differentiable functions of the inputs, or of a layer's activation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg.interventions.layer import Activation, _watched
from captum_causalseg.interventions.units import gather
from captum_causalseg.layout import Layout
from captum_causalseg.target import SegmentationTarget

__all__ = ["Scores", "differentiable", "scores_of_activation", "scores_of_inputs"]

Scores = Callable[..., Any]
"""``(tensors, examples=None)`` to scores ``(B, *output_shape)``: the tensors stand in the place of these examples' (or all)."""


def differentiable(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """A segmentation target's twin that has a gradient; any other function as it is.

    Raises:
        ValueError: the target's metric has no differentiable twin.
    """
    return forward_func.surrogate() if isinstance(forward_func, SegmentationTarget) else forward_func


def scores_of_inputs(forward_func: Callable[..., Any], arguments: Sequence[Any]) -> Scores:
    """What ``forward_func`` returns, as a function of its inputs; the additional arguments stay."""

    def scores(inputs: Sequence[Tensor], examples: np.ndarray | None = None) -> Any:
        examples = np.arange(len(inputs[0])) if examples is None else examples
        # Copies: a model may work in place, on a leaf autograd does not allow it.
        return forward_func(*(tensor.clone() for tensor in inputs), *gather(arguments, examples))

    return scores


def scores_of_activation(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: Sequence[Tensor],
    arguments: Sequence[Any],
    *,
    at_input: bool = False,
    device_ids: Sequence[int] | None = None,
    layouts: Sequence[Layout | None] = (),
) -> Scores:
    """What ``forward_func`` returns for these inputs, as a function of the tensors of a layer's activation.

    Args:
        forward_func: inputs and additional arguments to scores.
        layer: a module that is called once when it runs.
        inputs: tensors ``(N, C, *spatial)``.
        arguments: the additional ones.
        at_input: the activation is what the layer takes instead of what it returns.
        device_ids: of a ``DataParallel`` model.
        layouts: of its tensors; the function takes them with their channels first.
    """

    def scores(activation: Sequence[Tensor], examples: np.ndarray | None = None) -> Any:
        examples = np.arange(len(inputs[0])) if examples is None else examples
        copies = [tensor.clone() for tensor in activation]
        by_device = {copies[0].device: copies}
        if device_ids is not None:
            # Each replica gets the rows that DataParallel scatters to its device.
            parts = torch.nn.parallel.scatter_gather.scatter(tuple(copies), list(device_ids))
            by_device = {part[0].device: list(part) for part in parts}

        def substitute(value: Any) -> Any:
            found = Activation(value, layouts)
            return found.with_tensors(by_device[found.tensors[0].device])

        with _watched(layer, at_input, substitute, any_thread=device_ids is not None):
            return forward_func(*gather(inputs, examples), *gather(arguments, examples))

    return scores
