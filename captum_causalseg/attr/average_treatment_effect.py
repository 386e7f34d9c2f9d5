"""The average treatment effect of regions of the input."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from torch import Tensor

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg.attr._estimate import Draws, Intervention, estimate, interventions, paint
from captum_causalseg.attr._problem import Problem, prepare
from captum_causalseg.donors import DonorSource
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["AverageTreatmentEffect"]

Baselines = DonorSource | Tensor | float | tuple[DonorSource | Tensor | float | None, ...] | None


class AverageTreatmentEffect(PerturbationAttribution):
    r"""Which parts of the input made the model segment the RoI the way it did, and how sure are we?

    Every unit ``p`` (a block of the image by default) is replaced by natural donors ``b`` and the score ``M`` of the RoI is
    measured again:

    .. math:: \text{effect}(p) = M(x) - \mathbb{E}_b\, M(\mathrm{do}(x[p] := b))

    **Sign and unit.** In the score's own units (Dice in [0, 1]). Positive: what is there supports the segmentation; negative:
    it harms it. This is the sign of Captum's ``FeatureAblation``; the paper's heat map (PdCR, arXiv 2602.20511) is -100 times it.

    The estimate is unbiased when nothing is screened out. Screening costs rare effects: a block that moves the score in 20 %
    of the draws passes three screening draws unseen with probability ``0.8**3`` = 51 %, and then reports the mean of those three,
    which is 0 (its status says SCREENED, its interval stays wide). ``n_screening_draws=0`` switches it off.

    Args:
        forward_func: any forward function that Captum accepts, with one score or a fixed number of scores per example. A
            :class:`~captum_causalseg.SegmentationTarget` also tells where the RoI is.
        baselines: a default for ``attribute``'s argument of this name. Captum's wrappers (``NoiseTunnel``, ``sensitivity_max``) pass
            on tensors and numbers only: give them donors here.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> model = torch.nn.Conv2d(1, 2, 5, padding=2)
        >>> image = torch.rand(1, 1, 32, 32)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8))
        >>> ate = AverageTreatmentEffect(target)
        >>> attr, stats = ate.attribute(
        ...     image, baselines=PatchBank(torch.rand(20, 1, 32, 32)), block_size=4, target=1, n_draws=10, return_statistics=True
        ... )
        >>> attr.shape, stats.effect.shape
        (torch.Size([1, 1, 32, 32]), torch.Size([1, 64, 2]))
    """

    def __init__(self, forward_func: Callable[..., Any], baselines: Baselines = None) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func: expected a callable, got {type(forward_func).__name__}")
        super().__init__(forward_func)
        self.baselines = baselines

    @overload
    def attribute(self, inputs: Tensor, *args: Any, return_statistics: Literal[False] = ..., **kwargs: Any) -> Tensor: ...
    @overload
    def attribute(
        self, inputs: tuple[Tensor, ...], *args: Any, return_statistics: Literal[False] = ..., **kwargs: Any
    ) -> tuple[Tensor, ...]: ...
    @overload
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], *args: Any, return_statistics: Literal[True], **kwargs: Any
    ) -> tuple[Any, TreatmentEffectStatistics]: ...

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        n_draws: int = 50,
        n_screening_draws: int = 3,
        screening_threshold: float = 0.0002,
        sampling: Literal["uniform"] = "uniform",
        support: None = None,
        exclude: Literal["roi"] | Tensor | None = "roi",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
    ) -> Any:
        """Estimate every unit's average treatment effect.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            baselines: what units are replaced by: a donor source (:class:`~captum_causalseg.PatchBank`, ...), a number, a tensor
                ``(D, C, *spatial)``, a tuple of these (one per input), or ``None``: donors cut from the other positions of the
                same image. **A tensor is a distribution of donors along its first axis, for every example**, as in Captum's
                ``GradientShap``; ``FeatureAblation`` would pair it with the examples. With ``D = 1`` the two agree.
            target: which output to attribute, in all of Captum's forms (int, tuple, tensor, list); the statistics hold every
                output all the same.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` go with their example.
            feature_mask: units as integers that can be broadcast to the input; equal numbers, across inputs too, are one unit.
            block_size: edge of the block units in pixels, one number or one per spatial axis (for inputs that need different
                ones, a tuple of such tuples, one per input); edge remainders are units of their own. By default 8, the paper's, or the image's edge if that is
                shorter. Inputs without spatial axes have every feature as a unit.
            n_draws: interventions per unit, the screening draws included. A bank with no more donors is used up, and the effect
                is then exact.
            n_screening_draws: the first so many draws decide whether the rest is made.
            screening_threshold: a unit goes on if one of them moves the score by at least this, in the score's units.
            sampling: ``"uniform"``: donors drawn without replacement, all equally likely.
            support: reserved for skipping what cannot reach the RoI; ``None``: every unit is intervened on.
            exclude: ``"roi"``: units that touch the RoI are not intervened on; a boolean mask ``(*spatial)`` in its place; or
                ``None``. Excluded units carry 0 in the attribution and NaN in the statistics.
            perturbations_per_eval: interventions per example in one forward pass; halved when memory runs out.
            seed: of the draws. They depend on the seed and the unit's id alone, so that examples, models and repeated calls
                meet the same donors; give one seed per example for independent draws (not under Captum's wrappers, which do not
                repeat it with the examples).
            show_progress: show a progress bar over the interventions.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well.

        Returns:
            Attributions like ``inputs`` (tensor or tuple, same shapes and dtypes), every element carrying its unit's whole effect,
            as in ``FeatureAblation``; with ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.
        """
        problem = self._prepare(
            inputs, baselines, additional_forward_args, feature_mask, block_size, sampling, support, exclude
        )
        draws = Draws(n_draws, n_screening_draws, screening_threshold, perturbations_per_eval, seed)
        statistics = estimate(problem, draws, target, show_progress, f"{self.get_name()} attribution")
        attributions = paint(statistics, problem.tensors, target)
        return (attributions, statistics) if return_statistics else attributions

    def plan(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        n_draws: int = 50,
        sampling: Literal["uniform"] = "uniform",
        support: None = None,
        exclude: Literal["roi"] | Tensor | None = "roi",
        seed: int | Sequence[int] = 0,
    ) -> list[Intervention]:
        """The interventions that :meth:`attribute` makes with these arguments when nothing is screened out.

        No forward is spent. Each says which example, which unit, the how many-th draw, and for every input that the unit
        reaches into the donor image and the place in it.
        """
        problem = self._prepare(
            inputs, baselines, additional_forward_args, feature_mask, block_size, sampling, support, exclude
        )
        return interventions(problem, Draws(n_draws, 0, 0.0, 1, seed))

    def _prepare(
        self,
        inputs: Any,
        baselines: Any,
        additional_forward_args: Any,
        feature_mask: Any,
        block_size: Any,
        sampling: str,
        support: object,
        exclude: Any,
    ) -> Problem:
        if sampling != "uniform":
            raise ValueError(f'sampling: expected "uniform", got {sampling!r}')
        if support is not None:
            raise ValueError(f"support: expected None, got {support!r}")
        baselines = self.baselines if baselines is None else baselines
        return prepare(self.forward_func, inputs, baselines, additional_forward_args, feature_mask, block_size, exclude)
