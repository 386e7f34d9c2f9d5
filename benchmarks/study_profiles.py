"""The paper's second study: how far from a region of interest networks look, and whether networks differ by more than chance.

    python benchmarks/study_profiles.py --threads 1 --data FOLDER --work DIR [--hours 1] [--kinds ...] [--write docs]

Every network that ``study.py train`` keeps in ``--work`` explains the same regions of the same pictures, one on the border of the object in each. Effects on the
soft Dice there are estimated twice, with other draws of donors each time, so that what varies between draws can be told from what varies between pictures.
What is found for a network and a picture is kept in ``--work``.
"""

import argparse
import itertools
import json
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from cases import say
from matplotlib.figure import Figure
from study import folder_of, training
from study_cases import BLOCK, border_case, picture_order
from study_data import DATA, Data, arguments_of, load_data, trained
from study_methods import donors
from torch import nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget
from captum_causalseg.cohort.between_cases import mean_of_cases, paired_difference
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.statistics import adjust_p_values

PICTURES = {"skin": 24, "brain": 20}
DRAWS, SEEDS = 6, (0, 1)
RINGS = 4
"""The last one holds what lies beyond as well."""
MEASURES = {
    "ring 1": "share of the mass in the first ring",
    "mean ring": "mean ring of the mass",
    "supporting": "share of units that support",
}
"""In which networks are compared. Mass is the sum of sizes of effects."""
_RESAMPLES = 2000


def profiles_of(network: nn.Module, data: Data, number: int) -> list[dict[str, float]] | None:
    """Of one picture, a profile for every seed; ``None`` where no region is on a border."""
    case = border_case(data, number)
    if case is None:
        return None
    target = SegmentationTarget(network, roi=case["roi"], reference=case["reference"]).surrogate()
    rows = []
    for seed in SEEDS:
        _, found = AverageTreatmentEffect(target).attribute(
            *(case["image"][None], donors(data)[0]),
            **{"target": data.output, "block_size": BLOCK, "n_draws": DRAWS, "n_screening_draws": 0},
            **{"seed": seed, "return_statistics": True},
        )
        profile = perception_profile(found, case["roi"], data.output)
        everything = len(profile.units) + profile.n_outside
        share = profile.by_distance.set_index("bin")["share"]
        rings = {f"ring {ring}": float(share[share.index == ring].sum()) for ring in range(1, RINGS)}
        rings[f"ring {RINGS}"] = float(share[share.index >= RINGS].sum())
        about = profile.summary()
        rows.append(
            rings
            | {
                "mean ring": float((share * share.index).sum()),
                # Of all units: those out of a network's reach do not support.
                "supporting": profile.counts["supporting"] / everything,
                "null": (profile.counts["null"] + profile.n_outside) / everything,
                "mass": profile.mass,
                "noise": about["noise_mass"],
                "reached": len(profile.units) / everything,
            }
        )
    return rows


def profiled(options: argparse.Namespace) -> pd.DataFrame:
    """A row per data set, network, picture and seed."""
    rows = []
    until = time.monotonic() + 3600 * options.hours
    for kind, name in itertools.product(options.kinds, options.sets):
        data = load_data(name, options.data)
        network = trained(kind, data, options.work, training(name, False), only_kept=True)
        for number in picture_order(data)[: PICTURES[name]] if network is not None else ():
            file = options.work / "profiles" / name / folder_of(kind) / f"{data.test_names[number]}.json"
            if not file.exists():
                if time.monotonic() > until:
                    continue
                found = profiles_of(network, data, number)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.with_suffix(".partial").write_text(json.dumps(found))
                file.with_suffix(".partial").replace(file)
            about = {"data": name, "network": kind, "picture": data.test_names[number], "cluster": data.clusters[number]}
            rows += [about | {"seed": seed} | one for seed, one in zip(SEEDS, json.loads(file.read_text()) or ())]
        say(f"{name}, {kind}: profiles of {sum(row['network'] == kind and row['data'] == name for row in rows) // 2} pictures")
    return complete(pd.DataFrame(rows))


def complete(found: pd.DataFrame) -> pd.DataFrame:
    """Networks of which the profiles of all pictures are there."""
    pictures = found.groupby("data")["picture"].transform("nunique")
    own = found.groupby(["data", "network"])["picture"].transform("nunique")
    return found[own == pictures].reset_index(drop=True)


def by_group(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Of one data set: a row per independent group of pictures, a column per network, means over pictures and seeds."""
    networks = list(dict.fromkeys(found["network"]))
    return found.pivot_table(index="cluster", columns="network", values=measure, aggfunc="mean")[networks]


def pairs(found: pd.DataFrame) -> pd.DataFrame:
    """Of one data set: paired differences of all pairs of networks in all measures; Holm's correction over all of them."""
    rows = []
    for measure in MEASURES:
        values = by_group(found, measure)
        for first, second in itertools.combinations(values, 2):
            difference = paired_difference(values[first].to_numpy(), values[second].to_numpy())
            rows.append({"measure": measure, "first": first, "second": second, **difference})
    made = pd.DataFrame(rows)
    made["p_adjusted"] = adjust_p_values(made["p_value"].to_numpy(), "holm")
    return made


def variances(values: np.ndarray) -> np.ndarray:
    """What the measured values vary by: components of network, picture, network and picture together, and draws.

    Args:
        values: ``(pictures, networks, repeats)``, all there.

    Returns:
        ``(4,)``: variances, from the mean squares of a two-way analysis with repeats; those below 0 are 0.
    """
    n_pictures, n_networks, n_repeats = values.shape
    cells, mean = values.mean(2), values.mean()
    of_picture, of_network = cells.mean(1), cells.mean(0)
    draws = values.var(2, ddof=1).mean()
    rest = cells - of_picture[:, None] - of_network[None] + mean
    together = n_repeats * (rest**2).sum() / ((n_pictures - 1) * (n_networks - 1))
    network = n_repeats * n_pictures * of_network.var(ddof=1)
    picture = n_repeats * n_networks * of_picture.var(ddof=1)
    found = [
        (network - together) / (n_repeats * n_pictures),
        (picture - together) / (n_repeats * n_networks),
        (together - draws) / n_repeats,
        draws,
    ]
    return np.maximum(found, 0)


def variance_shares(found: pd.DataFrame, measure: str, seed: int = 0) -> list[tuple[float, float, float]]:
    """Of one data set: share of each component in the sum, with a 95 % bootstrap interval over groups of pictures."""
    table = found.pivot_table(index="cluster", columns=["network", "seed"], values=measure, aggfunc="mean").dropna()
    values = table.to_numpy().reshape(len(table), -1, len(SEEDS))
    generator = np.random.default_rng(seed)
    drawn = np.stack([variances(values[generator.integers(len(values), size=len(values))]) for _ in range(_RESAMPLES)])
    parts = variances(values)
    shares = drawn / drawn.sum(1, keepdims=True)
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return list(zip(parts / parts.sum(), low, high))


def _cell(row: "pd.Series[float]", digits: int = 2) -> str:
    return f"{row['mean']:.{digits}f} [{row['lower']:.{digits}f}, {row['upper']:.{digits}f}]"


def page(found: pd.DataFrame) -> str:
    lines: list[str] = []
    for name, part in found.groupby("data", sort=False):
        columns = [*(f"ring {ring}" for ring in range(1, RINGS + 1)), "mean ring", "supporting", "null", "mass"]
        means = {column: mean_of_cases(by_group(part, column)) for column in columns}
        noise, reached = by_group(part, "noise").mean() / by_group(part, "mass").mean(), by_group(part, "reached").mean()
        lines += [
            f"**{name}: profiles, means over {part['cluster'].nunique()} groups of pictures ({part['picture'].nunique()} pictures) [95 % interval]**",
            "",
            f"| network | {' | '.join(f'mass in ring {ring}' for ring in range(1, RINGS))} | farther | mean ring | units that support | that do nothing | mass, points | of it noise | in reach |",
            "|---" * (len(columns) + 3) + "|",
        ]
        for network in dict.fromkeys(part["network"]):
            cells = [_cell(means[column].loc[network]) for column in columns[:-1]]
            mass = _cell(100 * means["mass"].loc[network], 1)
            lines.append(f"| {network} | {' | '.join(cells)} | {mass} | {noise[network]:.0%} | {reached[network]:.0%} |")
        tested = pairs(part)
        lines += ["", f"**{name}: which differences between networks hold up**", ""]
        for measure, words in MEASURES.items():
            own = tested[tested["measure"] == measure]
            sure = own[own["p_adjusted"] < 0.05].sort_values("p_value", kind="stable")
            said = "; ".join(_difference(row) for row in sure.to_dict("records"))
            lines.append(f"- {words}: {len(sure)} of {len(own)} pairs{f': {said}' if said else ''}.")
        lines += [
            "",
            f"**{name}: what varies: shares of the variance of one picture's profile [95 % bootstrap interval over pictures]**",
            "",
            "| measure | network | picture | network and picture together | draws of donors |",
            "|---|---|---|---|---|",
        ]
        for measure, words in MEASURES.items():
            cells = [f"{share:.0%} [{low:.0%}, {high:.0%}]" for share, low, high in variance_shares(part, measure)]
            lines.append(f"| {words} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _difference(row: dict[str, Any]) -> str:
    """The network with the larger value first."""
    sign = 1 if row["difference"] > 0 else -1
    larger, smaller = (row["second"], row["first"]) if sign > 0 else (row["first"], row["second"])
    low, high = sorted((sign * row["lower"], sign * row["upper"]))
    return f"{larger} over {smaller} by {abs(row['difference']):.2f} [{low:.2f}, {high:.2f}]"


def forest(found: pd.DataFrame) -> Figure:
    """Measures of each network with their intervals, a row of panels per data set; the line is the mean over networks."""
    networks = list(dict.fromkeys(found["network"]))
    parts = list(found.groupby("data", sort=False))
    figure = Figure(figsize=(10, 0.6 + (0.24 * len(networks) + 0.7) * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), len(MEASURES), squeeze=False, sharey=True)
    for row, (name, part) in zip(grid, parts):
        for axes, (measure, words) in zip(row, MEASURES.items()):
            means = mean_of_cases(by_group(part, measure)).reindex(networks)
            places = np.arange(len(networks))[::-1]
            axes.axvline(float(means["mean"].mean()), color="0.75", linewidth=1)
            axes.hlines(places, means["lower"], means["upper"], color="#0072B2")
            axes.scatter(means["mean"], places, color="#0072B2", s=18, zorder=3)
            axes.set_yticks(places, networks, fontsize=8)
            axes.set_title(f"{name}: {words}", fontsize=9)
            axes.tick_params(axis="x", labelsize=8)
    return figure


def main() -> None:
    arguments = arguments_of(__doc__)
    arguments.add_argument("--sets", nargs="+", choices=DATA, default=list(DATA))
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found = profiled(options)
    text = page(found)
    print(text)
    if options.write is not None:
        (options.write / "benchmarks" / "study_profiles.md").write_text(text, encoding="utf-8")
        forest(found).savefig(options.write / "_static" / "study_profiles.png", dpi=80)


if __name__ == "__main__":
    main()
