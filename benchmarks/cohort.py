"""What a cohort costs beyond its cases: workers, files, memory; and what one volume takes, to plan a thousand.

    python benchmarks/cohort.py [--quick] [--repeats 2] [--write FILE]

Everything runs on one thread per worker. Cases are the demo's network on a slice of its brain, 240 x 208, RoI 32 x 32; always the same slice
under several names, so that workers have equal work.

- *Workers*: ``explain_cohort`` on Ray actors of one CPU each, one and two in turn, in an order that alternates. A worker waits in its first case
  until all are up: the clock runs from then until the last case is noted. What comes before is start-up, and is reported apart.
- *Overhead*: the same ``attribute`` in a bare loop, and in a study; by the difference of their times, which machines make noisy, and by a clock
  around ``make_target`` and ``attribute`` within the study: what is left is the study's own. A profile says what it is spent on.
- *Memory*: of the driver, resident and private to it (Linux only), while a thousand tiny cases go by, each with an image of its own; in a
  process of its own. With ``engine="local"`` the driver does the work, too.
- *A volume*: 96 x 96 x 96, a small U-Net with random weights, 8 x 8 x 8 blocks, 20 draws. With batch norm all of it is run; with instance norm,
  where every block reaches the RoI through the whole volume, a few blocks are, and the rest is arithmetic.
"""

import argparse
import contextlib
import cProfile
import functools
import importlib.metadata
import json
import logging
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import machine, parser, picture_folder, publish, say, start
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.cohort import Cohort, explain_cohort
from captum_causalseg.demo import load_brain_slices, load_demo_network

LABEL = 1
ROI_START, ROI_SIZE = (96, 144), 32
WORKERS = (1, 2)
PLANNED = 1000
"""Volumes."""


class Timed(AverageTreatmentEffect):
    """Notes how long each call took, in its process."""

    spent: list[float] = []  # noqa: RUF012 (shared by all, to be read from outside)

    # With its signature: a study looks up there what it may be asked.
    @functools.wraps(AverageTreatmentEffect.attribute)
    def attribute(self, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return super().attribute(*arguments, **named)
        finally:
            self.spent.append(time.perf_counter() - began)


@dataclass(frozen=True)
class Slice:
    """The demo's slice and how it is explained; ``make_target`` of a study.

    Args:
        label: ``(1, H, W)``.
    """

    label: Tensor

    def __call__(self, case: dict[str, Any], model: nn.Module) -> SegmentationTarget:
        roi = regions.box(self.label.shape[1:], ROI_START, ROI_SIZE)
        return SegmentationTarget(model, roi=roi, reference=self.label)


@dataclass(frozen=True)
class Together:
    """Another ``make_target``, whose first call in a process waits until it was called in all of them.

    Args:
        made: what makes the target.
        folder: where processes leave a mark.
        n: of processes.
    """

    made: Slice
    folder: Path
    n: int

    def __call__(self, case: dict[str, Any], model: nn.Module) -> SegmentationTarget:
        mark = self.folder / str(os.getpid())
        if not mark.exists():
            mark.touch()
            until = time.monotonic() + 300
            while len(list(self.folder.iterdir())) < self.n:
                if time.monotonic() > until:
                    raise TimeoutError(f"{self.n} workers were to come")
                time.sleep(0.002)
        return self.made(case, model)


@dataclass(frozen=True)
class Clocked:
    """Another ``make_target``, which notes when it was called, and for how long."""

    made: Slice

    def __call__(self, case: dict[str, Any], model: nn.Module) -> SegmentationTarget:
        CALLED.append(time.time())
        began = time.perf_counter()
        try:
            return self.made(case, model)
        finally:
            MAKING.append(time.perf_counter() - began)


CALLED: list[float] = []
MAKING: list[float] = []


def brain() -> tuple[Tensor, Slice, PatchBank]:
    """An image ``(1, H, W)``, what is asked of it, and donors."""
    train, held_out = load_brain_slices().split()
    return held_out.images[12], Slice(held_out.labels[12:13]), PatchBank(train.images)


def named(image: Tensor, n: int) -> list[dict[str, Any]]:
    return [{"id": f"case {k}", "image": image} for k in range(n)]


# --- Workers ---------------------------------------------------------------------------------------------------------


def workers(options: argparse.Namespace) -> list[str]:
    n_cases, repeats = (4, 1) if options.quick else (6, options.repeats or 2)
    image, made, donors = brain()
    asked = {"baselines": donors, "target": LABEL, "block_size": 48 if options.quick else 16, "n_draws": 6}
    found: dict[int, list[dict[str, float]]] = {n: [] for n in WORKERS}
    for k in range(repeats):
        for n in WORKERS if k % 2 == 0 else WORKERS[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                marks = Path(folder) / "marks"
                marks.mkdir()
                began = time.time()
                cohort = explain_cohort(
                    *(named(image, n_cases), Together(made, marks, n)),
                    method=AverageTreatmentEffect,
                    out=Path(folder) / "study",
                    engine="ray",
                    num_workers=n,
                    load_model=load_demo_network,
                    errors="raise",
                    show_progress=False,
                    **asked,
                )
                up = max(mark.stat().st_mtime for mark in marks.iterdir())
                seconds = (cohort.folder / "manifest.jsonl").stat().st_mtime - up
                table = cohort.cases()
            found[n].append(
                {
                    "start": up - began,
                    "rate": 60 * n_cases / seconds,
                    # In the first case of each the wait for the others is counted.
                    "case": float(table["seconds"].iloc[n:].median()),
                    "forwards": float(table["forwards"].iloc[0]),
                }
            )
            say(f"  {n} workers: " + ", ".join(f"{name} {value:.2f}" for name, value in found[n][-1].items()))
    ratios = [two["rate"] / one["rate"] for one, two in zip(found[1], found[2])]
    slower = [two["case"] / one["case"] for one, two in zip(found[1], found[2])]
    lines = [
        f"{n_cases} cases of {found[1][0]['forwards']:.0f} forwards; medians of {repeats} rounds. *A case* is what the worker measures "
        "itself, without the first: where it is longer with two workers, they share something (caches, memory, a core), whatever hands out the work.",
        "",
        "| workers | cases per minute | against one | a case, s | start-up, s |",
        "|---|---|---|---|---|",
    ]
    for n in WORKERS:
        rate, case, begin = (statistics.median(one[name] for one in found[n]) for name in ("rate", "case", "start"))
        ratio = "1" if n == 1 else f"{statistics.median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})"
        lines.append(f"| {n} | {rate:.2f} | {ratio} | {case:.2f} | {begin:.1f} |")
    lines += ["", f"A case takes {statistics.median(slower):.2f} times as long beside another as alone."]
    return ["### Workers", "", *lines, ""]


# --- Overhead --------------------------------------------------------------------------------------------------------


def overhead(options: argparse.Namespace) -> list[str]:
    n_cases, repeats = (1, 1) if options.quick else (2, options.repeats or 2)
    image, made, donors = brain()
    asked = {"baselines": donors, "target": LABEL, "block_size": 48 if options.quick else 8, "n_draws": 4}

    def bare() -> float:
        began = time.perf_counter()
        model = load_demo_network()
        for case in named(image, n_cases):
            _, kept = AverageTreatmentEffect(made(case, model)).attribute(case["image"][None], **asked, return_statistics=True)
            del kept
        return time.perf_counter() - began

    def study() -> tuple[float, float, float]:
        """All of it; and of it what comes with each case and once, both without ``make_target`` and ``attribute``."""
        Timed.spent.clear(), CALLED.clear(), MAKING.clear()
        with tempfile.TemporaryDirectory() as folder:
            began, first = time.perf_counter(), time.time()
            cohort = local(named(image, n_cases), Clocked(made), Path(folder) / "study", method=Timed, **asked)
            whole, last = time.perf_counter() - began, time.time()
            noted = (cohort.folder / "manifest.jsonl").stat().st_mtime
        each = (noted - CALLED[0] - sum(Timed.spent) - sum(MAKING)) / n_cases
        return whole, each, CALLED[0] - first + last - noted

    rounds = []
    for k in range(repeats):
        with_loop = bare() if k % 2 == 0 else None
        with_study = study()
        rounds.append((bare() if with_loop is None else with_loop, *with_study))
        say("  loop {:.2f} s, study {:.2f} s, of it {:.4f} s with each case, {:.4f} s once".format(*rounds[-1]))
    loop, whole, each, once = (statistics.median(values) for values in zip(*rounds))
    difference = statistics.median(100 * (one[1] / one[0] - 1) for one in rounds)
    per_case = loop / n_cases
    lines = [
        f"Cases of {per_case:.1f} s in the bare loop, {n_cases} in a study; medians of {repeats} rounds.",
        "",
        "| | |",
        "|---|---|",
        f"| bare loop, s | {loop:.2f} |",
        f"| study, s | {whole:.2f} ({difference:+.2f} %, by the difference of two noisy times) |",
        f"| the study's own, with each case | {1000 * each:.0f} ms, {100 * each / per_case:.2f} % of the case |",
        f"| the study's own, once (fingerprints of what was asked, tables of cases) | {1000 * once:.0f} ms |",
        "",
    ]
    return ["### Overhead", "", *lines, *spent_on(image, made, donors, options)]


def spent_on(image: Tensor, made: Slice, donors: PatchBank, options: argparse.Namespace) -> list[str]:
    """What a study does with each case besides explaining it."""
    n_cases = 1 if options.quick else 4
    asked = {"baselines": donors, "target": LABEL, "block_size": 48 if options.quick else 8, "n_draws": 1}
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, profile:
        local(
            named(image, n_cases),
            made,
            Path(folder) / "study",
            support=None,
            n_screening_draws=0,
            sampling="uniform",
            **asked,
        )
    totals = {
        step: sum(
            row[3] for (file, _, name), row in pstats.Stats(profile).stats.items() if file.endswith(step[0]) and step[1] in name
        )
        for step in _STEPS
    }
    lines = [
        f"What the milliseconds with each case go to, by a profiler, which makes all of it somewhat slower ({n_cases} cases):",
        "",
        "| | ms per case |",
        "|---|---|",
    ]
    lines += [f"| {said} | {1000 * totals[step] / n_cases:.1f} |" for step, said in _STEPS.items()]
    return [*lines, ""]


# By file and function.
_STEPS = {
    ("fingerprint.py", "of_call"): "digests of model, image, region, reference",
    ("worker.py", "_unit_table"): "the table of units: intervals, p-values, distances",
    ("worker.py", "_distances"): "of it, distances to the region",
    ("frame.py", "to_parquet"): "writing Parquet (and, once, the table of cases)",
    ("statistics.py", "save"): "writing `statistics.npz`",
    ("~", "fsync"): "waiting for the disk (files and manifest)",
}


# --- Memory ----------------------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> list[str]:
    n_cases, step = (40, 10) if options.quick else (1000, 100)
    # Another cluster takes too long for a quick look.
    engines = ("local",) if options.quick else ("local", "ray")
    found = {engine: in_own_process(engine, n_cases, step, options) for engine in engines}
    half = len(found["local"]["cases"]) // 2
    lines = [
        f"{n_cases} cases with an image of {TINY}x{TINY} each ({4 * TINY**2 // 1024} KiB); resident memory that no other process shares.",
        "",
        "| engine | before the first case, MiB | "
        + " | ".join(f"after {n}" for n in found["local"]["cases"][1:])
        + " | with the tables written | slope over the second half, KiB per case | ms per case |",
        "|---|---" + "|---" * (len(found["local"]["cases"]) + 2) + "|",
    ]
    for engine, one in found.items():
        slope = 1024 * np.polyfit(one["cases"][half:], one["mebibytes"][half:], 1)[0]
        cells = [f"{value:.0f}" for value in (*one["mebibytes"], one["end"])]
        lines.append(f"| {engine} | " + " | ".join(cells) + f" | {slope:+.2f} | {1000 * one['seconds'] / n_cases:.0f} |")
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.add_subplot()
    colors = {"local": "#0072B2", "ray": "#D55E00"}
    for engine, one in found.items():
        grown = [value - one["mebibytes"][0] for value in one["mebibytes"]]
        axis.plot(one["cases"], grown, "o-", color=colors[engine], label=f'engine="{engine}"')
    axis.plot([0, n_cases], [0, n_cases * TINY**2 * 4 / 2**20], "--", color="0.5", label="if it kept the images")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axis.set_xlabel("cases explained")
    axis.set_ylabel("memory of the driver, on top (MiB)")
    axis.grid(True, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left")
    file = picture_folder(options) / "cohort_memory.png"
    figure.savefig(file, dpi=150)
    return [
        "### Memory of the driver",
        "",
        *lines,
        "",
        f"![Memory of the driver against cases explained](../_static/{file.name})",
        "",
    ]


TINY = 128


def tiny_target(case: dict[str, Any], model: nn.Module) -> SegmentationTarget:
    return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box((TINY, TINY), 48, 16))


def tiny_model() -> nn.Module:
    return nn.Conv2d(1, 2, 3, padding=1).requires_grad_(False)


def mebibytes() -> float:
    """Of this process now, without what it shares with others."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * resource.getpagesize() / 2**20


def watch(engine: str, n_cases: int, step: int) -> dict[str, Any]:
    """A study of tiny cases in this process."""
    seen: list[float] = []

    def tiny() -> Iterator[dict[str, Any]]:
        for k in range(n_cases):
            if k % step == 0:
                seen.append(mebibytes())
            yield {"id": k, "image": torch.rand(1, TINY, TINY, generator=torch.Generator().manual_seed(k))}
        seen.append(mebibytes())

    asked = {"baselines": 0.0, "target": LABEL, "block_size": 32, "n_draws": 1, "n_screening_draws": 0, "sampling": "uniform"}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        more = {"engine": "ray", "num_workers": 2} if engine == "ray" else {}
        explain_cohort(
            *(tiny(), tiny_target),
            method=AverageTreatmentEffect,
            out=Path(folder) / "study",
            load_model=tiny_model,
            errors="raise",
            show_progress=False,
            support=None,
            **asked,
            **more,
        )
        seconds = time.perf_counter() - began
    return {"cases": [*range(0, n_cases, step), n_cases], "mebibytes": seen, "end": mebibytes(), "seconds": seconds}


def in_own_process(engine: str, n_cases: int, step: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--threads", str(options.threads), "--watch", engine, str(n_cases), str(step)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    say(f"  {engine}: {found['seconds']:.0f} s, " + ", ".join(f"{value:.0f}" for value in found["mebibytes"]) + " MiB")
    return found


# --- Bytes, one volume, and a thousand -------------------------------------------------------------------------------


def sizes(cohort: Cohort) -> dict[str, int]:
    """Bytes of a case, by file."""
    files = {"statistics.npz": "npz", "units.parquet": "Parquet", "effects.nii.gz": "NIfTI"}
    found = {said: next(cohort.folder.rglob(name)).stat().st_size for name, said in files.items()}
    return found | {"manifest": (cohort.folder / "manifest.jsonl").stat().st_size}


def volume_network(norm: str, options: argparse.Namespace) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(
            3, 1, 2, (4, 8) if options.quick else (8, 16, 32), (2,) if options.quick else (2, 2), num_res_units=1, norm=norm
        ).eval()


def volume(options: argparse.Namespace) -> list[str]:
    edge, n_draws = (32, 2) if options.quick else (96, 20)
    block, batch = edge // 8, 4
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(torch.rand(1, edge, edge, edge, generator=generator), affine=torch.eye(4))
    roi = regions.box((edge,) * 3, 5 * edge // 12, edge // 6)
    donors = PatchBank(torch.rand(12, 1, edge, edge, edge, generator=generator))
    asked = {"baselines": donors, "target": LABEL, "block_size": block, "n_draws": n_draws, "perturbations_per_eval": batch}

    def make_target(case: dict[str, Any], model: nn.Module) -> SegmentationTarget:
        return SegmentationTarget.from_prediction(model, torch.as_tensor(case["image"])[None], roi=roi)

    load = functools.partial(volume_network, "batch", options)
    Timed.spent.clear()
    with tempfile.TemporaryDirectory() as folder:
        cohort = local(
            *([{"id": "volume", "image": image}], make_target, Path(folder) / "study"),
            method=Timed,
            load_model=load,
            nifti=True,
            **asked,
        )
        case, held, bytes_3d = cohort.cases().iloc[0], cohort.statistics("volume"), sizes(cohort)
    seconds, forwards, own = float(case["seconds"]), int(case["forwards"]), float(case["seconds"]) - Timed.spent[0]
    window = "x".join(map(str, held.settings["window"] or [edge] * 3))
    say(f"  batch norm: {seconds:.1f} s, of it {own:.2f} s not explaining; {held.settings['forwards']}, window {window}")

    # Blocks beside the region, to be measured; all others are left out.
    network = volume_network("instance", options)
    target = SegmentationTarget.from_prediction(network, image[None].as_tensor(), roi=roi)
    mask = regions.grid((edge,) * 3, block)
    touching = mask[roi].unique()
    free = mask.unique()[~torch.isin(mask.unique(), touching)]
    exclude = ~torch.isin(mask, free[:4]) | roi
    began = time.perf_counter()
    _, few = AverageTreatmentEffect(target).attribute(
        *(image[None].as_tensor(), donors, LABEL),
        block_size=block,
        n_draws=2 if options.quick else 6,
        n_screening_draws=0,
        sampling="uniform",
        support=None,
        exclude=exclude,
        perturbations_per_eval=batch,
        return_statistics=True,
    )
    rate = few.n_forwards / (time.perf_counter() - began)
    all_forwards = len(free) * n_draws + 2
    say(f"  instance norm: {rate:.2f} forwards per second, {few.settings['forwards']}")

    spent = ", ".join(f"{name} {n}" for name, n in held.settings["forwards"].items())
    bytes_2d = slice_bytes(options)
    side = f"{edge}x{edge}x{edge}"
    lines = [
        *("### A volume", ""),
        f"{side}, {8**3} blocks of {block}x{block}x{block}, RoI {edge // 6} voxels wide, {n_draws} draws, one single-threaded process.",
        "",
        "| network | what an intervention runs | forwards | forwards per second | a case, s |",
        "|---|---|---|---|---|",
        f"| batch norm | window {window} | {forwards} ({spent}) | {forwards / seconds:.1f} | {seconds:.1f}, measured |",
        f"| instance norm | the whole | {all_forwards} ({len(free)} blocks x {n_draws}, none screened out) | {rate:.2f}, measured on {few.n_forwards} | "
        f"{all_forwards / rate:.0f}, extrapolated |",
        "",
        f"Of the case that was measured, {own:.2f} s went to building its target (a forward of the whole) and to tables, digests and files.",
        "",
        *("### Bytes written", ""),
        "| a case | `statistics.npz` | `units.parquet` | `effects.nii.gz` | line in the manifest | in all, KiB |",
        "|---|---|---|---|---|---|",
    ]
    for said, held_bytes in (("the slice, 3 classes", bytes_2d), ("the volume, 2 classes", bytes_3d)):
        kib = [f"{value / 1024:.1f}" for value in held_bytes.values()]
        lines.append(f"| {said} | " + " | ".join(kib) + f" | {sum(held_bytes.values()) / 1024:.0f} |")
    lines += [
        "",
        *(f"### {PLANNED} such volumes", ""),
        "Hours = cases x seconds per case / (3600 x workers), from the table above; whether workers slow each other down is not in it. A worker is one CPU "
        "core; no GPU was measured.",
        "",
        "| network | hours of one core | 16 workers, h | 64 workers, h | written, MiB |",
        "|---|---|---|---|---|",
    ]
    written = PLANNED * sum(bytes_3d.values()) / 2**20
    for said, one in (("batch norm", seconds), ("instance norm (extrapolated)", all_forwards / rate)):
        hours = PLANNED * one / 3600
        lines.append(f"| {said} | {hours:.1f} | {hours / 16:.2f} | {hours / 64:.2f} | {written:.0f} |")
    return lines


def slice_bytes(options: argparse.Namespace) -> dict[str, int]:
    image, made, donors = brain()
    asked = {
        "target": LABEL,
        "block_size": 48 if options.quick else 8,
        "n_draws": 1,
        "n_screening_draws": 0,
        "sampling": "uniform",
    }
    case = {"id": "slice", "image": MetaTensor(image, affine=torch.eye(4))}
    with tempfile.TemporaryDirectory() as folder:
        return sizes(local([case], made, Path(folder) / "study", baselines=donors, nifti=True, support=None, **asked))


def local(
    cases: list[dict[str, Any]],
    make_target: Callable[..., Any],
    folder: Path,
    method: Callable[..., Any] = AverageTreatmentEffect,
    load_model: Callable[[], nn.Module] = load_demo_network,
    **more: Any,
) -> Cohort:
    return explain_cohort(
        *(cases, make_target), method=method, out=folder, load_model=load_model, errors="raise", show_progress=False, **more
    )


def load_average() -> str:
    with contextlib.suppress(OSError):
        return f"{os.getloadavg()[0]:.1f}"
    return "unknown"


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(threads=1)
    made.add_argument("--watch", nargs=3, default=None, help=argparse.SUPPRESS)
    options = start(made)
    if options.watch is not None:
        engine, n_cases, step = options.watch
        print(json.dumps(watch(engine, int(n_cases), int(step))))
        return
    logging.getLogger("captum_causalseg").setLevel(logging.WARNING)
    began, before = time.perf_counter(), load_average()
    parts = []
    watch("local", 2, 1)  # what is loaded at first use is loaded
    for part in (workers, overhead, memory, volume):
        say(f"{part.__name__} ...")
        parts += part(options)
    minutes = (time.perf_counter() - began) / 60
    lines = [
        *("## The cost of a cohort", ""),
        f"{machine(options)} Ray {importlib.metadata.version('ray')}, pyarrow {importlib.metadata.version('pyarrow')}; "
        f"{datetime.now(timezone.utc):%Y-%m-%d}; load average {before} before, {load_average()} after; {minutes:.1f} minutes.",
        "",
        *parts,
    ]
    publish(lines, options)


if __name__ == "__main__":
    main()
