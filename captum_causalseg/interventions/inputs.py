"""Interventions on the input: donors pasted into copies of it (or of the window that is enough), the model run on each."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.sites import Site
from captum_causalseg.target.scorer import Scorer
from captum_causalseg.target.scores import checked_scores

__all__ = ["InputEvaluator"]


class InputEvaluator(ModelEvaluator):
    """Runs a scorer on intervened copies of the inputs; arguments as of :class:`ModelEvaluator`, the site is that of the inputs."""

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        with self._precision(), self.ledger.observing(self.scorer.windowed_model):
            scores = self.scorer(*self.site.call(examples))
        if self.runs_each > 1:
            self.ledger.count("further samples", len(examples) * (self.runs_each - 1))
        return self._checked(scores, len(examples))

    @functools.cached_property
    def noise_population(self) -> int:
        """Of how many random states a draw takes one, besides its donor: 1 where the model is not random."""
        population = super().noise_population
        if population > 1 and not self.execution.exact:
            raise ValueError(
                "compile, autocast: not for a target with n_samples, whose pairs of runs have to be the model's own"
            )
        return population

    @property
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""
        return self.local is not None and self.noise_population == 1

    @functools.cached_property
    def _memory(self) -> "_Memory":
        return _Memory(self.site.tensors, self.execution.channels_last)

    @functools.cached_property
    def _run(self) -> Scorer:
        """The scorer as interventions are run."""
        return self.scorer.with_model(torch.compile(self.scorer.model)) if self.execution.compile else self.scorer

    def _answers(self, interventions: Interventions) -> Any:
        n = len(interventions)
        if self.execution.compile and n < self._memory.size:
            # Another batch size would be compiled anew.
            interventions = interventions.rows(np.minimum(np.arange(self._memory.size), n - 1))
        return self.answered(self.intervened(interventions), interventions.example)[:n]

    def answered(self, inputs: Sequence[Tensor], examples: np.ndarray) -> Any:
        """What scores are made of, as of :meth:`scored`, with these inputs in the place of those of the examples ``(B,)``."""
        with self._precision():
            if self.local is not None:
                return self._bare.run(self._run.logits, inputs, examples)
            scores = self.site.run(self._run, inputs, examples)
        return checked_scores(scores, len(examples), self.output_shape)

    def scored(self, answers: Any, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of answers."""
        return self._checked(self._scores(answers, examples), len(examples))

    def _scores(self, answers: Any, examples: np.ndarray) -> Any:
        return answers if self.local is None else self.local.scores(answers, examples)

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        return self.sampled(self.intervened(interventions), interventions.example, noise)

    def intervened(self, interventions: Interventions) -> list[Tensor]:
        """Inputs ``(B, C, *spatial)`` in which the interventions have been made, in memory that the next ones are made in."""
        inputs = self._memory.copies(interventions.example)
        self.unit_donors.paste(inputs, interventions, self.site.frames)
        return inputs

    def _with(self, site: Site, execution: Execution, local: Local) -> "InputEvaluator":
        given = site, self.scorer, execution, self.unit_donors, self.ledger
        return type(self)(*given, local=local, output_shape=self.output_shape)

    def _precision(self) -> Any:
        return self.execution.precision(self.site.inputs[0].device)


class _Memory:
    """Copies of examples, in memory that all batches use.

    Attributes:
        size: the largest batch so far.
    """

    def __init__(self, tensors: Sequence[Tensor], channels_last: bool) -> None:
        self._tensors, self._channels_last = tensors, channels_last
        self._held: list[Tensor] = []

    @property
    def size(self) -> int:
        return len(self._held[0]) if self._held else 0

    def copies(self, examples: np.ndarray) -> list[Tensor]:
        n = len(examples)
        # What is left of a batch goes into the beginning; after memory ran out, the old one goes first.
        if not self._held or not n <= self.size:
            self._held = []
            self._held = [_empty((n, *x.shape[1:]), x, self._channels_last) for x in self._tensors]
        copies = [held[:n] for held in self._held]
        for copy, tensor in zip(copies, self._tensors):
            if len(tensor) == 1:
                copy.copy_(tensor.expand(copy.shape))
            else:
                copy.copy_(tensor.index_select(0, torch.as_tensor(examples, device=tensor.device)))
        return copies


def _empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(len(shape), torch.contiguous_format) if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=wanted)
