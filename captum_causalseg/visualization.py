"""Pictures of treatment effects; every function returns the matplotlib figure and shows nothing by itself."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import NONE, TEXT, array_of, checked, instance, integer, one_of, sequence, shown, tensor_of
from captum_causalseg._drawing.component_bars import plot_components
from captum_causalseg._drawing.convergence import plot_convergence
from captum_causalseg._drawing.effect_panels import PANELS, effects_figure, volume_figure
from captum_causalseg._drawing.influence_cells import plot_influence
from captum_causalseg._drawing.pictures import (
    EFFECTS,
    PICTURE,
    background,
    contour,
    first,
    grayscale,
    literal,
    palette_of,
    plane,
    robust_maximum,
    shade,
)
from captum_causalseg._drawing.planes import pixel_spacing, shown_outputs, view_of
from captum_causalseg._drawing.profile_panels import histogram, mass_by_distance, named_roles, pie, ratio
from captum_causalseg._masks import check_roi, plain_tensor
from captum_causalseg.evaluation.comparison import CONTROL, Comparison
from captum_causalseg.evaluation.profile import PerceptionProfile
from captum_causalseg.interventions.support import Support
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = [
    "plot_comparison",
    "plot_components",
    "plot_convergence",
    "plot_effects",
    "plot_influence",
    "plot_profile",
    "plot_support",
    "plot_volume",
]


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
        A figure of its own, not registered with pyplot: save it with ``savefig``.

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
    background(axes, picture, title or said, outline, fade=False, aspect=rows / columns)
    if title:
        figure.supxlabel(said, fontsize=9)
    dark = np.zeros((*reaches.shape, 4))
    dark[~reaches] = (0.05, 0.08, 0.2, 0.62)
    axes.imshow(dark, interpolation="nearest", aspect=rows / columns)
    if not reaches.all():
        shade(axes, ~reaches, "//", "black")
        contour(axes, reaches, "white", 1.2, "--")
    return literal(figure)


@checked(PICTURE, panels=sequence(TEXT, 1, expected=f"some of {('image', *PANELS)}"))
def plot_effects(
    image: Tensor | tuple[Tensor, ...],
    statistics: TreatmentEffectStatistics,
    roi: Tensor | np.ndarray | None = None,
    target: TargetType = None,
    *,
    example: int = 0,
    title: str = "",
    score_name: str = "score",
    panels: Sequence[str] = ("image", "effect", "standard_error"),
    palette: str = "accessible",
    words: tuple[str, str] = ("supports", "harms"),
    spacing: float | Sequence[float] | None = None,
    channel: int | None = None,
    input_index: int = 0,
) -> Figure:
    """The image with the RoI, every unit's effect on the RoI's score, and how sure it is; for images and volumes.

    Effects are drawn on a diverging scale centered on 0 (red supports, blue harms), the more opaque the larger. The scale ends at the
    99.5th percentile of ``|effect|``. Where everything reaches the RoI, as through normalization over the whole image, a line on the scale
    shows the median effect of the farthest units, the background to compare with, and a gray band where half of them lie
    (:func:`~captum_causalseg.evaluation.profile.background_effect`; needs ``roi``). Units that were not intervened on are hatched; those that cannot reach the RoI lie beyond a
    dashed line.

    A volume has a row for each of the three planes through the middle of the unit with the largest ``|effect|`` (dotted lines show
    where they cross); :func:`plot_volume` shows more slices of one axis. Where the statistics are of several RoIs and ``target`` leaves
    open which, each RoI has a row (a volume's has three), all on the same scales.

    Args:
        image: the explained inputs ``(N, C, *spatial)`` with 2 or 3 spatial axes, or the tuple of them. Another image of the same
            ``N`` and spatial shape may stand in for it, such as the one before normalization.
        statistics: what ``attribute(..., return_statistics=True)`` returned for them.
        roi: boolean mask, outlined in green: ``(*spatial)``; ``(R, *spatial)`` for statistics of ``R`` RoIs; or with the batch in
            front, ``(N, R, *spatial)``, as ``SegmentationTarget.roi_masks`` returns them.
        target: which output, as in ``attribute``: a class, or a pair ``(class, roi)``.
        example: which example of the batch.
        title: above the panels.
        score_name: what the effects are effects on, with its unit.
        panels: what to show, in this order: ``"image"``, ``"effect"``, ``"standard_error"``, ``"lower"`` and ``"upper"`` (ends of the
            95 % interval, on the scale of the effect), ``"significant"`` (the effect, dotted where it does not differ from 0 at a
            false discovery rate of 5 %), ``"p_value"`` (two-sided, not corrected) and ``"n_draws"``. More than four panels of an image
            take two lines.
        palette: ``"accessible"``, whose two ends people with any kind of color blindness tell apart, or ``"paper"``: the pure red, blue
            and green of arXiv 2602.20511.
        words: what effects above and below 0 do, where the score has no better and worse: ``("raises", "lowers")``.
        spacing: edge of a pixel, one number or one per spatial axis, so that pixels that are not square are drawn as they are. Taken
            from the affine of a ``MetaTensor`` by default; else 1.
        channel: which channel to draw in gray, and whose units to show where channels have their own. By default three channels
            are drawn as RGB, of other images the first.
        input_index: which of several inputs.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError: ``image``, ``roi`` or ``statistics`` is of another type.
        ValueError: a shape or number does not fit the statistics, ``target`` picks no output, or a name is not known.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.visualization import plot_effects
        >>> image, roi = torch.rand(1, 1, 16, 16), regions.box((16, 16), start=4, size=4)
        >>> target = SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 5, padding=2), image, roi=roi)
        >>> _, statistics = AverageTreatmentEffect(target).attribute(
        ...     image, PatchBank(torch.rand(5, 1, 16, 16)), target=1, block_size=4, n_draws=4, return_statistics=True
        ... )
        >>> figure = plot_effects(image, statistics, roi, target=1, panels=("effect", "significant"), score_name="Dice")
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['Effect of each unit', 'Significant effects']
    """
    known = ("image", *PANELS)
    if not all(name in known for name in panels):
        raise ValueError(f"panels: expected some of {known}, got {shown(panels)}")
    view = view_of(image, statistics, roi, example=example, input_index=input_index, channel=channel, spacing=spacing)
    figure = effects_figure(
        *(statistics, view, shown_outputs(statistics, target, view), tuple(panels), palette_of(palette)),
        channel=channel,
        title=title,
        score_name=score_name,
        words=words,
    )
    return literal(figure)


@checked(PICTURE, n_slices=integer(1), axis=integer(), panel=one_of(*PANELS))
def plot_volume(
    image: Tensor | tuple[Tensor, ...],
    statistics: TreatmentEffectStatistics,
    roi: Tensor | np.ndarray | None = None,
    target: TargetType = None,
    *,
    axis: int = -1,
    n_slices: int = 9,
    columns: int | None = None,
    example: int = 0,
    title: str = "",
    score_name: str = "score",
    panel: str = "effect",
    palette: str = "accessible",
    words: tuple[str, str] = ("supports", "harms"),
    spacing: float | Sequence[float] | None = None,
    channel: int | None = None,
    input_index: int = 0,
) -> Figure:
    """Slices of a volume side by side, spread evenly over those that have effects.

    The slice through the middle of the unit with the largest ``|effect|`` is always among them, in a thick frame. Where all effects
    are 0, the slices are those of the RoI. Rows and columns are the two other axes in the order of the array, without flips.

    Args:
        image: the explained inputs ``(N, C, *spatial)`` with 3 spatial axes, or the tuple of them.
        statistics: what ``attribute(..., return_statistics=True)`` returned for them.
        roi: boolean mask, outlined in green; shapes as in :func:`plot_effects`.
        target: which output, as in ``attribute``; of statistics of several RoIs a pair ``(class, roi)``.
        axis: along which spatial axis to cut, from 0 to 2, or from -3 to -1.
        n_slices: so many slices at most.
        columns: slices in a row; by default about as many as rows.
        example: which example of the batch.
        title: above the slices.
        score_name: what the effects are effects on, with its unit.
        panel: what to show, as in :func:`plot_effects`.
        palette: ``"accessible"`` or ``"paper"``, as in :func:`plot_effects`.
        words: what effects above and below 0 do, where the score has no better and worse: ``("raises", "lowers")``.
        spacing: edge of a voxel, one number or one per spatial axis; taken from the affine of a ``MetaTensor`` by default, else 1.
        channel: which channel to draw in gray, as in :func:`plot_effects`.
        input_index: which of several inputs.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError: ``image``, ``roi`` or ``statistics`` is of another type.
        ValueError: ``image`` is no volume, or another argument does not fit it or the statistics.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
        >>> from captum_causalseg.visualization import plot_volume
        >>> scan, roi = torch.rand(1, 1, 12, 12, 6), regions.box((12, 12, 6), start=4, size=(4, 4, 2))
        >>> target = SegmentationTarget.from_prediction(torch.nn.Conv3d(1, 2, 3, padding=1), scan, roi=roi)
        >>> _, statistics = AverageTreatmentEffect(target).attribute(
        ...     scan, target=1, block_size=(4, 4, 2), n_draws=4, return_statistics=True
        ... )
        >>> figure = plot_volume(scan, statistics, roi, target=1, n_slices=4, spacing=(1, 1, 3))
    """
    view = view_of(image, statistics, roi, example=example, input_index=input_index, channel=channel, spacing=spacing)
    if view.image.ndim != 4:
        raise ValueError(f"image: expected a volume (N, C, *spatial) with 3 spatial axes, got {view.image.ndim - 1}")
    if not -3 <= axis < 3:
        raise ValueError(f"axis: expected an integer from -3 to 2, got {shown(axis)}")
    outputs = shown_outputs(statistics, target, view)
    if len(outputs) > 1:
        raise ValueError(f"target: it leaves {len(outputs)} regions of interest open, pick one: (class, roi)")
    figure = volume_figure(
        *(statistics, view, outputs[0], panel, palette_of(palette)),
        axis=axis % 3,
        n_slices=n_slices,
        columns=columns,
        channel=channel,
        title=title,
        score_name=score_name,
        words=words,
    )
    return literal(figure)


@checked(PICTURE, profile=instance(PerceptionProfile))
def plot_profile(
    profile: PerceptionProfile, title: str = "", score_name: str = "score", words: tuple[str, str] = ("supports", "harms")
) -> Figure:
    """The paper's pie, ratio bar and histogram, and how the mass of the effects falls with the distance from the RoI.

    Pie: the shares of supporting (red), harming (blue) and null units (gray). Bar: how the mass ``sum |effect|`` divides into
    both signs. Histogram: the effects that are not 0, gray where they are not significant (by the profile's ``alpha``), with
    counts on a logarithmic scale. Right: the mass per bin of distance, stacked by sign; the dashed steps are the mass that noise
    alone would have (left out where it is not known); the line is the share of the mass up to that distance. Where everything
    reaches the RoI, dotted lines show the effect of far units, in the histogram and as the mass that it would make in every unit.

    Args:
        profile: of :func:`captum_causalseg.evaluation.profile.perception_profile` or ``profile_of_map``.
        title: above the panels.
        score_name: what the effects are effects on, with its unit.
        words: what positive and negative effects do, where the score has no better and worse: ``("raises", "lowers")``.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.
    """
    figure = Figure(figsize=(14.5, 4.6), layout="constrained")
    panels = figure.subplot_mosaic(
        [["pie", "histogram", "distance"], ["ratio", "histogram", "distance"]],
        height_ratios=[4, 1],
        width_ratios=[1, 1.25, 1.9],
    )
    if title:
        figure.suptitle(title)
    names = named_roles(words)
    pie(panels["pie"], profile, names)
    ratio(panels["ratio"], profile, names)
    histogram(panels["histogram"], profile, score_name, names)
    mass_by_distance(panels["distance"], profile, score_name, names)
    return literal(figure)


@checked(PICTURE, comparison=instance(Comparison), columns=integer(1))
def plot_comparison(
    comparison: Comparison,
    *,
    example: int = 0,
    columns: int = 4,
    title: str = "",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """The maps of several methods side by side, red supports and blue harms, each relative to its own largest value.

    Methods have units of their own (Dice, logits, none at all): what can be compared is where and with which sign, so every map is
    divided by the 99.5th percentile of its magnitudes outside the region of interest (some methods replace that region itself,
    others leave it alone). Below each stands what it cost. The random control is left out.

    Args:
        comparison: what :func:`captum_causalseg.compare` returned; a volume is shown in the slice of its last axis that holds most
            of the RoI.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.
        words: what positive and negative values do, where the score has no better and worse: ``("raises", "lowers")``.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.
    """
    above, below = words
    integer(0, len(comparison.image) - 1)("example", example)
    roi = None if comparison.roi is None else comparison.roi[example]
    image = comparison.image[example].float()
    picture = grayscale(plane(image, roi))
    outline = None if roi is None else plane(roi[None], roi)[0].numpy()
    costs = comparison.table.groupby("method")[["forwards", "seconds"]].first()
    names = [name for name in comparison.attributions if name != CONTROL]
    columns = min(columns, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    height, width = picture.shape[:2]
    edge = 2.6
    figure = Figure(figsize=(1.2 + edge * columns, 0.5 + rows * (0.5 + edge * height / width)), layout="constrained")
    panels: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    if title:
        figure.suptitle(title)
    background(panels[0, 0], picture, "Image and region of interest", outline, fade=False)
    drawn = None
    for axes, name in zip(panels.flat[1:], names):
        found = first(comparison.attributions[name])[example].sum(0, keepdim=True)
        values = plane(found, roi)[0].double().numpy()
        elsewhere = np.abs(values) if outline is None or outline.all() else np.abs(values[~outline])
        values = values / robust_maximum(elsewhere)
        background(axes, picture, name, outline, fade=True)
        size = np.clip(np.abs(values), 0, 1)
        norm = Normalize(-1, 1)
        drawn = axes.imshow(values, cmap=EFFECTS, norm=norm, alpha=0.95 * np.sqrt(size), interpolation="nearest")
        forwards, seconds = costs.loc[name]
        counted = "" if np.isnan(forwards) else f"{forwards:.0f} forwards, "
        axes.set_xlabel(f"{counted}{seconds:.1f} s", fontsize=9)
    for axes in panels.flat[1 + len(names) :]:
        axes.set_visible(False)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, shrink=0.6, extend="both")
        bar.set_label(f"attribution / the method's largest outside the RoI\n(red {above}, blue {below})")
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
    return literal(figure)
