"""What every unit or region of an image does to every region of interest (RoI)."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from captum_causalseg._checks import FRACTION, NONE, array_of, checked, instance, integer, shown
from captum_causalseg.evaluation.unit_space import Array, check_example, integer_map, unit_labels
from captum_causalseg.statistics import Status, TreatmentEffectStatistics, adjust_p_values, intervals, is_hypothesis

__all__ = ["InfluenceMatrix", "influence_matrix"]


@dataclass(frozen=True, eq=False)
class InfluenceMatrix:
    """Effects of units or regions (rows) on RoIs (columns), in the score's own units; > 0 supports, < 0 harms.

    Attributes:
        effect: ``(rows, R)``; exactly 0 where the unit cannot reach that RoI through the model; NaN where there was no intervention
            because it touches it.
        standard_error: of the effects, likewise.
        significant: booleans, which effects differ from 0 after Benjamini and Hochberg over the rows of each column that can reach
            its RoI.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
        >>> from captum_causalseg.evaluation import influence_matrix
        >>> rois = torch.stack([regions.box((4, 12), (0, start), 4) for start in (0, 8)])  # left and right
        >>> target = SegmentationTarget(torch.nn.AvgPool2d(5, 1, 2), roi=rois, metric="logit_sum")
        >>> ate, image = AverageTreatmentEffect(target), torch.ones(1, 1, 4, 12)
        >>> _, stats = ate.attribute(image, 0.0, 0, block_size=4, exclude=None, n_draws=1, return_statistics=True)
        >>> matrix = influence_matrix(stats)
        >>> (matrix.effect > 0).to_numpy().tolist()  # of the three blocks, the middle one reaches both
        [[True, False], [True, True], [False, True]]
        >>> bool(matrix.significant.to_numpy()[1].all())
        True
    """

    effect: pd.DataFrame
    standard_error: pd.DataFrame
    significant: pd.DataFrame


@checked(
    statistics=instance(TreatmentEffectStatistics, expected="TreatmentEffectStatistics"),
    example=integer(),
    regions=NONE | array_of("integer", "(*spatial)", (1, math.inf)),
    alpha=FRACTION,
)
def influence_matrix(
    statistics: TreatmentEffectStatistics,
    target: int | None = None,
    *,
    example: int = 0,
    regions: Array | None = None,
    alpha: float = 0.05,
) -> InfluenceMatrix:
    """What every unit, or every region of the image, does to every RoI.

    Units that screening dropped enter with the mean and the standard error of their few draws, as in the statistics.

    Args:
        statistics: of a target with several RoIs.
        target: the class, if the target scores several.
        example: which example of the batch.
        regions: integers ``(*spatial)`` that name the region of each pixel. A unit belongs to the region where most of its pixels
            in the first input lie (the smaller number on a tie). A region's effect on an RoI is the mean effect of its units that
            can reach that RoI and were intervened on, each alone (not that of replacing the whole region at once): what else there
            is of the region does not count. Its standard error takes the units' errors as independent, because their draws are.
            By default the rows are the units.
        alpha: false discovery rate.

    Returns:
        An :class:`InfluenceMatrix`; NaN where every unit of the region touches the RoI.

    Raises:
        TypeError, ValueError: an argument is not as described, or the statistics are not of several RoIs.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
        >>> from captum_causalseg.evaluation.influence import influence_matrix
        >>> rois = torch.stack([regions.box((4, 12), (0, start), 4) for start in (0, 8)])
        >>> target = SegmentationTarget(torch.nn.AvgPool2d(5, 1, 2), roi=rois, reference=rois[0], metric="logit_sum")
        >>> _, statistics = AverageTreatmentEffect(target).attribute(
        ...     torch.ones(1, 1, 4, 12), baselines=0.0, target=0, block_size=4, return_statistics=True
        ... )
        >>> influence_matrix(statistics).effect.notna().values.tolist()
        [[False, True], [True, True], [True, False]]
    """
    if "roi" not in statistics.output_axes:
        raise ValueError(
            f"statistics: expected scores of several RoIs (an output axis 'roi'), got output axes {statistics.output_axes}; "
            "give SegmentationTarget a stack of RoIs"
        )
    row = check_example(statistics, example)
    effect, error, freedom, p_value = (
        _of_class(values[row].numpy(), statistics, target)
        for values in (statistics.effect, statistics.standard_error, statistics.degrees_of_freedom, statistics.p_values())
    )
    status = _of_class(statistics.status[row].numpy(), statistics, target)
    present = (status != Status.ABSENT).any(1)
    tested = is_hypothesis(status)
    ids, name = statistics.unit_ids.numpy(), "unit"
    if regions is not None:
        ids, name, (effect, error, p_value) = _grouped(
            statistics, row, regions=regions, effect=effect, error=error, freedom=freedom, tested=tested
        )
        present, tested = np.ones(len(ids), dtype=bool), np.ones(p_value.shape, dtype=bool)
    adjusted = [adjust_p_values(p_value[:, r], hypotheses=tested[:, r]) for r in range(p_value.shape[1])]
    frames = []
    for values in (effect, error, np.stack(adjusted, 1) <= alpha):
        columns = pd.RangeIndex(effect.shape[1], name="roi")
        frames.append(pd.DataFrame(values[present], index=pd.Index(ids[present], name=name), columns=columns))
    return InfluenceMatrix(*frames)


def _grouped(
    statistics: TreatmentEffectStatistics,
    row: int,
    regions: Array,
    effect: np.ndarray,
    error: np.ndarray,
    freedom: np.ndarray,
    tested: np.ndarray,
) -> tuple[np.ndarray, str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mean effects of the units of each region, their standard errors and p-values, ``(regions, R)``; p-values NaN of no tests."""
    labels = unit_labels(statistics, row)
    region_of_pixel = np.broadcast_to(integer_map("regions", regions, labels.shape[1:]), labels.shape)
    names, region = np.unique(region_of_pixel, return_inverse=True)
    ids, unit = np.unique(labels, return_inverse=True)
    pixels = np.zeros((len(ids), len(names)), dtype=np.int64)
    np.add.at(pixels, (unit.ravel(), region.ravel()), 1)
    member = np.zeros((len(names), len(statistics.unit_ids)), dtype=bool)
    member[pixels.argmax(1), np.searchsorted(statistics.unit_ids.numpy(), ids)] = True

    shape = (len(names), effect.shape[1])
    mean, spread, p_values = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for g, r in np.ndindex(shape):
        own = member[g] & tested[:, r]
        if not own.any():
            # What was not excluded is out of reach.
            if (member[g] & ~np.isnan(effect[:, r])).any():
                mean[g, r] = spread[g, r] = 0.0
            continue
        mean[g, r] = effect[own, r].mean()
        variance = error[own, r] ** 2
        spread[g, r] = math.sqrt(variance.sum()) / own.sum()
        if np.isinf(spread[g, r]):
            p_values[g, r] = 1.0
        else:
            degrees = intervals.satterthwaite(variance, freedom[own, r])
            p_values[g, r] = intervals.p_value(mean[g, r], spread[g, r], degrees)
    return names, "region", (mean, spread, p_values)


def _of_class(values: np.ndarray, statistics: TreatmentEffectStatistics, target: int | None) -> np.ndarray:
    """``(U, R)`` of ``(U, *output_shape)``."""
    if "class" not in statistics.output_axes:
        if target is not None:
            raise ValueError(f"target: the statistics have no classes to pick one of, expected None, got {shown(target)}")
        return values
    axis = statistics.output_axes.index("class")
    classes = statistics.output_shape[axis]
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < classes:
        raise ValueError(f"target: expected a class, an integer from 0 to {classes - 1}, got {shown(target)}")
    chosen: np.ndarray = values.take(target, axis=axis + 1)
    return chosen
