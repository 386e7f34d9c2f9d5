"""The arguments of an attribution to a layer, checked and tied together."""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from captum_causalseg._checks import (
    BOOLEAN,
    FUNCTION,
    NONE,
    Check,
    for_each_axis,
    instance,
    integer,
    key_of,
    renamed,
    sequence,
    shown,
)
from captum_causalseg._state import undisturbed
from captum_causalseg.attr.controls import Control, edge_controls
from captum_causalseg.attr.options import LayerUnits, Options
from captum_causalseg.attr.problem import Call, Problem, check_masks, common_settings, prepare_call
from captum_causalseg.donors import ActivationBank, BoundDonors, DonorSource, as_donor_source
from captum_causalseg.donors.fitted import fewest_elements
from captum_causalseg.interventions.activation import Activation, channels_first
from captum_causalseg.interventions.axes import Axes
from captum_causalseg.interventions.layer import LayersEvaluator, StochasticLayersEvaluator
from captum_causalseg.interventions.layouts import (
    channels_first_by_type,
    follow,
    read_layout,
    unclear,
    with_grid,
    with_heads,
)
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.recording import record, record_one_by_one, record_together
from captum_causalseg.interventions.sites import Layer, LayersSite
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.units import Units
from captum_causalseg.layout import AXES, UNIT_KINDS, Layout, unit_mask
from captum_causalseg.statistics import EDGE_SHIFTED

__all__ = ["LAYER", "LAYOUT", "LayerBaselines", "Layouts", "are_images", "prepare_layer"]

LayerBaselines = ActivationBank | DonorSource | Tensor | float | tuple[Any, ...] | None
Layouts = str | Layout | tuple[str | Layout, ...]

LAYOUT = Check(
    '"auto", "NC*", "N*C", "NLC" or a Layout',
    lambda value: isinstance(value, Layout) or (isinstance(value, str) and value in ("auto", *AXES)),
)
LAYER = {
    "forward_func": FUNCTION,
    "layer": instance(nn.Module, expected="a torch.nn.Module"),
    "device_ids": NONE | sequence(integer(0)),
    "attribute_to_layer_input": BOOLEAN,
    "units": key_of(UNIT_KINDS),
    "block_size": NONE | for_each_axis(integer(1)),
    "layout": LAYOUT | sequence(LAYOUT, 1, expected="one per tensor of the activation"),
}
"""What the arguments that say which layer is meant, and which parts of it, have to be."""


def prepare_layer(options: Options, asked: LayerUnits) -> Problem:
    """Check every argument, run the model once to see the activation, and tie donors to it."""
    if asked.block_size is not None and not asked.in_blocks:
        kinds = " or ".join(f'"{name}"' for name, kind in UNIT_KINDS.items() if kind.in_blocks)
        raise ValueError(f"block_size: it works only with units={kinds}")
    if asked.block_size is None and asked.in_blocks:
        raise ValueError(f"block_size: units={asked.kind!r} needs it, in the activation's own pixels")
    executed, ledger = options.executed, Ledger()
    call = prepare_call(executed, options.inputs, options.additional_forward_args)
    device_ids = tuple((executed.device_ids if asked.device_ids is None else asked.device_ids) or ()) or None
    watch: dict[str, Any] = {"at_input": asked.at_input, "device_ids": device_ids}
    scorer = call.scorer
    with undisturbed(scorer.function):
        everything = _fresh(call.inputs + call.arguments)
        compared, is_stochastic = scorer.forwards_to_compare, scorer.is_stochastic(*everything)
        if is_stochastic:
            observed = scorer(*everything)
            activation = record_one_by_one(scorer, asked.layer, scorer.model_inputs(*everything), **watch)
        else:
            activation, observed = record(scorer, asked.layer, everything, **watch)
        _check_activation(activation.tensors, call.inputs[0].shape[0])
        # What is run on donor images needs no masks, and is one answer where they differ.
        model = scorer.answer if is_stochastic else scorer.logits
        layouts, followed = _layouts(asked, call, activation.tensors, model=model)
        masks = None
        if asked.layer_mask is not None:
            masks = check_masks("layer_mask", asked.layer_mask, activation.tensors, whose="activation")
            masks = channels_first(masks, layouts)
        activation = activation.laid_out(layouts)
        tensors = tuple(activation.tensors)
        parts = Units(_default_masks(tensors, layouts, asked) if masks is None else masks, [tensor.shape for tensor in tensors])
        found, n_images = _donors(options, call, parts, activation=activation, watch=watch, model=model)
    site = LayersSite(
        layers=(Layer(asked.layer, activation, asked.at_input),),
        inputs=call.inputs,
        arguments=call.arguments,
        device_ids=device_ids,
    )
    execution = replace(options.execution, device_ids=device_ids)
    kind = StochasticLayersEvaluator if is_stochastic else LayersEvaluator
    evaluator = kind(site, scorer, execution, found, ledger, observed=observed)
    for purpose, n in (("answers compared", compared), ("layout", followed), ("donors", n_images)):
        if n:
            ledger.count(purpose, n)
    described = common_settings(layer=type(asked.layer).__name__, units=asked.asked, block_size=asked.block_size)
    described["layout"] = [None if one is None else one.described() for one in layouts]
    controls: dict[str, Control] = {}
    if options.controls is not None:
        controls = _edge_controls(found, tensors, layouts, asked=asked, ledger=ledger)
        described["controls"] = {name: one.in_words for name, one in controls.items()}
    return Problem(
        evaluator=evaluator,
        excluded=np.zeros((parts.n_examples, len(parts), 1), dtype=bool),
        call=call,
        settings=described | common_settings(layer_baselines=options.baselines),
        controls=controls,
    )


def _edge_controls(
    unit_donors: UnitDonors,
    tensors: tuple[Tensor, ...],
    layouts: Sequence[Layout | None],
    *,
    asked: LayerUnits,
    ledger: Ledger,
) -> dict[str, Control]:
    """Those of units that have a border: blocks of a grid."""
    if any(layout is not None and layout.axes == "NLC" for layout in layouts):
        raise ValueError(
            'controls: "edge" is about the joint between a unit and what is beside it, but tokens are a row, in which what follows is not '
            "what lies beside; give controls=None"
        )
    controls = edge_controls(unit_donors, tensors, treated=unit_donors.units.present, ledger=ledger)
    if not controls[EDGE_SHIFTED].possible.any():
        raise ValueError(
            f'controls: "edge" is about the joint between a unit and what is beside it, but every unit ({asked.asked}) of the activation '
            f'{tuple(tensors[0].shape)} fills its grid; give units="block" with a block_size, or controls=None'
        )
    return controls


def _donors(
    options: Options,
    call: Call,
    units: Units,
    *,
    activation: Activation,
    watch: dict[str, Any],
    model: Callable[..., Any],
) -> tuple[UnitDonors, int]:
    """What units of a layer are replaced by, and how many images were run to record it."""
    tensors, layouts = tuple(activation.tensors), activation.layouts
    assert isinstance(options.units, LayerUnits)
    baselines, layer = options.baselines, options.units.layer
    if isinstance(baselines, (list, np.ndarray)):
        raise TypeError(
            "layer_baselines: expected donor images or activations as a tensor, an ActivationBank, a number or another donor source, got "
            f"{shown(baselines)}; stack images with torch.stack(images), or give an ActivationBank(images)"
        )
    if are_images(baselines, call.inputs):
        with renamed(images="layer_baselines"):
            baselines = ActivationBank(baselines)
    if isinstance(baselines, ActivationBank):
        if baselines.match is not None:
            _refuse_single_values(units, options.units, tensors)
        bank, others = baselines, _shared_arguments(call)
        model_state = watch["at_input"], tuple(map(_comparable, others)), _state_of(call.scorer.model)
        count = 0

        def run(images: tuple[Tensor, ...]) -> list[Tensor]:
            fitting = tuple(image.to(like) for image, like in zip(images, call.inputs))

            def listen(layers: Sequence[nn.Module]) -> list[Activation]:
                nonlocal count
                count += len(fitting[0])
                return record_together(model, layers, fitting + others, **watch)[0]

            found: Activation = bank.hear(layer, model_state, listen)
            return found.laid_out(layouts).tensors

        kinds = tuple(tensor.dtype for tensor in tensors)  # under autocast they are not the model's
        banks = bank.recorded(layer, (model_state, layouts, kinds), run, like=tensors)
        with renamed(baselines="layer_baselines"):
            bound = tuple(one.bind(tensor) for one, tensor in zip(banks, tensors))
        own: tuple[DonorSource | None, ...] = tuple(bank if bank.of_the_image else None for bank in banks)
        return UnitDonors(units, bound, paired=True, own=own), count
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(tensors)
    if len(given) != len(tensors):
        raise ValueError(f"layer_baselines: expected one per tensor of the activation ({len(tensors)}), got {len(given)}")
    sources: list[DonorSource] = []
    found: list[BoundDonors] = []
    for one, tensor, layout in zip(given, tensors, layouts):
        if layout is not None and layout.axes != "NC*" and isinstance(one, Tensor) and one.ndim:
            wanted = tuple(layout.as_it_lies(tensor[:1]).shape[1:])
            if tuple(one.shape[1:]) != wanted:
                raise ValueError(
                    f"layer_baselines: expected activations (D, {', '.join(map(str, wanted))}), got shape {tuple(one.shape)}"
                )
            one = layout.channels_first(one)
        if isinstance(one, numbers.Real) and not math.isfinite(one):
            raise ValueError(f"layer_baselines: expected a finite number, got {one}")
        with renamed(baselines="layer_baselines"):
            sources.append(as_donor_source(0.0 if one is None else one, tensor))
            found.append(sources[-1].bind(tensor))
    own = tuple(source if source.of_the_image else None for source in sources)
    return UnitDonors(units, tuple(found), own=own), 0


def _refuse_single_values(units: Units, asked: LayerUnits, tensors: Sequence[Tensor]) -> None:
    """Raise where a unit has one value per channel: matched to its own, it would be replaced by itself."""
    for example, unit in np.ndindex(1 if units.shared else units.n_examples, len(units)):
        for piece in units.pieces(example, unit):
            if fewest_elements([side.stop - side.start for side in piece.box], piece.mask) < 2:
                raise ValueError(
                    f"match: unit {units.ids[unit]} ({asked.asked}) of an activation {tuple(tensors[piece.slot].shape)} has one value per channel: "
                    "with its own mean a donor would be that very value, and every effect 0; choose larger units, or match=None"
                )


def _layouts(
    asked: LayerUnits, call: Call, tensors: Sequence[Tensor], *, model: Callable[..., Any]
) -> tuple[tuple[Layout | None, ...], int]:
    """The layout of every tensor of the activation, as it lies, and how many images were run to find them.

    One that cannot be told is ``None`` where the units do not need it.
    """
    layer, units = asked.layer, "layer" if asked.layer_mask is not None else asked.kind
    given: list[Layout | None] = [*_given_layouts(asked.layout, len(tensors))]
    for place, (one, tensor) in enumerate(zip(given, tensors)):
        if one is None and units != "head" and (tensor.ndim == 2 or channels_first_by_type(layer)):
            given[place] = one = Layout("NC*")
        if one is not None:
            one.check(tensor.shape)
    if all(one is not None and (one.axes != "NLC" or one.grid is not None) for one in given) and units != "head":
        return tuple(given), 0
    name, modules = _names(call.scorer.model, layer)
    few = [
        value[:1].clone() if isinstance(value, Tensor) and value.ndim else value for value in (*call.inputs, *call.arguments)
    ]
    few = list(call.scorer.model_inputs(*few))
    seen = follow(lambda: model(*few), few, modules)
    sighting = seen.get(name)
    axes: Sequence[Axes] = () if sighting is None else sighting.taken if asked.at_input else sighting.returned
    found: list[Layout | None] = []
    for place, (one, tensor) in enumerate(zip(given, tensors)):
        known = axes[place] if len(axes) == len(tensors) else ()
        if len(known) == tensor.ndim:
            one = read_layout(known, len(call.spatial)) if one is None else with_grid(one, known, len(call.spatial))
            if one is not None and units == "head":
                one = with_heads(one, name, modules, seen=seen, axes=known)
        if one is None and units != "layer":
            raise ValueError(unclear(tensor.shape, f"{name} ({type(layer).__name__})" if name else type(layer).__name__))
        found.append(one)
    return tuple(found), 1


def _given_layouts(asked: Any, n: int) -> tuple[Layout | None, ...]:
    given = tuple(asked) if isinstance(asked, (tuple, list)) else (asked,) * n
    if len(given) != n:
        raise ValueError(f"layout: expected one per tensor of the activation ({n}), got {len(given)}")
    return tuple(None if one == "auto" else one if isinstance(one, Layout) else Layout(one) for one in given)


def _names(model: Callable[..., Any], layer: nn.Module) -> tuple[str, dict[str, nn.Module]]:
    """The layer's name, and all modules of the model by theirs; of a function, whose model cannot be seen, the layer alone."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    name = next((name for name, module in modules.items() if module is layer), None)
    return ("", {"": layer}) if name is None else (name, modules)


def _default_masks(tensors: tuple[Tensor, ...], layouts: tuple[Layout | None, ...], asked: LayerUnits) -> list[Tensor]:
    """Units of the asked kind, numbered on from tensor to tensor; a whole layer is one unit across all of them."""
    masks: list[Tensor] = []
    first = 0
    for tensor, layout in zip(tensors, layouts):
        # Of a whole layer, it does not matter.
        mask = unit_mask(layout or Layout("NC*"), asked.kind, tensor.shape, block_size=asked.block_size)
        masks.append(mask + first)
        first = int(masks[-1].max()) + 1 if asked.kind != "layer" else 0
    return masks


def _check_activation(tensors: Sequence[Tensor], n_examples: int) -> None:
    for tensor in tensors:
        if tensor.ndim < 2 or tensor.shape[0] != n_examples:
            raise ValueError(
                f"layer: expected an activation with one entry per example, (N, ...) with N={n_examples}, got {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError("layer: its activation holds NaN or infinite values")


def are_images(baselines: Any, inputs: tuple[Tensor, ...]) -> bool:
    """Whether these are donor images, and not activations or a number."""
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    return len(given) == len(inputs) and all(
        isinstance(one, Tensor) and one.ndim == image.ndim and one.shape[1:] == image.shape[1:]
        for one, image in zip(given, inputs)
    )


def _shared_arguments(call: Call) -> tuple[Any, ...]:
    """The additional arguments that donor images are run with: all that belong to no example; masks stay with the target."""
    arguments = call.scorer.model_inputs(*call.inputs, *call.arguments)[len(call.inputs) :]
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


def _state_of(model: Callable[..., Any]) -> Any:
    """Changes when the model's parameters or buffers do; always new for a function, whose model cannot be seen."""
    if not isinstance(model, nn.Module):
        return object()
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _fresh(values: tuple[Any, ...]) -> list[Any]:
    """Copies, so that a model that works in place leaves the user's tensors alone."""
    return [value.detach().clone() if isinstance(value, Tensor) else value for value in values]
