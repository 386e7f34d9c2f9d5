"""Do two estimates of the same effects differ by more than their errors allow?"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from captum_causalseg.statistics import Status, TreatmentEffectStatistics, adjust_p_values, moderate
from captum_causalseg.statistics.intervals import p_value, satterthwaite

__all__ = ["p_values_of_difference", "p_values_of_reported_errors", "sign_changes"]


def p_values_of_difference(
    first: TreatmentEffectStatistics,
    second: TreatmentEffectStatistics,
    difference: Tensor,
    *,
    resolution: float,
    of_population: bool,
    screened_too: bool = False,
) -> np.ndarray:
    """Two-sided p-values ``(N, U)`` of "both estimate the same effect"; NaN where that is not tested.

    The larger one of two tests: with moderated variances, and with each unit's own. Moderation is for the units whose few draws
    show no spread; the variance of those that vary most is made too small by it, and among many units one of them stands out.

    Args:
        first, second: independent estimates, each of one output.
        difference: ``(N, U)`` of their effects.
        resolution: exact effects whose difference is this share of the score are equal.
        of_population: both drew from random samples of one population of donors, not from the same donors.
        screened_too: also test units that were given up after their screening draws.
    """
    usable = [int(Status.ESTIMATED)] + [int(Status.SCREENED)] * screened_too
    known = np.logical_and.reduce([np.isin(one.status.numpy(), usable) & (one.n_draws.numpy() > 0) for one in (first, second)])
    effects = np.maximum(first.effect.abs().numpy(), second.effect.abs().numpy())
    rounding = resolution * (first.observed_score.abs().numpy()[:, None] + effects)
    factors = [_of_population(one) if of_population else one.variance_factor.numpy() for one in (first, second)]
    shrunk = [_moderated(first, second), _moderated(second, first)]
    own = [(one.sample_variance.numpy(), one.variance_freedom.numpy()) for one in (first, second)]
    distance = difference.abs().numpy()
    p = _welch(distance, shrunk, factors, rounding=rounding)
    # Where the draws do not show a unit's own variance, the moderated one has to do.
    return np.where(known, np.where(np.isnan(p), np.nan, np.fmax(p, _welch(distance, own, factors, rounding=rounding))), np.nan)


def sign_changes(first: TreatmentEffectStatistics, second: TreatmentEffectStatistics, alpha: float) -> np.ndarray:
    """Which units ``(N, U)`` have an effect above 0 in one estimate and below 0 in the other, both significantly.

    "Both differ from 0" is shown by the larger of the two p-values (an intersection-union test: it needs no independence, so that the
    estimates may share their draws); corrected by Benjamini and Hochberg over the units of an example that are hypotheses in both.
    """
    both = (first.hypotheses & second.hypotheses).numpy()
    opposite = np.sign(first.effect.numpy()) * np.sign(second.effect.numpy()) < 0
    p = np.where(opposite, np.fmax(first.p_values().numpy(), second.p_values().numpy()), 1.0)
    return np.stack([adjust_p_values(of_example, hypotheses=asked) <= alpha for of_example, asked in zip(p, both)])


def p_values_of_reported_errors(first: TreatmentEffectStatistics, second: TreatmentEffectStatistics) -> np.ndarray:
    """Two-sided p-values ``(N, U)`` of "both estimate the same effect" by the standard errors that were reported, whatever they rest on.

    NaN where both are exact or one is not known.
    """
    squares = np.stack([one.standard_error.numpy() ** 2 for one in (first, second)])
    freedoms = np.stack([one.degrees_of_freedom.numpy() for one in (first, second)])
    total = squares.sum(0)
    p = p_value((first.effect - second.effect).numpy(), np.sqrt(total), satterthwaite(squares, freedoms))
    return np.where(np.isfinite(total) & (total > 0), p, np.nan)


def _of_population(one: TreatmentEffectStatistics) -> np.ndarray:
    """The squared standard error over the variance, as a statement about the population that the donors are a sample of."""
    if one.settings.get("sampling") != "in context":
        return np.asarray(1 / one.n_draws.double().clamp_min(1).numpy())
    # The variance is that of a pair of draws, and no donors are counted out of it.
    return np.asarray(one.variance_factor.numpy())


def _welch(
    distance: np.ndarray,
    variances: Sequence[tuple[np.ndarray, np.ndarray]],
    factors: Sequence[np.ndarray],
    rounding: np.ndarray,
) -> np.ndarray:
    """p-values of Welch's t-test, NaN where a variance is not known; without any variance, 1 for what is equal to rounding.

    Args:
        distance: absolute differences.
        variances: of the two samples, with their degrees of freedom.
        factors: the squared standard errors are the variances times these.
        rounding: distances that are none.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = [np.where(factor == 0, 0.0, variance * factor) for (variance, _), factor in zip(variances, factors)]
        total = squares[0] + squares[1]
        p = p_value(distance, np.sqrt(total), satterthwaite(np.stack(squares), np.stack([freedom for _, freedom in variances])))
    exact: np.ndarray = np.where(distance <= rounding, 1.0, 0.0)
    return np.where(total == 0, exact, np.where(np.isfinite(total), p, np.nan))


def _moderated(own: TreatmentEffectStatistics, other: TreatmentEffectStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Moderated variances ``(N, U)`` and their degrees of freedom.

    Where none of an example's units shows a spread, their scale is learned from the other estimate's units.
    """
    variances, freedoms = [], []
    for n in range(len(own.effect)):
        mine, theirs = (
            (one.sample_variance[n].numpy(), np.where(one.hypotheses[n].numpy(), one.variance_freedom[n].numpy(), np.nan))
            for one in (own, other)
        )
        variance, freedom = moderate(*mine)
        if np.isinf(variance).any():
            variance = moderate(np.concatenate([mine[0], theirs[0]]), np.concatenate([mine[1], theirs[1]]))[0][: len(mine[0])]
        variances.append(variance)
        freedoms.append(freedom)
    return np.stack(variances), np.stack(freedoms)
