"""Through what do effects travel in networks with instance norm, and do intervals of indirect and direct effects hold?

    python benchmarks/pathways.py [--threads 1] [--data FOLDER] [--work FOLDER] [--repeats 40] [--write docs/benchmarks/pathways.md]

*Statistics as the path*: the brain (``captum_causalseg.demo``) and, with ``--data``, pictures of skin lesions (``skin.py``), each with a U-Net with instance norm that is trained here or
read from the folder. Every block of the image that does not touch the RoI is split at the statistics of the norms (``FrozenStatistics``); soft Dice of the predicted object, donors from training images.
*told from 0*: at a false discovery rate of 0.05. *statistics carry over half*: of these, those whose whole 95 % interval of the share lies above 1/2. *share*: of the sum of absolute effects.

*Intervals*: a square of a brain slice (64 x 64, blocks of 16) with a bank of 60 donors. All of them give the truth; ``--repeats`` calls with other draws are held against it. *held*: the share of 95 % intervals
that hold the truth; *rms se / error*: root mean squares of standard errors and of what they are the errors of.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skin
import torch
from cases import machine, parser, publish, say, start
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import FrozenStatistics, MediatedTreatmentEffect, PatchBank, Pathway, SegmentationTarget, pathway, regions
from captum_causalseg.demo import BrainSlices, fit, load_brain_slices

GREY_MATTER, SLICES, LESIONS = 1, (12, 6), 2
LAYERS = FrozenStatistics()
CORNER, EDGE, ROI, BLOCK, N_DONORS = (120, 48), 64, ((24, 16), 16), 16, 60


@dataclass(frozen=True)
class Case:
    """One image to explain, ``(1, C, H, W)``."""

    name: str
    network: nn.Module
    image: Tensor
    roi: Tensor
    donors: PatchBank
    output: int | None
    block: int


def brain_network(train: BrainSlices, options: argparse.Namespace) -> nn.Module:
    """The demo's network with the norm of the instance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(2, 1, 3, (8, 16, 32, 64, 64), (2, 2, 2, 2), num_res_units=2, norm="INSTANCE")
    file = options.work / f"brain_instance_norm_{options.steps}.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        say(f"brain, instance norm: training, {options.steps} steps")
        fit(network, train.images, train.labels, steps=options.steps)
        options.work.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
    return network.eval()


def brain_cases(network: nn.Module, train: BrainSlices, held_out: BrainSlices) -> Iterator[Case]:
    for number in SLICES:
        image = held_out.images[number : number + 1]
        roi = regions.box(tuple(image.shape[2:]), start=(96, 136), size=32)
        yield Case(f"brain, slice {number}", network, image, roi, PatchBank(train.images), GREY_MATTER, 16)


def skin_cases(options: argparse.Namespace) -> Iterator[Case]:
    train, test = (skin.load_pictures(options.data, part) for part in ("train", "test"))
    network = skin.trained("instance norm", train, options.work, steps=options.steps)
    taken = 0
    for number in range(len(test)):
        image, lesion = test.images[number : number + 1], test.lesions[number]
        found = network(image)[0, 0] > 0
        # The right edge of a lesion that lies well within the picture.
        rows, columns = (found & lesion).nonzero().T if bool((found & lesion).any()) else (torch.tensor([0]), torch.tensor([0]))
        row, column = int(rows.median()) // 32 * 32, int(columns.max()) // 32 * 32
        if not 64 <= row <= 160 or not 64 <= column <= 160 or float(lesion.float().mean()) < 0.03:
            continue
        yield Case(
            f"skin, {test.names[number]}",
            network,
            image,
            regions.box((256, 256), (row, column), 32),
            PatchBank(train.images[:200]),
            None,
            32,
        )
        taken += 1
        if taken == min(LESIONS, options.images):
            return


def far_half(found: Pathway) -> tuple[float, float, float]:
    """The share of the statistics among the farther half of the units."""
    one, total = found.statistics["statistics"], found.statistics.total
    table = found.by_distance()
    bins = table[table["layer"] == "statistics"].set_index("bin")["n_units"].cumsum()
    half = float(table.loc[table["bin"] == bins.index[bins >= bins.iloc[-1] / 2][0], "upper"].iloc[0])
    assert found.rois is not None
    distance = torch.from_numpy(
        np.asarray([_distance(found.rois[0], total.feature_mask[0][0, 0] == u) for u in total.unit_ids.tolist()])
    )
    clear = total.significant()[0] & (distance > half)
    return one.share_of_units(clear.numpy())


def _distance(roi: Tensor, unit: Tensor) -> float:
    there, here = roi.nonzero(), unit.nonzero()
    return float((there[None] - here[:, None]).abs().amax(2).min())


@torch.no_grad()
def path(case: Case, draws: int) -> str:
    """One row of the first table."""
    began = time.process_time()
    target = SegmentationTarget.from_prediction(case.network, case.image, roi=case.roi, metric="soft_dice")
    found = pathway(
        target,
        case.image,
        case.donors,
        layers=LAYERS,
        output=case.output,
        block_size=case.block,
        n_draws=draws,
        n_screening_draws=0,
        support=None,
    )
    total, one = found.statistics.total, found.statistics["statistics"]
    clear = total.significant()[0]
    _, lower, _ = one.share_mediated()
    carried = int((clear & (lower[0] > 0.5)).sum())
    shares = found.shares().set_index("layer")
    seconds = time.process_time() - began
    say(f"{case.name}: {seconds:.0f} s of CPU time\n{found}")
    return (
        f"| {case.name} | {int(total.hypotheses[0].sum())} | {int(clear.sum())} | {carried} | "
        f"{_said(shares.loc['statistics', ['share', 'share_lower', 'share_upper']])} | {_said(far_half(found))} | {seconds:.0f} |"
    )


def _said(share: object) -> str:
    value, lower, upper = (float(one) for one in share)  # type: ignore[attr-defined]  # three numbers
    return "not known" if np.isnan(value) else f"{value:.2f} [{lower:.2f}, {upper:.2f}]"


def intervals(network: nn.Module, train: BrainSlices, held_out: BrainSlices, repeats: int) -> list[str]:
    """The second table's rows."""
    rows, columns = (slice(first, first + EDGE) for first in CORNER)
    image = held_out.images[12:13, :, rows, columns]
    roi = regions.box((EDGE, EDGE), *ROI)
    target = SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice")
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(len(train), (N_DONORS,), generator=generator)
    donors = train.images[which][..., rows, columns]
    mediated = MediatedTreatmentEffect(target, LAYERS)
    asked = {"target": GREY_MATTER, "block_size": BLOCK, "n_screening_draws": 0, "support": None, "return_statistics": True}
    _, truth = mediated.attribute(image, donors, n_draws=N_DONORS, **asked)
    found = []
    for draws in (8, 16):
        held: dict[tuple[str, str], list[float]] = {}
        errors: dict[tuple[str, str], list[float]] = {}
        spread: dict[tuple[str, str], list[float]] = {}
        for seed in range(repeats):
            _, stats = mediated.attribute(image, donors, n_draws=draws, seed=seed, **asked)
            for name in ("statistics",):
                for quantity in ("total", "indirect", "direct"):
                    true, one = (
                        values[name].of_quantity(quantity).of_output(GREY_MATTER)  # type: ignore[arg-type]  # one of the four
                        for values in (truth, stats)
                    )
                    asked_of = true.hypotheses[0] & (true.effect[0] != 0)
                    lower, upper = (end[0, asked_of] for end in one.confidence_interval())
                    known, key = true.effect[0, asked_of], (name, quantity)
                    held.setdefault(key, []).append(float(((lower <= known) & (known <= upper)).double().mean()))
                    errors.setdefault(key, []).append(float((one.effect[0, asked_of] - known).square().mean()))
                    spread.setdefault(key, []).append(float(one.standard_error[0, asked_of].square().mean()))
        for key in held:
            ratio = np.sqrt(np.mean(spread[key]) / np.mean(errors[key]))
            found.append(f"| {draws} | {key[0]} | {key[1]} | {np.mean(held[key]):.3f} | {ratio:.2f} |")
        say(f"{draws} draws done")
    return found


def main() -> None:
    made = skin.arguments(parser(__doc__))
    made.add_argument(
        "--work", type=Path, default=Path.home() / ".cache" / "captum_causalseg", metavar="FOLDER", help="of trained networks"
    )
    made.add_argument("--draws", type=int, default=10)
    made.add_argument("--images", type=int, default=2, help="of each network")
    options = start(made)
    train, held_out = load_brain_slices().split()
    network = brain_network(train, options)
    lines = [
        "## Ways through networks with instance norm",
        "",
        machine(options),
        "",
        f"Blocks of 16 x 16 (brain) and 32 x 32 (skin), {options.draws} draws each, soft Dice of the predicted object in an RoI of 32 x 32.",
        "",
        "| image | units | told from 0 | statistics carry over half | share through statistics | the same, farther half of the units | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    found = list(brain_cases(network, train, held_out))[: options.images]
    if skin.has_data(options.data):
        found += list(skin_cases(options))[: options.images]
    lines += [path(case, options.draws) for case in found[: 1 if options.quick else None]]
    lines += [
        "",
        "Intervals of effects, against all 60 donors of the bank:",
        "",
        "| draws | mediator | effect | 95 % intervals held | rms se / error |",
        "|---|---|---|---|---|",
        *intervals(network, train, held_out, 3 if options.quick else options.repeats or 40),
    ]
    publish(lines, options)


if __name__ == "__main__":
    main()
