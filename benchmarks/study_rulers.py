"""Do networks that outline skin lesions look at the rulers in the pictures? Effects of units on rulers against units of skin that lie alike.

    python benchmarks/study_rulers.py --threads 1 --data FOLDER --work DIR [--kinds ...] [--write docs]

``study_rulers.csv`` says where the rulers of the test pictures are, drawn by hand: a line from (x0, y0) to (x1, y1) and its width, in pixels of the 256 x 256
pictures. Networks are those that ``study.py train`` keeps in ``--work``; what is found for a network and a picture is kept there as well.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import say
from matplotlib.figure import Figure
from scipy import stats
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment
from study import training
from study_cases import BLOCK
from study_data import Data, arguments_of, load_data, trained
from study_methods import donors
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget
from captum_causalseg.statistics import adjust_p_values

COORDINATES = Path(__file__).with_name("study_rulers.csv")
DRAWS, DRAWS_TOGETHER = 4, 16
_MARGIN = 2
"""Pixels around the lesion in which it is scored."""
_LEAST = 0.1
"""Of a unit that counts as the ruler's, what the ruler covers."""
_SIZE = 256


@dataclass(frozen=True)
class Units:
    """Blocks of a picture, as rows and columns of the grid.

    Args:
        ruler: on the ruler, each with a partner.
        skin: their partners, as far from the lesion and from the picture's edge as they, as nearly as can be.
    """

    ruler: np.ndarray
    skin: np.ndarray

    def mask(self, which: str, size: tuple[int, int]) -> Tensor:
        """Where they are, ``(H, W)``."""
        grid = torch.zeros(size[0] // BLOCK, size[1] // BLOCK, dtype=torch.bool)
        grid[tuple(torch.from_numpy(getattr(self, which)).T)] = True
        return grid.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def ruler_mask(row: pd.Series) -> np.ndarray:
    """The pixels of a ruler, boolean ``(256, 256)``: those near enough to its line."""
    start, end = np.array([row.x0, row.y0], dtype=float), np.array([row.x1, row.y1], dtype=float)
    y, x = np.mgrid[:_SIZE, :_SIZE] + 0.5
    along = end - start
    length = float(np.hypot(*along))
    offset = np.stack([x - start[0], y - start[1]], -1)
    forth = offset @ along / length
    aside = np.abs(offset @ np.array([-along[1], along[0]]) / length)
    found: np.ndarray = (forth >= 0) & (forth <= length) & (aside <= row.width / 2)
    return found


def units_of(ruler: np.ndarray, roi: Tensor) -> Units:
    """The units on a ruler and their partners; those that touch the region of interest are neither."""
    height = len(roi)
    edge = _SIZE // height * BLOCK
    share = ruler.reshape(_SIZE // edge, edge, -1, edge).mean((1, 3))
    free = ~roi.reshape(height // BLOCK, BLOCK, -1, BLOCK).any(3).any(1).numpy()
    away = distance_transform_edt(~roi.numpy()).reshape(height // BLOCK, BLOCK, -1, BLOCK).mean((1, 3))
    rows, columns = np.indices(share.shape)
    border = np.minimum.reduce([rows, columns, share.shape[0] - 1 - rows, share.shape[1] - 1 - columns]) * BLOCK
    on, off = np.argwhere(free & (share >= _LEAST)), np.argwhere(free & (share == 0))
    place = np.stack([away, border], -1)
    cost = np.abs(place[tuple(on.T)][:, None] - place[tuple(off.T)][None]).sum(-1)
    chosen, partners = linear_sum_assignment(cost)
    return Units(on[chosen], off[partners])


def found_of(network: nn.Module, data: Data, number: int, ruler: np.ndarray) -> dict[str, float] | None:
    """Effects of one picture; ``None`` where the ruler has no unit outside the region of interest."""
    image, lesion = data.test_images[number : number + 1], data.test_labels[number].bool()
    roi = functional.max_pool2d(lesion[None, None].float(), 2 * _MARGIN + 1, 1, _MARGIN)[0, 0] > 0
    units = units_of(ruler, roi)
    if not len(units.ruler):
        return None
    bank = donors(data)[0]
    kinds = {"donors": bank, "mean-matched donors": PatchBank(data.train_images[0::2][:32], match="mean")}
    hard = SegmentationTarget(network, roi=roi, reference=lesion)
    found = {"dice": float(hard(image)), "units": float(len(units.ruler))}
    for score, target in (("hard Dice", hard), ("soft Dice", hard.surrogate())):
        for kind, source in kinds.items():
            if score == "soft Dice":
                effects = AverageTreatmentEffect(target).attribute(
                    image, source, block_size=BLOCK, n_draws=DRAWS, n_screening_draws=0
                )[0, 0]
                for which in ("ruler", "skin"):
                    blocks = effects[::BLOCK, ::BLOCK][tuple(torch.from_numpy(getattr(units, which)).T)]
                    found[f"{which}, each unit, {score}, {kind}"] = float(blocks.mean())
                    found[f"{which}, size of each unit's, {score}, {kind}"] = float(blocks.abs().mean())
            for which in ("ruler", "skin"):
                mask = units.mask(which, data.size)
                effects = AverageTreatmentEffect(target).attribute(
                    *(image, source),
                    **{
                        "feature_mask": mask[None, None].long(),
                        "exclude": ~mask,
                        "n_draws": DRAWS_TOGETHER,
                        "n_screening_draws": 0,
                    },
                )[0, 0]
                found[f"{which}, all units at once, {score}, {kind}"] = float(effects[mask][0])
    return found


def explained(options: argparse.Namespace) -> pd.DataFrame:
    """A row per network and picture."""
    data, coordinates = load_data("skin", options.data), pd.read_csv(COORDINATES)
    rows = []
    until = time.monotonic() + 3600 * options.hours
    for kind in options.kinds:
        network = trained(kind, data, options.work, training("skin", False), only_kept=True)
        for row in coordinates.itertuples() if network is not None else ():
            file = options.work / "rulers" / kind.replace(", ", "_").replace(" ", "_") / f"{row.picture}.json"
            if not file.exists():
                if time.monotonic() > until:
                    continue
                found = found_of(network, data, data.test_names.index(row.picture), ruler_mask(row))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.with_suffix(".partial").write_text(json.dumps(found))
                file.with_suffix(".partial").replace(file)
                say(f"{kind}, {row.picture}: {found}")
            found = json.loads(file.read_text())
            if found is not None:
                rows.append({"network": kind, "picture": row.picture} | found)
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Per network and question: means over pictures, their paired difference with its 95 % interval, p-values with Holm's correction over all rows."""
    rows = []
    for network, part in found.groupby("network", sort=False):
        for column in part:
            if column.startswith("ruler, "):
                what = column.removeprefix("ruler, ")
                ruler, skin = part[column].to_numpy(), part[f"skin, {what}"].to_numpy()
                test = stats.ttest_rel(ruler, skin)
                low, high = test.confidence_interval(0.95)
                means = {"ruler": ruler.mean(), "skin": skin.mean(), "difference": (ruler - skin).mean()}
                rows.append({"network": network, "effect": what, "pictures": len(part), **means, "lower": low, "upper": high})
                rows[-1]["p_value"] = test.pvalue
    made = pd.DataFrame(rows)
    made["p_adjusted"] = adjust_p_values(made["p_value"].to_numpy(), "holm")
    return made


def page(made: pd.DataFrame) -> str:
    lines = [
        "| network | effect of | pictures | ruler | skin | difference [95 % interval] | p, Holm |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in made.itertuples():
        values = [f"{100 * value:.2f}" for value in (row.ruler, row.skin)]
        interval = f"{100 * row.difference:+.2f} [{100 * row.lower:.2f}, {100 * row.upper:.2f}]"
        lines.append(
            f"| {row.network} | {row.effect} | {row.pictures} | {' | '.join(values)} | {interval} | {row.p_adjusted:.2g} |"
        )
    return "\n".join([*lines, ""])


def forest(made: pd.DataFrame) -> Figure:
    """Differences between rulers and skin with their intervals, a panel per network."""
    networks = list(dict.fromkeys(made["network"]))
    n_rows = math.ceil(len(networks) / 3)
    figure = Figure(figsize=(11, 0.4 + 2.3 * n_rows), layout="constrained")
    for axes, network in zip(figure.subplots(n_rows, 3, sharey=True, sharex=True, squeeze=False).flat, networks):
        part = made[made["network"] == network]
        places = np.arange(len(part))[::-1]
        axes.hlines(places, 100 * part["lower"], 100 * part["upper"], color="0.4")
        colors = ["#0072B2" if p < 0.05 else "0.55" for p in part["p_adjusted"]]
        axes.scatter(100 * part["difference"], places, color=colors, s=18, zorder=3)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(places, part["effect"], fontsize=8)
        axes.set_title(network, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    figure.supxlabel("effect of rulers minus that of skin, in points of Dice; 95 % intervals", fontsize=9)
    return figure


def main() -> None:
    arguments = arguments_of(__doc__)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    made = table(explained(options))
    text = page(made)
    print(text)
    if options.write is not None:
        (options.write / "benchmarks" / "study_rulers.md").write_text(text, encoding="utf-8")
        forest(made).savefig(options.write / "_static" / "study_rulers.png", dpi=80)


if __name__ == "__main__":
    main()
