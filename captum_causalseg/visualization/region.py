"""The picture of a region that is enough for a score, or without which it is lost."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from captum_causalseg._checks import NONE, array_of, checked, instance, integer
from captum_causalseg.attr.region import Region
from captum_causalseg.target.masks import check_roi, plain_tensor
from captum_causalseg.visualization.pictures import PICTURE, ROLES, contour, grayscale, literal
from captum_causalseg.visualization.planes import About, peak
from captum_causalseg.visualization.scene import panel_sizes, scene_and_planes
from captum_causalseg.visualization.sheet import Around, grid

__all__ = ["plot_region"]

_COLORS = (ROLES["supporting"], ROLES["harming"], "#b8860b", "#7b3294", "#01665e")
_EDGE = 3.6


@checked(
    PICTURE,
    region=instance(Region),
    roi=NONE | array_of("real", "(*spatial)", (2, 3)),
)
def plot_region(
    image: Tensor | tuple[Tensor, ...],
    region: Region,
    roi: Tensor | None = None,
    *,
    example: int = 0,
    input_index: int = 0,
    channel: int | None = None,
    title: str = "",
    spacing: float | Sequence[float] | None = None,
    affine: Tensor | np.ndarray | None = None,
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
) -> Figure:
    """The image with the region outlined in red, and what the model is shown: donors in the place of all that is replaced.

    Alternatives are outlined in other colors, with dashes. Of a volume, the three planes through the middle of the region are shown.

    Args:
        image: the explained input ``(N, C, *spatial)`` with 2 or 3 spatial axes, or the tuple of all.
        region: what :func:`captum_causalseg.sufficient_region` or :func:`captum_causalseg.necessary_region` returned for this example.
        roi: boolean mask ``(*spatial)``, the region of interest, outlined in green.
        example: which example of the batch.
        input_index: which of several inputs.
        channel: which of its channels; by default the first, or all of three as colors.
        title: above the pictures; what the region comes to is written below them.
        spacing: edge of a pixel, one number or one per spatial axis; taken from the affine by default, else 1.
        affine: from voxels to millimeters, as in :func:`plot_effects`, like the following.
        segmentation: what the model predicted of the class: a boolean mask ``(*spatial)``, or ``(N, *spatial)``.
        reference: the segmentation that it is compared with.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError, ValueError: ``image`` is not the input that the region was found in.

    Example:
        >>> import torch
        >>> from captum_causalseg import sufficient_region
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> from captum_causalseg.visualization import plot_region
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation
        >>> region = sufficient_region(case.target(), case.images, case.donors, n_draws=8)
        >>> figure = plot_region(case.images, region, case.roi)
        >>> [axes.get_title() for axes in figure.axes]
        ['sufficient region', 'kept, with donors elsewhere']
    """
    count = len(region.mask) if isinstance(region.mask, tuple) else 1
    integer(0, count - 1)("input_index", input_index)
    given = image if isinstance(image, tuple) else (image,)
    if len(given) not in (1, count) or not all(isinstance(one, Tensor) for one in given):
        raise TypeError(f"image: expected a tensor, or a tuple of the {count} input(s)")
    whole = given[input_index if len(given) > 1 else 0]
    masks = [_of_input(one.mask, input_index) for one in region]
    if whole.ndim not in (4, 5) or whole.shape[1:] != masks[0].shape[1:]:
        raise ValueError(
            f"image: expected the explained input (N, {', '.join(map(str, masks[0].shape[1:]))}) with 2 or 3 spatial axes, got {tuple(whole.shape)}"
        )
    integer(0, len(whole) - 1)("example", example)
    if channel is not None:
        integer(0, whole.shape[1] - 1)("channel", channel)
    outline = None if roi is None else check_roi(plain_tensor(torch.as_tensor(roi)).cpu()).numpy()
    if outline is not None and outline.shape != tuple(whole.shape[2:]):
        raise ValueError(f"roi: expected the image's spatial shape {tuple(whole.shape[2:])}, got {outline.shape}")
    held = [(mask[0] if channel is None else mask[0, channel : channel + 1]).any(0).cpu().numpy() for mask in masks]
    about = About(segmentation=segmentation, reference=reference, spacing=spacing, affine=affine)
    middle = peak(held[0].astype(float), outline)
    scene, planes = scene_and_planes(whole, outline, about, example=example, channel=channel, position=middle)
    pictures = [plain_tensor(one).detach().cpu().float() for one in (whole[example], _of_input(region.image, input_index)[0])]
    # On one scale: what was kept looks as it did.
    before, after = np.split(grayscale(torch.stack(pictures, dim=1), channel), 2)
    scenes = [replace(scene, picture=one[0]) for one in (before, after)]
    does = "kept, with donors elsewhere" if region.kind == "sufficient" else "replaced by donors"
    colors = _COLORS * len(held)
    sheet = grid(
        [f"{region.kind} region", does],
        panel_sizes(planes, _EDGE if len(planes) == 1 else 2.9),
        [None, None],
        row_labels=[plane.name for plane in planes],
        around=Around(
            title=title,
            legend=[*_handles(region, colors[: len(held)]), *scene.handles(scene.marks(told=False))],
            notes=[*_comes_to(region), *planes[0].geometry.notes()],
        ),
    )
    for heading, one, column in zip([f"{region.kind} region", does], scenes, sheet.pictures):
        for axes, plane in zip(column, planes):
            one.begin(axes, plane, heading if plane is planes[0] else "", faded=False)
            one.finish(axes, plane)
            for mask, color in reversed(list(zip(held, colors))):
                _outlined(axes, plane.cut(mask), color, dashed=mask is not held[0])
    for axes, plane in zip(sheet.pictures[0], planes):
        axes.set_ylabel(plane.name, fontsize=10)
        scene.frame(axes, plane)
    return literal(sheet.figure)


def _of_input(values: Tensor | tuple[Tensor, ...], number: int) -> Tensor:
    return values[number] if isinstance(values, tuple) else values


def _handles(region: Region, colors: Sequence[str]) -> list[Artist]:
    drawn: list[Artist] = []
    for number, color in enumerate(colors):
        label = f"alternative {number}" if number else f"{region.kind} region"
        line = Line2D([], [], color=color, linewidth=2.0, linestyle="--" if number else "-", label=label)
        line.set_path_effects([Stroke(linewidth=3.2, foreground="white"), Normal()])
        drawn.append(line)
    return drawn


def _outlined(axes: Axes, mask: np.ndarray, color: str, *, dashed: bool) -> None:
    if not mask.any():
        return
    contour(axes, mask, "white", linewidth=3.2)
    contour(axes, mask, color, linewidth=2.0, linestyle="--" if dashed else "-")


def _comes_to(region: Region) -> list[str]:
    """What it keeps or takes away."""
    n, (lower, upper) = len(region.units), region.share_interval
    does, done = ("kept", "kept") if region.kind == "sufficient" else ("replaced", "lost")
    reached = f"{region.share_reached:.3f} of the {region.share_of} is {done} [{lower:.3f}, {upper:.3f}]"
    if math.isinf(lower) and math.isinf(upper):
        reached = f"what share of the {region.share_of} is {done} is not known"
    said = f"{n} of {region.n_candidates} units {does}: {reached}"
    more = f"score {region.score:.3f}; observed {region.observed_score:.3f}, all replaced {region.replaced_score:.3f}"
    return [said if region.reached else f"{said}; {region.share:g} is not reached", more]
