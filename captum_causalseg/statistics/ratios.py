"""Ratios of two means over the same draws, with their intervals (Fieller 1954)."""

import numpy as np
from scipy import stats as scipy_stats

__all__ = ["ratio_interval"]


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval of ``mean(numerator) / mean(denominator)``: all ratios ``r`` for which a t-test does not refuse ``mean(numerator - r denominator) = 0``.

    Args:
        numerator: ``(n,)``, of independent draws.
        denominator: ``(n,)``, of the same draws.
        level: coverage, in (0, 1).

    Returns:
        Its ends. Unbounded, ``(-inf, inf)``, where the denominator's mean is not told from 0, or there is a single draw whose spread is not known.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics.ratios import ratio_interval
        >>> ratio_interval(np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.2, 1.8]))  # a half in each of the draws
        (0.5, 0.5)
        >>> lower, upper = ratio_interval(np.array([1.0, 1.2, 0.8]), np.array([2.0, 2.0, 2.0]))
        >>> round(lower, 3), round(upper, 3)  # that of the numerator, t_2 * 0.2 / sqrt(3) to either side, halved
        (0.252, 0.748)
    """
    n = len(numerator)
    a, b = float(np.mean(numerator)), float(np.mean(denominator))
    if n < 2:
        return -np.inf, np.inf
    t = float(scipy_stats.t.ppf(0.5 + level / 2, n - 1))
    # Of the residuals from the ratio itself, which are 0 where it is the same in every draw: differences of large numbers would not be.
    if b == 0:
        return -np.inf, np.inf
    ratio = a / b
    (v_rr, v_rb), (_, v_bb) = np.cov(np.stack([numerator - ratio * denominator, denominator])) / n
    room = b * b - t * t * v_bb
    if room <= 0:
        return -np.inf, np.inf
    # With r = ratio + s: s^2 (b^2 - t^2 v_bb) + 2 s t^2 v_rb - t^2 v_rr = 0.
    middle = -t * t * v_rb / room
    half = float(np.sqrt(max(middle * middle + t * t * v_rr / room, 0.0)))
    return float(ratio + middle - half), float(ratio + middle + half)
