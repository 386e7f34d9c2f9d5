"""The picture of a comparison of donors."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.evaluation.donor_comparison import DonorComparison
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.statistics.unit_places import UnitPlaces
from captum_causalseg.visualization.marks import draw_area
from captum_causalseg.visualization.pictures import PICTURE, literal, robust_maximum, round_up, scale_labels
from captum_causalseg.visualization.planes import About
from captum_causalseg.visualization.scene import lay_over, panel_sizes, scene_and_planes
from captum_causalseg.visualization.sheet import Around, Scale, grid

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
    spacing: float | Sequence[float] | None = None,
    affine: Tensor | np.ndarray | None = None,
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
) -> Figure:
    """The effects with every kind of donors side by side, on one scale; hatched where the sign changes significantly.

    A volume has a row for each of the three planes through the middle of the RoI.

    Args:
        comparison: what :func:`captum_causalseg.compare_donors` returned.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.
        score_name: what the effects are effects on.
        words: what effects above and below 0 do.
        spacing: edge of a pixel, one number or one per spatial axis; taken from the affine by default, else 1.
        affine: from voxels to millimeters, as in :func:`plot_effects`, like the following; that of the compared image by default.
        segmentation: what the model predicted of the class: a boolean mask ``(*spatial)``, or ``(N, *spatial)``.
        reference: the segmentation that it is compared with.

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
    roi = None if comparison.roi is None else comparison.roi[example].cpu().numpy()
    about = About(segmentation=segmentation, reference=reference, spacing=spacing, affine=affine)
    scene, planes = scene_and_planes(comparison.image, roi, about, example=example)
    names = list(comparison.statistics)
    painted = {name: _over_image(one, one.effect.nan_to_num(0.0), example) for name, one in comparison.statistics.items()}
    largest = round_up(robust_maximum(np.concatenate([np.abs(one).ravel() for one in painted.values()])))
    kept = names[0]
    turned = {
        name: _over_image(comparison.statistics[name], comparison.sign_differs(kept, name), example) > 0 for name in names[1:]
    }
    label = f"effect on the {score_name}\n{below} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {above}"
    places = [-largest, 0.0, largest]
    scale = Scale(label, scale_labels(places))
    drawn_marks = {**scene.marks(told=False), "turned": any(one.any() for one in turned.values())}
    sheet = grid(
        names,
        panel_sizes(planes, 2.6),
        [None] * (len(names) - 1) + [scale],
        row_labels=[plane.name for plane in planes],
        fold=columns,
        around=Around(title=title, legend=scene.handles(drawn_marks), notes=planes[0].geometry.notes(), lines_below=2),
    )
    for number, (name, column) in enumerate(zip(names, sheet.pictures)):
        for axes, plane in zip(column, planes):
            scene.begin(axes, plane, name if plane is planes[0] else "", faded=True)
            drawn = lay_over(axes, painted[name], plane, largest=largest)
            if name in turned:
                draw_area(axes, plane.cut(turned[name]), "turned")
            scene.finish(axes, plane)
            if number % columns == 0:
                axes.set_ylabel(plane.name, fontsize=10)
            if number == 0:
                scene.frame(axes, plane)
        column[-1].set_xlabel(_counted(comparison, name, kept, example=example), fontsize=9)
    sheet.draw_bar(len(names) - 1, drawn, scale, places=places, extend="both")
    return literal(sheet.figure)


def _counted(comparison: DonorComparison, name: str, kept: str, *, example: int) -> str:
    """Below a map: how many units have an effect, or another sign than with the first kind."""
    if name == kept:
        count = int(comparison.statistics[name].significant(comparison.alpha)[example].sum())
        return f"{count} unit{'s' * (count != 1)} with a\nsignificant effect"
    count = int(comparison.sign_differs(kept, name)[example].sum())
    said = "changes its" if count == 1 else "change their"
    return f"{count} unit{'s' * (count != 1)} {said}\nsign against {kept}"


def _over_image(statistics: TreatmentEffectStatistics, values: Tensor, example: int) -> np.ndarray:
    """Units' values ``(N, U)`` over the image, ``(*spatial)``; the mean over channels with units of their own."""
    shapes = statistics.input_shapes
    slot = next(slot for slot, shape in enumerate(shapes) if len(shape) > 2)
    painted = UnitPlaces(statistics.unit_ids, statistics.feature_mask).painted(slot, values.double())[example]
    found: np.ndarray = painted.mean(0).expand(shapes[slot][2:]).numpy()
    return found
