"""What sets keep or take away, against the formulas by hand."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from captum_causalseg.engine.set_worth import SetWorth, ShareAsked
from tests.engine.test_joint import Game, U
from tests.engine.test_set_scores import literal, scores_of

SET = np.array([[0, 1, 1, 0, 1]], dtype=bool)


@pytest.mark.parametrize("of", ["span", "score"])
@pytest.mark.parametrize("kind", ["sufficient", "necessary"])
def test_amounts_and_surplus(kind, of):
    game = Game()
    worth = SetWorth(scores_of(game), ShareAsked(kind, 0.7, of))
    observed, everything = game.observed[1, 0], np.array(literal(game, np.ones((1, U), bool), 6))[0]
    kept, lost = (np.array(literal(game, one, 6))[0] for one in (~SET, SET))
    whole = observed - everything if of == "span" else np.full(6, observed)
    amounts = observed - lost if kind == "necessary" else kept - everything if of == "span" else kept
    np.testing.assert_allclose(worth.whole, whole, atol=1e-12)
    np.testing.assert_allclose(worth.amounts(SET)[0], amounts, atol=1e-12)
    sign = np.sign(whole.mean())
    surplus = sign * (amounts - 0.7 * whole)
    np.testing.assert_allclose(worth.surplus(SET)[0], surplus, atol=1e-12)
    assert worth.reach(SET)[0] == (surplus.mean() >= surplus.std(ddof=1) / np.sqrt(6))
    assert worth.has_whole == (of == "score" or scipy_stats.ttest_1samp(whole, 0).pvalue < 0.05)


@pytest.mark.parametrize("kind", ["sufficient", "necessary"])
def test_no_unit_is_worth_nothing_and_all_are_worth_the_span(kind):
    worth = SetWorth(scores_of(Game()), ShareAsked(kind, 1.0))
    none, everything = worth.amounts(np.array([[0] * U, [1] * U], dtype=bool))
    np.testing.assert_allclose(none, 0, atol=1e-12)
    np.testing.assert_allclose(everything, worth.whole, atol=1e-12)
    assert worth.reach(np.array([[0] * U, [1] * U], dtype=bool)).tolist() == [False, True]


def test_a_set_that_falls_short_in_each_of_the_first_draws_gets_no_more():
    game = Game()
    game.left[:] = 0.5  # whatever the donor
    worth = SetWorth(scores_of(game, n_draws=16), ShareAsked("sufficient", 0.9))
    before = sum(game.batches)
    one_missing = np.array([[1, 1, 1, 1, 0]], dtype=bool)  # keeps (1/2 - 1/32) / (1 - 1/32)
    assert not worth.reach(one_missing)[0]
    assert sum(game.batches) - before == 4
    assert SetWorth(worth.scores, ShareAsked("sufficient", 0.4)).reach(one_missing)[0]
    assert sum(game.batches) - before == 16


def test_more_draws_are_the_first_and_others():
    worth = SetWorth(scores_of(Game(), n_draws=8), ShareAsked("sufficient", 0.7), 2)
    more = worth.with_more_draws()
    most = more.with_more_draws()
    assert [one.n_draws for one in (worth, more, most)] == [2, 4, 8]
    assert most.with_more_draws() is None
    for fewer, one in ((worth, more), (more, most)):
        np.testing.assert_array_equal(fewer.surplus(SET), one.surplus(SET, fewer.n_draws))
        np.testing.assert_array_equal(fewer.whole, one.whole[: fewer.n_draws])


def test_a_score_that_grows_when_units_are_replaced():
    game = Game()
    game.left[:] = 2.0
    worth = SetWorth(scores_of(game), ShareAsked("necessary", 0.9))
    assert worth.sign == -1
    assert worth.has_whole
    assert worth.reach(np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=bool)).tolist() == [False, True]


def test_nothing_to_take_shares_of():
    game = Game()
    game.left[:] = 1.0
    assert not SetWorth(scores_of(game), ShareAsked("necessary", 0.9)).has_whole
