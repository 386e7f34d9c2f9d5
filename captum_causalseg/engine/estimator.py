"""Estimators: what the scores of a row's draws say of its effect, and how sure that is.

An estimator knows a design by the :class:`~captum_causalseg.engine.sample.Selection` that it hands over, and is one class with one method.
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from captum_causalseg.engine.sample import Sample, Strata
from captum_causalseg.statistics.slopes import PRIOR_DRAWS, SlopeSums

if TYPE_CHECKING:
    from captum_causalseg.engine.ranking import FirstOrder

__all__ = ["Estimate", "Estimator", "MeanEstimator", "RegressionEstimator", "StratifiedEstimator"]


# Of sums of squares that are 1 in all: what is less is the rounding of controls that do not vary.
_ROUNDING = 1e-12
# Of fewer stratified draws neither a slope nor a line between neighbors says anything.
_LEAST_DRAWS = 6


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a row's draws say about ``K`` outputs.

    Args:
        mean: ``(K,)`` the estimated effects.
        variance: ``(K,)`` the spread of one draw; NaN where it cannot be seen.
        factor: the squared standard error is ``factor * variance``; 0 where every donor was used.
        freedom: degrees of freedom of ``variance``.
        n: draws that went into it.
        sums: ``(K,)`` what is needed of the draws for an estimate that leans on the other rows of the example too; ``None`` where this one is final.
    """

    mean: np.ndarray
    variance: np.ndarray
    factor: float
    freedom: float
    n: int
    sums: SlopeSums | None = None


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
    well (two-phase sampling: Cochran 1977, ch. 12).

    From 6 draws on, where the predicted effects of the ranked donors are known, they are a control: their mean over every stratum is exact, and
    tells on which side of it the draws lie. Its slope leans on the other units of the example, so this estimate is a first one, and ``sums``
    are what :func:`~captum_causalseg.statistics.slopes.leaning` makes the final one of. Controls of the evaluator are not looked at.
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
        added = sampled / within * ranked.var(0, ddof=1)
        variance = counts @ (ranked[1:] - ranked[:-1]) ** 2 / (2 * n) + added
        freedom = _freedom_of_differences(n)
        sums = None
        if sample.first_order is not None and n >= _LEAST_DRAWS:
            sums = _slope_sums(ranked, strata, sample.first_order, mean=mean, added=added, freedom=freedom)
        return Estimate(mean=mean, variance=variance, factor=within, freedom=freedom, n=n, sums=sums)


@dataclass(frozen=True)
class RegressionEstimator(Estimator):
    r"""Control variates: a simple random sample whose controls say on which side of their known means it lies.

    For values ``v_i``, controls ``x_i`` with known mean ``X``, sampling fraction ``f = n/D`` (0 with replacement), and slopes ``b_i`` of the least-squares
    regression of values on controls over **all other draws**, the estimate is the mean of

    .. math:: t_i = v_i - b_i\,((1 - f)\,x_i + f\,\bar x - X)

    The bracket has mean 0 whatever the other draws are, and ``b_i`` does not know draw ``i``: so the estimate is exactly unbiased, where that with one slope
    for all draws (the regression estimator: Cochran, Sampling Techniques, 1977, ch. 7; control variates: Lavenberg and Welch, Management Science
    27, 1981) is biased by ``1/n``. The variance of one draw, with ``n - 1 - C`` degrees of freedom for ``C`` controls, is

    .. math:: \frac{n-1}{n^2} \sum_i r_i^2 \cdot (1 + n\,(\bar x - X)^\top S^{-1} (\bar x - X)),

    ``r_i`` the residual of draw ``i`` from the regression over the others (Allen, Technometrics 16, 1974), ``S`` the sums of squares and products of the
    controls about their mean: the further the sample lies from ``X``, the more a wrong slope counts. The factor is that of the mean, ``(1 - f) / n``.

    With correlation ``rho`` the squared error is about ``1 - rho^2`` times that of the mean, times ``1 + C / (n - C - 2)`` for not knowing the
    slopes. Controls with heavy tails make the variance of few draws too small (on trained networks, with predicted effects as the control, 95 %
    intervals held 0.90 at 8 draws and 0.95 at 20): below ``least_draws``, and without controls, the estimate is the mean.

    Args:
        least_draws: of a row, for slopes to be estimated.

    Raises:
        ValueError: the mean of a control is not known, or draws have strata.
    """

    least_draws: int = 20

    def estimate(self, sample: Sample) -> Estimate:
        """See :meth:`Estimator.estimate`."""
        if sample.selection.strata is not None:
            raise ValueError("sampling: RegressionEstimator takes draws that are all alike, got strata; give it UniformDesign")
        plain, kept = MeanEstimator().estimate(sample), sample.selection.weights > 0
        if sample.controls is None or sample.control_means is None or not sample.controls.shape[2]:
            return plain
        if not np.isfinite(sample.control_means).all():
            raise ValueError(
                "control_means: RegressionEstimator needs the mean of every control over all donors, got NaN or infinity"
            )
        values, controls = sample.values[kept], sample.controls[kept]
        n, n_controls = len(values), controls.shape[2]
        if n < max(self.least_draws, n_controls + 3):
            return plain
        fraction = min(n / sample.selection.total, 1.0)
        spread = np.sqrt(((controls - controls.mean(0)) ** 2).sum(0))
        scale = np.where(spread > 0, spread, 1.0)
        # About the known means, in units in which every control's sum of squares is 1.
        x = (controls - sample.control_means) / scale
        off, around, v = x.mean(0), x - x.mean(0), values - values.mean(0)
        slopes = _slopes_without_each(v, around)
        mean = (values - (slopes * ((1 - fraction) * x + fraction * off)).sum(2)).mean(0)
        residuals = n / (n - 1) * (v - (slopes * around).sum(2))
        distance = np.einsum("kc,kcd,kd->k", off, _inverse(np.einsum("nkc,nkd->kcd", around, around)), off)
        variance = (n - 1) / n**2 * (residuals**2).sum(0) * (1 + n * distance)
        # Equal draws have exactly no variance, whatever the controls do.
        variance = np.where(plain.variance == 0, 0.0, variance)
        return Estimate(mean=mean, variance=variance, factor=plain.factor, freedom=float(n - 1 - n_controls), n=n)


def _slopes_without_each(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Least-squares slopes ``(n, K, C)`` of ``v`` ``(n, K)`` on ``x`` ``(n, K, C)``, both about their means, over all draws but one.

    Where the others' controls do not vary, they are 0.
    """
    # Sums of products about the means of the others: those of all, less n/(n-1) times the draw's own.
    own = len(v) / (len(v) - 1)
    squares = np.einsum("nkc,nkd->kcd", x, x) - own * np.einsum("nkc,nkd->nkcd", x, x)
    products = np.einsum("nkc,nk->kc", x, v) - own * x * v[..., None]
    slopes: np.ndarray = np.einsum("nkcd,nkd->nkc", _inverse(squares), products)
    return slopes


def _inverse(squares: np.ndarray) -> np.ndarray:
    """Of sums of squares and products ``(..., C, C)`` of controls in units of their spread; 0 in directions in which they do not vary."""
    varied = np.trace(squares, axis1=-2, axis2=-1) > _ROUNDING
    found: np.ndarray = np.linalg.pinv(np.where(varied[..., None, None], squares, 0.0), rcond=_ROUNDING, hermitian=True)
    return found


def _slope_sums(
    ranked: np.ndarray, strata: Strata, first_order: "FirstOrder", *, mean: np.ndarray, added: np.ndarray, freedom: float
) -> SlopeSums | None:
    """What is kept of values ``(n, K)`` along the ranking for residuals from any slope on predicted effects; ``None`` if these are all equal."""
    n = len(ranked)
    order = np.argsort(strata.ranks)
    x = first_order.drawn[:n][order]
    centers, variances = first_order.within(strata)
    weights = strata.sizes / strata.n_candidates
    # Of the numbers that are squared here, (L, 1 + K): those of x first.
    both = np.column_stack([x, ranked])
    counts, steps = _counts_of_differences(n), both[1:] - both[:-1]
    differences = _forms(steps, counts / (2 * n))
    rise = centers[1:] - centers[:-1]
    scale = counts @ (variances[1:] + variances[:-1] + rise**2) / (2 * n)
    if not scale > 0:
        return None
    others = _without_each(steps)
    beyond = weights * (x - centers) / ((n - 2) * others[:, 0] + PRIOR_DRAWS * scale)
    place = (strata.ranks[order] + 0.5) / strata.n_candidates
    share = ((place[2:] - place[1:-1]) / (place[2:] - place[:-2]))[:, None]
    off = both[1:-1] - share * both[:-2] - (1 - share) * both[2:]
    noise = _forms(off, _shares_of_triples(n) / (1 + share**2 + (1 - share) ** 2)[:, 0])
    spread = weights**2 * (1 - 1 / strata.sizes)
    spread = spread / spread.sum()
    along = np.divide(steps, rise[:, None], out=np.zeros_like(steps), where=rise[:, None] > 0)
    return SlopeSums(
        mean=mean,
        own=(n - 2) * (beyond @ others[:, 1:]),
        shared=np.full(len(mean), PRIOR_DRAWS * scale * beyond.sum()),
        scale=np.full(len(mean), scale),
        n=np.full(len(mean), float(n)),
        added=added,
        rounding=np.zeros(len(mean)),
        freedom=np.full(len(mean), (freedom + _freedom_of_triples(n)) / 2),
        differences=differences,
        noise=noise,
        steps=_forms(steps, _of_neighbors(spread / 12)),
        climbs=_forms(along, _of_neighbors(spread * variances)),
    )


def _forms(found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of squares and products ``(K, 3)`` of what was found for x and values ``(L, 1 + K)``: ``vv``, ``vx``, ``xx``."""
    x, v = found[:, :1], found[:, 1:]
    forms = np.empty((v.shape[1], 3))
    forms[:, 0], forms[:, 1], forms[:, 2] = weights @ v**2, weights @ (v * x), weights @ x**2
    return forms


def _without_each(steps: np.ndarray) -> np.ndarray:
    """``xx`` and ``vx`` of successive differences ``(n, 1 + K)`` if the draw at each place were not there, from steps ``(n - 1, 1 + K)``."""
    n = len(steps) + 1
    products, bridges = steps[:, :1] * steps, (steps[:-1, :1] + steps[1:, :1]) * (steps[:-1] + steps[1:])
    found = np.empty((n, steps.shape[1]))
    found[:] = products.sum(0)
    found[:-1] -= products
    found[1:] -= products
    found[1:-1] += bridges
    # The first and the last difference that are left count twice.
    first, last = np.empty_like(found), np.empty_like(found)
    first[:], last[:] = products[0], products[-1]
    first[0], first[1], last[-1], last[-2] = products[1], bridges[0], products[-2], bridges[-1]
    left: np.ndarray = (found + first + last) / (2 * (n - 1))
    return left


def _of_neighbors(weights: np.ndarray) -> np.ndarray:
    """Weights ``(n - 1,)`` of differences, where each of ``n`` strata takes the mean of those on both its sides, or the only one, with its weight."""
    halves = weights / 2
    halves[[0, -1]] *= 2
    found: np.ndarray = halves[:-1] + halves[1:]
    return found


# What depends on the number of draws alone is the same for most rows of a run, which may have thousands.


@functools.lru_cache
def _counts_of_triples(n: int) -> np.ndarray:
    """How often the ``n - 2`` triples of neighbors count: those at the ends stand for the values that are in the middle of none."""
    counts = np.ones(n - 2)
    counts[[0, -1]] = 3
    counts.setflags(write=False)
    return counts


@functools.lru_cache
def _shares_of_triples(n: int) -> np.ndarray:
    counts = _counts_of_triples(n)
    shares: np.ndarray = counts / counts.sum()
    shares.setflags(write=False)
    return shares


@functools.lru_cache
def _freedom_of_triples(n: int) -> float:
    """Degrees of freedom of the mean square off the line between neighbors, of equally spaced normal values."""
    counts = _counts_of_triples(n)
    shared = 4 / 9 * (counts[:-1] * counts[1:]).sum() + 1 / 36 * (counts[:-2] * counts[2:]).sum()
    return float(counts.sum() ** 2 / ((counts**2).sum() + 2 * shared))


def _factor_within(strata: Strata) -> float:
    """One of the donors of each stratum is drawn: a stratum of one is known exactly."""
    weights = strata.sizes / strata.n_candidates
    return float((weights**2 * (1 - 1 / strata.sizes)).sum())


@functools.lru_cache
def _counts_of_differences(n: int) -> np.ndarray:
    """How often each of the ``n - 1`` successive differences counts, so that every one of ``n`` values counts twice at least."""
    counts = np.ones(n - 1)
    counts[0] += 1
    counts[-1] += 1
    counts.setflags(write=False)
    return counts


@functools.lru_cache
def _freedom_of_differences(n: int) -> float:
    """Degrees of freedom of the mean of successive differences, each as often as it counts."""
    counts = _counts_of_differences(n)
    # Of normal values: a squared difference has variance 8, two that share a value covariance 2.
    return float(2 * counts.sum() ** 2 / (2 * (counts**2).sum() + (counts[:-1] * counts[1:]).sum()))
