"""The picture of a comparison of methods on many cases."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_causalseg._checks import ANY, NONE, TEXT, checked, instance, listed, mapping, shown
from captum_causalseg.cohort.comparison_summary import ComparisonSummary
from captum_causalseg.visualization.ink import ink, series_colors
from captum_causalseg.visualization.pictures import PICTURE, literal, short

__all__ = ["plot_cohort_comparison"]

_OTHERS, _BAR = 0.25, "#D55E00"


@checked(
    PICTURE,
    summary=instance(ComparisonSummary),
    metric=TEXT,
    group=NONE | mapping(TEXT, ANY, expected='a dict of columns of by such as {"kind": "boundary"}'),
)
def plot_cohort_comparison(
    summary: ComparisonSummary, metric: str, *, group: dict[str, object] | None = None, title: str = ""
) -> Figure:
    """Three views of one metric: means over cases with their intervals, paired differences, and mean ranks with Nemenyi's critical difference.

    In the diagram of ranks, methods that a bar joins are not told apart: their mean ranks differ by less than the critical difference (Demsar 2006). In the middle,
    differences are of each method from ``against``, drawn so that the right is better for the method; filled markers differ from 0 after Holm's correction. Without ``against`` there
    is no middle.

    Args:
        summary: of :func:`captum_causalseg.summarize_comparison`.
        metric: which.
        group: of a summary by groups, which group: a value for every column of ``by``; the first by default.
        title: above the panels.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError, ValueError: an argument is not as described; there is no such metric or group.

    Example:
        >>> import pandas as pd
        >>> from captum_causalseg import summarize_comparison
        >>> from captum_causalseg.cohort import plot_cohort_comparison
        >>> values = {"ours": (3, 4, 6), "other": (1, 3, 2), "random": (0, 1, 1)}
        >>> rows = [(case, name, "irof", value, "higher") for name, found in values.items() for case, value in enumerate(found)]
        >>> table = pd.DataFrame(rows, columns=["case", "method", "metric", "value", "score_direction"])
        >>> figure = plot_cohort_comparison(summarize_comparison(table, against="ours"), "irof")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['ours', 'other', 'random']
    """
    means = _rows(summary.means, summary, metric, group=group)
    higher = means["score_direction"].iloc[0] == "higher"
    means = means.dropna(subset=["mean"]).sort_values("mean", ascending=not higher, ignore_index=True)
    if means.empty:
        raise ValueError(f"metric: no method has a value of {metric!r}")
    ranks = _rows(summary.ranks, summary, metric, group=group).dropna(subset=["mean_rank"])
    names = means["method"].tolist()
    widths = [1.0, 1.0] if summary.against is None else [1.0, 1.0, 1.0]
    figure = Figure(figsize=(1.6 + 3.8 * len(widths), 1.7 + 0.34 * len(names)), layout="constrained")
    panels: np.ndarray = figure.subplots(1, len(widths), squeeze=False)[0]
    _means(panels[0], means, summary)
    panels[0].set_title(f"{metric} ({means['score_direction'].iloc[0]} is better)", fontsize=10)
    if summary.against is not None:
        found = _rows(summary.differences, summary, metric, group=group).set_index("method")
        _differences(panels[1], found, names, summary=summary, sign=1 if higher else -1)
    _ranked(panels[-1], ranks, summary)
    where = (
        ", ".join(f"{name} {value}" for name, value in zip(summary.by, means[list(summary.by)].iloc[0])) if summary.by else ""
    )
    said = f"bars: {100 * summary.level:g} % intervals between cases"
    figure.supxlabel(f"{where}; {said}" if where else said, fontsize=9, color=ink(0.3))
    if title:
        figure.suptitle(title)
    return literal(figure)


def _rows(table: pd.DataFrame, summary: ComparisonSummary, metric: str, *, group: dict[str, object] | None) -> pd.DataFrame:
    """Those of one metric and group."""
    known = list(dict.fromkeys(table["metric"]))
    if metric not in known:
        raise ValueError(f"metric: expected one of {listed(known, most=20)}, got {shown(metric)}")
    table = table[table["metric"] == metric]
    chosen = dict(zip(summary.by, table[list(summary.by)].iloc[0])) if group is None and summary.by else group or {}
    if set(chosen) != set(summary.by):
        raise ValueError(f"group: expected a value for each of {list(summary.by)}, got {shown(chosen)}")
    for name, value in chosen.items():
        table = table[table[name] == value]
    if table.empty:
        raise ValueError(f"group: there is no group {chosen!r}")
    return table.reset_index(drop=True)


def _means(axes: Axes, means: pd.DataFrame, summary: ComparisonSummary) -> None:
    for place, row in means.iterrows():
        color = series_colors()[0] if row["method"] == summary.against else ink(_OTHERS)
        axes.plot([row["lower"], row["upper"]], [place, place], color=color, linewidth=2)
        axes.plot(row["mean"], place, "o", color=color, markersize=6)
        n = f"n={row['n_cases']}" + (f"\n{row['n_missing']} silent" if row["n_missing"] else "")
        axes.annotate(n, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=ink(0.45))
    _methods(axes, means["method"].tolist())
    axes.set_xlabel("mean over cases", fontsize=9)


def _differences(axes: Axes, found: pd.DataFrame, names: list[str], *, summary: ComparisonSummary, sign: int) -> None:
    for place, name in enumerate(names):
        if name == summary.against:
            continue
        row = found.loc[name]
        ends = sorted((sign * row["lower"], sign * row["upper"]))
        significant = row["p_adjusted"] < 1 - summary.level
        axes.plot(ends, [place, place], color=ink(_OTHERS), linewidth=2)
        face = ink(_OTHERS if significant else 1)
        axes.plot(sign * row["difference"], place, "o", color=ink(_OTHERS), markerfacecolor=face, markersize=6)
        won = f"better in\n{100 * row['win_rate']:.0f} % of {row['n_pairs']}"
        axes.annotate(won, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=ink(0.45))
    axes.axvline(0, color=series_colors()[0], linewidth=0.9)
    _methods(axes, names)
    axes.set_yticklabels([])
    axes.set_title(f"difference from {short(str(summary.against), 28)}", fontsize=10)
    axes.set_xlabel("worse  <  paired difference  >  better", fontsize=9)


def _ranked(axes: Axes, ranks: pd.DataFrame, summary: ComparisonSummary) -> None:
    axes.set_title("mean ranks", fontsize=10)
    if ranks.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no case in which\nall methods have a value", ha="center", va="center", transform=axes.transAxes)
        return
    ranks = ranks.sort_values("mean_rank", ignore_index=True)
    k, n, critical = int(ranks["n_methods"].iloc[0]), int(ranks["n_cases"].iloc[0]), float(ranks["critical_difference"].iloc[0])
    for place, row in ranks.iterrows():
        color = series_colors()[0] if row["method"] == summary.against else ink(_OTHERS)
        axes.plot([row["mean_rank"], row["mean_rank"]], [place, -1], color=color, linewidth=0.7, alpha=0.5)
        axes.plot(row["mean_rank"], place, "o", color=color, markersize=6)
        left = row["mean_rank"] > (k + 1) / 2
        axes.annotate(
            f"{short(str(row['method']), 26)}  {row['mean_rank']:.2f}",
            (row["mean_rank"], place),
            xytext=(-7 if left else 7, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            color=color,
        )
    for level, (first, last) in enumerate(_cliques(ranks["mean_rank"].to_numpy(), critical)):
        at = -1.4 - 0.35 * level
        axes.plot([first - 0.04, last + 0.04], [at, at], color=_BAR, linewidth=3, solid_capstyle="round")
    n_bars = len(_cliques(ranks["mean_rank"].to_numpy(), critical))
    axes.set_xlim(0.7, k + 0.3)
    axes.set_ylim(len(ranks) - 0.4, -1.6 - 0.35 * max(n_bars, 1))
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    p_value = ranks["p_friedman"].iloc[0]
    said = [] if np.isnan(p_value) else [f"Friedman p = {p_value:.2g}"]
    said += [] if np.isnan(critical) else [f"critical difference {critical:.2f}"]
    axes.set_xlabel("\n".join(filter(None, (f"rank (1 is best), {n} cases", ", ".join(said)))), fontsize=9)


def _cliques(ranks: np.ndarray, critical: float) -> list[tuple[float, float]]:
    """Longest runs of ascending mean ranks that lie within the critical difference, each by its ends."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.flatnonzero(ranks - ranks[first] < critical)[-1]) if critical > 0 else first
        if last > first and not any(a <= first and last <= b for a, b in found):
            found.append((first, last))
    return [(float(ranks[a]), float(ranks[b])) for a, b in found]


def _methods(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [short(str(name), 30) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.spines[["top", "right"]].set_visible(False)
