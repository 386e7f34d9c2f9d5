"""The picture of a comparison of donors."""

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.evaluation.donor_comparison import DonorComparison
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.statistics.unit_places import UnitPlaces
from captum_causalseg.visualization.pictures import (
    EFFECTS,
    PICTURE,
    background,
    grayscale,
    literal,
    plane,
    robust_maximum,
    round_up,
    shade,
    side_by_side,
)

__all__ = ["plot_donors"]


@checked(PICTURE, comparison=instance(DonorComparison), columns=integer(1))
def plot_donors(
    comparison: DonorComparison,
    *,
    example: int = 0,
    columns: int = 3,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """The effects with every kind of donors side by side, on one scale; hatched where the sign changes significantly.

    Args:
        comparison: what :func:`captum_causalseg.compare_donors` returned; a volume is shown in the slice of its last axis that holds
            most of the RoI.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.
        score_name: what the effects are effects on.
        words: what effects above and below 0 do.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Example:
        >>> from captum_causalseg import Constant, compare_donors
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> from captum_causalseg.visualization import plot_donors
        >>> case = planted_case((32, 32), roi_size=8)
        >>> given = {"raw": case.donors, "zeros": Constant(0.0)}
        >>> figure = plot_donors(compare_donors(case.target(), case.images, given, block_size=8, n_draws=20))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['raw', 'zeros']
    """
    above, below = words
    integer(0, len(comparison.image) - 1)("example", example)
    roi = None if comparison.roi is None else comparison.roi[example]
    picture = grayscale(plane(comparison.image[example].float(), roi))
    outline = None if roi is None else plane(roi[None], roi)[0].numpy()
    names = list(comparison.statistics)
    painted = {
        name: _over_image(one, one.effect.nan_to_num(0.0), example, roi=roi) for name, one in comparison.statistics.items()
    }
    largest = round_up(robust_maximum(np.concatenate([np.abs(one).ravel() for one in painted.values()])))
    norm = TwoSlopeNorm(0, -largest, largest)
    figure, panels = side_by_side(len(names), columns, picture.shape[:2], title=title)
    drawn = None
    reference = names[0]
    for axes, name in zip(panels, names):
        values = painted[name]
        background(axes, picture, name, outline=outline, fade=True)
        size = np.clip(np.abs(values) / largest, 0, 1)
        drawn = axes.imshow(values, cmap=EFFECTS, norm=norm, alpha=0.95 * np.sqrt(size), interpolation="nearest")
        statistics = comparison.statistics[name]
        if name == reference:
            count = int(statistics.significant(comparison.alpha)[example].sum())
            axes.set_xlabel(f"{count} unit{'s' * (count != 1)} with a significant effect", fontsize=9)
            continue
        turned = comparison.sign_differs(reference, name)
        shade(axes, _over_image(statistics, turned, example, roi=roi) > 0, hatch="////", color="0.2")
        count = int(turned[example].sum())
        said = "changes its" if count == 1 else "change their"
        axes.set_xlabel(f"{count} unit{'s' * (count != 1)} {said} sign against {reference}", fontsize=9)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, shrink=0.7, extend="both")
        bar.set_label(f"effect on the {score_name}\n(red {above}, blue {below};\nhatched: another sign, significantly)")
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
    return literal(figure)


def _over_image(statistics: TreatmentEffectStatistics, values: Tensor, example: int, roi: Tensor | None) -> np.ndarray:
    """Units' values ``(N, U)`` over the image that is shown, ``(H, W)``; the mean over channels with units of their own."""
    shapes = statistics.input_shapes
    slot = next(slot for slot, shape in enumerate(shapes) if len(shape) > 2)
    painted = UnitPlaces(statistics.unit_ids, statistics.feature_mask).painted(slot, values.double())[example]
    whole = painted.mean(0, keepdim=True).expand(1, *shapes[slot][2:])
    found: np.ndarray = plane(whole, roi)[0].numpy()
    return found
