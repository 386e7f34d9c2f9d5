"""Which unit gets which donor, in which order.

A plan is a list of *rows*, one per example and unit that may be intervened on. The same seed and unit give the same draws
whatever the batch, and they are drawn anew whenever they are asked for, so that a plan takes no memory per draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from captum_causalseg.engine.draws import Draws, PaperDraws, StratifiedDraws, UniformDraws
from captum_causalseg.engine.interventions import Interventions

__all__ = ["Plan", "Sampling"]

Sampling = Literal["uniform", "stratified", "paper"]


@dataclass(frozen=True)
class Plan:
    """Rows to intervene on and how their donors are drawn.

    Args:
        example: ``(M,)`` index of each row's example.
        unit: ``(M,)`` index of each row's unit.
        key: ``(M,)`` what a row's draws are seeded with, besides ``seed``: the unit's id.
        population: ``(M, slots)`` number of donors per slot; 1 where the unit does not reach into the slot.
        active: ``(M, K)`` for which outputs the row's effect is wanted.
        n_draws: interventions per row, the screening draws included (for ``"paper"`` they come on top).
        n_screening_draws: how many of them come first and decide whether the rest is needed; 0 for no screening.
        seed: one for all, or one per example.
        sampling: ``"uniform"``, ``"stratified"`` or ``"paper"``: see :mod:`captum_causalseg.engine.draws`.
        with_noise: the last slot is no donor but the random state that a stochastic model meets.
        rankings: per row, the order of its candidates for stratified draws; ``None`` for rows whose donors could not be ranked, or
            that use all of them.
    """

    example: np.ndarray
    unit: np.ndarray
    key: np.ndarray
    population: np.ndarray
    active: np.ndarray
    n_draws: int
    n_screening_draws: int
    seed: tuple[int, ...]
    sampling: Sampling = "uniform"
    with_noise: bool = False
    rankings: Sequence[np.ndarray | None] = ()

    def __len__(self) -> int:
        return len(self.example)

    @property
    def screens(self) -> bool:
        """Whether there is a screening round at all."""
        return self.n_screening_draws > 0 and (self.sampling == "paper" or self.n_screening_draws < self.n_draws)

    def interventions(self, rows: np.ndarray, draws: np.ndarray) -> Interventions:
        """Draws ``(B, slots)`` of rows ``(B,)`` as an evaluator takes them."""
        donors, noise = (draws[:, :-1], draws[:, -1]) if self.with_noise else (draws, None)
        return Interventions.single(self.example[rows], self.unit[rows], donors, noise)

    def generator(self, row: int) -> np.random.Generator:
        """Where the row's draws come from; the same one whenever it is asked for."""
        seed = self.seed[self.example[row]] if len(self.seed) > 1 else self.seed[0]
        return np.random.default_rng((seed, int(self.key[row])))

    def draws(self, row: int) -> Draws:
        """The row's draws."""
        n_screening = self.n_screening_draws if self.screens else 0
        given = self.generator(row), self.population[row].tolist(), n_screening, self.n_draws
        if self.sampling == "paper":
            return PaperDraws(*given)
        ranking = self.rankings[row] if self.sampling == "stratified" and len(self.rankings) else None
        return UniformDraws(*given) if ranking is None else StratifiedDraws(*given, ranking)
