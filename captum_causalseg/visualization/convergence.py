"""Effects and errors against the work that they took."""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import NONE, checked, instance, integer, one_of, sequence
from captum_causalseg.evaluation.unit_space import check_example
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.visualization.ink import ink, series_colors
from captum_causalseg.visualization.pictures import PICTURE, literal

__all__ = ["plot_convergence"]

# Okabe and Ito's colors, which the common kinds of color blindness tell apart; yellow is too pale for lines.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STATISTICS = instance(TreatmentEffectStatistics, expected="TreatmentEffectStatistics")
_AGAINST = {"forwards": "forward passes", "draws": "draws per unit (mean)"}


@checked(
    PICTURE,
    runs=sequence(_STATISTICS, 1, expected="a sequence of TreatmentEffectStatistics"),
    reference=NONE | _STATISTICS,
    n_units=integer(1),
    against=one_of(*_AGAINST),
)
def plot_convergence(
    runs: Sequence[TreatmentEffectStatistics],
    reference: TreatmentEffectStatistics | None = None,
    target: TargetType = None,
    *,
    example: int = 0,
    n_units: int = 5,
    against: Literal["forwards", "draws"] = "forwards",
    title: str = "",
    score_name: str = "score",
) -> Figure:
    """How effects and their errors settle as more draws are made: are there enough?

    Left: the effects of the strongest units with their 95 % intervals, side by side at every run, against the forward passes that the
    run took (of all examples of its batch). Right: root mean squares over the units that every run intervened on, of the standard
    error and, with a reference, of the error against it; where the two agree, the standard errors are right. The dotted line falls
    with the square root of the work.

    Args:
        runs: statistics of the same explanation with increasing numbers of draws (``n_draws``), of the same units; in any order.
        reference: statistics of the same units that stand for the truth: those of many draws or, exactly, of every donor.
        target: which output, as in ``attribute``.
        example: which example of the batch.
        n_units: how many units to show: those of largest ``|effect|`` in the reference, without one in the largest run.
        against: ``"forwards"``, or ``"draws"``: the mean number of draws of the units that were intervened on.
        title: above the panels.
        score_name: the name of the score, with its unit.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError: ``runs`` is no sequence of statistics.
        ValueError: runs of other units or outputs than the first, no runs, or a number out of range.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.visualization import plot_convergence
        >>> image, roi = torch.rand(1, 1, 16, 16), regions.box((16, 16), start=4, size=4)
        >>> target = SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 5, padding=2), image, roi=roi)
        >>> ate, bank = AverageTreatmentEffect(target), PatchBank(torch.rand(8, 1, 16, 16))
        >>> runs = [
        ...     ate.attribute(image, bank, target=1, block_size=4, n_draws=n, return_statistics=True)[1] for n in (4, 8, 16)
        ... ]
        >>> figure = plot_convergence(runs, target=1, score_name="Dice")
        >>> [axes.get_title() for axes in figure.axes]
        ['Strongest units, 95 % intervals', 'Root mean square over the units']
    """
    found = _checked_runs(runs, reference)
    example = check_example(found[0], example)
    tables = [_unit_table(run, target, example) for run in found]
    truth = None if reference is None else _unit_table(reference, target, example)
    summary = _convergence_table(tables, [run.n_forwards for run in found], truth)
    # From little work to much.
    order = np.argsort(summary[against].to_numpy(), kind="stable")
    tables, summary = [tables[i] for i in order], summary.iloc[order].reset_index(drop=True)
    strongest = (tables[-1] if truth is None else truth)["effect"].abs().nlargest(n_units).index
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    if title:
        figure.suptitle(title)
    places = summary[against].to_numpy()
    _effects(left, tables, places=places, units=strongest.tolist(), reference=truth, score_name=score_name)
    exact = _errors(right, summary, places, score_name=score_name)
    for axes in (left, right):
        _log_axis(axes, places, _AGAINST[against])
    notes = [] if reference is None else ["dashed: the reference"]
    notes += ["an error of 0 is not drawn"] if exact else []
    if notes:
        figure.supxlabel("      ".join(notes), fontsize=9)
    return literal(figure)


def _checked_runs(
    runs: Sequence[TreatmentEffectStatistics], reference: TreatmentEffectStatistics | None
) -> list[TreatmentEffectStatistics]:
    """The runs, all of the same units and outputs as each other and as the reference."""
    named = [(f"runs[{i}]", run) for i, run in enumerate(runs)]
    for name, run in [*named, *([] if reference is None else [("reference", reference)])]:
        if run.effect.shape != runs[0].effect.shape:
            raise ValueError(
                f"{name}: expected effects of shape {tuple(runs[0].effect.shape)} as in runs[0], got {tuple(run.effect.shape)}"
            )
        if not np.array_equal(run.unit_ids, runs[0].unit_ids):
            raise ValueError(f"{name}: its units have other ids than those of runs[0]")
    return list(runs)


def _unit_table(run: TreatmentEffectStatistics, target: TargetType, example: int) -> pd.DataFrame:
    """Per unit that was intervened on: effect, interval, standard error and draws, indexed by the unit's id."""
    lower, upper = run.confidence_interval(0.95)
    columns = {
        "effect": run.effect,
        "standard_error": run.standard_error,
        "lower": lower,
        "upper": upper,
        "n_draws": run.n_draws,
        "status": run.status,
    }
    table = pd.DataFrame(
        {name: run.select(values, target)[example].numpy() for name, values in columns.items()},
        index=pd.Index(run.unit_ids.numpy(), name="unit"),
    )
    return table[table["status"].isin([Status.ESTIMATED, Status.SCREENED])].drop(columns="status")


def _convergence_table(tables: Sequence[pd.DataFrame], forwards: Sequence[int], reference: pd.DataFrame | None) -> pd.DataFrame:
    """One row per run: its forwards, mean draws, and root mean squares over the units that all runs intervened on.

    Columns: ``forwards``, ``draws``, ``standard_error`` (over the units where it is finite in every run
    that knows any) and, with a reference,
    ``error`` (of the effects, against those of the reference).
    """
    common = tables[0].index
    for table in (*tables[1:], *(() if reference is None else (reference,))):
        common = common.intersection(table.index)
    if common.empty:
        raise ValueError("runs: there is no unit that all of them (and the reference) intervened on")
    known = common
    for table in tables:
        finite = np.isfinite(table.loc[known, "standard_error"])
        # A run that knows no standard error at all has no point; it does not take the others theirs.
        known = known[finite] if finite.any() else known
    rows = []
    for table, count in zip(tables, forwards):
        row = {"forwards": float(count), "draws": _mean(table.loc[common, "n_draws"])}
        row["standard_error"] = np.sqrt(_mean(table.loc[known, "standard_error"] ** 2))
        if reference is not None:
            row["error"] = np.sqrt(_mean((table.loc[common, "effect"] - reference.loc[common, "effect"]) ** 2))
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else math.nan


def _effects(
    axes: Axes,
    tables: Sequence[pd.DataFrame],
    places: np.ndarray,
    units: Sequence[int],
    reference: pd.DataFrame | None,
    score_name: str,
) -> None:
    # Side by side, within a third of the smallest step between runs, so that the whiskers of the units do not cover each other.
    steps = np.diff(np.unique(np.log(places)))
    reach = min(0.12, float(steps.min()) / 3 if len(steps) else 0.12)
    shifts = np.exp(np.linspace(-reach, reach, len(units))) if len(units) > 1 else [1.0]
    for unit, shift, color, marker in zip(units, shifts, cycle(series_colors()), cycle(_MARKERS)):
        rows = [table.loc[unit] if unit in table.index else None for table in tables]
        found = pd.DataFrame([row for row in rows if row is not None])
        where = places[[row is not None for row in rows]] * shift
        whiskers = np.abs(np.stack([found["effect"] - found["lower"], found["upper"] - found["effect"]]))
        axes.errorbar(
            where,
            found["effect"],
            yerr=np.where(np.isfinite(whiskers), whiskers, 0),
            color=color,
            marker=marker,
            markersize=4.5,
            linewidth=1,
            elinewidth=1,
            capsize=2.5,
            label=f"unit {unit}",
        )
        if reference is not None and unit in reference.index:
            axes.axhline(reference.loc[unit, "effect"], color=color, linewidth=1, linestyle="--")
    axes.axhline(0, color=ink(0.3), linewidth=0.8)
    axes.set_ylabel(f"effect on the {score_name}")
    axes.set_title("Strongest units, 95 % intervals", fontsize=11)
    if units:
        axes.legend(frameon=False, fontsize=8, ncols=min(3, len(units)), loc="best")


def _errors(axes: Axes, summary: pd.DataFrame, places: np.ndarray, score_name: str) -> bool:
    """Whether an error is exactly 0, which a logarithmic scale has no place for."""
    drawn, exact = False, False
    styles = {
        "standard_error": ("standard error", series_colors()[0], "o"),
        "error": ("error against the reference", series_colors()[1], "s"),
    }
    for column, (label, color, marker) in styles.items():
        if column not in summary:
            continue
        values = summary[column].to_numpy()
        shown = np.isfinite(values) & (values > 0)
        exact |= bool((values == 0).any())
        if shown.any():
            axes.plot(places[shown], values[shown], color=color, marker=marker, label=label)
            drawn = True
    axes.set_title("Root mean square over the units", fontsize=11)
    axes.set_ylabel(f"error of an effect, {score_name}")
    if not drawn:
        said = "every error is 0" if exact else "no standard error is known"
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color=ink(0.35))
        axes.set_yticks([])
        return False
    axes.set_yscale("log")
    if len(np.unique(places)) > 1:
        start = float(np.asarray(axes.lines[0].get_ydata())[0])
        guide = np.array([places.min(), places.max()])
        axes.plot(
            guide, start * np.sqrt(guide[0] / guide), color=ink(0.6), linestyle=":", label="four times the work, half the error"
        )
    axes.legend(frameon=False, fontsize=9)
    return exact


def _log_axis(axes: Axes, places: np.ndarray, label: str) -> None:
    """The runs are the ticks, as far as there is room for their numbers."""
    low, high = places.min() / 1.35, places.max() * 1.35
    ticks: list[float] = []
    for place in np.unique(places).tolist():
        if not ticks or np.log(place / ticks[-1]) > 0.11 * np.log(high / low):
            ticks.append(place)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, labels=[f"{tick:.0f}" if tick >= 10 else f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
