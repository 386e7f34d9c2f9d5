"""When an effect is known well enough: precision, decisions, budgets."""

import math
from dataclasses import replace

import numpy as np
import pytest
from engine_cases import Table, generator, make_plan, table
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from captum_causalseg import Status
from captum_causalseg.engine.goal import Goal, half_widths
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.engine.run import run
from captum_causalseg.statistics.moments import UnitMoments


def screened(outcome):
    """Which rows and outputs were given up after their screening draws."""
    return outcome.moments.status == Status.SCREENED


def make_goal(plan, precision=None, decide=None, alpha=0.05, budget=10**9, most_draws=10**4):
    outputs = np.ones((1 + plan.example.max(), plan.active.shape[1]), bool)
    return Goal(precision, decide, alpha, 0.95, outputs, budget, most_draws)


def pursue(plan, differences, observed, batch_size=16, screening_threshold=0.0, **goal):
    return run(
        plan,
        Table(differences, observed),
        observed,
        batch_size=batch_size,
        screening_threshold=screening_threshold,
        goal=make_goal(plan, **goal),
    )


def widths(plan, outcome, level=0.95):
    return half_widths(plan.example, outcome.moments, level)[1]


def test_half_widths_are_those_of_the_moderated_t_interval():
    variance = np.array([[0.04], [0.01], [0.0], [np.nan], [9.0]])
    factor, freedom = np.array([[0.1], [0.2], [0.1], [0.5], [0.0]]), np.array([[9.0], [4.0], [9.0], [0.0], [7.0]])
    rows = replace(UnitMoments.missing((5,), (1,)), sample_variance=variance, variance_factor=factor, variance_freedom=freedom)
    error, half = half_widths(np.array([0, 0, 0, 0, 1]), rows, 0.9)
    scale = math.sqrt(0.04 * 0.01)
    for row in range(4):
        d, own = freedom[row, 0], np.nan_to_num(variance[row, 0])
        prior = 3 * (1 / 2 if own else 2 / 3)  # one other row shows a spread, or two
        expected = math.sqrt((prior * scale + d * own) / (prior + d) * factor[row, 0])
        assert error[row, 0] == pytest.approx(expected)
        assert half[row, 0] == pytest.approx(scipy_stats.t.ppf(0.95, prior + d) * expected)
    assert error[4, 0] == half[4, 0] == 0


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_with_precision_every_interval_becomes_narrow_enough_and_not_every_row_is_drawn_out(sampling):
    differences, observed = table(n=2, u=12, donors=3000, k=2)
    differences *= np.geomspace(0.05, 1, 12)[None, :, None, None]
    rankings = [generator(row).permutation(1000) for row in range(24)]
    plan = make_plan(differences, n_draws=8, sampling=sampling, rankings=rankings)
    outcome = pursue(plan, differences, observed, precision=0.2, most_draws=1000)
    assert (widths(plan, outcome) <= 0.2).all()
    assert outcome.n_forwards == outcome.moments.n_draws[:, 0].sum() < 24 * 400
    assert (outcome.moments.n_draws[plan.unit == 0] == 8).all(), "what is known well enough is left alone"
    assert (outcome.moments.n_draws[plan.unit == 11] > 100).all()
    easy = pursue(plan, differences, observed, precision=50.0)
    assert (easy.moments.n_draws == 8).all()


@given(st.integers(0, 800), st.integers(1, 40), st.sampled_from([0, 3]))
def test_a_goal_never_takes_more_than_the_budget_nor_a_row_more_than_its_most(more, batch_size, n_screening):
    differences, observed = table(n=1, u=6, donors=500, k=1)
    plan = make_plan(differences, n_draws=8, n_screening_draws=n_screening)
    budget = 48 + more
    outcome = pursue(plan, differences, observed, batch_size, precision=1e-6, budget=budget, most_draws=100)
    assert outcome.n_forwards == outcome.moments.n_draws.sum() <= budget
    assert outcome.moments.n_draws.max() <= 64
    assert outcome.moments.n_draws.min() >= 8
    # What is left would not pay for any row's next stage.
    assert budget - outcome.n_forwards < 64 or (outcome.moments.n_draws == 64).all()


def test_a_budget_below_the_first_sample_ends_with_the_first_sample():
    differences, observed = table(n=1, u=6, donors=500, k=1)
    plan = make_plan(differences, n_draws=8)
    assert (pursue(plan, differences, observed, precision=1e-6, budget=10).moments.n_draws == 8).all()


def test_the_largest_standard_errors_are_drawn_on_first():
    differences, observed = table(n=1, u=20, donors=4000, k=1)
    differences *= 0.01
    differences[0, 13] *= 100
    plan = make_plan(differences, n_draws=8)
    # All are asked for more; what is left pays for the next stage of one row, or of three.
    one = pursue(plan, differences, observed, batch_size=1, precision=1e-6, budget=160 + 8)
    assert one.moments.n_draws[:, 0].tolist() == [16 if row == 13 else 8 for row in range(20)]
    three = pursue(plan, differences, observed, batch_size=1, precision=1e-6, budget=160 + 3 * 8)
    error, _ = half_widths(plan.example, one.moments, 0.95)
    second, third = [row for row in np.argsort(-error[:, 0]) if row != 13][:2]
    assert np.flatnonzero(three.moments.n_draws[:, 0] > 8).tolist() == sorted([13, second, third])
    richer = pursue(plan, differences, observed, precision=0.02, budget=8000, most_draws=4000)
    assert richer.moments.n_draws[:, 0].argmax() == 13
    assert np.delete(richer.moments.n_draws[:, 0], 13).max() <= 16


def test_a_drained_row_is_exact_and_not_drawn_on():
    differences, observed = table(n=1, u=5, donors=40, k=1)
    plan = make_plan(differences, n_draws=8)
    plan.population[2] = 8
    plan.population[3] = 11
    for sampling in ("uniform", "stratified"):
        orders = [generator(row).permutation(size) for row, size in enumerate([40, 40, 8, 11, 40])]
        rankings = [None if row == 2 else Ranking(order) for row, order in enumerate(orders)]
        drained = replace(plan, sampling=sampling, rankings=rankings)
        outcome = pursue(drained, differences, observed, precision=1e-9, most_draws=10**6)
        assert outcome.moments.n_draws[:, 0].tolist() == [40, 40, 8, 11, 40]
        assert outcome.n_forwards == 139
        assert (outcome.moments.variance_factor == 0).all()
        np.testing.assert_allclose(outcome.moments.effect[3], differences[0, 3, :11].mean(0))


def test_rows_that_were_given_up_after_screening_are_left_and_undecided():
    differences, observed = table(n=1, u=4, donors=400, k=1)
    differences[0, 1] *= 1e-3
    plan = make_plan(differences, n_draws=8, n_screening_draws=3)
    for goal in ({"precision": 0.05}, {"decide": 0.001}):
        outcome = pursue(plan, differences, observed, screening_threshold=0.01, most_draws=64, **goal)
        assert screened(outcome)[:, 0].tolist() == [False, True, False, False]
        assert outcome.moments.n_draws[1, 0] == 3
        assert outcome.moments.decision[1, 0] == 0
    assert outcome.moments.n_draws[[0, 2, 3]].min() > 8


def test_an_output_that_was_given_up_after_screening_is_no_reason_to_draw_on():
    differences, observed = np.zeros((1, 1, 400, 2)), np.zeros((1, 2))
    differences[0, 0, :, 0] = generator().uniform(-0.005, 0.005, 400)  # wide, and below the threshold
    differences[0, 0, :, 1] = 0.5 + 1e-7 * generator(1).normal(size=400)  # narrow enough
    plan = make_plan(differences, n_draws=8, n_screening_draws=3)
    outcome = pursue(plan, differences, observed, screening_threshold=0.01, precision=1e-5)
    assert screened(outcome).tolist() == [[True, False]]
    assert outcome.moments.n_draws.tolist() == [[3, 8]]


def test_only_the_outputs_of_the_goal_are_pursued():
    differences, observed = table(n=2, u=3, donors=400, k=2)
    differences[..., 1] *= 1e-3
    plan = make_plan(differences, n_draws=8)
    outputs = np.array([[False, True], [True, False]])
    goal = Goal(0.1, None, 0.05, 0.95, outputs, 10**6, 200)
    outcome = run(plan, Table(differences, observed), observed, batch_size=8, screening_threshold=0, goal=goal)
    assert (outcome.moments.n_draws[plan.example == 0] == 8).all()
    assert (outcome.moments.n_draws[plan.example == 1] > 8).all()
    goal = Goal(None, 0.0, 0.05, 0.95, outputs, 10**6, 200)
    outcome = run(plan, Table(differences, observed), observed, batch_size=8, screening_threshold=0, goal=goal)
    assert (outcome.moments.decision[plan.example == 0][:, 0] == 0).all()
    assert (outcome.moments.decision[plan.example == 1][:, 1] == 0).all()


def test_what_lies_far_from_the_threshold_is_decided_at_the_first_look_and_rightly():
    differences, observed = table(n=1, u=6, donors=2000, k=1)
    differences[0, :3] += 5
    differences[0, 3:] -= 5
    plan = make_plan(differences, n_draws=8)
    outcome = pursue(plan, differences, observed, decide=0.5)
    assert outcome.moments.decision[:, 0].tolist() == [1, 1, 1, -1, -1, -1]
    assert (outcome.moments.n_draws == 8).all()


ROWS, ALPHA = 1000, 0.05


def wrong_at_most(n, alpha=ALPHA):
    return n * alpha + 4 * math.sqrt(n * alpha * (1 - alpha))


@pytest.mark.parametrize(
    ("distance", "sampling"), [(0.0, "uniform"), (0.05, "uniform"), (0.3, "uniform"), (0.0, "stratified"), (0.05, "stratified")]
)
def test_wrong_decisions_over_all_looks_are_at_most_alpha(distance, sampling):
    """Effects exactly at a distance from the threshold, normal draws: any decision at 0, the other side else, is wrong."""
    donors, threshold = 600, 0.2
    differences = generator(int(100 * distance)).normal(size=(1, ROWS, donors, 1))
    sign = np.where(np.arange(ROWS) % 2, 1.0, -1.0)
    differences += (threshold + sign * distance)[None, :, None, None] - differences.mean(2, keepdims=True)
    observed = np.zeros((1, 1))
    rankings = [generator(row).permutation(donors) for row in range(ROWS)] if sampling == "stratified" else ()
    plan = make_plan(differences, n_draws=8, seed=3, sampling=sampling, rankings=rankings)
    # Ranks take longer to handle than numbers: fewer looks.
    most = 32 if sampling == "stratified" else 128
    outcome = pursue(plan, differences, observed, batch_size=10**5, decide=threshold, alpha=ALPHA, most_draws=most)
    decision, n = outcome.moments.decision[:, 0], outcome.moments.n_draws[:, 0]
    if distance == 0:
        assert 0 < (decision != 0).sum() <= wrong_at_most(ROWS)
        assert (n[decision == 0] == most).all()
        return
    assert (decision == -sign).sum() <= wrong_at_most(ROWS)
    assert (decision == sign).sum() > (0.3 if distance == 0.3 else 0.02) * ROWS
    # A decision is final: nothing more is drawn.
    assert len(set(n[decision != 0].tolist())) > 1


@pytest.mark.parametrize("n_screening", [0, 3, 20, 26])
def test_an_effect_is_not_looked_at_more_often_than_the_error_rate_is_shared_out_for(n_screening, monkeypatch):
    differences, observed = table(n=1, u=2, donors=3000, k=1)
    rankings = [generator(row).permutation(1500) for row in range(2)]
    shared, looks = [], []
    true_decisions, true_looks = Goal.decisions, Goal.looks
    monkeypatch.setattr(Goal, "looks", lambda self, n: shared.append(true_looks(self, n)) or shared[-1])
    monkeypatch.setattr(Goal, "decisions", lambda self, *a: looks.append(1) or true_decisions(self, *a))
    for sampling in ("uniform", "stratified"):
        plan = make_plan(differences, 28, n_screening, sampling=sampling, rankings=rankings)
        shared.clear()
        looks.clear()
        # Exactly at the threshold, so that it is looked at to the end; both rows go on together.
        differences -= differences.mean(2, keepdims=True)
        outcome = pursue(plan, differences, observed, batch_size=10**4, decide=0.0, alpha=1e-6, most_draws=800)
        assert (outcome.moments.decision == 0).all()
        assert (outcome.moments.n_draws > 400).all()
        assert len(looks) <= shared[0] <= len(looks) + 1
