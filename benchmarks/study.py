"""Is it more faithful? Methods of attribution on trained networks, with intervals between pictures.

    python benchmarks/study.py train --threads 1 --data FOLDER --work DIR [--hours 1] [--kinds ...]
    python benchmarks/study.py explain --threads 1 --data FOLDER --work DIR [--hours 1] [--kinds ...] [--regions 10] [--defaults 3]
    python benchmarks/study.py report --data FOLDER --work DIR [--write docs]

``train`` trains networks on skin pictures (``benchmarks/skin.py``; ``--sets brain`` does without them) and on nilearn's brain, ``explain`` compares the
methods on regions of interest of each trained network, first at equal forwards, then with defaults, and ``report`` writes the tables and figures. Every network,
map and score is kept in ``--work`` as soon as it is there: the same call goes on where an earlier one was interrupted, or where its ``--hours`` ended. Both
commands may run side by side: ``explain`` takes the networks that are there, and with ``--wait`` those to come. The design is on the documentation's page on the study.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from cases import say
from study_cases import BLOCK, TargetOf, cases_of
from study_data import DATA, Data, Training, load_data, test_dice, trained
from study_kinds import KINDS
from study_methods import EFFORT, METRICS, at_defaults, at_equal_forwards, donors
from study_tables import write_report
from torch import nn

from captum_causalseg import compare_cohort
from captum_causalseg.cohort import CohortComparison

STEPS = {"skin": 1200, "brain": 750}
"""Of training."""
_CHUNK = 3
"""Regions that are done at a time: one of each kind."""


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("command", choices=["train", "explain", "report"])
    made.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="holds the skin pictures")
    made.add_argument("--work", type=Path, required=True, metavar="DIR", help="where everything is kept")
    made.add_argument("--hours", type=float, default=1.0, help="nothing new is begun after these")
    made.add_argument("--sets", nargs="+", choices=DATA, default=list(DATA))
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    made.add_argument("--regions", type=int, default=12, help="of each network and data set")
    made.add_argument("--defaults", type=int, default=3, help="of these, explained with defaults as well")
    made.add_argument("--wait", action="store_true", help="explain: wait for networks that another process trains")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--write", type=Path, default=None, metavar="DOCS", help="the documentation's folder")
    made.add_argument("--quick", action="store_true", help="two steps of training: the numbers mean nothing")
    return made


def training(name: str, quick: bool) -> Training:
    return Training(steps=2 if quick else STEPS[name])


def train(options: argparse.Namespace, until: float) -> None:
    for kind in options.kinds:
        for name in options.sets:
            if time.monotonic() > until:
                return
            trained(kind, load_data(name, options.data), options.work, training(name, options.quick))


def networks(options: argparse.Namespace) -> Iterator[tuple[Data, str, nn.Module]]:
    """Those that are trained."""
    for kind in options.kinds:
        for name in options.sets:
            data = load_data(name, options.data)
            network = trained(kind, data, options.work, training(name, options.quick), only_kept=True)
            if network is not None:
                yield data, kind, network


def explain(options: argparse.Namespace, until: float) -> None:
    """At equal forwards before defaults, the network with the fewest regions first: whenever it ends, all have about as many."""
    most = {"equal": options.regions, "defaults": options.defaults}
    done: Counter[tuple[str, str, str]] = Counter()
    while time.monotonic() < until:
        there = {(data.name, kind): (data, kind, network) for data, kind, network in networks(options)}
        left = [(budget, *key) for budget in most for key in there if done[(budget, *key)] < most[budget]]
        if left:
            budget, *key = one = min(left, key=lambda other: (other[0] == "defaults", done[other]))
            done[one] = min(done[one] + _CHUNK, most[budget])
            data, kind, network = there[key[0], key[1]]
            _explained(options.work / budget / data.name / folder_of(kind), data, kind, network, (budget, done[one]))
        elif options.wait and len(there) < len(options.kinds) * len(options.sets):
            time.sleep(10)  # another process trains them
        else:
            break


def folder_of(kind: str) -> str:
    return kind.replace(", ", "_").replace(" ", "_")


def _explained(out: Path, data: Data, kind: str, network: nn.Module, asked: tuple[str, int]) -> None:
    budget, n_regions = asked
    methods = {"equal": at_equal_forwards, "defaults": at_defaults}[budget](data)
    used, held_out = donors(data)
    began = time.monotonic()
    found = compare_cohort(
        *(methods, cases_of(kind, network, data, n_regions), TargetOf(network)),
        **{
            "out": out,
            "metrics": list(METRICS),
            "n_controls": 1,
            "faithfulness": EFFORT,
            "columns": ("place", "picture", "cluster"),
        },
        **{"baselines": used, "held_out": held_out, "output": data.output, "block_size": BLOCK, "show_progress": False},
    )
    (out.parent / f"{out.name}.json").write_text(json.dumps({"network": kind, "data": data.name, "budget": budget}))
    say(f"{budget}, {data.name}, {kind}: {found}, {time.monotonic() - began:.0f} s")


def gathered(work: Path) -> pd.DataFrame:
    """All rows of all comparisons, with the columns ``budget``, ``data`` and ``network``; networks' names are part of the cases'."""
    tables = []
    for file in sorted(work.glob("*/*/*.json")):
        if file.parent.parent.name in ("equal", "defaults"):
            about: Mapping[str, Any] = json.loads(file.read_text())
            tables.append(CohortComparison(file.with_suffix("")).table().assign(**about))
    found = pd.concat(tables, ignore_index=True)
    found["data"] = pd.Categorical(found["data"], list(DATA))
    return found.sort_values("data", kind="stable", ignore_index=True).astype({"data": str})


def about_networks(options: argparse.Namespace) -> pd.DataFrame:
    """Size and test Dice of all that are trained."""
    rows = []
    for data, kind, network in networks(options):
        dice = test_dice(network, data)
        size = sum(one.numel() for one in network.parameters())
        rows.append({"data": data.name, "network": kind, "parameters": size, "dice": float(dice.mean())})
        rows[-1]["lowest quarter"] = float(dice.quantile(0.25))
    return pd.DataFrame(rows)


def main() -> None:
    made = arguments()
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    if "skin" in options.sets and options.data is None:
        made.error("--data: expected the folder of the skin pictures; --sets brain does without")
    until = time.monotonic() + 3600 * options.hours
    if options.command == "train":
        train(options, until)
    elif options.command == "explain":
        explain(options, until)
    else:
        write_report(gathered(options.work), about_networks(options), options.write)


if __name__ == "__main__":
    main()
