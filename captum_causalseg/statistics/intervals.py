"""Student's t: half-widths of intervals and p-values, for everything here that has a standard error."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

__all__ = ["half_width", "p_value", "p_value_above", "quantile", "satterthwaite"]


def quantile(freedom: ArrayLike, level: float) -> np.ndarray:
    """How many standard errors two-sided t-intervals reach to either side, ``t_freedom(1/2 + level/2)``.

    Args:
        freedom: degrees of freedom, of any shape.
        level: coverage, in (0, 1).

    Example:
        >>> from captum_causalseg.statistics.intervals import quantile
        >>> float(quantile(10, 0.95).round(3))
        2.228
    """
    found: np.ndarray = np.asarray(scipy_stats.t.ppf(0.5 + level / 2, freedom))
    return found


def half_width(standard_error: ArrayLike, freedom: ArrayLike, level: float) -> np.ndarray:
    """Half the width of two-sided t-intervals, ``t_freedom(1/2 + level/2) * standard_error``.

    Args:
        standard_error: of any shape; 0 where an estimate is exact: its interval is a point, whatever the degrees of freedom.
        freedom: degrees of freedom, of the same shape or one number.
        level: coverage, in (0, 1).

    Example:
        >>> from captum_causalseg.statistics.intervals import half_width
        >>> float(half_width(2.0, 10, 0.95).round(3)), float(half_width(0.0, float("inf"), 0.95))
        (4.456, 0.0)
    """
    error = np.asarray(standard_error, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(error == 0, 0.0, quantile(freedom, level) * error)


def p_value(estimate: ArrayLike, standard_error: ArrayLike, freedom: ArrayLike) -> np.ndarray:
    """Two-sided p-values of "it is 0", ``2 P(T_freedom > |estimate| / standard_error)``; NaN where something is not known.

    Args:
        estimate: of any shape.
        standard_error: of the same shape; where it is 0 the estimate is exact, and its p-value 1 if it is 0, else 0.
        freedom: degrees of freedom, of the same shape or one number.

    Example:
        >>> from captum_causalseg.statistics.intervals import p_value
        >>> p_value([2.0, 0.0, 0.1], [1.0, 0.0, 0.0], 10).round(3).tolist()
        [0.073, 1.0, 0.0]
    """
    estimate, error = np.asarray(estimate, dtype=np.float64), np.asarray(standard_error, dtype=np.float64)
    exact = error == 0
    p = 2 * scipy_stats.t.sf(np.abs(estimate / np.where(exact, 1.0, error)), freedom)
    return np.where(exact, np.where(np.isnan(estimate), np.nan, estimate == 0), p)


def p_value_above(estimate: ArrayLike, standard_error: ArrayLike, freedom: ArrayLike) -> np.ndarray:
    """One-sided p-values of "it is at most 0", ``P(T_freedom > estimate / standard_error)``; NaN where something is not known.

    Args:
        estimate: of any shape.
        standard_error: of the same shape; where it is 0 the estimate is exact, and its p-value 0 if it is above 0, else 1.
        freedom: degrees of freedom, of the same shape or one number.

    Example:
        >>> from captum_causalseg.statistics.intervals import p_value_above
        >>> p_value_above([2.0, -2.0, 0.1, 0.0], [1.0, 1.0, 0.0, 0.0], 10).round(3).tolist()
        [0.037, 0.963, 0.0, 1.0]
    """
    estimate, error = np.asarray(estimate, dtype=np.float64), np.asarray(standard_error, dtype=np.float64)
    exact = error == 0
    p = scipy_stats.t.sf(estimate / np.where(exact, 1.0, error), freedom)
    return np.where(exact, np.where(np.isnan(estimate), np.nan, estimate <= 0), p)


def satterthwaite(variances: np.ndarray, freedoms: np.ndarray) -> np.ndarray:
    """Degrees of freedom of a sum of variances, ``(sum v)^2 / sum(v^2 / d)`` (Satterthwaite 1946), over the first axis.

    Args:
        variances: ``(n, ...)``; one that is 0 is exact and has no say.
        freedoms: ``(n, ...)`` their degrees of freedom.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics.intervals import satterthwaite
        >>> float(satterthwaite(np.array([1.0, 1.0, 0.0]), np.array([4.0, 4.0, 1.0])))
        8.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = np.where(variances == 0, 0.0, variances**2 / freedoms)
        found: np.ndarray = variances.sum(0) ** 2 / parts.sum(0)
    return found
