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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import monai
import nilearn
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional

import captum_causalseg
from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, TreatmentEffectStatistics, regions
from captum_causalseg.demo import CLASS_NAMES, BrainSlices, fit, load_brain_slices, mean_dice
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.statistics import Status

SIZE = (128, 96)
"""Of the slices, after two by two pixels of 1 mm became one."""
LABEL = 1
"""Grey matter."""
ROI_EDGE = 16
FAR = 4
"""Rings of blocks around the RoI; what lies beyond is called far."""
PLACES = ("front", "left", "back", "middle")
MEASURES = {
    "radius_50": "radius of 50 % of the mass (rings)",
    "share_within_2": "share of the mass in the first two rings",
    "share_null": "share of null units",
    "concentration": "concentration (Gini)",
    "anisotropy": "anisotropy",
}
# Okabe and Ito's colors, which the color-blind can tell apart, and one more.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#6a3d9a", "#8c564b")
MARKERS = "osD^vP*Xd"
SLICE_COLORS = ("#440154", "#31688e", "#35b779", "#d8c51e")


@dataclass(frozen=True)
class Architecture:
    """A network of MONAI.

    Args:
        network: its name in ``monai.networks.nets``.
        arguments: sizes that train within minutes; what is not named is MONAI's default, the normalization above all.
        mixing: what besides the normalization carries information across the whole image, for the table.
        learning_rate: the largest of the cycle. Transformers want smaller ones.
    """

    network: str
    arguments: dict[str, Any]
    mixing: str = ""
    learning_rate: float = 5e-3

    def build(self) -> nn.Module:
        """The network with the same initial weights every time; the global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = FirstOutput(getattr(nets, self.network)(**self.arguments))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                # PyTorch's default. EfficientNet's means move by a hundredth a step, too slow for a few hundred steps.
                module.momentum = 0.1
        return network.eval()


class FirstOutput(nn.Module):
    """A network that returns its segmentation alone, also where the one inside returns a list that starts with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        return found[0] if isinstance(found, (list, tuple)) else found


_UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "strides": (2, 2, 2)}
CONTROL = "UNet, batch norm"
ARCHITECTURES = {
    "UNet": Architecture("UNet", {**_UNET, "channels": (16, 32, 64, 128), "num_res_units": 2}),
    # The control: the same network, but what happens in one place cannot reach all others by way of the normalization.
    CONTROL: Architecture("UNet", {**_UNET, "channels": (16, 32, 64, 128), "num_res_units": 2, "norm": "batch"}),
    "BasicUNetPlusPlus": Architecture(
        "BasicUNetPlusPlus", {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "features": (8, 8, 16, 32, 64, 8)}
    ),
    "SegResNet": Architecture("SegResNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_filters": 8}),
    "AttentionUnet": Architecture("AttentionUnet", {**_UNET, "channels": (8, 16, 32, 64)}),
    "DynUNet": Architecture(
        "DynUNet",
        {
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "kernel_size": (3, 3, 3, 3)},
            **{"strides": (1, 2, 2, 2), "upsample_kernel_size": (2, 2, 2), "filters": (8, 16, 32, 64)},
        },
    ),
    "FlexibleUNet": Architecture(
        "FlexibleUNet",
        {
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "backbone": "efficientnet-b0", "pretrained": False},
            "decoder_channels": (64, 32, 16, 8, 8),
        },
        mixing="squeeze and excitation",
    ),
    "SwinUNETR": Architecture(
        "SwinUNETR",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "feature_size": 12},
        mixing="attention in shifted windows",
        learning_rate=2e-3,
    ),
    "UNETR": Architecture(
        "UNETR",
        {
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "img_size": SIZE},
            **{"feature_size": 8, "hidden_size": 96, "mlp_dim": 384, "num_heads": 4},
        },
        mixing="attention",
        learning_rate=2e-3,
    ),
}


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
    text = study.page(settings, options)
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
    # What the geometry alone makes: where half of the units lie.
    row |= {
        f"even_radius_{share}": float(np.quantile(found.units["bin"], share / 100, method="inverted_cdf")) for share in (50, 90)
    }
    row["even_share_within_2"] = float((found.units["bin"] <= 2).mean())
    row["share_reached"] = float((found.units["status"] != Status.OUTSIDE_SUPPORT.name).mean())
    row["share_far_active"] = float((found.units["role"] != "null")[found.units["bin"] > FAR].mean())
    row["noise_share"] = row["noise_mass"] / row["mass"] if row["mass"] > 0 else math.nan
    return row, found.by_distance[["bin", "n_units", "mass", "energy"]].astype({"n_units": float})


@dataclass(frozen=True)
class Study:
    """All results.

    Args:
        about: one row per network.
        rows: one row per network, slice and RoI.
        rings: one row per network, slice, RoI and ring of blocks.
    """

    about: pd.DataFrame
    rows: pd.DataFrame
    rings: pd.DataFrame

    @property
    def order(self) -> list[str]:
        """The networks, those with the most mass near the RoI first."""
        near = self.rows.groupby("model")["share_within_2"].mean()
        return [str(name) for name in near.sort_values(ascending=False, kind="stable").index]

    def cumulative(self, model: str, of: str) -> pd.Series:
        """Per ring, the share of ``n_units``, ``mass`` or ``energy`` that lies within it.

        Shares of each case are averaged. Energies are added up over the cases first: those of one case scatter about 0.
        """
        table = self.rings[self.rings["model"] == model].pivot_table(
            index=["slice", "roi"], columns="bin", values=of, aggfunc="sum", fill_value=0.0
        )
        if of == "energy":
            total = table.sum()
            return (total / total.sum()).cumsum()
        return table.div(table.sum(axis=1), axis=0).mean().cumsum()

    def spread(self) -> pd.DataFrame:
        """How much each measure varies, as standard deviations, and whether the networks keep their order."""
        found = {}
        for name in MEASURES:
            by_slice = self.rows.pivot_table(index="model", columns="slice", values=name)
            within = self.rows.groupby(["model", "slice"])[name].var()
            ranks = by_slice.corr(method="spearman").to_numpy()[np.triu_indices(by_slice.shape[1], 1)]
            found[name] = {
                "models": by_slice.mean(axis=1).std(),
                "slices": math.sqrt(by_slice.var(axis=1).mean()),
                "common": by_slice.mean(axis=0).std(),
                "rois": math.sqrt(within.mean()),
                "rank_correlation": float(pd.Series(ranks).mean()),
            }
        return pd.DataFrame(found).T

    def page(self, settings: Settings, options: argparse.Namespace) -> str:
        """What was done and the tables, in Markdown."""
        asked, slices = settings.explanation, list(self.rows["slice"].unique())
        setup = (
            f"`examples/model_study.py`: {settings.training['steps']} steps of {settings.training['batch_size']} slices each; "
            f"{len(slices)} held-out slices ({', '.join(slices)}) with {self.rows['roi'].nunique()} RoIs of {ROI_EDGE} x {ROI_EDGE} "
            f"pixels each; blocks of {asked['block_size']} pixels, {asked['n_draws']} draws. Times are CPU seconds, all slices together."
        )
        parts = [
            setup + (" **Quick settings: the numbers mean nothing.**" if options.quick else ""),
            self._networks(),
            "How far the effects reach: mean over slices and RoIs ± standard deviation between them; distances in rings of blocks "
            "around the RoI. Energies of two rings are added up over the cases.",
            self._distances(),
            "What the units do, and how evenly (likewise).",
            self._roles(),
            "What varies more, the network or the input? Standard deviations of the same numbers, over the networks as MONAI makes them "
            f'("{CONTROL}" left out).',
            self._variation(),
        ]
        return "\n\n".join(parts) + "\n"

    def _networks(self) -> str:
        header = ("network", "normalization; also mixes by", "parameters", "Dice, held-out slices", "Dice in the RoIs")
        rows = []
        for name, one in self.about.set_index("model").loc[self.order].iterrows():
            mixing = one["norm"] + (f"; {one['mixing']}" if one["mixing"] else "")
            scores = f"{one['parameters'] / 1e6:.2f} M", f"{one['dice']:.3f}", f"{one['roi_dice']:.3f}"
            rows.append((name, mixing, *scores, f"{one['training_seconds']:.0f}", one["forwards"], f"{one['seconds']:.0f}"))
        return markdown((*header, "training, s", "forwards", "effects, s"), rows)

    def _distances(self) -> str:
        header = (
            "network",
            "units that reach the RoI, %",
            "radius of 50 % of the mass",
            "of 90 %",
            "of 50 % of the energy",
            "of 90 %",
        )
        rows = []
        for name in self.order:
            radii = [self._cell(name, f"{of}radius_{share}", 1) for of in ("", "energy_") for share in (50, 90)]
            near = self._cell(name, "share_within_2", 0, 100), f"{100 * self.cumulative(name, 'energy').get(2, math.nan):.0f}"
            rows.append((name, self._cell(name, "share_reached", 0, 100), *radii, *near, self._cell(name, "noise_share", 2)))
        even = self.rows[["even_radius_50", "even_radius_90"]].mean()
        near_even = f"{100 * self.rows['even_share_within_2'].mean():.0f}"
        rows.append(("*every unit the same*", "", *[f"{radius:.1f}" for radius in even] * 2, near_even, near_even, ""))
        return markdown((*header, "mass in two rings, %", "energy in two rings, %", "noise / mass"), rows)

    def _roles(self) -> str:
        header = (
            "network",
            "supporting, %",
            "harming, %",
            "null, %",
            f"not null beyond ring {FAR}, %",
            "concentration",
            "anisotropy",
        )
        rows = []
        for name in self.order:
            shares = [self._cell(name, f"share_{role}", 0, 100) for role in ("supporting", "harming", "null", "far_active")]
            rows.append((name, *shares, self._cell(name, "concentration", 2), self._cell(name, "anisotropy", 2)))
        return markdown(header, rows)

    def _variation(self) -> str:
        header = ("measure", "between networks", "between slices, within a network", "of it, common to all networks")
        plain = replace(self, rows=self.rows[self.rows["model"] != CONTROL])
        rows = [
            (MEASURES[str(name)], *("" if math.isnan(value) else f"{value:.2f}" for value in one))
            for name, one in plain.spread().iterrows()
        ]
        return markdown((*header, "between RoIs, within a slice", "rank correlation of the networks between slices"), rows)

    def _cell(self, model: str, column: str, digits: int, scale: float = 1.0) -> str:
        values = scale * self.rows.loc[self.rows["model"] == model, column]
        # A single case has no spread.
        return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")

    def plot(self) -> Figure:
        """How far the mass and the energy reach, what the units do, and how it shifts between slices."""
        figure = Figure(figsize=(12.5, 9), layout="constrained")
        (left, right), (bars, dots) = figure.subplots(2, 2)
        places = np.arange(len(self.order))
        colors = dict(zip(self.order, COLORS))
        for axes, of in ((left, "mass"), (right, "energy")):
            even = self.cumulative(self.order[0], "n_units")
            axes.plot([0, *even.index], [0, *even], color="0.55", linestyle="--", linewidth=2, label="every unit the same")
            for i, name in enumerate(self.order):
                curve = self.cumulative(name, of)
                axes.plot([0, *curve.index], [0, *curve], color=colors[name], marker=MARKERS[i], markersize=4, label=name)
            axes.set_xlabel("distance from the RoI (rings of blocks)")
            axes.set_ylabel(f"share of the {of} within")
            axes.set_xlim(0, None)
            axes.grid(alpha=0.3)
        left.set_title("Sum of |effect|, noise included")
        right.set_title("Sum of effect², less its noise")
        left.legend(fontsize=8, frameon=False, loc="lower right")

        shares = self.rows.groupby("model")[["share_supporting", "share_null", "share_harming"]].mean().loc[self.order]
        start = np.zeros(len(places))
        # The colors of plot_effects: red supports, blue harms.
        for role, color in (("supporting", "#b2182b"), ("null", "0.85"), ("harming", "#2166ac")):
            width = 100 * shares[f"share_{role}"].to_numpy()
            bars.barh(places, width, left=start, color=color, label=role)
            for y, x, w in zip(places, start, width):
                if w >= 3:
                    bars.text(
                        x + w / 2,
                        y,
                        f"{w:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="black" if role == "null" else "white",
                    )
            start += width
        bars.set_title("What the units do (false discovery rate 5 %)")
        bars.set_xlabel("share of the units (%)")
        bars.set_xlim(0, 100)
        bars.legend(fontsize=8, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))

        radii = self.rows.groupby(["model", "slice"])["radius_50"].mean().unstack()
        slices = list(self.rows["slice"].unique())
        for i, name in enumerate(slices):
            # Next to one another, so that equal ones can be told apart.
            offset = (i - (len(slices) - 1) / 2) * 0.16
            dots.plot(radii.loc[self.order, name], places + offset, "o", color=SLICE_COLORS[i % len(SLICE_COLORS)], label=name)
        dots.plot(radii.loc[self.order].mean(axis=1), places, "|", color="black", markersize=16, label="mean")
        dots.axvline(self.rows["even_radius_50"].mean(), color="0.55", linestyle="--", label="every unit the same")
        dots.set_title("Radius of half of the mass, by slice (mean over the RoIs)")
        dots.set_xlabel("distance from the RoI (rings of blocks)")
        dots.set_xlim(0, None)
        dots.grid(axis="x", alpha=0.3)
        dots.legend(fontsize=8, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        for axes in (bars, dots):
            axes.set_yticks(places, self.order)
            axes.invert_yaxis()
        for axes in (left, right, bars, dots):
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


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
