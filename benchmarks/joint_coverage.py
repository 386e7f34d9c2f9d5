"""Do intervals and tests of joint effects hold their levels on trained networks?

    python benchmarks/joint_coverage.py --threads 1 [--repeats 400] [--write docs/benchmarks/joint_coverage.md]

A square of a held-out brain slice (64 x 64, RoI 16 x 16, blocks of 8 x 8, 200 donors) and two networks: the demo's U-Net, and a small one with instance
norm, trained here in some seconds; grey and white matter, hard and soft Dice. A long run of independent pairs of draws (a permutation and its reverse, or
a set and its complement) gives the effects, and calls are simulated from its pairs: the library's own moments and statistics. ``--repeats``
is the number of calls. *held*: the share of 95 % intervals that hold the truth; *p <= 0.05*: of p-values where the effect is taken away; *half null*, *all null*: the false discovery rate
of ``significant()`` at 0.05 with every second effect taken away, and with all (the chance that any unit is called significant); *found*: of the effects that are left, how many are.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cases import machine, parser, publish, say, start
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "common"))

from exhaustive import CLASSES, METRICS, trained

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.demo import load_brain_slices, load_demo_network
from captum_causalseg.engine.contexts import Context, Units, context_of
from captum_causalseg.statistics import adjust_p_values
from captum_causalseg.statistics.intervals import half_width, p_value
from captum_causalseg.statistics.moderation import mean_over_geometric_mean, moderated_errors

DRAWS = (4, 6, 8, 12, 20, 50)
CONTEXTS = ("shapley", "banzhaf")
NORMS = {"batch norm": None, "instance norm": "INSTANCE"}
NAMES = {"dice": "hard Dice", "soft_dice": "soft Dice"}
CORNER, EDGE, ROI, BLOCK, N_DONORS = (120, 48), 64, ((24, 16), 16), 8, 200


@dataclass(frozen=True)
class Case:
    """A square of a slice.

    Args:
        network: in evaluation mode.
        image: ``(1, 1, H, W)``.
        label: ``(H, W)``.
        bank: ``(D, 1, 8, 8)``.
        corners: of the units, ``(n, 2)``.
    """

    network: nn.Module
    image: Tensor
    label: Tensor
    bank: Tensor
    corners: np.ndarray


def case(norm: str | None) -> Case:
    train, held_out = load_brain_slices().split()
    rows, columns = (slice(first, first + EDGE) for first in CORNER)
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(60, 140, (N_DONORS, 2), generator=generator).tolist()
    which = torch.randint(len(train), (N_DONORS,), generator=generator).tolist()
    bank = torch.stack([train.images[i, :, r : r + BLOCK, c : c + BLOCK] for i, (r, c) in zip(which, places)])
    inside = regions.box((EDGE, EDGE), *ROI)
    free = [
        (r, c) for r in range(0, EDGE, BLOCK) for c in range(0, EDGE, BLOCK) if not inside[r : r + BLOCK, c : c + BLOCK].any()
    ]
    network = load_demo_network() if norm is None else trained(train, EDGE, norm)
    return Case(
        network.eval(), held_out.images[12:13, :, rows, columns], held_out.labels[12, rows, columns], bank, np.array(free)
    )


@torch.no_grad()
def long_run(of: Case, context: Context, n_pairs: int) -> np.ndarray:
    """Every unit's difference in each pair, ``(pairs, units, outputs)``: classes, then metrics."""
    roi = regions.box((EDGE, EDGE), *ROI)
    targets = [
        SegmentationTarget(of.network, roi=roi, reference=of.label, metric=metric, activation="softmax") for metric in METRICS
    ]

    def scores(images: Tensor) -> np.ndarray:
        return np.concatenate([target(images)[:, list(CLASSES)].double().numpy() for target in targets], 1)

    observed, generator, n = scores(of.image)[0], np.random.default_rng(0), len(of.corners)
    units = Units(np.arange(n), np.ones(n, dtype=bool), generator)
    found = []
    for number in range(n_pairs):
        trial = context.trial(generator.random(n), units)
        donors = generator.integers(N_DONORS, size=(context.per_trial, n))
        changed = of.image.repeat(len(trial.sets), 1, 1, 1)
        for image, members, which in zip(changed, trial.sets, trial.which):
            for unit in np.flatnonzero(members):
                row, column = of.corners[unit]
                image[:, row : row + BLOCK, column : column + BLOCK] = of.bank[donors[which, unit]]
        found.append(trial.effects(np.concatenate([scores(part) for part in changed.split(64)]), observed))
        if number % 50 == 49:
            say(f"  {number + 1} of {n_pairs} pairs")
    made = np.stack(found)
    made[np.abs(made) < 1e-7] = 0.0  # rounding of float32
    return made


@dataclass(frozen=True)
class Line:
    """What calls of so many draws say of one output."""

    held: float
    small: float
    half_null: float
    all_null: float
    found: float


def judged(pairs: np.ndarray, n_draws: int, repeats: int) -> Line:
    """Of one output's pairs ``(P, U)``."""
    generator, truth, n = np.random.default_rng(1), pairs.mean(0), n_draws // 2
    alive = (pairs != 0).any(0)
    null = np.arange(len(truth)) % 2 == 0
    held, small, half, everything, found = [], [], [], [], []
    for _ in range(repeats):
        drawn = pairs[generator.integers(len(pairs), size=n)]
        variance = drawn.var(0, ddof=1)[:, None]
        factor = np.full_like(variance, mean_over_geometric_mean(n - 1) / n)
        error, freedom = (one[:, 0] for one in moderated_errors(variance, factor, np.full_like(variance, n - 1.0)))
        off = drawn.mean(0) - truth
        held.append((np.abs(off) <= half_width(error, freedom, 0.95))[alive].mean())
        nothing = p_value(off, error, freedom)
        small.append((nothing <= 0.05)[alive].mean())
        everything.append((adjust_p_values(nothing) <= 0.05).any())
        mixed = adjust_p_values(np.where(null, nothing, p_value(drawn.mean(0), error, freedom))) <= 0.05
        false = mixed & (null | ~alive)
        half.append(false.sum() / max(mixed.sum(), 1))
        found.append((mixed & ~false).sum() / max((alive & ~null).sum(), 1))
    return Line(*(float(np.mean(one)) for one in (held, small, half, everything, found)))


def rows(options: argparse.Namespace) -> list[str]:
    lines = [
        "| network | context | score | n | held | p <= 0.05 | half null | all null | found |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    n_pairs = 20 if options.quick else options.pairs
    for name, norm in NORMS.items():
        of = case(norm)
        for context in CONTEXTS:
            file = options.cache / f"joint_{name.replace(' ', '_')}_{context}_{n_pairs}.npy"
            if file.exists():
                pairs = np.load(file)
            else:
                say(f"{name}, {context}: a long run")
                pairs = long_run(of, context_of(context), n_pairs)
                options.cache.mkdir(parents=True, exist_ok=True)
                np.save(file, pairs)
            for m, metric in enumerate(METRICS):
                mine = pairs[:, :, m * len(CLASSES) : (m + 1) * len(CLASSES)]
                for n_draws in DRAWS:
                    of_classes = [judged(mine[..., k], n_draws, options.repeats) for k in range(len(CLASSES))]
                    cells = [
                        f"{np.mean([getattr(one, field) for one in of_classes]):.3f}" for field in Line.__dataclass_fields__
                    ]
                    lines.append(f"| {name} | {context} | {NAMES[metric]} | {n_draws} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(repeats=400)
    made.add_argument("--pairs", type=int, default=300, help="of the long run")
    options = start(made)
    lines = [
        "## Levels of joint effects",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[4:]),
        "",
        f"Pairs of the long run: {options.pairs}; calls: {options.repeats}.",
        "",
        *rows(options),
        "",
        machine(options),
    ]
    publish(lines, options)


if __name__ == "__main__":
    main()
