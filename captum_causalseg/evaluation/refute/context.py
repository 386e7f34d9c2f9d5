"""What refuters have in common: the estimate that they try, the means to repeat it, and words for what they find."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from torch import Tensor, nn

from captum_causalseg._captum import TargetType, format_additional_forward_args
from captum_causalseg._checks import instance
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.estimate import Intervention
from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect
from captum_causalseg.attr.layer_joint_treatment_effect import LayerJointTreatmentEffect
from captum_causalseg.evaluation.refute.report import Refutation
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target.rounding import relative_tolerance
from captum_causalseg.target.scorer import as_scorer

__all__ = [
    "CONTEXT",
    "FEWEST",
    "Explainer",
    "JointExplainer",
    "LayerExplainer",
    "RefutationContext",
    "Refuter",
    "as_reported",
    "attributed",
    "copied",
    "is_sampled",
    "largest_unit_name",
    "planned",
    "rank_correlation",
    "resolution",
    "settle",
    "unit_name",
]

LayerExplainer = LayerAverageTreatmentEffect | LayerJointTreatmentEffect
JointExplainer = JointTreatmentEffect | LayerJointTreatmentEffect
Explainer = AverageTreatmentEffect | JointTreatmentEffect | LayerExplainer

# Fewer units may agree by chance.
FEWEST = 5
# What an estimate spends forwards on that its plan does not need.
_NOT_PLANNED = ("interventions", "answered again", "observed again", "the same noise, no intervention", "further samples")


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
        untouched: the explainer of a copy of the model that was made before the estimate, and has answered nothing since; the
            explainer itself where there is none.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> from captum_causalseg.evaluation.refute import RefutationContext, other_seed
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> _, stats = ate.attribute(case.images, case.donors, n_draws=8, return_statistics=True)
        >>> context = RefutationContext(ate, case.images, case.donors, None, 0.05, 0, {"n_draws": 8}, stats)
        >>> context.estimate(baselines=0.7).effect.abs().nan_to_num().max().item()  # as bright as the blocks: nothing changes
        0.0
        >>> context.plan()[0].draw, other_seed(context).name
        (0, 'seed')
    """

    explainer: Explainer
    inputs: Tensor | tuple[Tensor, ...]
    baselines: Any
    target: TargetType
    alpha: float
    seed: int
    arguments: Mapping[str, Any]
    statistics: TreatmentEffectStatistics
    untouched: Explainer | None = None

    def estimate(self, **changed: Any) -> TreatmentEffectStatistics:
        """The effects on the output that is tested, estimated again.

        Args:
            **changed: arguments of ``attribute`` that differ from those of the original estimate; also ``explainer``, and
                ``baselines``, whatever their name is there.
        """
        explainer = changed.pop("explainer", self.explainer)
        changed = {"seed": self.seed, "baselines": self.baselines} | changed
        found = attributed(explainer, self.inputs, self.target, arguments={**self.arguments, **changed})
        return as_reported(found, self.target)

    def plan(self, **changed: Any) -> list[Intervention]:
        """The interventions of the original estimate, had no unit been screened out; arguments as of :meth:`estimate`.

        Without its statistics, every unit has as many: what is planned is judged, and half of it would say less.
        """
        changed = {"seed": self.seed, "baselines": self.baselines} | changed
        if changed.get("statistics") is None:
            changed["allocation"] = "equal"
        return planned(self.explainer, self.inputs, self.target, arguments={**self.arguments, **changed})

    @property
    def n_forwards_of_plan(self) -> int:
        """Images that go through the model to make a plan: what the original estimate spent besides interventions."""
        spent = self.statistics.settings.get("forwards", {})
        return sum(count for what, count in spent.items() if what not in (*_NOT_PLANNED, *self.statistics.controls))


Refuter = Callable[[RefutationContext], Refutation]
CONTEXT = instance(RefutationContext)


def attributed(
    explainer: Explainer, inputs: Tensor | tuple[Tensor, ...], target: TargetType, arguments: Mapping[str, Any]
) -> TreatmentEffectStatistics:
    """The statistics of a call of ``attribute`` with these arguments, ``baselines`` among them whatever their name is there."""
    given = dict(arguments)
    if isinstance(explainer, LayerExplainer):
        given["layer_baselines"] = given.pop("baselines")
    found: TreatmentEffectStatistics = explainer.attribute(inputs, target=target, return_statistics=True, **given)[1]
    return found


def as_reported(statistics: TreatmentEffectStatistics, target: TargetType) -> TreatmentEffectStatistics:
    """The statistics of one output, with the standard errors that were reported: those are tried, and not what they should be."""
    found = statistics.of_output(target)
    found.standard_error = statistics.select(statistics.standard_error, target)
    found.degrees_of_freedom = statistics.select(statistics.degrees_of_freedom, target)
    return found


def planned(
    explainer: Explainer, inputs: Tensor | tuple[Tensor, ...], target: TargetType, arguments: Mapping[str, Any]
) -> list[Intervention]:
    """What ``plan`` says to the arguments of ``attribute``, of which it takes those that matter to it; joint effects have none."""
    assert not isinstance(explainer, JointExplainer)
    given = dict(arguments)
    if isinstance(explainer, LayerExplainer):
        given["layer_baselines"] = given.pop("baselines")
    taken = inspect.signature(explainer.plan).parameters
    return explainer.plan(inputs, target=target, **{name: value for name, value in given.items() if name in taken})


def copied(explainer: Explainer) -> tuple[Explainer, nn.Module] | str:
    """The same explainer of a copy of the model, and that copy; or the reason why there is none."""
    scorer = as_scorer(explainer.forward_func)
    if not isinstance(scorer.model, nn.Module):
        return "the forward function is no module that could be copied"
    copies: dict[int, Any] = {}
    model = copy.deepcopy(scorer.model, copies)
    twin = copy.copy(explainer)
    twin.forward_func = scorer.with_model(model).function
    if isinstance(explainer, LayerExplainer):
        assert isinstance(twin, LayerExplainer)
        if id(explainer.layer) not in copies:
            return "the layer is not found among the model's modules"
        twin.layer = copies[id(explainer.layer)]
    return twin, model


def settle(context: RefutationContext) -> int:
    """Let a target read its activation from the model itself, not from a random or a fresh one; how many images that took."""
    inputs = context.inputs if isinstance(context.inputs, tuple) else (context.inputs,)
    further = format_additional_forward_args(context.arguments.get("additional_forward_args")) or ()
    return as_scorer(context.explainer.forward_func).settle(*inputs, *further)


def is_sampled(context: RefutationContext) -> bool:
    """Whether the target is one with ``n_samples``, whose model may answer differently each time."""
    return (as_scorer(context.explainer.forward_func).constructor_arguments() or {}).get("n_samples") is not None


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
