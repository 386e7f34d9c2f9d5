"""Schemes of one's own: one class for which donors, one for what is made of the scores."""

import numpy as np
import pytest
import torch

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect
from captum_causalseg.engine.design import Design, StratifiedDesign, UniformDesign
from captum_causalseg.engine.draws import with_replacement
from captum_causalseg.engine.estimator import Estimate, Estimator, MeanEstimator, RegressionEstimator
from captum_causalseg.engine.sampling import SCHEMES, SamplingScheme, scheme_of


class Independent(Design):
    """Every draw from all donors."""

    @classmethod
    def total(cls, population):
        return float("inf")

    def donors(self, n):
        return with_replacement(self.generator(), self.population, n)


class Median(Estimator):
    def estimate(self, sample):
        return Estimate(
            np.median(sample.values, 0), sample.values.var(0, ddof=1), 1 / len(sample.values), 1.0, len(sample.values)
        )


def moved(image):
    return image.sum((1, 2, 3)) ** 2


IMAGE, DONORS = torch.arange(16.0).view(1, 1, 4, 4) / 16, torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
OPTIONS = {"block_size": 2, "n_draws": 9, "n_screening_draws": 0, "return_statistics": True}


def literal(unit, seed=0):
    """The differences of a unit's draws with replacement."""
    rows, columns = (slice(2 * at, 2 * at + 2) for at in divmod(unit, 2))
    numbers = with_replacement(np.random.default_rng((seed, unit)), [5], 9)[:, 0]
    found = []
    for number in numbers:
        image = IMAGE.clone()
        image[..., rows, columns] = DONORS[number, :, rows, columns]
        found.append(float(moved(IMAGE) - moved(image)))
    return np.array(found)


def test_a_design_of_ones_own_is_used_and_said():
    _, stats = AverageTreatmentEffect(moved).attribute(IMAGE, DONORS, sampling=SamplingScheme(Independent), **OPTIONS)
    for unit in range(4):
        drawn = literal(unit)
        assert float(stats.effect[0, unit]) == pytest.approx(drawn.mean(), rel=1e-5)
        assert float(stats.sample_variance[0, unit]) == pytest.approx(drawn.var(ddof=1), rel=1e-4)
    assert torch.isinf(stats.population).all()
    assert stats.settings["sampling"] == "Independent, StratifiedEstimator"
    assert (stats.n_draws == 9).all(), "more than the bank holds"


def test_an_estimator_of_ones_own_is_used_and_said():
    scheme = SamplingScheme(Independent, Median(), name="medians")
    ate = AverageTreatmentEffect(moved)
    _, stats = ate.attribute(IMAGE, DONORS, sampling=scheme, **OPTIONS)
    for unit in range(4):
        assert float(stats.effect[0, unit]) == pytest.approx(np.median(literal(unit)), rel=1e-5)
    assert stats.settings["sampling"] == "medians"
    planned = ate.plan(IMAGE, DONORS, sampling=scheme, block_size=2, n_draws=9)
    assert len(planned) == 36
    assert all(one.weight == pytest.approx(1 / 9) for one in planned)


def test_layers_take_schemes_too():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 1))
    _, stats = LayerAverageTreatmentEffect(model, model[0]).attribute(
        IMAGE, DONORS, target=0, n_draws=3, sampling=SamplingScheme(Independent), return_statistics=True
    )
    assert stats.settings["sampling"] == "Independent, StratifiedEstimator"


def test_names_stand_for_schemes():
    assert scheme_of("stratified").design is StratifiedDesign
    assert scheme_of("uniform") is SCHEMES["uniform"]
    own = SamplingScheme(UniformDesign, RegressionEstimator())
    assert scheme_of(own) is own
    assert own.name == "UniformDesign, RegressionEstimator"


def test_where_no_gradient_ranks_the_donors_a_scheme_that_needs_it_draws_uniformly_and_says_so(caplog):
    def stepwise(image):
        with torch.no_grad():
            return moved(image)

    scheme = SamplingScheme(StratifiedDesign, MeanEstimator())
    _, stats = AverageTreatmentEffect(stepwise).attribute(IMAGE, DONORS, sampling=scheme, **(OPTIONS | {"n_draws": 3}))
    _, uniform = AverageTreatmentEffect(stepwise).attribute(IMAGE, DONORS, sampling="uniform", **(OPTIONS | {"n_draws": 3}))
    assert torch.equal(stats.effect, uniform.effect)
    assert stats.settings["sampling"] == "UniformDesign, MeanEstimator"
    assert "donors are drawn uniformly" in caplog.text
