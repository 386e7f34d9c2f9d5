"""Carry a plan out: full batches of interventions, screening, stopping, halving the batch when memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from captum_causalseg.engine.allocation import ROUNDS, Prospect, chosen, relative_squares
from captum_causalseg.engine.goal import Goal, half_widths
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.memory import fitting
from captum_causalseg.engine.notes import Notes
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.sample import Sample
from captum_causalseg.engine.scores import ROUNDING, read
from captum_causalseg.statistics import Status
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["Evaluator", "KnowsControlMeans", "Outcome", "observe", "run"]


class Evaluator(Protocol):
    """How scores under interventions are computed.

    Scores are ``(B, K)``. They may be ``(B, K, 1 + C)``: then the first column is the score, and each further one a *control*: what the
    same row gives in another computation, a cheaper one for example.
    """

    def observe(self, examples: np.ndarray) -> Tensor:
        """The scores without intervention of the examples ``(B,)``."""

    def baseline(self, examples: np.ndarray) -> Tensor:
        """The same scores, computed in the very way in which those under interventions are."""

    def __call__(self, interventions: Interventions) -> Tensor:
        """The scores of ``B`` interventions; finite, also those that are not looked at (``outputs``)."""


@runtime_checkable
class KnowsControlMeans(Protocol):
    """What an evaluator has besides whose controls are to make estimates more precise."""

    def control_means(self, examples: np.ndarray, units: np.ndarray) -> Tensor | np.ndarray:
        """The controls' means over all donors of these units, alone in their sets, ``(B, K, C)``; examples and units are ``(B,)``."""


@dataclass
class Outcome:
    """What a run leaves.

    Args:
        observed: ``(N, K)``.
        moments: per row ``(M, K)``; NaN and 0 draws where nothing was wanted. ESTIMATED, or SCREENED where the row was given up after its screening
            draws; ``decision`` is about the goal's threshold.
        n_forwards: images that went through the model, the observed ones not counted.
        batch_size: interventions per batch, at the end.
        slope_sums: ``(M, K, C)``, by which rows lean on each other (:func:`~captum_causalseg.statistics.slopes.lean`); ``None`` where they do not.
    """

    observed: np.ndarray
    moments: UnitMoments
    n_forwards: int
    batch_size: int
    slope_sums: np.ndarray | None = None


def observe(evaluator: Evaluator, n_examples: int, *, as_intervened: bool = False) -> np.ndarray:
    """The observed scores ``(N, K)`` of all examples, in one batch if memory allows.

    Args:
        evaluator: how scores are computed.
        n_examples: ``N``.
        as_intervened: computed as those under interventions are.

    Raises:
        ValueError: a score is not finite.
    """
    size, left, parts = n_examples, np.arange(n_examples), list[np.ndarray]()
    score = evaluator.baseline if as_intervened else evaluator.observe
    while len(left):
        scores, size = fitting(partial(_observed, score, left), min(size, len(left)))
        parts.append(scores[0][..., 0])
        left = left[size:]
    observed = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(observed).all(1))
    if len(bad):
        raise ValueError(f"forward_func: the score of example {bad[0]} is not finite: {observed[bad[0]].tolist()}")
    return observed


def run(
    plan: Plan,
    evaluator: Evaluator,
    observed: np.ndarray,
    *,
    batch_size: int,
    screening_threshold: float,
    goal: Goal | None = None,
    needed: np.ndarray | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Carry out a plan.

    Args:
        plan: what to do.
        evaluator: how scores are computed.
        observed: the scores without intervention, ``(N, K)``.
        batch_size: interventions per call of the evaluator; halved whenever memory runs out.
        screening_threshold: a row and output whose screening draws all move the score by less than this is left there.
        goal: go on drawing until it is reached; ``None``: every row gets the plan's draws.
        needed: ``(N, K)``: the outputs whose errors say which rows get what an example's budget leaves after the plan's first sample; what rows
            save that are given up after their screening draws is saved. ``None``: nothing is shared out.
        on_progress: called with the interventions done and the most that there will be.

    Raises:
        ValueError: a score is not finite.
    """
    loop = _Loop(plan, evaluator, observed, batch_size=batch_size, shares_out=needed is not None, on_progress=on_progress)
    if plan.screens:
        loop.screen(screening_threshold)
    loop.sample(keep=goal is not None or needed is not None)
    if needed is not None:
        loop.share_out(needed)
    if goal is not None:
        loop.pursue(goal)
    moments = loop.notes.moments(chosen_by_errors=goal is not None)
    return Outcome(observed, moments, n_forwards=loop.done, batch_size=loop.batch_size, slope_sums=loop.notes.sums)


Job = tuple[int, int, int]
"""A row and which of its draws are to be made: from the first number up to the second."""


class _Loop:
    def __init__(
        self,
        plan: Plan,
        evaluator: Evaluator,
        observed: np.ndarray,
        batch_size: int,
        shares_out: bool,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.plan, self.evaluator, self.observed = plan, evaluator, observed
        self.batch_size = batch_size
        self.done = 0
        self._total = 0
        self._shares_out = shares_out
        self._on_progress = on_progress
        self._wanted = plan.active.copy()
        self._resolution = 0.0
        # Of rows that are not finished, what all draws so far gave, (n, K, 1 + C): differences, then the evaluator's controls.
        self._scored: dict[int, np.ndarray] = {}
        # Which stage of a row is complete.
        self._stage = dict.fromkeys(range(len(plan)), 0)
        self.notes = Notes(plan.example, np.array([plan.total(row) for row in range(len(plan))]), observed.shape[1])

    def screen(self, threshold: float) -> None:
        """The screening draws; rows and outputs that they do not move are finished."""
        active = np.flatnonzero(self._wanted.any(1)).tolist()
        self._expect(sum(map(self._expected, active)))
        saved = 0

        def finished(row: int, scored: np.ndarray) -> None:
            nonlocal saved
            rest = self.plan.design(row).end(1) - len(scored)
            # A drained bank leaves nothing to screen: the estimate is exact already.
            still = (np.abs(scored[..., 0]).max(0) < threshold).reshape(self.plan.n_aspects, -1).all(0)
            screened = self._wanted[row] & np.tile(still, self.plan.n_aspects) & (rest > 0)
            self.notes.alone.status[row, screened] = Status.SCREENED
            self._note(row, screened, scored)
            self._wanted[row] &= ~screened
            if self._wanted[row].any():
                self._scored[row] = scored
            else:
                saved += self._expected(row) - len(scored)

        self._carry_out([(row, 0, self.plan.design(row).end(0)) for row in active], finished)
        self._expect(self._total - saved)

    def sample(self, keep: bool) -> None:
        """The first sample of every row that is left."""
        jobs = [(row, len(self._scored.get(row, ())), self.plan.design(row).end(1)) for row in self._left()]
        if not self.plan.screens:
            self._expect(sum(self._expected(row) for row, _, _ in jobs))
        self._carry_out(jobs, partial(self._sampled, keep=keep))

    def share_out(self, outputs: np.ndarray) -> None:
        """What the first sample leaves of every example's budget goes where it lowers the errors of these outputs ``(N, K)`` the most."""
        plan, left = self.plan, self._left()
        asked = outputs[plan.example] & self._wanted
        spare = np.zeros(len(self.observed), dtype=np.int64)
        for row in left:
            spare[plan.example[row]] += plan.budget(row) - plan.design(row).end(self._stage[row])
        for rounds in range(ROUNDS, 0, -1):
            found = self.notes.moments()
            variance, factor, freedom = found.test_variance, found.variance_factor, found.variance_freedom
            jobs: list[Job] = []
            for example in np.unique(plan.example[left]).tolist():
                rows = [row for row in left if plan.example[row] == example]
                squares = relative_squares(variance[rows], factor[rows], freedom[rows], counted=asked[rows])
                prospects = [self._prospect(row, square) for row, square in zip(rows, squares.tolist())]
                for place in chosen(prospects, int(spare[example]), rounds):
                    jobs.append((rows[place], prospects[place].n, prospects[place].following))
                    spare[example] -= prospects[place].cost
            if not jobs:
                break
            self._carry_out(jobs, partial(self._sampled, keep=True))
        self._expect(self.done)

    def _expected(self, row: int) -> int:
        """Interventions of a row that is not given up, as far as they are expected before errors are looked at."""
        return self.plan.budget(row) if self._shares_out else self.plan.design(row).end(1)

    def _prospect(self, row: int, square: float) -> Prospect:
        design, stage = self.plan.design(row), self._stage[row]
        return Prospect(square, n=design.end(stage), following=design.end(stage + 1), total=self.plan.total(row))

    def pursue(self, goal: Goal) -> None:
        """Further stages for the rows whose goal is not reached, those with the largest standard errors first."""
        left = self._left()
        looks = goal.looks(self.plan.n_draws)
        asked = goal.outputs[self.plan.example] & self._wanted
        fresh = asked.copy()
        costs = {row: self._next(row, goal) for row in left}
        while True:
            error, unmet = self._judge(goal, asked, fresh, looks=looks)
            worst = np.where(unmet, error, -np.inf).max(1, initial=-np.inf)
            open_rows = (row for row in left if costs[row] and unmet[row].any())
            order = sorted(open_rows, key=lambda row: (-worst[row], row))
            jobs = self._affordable(order, costs, goal.budget - self.done)
            if not jobs:
                return
            self._expect(max(goal.budget, self.done))
            self._carry_out(jobs, partial(self._sampled, keep=True))
            fresh[:] = False
            for row, _, _ in jobs:
                costs[row] = self._next(row, goal)
                fresh[row] = asked[row]

    def _left(self) -> list[int]:
        return [int(row) for row in np.flatnonzero(self._wanted.any(1))]

    def _next(self, row: int, goal: Goal) -> int:
        """How many draws the row's next stage takes; 0 if there is none."""
        design, stage = self.plan.design(row), self._stage[row]
        end = design.end(stage + 1)
        return end - design.end(stage) if end <= goal.most_draws else 0

    def _affordable(self, order: Sequence[int], cost: dict[int, int], budget: int) -> list[Job]:
        """Of rows in the order of need, the first ones, in full batches; a quarter of all before it is looked again."""
        share = max(self.batch_size, sum(cost[row] for row in order) // 4)
        jobs: list[Job] = []
        planned = 0
        for row in order:
            if planned >= share:
                break
            if planned + cost[row] <= budget:
                made = len(self._scored[row])
                jobs.append((row, made, made + cost[row]))
                planned += cost[row]
        return jobs

    def _judge(self, goal: Goal, asked: np.ndarray, fresh: np.ndarray, looks: int) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors, and where ``(M, K)`` the goal is not reached; decisions are taken where there are new draws."""
        out, decision = self.notes.moments(chosen_by_errors=True), self.notes.alone.decision
        error, half = half_widths(self.plan.example, out, goal.level)
        unmet = np.zeros_like(asked)
        if goal.precision is not None:
            unmet |= asked & ~(half <= goal.precision)
        if goal.decide is not None:
            _, wide = half_widths(self.plan.example, out, 1 - goal.alpha / looks)
            new = fresh & (decision == 0)
            decision[new] = goal.decisions(out.effect, wide)[new]
            unmet |= asked & (decision == 0) & (error > 0)
        return error, unmet

    def _sampled(self, row: int, scored: np.ndarray, keep: bool) -> None:
        before = self._scored.pop(row, None)
        if before is not None:
            scored = np.concatenate([before, scored]) if len(scored) else before
        self._stage[row] += 1
        self._note(row, self._wanted[row], scored)
        if keep:
            self._scored[row] = scored

    def _note(self, row: int, which: np.ndarray, scored: np.ndarray) -> None:
        """Write down what all draws up to the end of the row's stage say of some outputs."""
        sample = self._sample(row, scored)
        values, estimate = sample.values, self.plan.scheme.estimator.estimate(sample)
        size = np.abs(self.observed[self.plan.example[row]]) + np.abs(values).max(0)
        rounding = ROUNDING * self._resolution * size
        # Only where no draw moved the score: small flips of some draws are kept as they are.
        still = np.abs(values).max(0) <= rounding
        self.notes.write(row, estimate, which=which, still=still, rounding=rounding)

    def _sample(self, row: int, scored: np.ndarray) -> Sample:
        """All draws of a row up to the end of its stage, and what is known of them besides."""
        values, controls = scored[..., 0], scored[..., 1:]
        means = np.full(controls.shape[1:], np.nan)
        if controls.shape[2] and isinstance(self.evaluator, KnowsControlMeans):
            examples, units = self.plan.example[[row]], self.plan.unit[[row]]
            means = np.asarray(self.evaluator.control_means(examples, units), dtype=np.float64)[0]
        ranking = self.plan.ranking(row)
        first_order = None if ranking is None else ranking.first_order
        if first_order is not None:
            predicted = np.broadcast_to(first_order.drawn[: len(values), None, None], (*values.shape, 1))
            controls = np.concatenate([predicted, controls], 2)
            means = np.concatenate([np.full((values.shape[1], 1), first_order.mean), means], 1)
        selection = self.plan.design(row).selection(self._stage[row])
        return Sample(values=values, selection=selection, controls=controls, control_means=means, first_order=first_order)

    def _expect(self, total: int) -> None:
        self._total = total
        self._on_progress(self.done, total)

    def _carry_out(self, jobs: Sequence[Job], finished: Callable[[int, np.ndarray], None]) -> None:
        """Make draws; ``finished`` is called with each row and what all draws of its job gave.

        That is ``(n, K, 1 + C)``: ``observed - intervened``, then the evaluator's controls as they are.
        """
        left = {row: stop - start for row, start, stop in jobs}
        parts: dict[int, list[np.ndarray]] = {}
        for rows, donors in self._batches(jobs):
            begin = 0
            while begin < len(rows):
                scores = self._evaluate(rows[begin:], donors[begin:])
                part = slice(begin, begin + len(scores))
                scores[..., 0] = self.observed[self.plan.example[rows[part]]] - scores[..., 0]
                begin += len(scores)
                self.done += len(scores)
                for found in np.split(np.arange(len(scores)), np.flatnonzero(np.diff(rows[part])) + 1):
                    row = int(rows[part][found[0]])
                    parts.setdefault(row, []).append(scores[found])
                    left[row] -= len(found)
                    if not left[row]:
                        finished(row, np.concatenate(parts.pop(row)))
                self._on_progress(self.done, self._total)
        for row, start, stop in jobs:
            if start == stop:
                finished(row, np.empty((0, self.observed.shape[1], 1)))

    def _batches(self, jobs: Sequence[Job]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Full batches across rows: ``(rows (B,), donors (B, slots))``."""
        rows: list[np.ndarray] = []
        donors: list[np.ndarray] = []
        held = 0
        for row, start, stop in jobs:
            drawn = self.plan.design(row).donors(stop)[start:]
            rows.append(np.full(len(drawn), row))
            donors.append(drawn)
            held += len(drawn)
            if held < self.batch_size:
                continue
            all_rows, all_donors = np.concatenate(rows), np.concatenate(donors)
            whole = held - held % self.batch_size
            yield all_rows[:whole], all_donors[:whole]
            rows, donors, held = [all_rows[whole:]], [all_donors[whole:]], held - whole
        if held:
            yield np.concatenate(rows), np.concatenate(donors)

    def _evaluate(self, rows: np.ndarray, donors: np.ndarray) -> np.ndarray:
        """What the first batch of these gives, ``(B, K, 1 + C)``; it is smaller than it was to be, and so are the next ones, if memory ran out."""
        most = min(self.batch_size, len(rows))
        wanted = self._wanted[rows]
        (scores, self._resolution), size = fitting(
            lambda count: read(self.evaluator(self.plan.interventions(rows[:count], donors[:count], wanted[:count]))), most
        )
        if size < most:
            self.batch_size = size
        bad = ~np.isfinite(scores).all((1, 2))
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            found = scores[first, :, 0] if scores.shape[2] == 1 else scores[first]
            raise ValueError(
                f"forward_func: it returned a score that is not finite ({found.tolist()}) for example {self.plan.example[rows[first]]} "
                f"with unit {self.plan.key[rows[first]]} replaced by donor {donors[first].tolist()}"
            )
        return scores


def _observed(score: Callable[[np.ndarray], Tensor], examples: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    return read(score(examples[:count]))
