"""The table of metrics by name, open to the user's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from captum_causalseg._checks import ANY, BOOLEAN, FUNCTION, NONE, TEXT, check_all, checked, instance, one_of, sequence
from captum_causalseg.metrics.objects import best_dice, boundary_alignment, detection, soft_best_dice, uniformity
from captum_causalseg.metrics.overlap import dice, iou
from captum_causalseg.metrics.probability import brier, negated_cross_entropy
from captum_causalseg.metrics.surfaces import average_surface_distance, hausdorff_95, surface_dice
from captum_causalseg.metrics.volume import inside_mean, inside_sum, relative_volume, volumetric_similarity

__all__ = ["METRICS", "Domain", "Metric", "register"]


Domain = Literal["labels", "probabilities", "logits", "log_odds"]


@dataclass(frozen=True)
class Metric:
    """A named score and what it wants to be given.

    Args:
        name: its name in ``SegmentationTarget(metric=...)``.
        function: ``(prediction, reference, roi, **options) -> (N, C, R)``; see :mod:`captum_causalseg.metrics`.
        domain: what ``prediction`` holds: ``"labels"`` (hard, 0 or 1), ``"probabilities"``, ``"logits"`` or ``"log_odds"``.
        needs_reference: whether a reference segmentation is compared with.
        surrogate: name of the differentiable metric that stands in where gradients are wanted.
        options: which of ``empty_score`` (float), ``exclusive`` (bool: the classes exclude each other) and ``instances`` (bool: the channels
            are objects in no order, and those of the reference are its objects) it is passed.
        inside_roi: whether nothing outside the RoI has a part in it, so that it may be computed from a part of the image.
        larger_is_better: whether a larger score is a better segmentation. Sums, means and volumes have no better: their effects
            raise or lower, where others support or harm.
        limits: the least and the largest value that the score can have.

    Example:
        >>> from captum_causalseg import metrics
        >>> metric = metrics.METRICS["dice"]
        >>> metric.domain, metric.surrogate, metric.needs_reference, metric.larger_is_better
        ('labels', 'soft_dice', True, True)
    """

    name: str
    function: Callable[..., Tensor]
    domain: Domain
    needs_reference: bool
    surrogate: str
    options: frozenset[str] = field(default_factory=frozenset)
    inside_roi: bool = False
    larger_is_better: bool = True
    limits: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        check_all(
            vars(self),
            name=TEXT,
            function=FUNCTION,
            domain=one_of(*get_args(Domain)),
            needs_reference=BOOLEAN,
            surrogate=TEXT,
            options=instance(frozenset),
            inside_roi=BOOLEAN,
            larger_is_better=BOOLEAN,
            limits=sequence(ANY, length=2, expected="the least and the largest value"),
        )


METRICS: dict[str, Metric] = {}


@checked(surrogate=NONE | TEXT)
def register(
    name: str,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    domain: Domain = "probabilities",
    needs_reference: bool = True,
    surrogate: str | None = None,
    inside_roi: bool = False,
    larger_is_better: bool = True,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Add your own metric to the table under ``name``.

    Args:
        name: the name to use in ``SegmentationTarget(metric=name)``; it must not be taken.
        function: ``(prediction, reference, roi) -> (N, C, R)``.
        domain: what ``prediction`` should hold.
        needs_reference: whether a reference is needed.
        surrogate: the differentiable twin; by default the metric itself.
        inside_roi: whether the score depends on nothing outside the RoI. If so, parts of the image that cannot reach the RoI are
            left out of the computation.
        larger_is_better: ``False`` if there is no better or worse: reports then say "raises" instead of "supports".
        limits: the least and the largest value that the score can have, if it has any: reports say where intervals reach beyond.

    Example:
        >>> from captum_causalseg import metrics
        >>> def coverage(prediction, reference, roi):
        ...     return metrics.sum_inside(prediction, roi) / roi.flatten(2).sum(-1)[:, None]
        >>> metrics.register("coverage", coverage, needs_reference=False, inside_roi=True, larger_is_better=False)
        >>> metrics.METRICS.pop("coverage").surrogate  # on probabilities it has a gradient of its own
        'coverage'
    """
    twin = name if surrogate is None else surrogate
    metric = Metric(
        name=name,
        function=function,
        domain=domain,
        needs_reference=needs_reference,
        surrogate=twin,
        inside_roi=inside_roi,
        larger_is_better=larger_is_better,
        limits=limits,
    )
    if name in METRICS:
        raise ValueError(f"name: a metric called {name!r} exists already")
    METRICS[name] = metric


def _add(
    name: str,
    function: Callable[..., Tensor],
    domain: Domain,
    *,
    twin: str,
    options: Sequence[str] = (),
    reference: bool = True,
    better: bool = True,
    limits: tuple[float, float] = (0.0, 1.0),
) -> None:
    METRICS[name] = Metric(
        name=name,
        function=function,
        domain=domain,
        needs_reference=reference,
        surrogate=twin,
        options=frozenset(options),
        inside_roi=True,
        larger_is_better=better,
        limits=limits,
    )


_FREE, _FROM_0, _TO_0 = (-math.inf, math.inf), (0.0, math.inf), (-math.inf, 0.0)
_add("dice", dice, "labels", twin="soft_dice", options=["empty_score"])
_add("soft_dice", dice, "probabilities", twin="soft_dice", options=["empty_score"])
_add("iou", iou, "labels", twin="soft_iou", options=["empty_score"])
_add("soft_iou", iou, "probabilities", twin="soft_iou", options=["empty_score"])
# Outlines and components have no smooth twin of their own; soft Dice moves with them and has gradients.
_add("surface_dice", surface_dice, "labels", twin="soft_dice", options=["empty_score"])
_add("average_surface_distance", average_surface_distance, "labels", twin="soft_dice", limits=_TO_0)
_add("hausdorff_95", hausdorff_95, "labels", twin="soft_dice", limits=_TO_0)
_add("detection", detection, "labels", twin="soft_dice", options=["empty_score"])
_add("best_dice", best_dice, "labels", twin="soft_best_dice", options=["empty_score", "instances"])
_add("soft_best_dice", soft_best_dice, "probabilities", twin="soft_best_dice", options=["empty_score", "instances"])
_add("uniformity", uniformity, "labels", twin="soft_dice", options=["empty_score"])
_add("logit_sum", inside_sum, "logits", twin="logit_sum", reference=False, better=False, limits=_FREE)
_add("logit_mean", inside_mean, "logits", twin="logit_mean", reference=False, better=False, limits=_FREE)
_add("probability_mean", inside_mean, "probabilities", twin="probability_mean", reference=False, better=False)
_add("cross_entropy", negated_cross_entropy, "log_odds", twin="cross_entropy", options=["exclusive"], limits=_TO_0)
_add("brier", brier, "probabilities", twin="brier", limits=(-1.0, 0.0))
_add("volume", inside_sum, "labels", twin="soft_volume", reference=False, better=False, limits=_FROM_0)
_add("soft_volume", inside_sum, "probabilities", twin="soft_volume", reference=False, better=False, limits=_FROM_0)
_add("relative_volume", relative_volume, "labels", twin="soft_relative_volume", better=False, limits=_FROM_0)
_add("soft_relative_volume", relative_volume, "probabilities", twin="soft_relative_volume", better=False, limits=_FROM_0)
_add("volumetric_similarity", volumetric_similarity, "labels", twin="soft_volumetric_similarity", options=["empty_score"])
_add(
    "soft_volumetric_similarity",
    volumetric_similarity,
    "probabilities",
    twin="soft_volumetric_similarity",
    options=["empty_score"],
)
_add("boundary_alignment", boundary_alignment, "labels", twin="soft_boundary_alignment", options=["empty_score"])
_add("soft_boundary_alignment", boundary_alignment, "probabilities", twin="soft_boundary_alignment", options=["empty_score"])
