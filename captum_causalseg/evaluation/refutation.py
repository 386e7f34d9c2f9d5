"""Moved to :mod:`captum_causalseg.evaluation.refute`; this path is for programs that were written before."""

import warnings

from captum_causalseg.evaluation.refute import Refutation, RefutationReport
from captum_causalseg.evaluation.refute.report import inconclusive, verdict

__all__ = ["Refutation", "RefutationReport", "inconclusive", "verdict"]

warnings.warn(
    "captum_causalseg.evaluation.refutation is captum_causalseg.evaluation.refute now", DeprecationWarning, stacklevel=2
)
