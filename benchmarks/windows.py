"""Sliding windows: how many are run, and how long that takes, with all windows, on the part that is enough, and with those that matter alone.

    python benchmarks/windows.py [--quick] [--threads 2] [--write FILE]

A volume of 64 x 64 x 64 in 27 windows of 32 x 32 x 32 (MONAI's inferer, overlap 0.5, Gaussian), a small U-Net with instance norm and
random weights, a region of 12 x 12 x 12, blocks of 16, 4 uniform draws, no screening. *All windows*: a ``WindowedModel`` with
``support=None``. *The part that is enough*: a function around the inferer, whose windows nobody knows, with the support found by probes and
the model run on the smallest part of the volume that reproduces the region. *Those that matter*: a ``WindowedModel`` with the defaults.
The network itself counts its windows, whatever they are run for; CPU seconds are the process's.

Then, by counts alone, a scan of 512 x 512 x 300 with patches of 128 x 128 x 128 (as an nnU-Net may have, 196 windows), the mean over 50
places of a region of 32 x 32 x 32, blocks of 16: windows per intervention on a block that can reach the region. And such a scan
is explained with a tiny network, blocks of 64 and one draw, in a process of its own, for its memory.

The script fails where the windows that matter are not at least 9 times fewer on the volume and 60 times on the scan, or effects differ.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from cases import machine, parser, publish, say, start
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    WindowedModel,
    regions,
)

FEWER_ON_VOLUME, FEWER_ON_SCAN = 9, 60
SCAN, PATCH, ROI, BLOCK = (512, 512, 300), 128, 32, 16


class Counting(nn.Module):
    """A network that counts the windows that it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network.eval(), 0
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        self.seen += len(windows)
        found: Tensor = self.network(windows)
        return found


def volume(options: argparse.Namespace) -> list[str]:
    """The table of the measured volume."""
    torch.manual_seed(0)
    edge, size = (32, 16) if options.quick else (64, 32)
    network = Counting(UNet(3, 1, 2, (8, 16), (2,), num_res_units=1, norm="instance"))
    inferer = SlidingWindowInferer(size, 4, overlap=0.5, mode="gaussian")
    model = WindowedModel.from_monai(inferer, network)
    image, roi = torch.rand(1, 1, edge, edge, edge), regions.box((edge,) * 3, start=edge // 16, size=3 * edge // 16)
    reference = (model(image).argmax(1) == 1).long()
    bank = PatchBank(torch.rand(100, 1, *(edge // 4,) * 3))

    def around(x: Tensor) -> Any:
        return inferer(x, network)

    ways: dict[str, tuple[Any, str | None]] = {
        "all windows": (model, None),
        "the part that is enough": (around, "auto"),
        "those that matter": (model, "auto"),
    }
    found: dict[str, tuple[int, float, TreatmentEffectStatistics]] = {}
    for name, (run, support) in ways.items():
        say(name)
        target = SegmentationTarget(run, roi=roi, reference=reference, metric="soft_dice")
        network.seen, began = 0, time.process_time()
        _, statistics = AverageTreatmentEffect(target).attribute(
            image,
            baselines=bank,
            target=1,
            block_size=edge // 4,
            n_draws=4,
            n_screening_draws=0,
            sampling="uniform",
            support=support,
            perturbations_per_eval=4,
            return_statistics=True,
        )
        found[name] = network.seen, time.process_time() - began, statistics
    windows, seconds, exact = found["all windows"]
    lines = ["| run | windows | times fewer | CPU s | times faster | largest difference of an effect |", "|---" * 6 + "|"]
    for name, (count, cpu, statistics) in found.items():
        differs = float((statistics.effect - exact.effect).nan_to_num().abs().max())
        lines.append(f"| {name} | {count} | {windows / count:.1f} | {cpu:.2f} | {seconds / cpu:.1f} | {differs:.1g} |")
        if differs > 1e-6:
            raise SystemExit(f"{name}: effects differ by {differs:.3g}")
    fewer = windows / found["those that matter"][0]
    if not options.quick and fewer < FEWER_ON_VOLUME:
        raise SystemExit(f"only {fewer:.1f} times fewer windows on the volume, expected {FEWER_ON_VOLUME}")
    reached = int((found["those that matter"][2].status == Status.OUTSIDE_SUPPORT)[0, :, 1].sum())
    return [*lines, "", f"{reached} of {exact.effect.shape[1]} blocks share no window with the region."]


def scan(options: argparse.Namespace) -> list[str]:
    """The table of the counted scan."""
    inferer = SlidingWindowInferer(PATCH, overlap=0.5, mode="gaussian")
    starts = WindowedModel.from_monai(inferer, nn.Identity()).layout(SCAN).starts
    blocks = np.array(list(itertools.product(*[range(0, length, BLOCK) for length in SCAN])))
    held = meets(starts, PATCH, blocks, BLOCK)  # (U, W)
    rows = []
    generator = np.random.default_rng(0)
    for _ in range(50):
        corner = generator.integers(0, np.array(SCAN) - ROI + 1)
        touching = meets(starts, PATCH, corner[None], ROI)[0]
        free = ~meets(corner[None], ROI, blocks, BLOCK)[:, 0]
        run = (held & touching).sum(1)[free]
        rows.append((touching.sum(), (run > 0).sum(), run[run > 0].mean(), run.sum()))
    touched, reaching, each, whole = np.mean(rows, axis=0)
    fewer = len(starts) / each
    if fewer < FEWER_ON_SCAN:
        raise SystemExit(f"only {fewer:.1f} times fewer windows on the scan, expected {FEWER_ON_SCAN}")
    return [
        "| run | windows per intervention | times fewer | windows of a map with one draw |",
        "|---" * 4 + "|",
        f"| all windows | {len(starts)} | 1 | {len(starts) * reaching:.0f} |",
        f"| those that touch the region | {touched:.1f} | {len(starts) / touched:.0f} | {touched * reaching:.0f} |",
        f"| those that matter | {each:.1f} | {fewer:.0f} | {whole:.0f} |",
        "",
        f"{reaching:.0f} of {len(blocks)} blocks can reach the region.",
    ]


def meets(starts: np.ndarray, size: int, others: np.ndarray, other: int) -> np.ndarray:
    """``(U, W)``: which of the cubes at ``others`` has an element in common with which of those at ``starts``."""
    found = np.ones((len(others), len(starts)), dtype=bool)
    for axis in range(starts.shape[1]):
        low, first = others[:, axis, None], starts[None, :, axis]
        found &= (low < first + size) & (first < low + other)
    return found


def memory(options: argparse.Namespace) -> dict[str, float]:
    """Explain a whole scan in this process; its memory in MiB, before and at most."""
    torch.manual_seed(0)
    spatial, size, block = ((64, 64, 48), 32, 16) if options.quick else (SCAN, PATCH, 64)
    model = WindowedModel.from_monai(
        SlidingWindowInferer(size, overlap=0.5, mode="gaussian"), nn.Conv3d(1, 2, 3, padding=1).eval()
    )
    image = torch.rand(1, 1, *spatial)
    roi = regions.box(spatial, start=[length // 2 - 3 for length in spatial], size=8 if options.quick else ROI)
    with torch.no_grad():
        reference = model(image).argmax(1)
    observed, before = peak(), time.process_time()
    target = SegmentationTarget(model, roi=roi, reference=reference, metric="soft_dice")
    bank = PatchBank(torch.rand(4, 1, *(block,) * 3))
    _, statistics = AverageTreatmentEffect(target).attribute(
        image, bank, target=1, block_size=block, n_draws=1, n_screening_draws=0, exclude=None, return_statistics=True
    )
    counts = statistics.settings["forwards"]
    return {
        "once": observed,
        "peak": peak(),
        "seconds": time.process_time() - before,
        "interventions": int(np.nansum(statistics.n_draws.numpy()[..., 1])),
        "windows": counts["windows"],
        "all": statistics.n_forwards,
        "per image": statistics.settings["windows"]["per_image"],
    }


def peak() -> float:
    """The largest resident size so far, MiB."""
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = start(made)
    if options.memory:
        print(json.dumps(memory(options)))
        return
    lines = ["## Sliding windows", "", machine(options), "", "A volume of 64 x 64 x 64 in windows of 32 x 32 x 32:", ""]
    lines += [*volume(options), "", "A scan of 512 x 512 x 300 in windows of 128 x 128 x 128, by counts:", "", *scan(options)]
    say("a whole scan")
    command = [sys.executable, __file__, "--memory", "--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines += [
        "",
        f"Such a scan with one convolution as the network: {found['interventions']:.0f} interventions (blocks of 64, one draw) ran "
        f"{found['windows']:.0f} windows, {found['all']:.0f} with all that goes before (an image has {found['per image']:.0f}), in "
        f"{found['seconds']:.0f} CPU seconds. The process took {found['peak'] / 1024:.1f} GiB at most; a single prediction of the scan "
        f"takes {found['once'] / 1024:.1f}.",
        "",
    ]
    publish(lines, options)


if __name__ == "__main__":
    main()
