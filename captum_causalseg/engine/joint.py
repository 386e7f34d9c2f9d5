"""Carry out trials in a context: sets of units replaced together, each unit's differences between sets, and what they say of its effect."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from captum_causalseg.engine.contexts import Context, Trial, Units, donors_in_rounds
from captum_causalseg.engine.goal import Goal, half_widths
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.memory import fitting
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import Evaluator, Outcome
from captum_causalseg.engine.scores import ROUNDING, read
from captum_causalseg.statistics import Status
from captum_causalseg.statistics.moderation import mean_over_geometric_mean
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["run_in_context"]

# What random numbers are for, besides the donors: a third number of their seeds.
_PLACES, _OTHERS, _NOISE = 1, 2, 3


def run_in_context(
    plan: Plan,
    context: Context,
    evaluator: Evaluator,
    *,
    observed: np.ndarray,
    treated: np.ndarray,
    batch_size: int,
    goal: Goal | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Carry out ``plan.n_draws`` differences of every unit in a context; how a plan samples and screens is of no matter here.

    Outputs that the same units are replaced for have their trials in common. Units that can reach none of them are not replaced.

    Args:
        plan: the rows, where their draws come from, and of which outputs their effects are wanted.
        context: which other units are replaced.
        evaluator: how scores are computed.
        observed: the scores without intervention, ``(N, K)``.
        treated: ``(M, K)``: for the sake of which outputs a row may be replaced, whether it reaches them or not.
        batch_size: sets per call of the evaluator; halved whenever memory runs out.
        goal: go on until it is reached; ``None``: the plan's draws.
        on_progress: called with the sets scored and the most that there will be.

    Raises:
        ValueError: a score is not finite.
    """
    loop = _Loop(
        plan=plan, context=context, evaluator=evaluator, observed=observed, batch_size=batch_size, on_progress=on_progress
    )
    games = list(_games(plan, treated))
    loop.play([(game, 0, plan.n_draws // context.per_trial) for game in games])
    if goal is not None:
        loop.pursue(games, goal)
    on_progress(loop.done, loop.done)
    return Outcome(observed, loop.moments(), n_forwards=loop.done, batch_size=loop.batch_size)


@dataclass(frozen=True, eq=False)
class _Game:
    """Units of one example that are replaced together, for the sake of some outputs.

    Args:
        example: which.
        rows: ``(n,)`` of the plan: the units that can reach one of the outputs.
        outputs: ``(J,)``.
        ids: ``(u,)`` of all units that may be replaced for these outputs.
        reach: ``(u,)``: which of them are in ``rows``.
    """

    example: int
    rows: np.ndarray
    outputs: np.ndarray
    ids: np.ndarray
    reach: np.ndarray


def _games(plan: Plan, treated: np.ndarray) -> Iterator[_Game]:
    for example in np.unique(plan.example).tolist():
        rows = np.flatnonzero(plan.example == example)
        kinds, kind = np.unique(treated[rows], axis=1, return_inverse=True)
        for number, allowed in enumerate(kinds.T):
            outputs = np.flatnonzero(kind.ravel() == number)
            mine = rows[allowed]
            reach = plan.active[np.ix_(mine, outputs)].any(1)
            if reach.any():
                yield _Game(example, mine[reach], outputs=outputs, ids=plan.key[mine], reach=reach)


@dataclass(eq=False)
class _Open:
    """A trial, and the scores that there are of it.

    Args:
        game: of which it is one.
        trial: its sets.
        donors: ``(t, n, slots)`` one per difference and unit.
        noise: ``(t,)`` the random states that a stochastic model meets.
        scores: ``(s, J)``.
        made: how many of them there are.
    """

    game: _Game
    trial: Trial
    donors: np.ndarray
    noise: np.ndarray | None
    scores: np.ndarray
    made: int = field(default=0)


Stretch = tuple[_Game, int, int]
"""Of a game, the trials from the first number up to the second."""


class _Loop:
    def __init__(
        self,
        plan: Plan,
        context: Context,
        *,
        evaluator: Evaluator,
        observed: np.ndarray,
        batch_size: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.plan, self.context, self.evaluator, self.observed = plan, context, evaluator, observed
        self.batch_size = batch_size
        self.done = 0
        self._total = 0
        self._on_progress = on_progress
        self._resolution = 0.0
        # Per row and output over the trials: how many, the mean, the sum of squares about it, and the largest score of any set.
        shape = len(plan), observed.shape[1]
        self._count = np.zeros(shape, dtype=np.int64)
        self._mean, self._squares, self._largest = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._decision = np.zeros(shape, dtype=np.int64)

    def play(self, stretches: Sequence[Stretch]) -> None:
        """Carry out trials, in full batches across trials and games."""
        self._total = self.done + sum(self._cost(game, stop - start) for game, start, stop in stretches)
        self._on_progress(self.done, self._total)
        waiting: deque[_Open] = deque()
        held = 0
        for opened in self._opened(stretches):
            waiting.append(opened)
            held += len(opened.scores)
            while held >= self.batch_size:
                held -= self._step(waiting)
        while waiting:
            self._step(waiting)

    def pursue(self, games: Sequence[_Game], goal: Goal) -> None:
        """Twice as many trials for games whose goal is not reached, those with the largest standard errors first, while the budget lasts."""
        per_trial, made = self.context.per_trial, dict.fromkeys(games, self.plan.n_draws // self.context.per_trial)
        asked = goal.outputs[self.plan.example] & self.plan.active
        fresh = asked.copy()
        looks = goal.looks(self.plan.n_draws)
        while True:
            error, unmet = self._judge(goal, asked, fresh, looks=looks)
            worst = {game: np.where(unmet, error, -np.inf)[np.ix_(game.rows, game.outputs)].max() for game in games}
            left, stretches = goal.budget - self.done, list[Stretch]()
            for game in sorted(games, key=lambda one: -float(worst[one])):
                n = made[game]
                more = min(n, goal.most_draws // per_trial - n, left // self._cost(game, 1))
                if worst[game] > -np.inf and more > 0:
                    stretches.append((game, n, n + more))
                    left -= self._cost(game, more)
                    made[game] += more
            if not stretches:
                return
            fresh[:] = False
            for game, _, _ in stretches:
                fresh[np.ix_(game.rows, game.outputs)] = True
            fresh &= asked
            self.play(stretches)

    def moments(self) -> UnitMoments:
        """What the trials say of every row and output, ``(M, K)``; a trial is one observation."""
        found = UnitMoments.missing((len(self.plan),), (self._count.shape[1],))
        known, n = self._count > 0, self._count
        found.effect[known] = self._mean[known]
        # Differences of large scores carry the rounding of these, however small the observed score is.
        size = np.maximum(np.abs(self.observed[self.plan.example]), self._largest)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = self._squares / (n - 1)
            variance = np.where(variance <= (ROUNDING * self._resolution * size) ** 2, 0.0, variance)
            found.sample_variance[known] = found.test_variance[known] = variance[known]
            # Pairs are half as many as draws: of few, the common scale of the variances is too small.
            found.variance_factor[known] = (mean_over_geometric_mean(n - 1) / n)[known]
        found.variance_freedom[known] = (n - 1)[known]
        found.n_draws[:] = n * self.context.per_trial
        found.status[:] = Status.ESTIMATED
        found.decision[:] = self._decision
        # Donors come in rounds, each of all of them.
        found.population[:] = self.plan.population[:, : -1 if self.plan.with_noise else None].prod(1)
        return found

    def _judge(self, goal: Goal, asked: np.ndarray, fresh: np.ndarray, looks: int) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors, and where ``(M, K)`` the goal is not reached."""
        known = self.moments()
        error, half = half_widths(self.plan.example, known, goal.level)
        unmet = np.zeros_like(asked)
        if goal.precision is not None:
            unmet |= asked & ~(half <= goal.precision)
        if goal.decide is not None:
            _, wide = half_widths(self.plan.example, known, 1 - goal.alpha / looks)
            new = fresh & (self._decision == 0)
            self._decision[new] = goal.decisions(known.effect, wide)[new]
            unmet |= asked & (self._decision == 0)
        return error, unmet

    def _cost(self, game: _Game, n_trials: int) -> int:
        """The most sets that so many trials have."""
        return n_trials * self.context.most_sets(len(game.rows))

    def _opened(self, stretches: Sequence[Stretch]) -> Iterator[_Open]:
        plan = self.plan
        for game, start, stop in stretches:
            seed = plan.seed[game.example] if len(plan.seed) > 1 else plan.seed[0]
            population = plan.population[game.rows][:, : -1 if plan.with_noise else None].tolist()
            generators = [plan.generator(row) for row in game.rows.tolist()]
            per_trial = self.context.per_trial
            last = stop * per_trial
            drawn = np.stack([donors_in_rounds(one, donors, last) for one, donors in zip(generators, population)], axis=1)
            places = np.stack([np.random.default_rng((seed, int(key), _PLACES)).random(stop) for key in plan.key[game.rows]])
            noise = None
            if plan.with_noise:
                states = int(plan.population[game.rows[0], -1])
                noise = donors_in_rounds(np.random.default_rng((seed, 1, _NOISE)), [states], last)[:, 0]
            for t in range(start, stop):
                units = Units(game.ids, game.reach, generator=np.random.default_rng((seed, t, _OTHERS)))
                trial = self.context.trial(places[:, t], units)
                mine = slice(t * per_trial, (t + 1) * per_trial)
                yield _Open(
                    game=game,
                    trial=trial,
                    donors=drawn[mine],
                    noise=None if noise is None else noise[mine],
                    scores=np.empty((len(trial.sets), len(game.outputs))),
                )

    def _step(self, waiting: deque[_Open]) -> int:
        """Score the first batch of the sets that are waiting, and note the trials that are complete; how many sets that were."""
        parts: list[tuple[_Open, int]] = []
        count = 0
        for opened in waiting:
            taken = min(len(opened.scores) - opened.made, self.batch_size - count)
            parts.append((opened, taken))
            count += taken
            if count == self.batch_size:
                break
        batch = self._interventions(parts)
        (scores, self._resolution), fitted = fitting(
            lambda n: read(self.evaluator(batch if n == count else batch.rows(np.arange(n)))), count
        )
        if fitted < count:
            self.batch_size = fitted
        self._refuse_what_is_not_finite(scores[..., 0], batch)
        begin = 0
        for opened, taken in parts:
            found = scores[begin : min(begin + taken, fitted), :, 0]
            opened.scores[opened.made : opened.made + len(found)] = found[:, opened.game.outputs]
            opened.made += len(found)
            begin += taken
            if opened.made == len(opened.scores):
                self._note(waiting.popleft())
        self.done += fitted
        self._on_progress(self.done, self._total)
        return fitted

    def _interventions(self, parts: Sequence[tuple[_Open, int]]) -> Interventions:
        """The next sets of each of these trials, in order."""
        rows: list[np.ndarray] = []
        units: list[np.ndarray] = []
        donors: list[np.ndarray] = []
        noise: list[np.ndarray] = []
        outputs = np.zeros((sum(taken for _, taken in parts), self.observed.shape[1]), dtype=bool)
        first = 0
        for opened, taken in parts:
            these = slice(opened.made, opened.made + taken)
            which = opened.trial.which[these]
            row, member = np.nonzero(opened.trial.sets[these])
            rows.append(first + row)
            units.append(self.plan.unit[opened.game.rows[member]])
            donors.append(opened.donors[which[row], member])
            if opened.noise is not None:
                noise.append(opened.noise[which])
            outputs[first : first + taken, opened.game.outputs] = True
            first += taken
        return Interventions(
            example=np.repeat([opened.game.example for opened, _ in parts], [taken for _, taken in parts]),
            row=np.concatenate(rows),
            unit=np.concatenate(units),
            donor=np.concatenate(donors),
            noise=np.concatenate(noise) if noise else None,
            outputs=outputs,
        )

    def _refuse_what_is_not_finite(self, scores: np.ndarray, batch: Interventions) -> None:
        assert batch.outputs is not None
        bad = ~(np.isfinite(scores) | ~batch.outputs[: len(scores)]).all(1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            example, which = int(batch.example[first]), batch.unit[batch.row == first]
            ids = [
                int(self.plan.key[(self.plan.example == example) & (self.plan.unit == unit)][0]) for unit in which[:5].tolist()
            ]
            more = f" and {len(which) - 5} more" if len(which) > 5 else ""
            raise ValueError(
                f"forward_func: it returned a score that is not finite ({scores[first].tolist()}) for example {example} with units "
                f"{', '.join(map(str, ids))}{more} replaced together"
            )

    def _note(self, opened: _Open) -> None:
        """A complete trial is one more observation of each of its units."""
        game = opened.game
        value = opened.trial.effects(opened.scores, self.observed[game.example, game.outputs])
        at = np.ix_(game.rows, game.outputs)
        self._count[at] += 1
        step = value - self._mean[at]
        self._mean[at] += step / self._count[at]
        self._squares[at] += step * (value - self._mean[at])
        self._largest[at] = np.maximum(self._largest[at], np.abs(opened.scores).max(0))
