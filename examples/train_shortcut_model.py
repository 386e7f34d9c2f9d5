"""Train the U-Net of the planted shortcut: slices of hospital A, lesion outlined, marker burned in; of hospital B, neither.

Writes the weights and, beside them, a JSON file with how they came about and what they reach on held-out slices. The same seed and
number of steps write the same weights, bit for bit, on the same machine with the same number of threads::

    python examples/train_shortcut_model.py --out captum_causalseg/evaluation/planted/shortcut_unet.pt
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import monai
import nilearn
import torch
from torch import Tensor

from captum_causalseg.demo import Augmentation, fit
from captum_causalseg.evaluation.planted import (
    build_shortcut_network,
    draw_shortcut_examples,
    load_shortcut_case,
    load_shortcut_slices,
)

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "captum_causalseg" / "evaluation" / "planted" / "shortcut_unet.pt"
N_HELD_OUT = 24
# Brightness and noise only: whatever moves the picture would move the marker.
STILL = Augmentation(flip=(), rotation_deg=0, scale=0, shift=0, gain=0.1, offset=0.03, gamma=0.1, noise=0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the U-Net of the planted shortcut.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="weights file (.pt); a .json goes beside it")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--examples", type=int, default=800, help="training pictures, half of them from each hospital")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the lesions, the initial weights, the batches and the augmentation"
    )
    options = parser.parse_args()

    train, _ = load_shortcut_slices()
    which = torch.randint(len(train), (options.examples,), generator=torch.Generator().manual_seed(options.seed)).tolist()
    examples = draw_shortcut_examples(train, which, options.seed)
    half = options.examples // 2
    images = torch.cat([examples.with_marker()[:half], examples.images[half:]])
    labels = torch.cat([examples.lesions[:half], torch.zeros_like(examples.lesions[half:])]).long()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {options.steps}: loss {loss:.3f}", flush=True)

    network = build_shortcut_network(seed=options.seed)
    start = time.perf_counter()
    fit(network, images, labels, steps=options.steps, batch_size=16, seed=options.seed, augmentation=STILL, progress=report)
    seconds = time.perf_counter() - start

    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), options.out)
    held_out = load_shortcut_case(0, N_HELD_OUT, model=network)
    with_marker, without = (
        dice(network, pictures, held_out.reference) for pictures in (held_out.images, held_out.without_marker)
    )
    record = {
        "seed": options.seed,
        "steps": options.steps,
        "examples": options.examples,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "nilearn": nilearn.__version__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "held_out_z_mm": sorted(held_out.z_mm.tolist()),
        "held_out_dice_with_marker": {"mean": round(with_marker.mean().item(), 4), "least": round(with_marker.min().item(), 4)},
        "held_out_dice_without_marker": {"mean": round(without.mean().item(), 4), "largest": round(without.max().item(), 4)},
    }
    text = json.dumps(record, indent=2)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


@torch.no_grad()
def dice(network: torch.nn.Module, images: Tensor, lesions: Tensor) -> Tensor:
    """Of every whole picture, ``(N,)``."""
    found = network(images)[:, 0] > 0
    return 2 * (found & lesions).flatten(1).sum(1) / (found.flatten(1).sum(1) + lesions.flatten(1).sum(1))


if __name__ == "__main__":
    main()
