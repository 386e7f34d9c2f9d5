"""What ``benchmarks/joints.py`` found, as tables and a picture."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import machine, picture_folder, publish
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paired import Estimate, product

from captum_causalseg.evaluation.faithfulness import METRICS
from captum_causalseg.evaluation.refute.context import rank_correlation

Records = Sequence[Mapping[str, Any]]
"""What was found for the regions of one network, in their order."""

OTHERS = ("mean", "blended", "neighbors")
NAMED = {"raw": "raw", "mean": "matched", "blended": "matched and blended", "neighbors": "neighbors"}


ABOUT = (
    "Trained networks; regions of 32 x 32 pixels that are about half lesion (or gray matter), on its border; one region per test picture of ISIC 2018, "
    "up to four per slice of the demo's brain. Blocks of 16 x 16 pixels up to 32 pixels from the region (of the skin's, every other one); soft Dice; "
    "every kind of donors twice with 4 draws of its own, donors from images that the judges of faithfulness do not use. Numbers in parentheses are 95% intervals over "
    "regions (Student's t; ratios of sums by the delta method), paired wherever two things were measured in the same regions. The brain is a single, averaged "
    "one: its intervals speak of places in it, not of brains. RMS: root mean square over blocks, without the noise of the draws (products of the two "
    "independent estimates).",
    "",
    '*Matched*: shifted to the block\'s own mean (`match="mean"`); *blended*: matched, and faded in over 2 pixels, which leaves less of the donor, too; '
    "*neighbors*: `NeighborBank`, unmatched. *Taken away by matching*: 1 minus the slope of matched effects on raw ones. It is the step of brightness that a patch brings **and** "
    "whatever brightness itself does: this measurement does not tell the two apart. Matching adds something of its own: a patch with air or a black corner in it "
    'becomes, once it is shifted, brighter or darker than any picture (last column of the first table). `match="mean_std"` is refused for these data: patches of air are constant.',
)


def estimates(record: Mapping[str, Any], kind: str) -> list[np.ndarray]:
    """Both estimates of a region's effects with one kind of donors, ``(U,)`` each."""
    return [np.array(half) for half in record["effects"][kind]]


def products(records: Records, first: str, second: str) -> list[float]:
    return [product(estimates(one, first), estimates(one, second)) for one in records]


def step_share(records: Records, kind: str = "mean") -> Estimate:
    """1 minus the slope of a kind's effects on the raw ones: what of a raw effect is not there with these donors."""
    return 1 - Estimate.ratio(products(records, "raw", kind), products(records, "raw", "raw"))


def relative_size(records: Records, kind: str) -> Estimate:
    """A kind's root-mean-square effect in those of raw donors."""
    return Estimate.ratio(products(records, kind, kind), products(records, "raw", "raw")).root()


def raw_size(records: Records) -> Estimate:
    """Root-mean-square effect with raw donors."""
    return Estimate.ratio(products(records, "raw", "raw"), [one["n_units"] for one in records]).root()


def shift_size(records: Records) -> Estimate:
    """The root-mean-square effect of the units' own tissue moved, in that of raw donors. It is exact: every move was tried."""
    moved = [float(np.square(one["shift"]).sum()) for one in records]
    return Estimate.ratio(moved, products(records, "raw", "raw")).root()


def ranks(records: Records, kind: str) -> Estimate:
    """Spearman's correlation of one estimate with raw donors with another, independent one of a kind (or of raw donors again)."""
    found = []
    for one in records:
        raw, other = estimates(one, "raw"), estimates(one, kind)
        found.append(np.mean([rank_correlation(raw[0], other[1]), rank_correlation(raw[1], other[0])]))
    return Estimate.mean(found)


def per_region_shares(records: Records) -> np.ndarray:
    """The same share region by region, for the picture and the median."""
    above, below = products(records, "raw", "mean"), products(records, "raw", "raw")
    return 1 - np.array(above) / np.array(below)


def count_share(
    records: Records, count: Callable[[Mapping[str, Any]], int], of: Callable[[Mapping[str, Any]], int]
) -> Estimate:
    """A share of units, with regions as what was sampled."""
    return Estimate.ratio([count(one) for one in records], [of(one) for one in records])


def percent(estimate: Estimate, *, of_units: bool = False) -> str:
    """A share of units is never below 0 or above 1, so its interval is cut off there; one of effects may be."""
    low, high = np.clip(estimate.interval(), 0, 1) if of_units else estimate.interval()
    return f"{100 * estimate.value:.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def signed(value: float) -> str:
    """Three digits, and no sign where they are zeros."""
    shown = f"{value:+.3f}"
    return shown[1:] if float(shown) == 0 else shown


def effects_table(groups: Mapping[str, Records]) -> list[str]:
    lines = [
        "| network | held-out Dice | regions | soft Dice in them | raw effect, RMS | taken away by matching | median region | matched / raw, RMS | blended / raw | "
        "neighbors / raw | matched values outside [0, 1] |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, records in groups.items():
        sizes = " | ".join(str(relative_size(records, kind)) for kind in OTHERS)
        size = raw_size(records)
        lines.append(
            f"| {name} | {records[0]['reached']:.3f} | {len(records)} | {np.mean([one['observed'] for one in records]):.2f} | {size.value:.4f} | "
            f"{percent(step_share(records))} | {100 * np.median(per_region_shares(records)):.0f}% | {sizes} | "
            f"{100 * np.mean([one['outside_range'] for one in records]):.0f}% |"
        )
    return lines


def agreement_table(groups: Mapping[str, Records]) -> list[str]:
    lines = [
        "| network | rank correlation, raw with raw | raw with matched | difference | units that change sign, matched | neighbors | "
        "significant with raw donors | of these, trusted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, records in groups.items():
        itself, other = ranks(records, "raw"), ranks(records, "mean")
        changed = [
            f"{sum(one['n_sign_differs'][kind] for one in records)} of {sum(one['n_units'] for one in records)}"
            for kind in ("mean", "neighbors")
        ]
        significant = count_share(records, lambda one: one["n_significant"], lambda one: one["n_units"])
        trusted = count_share(records, lambda one: one["n_trusted"], lambda one: one["n_significant"])
        lines.append(
            f"| {name} | {itself} | {other} | {itself - other} | {changed[0]} | {changed[1]} | {percent(significant, of_units=True)} | {percent(trusted, of_units=True)} |"
        )
    return lines


def joints_table(groups: Mapping[str, Records]) -> list[str]:
    lines = ["| network | own tissue moved / raw, RMS |", "|---|---|"]
    lines += [f"| {name} | {shift_size(records)} |" for name, records in groups.items()]
    lines += [
        "",
        "| the same regions, two networks | taken away by matching, difference | own tissue moved / raw, difference |",
        "|---|---|---|",
    ]
    names = list(groups)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            if first.split(",")[0] == second.split(",")[0]:
                one, other = groups[first], groups[second]
                step = step_share(other) - step_share(one)
                low, high = step.interval()
                points = f"{100 * step.value:+.0f} points ({100 * low:.0f} to {100 * high:.0f})"
                lines.append(f"| {second} minus {first.split(', ')[1]} | {points} | {shift_size(other) - shift_size(one)} |")
    return lines


def marker_table(records: Records) -> list[str]:
    lines = [
        "| donors | marker at rank 1, and positive | its effect | its share of the mass | other blocks' effects, RMS |",
        "|---|---|---|---|---|",
    ]
    for kind, name in NAMED.items():
        found = [one["marker"][kind] for one in records]
        marker = Estimate.mean([np.mean([half[one["marker_unit"]] for half in estimates(one, kind)]) for one in records])
        rest = Estimate.ratio(products(others_of(records), kind, kind), [one["n_units"] - 1 for one in records]).root()
        low, high = rest.interval()
        lines.append(
            f"| {name} | {sum(one['found'] for one in found)} of {len(found)} | {marker} | {np.mean([one['share'] for one in found]):.2f} | "
            f"{rest.value:.4f} ({low:.4f} to {high:.4f}) |"
        )
    return lines


def others_of(records: Records) -> Records:
    """The same without the marker's block."""
    return [
        {
            **one,
            "effects": {
                kind: [np.delete(half, one["marker_unit"]) for half in halves] for kind, halves in one["effects"].items()
            },
        }
        for one in records
    ]


def faithfulness_table(groups: Mapping[str, Records]) -> list[str]:
    lines = [
        "| network | score | n | raw judge: raw map | matched map | advantage of the raw map | matched judge: raw map | matched map | "
        "advantage of the raw map |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, records in groups.items():
        scored = [
            {(row["metric"], row["judge"], row["map"]): row["value"] for row in one["faithfulness"]}
            for one in records
            if "faithfulness" in one
        ]
        for metric in dict.fromkeys(key[0] for key in scored[0]):
            arrow, sign = ("↑", 1) if METRICS[metric].score_direction == "higher" else ("↓", -1)
            cells = [[one[metric, judge, of] for judge in ("raw", "mean") for of in ("raw", "mean")] for one in scored]
            known = np.array([row for row in cells if np.isfinite(row).all()]).reshape(-1, 4)
            if len(known) < 2:
                continue
            parts = [f"| {name} | {metric} {arrow} | {len(known)} "]
            for first in (0, 2):
                raw, matched = known[:, first], known[:, first + 1]
                advantage = Estimate.mean(sign * (raw - matched))
                low, high = advantage.interval()
                bold = "**" if low > 0 or high < 0 else ""
                parts.append(
                    f"| {raw.mean():.3f} | {matched.mean():.3f} | {bold}{signed(advantage.value)}{bold} ({signed(low)} to {signed(high)}) "
                )
            lines.append("".join(parts) + "|")
    return lines


def summary(groups: Mapping[str, Records], shortcut: Records | None) -> list[str]:
    """The few numbers that the page on choosing opens with."""
    lines = [
        "| trained network | regions | of raw effects, matching takes away | of significant raw effects, all kinds of natural donors confirm | "
        "own tissue moved by a pixel or two, of a raw effect |",
        "|---|---|---|---|---|",
    ]
    for name, records in groups.items():
        trusted = count_share(records, lambda one: one["n_trusted"], lambda one: one["n_significant"])
        lines.append(
            f"| {name} | {len(records)} | {percent(step_share(records))} | {percent(trusted, of_units=True)} | {percent(shift_size(records))} |"
        )
    if shortcut:
        found = {name: sum(one["marker"][kind]["found"] for one in shortcut) for kind, name in NAMED.items()}
        said = ", ".join(f"{name} {count}" for name, count in found.items())
        lines += [
            "",
            f"In {len(shortcut)} slices with a planted shortcut, whose cause is known, the cause is the strongest block and supports in: {said}.",
        ]
    return lines


def picture(groups: Mapping[str, Records]) -> Figure:
    """Share of the step and sensitivity to a joint, per network, with their intervals; dots are regions."""
    figure = Figure(figsize=(9.2, 0.9 + 0.55 * len(groups)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, records in enumerate(groups.values()):
        shares = per_region_shares(records)
        within = np.clip(shares, -0.5, 1.5)
        left.plot(100 * within, np.full(len(shares), row) + 0.17, "o", color="#9aa7b4", markersize=3, alpha=0.7)
        _bar(left, 100 * np.array([step_share(records).value, *step_share(records).interval()]), row)
        _bar(right, 100 * np.array([shift_size(records).value, *shift_size(records).interval()]), row)
    left.set_yticks(range(len(groups)), list(groups))
    left.invert_yaxis()
    left.axvline(0, color="0.6", linewidth=0.8)
    left.set_xlabel("percent of raw effects that matching takes away\n(dots: regions, held at -50 and 150)")
    right.set_xlabel("own tissue moved by 1 and 2 pixels:\neffect in percent of a raw patch's")
    right.set_xlim(left=0)
    return figure


def _bar(axes: Axes, values: np.ndarray, row: int) -> None:
    value, low, high = values
    axes.plot([low, high], [row, row], color="#1f4e79", linewidth=2)
    axes.plot(value, row, "o", color="#1f4e79", markersize=6)


def report(records: Records, options: argparse.Namespace) -> None:
    """Print, and write where that was asked for: the section, beside it its summary, and the picture."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(records, key=lambda one: (one["data"], one["network"], one["number"])):
        groups.setdefault(f"{one['data']}, {one['network']}", []).append(one)
    shortcut = groups.pop("shortcut, batch norm", None)
    lines = ["## Tissue, or the joint of the patch?", "", machine(options), "", *ABOUT, ""]
    if groups:
        # Without --write the documentation stays as it is.
        file = (picture_folder(options) if options.write else options.work) / "joints.png"
        picture(groups).savefig(file, dpi=80)
        lines += [
            *effects_table(groups),
            "",
            f"![What matching takes away, and sensitivity to a joint](../_static/{file.name})",
            "",
            "Do the maps agree? Rank correlations (Spearman's) are of independent estimates with 4 draws each, so that raw donors with themselves show what noise alone "
            "does. A sign changes if both effects are significant and opposite (8 draws, 5% of false discoveries); trusted findings are significant, and of one sign, with all four kinds.",
            "",
            *agreement_table(groups),
            "",
            "Sensitivity to a joint: the block's own tissue, moved by one and two pixels (`captum_causalseg.donors.Shifted`), every move of it.",
            "",
            *joints_table(groups),
            "",
        ]
    if shortcut:
        lines += [
            f"The planted shortcut, {len(shortcut)} held-out slices, blocks of 8 x 8: is the marker found?",
            "",
            *marker_table(shortcut),
            "",
        ]
    lines += [
        "Faithfulness of the raw and of the matched map, judged by raw and by matched donors that no map has seen (3 sets of donors, 40 subsets). "
        "Advantages are signed so that positive means that the raw map is better; bold where the interval is on one side of 0.",
        "",
    ]
    lines += faithfulness_table(groups | ({"shortcut, batch norm": shortcut} if shortcut else {}))
    publish(lines, options)
    if options.write is not None:
        place: Path = options.write.with_name(f"{options.write.stem}_summary.md")
        place.write_text("\n".join(summary(groups, shortcut)) + "\n")
