"""Is the planted cause found? A letter in the corner decides whether the network segments the lesion; who says so?

    python benchmarks/shortcut.py [--cases 12] [--write docs/benchmarks/shortcut.md]

Held-out slices of the planted shortcut. Each method's map is averaged over the 8 x 8 blocks outside the region of interest; the
marker's block should be the strongest, and positive, because it supports the segmentation.
"""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerAttribution
from cases import machine, parser, picture_folder, publish, say, start
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from methods import methods
from PIL import Image
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, PdCR
from captum_causalseg.evaluation.planted import ShortcutCase, load_shortcut_case, marker_findings

DRAWS_DONORS = (AverageTreatmentEffect, GradientTreatmentEffect, PdCR)


def explainers(case: ShortcutCase) -> dict[str, Callable[[], Tensor]]:
    """By name, what makes the method's map of the case, of the image's size."""
    found = methods(case.target(), case.model)
    found["PdCR"] = (PdCR(case.target()), {})
    first = ["AverageTreatmentEffect", "PdCR", "GradientTreatmentEffect"]
    return {name: _explainer(*found[name], case) for name in [*first, *(name for name in found if name not in first)]}


def _explainer(method: Any, arguments: dict[str, Any], case: ShortcutCase) -> Callable[[], Tensor]:
    if isinstance(method, DRAWS_DONORS):
        arguments = {"baselines": case.donors, **arguments}

    def explain() -> Tensor:
        attributions: Tensor = method.attribute(case.images, **arguments)
        if attributions.shape[2:] == case.images.shape[2:]:
            return attributions
        return LayerAttribution.interpolate(attributions, tuple(case.images.shape[2:]), "bilinear")

    return explain


def measured(case: ShortcutCase, explain: Callable[[], Tensor]) -> tuple[Tensor, float, int]:
    """The map, the seconds that it took, and how many images went forward through the network."""
    images = 0

    def count(_: torch.nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        nonlocal images
        images += len(inputs[0])

    handle = case.model.register_forward_hook(count)
    began = time.perf_counter()
    try:
        attributions = explain()
    finally:
        handle.remove()
    return attributions.detach(), time.perf_counter() - began, images


def table(rows: pd.DataFrame) -> list[str]:
    lines = [
        "| method | found | rank of the marker (median, worst) | sign + / 0 / - | share of the mass (mean) | images forward | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, group in rows.groupby("method", sort=False):
        signs = " / ".join(str(int((group["sign"] == sign).sum())) for sign in (1, 0, -1))
        lines.append(
            f"| {method} | {int(group['found'].sum())} of {len(group)} | {group['rank'].median():g}, {group['rank'].max()} | {signs} | "
            f"{group['share'].mean():.3f} | {group['images'].mean():.0f} | {group['seconds'].mean():.2f} |"
        )
    return lines


def counterfactual(case: ShortcutCase) -> str:
    target = case.target()
    with torch.no_grad():
        with_marker, without = target(case.images), target(case.without_marker)
    return (
        f"Dice in the region of interest over {len(case)} held-out slices: {with_marker.mean():.3f} with the marker (least "
        f"{with_marker.min():.3f}), {without.mean():.3f} with air in its place (largest {without.max():.3f})."
    )


def picture(case: ShortcutCase, maps: dict[str, Tensor]) -> Figure:
    """The case, its counterfactual, and every method's map as means over blocks, each on its own scale."""
    columns = 4
    rows = -(-(2 + len(maps)) // columns)
    figure = Figure(figsize=(2.7 * columns, 0.3 + 2.95 * rows), layout="constrained")
    panels = figure.subplots(rows, columns).ravel()
    for panel in panels:
        panel.axis("off")
    with torch.no_grad():
        for panel, image, name in zip(panels, (case.images, case.without_marker), ("explained image", "without the marker")):
            found = (case.model(image)[0, 0] > 0).numpy()
            panel.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1.25, interpolation="nearest")
            outline(panel, case)
            if found.any():
                panel.contour(found, levels=[0.5], colors=["#ff7f0e"], linewidths=1.3)
            panel.set_title(f"{name}\nDice {float(case.target()(image)):.2f}", fontsize=9)
    for panel, (name, attributions) in zip(panels[2:], maps.items()):
        finding = marker_findings(attributions, case).iloc[0]
        values = block_means(attributions, case)
        largest = np.nanmax(np.abs(values)) or 1.0
        panel.imshow(0.72 + 0.28 * np.clip(case.images[0, 0] / 1.25, 0, 1), cmap="gray", vmin=0, vmax=1)
        opacity = np.nan_to_num(np.sqrt(np.abs(values) / largest))
        panel.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.95 * opacity, interpolation="nearest")
        outline(panel, case)
        said = {1: "supports", 0: "no effect", -1: "harms"}[finding["sign"]]
        panel.set_title(f"{name}\nmarker: rank {finding['rank']} of {finding['n_units']}, {said}", fontsize=9)
    figure.supxlabel(
        "orange: segmentation; green: region of interest; square: the marker's block; red supports, blue harms", fontsize=9
    )
    return figure


def outline(panel: Axes, case: ShortcutCase) -> None:
    for mask, color in ((case.roi[0, 0], "#2ee62e"), (case.marker, "#d0a000")):
        panel.contour(mask.numpy(), levels=[0.5], colors=[color], linewidths=1.3)


def block_means(attributions: Tensor, case: ShortcutCase) -> np.ndarray:
    """``(H, W)``, NaN in the region of interest."""
    units, values = case.units.numpy(), attributions[0].double().mean(0).numpy()
    means = np.bincount(units.ravel(), weights=values.ravel()) / np.bincount(units.ravel())
    painted: np.ndarray = means[units]
    painted[case.roi[0, 0].numpy()] = np.nan
    return painted


def save_small(figure: Figure, file: Path) -> None:
    """As a PNG with a palette, a fraction of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=72)
    with Image.open(buffer) as drawn:
        # The default, median cut, takes the rarer hues away, and hues mean signs here.
        palette = drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(file, optimize=True)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--cases", type=int, default=12, help="so many held-out slices, one after the other")
    options = start(made)
    rows, maps = [], {}
    for index in range(1 if options.quick else options.cases):
        case = load_shortcut_case(index)
        for name, explain in explainers(case).items():
            if options.quick and name in ("AverageTreatmentEffect", "PdCR", "MiSuRe", "RiseSegmentation"):
                continue
            attributions, seconds, images = measured(case, explain)
            if index == 0:
                maps[name] = attributions
            findings = marker_findings(attributions, case).iloc[0].to_dict()
            rows.append({"method": name, "case": index, "images": images, "seconds": seconds, **findings})
            say(f"case {index}, {name}: rank {findings['rank']}, sign {findings['sign']}, {seconds:.1f} s")
    file = picture_folder(options) / "shortcut.png"
    save_small(picture(load_shortcut_case(0), maps), file)
    n_units = sorted({row["n_units"] for row in rows})
    publish(
        [
            "## The planted shortcut",
            "",
            machine(options),
            "",
            counterfactual(load_shortcut_case(0, 24)),
            "",
            f"{len({row['case'] for row in rows})} of these slices were explained, {n_units[0]} to {n_units[-1]} blocks each. *Found* "
            "means rank 1 by absolute value, and positive. Share of the mass: of the sum of the blocks' absolute values. Donors are "
            "slices of hospital B: lesions, no marker. Seg-Grad-CAM is Captum's `LayerGradCam` on the sum of the logits, without its "
            "last ReLU, so that it has a sign; MiSuRe and SegHiResGradCam have no negative values. Occlusion's zero happens to be air, "
            "which is what the marker hides.",
            "",
            *table(pd.DataFrame(rows)),
            "",
            f"![The first slice, and every method's map of it](../_static/{file.name})",
        ],
        options,
    )


if __name__ == "__main__":
    main()
