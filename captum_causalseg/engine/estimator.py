"""Estimators: what the scores of a row's draws say of its effect, and how sure that is.

An estimator knows a design by the :class:`~captum_causalseg.engine.sample.Selection` that it hands over, and is one class with one method.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from captum_causalseg.engine.sample import Sample, Strata

__all__ = ["Estimate", "Estimator", "MeanEstimator", "StratifiedEstimator"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a row's draws say about ``K`` outputs.

    Args:
        mean: ``(K,)`` the estimated effects.
        variance: ``(K,)`` the spread of one draw; NaN where it cannot be seen.
        factor: the squared standard error is ``factor * variance``; 0 where every donor was used.
        freedom: degrees of freedom of ``variance``.
        n: draws that went into it.
    """

    mean: np.ndarray
    variance: np.ndarray
    factor: float
    freedom: float
    n: int


class Estimator(ABC):
    """From the draws of one row to an estimate of its effect; without state, one for all rows."""

    @abstractmethod
    def estimate(self, sample: Sample) -> Estimate:
        """The estimate from all draws up to the end of a stage."""


class MeanEstimator(Estimator):
    """The mean of a simple random sample of ``n`` of ``D`` donors, and its variance ``(1 - n/D) s^2 / n`` (Cochran, Sampling Techniques, 1977, ch. 2).

    ``s^2`` is the sample variance with ``n - 1`` degrees of freedom. With replacement, ``D`` is infinite.
    """

    def estimate(self, sample: Sample) -> Estimate:
        """See :meth:`Estimator.estimate`; strata are not looked at."""
        values = sample.values[sample.selection.weights > 0]
        n = len(values)
        with np.errstate(invalid="ignore"):
            variance = values.var(0, ddof=1) if n > 1 else np.full(values.shape[1], np.nan)
        # Equal draws have exactly no variance, whatever is left of rounding the mean.
        variance = np.where((values == values[:1]).all(0) & (n > 1), 0.0, variance)
        return Estimate(
            mean=values.mean(0), variance=variance, factor=max(0.0, 1 - n / sample.selection.total) / n, freedom=n - 1, n=n
        )


class StratifiedEstimator(Estimator):
    """The weighted mean of one draw per stratum; of draws without strata, what :class:`MeanEstimator` makes of them.

    With stratum weights ``w_h = m_h / m``, ``m_h`` of ``m`` candidates, the estimate is ``sum w_h v_h``, and its squared standard error the factor
    ``sum w_h^2 (1 - 1/m_h)`` times the variance within strata. That is estimated by successive differences along the ranking (Wolter, Introduction
    to Variance Estimation, 2007, ch. 8), ``sum(c[i] (v[i+1] - v[i])**2) / (2n)``, which also hold part of the spread between strata: it errs to the
    safe side. Every stratum's spread is in two differences, but that of the strata at the ends in one only, where it is often largest: those
    two differences count twice (``c``). What the choice of the candidates adds, ``S**2 (1/m - 1/D)`` for ``D`` donors, is in the variance as
    well (two-phase sampling: Cochran 1977, ch. 12). Controls are not looked at.
    """

    def estimate(self, sample: Sample) -> Estimate:
        """See :meth:`Estimator.estimate`."""
        strata, total = sample.selection.strata, sample.selection.total
        if strata is None:
            return MeanEstimator().estimate(sample)
        (n, outputs), m, sizes = sample.values.shape, strata.n_candidates, strata.sizes
        ranked, weights = sample.values[np.argsort(strata.ranks)], sizes / m
        mean = weights @ ranked
        within = _factor_within(strata)
        sampled = (1 / m - 1 / total) if total > m else 0.0
        if n < 2:
            return Estimate(mean=mean, variance=np.full(outputs, np.nan), factor=within + sampled, freedom=0.0, n=n)
        if within == 0:  # every candidate was used
            return Estimate(mean=mean, variance=ranked.var(0, ddof=1), factor=sampled, freedom=n - 1, n=n)
        counts = _counts_of_differences(n)
        variance = counts @ np.diff(ranked, axis=0) ** 2 / (2 * n) + sampled / within * ranked.var(0, ddof=1)
        # Of normal values: a squared difference has variance 8, two that share a value covariance 2.
        freedom = 2 * counts.sum() ** 2 / (2 * (counts**2).sum() + (counts[:-1] * counts[1:]).sum())
        return Estimate(mean=mean, variance=variance, factor=within, freedom=float(freedom), n=n)


def _factor_within(strata: Strata) -> float:
    """One of the donors of each stratum is drawn: a stratum of one is known exactly."""
    weights = strata.sizes / strata.n_candidates
    return float((weights**2 * (1 - 1 / strata.sizes)).sum())


def _counts_of_differences(n: int) -> np.ndarray:
    """How often each of the ``n - 1`` successive differences counts, so that every one of ``n`` values counts twice at least."""
    counts = np.ones(n - 1)
    counts[0] += 1
    counts[-1] += 1
    return counts
