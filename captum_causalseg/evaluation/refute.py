"""Attempts to refute an estimate: what should change nothing, and what should change everything.

An estimate that survives them is not proven right; one that does not is known to be wrong, or less certain than it says. The idea
and the first checks are those of DoWhy (Sharma and Kiciman 2020, arXiv 2011.04216); the check of the weights is the model
randomization test of Adebayo et al. 2018 (arXiv 1810.03292).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor, nn

from captum_causalseg._captum import TargetType, format_additional_forward_args
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect
from captum_causalseg.donors import SelfDonor
from captum_causalseg.evaluation._differences import p_values_of_difference
from captum_causalseg.evaluation._donor_parts import donor_parts
from captum_causalseg.evaluation.refutation import Refutation, RefutationReport, inconclusive, verdict
from captum_causalseg.interventions.rounding import relative_tolerance
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target import SegmentationTarget

__all__ = [
    "REFUTERS",
    "Refutation",
    "RefutationContext",
    "RefutationReport",
    "Refuter",
    "other_seed",
    "placebo",
    "random_weights",
    "refute",
    "split_donors",
    "subset_of_donors",
]

Explainer = AverageTreatmentEffect | LayerAverageTreatmentEffect

# What fewer units do, they may do by chance.
_FEWEST = 5


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
        return _attribute(explainer, self.inputs, self.target, {**self.arguments, **changed}).of_output(self.target)


Refuter = Callable[[RefutationContext], Refutation]


def refute(
    explainer: Explainer,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Any = None,
    target: TargetType = None,
    *,
    refuters: Sequence[str] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    **arguments: Any,
) -> RefutationReport:
    """Estimate effects as ``explainer.attribute`` does, and try to refute them.

    With all refuters this takes about seven times the forwards of the estimate alone.

    Args:
        explainer: an :class:`~captum_causalseg.AverageTreatmentEffect` or
            :class:`~captum_causalseg.LayerAverageTreatmentEffect`.
        inputs: ``(N, C, *spatial)``, or a tuple of such tensors. Units of all examples are tested together.
        baselines: what units are replaced by: ``attribute``'s ``baselines``, or ``layer_baselines`` of a layer's explainer.
        target: which output's effects are tested, in all of Captum's forms.
        refuters: names from :data:`REFUTERS`, in the order in which to run them; ``None`` is all of them. Each is described at its
            function:

            - ``"placebo"`` (:func:`placebo`): units replaced by themselves have no effect;
            - ``"split"`` (:func:`split_donors`): two halves of the donors agree;
            - ``"subset"`` (:func:`subset_of_donors`): most of the donors say what all of them say;
            - ``"seed"`` (:func:`other_seed`): other draws agree within the standard errors;
            - ``"weights"`` (:func:`random_weights`): another model has other effects.
        alpha: error rate of each refuter's test.
        seed: of the original estimate; the refuters' own are derived from it.
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
    if not isinstance(explainer, (AverageTreatmentEffect, LayerAverageTreatmentEffect)):
        raise TypeError(
            f"explainer: expected an AverageTreatmentEffect or a LayerAverageTreatmentEffect, got {type(explainer).__name__}"
        )
    names = list(REFUTERS) if refuters is None else [refuters] if isinstance(refuters, str) else list(refuters)
    unknown = [name for name in names if name not in REFUTERS]
    if unknown or not names:
        raise ValueError(f"refuters: expected some of {sorted(REFUTERS)}, got {refuters!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number between 0 and 1, got {alpha!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed: expected an integer of at least 0, got {seed!r}")
    if "return_statistics" in arguments:
        raise TypeError("return_statistics: the statistics are in the report; leave it out")
    if "layer_baselines" in arguments:
        raise TypeError("layer_baselines: give them as baselines")
    if baselines is None:
        baselines = explainer.layer_baselines if isinstance(explainer, LayerAverageTreatmentEffect) else explainer.baselines
    given = {**arguments, "baselines": baselines, "seed": int(seed)}
    statistics = _attribute(explainer, inputs, target, given)
    context = RefutationContext(
        *(explainer, inputs, baselines, target, float(alpha), int(seed), arguments), statistics.of_output(target)
    )
    return RefutationReport([REFUTERS[name](context) for name in names], statistics)


def placebo(context: RefutationContext) -> Refutation:
    """Every unit is replaced by its own values: a treatment that does nothing must have exactly no effect.

    DoWhy's placebo treatment. Passes if every effect is 0, not merely small; a layer's units are replaced by their own
    activations. Fails with models that draw random numbers or remember their calls, with interventions that miss their place,
    and with scores that are not computed as the observed one was.

    The statistic is the largest absolute effect, in the score's units; the threshold 0.
    """
    found = context.estimate(baselines=SelfDonor())
    tested = (found.n_draws > 0).numpy()
    if not tested.any():
        return inconclusive("placebo", 0.0, found.n_forwards, "no unit can reach the RoI")
    effects = np.where(tested, found.effect.abs().numpy(), 0.0)
    largest = float(effects.max())
    if largest == 0:
        return verdict("placebo", True, largest, 0.0, tested, found.n_forwards, "replaced by themselves, units have no effect")
    count = int((effects > 0).sum())
    message = f"replaced by themselves, {count} units have an effect, up to {largest:.3g} ({_unit_at(found, effects)})"
    return verdict("placebo", False, largest, 0.0, tested, found.n_forwards, message)


def split_donors(context: RefutationContext) -> Refutation:
    """The donor images are split into two random halves, which must agree: an A/A test.

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

    Inconclusive where donors cannot be split: a constant, the image's own positions, or fewer than two images.
    """
    halves = donor_parts(context.baselines, (0.5, 0.5), context.seed, least=2)
    if isinstance(halves, str):
        return inconclusive("split", context.alpha, 0, halves)
    plain = {"sampling": "uniform", "n_screening_draws": 0, "precision": None, "decide": None}
    first, second = (
        context.estimate(baselines=half, seed=context.seed + number, **plain) for number, half in enumerate(halves)
    )
    return _agreement("split", context, first, second, "the two halves of the donors", of_population=True)


def other_seed(context: RefutationContext) -> Refutation:
    """Other random draws from the same donors must give the same effects, within the standard errors.

    Draws with another seed are independent, so a unit's difference has variance ``se1**2 + se2**2``; the test is that of
    :func:`split_donors`. Passes if no unit's effects
    differ significantly at ``alpha`` after Benjamini and Hochberg's correction over all units of all examples; effects that are
    exact (the bank was drained) must be equal to rounding. Units that either run gave up after its screening draws are left
    out: what is lost by screening is known not to be in their standard errors.

    The statistic is the smallest corrected p-value, the threshold ``alpha``. A failure says that the standard errors are too
    small, or that the model does not give the same output twice.
    """
    again = context.estimate(seed=context.seed + 1)
    return _agreement("seed", context, context.statistics, again, "two seeds", of_population=False)


def subset_of_donors(context: RefutationContext, n_subsets: int = 2, share: float = 0.8) -> Refutation:
    """Effects are estimated again from random parts of the donor images, and must stay much the same.

    DoWhy's data subset refuter. Passes if no unit that is significant in both changes its sign and the rank correlation
    (Spearman) of the effects over the units that are significant in either is at least 0.7, for every subset. Units whose effects
    are all alike have no ranks to agree in: look at the message before drawing conclusions from a low correlation.

    The statistic is the lowest rank correlation, the threshold 0.7. Inconclusive with fewer than 5 such units, or where donors
    cannot be split.

    Args:
        context: the estimate.
        n_subsets: how many subsets.
        share: of the images in each.
    """
    threshold = 0.7
    least = math.floor(0.5 / (1 - share)) + 1  # of fewer images, the subset would be all of them
    original = context.statistics
    surely = original.significant(context.alpha).numpy()
    correlations, counts, agreeing, common, forwards = [], [], 0, 0, 0
    flips: list[str] = []
    for number in range(n_subsets):
        subset = donor_parts(context.baselines, (share,), context.seed + number, least)
        if isinstance(subset, str):
            return inconclusive("subset", threshold, forwards, subset)
        found = context.estimate(baselines=subset[0])
        forwards += found.n_forwards
        here = found.significant(context.alpha).numpy()
        before, now = original.effect.numpy(), found.effect.numpy()
        both, either = surely & here, (surely | here) & ~np.isnan(before) & ~np.isnan(now)
        same = np.sign(before) == np.sign(now)
        common, agreeing = common + int(both.sum()), agreeing + int((both & same).sum())
        if (both & ~same).any():
            flips.append(_unit_at(original, both & ~same))
        correlations.append(_rank_correlation(before[either], now[either]))
        counts.append(int(either.sum()))
    lowest = float(np.min(correlations))  # NaN if one of them is
    signs = f"signs of {agreeing} of {common} units agree"
    if flips:
        message = f"{signs}; {flips[0]} changes its own"
        return Refutation("subset", "fail", lowest, threshold, min(counts), forwards, message)
    if min(counts) < _FEWEST or math.isnan(lowest):
        reason = f"too few significant units to rank ({min(counts)})" if min(counts) < _FEWEST else "all effects are equal"
        return inconclusive("subset", threshold, forwards, f"{reason}; {signs}")
    message = f"rank correlation {lowest:.2f} with {share:.0%} of the donors, {signs}"
    return Refutation("subset", "pass" if lowest >= threshold else "fail", lowest, threshold, min(counts), forwards, message)


def random_weights(context: RefutationContext, attempts: int = 3) -> Refutation:
    """The model's weights are shuffled, and the effects must change: an explanation of the model must depend on the model.

    The model randomization test of Adebayo et al. 2018 (arXiv 1810.03292). In a copy of the model the entries of every parameter
    are permuted at random, within the parameter. That destroys what was learned and leaves the scale of every layer's weights
    as it is, so that activations do not fade or blow up as they may with fresh random weights. Buffers are kept: some are
    structure (positions, indices) and must not be permuted, and running statistics belong to channels that are
    interchangeable once the weights between them are permuted. RoI, reference and donors are the same.

    Tested are the units that are significant in the original and known well enough that the loss of their effect would show: were
    the effect under random weights 0, the t-test of the difference would find it at ``alpha``. Passes if for at least half of them
    that test finds another effect. Had nothing changed, a share of ``alpha`` would be expected, and a share of one half would have
    a chance of at most ``2 * alpha`` (Markov's inequality), however the units depend on each other. The correlation of maps, as in
    the paper, is not the criterion: a network's effects fade with the distance from the RoI whatever its weights are, and a model
    that is dead after the permutation has effects without ranks. It stands in the message.

    The statistic is that share, the threshold 0.5. Inconclusive with fewer than 5 such units (draw more), if there is no module to
    be seen (a plain function), or if the outputs under random weights are not finite in any of ``attempts`` permutations.
    """
    threshold = 0.5
    original = context.statistics
    significant = original.significant(context.alpha).numpy()
    if not significant.any():
        return inconclusive("weights", threshold, 0, "no effect is significant, so none can be expected to change")
    spent = _settle_activation(context)
    problem = ""
    for attempt in range(attempts):
        explainer = _with_random_weights(context.explainer, context.seed + attempt)
        if isinstance(explainer, str):
            return inconclusive("weights", threshold, spent, explainer)
        try:
            # Without screening: a model that is dead now shall have as many draws to show it.
            found = context.estimate(explainer=explainer, n_screening_draws=0)
        except ValueError as error:
            # These arguments were good for the model itself: what is new are outputs that are not finite.
            problem = str(error)
            continue
        return _changed(context, significant, found, threshold, spent)
    return inconclusive("weights", threshold, spent, f"{attempts} random models cannot be explained, the last one: {problem}")


REFUTERS: dict[str, Refuter] = {
    "placebo": placebo,
    "split": split_donors,
    "subset": subset_of_donors,
    "seed": other_seed,
    "weights": random_weights,
}
"""Refuters by name; add to it to have your own run by :func:`refute`."""


def _attribute(
    explainer: Explainer, inputs: Tensor | tuple[Tensor, ...], target: TargetType, arguments: Mapping[str, Any]
) -> TreatmentEffectStatistics:
    given = dict(arguments)
    if isinstance(explainer, LayerAverageTreatmentEffect):
        given["layer_baselines"] = given.pop("baselines")
    found: TreatmentEffectStatistics = explainer.attribute(inputs, target=target, return_statistics=True, **given)[1]
    return found


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
        first, second, first.effect - second.effect, resolution=_resolution(context), of_population=of_population
    )
    tested = ~np.isnan(p)
    if not tested.any():
        return inconclusive(name, context.alpha, forwards, "no unit's draws show their spread")
    adjusted = np.full(p.shape, np.nan)
    adjusted[tested] = scipy_stats.false_discovery_control(p[tested], method="bh")
    smallest = float(np.nanmin(adjusted))
    count = int((adjusted[tested] <= context.alpha).sum())
    at = np.unravel_index(int(np.nanargmin(p)), p.shape)
    values = f"{float(first.effect[at]):.3g} and {float(second.effect[at]):.3g}"
    most = f"{whose} disagree in {count} unit(s), most in {_unit(second, *at)} ({values})"
    message = most if count else f"{whose} agree"
    return verdict(name, count == 0, smallest, context.alpha, tested, forwards, message)


def _changed(
    context: RefutationContext,
    significant: np.ndarray,
    found: TreatmentEffectStatistics,
    threshold: float,
    spent: int,
) -> Refutation:
    """Whether effects that were significant are others under random weights."""
    original = context.statistics
    forwards = spent + found.n_forwards
    given: dict[str, Any] = {"resolution": _resolution(context), "of_population": False, "screened_too": True}
    p = p_values_of_difference(original, found, original.effect - found.effect, **given)
    # Had the effect vanished, with the errors as they are, would it have been noticed?
    with np.errstate(invalid="ignore"):
        tested = significant & (p_values_of_difference(original, found, original.effect, **given) <= context.alpha)
    if int(tested.sum()) < _FEWEST:
        message = f"too few effects ({int(tested.sum())}) are known well enough to miss them; draw more"
        return inconclusive("weights", threshold, forwards, message)
    changed = int((p[tested] <= context.alpha).sum())
    share = changed / int(tested.sum())
    before, now = original.effect.abs().numpy()[tested], found.effect.abs().numpy()[tested]
    correlation = _rank_correlation(before, now)
    ranks = "" if math.isnan(correlation) else f" (rank correlation of sizes {correlation:.2f})"
    message = f"with random weights {changed} of {int(tested.sum())} effects are others{ranks}"
    return verdict("weights", share >= threshold, share, threshold, tested, forwards, message)


def _settle_activation(context: RefutationContext) -> int:
    """Let a target read its activation from the model itself, not from a random one; how many images that took."""
    target = context.explainer.forward_func
    if not isinstance(target, SegmentationTarget) or target.activation != "auto":
        return 0
    inputs = context.inputs if isinstance(context.inputs, tuple) else (context.inputs,)
    further = format_additional_forward_args(context.arguments.get("additional_forward_args")) or ()
    target.predict(*target.model_inputs(*inputs, *further))
    return int(inputs[0].shape[0])


def _with_random_weights(explainer: Explainer, seed: int) -> Explainer | str:
    """The explainer of a copy of the model with permuted parameters, or the reason why there is none."""
    forward_func = explainer.forward_func
    model = forward_func.model if isinstance(forward_func, SegmentationTarget) else forward_func
    if not isinstance(model, nn.Module):
        return "the forward function is no module whose weights could be shuffled"
    copies: dict[int, Any] = {}
    model = copy.deepcopy(model, copies)
    if not any(parameter.numel() > 1 for parameter in model.parameters()):
        return "the model has no weights to shuffle"
    _permute_parameters(model, seed)
    twin = copy.copy(explainer)
    twin.forward_func = forward_func.with_model(model) if isinstance(forward_func, SegmentationTarget) else model
    if isinstance(explainer, LayerAverageTreatmentEffect):
        assert isinstance(twin, LayerAverageTreatmentEffect)
        if id(explainer.layer) not in copies:
            return "the layer is not found among the model's modules"
        twin.layer = copies[id(explainer.layer)]
    return twin


def _permute_parameters(model: nn.Module, seed: int) -> None:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator, device="cpu").to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _resolution(context: RefutationContext) -> float:
    """What share of a score may be rounding."""
    return relative_tolerance(context.inputs if isinstance(context.inputs, tuple) else (context.inputs,))


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, NaN where there is none."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(scipy_stats.spearmanr(first, second).statistic)


def _unit_at(statistics: TreatmentEffectStatistics, values: np.ndarray) -> str:
    """Names the unit with the largest of values ``(N, U)``."""
    return _unit(statistics, *np.unravel_index(int(values.argmax()), values.shape))


def _unit(statistics: TreatmentEffectStatistics, example: Any, unit: Any) -> str:
    return f"unit {int(statistics.unit_ids[unit])} of example {int(example)}"
