"""How much of an effect is the step that a raw patch brings? The same effects with donors that fit, on trained networks.

    python benchmarks/joints.py --threads 1 [--data FOLDER] [--work DIR] [--write docs/benchmarks/joints.md]

Networks that outline skin lesions (``benchmarks/skin.py``; left out without ``--data``), that segment a brain's tissues, and that fell for
a planted shortcut. Every effect is estimated twice, with draws of its own, so that products of effects across the two have no bias from noise. What is found for
a network and a region of interest is kept in ``--work`` as soon as it is there, under a name that changes with the settings: a run that was
interrupted goes on. About 45 minutes of one CPU core, the training of the skin networks (15 minutes) not counted.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skin
import torch
from cases import parser, say, start
from joints_report import report
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    DonorSource,
    NeighborBank,
    PatchBank,
    SegmentationTarget,
    TreatmentEffectStatistics,
    __version__,
    compare_donors,
    regions,
)
from captum_causalseg.demo import BrainSlices, fit, load_brain_slices, load_demo_network, mean_dice
from captum_causalseg.donors import Shifted
from captum_causalseg.evaluation import Faithfulness
from captum_causalseg.evaluation.donor_comparison import DonorComparison
from captum_causalseg.evaluation.planted import load_shortcut_case, marker_findings

BLOCK, ROI, MARGIN = 16, 32, 32
"""Edges in pixels: of the units, of the region of interest, and of what is explained around it on every side."""
SHARE = (0.3, 0.7)
"""Of the region, the explained class."""
GREY_MATTER = 1
N_DONORS = 100
# Not `mean_std`: air, and the black corners of skin pictures, are constant, and no donor of them can be given a unit's spread.
KINDS = ("raw", "mean", "blended", "neighbors")
SCORES = (
    *("deletion, supporting", "insertion, supporting", "deletion, harming", "insertion, harming"),
    *("faithfulness correlation", "mu fidelity"),
)
_ROUNDING = 1e-5
# Of the three slabs of eight held-out slices; neighbors are near copies of each other.
BRAIN_SLICES = (0, 7, 11, 16, 23, 8, 15)
# The brain is mirrored at its middle, so its left half is all there is; boxes that begin in different bands do not overlap.
BRAIN_BANDS = ((32, 48), (80, 96), (128, 144), (176,))


@dataclass(frozen=True)
class Settings:
    """What the results depend on, next to the networks.

    Args:
        n_draws: of each of the two estimates.
        n_skin, n_brain, n_shortcut: regions of interest.
        n_judged: of these, how many maps' faithfulness is looked at.
        training: steps of the instance-norm brain network.
    """

    n_draws: int = 4
    n_skin: int = 20
    n_brain: int = 20
    n_shortcut: int = 24
    n_judged: int = 10
    training: int = 400
    block: int = BLOCK
    seed: int = 0

    @staticmethod
    def quick() -> "Settings":
        """Everything tiny."""
        return Settings(n_draws=2, n_skin=2, n_brain=2, n_shortcut=2, n_judged=2, training=2)


@dataclass(frozen=True)
class Job:
    """One region of interest of one network.

    Args:
        data, network, number: its name.
        target: with the soft Dice.
        image: ``(1, C, H, W)``.
        output: which class.
        units: how the units are given to ``attribute``.
        kinds: of donors.
        held_out: donors that no map has seen.
        reached: what the network's mean Dice is on pictures that it was not trained on.
        case: of the shortcut, what is planted.
    """

    data: str
    network: str
    number: int
    target: SegmentationTarget
    image: Tensor
    output: int | None
    units: Mapping[str, Any]
    kinds: Mapping[str, DonorSource]
    held_out: PatchBank
    reached: float = float("nan")
    case: Any = None


def kinds_of(bank: PatchBank, *names: str) -> dict[str, DonorSource]:
    """Kinds of donors of one bank's images, by name."""
    made: dict[str, Callable[[], DonorSource]] = {
        "raw": bank.fitted,
        "mean": lambda: bank.fitted(match="mean"),
        "blended": lambda: bank.fitted(match="mean", blend=2),
        "neighbors": lambda: NeighborBank(bank),
    }
    return {name: made[name]() for name in names}


def box_on_border(mask: Tensor, rows: range | tuple[int, ...], columns: range | tuple[int, ...]) -> tuple[int, int] | None:
    """Of the boxes that begin there and are about half in the mask, the corner of the one with the most of its border."""
    border = torch.zeros_like(mask)
    border[1:] |= mask[1:] != mask[:-1]
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    found = []
    for row in rows:
        for column in columns:
            box = slice(row, row + ROI), slice(column, column + ROI)
            share = float(mask[box].float().mean())
            if SHARE[0] <= share <= SHARE[1]:
                found.append((-int(border[box].sum()), row, column))
    return min(found)[1:] if found else None


def near_units(shape: tuple[int, ...], corner: tuple[int, int], settings: Settings, *, half: bool = False) -> Tensor:
    """Blocks up to :data:`MARGIN` from the region are units; all else, the region among it, is unit 0, which is never replaced.

    Args:
        shape: of the image.
        corner: of the region.
        settings: the blocks' edge.
        half: only every other one, as on a checkerboard: for networks that take long.
    """
    mask = regions.grid(shape, settings.block) + 1
    near = regions.box(shape, [start - MARGIN for start in corner], ROI + 2 * MARGIN)
    mask[~near | regions.box(shape, corner, ROI)] = 0
    if half:
        rows, columns = (torch.arange(length) // settings.block for length in shape)
        mask[(rows[:, None] + columns) % 2 == 1] = 0
    return mask


def skin_jobs(settings: Settings, options: argparse.Namespace) -> Iterator[Job]:
    pictures, test = (skin.load_pictures(options.data, part) for part in ("train", "test"))
    networks = {
        name: skin.trained(name, pictures, options.work, steps=2 if options.quick else options.steps)
        for name in options.networks
    }
    kinds = kinds_of(PatchBank(pictures.images[0 : 2 * N_DONORS : 2]), *KINDS)
    held_out = PatchBank(pictures.images[1 : 2 * N_DONORS : 2])
    reached = {name: float(skin.dice(network, test).mean()) for name, network in networks.items()}
    number = 0
    for image, lesion in zip(test.images, test.lesions):
        starts = [range(MARGIN, length - MARGIN - ROI + 1, BLOCK) for length in lesion.shape]
        corner = box_on_border(lesion, *starts)
        if corner is None:
            continue
        for name, network in networks.items():
            roi = regions.box(lesion.shape, corner, ROI)
            target = SegmentationTarget(network, roi=roi, reference=lesion, metric="soft_dice", activation="sigmoid")
            units = {"feature_mask": near_units(tuple(lesion.shape), corner, settings, half=True)}
            yield Job("skin", name, number, target, image[None], None, units, kinds, held_out, reached[name])
        number += 1
        if number == settings.n_skin:
            return


def brain_network(train: BrainSlices, settings: Settings, options: argparse.Namespace) -> nn.Module:
    """The demo's network with the norm of the instance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(2, 1, 3, (8, 16, 32, 64, 64), (2, 2, 2, 2), num_res_units=2, norm="INSTANCE")
    file = options.work / f"brain_instance_norm_{settings.training}.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    say(f"brain, instance norm: training, {settings.training} steps")
    fit(network, train.images, train.labels, steps=settings.training)
    torch.save(network.state_dict(), file)
    return network


def brain_jobs(settings: Settings, options: argparse.Namespace) -> Iterator[Job]:
    train, held_out = load_brain_slices().split()
    networks = {"batch norm": load_demo_network(), "instance norm": brain_network(train, settings, options)}
    kinds, bank = kinds_of(PatchBank(train.images[::2]), *KINDS), PatchBank(train.images[1::2])
    reached = {
        name: float(mean_dice(network, held_out.images, held_out.labels)[GREY_MATTER - 1]) for name, network in networks.items()
    }
    number = 0
    for index in BRAIN_SLICES:
        image, labels = held_out.images[index : index + 1], held_out.labels[index]
        columns = range(MARGIN, labels.shape[1] // 2 - ROI + 1, BLOCK)
        for band in BRAIN_BANDS:
            corner = box_on_border(labels == GREY_MATTER, band, columns)
            if corner is None:
                continue
            for name, network in networks.items():
                roi = regions.box(labels.shape, corner, ROI)
                target = SegmentationTarget(network, roi=roi, reference=labels, metric="soft_dice")
                units = {"feature_mask": near_units(tuple(labels.shape), corner, settings)}
                yield Job("brain", name, number, target, image, GREY_MATTER, units, kinds, bank, reached[name])
            number += 1
            if number == settings.n_brain:
                return


def shortcut_jobs(settings: Settings, _options: argparse.Namespace) -> Iterator[Job]:
    for index in range(settings.n_shortcut):
        case = load_shortcut_case(index)
        halves = [case.donors.chosen(range(first, len(case.donors), 2)) for first in (0, 1)]
        target, kinds = case.target("soft_dice"), kinds_of(halves[0], *KINDS)
        yield Job("shortcut", "batch norm", index, target, case.images, None, {"block_size": 8}, kinds, halves[1], case=case)


def pooled(first: TreatmentEffectStatistics, second: TreatmentEffectStatistics) -> TreatmentEffectStatistics:
    """The mean of two independent estimates of the same effects, each of one output."""
    one, other = first.moments, second.moments
    moments = dataclasses.replace(
        one,
        effect=(one.effect + other.effect) / 2,
        sample_variance=(one.sample_variance + other.sample_variance) / 2,
        variance_factor=(one.variance_factor + other.variance_factor) / 4,
        variance_freedom=one.variance_freedom + other.variance_freedom,
        n_draws=one.n_draws + other.n_draws,
    )
    return first.replaced(moments, n_forwards=first.n_forwards + second.n_forwards)


def measured(job: Job, settings: Settings) -> tuple[dict[str, Any], DonorComparison]:
    """The effects with every kind of donors, twice, and what is significant of both together."""
    began = time.process_time()
    arguments = {**job.units, "n_screening_draws": 0}
    halves = [
        compare_donors(
            job.target, job.image, job.kinds, job.output, n_draws=settings.n_draws, seed=2 * job.number + half, **arguments
        )
        for half in (0, 1)
    ]
    both = dataclasses.replace(
        halves[0], statistics={name: pooled(*(half.statistics[name] for half in halves)) for name in job.kinds}
    )
    raw = both.statistics["raw"]
    asked = raw.hypotheses[0]
    significant = raw.significant()[0]
    record = {
        "observed": float(raw.observed_score[0]),
        "n_units": int(asked.sum()),
        "n_forwards": both.n_forwards,
        "seconds": time.process_time() - began,
        "effects": {name: [half.statistics[name].effect[0][asked].tolist() for half in halves] for name in job.kinds},
        "n_significant": int(significant.sum()),
        "n_trusted": int((both.trusted[0] & significant).sum()),
        "n_sign_differs": {name: int(both.sign_differs("raw", name)[0].sum()) for name in job.kinds if name != "raw"},
    }
    if job.case is not None:
        record["marker_unit"] = raw.unit_ids[asked].tolist().index(job.case.marker_unit)
        record["marker"] = {
            name: marker_findings(one.to_map().nan_to_num(), job.case).iloc[0].to_dict()
            for name, one in both.statistics.items()
        }
    return record, both


def shifted(job: Job) -> dict[str, Any]:
    """The effect of nothing but a joint: the mean over all moves of a unit's own tissue by one and two pixels that hold nothing of the region."""
    began = time.process_time()
    own = (
        AverageTreatmentEffect(job.target)
        .attribute(
            *(job.image, Shifted(2), job.output),
            **{**job.units, "n_draws": 8, "n_screening_draws": 0, "return_statistics": True},
        )[1]
        .of_output(job.output)
    )
    asked = own.hypotheses[0]
    return {
        "shift": own.effect[0][asked].tolist(),
        "shift_error": float(own.standard_error[0][asked].max()),
        "shift_forwards": own.n_forwards,
        "shift_seconds": time.process_time() - began,
    }


def judged(job: Job, found: DonorComparison, settings: Settings) -> list[dict[str, Any]]:
    """Faithfulness of the raw and the matched map, by raw and by matched donors that neither has seen."""
    maps = {name: found.statistics[name].to_map().nan_to_num() for name in ("raw", "mean")}
    rows = []
    for judge, match in (("raw", None), ("mean", "mean")):
        world = Faithfulness(
            *(job.target, job.image, job.held_out.fitted(match=match), job.output),
            **{**job.units, "n_draws": 3, "n_steps": 8, "n_subsets": 40, "seed": settings.seed},
        )
        for name, one in maps.items():
            scored = world.evaluate(one, list(SCORES))
            rows += [{"judge": judge, "map": name, "metric": m, "value": v} for m, v in zip(scored["metric"], scored["value"])]
    return rows


def outside_range(job: Job, settings: Settings, n: int = 20) -> float:
    """Share of the pixels of matched donors whose values no picture has: below 0 or above 1."""
    bound = job.kinds["mean"].bind(job.image)
    generator = np.random.default_rng((settings.seed, job.number))
    mask, shares = job.units["feature_mask"], []
    for unit in range(1, int(mask.max()) + 1):
        places = (mask == unit).nonzero()
        if len(places):
            box = tuple(slice(int(a), int(b) + 1) for a, b in zip(places.amin(0), places.amax(0)))
            for number in generator.integers(bound.population(0, box), size=n):
                donor = bound.read(0, box, int(number))
                shares.append(float(((donor < -_ROUNDING) | (donor > 1 + _ROUNDING)).float().mean()))
    return float(np.mean(shares))


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What is in the file, made before if it was not."""
    if not file.exists():
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(make(), default=lambda one: one.item()))
        partial.replace(file)
    return json.loads(file.read_text())


def explained(job: Job, settings: Settings, folder: Path) -> dict[str, Any]:
    """The job's record, with its faithfulness where that is looked at."""
    name = f"{job.data}_{job.network.replace(' ', '_')}_{job.number:02d}"

    def make() -> dict[str, Any]:
        record, found = measured(job, settings)
        if job.number < settings.n_judged:
            record["faithfulness"] = judged(job, found, settings)
        return record

    record = kept(folder / f"{name}.json", make)
    record |= kept(folder / f"{name}_shift.json", lambda: shifted(job))
    if job.case is None:  # the same for all networks
        range_file = folder / f"{job.data}_{job.number:02d}_range.json"
        record["outside_range"] = kept(range_file, lambda: outside_range(job, settings))
    say(f"{name}: {record['n_forwards']} forwards, {record['seconds']:.0f} s of CPU time")
    return {"data": job.data, "network": job.network, "number": job.number, "reached": job.reached, **record}


def main() -> None:
    made = skin.arguments(parser(__doc__))
    made.add_argument("--work", type=Path, default=None, help="where results are kept; by default a folder of the cache")
    made.add_argument("--networks", nargs="+", default=list(skin.NETWORKS[:2]), choices=skin.NETWORKS, help="for skin")
    made.add_argument("--only", nargs="+", default=None, choices=("skin", "brain", "shortcut"))
    options = start(made)
    settings = Settings.quick() if options.quick else Settings()
    options.work = options.work or options.cache / "joints"
    # How many regions there are does not change what is found for one of them.
    which = dataclasses.replace(settings, n_skin=0, n_brain=0, n_shortcut=0)
    digest = hashlib.sha256(repr((which, options.steps, KINDS, __version__)).encode()).hexdigest()[:8]
    folder = options.work / f"{'quick_' * options.quick}{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], Iterator[Job]]] = {
        name: functools.partial(make, settings, options)
        for name, make in (("shortcut", shortcut_jobs), ("brain", brain_jobs), ("skin", skin_jobs))
        if options.only is None or name in options.only
    }
    if "skin" in parts and not skin.has_data(options.data):
        say(f"skin: left out, --data does not name a folder that holds {skin.ARCHIVE}")
        del parts["skin"]
    records, began = [], time.process_time()
    for name, make in parts.items():
        for count, job in enumerate(make()):
            records.append(explained(job, settings, folder))
            if count % 6 == 5:
                say(f"{name}: {count + 1} done, {time.process_time() - began:.0f} s of CPU time so far")
    report(records, options)


if __name__ == "__main__":
    main()
