"""The units of a call, and what each of them is replaced by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import Box
from captum_causalseg.donors import BoundDonors, DonorSource
from captum_causalseg.donors.source import Recipients
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.paste import paste
from captum_causalseg.interventions.units import Units

__all__ = ["UnitDonors"]


@dataclass(frozen=True, eq=False)
class UnitDonors:
    """Units and their donors.

    Args:
        units: the parts.
        donors: per tensor, what they are replaced by.
        columns: per tensor, in which column of the donors' numbers its own stands, 0 to K - 1: tensors that were recorded together have
            a donor in common. Empty: each tensor has its own.
        own: per tensor, the donors before they were bound, if they are made from that very tensor (a unit replaced by itself, say);
            ``None`` for those of another origin.
    """

    units: Units
    donors: tuple[BoundDonors, ...]
    columns: tuple[int, ...] = ()
    own: tuple[DonorSource | None, ...] = ()

    def populations(self, example: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """How many donors units of examples have, ``(M, K)``; 1 where a unit does not reach.

        Raises:
            ValueError: a unit has none.
        """
        population = self.counts(example, unit)
        empty = np.flatnonzero((population < 1).any(1))
        if len(empty):
            raise ValueError(
                f"baselines: no donor is left for unit {self.units.ids[unit[empty[0]]]} once places that touch the image's own "
                "RoI are left out"
            )
        return population

    def counts(self, example: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """The same as :meth:`populations`, 0 where a unit has no donor."""
        population = np.ones((len(example), max(self.columns, default=len(self.donors) - 1) + 1), dtype=np.int64)
        for row, (n, u) in enumerate(zip(example.tolist(), unit.tolist())):
            for piece in self.units.pieces(n, u):
                column = self.columns[piece.slot] if self.columns else piece.slot
                population[row, column] = self.donors[piece.slot].population(n, piece.box)
        return population

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """Donor numbers for every tensor ``(B, slots)``, from ``(B, K)``."""
        return numbers[:, list(self.columns)] if self.columns and numbers.shape[1] else numbers

    def paste(
        self,
        tensors: Sequence[Tensor],
        interventions: Interventions,
        frames: Sequence[Frame | None] | None = None,
        *,
        first_slot: int = 0,
    ) -> None:
        """Make the interventions in the rows of the tensors, in place; ``frames`` and ``first_slot`` as of :func:`paste`."""
        paste(
            tensors,
            self.units,
            sources=self.donors,
            interventions=interventions.of_donors(self.spread(interventions.donor)),
            frames=frames,
            first_slot=first_slot,
        )

    def pasted(self, live: Sequence[Tensor], interventions: Interventions, slots: slice) -> list[Tensor]:
        """Copies of some slots' tensors, of one example, with the interventions made in them; ``own`` donors are made from these tensors."""
        donors = list(self.donors)
        for slot, tensor in zip(range(slots.start, slots.stop), live):
            source = self.own[slot] if self.own else None
            if source is not None:
                donors[slot] = _OfOneExample(source.bind(tensor))
        copies = [tensor.clone() for tensor in live]
        spread = interventions.of_donors(self.spread(interventions.donor))
        paste(copies, self.units, donors, interventions=spread, first_slot=slots.start)
        return copies

    def places(self, tensors: Sequence[Tensor], interventions: Interventions) -> list[Tensor]:
        """Which elements of tensors ``(B, ...)`` the interventions replace, boolean."""
        found = [torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device) for tensor in tensors]
        for row, unit in zip(interventions.row.tolist(), interventions.unit.tolist()):
            for piece in self.units.pieces(int(interventions.example[row]), unit):
                here = found[piece.slot][row][(piece.channels, *piece.box)]
                here.logical_or_(torch.ones_like(here) if piece.mask is None else piece.mask.to(here.device))
        return found


class _OfOneExample(BoundDonors):
    """Donors made from the tensor of one example: whichever is asked for, it is that one."""

    def __init__(self, bound: BoundDonors) -> None:
        self._bound = bound

    def population(self, example: int, box: Box) -> int:
        return self._bound.population(0, box)

    def locate(self, example: int, box: Box, number: int) -> tuple[int, tuple[int, ...]]:
        return self._bound.locate(0, box, number)

    def read(self, example: int, box: Box, number: int) -> Tensor:
        return self._bound.read(0, box, number)

    def read_many(
        self,
        examples: np.ndarray,
        corners: np.ndarray,
        size: tuple[int, ...],
        numbers: np.ndarray,
        channels: slice = slice(None),
    ) -> Tensor:
        return self._bound.read_many(np.zeros_like(examples), corners, size=size, numbers=numbers, channels=channels)

    def values(self, units: Recipients, numbers: np.ndarray) -> Tensor:
        return self._bound.values(replace(units, examples=np.zeros_like(units.examples)), numbers)
