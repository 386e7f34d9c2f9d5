"""Where another case's effect would lie: prediction intervals of random-effects means (Nagashima, Noma and Furukawa 2019)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import interpolate, special
from scipy.stats import qmc

from captum_causalseg.statistics.intervals import half_width

__all__ = ["prediction_interval", "q_survival"]

# Points of a low-discrepancy sequence stand for random numbers: the same in every process, and the same for every unit.
_POINTS = 4096
_SEED = 20190
# Variances between cases at which their confidence distribution is tabulated, between these shares of it; beyond, its tail is a power.
_TABULATED = 64
_TAIL = 1e-5
# Weideman's (2006) cotangent contour of Talbot's inversion of a Laplace transform: the error falls like 3.89^-n.
_NODES = 48
_SHAPE = (0.5017, 0.6407, 0.6122, 0.2645)
# Degrees of freedom from which a line is better, and its step, in standard deviations.
_WELL_KNOWN = 60
_STEP = 0.25
# Steps of a search that are tried together.
_AT_ONCE = 8
# Numbers held at a time.
_HELD = 2_000_000


def prediction_interval(effect: np.ndarray, standard_error: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Within which another case's true effect lies, with a probability of ``level`` over cohorts, cases and draws.

    The model is that of :func:`~captum_causalseg.cohort.between_cases.random_effects`. A predictive distribution is made by the parametric
    bootstrap of Nagashima, Noma and Furukawa (Statistical Methods in Medical Research 28, 2019): ``tau^2`` is drawn from its confidence
    distribution, ``P(Q > observed Q; tau^2)`` of Cochran's ``Q``, and with it ``mean(tau^2) + tau z - se(tau^2) t_{n-1}``, ``z`` standard normal
    and ``se`` Hartung's. So it holds what is not known of ``tau``, which an interval with the estimated ``tau`` leaves out.

    ``Q`` weighs cases by ``1 / standard_error^2``; where one is 0, all weigh the same, in ``Q`` and in the mean. If all are 0, the effects
    themselves are a sample of what is predicted, and the interval is ``mean +- t_{n-1} s sqrt(1 + 1/n)``.

    Args:
        effect: ``(n,)``, three at least.
        standard_error: ``(n,)`` of each, finite.
        level: coverage.

    Returns:
        Lower and upper end.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.cohort.prediction import prediction_interval
        >>> effect, error = np.array([0.1, 0.2, 0.3, 0.2]), np.full(4, 0.05)
        >>> [round(end, 1) for end in prediction_interval(effect, error)]
        [-0.1, 0.5]
    """
    n, unit = len(effect), float(max(np.median(standard_error), np.std(effect), standard_error.max()))
    if unit == 0:
        return float(effect[0]), float(effect[0])
    middle = float(np.mean(effect))
    y, variance = (effect - middle) / unit, (standard_error / unit) ** 2
    if not variance.any():
        half = float(half_width(y.std(ddof=1) * math.sqrt(1 + 1 / n), n - 1, level))
        return middle - unit * half, middle + unit * half
    alike = not bool((variance > 0).all())
    weight = np.ones(n) if alike else 1 / variance
    share, z, t = _numbers(n)
    tau2 = _variances(share, y, variance=variance, weight=weight)
    drawn = np.empty(_POINTS)
    for part in np.array_split(np.arange(_POINTS), max(1, _POINTS * n // _HELD)):
        w = np.ones((len(part), n)) if alike else 1 / (variance + tau2[part, None])
        total = w.sum(1)
        mean = (w @ y) / total
        error = np.sqrt((w * (y - mean[:, None]) ** 2).sum(1) / ((n - 1) * total))
        drawn[part] = mean + np.sqrt(tau2[part]) * z[part] - error * t[part]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return middle + unit * float(low), middle + unit * float(high)


def q_survival(q: float, tau2: np.ndarray, variance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``P(Q > q)`` of ``Q = sum w (y - sum w y / sum w)^2`` with independent ``y_i ~ N(mean, variance_i + tau2)``.

    ``Q`` is a sum of squares of normals with several weights. Its distribution function is taken from its Laplace transform, to about
    1e-9 (1e-7 for ``n = 2``): by Talbot's contour (Weideman 2006), and where ``Q`` is so well known that it would need many nodes, along a line beside 0.
    That transform is one over the root of a determinant, which needs no eigenvalues: the matrix is a diagonal one less one of rank 1.

    Args:
        q: where.
        tau2: ``(G,)``.
        variance, weight: ``(n,)``, ``n`` at least 2.

    Returns:
        ``(G,)``.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.cohort.prediction import q_survival
        >>> q_survival(3.0, np.zeros(1), np.ones(4), np.ones(4)).round(6).tolist()  # of chi-squared with 3 degrees of freedom
        [0.391625]
    """
    if q == 0:
        return np.ones(len(tau2))
    found = np.empty(len(tau2))
    for part in np.array_split(np.arange(len(tau2)), max(1, len(tau2) * len(weight) * _NODES // _HELD)):
        diagonal = weight * (variance + tau2[part, None])
        share = weight * diagonal / weight.sum()
        # In units of what is expected of Q.
        expected = (diagonal - share).sum(1, keepdims=True)
        form, at = _Form(diagonal / expected, share / expected), q / expected
        known = form.freedom > _WELL_KNOWN
        found[part[known]] = _along_a_line(form.of(known), at[known])
        found[part[~known]] = 1 - _below_by_talbot(form.of(~known), at[~known])
    return np.clip(found, 0.0, 1.0)


@dataclass(frozen=True)
class _Form:
    """Quadratic forms in independent standard normals of mean 1, their matrices diagonal ones less ``v v'``.

    Args:
        diagonal: ``(G, n)``.
        share: ``v^2``, ``(G, n)``.
    """

    diagonal: np.ndarray
    share: np.ndarray

    def of(self, which: np.ndarray) -> "_Form":
        """Some of them."""
        return _Form(self.diagonal[which], self.share[which])

    @property
    def freedom(self) -> np.ndarray:
        """Of a chi-squared variable with as large a variance for its mean, ``(G,)``."""
        trace = (self.diagonal**2 - 2 * self.diagonal * self.share).sum(1) + self.share.sum(1) ** 2
        freedom: np.ndarray = 1 / trace
        return freedom

    def transform(self, s: np.ndarray) -> np.ndarray:
        """``E exp(-s Q)`` at ``(G, S)``."""
        scaled = 1 + 2 * s[..., None] * self.diagonal[:, None]
        rank_one = 2 * s * (self.share[:, None] / scaled).sum(2)
        # Eigenvalues lie between the diagonal's: neither root leaves its branch.
        found: np.ndarray = np.exp(-0.5 * np.log(scaled).sum(2)) / np.sqrt(1 - rank_one)
        return found


def _below_by_talbot(form: _Form, at: np.ndarray) -> np.ndarray:
    theta = (np.arange(_NODES) + 0.5) * 2 * math.pi / _NODES - math.pi
    theta = theta[theta > 0]  # the other half is its conjugate
    a, b, c, d = _SHAPE
    angle = b * theta
    z = _NODES * (a * theta / np.tan(angle) - c + 1j * d * theta)
    step = _NODES * (a / np.tan(angle) - a * angle / np.sin(angle) ** 2 + 1j * d)
    below: np.ndarray = (np.exp(z) * form.transform(z / at) / z * step).imag.sum(1) * 2 / _NODES
    return below


def _along_a_line(form: _Form, at: np.ndarray) -> np.ndarray:
    """The trapezoidal rule on a line whose distance from the pole at 0 is one over the standard deviation, on the side of the tail."""
    inverse = np.sqrt(form.freedom / 2)[:, None]
    above = at > 1
    x = (np.arange(_NODES) + 0.5) * _STEP
    s = (np.where(above, -1, 1) + 1j * x) * inverse
    integral = (np.exp(s * at) * form.transform(s) / s).real.sum(1) * _STEP * inverse[:, 0] / math.pi
    survival: np.ndarray = np.where(above[:, 0], -integral, 1 - integral)
    return survival


@lru_cache(maxsize=64)
def _numbers(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, standard normal values and those of Student's t with ``n - 1`` degrees of freedom, independent of each other."""
    uniform = qmc.Sobol(3, seed=_SEED).random(_POINTS)
    return uniform[:, 0], special.ndtri(uniform[:, 1]), special.stdtrit(n - 1, uniform[:, 2])


def _variances(share: np.ndarray, y: np.ndarray, variance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The variance between cases at which its confidence distribution reaches these shares, 0 where it begins above them."""
    q = float((weight * (y - np.average(y, weights=weight)) ** 2).sum())
    if q == 0:
        return np.zeros(len(share))

    def reached(tau2: np.ndarray) -> np.ndarray:
        return q_survival(q, tau2, variance=variance, weight=weight)

    begin = float(reached(np.zeros(1))[0])
    if 1 - begin <= _TAIL:
        return np.zeros(len(share))
    middle = float(variance.mean())
    high = _first(middle, 4.0, lambda tau2: 1 - reached(tau2) <= _TAIL)
    low = _first(middle, 0.25, lambda tau2: reached(tau2) - begin <= _TAIL)
    nodes = np.geomspace(low, high, _TABULATED)
    table = reached(nodes)
    rising = np.concatenate([[True], np.diff(np.maximum.accumulate(table)) > 0]) & (table > begin) & (table < 1)
    nodes, table = nodes[rising], table[rising]
    inside = interpolate.PchipInterpolator(special.logit(table), np.log(nodes))
    found = np.exp(inside(special.logit(np.clip(share, table[0], table[-1]))))
    below, above = share < table[0], share > table[-1]
    found[below] = nodes[0] * np.maximum(share[below] - begin, 0) / (table[0] - begin)
    # Far out the effects' own errors are nothing, and Q / tau^2 is small like a power.
    found[above] = nodes[-1] * ((1 - table[-1]) / (1 - share[above])) ** (2 / (len(y) - 1))
    variances: np.ndarray = found
    return variances


def _first(begin: float, factor: float, found: Callable[[np.ndarray], np.ndarray]) -> float:
    """The first of ``begin, begin * factor, begin * factor**2, ...`` of which it is true; some at a time, which takes as long as one."""
    while True:
        values = begin * factor ** np.arange(_AT_ONCE)
        if (true := found(values)).any():
            return float(values[np.argmax(true)])
        begin = float(values[-1]) * factor
