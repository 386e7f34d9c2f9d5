"""The study's tables and figures, from the rows of its comparisons."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study_methods import METRICS, OURS

from captum_causalseg import summarize_comparison
from captum_causalseg.cohort import ComparisonSummary
from captum_causalseg.evaluation.question import CONTROL
from captum_causalseg.statistics import adjust_p_values

__all__ = ["write_report"]

_WORDS = {"equal": "At equal forwards", "defaults": "With defaults"}
_FEWEST = 4
"""Independent groups of pictures, below which nothing is said."""
_BETTER, _UNCLEAR = "#0072B2", "0.55"
_SHOWN = ("attribution score, soft", "deletion, supporting, soft", "mu fidelity, soft", "sensitivity n, soft", "road")
_RIVALS, _OWN, _CLAIMED = ("Seg-Grad-CAM", "MiSuRe"), (OURS, "PdCR"), ("attribution score", "road")
"""The paper's claim, which is tested by itself: its rivals, our estimate and the paper's own protocol, its score and one whose judge uses no donors."""
_CLAIMED_HEADS = ("attribution score ↑", "ROAD ↓")


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


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """At equal forwards, ours minus its rivals', by data set and score, with Holm's correction over all of these rows."""
    rows = []
    for data, part in table[(table["budget"] == "equal") & table["metric"].isin(_CLAIMED)].groupby("data", sort=False):
        for rival in _RIVALS:
            found = summarize_comparison(part, against=rival, cluster="cluster").differences
            rows.append(found[found["method"].isin(_OWN)].assign(data=data))
    made = pd.concat(rows, ignore_index=True)
    made["p_claim"] = adjust_p_values(made["p_value"].to_numpy(dtype=float), "holm")
    return made


def claims_table(table: pd.DataFrame) -> str:
    """The paper's claim; bold where the correction leaves a difference."""
    found = claims(table)
    lines = ["| data | method | minus | " + " | ".join(_CLAIMED_HEADS) + " |", "|---|---|---|---|---|"]
    for (data, rival, method), rows in found.groupby(["data", "against", "method"], sort=False):
        by_metric, cells = rows.set_index("metric"), []
        for metric in _CLAIMED:
            row = by_metric.loc[metric]
            text = cell(*row[["difference", "lower", "upper"]].astype(float), signed=True)
            text = f"**{text}**" if row["p_claim"] < 0.05 else text
            cells.append(f"{text}, p = {row['p_claim']:.2g}, {row['n_pairs']} groups")
        lines.append(f"| {data} | {method} | {rival} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


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


def _panel(axes: Any, table: pd.DataFrame, methods: list[str], metric: str) -> None:
    """Paired differences, turned so that the right is better for the method."""
    found = summary_of(table[table["metric"] == metric]).differences
    sign = 1 if found["score_direction"].iloc[0] == "higher" else -1
    # The axes share their rows, also where a method has nothing.
    found = found.set_index("method").reindex(methods)
    places = np.arange(len(found))[::-1]
    colors = [_BETTER if p < 0.05 else _UNCLEAR for p in found["p_adjusted"]]
    axes.hlines(places, sign * found["lower"], sign * found["upper"], color=colors)
    axes.scatter(sign * found["difference"], places, color=colors, s=18, zorder=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, methods, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)


def _methods(table: pd.DataFrame) -> list[str]:
    return [method for method in dict.fromkeys(table["method"]) if method != OURS]


def forest(table: pd.DataFrame) -> Figure:
    """Differences from ours, a row of panels per data set, a column per score."""
    parts = list(table.groupby("data", sort=False))
    figure = Figure(figsize=(2.3 * len(_SHOWN) + 1.6, 3.9 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), len(_SHOWN), squeeze=False, sharey=True)
    for row, (data, part) in zip(grid, parts):
        for axes, metric in zip(row, _SHOWN):
            _panel(axes, part, _methods(table), metric)
            axes.set_title(f"{data}\n{metric}", fontsize=9)
    figure.supxlabel(f"difference from {OURS!r}; to the right: better for the method", fontsize=9)
    return figure


def forest_by_place(table: pd.DataFrame, metric: str = "mu fidelity, soft") -> Figure:
    """Differences from ours by one score, a panel per data set and kind of region with enough independent groups."""
    parts = [
        (f"{data}, {place}", part)
        for (data, place), part in table.groupby(["data", "place"], sort=False)
        if part["cluster"].nunique() >= _FEWEST
    ]
    figure = Figure(figsize=(2.6 * len(parts) + 1.6, 4), layout="constrained")
    for axes, (title, part) in zip(figure.subplots(1, len(parts), squeeze=False, sharey=True)[0], parts):
        _panel(axes, part, _methods(table), metric)
        axes.set_title(f"{title}\n{part['case'].nunique()} regions in {part['cluster'].nunique()} groups", fontsize=9)
    figure.supxlabel(f"difference from {OURS!r} in {metric}; to the right: better for the method", fontsize=9)
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
            if part.empty or part["cluster"].nunique() < _FEWEST:
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
    (docs / "benchmarks" / "study_claim.md").write_text(claims_table(table), encoding="utf-8")
    for budget, name in (("equal", "study_methods.png"), ("defaults", "study_defaults.png")):
        part = table[table["budget"] == budget]
        if not part.empty and part.groupby("data")["cluster"].nunique().min() >= _FEWEST:
            forest(part).savefig(docs / "_static" / name, dpi=80)
    forest_by_place(table[table["budget"] == "equal"]).savefig(docs / "_static" / "study_regions.png", dpi=80)
