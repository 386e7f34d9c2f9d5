"""Moved to :mod:`captum_causalseg.evaluation.refute`; this path is for programs that were written before."""

import warnings

from captum_causalseg.evaluation.refute import Refutation, RefutationReport
from captum_causalseg.evaluation.refute.report import inconclusive, verdict

__all__ = ["Refutation", "RefutationReport", "inconclusive", "verdict"]

warnings.warn(
    "captum_causalseg.evaluation.refutation: deprecated, gone in 0.3; use captum_causalseg.evaluation.refute",
    DeprecationWarning,
    stacklevel=2,
)
