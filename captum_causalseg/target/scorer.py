"""Any forward function, wrapped once: the one place that knows what only a segmentation target can do.

What is explained is a plain function of inputs and arguments, or a :class:`~captum_causalseg.SegmentationTarget`, which also knows its model,
its regions of interest and its metric. Everybody else asks a scorer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_causalseg.metrics import METRICS
from captum_causalseg.target.batches import EachAlone
from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.outputs import first_image
from captum_causalseg.target.segmentation_target import SegmentationTarget

__all__ = ["FunctionScorer", "Scorer", "TargetScorer", "as_scorer"]


class Scorer(ABC):
    """What is explained. *A call* is the inputs and all additional arguments, *model inputs* are those without masks.

    Attributes:
        function: a call to scores ``(N, *output_shape)``.
        model: what is run on model inputs.
        gives_logits: whether :meth:`logits` are logits, and not scores already.
        has_own_metric: whether the score is a function of the user's own that is given a prediction and RoIs.
        knows_model: whether ``model`` is all that is run.
        masks: RoI and reference, as far as they do not come with a call.
        seed: of the random numbers that a stochastic model is given.
        n_samples: of how many answers of a stochastic model a score is the mean.
    """

    function: Callable[..., Any]
    model: Callable[..., Any]
    gives_logits: bool
    has_own_metric: bool
    knows_model: bool
    masks: tuple[Tensor, ...]
    seed: int
    n_samples: int

    def __call__(self, *call: Any) -> Any:
        """The scores of a call."""
        return self.function(*call)

    @property
    def device_ids(self) -> Sequence[int] | None:
        """Of a ``DataParallel`` model, as Captum finds them; ``None`` without."""
        # One without CUDA has none and calls its module.
        return getattr(self.function, "device_ids", None) or None

    @property
    @abstractmethod
    def takes_batches(self) -> bool | None:
        """Whether the model takes several images at once; ``None`` where that is not known yet."""

    @property
    @abstractmethod
    def forwards_to_compare(self) -> int:
        """How many images :meth:`is_stochastic` will run to tell."""

    @abstractmethod
    def is_stochastic(self, *call: Any) -> bool:
        """Whether scores are means over differing answers of the model."""

    @abstractmethod
    def model_inputs(self, *call: Any) -> tuple[Any, ...]:
        """A call without the masks in it."""

    @abstractmethod
    def logits(self, *model_inputs: Any) -> Any:
        """What scores are made of: logits ``(N, C, *spatial)``, or the scores themselves."""

    @abstractmethod
    def answer(self, *model_inputs: Any) -> Any:
        """The same from a single run of the model, however many samples there are."""

    @abstractmethod
    def score(self, logits: Any, *call: Any, roi: Tensor | None = None) -> Any:
        """The scores of :meth:`logits`; with ``roi`` ``(N or 1, R, *spatial)`` in other regions, ``(N, C, R)``."""

    @abstractmethod
    def sampled(self, noise: Sequence[int], *call: Any) -> Tensor:
        """The scores of a stochastic model, each example with random numbers of its own."""

    @abstractmethod
    def surrogate(self) -> "Scorer":
        """The differentiable twin.

        Raises:
            ValueError: the metric has none.
        """

    @abstractmethod
    def rois(self, *call: Any) -> Tensor | None:
        """Regions of interest ``(N or 1, R, *spatial)``; ``None`` for the whole image, or where there is none."""

    @abstractmethod
    def axes(self, n_axes: int, spatial: Sequence[int]) -> tuple[str, ...]:
        """Names of the axes of one example's scores."""

    @abstractmethod
    def local_scores(self, *call: Any) -> LocalScores | None:
        """What scores logits from the surroundings of the RoIs alone; ``None`` if that is not possible (yet)."""

    @abstractmethod
    def why_not_local(self, *call: Any) -> str:
        """Why the score may depend on more than what lies around regions of interest."""

    @abstractmethod
    def how_to_repeat(self) -> str:
        """What a user can do about a model that is random."""

    @abstractmethod
    def metric_settings(self) -> dict[str, Any]:
        """The name of the metric, and that of its differentiable twin where it is another one."""

    @abstractmethod
    def constructor_arguments(self) -> dict[str, Any] | None:
        """What a target was made of; ``None`` of a plain function."""

    @abstractmethod
    def with_masks_as_arguments(
        self, n_examples: int, n_spatial: int, arguments: tuple[Any, ...]
    ) -> tuple["Scorer", tuple[Any, ...]]:
        """Masks per example as call arguments, and all the arguments."""

    @abstractmethod
    def with_masks_of_calls(self, metric: str) -> "Scorer":
        """The same model scored by this metric, in the RoI and against the reference that each call brings along, in that order."""

    @abstractmethod
    def with_scoring(self, metric: str, activation: Any, threshold: float, empty_score: float) -> "Scorer":
        """Scored in another way; a plain function scores as it does."""

    @abstractmethod
    def with_model(self, model: Callable[..., Any]) -> "Scorer":
        """Another form of the same model."""

    @abstractmethod
    def each_alone(self) -> "Scorer":
        """Every image of a batch goes through the model alone."""

    @abstractmethod
    def predict(self, *model_inputs: Any) -> Tensor:
        """The hard segmentation, boolean ``(N, C, *spatial)``."""

    @abstractmethod
    def settle(self, *call: Any) -> int:
        """Have all that is read from the model's first output read now, from this call; how many images that took."""

    def score_of_answer(self, *call: Any) -> Any:
        """The scores of :meth:`answer`."""
        return self.score(self.answer(*self.model_inputs(*call)), *call)


def as_scorer(forward_func: Callable[..., Any]) -> Scorer:
    """The scorer of a forward function; a scorer as it is."""
    if isinstance(forward_func, Scorer):
        return forward_func
    return TargetScorer(forward_func) if isinstance(forward_func, SegmentationTarget) else FunctionScorer(forward_func)


class FunctionScorer(Scorer):
    """A function that returns scores; what it runs, and where it looks, cannot be seen.

    Args:
        function: inputs and arguments to scores.
    """

    gives_logits = has_own_metric = knows_model = False
    masks: tuple[Tensor, ...] = ()
    seed, n_samples, forwards_to_compare = 0, 1, 0
    takes_batches = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = self.model = function

    def is_stochastic(self, *call: Any) -> bool:
        """See :meth:`Scorer.is_stochastic`: of a plain function, that is not asked."""
        return False

    def model_inputs(self, *call: Any) -> tuple[Any, ...]:
        """See :meth:`Scorer.model_inputs`."""
        return call

    def logits(self, *model_inputs: Any) -> Any:
        """See :meth:`Scorer.logits`."""
        return self.function(*model_inputs)

    def answer(self, *model_inputs: Any) -> Any:
        """See :meth:`Scorer.answer`."""
        return self.function(*model_inputs)

    def score(self, logits: Any, *call: Any, roi: Tensor | None = None) -> Any:
        """See :meth:`Scorer.score`."""
        if roi is not None:
            raise self._no_target("scores of other regions")
        return logits

    def sampled(self, noise: Sequence[int], *call: Any) -> Tensor:
        """See :meth:`Scorer.sampled`."""
        raise self._no_target("scores with random numbers of one's choice")

    def surrogate(self) -> "FunctionScorer":
        """See :meth:`Scorer.surrogate`."""
        return self

    def rois(self, *call: Any) -> None:
        """See :meth:`Scorer.rois`."""
        return

    def axes(self, n_axes: int, spatial: Sequence[int]) -> tuple[str, ...]:
        """See :meth:`Scorer.axes`."""
        return ("output",) if n_axes == 1 else tuple(f"output_{axis}" for axis in range(n_axes))

    def local_scores(self, *call: Any) -> None:
        """See :meth:`Scorer.local_scores`."""
        return

    def why_not_local(self, *call: Any) -> str:
        """See :meth:`Scorer.why_not_local`."""
        return "where a plain function looks is not known; a SegmentationTarget has an RoI"

    def how_to_repeat(self) -> str:
        """See :meth:`Scorer.how_to_repeat`."""
        return (
            "Switch the randomness off (evaluation mode, no dropout), or wrap the model in SegmentationTarget(..., n_samples=8), "
            "which gives observed and intervened images the same random numbers"
        )

    def metric_settings(self) -> dict[str, Any]:
        """See :meth:`Scorer.metric_settings`."""
        return {}

    def constructor_arguments(self) -> None:
        """See :meth:`Scorer.constructor_arguments`."""
        return

    def with_masks_as_arguments(
        self, n_examples: int, n_spatial: int, arguments: tuple[Any, ...]
    ) -> tuple[Scorer, tuple[Any, ...]]:
        """See :meth:`Scorer.with_masks_as_arguments`."""
        return self, arguments

    def with_masks_of_calls(self, metric: str) -> Scorer:
        """See :meth:`Scorer.with_masks_of_calls`."""
        raise self._no_target("an RoI and a reference")

    def with_scoring(self, metric: str, activation: Any, threshold: float, empty_score: float) -> "FunctionScorer":
        """See :meth:`Scorer.with_scoring`."""
        return self

    def with_model(self, model: Callable[..., Any]) -> "FunctionScorer":
        """See :meth:`Scorer.with_model`."""
        return FunctionScorer(model)

    def each_alone(self) -> "FunctionScorer":
        """See :meth:`Scorer.each_alone`."""
        return _AloneScorer(self.model)

    def predict(self, *model_inputs: Any) -> Tensor:
        """See :meth:`Scorer.predict`."""
        raise self._no_target("a segmentation")

    def settle(self, *call: Any) -> int:
        """See :meth:`Scorer.settle`."""
        return 0

    @staticmethod
    def _no_target(what: str) -> TypeError:
        return TypeError(f"forward_func: a plain function has no such thing as {what}; expected a SegmentationTarget")


class _AloneScorer(FunctionScorer):
    """A function that is given every example alone."""

    takes_batches = False

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)
        self.function = EachAlone(model)

    def logits(self, *model_inputs: Any) -> Any:
        """See :meth:`Scorer.logits`."""
        return self.function(*model_inputs)

    def with_model(self, model: Callable[..., Any]) -> "FunctionScorer":
        """See :meth:`Scorer.with_model`."""
        return _AloneScorer(model)


class TargetScorer(Scorer):
    """A segmentation target.

    Args:
        target: it.
    """

    gives_logits = knows_model = True

    def __init__(self, target: SegmentationTarget) -> None:
        self._target = self.function = target
        self.model = target.model
        self.has_own_metric = callable(target.metric)
        self.masks = tuple(mask for mask in (target.roi, target.reference) if mask is not None)
        self.seed, self.n_samples = target.seed, target.n_samples or 1

    @property
    def takes_batches(self) -> bool | None:
        """See :attr:`Scorer.takes_batches`."""
        return self._target.takes_batches

    @property
    def forwards_to_compare(self) -> int:
        """See :attr:`Scorer.forwards_to_compare`."""
        return 0 if self._target.answers_compared else 2

    def is_stochastic(self, *call: Any) -> bool:
        """See :meth:`Scorer.is_stochastic`."""
        return self._target.varies(*call)

    def model_inputs(self, *call: Any) -> tuple[Any, ...]:
        """See :meth:`Scorer.model_inputs`."""
        return self._target.model_inputs(*call)

    def logits(self, *model_inputs: Any) -> Tensor:
        """See :meth:`Scorer.logits`."""
        return self._target.logits(*model_inputs)

    def answer(self, *model_inputs: Any) -> Tensor:
        """See :meth:`Scorer.answer`."""
        return self._target.answer(*model_inputs)

    def score(self, logits: Any, *call: Any, roi: Tensor | None = None) -> Tensor:
        """See :meth:`Scorer.score`."""
        scores: Tensor = self._target.score(logits, *call, roi=roi)
        return scores

    def sampled(self, noise: Sequence[int], *call: Any) -> Tensor:
        """See :meth:`Scorer.sampled`."""
        scores: Tensor = self._target.sampled(noise, *call)
        return scores

    def surrogate(self) -> "TargetScorer":
        """See :meth:`Scorer.surrogate`."""
        return TargetScorer(self._target.surrogate())

    def rois(self, *call: Any) -> Tensor | None:
        """See :meth:`Scorer.rois`."""
        return self._target.roi_masks(call)

    def axes(self, n_axes: int, spatial: Sequence[int]) -> tuple[str, ...]:
        """See :meth:`Scorer.axes`."""
        return self._target.output_axes(n_axes, spatial)

    def local_scores(self, *call: Any) -> LocalScores | None:
        """See :meth:`Scorer.local_scores`."""
        return self._target.local_scores(*call)

    def why_not_local(self, *call: Any) -> str:
        """See :meth:`Scorer.why_not_local`."""
        if self.rois(*call) is None:
            return "without an RoI nothing lies outside it"
        if self.is_stochastic(*call):
            return "the model is stochastic, and a part of the image would get other noise"
        return "the metric may look beyond the RoI"

    def how_to_repeat(self) -> str:
        """See :meth:`Scorer.how_to_repeat`."""
        if self._target.n_samples is None:
            return (
                "If it is random on purpose, give SegmentationTarget(..., n_samples=8), by which observed and intervened images meet "
                "the same random numbers; if not, switch the randomness off (evaluation mode, no dropout)"
            )
        return "n_samples= cannot help: the random numbers do not come from the global generators of torch, numpy or random, which it seeds"

    def metric_settings(self) -> dict[str, Any]:
        """See :meth:`Scorer.metric_settings`."""
        metric = self._target.metric
        if not isinstance(metric, str):
            return {"metric": getattr(metric, "__name__", type(metric).__name__)}
        smooth = METRICS[metric].surrogate
        return {"metric": metric, "smooth_metric": None if smooth == metric else smooth}

    def constructor_arguments(self) -> dict[str, Any]:
        """See :meth:`Scorer.constructor_arguments`."""
        return self._target.constructor_arguments()

    def with_masks_as_arguments(
        self, n_examples: int, n_spatial: int, arguments: tuple[Any, ...]
    ) -> tuple[Scorer, tuple[Any, ...]]:
        """See :meth:`Scorer.with_masks_as_arguments`."""
        twin, arguments = self._target.with_masks_as_arguments(n_examples, n_spatial, arguments)
        return (self if twin is self._target else TargetScorer(twin)), arguments

    def with_masks_of_calls(self, metric: str) -> "TargetScorer":
        """See :meth:`Scorer.with_masks_of_calls`."""
        return TargetScorer(self._target.with_masks_of_calls(metric))

    def with_scoring(self, metric: str, activation: Any, threshold: float, empty_score: float) -> "TargetScorer":
        """See :meth:`Scorer.with_scoring`."""
        given: Any = {"metric": metric, "activation": activation, "threshold": threshold, "empty_score": empty_score}
        return TargetScorer(self._target.with_scoring(**given))

    def with_model(self, model: Callable[..., Any]) -> "TargetScorer":
        """See :meth:`Scorer.with_model`."""
        return TargetScorer(self._target.with_model(model))

    def each_alone(self) -> "TargetScorer":
        """See :meth:`Scorer.each_alone`."""
        return TargetScorer(self._target.with_each_alone())

    def predict(self, *model_inputs: Any) -> Tensor:
        """See :meth:`Scorer.predict`."""
        return self._target.predict(*model_inputs)

    def settle(self, *call: Any) -> int:
        """See :meth:`Scorer.settle`."""
        if self._target.activation != "auto":
            return 0
        inputs = self._target.model_inputs(*call)
        self._target.predict(*inputs)
        return len(first_image(inputs))
