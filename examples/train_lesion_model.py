"""Train the demo's U-Net of lesions on synthetic lesions in slices of the brain, and record what it reaches on held-out ones.

Writes the weights and, beside them, a JSON file with how they came about. The same seed and number of steps write the
same weights, bit for bit, on the same machine with the same number of threads::

    python examples/train_lesion_model.py --out captum_causalseg/demo/lesion_unet.pt
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import monai
import nilearn
import torch

from captum_causalseg.demo import build_network, fit, load_lesion_slices, mean_dice
from captum_causalseg.demo.brain import NORMALIZATION, coarse_brain_slices
from captum_causalseg.demo.network import LESION_CHANNELS

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "captum_causalseg" / "demo" / "lesion_unet.pt"
# Lesions of the test, drawn into held-out slices only; notebooks explain those of seed 0.
TEST_SEED, TEST_COPIES = 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's U-Net of lesions.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="weights file (.pt); a .json goes beside it")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps")
    parser.add_argument("--copies", type=int, default=12, help="lesions drawn into each train slice, one at a time")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the lesions, the initial weights, the batches, the augmentation"
    )
    options = parser.parse_args()

    train, _ = load_lesion_slices(copies=options.copies, seed=options.seed)
    _, test = load_lesion_slices(copies=TEST_COPIES, seed=TEST_SEED)
    healthy, healthy_held_out = (slices.images for slices in coarse_brain_slices())
    # One slice in twelve or so has no lesion.
    images = torch.cat([train.images, healthy])
    labels = torch.cat([train.masks, torch.zeros_like(healthy[:, 0], dtype=torch.bool)]).long()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {options.steps}: loss {loss:.3f}", flush=True)

    network = build_network(out_channels=1, channels=LESION_CHANNELS, seed=options.seed)
    # Few pixels belong to a lesion: the last bias starts at their log odds rather than travel there.
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    torch.nn.init.constant_(last.bias, labels.float().mean().logit().item())
    start = time.process_time()
    fit(network, images, labels, steps=options.steps, batch_size=16, seed=options.seed, progress=report)
    seconds = time.process_time() - start

    with torch.no_grad():
        found = network(test.images)[:, 0] > 0
        made_up = (network(healthy_held_out) > 0).flatten(1).any(1)
    hit = (found & test.masks).flatten(1).any(1)
    record = {
        "seed": options.seed,
        "steps": options.steps,
        "copies": options.copies,
        "processor_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "nilearn": nilearn.__version__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "normalization": NORMALIZATION,
        "data": "synthetic lesions in the average brain that nilearn ships; no scan of a patient",
        "test_lesions": len(test),
        "test_dice": {
            name: round(mean_dice(network, some.images, some.masks.long()).item(), 4)
            for name, some in {
                "all": test,
                "with rim": test.select(test.has_rim),
                "without": test.select(~test.has_rim),
            }.items()
        },
        "test_lesions_missed": int((~hit).sum()),
        "held_out_slices_without_lesion": len(made_up),
        "held_out_slices_without_lesion_where_one_is_found": int(made_up.sum()),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), options.out)
    text = json.dumps(record, indent=2)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
