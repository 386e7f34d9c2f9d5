"""Stratified against uniform draws: what each of the four questions finds, and how often honest estimates are accused."""

import math

import numpy as np
import pytest
from exhaustive import look_up
from planted_faults import altered, strata_are_biased, too_sure
from refutation_cases import run_on_table

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg.evaluation.refute import refute


def table(seed, units=24, donors=60, kind="skewed", scales=(0.1, 1.0)):
    """Effects ``(U, D)``, and a first-order estimate that says about half of them."""
    rng = np.random.default_rng(seed)
    scale = rng.choice(scales, (units, 1))
    effects = {
        "skewed": scale * rng.exponential(size=(units, donors)) ** 2,
        "rare flips": scale * (rng.random((units, donors)) < 0.15),
    }[kind]
    return effects, effects + effects.std(1, keepdims=True) * rng.normal(size=effects.shape)


def crossed(effects, first_order, seed=0, change=None, **options):
    forward, image, numbers = look_up(effects, first_order)
    face = AverageTreatmentEffect(forward) if change is None else altered(forward, change)
    options = {"block_size": 1, "perturbations_per_eval": 4096, "n_draws": 8} | options
    return refute(face, image, numbers, refuters="crossed", seed=seed, **options)["crossed"]


@pytest.mark.parametrize("kind", ["skewed", "rare flips"])
def test_honest_estimates_are_accused_in_at_most_alpha_of_the_runs(kind):
    n_runs, alpha = 25, 0.05
    alarms = sum(crossed(*table(seed, kind=kind), seed=seed).verdict == "fail" for seed in range(n_runs))
    assert alarms <= n_runs * alpha + 2 * math.sqrt(n_runs * alpha * (1 - alpha))


def stratified_only(change):
    """A fault of the stratified estimates alone."""

    def applied(statistics):
        if statistics.settings["sampling"] == "stratified":
            change(statistics)

    return applied


def test_a_unit_that_differs_is_named():
    def one_is_wrong(statistics):
        statistics.effect[0, 7] += 5.0

    found = crossed(*table(0), change=stratified_only(one_is_wrong))
    assert found.verdict == "fail"
    assert found.message.startswith("stratified and uniform draws disagree, most in unit 7 of example 0 (")


def test_a_bias_that_no_unit_shows_adds_up():
    effects, first_order = table(1, units=200, scales=(1.0,), kind="rare flips")

    def shifted(statistics):
        statistics.effect = statistics.effect - 0.04

    found = crossed(effects, first_order, change=stratified_only(shifted))
    assert found.verdict == "fail"
    assert found.message.startswith("stratified and uniform draws disagree over all units together: the sums are ")


def test_reported_errors_that_are_too_small():
    found = crossed(*table(2, units=60), change=too_sure)
    assert found.verdict == "fail"
    assert "what the reported standard errors allow" in found.message


def test_draws_that_do_not_stand_for_all_donors():
    with strata_are_biased():
        found = crossed(*table(3))
    assert found.verdict == "fail"
    assert found.message.startswith(
        "the planned draws are not fair: the first-order effects of 24 units differ from those of all "
    )


def test_without_a_gradient_both_are_uniform():
    found = run_on_table(table(4)[0], "crossed", n_draws=8)["crossed"]
    assert (found.verdict, found.message) == ("pass", "uniform draws of two seeds agree")


def test_a_drained_bank_is_exact():
    found = crossed(*table(5, donors=8))
    assert (found.verdict, found.statistic, found.n_units) == ("pass", 1.0, 24)
