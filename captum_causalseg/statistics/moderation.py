"""Variances that lean on each other, and the standard errors made of them (Smyth 2004)."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from captum_causalseg._checks import array_of, checked, number

__all__ = ["mean_over_geometric_mean", "moderate", "moderated_errors"]

PRIOR_DEGREES_OF_FREEDOM = 3.0


@checked(
    variance=array_of("real", "(U,)", (1, 1)),
    freedom=array_of("real", "(U,)", (1, 1)),
    prior_degrees_of_freedom=number(above=0),
)
def moderate(
    variance: np.ndarray, freedom: np.ndarray, prior_degrees_of_freedom: float = PRIOR_DEGREES_OF_FREEDOM
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink sample variances toward their common scale (Smyth 2004).

    The common scale weighs as much as it is known: ``d0 k / (k + 1)`` degrees of freedom, ``k`` the number of *other* units that show a
    spread. (What a unit's variance may be, given ``k`` others, is spread by that of the variances among units, ``trigamma(d0/2)``, and by what is not
    known of their mean, about as much divided by ``k``.) A unit that is alone gets nothing from it.

    Args:
        variance: ``(U,)`` sample variances of one example's and output's units; NaN where they cannot be seen.
        freedom: ``(U,)`` their degrees of freedom; 0 where they cannot be seen, NaN for units without draws.
        prior_degrees_of_freedom: ``d0``, the weight of a common scale that is known.

    Returns:
        Moderated variances ``(U,)`` and their degrees of freedom ``(U,)``. The variances are infinite where no unit has a
        spread to learn the scale from, and NaN for units without draws.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics import moderate
        >>> variances, freedoms = moderate(np.array([0.0, 4.0]), np.array([4, 4]), prior_degrees_of_freedom=8)
        >>> variances, freedoms  # the first has one other to learn from, 8 * 1/2; the second has none
        (array([2., 4.]), array([8., 4.]))
    """
    if len(freedom) != len(variance):
        raise ValueError(f"freedom: expected {len(variance)}, one per variance, got {len(freedom)}")
    weight = np.nan_to_num(np.asarray(freedom, dtype=np.float64))
    own = np.where(weight > 0, np.nan_to_num(variance), 0.0)
    positive = own > 0
    others = positive.sum() - positive
    d0 = prior_degrees_of_freedom * others / (others + 1)
    if not positive.any():
        moderated = np.full(len(own), np.inf)
    else:
        scale = math.exp(float(np.mean(np.log(own[positive]))))
        # Either the unit shows a spread itself, or another one does.
        moderated = (d0 * scale + weight * own) / (d0 + weight)
    return np.where(np.isnan(freedom), np.nan, moderated), d0 + np.asarray(freedom, dtype=np.float64)


def moderated_errors(
    variance: np.ndarray,
    factor: np.ndarray,
    freedom: np.ndarray,
    *,
    prior_degrees_of_freedom: float = PRIOR_DEGREES_OF_FREEDOM,
) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of one example's effects, ``sqrt(factor * moderated variance)``, output by output.

    Args:
        variance: ``(U, K)`` sample variances of the units; NaN where they cannot be seen.
        factor: ``(U, K)`` squared standard error over variance; where it is 0, every donor was used, and the error is 0 too.
        freedom: ``(U, K)`` degrees of freedom of the variances; NaN for units that have no draws, or no say in the common scale.
        prior_degrees_of_freedom: as of :func:`moderate`.

    Returns:
        Standard errors ``(U, K)`` and the degrees of freedom ``(U, K)`` of their intervals, those of the common scale included.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics.moderation import moderated_errors
        >>> error, freedom = moderated_errors(np.array([[0.0], [4.0]]), np.array([[0.25], [0.0]]), np.array([[5.0], [5.0]]))
        >>> error.round(3).tolist(), freedom.tolist()  # sqrt(0.25 * (1.5 * 4 + 5 * 0) / (1.5 + 5))
        ([[0.48], [0.0]], [[6.5], [5.0]])
    """
    moderated, total = np.full(variance.shape, np.nan), np.full(variance.shape, np.nan)
    for k in range(variance.shape[1]):
        moderated[:, k], total[:, k] = moderate(variance[:, k], freedom[:, k], prior_degrees_of_freedom)
    # Not inf * 0, where a single draw says nothing about the spread but is all there is.
    with np.errstate(invalid="ignore"):
        return np.where(factor == 0, 0.0, np.sqrt(moderated * factor)), total


def mean_over_geometric_mean(freedom: ArrayLike) -> np.ndarray:
    """How many times the mean of variances of normal samples is their geometric mean, ``(d/2) / exp(digamma(d/2))`` (Smyth 2004).

    The scale that variances are pulled toward is a geometric mean. Of samples of three it is half of the variance, of samples of two a
    quarter: where observations are that few, errors would be too small by that.

    Args:
        freedom: degrees of freedom of the variances, of any shape.

    Example:
        >>> from captum_causalseg.statistics.moderation import mean_over_geometric_mean
        >>> mean_over_geometric_mean([1, 2, 5, 24]).round(2).tolist()
        [3.56, 1.78, 1.24, 1.04]
    """
    half = np.asarray(freedom, dtype=np.float64) / 2
    found: np.ndarray = half / np.exp(special.digamma(half))
    return found
