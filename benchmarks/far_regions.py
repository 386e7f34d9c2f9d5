"""Regions of interest far apart: one window around all of them against a window for each, at the same effects.

    python benchmarks/far_regions.py [--quick] [--threads 1] [--data FOLDER] [--write FILE]

*Picture*: 512 x 512 in three channels, two regions (48 x 48 and 64 x 64, as the disc and the macula of a fundus picture lie), a U-Net with batch
norm and random weights. *Brain*: the slice and the trained network of ``cases.py``, regions of 24 x 24 in the cortex of both sides. *Skin*, with
``--data``: a picture of ``skin.py`` and its trained network, regions of 16 x 16 at opposite ends of the lesion's outline. Blocks of 16 (8 in the brain), 50 draws, no screening.

The networks count what they are given: images, pixels. *One window* is what the library did before it grouped regions: here, the grouping
is switched off. CPU seconds are the process's. The script fails where effects differ.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import skin
import torch
from cases import cases, machine, parser, publish, say, start
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, TreatmentEffectStatistics, regions
from captum_causalseg.interventions import reach, window
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.roi_groups import RoiGroup, hull_of, roi_groups


class Counting(nn.Module):
    """A network that counts what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images, self.pixels = network.eval(), 0, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.images, self.pixels = self.images + len(x), self.pixels + x[:, 0].numel()
        found: Tensor = self.network(x)
        return found


@dataclass(frozen=True)
class Far:
    """A case with two regions ``(2, H, W)``, of which ``output`` ranks donors."""

    name: str
    network: Counting
    image: Tensor
    rois: Tensor
    bank: PatchBank
    block: int
    output: int | tuple[int, int] = (1, 0)


def picture(options: argparse.Namespace) -> Far:
    """A large picture without a meaning."""
    torch.manual_seed(0)
    edge = 128 if options.quick else 512
    unit = edge // 32
    network = UNet(2, 3, 2, (8, 16, 32), (2, 2), norm="batch")
    shape = edge, edge
    disc, macula = regions.box(shape, (15 * unit, 5 * unit), 3 * unit), regions.box(shape, (13 * unit, 25 * unit), 4 * unit)
    bank = PatchBank(torch.rand(10, 3, *shape))
    return Far("picture, 512 x 512", Counting(network), torch.rand(1, 3, *shape), torch.stack([disc, macula]), bank, block=16)


def brain(options: argparse.Namespace) -> Far:
    """The cortex of both sides."""
    case = cases(options, "batch norm")[0]
    shape = case.image.shape[2:]
    start = [104, 168] if shape[0] == 256 else [shape[0] // 2, shape[1] - 28]
    one = regions.box(shape, start, 24)
    return Far("brain, 256 x 256", Counting(case.network), case.image, torch.stack([one, one.flip(1)]), case.donors, block=8)


def lesion(options: argparse.Namespace) -> Far:
    """Two ends of a lesion's outline."""
    network = skin.trained("batch norm", skin.load_pictures(options.data, "train"), options.cache, steps=options.steps)
    test = skin.load_pictures(options.data, "test")
    dices = skin.dice(network, test)
    size = test.lesions.flatten(1).sum(1)
    index = int(torch.where(dices > 0.9, size, 0).argmax())
    rows, columns = np.nonzero(test.lesions[index].numpy())
    ends = [(rows[at], columns[at]) for at in (columns.argmin(), columns.argmax())]
    shape = test.images.shape[2:]
    corners = [[int(np.clip(c - 8, 0, n - 16)) for c, n in zip(end, shape)] for end in ends]
    say(f"skin: {test.names[index]}, Dice {dices[index]:.2f}, regions at {corners}")
    rois = torch.stack([regions.box(shape, corner, 16) for corner in corners])
    train = skin.load_pictures(options.data, "train").images[:40]
    return Far("skin, 256 x 256", Counting(network), test.images[index : index + 1], rois, PatchBank(train), block=16, output=0)


def in_one(
    boxes: np.ndarray, fit: Callable[[np.ndarray], Frame], weight: Callable[[tuple[int, ...]], float] = lambda rois: 1.0
) -> list[RoiGroup]:
    """All regions in one group."""
    everything = tuple(range(boxes.shape[1]))
    return [RoiGroup(everything, fit(hull_of(boxes)), weight(everything))]


def explained(case: Far, options: argparse.Namespace) -> tuple[TreatmentEffectStatistics, float]:
    """The effects, and CPU seconds."""
    with torch.no_grad():
        scores = case.network(case.image)
    reference = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
    target = SegmentationTarget(case.network, roi=case.rois, reference=reference, metric="soft_dice")
    case.network.images = case.network.pixels = 0
    began = time.process_time()
    _, statistics = AverageTreatmentEffect(target).attribute(
        case.image,
        baselines=case.bank,
        target=case.output,
        block_size=case.block,
        n_draws=4 if options.quick else 50,
        n_screening_draws=0,
        sampling="uniform",
        return_statistics=True,
    )
    return statistics, time.process_time() - began


def rows_of(case: Far, options: argparse.Namespace) -> list[str]:
    """Rows of the table: one window, then a window for each."""
    lines = []
    before: tuple[TreatmentEffectStatistics, int, float] | None = None
    for name, rule in (("one", in_one), ("each its own", roi_groups)):
        say(f"{case.name}: {name}")
        window.roi_groups = reach.roi_groups = rule  # type: ignore[attr-defined]
        statistics, seconds = explained(case, options)
        pixels, images = case.network.pixels, case.network.images
        if images != statistics.n_forwards:
            raise SystemExit(f"{case.name}: {images} forwards, {statistics.n_forwards} counted")
        sizes = [one["window"] for one in statistics.settings.get("roi_windows", [{"window": statistics.settings["window"]}])]
        shown = ", ".join(" x ".join(map(str, size)) if size else "none" for size in sizes)
        line = f"| {case.name} | {name} | {shown} | {statistics.settings['forwards']['interventions']} | {pixels / 1e6:.1f} | {seconds:.2f} |"
        if before is None:
            before = statistics, pixels, seconds
            lines.append(f"{line} | | |")
            continue
        differs = float((statistics.effect - before[0].effect).nan_to_num().abs().max())
        if differs > 1e-6 or not torch.equal(statistics.status, before[0].status):
            raise SystemExit(f"{case.name}: effects differ by {differs:.3g}")
        lines.append(f"{line} {before[1] / pixels:.1f} | {before[2] / seconds:.1f} | {differs:.1g} |")
    return lines


def main() -> None:
    """Run the benchmark."""
    options = start(skin.arguments(parser(__doc__)))
    lines = ["## Regions far apart", "", machine(options), ""]
    lines += [
        "| case | windows | sizes | interventions | million pixels, probes and all | CPU s | times fewer pixels | times faster | largest difference of an effect |",
        "|---" * 9 + "|",
    ]
    made = [picture, brain] + ([lesion] if skin.has_data(options.data) else [])
    for make in made:
        lines += rows_of(make(options), options)
    publish([*lines, "", "An intervention on a block that reaches both windows counts twice."], options)


if __name__ == "__main__":
    main()
