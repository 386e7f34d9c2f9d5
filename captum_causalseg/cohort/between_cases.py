"""Statistics over cases: means, random-effects means, paired differences, false discoveries. Cases are independent, units are not."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from captum_causalseg.cohort.prediction import prediction_interval
from captum_causalseg.statistics import adjust_p_values
from captum_causalseg.statistics.intervals import half_width, p_value

__all__ = ["Discoveries", "mean_of_cases", "paired_difference", "random_effects"]

# A standard error so much smaller than another case's is rounding of one that is 0.
_EXACT = 1e-6


def mean_of_cases(values: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Means over cases, and what they are known to.

    Args:
        values: a row per case, a column per quantity; NaN where a case has none.
        level: coverage of the interval.

    Returns:
        A row per quantity, with the columns ``n`` (cases that have it), ``mean``, ``lower``, ``upper``: the t-interval between
        cases, NaN for a single case, and where all cases have the same value: cases that do not differ do not show how cases do.

    Example:
        >>> import pandas as pd
        >>> from captum_causalseg.cohort.between_cases import mean_of_cases
        >>> mean_of_cases(pd.DataFrame({"mass": [1.0, 2.0, 3.0]})).round(3).values.tolist()
        [[3.0, 2.0, -0.484, 4.484]]
    """
    n = values.notna().sum()
    mean = values.mean()
    spread = values.std(ddof=1)
    spread = spread.where(spread > _EXACT**2 * mean.abs())
    half = half_width(spread / np.sqrt(n.where(n > 0)), n - 1, level)
    return pd.DataFrame({"n": n, "mean": mean, "lower": mean - half, "upper": mean + half})


def random_effects(effect: np.ndarray, standard_error: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """The mean of effects that differ from case to case, each known with an error of its own.

    The model is ``effect_i ~ N(theta_i, se_i^2)``, ``theta_i ~ N(mean, tau^2)``. ``tau^2`` is Paule and Mandel's (1982): with the weights
    ``w_i = 1 / (se_i^2 + tau^2)``, the weighted sum of squares about the weighted mean equals its expectation ``n - 1``, or ``tau^2``
    is 0. The interval of the mean is Hartung and Knapp's (2001), ``t_{n-1}`` times the root of
    ``max(1, sum w_i (effect_i - mean)^2 / (n - 1)) / sum w_i``; the 1 keeps it from being narrower than without their factor (Knapp and
    Hartung 2003). Another case's effect lies in the prediction interval
    (:func:`~captum_causalseg.cohort.prediction.prediction_interval`, Nagashima, Noma and Furukawa 2019), which holds what is not known of ``tau``.

    Weights need errors that are finite and positive. Where one case's is 0 (every donor was drawn) it would count alone, and where one
    is infinite (no draw did anything) it would not count though its effect is near 0. Then **all cases weigh the same**: the mean is
    the plain one, its variance ``max(s^2, mean se_i^2) / n`` with the variance ``s^2`` between the effects, and ``tau^2`` is
    Hedges' ``max(0, s^2 - mean se_i^2)``.

    Args:
        effect: one per case; NaN where a case has none.
        standard_error: of each, from the draws within the case; 0 where exact, infinite where not known.
        level: coverage of both intervals.

    Returns:
        ``n_cases``; ``effect``, ``standard_error``, ``lower``, ``upper``, ``p_value`` (of a mean of 0) of the mean; ``tau`` and ``tau2``; ``q``
        (Cochran's, about the mean with weights ``1 / se_i^2``), ``q_p_value`` (chi-squared with ``n - 1`` degrees of freedom) and
        ``i2`` (``max(0, (q - n + 1) / q)``); ``prediction_lower``, ``prediction_upper`` (from three cases on); ``weights``, ``"inverse
        variance"`` or ``"equal"``. What cannot be known is NaN: of one case, all but its own effect and error; with infinite errors,
        what tells the spread between cases from that within; of exact effects that are all the same, the error.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.cohort.between_cases import random_effects
        >>> found = random_effects(np.array([0.1, 0.2, 0.3]), np.array([0.05, 0.05, 0.05]))
        >>> [round(found[name], 4) for name in ("effect", "tau2", "q", "i2")]  # 0.01 between the effects, 0.0025 within
        [0.2, 0.0075, 8.0, 0.75]
    """
    known = ~np.isnan(effect)
    effect = effect[known].astype(np.float64)
    error = np.nan_to_num(standard_error[known].astype(np.float64), nan=np.inf, posinf=np.inf)
    n = len(effect)
    found: dict[str, Any] = {"n_cases": n} | dict.fromkeys(_POOLED, math.nan) | {"weights": "equal"}
    if n == 0:
        return found
    if n == 1:
        return found | {"effect": float(effect[0]), "standard_error": float(error[0])}
    if np.isfinite(error).all() and error.min() > _EXACT * error.max():
        mean, variance, tau2, q = _by_inverse_variance(effect, error)
        found["weights"] = "inverse variance"
    else:
        mean, variance, tau2, q = _alike(effect, error)
    se = _known(math.sqrt(variance), mean)
    half = float(half_width(se, n - 1, level))
    found |= {"effect": mean, "standard_error": se, "lower": mean - half, "upper": mean + half}
    found |= {"p_value": _p_value(mean, se, n - 1), "tau2": tau2, "tau": math.sqrt(tau2), "q": q}
    if not math.isnan(q):
        found["q_p_value"] = float(scipy_stats.chi2.sf(q, n - 1))
        found["i2"] = 1.0 if math.isinf(q) else max(0.0, (q - n + 1) / q) if q > 0 else 0.0
    if n > 2 and not math.isnan(tau2 + se):
        low, high = prediction_interval(effect, error, level)
        found |= {"prediction_lower": low, "prediction_upper": high}
    return found


_POOLED = (
    "effect",
    "standard_error",
    "lower",
    "upper",
    "p_value",
    "tau",
    "tau2",
    "i2",
    "q",
    "q_p_value",
    "prediction_lower",
    "prediction_upper",
)


def paired_difference(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """Second minus first, over pairs.

    Args:
        first: one value per pair; NaN where it has none, that pair is left out.
        second: as many.
        level: coverage of the interval.

    Returns:
        ``n_pairs``, ``mean_first``, ``mean_second``, ``difference``, ``standard_error``, ``lower``, ``upper`` (t-interval), ``p_value`` (paired
        t-test; all four NaN where every pair differs by the same, the last is 1 where none does) and ``p_wilcoxon`` (signed ranks, pairs without a difference left out; 1 if there are no others).

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.cohort.between_cases import paired_difference
        >>> found = paired_difference(np.array([1.0, 2.0, 3.0]), np.array([1.5, 3.0, 4.5]))
        >>> found["difference"], round(found["lower"], 3), round(found["p_value"], 3), found["p_wilcoxon"]
        (1.0, -0.242, 0.074, 0.25)
    """
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    n = int(both.sum())
    names = ("mean_first", "mean_second", "difference", "standard_error", "lower", "upper", "p_value", "p_wilcoxon")
    found: dict[str, Any] = {"n_pairs": n} | dict.fromkeys(names, math.nan)
    if n == 0:
        return found
    change = second - first
    mean = float(change.mean())
    found |= {"mean_first": float(first.mean()), "mean_second": float(second.mean()), "difference": mean}
    if n == 1:
        return found
    se = _known(float(change.std(ddof=1)) / math.sqrt(n), mean)
    half = float(half_width(se, n - 1, level))
    wilcoxon = float(scipy_stats.wilcoxon(change).pvalue) if change.any() else 1.0
    found |= {"standard_error": se, "lower": mean - half, "upper": mean + half}
    return found | {"p_value": _p_value(mean, se, n - 1), "p_wilcoxon": wilcoxon}


class Discoveries:
    """False discovery rate over more p-values than one wants to hold: only those that can pass are kept.

    With ``m`` p-values, the ``k``-th smallest passes if ``p_(j) <= alpha j / m`` for a ``j >= k`` (Benjamini and Hochberg 1995); under any
    dependence ``m`` is replaced by ``m (1 + 1/2 + ... + 1/m)`` (Benjamini and Yekutieli 2001). One above ``alpha`` cannot pass, and the
    ranks of the others do not depend on it: it is counted and forgotten.

    Args:
        alpha: the false discovery rate.
        correction: ``"fdr_bh"`` or ``"fdr_by"``.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.cohort.between_cases import Discoveries
        >>> found = Discoveries(0.05, "fdr_bh")
        >>> found.add(np.array([0.001, 0.8]))
        >>> found.add(np.array([0.02, np.nan, 0.5]))
        >>> found.threshold(), found.q_values(np.array([0.001, 0.02])).tolist()
        (0.02, [0.004, 0.04])
    """

    def __init__(self, alpha: float, correction: str) -> None:
        self.alpha, self.n_tests = alpha, 0
        self._correction = correction
        self._small: list[np.ndarray] = []

    def add(self, p_values: np.ndarray) -> None:
        """Some of the p-values; NaN is no test."""
        self.n_tests += int((~np.isnan(p_values)).sum())
        self._small.append(p_values[p_values <= self.alpha])

    def threshold(self) -> float:
        """The largest p-value that passes; -1 if none does."""
        p, q = self._passing()
        return float(p[q <= self.alpha].max(initial=-1.0))

    def q_values(self, p_values: np.ndarray) -> np.ndarray:
        """Of p-values that were added and pass: the smallest false discovery rate at which they pass."""
        p, q = self._passing()
        return q[np.searchsorted(p, p_values, side="right") - 1]

    def _passing(self) -> tuple[np.ndarray, np.ndarray]:
        p = np.sort(np.concatenate([np.empty(0), *self._small]))
        self._small = [p]
        return p, adjust_p_values(p, self._correction, n_tests=self.n_tests)


def _by_inverse_variance(effect: np.ndarray, error: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, its variance, tau^2, and Cochran's Q."""
    from statsmodels.stats.meta_analysis import combine_effects

    # In units of a typical error, so that its absolute tolerances mean something. It divides by Q, which is 0 where all effects agree;
    # and very different errors take more steps than it makes by default.
    unit = float(np.median(error))
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = combine_effects(effect / unit, (error / unit) ** 2, method_re="pm", maxiter=500)
    variance = max(float(fitted.var_hksj_re), float(fitted.var_eff_w_re)) * unit**2
    # A difference of squares: it can be a little below 0.
    return float(fitted.mean_effect_re) * unit, variance, float(fitted.tau2) * unit**2, max(float(fitted.q), 0.0)


def _alike(effect: np.ndarray, error: np.ndarray) -> tuple[float, float, float, float]:
    """The same, of cases that all weigh the same."""
    mean, between = float(effect.mean()), float(effect.var(ddof=1))
    if not np.isfinite(error).all():
        return mean, between / len(effect), math.nan, math.nan
    within = float((error**2).mean())
    variance = max(between, within) / len(effect)
    exact = error <= _EXACT * error.max()
    if effect[exact].max() > effect[exact].min():
        return mean, variance, max(0.0, between - within), math.inf
    # The limit of Q where the weight of an exact effect grows without bound: the weighted mean is that effect.
    q = float((((effect - effect[exact][0]) / np.where(exact, 1.0, error)) ** 2).sum())
    return mean, variance, max(0.0, between - within), q


def _p_value(mean: float, se: float, freedom: int) -> float:
    """Two-sided; of a mean without any spread 1 if it is 0, else not known."""
    if math.isnan(se):
        return 1.0 if mean == 0 else math.nan
    return float(p_value(mean, se, freedom))


def _known(se: float, mean: float) -> float:
    """NaN for a standard error of 0: cases that do not differ do not show how cases do."""
    return se if se > _EXACT**2 * abs(mean) else math.nan
