"""What the benchmarks explain: brain slices, networks trained on them, regions of interest, donors. Nothing is downloaded.

    python benchmarks/cases.py [--quick] [--cache DIR]

trains what is not in the cache yet and prints what there is. The slices are those of ``captum_causalseg.demo`` (nilearn's wheel),
padded with zeros to 256 x 256; three small networks are trained on the training slices with fixed seeds and kept as ``.pt``
files in the cache; donors are 8 x 8 patches of the training slices. Scores of all interventions (every donor of every unit, the
truth that errors are measured against) are kept there too, under a name that changes with the network, the image and the donors.

``--quick`` makes everything tiny, to try the scripts out; its numbers mean nothing.
"""

import argparse
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import SwinUNETR, UNet
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import PatchBank, SegmentationTarget, causal_support, regions
from captum_causalseg.demo import BrainSlices, load_brain_slices
from captum_causalseg.demo.network import fit

BLOCK = 8
LABEL = 1
"""Grey matter."""
SLICE = 12
"""Of the held-out slices, the one that is explained."""
EDGE, ROI_START, ROI_SIZE = 256, (104, 168), 32
"""The lateral cortex: about half grey matter, and far enough from the edges that the support is not cut off."""
CORNER_OF_SLICE = (8, 24)
"""Where the 240 x 208 slices lie in the padded ones."""


@dataclass(frozen=True)
class Case:
    """Something to explain.

    Args:
        name: of the network.
        image: ``(1, 1, H, W)``.
        network: in evaluation mode.
        roi: boolean ``(H, W)``.
        reference: label map ``(H, W)``.
        bank: ``(D, 1, 8, 8)``.
        mask: units as integers ``(H, W)``.
    """

    name: str
    image: Tensor
    network: nn.Module
    roi: Tensor
    reference: Tensor
    bank: Tensor
    mask: Tensor

    @property
    def target(self) -> SegmentationTarget:
        """The hard Dice of every class inside the RoI."""
        return SegmentationTarget(self.network, roi=self.roi, reference=self.reference)

    @property
    def donors(self) -> PatchBank:
        return PatchBank(self.bank)

    @property
    def units(self) -> list[tuple[int, int, int]]:
        """The units that do not touch the RoI, blocks all of them: id, first row, first column; in order of the id."""
        ids = np.setdiff1d(self.mask.unique().numpy(), self.mask[self.roi].unique().numpy())
        return [(int(unit), *(self.mask == unit).nonzero().min(0).values.tolist()) for unit in ids]

    def score(self, images: Tensor) -> Tensor:
        """The same Dice of grey matter as the target's, ``(N,)``, by the fewest operations: so the paper's loop is not slowed down."""
        rows, columns = self.roi.nonzero().T
        box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
        predicted = self.network(images)[(..., *box)].argmax(1) == LABEL
        truth = self.reference[box] == LABEL
        both = (predicted & truth).flatten(1).sum(1)
        total = predicted.flatten(1).sum(1) + truth.sum()
        return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)

    def fingerprint(self) -> str:
        """Changes with everything that a score depends on."""
        digest = hashlib.sha256(self.name.encode())
        for tensor in (*self.network.state_dict().values(), self.image, self.roi, self.reference, self.bank, self.mask):
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Exhaustive:
    """The score of every intervention.

    Args:
        differences: ``observed - intervened`` ``(U, D)``, units as in ``Case.units``.
        reachable: boolean ``(U,)``: units that can reach the RoI; the rows of the others are 0.
        seconds: how long it took.
        window: rows and columns that were run, of the image's.
    """

    differences: np.ndarray
    reachable: np.ndarray
    seconds: float
    window: tuple[slice, slice]

    @property
    def effects(self) -> np.ndarray:
        """The truth, ``(U,)``."""
        return self.differences.mean(1)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="everything tiny: to see whether the script runs")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--repeats", type=int, default=None)
    made.add_argument("--write", type=Path, default=None, metavar="FILE", help="write the section to this file as well")
    made.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "captum_causalseg")
    return made


def start(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and set the number of threads."""
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    return options


def machine(options: argparse.Namespace) -> str:
    """One line about where the numbers are from."""
    quick = " **Quick settings: the numbers mean nothing.**" if options.quick else ""
    return (
        f"{_processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"Python {platform.python_version()}. `{Path(sys.argv[0]).name}`.{quick}"
    )


def publish(lines: list[str], options: argparse.Namespace) -> None:
    """Print a section, and write it to a file if that was asked for."""
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text)


def say(text: str) -> None:
    """Progress, kept apart from the results."""
    print(text, file=sys.stderr, flush=True)


def picture_folder(options: argparse.Namespace) -> Path:
    """Where plots go: the documentation's, or the cache for quick ones."""
    folder = options.cache if options.quick else Path(__file__).resolve().parents[1] / "docs" / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cases(options: argparse.Namespace, *names: str) -> list[Case]:
    """The cases by name (all of them without one): ``batch norm``, ``instance norm``, ``SwinUNETR``."""
    train, held_out = (_padded(part) for part in load_brain_slices().split())
    made = []
    for name in names or ("batch norm", "instance norm", "SwinUNETR"):
        made.append(_case(name, train, held_out, options))
    return made


def exhaustive(case: Case, options: argparse.Namespace) -> Exhaustive:
    """Run every donor of every unit, from the cache if it was done before.

    Units outside the causal support are not run, and the others on the part of the image that is enough for the RoI: an aligned
    crop whose output inside the RoI is that of the whole image. A few units, of both kinds, are run on the whole image as well; if
    the scores differ, nothing is returned.
    """
    file = options.cache / f"scores_{case.name.replace(' ', '_')}_{case.fingerprint()}.npz"
    if file.exists():
        with np.load(file) as held:
            sides = [slice(*map(int, side)) for side in held["window"]]
            return Exhaustive(held["differences"], held["reachable"], float(held["seconds"]), (sides[0], sides[1]))
    say(f"{case.name}: running every donor of every unit ...")
    began = time.perf_counter()
    found = _run_all(case)
    seconds = time.perf_counter() - began
    _check(case, found)
    options.cache.mkdir(parents=True, exist_ok=True)
    window = np.array([(side.start, side.stop) for side in found.window])
    np.savez_compressed(file, differences=found.differences, reachable=found.reachable, seconds=seconds, window=window)
    return Exhaustive(found.differences, found.reachable, seconds, found.window)


@torch.no_grad()
def _run_all(case: Case) -> Exhaustive:
    support = causal_support(case.target, case.image)
    (top, bottom), (left, right) = support.hull(0)[0, 0].tolist()
    height, width = case.image.shape[2:]
    window = slice(top // 16 * 16, min(-(-bottom // 16) * 16, height)), slice(left // 16 * 16, min(-(-right // 16) * 16, width))
    cropped = Case(
        *(case.name, case.image[(..., *window)], case.network, case.roi[window], case.reference[window], case.bank, case.mask)
    )
    observed = float(cropped.score(cropped.image))
    reachable = np.array([bool(support.masks[0][0, 0, r : r + BLOCK, c : c + BLOCK].any()) for _, r, c in case.units])
    differences = np.zeros((len(case.units), len(case.bank)))
    for (_, row, column), here, found in zip(case.units, reachable, differences):
        if here:
            r, c = row - window[0].start, column - window[1].start
            found[:] = _scores(cropped, r, c, case.bank, lambda scores: observed - scores)
    return Exhaustive(differences, reachable, 0.0, window)


def _scores(case: Case, row: int, column: int, donors: Tensor, then: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    parts = []
    for part in donors.split(20):
        batch = case.image.repeat(len(part), 1, 1, 1)
        batch[:, :, row : row + BLOCK, column : column + BLOCK] = part
        parts.append(case.score(batch).double().numpy())
    return then(np.concatenate(parts))


@torch.no_grad()
def _check(case: Case, found: Exhaustive) -> None:
    observed = float(case.score(case.image))
    generator = np.random.default_rng(0)
    for kind in (True, False):
        rows = np.flatnonzero(found.reachable == kind)
        for u in generator.permutation(rows)[:3]:
            _, row, column = case.units[u]
            whole = _scores(case, row, column, case.bank[:20], lambda scores: observed - scores)
            # A pixel on the brink may flip by rounding; it is one of a thousand.
            off = np.abs(whole - found.differences[u, :20])
            if off.max() > 4 / float(case.roi.sum()) or np.median(off) > 1e-6:
                raise RuntimeError(f"{case.name}: unit {u} has other scores on the whole image, by {off.max():.2g}")


def _case(name: str, train: BrainSlices, held_out: BrainSlices, options: argparse.Namespace) -> Case:
    quick = options.quick
    edge, roi_size = (128, 16) if quick else (EDGE, ROI_SIZE)
    if name == "SwinUNETR":
        edge, roi_size = (64, 16) if quick else (96, 16)
    # The RoI's middle stays where it is; the crop's corner lies on the grid of blocks.
    roi_start = tuple(begin + (ROI_SIZE - roi_size) // 2 for begin in ROI_START)
    corner = tuple(0 if edge == EDGE else min((begin - (edge - roi_size) // 2) // 8 * 8, EDGE - edge) for begin in roi_start)
    part = tuple(slice(begin, begin + edge) for begin in corner)
    network = _network(name, train.images[(..., *part)], train.labels[(..., *part)], options)
    # A network with global operations is reached from everywhere: a sample of the blocks, and fewer donors, are enough.
    is_local = name == "batch norm"
    n_donors = (300 if is_local else 30) if quick else (1000 if is_local else 200)
    roi = regions.box((edge, edge), tuple(a - b for a, b in zip(roi_start, corner)), roi_size)
    mask = regions.grid((edge, edge), BLOCK)
    if not is_local:
        mask = _sample_of_blocks(mask, roi, 6 if quick else 48)
    return Case(
        name=name,
        image=held_out.images[SLICE : SLICE + 1][(..., *part)].contiguous(),
        network=network,
        roi=roi,
        reference=held_out.labels[SLICE][part].contiguous(),
        bank=_patches(train.images, n_donors),
        mask=mask,
    )


def _network(name: str, images: Tensor, labels: Tensor, options: argparse.Namespace) -> nn.Module:
    steps = {"batch norm": 200, "instance norm": 200, "SwinUNETR": 200}[name] if not options.quick else 8
    channels, strides = ((8, 16), (2,)) if options.quick else ((16, 32, 64), (2, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module
        if name == "SwinUNETR":
            network = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, spatial_dims=2)
        else:
            network = UNet(2, 1, 3, channels, strides, num_res_units=2, norm=name.split()[0])
    file = options.cache / f"network_{name.replace(' ', '_')}_{images.shape[-1]}_{steps}.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        say(f"{name}: training, {steps} steps ...")
        # Learning rates at which the loss goes down smoothly: transformers want smaller ones.
        fit(network, images, labels, steps=steps, batch_size=4, learning_rate=2e-3 if name == "SwinUNETR" else 5e-3)
        options.cache.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
    return network.eval()


def _sample_of_blocks(grid: Tensor, roi: Tensor, n: int) -> Tensor:
    """``n`` blocks that do not touch the RoI as units 1, 2, ...; all other pixels, the RoI among them, are unit 0."""
    free = np.setdiff1d(grid.unique().numpy(), grid[roi].unique().numpy())
    chosen = np.sort(np.random.default_rng(0).choice(free, n, replace=False))
    mask = torch.zeros_like(grid)
    for number, block in enumerate(chosen.tolist(), start=1):
        mask[grid == block] = number
    return mask


def _patches(images: Tensor, n: int) -> Tensor:
    """``n`` patches ``(n, 1, 8, 8)`` from anywhere in the slices' middle parts, which hold brain mostly."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(len(images), (n,), generator=generator).tolist()
    rows = torch.randint(36, 216 - BLOCK, (n,), generator=generator).tolist()
    columns = torch.randint(56, 199 - BLOCK, (n,), generator=generator).tolist()
    return torch.stack([images[i, :, r : r + BLOCK, c : c + BLOCK] for i, r, c in zip(which, rows, columns)])


def _padded(slices: BrainSlices) -> BrainSlices:
    top, left = CORNER_OF_SLICE
    height, width = slices.images.shape[2:]
    margins = (left, EDGE - width - left, top, EDGE - height - top)
    return BrainSlices(functional.pad(slices.images, margins), functional.pad(slices.labels, margins), slices.z_mm)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    options = start(parser(__doc__))
    print("| network | image | units | donors | RoI's Dice | image's mean Dice of grey matter |\n|---|---|---|---|---|---|")
    for case in cases(options):
        with torch.no_grad():
            roi = float(case.score(case.image))
            everywhere = float(SegmentationTarget(case.network, reference=case.reference)(case.image)[0, LABEL])
        assert abs(float(case.target(case.image)[0, LABEL]) - roi) < 1e-6
        shape = "x".join(map(str, case.image.shape[2:]))
        print(f"| {case.name} | {shape} | {len(case.units)} | {len(case.bank)} | {roi:.3f} | {everywhere:.3f} |", flush=True)


if __name__ == "__main__":
    main()
