"""Pairs of units, replaced one by one and together: what the two do that neither does by itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from captum_causalseg.engine.contexts import donors_in_rounds
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.memory import fitting
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import Evaluator
from captum_causalseg.engine.scores import ROUNDING, read
from captum_causalseg.statistics import Status
from captum_causalseg.statistics.moderation import mean_over_geometric_mean
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["PairOutcome", "run_pairs"]

# As for trials in a context: a third number of the seed of random states.
_NOISE = 3


@dataclass(frozen=True, eq=False)
class PairOutcome:
    """What is known of ``P`` pairs.

    Args:
        single: ``(P, 2, K)``: the mean effects of either unit, from the draws of the pairs.
        together: moments ``(P, K)`` of the effect of both.
        interaction: moments ``(P, K)`` of that less the sum of the two; all three from the same donors in each draw.
        n_forwards: sets that were scored.
    """

    single: np.ndarray
    together: UnitMoments
    interaction: UnitMoments
    n_forwards: int


def run_pairs(
    plan: Plan,
    pairs: np.ndarray,
    evaluator: Evaluator,
    *,
    observed: np.ndarray,
    batch_size: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PairOutcome:
    """Make ``plan.n_draws`` draws of every pair (two where all have one donor); a unit that is in several pairs is replaced alone only once per draw.

    Args:
        plan: the rows, and where their draws come from.
        pairs: ``(P, 2)`` rows of it, both of one example.
        evaluator: how scores are computed.
        observed: the scores without intervention, ``(N, K)``.
        batch_size: sets per call of the evaluator; halved whenever memory runs out.
        on_progress: called with the sets scored and all that there will be.

    Raises:
        ValueError: a score is not finite.
    """
    rows, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    # Where both have one donor, every draw is the same, and what it says is exact.
    exact = (plan.population[pairs] == 1).all((1, 2))
    n_draws, n_rows, n_sets = 2 if exact.all() else plan.n_draws, len(rows), len(rows) + len(pairs)
    n_slots = plan.population.shape[1] - plan.with_noise
    donors = np.stack(
        [donors_in_rounds(plan.generator(row), plan.population[row, :n_slots].tolist(), n_draws) for row in rows.tolist()], 1
    )
    example = np.concatenate([plan.example[rows], plan.example[pairs[:, 0]]])
    # Of every set its members, as numbers among the rows.
    member = np.concatenate([np.arange(n_rows), places.ravel()])
    size = np.repeat([1, 2], [n_rows, len(pairs)])
    first = np.cumsum(size) - size
    noise = _noise(plan, rows, n_draws) if plan.with_noise else None
    scores = np.empty((n_draws * n_sets, observed.shape[1]))
    done, resolution = 0, 0.0

    def interventions(count: int) -> Interventions:
        numbers = np.arange(done, done + count)
        draw, which = numbers // n_sets, numbers % n_sets
        row = np.repeat(np.arange(count), size[which])
        within = np.arange(len(row)) - np.repeat(np.cumsum(size[which]) - size[which], size[which])
        mine = member[np.repeat(first[which], size[which]) + within]
        return Interventions(
            example=example[which],
            row=row,
            unit=plan.unit[rows[mine]],
            donor=donors[np.repeat(draw, size[which]), mine],
            noise=None if noise is None else noise[draw, example[which]],
        )

    while done < len(scores):
        most = min(batch_size, len(scores) - done)
        (found, resolution), fitted = fitting(lambda count: read(evaluator(interventions(count))), most)
        batch_size = fitted if fitted < most else batch_size
        scores[done : done + fitted] = found[..., 0]
        bad = np.flatnonzero(~np.isfinite(scores[done : done + fitted]).all(1))
        if len(bad):
            raise ValueError(
                f"forward_func: it returned a score that is not finite ({found[bad[0], :, 0].tolist()}) for example "
                f"{example[(done + bad[0]) % n_sets]} with one or two units replaced"
            )
        done += fitted
        on_progress(done, len(scores))
    change = observed[example] - scores.reshape(n_draws, n_sets, -1)
    single, together = change[:, :n_rows][:, places], change[:, n_rows:]
    size_of_score = np.abs(observed[example[n_rows:]]) + np.abs(change).max((0, 1))
    rounding = ROUNDING * resolution * size_of_score
    return PairOutcome(
        single=single.mean(0),
        together=_moments(together, rounding, exact),
        interaction=_moments(together - single.sum(2), rounding, exact),
        n_forwards=len(scores),
    )


def _noise(plan: Plan, rows: np.ndarray, n_draws: int) -> np.ndarray:
    """The random state that each example meets in each draw, ``(n_draws, N)``."""
    found = np.zeros((n_draws, int(plan.example.max()) + 1), dtype=np.int64)
    for example in np.unique(plan.example[rows]).tolist():
        seed = plan.seed[example] if len(plan.seed) > 1 else plan.seed[0]
        states = int(plan.population[rows[plan.example[rows] == example][0], -1])
        found[:, example] = donors_in_rounds(np.random.default_rng((seed, 1, _NOISE)), [states], n_draws)[:, 0]
    return found


def _moments(values: np.ndarray, rounding: np.ndarray, exact: np.ndarray) -> UnitMoments:
    """Of independent draws ``(n, P, K)``, or of the only one that there is where ``exact`` ``(P,)`` holds."""
    n, (p, k) = len(values), values.shape[1:]
    found = UnitMoments.missing((p,), (k,))
    variance = values.var(0, ddof=1)
    found.effect[:] = values.mean(0)
    found.sample_variance[:] = found.test_variance[:] = np.where(variance <= rounding**2, 0.0, variance)
    # Of few draws, the common scale of the variances is too small.
    found.variance_factor[:] = mean_over_geometric_mean(n - 1) / n
    found.variance_freedom[:], found.n_draws[:] = n - 1, n
    found.status[:], found.population[:] = Status.ESTIMATED, np.inf
    found.variance_factor[exact], found.n_draws[exact], found.population[exact] = 0.0, 1, 1
    return found
