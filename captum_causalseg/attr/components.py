"""Which components of the network matter: the effect of every module, or every channel, in one table."""

import fnmatch
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from captum_causalseg._captum import TargetType, progress
from captum_causalseg._checks import NONE, TEXT, checked, instance, listed, nearest, one_of, renamed, sequence, shown
from captum_causalseg._state import undisturbed
from captum_causalseg.activations import ActivationBank
from captum_causalseg.attr._effort import EFFORT
from captum_causalseg.attr._problem import prepare_call
from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect, LayerBaselines
from captum_causalseg.interventions.layer import Activation
from captum_causalseg.target import SegmentationTarget

__all__ = ["component_effects"]

logger = logging.getLogger(__name__)


@checked(
    EFFORT,
    target=instance(SegmentationTarget, nn.Module),
    layers=NONE | TEXT | sequence(TEXT, 1, expected="a sequence of them"),
    level=one_of("module", "channel"),
)
def component_effects(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    layers: str | Sequence[str] | None = None,
    baselines: LayerBaselines = None,
    level: Literal["module", "channel"] = "module",
    *,
    output: TargetType = None,
    additional_forward_args: Any = None,
    n_draws: int = 20,
    n_screening_draws: int = 3,
    screening_threshold: float = 0.0002,
    perturbations_per_eval: int = 16,
    seed: int = 0,
    show_progress: bool = False,
) -> pd.DataFrame:
    """The average treatment effect of every component of a network on the score of the RoI.

    Each module's whole activation (or each channel of it) is replaced by what donor images give there, as
    :class:`~captum_causalseg.LayerAverageTreatmentEffect` does it. Positive effects support the segmentation.

    Args:
        target: what is scored; modules are named as in its ``model`` (or in itself, if it is another module).
        inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
        layers: names of modules, with ``*`` and ``?`` as wildcards, one or several; by default every module. Modules that are not
            called exactly once, or return no floating-point tensor, have no one activation to intervene on: they are left out, and
            ``table.attrs["left_out"]`` says why.
        baselines: donor images ``(D, C, *spatial)``, an :class:`~captum_causalseg.ActivationBank`, or a number; ``None`` is 0.
        level: ``"module"``: one row per module; ``"channel"``: one per channel of each.
        output: which output of the target, as Captum's ``target`` argument; needed if there are several.
        additional_forward_args, n_draws, n_screening_draws, screening_threshold, perturbations_per_eval, seed: as in
            :meth:`LayerAverageTreatmentEffect.attribute`.
        show_progress: show a progress bar over the modules.

    Returns:
        A table, the largest effects first within each example, with the columns ``example``, ``module``, ``type``, ``part`` (encoder,
        bottleneck or decoder: before, at and after the smallest resolution in the order of the forward pass; of a module whose first
        and last inner calls lie in different ones the span, such as encoder-decoder; network if there is no smallest), ``order`` (in
        the forward pass), ``channel`` (at that level), ``effect``, ``standard_error``, ``lower``, ``upper`` (95 % interval),
        ``p_value``, ``share`` (of the observed score), ``status``, ``n_draws``, ``observed_score``.

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
    model = target.model if isinstance(target, SegmentationTarget) else target
    if not isinstance(model, nn.Module):
        raise TypeError(f"target: its components are modules, but its model is a {type(model).__name__}")
    chosen = _named(model, layers)
    visits = _visits(target, model, inputs, additional_forward_args)
    rows, left_out = [], {}
    for name, module in _shown(chosen, show_progress):
        visit = visits.get(name, _Visit())
        reason = visit.unusable()
        if reason:
            left_out[name] = reason
            continue
        face = LayerAverageTreatmentEffect(target, module)
        with renamed(layer_baselines="baselines", target="output"):
            _, statistics = face.attribute(
                inputs,
                # A bank of its own for each module: the activations of all of them together may not fit into memory.
                layer_baselines=baselines.fresh() if isinstance(baselines, ActivationBank) else baselines,
                target=output,
                additional_forward_args=additional_forward_args,
                units="layer" if level == "module" else "channel",
                n_draws=n_draws,
                n_screening_draws=n_screening_draws,
                screening_threshold=screening_threshold,
                perturbations_per_eval=perturbations_per_eval,
                seed=seed,
                return_statistics=True,
            )
            table = statistics.of_output(output).to_dataframe().rename(columns={"unit": "channel"})
        rows.append(table.assign(module=name, type=type(module).__name__, order=visit.order))
    if left_out:
        logger.info("component_effects: left out %d module(s): %s", len(left_out), left_out)
    if not rows:
        raise ValueError(f"layers: none of {list(chosen)} has one activation to intervene on: {left_out}")
    table = pd.concat(rows, ignore_index=True)
    table["part"] = table["module"].map(_parts(visits))
    table["share"] = table["effect"] / table["observed_score"].where(table["observed_score"] != 0)
    columns = ["example", "module", "type", "part", "order", *(["channel"] if level == "channel" else [])]
    columns += ["effect", "standard_error", "lower", "upper", "p_value", "share", "status", "n_draws", "observed_score"]
    table = table.sort_values(["example", "effect"], ascending=[True, False], ignore_index=True)[columns]
    table.attrs["left_out"] = left_out
    return table


@dataclass
class _Visit:
    """What a module did in one forward pass.

    Attributes:
        order: how many modules had returned when it did; of the modules inside of it, the orders are those from ``began`` on.
        size: positions of what it returned.
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
            alike = nearest(pattern.strip("*?"), every)
            there = f"did you mean {listed(alike)}?" if alike else f"there are {listed(every)}"
            raise ValueError(f"layers: no module is named {shown(pattern)}; {there}")
    return {name: module for name, module in every.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


def _visits(target: Callable[..., Any], model: nn.Module, inputs: Any, additional_forward_args: Any) -> dict[str, _Visit]:
    """Watch one forward pass: how often, in which order and at which resolution modules are called."""
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
            try:
                tensors = Activation(returned).tensors
            except TypeError:
                return
            visit.has_tensor = True
            visit.size = tensors[0][0, 0].numel() if tensors[0].ndim > 2 else 1

        return after

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            visits[name] = _Visit(scripted=True)
        elif name:
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(hook(name))]
    try:
        with undisturbed(call.forward_func):
            # One example is enough to see how the network runs.
            few = [v[:1].clone() if isinstance(v, Tensor) and v.ndim else v for v in (*call.inputs, *call.arguments)]
            function = call.forward_func
            if isinstance(function, SegmentationTarget):
                # Not its scores: for those, a model whose answers differ is run several times.
                function.answer(*function.model_inputs(*few))
            else:
                function(*few)
    finally:
        for handle in handles:
            handle.remove()
    return visits


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


def _shown(chosen: dict[str, nn.Module], show_progress: bool) -> Any:
    items = list(chosen.items())
    return progress(items, desc="Component effects", total=len(items)) if show_progress else items
