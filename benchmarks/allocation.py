"""Draws where they are needed against as many for every unit: errors, the bias of looking, coverage, false discoveries.

    python benchmarks/allocation.py --threads 1 [--repeats 4000] [--write docs/benchmarks/allocation.md]

The tables of all interventions are those of ``coverage.py``; the engine runs on them, with the same donors, first with ``allocation="equal"``, then
with ``"needed"``. ``--repeats`` is the number of trials (units times seeds) of a line, at least. Both metrics are outputs of one run: draws go where
their relative errors, added up, fall the most. Errors and biases are root mean squares over units, in parts of the rms error
with equal draws; from squared biases that is taken away which the mean of so many seeds is off by chance.
"""

import argparse
import dataclasses

import numpy as np
import torch
from cases import machine, parser, publish, say, start
from coverage import NAMES, false_discoveries
from exhaustive import METRICS, SAMPLINGS, Table, of_slice, of_volumes, statistics_of
from torch import Tensor

from captum_causalseg import TreatmentEffectStatistics
from captum_causalseg.engine.allocation import ROUNDS
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import run

DRAWS = {"2D": (12, 20), "2D, instance norm": (12, 20, 50), "3D": (12, 20)}
# What a sum of so many numbers is off by: a bank that is used up has a standard error of 0.
_ROUNDING = 1e-12


class LookedUp:
    """An evaluator that knows all scores: those observed are 0."""

    def __init__(self, differences: np.ndarray) -> None:
        self._differences = differences

    def observe(self, examples: np.ndarray) -> Tensor:
        return torch.zeros(len(examples), self._differences.shape[2], dtype=torch.float64)

    baseline = observe

    def __call__(self, interventions: Interventions) -> Tensor:
        return torch.from_numpy(-self._differences[interventions.unit, interventions.donor[:, 0]])


def simulated(table: Table, sampling: str, n_draws: int, seeds: range, *, shared: bool) -> TreatmentEffectStatistics:
    """What ``attribute`` reports without screening, one example per seed, ``(S, U, K)``."""
    units, donors, outputs = table.differences.shape
    example, unit = np.divmod(np.arange(len(seeds) * units), units)
    plan = Plan(
        example=example,
        unit=unit,
        key=unit,
        population=np.full((len(unit), 1), donors),
        active=np.ones((len(unit), outputs), dtype=bool),
        n_draws=n_draws,
        n_first=n_draws // 2 if shared else None,
        n_screening_draws=0,
        seed=tuple(seeds),
        sampling=sampling,
    )
    if sampling == "stratified":
        known = {"outputs": np.ones(outputs, dtype=bool), "most_draws": n_draws // 2 * 2**ROUNDS if shared else n_draws}
        ranked = [plan.ranked(row, table.first_order[u], **known) for row, u in enumerate(unit.tolist())]
        plan = dataclasses.replace(plan, rankings=ranked)
    observed = np.zeros((len(seeds), outputs))
    needed = np.ones(observed.shape, dtype=bool) if shared else None
    found = run(plan, LookedUp(table.differences), observed, batch_size=100_000, screening_threshold=0.0, needed=needed)
    effect = found.moments.effect
    # An effect that is known exactly is what the table says, not that and the rounding of another order of the sum.
    truth = table.truth[unit]
    moments = dataclasses.replace(found.moments, effect=np.where(np.abs(effect - truth) < _ROUNDING, truth, effect))
    return statistics_of(moments.spread(example, unit, len(seeds), units))


def line(case: str, tables: tuple[Table, ...], sampling: str, n_draws: int, least_trials: int) -> list[str]:
    """Two lines per metric, for both ways."""
    seeds = -(-least_trials // sum(len(table.truth) for table in tables))
    drawn = {
        way: [
            simulated(table, sampling, n_draws, range(1000 * t, 1000 * t + seeds), shared=way == "needed")
            for t, table in enumerate(tables)
        ]
        for way in ("equal", "needed")
    }
    lines = []
    for k, metric in enumerate(METRICS):
        usual = 0.0
        groups = {
            name: np.concatenate([getattr(table, name)[:, k] for table in tables]) for name in ("alive", "rare", "skewed")
        }
        for way, runs in drawn.items():
            pairs = list(zip(runs, tables))
            error = np.concatenate([one.effect.numpy()[..., k] - table.truth[:, k] for one, table in pairs], 1)
            half = [(upper - lower).numpy()[..., k] / 2 for lower, upper in (one.confidence_interval(0.95) for one in runs)]
            held = np.abs(error) <= np.concatenate(half, 1)
            standard = np.concatenate([one.standard_error.numpy()[..., k] for one in runs], 1)
            draws = np.concatenate([one.n_draws.numpy()[..., k] for one in runs], 1)
            size = np.sqrt((error**2).mean())
            usual = usual or size
            chance = error.var(0, ddof=1) / len(error)
            bias = np.sqrt(max(0.0, (error.mean(0) ** 2 - chance).mean()))
            of = {name: f"{held[:, group].mean():.3f}" if group.any() else "none" for name, group in groups.items()}
            discoveries = np.mean([false_discoveries(one, table, "fdr_bh", every=2)[:, k].mean() for one, table in pairs])
            ratio, of_moved = (
                np.sqrt((standard[:, which] ** 2).mean() / (error[:, which] ** 2).mean()) for which in (..., groups["alive"])
            )
            lines.append(
                f"| {case}, {NAMES[metric]} | {sampling} | {n_draws} | {way} | {held[:, groups['alive']].size} | {100 * size:.4f} | {size / usual:.2f} "
                f"| {bias / size:.2f} | {of['alive']} | {of['rare']} | {of['skewed']} | {ratio:.2f} | {of_moved:.2f} "
                f"| {discoveries:.3f} | {draws.mean():.1f} ({draws.min()} to {draws.max()}) |"
            )
    return lines


def tables_of(options: argparse.Namespace) -> dict[str, tuple[Table, ...]]:
    """Those of ``coverage.py``."""
    many, few = (60, 60) if options.quick else (300, 200)
    return {
        "2D": of_slice((120, 48), 112, (64, 40), 32, n_donors=many),
        "2D, instance norm": of_slice((120, 48), 64, (24, 16), 16, n_donors=few, norm="INSTANCE"),
        "3D": of_volumes([(90, 50), (150, 70), (140, 120)], few),
    }


def main() -> None:
    options = start(parser(__doc__))
    trials = options.repeats or (400 if options.quick else 4000)
    lines = ["### Draws where they are needed", "", machine(options), ""]
    lines += [
        '`allocation="needed"` against `"equal"`, within the same budget. Errors: root mean square over units and seeds, in Dice points of 100, and in parts of',
        "that with equal draws; *bias*: that of looking, root mean square over units, in parts of the rms error; shares of 95 % intervals that hold the",
        "truth, of the units that any donor moves, of those that fewer than 20 % of the donors move (*rare*), and of the *skewed* ones; *FDR*: the share of",
        "false ones among the units called significant at 0.05 when the effect of every second unit is taken away. *se / error*: rms standard error over rms",
        "error, of all units and of those that any donor moves: a unit that none moves has no error, and its few draws cannot tell it from one that flips rarely.",
        "`attribute` shares out stratified draws only; the lines with uniform ones say why.",
        "",
        "| case | sampling | n_draws | allocation | trials | rms error | of equal | bias | intervals | rare | skewed | se / error | of units that move | FDR | draws |",
        "|" + "---|" * 15,
    ]
    for case, tables in tables_of(options).items():
        for n_draws in DRAWS[case]:
            for sampling in SAMPLINGS[::-1]:
                say(f"{case}: {n_draws} draws, {sampling}")
                lines += line(case, tables, sampling, n_draws=n_draws, least_trials=trials)
    publish(lines, options)


if __name__ == "__main__":
    main()
