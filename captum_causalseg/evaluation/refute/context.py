"""What refuters have in common: the estimate that they try, the means to repeat it, and words for what they find."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import instance
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect
from captum_causalseg.evaluation.refute.report import Refutation
from captum_causalseg.interventions.rounding import relative_tolerance
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = [
    "CONTEXT",
    "FEWEST",
    "Explainer",
    "RefutationContext",
    "Refuter",
    "attributed",
    "largest_unit_name",
    "rank_correlation",
    "resolution",
    "unit_name",
]

Explainer = AverageTreatmentEffect | LayerAverageTreatmentEffect

# Fewer units may agree by chance.
FEWEST = 5


@dataclass(frozen=True)
class RefutationContext:
    """What a refuter is given: the estimate, and the means to repeat it with something changed.

    Args:
        explainer: what was called.
        inputs: as they were given.
        baselines: what units are replaced by (``layer_baselines`` of a layer's explainer), the explainer's default resolved.
        target: which output is tested.
        alpha: error rate of the tests.
        seed: of the original estimate.
        arguments: the other arguments of ``attribute``.
        statistics: the original estimate of the output that is tested.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> from captum_causalseg.evaluation.refute import RefutationContext, other_seed
        >>> _, stats = ate.attribute(case.images, case.donors, n_draws=8, return_statistics=True)
        >>> context = RefutationContext(ate, case.images, case.donors, None, 0.05, 0, {"n_draws": 8}, stats)
        >>> context.estimate(baselines=0.7).effect.abs().nan_to_num().max().item()  # as bright as the blocks: nothing changes
        0.0
        >>> other_seed(context).name
        'seed'
    """

    explainer: Explainer
    inputs: Tensor | tuple[Tensor, ...]
    baselines: Any
    target: TargetType
    alpha: float
    seed: int
    arguments: Mapping[str, Any]
    statistics: TreatmentEffectStatistics

    def estimate(self, **changed: Any) -> TreatmentEffectStatistics:
        """The effects on the output that is tested, estimated again.

        Args:
            **changed: arguments of ``attribute`` that differ from those of the original estimate; also ``explainer``, and
                ``baselines``, whatever their name is there.
        """
        explainer = changed.pop("explainer", self.explainer)
        changed = {"seed": self.seed, "baselines": self.baselines} | changed
        return attributed(explainer, self.inputs, self.target, arguments={**self.arguments, **changed}).of_output(self.target)


Refuter = Callable[[RefutationContext], Refutation]
CONTEXT = instance(RefutationContext)


def attributed(
    explainer: Explainer, inputs: Tensor | tuple[Tensor, ...], target: TargetType, arguments: Mapping[str, Any]
) -> TreatmentEffectStatistics:
    """The statistics of a call of ``attribute`` with these arguments, ``baselines`` among them whatever their name is there."""
    given = dict(arguments)
    if isinstance(explainer, LayerAverageTreatmentEffect):
        given["layer_baselines"] = given.pop("baselines")
    found: TreatmentEffectStatistics = explainer.attribute(inputs, target=target, return_statistics=True, **given)[1]
    return found


def resolution(context: RefutationContext) -> float:
    """What share of a score may be rounding."""
    return relative_tolerance(context.inputs if isinstance(context.inputs, tuple) else (context.inputs,))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, NaN where there is none."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(scipy_stats.spearmanr(first, second).statistic)


def largest_unit_name(statistics: TreatmentEffectStatistics, values: np.ndarray) -> str:
    """The name of the unit with the largest of values ``(N, U)``."""
    return unit_name(statistics, *np.unravel_index(int(values.argmax()), values.shape))


def unit_name(statistics: TreatmentEffectStatistics, example: Any, unit: Any) -> str:
    """How messages call a unit of an example, given by its position."""
    return f"unit {int(statistics.unit_ids[unit])} of example {int(example)}"
