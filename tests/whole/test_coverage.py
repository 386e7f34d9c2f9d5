"""Do 95 % intervals hold the truth? Against exhaustive truth: every donor of every unit, trained U-Nets, a real brain, 2D and 3D."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from exhaustive import METRICS, SAMPLINGS, Table, attributed, design_of, draw, orders_of, tables
from scipy import stats as scipy_stats

from captum_causalseg import Status, TreatmentEffectStatistics
from captum_causalseg.engine.estimator import MeanEstimator, RegressionEstimator

SEEDS = {2: 25, 3: 13}
"""Per number of spatial axes: 120 and 224 units, so 3000 and 2912 trials. Intervals that hold 0.91 instead of 0.95 fall below 0.92 with a probability of 0.97."""


@dataclass(frozen=True)
class Trials:
    """Runs on all tables side by side: ``(S, U)`` for every seed and unit, ``(U,)`` for every unit, of one metric."""

    error: np.ndarray
    standard_error: np.ndarray
    held: np.ndarray
    plain_held: np.ndarray
    alive: np.ndarray
    rare: np.ndarray
    skewed: np.ndarray

    @property
    def ratio(self) -> float:
        """Root mean square standard error over the root mean square error."""
        return float(np.sqrt((self.standard_error**2).mean() / (self.error**2).mean()))


@functools.cache
def runs(n_spatial: int, sampling: str, n_draws: int) -> tuple[TreatmentEffectStatistics, ...]:
    found = []
    for t, table in enumerate(tables(n_spatial)):
        first_order = table.first_order if sampling == "stratified" else None
        found.append(draw(table.differences, first_order, n_draws, range(1000 * t, 1000 * t + SEEDS[n_spatial])))
    return tuple(found)


def trials(n_spatial: int, metric: str, sampling: str, n_draws: int) -> Trials:
    k = METRICS.index(metric)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Trials.__dataclass_fields__}
    for table, stats in zip(tables(n_spatial), runs(n_spatial, sampling, n_draws)):
        truth = table.truth
        low, high = (end.numpy() for end in stats.confidence_interval(0.95))
        error = stats.effect.numpy() - truth
        freedom = stats.variance_freedom.numpy()
        plain = scipy_stats.t.ppf(0.975, freedom) * np.sqrt(stats.sample_variance.numpy() * stats.variance_factor.numpy())
        values = {
            "error": error,
            "standard_error": stats.standard_error.numpy(),
            "held": (low <= truth) & (truth <= high),
            "plain_held": np.abs(error) <= plain,
            "alive": table.alive,
            "rare": table.rare,
            "skewed": table.skewed,
        }
        for name, part in values.items():
            parts[name].append(part[..., k])
    return Trials(**{name: np.concatenate(part, -1) for name, part in parts.items()})


@pytest.fixture(scope="module")
def table() -> Table:
    """Grey matter of the slice: 60 units, 120 donors."""
    return tables(2)[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_draws", [6, 30])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_the_simulated_draws_are_those_of_attribute(n_spatial, n_draws, sampling):
    table = tables(n_spatial)[-1]
    first_order = table.first_order if sampling == "stratified" else None
    simulated = draw(table.differences, first_order, n_draws, range(2))
    for k in range(len(METRICS)):
        options = {"n_draws": n_draws, "n_screening_draws": 0, "allocation": "equal"}
        real = attributed(table.differences[..., k], first_order, range(2), **options)
        for name in ("effect", "standard_error", "degrees_of_freedom"):
            values = torch.cat([getattr(run, name) for run in real])
            torch.testing.assert_close(getattr(simulated, name)[..., k], values, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_draws", [6, 12, 30])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_intervals_hold_the_exhaustive_truth(n_spatial, metric, n_draws, sampling):
    found = trials(n_spatial, metric, sampling, n_draws)
    # Six random draws in the volumes are the one case that is on the edge: see the skewed units below.
    floor = 0.90 if (n_spatial, n_draws, sampling) == (3, 6, "uniform") else 0.92
    assert found.held.size >= 2000
    assert found.held.mean() >= floor
    # Also among the units that do something, where the interval has to be wide enough rather than merely not empty.
    assert found.alive.sum() >= 60
    assert found.held[:, found.alive].mean() >= floor


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_draws", [6, 12, 30])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_intervals_are_not_wide_for_nothing(n_spatial, metric, n_draws, sampling):
    ratio = trials(n_spatial, metric, sampling, n_draws).ratio
    # A few ranked draws in the volumes: the scores climb steeply along a good ranking, and successive differences see that.
    # (Six random ones see no flip in many units that have one, and take the common scale for them: 1.58.)
    wide = {(3, "stratified", 6): 2.4, (3, "uniform", 6): 1.8}
    assert 0.7 <= ratio <= wide.get((n_spatial, sampling, n_draws), 1.6)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_draws", [6, 12, 30])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_intervals_hold_the_truth_of_units_that_flip_rarely(n_spatial, n_draws, sampling):
    """Fewer than 20 % of the donors move the score at all: the sample variance is often 0. Only hard Dice has such units."""
    found = trials(n_spatial, "dice", sampling, n_draws)
    assert found.rare.sum() >= 5
    assert found.held[:, found.rare].mean() >= 0.92
    if n_draws == 6:
        assert found.plain_held[:, found.rare].mean() < 0.8


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_draws", [6, 12, 30])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_intervals_hold_the_truth_of_skewed_units(n_spatial, metric, n_draws, sampling):
    """A few donors do much, the others little. A sample without those few says too little of both effect and spread."""
    found = trials(n_spatial, metric, sampling, n_draws)
    # What no variance estimate can mend: a handful of random draws. With 20 of them or a ranking the intervals hold.
    short = {6: 0.74, 12: 0.84}
    floor = short.get(n_draws, 0.92) if (n_spatial, sampling) == (3, "uniform") else 0.92
    assert found.skewed.sum() >= 5
    assert found.held[:, found.skewed].mean() >= floor


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_plain_intervals_would_not_do_on_hard_dice(n_spatial):
    """What moderation is for: a unit none of whose few draws flips a pixel gets an interval of width 0 without it."""
    found = trials(n_spatial, "dice", "uniform", 6)
    plain, moderated = (held[:, found.alive].mean() for held in (found.plain_held, found.held))
    assert plain < 0.9
    assert moderated > plain + 0.03


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("n_draws", [12, 30])
def test_intervals_hold_the_truth_under_a_useless_ranking(n_spatial, n_draws):
    held = []
    for t, table in enumerate(tables(n_spatial)):
        useless = np.random.default_rng(t).random(table.first_order.shape)
        low, high = draw(table.differences, useless, n_draws, range(10)).confidence_interval(0.95)
        held.append(((low.numpy() <= table.truth) & (table.truth <= high.numpy())).mean((0, 1)))
    assert (np.mean(held, 0) >= 0.92).all()


@pytest.mark.parametrize("ranking", ["uniform", "first order", "useless", "upside down"])
def test_the_estimate_is_unbiased_whatever_the_ranking_is_worth(table, ranking):
    worth = {
        "uniform": None,
        "first order": table.first_order,
        "useless": np.random.default_rng(0).random(table.first_order.shape),
        "upside down": -table.differences[..., 0],
    }
    predicted, n_seeds = worth[ranking], 60
    orders = None if predicted is None else orders_of(predicted)
    # Screening goes to the ends of the ranking first; that must not bias the estimate.
    stats = draw(table.differences, predicted, 12, range(n_seeds), n_screening_draws=3)
    effects = (stats.effect + stats.adjustment).numpy()
    # The spread is known: 12 of 120 donors, or one from every 10 along the ranking.
    if orders is None:
        variance = table.differences.var(1, ddof=1) * (1 / 12 - 1 / 120)
    else:
        strata = np.take_along_axis(table.differences, orders[..., None], 1).reshape(len(orders), 12, 10, -1)
        variance = strata.var(2).mean(1) / 12
    z = (effects.mean(0) - table.truth) / np.maximum(np.sqrt(variance / n_seeds), 1e-9)
    assert np.abs(z[table.alive]).max() < 4.5
    assert (z[table.alive] ** 2).mean() == pytest.approx(1, abs=0.6)
    # So are they with predicted effects as a control, but for units whose draws may all do the same: these are left alone then.
    error, moved = stats.effect.numpy() - table.truth, table.alive & (stats.sample_variance.numpy() > 0).all(0)
    squared_bias = error.mean(0) ** 2 - error.var(0, ddof=1) / n_seeds
    assert moved.sum() > 20
    assert (squared_bias / np.maximum(variance, 1e-18))[moved].mean() < 0.1**2


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_draws", [12, 30])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_ranked_donors_make_the_error_smaller(n_spatial, n_draws, metric):
    plain, ranked = ((trials(n_spatial, metric, sampling, n_draws).error ** 2).mean() for sampling in SAMPLINGS)
    assert ranked < 0.9**2 * plain


@pytest.mark.parametrize("k", range(len(METRICS)), ids=METRICS)
def test_ranked_screening_misses_fewer_units_for_the_same_three_draws(table, k):
    """A unit is missed if it is screened out though its effect is as large as the threshold."""
    threshold = 0.001
    orders = orders_of(table.first_order)
    matters = np.flatnonzero(np.abs(table.truth[:, k]) >= threshold)
    assert len(matters) >= 15
    missed = {}
    for name in SAMPLINGS:
        lost = []
        for u in matters:
            for seed in range(60):
                design = design_of((seed, u), orders.shape[1], None if name == "uniform" else orders[u], 20, 3)
                lost.append(np.abs(table.differences[u, design.donors(3)[:, 0], k]).max() < threshold)
        missed[name] = np.mean(lost)
    assert missed["stratified"] < missed["uniform"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("k", range(len(METRICS)), ids=METRICS)
def test_intervals_hold_the_truth_with_screening_on_too(table, k, sampling):
    ranking = table.first_order if sampling == "stratified" else None
    found = attributed(table.differences[..., k], ranking, range(12), n_draws=12, n_screening_draws=3)
    low, high = (torch.cat(ends).numpy() for ends in zip(*(run.confidence_interval(0.95) for run in found)))
    truth = table.truth[:, k]
    assert ((low <= truth) & (truth <= high)).mean() >= 0.92
    assert any(bool((run.status == Status.SCREENED).any()) for run in found)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("k", range(len(METRICS)), ids=METRICS)
def test_intervals_that_were_stopped_at_a_precision_hold_the_truth(table, k, sampling):
    ranking = table.first_order if sampling == "stratified" else None
    differences, truth = table.differences[..., k], table.truth[:, k]
    precision = 2 * float(np.median(differences[table.alive[:, k]].std(1, ddof=1))) / np.sqrt(8)
    found = attributed(differences, ranking, range(17), n_draws=40, n_screening_draws=0, precision=precision)
    low, high = (torch.cat(ends).numpy() for ends in zip(*(run.confidence_interval(0.95) for run in found)))
    assert low.size >= 1000
    # Of a drained bank the mean is exact, but for the order of its sum.
    assert ((low - 1e-12 <= truth) & (truth <= high + 1e-12)).mean() >= 0.95
    # The budget is enough for most, and goes to those that need it.
    assert ((high - low) / 2 <= precision).mean() > 0.9
    spent = np.array([run.settings["forwards"]["interventions"] for run in found])
    assert (spent <= 40 * len(truth)).all()
    draws = torch.cat([run.n_draws for run in found])
    assert draws.min() < draws.max()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("k", range(len(METRICS)), ids=METRICS)
def test_decisions_are_wrong_no_more_often_than_said(table, k, sampling):
    ranking = table.first_order if sampling == "stratified" else None
    differences, truth = table.differences[..., k], table.truth[:, k]
    threshold = float(np.median(truth[table.alive[:, k]]))
    found = attributed(differences, ranking, range(17), n_draws=40, n_screening_draws=0, decide=threshold, alpha=0.05)
    decisions = torch.cat([run.decision for run in found]).numpy()
    wrong = (decisions != 0) & (decisions != np.sign(truth - threshold))
    assert decisions.size >= 1000
    assert wrong.mean() <= 0.05
    assert (decisions != 0).mean() > 0.5


def test_what_screening_costs_is_what_the_documentation_says():
    """A block that moves the score in 20 % of the draws is lost with probability 0.8**3 = 51 %."""
    differences = np.zeros((400, 1000))
    differences[:, :200] = 1.0
    (stats,) = attributed(differences, None, range(1), n_draws=10, n_screening_draws=3)
    lost = (stats.status == Status.SCREENED).double().mean()
    assert float(lost) == pytest.approx(0.512, abs=4 * np.sqrt(0.512 * 0.488 / 400))
    assert (stats.effect[stats.status == Status.SCREENED] == 0).all()


@pytest.mark.parametrize("n_draws", [35, 45, 50, 55])
def test_intervals_hold_the_truth_when_a_bank_is_nearly_used_up(n_draws):
    """Strata of one donor and of two: those of two are all the error that there is."""
    generator = np.random.default_rng(0)
    differences = generator.normal(size=(60, 60, 1))
    stats = draw(differences, generator.normal(size=(60, 60)), n_draws, range(40))
    low, high = (end.numpy()[..., 0] for end in stats.confidence_interval(0.95))
    truth = differences.mean(1)[:, 0]
    held = (low <= truth) & (truth <= high)
    assert 0.935 <= held.mean() <= 0.985
    error = stats.effect.numpy()[..., 0] - truth
    assert 0.95 <= np.sqrt((stats.standard_error.numpy() ** 2).mean() / (error**2).mean()) <= 1.12


@pytest.mark.parametrize("n_draws", [20, 30])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_a_control_makes_the_error_smaller_and_intervals_hold_the_truth(n_spatial, n_draws):
    """Uniform draws, with predicted effects as a control: an estimator that users bring, or that a cheaper evaluator feeds."""
    held, skewed, squares = [], [], {"mean": [], "regression": []}
    for t, table in enumerate(tables(n_spatial)):
        controls = np.repeat(table.first_order[..., None, None], len(METRICS), 2)
        for name, estimator in (("mean", MeanEstimator()), ("regression", RegressionEstimator())):
            seeds = range(1000 * t, 1000 * t + SEEDS[n_spatial] // 2)
            stats = draw(table.differences, None, n_draws, seeds, estimator=estimator, controls=controls)
            squares[name].append(((stats.effect.numpy() - table.truth) ** 2).mean((0, 1)))
        low, high = (end.numpy() for end in stats.confidence_interval(0.95))
        inside = (low <= table.truth) & (table.truth <= high)
        held.append(inside[:, table.alive.any(1)].mean((0, 1)))
        skewed.append(inside[:, table.skewed].mean())
    assert (np.mean(held, 0) >= 0.94).all()
    assert np.mean(skewed) >= 0.9
    assert (np.mean(squares["regression"], 0) < 0.9 * np.mean(squares["mean"], 0)).all()


def test_with_a_control_the_estimate_is_unbiased(table):
    """A z per unit and metric: the mean over seeds against the truth, by the scatter over seeds."""
    controls = np.repeat(table.first_order[..., None, None], len(METRICS), 2)
    effects = draw(table.differences, None, 12, range(200), estimator=RegressionEstimator(8), controls=controls).effect.numpy()
    z = (effects.mean(0) - table.truth) / np.maximum(effects.std(0, ddof=1) / np.sqrt(len(effects)), 1e-9)
    assert np.abs(z[table.alive]).max() < 4.5
    assert (z[table.alive] ** 2).mean() == pytest.approx(1, abs=0.6)
