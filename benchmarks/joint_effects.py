"""Single and joint effects at equal forwards: which of the two rankings takes a segmentation apart, and how sure is it?

    python benchmarks/joint_effects.py --data FOLDER --work DIR [--threads 1] [--write docs/benchmarks/joint_effects.md]

Networks that outline skin lesions (``benchmarks/skin.py``). Units are blocks of 8 pixels up to 32 pixels from a region on the lesion's border.
Single effects (``AverageTreatmentEffect``, ranked donors, no screening) and joint ones (``JointTreatmentEffect``) get the same number of draws, which cost
the same number of forwards. Maps are judged by deletion with donors that neither has seen, as everywhere (``Faithfulness``). About 4 minutes of
one CPU core, the training of the networks (15 minutes) not counted.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import joints
import numpy as np
import skin
from cases import machine, parser, publish, say, start
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, JointTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.evaluation import Faithfulness

METHODS = {"single": None, "shapley": "shapley", "banzhaf": "banzhaf"}
SCORES = {"deletion, supporting": "lower", "deletion, harming": "higher"}


@dataclass(frozen=True)
class Row:
    """What was found for one picture, network, metric and method."""

    network: str
    metric: str
    method: str
    picture: int
    n_units: int
    forwards: int
    scores: tuple[float, ...]
    noise: float


def rows(options: argparse.Namespace) -> Iterator[Row]:
    settings = joints.Settings(block=8)
    pictures, test = (skin.load_pictures(options.data, part) for part in ("train", "test"))
    donors, held_out = (PatchBank(pictures.images[first : 2 * joints.N_DONORS : 2]) for first in (0, 1))
    steps = 2 if options.quick else options.steps
    networks = {name: skin.trained(name, pictures, options.work, steps=steps) for name in options.networks}
    number = 0
    for image, lesion in zip(test.images, test.lesions):
        starts = [range(joints.MARGIN, length - joints.MARGIN - joints.ROI + 1, joints.BLOCK) for length in lesion.shape]
        corner = joints.box_on_border(lesion, *starts)
        if corner is None:
            continue
        roi = regions.box(lesion.shape, corner, joints.ROI)
        mask = joints.near_units(tuple(lesion.shape), corner, settings)
        # What lies further away is one unit, which is never replaced.
        units = {"feature_mask": mask, "exclude": mask == 0}
        for name, network in networks.items():
            for metric in options.metrics:
                target = SegmentationTarget(network, roi=roi, reference=lesion, metric=metric, activation="sigmoid")
                judge = Faithfulness(target, image[None], held_out, **units, n_draws=2 if options.quick else 4, n_steps=8)
                for method, context in METHODS.items():
                    face = AverageTreatmentEffect(target) if context is None else JointTreatmentEffect(target)
                    more = {} if context is None else {"context": context}
                    attribution, found = face.attribute(
                        image[None],
                        donors,
                        n_draws=4 if options.quick else options.draws,
                        n_screening_draws=0,
                        seed=number,
                        return_statistics=True,
                        **units,
                        **more,
                    )
                    asked = found.hypotheses[0]
                    noise = float(found.standard_error[0][asked].mean() / found.effect[0][asked].std())
                    scores = tuple(float(judge.deletion(attribution, order.split(", ")[1]).area[0]) for order in SCORES)
                    made = Row(name, metric, method, number, int(asked.sum()), found.n_forwards, scores, noise)
                    say(str(made))
                    yield made
        number += 1
        if number == (2 if options.quick else options.pictures):
            return


def difference(ours: np.ndarray, single: np.ndarray) -> str:
    """The mean difference with its 95 % interval over pictures."""
    values = ours - single
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    text = f"{values.mean():+.3f} ({values.mean() - half:+.3f} to {values.mean() + half:+.3f})"
    return f"**{text}**" if abs(values.mean()) > half else text


def table(found: list[Row]) -> list[str]:
    arrows = [f"{name} {'↓' if better == 'lower' else '↑'}" for name, better in SCORES.items()]
    lines = [
        f"| network | score | effects | forwards | {' | '.join(f'{name} | less single' for name in arrows)} | error / spread |",
        "|---" * (5 + 2 * len(SCORES)) + "|",
    ]
    for network, metric in dict.fromkeys((row.network, row.metric) for row in found):
        single: list[np.ndarray] = []
        for method in METHODS:
            mine = [row for row in found if (row.network, row.metric, row.method) == (network, metric, method)]
            scores = [np.array([row.scores[k] for row in mine]) for k in range(len(SCORES))]
            single = single or scores
            cells = []
            for ours, theirs in zip(scores, single):
                cells += [f"{ours.mean():.3f}", "" if method == "single" else difference(ours, theirs)]
            forwards, noise = np.mean([row.forwards for row in mine]), np.mean([row.noise for row in mine])
            lines.append(f"| {network} | {metric} | {method} | {forwards:.0f} | {' | '.join(cells)} | {noise:.2f} |")
    return lines


def main() -> None:
    made = skin.arguments(parser(__doc__))
    made.add_argument("--networks", nargs="+", default=["batch norm"], choices=skin.NETWORKS)
    made.add_argument("--work", type=Path, default=Path("joints"), help="where trained networks are kept")
    made.add_argument("--metrics", nargs="+", default=["dice"], choices=("dice", "soft_dice"))
    made.add_argument("--pictures", type=int, default=3)
    made.add_argument("--draws", type=int, default=8, help="of every unit")
    options = start(made)
    if not skin.has_data(options.data):
        made.error(f"--data: expected a folder that holds {skin.ARCHIVE}, got {options.data}")
    found = list(rows(options))
    n_units = sorted({row.n_units for row in found})
    units = f"{n_units[0]} units" if len(n_units) == 1 else f"{n_units[0]} to {n_units[-1]} units"
    lines = [
        "## Single and joint effects",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[4:]),
        "",
        f"{len({row.picture for row in found})} pictures, {units}, {options.draws} draws. *less single*: the mean difference from single "
        "effects on the same pictures with its 95% interval, bold where it does not hold 0. *error / spread*: the mean standard error over the spread of the effects.",
        "",
        *table(found),
        "",
        machine(options),
    ]
    publish(lines, options)


if __name__ == "__main__":
    main()
