"""Which units stand in for each other, and which need each other; and which components of the network do so with units."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, NONE, Check, checked, instance, integer, no_module, renamed, sequence
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.effort import EFFORT, Effort
from captum_causalseg.attr.estimate import Running, estimate, running
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.layer import LAYOUT, are_images
from captum_causalseg.attr.layer_average_treatment_effect import LayerBaselines
from captum_causalseg.attr.options import InputAndLayerUnits, InputUnits, LayerUnits, Options
from captum_causalseg.attr.pair_table import asked_pairs, pair_table
from captum_causalseg.engine.contexts import Shapley
from captum_causalseg.engine.pairs import run_pairs
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.sites import InputsAndLayersSite
from captum_causalseg.layout import Layout, UnitKind
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.target.scorer import as_scorer

__all__ = ["interaction_effects"]

# Of every unit, to find the strongest.
_DRAWS_TO_CHOOSE = 16

Member = int | str | tuple[str, int]
"""A unit's id; a module's name; or such a name and the number of a channel."""

Pairs = Sequence[tuple[Member, Member]]


def _is_member(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return (
            len(value) == 2
            and isinstance(value[0], str)
            and _is_member(value[1])
            and not isinstance(value[1], (str, tuple, list))
        )
    is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return isinstance(value, str) or (is_number and bool(value >= 0))


_MEMBER = Check("a unit id of at least 0, a module's name, or such a name with the number of a channel", _is_member)


@checked(
    EFFORT,
    target=instance(SegmentationTarget, nn.Module, expected="a SegmentationTarget or another module"),
    pairs=NONE
    | sequence(
        sequence(_MEMBER, length=2, expected="a pair of units or components"), 1, expected="pairs of units or components"
    ),
    top=NONE | integer(2),
    n_draws=integer(2),
    alpha=FRACTION,
    channels=CHANNELS,
    units=UNITS,
    layout=LAYOUT,
)
def interaction_effects(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    *,
    output: TargetType = None,
    pairs: Pairs | None = None,
    top: int | None = None,
    additional_forward_args: Any = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    channels: Channels = None,
    units: UnitKind = "block",
    n_draws: int = 50,
    alpha: float = 0.05,
    support: Literal["auto", "always"] | None = "auto",
    exclude: Exclude = "roi",
    perturbations_per_eval: int = 16,
    seed: int | Sequence[int] = 0,
    show_progress: bool = False,
    component_baselines: LayerBaselines = None,
    layout: str | Layout = "auto",
) -> pd.DataFrame:
    """What pairs of units, or of a unit and a component of the network, do together that they do not do one by one.

    For a pair ``p, q`` and donors ``b`` of both, the interaction is the effect of replacing both, less the sum of the effects of replacing either:

        ``interaction = [M(x) - M(do p, q)] - [M(x) - M(do p)] - [M(x) - M(do q)]``

    Every draw gives all of them with the same donors. The interaction has the sign of the joint effect where the units **stand in for each other**
    (redundant: either is enough, so that replacing one does little), and the opposite sign where they **need each other** (synergistic: either alone is
    of little use, so that replacing one does as much as replacing both).

    Args:
        target: what is scored, a :class:`~captum_causalseg.SegmentationTarget` or another module that returns scores.
        inputs, baselines, additional_forward_args, feature_mask, block_size, channels, units, support, exclude, perturbations_per_eval, seed, show_progress: as in
            :meth:`AverageTreatmentEffect.attribute`.
        output: which output, as Captum's ``target``; of a class and a RoI, the pair.
        pairs: of unit ids, of components, or of one of each. A component is the name of a module as in :func:`component_effects`, which is
            replaced as a whole, or such a name and the number of a channel: ``(3, "bottleneck")``, ``(3, ("bottleneck", 7))``. A module is called once
            in a run; what of it is not replaced is what it becomes on the replaced image; or
        top: all pairs of so many units of each example, those with the largest joint effects (:class:`~captum_causalseg.JointTreatmentEffect`, 16 further
            draws of all units, which are not used again).
        n_draws: of every pair, at least 2. ``m`` units in ``k`` pairs take ``m + k`` forwards per draw.
        component_baselines: donors of the components, as ``layer_baselines`` of :meth:`LayerAverageTreatmentEffect.attribute`: donor images whose activations
            are taken, an :class:`~captum_causalseg.ActivationBank`, activations, or a number. By default ``baselines``, where these are whole images.
        layout: what the axes of the components' activations mean, likewise.
        alpha: the false discovery rate at which a pair is called redundant or synergistic (Benjamini and Hochberg, over the pairs of an example).

    Returns:
        One row per example and pair, the strongest interactions first. Columns: ``example``, ``first``, ``second`` (unit ids; of components the names, such as
        ``"bottleneck"`` or ``"bottleneck[7]"``, behind units), ``effect_first``,
        ``effect_second`` (single effects), ``joint`` with ``joint_lower`` and ``joint_upper``, ``interaction`` with its ``standard_error``, ``lower`` and
        ``upper`` (95 % intervals, variances moderated over the pairs of an example), ``p_value``, ``p_adjusted``, ``n_draws``, and ``kind``: ``"redundant"``,
        ``"synergistic"``, ``"unclear"`` where there is an interaction but the sign of the joint effect is open, or ``"none"`` where none was found; ``first_0``, ``first_1``, ..., ``second_0``, ...: the middles of the
        units along the axes, in pixels (NaN for components). A pair with a unit that cannot reach the RoI interacts by exactly 0. ``table.attrs["forwards"]`` says what the forwards were spent on.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

    Example:
        >>> import torch
        >>> from captum_causalseg import interaction_effects
        >>> class Score(torch.nn.Module):
        ...     def forward(self, image):  # either of the first two pixels is enough; the last two are both needed
        ...         a, b, c, d = image.flatten(1).T
        ...         return torch.maximum(a, b) + torch.minimum(c, d)
        >>> image, donors = torch.ones(1, 1, 1, 4), torch.rand(20, 1, 1, 4) / 10
        >>> table = interaction_effects(Score(), image, donors, pairs=[(0, 1), (2, 3), (0, 2)], block_size=1)
        >>> sorted(zip(table["first"], table["second"], table["kind"]))
        [(0, 1, 'redundant'), (0, 2, 'none'), (2, 3, 'synergistic')]

        A unit and a channel of a layer:

        >>> from captum_causalseg import SegmentationTarget
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> image, donors = torch.rand(1, 1, 16, 16), torch.rand(10, 1, 16, 16)
        >>> target = SegmentationTarget.from_prediction(model, image, metric="soft_dice")
        >>> table = interaction_effects(target, image, donors, output=1, pairs=[(5, ("0", 2)), (5, "2")], block_size=4, exclude=None)
        >>> sorted(zip(table["first"], table["second"]))
        [(5, '0[2]'), (5, '2')]
    """
    if (pairs is None) == (top is None):
        raise ValueError(f"pairs, top: give one of them, got {'both' if top is not None else 'neither'}")
    image = InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units)
    options = Options(
        name="Interactions",
        forward_func=target,
        inputs=inputs,
        baselines=baselines,
        target=output,
        additional_forward_args=additional_forward_args,
        units=image,
        effort=Effort(n_draws=n_draws, n_screening_draws=0, seed=seed, sampling="uniform", support=support),
        execution=Execution(perturbations_per_eval=perturbations_per_eval),
        show_progress=show_progress,
        return_statistics=True,
    )
    given = None if pairs is None else _distinct(pairs)
    components = _components(target, given or ())
    if components.layers:
        donors = baselines if component_baselines is None else component_baselines
        if component_baselines is None and not are_images(donors, inputs if isinstance(inputs, tuple) else (inputs,)):
            raise ValueError(
                "component_baselines: needed where pairs name components and baselines are not whole images like the inputs; give donor images, an "
                "ActivationBank, activations, or a number"
            )
        layers = tuple(replace(one, layout=layout) for one in components.layers)
        options = replace(options, units=InputAndLayerUnits(inputs=image, layers=layers, layer_baselines=donors))
    elif component_baselines is not None:
        raise ValueError("component_baselines: no pair names a component; leave it out, or name modules in pairs")
    with renamed(target="output", forward_func="target", layer_baselines="component_baselines", layer="pairs"):
        chosen, forwards = ({}, {}) if top is None else _strongest(options, top)
        with running(options) as now:
            ids = _Ids(components, now)
            of_examples = chosen if given is None else dict.fromkeys(range(now.problem.n_examples), given)
            asked = asked_pairs(now, {n: [ids.of(pair) for pair in mine] for n, mine in of_examples.items()})
            reach = now.plan.active[asked, now.outputs.chosen[now.plan.example[asked]]].all(1)
            found = None
            if reach.any():
                how: dict[str, Any] = {"batch_size": now.batch_size, "on_progress": now.forecast(in_context=True).run}
                found = run_pairs(now.plan, asked[reach], now.evaluator, observed=now.baseline, **how)
    table = pair_table(now, asked, reach, label=ids.label, found=found, alpha=alpha)
    spent = now.forwards(0 if found is None else found.n_forwards)
    table.attrs["forwards"] = {**spent, **({"choosing the units": sum(forwards.values())} if forwards else {})}
    return table


def _distinct(pairs: Pairs) -> list[tuple[Member, Member]]:
    """Each pair once: units before components, the smaller id first."""
    plain = [tuple(_plain(member) for member in pair) for pair in pairs]
    alike = next((first for first, second in plain if first == second), None)
    if alike is not None:
        raise ValueError(f"pairs: expected two different units or components, got {alike} twice")

    def place(member: Member) -> tuple[bool, str, int]:
        if isinstance(member, int):
            return False, "", member
        return (True, member, -1) if isinstance(member, str) else (True, *member)

    ordered = [tuple(sorted(pair, key=place)) for pair in plain]
    return list(dict.fromkeys((first, second) for first, second in ordered))


def _plain(member: Any) -> Member:
    if isinstance(member, str):
        return member
    return (member[0], int(member[1])) if isinstance(member, (tuple, list)) else int(member)


@dataclass(frozen=True)
class _Components:
    """The modules that pairs name.

    Args:
        names: of them, each with whether its channels are meant and not the whole.
        layers: the same as units.
    """

    names: tuple[tuple[str, bool], ...]
    layers: tuple[LayerUnits, ...]


def _components(target: SegmentationTarget | nn.Module, pairs: Sequence[tuple[Member, Member]]) -> _Components:
    """See which modules are named.

    Raises:
        ValueError: there is none of this name, or one is meant as a whole and by its channels.
    """
    members = [member for pair in pairs for member in pair if not isinstance(member, int)]
    if not members:
        return _Components((), ())
    names = tuple(dict.fromkeys((m, False) if isinstance(m, str) else (m[0], True) for m in members))
    model = as_scorer(target).model
    every = {name: module for name, module in model.named_modules() if name} if isinstance(model, nn.Module) else {}
    modules: dict[int, str] = {}
    for name, _ in names:
        if name not in every:
            raise ValueError(f"pairs: {no_module(name, every)}")
        other = modules.setdefault(id(every[name]), name)
        if other != name or sum(one == name for one, _ in names) > 1:
            raise ValueError(
                f"pairs: {name!r} is named as a whole and by its channels, or by two names; ask for these pairs in calls of their own"
            )
    return _Components(
        names, tuple(LayerUnits(layer=every[name], kind="channel" if by_channel else "layer") for name, by_channel in names)
    )


class _Ids:
    """Ids of members among all units of the problem: those of the image are their own, components are numbered on."""

    def __init__(self, components: _Components, now: Running) -> None:
        known = now.problem.units.ids
        self.least, self.first = int(known.min()), int(known.max()) + 1
        self._of: dict[Member, int] = {}
        self._channels: dict[str, int] = {}
        masks, tensors = now.problem.units.masks, len(now.problem.site.inputs)
        ends = [int(mask.max()) for mask in masks]
        if components.names:
            self.first = max(ends[:tensors]) + 1
        begin, slot = self.first, tensors
        for (name, by_channel), layer in zip(components.names, _activations(now)):
            end = max(ends[slot : slot + layer]) + 1
            slot += layer
            self._channels[name] = end - begin
            if by_channel:
                self._of |= {(name, channel): begin + channel for channel in range(end - begin)}
            else:
                self._of[name] = begin
            begin = end

    def of(self, pair: tuple[Member, Member]) -> tuple[int, int]:
        """The ids of a pair.

        Raises:
            ValueError: there is no such unit or channel.
        """
        first, second = (member if isinstance(member, int) else self._component(member) for member in pair)
        for member in pair:
            if isinstance(member, int) and member >= self.first:
                raise ValueError(f"pairs: there is no unit {member}; the ids are {self.least} to {self.first - 1}")
        return first, second

    def label(self, number: int) -> int | str:
        """What a member is called in the table."""
        member = next((one for one, mine in self._of.items() if mine == number), number)
        return member if isinstance(member, (int, str)) else f"{member[0]}[{member[1]}]"

    def _component(self, member: str | tuple[str, int]) -> int:
        if member not in self._of:
            assert not isinstance(member, str)
            name, channel = member
            raise ValueError(f"pairs: {name!r} has {self._channels[name]} channels, there is no channel {channel}")
        return self._of[member]


def _activations(now: Running) -> list[int]:
    """How many tensors each layer of the problem has."""
    site = now.problem.site
    return [len(layer.activation.tensors) for layer in site.layers.layers] if isinstance(site, InputsAndLayersSite) else []


def _strongest(options: Options, top: int) -> tuple[dict[int, list[tuple[Member, Member]]], dict[str, int]]:
    """For each example all pairs of its units with the largest joint effects, and the forwards that were spent."""
    effort = replace(options.effort, n_draws=_DRAWS_TO_CHOOSE)
    _, statistics = estimate(replace(options, context=Shapley(), effort=effort))
    one = statistics.of_output(options.target)
    found: dict[int, list[tuple[Member, Member]]] = {}
    for n, (effects, asked) in enumerate(zip(one.effect.numpy(), one.hypotheses.numpy())):
        ranked = np.argsort(-np.where(asked, np.abs(effects), -1.0), kind="stable")[: min(top, int(asked.sum()))]
        ids = sorted(one.unit_ids.numpy()[ranked].tolist())
        found[n] = list(itertools.combinations(ids, 2))
    return found, dict(statistics.settings["forwards"])
