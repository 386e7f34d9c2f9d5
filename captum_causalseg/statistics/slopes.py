"""Effects that lean on predicted ones: slopes shared by an example's units, and the variances of what predictions leave over."""

from dataclasses import dataclass, fields, replace

import numpy as np

from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["PRIOR_DRAWS", "Leaning", "SlopeSums", "lean", "leaning"]

PRIOR_DRAWS = 4
"""The weight of the other units' slope, in draws."""
# Of fewer draws the noise is seen in so few places that intervals by it held 0.80 to 0.89 (instance norm, hard Dice, rare flips).
_LEAST_DRAWS = 12
# Sums of squares that cancel are known to this share of the largest.
_CANCELLATION = 1e-13


@dataclass(frozen=True, eq=False)
class SlopeSums:
    r"""What is kept of stratified draws whose predicted effects ``x`` are known: all that their values ``v`` say for any slope ``b``.

    Arrays are of one shape, ``(K,)`` for ``K`` outputs of one unit, or with the units in front; NaN where predictions are not used. A *form* is three
    numbers in the last axis, ``q(v, v)``, ``q(v, x)`` and ``q(x, x)``, of a quadratic form ``q``: for residuals ``e = v - b x`` it is
    ``q(v, v) - 2 b q(v, x) + b^2 q(x, x)``.

    Args:
        mean: the weighted mean of the values.
        own: what the unit's own slopes take from the mean: the sum over strata ``h`` of ``w_h s_h (n - 2) q_h(v, x)``, where ``w_h`` is
            the stratum's weight, ``q_h`` the form of successive differences of all *other* draws, and ``s_h`` how much its draw's predicted effect exceeds
            the mean over the stratum, divided by ``(n - 2) q_h(x, x) + 4 scale``.
        shared: what a slope of 1 that is shared with other units takes from it, the sum of ``w_h s_h 4 scale``.
        scale: what ``q(x, x)`` of the differences is on the average over all that may be drawn.
        n: how many draws.
        added: to the variance of one draw, by the choice of the ranked donors among all.
        rounding: values that differ by no more than this are equal.
        freedom: degrees of freedom of the variance.
        differences: form of successive differences; ``q(v, v)`` is the variance without predictions.
        noise: form of what lies off the line between both neighbors.
        steps: form of the spread within strata if residuals rise evenly from one to the next.
        climbs: the same if they rise as the predicted effects do.
    """

    mean: np.ndarray
    own: np.ndarray
    shared: np.ndarray
    scale: np.ndarray
    n: np.ndarray
    added: np.ndarray
    rounding: np.ndarray
    freedom: np.ndarray
    differences: np.ndarray
    noise: np.ndarray
    steps: np.ndarray
    climbs: np.ndarray

    def array(self) -> np.ndarray:
        """All of them side by side in a last axis."""
        numbers = [getattr(self, name)[..., None] for name in _NUMBERS]
        return np.concatenate([*numbers, *(getattr(self, name) for name in _FORMS)], axis=-1)

    @classmethod
    def of_array(cls, array: np.ndarray) -> "SlopeSums":
        """From what :meth:`array` gave, of any number of units."""
        parts = [array[..., index] for index in range(len(_NUMBERS))]
        parts += [array[..., begin : begin + 3] for begin in range(len(_NUMBERS), array.shape[-1], 3)]
        return cls(*parts)

    @staticmethod
    def missing(shape: tuple[int, ...]) -> np.ndarray:
        """The array of units that have none."""
        return np.full((*shape, len(_NUMBERS) + 3 * len(_FORMS)), np.nan)


# In the order of the fields.
_FORMS = ("differences", "noise", "steps", "climbs")
_NUMBERS = tuple(one.name for one in fields(SlopeSums) if one.name not in _FORMS)


@dataclass(frozen=True, eq=False)
class Leaning:
    """What predictions make of one example's units, ``(U, K)`` each; NaN of units without.

    Args:
        slope: of values on predicted effects, from all draws.
        effect: the estimates.
        adjustment: what predictions took from the weighted mean of the draws.
        variance: of one draw, for intervals.
        test_variance: of one draw, for tests of many units.
        freedom: degrees of freedom of both.
    """

    slope: np.ndarray
    effect: np.ndarray
    adjustment: np.ndarray
    variance: np.ndarray
    test_variance: np.ndarray
    freedom: np.ndarray


def leaning(sums: SlopeSums) -> Leaning:
    r"""Estimates and variances of one example's units ``(U, K)``, each output by itself.

    The estimate is the mean of the draws, each stratum's draw ``v_h`` less ``b_h`` times how much its predicted effect exceeds the (known) mean over its
    stratum. The slope ``b_h`` knows all draws but this one, so that the estimate is unbiased, whatever predictions are worth: of the successive differences
    of the unit's other draws, ``((n - 2) s_vx + 4 b s) / ((n - 2) s_xx + 4 s)``, shrunk with the weight of four draws toward ``b``, the slope
    of all *other* units together (0 if there are none); ``s`` is the expected ``s_xx``. Only where all draws of a unit do the same nothing is
    taken away: what moves no score has an effect of 0.

    The variance for intervals is, from 12 draws on, with ``e = v - b x`` and ``b`` from all draws, the smaller one of that of the successive differences
    of ``v`` and the sum of two parts: how far residuals ``e`` lie off the line between their neighbors, and how much they rise within a stratum (the
    larger one of two answers, evenly or as ``x`` does). Tests of many units look far into the tails, where a variance that is small by luck does
    most harm: theirs is at least that of successive differences of ``e``; and that is the one for intervals of fewer draws. Both are ``(n + 4) / (n + 3)`` times that, for the slope.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics.slopes import SlopeSums, leaning
        >>> one = np.ones((2, 1))
        >>> form = one[..., None] * [4.0, 2.0, 1.0]  # values are twice what was predicted
        >>> sums = SlopeSums(
        ...     *(5 * one, 0.5 * one, 0.25 * one, one, 6 * one, 0 * one, 0 * one, 3 * one), differences=form, noise=form, steps=form, climbs=form
        ... )
        >>> found = leaning(sums)
        >>> found.slope[:, 0].tolist(), found.effect[:, 0].tolist()
        ([2.0, 2.0], [4.0, 4.0])
    """
    known = ~np.isnan(sums.n)
    own_vx, own_xx = (np.where(known, sums.differences[..., part], 0.0) for part in (1, 2))
    shared_vx, shared_xx = _of_the_others(own_vx), _of_the_others(own_xx)
    pooled = np.divide(shared_vx, shared_xx, out=np.zeros_like(shared_vx), where=shared_xx > 0)
    n = np.where(known, sums.n, 2.0)
    prior = PRIOR_DRAWS * np.where(known, sums.scale, 1.0)
    slope = ((n - 1) * own_vx + prior * pooled) / ((n - 1) * own_xx + prior)
    plain = sums.differences[..., 0]
    equal = plain + sums.added <= sums.rounding**2
    slope = np.where(known, np.where(equal, 0.0, slope), np.nan)
    adjustment = np.where(equal, 0.0, sums.own + pooled * sums.shared)
    noise, steps, climbs, differences = (
        _of_residuals(getattr(sums, name), slope) for name in ("noise", "steps", "climbs", "differences")
    )
    # Draws that differ keep a variance: what is left of them is known no better than the sums and the values are.
    least = np.maximum(_CANCELLATION * plain, sums.rounding**2)
    larger = (n + PRIOR_DRAWS) / (n + PRIOR_DRAWS - 1)

    def of_one_draw(variance: np.ndarray) -> np.ndarray:
        return np.where(equal, 0.0, larger * np.maximum(variance, least) + sums.added)

    variance = np.minimum(plain, noise + np.maximum(steps, climbs))
    test_variance = np.maximum(variance, differences)
    return Leaning(
        slope=slope,
        effect=sums.mean - adjustment,
        adjustment=adjustment,
        variance=of_one_draw(np.where(n < _LEAST_DRAWS, test_variance, variance)),
        test_variance=of_one_draw(test_variance),
        freedom=sums.freedom,
    )


def lean(moments: UnitMoments, sums: np.ndarray, example: np.ndarray) -> UnitMoments:
    """Moments ``(*units, *outputs)`` with what predictions make of them; unchanged where there are none.

    Args:
        moments: without predictions, or with them: it does not matter.
        sums: ``(*units, *outputs, C)``, as of :meth:`SlopeSums.array`.
        example: ``(*units,)``: those of one example lean on each other.
    """
    n_units = example.size
    flat = sums.reshape(n_units, -1, sums.shape[-1])
    changed = {name: getattr(moments, name).copy() for name in _CHANGED}
    for one in np.unique(example):
        rows = np.flatnonzero(example == one)
        found = leaning(SlopeSums.of_array(flat[rows]))
        known = ~np.isnan(found.slope)
        for name, source in _CHANGED.items():
            values = changed[name].reshape(n_units, -1)
            values[rows] = np.where(known, getattr(found, source), values[rows])
    return replace(moments, **changed)


_CHANGED = {
    "effect": "effect",
    "adjustment": "adjustment",
    "sample_variance": "variance",
    "variance_freedom": "freedom",
    "test_variance": "test_variance",
}
"""Fields of the moments, and what they become."""


def _of_residuals(form: np.ndarray, slope: np.ndarray) -> np.ndarray:
    found: np.ndarray = form[..., 0] - 2 * slope * form[..., 1] + slope**2 * form[..., 2]
    return found


def _of_the_others(values: np.ndarray) -> np.ndarray:
    """For every unit the sum over all others, ``(U, K)``.

    Nothing is subtracted, for a unit may be larger than all others by far. Zeros change no bit of it, so that it does not matter which
    units without predictions lie between.
    """
    nothing = np.zeros_like(values[:1])
    before = np.concatenate([nothing, np.cumsum(values, 0)])[: len(values)]
    after = np.concatenate([nothing, np.cumsum(values[::-1], 0)])[: len(values)][::-1]
    found: np.ndarray = before + after
    return found
