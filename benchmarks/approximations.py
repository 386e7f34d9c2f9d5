"""What compile=True and autocast=torch.bfloat16 do to effects and to speed.

    python benchmarks/approximations.py [--quick] [--threads 2] [--repeats 3] [--write FILE] [--cache DIR]

The same draws (uniform, no screening) with and without, on trained networks (see ``cases.py``); effects are in Dice points of 100.
"first" is the first call, compilation included; "next" the median of further calls, in turn with exact ones. torch.compile needs a
C++ compiler: without a working one that column says so.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from cases import LABEL, Case, cases, machine, parser, publish, say, start
from torch import nn

from captum_causalseg import AverageTreatmentEffect

WAYS: dict[str, dict[str, object]] = {
    "exact": {},
    "compile": {"compile": True},
    "bfloat16": {"autocast": torch.bfloat16},
    "both": {"compile": True, "autocast": torch.bfloat16},
}


def why_not_compile() -> str | None:
    """What torch.compile says on this machine; ``None`` if it works."""
    try:
        with torch.no_grad():
            torch.compile(nn.Conv2d(1, 1, 3))(torch.rand(1, 1, 8, 8))
    except Exception as error:  # whatever it says
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def effects(case: Case, n_draws: int, **way: object) -> tuple[np.ndarray, float, int]:
    """Effects of the units that are not excluded, seconds and interventions."""
    began = time.perf_counter()
    _, found = AverageTreatmentEffect(case.target).attribute(
        *(case.image, case.donors, LABEL),
        feature_mask=case.mask[None, None],
        n_draws=n_draws,
        n_screening_draws=0,
        sampling="uniform",
        return_statistics=True,
        **way,
    )
    seconds = time.perf_counter() - began
    values = found.effect[0, :, LABEL].numpy()
    return 100 * values[np.isfinite(values)], seconds, found.settings["forwards"]["interventions"]


def study(case: Case, ways: dict[str, dict[str, object]], options: argparse.Namespace) -> list[str]:
    # Whole images take longer than windows of them.
    n_draws = 12 if case.name == "batch norm" and not options.quick else 4
    repeats = options.repeats or (1 if options.quick else 3)
    first, values = {}, {}
    for name, way in ways.items():
        say(f"{case.name}: {name} ...")
        values[name], first[name], n = effects(case, n_draws, **way)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(effects(case, n_draws, **way)[1])
    exact = values["exact"]
    lines = []
    for name in ways:
        off = values[name] - exact
        ratio = statistics.median(a / b for a, b in zip(seconds["exact"], seconds[name]))
        lines.append(
            f"| {case.name} | {name} | {n} | {np.abs(exact).max():.3f} | {np.abs(off).max():.2e} | {np.sqrt(np.mean(off**2)):.2e} | "
            f"{first[name]:.2f} | {statistics.median(seconds[name]):.2f} | {ratio:.2f} |"
        )
    return lines


def main() -> None:
    options = start(parser(__doc__))
    reason = why_not_compile()
    ways = {name: way for name, way in WAYS.items() if reason is None or not way.get("compile")}
    lines = ["## Approximations: compile and autocast", "", machine(options), ""]
    if reason is not None:
        lines += [f"torch.compile does not work on this machine: {reason}", ""]
    lines += [
        "Effects and differences in Dice points of 100.",
        "",
        "| network | way | interventions | largest effect | largest difference | rms difference | first call, s | next, s | exact / this |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases(options, *(("batch norm",) if options.quick else ("batch norm", "instance norm", "SwinUNETR"))):
        lines += study(case, ways, options)
    publish(lines, options)


if __name__ == "__main__":
    main()
