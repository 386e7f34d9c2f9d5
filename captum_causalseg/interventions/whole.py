"""Interventions on the input, the plain way: donors pasted into copies of it, the whole model run on each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.donors import BoundDonors
from captum_causalseg.interventions.units import Units

__all__ = ["WholeInput"]


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
        self._inputs = [tensor.detach() for tensor in inputs]
        self._arguments = list(additional_forward_args)
        self._units, self._donors = units, donors
        self.output_shape: tuple[int, ...] | None = None

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        return self._scores(*self._copies(examples))

    def __call__(self, examples: np.ndarray, units: np.ndarray, donors: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` with each unit replaced by its donor."""
        inputs, arguments = self._copies(examples)
        for b, (example, unit) in enumerate(zip(examples.tolist(), units.tolist())):
            for piece in self._units.pieces(example, unit):
                value = self._donors[piece.slot].read(example, piece.box, int(donors[b, piece.slot]))
                if value.shape[0] > 1:
                    value = value[piece.channels]
                place = inputs[piece.slot][b][(piece.channels, *piece.box)]
                value = value.to(device=place.device, dtype=place.dtype, non_blocking=True)
                if piece.mask is None:
                    place.copy_(value)
                else:
                    place.copy_(torch.where(piece.mask.to(place.device, non_blocking=True), value, place))
        return self._scores(inputs, arguments)

    def _copies(self, examples: np.ndarray) -> tuple[list[Tensor], list[Any]]:
        """Fresh inputs and arguments for these examples: what the model does to them in place stays there."""

        def gather(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, torch.as_tensor(examples, device=tensor.device))

        arguments = [
            a if not isinstance(a, Tensor) else gather(a) if a.ndim > 0 else a.detach().clone() for a in self._arguments
        ]
        return [gather(tensor) for tensor in self._inputs], arguments

    def _scores(self, inputs: list[Tensor], arguments: list[Any]) -> Tensor:
        scores = self._forward_func(*inputs, *arguments)
        batch = inputs[0].shape[0]
        if not isinstance(scores, Tensor):
            raise TypeError(f"forward_func: expected a tensor of one score per example, got {type(scores).__name__}")
        if scores.ndim == 0 or scores.shape[0] != batch:
            raise ValueError(
                f"forward_func: expected one score per example, (N, ...) with N={batch}, got {tuple(scores.shape)}; a function "
                "that aggregates over the batch cannot be explained example by example"
            )
        if scores.is_complex():
            raise TypeError("forward_func: expected real scores, got complex ones")
        if self.output_shape is None:
            self.output_shape = tuple(scores.shape[1:])
        elif tuple(scores.shape[1:]) != self.output_shape:
            raise ValueError(
                f"forward_func: its scores changed their shape, from {self.output_shape} per example to {tuple(scores.shape[1:])}"
            )
        return scores.reshape(batch, -1)
