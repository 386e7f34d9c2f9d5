"""The loop over trials, on games whose scores are looked up."""

import joint_oracle as oracle
import numpy as np
import pytest
import torch
from scipy.special import digamma

from captum_causalseg.engine.contexts import Banzhaf, Shapley
from captum_causalseg.engine.goal import Goal
from captum_causalseg.engine.joint import run_in_context
from captum_causalseg.engine.plan import Plan
from captum_causalseg.statistics.moderation import moderated_errors

N, U, D, K = 2, 5, 3, 2


class Game:
    """Scores are the products over outputs' own bases of what replaced units leave: ``observed * prod(left[example, unit, donor])``."""

    def __init__(self, seed=0, fails_above=10**9):
        generator = np.random.default_rng(seed)
        self.left, self.observed = generator.uniform(0.2, 1.1, (N, U, D, K)), generator.uniform(1, 2, (N, K))
        self.fails_above, self.batches, self.noises = fails_above, [], []

    def observe(self, examples):
        return torch.from_numpy(self.observed[examples])

    baseline = observe

    def worth(self, example, chosen):
        found = self.observed[example].copy()
        for unit, donor in chosen.items():
            found *= self.left[example, unit, donor]
        return found

    def __call__(self, interventions):
        if len(interventions) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(interventions))
        self.noises.append(interventions.noise)
        scores = []
        for row, example in enumerate(interventions.example.tolist()):
            mine = interventions.row == row
            scores.append(
                self.worth(example, dict(zip(interventions.unit[mine].tolist(), interventions.donor[mine, 0].tolist())))
            )
        return torch.from_numpy(np.stack(scores))


def plan_of(n_draws=8, active=None, with_noise=False, seed=(4,)):
    example, unit = np.divmod(np.arange(N * U), U)
    return Plan(
        example=example,
        unit=unit,
        key=unit + 20,
        population=np.tile([D, 7] if with_noise else [D], (N * U, 1)),
        active=np.ones((N * U, K), bool) if active is None else active,
        n_draws=n_draws,
        n_screening_draws=0,
        seed=seed,
        with_noise=with_noise,
    )


def run(game, plan, context=None, treated=None, batch_size=6, **options):
    return run_in_context(
        plan,
        context or Shapley(),
        game,
        observed=game.observed,
        treated=np.ones(plan.active.shape, bool) if treated is None else treated,
        batch_size=batch_size,
        **options,
    )


def literal(game, units=range(U), q=None, n_draws=8, seed=4, output=slice(None)):
    """``(N, U, n_pairs, K)``; NaN for units that are none of the game."""
    found = np.full((N, U, n_draws // 2, K), np.nan)
    numbers = {u: oracle.drawn_donors(seed, u + 20, D, n_draws) for u in units}
    for n in range(N):

        def worth(draw, chosen, n=n):
            return game.worth(n, {key - 20: numbers[key - 20][draw] for key in chosen})

        pairs = oracle.values_of_pairs(worth, [u + 20 for u in units], q=q, n_pairs=n_draws // 2, seed=seed)
        for u in units:
            found[n, u] = pairs[u + 20]
    return found[..., output]


@pytest.mark.parametrize(("context", "q"), [(Shapley(), None), (Banzhaf(0.3), 0.3)])
@pytest.mark.parametrize("batch_size", [1, 6, 1000])
def test_moments_are_those_of_the_pairs(context, q, batch_size):
    game = Game()
    outcome = run(game, plan_of(), context, batch_size=batch_size)
    pairs = literal(game, q=q).reshape(N * U, 4, K)
    np.testing.assert_allclose(outcome.moments.effect, pairs.mean(1), atol=1e-12)
    np.testing.assert_allclose(outcome.moments.sample_variance, pairs.var(1, ddof=1), atol=1e-12)
    # Variances of four pairs have a geometric mean that is smaller than their mean by this.
    np.testing.assert_allclose(outcome.moments.variance_factor, 1.5 / np.exp(digamma(1.5)) / 4)
    assert (outcome.moments.variance_freedom == 3).all()
    assert (outcome.moments.n_draws == 8).all()
    assert (outcome.moments.population == D).all()
    assert sum(game.batches) == outcome.n_forwards
    assert max(game.batches) <= batch_size
    assert len(game.batches) == -(-outcome.n_forwards // batch_size)


def test_shapley_values_add_up_in_every_trial():
    game = Game()
    outcome = run(game, plan_of(n_draws=4))
    for n in range(N):
        numbers = [oracle.drawn_donors(4, u + 20, D, 4) for u in range(U)]
        gone = np.mean([game.worth(n, {u: numbers[u][draw] for u in range(U)}) for draw in range(4)], axis=0)
        total = outcome.moments.effect[outcome.moments.effect.shape[0] // N * n :][:U].sum(0)
        np.testing.assert_allclose(total, game.observed[n] - gone, atol=1e-12)


def test_outputs_of_other_units_are_games_of_their_own():
    """The first output may not have unit 0 replaced, the second not unit 1; unit 2 reaches neither."""
    game, treated, active = Game(), np.ones((N * U, K), bool), np.ones((N * U, K), bool)
    game.left[:, 2] = 1.0
    treated[0::U, 0] = treated[1::U, 1] = False
    active[2::U] = False
    outcome = run(game, plan_of(active=active & treated), treated=treated)
    effect = outcome.moments.effect.reshape(N, U, K)
    np.testing.assert_allclose(effect[:, [1, 3, 4], 0], literal(game, [1, 3, 4], output=0)[:, [1, 3, 4]].mean(2), atol=1e-12)
    np.testing.assert_allclose(effect[:, [0, 3, 4], 1], literal(game, [0, 3, 4], output=1)[:, [0, 3, 4]].mean(2), atol=1e-12)
    assert np.isnan(effect[:, 2]).all()
    assert np.isnan(effect[:, 0, 0]).all()
    assert outcome.n_forwards == N * 2 * 8 * 3


def test_a_unit_that_reaches_one_output_is_replaced_for_both_without_harm():
    game, active = Game(), np.ones((N * U, K), bool)
    game.left[:, 2, :, 0] = 1.0
    active[2::U, 0] = False
    outcome = run(game, plan_of(active=active))
    effect = outcome.moments.effect.reshape(N, U, K)
    np.testing.assert_allclose(effect, literal(game).mean(2), atol=1e-12)
    assert (effect[:, 2, 0] == 0).all()


def test_when_memory_runs_out_batches_are_halved_and_numbers_stay():
    plenty, scarce = (run(Game(fails_above=most), plan_of(), batch_size=16) for most in (100, 3))
    assert scarce.batch_size == 2
    assert np.array_equal(plenty.moments.effect, scarce.moments.effect)
    assert plenty.n_forwards == scarce.n_forwards


def test_a_permutation_meets_one_random_state():
    game = Game()
    run(game, plan_of(with_noise=True, n_draws=6), batch_size=1000)
    (noise,) = game.noises
    per_order = noise.reshape(N, 6, U)
    assert (per_order == per_order[..., :1]).all()
    assert len(np.unique(per_order[0, :, 0])) == 6


def test_examples_have_seeds_of_their_own():
    game = Game()
    outcome = run(game, plan_of(seed=(4, 9)))
    effect = outcome.moments.effect.reshape(N, U, K)
    np.testing.assert_allclose(effect[0], literal(game, seed=4)[0].mean(1), atol=1e-12)
    np.testing.assert_allclose(effect[1], literal(game, seed=9)[1].mean(1), atol=1e-12)


def goal(**options):
    given = {"precision": None, "decide": None, "alpha": 0.05, "level": 0.95, "outputs": np.ones((N, K), bool), "budget": 10**6}
    return Goal(**{**given, "most_draws": 10**4, **options})


def test_precision_goes_on_until_it_is_reached_with_the_draws_of_a_longer_run():
    game = Game()
    outcome = run(game, plan_of(), goal=goal(precision=0.08), batch_size=64)
    moments, n = outcome.moments, outcome.moments.n_draws
    assert (n > 8).all()
    for example in range(N):
        rows = slice(example * U, (example + 1) * U)
        error, _ = moderated_errors(
            moments.sample_variance[rows], moments.variance_factor[rows], moments.variance_freedom[rows]
        )
        assert (error * 1.9 <= 0.08).all()
        assert len(np.unique(n[rows])) == 1
        made = int(n[rows].max())
        np.testing.assert_allclose(moments.effect[rows], literal(game, n_draws=made)[example].mean(1), atol=1e-12)


def test_the_budget_is_kept():
    game = Game()
    outcome = run(game, plan_of(), goal=goal(precision=1e-6, budget=N * 20 * U), batch_size=64)
    assert N * 18 * U <= outcome.n_forwards <= N * 20 * U
    capped = run(game, plan_of(), goal=goal(precision=1e-6, most_draws=12), batch_size=64)
    assert (capped.moments.n_draws == 12).all()


def test_outputs_that_are_not_asked_for_keep_nobody_waiting():
    game, outputs = Game(), np.zeros((N, K), bool)
    assert (run(game, plan_of(), goal=goal(precision=1e-9, outputs=outputs)).moments.n_draws == 8).all()


def test_progress_ends_where_it_should():
    calls = []
    outcome = run(Game(), plan_of(), Banzhaf(0.5), on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (outcome.n_forwards, outcome.n_forwards)
    assert all(done <= total for done, total in calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_differences_of_large_scores_have_no_spread_that_is_their_rounding():
    """A unit that always does the same, among others that move the score by a million times as much, from an image with score 0."""
    rng = np.random.default_rng(0)

    class Sum(Game):
        def worth(self, example, chosen):
            found = np.zeros(K)
            for unit, donor in chosen.items():
                found += 0.1 if unit == 1 else 1e5 * self.left[example, unit, donor]
            return found

    game = Sum()
    game.left, game.observed = rng.normal(size=(N, U, D, K)), np.zeros((N, K))
    moments = run(game, plan_of()).moments
    constant = plan_of().unit == 1
    np.testing.assert_allclose(moments.effect[constant], -0.1, atol=1e-9)
    assert (moments.sample_variance[constant] == 0).all()
    assert (moments.sample_variance[~constant] > 0).all()


def test_what_is_not_finite_is_refused():
    game = Game()
    game.left[1, 3, 1] = np.nan
    with pytest.raises(
        ValueError,
        match=r"forward_func: it returned a score that is not finite .* for example 1 with units .*23.* replaced together",
    ):
        run(game, plan_of())
