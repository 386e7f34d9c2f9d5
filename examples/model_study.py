"""The paper's study in small: how do segmentation networks of different architecture perceive the same brain?

    python examples/model_study.py [--out DIR] [--quick] [--models UNet SegResNet ...] [--write docs]

Networks from MONAI are trained for minutes on axial slices of the demo's brain (resampled to 2 mm). On slices held out,
the effect of every block of the image on the grey matter's Dice in four regions of interest (RoIs) is estimated, and what
is found for each network, slice and RoI is summed up in a perception profile: how far the effects reach, which part of the
blocks supports, harms or does nothing, how concentrated and how directed the effects are.

Everything is kept in ``--out`` as soon as it is there (weights, effects, how long they took), under names that change with the
settings, so that a run that was interrupted goes on where it stopped and one with other settings starts afresh. ``--write docs``
writes the tables to ``docs/benchmarks/model_study.md`` and the picture to ``docs/_static/model_study.png``.

About half an hour on one CPU core; ``--quick`` makes everything tiny, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import monai
import nilearn
import numpy as np
import pandas as pd
import torch
from study_networks import ARCHITECTURES, SIZE
from study_report import FAR, Study
from torch import Tensor, nn
from torch.nn import functional

import captum_causalseg
from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, TreatmentEffectStatistics, regions
from captum_causalseg.demo import CLASS_NAMES, BrainSlices, fit, load_brain_slices, mean_dice
from captum_causalseg.evaluation.profile import perception_profile

LABEL = 1
"""Grey matter."""
ROI_EDGE = 16
PLACES = ("front", "left", "back", "middle")


@dataclass(frozen=True)
class Settings:
    """What the results depend on, next to the networks. Files of other settings have other names."""

    training: dict[str, Any] = field(
        default_factory=lambda: {
            **{"steps": 300, "batch_size": 8, "seed": 0, "slabs": 4, "slab": 6, "margin": 5, "size": SIZE},
            "versions": {"torch": torch.__version__, "monai": monai.__version__, "nilearn": nilearn.__version__},
        }
    )
    explanation: dict[str, Any] = field(
        default_factory=lambda: {
            **{"slices": (3, 9, 15, 21), "block_size": 8, "n_draws": 12, "seed": 0, "roi_edge": ROI_EDGE, "places": PLACES},
            "captum_causalseg": captum_causalseg.__version__,
        }
    )

    @staticmethod
    def quick() -> Settings:
        """Everything tiny."""
        plain = Settings()
        return Settings(
            {**plain.training, "steps": 2, "batch_size": 2},
            {**plain.explanation, "slices": (9,), "block_size": 16, "n_draws": 4, "places": PLACES[:2]},
        )


@dataclass(frozen=True)
class Case:
    """One held-out slice with its RoIs.

    Args:
        name: of the files.
        title: in tables and pictures.
        image: ``(1, 1, H, W)``.
        reference: label map ``(H, W)``.
        rois: boolean ``(R, H, W)``.
    """

    name: str
    title: str
    image: Tensor
    reference: Tensor
    rois: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path.home() / ".cache" / "captum_causalseg" / "model_study"
    parser.add_argument("--out", type=Path, default=default, help="where weights and effects are kept")
    parser.add_argument("--quick", action="store_true", help="everything tiny: to see whether the script runs")
    parser.add_argument("--models", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, default=None, metavar="DIR", help="the documentation's folder")
    parser.add_argument("--train-only", action="store_true", help="stop after the trainings")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    settings = Settings.quick() if options.quick else Settings()
    split = {name: settings.training[name] for name in ("slabs", "slab", "margin")}
    train, held_out = (halved(part) for part in load_brain_slices(size=(2 * SIZE[0], 2 * SIZE[1])).split(**split))
    networks = {name: trained(name, train, held_out, options.out, settings) for name in options.models}
    if options.train_only:
        return
    cases = make_cases(held_out, settings)
    about, rows, rings = [], [], []
    for name, (network, folder) in networks.items():
        found = [explained(network, case, train, folder, settings) for case in cases]
        about.append(describe(name, network, folder, found))
        for case, (statistics, _) in zip(cases, found):
            for place, roi in enumerate(case.rois):
                labels = {"model": name, "slice": case.title, "roi": settings.explanation["places"][place]}
                row, by_ring = profile(statistics, roi, place)
                rows.append(labels | row)
                rings.append(by_ring.assign(**labels))
    study = Study(pd.DataFrame(about), pd.DataFrame(rows), pd.concat(rings, ignore_index=True))
    key = key_of({"models": options.models, **asdict(settings)})
    keep(options.out / f"rows_{key}.csv", lambda file: study.rows.to_csv(file, index=False))
    text = study.page(settings.training, settings.explanation, options.quick)
    print(text)
    figure = study.plot()
    if options.write is None:
        keep(options.out / f"study_{key}.png", lambda file: figure.savefig(file, dpi=110, format="png"))
        return
    keep(options.write / "benchmarks" / "model_study.md", lambda file: file.write_text(text, encoding="utf-8"))
    keep(options.write / "_static" / "model_study.png", lambda file: figure.savefig(file, dpi=110, format="png"))


def halved(slices: BrainSlices) -> BrainSlices:
    """Two by two pixels become one: their mean, and the label that most of them have."""
    one_hot = functional.one_hot(slices.labels, len(CLASS_NAMES)).movedim(-1, 1).float()
    # Of labels with two pixels each, the lower right pixel's wins: whatever the label, so that no tissue is favored.
    votes = functional.avg_pool2d(one_hot, 2) + 0.1 * one_hot[:, :, 1::2, 1::2]
    return BrainSlices(functional.avg_pool2d(slices.images, 2), votes.argmax(1), slices.z_mm)


def make_cases(held_out: BrainSlices, settings: Settings) -> list[Case]:
    """Held-out slices spread over the height of the brain, each with boxes as RoIs."""
    places = settings.explanation["places"]
    return [
        Case(
            f"z{held_out.z_mm[i]:+.0f}",
            f"z = {held_out.z_mm[i]:+.0f} mm",
            held_out.images[i : i + 1],
            held_out.labels[i],
            rois_of(held_out.labels[i], places, settings.explanation["block_size"]),
        )
        for i in settings.explanation["slices"]
    ]


def rois_of(labels: Tensor, places: Iterable[str], block: int) -> Tensor:
    """Boxes on the grid of blocks where both tissues are, as far to the front, left or back as possible, or central.

    Of the boxes whose pixels are a quarter to three quarters grey matter and at least a tenth white matter, the one whose
    middle lies closest to a point: the middle of that side of the brain's bounding box, or its center. Boxes do not overlap.
    """
    height, width = labels.shape
    rows, columns = (labels > 0).nonzero().T
    (top, bottom), (left, right) = ((int(side.min()), int(side.max()) + 1) for side in (rows, columns))
    middle = ((top + bottom) / 2, (left + right) / 2)
    points = {"front": (top, middle[1]), "back": (bottom, middle[1]), "left": (middle[0], left), "middle": middle}
    boxes = []
    for r in range(0, height - ROI_EDGE + 1, block):
        for c in range(0, width - ROI_EDGE + 1, block):
            inside = labels[r : r + ROI_EDGE, c : c + ROI_EDGE]
            grey, white = (float((inside == label).float().mean()) for label in (1, 2))
            if 0.25 <= grey <= 0.75 and white >= 0.1:
                boxes.append((r, c))
    chosen: list[tuple[int, int]] = []
    for place in places:
        free = [box for box in boxes if all(max(abs(box[0] - o[0]), abs(box[1] - o[1])) >= ROI_EDGE for o in chosen)]
        r, c = points[place]
        chosen.append(min(free, key=lambda box: math.hypot(box[0] + ROI_EDGE / 2 - r, box[1] + ROI_EDGE / 2 - c)))
    return torch.stack([regions.box((height, width), box, ROI_EDGE) for box in chosen])


def trained(name: str, train: BrainSlices, held_out: BrainSlices, out: Path, settings: Settings) -> tuple[nn.Module, Path]:
    """The network with its trained weights, and its folder; what is not there yet is done."""
    architecture = ARCHITECTURES[name]
    asked = {**asdict(architecture), **settings.training}
    # The prose of the table changes no weights.
    del asked["mixing"]
    folder = out / f"{name.replace(', ', '_').replace(' ', '_')}_{key_of(asked)}"
    network = architecture.build()
    weights, record = folder / "weights.pt", folder / "training.json"
    if record.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network, folder

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            say(f"{name}: step {step} of {settings.training['steps']}, loss {loss:.3f}")

    began = time.process_time()
    fit(
        *(network, train.images, train.labels),
        steps=settings.training["steps"],
        seed=settings.training["seed"],
        batch_size=settings.training["batch_size"],
        learning_rate=architecture.learning_rate,
        progress=report,
    )
    seconds = time.process_time() - began
    dice = mean_dice(network, held_out.images, held_out.labels).tolist()
    keep(weights, lambda file: torch.save(network.state_dict(), file))
    # Last: where the record is, the weights are whole.
    keep_json(record, {"seconds": seconds, "dice": dict(zip(CLASS_NAMES[1:], dice)), "settings": asked})
    say(f"{name}: {seconds:.0f} s, Dice {dice}")
    return network, folder


def explained(
    network: nn.Module, case: Case, train: BrainSlices, folder: Path, settings: Settings
) -> tuple[TreatmentEffectStatistics, dict[str, Any]]:
    """The effects on every RoI of a slice and a record of the work, from the folder if they are there."""
    asked = settings.explanation
    folder = folder / f"effects_{key_of({name: value for name, value in asked.items() if name != 'slices'})}"
    effects, record = folder / f"{case.name}.npz", folder / f"{case.name}.json"
    if record.exists():
        return TreatmentEffectStatistics.load(effects), json.loads(record.read_text(encoding="utf-8"))
    target = SegmentationTarget(network, roi=case.rois, reference=case.reference)
    began = time.process_time()
    _, statistics = AverageTreatmentEffect(target).attribute(
        case.image,
        baselines=PatchBank(train.images),
        target=(LABEL, 0),
        block_size=asked["block_size"],
        n_draws=asked["n_draws"],
        seed=asked["seed"],
        return_statistics=True,
    )
    seconds = time.process_time() - began
    keep(effects, statistics.save)
    keep_json(record, {"seconds": seconds, "settings": asked})
    say(f"{folder.parent.name}, {case.name}: {statistics.n_forwards} forwards, {seconds:.0f} s")
    return statistics, json.loads(record.read_text(encoding="utf-8"))


def profile(statistics: TreatmentEffectStatistics, roi: Tensor, place: int) -> tuple[dict[str, float], pd.DataFrame]:
    """One row of numbers, and the sums per ring of blocks around the RoI. Distances are counted in rings."""
    found = perception_profile(statistics, roi, target=(LABEL, place))
    row = found.summary()
    row["energy_radius_90"] = found.radius(0.9, of="energy")
    for name in ("radius_50", "radius_90", "energy_radius_50", "energy_radius_90"):
        row[name] = np.ceil(row[name] / found.bin_width - 1e-9)
    # What the geometry alone makes: where half of the units lie that can reach the RoI.
    row |= {
        f"even_radius_{share}": float(np.quantile(found.units["bin"], share / 100, method="inverted_cdf")) for share in (50, 90)
    }
    row["even_share_within_2"] = float((found.units["bin"] <= 2).mean())
    row["share_reached"] = len(found.units) / (len(found.units) + found.n_outside)
    row["share_far_active"] = float((found.units["role"] != "null")[found.units["bin"] > FAR].mean())
    row["noise_share"] = row["noise_mass"] / row["mass"] if row["mass"] > 0 else math.nan
    return row, found.by_distance[["bin", "n_units", "mass", "energy"]].astype({"n_units": float})


def describe(
    name: str, network: nn.Module, folder: Path, found: list[tuple[TreatmentEffectStatistics, dict[str, Any]]]
) -> dict[str, Any]:
    """What there is to know about a network besides its profiles."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    kinds = {"batch": nn.modules.batchnorm._BatchNorm, "instance": nn.modules.instancenorm._InstanceNorm}
    kinds |= {"group": nn.GroupNorm, "layer": nn.LayerNorm}
    norms = [kind for kind, one in kinds.items() if any(isinstance(module, one) for module in network.modules())]
    return {
        "model": name,
        "norm": " + ".join(norms),
        "mixing": ARCHITECTURES[name].mixing,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "dice": training["dice"][CLASS_NAMES[LABEL]],
        "roi_dice": float(torch.stack([statistics.observed_score[0, LABEL] for statistics, _ in found]).mean()),
        "training_seconds": training["seconds"],
        "forwards": sum(statistics.n_forwards for statistics, _ in found),
        "seconds": sum(record["seconds"] for _, record in found),
    }


def keep(file: Path, write: Callable[[Path], Any]) -> None:
    """Write beside, then rename: a file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    write(part)
    part.replace(file)


def keep_json(file: Path, value: dict[str, Any]) -> None:
    keep(file, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def key_of(settings: dict[str, Any]) -> str:
    """Changes with the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def say(text: str) -> None:
    """Progress, kept apart from the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
