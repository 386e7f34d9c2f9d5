"""Which unit gets which donor, in which order.

A plan is a list of *rows*, one per example and unit that may be intervened on. The same seed and unit give the same draws
whatever the batch, and they are drawn anew whenever they are asked for, so that a plan takes no memory per draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from captum_causalseg.engine.allocation import ROUNDS
from captum_causalseg.engine.design import Design, UniformDesign
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.engine.sampling import Sampling, SamplingScheme, scheme_of

__all__ = ["Plan", "Sampling"]


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
        n_first: of them, those that are made before it is looked where the others are needed; ``None``: all, every row has as many, and nothing is
            shared out.
        n_screening_draws: how many of them come first and decide whether the rest is needed; 0 for no screening.
        seed: one for all, or one per example.
        sampling: ``"uniform"``, ``"stratified"``, ``"paper"`` or another :class:`~captum_causalseg.engine.sampling.SamplingScheme`.
        drains: rows with at most so many donors use all of them: the effect is exact then.
        with_noise: the last slot is no donor but the random state that a stochastic model meets.
        rankings: per row, the order of its candidates for designs that need one; ``None`` for rows whose donors could not be ranked, or
            that use all of them: these are drawn uniformly.
        n_aspects: the outputs are so many aspects of the same scores, one after the other: an output is given up after the screening draws in all
            of them or in none, so that they are from the same draws.
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
    n_first: int | None = None
    drains: int = 0
    with_noise: bool = False
    rankings: Sequence[Ranking | None] = ()
    n_aspects: int = 1

    def __len__(self) -> int:
        return len(self.example)

    @property
    def shares_out(self) -> bool:
        """Whether a part of the draws goes where they are needed."""
        return self.n_first is not None

    @property
    def most_draws(self) -> int:
        """Interventions that a row can come to, where no goal says otherwise."""
        return self.n_draws if self.n_first is None else self.n_first * 2**ROUNDS

    @property
    def screens(self) -> bool:
        """Whether there is a screening round at all."""
        on_top = not self.scheme.design.keeps_screening_draws
        return self.n_screening_draws > 0 and (on_top or self.n_screening_draws < self._n_first)

    @property
    def scheme(self) -> SamplingScheme:
        """Design and estimator of all rows."""
        return scheme_of(self.sampling)

    @property
    def _n_first(self) -> int:
        return self.n_draws if self.n_first is None else self.n_first

    def in_aspects(self, n: int) -> "Plan":
        """The same where so many aspects of each output are looked at."""
        return replace(self, active=np.tile(self.active, n), n_aspects=n)

    def unranked(self) -> "Plan":
        """The same where no donors can be ranked: uniform draws, as many for each row, the same estimator."""
        uniform: Sampling = "uniform" if self.sampling == "stratified" else SamplingScheme(UniformDesign, self.scheme.estimator)
        return replace(self, sampling=uniform, rankings=(), n_first=None)

    def interventions(self, rows: np.ndarray, draws: np.ndarray, outputs: np.ndarray | None = None) -> Interventions:
        """Draws ``(B, slots)`` of rows ``(B,)`` as an evaluator takes them, for the sake of some outputs ``(B, K)`` or of all."""
        donors, noise = (draws[:, :-1], draws[:, -1]) if self.with_noise else (draws, None)
        return Interventions.single(self.example[rows], self.unit[rows], donors, noise=noise, outputs=outputs)

    def generator(self, row: int) -> np.random.Generator:
        """Where the row's draws come from; the same one whenever it is asked for."""
        seed = self.seed[self.example[row]] if len(self.seed) > 1 else self.seed[0]
        return np.random.default_rng((seed, int(self.key[row])))

    def total(self, row: int) -> float:
        """How many different donors the row has; infinite if they are drawn with replacement."""
        return self.scheme.design.total(self.population[row].tolist())

    def first_draws(self, row: int) -> int:
        """How many interventions the row has at first, the screening draws included."""
        total = self.total(row)
        return int(total) if total <= max(self.drains, self.n_draws) else self._n_first

    def budget(self, row: int) -> int:
        """How many interventions the row adds to what its example's rows may take together: those that it would have if all had as many."""
        return max(self.first_draws(row), int(min(self.total(row), self.n_draws)))

    def unassigned(self) -> int:
        """How many interventions are made after the first sample, at most, of which it shows only then which rows they go to."""
        if not self.shares_out:
            return 0
        return sum(self.budget(row) - self.first_draws(row) for row in np.flatnonzero(self.active.any(1)).tolist())

    def design(self, row: int) -> Design:
        """The row's donors."""
        ranking = self.ranking(row)
        return self._design(row, None if ranking is None else ranking.order)

    def ranking(self, row: int) -> Ranking | None:
        """How the row's donors are ranked; ``None`` where they are not."""
        return self.rankings[row] if len(self.rankings) else None

    def ranked(self, row: int, effects: np.ndarray, *, outputs: np.ndarray, most_draws: int) -> Ranking | None:
        """The ranking of a row by the predicted effects ``(m,)`` of its candidates; ``None`` where they tell no donors apart.

        Args:
            row: which.
            effects: of the :func:`~captum_causalseg.engine.draws.candidates` of the row's generator, as they come.
            outputs: ``(K,)`` the outputs whose sum they are predicted of.
            most_draws: that the row can come to.
        """
        order = Ranking.order_of(effects)
        if order is None:
            return None
        return Ranking.of(effects, order, design=self._design(row, order), outputs=outputs, most_draws=most_draws)

    def _design(self, row: int, order: np.ndarray | None) -> Design:
        design = self.scheme.design
        return (UniformDesign if design.needs_ranking and order is None else design)(
            self.generator(row),
            self.population[row].tolist(),
            n_first=self.first_draws(row),
            n_screening=self.n_screening_draws if self.screens else 0,
            ranking=order,
        )
