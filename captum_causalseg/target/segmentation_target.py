"""A model, where to look and what to score, as one module that every Captum method can explain."""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._checks import (
    FUNCTION,
    NONE,
    SEED,
    TEXT,
    Check,
    checked,
    integer,
    misfit,
    number,
    one_of,
    sequence,
    tensor_of,
)
from captum_causalseg._state import modules_of, undisturbed
from captum_causalseg.metrics.objects import best_match
from captum_causalseg.target.adapters import adapter_for, model_adapter
from captum_causalseg.target.batches import Batches
from captum_causalseg.target.gradient import refusing_gradient
from captum_causalseg.target.local_scores import LocalScores, around
from captum_causalseg.target.masks import (
    absent_classes,
    batch_error,
    check_roi,
    instances_of,
    is_one_hot,
    mask_argument,
    mask_source,
    one_hot,
    per_class_or_labels,
    reference_of_batch,
    refuse_other_classes,
    roi_of_batch,
)
from captum_causalseg.target.outputs import (
    HardOutput,
    find_logits,
    first_image,
    no_batch_axis,
    resized,
    spatial_axes_of,
    with_channels,
)
from captum_causalseg.target.scoring import (
    find_metric,
    hard_labels,
    in_domain,
    in_single_precision,
    named_score,
    read_activation,
    refuse_nan,
    user_score,
)
from captum_causalseg.target.stochastic import one_by_one, seeded
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["SegmentationTarget"]

logger = logging.getLogger(__name__)

Activation = Literal["auto", "sigmoid", "softmax", "shares", "none"]

_MODEL = Check("a torch.nn.Module or a callable", callable, by_type=True)
_SCORING = {
    "model": _MODEL,
    "activation": one_of("auto", "sigmoid", "softmax", "shares", "none"),
    "threshold": number(),
    "empty_score": number(0, 1),
    "output": NONE | TEXT | integer() | FUNCTION,
    "n_samples": NONE | integer(1),
    "seed": SEED,
}


class SegmentationTarget(nn.Module):
    """A segmentation model with a region of interest and a score: ``forward`` maps a batch of images to scores.

    The result of ``forward(inputs, *model_args)`` has one score per example and output: shape ``(N,)`` for a model with
    one output channel and one RoI, ``(N, C)`` over classes, ``(N, R)`` over RoIs, ``(N, C, R)`` over both. Captum's
    ``target`` then picks a class (an int) or a ``(class, roi)`` pair (a tuple). Every RoI is scored from the same
    forward pass. Scores are in the metric's own units (Dice in [0, 1]) and larger is better.

    Args:
        model: image batch ``(N, C_in, *spatial)`` (and further arguments) to logits or probabilities ``(N, C, *spatial)``; see
            ``output``. A model that returns labels (integers ``(N, *spatial)`` or ``(N, 1, *spatial)``, or booleans with one mask per
            label) is scored with the metrics on hard labels only, and has no surrogate. How many classes label maps have is
            read from the reference: its channels, or its largest label (of the first batch, where it is a call argument).
        roi: where to score. A boolean mask ``spatial``; a stack of masks ``(R, *spatial)``, which adds the RoI axis to the
            output; one per example ``(N, 1, *spatial)`` or a stack per example ``(N, R, *spatial)``; ``None`` for the whole
            image; or ``"argument"``.
        reference: what to compare with. A label map ``spatial`` (values ``0..C-1``; 0 and 1 with a single channel), one
            per example ``(N, *spatial)`` or ``(N, 1, *spatial)``, or one-hot ``(C, *spatial)`` or ``(N, C, *spatial)``;
            ``None`` for the metrics that need none; or ``"argument"``. Its classes are the model's. One mask per class says how
            many there are, a boolean mask says two, and a model with another number is refused. A label map says only that
            there are at least so many: classes above its largest label count as absent from the image. Labels 0 and 1 for a
            model of more classes are read like that as well, as classes 0 and 1, with a warning in the log, for they may
            have been meant as a mask.
        metric: a name from :data:`captum_causalseg.metrics.METRICS`, or a callable ``(prediction, reference, roi) -> (N, K)``
            that gets probabilities ``(N, C, *spatial)``, the one-hot reference of the same shape (or ``None``) and the
            boolean RoI ``(N, R, *spatial)``.
        activation: ``"sigmoid"`` (one channel, or labels that may overlap), ``"softmax"``, ``"shares"`` (class
            scores from 0 on, each divided by the sum of all), ``"none"`` (the output is taken as it is) or ``"auto"``: an adapter's
            own, else read once from the first output's channel count and value range; the choice is logged and
            stands in the ``repr``.
        threshold: a pixel belongs to a class if its probability is larger; with exclusive classes the largest wins instead. Between 0
            and 1 after a sigmoid; with ``"none"`` on the scale of the output.
        empty_score: Dice and IoU of an empty prediction against an empty reference. 1 here; 0 in the paper's protocol.
        output: how to find the logits in what the model returns: a key, an index, a callable or an adapter's name. By default a
            mapping, named tuple or dataclass gives its ``out``, ``logits`` or ``pred``, and a list or tuple (deep supervision) its
            first tensor of the input's spatial shape, or if there is none its first; several of that shape have to be of the same
            classes. Logits of another size than the input are resized to it (linearly, ``align_corners=False``; labels by the
            nearest pixel). Masks of queries or candidates are no classes. Adapters make logits of them, and are chosen by themselves
            for the outputs of transformers' models and for MONAI's ``VISTA3D``: ``"mask2former"``, ``"maskformer"``,
            ``"oneformer"``, ``"eomt"`` and ``"detr"`` add up the queries of each class as the models' processors do; ``"sam"``
            takes for each prompt the candidate of best predicted quality (``"sam:0"`` the first); ``"vista3d"`` has one
            channel per class or click. :func:`register_adapter` adds your own.

            ``"instances"`` has one channel per query: the probability that a pixel belongs to an object that this query has found. The
            reference then holds objects and no classes: a mask, a label map in which every label but 0 is an object, or ``(N or 1,
            objects, *spatial)``. ``metric="best_dice"`` scores the instance that matches best, sought anew in every image: it follows
            the object. Other metrics compare every query with the one object of the reference, ``(N, queries)``: Captum's ``target`` follows
            one query, whatever it has found.
        n_samples: for stochastic models (diffusion, dropout kept in training mode): scores are the mean over this many outputs. The
            random numbers are **common**: they depend on ``seed`` alone, not on the batch or the image, so that an observed and an
            intervened image share the same noise. Each example runs through the model alone. ``None`` runs the model once, as it
            is; so does a model that returns the same output twice.
        seed: of those random numbers.

    ``roi="argument"`` and ``reference="argument"`` take the masks from the call instead, as the last positional arguments
    in that order, one entry per example (``(N, *spatial)``, or with a second axis as above). That is how to give every
    example its own masks in any Captum method: ``additional_forward_args=(roi, reference)``.

    Raises:
        ValueError: an empty RoI, a mask of another shape or batch than the images, labels outside the classes, a model
            that returns NaN, or masks of queries in the place of classes.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, regions
        >>> model = torch.nn.Conv2d(1, 3, 3, padding=1)
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(0, 3, (2, 16, 16))
        >>> target = SegmentationTarget(model, roi=regions.box((16, 16), start=4, size=8), reference=labels)
        >>> target(images).shape
        torch.Size([2, 3])
    """

    roi: Tensor | None
    reference: Tensor | None

    @checked(_SCORING)
    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        roi: Tensor | np.ndarray | Literal["argument"] | None = None,
        reference: Tensor | np.ndarray | Literal["argument"] | None = None,
        metric: str | Callable[[Tensor, Tensor | None, Tensor], Tensor] = "dice",
        activation: Activation = "auto",
        threshold: float = 0.5,
        empty_score: float = 1.0,
        output: str | int | Callable[[Any], Tensor] | None = None,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.metric = metric
        self._metric = find_metric(metric)
        self.activation = activation
        self.threshold = float(threshold)
        self.empty_score = float(empty_score)
        self.output = output
        self.n_samples, self.seed = n_samples, int(seed)
        # Whether the model's answers differ, once they have been compared.
        self._varies: bool | None = None
        self._roi_source, roi_mask = mask_source("roi", roi)
        self._reference_source, reference_mask = mask_source("reference", reference)
        self._check_reference()
        self.register_buffer("roi", None if roi_mask is None else check_roi(roi_mask), persistent=False)
        self.register_buffer("reference", reference_mask, persistent=False)
        # Of masks given per example that a method made arguments: one mask per class, if that is how they read after all.
        self._shared_reading: Tensor | None = None
        self._has_roi_axis = False
        self._channels: int | None = None
        self._resolved: tuple[str, bool] | None = None
        self._hard = HardOutput()
        # Whether it was said how label maps are read; one list for all targets that are made from one another.
        self._labels_said: list[bool] = []
        self._reading = model_adapter(model, output)
        alone = self._reading is not None and self._reading.adapter.one_image
        self._batches = Batches(taken=False, why_not="the model takes one image at a time") if alone else Batches()
        if isinstance(model, nn.Module):
            # Frozen TorchScript is in evaluation mode for good and has no such attribute.
            self.training = getattr(model, "training", False)

    @classmethod
    @checked(_SCORING)
    def from_prediction(
        cls,
        model: nn.Module | Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        **options: Any,
    ) -> "SegmentationTarget":
        """A target whose reference is the model's own hard prediction on ``inputs``, frozen.

        The observed Dice is then 1 and effects say what holds the prediction up, right or wrong.

        Args:
            model: as in the constructor.
            inputs: the images to be explained, a tensor or a tuple of tensors.
            additional_forward_args: further arguments of the model, as in Captum.
            **options: the constructor's other arguments, except ``reference``.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget
            >>> images = torch.rand(1, 1, 8, 8)
            >>> SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 1), images)(images)
            tensor([[1., 1.]])
        """
        if "reference" in options:
            raise TypeError("reference: from_prediction takes the model's own prediction; use the constructor instead")
        probe = cls(model, metric="volume", **{k: v for k, v in options.items() if k not in ("metric", "roi")})
        probe._hard.counts_itself = True
        given, more = inputs if isinstance(inputs, tuple) else (inputs,), _as_tuple(additional_forward_args)
        reason = misfit(model, len(given) + len(more))
        if reason and more and misfit(model, len(given)) is None:
            raise TypeError(f"additional_forward_args: the model cannot be called with {len(more)} of them: {reason}")
        args = given + more
        reference = probe.predict(*args)
        target = cls(model, reference=reference, **options)
        target._resolved, target._hard, target._batches = probe._resolved, probe._hard, probe._batches
        return target

    def forward(self, *inputs: Any) -> Tensor:
        """Scores ``(N,)``, ``(N, C)``, ``(N, R)`` or ``(N, C, R)``; differentiable where the metric is.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget, regions
            >>> images, roi = torch.rand(2, 1, 8, 8), regions.box((8, 8), start=2, size=4)
            >>> mean = SegmentationTarget(torch.nn.Identity(), roi=roi, metric="probability_mean", activation="none")
            >>> torch.allclose(mean(images), images[:, 0, 2:6, 2:6].mean((1, 2)))
            True
        """
        # Masks that do not fit are refused before the model runs.
        roi, masks, truth, spatial = self._masks_of_call(inputs)
        if self.varies(*inputs):
            return self._refusing_gradient(self.sampled([0] * len(first_image(inputs)), *inputs), inputs)
        model = self._model_of_regions()
        if model is None or masks is None:
            logits = self._logits(self.model_inputs(*inputs), truth)
            return self._refusing_gradient(self.score(logits, *inputs), inputs, logits)
        given = self.model_inputs(*inputs)

        def near(rois: Tensor, *given: Any) -> Tensor:
            found: Tensor = model(*given, rois=rois)
            return found

        logits = self._batches.run(near, (masks, *given), len(first_image(given)))
        self._has_roi_axis, self._channels = self._is_stack(roi, spatial), logits.shape[1]
        scores = self._shaped(self._score(logits, masks, truth, are_near=True))
        return self._refusing_gradient(scores, inputs, logits)

    def logits_and_scores(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits ``(N, C, *spatial)`` and scores as of :meth:`forward`, from a single answer of the model.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget, regions
            >>> target = SegmentationTarget(torch.nn.Conv2d(1, 2, 3, padding=1), roi=regions.box((8, 8), 2, 4), metric="logit_sum")
            >>> images = torch.rand(2, 1, 8, 8)
            >>> logits, scores = target.logits_and_scores(images)
            >>> logits.shape, torch.equal(scores, target(images))
            (torch.Size([2, 2, 8, 8]), True)
        """
        logits = self._logits(self.model_inputs(*inputs), self._masks_of_call(inputs)[2])
        return logits, self.score(logits, *inputs)

    @property
    def keeps_dropout(self) -> bool:
        """Whether dropout that was left in training mode stays on: it is what makes the answers of an ensemble."""
        return self.n_samples is not None

    @property
    def takes_batches(self) -> bool | None:
        """Whether the model takes several images at once; ``None`` before it was given several.

        A model that fails on a batch and answers each of its images alone is run image by image from then on.
        """
        return self._batches.taken

    @property
    def why_one_by_one(self) -> str | None:
        """Why images are run one by one; ``None`` where they are not."""
        return self._batches.why_not if self._batches.taken is False else None

    @property
    def answers_compared(self) -> bool:
        """Whether :meth:`varies` is known already: no images are run to tell."""
        return self.n_samples is None or self._varies is not None

    def constructor_arguments(self) -> dict[str, Any]:
        """By name, what a constructor has to be given for the same target; masks as tensors, or ``"argument"``."""
        found: dict[str, Any] = {"model": self.model}
        for name, source in (("roi", self._roi_source), ("reference", self._reference_source)):
            found[name] = "argument" if source == "argument" else getattr(self, name)
        for name in inspect.signature(type(self)).parameters:
            if name not in found and hasattr(self, name):
                found[name] = getattr(self, name)
        return found

    def varies(self, *inputs: Any) -> bool:
        """Whether scores are means over differing answers of the model: with ``n_samples``, if two answers to the first example differ.

        The model is run twice for this, the first time it is asked.
        """
        if self.n_samples is None or self._varies is False:
            return False
        if self._varies is None:
            given = self.model_inputs(*inputs)
            answers = []
            for sample in range(2):
                first = tuple(v[:1].clone() if isinstance(v, Tensor) and v.ndim else v for v in given)
                with seeded(self.seed, 0, sample), torch.no_grad():
                    answers.append(self._logits(first, self.reference))
            self._varies = not torch.equal(*answers)
            if not self._varies:
                logger.info("n_samples: the model returns the same output twice, so one sample is enough")
        return self._varies

    @checked(noise=sequence(integer(), 1))
    def sampled(self, noise: Sequence[int], *inputs: Any) -> Tensor:
        """Scores as of :meth:`forward`, each example with random numbers of its own choice.

        Args:
            noise: ``N`` integers: which random numbers each example meets; the same integer is the same noise, for all images.
            inputs: as of :meth:`forward`.
        """
        truth = self._masks_of_call(inputs)[2]
        total: Tensor | None = None
        for sample in range(self.n_samples or 1):
            scores = self.score(self._sampled_logits(noise, sample, inputs, reference=truth), *inputs)
            total = scores if total is None else total + scores
        assert total is not None
        return total / (self.n_samples or 1)

    def answer(self, *inputs: Any) -> Tensor:
        """The logits ``(N, C, *spatial)`` of a single answer to the model's inputs, always with the same random numbers.

        Where :meth:`forward` runs a model several times (``n_samples``), this runs it once.
        """
        with seeded(self.seed, 0, 0):
            return self._logits(inputs, self.reference)

    def model_inputs(self, *inputs: Any) -> tuple[Any, ...]:
        """The arguments of a call without the masks among them (``roi="argument"``, ``reference="argument"``)."""
        return self._take_masks(inputs)[0]

    @checked(
        logits=tensor_of("real", "(N, C, *spatial)", (3, math.inf), may_be_empty=False),
        roi=NONE | tensor_of("boolean", "(N or 1, R, *spatial)", (3, math.inf)),
    )
    def score(self, logits: Tensor, *inputs: Any, roi: Tensor | None = None) -> Tensor:
        """The scores of logits ``(N, C, *spatial)`` that were computed elsewhere, for a call with these arguments.

        With ``roi``, boolean ``(N or 1, R, *spatial)``, in other regions than the target's: ``(N, C, R)`` always.
        """
        given, masks, truth, spatial = self._masks_of_call(inputs)
        if roi is not None:
            return self._score(logits, roi, truth)
        scores = self._score(logits, masks, truth)
        if callable(self.metric):
            return scores
        self._has_roi_axis, self._channels = self._is_stack(given, spatial), logits.shape[1]
        return self._shaped(scores)

    def local_scores(self, *inputs: Any) -> LocalScores | None:
        """What scores interventions on the examples of a call with these arguments from the output around the RoIs alone.

        ``None`` if the metric may look further (one's own), or before a first call with masks of this kind has been scored.
        """
        if callable(self.metric) or not self._metric.inside_roi or self._resolved is None or self._channels is None:
            return None
        if self.varies(*inputs):
            return None  # what a part of the image gives would meet other noise
        activation, exclusive = self._resolved
        _, masks, reference, spatial = self._masks_of_call(inputs)
        device = first_image(inputs).device
        rois = torch.ones((1, 1, *spatial), dtype=torch.bool, device=device) if masks is None else masks.to(device)
        shape = len(first_image(inputs)), self._channels, *spatial
        truth = None if reference is None else self._one_hot(reference.to(device), shape, activation, exclusive=exclusive)

        def score(logits: Tensor, rois: Tensor, truth: Tensor | None) -> Tensor:
            logits = in_single_precision(logits)
            prediction = self._prediction(logits, activation, exclusive)
            return self._shaped(
                self._named_score(prediction, None if truth is None else truth.to(logits.dtype), rois, exclusive=exclusive)
            )

        return LocalScores(score, rois, truth)

    def logits(self, *inputs: Any) -> Tensor:
        """What the model returns, found and resized to the input: ``(N, C, *spatial)``; labels as zeros and ones.

        The mean over the samples, if there are several (``n_samples``).

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget
            >>> model = torch.nn.Conv2d(1, 3, 4, stride=4)  # a quarter of the image's resolution
            >>> SegmentationTarget(model, metric="logit_sum").logits(torch.rand(2, 1, 16, 16)).shape
            torch.Size([2, 3, 16, 16])
        """
        if self.n_samples is None or self._varies is False:
            return self._logits(inputs, self.reference)
        noise = [0] * len(first_image(inputs))
        samples = [
            self._sampled_logits(noise, sample, inputs, reference=self.reference, masks=False)
            for sample in range(self.n_samples)
        ]
        return torch.stack(samples).mean(0)

    def predict(self, *inputs: Any) -> Tensor:
        """The model's hard segmentation, one-hot and boolean ``(N, C, *spatial)``; modes and states stay as they are.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget
            >>> target = SegmentationTarget(torch.nn.Identity(), metric="volume", activation="softmax")
            >>> target.predict(torch.tensor([[[0.2, 3.0], [1.0, -1.0]]]))  # two classes, two pixels
            tensor([[[False,  True],
                     [ True, False]]])
        """
        return self._hard_prediction(inputs)[0]

    def segmentations(self, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Prediction and reference of a call with these arguments, boolean ``(N, C, *spatial)``; ``None`` without a reference.

        Of instances that are matched (``metric="best_dice"``), ``(N, 1, *spatial)``: those that match an object best, and all objects.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget
            >>> target = SegmentationTarget(torch.nn.Identity(), reference=torch.tensor([[0, 1]]), activation="softmax")
            >>> prediction, reference = target.segmentations(torch.tensor([[[[0.2, 3.0]], [[1.0, -1.0]]]]))
            >>> prediction[0, 1].tolist(), reference[0, 1].tolist()
            ([[True, False]], [[False, True]])
        """
        truth = self._masks_of_call(inputs)[2]
        prediction, activation, exclusive = self._hard_prediction(self.model_inputs(*inputs))
        if truth is None:
            return prediction, None
        found = self._one_hot(truth.to(prediction.device), prediction.shape, activation, exclusive=exclusive).bool()
        if self._has_instances and "instances" in self._metric.options:
            # One score, of the instances that match.
            rois = self.roi_masks(inputs)
            region = torch.ones_like(prediction[:1, :1]) if rois is None else rois.to(prediction.device).any(1, keepdim=True)
            matches = best_match(prediction, found, region)
            return matches, found.any(1, keepdim=True).expand(matches.shape)
        return prediction, found.expand(prediction.shape)

    @checked(metric=NONE | TEXT)
    def surrogate(self, metric: str | None = None) -> "SegmentationTarget":
        """The same target with the differentiable twin of its metric (``dice`` becomes ``soft_dice``), for gradients.

        Args:
            metric: another differentiable metric to take instead. A callable metric is its own twin unless this is given.

        Raises:
            ValueError: there is none; also if the model is known to return labels, which it is once it has run.

        Example:
            >>> import torch
            >>> from captum.attr import Saliency
            >>> from captum_causalseg import SegmentationTarget, regions
            >>> seeded = torch.manual_seed(0)  # of other weights, the prediction may lack the class
            >>> model, images = torch.nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8, requires_grad=True)
            >>> target = SegmentationTarget.from_prediction(model, images, roi=regions.box((8, 8), start=2, size=4))
            >>> target.surrogate().metric
            'soft_dice'
            >>> bool(Saliency(target.surrogate()).attribute(images, target=1).any())
            True
        """
        if self._hard.dtype is not None:
            raise ValueError(
                f"surrogate: the model returns labels ({self._hard.dtype}), which have no gradient; give one that returns logits or "
                "probabilities"
            )
        twin = self._twin()
        if metric is not None or isinstance(self.metric, str):
            twin._modules.pop("metric", None)
            twin.metric = self._metric.surrogate if metric is None else metric
            twin._metric = find_metric(twin.metric)
            if twin._metric.domain == "labels":
                raise ValueError(f"metric: {twin.metric!r} is scored on hard labels and has no gradient")
            twin._check_reference()
        return twin

    @checked(_SCORING)
    def with_scoring(
        self, *, metric: str, activation: Activation, threshold: float, empty_score: float
    ) -> "SegmentationTarget":
        """The same model, RoI and reference, scored in another way; the arguments are the constructor's.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget
            >>> target = SegmentationTarget(torch.nn.Identity(), reference=torch.zeros(8, 8), metric="dice", activation="none")
            >>> paper = target.with_scoring(metric="dice", activation="none", threshold=0.5, empty_score=0.0)
            >>> nothing = torch.zeros(1, 1, 8, 8)  # no object is there, and none is found
            >>> target(nothing).item(), paper(nothing).item()
            (1.0, 0.0)
        """
        scored = SegmentationTarget(
            self.model,
            "argument" if self._roi_source == "argument" else self.roi,
            "argument" if self._reference_source == "argument" else self.reference,
            metric=metric,
            activation=activation,
            threshold=threshold,
            empty_score=empty_score,
            output=self.output,
            n_samples=self.n_samples,
            seed=self.seed,
        )
        scored._batches, scored._reading = self._batches, self._reading
        return scored

    def with_masks_of_calls(self, metric: str) -> "SegmentationTarget":
        """The same model scored by ``metric``, in the RoI and against the reference that each call brings along, in that order.

        What was read from the model's first output stands.
        """
        scored = SegmentationTarget(
            self.model,
            roi="argument",
            reference="argument",
            metric=metric,
            activation=self.activation,
            threshold=self.threshold,
            empty_score=self.empty_score,
            output=self.output,
        )
        scored._resolved = self._resolved
        return scored

    def with_each_alone(self) -> "SegmentationTarget":
        """The same target, but every image of a batch goes through the model alone."""
        twin = self._twin()
        twin._batches = Batches(taken=False)
        return twin

    @checked(_SCORING)
    def with_model(self, model: nn.Module | Callable[..., Any]) -> "SegmentationTarget":
        """The same target around another form of the same model (compiled, say).

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget
            >>> model, images = torch.nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
            >>> target = SegmentationTarget.from_prediction(model, images)
            >>> traced = target.with_model(torch.fx.symbolic_trace(model))
            >>> bool((traced(images) == target(images)).all())
            True
        """
        twin = self._twin()
        twin._modules.pop("model", None)
        twin.__dict__.pop("model", None)
        twin.model = model
        return twin

    def with_masks_as_arguments(
        self, n_examples: int, n_spatial: int, additional_forward_args: tuple[Any, ...] = ()
    ) -> tuple["SegmentationTarget", tuple[Any, ...]]:
        """This target with the masks that it holds per example turned into call arguments, and all the arguments.

        Methods that evaluate examples in an order and number of their own need masks that travel with the examples.

        Args:
            n_examples: batch size of the inputs.
            n_spatial: their number of spatial axes.
            additional_forward_args: the call's further arguments.

        Returns:
            A target (itself, if its masks are shared) and the additional forward arguments to call it with.
        """
        moved: dict[str, Tensor] = {}
        for name, source, deepest in (("roi", self._roi_source, 1), ("reference", self._reference_source, 0)):
            mask = getattr(self, name)
            if source != "given" or mask.ndim - n_spatial <= deepest or mask.shape[0] == 1:
                continue
            if name == "reference" and mask.ndim - n_spatial == 1 and mask.shape[0] != n_examples:
                continue  # one-hot for all examples, (C, *spatial)
            if mask.shape[0] != n_examples:
                raise ValueError(batch_error(name, mask.shape[0], n_examples))
            moved[name] = mask
        if not moved:
            return self, additional_forward_args
        twin = self._twin()
        arguments = list(additional_forward_args)
        if "roi" in moved:
            twin.roi, twin._roi_source = None, "argument"
            arguments.insert(len(arguments) - (self._reference_source == "argument"), moved["roi"])
        if "reference" in moved:
            twin.reference, twin._reference_source = None, "argument"
            arguments.append(moved["reference"])
            if moved["reference"].ndim == n_spatial + 1:
                twin._shared_reading = moved["reference"]
        return twin, tuple(arguments)

    def roi_masks(self, inputs: tuple[Any, ...]) -> Tensor | None:
        """The RoIs for a call with these positional arguments, ``(N or 1, R, *spatial)``; ``None`` for the whole image.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget, regions
            >>> rois = torch.stack([regions.box((8, 8), start=start, size=4) for start in (0, 4)])
            >>> target = SegmentationTarget(torch.nn.Conv2d(1, 2, 1), roi=rois, metric="volume")
            >>> target.roi_masks((torch.rand(3, 1, 8, 8),)).shape
            torch.Size([1, 2, 8, 8])
        """
        return self._masks_of_call(inputs)[1]

    def output_axes(self, n_axes: int, spatial: Sequence[int]) -> tuple[str, ...]:
        """Names of the ``n_axes`` axes of the scores after the first: ``"class"``, ``"roi"``; ``"score"`` for one's own metric.

        With RoIs as call arguments, the names are those of the latest call's scores.
        """
        if callable(self.metric):
            return ("score",) if n_axes == 1 else tuple(f"score_{axis}" for axis in range(n_axes))
        stack = self._has_roi_axis if self._roi_source == "argument" else self._is_stack(self.roi, torch.Size(spatial))
        return {0: (), 1: ("roi",) if stack else ("class",), 2: ("class", "roi")}[n_axes]

    @property
    def device_ids(self) -> list[int]:
        """The wrapped model's, so that Captum's layer methods handle ``DataParallel``."""
        # Where the model has none, neither has the target: Captum asks with hasattr.
        ids: list[int] = getattr(self.model, "device_ids")  # noqa: B009
        return ids

    def extra_repr(self) -> str:
        """What ``repr`` says besides the model: score, masks, and the activation once it is settled."""
        chosen = self._resolved[0] if self._resolved else self.activation
        activation = f"{self.activation} -> {chosen}" if chosen != self.activation else chosen
        masks = ", ".join(
            f"{name}={source if mask is None else tuple(mask.shape)}"
            for name, source, mask in (
                ("roi", self._roi_source, self.roi),
                ("reference", self._reference_source, self.reference),
            )
        )
        return f"metric={self._metric.name}, {masks}, activation={activation}, threshold={self.threshold}"

    def _twin(self) -> "SegmentationTarget":
        # copy.copy shares the dictionaries of a module (masks, hooks): the twin gets its own.
        twin = copy.copy(self)
        twin.__dict__.update({name: copy.copy(value) for name, value in vars(self).items() if isinstance(value, dict)})
        return twin

    def _check_reference(self) -> None:
        if self._metric.needs_reference and self._reference_source == "none":
            raise ValueError(
                f"reference: metric {self.metric!r} compares with a reference segmentation; give one, or use "
                "SegmentationTarget.from_prediction(model, inputs, ...) to take the model's own prediction"
            )

    def _take_masks(self, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], Tensor | None, Tensor | None]:
        roi, reference = self.roi, self.reference
        if self._reference_source == "argument":
            inputs, reference = inputs[:-1], mask_argument("reference", inputs)
        if self._roi_source == "argument":
            inputs, roi = inputs[:-1], check_roi(mask_argument("roi", inputs))
        return inputs, roi, reference

    def _masks_of_call(self, inputs: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None, torch.Size]:
        """The RoI as it was given, RoI and reference as they fit this batch, and its spatial shape."""
        inputs, roi, reference = self._take_masks(inputs)
        image = first_image(inputs)
        n, spatial = image.shape[0], image.shape[2:]
        if self._lacks_batch_axis(image, roi, reference):
            raise ValueError(no_batch_axis(image))
        try:
            masks = None if roi is None else roi_of_batch(roi, spatial, n, is_argument=self._roi_source == "argument")
            truth = (
                None
                if reference is None
                else reference_of_batch(reference, spatial, n, is_argument=self._reference_source == "argument")
            )
        except ValueError as error:
            if self._lacks_batch_axis(image, roi, reference, failed=True):
                raise ValueError(no_batch_axis(image)) from error
            raise
        return roi, masks, truth, spatial

    def _lacks_batch_axis(self, image: Tensor, *masks: Tensor | None, failed: bool = False) -> bool:
        """Whether what came is surely ``(C, *spatial)``, by the model's convolutions and the masks; a failure says it, too."""
        given = [mask for mask in masks if mask is not None]
        fits = any(image.shape[1:] in (mask.shape, mask.shape[1:]) for mask in given)
        # Of masks of another shape, or with one axis less in 3D (a stack, one per channel), nothing can be said.
        axes = None if given and not fits else spatial_axes_of(self.model)
        if axes is not None:
            return axes == image.ndim - 1 and (fits or failed)
        return fits and failed and image.ndim == 3

    def _sampled_logits(
        self, noise: Sequence[int], sample: int, inputs: tuple[Any, ...], reference: Tensor | None, masks: bool = True
    ) -> Tensor:
        """One answer of the model to each example, ``(N, C, *spatial)``."""
        given = self.model_inputs(*inputs) if masks else inputs
        keys = [(self.seed, int(which), sample) for which in noise]
        return one_by_one(lambda *row: self._logits(row, reference), given, len(first_image(inputs)), keys=keys)

    def _logits(self, inputs: tuple[Any, ...], reference: Tensor | None) -> Tensor:
        """The logits, for a call with this reference, which tells how many classes label maps have."""
        image = first_image(inputs)
        try:
            found = self._batches.run(self._answer, inputs, len(image))
        except (RuntimeError, ValueError) as error:
            lacks = not isinstance(error, torch.OutOfMemoryError)
            if lacks and self._lacks_batch_axis(image, self.roi, self.reference, failed=True):
                raise ValueError(no_batch_axis(image)) from error
            raise
        whole = reference if self._shared_reading is None else self._shared_reading
        logits = self._hard.read(found, whole, image.ndim - 2)
        return resized(logits, image.shape[2:], hard=self._hard.dtype is not None)

    def _refusing_gradient(self, scores: Tensor, inputs: tuple[Any, ...], logits: Tensor | None = None) -> Tensor:
        """Scores without a gradient that say what to do about it, where someone is about to ask for one.

        That is who gives inputs that require gradients or, as methods for layers do, watches a module. Anyone else gets plain
        numbers, to which no graph is attached.
        """
        is_soft = self._metric.domain != "labels" and not callable(self.metric)
        if scores.requires_grad or not torch.is_grad_enabled() or not scores.is_floating_point():
            return scores
        sources = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
        follows = logits is not None and logits.requires_grad
        if (
            logits is not None
            and follows
            and (sources or any(m._forward_hooks or m._forward_pre_hooks for m in modules_of(self)))
        ):
            sources.append(logits)
        if not sources:
            return scores
        perturb = "methods that perturb the image need none (AverageTreatmentEffect, Occlusion)"
        if self._hard.dtype is not None:
            reason = f"model: it returns labels ({self._hard.dtype}), which have no gradient; {perturb}"
        elif is_soft or (logits is not None and not follows):
            reason = f"model: its output is cut off from its inputs (torch.no_grad, detach, NumPy or another runtime inside), so it has no gradient; {perturb}"
        elif callable(self.metric):
            reason = (
                f"metric: the scores of {self._metric.name!r} have no gradient; give gradient methods a differentiable one: "
                'target.surrogate("soft_dice"), for one'
            )
        else:
            reason = (
                f"metric: {self._metric.name!r} is scored on hard labels and has no gradient; give gradient methods the differentiable "
                f"twin of this target: target.surrogate() ({self._metric.surrogate})"
            )
        return refusing_gradient(scores, reason, sources)

    def _model_of_regions(self) -> WindowedModel | None:
        """The model, where it gives the logits in the regions for less than all logits, and these are enough."""
        model = self.model
        if callable(self.metric) or not self._metric.inside_roi or self._resolved is None or self.output is not None:
            return None
        return model if isinstance(model, WindowedModel) and not model.is_watched else None

    def _answer(self, *inputs: Any) -> Tensor:
        """What the model returns, ``(N, C, *spatial)`` of whatever resolution."""
        image = first_image(inputs)
        returned = self.model(*inputs)
        found = adapter_for(returned, self.output)
        if found is not None:
            self._reading = found
        elif self.output is None and self._reading is not None:
            # It was chosen by the model.
            return with_channels(self._reading.logits(returned, image), image)
        else:
            self._reading = None
        return with_channels(find_logits(returned, self.output, image), image)

    def _hard_prediction(self, inputs: tuple[Any, ...]) -> tuple[Tensor, str, bool]:
        """The hard segmentation of the model's inputs, ``(N, C, *spatial)``, the activation in force and whether classes exclude each other."""
        with undisturbed(self):
            logits = self.logits(*inputs)
            refuse_nan(logits)
            logits = in_single_precision(logits)
            activation, exclusive = self._resolve(logits)
            return hard_labels(logits, activation, exclusive, threshold=self.threshold).bool(), activation, exclusive

    def _resolve(self, logits: Tensor) -> tuple[str, bool]:
        """The activation in force and whether classes exclude each other; settled on the first output seen."""
        if self._resolved is None:
            if self._hard.dtype is not None:
                self._resolved = self._hard.resolve(logits, self.activation)
                return self._resolved
            values = logits.detach()
            asked = self.activation
            if asked == "auto" and self._reading is not None:
                asked = self._reading.adapter.activation
            resolved, is_blank = read_activation(values, asked)
            if self._has_instances:
                # Objects may overlap, or leave pixels to none, also where probabilities happen to sum to 1.
                resolved = resolved[0], False
            if is_blank:
                # An output that is the same everywhere (a blank image) says nothing: another one settles it.
                return resolved
            if self.activation == "auto":
                logger.info(
                    "activation: chose %r for an output of %d channel(s) in [%.3g, %.3g]",
                    resolved[0],
                    values.shape[1],
                    float(values.amin()),
                    float(values.amax()),
                )
            self._resolved = resolved
        return self._resolved

    def _score(self, logits: Tensor, masks: Tensor | None, reference: Tensor | None, *, are_near: bool = False) -> Tensor:
        """``(N, C, R)``, or what a metric of the user's own returns; logits are of all of the image, or ``are_near``, those around the RoIs."""
        refuse_nan(logits)
        logits = in_single_precision(logits)
        activation, exclusive = self._resolve(logits)
        if masks is None:
            masks = torch.ones((1, 1, *logits.shape[2:]), dtype=torch.bool, device=logits.device)
        masks = masks.to(logits.device)
        truth = None
        if reference is not None:
            shape = *logits.shape[:2], *masks.shape[2:]
            truth = self._one_hot(reference.to(logits.device), shape, activation, exclusive=exclusive)
        if not callable(self.metric) and self._metric.inside_roi:
            # In a large scan, scores of all of it would take many times its memory.
            box = around(masks)
            logits = logits if are_near else logits[box]
            logits, masks, truth = logits.contiguous(), masks[box], None if truth is None else truth[box]
        truth = None if truth is None else truth.to(logits.dtype)
        prediction = self._prediction(logits, activation, exclusive)
        if callable(self.metric):
            return user_score(self._metric, prediction, truth, masks=masks)
        return self._named_score(prediction, truth, masks, exclusive=exclusive)

    def _named_score(self, prediction: Tensor, truth: Tensor | None, masks: Tensor, exclusive: bool) -> Tensor:
        """``(N, C, R)``."""
        given = {"exclusive": exclusive, "instances": self._has_instances, "empty_score": self.empty_score}
        return named_score(self._metric, prediction, truth=truth, masks=masks, given=given)

    def _one_hot(self, reference: Tensor, shape: Sequence[int], activation: str, exclusive: bool) -> Tensor:
        """``(N or 1, C, *spatial)`` for logits of this shape, from a reference of checked shape."""
        n, channels = shape[:2]
        if self._has_instances:
            return self._objects(reference, n, channels, n_spatial=len(shape) - 2)
        if self._shared_reading is not None:
            if is_one_hot(self._shared_reading, channels, exclusive):
                reference = self._shared_reading.to(reference.device)
            else:
                refuse_other_classes(self._shared_reading, channels)
        batch = per_class_or_labels(reference, n, channels=channels, n_spatial=len(shape) - 2, exclusive=exclusive)
        truth = one_hot(batch, channels, activation, exclusive=exclusive)
        if channels > 1 and batch.shape[1] == 1:
            self._say_what_is_absent(batch, channels)
        return truth

    def _objects(self, reference: Tensor, n: int, channels: int, n_spatial: int) -> Tensor:
        """Objects ``(N or 1, M, *spatial)`` for a metric that matches them, else for every query the one that it is compared with."""
        found = instances_of(reference, n, n_spatial)
        if callable(self.metric) or "instances" in self._metric.options:
            return found
        is_one_each = reference.ndim == n_spatial + 2 and reference.shape[1] == found.shape[1] == channels
        if found.shape[1] > 1 and not is_one_each:
            raise ValueError(
                f"reference: metric {self.metric!r} compares each of the model's {channels} instances with one object, and there are "
                f'{found.shape[1]}; give the mask of one of them, or metric="best_dice", which finds the instance that matches each'
            )
        return found.expand(-1, channels, *found.shape[2:])

    @property
    def _has_instances(self) -> bool:
        return self._reading is not None and self._reading.adapter.instances

    def _say_what_is_absent(self, labels: Tensor, channels: int) -> None:
        """Say once how a label map was read that does not hold the model's last class."""
        if not self._labels_said:
            self._labels_said.append(True)
            if (said := absent_classes(labels, channels)) is not None:
                logger.log(logging.WARNING if said[0] else logging.INFO, said[1])

    def _shaped(self, scores: Tensor) -> Tensor:
        """Scores ``(N, C, R)`` without the axes that this target does not have."""
        if not self._has_roi_axis:
            scores = scores[..., 0]
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def _prediction(self, logits: Tensor, activation: str, exclusive: bool) -> Tensor:
        return in_domain(self._metric, logits, activation=activation, exclusive=exclusive, threshold=self.threshold)

    def _is_stack(self, roi: Tensor | None, spatial: torch.Size) -> bool:
        """Whether the scores have an RoI axis: a stack was given, shared or per example."""
        if roi is None:
            return False
        lead = roi.ndim - len(spatial)
        return (lead == 1 and self._roi_source == "given") or (lead == 2 and roi.shape[1] > 1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)
