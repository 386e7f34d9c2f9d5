"""The study's tables and figures, from the rows of its comparisons."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study_methods import METRICS, OURS

from captum_causalseg import summarize_comparison
from captum_causalseg.cohort import ComparisonSummary
from captum_causalseg.evaluation.question import CONTROL

__all__ = ["write_report"]

_WORDS = {"equal": "At equal forwards", "defaults": "With defaults"}
_BETTER, _UNCLEAR = "#0072B2", "0.55"
_SHOWN = tuple(metric for metric in METRICS if metric.endswith(", soft"))


def summary_of(table: pd.DataFrame, by: str | None = None) -> ComparisonSummary:
    """Regions of one picture (brain: of neighboring slices), over networks as well, count as one case."""
    return summarize_comparison(table, against=OURS, by=by, cluster="cluster")


def cell(value: float, low: float, high: float, signed: bool = False) -> str:
    """A mean with its interval."""
    if np.isnan(value):
        return "none"
    mean = f"{value:+.3f}" if signed else f"{value:.3f}"
    return mean if np.isnan(low) else f"{mean} [{low:.3f}, {high:.3f}]"


def _of(row: "pd.Series[float]") -> str:
    """How many groups a mean is of, where some have no value."""
    return f" (of {row['n_cases']})" if row["n_cases"] and row["n_missing"] else ""


def arrow(direction: str) -> str:
    return "↑" if direction == "higher" else "↓"


def means_table(summary: ComparisonSummary, costs: "pd.Series[float]") -> list[str]:
    means = summary.means
    metrics = [name for name in METRICS if name in set(means["metric"])]
    directions = means.drop_duplicates("metric").set_index("metric")["score_direction"]
    lines = ["| method | forwards | " + " | ".join(f"{name} {arrow(directions[name])}" for name in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for method in dict.fromkeys(means["method"]):
        rows = means[means["method"] == method].set_index("metric")
        cells = [cell(*rows.loc[name, ["mean", "lower", "upper"]].astype(float)) + _of(rows.loc[name]) for name in metrics]
        cost = "" if method == CONTROL or pd.isna(costs.get(method)) else f"{costs[method]:.0f}"
        lines.append(f"| {method} | {cost} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def differences_table(summary: ComparisonSummary) -> list[str]:
    """Paired differences: method minus ours; bold where Holm's correction over the whole table leaves them."""
    found = summary.differences
    metrics = [name for name in METRICS if name in set(found["metric"])]
    directions = found.drop_duplicates("metric").set_index("metric")["score_direction"]
    lines = ["| method | " + " | ".join(f"{name} {arrow(directions[name])}" for name in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    for method in dict.fromkeys(found["method"]):
        rows = found[found["method"] == method].set_index("metric")
        cells = []
        for name in metrics:
            text = cell(*rows.loc[name, ["difference", "lower", "upper"]].astype(float), signed=True)
            cells.append(f"**{text}**" if float(rows.loc[name, "p_adjusted_all"]) < 0.05 else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def counts_line(table: pd.DataFrame) -> str:
    cases = table.drop_duplicates("case")
    places = ", ".join(f"{number} {place}" for place, number in cases["place"].value_counts().items())
    networks = ", ".join(f"{name} {number}" for name, number in cases["network"].value_counts(sort=False).items())
    right = float((cases["roi_dice"] >= 0.95).mean())
    return (
        f"{len(cases)} regions ({places}) on {cases['picture'].nunique()} pictures in {cases['cluster'].nunique()} independent groups; by network: "
        f"{networks}. In {right:.0%} of the regions Dice against what they are scored by is at least 0.95."
    )


def ranks_line(summary: ComparisonSummary, metric: str) -> str:
    ranks = summary.ranks[summary.ranks["metric"] == metric].dropna(subset=["mean_rank"]).sort_values("mean_rank")
    if ranks.empty:
        return f"{metric}: no case in which all methods have a value."
    said = ", ".join(f"{row.method} {row.mean_rank:.1f}" for row in ranks.itertuples())
    first = ranks.iloc[0]
    return (
        f"{metric} ({int(first['n_cases'])} groups, Friedman p = {first['p_friedman']:.2g}, ranks that differ by less than "
        f"{first['critical_difference']:.1f} are not told apart): {said}."
    )


def forest(table: pd.DataFrame, by_place: bool) -> Figure:
    """Paired differences from ours with their intervals, turned so that the right is better for the method."""
    methods = [method for method in dict.fromkeys(table["method"]) if method != OURS]
    parts = [(data, part) for data, part in table.groupby("data", sort=False)]
    metrics = ("mu fidelity, soft",) if by_place else _SHOWN
    columns = [(data, part, place) for data, part in parts for place in (dict.fromkeys(part["place"]) if by_place else [None])]
    figure = Figure(
        figsize=(3.1 * len(columns if by_place else metrics) + 2, 3.8 * (1 if by_place else len(parts))), layout="constrained"
    )
    grid = figure.subplots(
        1 if by_place else len(parts), len(columns) if by_place else len(metrics), squeeze=False, sharey=True
    )
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            data, part, place = columns[column] if by_place else (*parts[row], None)
            metric = metrics[0] if by_place else metrics[column]
            one = part if place is None else part[part["place"] == place]
            axes, found = grid[row, column], summary_of(one[one["metric"] == metric]).differences
            sign = 1 if found["score_direction"].iloc[0] == "higher" else -1
            # The axes share their rows, also where a method has nothing.
            found = found.set_index("method").reindex(methods)
            places = np.arange(len(found))[::-1]
            colors = [_BETTER if p < 0.05 else _UNCLEAR for p in found["p_adjusted"]]
            middle = sign * found["difference"]
            axes.hlines(places, sign * found["lower"], sign * found["upper"], color=colors)
            axes.scatter(middle, places, color=colors, s=18, zorder=3)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_yticks(places, methods, fontsize=8)
            axes.set_title(f"{data}{'' if place is None else f', {place}'}\n{metric}", fontsize=9)
            axes.tick_params(axis="x", labelsize=8)
    figure.supxlabel(f"difference from {OURS!r}; to the right: better for the method", fontsize=9)
    return figure


def report(table: pd.DataFrame, about: pd.DataFrame) -> list[str]:
    lines = [
        "**Networks**",
        "",
        "| data | network | parameters | mean test Dice | lowest quarter below |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.data} | {row.network} | {row.parameters} | {row.dice:.3f} | {row.quarter:.3f} |"
        for row in about.rename(columns={"lowest quarter": "quarter"})
        .sort_values("data", ascending=False, kind="stable")
        .itertuples()
    ]
    for budget in ("equal", "defaults"):
        for data in dict.fromkeys(table["data"]):
            part = table[(table["budget"] == budget) & (table["data"] == data)]
            if part.empty or part["cluster"].nunique() < 2:
                continue
            summary = summary_of(part)
            costs = part.groupby("method")["forwards"].median()
            lines += [
                "",
                f"**{_WORDS[budget]}, {data}: means over groups of pictures [95 % interval]**",
                "",
                counts_line(part),
                "",
            ]
            lines += means_table(summary, costs.astype("float64"))
            lines += [
                f"**{_WORDS[budget]}, {data}: paired differences, method minus `{OURS}`**",
                "",
                *differences_table(summary),
            ]
            if budget == "equal":
                lines += ["Mean ranks (1 is best):", "", *(f"- {ranks_line(summary, metric)}" for metric in _SHOWN), ""]
    return lines


def write_report(table: pd.DataFrame, about: pd.DataFrame, docs: Path | None) -> None:
    """Print the tables; into the documentation's folder, write them with their figures."""
    text = "\n".join(report(table, about)) + "\n"
    print(text)
    if docs is None:
        return
    (docs / "benchmarks" / "study.md").write_text(text, encoding="utf-8")
    equal = table[table["budget"] == "equal"]
    forest(equal, by_place=False).savefig(docs / "_static" / "study_methods.png", dpi=70)
    forest(equal, by_place=True).savefig(docs / "_static" / "study_regions.png", dpi=70)
