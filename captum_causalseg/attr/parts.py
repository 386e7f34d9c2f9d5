"""One part of a case's units at a time, and the parts put together again."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["in_part", "merge_parts", "only_part"]

_PART: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextmanager
def only_part(part: int, n_parts: int) -> Iterator[None]:
    """Within the block, effects of every ``n_parts``-th unit only are estimated, from number ``part`` on.

    The draws of a unit do not depend on which others there are. Neighbors go to different parts: units that matter lie together.
    """
    token = _PART.set((part, n_parts))
    try:
        yield
    finally:
        _PART.reset(token)


def in_part(n_units: int) -> np.ndarray:
    """Which units ``(U,)`` are to be estimated."""
    part, n_parts = _PART.get()
    mine: np.ndarray = np.arange(n_units) % n_parts == part
    return mine


def merge_parts(parts: Sequence[TreatmentEffectStatistics]) -> TreatmentEffectStatistics:
    """The statistics of all units, from those of part 0, 1, ... in order.

    Each unit's moments are those of its own part. Standard errors are computed anew, for variances are shrunk across all units.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    n_units = first.effect.shape[1]
    if any(one.effect.shape != first.effect.shape or not torch.equal(one.unit_ids, first.unit_ids) for one in parts):
        raise ValueError("parts: they are not of the same case: their units differ")
    if any(not torch.equal(one.observed_score, first.observed_score) for one in parts):
        raise ValueError("parts: they are not of the same case: their observed scores differ")
    forwards: Counter[str] = Counter()
    for one in parts:
        forwards.update(one.settings["forwards"])
    return first.replaced(
        UnitMoments.merged([one.moments for one in parts], np.arange(n_units) % len(parts)),
        n_forwards=sum(forwards.values()),
        settings=first.settings | {"forwards": dict(forwards)},
    )
