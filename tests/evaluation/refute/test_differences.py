"""Differences of two estimates: Welch's test, written out, and how often it raises a false alarm."""

import math

import numpy as np
import pytest
from refutation_cases import case, look_up, run_on_table
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, PatchBank
from captum_causalseg.evaluation.refute import refute


def moderated_by_hand(variances, freedom):
    positive = [value for value in variances if value > 0]
    scale = math.exp(sum(math.log(value) for value in positive) / len(positive))
    return [(3 * scale + freedom * value) / (3 + freedom) for value in variances], 3 + freedom


def corrected_by_hand(p):
    """Benjamini and Hochberg's, as they wrote it: the smallest of p(j) m / j over j >= rank."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, smallest = [0.0] * len(p), 1.0
    for rank in range(len(p), 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * len(p) / rank)
        adjusted[order[rank - 1]] = smallest
    return adjusted


def p_by_hand(difference, squares, freedom):
    """Welch's t-test of a difference whose two parts have these squared standard errors, of equal freedom."""
    total = sum(squares)
    degrees = total**2 / sum(square**2 / freedom for square in squares)
    return 2 * scipy_stats.t.sf(abs(difference) / math.sqrt(total), degrees)


@pytest.mark.parametrize("n_draws", [7, 100])
def test_the_split_is_welchs_test_of_the_two_halves(n_draws):
    """Also where the halves of 12 donors are drained: there is no finite population correction."""
    table = np.random.default_rng(0).normal(size=(5, 24)) ** 3
    found = run_on_table(table, "split", n_draws=n_draws)["split"]
    forward, image, numbers = look_up(table)
    halves = PatchBank(numbers, placement="aligned").split(seed=0)
    ate, plain = AverageTreatmentEffect(forward), {"sampling": "uniform", "n_screening_draws": 0, "block_size": 1}
    both = [
        ate.attribute(image, baselines=half, n_draws=n_draws, seed=seed, return_statistics=True, **plain)[1]
        for seed, half in enumerate(halves)
    ]
    n = min(n_draws, 12)
    assert all((one.n_draws == n).all() for one in both)
    own = [one.sample_variance[0].tolist() for one in both]
    shrunk = [moderated_by_hand(values, n - 1)[0] for values in own]
    p = []
    for u in range(5):
        difference = float(both[0].effect[0, u] - both[1].effect[0, u])
        tests = [(shrunk, n + 2), (own, n - 1)]
        p.append(max(p_by_hand(difference, [values[k][u] / n for k in (0, 1)], freedom) for values, freedom in tests))
    assert found.statistic == pytest.approx(min(corrected_by_hand(p)), rel=1e-9)
    assert (found.n_units, found.threshold) == (5, 0.05)
    assert found.verdict == ("fail" if found.statistic <= 0.05 else "pass")
    assert found.n_forwards == sum(one.n_forwards for one in both) + 1  # to plan, the image is looked at once


def test_other_seeds_are_compared_by_welchs_test():
    table = np.random.default_rng(1).normal(size=(6, 30))
    report = run_on_table(table, "seed", n_draws=10)
    forward, image, numbers = look_up(table)
    again = AverageTreatmentEffect(forward).attribute(
        image,
        baselines=numbers,
        block_size=1,
        n_draws=10,
        n_screening_draws=0,
        sampling="uniform",
        seed=1,
        return_statistics=True,
    )[1]
    both = report.statistics, again
    factor = (1 - 10 / 30) / 10
    own = [one.sample_variance[0].tolist() for one in both]
    shrunk = [moderated_by_hand(values, 9)[0] for values in own]
    p = []
    for u in range(6):
        difference = float(both[0].effect[0, u] - both[1].effect[0, u])
        tests = [(shrunk, 12), (own, 9)]
        p.append(max(p_by_hand(difference, [values[k][u] * factor for k in (0, 1)], freedom) for values, freedom in tests))
    assert report["seed"].statistic == pytest.approx(min(corrected_by_hand(p)), rel=1e-9)
    assert report["seed"].n_forwards == again.n_forwards
    assert report["seed"].verdict == ("fail" if report["seed"].statistic <= 0.05 else "pass")


def test_exact_effects_must_be_equal_whatever_the_seed():
    table = np.random.default_rng(1).normal(size=(6, 10))
    found = run_on_table(table, "seed", n_draws=10)["seed"]
    assert (found.verdict, found.statistic, found.n_units) == ("pass", 1.0, 6)
    target, images, donors = case(2, metric="logit_mean")

    class WithItsSeed(AverageTreatmentEffect):
        """Effects that depend on the seed though all donors are used."""

        def attribute(self, *given, seed=0, **options):
            attributions, statistics = super().attribute(*given, seed=seed, **options)
            statistics.effect = statistics.effect * (1 + 0.01 * seed)
            return attributions, statistics

    found = refute(WithItsSeed(target), images, donors, 1, refuters=["seed"], n_draws=40, n_screening_draws=0)["seed"]
    assert (found.verdict, found.statistic) == ("fail", 0.0)
    assert found.message.startswith("two seeds disagree in ")


def test_units_that_were_screened_out_in_either_run_are_not_compared_by_seed():
    table = np.zeros((40, 1000))
    table[:, :200] = 1.0
    report = run_on_table(table, "seed", n_draws=10, n_screening_draws=3)
    left = int((report.statistics.status == 0).sum())
    assert 0 < report["seed"].n_units < left < 40


# Banks under the null: units by donors, donors exchangeable.
NULLS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "rare flips": lambda rng, shape: (rng.random(shape) < 0.1) * 0.02,
    "skewed": lambda rng, shape: rng.exponential(size=shape) ** 2 * rng.choice([0.01, 1.0], (shape[0], 1)),
    "units alike": lambda rng, shape: rng.normal(size=(1, shape[1])) + 0.3 * rng.normal(size=shape),
}


@pytest.mark.parametrize(("name", "null"), [*(("split", null) for null in NULLS), ("seed", "normal"), ("seed", "rare flips")])
def test_false_alarms_are_no_more_frequent_than_alpha(name, null):
    n_runs, alpha = 75, 0.05  # an error rate of 0.2 would be found with a probability of 0.95
    rng = np.random.default_rng(7)
    alarms = 0
    for seed in range(n_runs):
        found = run_on_table(NULLS[null](rng, (8, 60)), name, seed=seed, n_draws=15, alpha=alpha)[name]
        assert found.verdict != "inconclusive"
        alarms += found.verdict == "fail"
    assert alarms <= n_runs * alpha + 3 * math.sqrt(n_runs * alpha * (1 - alpha))
