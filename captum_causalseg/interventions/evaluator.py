"""What evaluators of interventions have in common: how the model is called, scored near its RoIs, and put on a window."""

import copy
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg.donors import BoundDonors
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.units import Frame, Units, gather, paste
from captum_causalseg.statistics import target_index
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.target.batches import rows
from captum_causalseg.target.local_scores import LocalScores

__all__ = ["EachAlone", "ModelEvaluator", "checked_scores", "chosen_output"]

# Random states that draws are taken from: so many that what they have in common does not matter beside the draws' own spread, and
# few enough to be run without intervention once each.
_NOISES = 1024


class ModelEvaluator(ABC):
    """An evaluator (see :mod:`captum_causalseg.engine.run`) that runs a model, on whole images or on a window of them.

    Args:
        forward_func: inputs and additional arguments to scores ``(N, *output_shape)``.
        inputs: tensors ``(N, C, *spatial)``.
        additional_forward_args: tensors ``(N, ...)`` go with their example, all else is passed as it is.
        units: what is replaced.
        donors: per tensor, what it is replaced by.

    Attributes:
        output_shape: shape of one example's scores, once some have been seen.
        spent: images that went through the model besides the interventions and the observed ones, by purpose.
        switched_off: what is not done with this model, and why.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Sequence[Tensor],
        additional_forward_args: Sequence[Any],
        units: Units,
        donors: Sequence[BoundDonors],
    ) -> None:
        self.forward_func = forward_func
        self.inputs, self.arguments = list(inputs), list(additional_forward_args)
        self.units, self._donors = units, donors
        self.output_shape: tuple[int, ...] | None = None
        self.spent: Counter[str] = Counter()
        self.switched_off: dict[str, str] = {}
        self._frames: list[Frame | None] | None = None
        self._local: LocalScores | None = None
        # Of a model that answers differently each time: scores without intervention, by example and noise.
        self._alone: dict[tuple[int, int], Tensor] = {}
        # Of a window: it, and the inputs and arguments that it was cut out of.
        self._origin: tuple[Frame, list[Any]] | None = None

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What is intervened on."""

    @abstractmethod
    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""

    @abstractmethod
    def __call__(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions."""

    @abstractmethod
    def _answers(self, interventions: Interventions) -> Tensor:
        """What these scores are computed from: logits ``(B, C, *spatial)``, or the scores themselves ``(B, ...)``."""

    @abstractmethod
    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, ``(B, C, *spatial)``, with these in the place of :attr:`tensors`."""

    @abstractmethod
    def _fit_to_window(self) -> None:
        """Bring what a subclass holds besides to the window that the evaluator is on from now on."""

    @property
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""
        return self._local is not None and self.noise_population == 1

    def answers(self, interventions: Interventions) -> Tensor:
        """What the model says to interventions, ``(B, P)``: logits around the regions of interest, where scores are made of these."""
        if self.noise_population > 1:
            return self(interventions)
        return self._near(self._answers(interventions))

    def answers_without(self, examples: np.ndarray) -> Tensor:
        """The same of the inputs as they are, from one batch of them ``(B, P)``."""
        if self._local is not None:
            return self._near(self.logits_of_inputs(gather(self.inputs, examples), examples))
        scores = self.forward_func(*gather(self.inputs, examples), *gather(self.arguments, examples))
        return self._near(checked_scores(scores, len(examples), self.output_shape))

    def baseline(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, computed as those with one."""
        return self(Interventions.nothing(examples))

    @property
    def differs(self) -> bool:
        """Whether interventions are computed in another way than the observed scores are."""
        return self._frames is not None

    @functools.cached_property
    def noise_population(self) -> int:
        """Of how many random states a draw takes one, besides its donor: 1 where the model is not random."""
        if not isinstance(self.forward_func, SegmentationTarget):
            return 1
        asked = self.forward_func.n_samples is not None and self.forward_func._varies is None
        varies = self.forward_func.varies(*self.inputs, *self.arguments)
        if asked:
            self.spent["answers compared"] += 2
        return _NOISES if varies else 1

    @property
    def runs_each(self) -> int:
        """How often an image goes through the model for one score."""
        return self.forward_func.n_samples or 1 if self.noise_population > 1 else 1  # type: ignore[attr-defined]

    @property
    def runs_of_gradient(self) -> int:
        """How often an image goes through the model for the gradient that donors are ranked by."""
        return self.runs_each

    @property
    def frames(self) -> list[Frame | None] | None:
        """Per tensor, which window of it is held; ``None`` for the whole."""
        return self._frames

    @property
    def local_rois(self) -> Tensor:
        """The regions of interest in this window, ``(N or 1, R, *spatial)``; there must be local scores."""
        assert self._local is not None
        return self._local.rois

    def _paste(self, tensors: Sequence[Tensor], interventions: Interventions) -> None:
        """Replace units in the rows of the tensors, in place."""
        spread = interventions.of_donors(self.spread(interventions.donor))
        paste(tensors, self.units, self._donors, spread, self.frames)

    def spread(self, donors: np.ndarray) -> np.ndarray:
        """Donor numbers for every tensor ``(B, slots)``."""
        return donors

    def logits_of_inputs(self, inputs: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """Like :meth:`logits`, with other inputs and all that follows from them."""
        assert isinstance(self.forward_func, SegmentationTarget)
        return self.forward_func.logits(*inputs, *gather(self._model_arguments, examples))

    def local_scores(self) -> LocalScores | None:
        """How rows of logits are scored from the surroundings of the RoIs (from now on); ``None`` if that is not possible."""
        if self._local is None and isinstance(self.forward_func, SegmentationTarget):
            self._local = self.forward_func.local_scores(*self.inputs, *self.arguments)
        return self._local

    def smooth_scores(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor | None:
        """Differentiable scores of a window that holds these tensors; ``None`` if only the whole image gives them."""
        return None if self._smooth is None else self._smooth(self.logits(tensors, examples), examples)

    def windowed(self, window: Frame, spatial: torch.Size) -> "ModelEvaluator | None":
        """The same on a window of images of this spatial shape; ``None`` where it is no window of all that is needed."""
        frames = self._frames_in(window, spatial)
        if frames is None or self._local is None:
            return None
        other = copy.copy(self)
        for name in ("_model_arguments", "_smooth"):  # those of the whole image
            other.__dict__.pop(name, None)
        other.inputs = window.crop_images(self.inputs, spatial)
        other.arguments = window.crop_images(self._model_arguments, spatial)
        other._frames, other._local = frames, self._local.cropped(window.starts, window.size)
        other._origin = window, [*self.inputs, *self.arguments]
        other._fit_to_window()
        return other

    def crop(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like :attr:`tensors` of the whole, as this window holds them."""
        frames = self._frames or [None] * len(tensors)
        return [x if frame is None else frame.crop(x) for x, frame in zip(tensors, frames)]

    def _of_pairs(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` such that their distance from the observed score is that of two runs with the same noise.

        The noise is drawn as the donors are. So the spread of the draws holds what is left of the noise in the pairs.
        """
        examples, noise = interventions.example, interventions.noise
        noise = np.zeros(len(examples), dtype=np.int64) if noise is None else noise
        intervened = self._intervened_with(noise, interventions)
        pairs = list(zip(examples.tolist(), noise.tolist()))
        new = sorted(set(pairs) - self._alone.keys())
        if new:
            which, states = (np.array(column) for column in zip(*new))
            found = self._sampled(gather(self.inputs, which), which, states)
            self._alone.update(zip(new, found))
            self.spent["the same noise, no intervention"] += len(new) * self.runs_each
        if self.runs_each > 1:
            self.spent["further samples"] += len(examples) * (self.runs_each - 1)
        missing = sorted({n for n in examples.tolist() if (n, -1) not in self._alone})
        for n, row in zip(missing, self._observe_again(np.array(missing)) if missing else []):
            self._alone[n, -1] = row
        alone = torch.stack([self._alone[pair] for pair in pairs])
        observed = torch.stack([self._alone[n, -1] for n in examples.tolist()])
        return observed - (alone - intervened)

    def _observe_again(self, examples: np.ndarray) -> Tensor:
        self.spent["observed again"] += len(examples)
        return self.observe(examples)

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions, each row with its own random numbers ``noise[b]``."""
        raise NotImplementedError

    def _sampled(self, inputs: Sequence[Tensor], examples: np.ndarray, noise: np.ndarray) -> Tensor:
        assert isinstance(self.forward_func, SegmentationTarget)
        scores = self.forward_func.sampled(noise.tolist(), *inputs, *gather(self.arguments, examples))
        return self._checked(scores, len(examples))

    @functools.cached_property
    def _model_arguments(self) -> list[Any]:
        """The additional arguments that the model itself takes: no masks among them."""
        if self._frames is not None or not isinstance(self.forward_func, SegmentationTarget):
            return self.arguments
        return list(self.forward_func.model_inputs(*self.inputs, *self.arguments)[len(self.inputs) :])

    @functools.cached_property
    def _smooth(self) -> LocalScores | None:
        """What scores a window's logits with the target's differentiable twin, if it has one that looks at the RoIs alone."""
        if self._origin is None:
            return None
        window, call = self._origin
        assert isinstance(self.forward_func, SegmentationTarget)
        try:
            twin = self.forward_func.surrogate()
        except ValueError:
            return None
        local = twin.local_scores(*call)
        return None if local is None else local.cropped(window.starts, window.size)

    def _near(self, answers: Tensor) -> Tensor:
        return (answers if self._local is None else self._local.near(answers)).reshape(len(answers), -1)

    def _frames_in(self, window: Frame, spatial: torch.Size) -> list[Frame | None] | None:
        """Per tensor, which part of it the window is; ``None`` where there is none."""
        return window.frames(self.inputs, spatial)

    def _checked(self, scores: Any, n: int) -> Tensor:
        """What the function returned for ``n`` examples, as ``(B, K)``."""
        checked = checked_scores(scores, n, self.output_shape)
        self.output_shape = tuple(checked.shape[1:])
        return checked.flatten(1) if checked.ndim > 1 else checked[:, None]


class EachAlone:
    """A forward function that is given every example alone, whatever the batch.

    Args:
        forward_func: inputs and additional arguments to scores ``(N, ...)``.
    """

    takes_batches = False

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    def __call__(self, *inputs: Any) -> Tensor:
        """The scores of each example, ``(N, ...)``."""
        scores: list[Tensor] = []
        for row in rows(inputs, len(inputs[0])):
            scores.append(checked_scores(self.forward_func(*row), 1, tuple(scores[0].shape[1:]) if scores else None))
        return torch.cat(scores)


def checked_scores(scores: Any, batch: int, output_shape: tuple[int, ...] | None) -> Tensor:
    """What a forward function returned, if it is one score (or ``output_shape`` scores) per example."""
    if not isinstance(scores, Tensor):
        holds_more = isinstance(scores, (Mapping, list, tuple)) or dataclasses.is_dataclass(scores)
        raise TypeError(
            f"forward_func: expected a tensor of one score per example, got {type(scores).__name__}"
            + f"; a segmentation model is wrapped first: {_WRAPPED} finds the logits in what it returns and scores a region of them"
            * holds_more
        )
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


def chosen_output(
    target: TargetType,
    n_examples: int,
    output_shape: Sequence[int],
    output_axes: Sequence[str],
    spatial: Sequence[int],
) -> Tensor:
    """Per example, the flat index ``(N,)`` of the output that ``target`` picks.

    Args:
        target: in all of Captum's forms.
        n_examples: ``N``.
        output_shape: of one example's scores.
        output_axes: names of its axes.
        spatial: of the image that is segmented.

    Raises:
        ValueError: it picks no output, or several. Of a segmentation in the place of scores, that is said first.
    """
    try:
        return target_index(target, n_examples, output_shape, output_axes)
    except ValueError as error:
        if not _is_map(output_shape, output_axes, spatial):
            raise
        raise ValueError(
            f"forward_func: it returns {tuple(output_shape)} per example, a segmentation and not scores; wrap the model first: {_WRAPPED} "
            f"scores a region of it, by classes to pick from ({error})"
        ) from error


_WRAPPED = "SegmentationTarget(model, roi=..., reference=...)"


def _is_map(shape: Sequence[int], axes: Sequence[str], spatial: Sequence[int]) -> bool:
    """Whether outputs ``(C, *spatial)`` or ``(*spatial)`` are a map of an image, at its resolution or a coarser one."""
    n = len(spatial)
    if not n or len(shape) not in (n, n + 1) or not all(name.startswith("output") for name in axes):
        return False
    own = tuple(shape[-n:])
    ratios = {side / mine for side, mine in zip(spatial, own)}
    return own == tuple(spatial) or (n > 1 and len(ratios) == 1 and min(own) > 1 and max(ratios) > 1)
