"""The average treatment effect of parts of a layer's activation."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from captum_causalseg._captum import LayerAttribution, PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import NONE, checked, instance
from captum_causalseg.attr.controls import CONTROLS, Controls
from captum_causalseg.attr.effort import EFFORT, LAYER_DRAWS, OPEN_DRAWS, Effort, draws_of
from captum_causalseg.attr.estimate import PlannedInterventions, answer, estimate, interventions
from captum_causalseg.attr.layer import LAYER, LayerBaselines, Layouts
from captum_causalseg.attr.options import LayerUnits, Options
from captum_causalseg.attr.parts import InParts
from captum_causalseg.engine.sampling import SamplingScheme
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["LayerAverageTreatmentEffect", "LayerBaselines"]


class LayerAverageTreatmentEffect(InParts, LayerAttribution, PerturbationAttribution):
    r"""Which parts of a layer made the model segment the RoI the way it did, and how sure are we?

    Every unit ``p`` of the layer's activation ``a`` (a channel by default) is replaced by its value ``b`` on a natural donor
    image, the rest of the network runs on, and the score ``M`` is measured again:

    .. math:: \text{effect}(p) = M(x) - \mathbb{E}_b\, M(\mathrm{do}(a[p] := b))

    Sign, unit, screening and statistics are those of :class:`~captum_causalseg.AverageTreatmentEffect`. This is activation
    patching (resample ablation) averaged over donors, with a standard error.

    Modules whose output does not depend on the layer (those upstream of it, and those beside it) are not run again for every intervention, where
    that saves more than it costs and the model allows it; the results are the same.

    Args:
        forward_func: any forward function that Captum accepts, of which ``layer`` is a part.
        layer: a module that is called exactly once when ``forward_func`` runs; one that is called more often has no one
            activation to intervene on, and is refused.
            Inside the network of a :class:`~captum_causalseg.WindowedModel` it is called once per window, and replaced in every window that touches
            the RoI; activations, attributions and blocks are then those of a window.
        device_ids: devices of a ``DataParallel`` model, if ``forward_func`` has no ``device_ids`` of its own.
        layer_baselines: a default for ``attribute``'s argument of this name.

    Example:
        >>> import torch
        >>> from captum_causalseg import LayerAverageTreatmentEffect, SegmentationTarget, regions
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> image = torch.rand(1, 1, 16, 16)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=8))
        >>> layer = LayerAverageTreatmentEffect(target, model[1])
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
    @checked(EFFORT, LAYER, CONTROLS, n_draws=OPEN_DRAWS)
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
        n_draws: int | None = None,
        n_screening_draws: int = 3,
        screening_threshold: float = 0.0002,
        sampling: Literal["stratified", "uniform"] | SamplingScheme = "stratified",
        support: Literal["auto", "always"] | None = "auto",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
        precision: float | None = None,
        decide: float | None = None,
        alpha: float = 0.05,
        layout: Layouts = "auto",
        controls: Controls = None,
        allocation: Literal["needed", "equal"] = "needed",
    ) -> Any:
        """Estimate the average treatment effect of every unit of the layer.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            layer_baselines: what units are replaced by.

                - donor images ``(D, C, *spatial)`` of the input's shape (several inputs: a tuple of such), or an
                  :class:`~captum_causalseg.ActivationBank` of them, which is recorded once and serves many calls;
                - a tensor ``(D, ...)`` of the activation's shape: a distribution of activations along its first axis;
                - a number, or another donor source over the activation;
                - ``None``: 0, as in Captum.

                A tensor whose shape fits both the input and the activation is taken as donor images.
            target: which output to attribute, in all of Captum's forms.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` have one entry per example.
            layer_mask: units as integers that can be broadcast to the activation; equal numbers are one unit. Takes the place of
                ``units`` and ``block_size``.
            attribute_to_layer_input: intervene on what the layer takes instead of what it returns.
            units: what the activation falls into.

                - ``"channel"``: one channel, everywhere;
                - ``"token"``: one token of a transformer, all its channels; special tokens (a class token) are units of their own;
                - ``"head"``: the channels of one attention head. Heads lie side by side in what the output projection of an attention
                  module takes (``o_proj``, ``out_proj``, ``proj``: give that with ``attribute_to_layer_input=True``), and in queries,
                  keys and values. What the attention module returns is behind the projection, which has mixed them;
                - ``"block"``: ``block_size`` positions of the spatial grid across all channels; of tokens, of the grid that they lie on,
                  special tokens one by one behind the blocks;
                - ``"channel_block"``: one channel of one block;
                - ``"layer"``: all of it, one unit.
            block_size: edge of blocks in the activation's own pixels, one number or one per spatial axis.
            n_draws, n_screening_draws, screening_threshold, sampling, allocation, perturbations_per_eval, seed, show_progress: as in
                :meth:`AverageTreatmentEffect.attribute`. ``n_draws`` is 32 by default. Of up to twice as many donors all are used (of a layer
                that is one unit, of up to 64 at least), and the effect is exact (unless ``precision`` or ``decide`` says when to stop).
            precision, decide, alpha: likewise.
            layout: what the activation's axes mean: ``"NC*"`` (channels first), ``"N*C"`` (channels last, behind the spatial axes),
                ``"NLC"`` (a row of tokens), or a :class:`~captum_causalseg.Layout`, which also says which grid tokens lie on and how
                many heads there are; a tuple of these for an activation of several tensors. ``"auto"`` finds out from what the model
                does with it before and after (convolutions, normalization, linear layers, attention), in one more forward pass.
            support: ``"always"``: parts of the activation that cannot reach the RoI are left out, and the model is run on a window of
                the image where that gives the same. Finding that out takes forwards: ``"auto"`` does it where they are at most as many as
                it can save on this call (both are known before; ``settings["disabled"]`` says what was decided). ``None``: never.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well, whose ``feature_mask`` and maps are
                those of the activation.
            controls: as in :meth:`AverageTreatmentEffect.attribute`, for units that are blocks of a grid (also by ``layer_mask``): the block's own
                activation, shifted by one and by two places, and the donors at its own mean per channel. Channels, heads, tokens and whole
                layers have nothing beside them: refused.

        Returns:
            Attributions like the layer's activation (a tensor or a tuple), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected. Where
                ``layout="auto"`` cannot tell what the axes mean, it asks for ``layout``.

        Example:
            >>> import torch
            >>> from captum_causalseg import LayerAverageTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.Flatten(), torch.nn.Linear(128, 1))
            >>> _ = torch.nn.init.ones_(model[2].weight)  # the score is the sum of the activation
            >>> image = torch.rand(1, 1, 8, 8)
            >>> attr = LayerAverageTreatmentEffect(model, model[0]).attribute(image, layer_baselines=0.0, target=0)
            >>> torch.allclose(attr[0, :, 0, 0], model[0](image)[0].sum((1, 2)), atol=1e-5)  # what each adds
            True
        """
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
            effort=Effort(
                n_draws=draws_of(n_draws, LAYER_DRAWS, precision, decide),
                n_screening_draws=n_screening_draws,
                screening_threshold=screening_threshold,
                seed=seed,
                sampling=sampling,
                allocation=allocation,
                support=support,
                precision=precision,
                decide=decide,
                alpha=alpha,
            ),
            execution=Execution(perturbations_per_eval=perturbations_per_eval, part=self.part),
            show_progress=show_progress,
            return_statistics=return_statistics,
            controls=controls,
        )
        return answer(options, *estimate(options))

    @checked(EFFORT, LAYER, n_draws=OPEN_DRAWS, statistics=NONE | instance(TreatmentEffectStatistics))
    def plan(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        layer_baselines: LayerBaselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        layer_mask: Tensor | tuple[Tensor, ...] | None = None,
        attribute_to_layer_input: bool = False,
        units: UnitKind = "channel",
        block_size: int | tuple[int, ...] | None = None,
        n_draws: int | None = None,
        n_screening_draws: int = 3,
        sampling: Literal["stratified", "uniform"] | SamplingScheme = "stratified",
        support: Literal["auto", "always"] | None = "auto",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        layout: Layouts = "auto",
        allocation: Literal["needed", "equal"] = "needed",
        statistics: TreatmentEffectStatistics | None = None,
    ) -> PlannedInterventions:
        """The interventions that :meth:`attribute` makes when nothing is screened out; runs the model to see the activation.

        From 12 draws on these are half of them, and ``unassigned`` says how many are missing, unless ``allocation`` or ``statistics`` says otherwise: see
        :meth:`AverageTreatmentEffect.plan`.

        Example:
            >>> import torch
            >>> from captum_causalseg import LayerAverageTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.Flatten(), torch.nn.Linear(128, 1))
            >>> _ = torch.nn.init.ones_(model[2].weight)  # the score is the sum of the activation
            >>> layer = LayerAverageTreatmentEffect(model, model[0])
            >>> plan = layer.plan(torch.rand(1, 1, 8, 8), torch.rand(9, 1, 8, 8), target=0, n_draws=3, sampling="uniform")
            >>> [(one.unit, one.draw) for one in plan]
            [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        """
        return interventions(
            Options(
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
                effort=Effort(
                    n_draws=draws_of(n_draws, LAYER_DRAWS),
                    n_screening_draws=n_screening_draws,
                    seed=seed,
                    sampling=sampling,
                    allocation=allocation,
                    support=support,
                ),
                execution=Execution(perturbations_per_eval=perturbations_per_eval, part=self.part),
            ),
            statistics,
        )
