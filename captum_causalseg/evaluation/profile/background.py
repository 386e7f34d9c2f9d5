"""What replacing any far place does: the level that effects stand out from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, array_of, checked, instance, integer
from captum_causalseg.evaluation.unit_space import DISTANCES, Array, Metric, Ruler, check_example, unit_distances, unit_labels
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["FAR_SHARE", "BackgroundEffect", "background_effect", "of_units"]

FAR_SHARE = 0.25
# The quartiles of fewer units say nothing.
_FEWEST = 8


@dataclass(frozen=True)
class BackgroundEffect:
    """The effects of the units that lie farthest from the region of interest, in the score's own units.

    ``print`` shows it in words.

    Attributes:
        effect: their median.
        lower: a quarter of them lie below, ...
        upper: ... and a quarter above: how they differ from place to place, the scatter of the estimates included.
        n_units: how many there are.
        distance: from which distance on they lie.

    Example:
        >>> from captum_causalseg.evaluation import BackgroundEffect
        >>> print(BackgroundEffect(effect=-0.012, lower=-0.02, upper=0.001, n_units=40, distance=96.0))  # doctest: +ELLIPSIS
        background effect -0.012: the median of the 40 units farthest from the region of interest (half of them from -0.02 ...
    """

    effect: float
    lower: float
    upper: float
    n_units: int
    distance: float

    def __str__(self) -> str:
        return (
            f"background effect {self.effect:+.2g}: the median of the {self.n_units} units farthest from the region of interest "
            f"(half of them from {self.lower:+.2g} to {self.upper:+.2g})"
        )


@checked(DISTANCES, statistics=instance(TreatmentEffectStatistics), roi=array_of("real"), example=integer(), share=FRACTION)
def background_effect(
    statistics: TreatmentEffectStatistics,
    roi: Array,
    target: TargetType = None,
    *,
    example: int = 0,
    share: float = FAR_SHARE,
    spacing: float | Sequence[float] | None = None,
    metric: Metric = "chebyshev",
) -> BackgroundEffect | None:
    """What replacing any far place does to the score: a line to compare the effects of near places with.

    Where a network normalizes over the whole image (instance, group and layer norm do), every place reaches the region of interest
    (RoI) through the mean and the variance, whatever it shows. Effects of that size say nothing of a place in particular. Units
    far from the RoI, most of them air or other tissue, show how large they are: this is the median effect of the farthest quarter
    of the units that were intervened on, those at the same distance included. Of screened units the mean of their few draws counts.
    Where units are known not to reach the RoI at all, far places do nothing, and the farthest of the others are neighbors of the RoI
    whose effects are their own: there is no background then.

    Args:
        statistics: what ``attribute(..., return_statistics=True)`` returned. Of several inputs the first counts.
        roi: boolean mask ``(*spatial)``, the RoI whose score ``target`` picks.
        target: which output, as in ``attribute``; needed if there are several.
        example: which example of the batch.
        share: of the units that count as far, in (0, 1).
        spacing: edge of a pixel, one number or one per axis; the distance is in its unit. 1 by default.
        metric: ``"chebyshev"``, ``"euclidean"`` or ``"cityblock"``.

    Returns:
        A :class:`BackgroundEffect`; ``None`` where some units cannot reach the RoI, where fewer than 8 units are far, or where none
        is farther than the others.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.evaluation.profile import background_effect
        >>> model = torch.nn.Sequential(torch.nn.InstanceNorm2d(1), torch.nn.Conv2d(1, 2, 3, padding=1))
        >>> image, roi = torch.rand(1, 1, 32, 32), regions.box((32, 32), start=12, size=8)
        >>> image[..., 24:, :] = 0  # air
        >>> target = SegmentationTarget.from_prediction(model, image, roi=roi, metric="soft_dice")
        >>> _, statistics = AverageTreatmentEffect(target).attribute(
        ...     image, PatchBank(torch.rand(9, 1, 32, 32)), 1, block_size=4, n_draws=9, return_statistics=True
        ... )
        >>> background = background_effect(statistics, roi, target=1)
        >>> background.n_units, background.distance, background.effect != 0
        (28, 9.0, True)
    """
    row = check_example(statistics, example)
    ids, distance = unit_distances(unit_labels(statistics, row), roi, Ruler(spacing=spacing, metric=metric))
    chosen = statistics.of_output(target)
    place = np.searchsorted(statistics.unit_ids.numpy(), ids)
    n_outside = int((chosen.status[row].numpy()[place] == Status.OUTSIDE_SUPPORT).sum())
    tested = chosen.hypotheses[row].numpy()[place]
    return of_units(chosen.effect[row].numpy()[place][tested], distance[tested], n_outside, share=share)


def of_units(effect: np.ndarray, distance: np.ndarray, n_outside: int, share: float = FAR_SHARE) -> BackgroundEffect | None:
    """Of units ``(U,)`` that can reach the region, with their distances from it.

    ``None`` where there are others that cannot (so many), where few are far, or none is farther than the others.
    """
    if n_outside:
        return None
    known = np.isfinite(effect) & np.isfinite(distance)
    effect, distance = effect[known], distance[known]
    if len(effect) < _FEWEST:
        return None
    begin = float(np.quantile(distance, 1 - share, method="lower"))
    far = effect[distance >= begin]
    if begin <= distance.min() or len(far) < _FEWEST:
        return None
    lower, middle, upper = np.quantile(far, [0.25, 0.5, 0.75])
    return BackgroundEffect(effect=float(middle), lower=float(lower), upper=float(upper), n_units=len(far), distance=begin)
