"""Interventions per second: the bare network, this library, Captum and MONAI, on equal numbers of forwards.

    python benchmarks/throughput.py [--quick] [--threads 2] [--repeats 3] [--write FILE]

Every part of a grid is set to 0 once, in batches of the same size: by ``AverageTreatmentEffect`` (``support=None``, uniform draws, no
screening, one draw, so that every intervention is a forward of the whole image), by Captum's ``FeatureAblation`` and ``Occlusion`` and by
MONAI's ``OcclusionSensitivity`` (which fills with the image's mean). All score the same ``SegmentationTarget``; the bare network is run as
given, on as many batches of ready-made images, without any score. ``torch.utils.benchmark`` measures; in every round all are run once
in turn, and ratios are medians over rounds. All run in the format given.
"""

import argparse
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import FeatureAblation, Occlusion
from cases import machine, parser, publish, say, start
from monai.networks.nets import BasicUNet, UNet
from monai.visualize import OcclusionSensitivity
from torch import Tensor, nn
from torch.utils import benchmark

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions

LABEL = 1


@dataclass(frozen=True)
class Job:
    """One network on one image.

    Args:
        name: of the network.
        network: in evaluation mode.
        image: ``(1, 1, *spatial)``.
        block: edge of the parts.
        batch: images per forward.
        all_peers: whether Occlusion and MONAI's OcclusionSensitivity run as well.
    """

    name: str
    network: nn.Module
    image: Tensor
    block: int
    batch: int
    all_peers: bool

    @property
    def count(self) -> int:
        """Of interventions."""
        return math.prod(-(-length // self.block) for length in self.image.shape[2:])


def jobs(options: argparse.Namespace) -> list[Job]:
    torch.manual_seed(0)
    plane, volume = (64, 32) if options.quick else (256, 64)
    unet = {"channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2, "norm": "batch"}
    basic = BasicUNet(2, 1, 2, features=(16, 16, 32, 64, 128, 16), norm="batch")
    instance = UNet(2, 1, 2, **(unet | {"norm": "instance"}))
    return [
        Job("MONAI UNet 2D", UNet(2, 1, 2, **unet).eval(), torch.rand(1, 1, plane, plane), 11, 16, True),
        Job("MONAI UNet 3D", UNet(3, 1, 2, **unet).eval(), torch.rand(1, 1, volume, volume, volume), 8, 8, False),
        Job("MONAI UNet 2D, instance norm", instance.eval(), torch.rand(1, 1, plane, plane), 11, 16, False),
        Job("MONAI BasicUNet 2D", basic.eval(), torch.rand(1, 1, plane // 2, plane // 2), 5, 16, False),
    ]


def competitors(job: Job) -> dict[str, Callable[[], object]]:
    spatial = job.image.shape[2:]
    middle = regions.box(spatial, [length // 2 - length // 8 for length in spatial], [length // 4 for length in spatial])
    target = SegmentationTarget.from_prediction(job.network, job.image, roi=middle).eval()
    mask = regions.grid(spatial, job.block)[None, None]
    window = (1, *(job.block,) * len(spatial))
    batch = job.image.repeat(job.batch, *(1,) * (job.image.ndim - 1)).contiguous()
    ours = AverageTreatmentEffect(target)
    whole = {"support": None, "sampling": "uniform", "n_screening_draws": 0, "exclude": None}
    # Of MONAI's, the blocks do not overlap, and one answer per block is enough.
    sensitivity = OcclusionSensitivity(
        target, mask_size=job.block, n_batch=job.batch, overlap=0.0, mode="mean_img", verbose=False, activate=False
    )

    def bare() -> None:
        with torch.no_grad():
            for _ in range(job.count // job.batch):
                job.network(batch)

    def with_ours() -> object:
        return ours.attribute(job.image, 0.0, LABEL, feature_mask=mask, n_draws=1, perturbations_per_eval=job.batch, **whole)

    def monai() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sensitivity(job.image)

    runs: dict[str, Callable[[], object]] = {
        "bare": bare,
        "ours": with_ours,
        "FeatureAblation": lambda: FeatureAblation(target).attribute(
            job.image, 0.0, LABEL, feature_mask=mask, perturbations_per_eval=job.batch
        ),
    }
    if job.all_peers:
        runs["Occlusion"] = lambda: Occlusion(target).attribute(
            job.image, window, window, 0.0, LABEL, perturbations_per_eval=job.batch
        )
        runs["OcclusionSensitivity"] = monai
    return runs


def count_forwards(job: Job, run: Callable[[], object]) -> int:
    """Images that go through the network."""
    seen = 0

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(arguments[0])

    handle = job.network.register_forward_pre_hook(note)
    try:
        run()
    finally:
        handle.remove()
    return seen


def seconds(run: Callable[[], object]) -> float:
    timer = benchmark.Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    # One run to warm up and one that counts.
    return timer.blocked_autorange(min_run_time=1e-3).median


def main() -> None:
    options = start(parser(__doc__))
    repeats = options.repeats or (1 if options.quick else 3)
    lines = ["## Throughput", "", machine(options), ""]
    lines += [
        f"Interventions per second (bare: images per second), medians of {repeats} rounds; ratios are medians over rounds.",
        "",
    ]
    names = ["bare", "ours", "FeatureAblation", "Occlusion", "OcclusionSensitivity"]
    lines += [
        "| network | image, batch | interventions | " + " | ".join(f"{name}, 1/s" for name in names) + " | ours / bare | "
    ]
    lines[-1] += " | ".join(f"ours / {name}" for name in names[2:]) + " |"
    lines += ["|---" * (3 + len(names) + 4) + "|"]
    notes = []
    made = jobs(options)
    for job in made:
        runs = competitors(job)
        say(f"{job.name}, {tuple(job.image.shape[2:])}, {job.count} interventions")
        forwards = {name: count_forwards(job, run) for name, run in runs.items()}
        rounds: list[dict[str, float]] = []
        for _ in range(repeats):
            rounds.append({name: seconds(run) for name, run in runs.items()})
            say("  " + ", ".join(f"{name} {value:.2f} s" for name, value in rounds[-1].items()))

        # Per forward: most of them run the image itself once as well.
        speeds = [{name: forwards[name] / value for name, value in one.items()} for one in rounds]
        rates = [statistics.median(speed.get(name, math.nan) for speed in speeds) for name in names]
        ratios = [
            statistics.median(speed["ours"] / speed.get(name, math.nan) for speed in speeds) for name in names if name != "ours"
        ]
        cells = [f"{rate:.1f}" for rate in rates] + [f"{ratio:.2f}" for ratio in ratios]
        cells = [cell.replace("nan", "-") for cell in cells]
        shape = "x".join(map(str, job.image.shape[2:]))
        lines.append(f"| {job.name} | {shape}, {job.batch} | {job.count} | " + " | ".join(cells) + " |")
        counted = ", ".join(f"{name} {n}" for name, n in forwards.items())
        notes.append(f"- {job.name}, images through the network: {counted}.")
    lines += ["", *notes]
    publish(lines, options)


if __name__ == "__main__":
    main()
