"""Scores under interventions: a site, where they take place, times a scorer, what is scored, times an execution, how it is run."""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.frames import Frame, gather
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.sites import Site
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.scorer import Scorer
from captum_causalseg.target.scores import checked_scores

__all__ = ["Local", "ModelEvaluator"]

# Random states that draws are taken from: so many that what they have in common does not matter beside the draws' own spread, and
# few enough to be run without intervention once each.
_NOISES = 1024


@dataclass(frozen=True, eq=False)
class Local:
    """How logits are scored from the surroundings of the regions of interest alone.

    Args:
        scores: of logits of the images, or of a window of them.
        call: inputs and arguments of the whole images.
        rois: the numbers of the regions of interest, where it is not all of them.
    """

    scores: LocalScores
    call: tuple[Any, ...]
    rois: tuple[int, ...] | None = None

    def of_rois(self, rois: tuple[int, ...]) -> "Local":
        """The same for some of the regions alone."""
        return replace(self, scores=self.scores.of_rois(rois), rois=rois)

    def cropped(self, window: Frame) -> "Local":
        """The same for logits of a window."""
        return replace(self, scores=self.scores.cropped(window.starts, window.size))

    def twin(self, surrogate: Scorer, window: Frame) -> LocalScores | None:
        """What scores logits of a window as a surrogate does; ``None`` where that looks further."""
        found = surrogate.local_scores(*self.call)
        if found is None:
            return None
        found = found if self.rois is None else found.of_rois(self.rois)
        return found.cropped(window.starts, window.size)


class ModelEvaluator(ABC):
    """An evaluator (see :mod:`captum_causalseg.engine.run`) that runs a model, on whole images or on a window of them.

    It does not change: :meth:`localized` and :meth:`windowed` make others, which have the ledger in common.

    Args:
        site: where units are replaced.
        scorer: what is scored.
        execution: how it is run.
        unit_donors: what is replaced, and by what.
        ledger: where forwards are counted, and what is disabled is noted.
        local: how logits are scored locally; ``None``: by the scorer, from whole images.
        output_shape: shape of one example's scores, once some have been seen.
    """

    def __init__(
        self,
        site: Site,
        scorer: Scorer,
        execution: Execution,
        unit_donors: UnitDonors,
        ledger: Ledger,
        *,
        local: Local | None = None,
        output_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.site, self.scorer, self.execution = site, scorer, execution
        self.unit_donors, self.ledger, self.local = unit_donors, ledger, local
        self.output_shape = output_shape
        # Of a stochastic model: scores without intervention, by example and noise (-1: the observed ones).
        self._without: dict[tuple[int, int], Tensor] = {}
        if site.no_window is not None:
            ledger.disable("window", site.no_window)

    @abstractmethod
    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""

    @abstractmethod
    def _answers(self, interventions: Interventions) -> Any:
        """What scores are made of: logits ``(B, C, *spatial)``, or the scores themselves ``(B, ...)``."""

    @abstractmethod
    def _with(self, site: Site, execution: Execution, local: Local) -> "ModelEvaluator":
        """The same at another site, in another execution, scored locally."""

    @abstractmethod
    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions, each row with its own random numbers ``noise[b]``."""

    @abstractmethod
    def _scores(self, answers: Any, examples: np.ndarray) -> Any:
        """The scores of :meth:`_answers`."""

    @property
    @abstractmethod
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""

    def __call__(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions."""
        if self.noise_population > 1:
            return self._in_pairs(interventions)
        return self._checked(self._scores(self._answers(interventions), interventions.example), len(interventions))

    def answers(self, interventions: Interventions) -> Tensor:
        """What the model says to interventions, ``(B, P)``: logits around the regions of interest, where scores are made of these."""
        if self.noise_population > 1:
            return self(interventions)
        return self._near(self._answers(interventions))

    def answers_without(self, examples: np.ndarray) -> Tensor:
        """The same of the inputs as they are, from one batch of them ``(B, P)``."""
        if self.local is not None:
            return self._near(self.logits_of_inputs(gather(self.site.inputs, examples), examples))
        return self._near(checked_scores(self.scorer(*self.site.call(examples)), len(examples), self.output_shape))

    def known_answer(self) -> Tensor | None:
        """What :meth:`answers` are to a single input as it is, alone, ``(1, P)``, where that was seen when it was observed."""
        return None

    n_company = 1
    """Beside how many interventions an image as it is had best be looked at, of few."""

    n_spared = 0
    """How many interventions took no forward, because they had been answered when the image was looked at."""

    @property
    def at_once(self) -> float:
        """How many images are best run at once, where that is known of the model."""
        return math.inf

    def expect(self, n_interventions: int) -> None:
        """So many interventions are to be made."""
        return  # whoever can save more of many does something about it

    def forwards(self, n_examples: int, n_interventions: int) -> dict[str, int]:
        """What went through the model by purpose, for so many observed images and interventions; what else did is in the ledger."""
        return {"observed": n_examples, "interventions": n_interventions - self.n_spared}

    def forwards_each(self, interventions: Interventions) -> np.ndarray:
        """How many forwards each row may take, ``(B,)``; of a stochastic model as many without the intervention besides."""
        return np.full(len(interventions), self.runs_each * (1 if self.noise_population == 1 else 2))

    def note(self, purpose: str, n_images: int) -> None:
        """So many images were answered, besides the interventions and the observed ones."""
        self.ledger.count(purpose, n_images)

    def settings(self) -> dict[str, Any]:
        """What is to be known of how scores are computed, besides the execution."""
        return {}

    def disabled(self) -> dict[str, str]:
        """What was not done with this model, and why."""
        alone = self.scorer.why_one_by_one
        return self.ledger.disabled | ({} if alone is None else {"batches": alone})

    def baseline(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, computed as those with one."""
        return self(Interventions.nothing(examples))

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, ``(B, C, *spatial)``, with these in the place of the site's tensors."""
        # Not in the lower precision of interventions: there, a window that gives other logits would pass for rounding.
        logits: Tensor = self._bare.run(self.scorer.logits, tensors, examples)
        return logits

    def logits_of_inputs(self, inputs: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """Like :meth:`logits`, with other inputs and all that follows from them."""
        logits: Tensor = self.scorer.logits(*inputs, *gather(self._bare.arguments, examples))
        return logits

    @functools.cached_property
    def noise_population(self) -> int:
        """Of how many random states a draw takes one, besides its donor: 1 where the model is not random."""
        call = *self.site.inputs, *self.site.arguments
        if self.scorer.forwards_to_compare:
            self.ledger.count("answers compared", self.scorer.forwards_to_compare)
        return _NOISES if self.scorer.is_stochastic(*call) else 1

    @functools.cached_property
    def takes_batches(self) -> bool:
        """Whether several interventions can go through the model at once; tried without them, where it is not known."""
        if self.scorer.takes_batches is None:
            twice = np.zeros(2, dtype=np.int64)
            self.logits_of_inputs(gather(self.site.inputs, twice), twice)
            self.ledger.count("trying a batch", 2)
        return bool(self.scorer.takes_batches)

    most_checks = 0
    """How many forwards may still be made to see whether the way in which interventions are run is right."""

    site_varies = False
    """Whether the site's tensors are others in each answer of the model."""

    @property
    def runs_each(self) -> int:
        """How often an image goes through the model for one score."""
        return self.scorer.n_samples if self.noise_population > 1 else 1

    @property
    def runs_of_gradient(self) -> int:
        """How often an image goes through the model for the gradient that donors are ranked by."""
        return self.runs_each

    def populations(self, example: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """How many donors units of examples have, ``(M, tensors)``; of a stochastic model a last column: how many random states."""
        population = self.unit_donors.populations(example, unit)
        if self.noise_population == 1:
            return population
        return np.column_stack([population, np.full(len(population), self.noise_population)])

    def with_donors(self, unit_donors: UnitDonors) -> "ModelEvaluator":
        """The same with other donors of the same units; what is known of the model stays known."""
        other = copy.copy(self)
        other.unit_donors = unit_donors
        return other

    def localized(self) -> "ModelEvaluator":
        """The evaluator that scores logits locally, where that is possible; a target knows its outputs once it has scored some."""
        call = *self.site.inputs, *self.site.arguments
        scores = self.scorer.local_scores(*call)
        return self if scores is None else self._with(self.site, self.execution, Local(scores, call))

    def windowed(self, window: Frame, spatial: torch.Size, rois: tuple[int, ...] | None = None) -> "ModelEvaluator | None":
        """The same on a window of images of this spatial shape; ``None`` where it is no window of all that is needed.

        With ``rois``, the scores are those of these regions alone.
        """
        site = None if self.local is None else self._bare.cropped(window, spatial)
        if site is None or self.local is None:
            return None
        local = self.local if rois is None else self.local.of_rois(rois)
        found = self._with(site, replace(self.execution, window=window), local.cropped(window))
        if rois is not None:
            found.output_shape = None
        return found

    def scores_with_gradient(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """Scores ``(B, *output_shape)`` of the differentiable twin with these in the place of the site's tensors.

        On a window, it has to have a twin that looks there alone: see :attr:`has_gradient`.

        Raises:
            ValueError: the scorer has no differentiable twin.
        """
        # Copies: a model may work in place, on a leaf autograd does not allow it.
        copies = [tensor.clone() for tensor in tensors]
        if self.execution.window is None:
            return self.site.run(self._twin(), copies, examples)
        assert self._local_twin is not None
        return self._local_twin(self.logits(copies, examples), examples)

    @property
    def has_gradient(self) -> bool:
        """Whether the window is enough for :meth:`scores_with_gradient`; the whole image always is."""
        return self.execution.window is None or self._local_twin is not None

    def _twin(self) -> Any:
        """The differentiable twin of the scorer."""
        return self.scorer.surrogate()

    @functools.cached_property
    def _local_twin(self) -> LocalScores | None:
        """What scores a window's logits with the differentiable twin, if there is one that looks at the RoIs alone."""
        window = self.execution.window
        if window is None or self.local is None:
            return None
        try:
            twin = self.scorer.surrogate()
        except ValueError:
            return None
        return self.local.twin(twin, window)

    @functools.cached_property
    def _bare(self) -> Site:
        """The site in calls of the model itself, which takes no masks."""
        if self.execution.window is not None:
            return self.site
        inputs = self.site.inputs
        return self.site.with_arguments(self.scorer.model_inputs(*inputs, *self.site.arguments)[len(inputs) :])

    def _in_pairs(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` such that their distance from the observed score is that of two runs with the same noise.

        The noise is drawn as the donors are. So the spread of the draws holds what is left of the noise in the pairs.
        """
        examples, noise = interventions.example, interventions.noise
        noise = np.zeros(len(examples), dtype=np.int64) if noise is None else noise
        intervened = self._intervened_with(noise, interventions)
        pairs = list(zip(examples.tolist(), noise.tolist()))
        new = sorted(set(pairs) - self._without.keys())
        if new:
            which, states = (np.array(column) for column in zip(*new))
            found = self.sampled(gather(self.site.inputs, which), which, states)
            self._without.update(zip(new, found))
            self.ledger.count("the same noise, no intervention", len(new) * self.runs_each)
        if self.runs_each > 1:
            self.ledger.count("further samples", len(examples) * (self.runs_each - 1))
        missing = sorted({n for n in examples.tolist() if (n, -1) not in self._without})
        for n, row in zip(missing, self._observe_again(np.array(missing)) if missing else []):
            self._without[n, -1] = row
        without = torch.stack([self._without[pair] for pair in pairs])
        observed = torch.stack([self._without[n, -1] for n in examples.tolist()])
        return observed - (without - intervened)

    def _observe_again(self, examples: np.ndarray) -> Tensor:
        self.ledger.count("observed again", len(examples))
        return self.observe(examples)

    def sampled(self, inputs: Sequence[Tensor], examples: np.ndarray, noise: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of a stochastic model for these inputs, each row with its own random numbers ``noise[b]``."""
        scores = self.scorer.sampled(noise.tolist(), *inputs, *gather(self.site.arguments, examples))
        return self._checked(scores, len(examples))

    def _near(self, answers: Any) -> Tensor:
        near: Tensor = (answers if self.local is None else self.local.scores.near(answers)).reshape(len(answers), -1)
        return near

    def _checked(self, scores: Any, n: int) -> Tensor:
        """What the function returned for ``n`` examples, as ``(B, K)``."""
        checked = checked_scores(scores, n, self.output_shape)
        self.output_shape = tuple(checked.shape[1:])
        return checked.flatten(1) if checked.ndim > 1 else checked[:, None]
