"""Intervals that reach beyond what a number can be: they are said, and not cut off, which would make them look known.

Student's t has no bounds. Where draws or cases are few, an interval of a Dice may end above 1.
"""

from collections.abc import Iterable

from captum_causalseg.metrics import METRICS

__all__ = ["MARK", "beyond", "beyond_in_words", "effects_beyond"]

MARK = "*"
Interval = tuple[float, float]


def beyond(interval: Interval, limits: Interval) -> bool:
    """Whether an interval holds what cannot be; an end that is not known (NaN) does not."""
    # Ends are computed in floating point.
    slack = 1e-9
    return interval[0] < limits[0] - slack or interval[1] > limits[1] + slack


def effects_beyond(metric: str, noun: str, intervals: Iterable[Interval]) -> str | None:
    """Of intervals of effects on a score, which has this name, a sentence if some are wider than effects can be; ``None`` if none is."""
    lower, upper = METRICS[metric].limits
    span = upper - lower
    n = sum(beyond(one, (-span, span)) for one in intervals)
    if not n:
        return None
    said = f"{n} interval{'s' * (n > 1)} reach{'es' * (n == 1)} beyond what is possible"
    return f"{said} (a {noun} lies in [{lower:g}, {upper:g}], an effect on it in [{-span:g}, {span:g}]): so few draws do not bound the effect"


def beyond_in_words(metric: str, noun: str, n_cases: int) -> str:
    """What the mark behind an interval between cases means."""
    lower, upper = METRICS[metric].limits
    return (
        f"{MARK} reaches beyond what is possible (a {noun} lies in [{lower:g}, {upper:g}], a share in [0, 1], no sum of sizes below 0): "
        f"{n_cases} cases do not bound the mean"
    )
