"""Is a map the network's and the picture's, or that of small noise and random numbers? The study's methods, at equal forwards.

    python benchmarks/study_robustness.py --threads 1 --data FOLDER --work DIR [--hours 1] [--kinds ...] [--regions 2] [--write docs]

On regions on the border of the object, of the networks that ``study.py train`` keeps in ``--work``: how much a map changes at most when small noise is added to the
picture (max-sensitivity), and how well the maps of other random numbers agree with it. Maps are compared by the means of their units, since some are of blocks and
some of pixels. What is found for a region and a method is kept in ``--work``.
"""

import argparse
import inspect
import itertools
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from cases import say
from study import folder_of, training
from study_cases import BLOCK, TargetOf, cases_of
from study_data import DATA, Data, arguments_of, load_data, trained
from study_methods import OURS, at_equal_forwards, donors
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg.cohort.between_cases import mean_of_cases, paired_difference
from captum_causalseg.evaluation import map_agreement, max_sensitivity
from captum_causalseg.evaluation.question import Question
from captum_causalseg.statistics import adjust_p_values

RADIUS, PERTURBATIONS = 0.02, 3
"""Noise of a fiftieth of the range of the pictures."""
SEEDS = (1, 2)
"""Of the repeats, beside the map's own 0."""
_FEWEST = 4
"""Independent groups of pictures, below which a mean has no interval."""
MEASURES = {"sensitivity": "max-sensitivity ↓", "agreement": "agreement of repeats ↑"}


def found_of(method: Any, case: Mapping[str, Any], data: Data, network: nn.Module) -> dict[str, float | None]:
    """Both measures of a method in a region; ``None`` where they have no value: the map is empty, or nothing in the method is random."""
    make, options = method if isinstance(method, tuple) else (method, {})
    roi = functional.avg_pool2d(case["roi"][None, None].float(), BLOCK) > 0

    def explain(images: Tensor, **more: Any) -> Tensor:
        target = TargetOf(network)(case)
        question = Question(target=target, inputs=images, baselines=donors(data)[0], output=data.output, block_size=BLOCK)
        found = question.explained((make(target), {**options, **more})).attributions
        return functional.avg_pool2d(found.mean(1, keepdim=True), BLOCK).masked_fill(roi, 0)

    image = case["image"][None]
    sensitivity = float(max_sensitivity(explain, image, radius=RADIUS, n_perturbations=PERTURBATIONS)[0])
    agreement = float("nan")
    if "seed" in inspect.signature(make(TargetOf(network)(case)).attribute).parameters:
        agreement = float(map_agreement([explain(image), *(explain(image, seed=seed) for seed in SEEDS)], where=~roi)[0])
    values = {"sensitivity": sensitivity, "agreement": agreement}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def measured(options: argparse.Namespace) -> pd.DataFrame:
    """A row per data set, network, region and method; the first region of every network before the second of any."""
    rows = []
    until = time.monotonic() + 3600 * options.hours
    for number, kind, name in itertools.product(range(options.regions), options.kinds, options.sets):
        data = load_data(name, options.data)
        network = trained(kind, data, options.work, training(name, False), only_kept=True)
        if network is None:
            continue
        case = [one for one in cases_of(kind, network, data, 3 * options.regions) if one["place"] == "boundary"][number]
        for method, how in at_equal_forwards(data).items():
            file = options.work / "robustness" / name / folder_of(kind) / case["picture"] / f"{folder_of(method)}.json"
            if not file.exists():
                if time.monotonic() > until:
                    continue
                found = found_of(how, case, data, network)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.with_suffix(".partial").write_text(json.dumps(found))
                file.with_suffix(".partial").replace(file)
                say(f"{name}, {kind}, {case['picture']}, {method}: {found}")
            about = {"data": name, "network": kind, "cluster": case["cluster"], "case": f"{kind}, {case['picture']}"}
            rows.append(about | {"method": method} | json.loads(file.read_text()))
    found = pd.DataFrame(rows)
    # Means of methods are of the same regions.
    whole = found.groupby(["data", "case"])["method"].transform("nunique") == found["method"].nunique()
    return found[whole].reset_index(drop=True)


def compared(part: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Of one data set: per method, the mean over groups of pictures with its interval, and the paired difference from ours, with Holm's correction over methods."""
    cases = part.pivot(index="case", columns="method", values=measure).astype(float)
    cases = cases[list(dict.fromkeys(part["method"]))]
    groups = part.drop_duplicates("case").set_index("case")["cluster"].reindex(cases.index)
    made = mean_of_cases(cases.groupby(groups).mean())
    rows = {}
    for method in cases.columns.drop(OURS):
        both = cases[[OURS, method]].dropna()
        both = both.groupby(groups[both.index]).mean()
        found = paired_difference(both[OURS].to_numpy(), both[method].to_numpy())
        rows[method] = {name: found[name] for name in ("difference", "p_value")}
    tested = pd.DataFrame(rows).T.reindex(made.index)
    tested["p_adjusted"] = adjust_p_values(tested["p_value"].to_numpy(dtype=float), "holm")
    return made.join(tested)


def page(found: pd.DataFrame) -> str:
    lines: list[str] = []
    for name, part in found.groupby("data", sort=False):
        tables = {measure: compared(part, measure) for measure in MEASURES}
        lines += [
            f"**{name}: {part['case'].nunique()} regions of {part['network'].nunique()} networks in {part['cluster'].nunique()} independent groups; means, with 95 % intervals from four groups on**",
            "",
            f"| method | {' | '.join(MEASURES.values())} |",
            "|---" * (len(MEASURES) + 1) + "|",
        ]
        for method in tables["sensitivity"].index:
            cells = []
            for table in tables.values():
                row = table.loc[method]
                interval = "" if np.isnan(row["lower"]) or row["n"] < _FEWEST else f" [{row['lower']:.2f}, {row['upper']:.2f}]"
                text = f"{row['mean']:.2f}{interval}" if row["n"] > 1 else "none"
                cells.append(f"**{text}**" if row["p_adjusted"] < 0.05 and row["n"] >= _FEWEST else text)
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    arguments = arguments_of(__doc__)
    arguments.add_argument("--sets", nargs="+", choices=DATA, default=list(DATA))
    arguments.add_argument("--regions", type=int, default=2, help="of each network and data set")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    found = measured(options)
    text = page(found)
    print(text)
    if options.write is not None:
        (options.write / "benchmarks" / "study_robustness.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
