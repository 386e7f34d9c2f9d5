"""The refuter that crosses the two designs of draws: stratified against uniform."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from captum_causalseg._checks import checked
from captum_causalseg.attr.estimate import Intervention
from captum_causalseg.donors import BoundDonors
from captum_causalseg.evaluation.refute.by_hand import ByHand
from captum_causalseg.evaluation.refute.context import (
    CONTEXT,
    JointExplainer,
    RefutationContext,
    is_sampled,
    resolution,
    unit_name,
)
from captum_causalseg.evaluation.refute.differences import p_values_of_difference, p_values_of_reported_errors
from captum_causalseg.evaluation.refute.report import Refutation, inconclusive, verdict
from captum_causalseg.statistics import TreatmentEffectStatistics, adjust_p_values
from captum_causalseg.statistics.intervals import p_value, satterthwaite

__all__ = ["crossed"]

_PLANS = 3
# By how much the last question is asked more strictly than the others: three plans say little about the error, and a bias that matters is
# seen far beyond it.
_STRICTER = 25
# So many units show whether the draws are fair; and of so many donors at most a mean is taken one by one.
_MOST_UNITS, _MOST_DONORS = 100, 1000


@checked(context=CONTEXT)
def crossed(context: RefutationContext) -> Refutation:
    """Stratified draws and uniform ones, with seeds of their own, must give the same effects.

    Two designs that share neither draws nor weights nor the formula of the standard error estimate the same effects, without screening
    (which is known to cost a little) and without a goal. Four questions are asked of them, each at a quarter of ``alpha``, the last
    at a hundredth:

    - does any unit differ? The test of :func:`other_seed` (Welch, moderated and own variances, Benjamini and Hochberg);
    - do all units together? The sum of their differences against its own standard error, which needs no moderation: a bias that is
      too small to be seen in any one unit adds up;
    - do they differ by more than the *reported* standard errors say? Every difference over its reported error is brought to a normal
      score by its t-distribution; the sum of their squares is compared with chi-squared;
    - are the draws fair? The first-order effect of a donor (the gradient of the score times its values) has a known mean over all
      donors (:meth:`BoundDonors.mean`). The weighted mean of the planned draws is compared with it, over units and over the plans of
      three seeds, whose spread gives the error. No intervention is made for that.

    The tests keep their level also where uniform intervals are a little liberal (skewed effects, rare flips): a unit alone is tested by
    the larger one of two p-values. ``benchmarks/refuters.py`` counts. Where in every unit a few donors do many times what the others do, a
    handful of draws says too little of the error, and a hundred units together show that: errors that are called too small are so then, and
    more draws help.

    **It sees** strata that are drawn from or weighted unevenly, draws that prefer some donors, standard errors that are too small by half or
    more, a stratified estimate that depends on its ranking. **It does not see** what both designs share: scale, sign, place, donors, the
    model; nor standard errors that are too large.

    The statistic is the smallest p-value, times four; the threshold ``alpha``. Where donors cannot be ranked (no gradient) both are uniform,
    and only the standard errors and the draws are tried by it. Inconclusive for joint effects. The cost: two estimates without screening (one, if the original had
    none), and two plans.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> refute(ate, case.images, case.donors, refuters=["crossed"], n_draws=8)["crossed"].verdict
        'pass'
    """
    if isinstance(context.explainer, JointExplainer):
        return inconclusive(
            "crossed", context.alpha, 0, message="it is about single effects: in a context, donors are drawn in one way only"
        )
    stratified, uniform, forwards = _both(context)
    difference = stratified.effect - uniform.effect
    p = p_values_of_difference(stratified, uniform, difference, resolution=resolution(context), of_population=False)
    tested = ~np.isnan(p)
    draws = _fairness(context)
    forwards += draws.n_forwards
    if not tested.any():
        return inconclusive("crossed", context.alpha, forwards, message="no unit's draws show their spread")
    at = np.unravel_index(int(np.nanargmin(p)), p.shape)
    names = (
        "stratified and uniform draws" if stratified.settings.get("sampling") == "stratified" else "uniform draws of two seeds"
    )
    values = f"{float(stratified.effect[at]):.3g} and {float(uniform.effect[at]):.3g}"
    shift = _shift(stratified, uniform, tested)
    spread, ratio = _spread(stratified, uniform, tested)
    questions = [
        (float(np.nanmin(adjust_p_values(p))), f"{names} disagree, most in {unit_name(uniform, *at)} ({values})"),
        (
            shift,
            f"{names} disagree over all units together: the sums are {_sum(stratified, tested)} and {_sum(uniform, tested)}",
        ),
        (spread, f"{names} differ by {math.sqrt(ratio):.2g} times what the reported standard errors allow"),
        (min(1.0, _STRICTER * draws.p), draws.message),
    ]
    smallest, said = min(questions, key=lambda question: question[0])
    statistic = min(1.0, len(questions) * smallest)
    passed = statistic > context.alpha
    message = f"{names} agree" if passed else said
    return verdict("crossed", passed, statistic, threshold=context.alpha, tested=tested, n_forwards=forwards, message=message)


def _both(context: RefutationContext) -> tuple[TreatmentEffectStatistics, TreatmentEffectStatistics, int]:
    """A stratified and a uniform estimate without screening and without a goal, and what they cost."""
    plain: dict[str, Any] = {"n_screening_draws": 0, "precision": None, "decide": None}
    settings = context.statistics.settings
    unscreened = settings.get("n_screening_draws") == 0 and "precision" not in settings and "decide" not in settings
    both, forwards = [], 0
    for number, sampling in enumerate(("stratified", "uniform"), start=2):
        if unscreened and settings.get("sampling") == sampling:
            both.append(context.statistics)
        else:
            both.append(context.estimate(sampling=sampling, seed=context.seed + number, **plain))
            forwards += both[-1].n_forwards
    return both[0], both[1], forwards


def _shift(first: TreatmentEffectStatistics, second: TreatmentEffectStatistics, tested: np.ndarray) -> float:
    """The p-value of "the differences of all units have sum 0".

    Variances are each unit's own, which are right on the average where moderated ones are not: they pull the largest down.
    """
    total = float((first.effect - second.effect).numpy()[tested].sum())
    squares = []
    for one in (first, second):
        factor = one.variance_factor.numpy()[tested]
        squares.append(np.where(factor > 0, np.nan_to_num(one.sample_variance.numpy()[tested]) * factor, 0.0))
    variances = np.concatenate(squares)
    freedoms = np.concatenate([one.variance_freedom.numpy()[tested] for one in (first, second)])
    if not variances.any():
        return 1.0  # nothing has a spread: each unit was compared exactly
    return float(p_value(total, math.sqrt(variances.sum()), satterthwaite(variances, freedoms)))


def _spread(first: TreatmentEffectStatistics, second: TreatmentEffectStatistics, tested: np.ndarray) -> tuple[float, float]:
    """The p-value of "differences are no larger than the reported errors say", and the mean squared ratio of both.

    Of units whose draws show no spread at all nothing can be learned: their error is that of the others.
    """
    shown = tested & ((np.nan_to_num(first.sample_variance.numpy()) > 0) | (np.nan_to_num(second.sample_variance.numpy()) > 0))
    p = p_values_of_reported_errors(first, second)[shown]
    p = p[~np.isnan(p)]
    if not len(p):
        return 1.0, math.nan
    squares = scipy_stats.norm.isf(np.maximum(p, np.finfo(float).tiny) / 2) ** 2
    return float(scipy_stats.chi2.sf(squares.sum(), len(squares))), float(squares.mean())


def _sum(statistics: TreatmentEffectStatistics, tested: np.ndarray) -> str:
    return f"{float(statistics.effect.numpy()[tested].sum()):.3g}"


@dataclass(frozen=True)
class _Fairness:
    """Whether planned draws stand for all donors."""

    p: float = 1.0
    message: str = ""
    n_forwards: int = 0


def _fairness(context: RefutationContext) -> _Fairness:
    """Whether the mean of what is known of every donor is, over the planned draws, what it is over all of them."""
    if is_sampled(context):
        return _Fairness()  # of a stochastic model there is no gradient by hand
    by_hand = ByHand(
        explainer=context.explainer,
        inputs=context.inputs,
        target=context.target,
        arguments=context.arguments,
        statistics=context.statistics,
    )
    plans = [_by_unit(context.plan(seed=context.seed + number)) for number in range(_PLANS)]
    forwards = _PLANS * context.n_forwards_of_plan
    known = [unit for unit, steps in plans[0].items() if _has_mean(steps[0]) and all(unit in plan for plan in plans)]
    if len(known) > _MOST_UNITS:
        chosen = np.random.default_rng(context.seed).choice(len(known), _MOST_UNITS, replace=False)
        known = [known[index] for index in sorted(chosen.tolist())]
    totals, variances = [], []
    for example, unit in known:
        products = [by_hand.products(plan[example, unit]) for plan in plans]
        mean = by_hand.product_of_mean(plans[0][example, unit][0])
        scale = float(np.concatenate(products).std())
        # float32 values have seven digits; donors that are alike in this say nothing.
        if scale <= 1e-5 * (abs(mean) + float(np.abs(products[0]).max())):
            continue
        weights = [np.array([step.weight for step in plan[example, unit]]) for plan in plans]
        away = np.array([w @ found - mean for w, found in zip(weights, products)]) / scale
        totals.append(float(away.mean()))
        variances.append(float(away.var(ddof=1)) / _PLANS)
    forwards += by_hand.n_forwards
    if not totals:
        return _Fairness(n_forwards=forwards)
    total, square = sum(totals), sum(variances)
    message = (
        f"the planned draws are not fair: the first-order effects of {len(totals)} units differ from those of all donors by "
        f"{total / len(totals):.2g} standard deviations of a donor on the average"
    )
    if square <= 1e-10 * len(totals):  # the bank is drained, or the draws do not depend on the seed
        return _Fairness(1.0 if abs(total) <= 1e-5 * len(totals) else 0.0, message, forwards)
    freedom = satterthwaite(np.array(variances), np.full(len(variances), _PLANS - 1))
    return _Fairness(float(p_value(total, math.sqrt(square), freedom)), message, forwards)


def _by_unit(planned: list[Intervention]) -> dict[tuple[int, int], list[Intervention]]:
    units = defaultdict(list)
    for step in planned:
        units[step.example, step.unit].append(step)
    return dict(units)


def _has_mean(step: Intervention) -> bool:
    """Whether the mean over all donors of a planned intervention can be had without reading them all one by one."""
    return all(
        (type(source).mean is not BoundDonors.mean and type(source).mean_value is BoundDonors.mean_value)
        or source.population(step.example, piece.box) <= _MOST_DONORS
        for source, piece in step.sources
    )
