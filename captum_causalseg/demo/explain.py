"""Moved: cases to :mod:`captum_causalseg.demo.cases`, what ``causalseg demo`` does with them to :mod:`captum_causalseg.cli.commands.demo`; for programs written before."""

import warnings
from typing import Any

from captum_causalseg.demo.cases import Case, brain_case, picture_case

__all__ = ["Case", "brain_case", "explain", "picture_case", "report"]  # noqa: F822

warnings.warn(
    "captum_causalseg.demo.explain: deprecated, gone in 0.3; use captum_causalseg.demo.cases",
    DeprecationWarning,
    stacklevel=2,
)


def __getattr__(name: str) -> Any:
    if name not in ("explain", "report"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from captum_causalseg.cli.commands import demo

    return getattr(demo, name)
