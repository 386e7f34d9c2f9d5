"""The average treatment effect of parts of a layer's activation."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg import regions
from captum_causalseg._captum import LayerAttribution, PerturbationAttribution, TargetType, log_usage
from captum_causalseg._state import undisturbed
from captum_causalseg.activations import ActivationBank
from captum_causalseg.attr._estimate import Draws, Intervention, estimate, interventions, paint
from captum_causalseg.attr._problem import Call, Problem, check_masks, common_settings, prepare_call
from captum_causalseg.donors import BoundDonors, DonorSource, as_donor_source
from captum_causalseg.interventions.layer import LayerActivation, record
from captum_causalseg.interventions.units import Units
from captum_causalseg.target import SegmentationTarget

__all__ = ["LayerAverageTreatmentEffect"]

LayerBaselines = ActivationBank | DonorSource | Tensor | float | tuple[Any, ...] | None
UnitKind = Literal["channel", "block", "channel_block", "layer"]


class LayerAverageTreatmentEffect(LayerAttribution, PerturbationAttribution):
    r"""Which parts of a layer made the model segment the RoI the way it did, and how sure are we?

    Every unit ``p`` of the layer's activation ``a`` (a channel by default) is replaced by its value ``b`` on a natural donor
    image, the rest of the network runs on, and the score ``M`` is measured again:

    .. math:: \text{effect}(p) = M(x) - \mathbb{E}_b\, M(\mathrm{do}(a[p] := b))

    Sign, unit, screening and statistics are those of :class:`~captum_causalseg.AverageTreatmentEffect`. This is activation
    patching (resample ablation) averaged over donors, with a standard error.

    Where the model allows, everything upstream of the layer is computed once per batch of interventions
    (:func:`torch.func.vmap`) and not once per intervention; other models are run whole, with the same results.

    Args:
        forward_func: any forward function that Captum accepts, of which ``layer`` is a part.
        layer: a module that is called exactly once when ``forward_func`` runs; one that is called more often has no one
            activation to intervene on, and is refused.
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

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        layer_baselines: LayerBaselines = None,
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func: expected a callable, got {type(forward_func).__name__}")
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer: expected a torch.nn.Module, got {type(layer).__name__}")
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self.layer_baselines = layer_baselines

    @log_usage(part_of_slo=True)
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
        n_draws: int = 50,
        n_screening_draws: int = 3,
        screening_threshold: float = 0.0002,
        sampling: Literal["uniform"] = "uniform",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
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
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` go with their example.
            layer_mask: units as integers that can be broadcast to the activation; equal numbers are one unit. Takes the place of
                ``units`` and ``block_size``.
            attribute_to_layer_input: intervene on what the layer takes instead of what it returns.
            units: ``"channel"`` (the activation's second axis), ``"block"`` (of ``block_size`` across all channels),
                ``"channel_block"`` (one channel of one block) or ``"layer"`` (all of it, one unit).
            block_size: edge of blocks in the activation's own pixels, one number or one per spatial axis.
            n_draws, n_screening_draws, screening_threshold, sampling, perturbations_per_eval, seed, show_progress: as in
                :meth:`AverageTreatmentEffect.attribute`.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well, whose ``feature_mask`` and maps are
                those of the activation.

        Returns:
            Attributions like the layer's activation (a tensor or a tuple), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.
        """
        if sampling != "uniform":
            raise ValueError(f'sampling: expected "uniform", got {sampling!r}')
        draws = Draws(n_draws, n_screening_draws, screening_threshold, perturbations_per_eval, seed)
        problem = self._prepare(
            inputs, layer_baselines, additional_forward_args, layer_mask, attribute_to_layer_input, units, block_size
        )
        statistics = estimate(problem, draws, target, show_progress, f"{self.get_name()} attribution")
        attributions = paint(statistics, problem.tensors, target)
        return (attributions, statistics) if return_statistics else attributions

    def plan(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        layer_baselines: LayerBaselines = None,
        additional_forward_args: Any = None,
        layer_mask: Tensor | tuple[Tensor, ...] | None = None,
        attribute_to_layer_input: bool = False,
        units: UnitKind = "channel",
        block_size: int | tuple[int, ...] | None = None,
        n_draws: int = 50,
        seed: int | Sequence[int] = 0,
    ) -> list[Intervention]:
        """The interventions that :meth:`attribute` makes when nothing is screened out; runs the model to see the activation."""
        problem = self._prepare(
            inputs, layer_baselines, additional_forward_args, layer_mask, attribute_to_layer_input, units, block_size
        )
        return interventions(problem, Draws(n_draws, 0, 0.0, 1, seed))

    def _prepare(
        self,
        inputs: Any,
        layer_baselines: Any,
        additional_forward_args: Any,
        layer_mask: Any,
        at_input: bool,
        kind: str,
        block_size: Any,
    ) -> Problem:
        if kind not in ("channel", "block", "channel_block", "layer"):
            raise ValueError(f'units: expected "channel", "block", "channel_block" or "layer", got {kind!r}')
        if block_size is not None and (layer_mask is not None or kind not in ("block", "channel_block")):
            raise ValueError('block_size: it goes with units="block" or "channel_block"')
        if block_size is None and layer_mask is None and kind in ("block", "channel_block"):
            raise ValueError(f"block_size: units={kind!r} needs it, in the activation's own pixels")
        layer_baselines = self.layer_baselines if layer_baselines is None else layer_baselines
        call = prepare_call(self.forward_func, inputs, additional_forward_args)
        device_ids = self.device_ids if self.device_ids is not None else getattr(self.forward_func, "device_ids", None)
        watch: dict[str, Any] = {"at_input": at_input, "device_ids": device_ids}
        with undisturbed(call.forward_func):
            activation, observed = record(call.forward_func, self.layer, _fresh(call.inputs + call.arguments), **watch)
            tensors = tuple(activation.tensors)
            _check_activation(tensors, call.inputs[0].shape[0])
            masks = (
                _default_masks(tensors, kind, block_size)
                if layer_mask is None
                else check_masks("layer_mask", layer_mask, tensors, "activation")
            )
            parts = Units(masks, [tensor.shape for tensor in tensors])
            donors, paired, recorded = self._donors(layer_baselines, call, tensors, watch)
        evaluator = LayerActivation(
            *(call.forward_func, self.layer, call.inputs, call.arguments, activation, observed, parts, donors),
            at_input=at_input,
            paired=paired,
            device_ids=device_ids,
        )
        asked = common_settings(
            layer=type(self.layer).__name__, units=kind if layer_mask is None else "layer_mask", block_size=block_size
        )
        return Problem(
            tensors=tensors,
            is_tuple=activation.is_tuple,
            forward_func=call.forward_func,
            evaluator=evaluator,
            units=parts,
            donors=donors,
            excluded=np.zeros((parts.n_examples, len(parts), 1), dtype=bool),
            spatial=call.spatial,
            settings=asked | common_settings(layer_baselines=layer_baselines),
            paired=paired,
            more_forwards=recorded,
        )

    def _donors(
        self, baselines: Any, call: Call, tensors: tuple[Tensor, ...], watch: dict[str, Any]
    ) -> tuple[tuple[BoundDonors, ...], bool, int]:
        """Donors per tensor, whether they belong together, and how many images were run to record them."""
        if _are_images(baselines, call.inputs):
            baselines = ActivationBank(baselines)
        if isinstance(baselines, ActivationBank):
            others = tuple(a for a in call.arguments if not isinstance(a, Tensor))
            banks, count = baselines.recorded(
                self.layer,
                (watch["at_input"], others, _state_of(call.forward_func)),
                lambda images: record(_model_of(call.forward_func), self.layer, images + others, **watch)[0].tensors,
                tensors,
            )
            return tuple(bank.bind(tensor) for bank, tensor in zip(banks, tensors)), True, count
        given = baselines if isinstance(baselines, tuple) else (baselines,) * len(tensors)
        if len(given) != len(tensors):
            raise ValueError(f"layer_baselines: expected one per tensor of the activation ({len(tensors)}), got {len(given)}")
        sources = []
        for one, tensor in zip(given, tensors):
            if isinstance(one, numbers.Real) and not math.isfinite(one):
                raise ValueError(f"layer_baselines: expected a finite number, got {one}")
            try:
                sources.append(as_donor_source(0.0 if one is None else one, tensor).bind(tensor))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer_{error}" if str(error).startswith("baselines") else str(error)) from None
        return tuple(sources), False, 0


def _default_masks(tensors: tuple[Tensor, ...], kind: str, block_size: Any) -> list[Tensor]:
    """Units of the asked kind, numbered on from tensor to tensor; a whole layer is one unit across all of them."""
    masks: list[Tensor] = []
    first = 0
    for tensor in tensors:
        spatial = tensor.shape[2:]
        ones = (1,) * len(spatial)
        channels = torch.arange(tensor.shape[1]).view(1, -1, *ones)
        if kind == "layer":
            masks.append(torch.zeros((1, 1, *ones), dtype=torch.int64))
            continue
        if kind == "channel":
            mask = channels
        else:
            if not len(spatial):
                raise ValueError(f"block_size: the activation {tuple(tensor.shape)} has no spatial axes")
            mask = regions.grid(spatial, block_size)[None, None]
            if kind == "channel_block":
                mask = mask + channels * (int(mask.max()) + 1)
        masks.append(mask + first)
        first = int(masks[-1].max()) + 1
    return masks


def _check_activation(tensors: tuple[Tensor, ...], n_examples: int) -> None:
    for tensor in tensors:
        if tensor.ndim < 2 or tensor.shape[0] != n_examples:
            raise ValueError(
                f"layer: expected an activation with one entry per example, (N, ...) with N={n_examples}, got {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError("layer: its activation holds NaN or infinite values")


def _are_images(baselines: Any, inputs: tuple[Tensor, ...]) -> bool:
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    return len(given) == len(inputs) and all(
        isinstance(one, Tensor) and one.ndim == image.ndim and one.shape[1:] == image.shape[1:]
        for one, image in zip(given, inputs)
    )


def _model_of(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """What to run on donor images: a target's model, which needs no masks."""
    return forward_func.logits if isinstance(forward_func, SegmentationTarget) else forward_func


def _state_of(forward_func: Callable[..., Any]) -> Any:
    """Changes when the model's parameters or buffers do; always new for a function, whose model cannot be seen."""
    model = forward_func.model if isinstance(forward_func, SegmentationTarget) else forward_func
    if not isinstance(model, nn.Module):
        return object()
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _fresh(values: tuple[Any, ...]) -> list[Any]:
    """Copies, so that a model that works in place leaves the user's tensors alone."""
    return [value.detach().clone() if isinstance(value, Tensor) else value for value in values]
