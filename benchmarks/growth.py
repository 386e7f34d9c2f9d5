"""How time and memory grow with the image, the region of interest staying as it is.

    python benchmarks/growth.py [--quick] [--threads 2] [--write FILE]

Images of 128 to 1024 pixels with a region of 32 x 32 in the middle, volumes of 32 to 128 with one of 16 x 16 x 16; a U-Net with
batch norm and random weights (a smaller one in 3D), blocks of 8 (3D: 16), ``n_draws=12``, defaults otherwise. With ``support="auto"`` the whole job is timed, and of
it what comes before the first intervention (finding the support and the window, ranking: ``plan`` does just that); with
``support=None`` a few blocks are timed and multiplied by the number of blocks. Every number is from a process of its own; memory is
how much the process's largest resident size grows during the job (``ru_maxrss``), network and image not counted.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from cases import machine, parser, picture_folder, publish, say, start
from monai.networks.nets import UNet
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions

N_DRAWS, LABEL = 12, 1
BLOCK = {2: 8, 3: 16}
SIZES = {2: (128, 256, 512, 1024), 3: (32, 64, 96, 128)}
QUICK_SIZES = {2: (64, 160), 3: (32, 64)}
ROI = {2: 32, 3: 16}
FEW = 4


def mebibytes() -> float:
    """The largest resident size so far."""
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(d: int, edge: int, support: str, batch: int) -> dict[str, Any]:
    """One number of the table, in this process."""
    torch.manual_seed(0)
    channels, strides = ((16, 32, 64), (2, 2)) if d == 2 else ((8, 16), (2,))
    block = BLOCK[d]
    network = UNet(d, 1, 2, channels, strides, num_res_units=2, norm="batch").eval()
    roi = regions.box((edge,) * d, (edge - ROI[d]) // 2 // block * block, ROI[d])
    image = torch.rand(1, 1, *(edge,) * d)
    target = SegmentationTarget.from_prediction(network, image, roi=roi)
    bank = PatchBank(torch.rand(500, 1, *(block,) * d))
    mask = regions.grid((edge,) * d, block)
    free = np.setdiff1d(mask.unique().numpy(), mask[roi].unique().numpy())
    arguments = {"baselines": bank, "target": LABEL, "n_draws": N_DRAWS, "perturbations_per_eval": batch}
    ate = AverageTreatmentEffect(target)
    if support == "none":
        return _without_support(ate, image, mask, roi, free, arguments)
    before = mebibytes()
    began = time.perf_counter()
    _, statistics = ate.attribute(image, block_size=block, return_statistics=True, **arguments)
    whole = time.perf_counter() - began
    memory = mebibytes() - before
    began = time.perf_counter()
    ate.plan(image, block_size=block, **arguments)
    first = time.perf_counter() - began
    forwards = statistics.settings["forwards"]
    return {
        "seconds": whole,
        "preparation": first,
        "memory": memory,
        "units": len(free),
        "interventions": forwards["interventions"],
        "others": statistics.n_forwards - forwards["interventions"],
        "spent": ", ".join(f"{name} {n}" for name, n in forwards.items()),
        "window": max(statistics.settings["window"] or [edge]),
    }


def _without_support(
    ate: AverageTreatmentEffect, image: Tensor, mask: Tensor, roi: Tensor, free: np.ndarray, arguments: dict[str, object]
) -> dict[str, Any]:
    """A few blocks next to the region, which are not screened out; all other pixels are excluded."""
    # The block numbers of a grid run along the last axis first.
    per_axis = round(len(mask.unique()) ** (1 / mask.ndim))
    middles = np.stack(np.unravel_index(free, (per_axis,) * mask.ndim), 1) * BLOCK[mask.ndim] + BLOCK[mask.ndim] / 2
    center = roi.nonzero().double().mean(0).numpy()
    chosen = free[np.argsort(np.abs(middles - center).max(1), kind="stable")[:FEW]]
    exclude = ~torch.isin(mask, torch.from_numpy(chosen)) | roi
    before = mebibytes()
    began = time.perf_counter()
    _, statistics = ate.attribute(
        image,
        block_size=BLOCK[mask.ndim],
        exclude=exclude,
        support=None,
        n_screening_draws=0,
        return_statistics=True,
        **arguments,
    )
    seconds = time.perf_counter() - began
    per_forward = seconds / statistics.n_forwards
    return {"memory": mebibytes() - before, "per_forward": per_forward}


def in_own_process(d: int, edge: int, support: str, options: argparse.Namespace) -> dict[str, Any]:
    say(f"{d}D, {edge}, support {support} ...")
    command = [sys.executable, __file__, "--threads", str(options.threads), "--batch", str(options.batch)]
    found = subprocess.run([*command, "--point", str(d), str(edge), support], capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(found.stderr)
    return json.loads(found.stdout.strip().splitlines()[-1])


def plot(points: dict[int, list[tuple[int, dict[str, Any], dict[str, Any]]]], options: argparse.Namespace) -> str:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained", sharex="col")
    for column, d in enumerate(sorted(points)):
        edges = [edge for edge, _, _ in points[d]]
        auto, none = ([one[i] for one in points[d]] for i in (1, 2))
        top, bottom = axes[0, column], axes[1, column]
        top.loglog(edges, [one["seconds"] for one in auto], "o-", color="tab:blue", label='support="auto", whole job')
        top.loglog(
            edges,
            [max(one["seconds"] - one["preparation"], 1e-3) for one in auto],
            *("s--",),
            color="tab:cyan",
            label="of it, interventions",
        )
        top.loglog(edges, [one["all"] for one in none], "D-", color="tab:red", label="support=None (from a few blocks)")
        bottom.loglog(edges, [one["memory"] for one in auto], "o-", color="tab:blue", label='support="auto"')
        bottom.loglog(edges, [one["memory"] for one in none], "D-", color="tab:red", label="support=None")
        top.set_title(f"{d}D, RoI {' x '.join([str(ROI[d])] * d)}")
        bottom.set_xlabel("edge of the image (pixels)" if d == 2 else "edge of the volume (voxels)")
        for axis in (top, bottom):
            axis.set_xticks(edges, [str(edge) for edge in edges])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(True, which="major", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("time (s)")
    axes[1, 0].set_ylabel("memory on top (MiB)")
    file = picture_folder(options) / "growth.png"
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file.name


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=8, help="perturbations_per_eval")
    made.add_argument("--point", nargs=3, default=None, help=argparse.SUPPRESS)
    options = start(made)
    if options.point is not None:
        d, edge, support = options.point
        print(json.dumps(measure(int(d), int(edge), support, options.batch)))
        return
    lines = ["## Growth with the image", "", machine(options), ""]
    lines += [
        f"Region of interest, blocks and draws ({N_DRAWS}, 3 of them to screen) stay as they are; `perturbations_per_eval={options.batch}`.",
        "",
        "| image | blocks | window | interventions | other forwards | auto: whole job, s | before the first intervention, s | peak memory, MiB | "
        "None: s per forward | all blocks, s (extrapolated, no screening) | peak memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    points: dict[int, list[tuple[int, dict[str, Any], dict[str, Any]]]] = {}
    notes = []
    for d, edges in (QUICK_SIZES if options.quick else SIZES).items():
        for edge in edges:
            auto, none = (in_own_process(d, edge, support, options) for support in ("auto", "none"))
            none["all"] = none["per_forward"] * auto["units"] * N_DRAWS
            points.setdefault(d, []).append((edge, auto, none))
            lines.append(
                f"| {'x'.join([str(edge)] * d)} | {auto['units']} | {auto['window']} | {auto['interventions']} | {auto['others']} | "
                f"{auto['seconds']:.2f} | {auto['preparation']:.2f} | {auto['memory']:.0f} | "
                f"{none['per_forward']:.4f} | {none['all']:.0f} | {none['memory']:.0f} |"
            )
            say(lines[-1])
        notes.append(f"- Images or windows through the network, {d}D, {edge}: {auto['spent']}.")
    lines += ["", *notes, "", f"![Time and memory against the size of the image](../_static/{plot(points, options)})"]
    publish(lines, options)


if __name__ == "__main__":
    main()
