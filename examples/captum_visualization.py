"""Captum's own pictures of what AverageTreatmentEffect returns.

``captum.attr.visualization`` takes NumPy arrays of height x width x channels. Attributions have the shape of the input,
``(N, C, H, W)``: take the example, put the channels last, and pass them on. Needs nilearn for the brain slice::

    python examples/captum_visualization.py --out pictures
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from captum.attr import visualization
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.demo import CLASS_NAMES, load_brain_slices, load_demo_network

GRAY_MATTER = CLASS_NAMES.index("grey matter")


def channels_last(batch: Tensor) -> np.ndarray:
    """``(H, W, C)``, as Captum's pictures want it, of the only example of ``(1, C, H, W)``."""
    return batch[0].permute(1, 2, 0).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Captum's pictures of treatment effects.")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the PNG files")
    parser.add_argument("--draws", type=int, default=8, help="donors per block")
    options = parser.parse_args(arguments)

    train, held_out = load_brain_slices().split()
    # The quarter of a slice around the region, which is enough to see it work.
    image = held_out.images[12:13, :, 128:224, 56:152]
    reference = held_out.labels[12, 128:224, 56:152]
    roi = regions.box(image.shape[2:], start=(32, 32), size=32)
    target = SegmentationTarget(load_demo_network(), roi=roi, reference=reference)
    attributions = AverageTreatmentEffect(target).attribute(
        image, baselines=PatchBank(train.images), target=GRAY_MATTER, block_size=8, n_draws=options.draws
    )

    effects, picture = channels_last(attributions), channels_last(image)
    options.out.mkdir(parents=True, exist_ok=True)
    # Captum's default for both signs is red for negative and green for positive: RdBu_r is red for what supports, blue for what
    # harms. outlier_perc=2 ends the scale where 2 % of the total attribution lie beyond.
    blended, _ = visualization.visualize_image_attr(
        *(effects, picture, "blended_heat_map", "all"),
        cmap="RdBu_r",
        show_colorbar=True,
        title="Effect on the region's Dice (red supports, blue harms)",
        use_pyplot=False,
    )
    blended.savefig(options.out / "captum_blended.png", dpi=80)
    # Several at once: the picture (three equal channels, lest it be colored), what supports, what harms.
    several, _ = visualization.visualize_image_attr_multiple(
        *(effects, picture.repeat(3, axis=2), ["original_image", "heat_map", "heat_map"], ["all", "positive", "negative"]),
        titles=["image", "supports", "harms"],
        use_pyplot=False,
    )
    several.savefig(options.out / "captum_several.png", dpi=80)
    print(f"written to {options.out}/: captum_blended.png, captum_several.png")


if __name__ == "__main__":
    main()
