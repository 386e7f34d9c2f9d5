"""The refuter that does a handful of interventions by hand."""

import copy
from collections import defaultdict

import numpy as np
import torch

from captum_causalseg._checks import checked
from captum_causalseg.attr.estimate import Intervention
from captum_causalseg.evaluation.refute.by_hand import ByHand
from captum_causalseg.evaluation.refute.context import (
    CONTEXT,
    Explainer,
    JointExplainer,
    RefutationContext,
    is_sampled,
    resolution,
    settle,
    unit_name,
)
from captum_causalseg.evaluation.refute.report import Refutation, inconclusive, verdict
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.target.rounding import relative_tolerance
from captum_causalseg.target.scorer import as_scorer

__all__ = ["recompute"]

_THRESHOLD = 0.01
_LARGEST, _RANDOM = 3, 2
# In units of the last place: by how much another batch size or order of sums moves a score (21 were seen).
_ROUNDING = 64

Unit = tuple[int, int]
"""An example and the position of a unit."""


@checked(context=CONTEXT)
def recompute(context: RefutationContext) -> Refutation:
    """A handful of effects is computed again by hand: the interventions of ``plan()``, one by one, each on the whole image.

    The three largest effects and two others at random, over all examples. For each planned intervention the donor is read by the
    simplest way that its source has, pasted under the unit's mask, and ``forward_func`` is called with that one image; a layer's
    activation is replaced by a plain hook. No batch, no window, nothing of the engine takes part. The effect is the weighted sum of
    observed minus intervened, before predicted effects adjust it (``statistics.adjustment``, which leans on all units' draws).

    It is done in another order (the last intervention first, the observed image last), and with a copy of the model that was made
    before the estimate and has seen no image since: a model that keeps something of what it has seen gives other answers then. Each
    of the units is also replaced by its own values with the last bit changed, which must do nothing: a model that knows the image
    by heart, and answers otherwise to whatever is not exactly it, is found by that.

    **It sees** effects of another scale or sign, of the neighboring unit, of the wrong place, class or RoI, windows that are too
    small, donors that are gathered wrongly, images of a batch that mix, and models that remember. **It does not see** a plan that is
    biased (the same interventions are made), adjustments, standard errors, donors that are no good, nor anything that happens in few units only
    (5 are tried). Of an estimate with a goal (``precision``, ``decide``), the first sample is tried: it is run again without.

    Passes if the largest difference is at most a hundredth of the largest of the effects by hand. A hundredth, for a hard score moves
    by whole pixels, one of which may flip by rounding between a window and the whole image; what is wrong is wrong by far more, for
    all draws of a unit share it. The statistic is that ratio, the threshold 0.01. Inconclusive if no unit got its planned draws, for joint effects, and for
    stochastic models (``n_samples``). The cost: for each of the 5 units, as many forwards as it has draws,
    and 2 more.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> refute(ate, case.images, case.donors, refuters=["recompute"], n_draws=8)["recompute"].verdict
        'pass'
    """
    if isinstance(context.explainer, JointExplainer):
        return inconclusive(
            "recompute", _THRESHOLD, 0, message="it is about single effects: joint ones have no plan of single interventions"
        )
    if is_sampled(context):
        return inconclusive("recompute", _THRESHOLD, 0, message="the model is stochastic (n_samples)")
    statistics, spent = _of_the_plan(context)
    steps: dict[Unit, list[Intervention]] = defaultdict(list)
    positions = {int(unit): position for position, unit in enumerate(statistics.unit_ids)}
    for step in context.plan(statistics=statistics):
        steps[step.example, positions[step.unit]].append(step)
    spent += context.n_forwards_of_plan
    chosen = _chosen(statistics, steps, context.seed)
    if not chosen:
        return inconclusive("recompute", _THRESHOLD, spent, message="no unit was estimated with exactly the planned draws")
    explainer, settled = _untouched(context)
    by_hand = ByHand(
        explainer=explainer, inputs=context.inputs, target=context.target, arguments=context.arguments, statistics=statistics
    )
    scores = {
        unit: [by_hand.score(unit[0], by_hand.replaced(step)) for step in steps[unit][::-1]][::-1] for unit in chosen[::-1]
    }
    nudged = {unit: by_hand.score(unit[0], by_hand.nudged(unit[0], steps[unit][0].unit)) for unit in chosen}
    observed = {example: by_hand.score(example) for example in sorted({example for example, _ in chosen})}
    effects = {
        unit: sum(step.weight * (observed[unit[0]] - score) for step, score in zip(steps[unit], scores[unit]))
        for unit in chosen
    }
    largest = max(map(abs, effects.values()))
    share = _rounding(context)

    def beyond_rounding(difference: float, example: int) -> float:
        allowed = share * (abs(observed[example]) + largest)
        return abs(difference) if abs(difference) > allowed else 0.0

    findings: list[tuple[float, str]] = []
    for unit in chosen:
        reported, example = float(statistics.effect[unit]), unit[0]
        # What predicted effects took from the weighted mean is known from all units' draws together, not from these.
        found = effects[unit] - float(statistics.adjustment[unit])
        findings += [
            (
                beyond_rounding(reported - found, example),
                f"{unit_name(statistics, *unit)} has effect {reported:.3g}, by hand {found:.3g}",
            ),
            (
                beyond_rounding(observed[example] - nudged[unit], example),
                f"{unit_name(statistics, *unit)} with nothing but the last bit of its values changed moves the score by "
                f"{observed[example] - nudged[unit]:.3g}",
            ),
        ]
    for example, score in observed.items():
        reported = float(statistics.observed_score[example])
        findings.append(
            (
                beyond_rounding(reported - score, example),
                f"the observed score of example {example} is {reported:.4g}, by hand {score:.4g}",
            )
        )
    worst, said = max(findings, key=lambda found: found[0])
    ratio = 0.0 if worst == 0 else worst / largest if largest > 0 else np.inf
    tested = np.zeros(tuple(statistics.effect.shape), dtype=bool)
    tested[tuple(np.array(chosen).T)] = True
    passed = ratio <= _THRESHOLD
    own = "" if context.untouched is not None else " (with the model as it is, which cannot be copied)"
    message = f"{len(chosen)} effects are the same by hand, one image at a time" if passed else said
    spent += settled + by_hand.n_forwards
    return verdict("recompute", passed, ratio, threshold=_THRESHOLD, tested=tested, n_forwards=spent, message=message + own)


def _of_the_plan(context: RefutationContext) -> tuple[TreatmentEffectStatistics, int]:
    """The estimate whose draws are planned: without a goal, the original one; and what it cost."""
    if all(context.arguments.get(goal) is None for goal in ("precision", "decide")):
        return context.statistics, 0
    found = context.estimate(precision=None, decide=None)
    return found, found.n_forwards


def _chosen(statistics: TreatmentEffectStatistics, steps: dict[Unit, list[Intervention]], seed: int) -> list[Unit]:
    """The units with the largest effects and some others, among those that got all their planned draws and no others."""
    usable = [
        unit
        for unit, planned in steps.items()
        if int(statistics.status[unit]) == Status.ESTIMATED and int(statistics.n_draws[unit]) == len(planned)
    ]
    usable.sort(key=lambda unit: -abs(float(statistics.effect[unit])))
    rest = usable[_LARGEST:]
    others = np.random.default_rng(seed).choice(len(rest), min(_RANDOM, len(rest)), replace=False)
    return [*usable[:_LARGEST], *(rest[other] for other in sorted(others.tolist()))]


def _untouched(context: RefutationContext) -> tuple[Explainer, int]:
    """The explainer of the untouched model, and how many images its preparation took."""
    if context.untouched is None:
        return context.explainer, 0
    # The copy was made before the target had seen an answer: what it read there goes along.
    settled = settle(context)
    explainer = copy.copy(context.untouched)
    model = as_scorer(context.untouched.forward_func).model
    explainer.forward_func = as_scorer(context.explainer.forward_func).with_model(model).function
    return explainer, settled


def _rounding(context: RefutationContext) -> float:
    """What share of a score may be rounding between two ways of computing it."""
    inputs = context.inputs if isinstance(context.inputs, tuple) else (context.inputs,)
    lower = context.arguments.get("autocast")
    if lower is not None:
        return relative_tolerance([torch.empty(0, dtype=lower, device=inputs[0].device)])
    if any(tensor.is_cuda for tensor in inputs):
        return resolution(context)
    return float(_ROUNDING * max(torch.finfo(tensor.dtype).eps for tensor in inputs))
