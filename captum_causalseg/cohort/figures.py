"""Pictures of what a cohort says: effects by distance, and effects of modules, with intervals between cases."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from captum_causalseg._checks import TEXT, checked, instance, integer, sequence, shown
from captum_causalseg.cohort.case_values import PARTS
from captum_causalseg.cohort.summary import CohortSummary
from captum_causalseg.visualization.ink import ink, series_colors
from captum_causalseg.visualization.pictures import PICTURE, literal, short
from captum_causalseg.writing.names import printable

__all__ = ["plot_cohort_components", "plot_cohort_profile"]

# Besides colors, for who prints in gray.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PANELS = {
    "mean_absolute_effect": "mean |effect| on the {score}",
    "mean_effect": "mean effect on the {score}\n(above 0 supports, below harms)",
    "share": "share of the mass",
    "cumulative_share": "share of the mass within",
    "energy": "energy (effect² - error²) on the {score}",
}


@checked(PICTURE, summary=instance(CohortSummary), panels=sequence(TEXT, 1, expected=f"some of {tuple(_PANELS)}"))
def plot_cohort_profile(
    summary: CohortSummary,
    *,
    panels: tuple[str, ...] = ("mean_absolute_effect", "mean_effect", "cumulative_share"),
    title: str = "",
    score_name: str = "score",
    columns: int | None = None,
) -> Figure:
    """How the effects change with the distance from the region of interest: means over cases with their intervals, by group.

    Bars are the intervals between cases, of one number per case and bin; without a bar where only one case has units there. Groups
    stand side by side at each distance, and the numbers in the legend are those of their cases.

    Args:
        summary: of :func:`summarize`, of a study of units.
        panels: columns of ``summary.profile`` to show: ``"mean_absolute_effect"``, ``"mean_effect"``, ``"cumulative_share"``, ``"share"``,
            ``"energy"``.
        title: above the panels.
        score_name: the name of the score, with its unit.
        columns: at most so many panels side by side; by default all.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError, ValueError: ``summary`` is something else or has no profile, or a panel is unknown.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
        >>> from captum_causalseg.cohort import explain_cohort, plot_cohort_profile, summarize
        >>> model = torch.nn.Conv2d(1, 2, 5, padding=2)
        >>> def make_target(case):
        ...     return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box((16, 16), 4, 4))
        >>> cases = [{"id": k, "image": torch.rand(1, 16, 16)} for k in range(3)]
        >>> options = {"baselines": 0.0, "block_size": 4, "n_draws": 1, "target": 1, "show_progress": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = explain_cohort(cases, make_target, method=AverageTreatmentEffect, out=folder, **options)
        ...     figure = plot_cohort_profile(summarize(study), score_name="Dice")
        >>> len(figure.axes)
        3
    """
    if summary.profile.empty:
        raise ValueError("summary: it has no profile; its study is of components, or its units have no distance")
    if not all(name in _PANELS for name in panels):
        raise ValueError(f"panels: expected some of {tuple(_PANELS)}, got {shown(panels)}")
    across = min(columns or len(panels), len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=((1 if across > 1 else 0.5) + 4.2 * across, 4.2 if down == 1 else 3.4 * down), layout="constrained")
    every: np.ndarray = figure.subplots(down, across, squeeze=False)
    for unused in every.flat[len(panels) :]:
        unused.set_visible(False)
    groups = _groups(summary.profile, summary)
    for axes, name in zip(every.flat, panels):
        for number, (_, table) in enumerate(groups):
            # Side by side within the bin.
            place = table["bin"] * summary.bin_width + summary.bin_width * _beside(
                number, len(groups), min(0.14, 0.8 / len(groups))
            )
            _with_intervals(axes, place - summary.bin_width / 2, table=table, name=name, number=number)
        unit = summary.distance_unit.replace("pixel", "pixels")
        axes.set_xlabel("distance from the region of interest" + (f" ({unit})" if unit else ""))
        axes.set_ylabel(_PANELS[name].format(score=score_name))
        if name == "mean_effect":
            axes.axhline(0, color=ink(0.4), linewidth=0.8)
        elif name.endswith("share"):
            axes.set_ylim(-0.03, 1.03)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(min(0.0, float(summary.profile["bin"].min() - 1) * summary.bin_width))
    handles = [_handle(number) for number in range(len(groups))]
    labels = []
    for place, _ in groups:
        n = summary.cases.at[place, "n_finished"]
        count = f"{n} case" if n == 1 else f"{n} cases"
        labels.append(f"{summary.groups[place]} ({count})" if summary.by else count)
    every[0, 0].legend(handles, labels, frameon=False, fontsize=9)
    figure.supxlabel(f"bars: {100 * summary.level:g} % intervals between cases", fontsize=9, color=ink(0.3))
    if title:
        figure.suptitle(title)
    return literal(figure)


@checked(PICTURE, summary=instance(CohortSummary), max_rows=integer(1))
def plot_cohort_components(summary: CohortSummary, *, max_rows: int = 30, title: str = "", score_name: str = "score") -> Figure:
    """A forest plot: the mean effect of each module over cases, and how much it differs between them, by group.

    Thick bars are the intervals of the mean, thin ones where another case's effect would lie (from three cases on). At the right
    the number of cases, and the heterogeneity: ``tau``, the standard deviation between cases, and ``I2``, the share of the scatter
    that is not error. Filled markers differ from 0 at the false discovery rate ``summary.alpha``.

    Args:
        summary: of :func:`summarize`, of a study of :func:`~captum_causalseg.component_effects`.
        max_rows: the most modules (or channels) to draw: those with the largest absolute mean in any group, in the order of the forward
            pass.
        title: above the plot.
        score_name: the name of the score, with its unit.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError, ValueError: ``summary`` is something else or has no components, or ``max_rows`` is not positive.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import SegmentationTarget, component_effects
        >>> from captum_causalseg.cohort import explain_cohort, plot_cohort_components, summarize
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> def make_target(case, model=model):
        ...     return SegmentationTarget.from_prediction(model, case["image"][None])
        >>> cases = [{"id": k, "image": torch.rand(1, 16, 16)} for k in range(3)]
        >>> options = {"baselines": torch.rand(4, 1, 16, 16), "n_draws": 4, "target": 1, "show_progress": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = explain_cohort(cases, make_target, method=component_effects, out=folder, **options)
        ...     figure = plot_cohort_components(summarize(study), score_name="Dice")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['0', '1', '2']
    """
    if summary.components.empty:
        raise ValueError("summary: it has no components; its study is of units")
    named = [name for name in ("module", *PARTS) if name in summary.components]
    largest = summary.components.assign(size=summary.components["effect"].abs()).groupby(named, sort=False)
    chosen = (
        largest.agg(size=("size", "max"), order=("order", "min")).nlargest(max_rows, "size").sort_values("order", kind="stable")
    )
    labels = [printable(short(" / ".join(map(str, key if isinstance(key, tuple) else (key,))))) for key in chosen.index]
    groups = _groups(summary.components, summary)
    height = 1.5 + max(0.3, 0.19 * len(groups) + 0.08) * len(chosen)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    axes: Axes = figure.subplots()
    for number, (_, table) in enumerate(groups):
        shown = table.set_index(named).reindex(chosen.index)
        place = np.arange(len(chosen)) + _beside(number, len(groups), 0.8 / len(groups))
        color = _color(number)
        mean = shown["effect"].to_numpy(dtype=float)
        for low, high, width, alpha in (("prediction_lower", "prediction_upper", 1.2, 0.6), ("lower", "upper", 3.4, 1.0)):
            axes.hlines(place, shown[low], shown[high], color=color, linewidth=width, alpha=alpha)
        sure = (shown["q_value"] <= summary.alpha).to_numpy()
        for which, face in ((sure, color), (~sure, ink(1))):
            axes.plot(
                mean[which],
                place[which],
                _MARKERS[number % len(_MARKERS)],
                color=color,
                markerfacecolor=face,
                markersize=5.5,
                zorder=3,
            )
        for y, row in zip(place, shown.to_dict("records")):
            if row["n_cases"] > 0:
                axes.text(
                    1.01,
                    y,
                    _heterogeneity(row),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=7.5,
                    color=color,
                )
    axes.axvline(0, color=ink(0.3), linewidth=0.8)
    axes.set_yticks(np.arange(len(chosen)), labels, fontsize=8.5)
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    for edge in np.arange(len(chosen) - 1) + 0.5:
        axes.axhline(edge, color=ink(0.92), linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"effect on the {score_name} (above 0 supports, below harms)\n"
        f"thick: {100 * summary.level:g} % interval of the mean, thin: of another case; filled: differs from 0"
    )
    if summary.by:
        handles = [_handle(number) for number in range(len(groups))]
        axes.legend(
            handles,
            [summary.groups[place] for place, _ in groups],
            frameon=False,
            fontsize=9,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(4, len(groups)),
        )
    if title:
        figure.suptitle(title)
    return literal(figure)


def _groups(table: pd.DataFrame, summary: CohortSummary) -> list[tuple[int, pd.DataFrame]]:
    """The rows of each group that has some, and its place among all groups."""
    if not summary.by:
        return [(0, table)]
    columns = list(summary.by)
    placed = summary.cases[columns].rename_axis("place").reset_index().merge(table, on=columns)
    return [(int(place), rows) for place, rows in placed.groupby("place")]


def _beside(number: int, count: int, step: float) -> float:
    """How far one of several things that stand side by side is from their middle."""
    return (number - (count - 1) / 2) * step


def _with_intervals(axes: Axes, place: "pd.Series[float]", table: pd.DataFrame, name: str, number: int) -> None:
    """Points with bars; an interval that is not known has none."""
    mean = table[name].to_numpy()
    ends = np.abs(table[[f"{name}_lower", f"{name}_upper"]].to_numpy().T - mean)
    axes.errorbar(
        place.to_numpy(),
        mean,
        yerr=np.where(np.isfinite(ends), ends, 0),
        color=_color(number),
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4.5,
        linewidth=1.2,
        elinewidth=1.1,
        capsize=2.5,
    )


def _color(number: int) -> str:
    colors = series_colors()
    return colors[number % len(colors)]


def _handle(number: int) -> Line2D:
    color = _color(number)
    return Line2D([], [], color=color, marker=_MARKERS[number % len(_MARKERS)], markersize=5, linewidth=1.4)


def _heterogeneity(row: dict[str, float]) -> str:
    said = f"n = {row['n_cases']:.0f}"
    if np.isfinite(row["tau"]):
        said += f", τ = {row['tau']:.2g}"
    if np.isfinite(row["i2"]):
        said += f", I² = {100 * row['i2']:.0f} %"
    return said
