"""Scores of sets of units that are replaced together, each set with the same draws of donors, within a budget."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.memory import fitting
from captum_causalseg.engine.run import Evaluator
from captum_causalseg.engine.scores import ROUNDING, read

__all__ = ["Budget", "BudgetSpentError", "SetScores", "SetsOfExample"]


class BudgetSpentError(Exception):
    """A set would be scored beyond the budget."""


@dataclass(eq=False)
class Budget:
    """How many interventions there may be.

    Args:
        most: in all.
        spent: so far.
    """

    most: int
    spent: int = 0

    @property
    def left(self) -> int:
        """How many more there may be."""
        return self.most - self.spent


@dataclass(frozen=True, eq=False)
class SetsOfExample:
    """The units of one example that sets are made of, ``n`` of them, and ``d`` draws of donors for all of them.

    Args:
        example: which.
        units: ``(n,)``, as evaluators know them.
        donors: ``(d, n, slots)``: each draw has a donor for every unit, so that sets which contain each other meet the same donors.
        noise: ``(d,)`` the random state that a stochastic model meets in each draw; ``None`` for models that are not.
        output: which of the ``K`` scores is looked at.
        observed: ``(K,)`` the scores with nothing replaced.
    """

    example: int
    units: np.ndarray
    donors: np.ndarray
    noise: np.ndarray | None
    output: int
    observed: np.ndarray


class SetScores:
    """Scores of sets of one example's units; a set that was scored is not scored again.

    Args:
        evaluator: how scores are computed.
        game: the units and their draws.
        batch_size: interventions per call of the evaluator; halved whenever memory runs out.
        budget: of interventions.
        on_batch: called with the number of interventions of each batch, once they are done.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        game: SetsOfExample,
        *,
        batch_size: int,
        budget: Budget,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.evaluator, self.game, self.batch_size, self.budget = evaluator, game, batch_size, budget
        self.observed = float(game.observed[game.output])
        self.n_draws = len(game.donors)
        self._on_batch = on_batch
        self._known: dict[bytes, np.ndarray] = {}
        self._resolution, self._largest = 0.0, abs(self.observed)

    @property
    def rounding(self) -> float:
        """A difference of this size between two scores is none."""
        return ROUNDING * self._resolution * self._largest

    def __call__(self, replaced: np.ndarray, n_draws: int | None = None) -> np.ndarray:
        """The scores ``(s, d)`` of sets ``(s, n)``, boolean, in the first ``n_draws`` draws (all of them by default).

        Raises:
            BudgetSpentError: there are more to score than the budget allows; none of these is scored then.
            ValueError: a score is not finite.
        """
        wanted = self.n_draws if n_draws is None else min(n_draws, self.n_draws)
        keys = [one.tobytes() for one in replaced]
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        missing = [
            (number, draw)
            for key, number in sorted(first.items(), key=lambda one: one[1])
            if replaced[number].any()
            for draw in range(len(self._known.get(key, ())), wanted)
        ]
        if len(missing) > self.budget.left:
            raise BudgetSpentError
        found = self._scored(replaced, missing)
        for number, key in enumerate(keys):
            if not replaced[number].any():
                self._known[key] = np.full(self.n_draws, self.observed)
            elif number in found:
                self._known[key] = np.concatenate([self._known.get(key, np.empty(0)), found[number]])
        return np.array([self._known[key][:wanted] for key in keys]).reshape(len(keys), wanted)

    def _scored(self, replaced: np.ndarray, missing: list[tuple[int, int]]) -> dict[int, np.ndarray]:
        """Of these sets in these draws, by set."""
        if not missing:
            return {}
        number, draw = np.array(missing).T
        scores = np.empty(len(number))
        done = 0
        while done < len(number):
            most = min(self.batch_size, len(number) - done)
            (values, self._resolution), fitted = self._answered(
                self._interventions(replaced[number[done : done + most]], draw[done : done + most])
            )
            self.batch_size = fitted if fitted < most else self.batch_size
            here = values[:, self.game.output, 0]
            if not np.isfinite(here).all():
                row = int(np.flatnonzero(~np.isfinite(here))[0])
                raise ValueError(
                    f"forward_func: it returned a score that is not finite ({here[row]}) for example {self.game.example} with "
                    f"{int(replaced[number[done + row]].sum())} units replaced together"
                )
            scores[done : done + fitted] = here
            self._largest = max(self._largest, float(np.abs(here).max()))
            done += fitted
            self.budget.spent += fitted
            self._on_batch(fitted)
        return {one: scores[number == one] for one in np.unique(number).tolist()}

    def _answered(self, batch: Interventions) -> tuple[tuple[np.ndarray, float], int]:
        """Of the first rows of a batch, as many as fit into memory."""

        def answers(count: int) -> tuple[np.ndarray, float]:
            return read(self.evaluator(batch if count == len(batch) else batch.rows(np.arange(count))))

        return fitting(answers, len(batch))

    def _interventions(self, replaced: np.ndarray, draw: np.ndarray) -> Interventions:
        game = self.game
        row, member = np.nonzero(replaced)
        outputs = np.zeros((len(replaced), len(game.observed)), dtype=bool)
        outputs[:, game.output] = True
        return Interventions(
            example=np.full(len(replaced), game.example),
            row=row,
            unit=game.units[member],
            donor=game.donors[draw[row], member],
            noise=None if game.noise is None else game.noise[draw],
            outputs=outputs,
        )
