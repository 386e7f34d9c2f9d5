"""What the commands found, in words and numbers: shared by what is printed and by the report."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.files import option_name
from captum_causalseg.cli.limits import effects_beyond
from captum_causalseg.metrics import METRICS
from captum_causalseg.statistics import EDGE_MATCHED, EDGE_SHIFTED, Status, TreatmentEffectStatistics
from captum_causalseg.visualization.component_bars import name_of

__all__ = [
    "Strongest",
    "axes_in_words",
    "components_rows",
    "components_text",
    "context_in_words",
    "counts",
    "digits_for",
    "edge_in_words",
    "edge_names",
    "edge_rows",
    "edge_text",
    "effects_found",
    "effects_text",
    "emptiness",
    "forwarded",
    "modality_rows",
    "modality_text",
    "number",
    "observed",
    "place",
    "records",
    "score",
    "score_in_words",
    "sign_words",
    "strongest",
]

_STRONGEST = 5
_MOST_ROWS = 20
_STATUS = {
    Status.ESTIMATED: "estimated",
    Status.SCREENED: "without effect in the first draws",
    Status.OUTSIDE_SUPPORT: "that cannot reach the region of interest",
    Status.EXCLUDED: "that touch it (not replaced)",
}


@dataclass(frozen=True)
class Strongest:
    """One of the strongest units, ready to be printed.

    Args:
        kind: what it does: supports or harms, raises or lowers.
        place: where it is, in the file's own voxels.
        effect: on the score.
        interval: 95 %.
        told: whether it differs from 0 at a false discovery rate of 5 %.
    """

    kind: str
    place: str
    effect: str
    interval: str
    told: bool


def sign_words(metric: str) -> tuple[str, str]:
    """What positive and negative effects do."""
    return ("supports", "harms") if METRICS[metric].larger_is_better else ("raises", "lowers")


def score_in_words(metric: str) -> str:
    """As one writes it."""
    return metric.replace("_", " ").replace("dice", "Dice").replace("iou", "IoU").replace("hausdorff", "Hausdorff")


def strongest(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics) -> list[Strongest]:
    """The strongest units of either sign."""
    found_effects = statistics.of_output(case.output)
    told = found_effects.significant(0.05)[found_effects.status != Status.ABSENT].numpy()
    table = case.units.in_own_voxels(found_effects.to_dataframe().assign(told=told))
    table = table[table["effect"].notna()].sort_values("effect", kind="stable")
    digits = digits_for(table["effect"])
    rows = []
    for kind, found in zip(sign_words(options.metric), (table[table["effect"] > 0][::-1], table[table["effect"] < 0])):
        for row in found.head(_STRONGEST).to_dict("records"):
            interval = f"[{number(row['lower'], digits)}, {number(row['upper'], digits)}]"
            rows.append(
                Strongest(
                    kind=kind,
                    place=place(row, len(case.grids.shape)),
                    effect=number(row["effect"], digits),
                    interval=interval,
                    told=row["told"],
                )
            )
    return rows


def modality_rows(case: CommandCase, statistics: TreatmentEffectStatistics) -> list[tuple[str, ...]]:
    """Where each channel is replaced by itself: its name, how many parts have an effect that is known, how many of these differ from 0, and the sums
    of effects of either sign."""
    if case.units.modalities.asked != "each":
        return []
    found = statistics.of_output(case.output)
    there = found.status != Status.ABSENT
    table = case.units.in_own_voxels(found.to_dataframe().assign(significant=found.significant(0.05)[there].numpy()))
    known = table[table["effect"].notna()]
    digits = digits_for(known["effect"])
    rows = []
    for name in case.units.modalities.names:
        mine = known[known["modality"] == name]
        sums = (mine["effect"].clip(lower=0).sum(), mine["effect"].clip(upper=0).sum())
        rows.append((name, str(len(mine)), str(int(mine["significant"].sum())), *(number(one, digits) for one in sums)))
    return rows


def modality_text(case: CommandCase, statistics: TreatmentEffectStatistics) -> list[str]:
    """The same as lines of a table; none where channels are not replaced by themselves."""
    rows = modality_rows(case, statistics)
    if not rows:
        return []
    rows = [("channel", "parts", "differ from 0", "sum above 0", "sum below 0"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]
    return [*lines, ""]


def context_in_words(statistics: TreatmentEffectStatistics) -> str | None:
    """Which other units are replaced while a unit is; ``None`` where none are."""
    context = statistics.settings.get("context", 0)
    if context == 0:
        return None
    others = {
        "shapley": "those that come before it in random orders are replaced as well (Shapley values)",
        "banzhaf": "each other one is replaced as well with probability 1/2 (Banzhaf values)",
    }.get(context, f"each other one is replaced as well with probability {context}")
    return f"joint, of each unit while {others}"


def edge_in_words(case: CommandCase, statistics: TreatmentEffectStatistics) -> list[str]:
    """What the controls say of all effects, in sentences without their periods."""
    found = statistics.of_output(case.output)
    significant = found.significant()
    n, k = int((significant & ~found.controls[EDGE_SHIFTED].effect.isnan()).sum()), int(found.edge_suspect().sum())
    said = [
        f"of {n} part{'s' * (n != 1)} whose effect differs from 0, {k or 'none'} ha{'ve' if k > 1 else 's'} one that is not clearly larger than that "
        "of a joint alone (its own tissue, shifted by a pixel or two)"
    ]
    if EDGE_MATCHED in found.controls:
        effect, matched = found.effect[significant], found.controls[EDGE_MATCHED].effect[significant]
        effect, matched = effect[~matched.isnan()], matched[~matched.isnan()]
        if bool((effect != 0).any()):
            left = float((effect * matched).sum() / effect.square().sum())
            said.append(
                f"with donors of the parts' own brightness, {left:.0%} of these effects is left; the rest is brightness, of the tissue or of the "
                "patch's step"
            )
    said += [
        f"{name.replace('_', ' ')}: {why}" for name, why in statistics.settings["disabled"].items() if name.startswith("edge_")
    ]
    return said


def edge_names(statistics: TreatmentEffectStatistics) -> list[str]:
    """What stands above the columns of the controls."""
    return [f"{name.replace('_', ' ')} [95 % interval]" for name in statistics.controls]


def edge_rows(case: CommandCase, statistics: TreatmentEffectStatistics) -> list[tuple[str, ...]]:
    """The strongest units whose effect differs from 0: place, effect, the controls with their intervals, whether the joint may be all of it."""
    found = statistics.of_output(case.output)
    table = case.units.in_own_voxels(
        found.to_dataframe().assign(significant=found.significant()[found.status != Status.ABSENT].numpy())
    )
    table = table[table["significant"]]
    table = table.iloc[table["effect"].abs().argsort(kind="stable")[::-1]]
    digits = digits_for(table["effect"])
    rows: list[tuple[str, ...]] = []
    for row in table.head(2 * _STRONGEST).to_dict("records"):
        controls = [
            "not known"
            if pd.isna(row[name])
            else f"{number(row[name], digits)} [{number(row[f'{name}_lower'], digits)}, {number(row[f'{name}_upper'], digits)}]"
            for name in found.controls
        ]
        effect = number(row["effect"], digits)
        rows.append((place(row, len(case.grids.shape)), effect, *controls, "may be the joint" if row["edge_suspect"] else ""))
    return rows


def edge_text(case: CommandCase, statistics: TreatmentEffectStatistics) -> str:
    """What ``explain`` prints of the controls."""
    header = (axes_in_words(case), "effect", *edge_names(statistics), "")
    rows = edge_rows(case, statistics)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (header, *rows)]
    said = [f"{one[0].upper()}{one[1:]}." for one in edge_in_words(case, statistics)]
    return "\n".join([*(lines if rows else []), *([""] if rows else []), *said])


def number(value: float, digits: int = 4) -> str:
    """With its sign."""
    return f"{value:+.{digits}f}"


def observed(case: CommandCase, statistics: TreatmentEffectStatistics) -> str:
    """The score without intervention."""
    return score(float(statistics.of_output(case.output).observed_score))


def score(value: float) -> str:
    """Four digits behind the point; six in all of what is large."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.6g}"


def counts(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics) -> str:
    """How many units there are of each kind."""
    found = statistics.of_output(case.output)
    said = ", ".join(f"{int((found.status == s).sum())} {_STATUS[s]}" for s in _STATUS if bool((found.status == s).any()))
    said += f"; {int(found.significant(0.05).sum())} differ from 0 at a false discovery rate of 5 %"
    lower, upper = found.confidence_interval()
    wider = effects_beyond(
        options.metric, score_in_words(options.metric), zip(lower.flatten().tolist(), upper.flatten().tolist())
    )
    said += "" if wider is None else f"; {wider}"
    if options.precision is None:
        return said
    wide = int(((upper - lower) / 2 > options.precision * (1 + 1e-9)).sum())
    return f"{said}; " + (
        f"{wide} intervals are still wider than {options.precision:g} to either side, more --draws would narrow them"
        if wide
        else f"every interval is at most {options.precision:g} to either side"
    )


def emptiness(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics) -> str | None:
    """Why the map shows nothing, if it does."""
    why = statistics.why_empty(case.output)
    if why is None:
        return None
    smooth = METRICS[options.metric].surrogate
    # Effects that are not told from 0 have their color in the map: it then shows something, and "empty" would contradict it.
    shown = bool((statistics.of_output(case.output).effect.nan_to_num() != 0).any())
    said = (why[0].upper() + why[1:] if shown else f"The map is empty: {why}") + (
        f" ({option_name(options, 'metric')} {smooth})" if smooth != options.metric and smooth in why else ""
    )
    return said if said.endswith("?") else f"{said}."


def axes_in_words(case: CommandCase) -> str:
    """What the numbers of a place are."""
    grids = case.grids
    if grids.picture and grids.known:
        return "rows x columns"
    kind = grids.noun if grids.known else f"prepared {grids.noun}"
    return f"{kind} along the {'two' if len(grids.shape) == 2 else 'three'} axes"


def forwarded(settings: Mapping[str, Any]) -> str:
    """What goes through the network in a forward pass that is counted."""
    return "window" if "windows" in settings else "image"


def effects_text(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics, seconds: float) -> str:
    """What ``explain`` prints."""
    rows = strongest(case, options, statistics)
    width = max([len(axes_in_words(case)), *(len(row.place) for row in rows)]) + 2
    lines = [
        f"  {row.kind:<14}{row.place:<{width}}{row.effect}  {row.interval}{'' if row.told else '  not told from 0'}"
        for row in rows
    ]
    why = emptiness(case, options, statistics)
    empty = [] if why is None else [why]
    in_words = context_in_words(statistics)
    context = [] if in_words is None else [f"effects: {in_words}"]
    return "\n".join(
        [
            f"{case.name}: {options.metric}{_of_class(case)} in {case.place} is {observed(case, statistics)}".removeprefix(
                ": "
            ),
            "",
            f"{'strongest units':<16}{axes_in_words(case):<{width}}effect [95 % interval]"
            if rows
            else "no unit has an effect other than 0",
            *lines,
            "",
            *modality_text(case, statistics),
            f"places: {case.grids.in_words()}",
            f"units: {counts(case, options, statistics)}",
            *left_out(options, case, statistics),
            *context,
            *empty,
            f"{statistics.n_forwards} forward passes of one {forwarded(statistics.settings)}, {seconds:.1f} s",
        ]
    )


def _of_class(case: CommandCase) -> str:
    """Of the class, where it has a name."""
    name = case.described["Class"].partition(",")[0]
    return "" if case.output is None or name[:1].isdigit() else f" of {name}"


def chains(table: pd.DataFrame) -> pd.DataFrame:
    """One row for the modules that follow each other in a chain, named after the first of them, with their number in ``length``.

    They have the same effect, because replacing either replaces all that passes.
    """
    known = table[table["effect"].notna()].sort_values("order", kind="stable")
    together = known.groupby(["part", "effect", "standard_error"], sort=False, dropna=False)
    found = together.first().assign(length=together.size()).reset_index()
    return found.iloc[found["effect"].abs().argsort(kind="stable")[::-1]]


def components_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The strongest parts: name, type, part, effect, interval."""
    digits = digits_for(table["effect"])
    rows: list[tuple[str, ...]] = []
    for row in chains(table).head(_MOST_ROWS).to_dict("records"):
        name = name_of(row)
        name += f" (+{row['length'] - 1})" if row["length"] > 1 else ""
        interval = f"[{number(row['lower'], digits)}, {number(row['upper'], digits)}]"
        rows.append((name, row["type"], row["part"], number(row["effect"], digits), interval))
    return rows


def effects_found(case: CommandCase, statistics: TreatmentEffectStatistics) -> dict[str, Any]:
    """The same for programs: the score, how many parts there are of each kind, and the strongest of them."""
    found = statistics.of_output(case.output)
    there = found.status != Status.ABSENT
    significant = found.significant(0.05)
    table = case.units.in_own_voxels(found.to_dataframe().assign(significant=significant[there].numpy()))
    table = table[table["effect"].notna() & (table["status"] != Status.OUTSIDE_SUPPORT.name)]
    table = table.iloc[table["effect"].abs().argsort(kind="stable")[::-1]]
    return {
        "observed_score": float(found.observed_score),
        "parts": {one.name.lower(): int((found.status == one).sum()) for one in _STATUS}
        | {"significant": int(significant.sum())},
        "forward_passes": statistics.n_forwards,
        "strongest": records(table.head(2 * _STRONGEST)),
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for programs; ``None`` for what is not known."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def left_out(options: argparse.Namespace, case: CommandCase, statistics: TreatmentEffectStatistics) -> list[str]:
    """What ``effects.csv`` does not hold, in a line, if anything."""
    outside = int((statistics.of_output(case.output).status == Status.OUTSIDE_SUPPORT).sum())
    if options.all_units or not outside:
        return []
    return [f"effects.csv: without the {outside} that cannot reach the region of interest, whose effect is 0 (--all-units)"]


def components_text(table: pd.DataFrame, metric: str) -> str:
    """What ``components`` prints."""
    rows = [("module", "type", "part", "effect", "[95 % interval]"), *components_rows(table)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    said = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]
    if any(row[0].endswith(")") for row in rows):
        said += ["", "(+3): so many modules that follow in a chain have the same effect"]
    wider = effects_beyond(metric, score_in_words(metric), zip(table["lower"], table["upper"]))
    said += [] if wider is None else ["", wider]
    return "\n".join(said)


def digits_for(effects: pd.Series) -> int:
    """Behind the point: four, more where effects are small, fewer where they are large."""
    largest = float(np.nanmax(np.abs(effects.to_numpy(dtype=float)), initial=0))
    return 4 if largest == 0 else int(np.clip(2 - np.floor(np.log10(largest)), 2, 9)) if not 1e-3 <= largest < 10 else 4


def place(row: Mapping[str, Any], axes: int) -> str:
    """Where a unit is, from first to last index along each axis, and in which channel where it is in some only."""
    modality = f"{row['modality']}: " if "modality" in row else ""
    if any(row[f"start_{axis}"] < 0 for axis in range(axes)):
        return f"{modality}in padding"
    return modality + " x ".join(f"{row[f'start_{axis}']}-{row[f'stop_{axis}'] - 1}" for axis in range(axes))
