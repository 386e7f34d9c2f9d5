"""Standard errors, intervals, p-values, false discovery rates, tables, files."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, Status, TreatmentEffectStatistics
from captum_causalseg.statistics import moderate, target_index


def make(
    effect=(0.5, -0.25, 0.0, 0.1),
    variance=(0.04, 0.01, 0.0, 0.0),
    draws=(10, 10, 10, 5),
    population=(math.inf, 20.0, math.inf, 5.0),
    status=(0, 0, 0, 0),
    output_shape=(),
    **options,
):
    shape = (1, len(effect), *output_shape)
    expand = [np.reshape(v, (1, len(effect), *(1,) * len(output_shape))) for v in (effect, variance, draws, status)]
    arrays = [torch.from_numpy(np.broadcast_to(v, shape).copy()) for v in expand]
    mask = torch.arange(len(effect)).repeat_interleave(2)[None, None]
    return TreatmentEffectStatistics(
        effect=arrays[0].double(),
        sample_variance=arrays[1].double(),
        n_draws=arrays[2].long(),
        population=torch.tensor([population], dtype=torch.float64),
        status=arrays[3].long(),
        observed_score=torch.full((1, *output_shape), 0.75, dtype=torch.float64),
        unit_ids=torch.arange(len(effect)),
        feature_mask=[mask],
        input_shapes=[(1, 3, mask.shape[-1])],
        n_forwards=36,
        **options,
    )


def test_standard_errors_are_moderated_and_finite_bank_corrected_as_in_the_design():
    stats = make()
    s0_squared = math.sqrt(0.04 * 0.01)  # geometric mean of the non-zero variances
    for u, (variance, n, left) in enumerate([(0.04, 10, 1), (0.01, 10, 1 - 10 / 20), (0.0, 10, 1)]):
        moderated = (3 * s0_squared + (n - 1) * variance) / (3 + n - 1)
        assert float(stats.standard_error[0, u]) == pytest.approx(math.sqrt(moderated / n * left), rel=1e-12)
    assert float(stats.standard_error[0, 3]) == 0  # all five donors used


def test_intervals_are_students_t_with_the_prior_degrees_of_freedom_added():
    stats = make()
    low, high = stats.confidence_interval(0.9)
    half = scipy_stats.t.ppf(0.95, 9 + 3) * stats.standard_error[0, :3]
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
    assert float(stats.degrees_of_freedom[0, 2]) == 3


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
    np.testing.assert_allclose(stats.p_values()[0, :3], 2 * scipy_stats.t.cdf(-np.abs(t), 12), rtol=1e-12)


def literal_benjamini_hochberg(p, alpha):
    order = sorted(range(len(p)), key=lambda i: p[i])
    passed = [rank for rank, i in enumerate(order, 1) if p[i] <= alpha * rank / len(p)]
    return {i for rank, i in enumerate(order, 1) if passed and rank <= max(passed)}


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=30), st.sampled_from([0.01, 0.05, 0.3]))
def test_significance_is_benjamini_hochberg_over_units(effects, alpha):
    n = len(effects)
    stats = make(effects, [1.0] * n, [4] * n, [math.inf] * n, [0] * n)
    found = set(np.flatnonzero(stats.significant(alpha)[0].numpy()).tolist())
    assert found == literal_benjamini_hochberg(stats.p_values()[0].tolist(), alpha)


def test_other_corrections():
    stats = make([2.0, 1.1, 0.9, 0.0], [1.0] * 4, [10] * 4, [math.inf] * 4)
    p = stats.p_values()[0]
    assert stats.significant(0.05, correction=None)[0].tolist() == (p <= 0.05).tolist()
    assert stats.significant(0.05, correction="bonferroni")[0].tolist() == (p * 4 <= 0.05).tolist()
    assert int(stats.significant(0.05, correction="fdr_by").sum()) <= int(stats.significant(0.05).sum())
    # Step down: the smallest of four times 4, the next times 3.
    assert stats.adjusted_p_values("holm")[0, :2].tolist() == pytest.approx([4 * float(p[0]), 3 * float(p[1])])
    with pytest.raises(ValueError, match=r"correction: expected \"fdr_bh\", .* or None, got 'sidak'"):
        stats.significant(correction="sidak")


@pytest.mark.parametrize("value", [0, 1, -0.5, 2, math.nan])
def test_levels_and_rates_outside_the_unit_interval_are_refused(value):
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        make().confidence_interval(value)
    with pytest.raises(ValueError, match="alpha: expected a number between 0 and 1"):
        make().significant(value)


def test_maps_carry_the_whole_value_on_every_element():
    stats = make()
    painted = stats.to_map("effect")
    assert painted.shape == (1, 3, 8)
    assert painted[0, 2].tolist() == [0.5, 0.5, -0.25, -0.25, 0, 0, pytest.approx(0.1), pytest.approx(0.1)]
    for field in ("standard_error", "n_draws", "status", "p_value", "significant", "lower", "upper"):
        assert stats.to_map(field).shape == (1, 3, 8)
    with pytest.raises(ValueError, match=r"field: expected .*\"upper\", got 'z'"):
        stats.to_map("z")


def test_maps_of_several_outputs_need_a_target():
    stats = make(output_shape=(2, 3), output_axes=("class", "roi"))
    stats.effect[:, :, 1, 2] = 7
    assert (stats.to_map("effect", (1, 2)) == 7).all()
    with pytest.raises(ValueError, match=r"target: .* 6 outputs \(2 class x 3 roi\) per example; say which one"):
        stats.to_map("effect")


@pytest.mark.parametrize(
    ("target", "flat"),
    [
        ((1, 2), [5, 5]),
        ([(0, 1), (1, 0)], [1, 3]),
    ],
)
def test_targets_of_two_axes(target, flat):
    assert target_index(target, 2, (2, 3), ("class", "roi")).tolist() == flat


@pytest.mark.parametrize(
    ("target", "flat"), [(2, [2, 2]), (torch.tensor(1), [1, 1]), (torch.tensor([2, 0]), [2, 0]), ([0, 1], [0, 1]), (-1, [2, 2])]
)
def test_targets_of_one_axis(target, flat):
    assert target_index(target, 2, (3,), ("class",)).tolist() == flat


@pytest.mark.parametrize("target", [3, (0, 0), [0], torch.tensor([0, 1, 2]), [0, 3], "a"])
def test_targets_that_pick_nothing_are_refused(target):
    with pytest.raises(ValueError, match=r"target: .*3 outputs \(3 class\)"):
        target_index(target, 2, (3,), ("class",))


def test_a_target_that_picks_several_outputs_is_refused():
    with pytest.raises(ValueError, match="target: 1 picks 3 of 6 outputs"):
        target_index(1, 2, (2, 3), ("class", "roi"))


def test_the_table_has_a_row_per_example_unit_and_output_and_says_where_units_lie():
    stats = make(output_shape=(2,), output_axes=("class",))
    table = stats.to_dataframe(level=0.8)
    assert len(table) == 8
    assert table["class"].tolist() == [0, 1] * 4
    assert table["unit"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["start_0"].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert table["stop_0"].tolist() == [2, 2, 4, 4, 6, 6, 8, 8]
    assert set(table["status"]) == {"ESTIMATED"}
    low, high = stats.confidence_interval(0.8)
    np.testing.assert_array_equal(table["lower"], low.ravel())
    np.testing.assert_array_equal(table["upper"], high.ravel())
    assert (table["observed_score"] == 0.75).all()


def test_absent_units_are_left_out_of_the_table():
    assert make(status=(0, Status.ABSENT, 0, 0)).to_dataframe()["unit"].tolist() == [0, 2, 3]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    stats = make(output_shape=(2,), output_axes=("class",), settings={"seed": 3}, inputs_are_tuple=True)
    stats.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fiuU" for name in file.files)
    loaded = TreatmentEffectStatistics.load(tmp_path / "s.npz")
    for name, value in vars(stats).items():
        other = getattr(loaded, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(9), other.nan_to_num(9)), name
            assert value.dtype == other.dtype
        elif name != "feature_mask":
            assert value == other, name
    assert torch.equal(loaded.feature_mask[0], stats.feature_mask[0])


def test_loading_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match=r"path: .*is not a file written by TreatmentEffectStatistics\.save"):
            TreatmentEffectStatistics.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        TreatmentEffectStatistics.load(tmp_path / "missing.npz")


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    st.integers(2, 60),
    st.floats(0.5, 30),
)
def test_moderation_pulls_every_variance_toward_the_common_scale(variances, n, d0):
    variances = np.array([v if v > 1e-9 else 0.0 for v in variances])
    moderated, freedom = moderate(variances, np.full(len(variances), n - 1), d0)
    assert (freedom == d0 + (n - 1)).all()
    if (variances == 0).all():
        assert np.isinf(moderated).all()
        return
    scale = scipy_stats.gmean(variances[variances > 0])
    low, high = np.minimum(variances, scale), np.maximum(variances, scale)
    assert (moderated >= low * (1 - 1e-9)).all()
    assert (moderated <= high * (1 + 1e-9)).all()
    assert (moderated > 0).all()


def test_keys_of_settings_that_were_called_otherwise_are_read(tmp_path):
    make(settings={"switched_off": {"vmap": "why"}, "seed": 3}).save(tmp_path / "s.npz")
    assert TreatmentEffectStatistics.load(tmp_path / "s.npz").settings == {"disabled": {"vmap": "why"}, "seed": 3}


def test_settings_are_short_and_survive_a_file(tmp_path):
    image = torch.rand(1, 1, 8, 8)
    _, stats = AverageTreatmentEffect(lambda x, y: (x + y).sum((1, 2, 3))).attribute(
        (image, image), baselines=(torch.rand(3, 1, 8, 8), 0.5), block_size=(4, 4), n_draws=2, return_statistics=True
    )
    assert stats.settings["baselines"] == ["Tensor (3, 1, 8, 8)", 0.5]
    assert stats.settings["block_size"] == [[4, 4], [4, 4]]
    stats.save(tmp_path / "s.npz")
    assert TreatmentEffectStatistics.load(tmp_path / "s.npz").settings == stats.settings
