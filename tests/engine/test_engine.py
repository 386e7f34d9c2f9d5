"""Plan and run: draws, batches, screening, memory."""

import itertools
import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from captum_causalseg.engine.draws import (
    PaperDraws,
    StratifiedDraws,
    UniformDraws,
    candidates,
    with_replacement,
    without_replacement,
)
from captum_causalseg.engine.goal import Goal, half_widths
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import observe, run


def generator(seed=0):
    return np.random.default_rng(seed)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 5))
def test_draws_without_replacement_are_different_donors_in_range(population, n, seed):
    drawn = without_replacement(generator(seed), population, n)
    assert drawn.shape == (min(n, math.prod(population)), len(population))
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn)
    assert (drawn >= 0).all()
    assert (drawn < np.array(population)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100_000))
def test_a_longer_sequence_continues_a_shorter_one(n, more, population):
    short = without_replacement(generator(), [population], n)
    long = without_replacement(generator(), [population], n + more)
    assert np.array_equal(long[: len(short)], short)


def test_every_donor_is_equally_likely_at_every_place():
    counts = np.zeros((3, 7))
    for seed in range(7000):
        for place, (donor,) in enumerate(without_replacement(generator(seed), [7], 3)):
            counts[place, donor] += 1
    for place in range(3):
        assert scipy_stats.chisquare(counts[place]).pvalue > 1e-3


def test_populations_beyond_64_bits_are_drawn_from():
    drawn = without_replacement(generator(), [10**9] * 4, 5)
    assert drawn.shape == (5, 4)
    assert drawn.max() > 10**8


def test_draws_with_replacement_repeat():
    drawn = with_replacement(generator(), [3], 50)
    assert drawn.shape == (50, 1)
    assert set(drawn.ravel()) == {0, 1, 2}


class Table:
    """An evaluator that looks scores up: ``observed - differences[example, unit, donor]``."""

    def __init__(self, differences, observed, fails_above=10**9):
        self.differences, self.observed = differences, observed
        self.fails_above = fails_above
        self.batches = []

    def observe(self, examples):
        if len(examples) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.from_numpy(self.observed[examples])

    def __call__(self, interventions):
        examples = interventions.example
        if len(examples) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(examples))
        assert interventions.row.tolist() == list(range(len(examples)))
        return torch.from_numpy(
            self.observed[examples] - self.differences[examples, interventions.unit, interventions.donor[:, 0]]
        )


def make_plan(differences, n_draws=10, n_screening_draws=0, seed=0, active=None, **options):
    n, u, donors, k = differences.shape
    example, unit = np.divmod(np.arange(n * u), u)
    return Plan(
        example=example,
        unit=unit,
        key=unit,
        population=np.full((n * u, 1), donors),
        active=np.ones((n * u, k), bool) if active is None else active,
        n_draws=n_draws,
        n_screening_draws=n_screening_draws,
        seed=(seed,),
        **options,
    )


def table(n=2, u=5, donors=30, k=3, seed=0):
    return generator(seed).normal(size=(n, u, donors, k)), generator(seed + 1).normal(size=(n, k))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_means_and_variances_are_those_of_the_planned_draws(batch_size):
    differences, observed = table()
    plan = make_plan(differences)
    outcome = run(plan, Table(differences, observed), observed, batch_size=batch_size, screening_threshold=0)
    for row in range(len(plan)):
        drawn = differences[plan.example[row], plan.unit[row], plan.draws(row).donors(10)[:, 0]]
        np.testing.assert_allclose(outcome.mean[row], drawn.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(outcome.variance[row], drawn.var(0, ddof=1), rtol=1e-9)
    assert (outcome.n == 10).all()
    assert (outcome.freedom == 9).all()
    np.testing.assert_allclose(outcome.factor, (1 - 10 / 30) / 10, rtol=1e-12)
    assert outcome.n_forwards == 100


def test_batches_are_full_across_units():
    differences, observed = table(n=1, u=9)
    evaluator = Table(differences, observed)
    run(make_plan(differences), evaluator, observed, batch_size=32, screening_threshold=0)
    assert evaluator.batches == [32, 32, 26]


def test_batch_sizes_do_not_change_a_bit():
    differences, observed = table()
    runs = [
        run(make_plan(differences), Table(differences, observed), observed, batch_size=b, screening_threshold=0.5)
        for b in (1, 3, 64)
    ]
    for other in runs[1:]:
        assert np.array_equal(runs[0].mean, other.mean)
        assert np.array_equal(runs[0].variance, other.variance)
        assert np.array_equal(runs[0].screened, other.screened)


def test_when_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(caplog):
    differences, observed = table()
    whole = run(make_plan(differences), Table(differences, observed), observed, batch_size=64, screening_threshold=0)
    evaluator = Table(differences, observed, fails_above=10)
    halved = run(make_plan(differences), evaluator, observed, batch_size=64, screening_threshold=0)
    assert np.array_equal(whole.mean, halved.mean)
    assert halved.n_forwards == whole.n_forwards == 100
    assert halved.batch_size == 8
    assert max(evaluator.batches) == 8
    assert "Out of memory: going on with 8 interventions per batch" in caplog.text
    assert np.array_equal(observe(Table(differences, observed, fails_above=1), 2), observed)


def test_when_a_single_image_does_not_fit_the_error_comes_through():
    differences, observed = table()
    with pytest.raises(torch.OutOfMemoryError):
        run(make_plan(differences), Table(differences, observed, fails_above=0), observed, batch_size=8, screening_threshold=0)
    with pytest.raises(torch.OutOfMemoryError):
        observe(Table(differences, observed, fails_above=0), 2)


def test_screening_is_decided_per_output_and_freezes_its_estimate():
    differences, observed = np.zeros((1, 3, 40, 2)), np.zeros((1, 2))
    differences[0, 0, :, 0] = 1.0  # unit 0 moves output 0 only; unit 1 moves neither; unit 2 both
    differences[0, 2] = np.linspace(1, 2, 40)[:, None]
    plan = make_plan(differences, n_draws=10, n_screening_draws=3)
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.1)
    assert outcome.screened.tolist() == [[False, True], [True, True], [False, False]]
    assert outcome.n.tolist() == [[10, 3], [3, 3], [10, 10]]
    assert outcome.n_forwards == 3 + 3 + 3 + 7 + 7
    everything = run(
        make_plan(differences, n_draws=10), Table(differences, observed), observed, batch_size=4, screening_threshold=0.1
    )
    # Screening draws are kept and the sequence is the same: nothing changes where nothing is screened out.
    assert np.array_equal(outcome.mean[2], everything.mean[2])
    assert np.array_equal(outcome.mean[0, 1], differences[0, 0, plan.draws(0).donors(3)[:, 0], 1].mean())


def test_a_draw_at_the_threshold_counts_as_a_move():
    differences, observed = np.full((1, 1, 9, 1), 0.25), np.zeros((1, 1))
    plan = make_plan(differences, n_draws=9, n_screening_draws=2)
    assert not run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.25).screened.any()
    assert run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.2501).screened.all()


def test_a_bank_no_larger_than_the_screen_is_drained_not_screened():
    differences, observed = np.zeros((1, 2, 3, 1)), np.zeros((1, 1))
    plan = make_plan(differences, n_draws=10, n_screening_draws=3)
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.1)
    assert not outcome.screened.any()
    assert (outcome.n == 3).all()


def test_the_papers_draws_forget_the_screening_ones():
    differences, observed = table(n=1, u=3, k=1)
    plan = make_plan(differences, n_draws=5, n_screening_draws=3, sampling="paper")
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0)
    for row in range(3):
        donors = plan.draws(row).donors(8)[:, 0]
        assert plan.draws(row).end(1) == len(donors) == 8
        assert outcome.mean[row] == pytest.approx(differences[0, row, donors[3:]].mean())
    assert (outcome.n == 5).all()
    assert outcome.n_forwards == 24


def test_inactive_outputs_and_rows_are_left_alone():
    differences, observed = table(n=1, u=2, k=2)
    active = np.array([[True, False], [False, False]])
    outcome = run(
        make_plan(differences, active=active), Table(differences, observed), observed, batch_size=4, screening_threshold=0
    )
    assert outcome.n.tolist() == [[10, 0], [0, 0]]
    assert outcome.n_forwards == 10
    assert np.isnan(outcome.mean[1]).all()


def test_progress_ends_at_what_was_done_and_the_total_never_grows():
    differences, observed = table(n=1, u=6, k=1)
    differences[:, 2:] = 0
    seen = []
    run(
        make_plan(differences, n_draws=20, n_screening_draws=2),
        Table(differences, observed),
        observed,
        batch_size=5,
        screening_threshold=0.01,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (0, 120)
    assert seen[-1] == (48, 48)
    assert [t for _, t in seen] == sorted((t for _, t in seen), reverse=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_stop_the_run_and_say_where(bad):
    differences, observed = table()
    differences[1, 3, :, 0] = bad
    with pytest.raises(ValueError, match=r"not finite .* for example 1 with unit 3 replaced by donor \["):
        run(make_plan(differences), Table(differences, observed), observed, batch_size=8, screening_threshold=0)
    observed[1, 0] = bad
    with pytest.raises(ValueError, match="the score of example 1 is not finite"):
        observe(Table(differences, observed), 2)


@pytest.mark.parametrize("n", [2, 7, 50])
def test_equal_draws_have_exactly_no_variance(n):
    for sampling in ("uniform", "paper"):
        draws = (UniformDraws if sampling == "uniform" else PaperDraws)(generator(), [100], 0, n)
        estimate = draws.estimate(np.full((n, 1), 0.1))
        assert estimate.variance[0] == 0
        assert estimate.mean[0] == pytest.approx(0.1)


def test_the_estimate_is_unbiased_when_nothing_is_screened():
    """Mean over seeds against the mean over the whole bank: within four standard errors for every unit."""
    differences, observed = table(n=1, u=8, donors=25, k=1)
    runs = np.array(
        [
            run(
                make_plan(differences, n_draws=5, n_screening_draws=2, seed=seed),
                Table(differences, observed),
                observed,
                batch_size=64,
                screening_threshold=0,
            ).mean[:, 0]
            for seed in range(400)
        ]
    )
    truth = differences[0, :, :, 0].mean(1)
    z = (runs.mean(0) - truth) / (runs.std(0, ddof=1) / np.sqrt(len(runs)))
    assert np.abs(z).max() < 4


# --- Draws along a ranking -------------------------------------------------------------------------------------------


def stratified(donors, n_first, order, n_screening=0, seed=0):
    return StratifiedDraws(generator(seed), [donors], n_screening, n_first, np.asarray(order))


def ranks_of(draws, n, ranked):
    """The ranks of the first draws; ``ranked`` are the candidates in the order of the ranking."""
    rank = {donor: place for place, donor in enumerate(ranked)}
    return [rank[donor] for donor in draws.donors(n)[:, 0].tolist()]


def test_strata_are_equal_parts_of_the_ranking_and_the_next_stage_halves_them():
    order = generator(5).permutation(10)
    stages = [
        [{0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}],
        [{0}, {1}, {2}, {3, 4}, {5}, {6}, {7}, {8, 9}],
        [{rank} for rank in range(10)],
    ]
    seen = set()
    for seed in range(60):
        draws = stratified(10, 4, order, seed=seed)
        assert [draws.end(stage) for stage in range(5)] == [0, 4, 8, 10, 10]
        for stage, strata in enumerate(stages, 1):
            ranks = ranks_of(draws, draws.end(stage), order)
            assert [len(stratum & set(ranks)) for stratum in strata] == [1] * len(strata)
        seen |= set(ranks_of(draws, 4, order))
    assert seen == set(range(10)), "every rank can be the first of its stratum"


@given(st.data(), st.integers(2, 60), st.integers(0, 10**6))
def test_every_stage_takes_one_donor_of_every_stratum_and_keeps_the_earlier_ones(data, m, seed):
    n_first = data.draw(st.integers(1, m - 1), "first sample")
    n_screening = data.draw(st.integers(0, n_first - 1), "screening draws")
    order = generator(seed).permutation(m)
    draws = stratified(m, n_first, order, n_screening, seed)
    assert draws.end(0) == n_screening
    assert draws.end(1) == n_first
    stage, before = 1, []
    while True:
        n = draws.end(stage)
        found = draws.donors(n)[:, 0].tolist()
        assert len(set(found)) == len(found) == n
        assert found[: len(before)] == before
        cells = oracle.strata(m, n_first, stage)
        ranks = ranks_of(draws, n, order)
        assert len(ranks) == len(cells)
        assert all(len(set(cell) & set(ranks)) == 1 for cell in cells)
        sizes = {rank: len(cell) for cell in cells for rank in cell}
        np.testing.assert_allclose(draws.weights(n), [sizes[rank] / m for rank in ranks], rtol=1e-12)
        assert draws.weights(n).sum() == pytest.approx(1)
        for fewer in (0, n_screening, n // 2):
            assert draws.donors(fewer)[:, 0].tolist() == found[:fewer]
        before = found
        if n == m:
            break
        assert n < draws.end(stage + 1) <= 2 * n
        stage += 1
    assert sorted(before) == list(range(m))
    assert draws.end(stage + 1) == m


@pytest.mark.parametrize(
    ("n_screening", "strata"),
    [(1, [9]), (2, [9, 0]), (3, [9, 0, 4]), (4, [9, 0, 3, 6]), (5, [9, 0, 2, 4, 7]), (9, [9, 0, 1, 2, 3, 4, 6, 7, 8])],
)
def test_screening_takes_both_ends_of_the_ranking_and_then_evenly_between_them(n_screening, strata):
    for seed in range(20):
        order = generator(seed).permutation(40)
        found = ranks_of(stratified(40, 10, order, n_screening, seed), 10, order)
        assert [rank // 4 for rank in found[:n_screening]] == strata
        # It changes the order of use and nothing else.
        plain = ranks_of(stratified(40, 10, order, 0, seed), 10, order)
        assert sorted(found) == plain


def test_of_many_donors_some_are_candidates_and_their_ranking_is_obeyed():
    donors, m = 500, 40
    order = generator(3).permutation(m)
    chosen = candidates(generator(8), [donors], m)
    assert sorted(set(chosen[:, 0].tolist())) == sorted(chosen[:, 0].tolist())
    draws = stratified(donors, 11, order, 3, seed=8)
    ranked = chosen[order][:, 0].tolist()
    ranks = ranks_of(draws, m, ranked)
    assert sorted(ranks) == list(range(m))
    assert ranks[0] >= 36 > 3 >= ranks[1]
    assert draws.total == donors
    assert [draws.end(stage) for stage in range(5)] == [3, 11, 22, 40, 40]


def test_candidates_are_all_donors_if_there_are_no_more_and_else_equally_likely():
    assert candidates(generator(), [3, 2], 6).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert candidates(generator(), [3, 2], 99).tolist() == candidates(generator(), [3, 2], 6).tolist()
    counts = np.zeros(7)
    for seed in range(3000):
        found = candidates(generator(seed), [7], 3)[:, 0]
        assert len(set(found.tolist())) == 3
        counts[found] += 1
    # Each of a set's three: the counts spread less than independent ones would.
    assert scipy_stats.chisquare(counts).pvalue > 1e-3
    assert candidates(generator(), [10**9] * 4, 5).shape == (5, 4)


@given(st.data(), st.integers(6, 40), st.sampled_from([0, 25]), st.integers(0, 10**6))
def test_the_stratified_estimate_is_the_literal_one(data, m, more_donors, seed):
    n_first = data.draw(st.integers(2, 5), "first sample")
    n_screening = data.draw(st.integers(0, n_first - 1), "screening draws")
    donors = m + more_donors
    order = generator(seed).permutation(m)
    values = generator(seed + 1).normal(size=(donors, 3))
    draws = stratified(donors, n_first, order, n_screening, seed)
    ranked = candidates(generator(seed), [donors], m)[order][:, 0].tolist()
    for stage in range(1, 8):
        n = draws.end(stage)
        found = draws.donors(n)[:, 0].tolist()
        estimate = draws.estimate(values[found])
        assert estimate.n == n
        ranks, cells = ranks_of(draws, n, ranked), oracle.strata(m, n_first, stage)
        for k in range(3):
            effect, squared_error = oracle.stratified_estimate(values[found, k].tolist(), ranks, cells, donors)
            assert estimate.mean[k] == pytest.approx(effect, abs=1e-12)
            assert estimate.factor * estimate.variance[k] == pytest.approx(squared_error, rel=1e-9, abs=1e-15)
        if n == m == donors:
            assert estimate.factor == 0
            np.testing.assert_allclose(estimate.mean, values.mean(0), atol=1e-12)
        assert 0 < estimate.freedom <= n - 1


@pytest.mark.parametrize("n", [2, 3, 4, 9, 40])
def test_the_degrees_of_freedom_are_those_of_the_stratified_variance_of_normal_values(n):
    values = generator(n).normal(size=(n, 40_000))
    estimate = stratified(10**6, n, np.arange(100 * n)).estimate(values)
    # Of chi-square variables: twice the squared mean over the variance. What the choice of candidates adds is a hundredth here.
    found = 2 * estimate.variance.mean() ** 2 / estimate.variance.var()
    assert found == pytest.approx(estimate.freedom, rel=0.06)
    assert estimate.variance.mean() == pytest.approx(1 + 1 / n, rel=0.05)


def test_of_one_stratum_the_spread_is_not_known():
    estimate = stratified(20, 1, np.arange(20)).estimate(np.arange(1.0)[:, None])
    assert np.isnan(estimate.variance).all()
    assert estimate.factor > 0
    assert estimate.freedom == 0


class Script:
    """A random generator that says what it is told: candidates, then numbers in [0, 1) stage by stage."""

    def __init__(self, chosen, numbers):
        self.chosen, self.numbers = chosen, list(numbers)

    def choice(self, total, m, replace, shuffle):
        return np.array(self.chosen)

    def random(self, n):
        found, self.numbers = self.numbers[:n], self.numbers[n:]
        return np.array(found)


RANKINGS = {"perfect": lambda v: v, "reversed": lambda v: -v, "useless": lambda v: np.sin(1e4 * v)}


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize(("donors", "m", "n_screening"), [(6, 6, 0), (6, 6, 1), (8, 6, 0), (8, 6, 1)])
def test_over_all_that_chance_may_do_the_stratified_estimate_is_exactly_unbiased(donors, m, n_screening, ranking):
    """Six ranks in two strata of three: thirds and halves are all the numbers that matter."""
    values = generator(donors).normal(size=donors)
    estimates = {1: [], 2: [], 3: []}
    for chosen in itertools.combinations(range(donors), m):
        order = np.argsort(RANKINGS[ranking](values[list(chosen)]))
        for first in itertools.product((0.1, 0.5, 0.9), repeat=2):
            for second in itertools.product((0.2, 0.7), repeat=2):
                script = Script(chosen, [*first, *second, *[0.0] * 8])
                draws = StratifiedDraws(script, [donors], n_screening, 2, order)
                for stage, found in estimates.items():
                    n = draws.end(stage)
                    found.append(draws.estimate(values[draws.donors(n)[:, 0]][:, None]).mean[0])
                assert draws.end(3) == m
        # The last stage holds every candidate.
        np.testing.assert_allclose(estimates[3][-36:], values[list(chosen)].mean(), atol=1e-12)
    for found in estimates.values():
        assert np.mean(found) == pytest.approx(values.mean(), abs=1e-12)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("n_screening", [0, 3])
@pytest.mark.parametrize("m", [60, 35])
def test_stratified_estimates_are_unbiased_and_their_errors_hold_what_they_miss(m, n_screening, ranking):
    """Mean over seeds within four standard errors of the bank's; the squared error that is claimed not below the true one."""
    donors, n_seeds = 60, 1500
    values = generator(1).normal(size=donors)
    found, claimed = np.empty((n_seeds, 2)), np.empty((n_seeds, 2))
    for seed in range(n_seeds):
        predicted = RANKINGS[ranking](values[candidates(generator(seed), [donors], m)[:, 0]])
        draws = stratified(donors, 6, np.argsort(predicted), n_screening, seed)
        for stage in (1, 2):
            estimate = draws.estimate(values[draws.donors(draws.end(stage))[:, 0]][:, None])
            found[seed, stage - 1] = estimate.mean[0]
            claimed[seed, stage - 1] = estimate.factor * estimate.variance[0]
    z = (found.mean(0) - values.mean()) / (found.std(0, ddof=1) / np.sqrt(n_seeds))
    assert np.abs(z).max() < 4
    true = ((found - values.mean()) ** 2).mean(0)
    noise = ((found - values.mean()) ** 2).std(0) / np.sqrt(n_seeds) + claimed.std(0) / np.sqrt(n_seeds)
    assert (claimed.mean(0) > true - 4 * noise).all()


@pytest.mark.parametrize("n_first", [8, 16])
def test_the_error_holds_a_spread_that_lies_at_the_ends_of_the_ranking(n_first):
    """As it does where only the donors that are predicted to move the score most ever flip a label."""
    donors, n_seeds = 400, 1000
    values = np.zeros(donors)
    values[:25], values[-25:] = generator().choice([-0.1, 0.1], size=(2, 25))
    found, claimed = np.empty(n_seeds), np.empty(n_seeds)
    for seed in range(n_seeds):
        draws = stratified(donors, n_first, np.arange(donors), seed=seed)
        estimate = draws.estimate(values[draws.donors(n_first)[:, 0]][:, None])
        found[seed], claimed[seed] = estimate.mean[0], estimate.factor * estimate.variance[0]
    missed = (found - values.mean()) ** 2
    assert claimed.mean() > missed.mean() - 4 * (missed.std() + claimed.std()) / np.sqrt(n_seeds)


def test_a_good_ranking_makes_the_estimate_more_precise():
    values = generator(1).normal(size=200)

    def spread(order):
        return np.std(
            [
                draws.estimate(values[draws.donors(10)[:, 0]][:, None]).mean[0]
                for draws in (stratified(200, 10, order, seed=seed) for seed in range(300))
            ]
        )

    plain = values.std() * math.sqrt((1 - 10 / 200) / 10)
    assert spread(np.argsort(values)) < plain / 3
    assert spread(np.argsort(generator(4).normal(size=200))) == pytest.approx(plain, rel=0.25)


def test_rows_without_a_ranking_are_drawn_uniformly():
    differences, _ = table(n=1, u=2, donors=30)
    plan = make_plan(differences, sampling="stratified", rankings=[np.arange(30), None])
    assert isinstance(plan.draws(0), StratifiedDraws)
    assert isinstance(plan.draws(1), UniformDraws)
    assert isinstance(make_plan(differences, sampling="stratified").draws(0), UniformDraws)


def test_stratified_rows_run_as_their_draws_say():
    differences, observed = table(n=2, u=4, donors=30)
    rankings = [generator(row).permutation(30) for row in range(8)]
    plan = make_plan(differences, n_draws=10, n_screening_draws=3, sampling="stratified", rankings=rankings)
    outcome = run(plan, Table(differences, observed), observed, batch_size=7, screening_threshold=0)
    for row in range(8):
        draws = plan.draws(row)
        values = differences[plan.example[row], plan.unit[row], draws.donors(10)[:, 0]]
        np.testing.assert_allclose(outcome.mean[row], draws.weights(10) @ values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(outcome.variance[row], draws.estimate(values).variance, rtol=1e-9)
    # A row that is given up reports the plain mean of its screening draws.
    quiet = run(plan, Table(differences, observed), observed, batch_size=7, screening_threshold=100)
    assert quiet.screened.all()
    donors = plan.draws(0).donors(3)[:, 0]
    np.testing.assert_allclose(quiet.mean[0], differences[0, 0, donors].mean(0), rtol=1e-12)


# --- Goals -----------------------------------------------------------------------------------------------------------


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
    return half_widths(plan.example, outcome.variance, outcome.factor, outcome.freedom, level)[1]


def test_half_widths_are_those_of_the_moderated_t_interval():
    variance = np.array([[0.04], [0.01], [0.0], [np.nan], [9.0]])
    factor, freedom = np.array([[0.1], [0.2], [0.1], [0.5], [0.0]]), np.array([[9.0], [4.0], [9.0], [0.0], [7.0]])
    error, half = half_widths(np.array([0, 0, 0, 0, 1]), variance, factor, freedom, 0.9)
    scale = math.sqrt(0.04 * 0.01)
    for row in range(4):
        d, own = freedom[row, 0], np.nan_to_num(variance[row, 0])
        expected = math.sqrt((3 * scale + d * own) / (3 + d) * factor[row, 0])
        assert error[row, 0] == pytest.approx(expected)
        assert half[row, 0] == pytest.approx(scipy_stats.t.ppf(0.95, 3 + d) * expected)
    assert error[4, 0] == half[4, 0] == 0


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_with_precision_every_interval_becomes_narrow_enough_and_not_every_row_is_drawn_out(sampling):
    differences, observed = table(n=2, u=12, donors=3000, k=2)
    differences *= np.geomspace(0.05, 1, 12)[None, :, None, None]
    rankings = [generator(row).permutation(1000) for row in range(24)]
    plan = make_plan(differences, n_draws=8, sampling=sampling, rankings=rankings)
    outcome = pursue(plan, differences, observed, precision=0.2, most_draws=1000)
    assert (widths(plan, outcome) <= 0.2).all()
    assert outcome.n_forwards == outcome.n[:, 0].sum() < 24 * 400
    assert (outcome.n[plan.unit == 0] == 8).all(), "what is known well enough is left alone"
    assert (outcome.n[plan.unit == 11] > 100).all()
    easy = pursue(plan, differences, observed, precision=50.0)
    assert (easy.n == 8).all()


@given(st.integers(0, 800), st.integers(1, 40), st.sampled_from([0, 3]))
def test_a_goal_never_takes_more_than_the_budget_nor_a_row_more_than_its_most(more, batch_size, n_screening):
    differences, observed = table(n=1, u=6, donors=500, k=1)
    plan = make_plan(differences, n_draws=8, n_screening_draws=n_screening)
    budget = 48 + more
    outcome = pursue(plan, differences, observed, batch_size, precision=1e-6, budget=budget, most_draws=100)
    assert outcome.n_forwards == outcome.n.sum() <= budget
    assert outcome.n.max() <= 64
    assert outcome.n.min() >= 8
    # What is left would not pay for any row's next stage.
    assert budget - outcome.n_forwards < 64 or (outcome.n == 64).all()


def test_a_budget_below_the_first_sample_ends_with_the_first_sample():
    differences, observed = table(n=1, u=6, donors=500, k=1)
    plan = make_plan(differences, n_draws=8)
    assert (pursue(plan, differences, observed, precision=1e-6, budget=10).n == 8).all()


def test_the_largest_standard_errors_are_drawn_on_first():
    differences, observed = table(n=1, u=20, donors=4000, k=1)
    differences *= 0.01
    differences[0, 13] *= 100
    plan = make_plan(differences, n_draws=8)
    # All are asked for more; what is left pays for the next stage of one row, or of three.
    one = pursue(plan, differences, observed, batch_size=1, precision=1e-6, budget=160 + 8)
    assert one.n[:, 0].tolist() == [16 if row == 13 else 8 for row in range(20)]
    three = pursue(plan, differences, observed, batch_size=1, precision=1e-6, budget=160 + 3 * 8)
    error, _ = half_widths(plan.example, one.variance, one.factor, one.freedom, 0.95)
    second, third = [row for row in np.argsort(-error[:, 0]) if row != 13][:2]
    assert np.flatnonzero(three.n[:, 0] > 8).tolist() == sorted([13, second, third])
    richer = pursue(plan, differences, observed, precision=0.02, budget=8000, most_draws=4000)
    assert richer.n[:, 0].argmax() == 13
    assert np.delete(richer.n[:, 0], 13).max() <= 16


def test_a_drained_row_is_exact_and_not_drawn_on():
    differences, observed = table(n=1, u=5, donors=40, k=1)
    plan = make_plan(differences, n_draws=8)
    plan.population[2] = 8
    plan.population[3] = 11
    for sampling in ("uniform", "stratified"):
        rankings = [generator(row).permutation(size) for row, size in enumerate([40, 40, 8, 11, 40])]
        rankings[2] = None
        drained = replace(plan, sampling=sampling, rankings=rankings)
        outcome = pursue(drained, differences, observed, precision=1e-9, most_draws=10**6)
        assert outcome.n[:, 0].tolist() == [40, 40, 8, 11, 40]
        assert outcome.n_forwards == 139
        assert (outcome.factor == 0).all()
        np.testing.assert_allclose(outcome.mean[3], differences[0, 3, :11].mean(0))


def test_rows_that_were_given_up_after_screening_are_left_and_undecided():
    differences, observed = table(n=1, u=4, donors=400, k=1)
    differences[0, 1] *= 1e-3
    plan = make_plan(differences, n_draws=8, n_screening_draws=3)
    for goal in ({"precision": 0.05}, {"decide": 0.001}):
        outcome = pursue(plan, differences, observed, screening_threshold=0.01, most_draws=64, **goal)
        assert outcome.screened[:, 0].tolist() == [False, True, False, False]
        assert outcome.n[1, 0] == 3
        assert outcome.decision[1, 0] == 0
    assert outcome.n[[0, 2, 3]].min() > 8


def test_an_output_that_was_given_up_after_screening_is_no_reason_to_draw_on():
    differences, observed = np.zeros((1, 1, 400, 2)), np.zeros((1, 2))
    differences[0, 0, :, 0] = generator().uniform(-0.005, 0.005, 400)  # wide, and below the threshold
    differences[0, 0, :, 1] = 0.5 + 1e-7 * generator(1).normal(size=400)  # narrow enough
    plan = make_plan(differences, n_draws=8, n_screening_draws=3)
    outcome = pursue(plan, differences, observed, screening_threshold=0.01, precision=1e-5)
    assert outcome.screened.tolist() == [[True, False]]
    assert outcome.n.tolist() == [[3, 8]]


def test_only_the_outputs_of_the_goal_are_pursued():
    differences, observed = table(n=2, u=3, donors=400, k=2)
    differences[..., 1] *= 1e-3
    plan = make_plan(differences, n_draws=8)
    outputs = np.array([[False, True], [True, False]])
    goal = Goal(0.1, None, 0.05, 0.95, outputs, 10**6, 200)
    outcome = run(plan, Table(differences, observed), observed, batch_size=8, screening_threshold=0, goal=goal)
    assert (outcome.n[plan.example == 0] == 8).all()
    assert (outcome.n[plan.example == 1] > 8).all()
    goal = Goal(None, 0.0, 0.05, 0.95, outputs, 10**6, 200)
    outcome = run(plan, Table(differences, observed), observed, batch_size=8, screening_threshold=0, goal=goal)
    assert (outcome.decision[plan.example == 0][:, 0] == 0).all()
    assert (outcome.decision[plan.example == 1][:, 1] == 0).all()


def test_what_lies_far_from_the_threshold_is_decided_at_the_first_look_and_rightly():
    differences, observed = table(n=1, u=6, donors=2000, k=1)
    differences[0, :3] += 5
    differences[0, 3:] -= 5
    plan = make_plan(differences, n_draws=8)
    outcome = pursue(plan, differences, observed, decide=0.5)
    assert outcome.decision[:, 0].tolist() == [1, 1, 1, -1, -1, -1]
    assert (outcome.n == 8).all()


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
    decision, n = outcome.decision[:, 0], outcome.n[:, 0]
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
        assert (outcome.decision == 0).all()
        assert (outcome.n > 400).all()
        assert len(looks) <= shared[0] <= len(looks) + 1


# --- Rounding --------------------------------------------------------------------------------------------------------


class Single(Table):
    """Scores in single precision."""

    def __call__(self, *arguments):
        return super().__call__(*arguments).float()


def rounding_case():
    """Unit 0 has an effect and a spread; of units 1 and 2 all draws are equal but for the last bits of float32."""
    observed = np.array([[0.7]]).astype(np.float32).astype(np.float64)
    differences = np.zeros((1, 3, 200, 1))
    differences[0, 0] = generator(1).normal(size=(200, 1)) * 0.05
    jitter = generator(2).integers(-2, 3, size=(200, 1)) * 2.0**-24
    differences[0, 1], differences[0, 2] = jitter, 0.25 + jitter
    return differences, observed


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_differences_of_float32_rounding_are_no_spread(sampling):
    differences, observed = rounding_case()
    rankings = [generator(row).permutation(200) for row in range(3)]
    plan = make_plan(differences, n_draws=12, n_screening_draws=3, sampling=sampling, rankings=rankings)
    outcome = run(plan, Single(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert outcome.variance[1:, 0].tolist() == [0, 0]
    assert outcome.variance[0, 0] == pytest.approx(0.05**2, rel=0.9)
    assert outcome.mean[2, 0] == pytest.approx(0.25, abs=1e-6)
    # The common scale is that of the one unit that shows a spread: its own variance stays, the others lean on it.
    error, _ = half_widths(plan.example, outcome.variance, outcome.factor, outcome.freedom, 0.95)
    assert error[0, 0] == pytest.approx(math.sqrt(outcome.variance[0, 0] * outcome.factor[0, 0]))
    freedom = outcome.freedom[1, 0]
    assert error[1, 0] ** 2 == pytest.approx(3 / (3 + freedom) * outcome.variance[0, 0] * outcome.factor[1, 0])
    # In double precision the same differences are no rounding.
    precise = run(plan, Table(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert (precise.variance > 0).all()


def test_a_spread_just_above_rounding_is_kept():
    differences, observed = np.zeros((1, 1, 100, 1)), np.ones((1, 1))
    differences[0, 0, ::2] = 1e-4
    plan = make_plan(differences, n_draws=20)
    outcome = run(plan, Single(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert outcome.variance[0, 0] == pytest.approx(0.25e-8, rel=0.5)


def test_exact_scores_have_no_rounding():
    class Counts(Table):
        def __call__(self, *arguments):
            return super().__call__(*arguments).long()

    differences, observed = np.zeros((1, 1, 100, 1)), np.full((1, 1), 10.0**9)
    differences[0, 0, ::2] = 1
    plan = make_plan(differences, n_draws=20)
    outcome = run(plan, Counts(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert outcome.variance[0, 0] == pytest.approx(0.25, rel=0.3)
