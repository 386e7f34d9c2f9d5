"""Standard errors, intervals, p-values and maps of statistics, as the design says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_statistics import make
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, Status, TreatmentEffectStatistics
from captum_causalseg.statistics import moderate


def test_standard_errors_are_moderated_and_finite_bank_corrected_as_in_the_design():
    stats = make()
    s0_squared = math.sqrt(0.04 * 0.01)  # geometric mean of the non-zero variances
    for u, (variance, n, left) in enumerate([(0.04, 10, 1), (0.01, 10, 1 - 10 / 20), (0.0, 10, 1)]):
        prior = 3 * (1 / 2 if variance else 2 / 3)  # one other unit shows a spread, or two
        moderated = (prior * s0_squared + (n - 1) * variance) / (prior + n - 1)
        assert float(stats.standard_error[0, u]) == pytest.approx(math.sqrt(moderated / n * left), rel=1e-12)
    assert float(stats.standard_error[0, 3]) == 0  # all five donors used


def test_intervals_are_students_t_with_the_prior_degrees_of_freedom_added():
    stats = make()
    low, high = stats.confidence_interval(0.9)
    half = torch.from_numpy(scipy_stats.t.ppf(0.95, 9 + np.array([1.5, 1.5, 2.0]))) * stats.standard_error[0, :3]
    torch.testing.assert_close(high[0, :3] - stats.effect[0, :3], half)
    torch.testing.assert_close(stats.effect[0, :3] - low[0, :3], half)
    assert float(low[0, 3]) == float(high[0, 3]) == pytest.approx(0.1)


def test_no_interval_has_width_zero_unless_the_bank_is_drained():
    low, high = make().confidence_interval()
    assert (high - low > 0).tolist() == [[True, True, True, False]]


def test_when_no_unit_shows_any_spread_the_intervals_are_unbounded_not_empty():
    stats = make(variance=(0.0, 0.0, 0.0, 0.0), effect=(0.0, 0.0, 0.0, 0.1))
    low, high = stats.confidence_interval()
    assert low[0].tolist() == [-math.inf] * 3 + [0.1]
    assert high[0].tolist() == [math.inf] * 3 + [0.1]
    assert stats.p_values()[0].tolist() == [1, 1, 1, 0]


def test_a_single_draw_borrows_its_spread_from_the_other_units():
    stats = make(draws=(10, 10, 1, 5), variance=(0.04, 0.01, math.nan, 0.0))
    assert float(stats.standard_error[0, 2]) == pytest.approx(math.sqrt(math.sqrt(0.04 * 0.01)))
    assert float(stats.degrees_of_freedom[0, 2]) == 2  # of two others


def test_excluded_units_are_unknown_and_units_outside_the_support_are_exact():
    stats = make(
        effect=(math.nan, 0.0, 0.2, 0.1),
        variance=(math.nan, math.nan, 0.01, 0.01),
        draws=(0, 0, 10, 10),
        population=(math.nan, math.nan, math.inf, math.inf),
        status=(Status.EXCLUDED, Status.OUTSIDE_SUPPORT, 0, 0),
    )
    assert math.isnan(stats.standard_error[0, 0])
    assert math.isnan(stats.p_values()[0, 0])
    assert not stats.significant()[0, 0]
    assert float(stats.standard_error[0, 1]) == 0
    assert float(stats.p_values()[0, 1]) == 1
    assert all(float(end[0, 1]) == 0 for end in stats.confidence_interval())


def test_p_values_are_two_sided_t_tests():
    stats = make()
    t = (stats.effect[0, :3] / stats.standard_error[0, :3]).numpy()
    np.testing.assert_allclose(
        stats.p_values()[0, :3], 2 * scipy_stats.t.cdf(-np.abs(t), 9 + np.array([1.5, 1.5, 2])), rtol=1e-12
    )


def test_maps_carry_the_whole_value_on_every_element():
    stats = make()
    painted = stats.to_map("effect")
    assert painted.shape == (1, 3, 8)
    assert painted[0, 2].tolist() == [0.5, 0.5, -0.25, -0.25, 0, 0, pytest.approx(0.1), pytest.approx(0.1)]
    for field in ("standard_error", "n_draws", "status", "p_value", "significant", "lower", "upper"):
        assert stats.to_map(field).shape == (1, 3, 8)
    with pytest.raises(ValueError, match=r"field: expected .*\"edge_suspect\", got 'z'"):
        stats.to_map("z")


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    st.integers(2, 60),
    st.floats(0.5, 30),
)
def test_moderation_pulls_every_variance_toward_the_common_scale(variances, n, d0):
    variances = np.array([v if v > 1e-9 else 0.0 for v in variances])
    moderated, freedom = moderate(variances, np.full(len(variances), n - 1), d0)
    others = (variances > 0).sum() - (variances > 0)
    np.testing.assert_allclose(freedom, d0 * others / (others + 1) + (n - 1))
    if (variances == 0).all():
        assert np.isinf(moderated).all()
        return
    scale = scipy_stats.gmean(variances[variances > 0])
    low, high = np.minimum(variances, scale), np.maximum(variances, scale)
    assert (moderated >= low * (1 - 1e-9)).all()
    assert (moderated <= high * (1 + 1e-9)).all()
    assert (moderated > 0).all()


def test_keys_of_settings_that_were_called_otherwise_are_read(tmp_path):
    make(settings={"switched_off": {"replay": "why"}, "seed": 3}).save(tmp_path / "s.npz")
    assert TreatmentEffectStatistics.load(tmp_path / "s.npz").settings == {"disabled": {"replay": "why"}, "seed": 3}


def few(caplog, draws=12, population=200.0, n_units=4, sampling="uniform", correction="fdr_bh"):
    """How often it is said that draws are too few for many tests; asked twice."""
    some = slice(0, n_units)
    stats = make(
        effect=(0.5, -0.25, 0.0, 0.1)[some],
        variance=(0.04, 0.01, 0.0, 0.02)[some],
        draws=(draws,) * n_units,
        population=(population,) * n_units,
        status=(0,) * n_units,
        settings={"sampling": sampling},
    )
    caplog.clear()
    for _ in range(2):
        stats.significant(correction=correction)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("draws", [6, 12, 49])
@pytest.mark.parametrize("sampling", ["uniform", "paper"])
def test_few_uniform_draws_of_many_units_are_warned_of_once(caplog, draws, sampling):
    (said,) = few(caplog, draws, sampling=sampling)
    assert said.startswith(f"significant: {draws} uniform draws do not hold the level among many units")
    assert 'sampling="stratified"' in said


def test_few_draws_in_a_context_are_warned_of(caplog):
    (said,) = few(caplog, draws=20, sampling="in context")
    assert said.startswith("significant: 20 draws in a context do not hold the level among many units")
    assert said.endswith("make at least 50 draws")
    assert few(caplog, draws=50, sampling="in context") == []


@pytest.mark.parametrize(
    "case",
    [{"draws": 50}, {"draws": 12, "population": 12.0}, {"sampling": "stratified"}, {"n_units": 1}, {"correction": None}],
    ids=["enough", "drained", "stratified", "alone", "unit by unit"],
)
def test_what_holds_its_level_is_not_warned_of(caplog, case):
    assert few(caplog, **case) == []


def test_nobody_is_warned_who_did_not_ask_for_significance(caplog):
    image = torch.rand(1, 1, 4, 4)
    ate = AverageTreatmentEffect(lambda x: (x**2).sum((1, 2, 3)))
    ate.attribute(image, torch.rand(30, 1, 4, 4), block_size=2, n_draws=6, sampling="uniform")
    assert not [record for record in caplog.records if record.getMessage().startswith("significant")]
