"""P-values of many tests, adjusted for their number."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg._checks import NONE, array_of, checked, instance, integer, one_of

__all__ = ["CORRECTIONS", "adjust_p_values"]

CORRECTIONS = ("fdr_bh", "fdr_by", "holm", "bonferroni", None)
"""Names of the corrections for multiple testing; see :func:`adjust_p_values`."""
_COLUMN = instance(pd.Series, expected="a column of a table")


@checked(
    p_values=array_of("real") | _COLUMN,
    correction=one_of(*CORRECTIONS),
    hypotheses=NONE | array_of("boolean") | _COLUMN,
    n_tests=NONE | integer(0),
)
def adjust_p_values(
    p_values: "Tensor | np.ndarray | pd.Series[Any]",
    correction: str | None = "fdr_bh",
    *,
    hypotheses: "Tensor | np.ndarray | pd.Series[Any] | None" = None,
    n_tests: int | None = None,
) -> np.ndarray:
    """P-values of one family of tests, adjusted for their number: those of at most ``alpha`` pass at the error rate ``alpha``.

    Args:
        p_values: of any shape, all one family; NaN is no test. A tensor, an array, or a column of a table.
        correction: ``"fdr_bh"`` (Benjamini and Hochberg 1995) or ``"fdr_by"`` (Benjamini and Yekutieli 2001, under any dependence):
            the expected share of false ones among those that pass; ``"holm"`` (Holm 1979) or ``"bonferroni"``: the chance of any
            false one; ``None``: as they are.
        hypotheses: booleans of the same shape, which of them are tests at all (:func:`is_hypothesis`); all by default.
        n_tests: how many tests there are, where ``p_values`` are only the smallest of them. The adjusted ones are right up to the
            smallest p-value that was left out.

    A correction is as good as the p-values: those of few uniform draws are too small for it
    (:meth:`~captum_causalseg.TreatmentEffectStatistics.significant` has the figures).

    Returns:
        Float64 of the same shape, NaN where there is no test.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics import adjust_p_values
        >>> adjust_p_values(np.array([0.01, 1.0, 0.04, np.nan]), hypotheses=np.array([True, False, True, True]))
        array([0.02,  nan, 0.04,  nan])
    """
    p = np.asarray(p_values, dtype=np.float64)
    tests = ~np.isnan(p) if hypotheses is None else ~np.isnan(p) & np.asarray(hypotheses, dtype=bool)
    adjusted = np.full(p.shape, np.nan)
    values = p[tests]
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"p_values: expected numbers from 0 to 1, got {values[(values < 0) | (values > 1)][0]}")
    count = len(values)
    total = count if n_tests is None else n_tests
    if not count:
        return adjusted
    if correction in ("fdr_bh", "fdr_by"):
        # Linear in the number of tests; under dependence, that times the harmonic sum.
        values = scipy_stats.false_discovery_control(values, method="bh") * (total / count)
        values = values * (1 / np.arange(1, total + 1)).sum() if correction == "fdr_by" else values
    elif correction == "holm":
        order = np.argsort(values, kind="stable")
        values[order] = np.maximum.accumulate(values[order] * (total - np.arange(count)))
    elif correction == "bonferroni":
        values = values * total
    adjusted[tests] = np.minimum(values, 1)
    return adjusted
