"""The refuter that takes away what the model has learned: its weights are shuffled."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from captum_causalseg._checks import checked, integer
from captum_causalseg.evaluation.refute.context import (
    CONTEXT,
    FEWEST,
    Explainer,
    RefutationContext,
    copied,
    rank_correlation,
    resolution,
    settle,
)
from captum_causalseg.evaluation.refute.differences import p_values_of_difference
from captum_causalseg.evaluation.refute.report import Refutation, inconclusive, verdict
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["random_weights"]


@checked(context=CONTEXT, attempts=integer(1))
def random_weights(context: RefutationContext, attempts: int = 3) -> Refutation:
    """The model's weights are shuffled, and the effects must change: an explanation of the model must depend on the model.

    The model randomization test of Adebayo et al. 2018 (arXiv 1810.03292). In a copy of the model the entries of every parameter
    are permuted at random, within the parameter. That destroys what was learned and leaves the scale of every layer's weights
    as it is, so that activations do not fade or blow up as they may with fresh random weights. Buffers are kept: some are
    structure (positions, indices) and must not be permuted, and running statistics belong to channels that are
    interchangeable once the weights between them are permuted. RoI, reference and donors are the same.

    Tested are the units that are significant in the original and known well enough that the loss of their effect would show: were
    the effect under random weights 0, the t-test of the difference would find it at ``alpha``. Passes if for at least half of them
    that test finds another effect. If nothing had changed, a share of ``alpha`` would be expected, and a share of one half would have
    a chance of at most ``2 * alpha`` (Markov's inequality), however the units depend on each other. The correlation of maps, as in
    the paper, is not the criterion: a network's effects fade with the distance from the RoI whatever its weights are, and a model
    that is dead after the permutation has effects without ranks. The message reports it.

    **It sees** effects that do not depend on what the model has learned. **It does not see** how they depend on it: scale, sign, place, draws
    and donors that are wrong for one set of weights are wrong for the other as well.

    The statistic is that share, the threshold 0.5. Inconclusive with fewer than 5 such units (draw more), if there is no module to
    be seen (a plain function), or if the outputs under random weights are not finite in any of ``attempts`` permutations.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> report = refute(ate, case.images, case.donors, refuters=["weights"], n_draws=8)
        >>> report["weights"].verdict, report["weights"].message  # nothing in this network was learned
        ('inconclusive', 'the model has no weights to shuffle')
    """
    threshold = 0.5
    original = context.statistics
    significant = original.significant(context.alpha).numpy()
    if not significant.any():
        return inconclusive("weights", threshold, 0, message="no effect is significant, so none can be expected to change")
    n_forwards = settle(context)
    problem = ""
    for attempt in range(attempts):
        explainer = _with_random_weights(context.explainer, context.seed + attempt)
        if isinstance(explainer, str):
            return inconclusive("weights", threshold, n_forwards, message=explainer)
        try:
            # Without screening: a model that is dead now shall have as many draws to show it.
            found = context.estimate(explainer=explainer, n_screening_draws=0)
        except ValueError as error:
            # These arguments were good for the model itself: what is new are outputs that are not finite.
            problem = str(error)
            continue
        return _changed(context, significant, found=found, threshold=threshold, n_forwards=n_forwards)
    return inconclusive(
        "weights", threshold, n_forwards, message=f"{attempts} random models cannot be explained, the last one: {problem}"
    )


def _changed(
    context: RefutationContext,
    significant: np.ndarray,
    found: TreatmentEffectStatistics,
    threshold: float,
    n_forwards: int,
) -> Refutation:
    """Whether effects that were significant are others under random weights."""
    original = context.statistics
    forwards = n_forwards + found.n_forwards
    given: dict[str, Any] = {"resolution": resolution(context), "of_population": False, "screened_too": True}
    p = p_values_of_difference(original, found, original.effect - found.effect, **given)
    # Had the effect vanished, with the errors as they are, would it have been noticed?
    with np.errstate(invalid="ignore"):
        tested = significant & (p_values_of_difference(original, found, original.effect, **given) <= context.alpha)
    if int(tested.sum()) < FEWEST:
        message = f"too few effects ({int(tested.sum())}) are known well enough to miss them; draw more"
        return inconclusive("weights", threshold, forwards, message=message)
    changed = int((p[tested] <= context.alpha).sum())
    share = changed / int(tested.sum())
    before, now = original.effect.abs().numpy()[tested], found.effect.abs().numpy()[tested]
    correlation = rank_correlation(before, now)
    ranks = "" if math.isnan(correlation) else f" (rank correlation of sizes {correlation:.2f})"
    message = f"with random weights {changed} of {int(tested.sum())} effects differ{ranks}"
    return verdict(
        "weights", share >= threshold, statistic=share, threshold=threshold, tested=tested, n_forwards=forwards, message=message
    )


def _with_random_weights(explainer: Explainer, seed: int) -> Explainer | str:
    """The explainer of a copy of the model with permuted parameters, or the reason why there is none."""
    found = copied(explainer)
    if isinstance(found, str):
        return found
    twin, model = found
    if not any(parameter.numel() > 1 for parameter in model.parameters()):
        return "the model has no weights to shuffle"
    _permute_parameters(model, seed)
    return twin


def _permute_parameters(model: nn.Module, seed: int) -> None:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator, device="cpu").to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
