"""What an example's budget leaves goes where it lowers errors most; nothing else depends on it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from engine_cases import Table, generator, make_plan
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg import Status
from captum_causalseg.engine.allocation import ROUNDS, Prospect, chosen, relative_squares
from captum_causalseg.engine.goal import half_widths
from captum_causalseg.engine.run import run
from captum_causalseg.statistics.moderation import moderate


def spread_table(n=2, u=6, donors=400, k=2, seed=0):
    """Units whose donors differ by more and more."""
    differences = generator(seed).normal(size=(n, u, donors, k)) * np.geomspace(0.05, 2, u)[None, :, None, None]
    return differences, generator(seed + 1).normal(size=(n, k))


def shared(plan, differences, observed, outputs=None, batch_size=16, screening_threshold=0.0, **options):
    needed = np.ones(observed.shape, bool) if outputs is None else outputs
    evaluator = Table(differences, observed)
    return run(
        plan,
        evaluator,
        observed,
        batch_size=batch_size,
        screening_threshold=screening_threshold,
        needed=needed,
        **options,
    )


def by_hand(values, donors, n_draws):
    """Draws of an example's rows ``(U,)``, uniform, from their donors' values in the order of use ``(U, D, K)``; the rule, literally."""
    units, _, outputs = values.shape
    n = [n_draws // 2] * units
    left = n_draws * units - sum(n)
    for rounds in (3, 2, 1):
        squares = np.zeros(units)
        for k in range(outputs):
            spread = np.array([values[u, : n[u], k].var(ddof=1) for u in range(units)])
            moderated, _ = moderate(spread, np.array(n) - 1, prior_degrees_of_freedom=10)
            of_means = moderated * [1 / m - 1 / donors for m in n]
            squares += of_means / of_means.mean()
        planned, guessed, rest, given_to = list(n), list(squares), left, set()
        stages = [0] * units
        while True:
            best, best_gain = None, 0.0
            for u in range(units):
                then = min(2 * planned[u], donors)
                if stages[u] == rounds or then == planned[u] or then - planned[u] > rest:
                    continue
                after = guessed[u] * (1 / then - 1 / donors) / (1 / planned[u] - 1 / donors)
                gain = (guessed[u] - after) / (then - planned[u])
                if gain > best_gain * (1 + 1e-9):
                    best, best_gain, best_after, best_then = u, gain, after, then
            if best is None:
                break
            rest -= best_then - planned[best]
            planned[best], guessed[best] = best_then, best_after
            stages[best] += 1
            given_to.add(best)
        for u in given_to:
            left -= min(2 * n[u], donors) - n[u]
            n[u] = min(2 * n[u], donors)
    return n


@pytest.mark.parametrize(("n_draws", "donors"), [(12, 400), (13, 60), (20, 45)])
def test_the_rule_is_that_of_a_literal_loop(n_draws, donors):
    for seed in range(4):
        differences, observed = spread_table(n=1, donors=donors, seed=seed)
        plan = make_plan(differences, n_draws=n_draws, n_first=n_draws // 2, seed=seed)
        outcome = shared(plan, differences, observed)
        values = np.array([differences[0, row, plan.design(row).donors(donors)[:, 0]] for row in range(6)])
        expected = by_hand(values, donors, n_draws)
        assert outcome.moments.n_draws[:, 0].tolist() == expected
        assert outcome.moments.n_draws[:, 1].tolist() == expected
        assert max(expected) > n_draws
        for row, n in enumerate(expected):
            np.testing.assert_allclose(outcome.moments.effect[row], values[row, :n].mean(0), rtol=1e-12)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_neither_batches_nor_other_examples_decide_who_gets_draws(sampling):
    differences, observed = spread_table()
    differences[1] *= 100
    predicted = differences[..., 0].reshape(12, -1) + generator(3).normal(size=(12, 400))

    def outcome(batch_size, examples):
        plan = make_plan(differences, n_draws=12, n_first=6, n_screening_draws=3, sampling=sampling)
        plan = replace(plan, active=plan.active & np.isin(plan.example, examples)[:, None])
        if sampling == "stratified":
            plan = replace(plan, rankings=[None] * 12)
            ranked = [plan.ranked(row, predicted[row], outputs=np.ones(2, bool), most_draws=48) for row in range(12)]
            plan = replace(plan, rankings=ranked)
        return shared(plan, differences, observed, batch_size=batch_size, screening_threshold=0.2).moments

    whole = outcome(64, [0, 1])
    assert (whole.status == Status.SCREENED).any()
    assert whole.n_draws.max() >= 24
    # Intervals take a row's own variance, and only tests of many rows the one that is small by luck less often.
    smaller = whole.sample_variance < whole.test_variance
    assert smaller[whole.n_draws >= 12].any() == (sampling == "stratified")
    assert not smaller[whole.n_draws < 12].any()
    for other in (outcome(1, [0, 1]), outcome(7, [0, 1]), outcome(64, [0]), outcome(64, [1])):
        there = ~np.isnan(other.effect)
        for name in ("effect", "n_draws", "sample_variance", "test_variance", "variance_factor"):
            np.testing.assert_array_equal(getattr(other, name)[there], getattr(whole, name)[there])


@given(st.integers(12, 40), st.integers(1, 9), st.sampled_from([0, 3]), st.integers(10, 500))
def test_no_example_takes_more_than_its_budget_nor_leaves_what_a_row_could_use(n_draws, units, n_screening, donors):
    differences, observed = spread_table(n=2, u=units, donors=donors)
    plan = make_plan(differences, n_draws=n_draws, n_first=n_draws // 2, n_screening_draws=n_screening)
    progress = []
    outcome = shared(plan, differences, observed, on_progress=lambda done, total: progress.append((done, total)))
    made = outcome.moments.n_draws[:, 0].reshape(2, units)
    assert outcome.n_forwards == made.sum()
    assert progress[-1] == (made.sum(), made.sum())
    assert all(later <= earlier for (_, earlier), (_, later) in itertools.pairwise(progress))
    if donors <= n_draws:
        assert (made == donors).all()
        return
    assert made.min() >= n_draws // 2
    assert made.max() <= n_draws // 2 * 2**ROUNDS
    left = n_draws * units - made.sum(1)
    assert (left >= 0).all()
    for mine, rest in zip(made, left):
        for n in mine:
            following = min(2 * n, donors)
            assert rest < following - n or n == donors or n == n_draws // 2 * 2**ROUNDS or rest < n_draws


def test_what_screened_and_drained_rows_do_not_need_is_saved_so_that_the_cost_is_that_of_equal_draws():
    differences, observed = spread_table(n=1, k=1)
    differences[0, 0] = 0.0
    plan = make_plan(differences, n_draws=16, n_first=8, n_screening_draws=3)
    plan.population[1] = 10
    progress = []
    outcome = shared(plan, differences, observed, screening_threshold=1e-6, on_progress=lambda *told: progress.append(told))
    made = outcome.moments.n_draws[:, 0]
    assert progress[0] == (0, 5 * 16 + 10)
    assert (3 * 6, 3 + 10 + 4 * 16) in progress  # when all are screened
    assert made[0] == 3
    assert made[1] == 10
    assert outcome.moments.variance_factor[1, 0] == 0
    assert 4 * 16 - 8 < made[2:].sum() <= 4 * 16
    assert made[2:].max() > 16


def test_a_row_that_is_known_exactly_gets_no_more():
    differences, observed = spread_table(n=1, k=1)
    plan = make_plan(differences, n_draws=12, n_first=6)
    plan.population[5] = 13
    made = shared(plan, differences, observed).moments.n_draws[:, 0]
    assert made[5] == 13
    assert made.sum() <= 72


def test_where_no_row_shows_a_spread_all_get_as_many():
    differences, observed = spread_table(n=1)
    differences[:] = 0.25
    made = shared(make_plan(differences, n_draws=12, n_first=6), differences, observed).moments.n_draws
    assert (made == 12).all()


def test_outputs_count_by_what_is_usual_for_them_and_only_those_asked_for():
    differences, observed = spread_table(n=1, u=4, k=2)
    differences[0, :, :, 0] = generator(5).normal(size=(4, 400)) * np.array([1, 1, 1, 20.0])[:, None]
    differences[0, :, :, 1] = generator(6).normal(size=(4, 400)) * np.array([20.0, 1, 1, 1])[:, None] * 1e-3
    plan = make_plan(differences, n_draws=20, n_first=10)
    both = shared(plan, differences, observed).moments.n_draws[:, 0]
    assert both[[0, 3]].min() > both[1:3].max()
    only = shared(plan, differences, observed, outputs=np.array([[False, True]])).moments.n_draws[:, 0]
    assert only[0] > only[1:].max()


def test_squares_are_relative_to_their_mean_over_the_rows():
    variance, freedom = (
        np.array([[4.0, np.nan], [1.0, np.nan], [np.nan, np.nan]]),
        np.array([[5.0, 0], [5, 0], [np.nan, np.nan]]),
    )
    counted = np.array([[True, True], [True, True], [False, False]])
    found = relative_squares(variance, np.full((3, 2), 0.1), freedom, counted)
    prior = 10 / 2
    first, second = ((prior * 2 + 5 * own) / (prior + 5) for own in (4.0, 1.0))
    # Of the second output nothing is known: all are alike.
    np.testing.assert_allclose(found, [2 * first / (first + second) + 1, 2 * second / (first + second) + 1, 0])


def test_a_stage_goes_where_a_draw_lowers_the_squared_error_most():
    few = [Prospect(1.0, 8, 10, 10), Prospect(1.0, 8, 16, math.inf)]
    assert few[0].gain == pytest.approx(1 / 2)  # two more, and it is exact
    assert few[1].gain == pytest.approx(1 / 16)
    assert few[0].after().square == 0
    assert few[1].after() == Prospect(0.5, 16, 32, math.inf)
    assert chosen(few, budget=2, rounds=3) == [0]
    assert chosen(few, budget=1, rounds=3) == []
    assert chosen(few, budget=9, rounds=3) == [0]
    assert chosen(few, budget=10, rounds=0) == []


def sides(n_draws, sampling, seeds):
    """On a table of skewed effects: errors ``(S, U)`` of equal and of needed draws, and the latter's standard errors and half-widths."""
    units, donors = 12, 300
    scale = np.geomspace(0.02, 1, units)[:, None]
    values = generator(2).exponential(size=(units, donors)) * scale
    differences = np.broadcast_to(values[None, :, :, None], (seeds, units, donors, 1))
    observed = np.zeros((seeds, 1))
    predicted = values + 0.5 * scale * generator(4).normal(size=values.shape)

    def errors(needed, **options):
        plan = replace(make_plan(differences, n_draws=n_draws, sampling=sampling, **options), seed=tuple(range(seeds)))
        if sampling == "stratified":
            plan = replace(plan, rankings=[None] * len(plan))
            ones = np.ones(1, bool)
            ranked = [
                plan.ranked(row, predicted[plan.unit[row]], outputs=ones, most_draws=8 * n_draws) for row in range(len(plan))
            ]
            plan = replace(plan, rankings=ranked)
        evaluator = Table(differences, observed)
        found = run(plan, evaluator, observed, batch_size=10**6, screening_threshold=0, needed=needed).moments
        standard, half = half_widths(plan.example, found, 0.95)
        return [one[:, 0].reshape(seeds, units) for one in (found.effect - values.mean(1)[plan.unit, None], standard, half)]

    return errors(None)[0], *errors(np.ones((seeds, 1), bool), n_first=n_draws // 2)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_errors_fall_looking_biases_by_little_and_intervals_are_as_wide_as_errors_want_them(sampling):
    seeds = 80
    equal, needed, standard, half = sides(16, sampling, seeds=seeds)
    square = (needed**2).mean()
    assert square < 0.8 * (equal**2).mean()
    # What the mean of so many seeds is off by chance is no bias.
    bias = np.maximum(needed.mean(0) ** 2 - needed.var(0, ddof=1) / seeds, 0)
    assert bias.mean() < 0.15**2 * square
    assert (np.abs(needed) <= half).mean() > 0.92
    assert 0.8**2 < (standard**2).mean() / square < 1.2**2
