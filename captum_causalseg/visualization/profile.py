"""The picture of a profile of perception."""

from matplotlib.figure import Figure

from captum_causalseg._checks import checked, instance
from captum_causalseg.evaluation.profile import PerceptionProfile
from captum_causalseg.visualization.pictures import PICTURE, literal
from captum_causalseg.visualization.profile_panels import histogram, mass_by_distance, named_roles, pie, ratio

__all__ = ["plot_profile"]


@checked(PICTURE, profile=instance(PerceptionProfile))
def plot_profile(
    profile: PerceptionProfile,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
    *,
    columns: int | None = None,
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
        score_name: the name of the score, with its unit.
        words: what positive and negative effects do; for a score without better and worse, ``("raises", "lowers")``.
        columns: 1 for a narrow page, with the panels below each other.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, perception_profile
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
        >>> from captum_causalseg.visualization import plot_profile
        >>> figure = plot_profile(perception_profile(stats, case.roi), score_name="Dice")
        >>> [axes.get_title().splitlines()[0] for axes in figure.axes[:2]]
        ['11 units', '3 effects other than 0']
    """
    if columns == 1:
        figure = Figure(figsize=(5.2, 13), layout="constrained")
        panels = figure.subplot_mosaic([["pie"], ["ratio"], ["histogram"], ["distance"]], height_ratios=[4, 1, 4, 4])
    else:
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
    histogram(panels["histogram"], profile, score_name, names=names)
    mass_by_distance(panels["distance"], profile, score_name, names=names)
    return literal(figure)
