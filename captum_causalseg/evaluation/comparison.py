"""Several attribution methods on the same segmentation: one table, one picture."""

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import pandas as pd
import torch
from captum.attr import Attribution
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_causalseg._captum import TargetType, progress
from captum_causalseg._checks import ANY, BOOLEAN, FUNCTION, NONE, SEED, TEXT, checked, integer, mapping, renamed, sequence
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
from captum_causalseg.attr.pdcr import PdCR
from captum_causalseg.donors.split import donor_parts
from captum_causalseg.evaluation.faithfulness import Faithfulness, metric_names
from captum_causalseg.evaluation.replacements import Attributions
from captum_causalseg.target.outputs import first_image, interpolated
from captum_causalseg.target.scorer import as_scorer

__all__ = ["Comparison", "compare"]

logger = logging.getLogger(__name__)

Method: TypeAlias = Attribution | tuple[Attribution, Mapping[str, Any]] | Callable[..., Attributions] | Attributions
CONTROL = "random (control)"
_OURS = (AverageTreatmentEffect, GradientTreatmentEffect, JointTreatmentEffect, PdCR)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        table: tidy, one row per method, example and metric: ``method``, ``example``, ``metric``, ``value``, ``score_direction``
            (``"higher"`` or ``"lower"`` is better), ``source``, ``forwards`` (images that went through the model to make the
            maps of the whole batch, windows of a :class:`~captum_causalseg.WindowedModel`; NaN where they cannot be counted) and ``seconds`` (for the same).
        attributions: per method, the maps as they were scored: like the inputs, or with one channel; of the control, one of them.
        image: the first of the inputs that is an image, ``(N, C, *spatial)``.
        roi: ``(N, *spatial)``, the region of interest of the explained output; ``None`` without one.

    Example:
        >>> import torch
        >>> from captum_causalseg import compare
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
        >>> maps = {"truth": case.effects_of_map(), "sign turned": -case.effects_of_map()}
        >>> comparison = compare(maps, case.target(), case.images, case.donors, block_size=8, metrics=["mu fidelity"])
        >>> table = comparison.wide()
        >>> table.columns.tolist(), bool(table.loc["truth"].iloc[0] > table.loc["sign turned"].iloc[0])
        (['mu fidelity', 'forwards', 'seconds'], True)
        >>> [axes.get_title() for axes in comparison.plot().axes[:3]]
        ['Image and region of interest', 'truth', 'sign turned']
    """

    table: pd.DataFrame
    attributions: dict[str, Attributions]
    image: Tensor
    roi: Tensor | None

    def wide(self) -> pd.DataFrame:
        """One row per method; a column per metric (the mean over the examples with a value), ``forwards`` and ``seconds``.

        Example:
            >>> from captum_causalseg import compare
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)
            >>> maps, options = {"truth": case.effects_of_map()}, {"block_size": 8, "metrics": ["irof"]}
            >>> comparison = compare(maps, case.target(), case.images, case.donors, **options)
            >>> table = comparison.wide()
            >>> table.index.tolist(), table.columns.tolist()
            (['truth', 'random (control)'], ['irof', 'forwards', 'seconds'])
        """
        methods = list(self.attributions)
        values = self.table.pivot_table("value", "method", "metric", aggfunc="mean", dropna=False, sort=False)
        costs = self.table.groupby("method", sort=False)[["forwards", "seconds"]].first()
        metrics = list(dict.fromkeys(self.table["metric"]))
        return values.reindex(index=methods, columns=metrics).join(costs).rename_axis(columns=None)

    @checked(title=TEXT)
    def plot(self, *, example: int = 0, title: str = "") -> Figure:
        """All maps side by side on one scale: :func:`captum_causalseg.visualization.plot_comparison`.

        Example:
            >>> from captum_causalseg import compare
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)
            >>> maps, options = {"truth": case.effects_of_map()}, {"block_size": 8, "metrics": ["irof"]}
            >>> comparison = compare(maps, case.target(), case.images, case.donors, **options)
            >>> [axes.get_title() for axes in comparison.plot().axes[:2]]
            ['Image and region of interest', 'truth']
        """
        from captum_causalseg.visualization import plot_comparison  # which draws what this room makes

        return plot_comparison(self, example=example, title=title)


@checked(
    methods=mapping(TEXT, ANY, expected="a mapping of names to methods", least=1),
    target=FUNCTION,
    metrics=NONE | sequence(TEXT, 1),
    n_controls=integer(0),
    seed=SEED,
    show_progress=BOOLEAN,
    faithfulness=NONE | mapping(TEXT, ANY, expected="a mapping of further arguments"),
)
def compare(
    methods: Mapping[str, Method],
    target: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Any = None,
    *,
    output: TargetType = None,
    additional_forward_args: Any = None,
    held_out: Any = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    exclude: Exclude = "roi",
    metrics: Sequence[str] | None = None,
    n_controls: int = 5,
    seed: int = 0,
    show_progress: bool = False,
    faithfulness: Mapping[str, Any] | None = None,
) -> Comparison:
    """Explain the same outputs with several methods and score how faithful each is to the model.

    Args:
        methods: by name: a Captum attribution object; a pair of one and the arguments of its ``attribute``; a function that takes
            the inputs and returns a map; or a map. Objects are called with ``inputs``, ``target=output`` and
            ``additional_forward_args``; this library's get the donors and units as well. Maps of a layer are summed over its channels
            and brought to the input's size.
        target: what is explained and scored: a :class:`~captum_causalseg.SegmentationTarget`, or another forward function. Gradient
            methods are given ``target.surrogate()`` when they are made; all are judged by this target.
        inputs: ``(N, C, *spatial)``, or a tuple of inputs.
        baselines: donors. A bank of several images is split by image: one half for the methods, the other for the scores, so that no
            method is judged with the donors that it has seen. What cannot be split is used for both, with a warning in the log.
        output: which output is explained: Captum's ``target``.
        additional_forward_args: further arguments of the forward function.
        held_out: donors for the scores; ``baselines`` are then the methods' alone.
        feature_mask: units that are replaced to score the maps.
        block_size: or blocks.
        exclude: units that are never replaced.
        metrics: names from :data:`captum_causalseg.evaluation.faithfulness.METRICS`; all by default.
        n_controls: number of random maps that are scored as well; a faithful map has to beat the mean of their scores. 0 for none.
        seed: of the split, the scores and the random map; methods have seeds of their own.
        show_progress: a bar over the methods.
        faithfulness: further arguments of :class:`~captum_causalseg.evaluation.Faithfulness`, such as ``n_draws``.

    Raises:
        TypeError, ValueError: something among the methods that is none; arguments as ``attribute`` checks them.

    Example:
        >>> import torch
        >>> from captum.attr import IntegratedGradients
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, compare, regions
        >>> model, image = torch.nn.Conv2d(1, 2, 9, padding=4), torch.rand(1, 1, 32, 32)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8))
        >>> comparison = compare(
        ...     {
        ...         "effects": (AverageTreatmentEffect(target), {"n_draws": 10}),
        ...         "integrated gradients": (IntegratedGradients(target.surrogate()), {"n_steps": 8}),
        ...     },
        ...     target, image, PatchBank(torch.rand(20, 1, 32, 32)), output=1, block_size=4,
        ... )
        >>> comparison.wide().index.tolist()
        ['effects', 'integrated gradients', 'random (control)']
    """
    for name, method in methods.items():
        _check_method(name, method)
    if n_controls and CONTROL in methods:
        raise ValueError(f"methods: the name {CONTROL!r} is taken by the control")
    chosen = metric_names(metrics)
    estimation, judging = (baselines, held_out) if held_out is not None else _split(baselines, seed)
    with renamed(target="output", forward_func="target", **({} if held_out is None else {"baselines": "held_out"})):
        judge = Faithfulness(
            forward_func=target,
            inputs=inputs,
            baselines=judging,
            target=output,
            additional_forward_args=additional_forward_args,
            **(
                {"feature_mask": feature_mask, "block_size": block_size, "exclude": exclude, "seed": seed}
                | dict(faithfulness or {})
            ),
        )
    given = {"baselines": estimation, "feature_mask": feature_mask, "block_size": block_size, "exclude": exclude}
    bar = progress(desc="Comparing methods", total=len(methods)) if show_progress else None
    attributions: dict[str, Attributions] = {}
    rows = []
    try:
        for name, method in methods.items():
            found, forwards, seconds = _run(
                method, target, inputs=inputs, output=output, additional_forward_args=additional_forward_args, given=given
            )
            attributions[name] = found
            rows.append(_scored(judge, name, found=found, metrics=chosen, forwards=forwards, seconds=seconds))
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    if n_controls:
        attributions[CONTROL], scored = _controls(judge, inputs, metrics=chosen, n=n_controls, seed=seed)
        rows.append(scored)
    return Comparison(
        table=pd.concat(rows, ignore_index=True),
        attributions=attributions,
        image=first_image(_as_tuple(inputs)).detach().cpu(),
        roi=judge.roi,
    )


def _check_method(name: str, method: Any) -> None:
    if isinstance(method, tuple) and len(method) == 2 and isinstance(method[1], Mapping):
        method = method[0]
        if not isinstance(method, Attribution):
            raise TypeError(
                f"methods[{name!r}]: arguments are only for a Captum attribution object, got {type(method).__name__}"
            )
    maps = isinstance(method, tuple) and bool(method) and all(isinstance(one, Tensor) for one in method)
    if not (isinstance(method, (Attribution, Tensor)) or maps or callable(method)):
        raise TypeError(
            f"methods[{name!r}]: expected a Captum attribution object, a pair of one and its arguments, a function or a map, got "
            f"{type(method).__name__}"
        )


def _split(baselines: Any, seed: int) -> tuple[Any, Any]:
    """Donors for the methods, and others to judge them with."""
    halves = donor_parts(baselines, (0.5, 0.5), seed, least=2)
    if isinstance(halves, str):
        logger.warning("compare: %s; methods are judged with donors that they may have seen", halves)
        return baselines, baselines
    return halves[0], halves[1]


def _run(
    method: Any, target: Any, inputs: Any, output: Any, additional_forward_args: Any, given: Mapping[str, Any]
) -> tuple[Attributions, float, float]:
    """The map like the inputs, the images that went through the model for it, and the seconds that it took."""
    arguments: dict[str, Any] = {}
    if isinstance(method, tuple) and isinstance(method[1], Mapping):
        method, arguments = method[0], dict(method[1])
    if isinstance(method, (Tensor, tuple)):
        return _like_inputs(method, inputs), 0.0, 0.0
    if isinstance(method, Attribution):
        accepted = set(inspect.signature(method.attribute).parameters)
        if "kwargs" in accepted:  # wrappers such as NoiseTunnel pass them on
            accepted |= {"target", "additional_forward_args"}
        common = {"target": output, "additional_forward_args": additional_forward_args}
        if isinstance(method, _OURS):
            units = {"feature_mask", "block_size"} & set(arguments)
            common |= {
                n: v
                for n, v in given.items()
                # `exclude=None` says something.
                if (v is not None or n == "exclude") and not (units and n in ("feature_mask", "block_size"))
            }
            if method.baselines is not None:
                common.pop("baselines", None)
        arguments = {n: v for n, v in common.items() if n in accepted} | arguments
        call = partial(method.attribute, **arguments)
    else:
        call = partial(method)
    with _counting(target) as count:
        began = time.perf_counter()
        found = _like_inputs(call(inputs), inputs)  # on the CPU, so that a device has finished
        seconds = time.perf_counter() - began
    return found, count[0], seconds


@contextmanager
def _counting(target: Any) -> Iterator[list[float]]:
    """How many images go through the target's model within the block (windows, of one in windows); NaN if it is no module."""
    scorer, count = as_scorer(target), [0.0]
    model, windowed = scorer.model, scorer.windowed_model
    if windowed is not None:
        before = windowed.windows_run
        yield count
        count[0] = float(windowed.windows_run - before)
        return
    if not isinstance(model, nn.Module):
        yield [float("nan")]
        return

    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        tensors = [value for value in args if isinstance(value, Tensor) and value.ndim]
        count[0] += len(tensors[0]) if tensors else 0

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def _like_inputs(found: Any, inputs: Any) -> Attributions:
    """Maps of the inputs' spatial shape, on the CPU; those of a layer summed over channels and interpolated."""
    tensors = _as_tuple(inputs)
    maps = found if isinstance(found, tuple) else (found,)
    if len(maps) != len(tensors) or not all(isinstance(one, Tensor) for one in maps):
        kinds = [type(one).__name__ for one in maps]
        raise TypeError(f"methods: expected a map for each of {len(tensors)} input(s), got {kinds}")
    brought = []
    for one, tensor in zip(maps, tensors):
        one = one.detach().cpu()
        if one.ndim == tensor.ndim and one.ndim > 2 and one.shape != tensor.shape:
            one = one.sum(1, keepdim=True)
            if one.shape[2:] != tensor.shape[2:]:
                one = interpolated(one, tensor.shape[2:])
        brought.append(one)
    return tuple(brought) if isinstance(inputs, tuple) else brought[0]


def _scored(
    judge: Faithfulness, name: str, found: Attributions, metrics: list[str], forwards: float, seconds: float
) -> pd.DataFrame:
    scored = judge.evaluate(found, metrics)
    scored.insert(0, "method", name)
    return scored.assign(forwards=forwards, seconds=seconds)


def _controls(judge: Faithfulness, inputs: Any, metrics: list[str], n: int, seed: int) -> tuple[Attributions, pd.DataFrame]:
    """The first of ``n`` random maps, and the mean scores of all."""
    generator = torch.Generator().manual_seed(seed)
    maps = [tuple(torch.randn(tensor.shape, generator=generator) for tensor in _as_tuple(inputs)) for _ in range(n)]
    scored = [_scored(judge, CONTROL, found=noise, metrics=metrics, forwards=0.0, seconds=0.0) for noise in maps]
    mean = pd.concat([one["value"] for one in scored], axis=1).mean(axis=1)
    return (maps[0] if isinstance(inputs, tuple) else maps[0][0]), scored[0].assign(value=mean)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
