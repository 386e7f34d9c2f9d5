"""Interventions on parts of the inputs and of layers at once: the model runs on replaced images, and layers are replaced while it does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.frames import gather
from captum_causalseg.interventions.sites import InputsAndLayersSite, Site
from captum_causalseg.target.scores import checked_scores

__all__ = ["InputsAndLayersEvaluator"]


class InputsAndLayersEvaluator(ModelEvaluator):
    """Replaces units of the inputs and of layers; arguments as of :class:`ModelEvaluator`. Of no stochastic model.

    What of a layer is not replaced is what it becomes on the replaced image; what is replaced is the donor's, whatever the image is.
    """

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        return self._checked(self.scorer(*self.site.call(examples)), len(examples))

    @property
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""
        return self.local is not None

    def _answers(self, interventions: Interventions) -> Any:
        examples = interventions.example
        tensors: list[Tensor] = gather(self.site.tensors, examples)
        self.unit_donors.paste(tensors, interventions)
        where = self.unit_donors.places(tensors, interventions)
        if len(examples) == 1 or self.takes_batches:
            return self._run(tensors, examples, where)
        found = []
        for row in range(len(examples)):
            one = slice(row, row + 1)
            # Copies: a function may change them, and these are parts of those at hand.
            found.append(self._run([tensor[one].clone() for tensor in tensors], examples[one], [here[one] for here in where]))
        return torch.cat(found)

    def _run(self, tensors: Sequence[Tensor], examples: np.ndarray, where: Sequence[Tensor]) -> Any:
        site, function = (self._bare, self.scorer.logits) if self.local is not None else (self.site, self.scorer)
        assert isinstance(site, InputsAndLayersSite)
        found = site.run(function, tensors, examples, where=where)
        return found if self.local is not None else checked_scores(found, len(examples), self.output_shape)

    def _scores(self, answers: Any, examples: np.ndarray) -> Any:
        return answers if self.local is None else self.local.scores(answers, examples)

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        raise NotImplementedError("of a stochastic model, each answer has activations of its own")

    def _with(self, site: Site, execution: Execution, local: Local) -> "InputsAndLayersEvaluator":
        return InputsAndLayersEvaluator(
            site=site,
            scorer=self.scorer,
            execution=execution,
            unit_donors=self.unit_donors,
            ledger=self.ledger,
            local=local,
            output_shape=self.output_shape,
        )
