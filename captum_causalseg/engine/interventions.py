"""What an evaluator is asked: for every row an example, and the set of units that are replaced in it, each by its donor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Interventions"]


@dataclass(frozen=True, eq=False)
class Interventions:
    """A batch of ``B`` interventions; each replaces a set of units of one example, ``P`` replacements in all.

    An intervention that replaces nothing is an ordinary one: its set is empty.

    Args:
        example: ``(B,)``.
        row: ``(P,)`` which intervention a replacement belongs to.
        unit: ``(P,)`` which unit is replaced; a unit is in a set once.
        donor: ``(P, slots)`` by which donor of each slot.
        noise: ``(B,)`` random state that a stochastic model meets; ``None`` for models that are not.
        outputs: boolean ``(B, K)``: which scores are looked at; what the others are does not matter. ``None``: all.

    Raises:
        ValueError: shapes that do not fit, or a unit twice in one set.
    """

    example: np.ndarray
    row: np.ndarray
    unit: np.ndarray
    donor: np.ndarray
    noise: np.ndarray | None = None
    outputs: np.ndarray | None = None

    def __post_init__(self) -> None:
        replacements, shape = len(self.row), self.donor.shape
        if self.unit.shape != (replacements,) or len(shape) != 2 or shape[0] != replacements:
            raise ValueError(
                f"unit, donor: expected (P,) and (P, slots) with P={replacements}, got {tuple(self.unit.shape)} and {tuple(shape)}"
            )
        if replacements and not (self.row.min() >= 0 and self.row.max() < len(self)):
            raise ValueError(f"row: expected rows 0 to {len(self) - 1}, got {self.row.min()} to {self.row.max()}")
        if self.noise is not None and self.noise.shape != self.example.shape:
            raise ValueError(f"noise: expected one per row, {self.example.shape}, got {self.noise.shape}")
        if self.outputs is not None and (self.outputs.ndim != 2 or len(self.outputs) != len(self)):
            raise ValueError(f"outputs: expected (B, K) with B={len(self)}, got {tuple(self.outputs.shape)}")
        if not (np.diff(self.row) > 0).all():
            # As one number each, which is sorted much sooner than pairs; units are numbered from 0.
            pairs = np.sort(self.row * (int(self.unit.max()) + 1) + self.unit)
            twice = np.flatnonzero(pairs[1:] == pairs[:-1])
            if len(twice):
                row, unit = divmod(int(pairs[twice[0]]), int(self.unit.max()) + 1)
                raise ValueError(f"unit: expected every unit once in a set, got {unit} several times in row {row}")

    @classmethod
    def single(
        cls,
        example: np.ndarray,
        unit: np.ndarray,
        donor: np.ndarray,
        noise: np.ndarray | None = None,
        outputs: np.ndarray | None = None,
    ) -> "Interventions":
        """One unit each: ``(B,)``, ``(B,)`` and ``(B, slots)``."""
        return cls(example, np.arange(len(example)), unit, donor, noise=noise, outputs=outputs)

    @classmethod
    def nothing(cls, example: np.ndarray, noise: np.ndarray | None = None) -> "Interventions":
        """Nothing is replaced in any row."""
        empty = np.empty(0, dtype=np.int64)
        return cls(example, empty, empty, empty.reshape(0, 0), noise)

    @classmethod
    def of_sets(
        cls,
        example: np.ndarray,
        sets: Sequence[Sequence[tuple[int, Sequence[int]]]],
        noise: np.ndarray | None = None,
    ) -> "Interventions":
        """For every row its set of ``(unit, donor per slot)``."""
        row = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
        pairs = [pair for one in sets for pair in one]
        slots = len(pairs[0][1]) if pairs else 0
        donor = np.array([numbers for _, numbers in pairs], dtype=np.int64).reshape(len(pairs), slots)
        return cls(example, row, np.array([unit for unit, _ in pairs], dtype=np.int64), donor, noise)

    def __len__(self) -> int:
        return len(self.example)

    def rows(self, which: np.ndarray) -> "Interventions":
        """These rows, in this order; one may come several times."""
        counts = np.bincount(self.row, minlength=len(self))
        order = np.argsort(self.row, kind="stable")
        first = np.cumsum(counts) - counts
        lengths = counts[which]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        taken = order[np.repeat(first[which], lengths) + within]
        return Interventions(
            example=self.example[which],
            row=np.repeat(np.arange(len(which)), lengths),
            unit=self.unit[taken],
            donor=self.donor[taken],
            noise=None if self.noise is None else self.noise[which],
            outputs=None if self.outputs is None else self.outputs[which],
        )

    def emptied(self, which: np.ndarray) -> "Interventions":
        """The same with nothing replaced where ``which`` ``(B,)`` holds, and random state 0 there."""
        kept = ~which[self.row]
        noise = None if self.noise is None else np.where(which, 0, self.noise)
        return replace(self, row=self.row[kept], unit=self.unit[kept], donor=self.donor[kept], noise=noise)

    def of_donors(self, donor: np.ndarray) -> "Interventions":
        """The same with other donor numbers ``(P, slots)``."""
        return replace(self, donor=donor)
