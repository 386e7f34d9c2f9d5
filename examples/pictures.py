"""The pictures of ``docs/_static/pictures``: of effects, of sets of regions, of parts of the network, and a profile.

Of a brain slice and the demo's networks; the volume is of the same brain, its model one of two lines. About three minutes on
one core. Needs nilearn::

    python examples/pictures.py --out docs/_static/pictures
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    component_effects,
    interaction_effects,
    perception_profile,
    regions,
    sufficient_region,
)
from captum_causalseg.demo import CLASS_NAMES, load_brain_slices, load_demo_network, load_lesion_slices
from captum_causalseg.visualization import (
    plot_components,
    plot_convergence,
    plot_effects,
    plot_interactions,
    plot_profile,
    plot_region,
    plot_volume,
)

GRAY_MATTER = CLASS_NAMES.index("grey matter")
SCORE = "RoI's Dice [0, 1]"


class BrighterThanAround(nn.Module):
    """Positive where a voxel is brighter than the mean of 9 x 9 x 5 voxels around it."""

    def forward(self, x: Tensor) -> Tensor:
        around = nn.functional.avg_pool3d(x, (9, 9, 5), 1, (4, 4, 2), count_include_pad=False)
        return 40 * (x - around)


def of_a_slice(out: Path) -> None:
    train, held_out = load_brain_slices().split()
    image = held_out.images[12:13, :, 112:240, 40:168]
    reference = held_out.labels[12, 112:240, 40:168]
    rois = torch.stack([regions.box(image.shape[2:], start, 32) for start in ((72, 48), (24, 16))])
    bank = PatchBank(train.images)
    common = {"block_size": 8, "return_statistics": True}

    target = SegmentationTarget(load_demo_network(), roi=rois, reference=reference)
    first = (GRAY_MATTER, 0)
    _, statistics = AverageTreatmentEffect(target).attribute(image, bank, first, n_draws=12, **common)
    prediction, truth = target.segmentations(image)
    drawn = {"score_name": SCORE, "segmentation": prediction, "reference": truth}
    panels = ("image", "effect", "significant", "standard_error")
    save(plot_effects(image, statistics, rois, first, panels=panels, **drawn), out / "effects.png")
    save(plot_effects(image, statistics, rois, first, panels=panels[:3], palette="paper", **drawn), out / "effects_paper.png")
    save(plot_effects(image, statistics, rois, GRAY_MATTER, panels=panels[:2], **drawn), out / "regions.png")

    one = AverageTreatmentEffect(SegmentationTarget(load_demo_network(), roi=rois[0], reference=reference))
    # No screening and no early stop: the number of draws is what differs.
    runs = [one.attribute(image, bank, GRAY_MATTER, n_draws=n, n_screening_draws=0, **common)[1] for n in (4, 8, 16, 32)]
    save(plot_convergence(runs, target=GRAY_MATTER, score_name=SCORE), out / "convergence.png")


def of_a_lesion(out: Path) -> None:
    """A faint lesion, which is found because of what is around it."""
    train, held_out = load_lesion_slices()
    case = held_out.select(torch.tensor([14]))
    roi = regions.box(case.masks.shape[1:], (64, 40), 24)
    target = SegmentationTarget(load_demo_network("lesion"), roi=roi, reference=case.masks[0])
    _, statistics = AverageTreatmentEffect(target).attribute(
        case.images, PatchBank(train.images), block_size=8, n_draws=20, return_statistics=True
    )
    prediction, truth = target.segmentations(case.images)
    drawn = {"score_name": SCORE, "segmentation": prediction, "reference": truth, "panels": ("image", "effect")}
    save(plot_effects(case.images, statistics, roi, **drawn), out / "lesion.png")


def of_sets_and_parts(out: Path) -> None:
    """Which regions act together, which are enough, and which parts of the network matter."""
    train, held_out = load_brain_slices().split()
    image, reference = held_out.images[12:13], held_out.labels[12]
    roi = regions.box(image.shape[2:], (184, 88), 32)
    target = SegmentationTarget(load_demo_network(), roi=roi, reference=reference, metric="soft_dice")
    bank = PatchBank(train.images, match="mean")
    pairs = interaction_effects(target, image, bank, output=GRAY_MATTER, top=6, block_size=16, n_draws=20)
    save(plot_interactions(pairs, image, roi=roi, title="Blocks that act together"), out / "interactions.png")
    region = sufficient_region(target, image, bank, output=GRAY_MATTER, share=0.9, block_size=16)
    save(plot_region(image, region, roi), out / "sufficient.png")
    table = component_effects(target, image, ["*.unit?", "*.2.0.conv"], train.images[:24], output=GRAY_MATTER)
    save(plot_components(table, max_bars=24, score_name="RoI's soft Dice"), out / "components.png")


def of_a_profile(out: Path) -> None:
    """Of the whole slice, as the demo explains it: effects reach further than the part that the other pictures show."""
    train, held_out = load_brain_slices().split()
    image, reference = held_out.images[12:13], held_out.labels[12]
    roi = regions.box(image.shape[2:], (184, 88), 32)
    ate = AverageTreatmentEffect(SegmentationTarget(load_demo_network(), roi=roi, reference=reference))
    _, statistics = ate.attribute(image, PatchBank(train.images), GRAY_MATTER, n_draws=20, return_statistics=True)
    profile = perception_profile(statistics, roi, GRAY_MATTER)
    save(plot_profile(profile, "The demo's network, occipital cortex", "RoI's Dice"), out / "profile.png")


def of_a_volume(out: Path) -> None:
    # Every second slice of a part of the brain: voxels of 1 x 1 x 2 mm, the slices last.
    scan = load_brain_slices().images[40:88:2, 0, 90:154, 60:124].permute(1, 2, 0)[None, None].contiguous()
    roi = regions.box(scan.shape[2:], (24, 24, 8), (16, 16, 8))
    target = SegmentationTarget.from_prediction(BrighterThanAround(), scan, roi=roi)
    _, statistics = AverageTreatmentEffect(target).attribute(scan, block_size=(8, 8, 4), n_draws=12, return_statistics=True)
    # Rows run to the back, columns to the right, slices to the head.
    affine = torch.tensor([[0.0, 1, 0, -40], [-1, 0, 0, 30], [0, 0, 2, -10], [0, 0, 0, 1]])
    # What such a model segments is texture: its outline would hide more than it shows.
    common = {"score_name": SCORE, "affine": affine}
    save(plot_effects(scan, statistics, roi, **common), out / "volume.png")
    save(plot_volume(scan, statistics, roi, n_slices=8, **common), out / "volume_slices.png")


def save(figure, file: Path) -> None:
    figure.savefig(file, dpi=72)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KB", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pictures of treatment effects.")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the PNG files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    of_a_slice(options.out)
    of_a_lesion(options.out)
    of_sets_and_parts(options.out)
    of_a_profile(options.out)
    of_a_volume(options.out)


if __name__ == "__main__":
    main()
