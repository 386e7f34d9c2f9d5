"""Interventions on the input: donors pasted into copies of it (or of the window that is enough), the model run on each."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.donors import BoundDonors
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import ModelEvaluator, checked_scores
from captum_causalseg.interventions.units import Units, gather
from captum_causalseg.target import SegmentationTarget

__all__ = ["Execution", "WholeInput"]


@dataclass(frozen=True)
class Execution:
    """How the model is run.

    Args:
        compile: through :func:`torch.compile`.
        autocast: in this lower precision where torch thinks fit; ``None`` for the model's own.
        memory_format: how intervened images lie in memory; in another one than the model's own, its answers differ in the last
            digits.
    """

    compile: bool = False
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format | None = None

    @property
    def channels_last(self) -> bool:
        """Whether images lie pixel by pixel in memory, and not channel by channel."""
        return self.memory_format in (torch.channels_last, torch.channels_last_3d)

    def settings(self) -> dict[str, Any]:
        """What is kept with the statistics."""
        return {
            "compile": self.compile,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "memory_format": "channels_last" if self.channels_last else "contiguous",
        }

    @property
    def exact(self) -> bool:
        """Whether scores are the model's own, to rounding."""
        return self.autocast is None and not self.compile


class WholeInput(ModelEvaluator):
    """Runs ``forward_func`` on intervened copies of the inputs.

    Args:
        forward_func, inputs, additional_forward_args, units, donors: as of :class:`ModelEvaluator`; the tensors are the inputs.
        execution: how the model is run.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Sequence[Tensor],
        additional_forward_args: Sequence[Any],
        units: Units,
        donors: Sequence[BoundDonors],
        execution: Execution | None = None,
    ) -> None:
        super().__init__(forward_func, inputs, additional_forward_args, units, donors)
        self.execution = execution or Execution()
        self._memory: list[Tensor] = []
        self._fast: Any = _compiled(forward_func) if self.execution.compile else forward_func

    @property
    def tensors(self) -> list[Tensor]:
        """What is intervened on."""
        return self.inputs

    @property
    def differs(self) -> bool:
        """Whether interventions are computed in another way than the observed scores are."""
        return super().differs or self.execution.channels_last or self.execution.compile

    @functools.cached_property
    def noise_population(self) -> int:
        """Of how many random states a draw takes one, besides its donor: 1 where the model is not random."""
        population = super().noise_population
        if population > 1 and not self.execution.exact:
            raise ValueError(
                "compile, autocast: not for a target with n_samples, whose pairs of runs have to be the model's own"
            )
        return population

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        with self._precision():
            scores = self.forward_func(*gather(self.inputs, examples), *gather(self.arguments, examples))
        if self.runs_each > 1:
            self.spent["further samples"] += len(examples) * (self.runs_each - 1)
        return self._checked(scores, len(examples))

    def __call__(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions."""
        if self.noise_population > 1:
            return self._of_pairs(interventions)
        answers, examples = self._answers(interventions), interventions.example
        return self._checked(answers if self._local is None else self._local(answers, examples), len(examples))

    def _answers(self, interventions: Interventions) -> Any:
        """Logits where they can be scored locally, else scores."""
        n = len(interventions)
        if self.execution.compile and self._memory and n < len(self._memory[0]):
            # Another batch size would be compiled anew.
            interventions = interventions.rows(np.minimum(np.arange(len(self._memory[0])), n - 1))
        examples = interventions.example
        inputs = self._copies(examples)
        self._paste(inputs, interventions)
        with self._precision():
            if self._local is not None:
                return self._fast.logits(*inputs, *gather(self._model_arguments, examples))[:n]
            return checked_scores(self._fast(*inputs, *gather(self.arguments, examples)), len(examples), self.output_shape)[:n]

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        inputs = self._copies(interventions.example)
        self._paste(inputs, interventions)
        return self._sampled(inputs, interventions.example, noise)

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, with these tensors in the inputs' place."""
        # Not in the lower precision of interventions: there, a window that gives other logits would pass for rounding.
        return self.logits_of_inputs(tensors, examples)

    def _copies(self, examples: np.ndarray) -> list[Tensor]:
        """Copies of the examples' inputs, in memory that all batches use."""
        n = len(examples)
        # What is left of a batch goes into the beginning; after memory ran out, the old one goes first.
        if not self._memory or not n <= len(self._memory[0]):
            self._memory = []
            self._memory = [_empty((n, *x.shape[1:]), x, self.execution.channels_last) for x in self.inputs]
        copies = [memory[:n] for memory in self._memory]
        for copy, tensor in zip(copies, self.inputs):
            if len(tensor) == 1:
                copy.copy_(tensor.expand(copy.shape))
            else:
                copy.copy_(tensor.index_select(0, torch.as_tensor(examples, device=tensor.device)))
        return copies

    def _fit_to_window(self) -> None:
        self._memory = []

    def _precision(self) -> AbstractContextManager[Any]:
        if self.execution.autocast is None:
            return nullcontext()
        return torch.autocast(self.inputs[0].device.type, dtype=self.execution.autocast)


def _compiled(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(forward_func, SegmentationTarget):
        return forward_func.with_model(torch.compile(forward_func.model))
    compiled: Callable[..., Any] = torch.compile(forward_func)
    return compiled


def _empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(len(shape), torch.contiguous_format) if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=wanted)
