"""Scores of sets with common draws, on games whose scores are looked up, against a literal loop."""

import numpy as np
import pytest

from captum_causalseg.engine.set_scores import Budget, BudgetSpentError, SetScores, SetsOfExample
from tests.engine.test_joint import D, Game, U

SETS = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1]], dtype=bool)


def donors_of(n_draws):
    return np.random.default_rng(1).integers(0, D, (n_draws, U, 1))


def scores_of(game, n_draws=6, batch_size=4, most=10**6, example=1, output=0, noise=None, on_batch=lambda count: None):
    sets = SetsOfExample(
        example=example,
        units=np.arange(U),
        donors=donors_of(n_draws),
        noise=noise,
        output=output,
        observed=game.observed[example],
    )
    return SetScores(game, sets, batch_size=batch_size, budget=Budget(most), on_batch=on_batch)


def literal(game, sets, n_draws, example=1, output=0):
    donors = donors_of(n_draws)
    return [
        [game.worth(example, {unit: donors[draw, unit, 0] for unit in np.flatnonzero(one)})[output] for draw in range(n_draws)]
        for one in sets
    ]


@pytest.mark.parametrize(("batch_size", "fails_above"), [(1, 99), (7, 99), (1000, 99), (16, 3)])
@pytest.mark.parametrize("output", [0, 1])
def test_against_the_literal_loop(batch_size, fails_above, output):
    game = Game(fails_above=fails_above)
    found = scores_of(game, batch_size=batch_size, output=output)(SETS)
    np.testing.assert_allclose(found, literal(game, SETS, 6, output=output), atol=1e-12)
    # Nothing replaced is the image as it is, and a set that comes twice is scored once.
    assert sum(game.batches) == 2 * 6
    assert max(game.batches) <= min(batch_size, fails_above)


def test_no_set_is_scored_again_and_few_draws_are_the_first_of_many():
    game, counts = Game(), []
    scores = scores_of(game, on_batch=counts.append)
    few = scores(SETS, 2)
    assert few.shape == (4, 2)
    assert sum(game.batches) == 2 * 2
    np.testing.assert_array_equal(scores(SETS)[:, :2], few)
    scores(SETS[::-1], 3)
    assert sum(game.batches) == sum(counts) == scores.budget.spent == 2 * 6


def test_a_draw_meets_one_random_state():
    game = Game()
    noise = np.array([5, 3, 1, 0, 2, 4])
    scores_of(game, noise=noise, batch_size=100)(SETS)
    (met,) = game.noises
    assert sorted(met.tolist()) == sorted(2 * noise.tolist())


def test_nothing_is_scored_beyond_the_budget():
    game = Game()
    scores = scores_of(game, most=13)
    scores(SETS)
    assert scores.budget.left == 1
    with pytest.raises(BudgetSpentError):
        scores(np.eye(U, dtype=bool)[:1])
    assert sum(game.batches) == 12
    scores(SETS)  # these are known


def test_what_is_not_finite_is_refused():
    game = Game()
    game.left[1, 4] = np.nan
    with pytest.raises(ValueError, match=r"forward_func: .* not finite .* for example 1 with 2 units replaced together"):
        scores_of(game)(SETS[:1])
