"""The picture of a comparison of attribution methods."""

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.evaluation.comparison import CONTROL, Comparison
from captum_causalseg.visualization.pictures import (
    EFFECTS,
    PICTURE,
    background,
    first,
    grayscale,
    literal,
    plane,
    robust_maximum,
    side_by_side,
)

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
) -> Figure:
    """The maps of several methods side by side, red supports and blue harms, each relative to its own largest value.

    Methods have units of their own (Dice, logits, none at all): what can be compared is where and with which sign, so every map is
    divided by the 99.5th percentile of its magnitudes outside the region of interest (some methods replace that region itself,
    others leave it alone). Its cost is written below each map. The random control is left out.

    Args:
        comparison: what :func:`captum_causalseg.compare` returned; a volume is shown in the slice of its last axis that holds most
            of the RoI.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.
        channel: which channel of the image is drawn, and whose part of the maps; by default maps are added up over the channels.
        words: what positive and negative values do; for a score without better and worse, ``("raises", "lowers")``.

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
    roi = None if comparison.roi is None else comparison.roi[example]
    image = comparison.image[example].float()
    if channel is not None:
        integer(0, len(image) - 1)("channel", channel)
    picture = grayscale(plane(image, roi), channel)
    outline = None if roi is None else plane(roi[None], roi)[0].numpy()
    costs = comparison.table.groupby("method")[["forwards", "seconds"]].first()
    names = [name for name in comparison.attributions if name != CONTROL]
    figure, panels = side_by_side(1 + len(names), columns, picture.shape[:2], title=title)
    background(panels[0], picture, "Image and region of interest", outline=outline, fade=False)
    drawn = None
    for axes, name in zip(panels[1:], names):
        maps = first(comparison.attributions[name])[example]
        found = maps.sum(0, keepdim=True) if channel is None or len(maps) == 1 else maps[channel, None]
        values = plane(found, roi)[0].double().numpy()
        elsewhere = np.abs(values) if outline is None or outline.all() else np.abs(values[~outline])
        values = values / robust_maximum(elsewhere)
        background(axes, picture, name, outline=outline, fade=True)
        size = np.clip(np.abs(values), 0, 1)
        norm = Normalize(-1, 1)
        drawn = axes.imshow(values, cmap=EFFECTS, norm=norm, alpha=0.95 * np.sqrt(size), interpolation="nearest")
        forwards, seconds = costs.loc[name]
        counted = "" if np.isnan(forwards) else f"{forwards:.0f} forwards, "
        axes.set_xlabel(f"{counted}{seconds:.1f} s", fontsize=9)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, shrink=0.6, extend="both")
        bar.set_label(f"attribution / the method's largest outside the RoI\n(red {above}, blue {below})")
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
    return literal(figure)
