"""Ratios of two estimates from the same draws, with their intervals (Fieller 1954)."""

import numpy as np

from captum_causalseg.statistics.intervals import quantile

__all__ = ["fieller", "ratio_interval"]


def fieller(
    ratio: np.ndarray,
    denominator: np.ndarray,
    *,
    variances: tuple[np.ndarray, np.ndarray],
    covariance: np.ndarray,
    t: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals of ratios ``a / b``: all ``r`` for which ``a - r b`` is not told from 0.

    They are found from the rest ``a - ratio b``, which is 0 where the ratio is the same in every draw; differences of large numbers would not be.

    Args:
        ratio: the estimates ``a / b``, of any shape.
        denominator: the estimates ``b``.
        variances: of the rests, and of the denominators.
        covariance: of the two.
        t: quantiles of Student's t for the level and the degrees of freedom.

    Returns:
        Unbounded, ``-inf`` and ``inf``, where the denominator is not told from 0.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics.ratios import fieller
        >>> half, zero = np.array([0.5]), np.zeros(1)
        >>> ends = fieller(half, np.array([2.0]), variances=(np.array([0.01]), zero), covariance=zero, t=np.array([2.0]))
        >>> [round(float(end[0]), 6) for end in ends]
        [0.4, 0.6]
    """
    of_rest, of_denominator = variances
    room = denominator**2 - t**2 * of_denominator
    with np.errstate(invalid="ignore", divide="ignore"):
        # With r = ratio + s: s^2 room + 2 s t^2 covariance - t^2 of_rest = 0.
        middle = -(t**2) * covariance / room
        half = np.sqrt(np.maximum(middle**2 + t**2 * of_rest / room, 0.0))
        lower, upper = ratio + middle - half, ratio + middle + half
    told = room > 0
    return np.where(told, lower, -np.inf), np.where(told, upper, np.inf)


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
    n, b = len(numerator), float(np.mean(denominator))
    if n < 2 or b == 0:
        return -np.inf, np.inf
    ratio = float(np.mean(numerator)) / b
    (of_rest, shared), (_, of_denominator) = np.cov(np.stack([numerator - ratio * denominator, denominator])) / n
    t = quantile(n - 1, level)
    lower, upper = fieller(np.array(ratio), np.array(b), variances=(of_rest, of_denominator), covariance=shared, t=t)
    return float(lower), float(upper)
