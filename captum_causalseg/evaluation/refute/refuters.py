"""The refuters, and the run of all of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, FUNCTION, NONE, SEED, TEXT, checked, instance, integer, sequence, shown
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect
from captum_causalseg.attr.layer_joint_treatment_effect import LayerJointTreatmentEffect
from captum_causalseg.donors import SelfDonor
from captum_causalseg.donors.split import donor_parts
from captum_causalseg.evaluation.refute.context import (
    CONTEXT,
    FEWEST,
    Explainer,
    JointExplainer,
    LayerExplainer,
    RefutationContext,
    Refuter,
    as_reported,
    attributed,
    copied,
    largest_unit_name,
    rank_correlation,
    resolution,
    unit_name,
)
from captum_causalseg.evaluation.refute.crossed import crossed
from captum_causalseg.evaluation.refute.differences import p_values_of_difference
from captum_causalseg.evaluation.refute.dose import dose
from captum_causalseg.evaluation.refute.joints import joints
from captum_causalseg.evaluation.refute.leaks import Leak, find_leak
from captum_causalseg.evaluation.refute.recompute import recompute
from captum_causalseg.evaluation.refute.report import Refutation, RefutationReport, inconclusive, verdict
from captum_causalseg.evaluation.refute.weights import random_weights
from captum_causalseg.statistics import TreatmentEffectStatistics, adjust_p_values

__all__ = ["REFUTERS", "other_seed", "placebo", "refute", "split_donors", "subset_of_donors"]


@checked(
    explainer=instance(
        AverageTreatmentEffect,
        JointTreatmentEffect,
        LayerAverageTreatmentEffect,
        LayerJointTreatmentEffect,
        expected="an AverageTreatmentEffect or a JointTreatmentEffect, or one of a layer",
    ),
    refuters=NONE | TEXT | sequence(TEXT, expected="a sequence of them"),
    alpha=FRACTION,
    seed=SEED,
    on_estimate=NONE | FUNCTION,
)
def refute(
    explainer: Explainer,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Any = None,
    target: TargetType = None,
    *,
    refuters: Sequence[str] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    on_estimate: Callable[[TreatmentEffectStatistics], None] | None = None,
    **arguments: Any,
) -> RefutationReport:
    """Estimate effects as ``explainer.attribute`` does, and try to refute them.

    With all refuters this takes about ten times the forwards of the estimate alone.

    Args:
        explainer: an :class:`~captum_causalseg.AverageTreatmentEffect`, a
            :class:`~captum_causalseg.LayerAverageTreatmentEffect`, a :class:`~captum_causalseg.JointTreatmentEffect` or a
            :class:`~captum_causalseg.LayerJointTreatmentEffect`.
        inputs: ``(N, C, *spatial)``, or a tuple of such tensors. Units of all examples are tested together.
        baselines: what units are replaced by: ``attribute``'s ``baselines``, or ``layer_baselines`` of a layer's explainer.
        target: which output's effects are tested, in all of Captum's forms.
        refuters: names from :data:`REFUTERS`, in the order in which to run them; ``None`` is all but ``"joints"``, and of joint effects those that
            are about effects in a context: ``"placebo"`` (units replaced by themselves, in every context), ``"split"``, ``"subset"``, ``"seed"`` and
            ``"weights"``; the others are inconclusive there, and say why. Each is described at its function:

            - ``"placebo"`` (:func:`placebo`): units that are replaced by themselves have no effect;
            - ``"recompute"`` (:func:`recompute`): a handful of effects by hand;
            - ``"split"`` (:func:`split_donors`): two halves of the donors agree;
            - ``"subset"`` (:func:`subset_of_donors`): most of the donors give the same effects as all of them;
            - ``"seed"`` (:func:`other_seed`): other draws agree within the standard errors;
            - ``"crossed"`` (:func:`crossed`): stratified and uniform draws agree;
            - ``"joints"`` (:func:`joints`), on request: donors of the units' own brightness say much the same;
            - ``"dose"`` (:func:`dose`): what larger units around the strongest ones do, without a verdict;
            - ``"weights"`` (:func:`random_weights`): another model has other effects.
        alpha: error rate of each refuter's test.
        seed: of the original estimate; the refuters' own are derived from it.
        on_estimate: called with the statistics of the original estimate as soon as they are known, before the attempts to refute it begin: to
            keep them whatever becomes of those.
        **arguments: the other arguments of ``explainer.attribute``, which checks them.

    Returns:
        A :class:`RefutationReport`.

    Raises:
        TypeError, ValueError: an argument is not as described, or ``attribute`` refuses it.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.evaluation.refute import refute
        >>> model, image = torch.nn.Conv2d(1, 2, 5, padding=2), torch.rand(1, 1, 24, 24)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((24, 24), start=8, size=8))
        >>> report = refute(
        ...     AverageTreatmentEffect(target), image, PatchBank(torch.rand(40, 1, 24, 24)), 1,
        ...     refuters=["placebo", "seed"], block_size=4, n_draws=10,
        ... )
        >>> report["placebo"].verdict, report["placebo"].statistic
        ('pass', 0.0)
    """
    on_request = _ON_REQUEST + (_SINGLE if isinstance(explainer, JointExplainer) else ())
    asked = [name for name in REFUTERS if name not in on_request]
    names = asked if refuters is None else [refuters] if isinstance(refuters, str) else list(refuters)
    unknown = [name for name in names if name not in REFUTERS]
    if unknown or not names:
        raise ValueError(f"refuters: expected some of {sorted(REFUTERS)}, got {shown(refuters)}")
    if "return_statistics" in arguments:
        raise TypeError("return_statistics: the statistics are in the report; leave it out")
    if "layer_baselines" in arguments:
        raise TypeError("layer_baselines: give them as baselines")
    if baselines is None:
        baselines = explainer.layer_baselines if isinstance(explainer, LayerExplainer) else explainer.baselines
    given = {**arguments, "baselines": baselines, "seed": int(seed)}
    untouched = _untouched(explainer) if "recompute" in names else None
    statistics = attributed(explainer, inputs, target, arguments=given)
    if on_estimate is not None:
        on_estimate(statistics)
    context = RefutationContext(
        explainer=explainer,
        inputs=inputs,
        baselines=baselines,
        target=target,
        alpha=float(alpha),
        seed=int(seed),
        # Controls are about the original estimate; none of its repetitions needs them.
        arguments={name: value for name, value in arguments.items() if name != "controls"},
        statistics=as_reported(statistics, target),
        untouched=untouched,
    )
    return RefutationReport([REFUTERS[name](context) for name in names], statistics)


@checked(context=CONTEXT)
def placebo(context: RefutationContext) -> Refutation:
    """Every unit is replaced by its own values: a treatment that does nothing must have exactly no effect.

    DoWhy's placebo treatment. Passes if every effect is 0, not merely small; a layer's units are replaced by their own
    activations. Fails with models that draw random numbers or remember their calls, with interventions that miss their place,
    and with scores that are not computed as the observed one was.

    **It sees** what is done even where nothing changes. **It does not see** anything that vanishes when nothing is replaced: effects of
    another scale or sign, another unit in the place of the one that is meant, donors, draws, standard errors, a model that knows
    the image by heart.

    The statistic is the largest absolute effect, in the score's units; the threshold 0.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> report = refute(ate, case.images, case.donors, refuters=["placebo"], n_draws=8)
        >>> report["placebo"].verdict, report["placebo"].statistic
        ('pass', 0.0)
    """
    found = context.estimate(baselines=SelfDonor())
    tested = (found.hypotheses & (found.n_draws > 0)).numpy()
    if not tested.any():
        return inconclusive("placebo", 0.0, found.n_forwards, message="no unit can reach the RoI")
    effects = np.where(tested, found.effect.abs().numpy(), 0.0)
    largest = float(effects.max())
    if largest == 0:
        return verdict(
            "placebo",
            True,
            statistic=largest,
            threshold=0.0,
            tested=tested,
            n_forwards=found.n_forwards,
            message="units replaced by themselves have no effect",
        )
    count = int((effects > 0).sum())
    message = f"replaced by themselves, {count} units have an effect, up to {largest:.3g} ({largest_unit_name(found, effects)})"
    return verdict(
        "placebo", False, statistic=largest, threshold=0.0, tested=tested, n_forwards=found.n_forwards, message=message
    )


@checked(context=CONTEXT)
def split_donors(context: RefutationContext) -> Refutation:
    """The donor images are split into two random halves, which must agree: an A/A test. And none may be of the explained image.

    First (not of joint effects) up to 500 of the planned donors are looked for in the explained image, value by value: a donor that was cut from the very image
    is no other image content, and pulls effects toward 0. The explained image may be one of the bank's; then its donors may be drawn
    as often as its places are among all places, and no more. The test (Fisher's exact, at a fiftieth of ``alpha``) compares with how
    often patches of the image lie in it twice, which in images of 8 bits some do. Its p-value is the statistic if it fails.

    Each half gives an estimate of its own by uniform draws without screening, so that the sample variance ``s**2`` is the donors'
    whole spread. The halves are two disjoint random samples of one population, so the difference of a unit's two effects has
    variance ``s1**2 / n1 + s2**2 / n2``, without finite population corrections (those say how well the half itself is known).
    A unit's p-value is the larger one of two of Welch's t-tests: with variances that are moderated as in the statistics (each
    half with the scale of its own units), and with the unit's own.

    Passes if no unit's effects differ significantly at ``alpha`` after Benjamini and Hochberg's correction over all units of all
    examples. The statistic is the smallest corrected p-value, the threshold ``alpha``.

    **A failure does not mean that the code is wrong.** It says that the bank is too small or too uneven for what is asked of it:
    places of one image are alike (images are clusters), so a few unusual images make one half of the bank unlike the other, and
    the standard errors of the estimate, which are about this bank, say nothing about other images. Add images.

    **It sees** donors of the explained image, a bank that is too small or uneven. **It does not see** what both halves share (scale, sign,
    place, the model), standard errors that are too small by less than what the halves differ, copies of the image that are not exact.

    Inconclusive where donors cannot be split: a constant, the image's own positions, or fewer than two images.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> report = refute(ate, case.images, case.donors, refuters=["split"], n_draws=8)
        >>> report["split"].verdict
        'pass'
        >>> report = refute(ate, case.images, 0.3, refuters=["split"])  # a constant has no halves
        >>> report["split"].verdict
        'inconclusive'
    """
    halves = donor_parts(context.baselines, (0.5, 0.5), context.seed, least=2)
    if isinstance(halves, str):
        return inconclusive("split", context.alpha, 0, message=halves)
    # In a context no plan says which donors are taken: they are those of single effects.
    leak = _NO_LEAK if isinstance(context.explainer, JointExplainer) else find_leak(context)
    level = context.alpha / 50
    if leak.p <= level:
        tested = (context.statistics.hypotheses & (context.statistics.n_draws > 0)).numpy()
        return verdict("split", False, leak.p, threshold=level, tested=tested, n_forwards=leak.n_forwards, message=leak.message)
    plain: dict[str, Any] = {"sampling": "uniform", "n_screening_draws": 0, "precision": None, "decide": None}
    if isinstance(context.explainer, JointExplainer):
        # Drawn again, a donor says nothing new of the images that it is one of.
        once = _once(context)
        if once < _FEWEST_IN_CONTEXT:
            return inconclusive("split", context.alpha, leak.n_forwards, message=f"too few donors to split ({once} in a half)")
        plain["n_draws"] = once
    first, second = (
        context.estimate(baselines=half, seed=context.seed + number, **plain) for number, half in enumerate(halves)
    )
    found = _agreement("split", context, first=first, second=second, whose="the two halves of the donors", of_population=True)
    return replace(found, n_forwards=found.n_forwards + leak.n_forwards)


@checked(context=CONTEXT)
def other_seed(context: RefutationContext) -> Refutation:
    """Other random draws from the same donors must give the same effects, within the standard errors.

    Draws with another seed are independent, so a unit's difference has variance ``se1**2 + se2**2``; the test is that of
    :func:`split_donors`. Passes if no unit's effects
    differ significantly at ``alpha`` after Benjamini and Hochberg's correction over all units of all examples; effects that are
    exact (the bank was drained) must be equal to rounding. Units that either run gave up after its screening draws are left
    out: what is lost by screening is known not to be in their standard errors.

    **It sees** standard errors that are much too small in some unit, by the variances that they are made of. **It does not see** what every
    seed has in common: scale, sign, place, donors, a bias of the draws, the model; nor errors that are too small by a factor of 2 in all units,
    which :func:`crossed` is for.

    The statistic is the smallest corrected p-value, the threshold ``alpha``. A failure says that the standard errors are too
    small, or that the model does not give the same output twice.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> report = refute(ate, case.images, case.donors, refuters=["seed"], n_draws=8, n_screening_draws=0)
        >>> report["seed"].verdict, report["seed"].threshold
        ('pass', 0.05)
    """
    again = context.estimate(seed=context.seed + 1)
    return _agreement("seed", context, first=context.statistics, second=again, whose="two seeds", of_population=False)


@checked(context=CONTEXT, n_subsets=integer(1), share=FRACTION)
def subset_of_donors(context: RefutationContext, n_subsets: int = 2, share: float = 0.8) -> Refutation:
    """Effects are estimated again from random parts of the donor images, and must stay much the same.

    DoWhy's data subset refuter. Passes if no unit that is significant in both changes its sign and the rank correlation
    (Spearman) of the effects over the units that are significant in either is at least 0.7, for every subset. Units whose effects
    are all alike have no ranks to agree in: look at the message before drawing conclusions from a low correlation.

    **It sees** effects that hang on a few of the donor images, or that are mostly noise (draw more then). **It does not see** what all
    subsets have in common: scale, sign, place, draws, the model.

    The statistic is the lowest rank correlation, the threshold 0.7. Inconclusive with fewer than 5 such units, or where donors
    cannot be split.

    Args:
        context: the estimate.
        n_subsets: how many subsets.
        share: of the images in each.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> report = refute(ate, case.images, case.donors, refuters=["subset"], n_draws=16)
        >>> report["subset"].verdict, report["subset"].n_units  # of three units that matter, a correlation says nothing
        ('inconclusive', 0)
        >>> print(report["subset"].message)
        too few significant units to rank (3); signs of 6 of 6 units agree
    """
    threshold = 0.7
    least = math.floor(0.5 / (1 - share)) + 1  # with fewer images, the subset would be all of them
    original = context.statistics
    surely = original.significant(context.alpha).numpy()
    correlations, counts, agreeing, common, forwards = [], [], 0, 0, 0
    flips: list[str] = []
    for number in range(n_subsets):
        subset = donor_parts(context.baselines, (share,), context.seed + number, least=least)
        if isinstance(subset, str):
            return inconclusive("subset", threshold, forwards, message=subset)
        found = context.estimate(baselines=subset[0])
        forwards += found.n_forwards
        here = found.significant(context.alpha).numpy()
        before, now = original.effect.numpy(), found.effect.numpy()
        both, either = surely & here, (surely | here) & ~np.isnan(before) & ~np.isnan(now)
        same = np.sign(before) == np.sign(now)
        common, agreeing = common + int(both.sum()), agreeing + int((both & same).sum())
        if (both & ~same).any():
            flips.append(largest_unit_name(original, both & ~same))
        correlations.append(rank_correlation(before[either], now[either]))
        counts.append(int(either.sum()))
    lowest = float(np.min(correlations))  # NaN if one of them is
    signs = f"signs of {agreeing} of {common} units agree"
    if flips:
        message = f"{signs}; {flips[0]} changes its own"
        return Refutation(
            name="subset",
            verdict="fail",
            statistic=lowest,
            threshold=threshold,
            n_units=min(counts),
            n_forwards=forwards,
            message=message,
        )
    if min(counts) < FEWEST or math.isnan(lowest):
        reason = f"too few significant units to rank ({min(counts)})" if min(counts) < FEWEST else "all effects are equal"
        return inconclusive("subset", threshold, forwards, message=f"{reason}; {signs}")
    message = f"rank correlation {lowest:.2f} with {share:.0%} of the donors, {signs}"
    return Refutation(
        name="subset",
        verdict="pass" if lowest >= threshold else "fail",
        statistic=lowest,
        threshold=threshold,
        n_units=min(counts),
        n_forwards=forwards,
        message=message,
    )


REFUTERS: dict[str, Refuter] = {
    "placebo": placebo,
    "recompute": recompute,
    "split": split_donors,
    "subset": subset_of_donors,
    "seed": other_seed,
    "crossed": crossed,
    "joints": joints,
    "dose": dose,
    "weights": random_weights,
}
"""Refuters by name; add to it to have your own run by :func:`refute`."""


# What asks another question than the estimate answers.
_ON_REQUEST = ("joints",)
# What is about single effects, and their plan.
_SINGLE = ("recompute", "crossed", "dose")
_NO_LEAK = Leak(1.0, "", 0)
_FEWEST_IN_CONTEXT = 4


def _once(context: RefutationContext) -> int:
    """How many draws of half of the donors there are in which no donor comes again, at most those of the original estimate; an even number."""
    statistics = context.statistics
    asked = statistics.hypotheses.numpy()
    donors = statistics.population.numpy()[asked]
    usual = int(statistics.settings["n_draws"])
    return usual if not asked.any() else int(min(usual, donors.min() // 2) // 2 * 2)


def _untouched(explainer: Explainer) -> Explainer | None:
    """The explainer of a copy of the model; ``None`` where it cannot be copied."""
    try:
        found = copied(explainer)
    except (RuntimeError, TypeError):  # a model that holds a lock, an open file, a tensor with a history
        return None
    return None if isinstance(found, str) else found[0]


def _agreement(
    name: str,
    context: RefutationContext,
    first: TreatmentEffectStatistics,
    second: TreatmentEffectStatistics,
    whose: str,
    of_population: bool,
) -> Refutation:
    """Whether two independent estimates agree in all units."""
    # The original estimate's forwards are counted elsewhere.
    forwards = sum(one.n_forwards for one in (first, second) if one is not context.statistics)
    p = p_values_of_difference(
        first, second, first.effect - second.effect, resolution=resolution(context), of_population=of_population
    )
    tested = ~np.isnan(p)
    if not tested.any():
        return inconclusive(name, context.alpha, forwards, message="no unit's draws show their spread")
    adjusted = adjust_p_values(p)
    smallest = float(np.nanmin(adjusted))
    count = int((adjusted[tested] <= context.alpha).sum())
    at = np.unravel_index(int(np.nanargmin(p)), p.shape)
    values = f"{float(first.effect[at]):.3g} and {float(second.effect[at]):.3g}"
    most = f"{whose} disagree in {count} unit(s), most in {unit_name(second, *at)} ({values})"
    message = most if count else f"{whose} agree"
    return verdict(
        name, count == 0, statistic=smallest, threshold=context.alpha, tested=tested, n_forwards=forwards, message=message
    )
