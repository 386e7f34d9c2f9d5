"""Whether a model's answers can be compared: the same image has to give the same one, alone and among others, before and after."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.memory import fitting
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.target.rounding import relative_tolerance

__all__ = ["COMPANY", "Witness", "refuse_examples_that_mix", "refuse_unrepeatable"]

COMPANY = 3
"""So many interventions are put into a batch with the observed image."""

# Looks take at most about a sixteenth of the forwards: of fewer interventions, they are fewer.
_THOROUGH_FROM = 240


class Witness:
    """An observed image that is answered again and again while interventions are made.

    An effect is a difference between two answers of a model. If they differ for another reason than the intervention, all effects
    are wrong, and nothing in their spread shows it: a shift that is common to all draws of a unit has no variance between them. So
    the observed image is answered twice alone, and in a batch with interventions; all of this again when the interventions are
    over. An answer that was seen when the image was observed counts. What a segmentation target is scored from is compared (the logits around the regions of interest), because a hard score
    hides what moves no pixel yet, and shows a last digit that moves one.

    Args:
        evaluator: computes the scores of interventions.
        company: a few interventions on the image.
        batch_size: images per forward pass.
        at_stake: so many interventions are to be made. Where they are few, the image is answered once alone and once in a batch before, and once
            alone after.

    Raises:
        ValueError: from any of the methods: the model is random, changes as it is run, or mixes the images of a batch.
    """

    def __init__(self, evaluator: ModelEvaluator, company: Interventions, batch_size: int, *, at_stake: int) -> None:
        self._evaluator, self._batch_size = evaluator, batch_size
        self._thorough = at_stake >= _THOROUGH_FROM
        self._company = company.rows(np.arange(len(company))[: COMPANY if self._thorough else evaluator.n_company])
        self._first_answer: Tensor | None = None
        self.n_forwards = 0
        """So many were made to look before the interventions; to look after them takes no more."""
        self.pace: float | None = None
        """Seconds of one forward where they took least; the very first answer, which warms everything up, is not measured."""

    def before(self) -> None:
        """Look before the interventions."""
        made = self._made
        known = self._evaluator.known_answer()
        self._first_answer = self._answer_alone() if known is None else known
        if self._thorough or self._batch_size == 1:
            with self._timed():
                again = self._answer_alone()
                if _differ(again, self._first_answer):
                    _refuse_random(self._evaluator, again, self._first_answer)
        with self._timed():
            self._look_at_batches()
        self.n_forwards = self._made - made

    def after(self) -> None:
        """Look when they are over."""
        assert self._first_answer is not None
        last = self._answer_alone()
        if _differ(last, self._first_answer):
            changed = _worded(self._evaluator, last, self._first_answer)
            raise ValueError(
                f"forward_func: the observed image was answered again when all interventions were made, and {changed}: the model "
                "changes as it is run (weights or buffers that its forward moves, a counter, a cache) or is random now and then, and "
                f"the effects would be those of that. {self._evaluator.scorer.how_to_repeat()}"
            )
        if self._thorough:
            self._look_at_batches()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """What is done within ends with a comparison, and so when the device is ready."""
        made, began = self._made, time.perf_counter()
        yield
        if self._made > made:
            pace = (time.perf_counter() - began) / (self._made - made)
            self.pace = pace if self.pace is None else min(pace, self.pace)

    @property
    def _made(self) -> int:
        return self._evaluator.ledger.forwards.total()

    def _answer_alone(self) -> Tensor:
        return self._answer(self._company.rows(np.array([0])).emptied(np.array([True])))

    def _answer(self, interventions: Interventions) -> Tensor:
        return _counted(self._evaluator, self._evaluator.answers(interventions))

    def _answer_among_others(self) -> Tensor:
        """The image's answers ``(b, P)`` at several places of a batch with interventions, at one where there are few of these."""
        n = len(self._company)
        places = np.arange(2 * n if self._thorough else n + 1)
        which, itself = (places // 2, places % 2 == 1) if self._thorough else (np.maximum(places - 1, 0), places == 1)
        batch = self._company.rows(which).emptied(itself)
        size = min(self._batch_size, len(batch))
        answers, size = fitting(lambda count: self._answer(batch.rows(places[:count]))[itself[:count]], size)
        if size < len(batch):
            self._batch_size = size
        return answers

    def _look_at_batches(self) -> None:
        assert self._first_answer is not None
        if self._batch_size == 1:
            return
        among = self._answer_among_others()
        for row in torch.split(among, 1):
            if _differ(row, self._first_answer):
                # What mixes gives the same twice. By chance, what is random may, too: hardly both ways.
                if _differ(self._answer_alone(), self._first_answer) or _differ(self._answer_among_others(), among):
                    _refuse_random(self._evaluator, row, self._first_answer)
                _refuse_mixing(self._evaluator, row, self._first_answer)


def refuse_examples_that_mix(evaluator: ModelEvaluator) -> None:
    """Raise where the examples of one batch mix: what is observed then belongs to no image.

    Raises:
        ValueError: an example is answered otherwise beside another one than alone.
    """
    if len(evaluator.site.inputs[0]) == 1 or evaluator.noise_population > 1:
        return  # alone, or answered one by one
    alone, both = (_counted(evaluator, evaluator.answers_without(np.array(rows))) for rows in ([0], [1, 0]))
    if _differ(both[1:], alone):
        again = _counted(evaluator, evaluator.answers_without(np.array([0])))
        if _differ(again, alone):
            _refuse_random(evaluator, again, alone)
        _refuse_mixing(evaluator, both[1:], alone)


def refuse_unrepeatable(evaluator: ModelEvaluator) -> None:
    """Raise where the inputs as they are get another answer each time, or another one alone than together.

    For methods that make no interventions.

    Raises:
        ValueError: the model is random, changes as it is run, or mixes the images of a batch.
    """
    first, again = (_counted(evaluator, evaluator.answers_without(np.array([0]))) for _ in range(2))
    if _differ(again, first):
        _refuse_random(evaluator, again, first)
    refuse_examples_that_mix(evaluator)


def _counted(evaluator: ModelEvaluator, found: Tensor) -> Tensor:
    evaluator.note("answered again", len(found))
    return found.detach().clone()


def _refuse_random(evaluator: ModelEvaluator, other: Tensor, alone: Tensor) -> NoReturn:
    raise ValueError(
        f"forward_func: the same image was answered twice, and {_worded(evaluator, other, alone)}: the model is random, or changes "
        "as it is run (a counter, a cache, buffers or weights that its forward moves), and effects would be those of its noise. "
        f"{evaluator.scorer.how_to_repeat()}"
    )


def _refuse_mixing(evaluator: ModelEvaluator, other: Tensor, alone: Tensor) -> NoReturn:
    raise ValueError(
        "forward_func: an image was answered alone and in a batch with others, and "
        f"{_worded(evaluator, other, alone)}: the model mixes the images of a batch (batch norm with the batch's own statistics, "
        "attention across the batch, prompts of one image given to all), and effects would be partly those of the other images. Put it into "
        "evaluation mode, or give "
        "perturbations_per_eval=1, which runs every image alone"
    )


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether answers ``(B, P)`` differ by more than rounding; values that are not finite have to be the same."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (found.double() - expected.double()).abs())
    return not bool((difference <= _allowed(expected)).all())


def _allowed(values: Tensor) -> float:
    if not values.is_floating_point():
        return 0.0
    largest = torch.where(values.isfinite(), values, 0.0).abs().amax() if values.numel() else torch.zeros(())
    return relative_tolerance([values]) * float(largest)


def _worded(evaluator: ModelEvaluator, found: Tensor, expected: Tensor) -> str:
    what = "its logits in the RoI" if evaluator.answers_are_logits else "its scores"
    if bool((found.isfinite() != expected.isfinite()).any()):
        return f"{what} were NaN or infinite in one of the two"
    return f"{what} differ by up to {float((found.double() - expected.double()).abs().nan_to_num(0.0).max()):.3g}"
