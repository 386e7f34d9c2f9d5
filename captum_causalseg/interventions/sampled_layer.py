"""Interventions on a layer of a model that answers differently each time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg.boxes import Box
from captum_causalseg.donors import BoundDonors, DonorSource
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.layer import Activation, LayerActivation, _watched, record
from captum_causalseg.interventions.units import Units, gather, paste
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.target.stochastic import one_by_one

__all__ = ["SampledLayerActivation", "record_one_by_one", "scores_of_one_answer"]


def record_one_by_one(target: SegmentationTarget, layer: nn.Module, inputs: Sequence[Any], **watch: Any) -> Activation:
    """The layer's activation for the whole batch in the model's first answer, every example with the same random numbers.

    Args:
        target: of a model whose answers differ.
        layer: a module that is called once in an answer.
        inputs: the model's inputs, no masks among them.
        **watch: as of :func:`record`.
    """
    found: list[Activation] = []

    def one(*row: Any) -> Tensor:
        found.append(record(target.answer, layer, row, **watch)[0])
        first: Tensor = found[-1].tensors[0]
        return first

    n = len(inputs[0])
    one_by_one(one, inputs, n, [(target.seed,)] * n)
    joined = [torch.cat(slot) for slot in zip(*(activation.tensors for activation in found))]
    return Activation(found[0].with_tensors(joined))


def scores_of_one_answer(target: SegmentationTarget) -> Callable[..., Tensor]:
    """Inputs and arguments to the scores of the model's first answer alone: the layer is called once in it."""

    def scores(*call: Any) -> Tensor:
        found: Tensor = target.score(target.answer(*target.model_inputs(*call)), *call)
        return found

    return scores


class SampledLayerActivation(LayerActivation):
    """Replaces units of a layer's activation in every answer of a model whose answers differ.

    What is not replaced is the activation that the layer has in that very answer. Observed and intervened runs are paired: they
    meet the same random numbers.

    Args:
        sources: per tensor, the donors before they were bound, if they are made from the activation itself (a unit replaced by
            itself, say): then from the one of that very answer. ``None`` for donors of another origin.
        target, layer, inputs, additional_forward_args, activation, observed, units, donors, at_input, paired: as of
            :class:`LayerActivation`; the activation is that of the first answer.
    """

    def __init__(
        self,
        target: SegmentationTarget,
        layer: nn.Module,
        inputs: Sequence[Tensor],
        additional_forward_args: Sequence[Any],
        activation: Activation,
        observed: Tensor,
        units: Units,
        donors: Sequence[BoundDonors],
        sources: Sequence[DonorSource | None],
        *,
        at_input: bool = False,
        paired: bool = False,
    ) -> None:
        super().__init__(
            *(target, layer, inputs, additional_forward_args, activation, observed, units, donors),
            at_input=at_input,
            paired=paired,
            use_vmap=False,
        )
        self._sources = list(sources)
        self.switched_off["vmap"] = "the model answers differently each time"
        self.spent["recording the layer"] += len(inputs[0])
        self.spent["further samples"] += len(inputs[0]) * (self.runs_each - 1)

    def __call__(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions."""
        return self._of_pairs(interventions)

    @property
    def runs_of_gradient(self) -> int:
        """How often an image goes through the model for the gradient that donors are ranked by."""
        return 1

    def _observe_again(self, examples: np.ndarray) -> Tensor:
        return self.observe(examples)  # known already

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        scores = []
        for row in range(len(interventions)):
            one = interventions.rows(np.array([row]))
            with _watched(self._layer, self._at_input, self._replacing(one)):
                scores.append(self._sampled(gather(self.inputs, one.example), one.example, noise[row : row + 1]))
        return torch.cat(scores)

    def _replacing(self, one: Interventions) -> Callable[[Any], Any]:
        def visit(value: Any) -> Any:
            found = Activation(value, self._activation.layouts)
            tensors = [tensor.clone() for tensor in found.tensors]
            sources = [
                bound if source is None else _OfOneAnswer(source.bind(tensor))
                for bound, source, tensor in zip(self._donors, self._sources, found.tensors)
            ]
            paste(tensors, self.units, sources, one.of_donors(self.spread(one.donor)))
            return found.with_tensors(tensors)

        return visit


class _OfOneAnswer(BoundDonors):
    """Donors made from the activation of one example in one answer: whichever example is asked for, it is that one."""

    def __init__(self, bound: BoundDonors) -> None:
        self._bound = bound

    def population(self, example: int, box: Box) -> int:
        return self._bound.population(0, box)

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        return self._bound.locate(0, box, number)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        return self._bound.read(0, box, number)

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = slice(None),
    ) -> Tensor:
        return self._bound.read_many(np.zeros_like(examples), corners, size, numbers, channels)
