"""Pairs of units on games whose scores are looked up, against a literal loop."""

import numpy as np
import pytest
import torch
from joint_oracle import drawn_donors
from scipy.special import digamma

from captum_causalseg.engine.pairs import run_pairs
from tests.engine.test_joint import D, Game, K, N, U, plan_of

PAIRS = [(0, 1), (1, 3), (U + 2, U + 4)]


def literal(game, n_draws=8, seed=4):
    """Singles ``(P, 2, K)``, and of both and of the interaction every draw, ``(P, n, K)``."""
    singles, joints, interactions = [], [], []
    for rows in PAIRS:
        n, units = rows[0] // U, [row % U for row in rows]
        numbers = [drawn_donors(seed, unit + 20, D, n_draws) for unit in units]
        change = [
            [
                game.observed[n] - game.worth(n, dict(zip(chosen, donors)))
                for chosen, donors in (([units[0]], [a]), ([units[1]], [b]), (units, [a, b]))
            ]
            for a, b in zip(*numbers)
        ]
        change = np.array(change)
        singles.append(change[:, :2].mean(0))
        joints.append(change[:, 2])
        interactions.append(change[:, 2] - change[:, 0] - change[:, 1])
    return np.array(singles), np.array(joints), np.array(interactions)


@pytest.mark.parametrize(("batch_size", "fails_above"), [(1, 99), (7, 99), (1000, 99), (16, 3)])
def test_against_the_literal_loop(batch_size, fails_above):
    game = Game(fails_above=fails_above)
    found = run_pairs(plan_of(), np.array(PAIRS), game, observed=game.observed, batch_size=batch_size)
    single, joint, interaction = literal(game)
    np.testing.assert_allclose(found.single, single, atol=1e-12)
    for moments, draws in ((found.together, joint), (found.interaction, interaction)):
        np.testing.assert_allclose(moments.effect, draws.mean(1), atol=1e-12)
        np.testing.assert_allclose(moments.sample_variance, draws.var(1, ddof=1), atol=1e-12)
        np.testing.assert_allclose(moments.variance_factor, 3.5 / np.exp(digamma(3.5)) / 8)
    # Five units alone, unit 1 of example 0 once for both of its pairs.
    assert found.n_forwards == 8 * (5 + 3) == sum(game.batches)


def test_a_draw_meets_one_random_state():
    game = Game()
    run_pairs(plan_of(with_noise=True), np.array(PAIRS), game, observed=game.observed, batch_size=1000)
    (noise,) = game.noises
    assert (noise.reshape(8, 8) == noise.reshape(8, 8)[:, :1]).all(), "examples of one seed meet the same"
    assert len(np.unique(noise)) > 1


def test_what_is_not_finite_is_refused():
    game = Game()
    game.left[1, 4] = np.nan
    with pytest.raises(ValueError, match=r"forward_func: .* not finite .* for example 1"):
        run_pairs(plan_of(), np.array(PAIRS), game, observed=game.observed, batch_size=5)


def test_units_that_multiply_and_units_that_add_up():
    class Known(Game):
        def worth(self, example, chosen):
            return self.observed[example] * (0.5 if {0, 1} <= set(chosen) else 1.0) - 0.1 * len({1, 3} & set(chosen))

    game = Known()
    found = run_pairs(plan_of(), np.array(PAIRS), game, observed=game.observed, batch_size=100)
    np.testing.assert_allclose(found.interaction.effect[0], 0.5 * game.observed[0], atol=1e-12)
    np.testing.assert_allclose(found.interaction.effect[1:], 0, atol=1e-12)
    assert found.interaction.effect.shape == (3, K)
    assert N == 2
    assert torch.is_tensor(game.observe(np.array([0])))
