"""Interventions on layers: what modules return (or take) is replaced while the model runs.

The examples are repeated, once per intervention, and the model runs on them with hooks. What does not follow from the layers is not computed
again where that pays: see :mod:`captum_causalseg.interventions.replay`.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.execution import FEWEST_ON_CPU, Execution
from captum_causalseg.interventions.frames import gather
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.replay import COMPARED, Memory, Replay
from captum_causalseg.interventions.sites import LayersSite, Site
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.target.scorer import Scorer

__all__ = ["LayersEvaluator", "Recording", "StochasticLayersEvaluator"]

# Two megabytes in single precision. Through a SegResNet of 8 filters, images of 128 x 128 take 7.9 to 8.2 ms each in batches whose largest activation has so
# many elements, and 10.2 ms in batches of 16.
_MOST_ELEMENTS_ON_CPU = 2**19


@dataclass(frozen=True, eq=False)
class Recording:
    """What there is of the run that recorded a layer.

    Args:
        scores: of the inputs as they are.
        answers: what these are made of; ``None`` where the inputs were run together with others, or as parts.
        memory: what need not be computed again where all that the layer returns is replaced.
    """

    scores: Tensor
    answers: Tensor | None = None
    memory: Memory | None = None

    @property
    def of_parts(self) -> "Recording":
        """What of it holds where parts of the inputs are run."""
        return Recording(self.scores)


class LayersEvaluator(ModelEvaluator):
    """Replaces units of the activations of layers.

    Args:
        site, scorer, execution, unit_donors, ledger, local, output_shape: as of :class:`ModelEvaluator`.
        recording: of the inputs as they are.
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
        recording: Recording,
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
        self._recording = recording
        self._observed = self._checked(recording.scores, len(site.inputs[0]))
        assert isinstance(self._bare, LayersSite)
        # Replicas run in threads of their own, where nothing stands in for their modules.
        works = execution.replay and site.device_ids is None
        self._replay = Replay(self._bare, scorer.logits, ledger, batch=self._in_one_batch, whole=self._hooked, works=works)
        if recording.memory is not None:
            self._replay.remember(0, recording.memory)
        # What the model returned for interventions that the observed image was looked at beside. They are to be made, too.
        self._known: dict[Hashable, Tensor] = {}

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

    @property
    def n_company(self) -> int:  # type: ignore[override]
        """See :attr:`ModelEvaluator.n_company`."""
        return COMPARED if self._replay.works else 1

    @property
    def n_spared(self) -> int:  # type: ignore[override]
        """See :attr:`ModelEvaluator.n_spared`."""
        return self._replay.n_spared

    @property
    def at_once(self) -> float:
        """See :attr:`ModelEvaluator.at_once`: on a CPU, so many that the largest activation stays in the cache of a core."""
        memory = self._recording.memory
        if memory is None or not memory.largest or self.site.inputs[0].device.type != "cpu":
            return math.inf
        return max(_MOST_ELEMENTS_ON_CPU // memory.largest, FEWEST_ON_CPU)

    def expect(self, n_interventions: int) -> None:
        """See :meth:`ModelEvaluator.expect`."""
        self._replay.at_stake = n_interventions // len(self.site.inputs[0])

    def known_answer(self) -> Tensor | None:
        """See :meth:`ModelEvaluator.known_answer`: from the run that recorded the layer."""
        answers = self._recording.answers
        return None if answers is None or self.noise_population > 1 else self._near(answers)

    def answers(self, interventions: Interventions) -> Tensor:
        """See :meth:`ModelEvaluator.answers`; several are the model's own, until replay has been compared with it."""
        if self.noise_population > 1 or len(interventions) == 1 or self._replay.compared:
            return super().answers(interventions)
        replaced, where = self._replaced(interventions)
        found = self._hooked(replaced, interventions.example, where)
        for row, content in enumerate(_contents(interventions)):
            if content is not None:
                self._known[content] = found[row].clone()
        return self._near(found)

    def with_donors(self, unit_donors: UnitDonors) -> "ModelEvaluator":
        """See :meth:`ModelEvaluator.with_donors`; donors of the same number are others then."""
        other = super().with_donors(unit_donors)
        assert isinstance(other, LayersEvaluator)
        other._known = {}
        return other

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, with these tensors as the layers' activations."""
        logits: Tensor = self._hooked(tensors, examples)
        return logits

    def _replaced(self, interventions: Interventions) -> tuple[list[Tensor], list[Tensor] | None]:
        """The activations under interventions, and where they are replaced if that matters."""
        replaced: list[Tensor] = gather(self.site.tensors, interventions.example)
        self.unit_donors.paste(replaced, interventions, self.site.frames)
        # Behind another layer, what is not replaced is not what was recorded.
        return replaced, self.unit_donors.places(replaced, interventions) if len(self.site.layers) > 1 else None

    def _answers(self, interventions: Interventions) -> Any:
        replaced, where = self._replaced(interventions)
        return self._replay.run(replaced, interventions.example, where, known=self._known_of(interventions))

    def _known_of(self, interventions: Interventions) -> dict[int, Tensor]:
        """By row, what the model has returned for it already; nothing is known after the first interventions."""
        if not self._known or not len(interventions.row):
            return {}
        contents = _contents(interventions)
        found = {row: self._known[content] for row, content in enumerate(contents) if content in self._known}
        self._known.clear()
        return found

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
            recording=self._recording if site is self.site else self._recording.of_parts,
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
        site, scorer, execution, unit_donors, ledger, recording: as of :class:`LayersEvaluator`; the activations are those of the
            first answer.
    """

    def __init__(
        self,
        site: LayersSite,
        scorer: Scorer,
        execution: Execution,
        unit_donors: UnitDonors,
        ledger: Ledger,
        *,
        recording: Recording,
    ) -> None:
        super().__init__(
            site=site,
            scorer=scorer,
            execution=replace(execution, replay=False),
            unit_donors=unit_donors,
            ledger=ledger,
            recording=recording,
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


def _contents(interventions: Interventions) -> list[Hashable | None]:
    """For each row what it is: the example, its units and donors; ``None`` where nothing is replaced."""
    order = np.lexsort((interventions.unit, interventions.row))
    ends = np.searchsorted(interventions.row[order], np.arange(len(interventions)), side="right").tolist()
    found: list[Hashable | None] = []
    for example, start, stop in zip(interventions.example.tolist(), [0, *ends[:-1]], ends):
        mine = order[start:stop]
        found.append((example, interventions.unit[mine].tobytes(), interventions.donor[mine].tobytes()) if len(mine) else None)
    return found
