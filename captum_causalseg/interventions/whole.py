"""Interventions on the input, the plain way: donors pasted into copies of it, the whole model run on each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg.donors import BoundDonors
from captum_causalseg.interventions.units import Units, gather, paste

__all__ = ["WholeInput", "checked_scores"]


class WholeInput:
    """An evaluator (see :mod:`captum_causalseg.engine.run`) that runs ``forward_func`` on intervened copies of the inputs.

    Args:
        forward_func: inputs and additional arguments to scores ``(N, *output_shape)``.
        inputs: tensors ``(N, C, *spatial)``.
        additional_forward_args: tensors ``(N, ...)`` go with their example, all else is passed as it is.
        units: what is replaced.
        donors: per input, what it is replaced by.

    Attributes:
        output_shape: shape of one example's scores, known after :meth:`observe`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Sequence[Tensor],
        additional_forward_args: Sequence[Any],
        units: Units,
        donors: Sequence[BoundDonors],
    ) -> None:
        self._forward_func = forward_func
        self._inputs = list(inputs)
        self._arguments = list(additional_forward_args)
        self._units, self._donors = units, donors
        self.output_shape: tuple[int, ...] | None = None

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        return self._scores(gather(self._inputs, examples), gather(self._arguments, examples))

    def __call__(self, examples: np.ndarray, units: np.ndarray, donors: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` with each unit replaced by its donor."""
        inputs = gather(self._inputs, examples)
        paste(inputs, self._units, self._donors, examples, units, donors)
        return self._scores(inputs, gather(self._arguments, examples))

    def _scores(self, inputs: list[Tensor], arguments: list[Any]) -> Tensor:
        scores = checked_scores(self._forward_func(*inputs, *arguments), inputs[0].shape[0], self.output_shape)
        self.output_shape = tuple(scores.shape[1:])
        return scores.flatten(1) if scores.ndim > 1 else scores[:, None]


def checked_scores(scores: Any, batch: int, output_shape: tuple[int, ...] | None) -> Tensor:
    """What a forward function returned, if it is one score (or ``output_shape`` scores) per example."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"forward_func: expected a tensor of one score per example, got {type(scores).__name__}")
    if scores.ndim == 0 or scores.shape[0] != batch:
        raise ValueError(
            f"forward_func: expected one score per example, (N, ...) with N={batch}, got {tuple(scores.shape)}; a function "
            "that aggregates over the batch cannot be explained example by example"
        )
    if scores.is_complex():
        raise TypeError("forward_func: expected real scores, got complex ones")
    if output_shape is not None and tuple(scores.shape[1:]) != output_shape:
        raise ValueError(
            f"forward_func: its scores changed their shape, from {output_shape} per example to {tuple(scores.shape[1:])}"
        )
    return scores
