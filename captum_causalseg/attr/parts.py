"""One part of a case's units at a time, and the parts put together again."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from captum_causalseg.interventions.execution import WHOLE, Part
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.statistics.slopes import SlopeSums, lean

__all__ = ["InParts", "merge_parts"]


_Method = TypeVar("_Method", bound="InParts")


class InParts:
    """A method whose units can be explained in parts, by several processes.

    Attributes:
        part: of the units, those whose effects are estimated.
    """

    part: Part = WHOLE

    def only(self: _Method, part: Part) -> _Method:
        """The same method for this part of the units only."""
        other = copy.copy(self)
        other.part = part
        return other


def merge_parts(parts: Sequence[TreatmentEffectStatistics]) -> TreatmentEffectStatistics:
    """The statistics of all units, from those of part 0, 1, ... in order.

    Each unit's draws are those of its own part. What leans on other units is computed anew from all of them: slopes on predicted effects, effects that depend
    on them, and standard errors.
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
    whose = np.arange(n_units) % len(parts)
    moments = UnitMoments.merged([one.moments for one in parts], whose)
    known = [one.slope_sums for one in parts]
    if any(sums is not None for sums in known):
        shape = (*first.effect.shape,)
        every = [SlopeSums.missing(shape) if sums is None else sums.numpy() for sums in known]
        sums = np.stack(every, 0)[whose, :, np.arange(n_units)].swapaxes(0, 1)
        moments = lean(moments, sums, np.broadcast_to(np.arange(shape[0])[:, None], shape[:2]))
    return first.replaced(
        moments,
        slope_sums=None,
        controls={
            name: UnitMoments.merged([one.control_moments[name] for one in parts], whose) for name in first.control_moments
        },
        n_forwards=sum(forwards.values()),
        settings=first.settings | {"forwards": dict(forwards)},
    )
