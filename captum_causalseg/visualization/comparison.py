"""The picture of a comparison of attribution methods."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.evaluation.comparison import CONTROL, Comparison
from captum_causalseg.target.masks import plain_tensor
from captum_causalseg.visualization.pictures import PICTURE, first, literal, robust_maximum
from captum_causalseg.visualization.planes import About
from captum_causalseg.visualization.scene import lay_over, panel_sizes, scene_and_planes
from captum_causalseg.visualization.sheet import Around, Scale, grid

__all__ = ["plot_comparison"]


@checked(PICTURE, comparison=instance(Comparison), columns=integer(1))
def plot_comparison(
    comparison: Comparison,
    *,
    example: int = 0,
    columns: int = 4,
    title: str = "",
    words: tuple[str, str] = ("supports", "harms"),
    channel: int | None = None,
    spacing: float | Sequence[float] | None = None,
    affine: Tensor | np.ndarray | None = None,
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
) -> Figure:
    """The maps of several methods side by side, red supports and blue harms, each relative to its own largest value.

    Methods have units of their own (Dice, logits, none at all): what can be compared is where and with which sign, so every map is
    divided by the 99.5th percentile of its magnitudes outside the region of interest (some methods replace that region itself,
    others leave it alone). Its cost is written below each map. The random control is left out.
    A volume has a row for each of the three planes through the middle of the RoI.

    Args:
        comparison: what :func:`captum_causalseg.compare` returned.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.
        channel: which channel of the image is drawn, and whose part of the maps; by default maps are added up over the channels.
        words: what positive and negative values do; for a score without better and worse, ``("raises", "lowers")``.
        spacing: edge of a pixel, one number or one per spatial axis; taken from the affine by default, else 1.
        affine: from voxels to millimeters, as in :func:`plot_effects`, like the following; that of the compared image by default.
        segmentation: what the model predicted of the class: a boolean mask ``(*spatial)``, or ``(N, *spatial)``.
        reference: the segmentation that it is compared with.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Example:
        >>> from captum_causalseg import compare
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> from captum_causalseg.visualization import plot_comparison
        >>> case = planted_case((32, 32), roi_size=8)
        >>> maps = {"truth": case.effects_of_map(), "sign turned": -case.effects_of_map()}
        >>> comparison = compare(maps, case.target(), case.images, case.donors, block_size=8, metrics=["irof"])
        >>> [axes.get_title() for axes in plot_comparison(comparison).axes[:3]]
        ['Image and region of interest', 'truth', 'sign turned']
    """
    above, below = words
    integer(0, len(comparison.image) - 1)("example", example)
    if channel is not None:
        integer(0, comparison.image.shape[1] - 1)("channel", channel)
    roi = None if comparison.roi is None else comparison.roi[example].cpu().numpy()
    about = About(segmentation=segmentation, reference=reference, spacing=spacing, affine=affine)
    scene, planes = scene_and_planes(comparison.image, roi, about, example=example, channel=channel)
    costs = comparison.table.groupby("method")[["forwards", "seconds"]].first()
    names = [name for name in comparison.attributions if name != CONTROL]
    headings = [scene.heading, *names]
    label = f"attribution / the method's largest outside the RoI\n{below} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {above}"
    scale = Scale(label, ["-1", "0", "1"])
    sheet = grid(
        headings,
        panel_sizes(planes, 2.6),
        [None] * len(names) + [scale if names else None],
        row_labels=[plane.name for plane in planes],
        fold=columns,
        around=Around(
            title=title, legend=scene.handles(scene.marks(told=True)), notes=planes[0].geometry.notes(), lines_below=1
        ),
    )
    for axes, plane in zip(sheet.pictures[0], planes):
        scene.begin(axes, plane, scene.heading if plane is planes[0] else "", faded=False)
        scene.tell(axes, plane)
        scene.finish(axes, plane)
        scene.frame(axes, plane)
    drawn = None
    for name, column in zip(names, sheet.pictures[1:]):
        maps = first(comparison.attributions[name])[example]
        found = maps.sum(0) if channel is None or len(maps) == 1 else maps[channel]
        values = plain_tensor(found).double().cpu().numpy()
        elsewhere = np.abs(values) if roi is None or roi.all() else np.abs(values[~roi])
        values = values / robust_maximum(elsewhere)
        for axes, plane in zip(column, planes):
            scene.begin(axes, plane, name if plane is planes[0] else "", faded=True)
            drawn = lay_over(axes, values, plane, largest=1.0)
            scene.finish(axes, plane)
        forwards, seconds = costs.loc[name]
        counted = "" if np.isnan(forwards) else f"{forwards:.0f} forwards, "
        column[-1].set_xlabel(f"{counted}{seconds:.1f} s", fontsize=9)
    for column in sheet.pictures[::columns]:
        for axes, plane in zip(column, planes):
            axes.set_ylabel(plane.name, fontsize=10)
    if drawn is not None:
        sheet.draw_bar(len(names), drawn, scale, places=[-1, 0, 1], extend="both")
    return literal(sheet.figure)
