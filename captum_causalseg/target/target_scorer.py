"""The scorer of a segmentation target, which knows its model, its regions of interest and its metric."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_causalseg.metrics import METRICS
from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.outputs import first_image
from captum_causalseg.target.scorer_base import Scorer
from captum_causalseg.target.segmentation_target import SegmentationTarget
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["TargetScorer"]


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
    def windowed_model(self) -> WindowedModel | None:
        """See :attr:`Scorer.windowed_model`."""
        model = self._target.model
        return model if isinstance(model, WindowedModel) and self._target.output is None else None

    @property
    def takes_batches(self) -> bool | None:
        """See :attr:`Scorer.takes_batches`."""
        return self._target.takes_batches

    @property
    def why_one_by_one(self) -> str | None:
        """See :attr:`Scorer.why_one_by_one`."""
        return self._target.why_one_by_one

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

    def answered(self, *call: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`Scorer.answered`."""
        return self._target.logits_and_scores(*call)

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

    def segmentations(self, *call: Any) -> tuple[Tensor, Tensor | None] | None:
        """See :meth:`Scorer.segmentations`."""
        return self._target.segmentations(*call)

    def settle(self, *call: Any) -> int:
        """See :meth:`Scorer.settle`."""
        if self._target.activation != "auto":
            return 0
        inputs = self._target.model_inputs(*call)
        self._target.predict(*inputs)
        return len(first_image(inputs))
