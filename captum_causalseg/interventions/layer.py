"""Interventions on layers: what modules return (or take) is replaced while the model runs.

The examples are repeated, once per intervention, and the model runs on them with hooks. What does not follow from the layers is not computed
again where that pays: see :mod:`captum_causalseg.interventions.replay`.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.frames import gather
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.replay import Replay
from captum_causalseg.interventions.sites import LayersSite, Site
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.target.scorer import Scorer

__all__ = ["LayersEvaluator", "StochasticLayersEvaluator"]


class LayersEvaluator(ModelEvaluator):
    """Replaces units of the activations of layers.

    Args:
        site, scorer, execution, unit_donors, ledger, local, output_shape: as of :class:`ModelEvaluator`.
        observed: the scores of the inputs as they are.
    """

    site: LayersSite

    def __init__(
        self,
        site: LayersSite,
        scorer: Scorer,
        execution: Execution,
        unit_donors: UnitDonors,
        ledger: Ledger,
        *,
        observed: Tensor,
        local: Local | None = None,
        output_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            site=site,
            scorer=scorer,
            execution=execution,
            unit_donors=unit_donors,
            ledger=ledger,
            local=local,
            output_shape=output_shape,
        )
        self._given = observed
        self._observed = self._checked(observed, len(site.inputs[0]))
        assert isinstance(self._bare, LayersSite)
        # Replicas run in threads of their own, where nothing stands in for their modules.
        works = execution.replay and site.device_ids is None
        self._replay = Replay(self._bare, scorer.logits, ledger, batch=self._in_one_batch, whole=self._hooked, works=works)

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, from the pass that recorded the activation."""
        return self._observed[torch.as_tensor(examples, device=self._observed.device)]

    @property
    def most_checks(self) -> int:  # type: ignore[override]
        """See :attr:`ModelEvaluator.most_checks`."""
        return self._replay.most_checks(len(self.site.inputs[0]))

    @property
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""
        return self.scorer.gives_logits and self.noise_population == 1

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, with these tensors as the layers' activations."""
        logits: Tensor = self._hooked(tensors, examples)
        return logits

    def _answers(self, interventions: Interventions) -> Any:
        examples = interventions.example
        replaced: list[Tensor] = gather(self.site.tensors, examples)
        self.unit_donors.paste(replaced, interventions, self.site.frames)
        # Behind another layer, what is not replaced is not what was recorded.
        where = self.unit_donors.places(replaced, interventions) if len(self.site.layers) > 1 else None
        return self._replay.run(replaced, examples, where)

    def _scores(self, answers: Any, examples: np.ndarray) -> Any:
        if self.local is not None:
            return self.local.scores(answers, examples)
        return self.scorer.score(answers, *self.site.call(examples)) if self.scorer.gives_logits else answers

    def _in_one_batch(self, tensors: Sequence[Tensor], examples: np.ndarray, where: Sequence[Tensor] | None = None) -> Any:
        assert isinstance(self._bare, LayersSite)
        return self._bare.run(self.scorer.logits, tensors, examples, where=where)

    def _hooked(self, tensors: Sequence[Tensor], examples: np.ndarray, where: Sequence[Tensor] | None = None) -> Any:
        if len(examples) == 1 or self.takes_batches:
            return self._in_one_batch(tensors, examples, where)
        found = []
        for row in range(len(examples)):
            one = slice(row, row + 1)
            # Copies: a function may change them, and these are parts of those at hand.
            mine, here = [tensor[one] for tensor in tensors], None if where is None else [places[one] for places in where]
            found.append(self._in_one_batch(mine, examples[one], here))
        return torch.cat(found)

    def _with(self, site: Site, execution: Execution, local: Local) -> "LayersEvaluator":
        assert isinstance(site, LayersSite)
        return LayersEvaluator(
            site=site,
            scorer=self.scorer,
            execution=replace(execution, replay=self._replay.works),
            unit_donors=self.unit_donors,
            ledger=self.ledger,
            observed=self._given,
            local=local,
            output_shape=self.output_shape,
        )

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        raise NotImplementedError("a stochastic model has an activation of its own in each answer: StochasticLayersEvaluator")


class StochasticLayersEvaluator(LayersEvaluator):
    """Replaces units of the activations of layers in every answer of a stochastic model.

    What is not replaced is the activation that a layer has in that very answer; donors that are made from the activation are made from that
    one. Observed and intervened runs are paired: they meet the same random numbers.

    Args:
        site, scorer, execution, unit_donors, ledger, observed: as of :class:`LayersEvaluator`; the activations are those of the first
            answer.
    """

    def __init__(
        self,
        site: LayersSite,
        scorer: Scorer,
        execution: Execution,
        unit_donors: UnitDonors,
        ledger: Ledger,
        *,
        observed: Tensor,
    ) -> None:
        super().__init__(
            site=site,
            scorer=scorer,
            execution=replace(execution, replay=False),
            unit_donors=unit_donors,
            ledger=ledger,
            observed=observed,
        )
        ledger.disable("replay", "the model is stochastic")
        ledger.count("recording the layer", len(site.inputs[0]))
        ledger.count("further samples", len(site.inputs[0]) * (self.runs_each - 1))

    site_varies = True

    @property
    def runs_of_gradient(self) -> int:
        """How often an image goes through the model for the gradient that donors are ranked by."""
        return 1

    def _twin(self) -> Any:
        # The layers are called once in one answer.
        return self.scorer.surrogate().score_of_answer

    def _observe_again(self, examples: np.ndarray) -> Tensor:
        return self.observe(examples)  # known already

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        scores = []
        for row in range(len(interventions)):
            one = interventions.rows(np.array([row]))

            def paste(slots: slice, live: Sequence[Tensor], one: Interventions = one) -> Sequence[Tensor]:
                return self.unit_donors.pasted(live, one, slots)

            sampled = functools.partial(self.scorer.sampled, [int(noise[row])])
            scores.append(self._checked(self.site.edited(sampled, paste, self.site.call(one.example)), 1))
        return torch.cat(scores)
