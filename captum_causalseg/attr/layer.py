"""The arguments of an attribution to a layer, checked and tied together."""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
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
from captum_causalseg.attr.layer_places import LayerPlace, Recorded, enough_of, find_place, named_modules
from captum_causalseg.attr.options import LayerUnits, Options
from captum_causalseg.attr.problem import Call, Problem, check_masks, common_settings, prepare_call
from captum_causalseg.donors import ActivationBank, DonorSource, as_donor_source
from captum_causalseg.donors.fitted import fewest_elements
from captum_causalseg.interventions.activation import channels_first
from captum_causalseg.interventions.axes import Axes
from captum_causalseg.interventions.layouts import (
    channels_first_by_type,
    follow,
    read_layout,
    unclear,
    with_grid,
    with_heads,
)
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
    call = prepare_call(options.executed, options.inputs, options.additional_forward_args)
    with undisturbed(call.scorer.function):
        place = find_place(options, call, asked)
        layouts = _layouts(asked, place)
        masks = None
        if asked.layer_mask is not None:
            if any(one is not None and one.windows > 1 for one in layouts):
                raise ValueError(
                    "layer_mask: the layer runs on several windows of each image, and a mask of what it returns would be one of windows; give units="
                )
            masks = check_masks("layer_mask", asked.layer_mask, place.shown, whose="activation")
            masks = channels_first(masks, layouts)
        place.lay_out(layouts)
        masks = _default_masks(place.shown, layouts, asked) if masks is None else masks
        parts = Units(place.masks(masks), [tensor.shape for tensor in place.site.tensors])
        found = _donors(options, place, parts, layouts=layouts)
    described = common_settings(layer=type(asked.layer).__name__, units=asked.asked, block_size=asked.block_size)
    described["layout"] = [None if one is None else one.described() for one in layouts]
    controls: dict[str, Control] = {}
    if options.controls is not None:
        controls = _edge_controls(found, place, asked)
        described["controls"] = {name: one.in_words for name, one in controls.items()}
    return Problem(
        evaluator=place.evaluator(found),
        excluded=np.zeros((parts.n_examples, len(parts), 1), dtype=bool),
        call=call,
        settings=described | common_settings(layer_baselines=options.baselines),
        controls=controls,
    )


def _edge_controls(unit_donors: UnitDonors, place: LayerPlace, asked: LayerUnits) -> dict[str, Control]:
    """Those of units that have a border: blocks of a grid."""
    tensors, layouts = place.site.tensors, place.site.layouts
    if place.columns:
        raise ValueError("controls: a layer inside a sliding window has none; give controls=None")
    if any(layout is not None and layout.axes == "NLC" for layout in layouts):
        raise ValueError(
            'controls: "edge" is about the joint between a unit and what is beside it, but tokens are a row, in which what follows is not '
            "what lies beside; give controls=None"
        )
    controls = edge_controls(unit_donors, tensors, treated=unit_donors.units.present, ledger=place.ledger)
    if not controls[EDGE_SHIFTED].possible.any():
        raise ValueError(
            f'controls: "edge" is about the joint between a unit and what is beside it, but every unit ({asked.asked}) of the activation '
            f'{tuple(tensors[0].shape)} fills its grid; give units="block" with a block_size, or controls=None'
        )
    return controls


def _donors(options: Options, place: LayerPlace, units: Units, *, layouts: Sequence[Layout | None]) -> UnitDonors:
    """What units of a layer are replaced by."""
    call, tensors = place.call, place.site.tensors
    baselines, layer = options.baselines, place.asked.layer
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
            _refuse_single_values(units, place.asked, tensors)
        bank, others = baselines, _shared_arguments(call)
        model_state = place.state, tuple(map(_comparable, others)), _state_of(call.scorer.model)
        anywhere, run_so_far = bank.placement == "anywhere", itertools.count()
        slots = place.slots(anywhere=anywhere)

        def run(images: tuple[Tensor, ...]) -> list[Tensor]:
            fitting = tuple(image.to(like) for image, like in zip(images, call.inputs))
            number = next(run_so_far) if anywhere else None
            found: Recorded = bank.hear(layer, model_state, lambda layers: place.record(layers, fitting, others, number=number))
            return list(found.laid_out(layouts).tensors)

        kinds = tuple(tensor.dtype for tensor in tensors)  # under autocast they are not the model's
        state = model_state, tuple(layouts), kinds
        banks = bank.recorded(layer, state, run, like=tensors[: max(slots) + 1], at_once=place.donors_at_once)
        of_slots = [banks[slot] for slot in slots]
        with renamed(baselines="layer_baselines"):
            bound = tuple(one.bind(tensor) for one, tensor in zip(of_slots, tensors))
        own: tuple[DonorSource | None, ...] = tuple(one if one.of_the_image else None for one in of_slots)
        return UnitDonors(units, bound, columns=(0,) * len(bound), own=own)
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(place.shown)
    if len(given) != len(place.shown):
        raise ValueError(f"layer_baselines: expected one per tensor of the activation ({len(place.shown)}), got {len(given)}")
    sources: list[DonorSource] = []
    for one, tensor, layout in zip(given, place.shown, layouts):
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
    # In further runs of the layer, they are the same.
    sources *= len(tensors) // len(sources)
    with renamed(baselines="layer_baselines"):
        found = tuple(source.bind(tensor) for source, tensor in zip(sources, tensors))
    return UnitDonors(
        units,
        found,
        columns=place.columns,
        own=tuple(source if source.of_the_image else None for source in sources),
    )


def _refuse_single_values(units: Units, asked: LayerUnits, tensors: Sequence[Tensor]) -> None:
    """Raise where a unit has one value per channel: matched to its own, it would be replaced by itself."""
    for example, unit in np.ndindex(1 if units.shared else units.n_examples, len(units)):
        for piece in units.pieces(example, unit):
            if fewest_elements([side.stop - side.start for side in piece.box], piece.mask) < 2:
                raise ValueError(
                    f"match: unit {units.ids[unit]} ({asked.asked}) of an activation {tuple(tensors[piece.slot].shape)} has one value per channel: "
                    "with its own mean a donor would be that very value, and every effect 0; choose larger units, or match=None"
                )


def _layouts(asked: LayerUnits, place: LayerPlace) -> tuple[Layout | None, ...]:
    """The layout of every tensor of the activation, as it lies.

    One that cannot be told is ``None`` where the units do not need it.
    """
    units = "layer" if asked.layer_mask is not None else asked.kind
    tensors, n_spatial = place.shown, len(place.call.spatial)
    given: list[Layout | None] = [*_given_layouts(asked.layout, len(tensors))]
    for index, (one, tensor) in enumerate(zip(given, tensors)):
        if one is None and units != "head" and (tensor.ndim == 2 or channels_first_by_type(asked.layer)):
            given[index] = one = Layout("NC*")
        if one is not None:
            one.check(tensor.shape)
    if all(one is not None and (one.axes != "NLC" or one.grid is not None) for one in given) and units != "head":
        return tuple(given)
    run, model, layer, few = place.seen_by()
    name, modules = named_modules(model, layer)
    seen = place.sightings
    if seen is None:
        enough = enough_of(name, asked, n_spatial=n_spatial)
        seen = follow(lambda: run(*few), few, modules if asked.by_heads else {name: layer}, enough=enough)
        place.ledger.count("layout", 1)
    sighting = seen.get(name)
    axes: Sequence[Axes] = () if sighting is None else sighting.taken if asked.at_input else sighting.returned
    found: list[Layout | None] = []
    for index, (one, tensor) in enumerate(zip(given, tensors)):
        known = axes[index] if len(axes) == len(tensors) else ()
        if len(known) == tensor.ndim:
            one = read_layout(known, n_spatial) if one is None else with_grid(one, known, n_spatial)
            if one is not None and units == "head":
                one = with_heads(one, name, modules, seen=seen, axes=known)
        if one is None and units != "layer":
            raise ValueError(unclear(tensor.shape, f"{name} ({type(layer).__name__})" if name else type(layer).__name__))
        found.append(one)
    return tuple(found)


def _given_layouts(asked: Any, n: int) -> tuple[Layout | None, ...]:
    given = tuple(asked) if isinstance(asked, (tuple, list)) else (asked,) * n
    if len(given) != n:
        raise ValueError(f"layout: expected one per tensor of the activation ({n}), got {len(given)}")
    return tuple(None if one == "auto" else one if isinstance(one, Layout) else Layout(one) for one in given)


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
