"""Batches, screening, memory, rounding."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_cases import Table, estimated, generator, make_plan, table

from captum_causalseg import Status
from captum_causalseg.engine.design import StratifiedDesign, UniformDesign
from captum_causalseg.engine.estimator import MeanEstimator, RegressionEstimator
from captum_causalseg.engine.goal import Goal, half_widths
from captum_causalseg.engine.run import observe, run
from captum_causalseg.engine.sampling import SamplingScheme


def screened(outcome):
    """Which rows and outputs were given up after their screening draws."""
    return outcome.moments.status == Status.SCREENED


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_means_and_variances_are_those_of_the_planned_draws(batch_size):
    differences, observed = table()
    plan = make_plan(differences)
    outcome = run(plan, Table(differences, observed), observed, batch_size=batch_size, screening_threshold=0)
    for row in range(len(plan)):
        drawn = differences[plan.example[row], plan.unit[row], plan.design(row).donors(10)[:, 0]]
        np.testing.assert_allclose(outcome.moments.effect[row], drawn.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(outcome.moments.sample_variance[row], drawn.var(0, ddof=1), rtol=1e-9)
    assert (outcome.moments.n_draws == 10).all()
    assert (outcome.moments.variance_freedom == 9).all()
    np.testing.assert_allclose(outcome.moments.variance_factor, (1 - 10 / 30) / 10, rtol=1e-12)
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
        assert np.array_equal(runs[0].moments.effect, other.moments.effect)
        assert np.array_equal(runs[0].moments.sample_variance, other.moments.sample_variance)
        assert np.array_equal(screened(runs[0]), screened(other))


@pytest.mark.parametrize("goal", [False, True])
def test_rows_that_lean_on_each_other_do_not_depend_on_batches_nor_on_other_examples(goal):
    """Of ranked donors; some outputs are given up after screening, and lend no slope."""
    differences, observed = table(n=2, u=4, donors=40, k=2)
    differences[0, 1, :, 0] = 0.0
    predicted = differences[..., 1].reshape(8, 40) + generator(3).normal(size=(8, 40))

    def outcome(batch_size, examples):
        plan = make_plan(differences, n_draws=8, n_screening_draws=3, sampling="stratified")
        active = plan.active & np.isin(plan.example, examples)[:, None]
        plan = replace(plan, active=active, rankings=[None] * 8)
        ranked = [plan.ranked(row, predicted[row], outputs=np.ones(2, bool), most_draws=32) for row in range(8)]
        wanted = Goal(0.3, None, 0.05, 0.95, np.ones((2, 2), bool), 10**6, 32) if goal else None
        return run(
            replace(plan, rankings=ranked),
            Table(differences, observed),
            observed,
            batch_size=batch_size,
            screening_threshold=0.3,
            goal=wanted,
        ).moments

    whole = outcome(64, [0, 1])
    assert (whole.status == Status.SCREENED).any()
    assert (whole.adjustment != 0).any()
    assert (whole.adjustment[whole.status == Status.SCREENED] == 0).all()
    assert (whole.test_variance >= whole.sample_variance).all()
    for other in (outcome(64, [0]), outcome(64, [1])) if goal else (outcome(1, [0, 1]), outcome(5, [0, 1]), outcome(64, [0])):
        for name in ("effect", "adjustment", "sample_variance", "test_variance", "n_draws"):
            there = ~np.isnan(other.effect)
            np.testing.assert_array_equal(getattr(other, name)[there], getattr(whole, name)[there])


def test_when_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(caplog):
    differences, observed = table()
    whole = run(make_plan(differences), Table(differences, observed), observed, batch_size=64, screening_threshold=0)
    evaluator = Table(differences, observed, fails_above=10)
    halved = run(make_plan(differences), evaluator, observed, batch_size=64, screening_threshold=0)
    assert np.array_equal(whole.moments.effect, halved.moments.effect)
    assert halved.n_forwards == whole.n_forwards == 100
    assert halved.batch_size == 8
    assert max(evaluator.batches) == 8
    assert "Out of memory: continuing with 8 interventions per batch" in caplog.text
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
    assert screened(outcome).tolist() == [[False, True], [True, True], [False, False]]
    assert outcome.moments.n_draws.tolist() == [[10, 3], [3, 3], [10, 10]]
    assert outcome.n_forwards == 3 + 3 + 3 + 7 + 7
    everything = run(
        make_plan(differences, n_draws=10), Table(differences, observed), observed, batch_size=4, screening_threshold=0.1
    )
    # Screening draws are kept and the sequence is the same: nothing changes where nothing is screened out.
    assert np.array_equal(outcome.moments.effect[2], everything.moments.effect[2])
    assert np.array_equal(outcome.moments.effect[0, 1], differences[0, 0, plan.design(0).donors(3)[:, 0], 1].mean())


def test_what_is_not_wanted_is_said_and_may_be_anything():
    differences, observed = np.ones((1, 2, 40, 2)), np.zeros((1, 2))
    differences[0, 0, :, 1] = 0  # screened out
    active = np.array([[True, True], [False, True]])

    class Careless(Table):
        """Its scores are those of no intervention where nobody looks."""

        def __call__(self, interventions):
            assert interventions.outputs is not None
            self.asked = np.concatenate([getattr(self, "asked", np.empty((0, 2), bool)), interventions.outputs])
            scores = super().__call__(interventions)
            return torch.where(torch.from_numpy(interventions.outputs), scores, torch.from_numpy(self.observed))

    careless = Careless(differences, observed)
    plan = make_plan(differences, n_draws=10, n_screening_draws=3, active=active)
    outcome = run(plan, careless, observed, batch_size=4, screening_threshold=0.1)
    expected = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.1)
    np.testing.assert_array_equal(outcome.moments.effect, expected.moments.effect)
    assert outcome.moments.n_draws.tolist() == [[10, 3], [0, 10]]
    assert careless.asked.sum(0).tolist() == [10, 3 + 10]


def test_a_draw_at_the_threshold_counts_as_a_move():
    differences, observed = np.full((1, 1, 9, 1), 0.25), np.zeros((1, 1))
    plan = make_plan(differences, n_draws=9, n_screening_draws=2)
    assert not screened(run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.25)).any()
    assert screened(run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.2501)).all()


def test_a_bank_no_larger_than_the_screen_is_drained_not_screened():
    differences, observed = np.zeros((1, 2, 3, 1)), np.zeros((1, 1))
    plan = make_plan(differences, n_draws=10, n_screening_draws=3)
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0.1)
    assert not screened(outcome).any()
    assert (outcome.moments.n_draws == 3).all()


def test_the_papers_draws_forget_the_screening_ones():
    differences, observed = table(n=1, u=3, k=1)
    plan = make_plan(differences, n_draws=5, n_screening_draws=3, sampling="paper")
    outcome = run(plan, Table(differences, observed), observed, batch_size=4, screening_threshold=0)
    for row in range(3):
        donors = plan.design(row).donors(8)[:, 0]
        assert plan.design(row).end(1) == len(donors) == 8
        assert outcome.moments.effect[row] == pytest.approx(differences[0, row, donors[3:]].mean())
    assert (outcome.moments.n_draws == 5).all()
    assert outcome.n_forwards == 24


def test_inactive_outputs_and_rows_are_left_alone():
    differences, observed = table(n=1, u=2, k=2)
    active = np.array([[True, False], [False, False]])
    outcome = run(
        make_plan(differences, active=active), Table(differences, observed), observed, batch_size=4, screening_threshold=0
    )
    assert outcome.moments.n_draws.tolist() == [[10, 0], [0, 0]]
    assert outcome.n_forwards == 10
    assert np.isnan(outcome.moments.effect[1]).all()


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
            ).moments.effect[:, 0]
            for seed in range(400)
        ]
    )
    truth = differences[0, :, :, 0].mean(1)
    z = (runs.mean(0) - truth) / (runs.std(0, ddof=1) / np.sqrt(len(runs)))
    assert np.abs(z).max() < 4


def test_stratified_rows_run_as_their_draws_say():
    differences, observed = table(n=2, u=4, donors=30)
    rankings = [generator(row).permutation(30) for row in range(8)]
    plan = make_plan(differences, n_draws=10, n_screening_draws=3, sampling="stratified", rankings=rankings)
    outcome = run(plan, Table(differences, observed), observed, batch_size=7, screening_threshold=0)
    for row in range(8):
        design = plan.design(row)
        values = differences[plan.example[row], plan.unit[row], design.donors(10)[:, 0]]
        np.testing.assert_allclose(outcome.moments.effect[row], design.selection(1).weights @ values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(outcome.moments.sample_variance[row], estimated(design, values).variance, rtol=1e-9)
    # A row that is given up reports the plain mean of its screening draws.
    quiet = run(plan, Table(differences, observed), observed, batch_size=7, screening_threshold=100)
    assert screened(quiet).all()
    donors = plan.design(0).donors(3)[:, 0]
    np.testing.assert_allclose(quiet.moments.effect[0], differences[0, 0, donors].mean(0), rtol=1e-12)


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
    assert outcome.moments.sample_variance[1:, 0].tolist() == [0, 0]
    assert outcome.moments.sample_variance[0, 0] == pytest.approx(0.05**2, rel=0.9)
    assert outcome.moments.effect[2, 0] == pytest.approx(0.25, abs=1e-6)
    # The common scale is that of the one unit that shows a spread: its own variance stays, the others lean on it.
    error, _ = half_widths(plan.example, outcome.moments, 0.95)
    assert error[0, 0] == pytest.approx(
        math.sqrt(outcome.moments.sample_variance[0, 0] * outcome.moments.variance_factor[0, 0])
    )
    freedom = outcome.moments.variance_freedom[1, 0]
    assert error[1, 0] ** 2 == pytest.approx(
        1.5 / (1.5 + freedom) * outcome.moments.sample_variance[0, 0] * outcome.moments.variance_factor[1, 0]
    )
    # In double precision the same differences are no rounding.
    precise = run(plan, Table(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert (precise.moments.sample_variance > 0).all()


def test_a_spread_just_above_rounding_is_kept():
    differences, observed = np.zeros((1, 1, 100, 1)), np.ones((1, 1))
    differences[0, 0, ::2] = 1e-4
    plan = make_plan(differences, n_draws=20)
    outcome = run(plan, Single(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert outcome.moments.sample_variance[0, 0] == pytest.approx(0.25e-8, rel=0.5)


def test_exact_scores_have_no_rounding():
    class Counts(Table):
        def __call__(self, *arguments):
            return super().__call__(*arguments).long()

    differences, observed = np.zeros((1, 1, 100, 1)), np.full((1, 1), 10.0**9)
    differences[0, 0, ::2] = 1
    plan = make_plan(differences, n_draws=20)
    outcome = run(plan, Counts(differences, observed), observed, batch_size=5, screening_threshold=0)
    assert outcome.moments.sample_variance[0, 0] == pytest.approx(0.25, rel=0.3)


# --- Controls --------------------------------------------------------------------------------------------------------


class Controlled(Table):
    """Two controls beside each score, and their means over all donors."""

    def __init__(self, differences, observed, controls):
        super().__init__(differences, observed)
        self.controls = controls

    def __call__(self, interventions):
        scores = super().__call__(interventions)
        found = self.controls[interventions.example, interventions.unit, interventions.donor[:, 0]]
        return torch.cat([scores[..., None], torch.from_numpy(found)], 2)

    def control_means(self, examples, units):
        return self.controls[examples, units].mean(1)


class Watched(MeanEstimator):
    def __init__(self):
        self.samples = []

    def estimate(self, sample):
        self.samples.append(sample)
        return super().estimate(sample)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("n_screening", [0, 3])
def test_controls_of_the_evaluator_reach_the_estimator_with_their_means(n_screening, batch_size):
    differences, observed = table(n=2, u=3, k=2)
    controls = generator(5).normal(size=(*differences.shape, 2))
    watched = Watched()
    plan = make_plan(differences, n_screening_draws=n_screening, sampling=SamplingScheme(UniformDesign, watched))
    outcome = run(plan, Controlled(differences, observed, controls), observed, batch_size=batch_size, screening_threshold=0)
    samples = [sample for sample in watched.samples if len(sample.values) == 10]
    assert len(samples) == len(plan)
    for row, sample in enumerate(samples):
        where = plan.example[row], plan.unit[row]
        donors = plan.design(row).donors(10)[:, 0]
        np.testing.assert_array_equal(sample.controls, controls[where][donors])
        np.testing.assert_allclose(sample.control_means, controls[where].mean(0), rtol=1e-12)
        np.testing.assert_allclose(sample.values, differences[where][donors], rtol=1e-12, atol=1e-14)
    # Controls change nothing unless an estimator looks at them.
    plain = run(
        make_plan(differences, n_screening_draws=n_screening),
        Table(differences, observed),
        observed,
        batch_size=64,
        screening_threshold=0,
    )
    np.testing.assert_allclose(outcome.moments.effect, plain.moments.effect, rtol=1e-12)
    np.testing.assert_allclose(outcome.moments.sample_variance, plain.moments.sample_variance, rtol=1e-9)
    assert outcome.n_forwards == plain.n_forwards


def test_predicted_effects_come_before_the_controls_of_the_evaluator():
    differences, observed = table(n=1, u=2, k=2)
    controls, watched = generator(5).normal(size=(*differences.shape, 1)), Watched()
    plan = make_plan(differences, n_draws=6, sampling=SamplingScheme(StratifiedDesign, watched))
    predicted = generator(6).normal(size=(2, 30))
    plan = replace(
        plan, rankings=[plan.ranked(row, predicted[row], outputs=np.array([True, False]), most_draws=6) for row in range(2)]
    )
    run(plan, Controlled(differences, observed, controls), observed, batch_size=5, screening_threshold=0)
    for row, sample in enumerate(watched.samples):
        donors = plan.design(row).donors(6)[:, 0]
        for k in range(2):
            np.testing.assert_array_equal(sample.controls[:, k, 0], predicted[row, donors])
            np.testing.assert_array_equal(sample.controls[:, k, 1], controls[0, row, donors, k, 0])
            np.testing.assert_allclose(
                sample.control_means[k], [predicted[row].mean(), controls[0, row, :, k, 0].mean()], rtol=1e-12
            )
        assert sample.first_order.outputs.tolist() == [True, False]


def test_means_of_controls_are_not_known_unless_the_evaluator_says_them():
    class Silent(Table):
        def __call__(self, interventions):
            scores = super().__call__(interventions)
            return torch.stack([scores, scores], 2)

    differences, observed = table(n=1, u=1)
    watched = Watched()
    options = {"batch_size": 5, "screening_threshold": 0}
    run(
        make_plan(differences, sampling=SamplingScheme(UniformDesign, watched)),
        Silent(differences, observed),
        observed,
        **options,
    )
    assert np.isnan(watched.samples[0].control_means).all()
    regression = make_plan(differences, sampling=SamplingScheme(UniformDesign, RegressionEstimator()))
    with pytest.raises(ValueError, match="control_means: RegressionEstimator needs the mean of every control"):
        run(regression, Silent(differences, observed), observed, **options)


def test_a_control_that_is_not_finite_stops_the_run():
    differences, observed = table(n=1, u=1)
    controls = np.full((*differences.shape, 1), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        run(make_plan(differences), Controlled(differences, observed, controls), observed, batch_size=5, screening_threshold=0)


@pytest.mark.parametrize("precision", [None, 0.05])
def test_a_control_makes_estimates_more_precise_and_draws_fewer(precision):
    differences, observed = table(n=1, u=20, donors=400, k=1)
    controls = 5 - 2 * differences[..., None] + 0.5 * generator(5).normal(size=(*differences.shape, 1))
    evaluator = Controlled(differences, observed, controls)
    error, forwards = [], []
    for estimator in (MeanEstimator(), RegressionEstimator(least_draws=8)):
        plan = make_plan(differences, n_draws=16, sampling=SamplingScheme(UniformDesign, estimator))
        outputs = np.ones((1, 1), bool)
        goal = None if precision is None else Goal(precision, None, 0.05, 0.95, outputs, 10**6, 400)
        outcome = run(plan, evaluator, observed, batch_size=64, screening_threshold=0, goal=goal)
        error.append(np.sqrt(np.mean((outcome.moments.effect[:, 0] - differences[0, :, :, 0].mean(1)) ** 2)))
        forwards.append(outcome.n_forwards)
    if precision is None:
        assert error[1] < 0.5 * error[0]
    else:
        # A half-width of 0.05 takes 96 draws of a residual of 0.25, so the third doubling of 16; without, the whole bank.
        assert forwards == [20 * 400, 20 * 128]
