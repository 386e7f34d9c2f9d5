"""Where units lie in the inputs: what each of them has is painted there, and what lies there is summed for each of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["UnitPlaces"]


class UnitPlaces:
    """For every element of the inputs, the position of its unit among the ids.

    Args:
        ids: ``(U,)``, ascending.
        masks: per input ``(N or 1, C or 1, *spatial or ones)``, on the CPU: the ids of the elements' units.
    """

    def __init__(self, ids: Tensor, masks: Sequence[Tensor]) -> None:
        self._n_units = len(ids)
        self._positions = [torch.searchsorted(ids, mask.contiguous()) for mask in masks]

    def painted(self, slot: int, values: Tensor, examples: Tensor | None = None) -> Tensor:
        """``(B, C or 1, *spatial or ones)``: every element of an input has its unit's value.

        Args:
            slot: which input.
            values: ``(B, U)``, on the CPU.
            examples: ``(B,)``, whose units they are of; by default those of one example after the other.
        """
        positions = self._positions[slot]
        if len(positions) > 1 and examples is not None:
            positions = positions[examples]
        rows = torch.arange(len(values), device="cpu").view(-1, *(1,) * (positions.ndim - 1))
        return values[rows, positions]

    def sums(self, slot: int, values: Tensor, shape: Sequence[int]) -> np.ndarray:
        """``(N, U)``, in double precision: the sums of an input's elements over each unit.

        Args:
            slot: which input.
            values: ``(N or 1, C or 1, *spatial or ones)``, on the CPU; what is 1 there counts for all.
            shape: of the input.
        """
        positions, found = self._positions[slot], np.zeros((shape[0], self._n_units))
        for example in range(shape[0]):
            units, weights = (
                one[example if len(one) > 1 else 0].expand(tuple(shape[1:])).reshape(-1).numpy() for one in (positions, values)
            )
            found[example] = np.bincount(units, weights, minlength=self._n_units)
        return found
