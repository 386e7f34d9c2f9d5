"""What is asked of a scorer, whatever it scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["Scorer"]


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
    def windowed_model(self) -> WindowedModel | None:
        """The model, where it is a sliding window whose output is scored as it is."""
        return None

    @property
    @abstractmethod
    def takes_batches(self) -> bool | None:
        """Whether the model takes several images at once; ``None`` where that is not known yet."""

    @property
    def why_one_by_one(self) -> str | None:
        """Why images are run one by one, where that was found out; ``None`` else."""
        return None

    @property
    @abstractmethod
    def forwards_to_compare(self) -> int:
        """How many images :meth:`is_stochastic` will run to tell."""

    @abstractmethod
    def is_stochastic(self, *call: Any) -> bool:
        """Whether the model is stochastic: scores are means over several answers of it."""

    @abstractmethod
    def model_inputs(self, *call: Any) -> tuple[Any, ...]:
        """A call without the masks in it."""

    @abstractmethod
    def logits(self, *model_inputs: Any) -> Any:
        """What scores are made of: logits ``(N, C, *spatial)``, or the scores themselves."""

    @abstractmethod
    def answered(self, *call: Any) -> tuple[Any, Any]:
        """The :meth:`logits` of a call and their scores, of a model that is not stochastic."""

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
    def segmentations(self, *call: Any) -> tuple[Tensor, Tensor | None] | None:
        """Prediction and reference of a call, boolean ``(N, C, *spatial)``; ``None`` of a plain function, which has neither."""

    @abstractmethod
    def settle(self, *call: Any) -> int:
        """Have all that is read from the model's first output read now, from this call; how many images that took."""

    def score_of_answer(self, *call: Any) -> Any:
        """The scores of :meth:`answer`."""
        return self.score(self.answer(*self.model_inputs(*call)), *call)
