"""Single and joint effects at equal forwards on the cases of ``comparison.py``: which ranking takes the segmentation apart?

    python benchmarks/equal_forwards.py --threads 1 [--write docs/benchmarks/equal_forwards.md --picture FILE --label FILE --patches FILE]

Hard Dice of the explained class, blocks of 8 x 8 pixels (or larger: ``--block``) outside the region of interest. One half of the donors is for the effects, the other
for judging them (``Faithfulness``; all maps with the same draws). Single effects (``AverageTreatmentEffect`` without screening, ranked donors) and joint ones
(``JointTreatmentEffect``) get the same number of draws per unit, which cost the same number of forwards, once for each seed.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cases import machine, parser, publish, say, start
from comparison import Job, jobs

from captum_causalseg import AverageTreatmentEffect, JointTreatmentEffect
from captum_causalseg.donors.split import donor_parts
from captum_causalseg.evaluation import Faithfulness

METHODS = {"single": None, "shapley": "shapley", "banzhaf": "banzhaf"}
METRICS = {
    "deletion, supporting": "lower",
    "deletion, harming": "higher",
    "insertion, supporting": "higher",
    "insertion, harming": "lower",
}
N_CONTROLS = 5


@dataclass(frozen=True)
class Row:
    """One map.

    Args:
        job: the case.
        method: which effects; ``random`` for a control.
        draws: of every unit.
        seed: of the draws.
        forwards: interventions that were made.
        units: that can reach the region.
        scores: by metric; NaN where the map says nothing of it.
        error: the mean standard error.
        spread: of the effects over the units.
    """

    job: str
    method: str
    draws: int
    seed: int
    forwards: int
    units: int
    scores: tuple[float, ...]
    error: float
    spread: float


def rows(job: Job, options: argparse.Namespace) -> Iterator[Row]:
    halves = donor_parts(job.donors, (0.5, 0.5), 0, least=2)
    assert not isinstance(halves, str)
    how = {"target": job.output, "block_size": options.block}
    sizes = {"n_draws": 1, "n_steps": 4} if options.quick else {"n_draws": 4}
    judge = Faithfulness(job.target, job.image, halves[1], **how, **sizes)

    def judged(attribution: torch.Tensor) -> tuple[float, ...]:
        table = judge.evaluate(attribution, list(METRICS))
        return tuple(float(value) for value in table.set_index("metric")["value"][list(METRICS)])

    for draws in options.draws:
        for method, context in METHODS.items():
            for seed in range(options.seeds):
                face = AverageTreatmentEffect(job.target) if context is None else JointTreatmentEffect(job.target)
                more = {"n_screening_draws": 0} if context is None else {"context": context}
                attribution, found = face.attribute(
                    job.image, halves[0], n_draws=draws, seed=seed, return_statistics=True, **how, **more
                )
                one = found.of_output(job.output)
                asked = one.hypotheses[0]
                made = Row(
                    job=job.title,
                    method=method,
                    draws=draws,
                    seed=seed,
                    forwards=found.settings["forwards"]["interventions"],
                    units=int(asked.sum()),
                    scores=judged(attribution),
                    error=float(one.standard_error[0][asked].mean()),
                    spread=float(one.effect[0][asked].std()),
                )
                say(str(made))
                yield made
    generator = torch.Generator().manual_seed(0)
    for seed in range(N_CONTROLS):
        noise = torch.randn(job.image.shape, generator=generator)
        yield Row(job.title, "random", 0, seed=seed, forwards=0, units=0, scores=judged(noise), error=np.nan, spread=np.nan)


def cell(values: list[float]) -> str:
    """The mean and the standard deviation over seeds."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "none"
    return f"{np.mean(known):.3f}" + (f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else "")


def table(found: list[Row]) -> list[str]:
    arrows = [f"{name} {'↓' if better == 'lower' else '↑'}" for name, better in METRICS.items()]
    lines = [f"| effects | draws | forwards | {' | '.join(arrows)} | error / spread |", "|---" * (4 + len(METRICS)) + "|"]
    for method, draws in dict.fromkeys((row.method, row.draws) for row in found):
        mine = [row for row in found if (row.method, row.draws) == (method, draws)]
        scores = [cell([row.scores[k] for row in mine]) for k in range(len(METRICS))]
        if method == "random":
            lines.append(f"| random (control) | | | {' | '.join(scores)} | |")
            continue
        ratio = np.mean([row.error / row.spread for row in mine])
        forwards = np.mean([row.forwards for row in mine])
        lines.append(f"| {method} | {draws} | {forwards:.0f} | {' | '.join(scores)} | {ratio:.2f} |")
    return lines


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--picture", type=Path)
    made.add_argument("--label", type=Path)
    made.add_argument("--patches", type=Path)
    made.add_argument("--block", type=int, default=8)
    made.add_argument("--cases", nargs="+", default=["demo", "shortcut", "picture"])
    made.add_argument("--draws", nargs="+", type=int, default=[6, 10])
    made.add_argument("--seeds", type=int, default=3)
    options = start(made)
    given = (options.picture, options.label, options.patches)
    if any(given) and not all(given):
        made.error("--picture, --label and --patches go together")
    lines = [
        "## Single and joint effects at equal forwards",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[4:]),
        f"Means over {options.seeds} seeds, ± their standard deviation. *error / spread*: the mean standard error over the spread of the effects.",
        "",
    ]
    for job in jobs(given if all(given) else None):
        if job.name in options.cases:
            found = list(rows(job, options))
            lines += [
                f"**{job.title}** ({found[0].units} blocks of {options.block} x {options.block} in reach)",
                "",
                *table(found),
                "",
            ]
            say("\n".join(lines[-len(table(found)) - 3 :]))
    publish([*lines, machine(options)], options)


if __name__ == "__main__":
    main()
