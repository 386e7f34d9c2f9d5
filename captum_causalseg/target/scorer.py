"""Any forward function, wrapped once: the one place that knows what only a segmentation target can do.

What is explained is a plain function of inputs and arguments, or a :class:`~captum_causalseg.SegmentationTarget`, which also knows its model,
its regions of interest and its metric. Everybody else asks a scorer.
"""

from collections.abc import Callable
from typing import Any

from captum_causalseg.target.function_scorer import FunctionScorer
from captum_causalseg.target.scorer_base import Scorer
from captum_causalseg.target.segmentation_target import SegmentationTarget
from captum_causalseg.target.target_scorer import TargetScorer

__all__ = ["FunctionScorer", "Scorer", "TargetScorer", "as_scorer"]


def as_scorer(forward_func: Callable[..., Any]) -> Scorer:
    """The scorer of a forward function; a scorer as it is."""
    if isinstance(forward_func, Scorer):
        return forward_func
    return TargetScorer(forward_func) if isinstance(forward_func, SegmentationTarget) else FunctionScorer(forward_func)
