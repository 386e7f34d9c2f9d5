"""The picture of what can reach a region of interest."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._checks import NONE, array_of, checked, instance, integer, tensor_of
from captum_causalseg.interventions.support import Support
from captum_causalseg.target.masks import check_roi, plain_tensor
from captum_causalseg.visualization.marks import draw_area, draw_line
from captum_causalseg.visualization.pictures import PICTURE, literal
from captum_causalseg.visualization.planes import About
from captum_causalseg.visualization.scene import panel_sizes, scene_and_planes
from captum_causalseg.visualization.sheet import Around, grid

__all__ = ["plot_support"]


@checked(
    PICTURE,
    image=tensor_of("real", "(N, C, *spatial) with 2 or 3 spatial axes", (4, 5), may_be_empty=False),
    support=instance(Support),
    roi=NONE | array_of("real", "(*spatial)", (2, 3)),
    roi_index=integer(0),
)
def plot_support(
    image: Tensor,
    support: Support,
    roi: Tensor | None = None,
    *,
    example: int = 0,
    roi_index: int = 0,
    title: str = "",
    spacing: float | Sequence[float] | None = None,
    affine: Tensor | np.ndarray | None = None,
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
    zoom: bool | Literal["auto"] = "auto",
) -> Figure:
    """The image where it can reach the region of interest through the model; what cannot is darkened and hatched.

    A volume is shown in the three planes through the middle of the RoI, and each plane beside the plain image.

    Args:
        image: the first of the explained inputs ``(N, C, *spatial)`` with 2 or 3 spatial axes.
        support: what :func:`captum_causalseg.causal_support` returned.
        roi: boolean mask ``(*spatial)``, outlined in green.
        example: which example of the batch.
        roi_index: which of the RoIs.
        title: above the picture.
        spacing: edge of a pixel, one number or one per spatial axis; taken from the affine by default, else 1.
        affine: from voxels to millimeters, as in :func:`plot_effects`, like the following.
        segmentation: what the model predicted of the class: a boolean mask ``(*spatial)``, or ``(N, *spatial)``.
        reference: the segmentation that it is compared with.
        zoom: whether to show only the part that can reach the RoI, and a margin.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        ValueError: ``image`` has another number of axes, or another spatial shape than the support.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, causal_support, regions
        >>> from captum_causalseg.visualization import plot_support
        >>> image, roi = torch.rand(1, 1, 16, 16), regions.box((16, 16), start=4, size=4)
        >>> target = SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 5, padding=2), image, roi=roi)
        >>> figure = plot_support(image, causal_support(target, image), roi)
        >>> figure.axes[0].get_title()
        '25.0 % of the pixels can reach the region of interest'
    """
    found = support.masks[0]
    for name, value, count in (("example", example, found.shape[0]), ("roi_index", roi_index, found.shape[1])):
        integer(0, count - 1)(name, value)
    mask = found[example, roi_index]
    if mask.shape != image.shape[2:]:
        raise ValueError(f"support: its first mask has shape {tuple(mask.shape)}, the image {tuple(image.shape[2:])}")
    if roi is not None and tuple(roi.shape) != tuple(image.shape[2:]):
        raise ValueError(f"roi: expected the image's spatial shape {tuple(image.shape[2:])}, got {tuple(roi.shape)}")
    outline = None if roi is None else check_roi(plain_tensor(torch.as_tensor(roi)).cpu()).numpy()
    reached = mask.cpu().numpy()
    about = About(segmentation=segmentation, reference=reference, spacing=spacing, affine=affine)
    scene, planes = scene_and_planes(image, outline, about, example=example, reached=reached, zoom=zoom)
    said = f"{100 * float(reached.mean()):.1f} % of the pixels can reach the region of interest"
    if support.doubt is not None:
        said = "what can reach the region of interest is not known"
    headings = [said] if len(planes) == 1 else [scene.heading, said]
    drawn = {**scene.marks(told=False), "unreached": not reached.all()}
    names = [plane.name for plane in planes]
    sheet = grid(
        headings,
        panel_sizes(planes, 5.0 if len(planes) == 1 else None),
        [None] * len(headings),
        row_labels=names,
        around=Around(title=title, legend=scene.handles(drawn), notes=planes[0].geometry.notes()),
    )
    for heading, column in zip(headings, sheet.pictures):
        for number, (axes, plane) in enumerate(zip(column, planes)):
            scene.begin(axes, plane, heading if number == 0 else "", faded=False)
            if heading == said:
                beyond = plane.cut(~reached)
                dark = np.zeros((*beyond.shape, 4))
                dark[beyond] = (0.05, 0.08, 0.2, 0.62)
                axes.imshow(dark, interpolation="nearest", aspect=plane.aspect)
                draw_area(axes, beyond, "unreached")
                draw_line(axes, beyond, "outside")
            scene.finish(axes, plane)
    for axes, plane in zip(sheet.pictures[0], planes):
        axes.set_ylabel(plane.name, fontsize=10)
        scene.frame(axes, plane)
    return literal(sheet.figure)
