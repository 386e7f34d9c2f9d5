"""Train the demo's U-Net on the train slices of the brain, and record what it reaches on the held-out ones.

Writes the weights and, beside them, a JSON file with how they came about. The same seed and number of steps write the
same weights, bit for bit, on the same machine with the same number of threads::

    python examples/train_demo_model.py --out captum_causalseg/demo/brain_unet.pt
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import monai
import nilearn
import torch

from captum_causalseg.demo import CLASS_NAMES, build_network, fit, load_brain_slices, mean_dice
from captum_causalseg.demo.brain import NORMALIZATION

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "captum_causalseg" / "demo" / "brain_unet.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's brain U-Net.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="weights file (.pt); a .json goes beside it")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights, the batches and the augmentation")
    options = parser.parse_args()

    train, held_out = load_brain_slices().split()
    network = build_network(seed=options.seed)

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step} of {options.steps}: loss {loss:.3f}", flush=True)

    start = time.perf_counter()
    fit(network, train.images, train.labels, steps=options.steps, seed=options.seed, progress=report)
    seconds = time.perf_counter() - start

    dice = mean_dice(network, held_out.images, held_out.labels)
    record = {
        "seed": options.seed,
        "steps": options.steps,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "nilearn": nilearn.__version__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "normalization": NORMALIZATION,
        "train_slices": len(train),
        "held_out_z_mm": held_out.z_mm.tolist(),
        "held_out_dice": {name: round(value, 4) for name, value in zip(CLASS_NAMES[1:], dice.tolist(), strict=True)},
        "held_out_dice_mean": round(dice.mean().item(), 4),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), options.out)
    text = json.dumps(record, indent=2)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
