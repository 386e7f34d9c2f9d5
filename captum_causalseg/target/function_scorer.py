"""The scorer of a plain function: what it runs, and where it looks, cannot be seen."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_causalseg.target.batches import EachAlone
from captum_causalseg.target.scorer_base import Scorer

__all__ = ["FunctionScorer"]


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

    def answered(self, *call: Any) -> tuple[Any, Any]:
        """See :meth:`Scorer.answered`."""
        scores = self(*call)
        return scores, scores

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

    def segmentations(self, *call: Any) -> None:
        """See :meth:`Scorer.segmentations`."""
        return None

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
