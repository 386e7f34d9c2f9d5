"""The arguments of an attribution to a layer, checked and tied together."""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg import regions
from captum_causalseg._checks import BOOLEAN, FUNCTION, NONE, instance, integer, one_of, renamed, sequence
from captum_causalseg._state import undisturbed
from captum_causalseg.activations import ActivationBank
from captum_causalseg.attr._problem import Call, Problem, check_masks, common_settings, prepare_call
from captum_causalseg.donors import BoundDonors, DonorSource, as_donor_source
from captum_causalseg.interventions.gradient import differentiable, scores_of_activation
from captum_causalseg.interventions.layer import LayerActivation, record
from captum_causalseg.interventions.sampled_layer import SampledLayerActivation, record_one_by_one, scores_of_one_answer
from captum_causalseg.interventions.units import Units
from captum_causalseg.target import SegmentationTarget

__all__ = ["LAYER", "LayerBaselines", "UnitKind", "prepare_layer"]

LayerBaselines = ActivationBank | DonorSource | Tensor | float | tuple[Any, ...] | None
UnitKind = Literal["channel", "block", "channel_block", "layer"]

LAYER = {
    "forward_func": FUNCTION,
    "layer": instance(nn.Module, expected="a torch.nn.Module"),
    "device_ids": NONE | sequence(integer(0)),
    "attribute_to_layer_input": BOOLEAN,
    "units": one_of("channel", "block", "channel_block", "layer"),
    "block_size": NONE | integer(1) | sequence(integer(1), expected="one per spatial axis"),
}
"""What the arguments that say which layer is meant, and which parts of it, have to be."""


def prepare_layer(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    device_ids: Sequence[int] | None,
    inputs: Any,
    layer_baselines: Any,
    additional_forward_args: Any,
    layer_mask: Any,
    at_input: bool,
    kind: str,
    block_size: Any,
) -> Problem:
    """Check every argument, run the model once to see the activation, and tie donors to it."""
    if block_size is not None and (layer_mask is not None or kind not in ("block", "channel_block")):
        raise ValueError('block_size: it goes with units="block" or "channel_block"')
    if block_size is None and layer_mask is None and kind in ("block", "channel_block"):
        raise ValueError(f"block_size: units={kind!r} needs it, in the activation's own pixels")
    call = prepare_call(forward_func, inputs, additional_forward_args)
    device_ids = device_ids if device_ids is not None else getattr(forward_func, "device_ids", None)
    device_ids = device_ids or None  # a DataParallel without CUDA has none and calls its module
    watch: dict[str, Any] = {"at_input": at_input, "device_ids": device_ids}
    function = call.forward_func
    with undisturbed(function):
        everything = _fresh(call.inputs + call.arguments)
        asked = isinstance(function, SegmentationTarget) and function.n_samples is not None and function._varies is None
        sampling = function if isinstance(function, SegmentationTarget) and function.varies(*everything) else None
        if sampling is None:
            activation, observed = record(function, layer, everything, **watch)
        else:
            observed = function(*everything)
            activation = record_one_by_one(sampling, layer, sampling.model_inputs(*everything), **watch)
        tensors = tuple(activation.tensors)
        _check_activation(tensors, call.inputs[0].shape[0])
        masks = (
            _default_masks(tensors, kind, block_size)
            if layer_mask is None
            else check_masks("layer_mask", layer_mask, tensors, "activation")
        )
        parts = Units(masks, [tensor.shape for tensor in tensors])
        found = _donors(layer_baselines, layer, call, tensors, watch, sampling is not None)
    given = layer, call.inputs, call.arguments, activation, observed, parts, found.bound
    kind_of_donors: dict[str, Any] = {"at_input": at_input, "paired": found.paired}
    if sampling is None:
        evaluator = LayerActivation(function, *given, device_ids=device_ids, **kind_of_donors)
    else:
        evaluator = SampledLayerActivation(sampling, *given, found.own, **kind_of_donors)
    if asked:
        evaluator.spent["answers compared"] += 2
    described = common_settings(
        layer=type(layer).__name__, units=kind if layer_mask is None else "layer_mask", block_size=block_size
    )
    return Problem(
        tensors=tensors,
        is_tuple=activation.is_tuple,
        forward_func=call.forward_func,
        evaluator=evaluator,
        scores=scores_of_activation(function, layer, call.inputs, call.arguments, **watch),
        smooth_scores=lambda: scores_of_activation(
            differentiable(function) if sampling is None else scores_of_one_answer(sampling.surrogate()),
            *(layer, call.inputs, call.arguments),
            **watch,
        ),
        units=parts,
        donors=found.bound,
        excluded=np.zeros((parts.n_examples, len(parts), 1), dtype=bool),
        rois=call.rois,
        spatial=call.spatial,
        settings=described | common_settings(layer_baselines=layer_baselines),
        paired=found.paired,
        more_forwards=found.n_images,
    )


@dataclass(frozen=True)
class _Donors:
    """What units of a layer are replaced by.

    Args:
        bound: donors per tensor of the activation.
        own: their sources, where they are made from the activation itself.
        paired: whether donors of all tensors belong together.
        n_images: how many images were run to record them.
    """

    bound: tuple[BoundDonors, ...]
    own: tuple[DonorSource | None, ...]
    paired: bool
    n_images: int


def _donors(
    baselines: Any, layer: nn.Module, call: Call, tensors: tuple[Tensor, ...], watch: dict[str, Any], sampling: bool
) -> _Donors:
    if _are_images(baselines, call.inputs):
        baselines = ActivationBank(baselines)
    if isinstance(baselines, ActivationBank):
        others = _shared_arguments(call)

        def run(images: tuple[Tensor, ...]) -> list[Tensor]:
            fitting = tuple(image.to(like) for image, like in zip(images, call.inputs))
            return record(_model_of(call.forward_func, sampling), layer, fitting + others, **watch)[0].tensors

        kinds = tuple(tensor.dtype for tensor in tensors)  # under autocast they are not the model's
        state = watch["at_input"], kinds, tuple(map(_comparable, others)), _state_of(call.forward_func)
        banks, count = baselines.recorded(layer, state, run, tensors)
        return _Donors(tuple(bank.bind(tensor) for bank, tensor in zip(banks, tensors)), (None,) * len(tensors), True, count)
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(tensors)
    if len(given) != len(tensors):
        raise ValueError(f"layer_baselines: expected one per tensor of the activation ({len(tensors)}), got {len(given)}")
    sources: list[DonorSource] = []
    bound: list[BoundDonors] = []
    for one, tensor in zip(given, tensors):
        if isinstance(one, numbers.Real) and not math.isfinite(one):
            raise ValueError(f"layer_baselines: expected a finite number, got {one}")
        with renamed(baselines="layer_baselines"):
            sources.append(as_donor_source(0.0 if one is None else one, tensor))
            bound.append(sources[-1].bind(tensor))
    return _Donors(tuple(bound), tuple(source if source.of_the_image else None for source in sources), False, 0)


def _default_masks(tensors: tuple[Tensor, ...], kind: str, block_size: Any) -> list[Tensor]:
    """Units of the asked kind, numbered on from tensor to tensor; a whole layer is one unit across all of them."""
    masks: list[Tensor] = []
    first = 0
    for tensor in tensors:
        spatial = tensor.shape[2:]
        ones = (1,) * len(spatial)
        channels = torch.arange(tensor.shape[1], device="cpu").view(1, -1, *ones)
        if kind == "layer":
            masks.append(torch.zeros((1, 1, *ones), dtype=torch.int64, device="cpu"))
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


def _shared_arguments(call: Call) -> tuple[Any, ...]:
    """The additional arguments that donor images are run with: all that belong to no example; masks stay with the target."""
    arguments = call.arguments
    if isinstance(call.forward_func, SegmentationTarget):
        arguments = call.forward_func.model_inputs(*call.inputs, *arguments)[len(call.inputs) :]
    if any(isinstance(argument, Tensor) and argument.ndim > 0 for argument in arguments):
        raise ValueError(
            "layer_baselines: donor images cannot be run, for the model takes additional tensors with one entry per example, "
            "and donors have none; give activations (D, ...), a number or another donor source over the activation"
        )
    return arguments


def _comparable(argument: Any) -> Any:
    """What a recording is looked up by; what cannot be looked up is always new."""
    if isinstance(argument, Tensor):
        return argument.item()
    try:
        hash(argument)
    except TypeError:
        return object()
    return argument


def _model_of(forward_func: Callable[..., Any], sampling: bool) -> Callable[..., Any]:
    """What to run on donor images: a target's model, which needs no masks; one answer where they differ."""
    if not isinstance(forward_func, SegmentationTarget):
        return forward_func
    return forward_func.answer if sampling else forward_func.logits


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
