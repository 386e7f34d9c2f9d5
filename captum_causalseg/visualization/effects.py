"""Pictures of treatment effects on an image or a volume."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import TEXT, checked, integer, one_of, sequence, shown
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.visualization.effect_panels import PANELS, Slices, Style, effects_figure, volume_figure
from captum_causalseg.visualization.pictures import PICTURE, literal, palette_of
from captum_causalseg.visualization.planes import About, shown_outputs, view_of

__all__ = ["plot_effects", "plot_volume"]


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
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
    affine: Tensor | np.ndarray | None = None,
    zoom: bool | Literal["auto"] = "auto",
    opacity: Literal["effect", "significance"] = "effect",
    columns: int | None = None,
) -> Figure:
    """The image with its segmentation, the effect of every unit on the RoI's score, and its standard error; for images and volumes.

    Effects are drawn on a diverging scale centered on 0 (red supports, blue harms), the more opaque the larger. The scale ends at the
    99.5th percentile of ``|effect|``. The predicted segmentation has a thin line in all panels and the reference a broken one; on the
    image, what is missed and what is segmented too much are hatched as well. A legend says what the marks mean. If everything reaches the RoI, for example through normalization over the whole image, a line on
    the scale shows the median effect of the farthest units, the background to compare with, and a gray band where half of them lie
    (:func:`~captum_causalseg.evaluation.profile.background_effect`; needs ``roi``). Units that were not intervened on are hatched; those that cannot reach the RoI lie beyond a
    line of dashes and dots. Where what can reach it is a small part of the image, that part is enlarged, and a small picture in a corner
    shows where it lies. With ``controls="edge"`` in ``attribute``, effects that may be nothing but the joint of the donors
    (:meth:`~captum_causalseg.TreatmentEffectStatistics.edge_suspect`) are crosshatched.

    A volume has a row for each of the three planes through the middle of the RoI (dotted lines show where they cross); a thin one, whose
    planes across its slices would be strips, has slices in their place. The three strongest units are outlined and numbered; the numbers
    of those that lie before or behind a plane stand in parentheses. Where an affine is known, planes are shown in radiological
    convention (the patient's left on the right), with letters for the directions and a bar of millimeters.
    :func:`plot_volume` shows more slices of one axis. Where the statistics are of several RoIs and ``target`` leaves
    open which, each RoI has a row (a volume's has three), all on the same scales.

    Args:
        image: the explained inputs ``(N, C, *spatial)`` with 2 or 3 spatial axes, or the tuple of them. Another image of the same
            ``N`` and spatial shape may take its place, such as the image before normalization.
        statistics: what ``attribute(..., return_statistics=True)`` returned for them.
        roi: boolean mask, outlined in green: ``(*spatial)``; ``(R, *spatial)`` for statistics of ``R`` RoIs; or with the batch in
            front, ``(N, R, *spatial)``, as ``SegmentationTarget.roi_masks`` returns them.
        target: which output, as in ``attribute``: a class, or a pair ``(class, roi)``.
        example: which example of the batch.
        title: above the panels.
        score_name: the name of the score, with its unit.
        panels: what to show, in this order: ``"image"``, ``"effect"``, ``"standard_error"``, ``"lower"`` and ``"upper"`` (ends of the
            95 % interval, on the scale of the effect), ``"significant"`` (the effect, dotted where it does not differ from 0 at a
            false discovery rate of 5 %), ``"p_value"`` (two-sided, not corrected) and ``"n_draws"``.
        palette: ``"accessible"``, whose two ends are distinct with any kind of color blindness, or ``"paper"``: the pure red, blue,
            and green of arXiv 2602.20511.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.
        spacing: edge of a pixel, one number or one per spatial axis, so that pixels that are not square are drawn as they are. Taken
            from the affine by default; else 1.
        channel: which channel to draw in gray, and whose units to show where channels have their own. By default three channels
            are drawn as RGB, of other images the first.
        input_index: which of several inputs.
        segmentation: what the model predicted, outlined with a thin line: a boolean mask of the explained class ``(*spatial)`` or
            ``(N, *spatial)``; one mask per class ``(N, C, *spatial)``, as :meth:`~captum_causalseg.SegmentationTarget.segmentations`
            returns it together with the reference; or a map of labels (integers), of which ``target`` picks the class.
        reference: the segmentation that it is compared with, in the same forms, outlined with a broken line.
        affine: ``(D + 1, D + 1)`` from voxels to millimeters, the axes of the world running toward the right, the front and the
            head (RAS, as in NIfTI). That of a ``MetaTensor`` by default. Directions need nibabel (``captum-causalseg[io]``).
        zoom: whether to show only the part of the image that can reach the RoI, and a margin; ``"auto"`` for where that part is
            much smaller than the image.
        opacity: what the opacity of an effect follows: its size, or how sure it is, as in neuroimaging: effects that differ from
            0 at a false discovery rate of 5 % are opaque and outlined, the others pale with ``|effect| / standard_error``.
        columns: panels side by side, the others below them; 1 for a narrow column of text. By default as many as there are, or half of
            more than four panels of an image.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError: ``image``, ``roi`` or ``statistics`` is of another type.
        ValueError: a shape or number does not fit the statistics, ``target`` picks no output, or a name is not known.
        ImportError: ``affine`` was given for a volume, and nibabel is not installed.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.visualization import plot_effects
        >>> image, roi = torch.rand(1, 1, 16, 16), regions.box((16, 16), start=4, size=4)
        >>> target = SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 5, padding=2), image, roi=roi)
        >>> _, statistics = AverageTreatmentEffect(target).attribute(
        ...     image, PatchBank(torch.rand(5, 1, 16, 16)), target=1, block_size=4, n_draws=4, return_statistics=True
        ... )
        >>> prediction, reference = target.segmentations(image)
        >>> figure = plot_effects(
        ...     image, statistics, roi, target=1, panels=("image", "significant"), segmentation=prediction, reference=reference
        ... )
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['Image and segmentation', 'Significant effects']
    """
    known = ("image", *PANELS)
    if not all(name in known for name in panels):
        raise ValueError(f"panels: expected some of {known}, got {shown(panels)}")
    about = About(segmentation=segmentation, reference=reference, spacing=spacing, affine=affine)
    view = view_of(image, statistics, roi, example=example, input_index=input_index, channel=channel, about=about)
    figure = effects_figure(
        statistics,
        view,
        outputs=shown_outputs(statistics, target, view),
        panels=tuple(panels),
        columns=columns,
        style=Style(
            palette=palette_of(palette),
            channel=channel,
            title=title,
            score_name=score_name,
            words=words,
            opacity=opacity,
            zoom=zoom,
        ),
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
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
    affine: Tensor | np.ndarray | None = None,
    zoom: bool | Literal["auto"] = "auto",
    opacity: Literal["effect", "significance"] = "effect",
) -> Figure:
    """Slices of a volume side by side, spread evenly over those that have effects.

    The slice through the middle of the unit with the largest ``|effect|`` is always among them, in a thick frame. Where all effects
    are 0, the slices are those of the RoI. Rows and columns are the two other axes in the order of the array, without flips, or, where
    an affine is known, as a radiologist looks at them. Marks are those of :func:`plot_effects`.

    Args:
        image: the explained inputs ``(N, C, *spatial)`` with 3 spatial axes, or the tuple of them.
        statistics: what ``attribute(..., return_statistics=True)`` returned for them.
        roi: boolean mask, outlined in green; shapes as in :func:`plot_effects`.
        target: which output, as in ``attribute``; of statistics of several RoIs a pair ``(class, roi)``.
        axis: along which spatial axis to cut, from 0 to 2, or from -3 to -1.
        n_slices: the most slices to draw.
        columns: slices in a row; by default about as many as rows.
        example: which example of the batch.
        title: above the slices.
        score_name: the name of the score, with its unit.
        panel: what to show, as in :func:`plot_effects`.
        palette: ``"accessible"`` or ``"paper"``, as in :func:`plot_effects`.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.
        spacing: edge of a voxel, one number or one per spatial axis; taken from the affine by default, else 1.
        channel: which channel to draw in gray, as in :func:`plot_effects`.
        input_index: which of several inputs.
        segmentation: as in :func:`plot_effects`, like the following.
        reference: the segmentation that it is compared with.
        affine: from voxels to millimeters.
        zoom: whether to show only the part that can reach the RoI.
        opacity: what the opacity of an effect follows.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

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
        >>> figure.axes[0].get_title().startswith("slice")
        True
    """
    about = About(segmentation=segmentation, reference=reference, spacing=spacing, affine=affine)
    view = view_of(image, statistics, roi, example=example, input_index=input_index, channel=channel, about=about)
    if view.image.ndim != 4:
        raise ValueError(f"image: expected a volume (N, C, *spatial) with 3 spatial axes, got {view.image.ndim - 1}")
    if not -3 <= axis < 3:
        raise ValueError(f"axis: expected an integer from -3 to 2, got {shown(axis)}")
    outputs = shown_outputs(statistics, target, view)
    if len(outputs) > 1:
        raise ValueError(f"target: it does not say which of {len(outputs)} regions of interest to draw; pass (class, roi)")
    figure = volume_figure(
        statistics,
        view,
        output=outputs[0],
        panel=panel,
        style=Style(
            palette=palette_of(palette),
            channel=channel,
            title=title,
            score_name=score_name,
            words=words,
            opacity=opacity,
            zoom=zoom,
        ),
        slices=Slices(axis % 3, n_slices, columns),
    )
    return literal(figure)
