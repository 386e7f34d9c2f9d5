"""Which components of the network matter: the effect of every module, or every part of it, in one table."""

import fnmatch
import functools
import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import NONE, TEXT, checked, instance, listed, mapping, no_module, one_of, renamed, sequence
from captum_causalseg._state import in_this_thread, undisturbed
from captum_causalseg.attr.component_shares import SHARES, with_shares
from captum_causalseg.attr.effort import EFFORT, Effort
from captum_causalseg.attr.estimate import estimate
from captum_causalseg.attr.forecast import ModulesForecast
from captum_causalseg.attr.layer import LAYOUT, are_images
from captum_causalseg.attr.layer_average_treatment_effect import LayerBaselines
from captum_causalseg.attr.one_region import REGION, RegionUnits
from captum_causalseg.attr.options import InputUnits, LayerUnits, Options
from captum_causalseg.attr.problem import Call, prepare_call
from captum_causalseg.attr.progress import Progress
from captum_causalseg.donors import ActivationBank
from captum_causalseg.donors.any_source import AnySource
from captum_causalseg.interventions.axes import Axes, projected
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.layouts import Sighting, follow, read_layout, with_grid, with_heads
from captum_causalseg.interventions.reach import ImageSearch
from captum_causalseg.interventions.window_geometry import WindowGeometry
from captum_causalseg.interventions.window_layers import answer_of
from captum_causalseg.layout import Layout, UnitKind
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target import SegmentationTarget, WindowedModel
from captum_causalseg.target.scorer import as_scorer

__all__ = ["component_effects"]

logger = logging.getLogger(__name__)

# Draws of a whole module, at least: no other unit's spread stands in for what a few donors do not show. Of 12 of 100 donors, 95 % intervals held
# 0.77 of the truths where it was least, of 20 at least 0.84 (benchmarks/component_coverage.py).
_FEWEST_DRAWS = 20

# What the units of each level are called in a layer.
_UNITS: dict[str, UnitKind] = {"module": "layer", "channel": "channel", "token": "token", "head": "head"}


@checked(
    EFFORT,
    target=instance(SegmentationTarget, nn.Module),
    layers=NONE | TEXT | sequence(TEXT, 1, expected="a sequence of them"),
    level=one_of(*_UNITS),
    layout=LAYOUT | mapping(TEXT, LAYOUT),
    region_units=REGION,
)
def component_effects(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    layers: str | Sequence[str] | None = None,
    baselines: LayerBaselines = None,
    level: Literal["module", "channel", "token", "head"] = "module",
    *,
    output: TargetType = None,
    additional_forward_args: Any = None,
    n_draws: int = 32,
    n_screening_draws: int = 3,
    screening_threshold: float = 0.0002,
    support: Literal["auto", "always"] | None = "auto",
    perturbations_per_eval: int = 16,
    seed: int = 0,
    show_progress: bool = False,
    layout: str | Layout | Mapping[str, str | Layout] = "auto",
    region_units: RegionUnits = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
) -> pd.DataFrame:
    """The average treatment effect of every component of a network on the score of the RoI.

    Each module's whole activation (or each channel, token or head of it) is replaced by what donor images give there, as
    :class:`~captum_causalseg.LayerAverageTreatmentEffect` does it. Positive effects support the segmentation.

    Args:
        target: what is scored; modules are named as in its ``model`` (or in itself, if it is another module).
        inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
        layers: names of modules, with ``*`` and ``?`` as wildcards, one or several; by default every module. Modules that are not
            called exactly once, or return no floating-point tensor, have no one activation to intervene on: they are left out, and
            ``table.attrs["left_out"]`` says why. Inside a :class:`~captum_causalseg.WindowedModel`, once per window.
        baselines: donor images ``(D, C, *spatial)``, an :class:`~captum_causalseg.ActivationBank`, or a number; ``None`` is 0.
        level: ``"module"``: one row per module; ``"channel"``: one per channel of each; ``"token"``: one per token, of modules that
            return tokens; ``"head"``: one per attention head, as it enters the output projection of its attention, whose name it has
            (of window attention, as in Swin transformers, in all windows of an image at once).
        output: which output of the target, as Captum's ``target`` argument; needed if there are several.
        additional_forward_args, n_draws, n_screening_draws, screening_threshold, support, perturbations_per_eval: as in
            :meth:`LayerAverageTreatmentEffect.attribute`: up to ``2 * n_draws`` donors (of whole modules at least 64)
            are all used, and effects are exact. Whole modules have at least 20 draws: with fewer, some of their intervals hold far less than they say. Which part of the image reaches the RoI is searched once for all modules.
        seed: likewise; every module has draws of its own, which depend on its name.
        show_progress: say after the first module how many forwards (or windows) the others take at most and about how long, and show a bar over them.
        layout: what the axes of the activations mean, as in :meth:`LayerAverageTreatmentEffect.attribute`: one for all modules, or a
            mapping from names (with wildcards) to one. Modules for which ``"auto"`` cannot tell are left out of the other levels than
            ``"module"``.
        region_units: a region of the image, as in :func:`~captum_causalseg.pathway`: the id of a unit, ids of several, or a boolean mask
            ``(*spatial)``. Of the effect that replacing it by donors has on the score, the table then says what share passes through each module (with ``level="module"``), from
            up to ``n_draws`` further draws, each with up to two forwards per module. Shares of modules do not add up: they lie one behind the other.
        block_size, feature_mask: the units that ids of ``region_units`` name.

    Returns:
        A table, the largest effects first within each example, with the columns ``example``, ``module``, ``type``, ``part`` (encoder,
        bottleneck or decoder: before, at and after the smallest resolution in the order of the forward pass; of a module whose first
        and last inner calls lie in different ones the span, such as encoder-decoder; network if there is no smallest), ``order`` (in
        the forward pass), ``layout`` (of the activation; empty if not known), ``channel``, ``token`` or ``head`` (its number, at that
        level), ``special`` (tokens that lie on no grid, such as a class token, at that level), ``effect``, ``standard_error``, ``lower``, ``upper`` (95 % interval),
        ``p_value``, ``share`` (of the observed score), with ``region_units`` ``share_mediated``, ``share_mediated_lower`` and ``share_mediated_upper`` (what share of the
        region's effect passes through the module, with the 95 % interval, as :meth:`LayerMediation.share_mediated` has it; NaN where that effect is not
        told from 0: ``table.attrs["region"]`` has it and the reason), ``status``, ``n_draws``, ``observed_score``, ``forwards`` (images run for the module,
        for all examples and parts; what several modules have in common stands at the first of them).

    Raises:
        ValueError: no module has one of these names, or ``level`` is unknown.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, component_effects
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> image = torch.rand(1, 1, 16, 16)
        >>> target = SegmentationTarget.from_prediction(model, image)
        >>> table = component_effects(target, image, baselines=torch.rand(10, 1, 16, 16), output=1)
        >>> sorted(table["module"])
        ['0', '1', '2']
    """
    if region_units is not None and level != "module":
        raise ValueError(f'region_units: shares are of whole modules; expected level="module", got {level!r}')
    if region_units is not None and isinstance(baselines, ActivationBank):
        raise ValueError(
            "baselines: with region_units, expected donor images or a number, as the region of the image is replaced, too, got an ActivationBank"
        )
    for name, units in (("block_size", block_size), ("feature_mask", feature_mask)):
        if units is not None and region_units is None:
            raise ValueError(f"{name}: it names the units of region_units, which is not given")
    model = as_scorer(target).model
    if not isinstance(model, nn.Module):
        raise TypeError(f"target: its components are modules, but its model is a {type(model).__name__}")
    chosen = _named(model, layers)
    watched = _watch(target, model, inputs, additional_forward_args=additional_forward_args)
    found: dict[str, tuple[str | Layout, ...]] = {}
    left_out: dict[str, str] = {}
    for name in chosen:
        try:
            found[name] = _layouts(name, level, layout, watched=watched)
        except _LeftOut as reason:
            left_out[name] = str(reason)
    rows = []
    observed: Tensor | None = None
    images = ImageSearch()
    banks = _banks(baselines, inputs, {name: chosen[name] for name in found}, watched=watched, at_input=level == "head")
    n_examples = len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
    if level == "module":
        n_draws = max(n_draws, _FEWEST_DRAWS)
    most = {
        name: n_examples * _most_draws(_n_units(layouts, level, watched.seen[name]), n_draws, _n_donors(baselines))
        for name, layouts in found.items()
    }
    with Progress("Component effects", show_progress) as shown:
        forecast = ModulesForecast(shown, most)
        for place, name in enumerate(found):
            forecast.begin(name)
            options = Options(
                name="Component effects",
                forward_func=target,
                inputs=inputs,
                baselines=banks[name].pop() if name in banks else baselines,
                target=output,
                additional_forward_args=additional_forward_args,
                units=LayerUnits(layer=chosen[name], at_input=level == "head", kind=_UNITS[level], layout=found[name]),
                effort=Effort(
                    n_draws=n_draws,
                    n_screening_draws=n_screening_draws,
                    screening_threshold=screening_threshold,
                    seed=_seed_of(name, seed),
                    sampling="stratified",
                    allocation="equal",
                    support=support,
                ),
                # The model is the same in all of them: the first and the last look at it, and the observed scores between must agree.
                execution=Execution(perturbations_per_eval=perturbations_per_eval, witnessed=place in (0, len(found) - 1)),
                return_statistics=True,
                images=images,
            )
            with renamed(layer_baselines="baselines", target="output"):
                _, statistics = estimate(options)
                forecast.done(name, statistics)
                table = statistics.of_output(output).to_dataframe().rename(columns={"unit": level})
            observed = statistics.observed_score if observed is None else observed
            _refuse_drift(observed, statistics.observed_score, name)
            if level == "token":
                table["special"] = table["token"].isin(_special_tokens(statistics))
            named = ", ".join("" if one is None else one.axes for one in statistics.layouts)
            rows.append(
                table.assign(
                    module=name,
                    type=type(chosen[name]).__name__,
                    order=watched.visits[name].order,
                    layout=named,
                    forwards=statistics.n_forwards,
                )
            )
        shown.finish()
    if left_out:
        logger.info("component_effects: left out %d module(s): %s", len(left_out), left_out)
    if not rows:
        raise ValueError(f"layers: none of {listed(chosen)} has one activation to intervene on: {_reasons(left_out)}")
    table = pd.concat(rows, ignore_index=True)
    table["part"] = table["module"].map(_parts(watched.visits))
    table["share"] = table["effect"] / table["observed_score"].where(table["observed_score"] != 0)
    columns = ["example", "module", "type", "part", "order", "layout", *([] if level == "module" else [level])]
    columns += ["special"] if level == "token" else []
    columns += [
        "effect",
        "standard_error",
        "lower",
        "upper",
        "p_value",
        "share",
        "status",
        "n_draws",
        "observed_score",
        "forwards",
    ]
    table = table.sort_values(["example", "effect"], ascending=[True, False], ignore_index=True)
    if region_units is not None:
        options = Options(
            name="Shares of the region's effect",
            forward_func=target,
            inputs=inputs,
            baselines=baselines,
            target=output,
            additional_forward_args=additional_forward_args,
            units=InputUnits(feature_mask=feature_mask, block_size=block_size),
            # A region has no others to lean on: it is not given up after a few draws.
            effort=Effort(
                n_draws=n_draws, n_screening_draws=0, seed=seed, sampling="stratified", allocation="equal", support=support
            ),
            execution=Execution(perturbations_per_eval=perturbations_per_eval),
            show_progress=show_progress,
            return_statistics=True,
        )
        with renamed(forward_func="target", target="output"):
            table = with_shares(table, options, {name: chosen[name] for name in found}, region=region_units)
        columns = [*columns[: columns.index("share") + 1], *SHARES, *columns[columns.index("share") + 1 :]]
    attrs, table = table.attrs, table[columns]
    table.attrs = attrs | {"left_out": left_out}
    return table


def _banks(
    baselines: Any,
    inputs: Tensor | tuple[Tensor, ...],
    modules: Mapping[str, nn.Module],
    *,
    watched: "_Watched",
    at_input: bool,
) -> dict[str, list[AnySource]]:
    """For each module its donors, to be taken out of the list, so that what was recorded goes with the last one who needs it.

    Modules share a pass of the donor images as far as their activations fit into the bank's memory together.
    """
    if are_images(baselines, inputs if isinstance(inputs, tuple) else (inputs,)):
        with renamed(images="baselines"):
            baselines = ActivationBank(baselines)
    if not isinstance(baselines, ActivationBank):
        return {name: [baselines.fresh()] for name in modules} if isinstance(baselines, AnySource) else {}
    banks: dict[str, list[AnySource]] = {}
    group: list[str] = []
    held = 0

    def share() -> None:
        together = baselines.of_layers([modules[name] for name in group])
        banks.update({name: [together] for name in group})

    for name in modules:
        sighting = watched.seen[name]
        # Of float32; twice, for what is heard of a module and what is stored of it are there at the same time.
        size = (
            8
            * watched.runs
            * len(baselines)
            * sum(math.prod(a.length for a in axes) for axes in (sighting.taken if at_input else sighting.returned))
        )
        if group and held + size > baselines.memory_budget:
            share()
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        share()
    return banks


def _reasons(left_out: Mapping[str, str]) -> str:
    """Why modules were left out, each reason once: there may be hundreds of modules."""
    modules: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        modules.setdefault(reason, []).append(name)
    return "; ".join(f"{reason} ({listed(names)})" for reason, names in modules.items())


def _refuse_drift(first: Tensor, now: Tensor, name: str) -> None:
    """Raise where the model has changed since the first module.

    Raises:
        ValueError: the observed scores differ.
    """
    if not torch.allclose(now, first, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"target: the observed score was {first.flatten().tolist()} at the first module and {now.flatten().tolist()} at {name!r}: the "
            "model is random, or changes as it is run, and effects would be those of that"
        )


def _seed_of(module: str, seed: Any) -> Any:
    """The seed, or one per example, of a module's draws: modules with draws in common would have errors in common."""
    if isinstance(seed, Sequence):
        return [_seed_of(module, one) for one in seed]
    return int.from_bytes(hashlib.sha256(f"{seed} {module}".encode()).digest()[:8], "big")


@dataclass
class _Visit:
    """What a module did in one forward pass.

    Attributes:
        order: how many modules had returned when it did; of the modules inside of it, the orders are those from ``began`` on.
        size: positions of what it returned; 0 where that is not known.
    """

    calls: int = 0
    began: int = -1
    order: int = -1
    size: int = 0
    has_tensor: bool = False
    scripted: bool = False

    def unusable(self) -> str | None:
        if self.scripted:
            return "hooks do not run inside TorchScript"
        if self.calls == 0:
            return "it is not called"
        if self.calls > 1:
            return f"it is called {self.calls} times"
        return None if self.has_tensor else "it returns no floating-point tensor"


@dataclass(frozen=True)
class _Watched:
    """What was seen in one forward pass of one example.

    Args:
        modules: of the model, by name.
        visits: what they did.
        seen: what the axes of their tensors mean.
        n_spatial: spatial axes of the image.
        runs: how often a module runs on an image; more than once inside a sliding window.
        elsewhere: of modules of further networks of an ensemble, the one that they are replaced together with.
    """

    modules: dict[str, nn.Module]
    visits: dict[str, _Visit]
    seen: dict[str, Sighting]
    n_spatial: int
    runs: int = 1
    elsewhere: Mapping[str, str] = field(default_factory=dict)


class _LeftOut(Exception):
    """A module has no units of the level that was asked for; the message says why."""


def _named(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules asked for, by name, without the model itself."""
    every = {name: module for name, module in model.named_modules() if name}
    if not every:
        raise ValueError(
            f"target: its model ({type(model).__name__}) has no modules inside whose activations could be replaced (frozen TorchScript "
            "has none); give the eager model"
        )
    if layers is None:
        return every
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not fnmatch.filter(every, pattern):
            raise ValueError(f"layers: {no_module(pattern, every)}")
    return {name: module for name, module in every.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


def _watch(target: Callable[..., Any], model: nn.Module, inputs: Any, additional_forward_args: Any) -> _Watched:
    """Watch one forward pass (of a sliding window, of one window): how often, in which order and at which resolution modules are called."""
    call = prepare_call(target, inputs, additional_forward_args)
    visits: dict[str, _Visit] = {}
    began: defaultdict[str, list[int]] = defaultdict(list)
    finished = 0

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: began[name].append(finished)

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, args: Any, returned: Any) -> None:
            nonlocal finished
            visit = visits.setdefault(name, _Visit())
            visit.calls += 1
            visit.began = began[name].pop()
            visit.order = finished
            finished += 1

        return after

    handles = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            visits[name] = _Visit(scripted=True)
        elif name:
            handles.append(module.register_forward_pre_hook(in_this_thread(before(name))))
            handles.append(module.register_forward_hook(in_this_thread(hook(name))))
    try:
        with undisturbed(call.scorer.function):
            # One example is enough to see how the network runs.
            few = [v[:1].clone() if isinstance(v, Tensor) and v.ndim else v for v in (*call.inputs, *call.arguments)]
            few = list(call.scorer.model_inputs(*few))
            # Not the scores: for those, a stochastic model is run several times.
            run: Callable[..., Any] = call.scorer.answer
            windowed = call.scorer.windowed_model
            if windowed is not None:
                run, few = functools.partial(answer_of, windowed, 0), windowed.first_window(few[0], few[1:])
            seen = follow(lambda: run(*few), few, modules)
    finally:
        for handle in handles:
            handle.remove()
    for name, sighting in seen.items():
        if name in visits and sighting.returned:
            visits[name].has_tensor = True
            visits[name].size = _positions(sighting.returned[0], len(call.spatial))
    found = _Watched(modules=modules, visits=visits, seen=seen, n_spatial=len(call.spatial))
    return found if windowed is None else replace(found, runs=_passes(windowed, call), elsewhere=_elsewhere(windowed, modules))


def _passes(windowed: WindowedModel, call: Call) -> int:
    """How often a module of the network runs on an image, in windows that touch the regions of interest."""
    layout = windowed.layout(call.spatial)
    if call.rois is None:
        return len(layout) * windowed.runs_per_window
    touching = WindowGeometry(layout, call.rois, len(call.inputs[0])).touching
    return int(touching.any((0, 2)).sum()) * windowed.runs_per_window


def _elsewhere(windowed: WindowedModel, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """By names, modules of further networks and those of the first that they are replaced together with."""
    names = {id(module): name for name, module in reversed(list(modules.items()))}
    found: dict[str, str] = {}
    for name, module in modules.items():
        together = windowed.in_each_network(module) if name else None
        if together is not None and together[0] is not module:
            found[name] = names[id(together[0])]
    return found


def _positions(axes: Axes, n_spatial: int) -> int:
    """How many places of the image an activation tells apart; 0 where that is not known."""
    try:
        layout = read_layout(axes, n_spatial) if axes and axes[0].length == 1 else None
    except ValueError:  # other axes than those of the examples come first
        layout = None
    return 0 if layout is None else math.prod(layout.grid or layout.spatial([axis.length for axis in axes]))


def _layouts(name: str, level: str, asked: Any, watched: _Watched) -> tuple[str | Layout, ...]:
    """For each tensor of the activation its layout, "auto" where it is not known and need not be.

    Raises:
        _LeftOut: the module has no units of this level.
    """
    if name in watched.elsewhere:
        raise _LeftOut(f"it is replaced together with {watched.elsewhere[name]}, its like in the first network")
    reason = watched.visits.get(name, _Visit()).unusable()
    if reason:
        if level == "head" and isinstance(watched.modules[name], nn.modules.linear.NonDynamicallyQuantizableLinear):
            reason += "; its attention computes it in one function with all else: see reveal_heads"
        raise _LeftOut(reason)
    sighting = watched.seen[name]
    activation = sighting.taken if level == "head" else sighting.returned
    if not activation:
        raise _LeftOut("it takes no floating-point tensor")
    lengths = [axes[0].length if axes else 0 for axes in activation]
    in_windows = level == "head" and all(len(axes) == 3 for axes in activation)
    if lengths != [1] * len(lengths) and not in_windows:
        raise _LeftOut(f"its activation has not one entry per example, but {max(lengths)}")
    if level == "head" and not (sighting.returned and projected(sighting.returned[0][-1])):
        raise _LeftOut("it is no output projection of attention heads")
    if isinstance(asked, Mapping):
        asked = next((one for pattern, one in asked.items() if fnmatch.fnmatchcase(name, pattern)), "auto")
    found: list[str | Layout] = []
    for axes in activation:
        layout = asked
        try:
            if asked == "auto":
                layout = read_layout(axes, watched.n_spatial)
            elif isinstance(asked, str):
                layout = with_grid(Layout(asked), axes, watched.n_spatial)
            if level == "head" and layout is not None:
                layout = with_heads(layout, name, modules=watched.modules, seen=watched.seen, axes=axes)
        except ValueError as error:
            if level == "head":
                raise _LeftOut("it is no output projection of attention heads") from None
            if asked == "auto":
                raise _LeftOut(str(error).removeprefix("layer: ")) from None
            raise
        if layout is None and level != "module":
            raise _LeftOut("what the axes of its activation mean cannot be told (give layout)")
        if level == "token" and layout is not None and layout.axes == "NC*":
            raise _LeftOut("it returns no tokens")
        found.append("auto" if layout is None else layout)
    return tuple(found)


def _n_units(layouts: Sequence[str | Layout], level: str, sighting: Sighting) -> int:
    """How many units a module has; of several tensors, no unit spans two."""
    if level == "module":
        return 1
    shapes = [[axis.length for axis in axes] for axes in (sighting.taken if level == "head" else sighting.returned)]
    return sum(layout.n_units(_UNITS[level], shape) for layout, shape in zip(layouts, shapes) if isinstance(layout, Layout))


def _most_draws(n_units: int, n_draws: int, n_donors: float) -> int:
    """How many interventions so many units may have: a bank that is not much larger than they take is used up."""
    return int(n_units * min(n_donors, max(n_draws, Effort(n_draws=n_draws).drains(n_units))))


def _n_donors(baselines: Any) -> float:
    """How many donors a unit has, as far as that is known before."""
    if baselines is None or isinstance(baselines, (int, float)):
        return 1
    in_place = isinstance(baselines, ActivationBank) and baselines.placement == "aligned"
    return len(baselines) if in_place or (isinstance(baselines, Tensor) and baselines.ndim) else math.inf


def _special_tokens(statistics: TreatmentEffectStatistics) -> list[int]:
    """Ids of the tokens that lie on no grid; of several tensors they are numbered on."""
    found, first = [], 0
    for layout, shape in zip(statistics.layouts, statistics.input_shapes):
        assert layout is not None
        found += [first + token for token in (layout.special_tokens(shape) if layout.axes == "NLC" else ())]
        first += math.prod(layout.spatial(shape))
    return found


def _parts(visits: dict[str, _Visit]) -> dict[str, str]:
    """Encoder, bottleneck or decoder, by the place before, at or after the smallest resolution; of several the first and the last."""
    spatial = [visit for visit in visits.values() if visit.size > 1]
    smallest = min((visit.size for visit in spatial), default=0)
    if not spatial or smallest == max(visit.size for visit in spatial):
        return dict.fromkeys(visits, "network")
    places = [visit.order for visit in spatial if visit.size == smallest]
    low, high = min(places), max(places)

    def part(place: int) -> str:
        if low <= place <= high:
            return "bottleneck"
        return "encoder" if place < low else "decoder"

    def parts(visit: _Visit) -> str:
        # What is inside of it returned before it did.
        first, last = part(visit.began), part(max(visit.began, visit.order - 1))
        return first if first == last else f"{first}-{last}"

    return {name: parts(visit) for name, visit in visits.items()}
