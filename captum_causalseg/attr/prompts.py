"""The prompts of an attribution call: found among its arguments, checked, and tied to where they are moved."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._checks import listed, shown
from captum_causalseg.attr.options import InputUnits, Options, PromptArguments, PromptUnits
from captum_causalseg.attr.problem import Call, Problem, common_settings, prepare_call, prepare_inputs
from captum_causalseg.donors import BoundDonors, MovedPrompts
from captum_causalseg.donors.constant import Constant
from captum_causalseg.donors.moved_prompts import PromptPlace
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.prompt_site import PromptEvaluator, PromptSite
from captum_causalseg.interventions.prompts import LEFT_OUT, Boxes, Clicks, DrawnPrompts, Masks, PromptGroup, Texts
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.units import Units

__all__ = ["prepare_prompts"]

# What models call these arguments: SAM and its followers, SAM 2 and SAM 3, VISTA3D, MedSAM's and SAM-Med3D's encoders.
_NAMES = {
    "points": ("input_points", "point_coords", "points", "clicks"),
    "labels": ("input_labels", "point_labels", "labels", "click_labels"),
    "boxes": ("input_boxes", "box_coords", "boxes", "bboxes"),
    "masks": ("input_masks", "mask_inputs", "mask_input"),
}
_SAM_PADDING = -10


def prepare_prompts(options: Options, asked: PromptUnits) -> Problem:
    """The problem of the prompts of a call; with ``asked.regions``, of units of its images as well, whose ids come first."""
    call = prepare_call(options.executed, options.inputs, options.additional_forward_args)
    groups = _groups(asked.prompts, call)
    present = np.concatenate([group.present for group in groups], axis=1)
    if not present.any():
        raise ValueError("maps: nothing is drawn in these channels: they are 0 everywhere, and there is no prompt to explain")
    moves = None
    if asked.moved is None:
        _refuse_ragged(groups)
    else:
        moves = asked.moved.bind_places(_places(groups))
        _refuse_fixed(moves, groups, present)
    donors: BoundDonors = Constant(float(LEFT_OUT)).bind(torch.zeros(1, 1, 1)) if moves is None else moves
    site = PromptSite(
        inputs=call.inputs,
        arguments=call.arguments,
        groups=tuple(groups),
        moves=moves,
        with_inputs=asked.regions is not None,
    )
    rows = site.tensors[-1]
    masks, bound, shapes = [torch.arange(rows.shape[2])[None, None]], [donors], [tuple(rows.shape)]
    excluded, settings = ~present[..., None], common_settings(units="prompt", baselines=_in_words(asked.moved, groups))
    ledger = Ledger()
    if asked.regions is not None:
        image = prepare_inputs(replace(options, units=asked.regions), _beside(asked.regions, groups, call))
        first = int(image.units.ids.max()) + 1
        masks = [*image.units.masks, masks[0] + first]
        bound, shapes = [*image.donors, *bound], [*image.units.shapes, *shapes]
        n_rois = image.excluded.shape[2]
        excluded = np.concatenate([image.excluded, np.repeat(excluded, n_rois, axis=2)], axis=1)
        settings, ledger = image.settings | {"prompts_moved": settings["baselines"]}, image.evaluator.ledger
    described = [
        {
            "kind": group.kind,
            "examples": [group.about(n, u) if group.present[n, u] else None for n in range(len(group.present))],
        }
        for group in groups
        for u in range(group.present.shape[1])
    ]
    settings |= {"prompts": described, "indexing": asked.prompts.indexing}
    return Problem(
        evaluator=PromptEvaluator(
            site=site,
            scorer=call.scorer,
            execution=options.execution,
            unit_donors=UnitDonors(Units(masks, shapes), tuple(bound)),
            ledger=ledger,
        ),
        call=call,
        excluded=excluded,
        settings=settings | options.execution.settings(),
    )


@dataclass(frozen=True)
class _Found:
    """An argument that holds prompts: where it stands in the call, and its name for messages."""

    name: str
    at: int
    value: Tensor


def _groups(asked: PromptArguments, call: Call) -> list[PromptGroup]:
    """All prompts of the call, clicks first."""
    found = _arguments(asked, call)
    groups: list[PromptGroup] = []
    lengths = call.spatial[::-1] if asked.indexing == "xy" else call.spatial
    spatial = tuple(int(length) for length in lengths)
    if "points" in found:
        groups.append(_clicks(asked, found, spatial=spatial))
    elif "labels" in found:
        raise ValueError("labels: they are those of clicks; say which argument holds the points")
    if "boxes" in found:
        boxes = found["boxes"]
        if boxes.value.ndim != 3 or boxes.value.shape[2] != 2 * len(spatial):
            raise ValueError(
                f"boxes: expected (N, boxes, {2 * len(spatial)}), the first corner and the last, got {tuple(boxes.value.shape)} "
                f"({boxes.name})"
            )
        groups.append(Boxes(boxes.value, boxes.at, spatial))
    if "masks" in found:
        masks = found["masks"]
        if masks.value.ndim < 4:
            raise ValueError(f"masks: expected (N, masks, *spatial), got {tuple(masks.value.shape)} ({masks.name})")
        groups.append(Masks(masks.value, masks.at))
    if "texts" in found:
        texts = found["texts"]
        if asked.no_text is not None and asked.no_text.shape != texts.value.shape[1:]:
            raise ValueError(
                f"no_text: expected what stands for one example's text, {tuple(texts.value.shape[1:])}, got "
                f"{tuple(asked.no_text.shape)}"
            )
        groups.append(Texts(len(texts.value), texts.at, asked.no_text))
    elif asked.no_text is not None:
        raise ValueError("no_text: it stands in the place of a text; say which argument holds the texts")
    groups += _drawn(asked, call)
    if not groups:
        raise ValueError(
            "additional_forward_args: no prompts were found in the call. Say where they are: points=, labels=, boxes=, masks= or texts= the "
            "name of an argument of the forward or its place in additional_forward_args, maps= the channels of the image that prompts are "
            f"drawn in. Found by themselves are arguments called {listed([name for names in _NAMES.values() for name in names], 20)}"
        )
    return groups


def _clicks(asked: PromptArguments, found: dict[str, _Found], spatial: tuple[int, ...]) -> Clicks:
    points, labels = found["points"], found.get("labels")
    if points.value.ndim < 3 or points.value.shape[-1] != len(spatial):
        raise ValueError(
            f"points: expected (N, points, {len(spatial)}) or (N, objects, points, {len(spatial)}), coordinates in the image, got "
            f"{tuple(points.value.shape)} ({points.name})"
        )
    if labels is not None:
        if labels.value.shape != points.value.shape[:-1]:
            raise ValueError(
                f"labels: expected one per point, {tuple(points.value.shape[:-1])}, got {tuple(labels.value.shape)} ({labels.name})"
            )
        if asked.padding_label is None and bool((labels.value == _SAM_PADDING).any()):
            raise ValueError(
                f"padding_label: some labels are {_SAM_PADDING}, which SAM's processors give to what is no click; say padding_label={_SAM_PADDING}"
            )
    return Clicks(
        points=points.value,
        labels=None if labels is None else labels.value,
        at=points.at,
        labels_at=None if labels is None else labels.at,
        padding_label=asked.padding_label,
        spatial=spatial,
    )


def _drawn(asked: PromptArguments, call: Call) -> list[PromptGroup]:
    """What is drawn in channels of the inputs."""
    groups: list[PromptGroup] = []
    for one in asked.maps or ():
        at, channel = (0, one) if isinstance(one, int) else one
        if at >= len(call.inputs) or call.inputs[at].ndim < 3 or channel >= call.inputs[at].shape[1]:
            shapes = [tuple(tensor.shape) for tensor in call.inputs]
            raise ValueError(f"maps: there is no channel {channel} of an image in input {at}; the inputs are {listed(shapes)}")
        image = call.inputs[at]
        if bool((image[:, channel] != 0).flatten(1).all(1).any()):
            raise ValueError(
                f"maps: channel {channel} of input {at} is nowhere 0, and where one prompt ends and the next one begins cannot be told. Explain "
                "coordinates instead: a model that takes them and draws the map itself, with points="
            )
        groups.append(DrawnPrompts(image, at, channel))
    return groups


def _arguments(asked: PromptArguments, call: Call) -> dict[str, _Found]:
    """By role, the tensors among the arguments."""
    names = _parameters(call)
    n_inputs = len(call.inputs)
    # Behind them stand masks of the target's.
    arguments = call.scorer.model_inputs(*call.inputs, *call.arguments)[n_inputs:]
    named = {role: getattr(asked, role) for role in ("points", "labels", "boxes", "masks", "texts")}
    if asked.maps is None and all(where is None for where in named.values()):
        named |= {role: next((name for name in known if name in names), None) for role, known in _NAMES.items()}
        if named["points"] is None:
            named["labels"] = None  # labels of something else
        named = {role: where for role, where in named.items() if where is not None and names.index(where) < len(arguments)}
        is_asked = False
    else:
        is_asked = True
    found = {}
    for role, where in named.items():
        if where is None:
            continue
        if isinstance(where, str):
            if where not in names:
                raise ValueError(
                    f"{role}: the forward has no argument {where!r}; it has {listed(names) or 'none with a name'}. The place in "
                    "additional_forward_args does as well"
                )
            place, name = names.index(where), where
        else:
            place, name = where, f"additional_forward_args[{where}]"
        if place >= len(arguments):
            raise ValueError(
                f"{role}: argument {name} is not in the call, which has {len(arguments)} additional_forward_args; pass it there"
            )
        value = arguments[place]
        if not isinstance(value, Tensor) or value.ndim < 2:
            if not is_asked and value is None:
                continue
            raise TypeError(f"{role}: expected a tensor (N, ...), one entry per example, got {shown(value)} ({name})")
        found[role] = _Found(name, n_inputs + place, value)
    return found


def _parameters(call: Call) -> list[str]:
    """Names of the model's arguments behind the inputs, as far as they have any."""
    model = call.scorer.model
    try:
        parameters = list(inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values())
    except (TypeError, ValueError):
        return []  # what is not written in Python
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return [one.name for one in positional[len(call.inputs) :]]


def _places(groups: Sequence[PromptGroup]) -> list[list[PromptPlace | None]]:
    n_examples = len(groups[0].present)
    return [
        [group.place(n, u) if group.present[n, u] else None for group in groups for u in range(group.present.shape[1])]
        for n in range(n_examples)
    ]


def _refuse_ragged(groups: Sequence[PromptGroup]) -> None:
    for group in groups:
        if isinstance(group, Clicks) and group.pads and group.padding_label is None:
            raise ValueError(
                f"padding_label: the points {tuple(group.points.shape)} are those of several objects, of which one would have fewer without a "
                "click; say by which label the model knows what is no click (SAM: -10), explain one object at a time, or move the "
                "clicks (baselines=MovedPrompts(radius=8))"
            )
        if isinstance(group, Clicks) and group.pads and group.labels is None:
            raise ValueError(
                "labels: clicks of several objects are left out by their label; say which argument holds the labels"
            )


def _refuse_fixed(moves: BoundDonors, groups: Sequence[PromptGroup], present: np.ndarray) -> None:
    kinds = [group.kind for group in groups for _ in range(group.present.shape[1])]
    for n, u in zip(*(axis.tolist() for axis in np.nonzero(present))):
        if kinds[u] == "text":
            raise ValueError(
                "baselines: a text cannot be moved; leave prompts out (baselines=None), or explain the others, by name"
            )
        if moves.population(n, (slice(u, u + 1),)) < 1:
            raise ValueError(
                f"baselines: prompt {u} of example {n} ({kinds[u]}) has no place to go to: "
                + ("its sides are too short for this share" if kinds[u] == "box" else "the image ends within the radius")
                + "; give a larger one"
            )


def _in_words(moved: MovedPrompts | None, groups: Sequence[PromptGroup]) -> str:
    if moved is not None:
        return repr(moved)
    ways = {group.kind: group.how_left_out for group in groups}
    if len(set(ways.values())) == 1:
        return next(iter(ways.values()))
    return "; ".join(f"{kind}: {way}" for kind, way in ways.items())


def _beside(regions: InputUnits, groups: Sequence[PromptGroup], call: Call) -> InputUnits:
    """Units of the images without the channels that prompts are drawn in."""
    drawn = {group.channel for group in groups if isinstance(group, DrawnPrompts) and group.at == 0}
    others = tuple(channel for channel in range(call.inputs[0].shape[1]) if channel not in drawn)
    return regions if not drawn or not others or regions.channels is not None else replace(regions, channels=others)
