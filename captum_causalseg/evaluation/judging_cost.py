"""What it costs to judge maps at most, in images that go through the model, known before any does.

At most: an image that two measurements meet is scored once, and curves of few units come by the same image twice.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["MEASUREMENTS", "SHARES", "SOFT", "Effort", "Measurement", "forecast", "subsets_of_a_size"]


SOFT = ", soft"
"""Behind the name of a metric or a measurement: by the differentiable twin of the score."""
SHARES = (0.2, 0.4, 0.6, 0.8)
"""Of the units, where only a few shares are looked at."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What the cost depends on: arguments of :class:`~captum_causalseg.evaluation.Faithfulness`, and the batch size."""

    n_examples: int = 1
    n_draws: int = 4
    n_steps: int = 20
    n_subsets: int = 100

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Effort":
        """From arguments, of which it takes its own."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in arguments.items() if name in names})


@dataclass(frozen=True)
class Measurement:
    """Something that metrics are computed from; several of them may share it.

    Args:
        forwards: images per example.
        of_map: whether it is made anew for each map; else all maps share it.
    """

    forwards: Callable[[Effort], int]
    of_map: bool = True


def subsets_of_a_size(n_subsets: int, n_sizes: int) -> int:
    """Of so many subsets, how many each size gets; three are the fewest that have a correlation."""
    return max(3, n_subsets // n_sizes)


def _curve(effort: Effort) -> int:
    return effort.n_draws * (effort.n_steps + 1)


MEASUREMENTS: dict[str, Measurement] = {
    "deletion, supporting": Measurement(_curve),
    "deletion, harming": Measurement(_curve),
    "insertion, supporting": Measurement(_curve),
    "insertion, harming": Measurement(_curve),
    "retention": Measurement(_curve),
    "imputation": Measurement(lambda effort: len(SHARES) + 1),
    "subsets of many sizes": Measurement(
        lambda effort: len(SHARES) * subsets_of_a_size(effort.n_subsets, len(SHARES)), of_map=False
    ),
    "subsets": Measurement(lambda effort: effort.n_subsets, of_map=False),
    "leakage": Measurement(lambda effort: effort.n_draws + 1),
}
"""By name; a metric says which it needs."""


def forecast(measurements: Iterable[str], effort: Effort, n_maps: int = 1) -> int:
    """Images that go through the model at most for these measurements of so many maps, what is shared counted once.

    Example:
        >>> from captum_causalseg.evaluation.judging_cost import Effort, forecast
        >>> forecast(["deletion, supporting", "subsets", "subsets"], Effort(n_draws=2, n_steps=4, n_subsets=10), n_maps=3)
        40
    """
    chosen = [MEASUREMENTS[name.removesuffix(SOFT)] for name in dict.fromkeys(measurements)]
    return effort.n_examples * sum(one.forwards(effort) * (n_maps if one.of_map else 1) for one in chosen)
