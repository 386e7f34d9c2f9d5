"""Moved to :mod:`captum_causalseg.donors`; this path is for programs that were written before."""

import warnings

from captum_causalseg.donors import ActivationBank

__all__ = ["ActivationBank"]

warnings.warn(
    "captum_causalseg.activations: deprecated, gone in 0.3; use captum_causalseg.donors", DeprecationWarning, stacklevel=2
)
