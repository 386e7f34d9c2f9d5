"""The picture of what can reach a region of interest."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._checks import NONE, array_of, checked, instance, integer, tensor_of
from captum_causalseg.interventions.support import Support
from captum_causalseg.target.masks import check_roi, plain_tensor
from captum_causalseg.visualization.pictures import PICTURE, background, contour, grayscale, literal, plane, shade
from captum_causalseg.visualization.planes import pixel_spacing

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
) -> Figure:
    """The image where it can reach the region of interest through the model; what cannot is darkened and hatched.

    Args:
        image: the first of the explained inputs ``(N, C, *spatial)`` with 2 or 3 spatial axes; a volume is shown in the slice of its
            last axis that holds most of the RoI.
        support: what :func:`captum_causalseg.causal_support` returned.
        roi: boolean mask ``(*spatial)``, outlined in green.
        example: which example of the batch.
        roi_index: which of the RoIs.
        title: above the picture.
        spacing: edge of a pixel, one number or one per spatial axis; taken from the affine of a ``MetaTensor`` by default, else 1.

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
    rows, columns = pixel_spacing(image, spacing, example)[:2]
    if roi is not None and tuple(roi.shape) != tuple(image.shape[2:]):
        raise ValueError(f"roi: expected the image's spatial shape {tuple(image.shape[2:])}, got {tuple(roi.shape)}")
    roi = None if roi is None else check_roi(plain_tensor(torch.as_tensor(roi)).cpu())
    picture = grayscale(plane(plain_tensor(image[example]).cpu().float(), roi))
    outline = None if roi is None else plane(roi[None], roi)[0].numpy() > 0
    reaches = plane(mask[None].float(), roi)[0].numpy() > 0
    height, width = picture.shape[0] * rows, picture.shape[1] * columns
    scale = min(5.0 / width, 7.0 / height)
    figure = Figure(figsize=(max(5.4, 0.4 + scale * width), 0.95 + scale * height), layout="constrained")
    axes: Axes = figure.subplots()
    share = 100 * float(mask.float().mean())
    said = f"{share:.1f} % of the pixels can reach the region of interest"
    if support.doubt is not None:
        said = "what can reach the region of interest is not known"
    background(axes, picture, title or said, outline=outline, fade=False, aspect=rows / columns)
    if title:
        figure.supxlabel(said, fontsize=9)
    dark = np.zeros((*reaches.shape, 4))
    dark[~reaches] = (0.05, 0.08, 0.2, 0.62)
    axes.imshow(dark, interpolation="nearest", aspect=rows / columns)
    if not reaches.all():
        shade(axes, ~reaches, "//", color="black")
        contour(axes, reaches, color="white", linewidth=1.2, linestyle="--")
    return literal(figure)
