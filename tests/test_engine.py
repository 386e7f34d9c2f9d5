"""Plan and run: draws, batches, screening, memory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from captum_causalseg.engine.plan import Plan, with_replacement, without_replacement
from captum_causalseg.engine.run import Moments, observe, run


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

    def __call__(self, examples, units, donors):
        if len(examples) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(examples))
        return torch.from_numpy(self.observed[examples] - self.differences[examples, units, donors[:, 0]])


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
def test_moments_are_those_of_the_planned_draws(batch_size):
    differences, observed = table()
    plan = make_plan(differences)
    outcome = run(plan, Table(differences, observed), observed, batch_size=batch_size, screening_threshold=0)
    for row in range(len(plan)):
        drawn = differences[plan.example[row], plan.unit[row], plan.donors(row)[:, 0]]
        np.testing.assert_allclose(outcome.moments.mean[row], drawn.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(outcome.moments.variance[row], drawn.var(0, ddof=1), rtol=1e-9)
    assert (outcome.moments.n == 10).all()
    assert outcome.n_forwards == 100


def test_batches_are_full_across_units():
    differences, observed = table(n=1, u=9)
    evaluator = Table(differences, observed)
    run(make_plan(differences), evaluator, observed, batch_size=32, screening_threshold=0)
    assert evaluator.batches == [32, 32, 26]


def test_batch_sizes_do_not_change_a_bit():
    differences, observed = table()
    runs = [
        run(make_plan(differences), Table(differences, observed), observed, batch_size=b, screening_threshold=0.5).moments
        for b in (1, 3, 64)
    ]
    for other in runs[1:]:
        assert np.array_equal(runs[0].total, other.total)
        assert np.array_equal(runs[0].squares, other.squares)


def test_when_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(caplog):
    differences, observed = table()
    whole = run(make_plan(differences), Table(differences, observed), observed, batch_size=64, screening_threshold=0)
    evaluator = Table(differences, observed, fails_above=10)
    halved = run(make_plan(differences), evaluator, observed, batch_size=64, screening_threshold=0)
    assert np.array_equal(whole.moments.total, halved.moments.total)
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


def test_screening_is_decided_per_output_and_freezes_its_moments():
    differences, observed = np.zeros((1, 3, 40, 2)), np.zeros((1, 2))
    differences[0, 0, :, 0] = 1.0  # unit 0 moves output 0 only; unit 1 moves neither; unit 2 both
    differences[0, 2] = np.linspace(1, 2, 40)[:, None]
    plan = make_plan(differences, n_draws=10, n_screening_draws=3)
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.1)
    assert outcome.screened.tolist() == [[False, True], [True, True], [False, False]]
    assert outcome.moments.n.tolist() == [[10, 3], [3, 3], [10, 10]]
    assert outcome.n_forwards == 3 + 3 + 3 + 7 + 7
    everything = run(
        make_plan(differences, n_draws=10), Table(differences, observed), observed, batch_size=4, screening_threshold=0.1
    )
    # Screening draws are kept and the sequence is the same: nothing changes where nothing is screened out.
    assert np.array_equal(outcome.moments.total[2], everything.moments.total[2])


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
    assert (outcome.moments.n == 3).all()


def test_fresh_draws_forget_the_screening_ones():
    differences, observed = table(n=1, u=3, k=1)
    plan = make_plan(differences, n_draws=5, n_screening_draws=3, sampler=with_replacement, fresh_draws=True)
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0)
    for row in range(3):
        donors = plan.donors(row)[:, 0]
        assert len(donors) == 8
        assert outcome.moments.mean[row] == pytest.approx(differences[0, row, donors[3:]].mean())
    assert (outcome.moments.n == 5).all()
    assert outcome.n_forwards == 24


def test_inactive_outputs_and_rows_are_left_alone():
    differences, observed = table(n=1, u=2, k=2)
    active = np.array([[True, False], [False, False]])
    outcome = run(
        make_plan(differences, active=active), Table(differences, observed), observed, batch_size=4, screening_threshold=0
    )
    assert outcome.moments.n.tolist() == [[10, 0], [0, 0]]
    assert outcome.n_forwards == 10
    assert np.isnan(outcome.moments.mean[1]).all()


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


def test_equal_draws_have_exactly_no_variance():
    moments = Moments.zeros(1, 1)
    moments.add(np.zeros(50, int), np.full((50, 1), 0.1), np.ones((50, 1), bool))
    assert moments.variance[0, 0] == 0
    assert moments.mean[0, 0] == pytest.approx(0.1)


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
            ).moments.mean[:, 0]
            for seed in range(400)
        ]
    )
    truth = differences[0, :, :, 0].mean(1)
    z = (runs.mean(0) - truth) / (runs.std(0, ddof=1) / np.sqrt(len(runs)))
    assert np.abs(z).max() < 4
