"""Several attribution methods on the same segmentation: one table, one picture."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import ANY, BOOLEAN, FUNCTION, NONE, SEED, TEXT, checked, integer, mapping, sequence
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.progress import Progress
from captum_causalseg.evaluation.faithfulness import Faithfulness, metric_names, without_known_cost
from captum_causalseg.evaluation.question import CONTROL, Method, Question, check_method, mean_scores
from captum_causalseg.evaluation.replacements import Attributions
from captum_causalseg.target.outputs import first_image

__all__ = ["CONTROL", "Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        table: tidy, one row per method, example and metric: ``method``, ``example``, ``metric``, ``value``, ``score_direction``
            (``"higher"`` or ``"lower"`` is better), ``source``, ``why`` (why there is no value, where that is NaN; else empty), ``forwards`` (images that went through the model to make the
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

    def unknown(self) -> list[str]:
        """Why fields of the table are empty: a sentence without its period per metric and reason, with the methods that it is about.

        Example:
            >>> import torch
            >>> from captum_causalseg import compare
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)
            >>> maps, options = {"all": torch.ones_like(case.images)}, {"block_size": 8, "metrics": ["deletion, harming"]}
            >>> compare(maps, case.target(), case.images, case.donors, n_controls=0, **options).unknown()
            ['deletion, harming of all: the map has no value below 0']
        """
        missing = self.table[self.table["why"] != ""]
        found = missing.groupby(["metric", "why"], sort=False)["method"].unique()
        said = [f"{metric} of {', '.join(methods)}: {why}" for (metric, why), methods in found.items()]
        uncounted = self.table.loc[self.table["forwards"].isna(), "method"].unique()
        return said + (
            [f"forwards of {', '.join(uncounted)}: they are counted only of a model that is a module"] if len(uncounted) else []
        )

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
        metrics: names from :data:`captum_causalseg.evaluation.faithfulness.METRICS`, all by default, and
            :data:`~captum_causalseg.evaluation.faithfulness.ON_REQUEST`. ``"irof, soft"`` is judged by the
            differentiable twin of the target's metric, and so is every other.
        n_controls: number of random maps that are scored as well; a faithful map has to beat the mean of their scores. 0 for none.
        seed: of the split, the scores and the random map; methods have seeds of their own.
        show_progress: say how many forwards the scores take at most, and about how long, and show a bar over them.
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
        check_method(name, method)
    if n_controls and CONTROL in methods:
        raise ValueError(f"methods: the name {CONTROL!r} is taken by the control")
    chosen = metric_names(metrics)
    question = Question(
        target=target,
        inputs=inputs,
        baselines=baselines,
        output=output,
        additional_forward_args=additional_forward_args,
        held_out=held_out,
        feature_mask=feature_mask,
        block_size=block_size,
        exclude=exclude,
        seed=seed,
        faithfulness=faithfulness,
    )
    judge = question.judge()
    attributions: dict[str, Attributions] = {}
    rows = []
    with Progress("Comparing methods", show_progress) as bar:
        doing = _judged(bar, judge, chosen, n_maps=len(methods) + n_controls)
        for place, (name, method) in enumerate(methods.items()):
            doing(name, place)
            found = question.explained(method)
            attributions[name] = found.attributions
            doing(f"scores of {name}", place)
            scores = judge.evaluate(found.attributions, chosen)
            scores.insert(0, "method", name)
            rows.append(scores.assign(forwards=found.forwards, seconds=found.seconds))
        if n_controls:
            doing("scores of random maps", len(methods))
            maps = question.controls(n_controls)
            attributions[CONTROL] = maps[0]
            scores = mean_scores(judge, maps, chosen)
            scores.insert(0, "method", CONTROL)
            rows.append(scores.assign(forwards=0.0, seconds=0.0))
        bar.finish()
    return Comparison(
        table=pd.concat(rows, ignore_index=True),
        attributions=attributions,
        image=first_image(inputs if isinstance(inputs, tuple) else (inputs,)).detach().cpu(),
        roi=judge.roi,
    )


def _judged(bar: Progress, judge: Faithfulness, metrics: list[str], *, n_maps: int) -> Callable[[str, int], None]:
    """Tell a progress bar what scores take; a function that is told what is being done, and how many maps have been scored."""
    world, scored = judge.replacements, 0
    if not bar.shown:
        return lambda what, n_scored: None
    pace = world.time()
    # Leakage looks beyond the region, at all logits.
    beyond = [name for name in metrics if name == "leakage"]

    def most(n: int) -> int:
        of_whole = judge.forecast(beyond, n_maps=n) if beyond and n else 0
        every = judge.forecast(metrics, n_maps=n) if n else 0
        return math.ceil((every - of_whole) * pace.near + of_whole * pace.whole)

    before, total = world.n_forwards, most(n_maps)
    besides = ", ".join(["what the methods take", *(f"what {name!r} takes" for name in without_known_cost(metrics))])
    bar.begin(
        math.ceil(pace.near * world.n_examples),
        most=total,
        noun=pace.noun,
        pace=pace.seconds,
        purpose=f"for the scores of {n_maps} maps; {besides} comes besides",
    )

    def advance() -> None:
        made = round((world.n_forwards - before) * pace.near)
        bar.advance(min(made, total), left=most(n_maps - scored))

    def doing(what: str, n_scored: int) -> None:
        nonlocal scored
        scored = n_scored
        bar.doing(what)

    world.on_forwards = advance
    return doing
