"""The effect of parts of a layer's activation together with others."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from captum_causalseg._captum import LayerAttribution, PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import checked
from captum_causalseg.attr.effort import LAYER_DRAWS, Effort, draws_of
from captum_causalseg.attr.estimate import answer, estimate
from captum_causalseg.attr.joint import JOINT, JOINT_DRAWS, effort_in
from captum_causalseg.attr.layer import LAYER, LayerBaselines, Layouts
from captum_causalseg.attr.options import LayerUnits, Options
from captum_causalseg.engine.contexts import ContextArgument, context_of
from captum_causalseg.engine.sampling import SamplingScheme
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.layout import UnitKind

__all__ = ["LayerJointTreatmentEffect"]


class LayerJointTreatmentEffect(LayerAttribution, PerturbationAttribution):
    r"""How much of the RoI's score is owed to each part of a layer, where parts stand in for each other or need each other?

    Networks are redundant inside: a channel that is replaced alone is often made up for by others. Here a unit ``p`` of the layer's activation ``a`` is replaced by its
    value on a donor image while other units ``S`` have been replaced as well, and its effect is averaged over these contexts and over donors:

    .. math:: \text{effect}(p) = \mathbb{E}_{S, b}\, [M(\mathrm{do}(a[S] := b)) - M(\mathrm{do}(a[S] := b, a[p] := b))]

    Each unit's donor is drawn independently, so that what all units hold together is not the activation on any one image. Contexts, sign,
    cost and sampling are those of :class:`~captum_causalseg.JointTreatmentEffect`, units and donors those of
    :class:`~captum_causalseg.LayerAverageTreatmentEffect`.

    Args:
        forward_func: any forward function that Captum accepts, of which ``layer`` is a part.
        layer: a module that is called exactly once when ``forward_func`` runs.
        device_ids: devices of a ``DataParallel`` model, if ``forward_func`` has no ``device_ids`` of its own.
        layer_baselines: a default for ``attribute``'s argument of this name.

    Example:
        >>> import torch
        >>> from captum_causalseg import LayerJointTreatmentEffect, SegmentationTarget, regions
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> image = torch.rand(1, 1, 16, 16)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=8))
        >>> layer = LayerJointTreatmentEffect(target, model[1])
        >>> attr, stats = layer.attribute(image, layer_baselines=torch.rand(30, 1, 16, 16), target=1, return_statistics=True)
        >>> attr.shape, stats.effect.shape
        (torch.Size([1, 4, 16, 16]), torch.Size([1, 4, 2]))
    """

    @checked(LAYER)
    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        layer_baselines: LayerBaselines = None,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids=device_ids)
        self.layer_baselines = layer_baselines

    @log_usage(part_of_slo=True)
    @checked(JOINT, LAYER)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        layer_baselines: LayerBaselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        layer_mask: Tensor | tuple[Tensor, ...] | None = None,
        attribute_to_layer_input: bool = False,
        units: UnitKind = "channel",
        block_size: int | tuple[int, ...] | None = None,
        context: ContextArgument = "shapley",
        n_draws: int | None = None,
        n_screening_draws: int | None = None,
        screening_threshold: float | None = None,
        sampling: Literal["stratified", "uniform"] | SamplingScheme | None = None,
        support: Literal["auto", "always"] | None = "auto",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
        precision: float | None = None,
        decide: float | None = None,
        alpha: float = 0.05,
        layout: Layouts = "auto",
        allocation: Literal["needed", "equal"] | None = None,
    ) -> Any:
        """Estimate the effect of every unit of the layer, averaged over contexts.

        Args:
            inputs, layer_baselines, target, additional_forward_args, layer_mask: as in :meth:`LayerAverageTreatmentEffect.attribute`.
            attribute_to_layer_input, units, block_size, layout, support, return_statistics: likewise.
            context, n_draws, precision, decide, alpha: as in :meth:`JointTreatmentEffect.attribute`.
            n_screening_draws, screening_threshold, sampling, allocation, perturbations_per_eval, seed, show_progress: likewise.

        Returns:
            Attributions like the layer's activation (a tensor or a tuple), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

        Example:
            >>> import torch
            >>> from captum_causalseg import LayerAverageTreatmentEffect, LayerJointTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity(), torch.nn.MaxPool1d(2))  # the larger of two
            >>> image = torch.ones(1, 1, 1, 2)
            >>> LayerAverageTreatmentEffect(model, model[1]).attribute(image, 0.0, target=0).tolist()
            [[0.0, 0.0]]
            >>> LayerJointTreatmentEffect(model, model[1]).attribute(image, 0.0, target=0).tolist()
            [[0.5, 0.5]]
        """
        drawn_in = context_of(context)
        options = Options(
            name=self.get_name(),
            forward_func=self.forward_func,
            inputs=inputs,
            baselines=self.layer_baselines if layer_baselines is None else layer_baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=LayerUnits(
                layer=self.layer,
                device_ids=self.device_ids,
                at_input=attribute_to_layer_input,
                layer_mask=layer_mask,
                kind=units,
                block_size=block_size,
                layout=layout,
            ),
            context=drawn_in,
            effort=effort_in(
                drawn_in,
                Effort(
                    n_draws=draws_of(n_draws, LAYER_DRAWS if drawn_in.alone else JOINT_DRAWS, precision, decide),
                    seed=seed,
                    support=support,
                    precision=precision,
                    decide=decide,
                    alpha=alpha,
                ),
                n_screening_draws=n_screening_draws,
                screening_threshold=screening_threshold,
                sampling=sampling,
                allocation=allocation,
            ),
            execution=Execution(perturbations_per_eval=perturbations_per_eval),
            show_progress=show_progress,
            return_statistics=return_statistics,
        )
        return answer(options, *estimate(options))
