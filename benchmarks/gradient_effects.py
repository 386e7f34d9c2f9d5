"""Does one backward pass rank the blocks as interventions do, and what does each cost?

    python benchmarks/gradient_effects.py [--draws 20] [--reach 48]

Spearman's rank correlation, over the 8 x 8 blocks within some pixels of the RoI, between the backpropagated effect (of the soft
Dice) and the interventional one (of the hard and of the soft Dice, without screening); "magnitudes" is that of the absolute values,
soft Dice; then seconds and images through the network. The first line of a case correlates the interventional effects with those
of other draws: no estimate can be expected to do better. "mean donor" is one intervention per block, with the mean of its donors:
what is lost there is lost by the mean, what is lost below it is lost by the gradient.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.networks.nets import UNet
from scipy import ndimage
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, SegmentationTarget, regions
from captum_causalseg.demo import load_brain_slices
from captum_causalseg.demo.cases import Case, brain_case, picture_case
from captum_causalseg.demo.network import fit
from captum_causalseg.donors import DonorSource

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
BLOCK = 8
METRICS = ("dice", "soft_dice")


def cases() -> Iterator[tuple[str, Case]]:
    brain = brain_case()
    yield "brain, batch norm", brain
    if DATA.is_dir():
        picture, label, patches = "ISIC_0033556.jpg", "ISIC_0033556_segmentation.png", "isic_patches_8x8.npz"
        yield "the paper's picture, batch norm", picture_case(DATA / picture, DATA / label, DATA / patches, None)
    train, _ = load_brain_slices().split()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(2, 1, 3, channels=(8, 16, 32, 64, 64), strides=(2, 2, 2, 2), num_res_units=2, norm="INSTANCE")
    fit(network, train.images, train.labels, steps=150)
    fields = {**vars(brain), "network": network.eval(), "title": "the same slice, a network with instance norm"}
    yield "brain, instance norm", Case(**fields)


def nearby(roi: Tensor, reach: int) -> Tensor:
    """What to leave out: the RoI, and what lies further than ``reach`` pixels from it."""
    return roi | torch.from_numpy(ndimage.distance_transform_cdt(~roi.numpy(), "chessboard") > reach)


def study(name: str, case: Case, draws: int, reach: int) -> Iterator[str]:
    exclude = nearby(case.roi, reach)
    grid = regions.grid(case.roi.shape, BLOCK)
    kept = ~torch.isin(grid.unique(), grid[exclude].unique())

    def per_unit(attribution: Tensor) -> Tensor:
        first = torch.zeros(len(kept), dtype=torch.float64)
        return first.scatter_(0, grid.flatten(), attribution[0, 0].double().flatten())[kept]

    options = {"target": case.target, "block_size": BLOCK, "exclude": exclude}

    def intervene(metric: str, baselines: DonorSource | Tensor, n_draws: int, seed: int) -> tuple[Tensor, float, int]:
        target = SegmentationTarget(case.network, roi=case.roi, reference=case.reference, metric=metric)
        began = time.perf_counter()
        attr, stats = AverageTreatmentEffect(target).attribute(
            *(case.image, baselines),
            **options,
            n_draws=n_draws,
            n_screening_draws=0,
            seed=seed,
            return_statistics=True,
        )
        return per_unit(attr), time.perf_counter() - began, stats.n_forwards

    def line(method: str, found: dict[str, Tensor], seconds: float, passes: str) -> str:
        ranks = [rank(found[metric], truth[metric]) for metric in METRICS]
        ranks.append(rank(found["soft_dice"].abs(), truth["soft_dice"].abs()))
        return f"| {name}, {int(kept.sum())} blocks | {method} | {' | '.join(f'{r:.2f}' for r in ranks)} | {seconds:.2f} | {passes} |"

    results = {metric: intervene(metric, case.donors, draws, 0) for metric in METRICS}
    truth = {metric: effects for metric, (effects, _, _) in results.items()}
    again = {metric: intervene(metric, case.donors, draws, 1)[0] for metric in METRICS}
    seconds, forwards = results["dice"][1:]
    yield line(f"interventional, {draws} draws", again, seconds, f"{forwards} forward")

    means = mean_donors(case, grid, exclude)
    results = {metric: intervene(metric, means, 1, 0) for metric in METRICS}
    seconds, forwards = results["dice"][1:]
    found = {metric: effects for metric, (effects, _, _) in results.items()}
    yield line("interventional, mean donor", found, seconds, f"{forwards} forward")

    target = SegmentationTarget(case.network, roi=case.roi, reference=case.reference)
    for n_steps in (1, 10):
        began = time.perf_counter()
        effects = per_unit(GradientTreatmentEffect(target).attribute(case.image, case.donors, **options, n_steps=n_steps))
        seconds = time.perf_counter() - began
        passes = f"{n_steps + (n_steps > 1)} forward, {n_steps} backward"
        yield line(f"backpropagated, n_steps={n_steps}", dict.fromkeys(METRICS, effects), seconds, passes)


def mean_donors(case: Case, grid: Tensor, exclude: Tensor) -> Tensor:
    """The image with every block that is not left out replaced by the mean of its donors."""
    bound, means = case.donors.bind(case.image, case.roi[None]), case.image.clone()
    for unit in grid.unique():
        inside = grid == unit
        if not bool((inside & exclude).any()):
            rows, columns = inside.nonzero().T
            box = (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1))
            means[(0, slice(None), *box)] = bound.mean(0, box).float()
    return means


def rank(first: Tensor, second: Tensor) -> float:
    return float(scipy_stats.spearmanr(first, second).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--reach", type=int, default=48)
    options = parser.parse_args()
    print("| case | method | rank correlation, hard Dice | soft Dice | magnitudes | seconds | images through the network |")
    print("|---|---|---|---|---|---|---|")
    for name, case in cases():
        for line in study(name, case, options.draws, options.reach):
            print(line, flush=True)


if __name__ == "__main__":
    main()
