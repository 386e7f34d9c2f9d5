"""How often do 95 % intervals hold the truth? Every donor of every unit is run once; then draws are simulated.

    python benchmarks/coverage.py [--donors 300] [--seeds 60]

A held-out brain slice (112 x 112 around the RoI), the demo's U-Net, grey matter, 8 x 8 blocks. "plain" is Student's t with the
unit's own variance, "moderated" what the library reports; a "rare" unit moves the score in fewer than 20 % of its draws.
"""

import argparse
import time

import numpy as np
import torch
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.demo import load_brain_slices, load_demo_network
from captum_causalseg.statistics import moderate


def exhaustive(metric: str, n_donors: int) -> np.ndarray:
    """``observed - intervened`` ``(U, D)``."""
    train, held_out = load_brain_slices().split()
    rows, columns = slice(120, 232), slice(48, 160)
    image, label = held_out.images[12:13, :, rows, columns], held_out.labels[12, rows, columns]
    generator = torch.Generator().manual_seed(0)
    corners = torch.stack([torch.randint(20, high, (n_donors,), generator=generator) for high in (210, 180)], 1).tolist()
    which = torch.randint(len(train), (n_donors,), generator=generator).tolist()
    bank = torch.stack([train.images[i, :, r : r + 8, c : c + 8] for i, (r, c) in zip(which, corners)])
    target = SegmentationTarget(
        load_demo_network(), roi=regions.box((112, 112), start=(64, 40), size=32), reference=label, metric=metric
    )
    planned = AverageTreatmentEffect(target).plan(image, baselines=PatchBank(bank), n_draws=1)
    mask = regions.grid((112, 112), 8)
    rows_of_differences = []
    with torch.no_grad():
        observed = target(image)[0, 1]
        for step in planned:
            r, c = (mask == step.unit).nonzero().min(0).values.tolist()
            scores = []
            for part in bank.split(50):
                batch = image.repeat(len(part), 1, 1, 1)
                batch[:, :, r : r + 8, c : c + 8] = part
                scores.append(observed - target(batch)[:, 1])
            rows_of_differences.append(torch.cat(scores).double().numpy())
    return np.array(rows_of_differences)


def study(differences: np.ndarray, n: int, seeds: int) -> dict[str, float]:
    """Coverage by kind of interval, and how the standard errors compare with the errors made."""
    units, donors = differences.shape
    truth, generator = differences.mean(1), np.random.default_rng(0)
    alive = np.abs(differences).max(1) > 1e-6
    rare = alive & ((np.abs(differences) > 1e-9).mean(1) < 0.2)
    held: dict[str, list[np.ndarray]] = {"plain": [], "moderated": []}
    errors, standard_errors = [], []
    for _ in range(seeds):
        drawn = np.stack([row[generator.permutation(donors)[:n]] for row in differences])
        variance = drawn.var(1, ddof=1)
        variance[variance < 1e-24] = 0
        off = drawn.mean(1) - truth
        for kind, (spread, freedom) in {
            "plain": (variance, np.full(units, n - 1.0)),
            "moderated": moderate(variance, np.full(units, n)),
        }.items():
            standard_error = np.sqrt(spread / n * (1 - n / donors))
            held[kind].append(np.abs(off) <= scipy_stats.t.ppf(0.975, freedom) * standard_error)
        errors.append(off)
        standard_errors.append(standard_error)
    result = {f"{kind}, all": float(np.mean(found)) for kind, found in held.items()}
    result |= {
        f"{kind}, rare": float(np.mean(np.array(found)[:, rare])) if rare.any() else np.nan for kind, found in held.items()
    }
    result["rms standard error / rms error"] = float(np.sqrt(np.mean(np.square(standard_errors)) / np.mean(np.square(errors))))
    result["trials"] = units * seeds
    result["rare units"] = int(rare.sum())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donors", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=60)
    options = parser.parse_args()
    for metric in ("dice", "soft_dice"):
        began = time.perf_counter()
        differences = exhaustive(metric, options.donors)
        print(
            f"\n{metric}: {differences.shape[0]} units, {differences.shape[1]} donors each, {time.perf_counter() - began:.0f} s"
        )
        for n in (6, 12, 20, 50):
            print(
                f"  {n:>3} draws:",
                ", ".join(f"{name} {value:.3g}" for name, value in study(differences, n, options.seeds).items()),
            )


if __name__ == "__main__":
    main()
