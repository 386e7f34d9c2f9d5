"""Perception profiles and influence matrices: by hand, by brute force, on the authors' own map, and by simulation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, TreatmentEffectStatistics, regions
from captum_causalseg.evaluation.influence import influence_matrix
from captum_causalseg.evaluation.profile import perception_profile, profile_of_map
from captum_causalseg.evaluation.unit_space import distance_to
from captum_causalseg.visualization import plot_influence, plot_profile

HEATMAP = Path(__file__).parents[3] / "shared" / "data" / "paper_demo_heatmap.npz"
EXCLUDED, SCREENED, OUTSIDE, ABSENT = (
    int(s) for s in (Status.EXCLUDED, Status.SCREENED, Status.OUTSIDE_SUPPORT, Status.ABSENT)
)


def make(effect, error, feature_mask, status=0, *, freedom=100.0, axes=(), extra_masks=(), whole_masks=False, unit_ids=None):
    """Statistics with exactly these effects and standard errors ``(N, U, *outputs)``, or ``(U,)`` for one example and output.

    Masks are ``(*spatial)``, or with ``whole_masks`` ``(N or 1, C or 1, *spatial)``.
    """
    effect, error, status = (torch.as_tensor(np.array(v)).double() for v in (effect, error, status))
    effect = effect[None] if effect.ndim == 1 else effect
    error, status = error.expand(effect.shape).clone(), status.expand(effect.shape).clone()
    unknown = (status == EXCLUDED) | (status == ABSENT)
    masks = [torch.as_tensor(np.asarray(m)) for m in (feature_mask, *extra_masks)]
    masks = masks if whole_masks else [m[None, None] for m in masks]
    # Moderation leaves sample variances alone that are all 1; an infinite error needs that none of them is known.
    seen = torch.isfinite(error)
    variance = 1.0 if bool(seen.all()) else torch.nan
    return TreatmentEffectStatistics(
        effect=torch.where(unknown, torch.nan, effect),
        sample_variance=torch.full_like(effect, variance),
        variance_factor=torch.where(seen, error**2, 1.0),
        variance_freedom=torch.full_like(effect, freedom if variance == 1 else 0.0),
        n_draws=torch.full(effect.shape, 10),
        population=torch.full(effect.shape[:2], math.inf).double(),
        status=status.long(),
        observed_score=torch.ones(effect.shape[0], *effect.shape[2:]).double(),
        unit_ids=torch.unique(torch.cat([m.flatten() for m in masks])) if unit_ids is None else unit_ids,
        feature_mask=masks,
        input_shapes=[(len(effect), m.shape[1], *m.shape[2:]) for m in masks],
        n_forwards=1,
        inputs_are_tuple=len(masks) > 1,
        output_axes=axes,
    )


def row(unit_values, error=0.01, status=None, **options):
    """Blocks of 4 x 4 in a row; the RoI is the middle one."""
    count = len(unit_values)
    status = [EXCLUDED if u == count // 2 else 0 for u in range(count)] if status is None else status
    statistics = make(unit_values, error, regions.grid((4, 4 * count), 4), status, **options)
    return statistics, regions.box((4, 4 * count), (0, count // 2 * 4), 4)


# ---------------------------------------------------------------------------------------------------------------- by hand


def test_a_row_of_blocks_by_hand():
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    profile = perception_profile(statistics, roi)
    assert profile.units["unit"].tolist() == [0, 1, 3, 4]
    assert profile.units["distance"].tolist() == [5, 1, 1, 5]
    assert profile.units["bin"].tolist() == [2, 1, 1, 2]
    assert profile.units["displacement_0"].tolist() == [0] * 4
    assert profile.units["displacement_1"].tolist() == [-8, -4, 4, 8]
    assert profile.units["role"].tolist() == ["supporting", "harming", "supporting", "null"]
    assert profile.bin_width == 4
    assert profile.distance_unit == "pixel"
    assert profile.counts == {"supporting": 2, "harming": 1, "null": 1}
    assert profile.shares == {"supporting": 0.5, "harming": 0.25, "null": 0.25}
    assert (profile.supporting_mass, profile.harming_mass, profile.mass) == pytest.approx((0.5, 0.2, 0.7))

    near, far = profile.by_distance.to_dict("records")
    noise = 2 * 0.01 * math.sqrt(2 / math.pi)
    energy = 0.2**2 + 0.4**2 - 2 * 0.01**2
    spread = math.sqrt(4 * (0.2**2 + 0.4**2) * 0.01**2 - 2 * 2 * 0.01**4)
    expected = {
        **{"bin": 1, "lower": 0, "upper": 4, "n_units": 2, "n_nonzero": 2, "mass": 0.6, "supporting_mass": 0.4},
        **{"harming_mass": 0.2, "mean_absolute_effect": 0.3, "mean_absolute_effect_nonzero": 0.3, "noise_mass": noise},
        **{"energy": energy, "energy_standard_error": spread, "share": 6 / 7, "cumulative_share": 6 / 7},
    }
    assert near == pytest.approx(expected)
    assert (far["lower"], far["upper"], far["n_units"], far["n_nonzero"]) == (4, 8, 2, 1)
    assert far["mean_absolute_effect"] == pytest.approx(0.05)
    assert far["mean_absolute_effect_nonzero"] == pytest.approx(0.1)
    assert far["cumulative_share"] == pytest.approx(1)

    sides = profile.by_direction.set_index(["axis", "side"])
    assert sides["n_units"].tolist() == [0, 0, 2, 2]
    assert sides["mass"].tolist() == pytest.approx([0, 0, 0.3, 0.4])
    assert sides["share"].tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert sides.loc[(1, -1), "mean_absolute_effect"] == pytest.approx(0.15)
    assert math.isnan(sides.loc[(0, 1), "mean_absolute_effect"])
    # Displacements along one axis only: there is no second moment across it.
    assert math.isnan(profile.anisotropy)
    # Gini of 0, 0.1, 0.2, 0.4: mean absolute difference over twice the mean.
    sizes = [0.0, 0.1, 0.2, 0.4]
    assert profile.concentration == pytest.approx(np.mean([abs(a - b) for a in sizes for b in sizes]) / (2 * np.mean(sizes)))


def test_the_summary_is_the_profile():
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    profile = perception_profile(statistics, roi)
    assert profile.summary() == pytest.approx(
        {
            **{"n_units": 4, "share_supporting": 0.5, "share_harming": 0.25, "share_null": 0.25},
            **{"mass": 0.7, "supporting_mass": 0.5, "harming_mass": 0.2, "noise_mass": 4 * 0.01 * math.sqrt(2 / math.pi)},
            **{"energy": 0.1**2 + 0.2**2 + 0.4**2 - 4 * 0.01**2, "radius_50": 1, "radius_90": 5, "energy_radius_50": 1},
            **{"mean_distance": (0.6 * 1 + 0.1 * 5) / 0.7, "share_within_1": 6 / 7, "share_within_2": 1},
            **{"share_within_3": 1, "share_within_4": 1, "anisotropy": math.nan, "concentration": profile.concentration},
        },
        nan_ok=True,
    )
    assert all(isinstance(value, float) for value in profile.summary().values())


def test_a_volume_with_spacing_by_hand():
    """Blocks of 2 x 2 x 2 voxels of 1 x 1 x 3 mm in a row along the last axis, the RoI is the first."""
    units, roi = regions.grid((2, 2, 8), 2), regions.box((2, 2, 8), 0, 2)
    statistics = make([0.0, 0.3, 0.2, 0.1], 0.0, units, [EXCLUDED, 0, 0, 0])
    profile = perception_profile(statistics, roi, spacing=(1, 1, 3.0))
    assert profile.units["distance"].tolist() == [3, 9, 15]
    assert profile.units["displacement_2"].tolist() == [6, 12, 18]
    assert profile.bin_width == 6
    assert profile.distance_unit == "spacing"
    assert profile.units["bin"].tolist() == [1, 2, 3]
    assert profile.radius(0.5) == 3
    assert profile.radius(0.51) == 9

    in_mm = perception_profile(statistics, roi, spacing=(1, 1, 3.0), length_unit="mm")
    assert in_mm.distance_unit == "mm"
    axes = plot_profile(in_mm).axes[2]
    assert axes.get_xlabel() == "distance from the region of interest (mm)"
    assert axes.get_title() == "Half of the mass lies within 3 mm, 90 % within 15 mm"
    assert plot_profile(profile).axes[2].get_title() == "Half of the mass lies within 3, 90 % within 15"
    with pytest.raises(ValueError, match="length_unit: it is the unit of spacing, which was not given; got 'mm'"):
        perception_profile(statistics, roi, length_unit="mm")

    in_bins = perception_profile(statistics, roi, spacing=(1, 1, 3.0), bin_width=(2, 2, 6))
    assert in_bins.units["distance"].tolist() == [0.5, 1.5, 2.5]
    assert in_bins.units["bin"].tolist() == [1, 2, 3]
    assert in_bins.units["displacement_2"].tolist() == [6, 12, 18]
    assert (in_bins.bin_width, in_bins.distance_unit) == (1, "bin")

    narrow = perception_profile(statistics, roi, spacing=3, bin_width=3.0)
    assert narrow.units["distance"].tolist() == [3, 9, 15]
    assert narrow.by_distance["bin"].tolist() == [1, 2, 3, 4, 5]
    assert narrow.by_distance["n_units"].tolist() == [1, 0, 1, 0, 1]
    assert narrow.by_distance["mass"].tolist() == pytest.approx([0.3, 0, 0.2, 0, 0.1])
    assert narrow.by_distance["noise_mass"].tolist() == [0] * 5
    assert narrow.by_distance["mean_absolute_effect"].isna().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(("metric", "distance"), [("chebyshev", 2), ("euclidean", math.sqrt(5)), ("cityblock", 3)])
def test_metrics(metric, distance):
    effects = np.zeros((3, 4))
    roi = np.zeros((3, 4), bool)
    roi[0, 0] = True
    profile = profile_of_map(effects, roi, block_size=1, metric=metric)
    assert float(profile.units.set_index("unit").loc[1 * 4 + 2, "distance"]) == pytest.approx(distance)


def test_bins_of_a_width_that_binary_fractions_do_not_hit():
    """3 * 0.1 > 0.3 in floating point: it is in the third bin all the same."""
    profile = profile_of_map(np.ones((1, 8)), regions.box((1, 8), 0, 1), block_size=1, spacing=0.1)
    assert profile.units["bin"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_the_block_edge_is_that_of_most_units():
    """12 pixels in blocks of 8 leave one of 4: a bin is 8 wide."""
    roi = regions.box((12, 12), 0, 8)
    assert profile_of_map(np.zeros((12, 12)), roi, block_size=8).bin_width == 8
    assert profile_of_map(np.zeros((12, 12)), roi, feature_mask=regions.grid((12, 12), (8, 4))).bin_width == 8


def test_an_roi_off_the_grid():
    """Units that it touches are left out; distances count from its pixels, not from the grid."""
    roi = regions.box((4, 20), (0, 10), (4, 3))  # columns 10, 11, 12: blocks 2 and 3
    profile = profile_of_map(np.ones((4, 20)), roi, block_size=4)
    assert profile.units["unit"].tolist() == [0, 1, 4]
    assert profile.units["distance"].tolist() == [7, 3, 4]
    assert profile.units["displacement_1"].tolist() == [1.5 - 11, 5.5 - 11, 17.5 - 11]


def test_units_on_a_diagonal_are_divided_and_one_at_the_center_has_no_direction():
    """3 x 3 pixels around an RoI of one; then the ring as RoI, with the one pixel that is left at its center."""
    effects = np.arange(9.0).reshape(3, 3)
    effects[1, 1] = 0
    roi = np.zeros((3, 3), bool)
    roi[1, 1] = True
    sides = profile_of_map(effects, roi, block_size=1).by_direction
    # Corners 0, 2, 6, 8 count half on either side; 1 is above, 7 below, 3 left, 5 right.
    assert sides["n_units"].tolist() == [2, 2, 2, 2]
    assert sides["mass"].tolist() == [0 + 1 + 1, 3 + 7 + 4, 0 + 3 + 3, 1 + 5 + 4]
    assert float(sides["share"].sum()) == pytest.approx(1)

    ring = ~roi
    inside = profile_of_map(np.ones((3, 3)), ring, block_size=1).by_direction
    assert inside["n_units"].tolist() == [0, 0, 0, 0]
    assert inside["mass"].tolist() == [0, 0, 0, 0]


# --------------------------------------------------------------------------------------------------------- against brute force


@st.composite
def scenes(draw):
    shape = draw(
        st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 4)] * 3), st.tuples(st.integers(2, 9)))
    )
    pixels = math.prod(shape)
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=pixels, max_size=pixels))).reshape(shape) * 3
    inside = np.zeros(pixels, bool)
    inside[draw(st.lists(st.integers(0, pixels - 1), min_size=1, max_size=4))] = True
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 2.5])] * len(shape)))
    return labels, inside.reshape(shape), spacing


@settings(max_examples=40)
@given(scenes(), st.sampled_from(["chebyshev", "euclidean", "cityblock"]))
def test_distances_and_displacements_are_those_of_a_loop_over_all_pixels(scene, metric):
    labels, roi, spacing = scene
    norms = {"chebyshev": max, "euclidean": lambda d: math.sqrt(sum(x * x for x in d)), "cityblock": sum}

    def distance(a, b):
        return norms[metric]([abs(x - y) * s for x, y, s in zip(a, b, spacing)])

    goal = [tuple(p) for p in np.argwhere(roi)]
    nearest = np.array([min(distance(p, q) for q in goal) for p in np.ndindex(roi.shape)]).reshape(roi.shape)
    np.testing.assert_allclose(distance_to(roi, np.array(spacing), metric), nearest, atol=1e-12)
    free = [u for u in np.unique(labels) if not roi[labels == u].any()]
    if not free:
        with pytest.raises(ValueError, match="every unit touches the RoI"):
            profile_of_map(labels * 1.0, roi, feature_mask=labels)
        return
    profile = profile_of_map(labels * 1.0, roi, feature_mask=labels, spacing=spacing, metric=metric)
    assert profile.units["unit"].tolist() == free
    assert profile.units["effect"].tolist() == free
    np.testing.assert_allclose(profile.units["distance"], [nearest[labels == u].min() for u in free], atol=1e-12)
    middle = np.argwhere(roi).mean(0)
    for axis, step in enumerate(spacing):
        centers = [(np.argwhere(labels == u).mean(0) - middle)[axis] * step for u in free]
        np.testing.assert_allclose(profile.units[f"displacement_{axis}"], centers, atol=1e-12)
    assert (profile.units["distance"] <= profile.units["bin"] * profile.bin_width * (1 + 1e-6)).all()
    assert (profile.units["distance"] > (profile.units["bin"] - 1) * profile.bin_width * (1 - 1e-6)).all()


# ------------------------------------------------------------------------------------------------------------- the paper's map


@pytest.mark.skipif(not HEATMAP.exists(), reason="needs the authors' heat map, which is not part of the project")
def test_the_authors_own_map_has_the_papers_numbers():
    """In their sign (positive: replacing the block helps) and points of 100 Dice."""
    with np.load(HEATMAP) as file:
        heatmap = file["heatmap"]
    roi = regions.box((256, 256), start=(72, 88), size=32)
    profile = profile_of_map(-heatmap / 100, roi, block_size=8)
    assert profile.counts["harming"] == 242
    assert profile.counts["supporting"] == 262
    assert len(profile.units) == 1024 - 16
    ring = 100 * profile.by_distance.set_index("bin").loc[1:4, "mean_absolute_effect"]
    assert ring.round(3).tolist() == [0.550, 0.260, 0.092, 0.067]
    assert profile.by_distance["n_units"].tolist()[:4] == [20, 28, 36, 44]
    assert -100 * profile.supporting_mass == pytest.approx(-38.6, abs=0.05)
    assert 100 * profile.harming_mass == pytest.approx(14.2, abs=0.05)
    assert profile.summary()["share_within_3"] == pytest.approx(0.409, abs=0.0005)
    assert profile.radius(0.409) == 17  # the third ring begins two blocks and a pixel away


# ----------------------------------------------------------------------------------------------------- roles and standard errors


def test_roles_follow_benjamini_and_hochberg_by_hand():
    effect = np.array([0.5, -0.4, 0.23, 0.21, 0.05, 0.0])
    freedom = 1000.0
    p = 2 * scipy_stats.t.sf(np.abs(effect) / 0.1, freedom + 3)
    # Step up: the largest k with p_(k) <= 0.05 k / 6. Unit by unit 0.21 would pass too (p = 0.036 > 0.05 * 4 / 6 = 0.033).
    assert [bool(x) for x in np.sort(p) <= 0.05 * np.arange(1, 7) / 6] == [True, True, True, False, False, False]
    assert p[3] < 0.05
    statistics = make(effect, 0.1, np.arange(1, 7)[None], freedom=freedom)
    roi = torch.tensor([[False] * 5 + [True]])
    profile = perception_profile(statistics, roi)
    assert profile.units["role"].tolist() == ["supporting", "harming", "supporting", "null", "null", "null"]
    np.testing.assert_allclose(profile.units["p_value"][:4], p[:4] * 6 / np.arange(1, 5))
    assert ((profile.units["role"] != "null").to_numpy() == statistics.significant(0.05)[0].numpy()).all()
    assert perception_profile(statistics, roi, alpha=0.06).counts == {"supporting": 3, "harming": 1, "null": 2}
    by_sign = perception_profile(statistics, roi, alpha=None)
    assert by_sign.counts == {"supporting": 4, "harming": 1, "null": 1}
    assert by_sign.alpha is None
    # The unit that is the RoI was intervened on here: it has distance 0 and a bin of its own.
    assert profile.units["distance"].tolist() == [5, 4, 3, 2, 1, 0]
    first = profile.by_distance.iloc[0]
    assert (first["bin"], first["lower"], first["upper"], first["n_units"]) == (0, 0, 0, 1)


def test_only_units_that_were_intervened_on_count_and_dropped_ones_count_as_zero():
    status = [0, SCREENED, EXCLUDED, OUTSIDE, ABSENT]
    statistics, roi = row([0.3, 0.001, 0, 0.0, 0], error=0.05, status=status)
    profile = perception_profile(statistics, roi)
    assert profile.units["status"].tolist() == ["ESTIMATED", "SCREENED"]
    assert profile.units["effect"].tolist() == [0.3, 0]
    assert profile.units["standard_error"].tolist() == pytest.approx([0.05, 0])
    assert profile.units["role"].tolist() == ["supporting", "null"]
    assert profile.shares == {"supporting": 0.5, "harming": 0, "null": 0.5}
    assert profile.n_outside == 1
    assert profile.mass == pytest.approx(0.3)
    assert profile.summary()["noise_mass"] == pytest.approx(0.05 * math.sqrt(2 / math.pi))
    assert perception_profile(statistics, roi, alpha=None).counts == {"supporting": 1, "harming": 0, "null": 1}


def test_a_screened_effect_has_no_role_however_small_its_p_value():
    statistics, roi = row([0.3, 0.3, 0, 0.3, 0.3], error=0.01, status=[SCREENED, 0, EXCLUDED, 0, 0])
    assert perception_profile(statistics, roi).units["role"].tolist() == ["null"] + ["supporting"] * 3


def test_infinite_standard_errors_are_null_and_leave_energy_unknown():
    statistics, roi = row([0.3, 0.2, 0, -0.1, 0.1], error=math.inf)
    assert torch.isinf(statistics.standard_error[0, 0])
    profile = perception_profile(statistics, roi)
    assert profile.counts == {"supporting": 0, "harming": 0, "null": 4}
    assert profile.mass == pytest.approx(0.7)
    assert profile.by_distance[["noise_mass", "energy", "energy_standard_error"]].isna().all(axis=None)
    assert math.isnan(profile.radius(0.5, of="energy"))
    assert profile.radius(0.5) == 5  # 0.3 of 0.7 lies at distance 1


def test_one_infinite_standard_error_hides_its_own_bin_only():
    statistics, roi = row([0.3, 0.2, 0, -0.1, 0.1], error=[0.0, 0.0, 0.0, 0.0, math.inf])
    assert statistics.standard_error[0].tolist()[3:] == [0, math.inf]
    table = perception_profile(statistics, roi).by_distance
    assert table["energy"].isna().tolist() == [False, True]
    assert table["noise_mass"].isna().tolist() == [False, True]
    assert math.isnan(perception_profile(statistics, roi).summary()["energy"])


def test_a_drained_bank_is_exact():
    statistics, roi = row([1e-9, 0.0, 0, -1e-9, 0.0], error=0.0)
    profile = perception_profile(statistics, roi)
    assert profile.units["role"].tolist() == ["supporting", "null", "harming", "null"]
    assert profile.summary()["noise_mass"] == 0
    assert profile.summary()["energy"] == pytest.approx(2e-18)


# ------------------------------------------------------------------------------------------------------------------ by simulation


def test_noise_mass_is_the_mass_of_units_without_effects():
    generator = np.random.default_rng(0)
    error = generator.uniform(0.01, 0.1, 20000)
    effect = error * generator.standard_normal(20000)
    units = np.arange(20001).reshape(1, -1)
    statistics = make([*effect, 0], [*error, 1], units, [*[0] * 20000, EXCLUDED])
    profile = perception_profile(statistics, torch.from_numpy(units == 20000), bin_width=20000.0)
    (table,) = profile.by_distance.to_dict("records")
    # Var |N(0, se)| = se^2 (1 - 2 / pi)
    spread = math.sqrt((error**2).sum() * (1 - 2 / math.pi))
    assert abs(table["mass"] - table["noise_mass"]) < 3 * spread
    assert abs(table["energy"]) < 3 * math.sqrt(2 * (error**4).sum())
    assert profile.summary()["noise_mass"] == pytest.approx(error.sum() * math.sqrt(2 / math.pi))


def test_energy_is_unbiased_and_its_standard_error_is_its_scatter():
    generator = np.random.default_rng(1)
    truth = np.repeat([0.0, 0.02, -0.1, 0.3], 50)
    error = np.tile([0.02, 0.05], 100)
    units = np.arange(201)[None]
    roi = torch.from_numpy(units == 200)
    found, said, plain = [], [], []
    for _ in range(120):
        effect = truth + error * generator.standard_normal(200)
        statistics = make([*effect, 0], [*error, 1], units, [*[0] * 200, EXCLUDED])
        table = perception_profile(statistics, roi, bin_width=200.0, alpha=None).by_distance
        found.append(table["energy"].item())
        said.append(table["energy_standard_error"].item() ** 2)
        plain.append((effect**2).sum())
    exact = math.sqrt((4 * truth**2 * error**2 + 2 * error**4).sum())
    assert abs(np.mean(found) - (truth**2).sum()) < 3 * exact / math.sqrt(120)
    assert abs(np.mean(plain) - (truth**2).sum()) > 3 * exact / math.sqrt(120)
    assert math.sqrt(np.mean(said)) == pytest.approx(exact, rel=0.05)
    assert np.std(found) == pytest.approx(exact, rel=0.2)


# ------------------------------------------------------------------------------------------------------------------------- radius


def test_radius_is_the_smallest_distance_that_holds_the_share():
    effects = np.array([[0.0, 0.1, -0.2, 0.3, 0.4]])
    profile = profile_of_map(effects, np.array([[True, False, False, False, False]]), block_size=1)
    assert [profile.radius(s) for s in (1e-9, 0.1, 0.11, 0.3, 0.31, 0.6, 0.61, 1.0)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [profile.radius(s, of="energy") for s in (1 / 30, 0.04, 5 / 30, 14 / 30, 0.5)] == [1, 2, 2, 3, 4]


def test_the_radius_of_all_mass_ignores_units_beyond_it():
    effects = np.array([[0.0, 0.1, 0.2, 0.0, 0.0]])
    assert profile_of_map(effects, np.array([[True, False, False, False, False]]), block_size=1).radius(1.0) == 2


def test_energies_at_one_distance_count_together():
    """At distance 1 one unit has +0.16, the other -1: together less than nothing. All energy is at distance 5."""
    statistics, roi = row([2.0, 0.4, 0, 0.0, 0.0], error=[0.0, 0.0, 1.0, 1.0, 0.0])
    profile = perception_profile(statistics, roi)
    assert profile.by_distance["energy"].tolist() == pytest.approx([0.16 - 1, 4])
    assert profile.radius(0.01, of="energy") == 5


def test_without_mass_or_energy_there_is_no_radius():
    statistics, roi = row([0.0] * 5)
    profile = perception_profile(statistics, roi)
    assert profile.counts == {"supporting": 0, "harming": 0, "null": 4}
    assert math.isnan(profile.radius())
    assert math.isnan(profile.radius(of="energy"))  # it is negative
    assert profile.by_distance["energy"].sum() < 0
    assert math.isnan(profile.anisotropy)
    assert math.isnan(profile.concentration)
    assert profile.by_distance["share"].isna().all()
    summary = profile.summary()
    missing = {name for name, value in summary.items() if math.isnan(value)}
    within = {f"share_within_{k}" for k in (1, 2, 3, 4)}
    assert missing == {"radius_50", "radius_90", "energy_radius_50", "mean_distance", "anisotropy", "concentration"} | within


def test_a_single_unit():
    profile = profile_of_map(np.array([[0.0, -0.5]]), np.array([[True, False]]), block_size=1)
    assert profile.counts == {"supporting": 0, "harming": 1, "null": 0}
    assert (profile.radius(0.5), profile.concentration) == (1, 0)
    assert math.isnan(profile.anisotropy)
    assert profile.by_distance["share"].tolist() == [1]


# ------------------------------------------------------------------------------------------------- anisotropy and concentration


@pytest.mark.parametrize("axes", [2, 3])
def test_anisotropy_is_the_fractional_anisotropy_of_diffusion_imaging(axes):
    """Blocks around the RoI in the middle; mass on the axes' blocks alone, by hand."""
    shape = (3,) * axes
    weights = [0.5, 0.2, 0.1][:axes]
    effects, roi = np.zeros(shape), np.zeros(shape, bool)
    roi[(1,) * axes] = True
    for axis, weight in enumerate(weights):
        for side in (0, 2):
            effects[tuple(side if a == axis else 1 for a in range(axes))] = weight if side else -weight
    profile = profile_of_map(effects, roi, block_size=1)
    # Evenly spread mass has the same second moment along each axis, so that whitening is a factor.
    l1, l2, *l3 = weights
    if l3:
        squares = (l1 - l2) ** 2 + (l2 - l3[0]) ** 2 + (l3[0] - l1) ** 2
        expected = math.sqrt(0.5 * squares / (l1**2 + l2**2 + l3[0] ** 2))
    else:
        expected = abs(l1 - l2) / math.sqrt(l1**2 + l2**2)
    assert profile.anisotropy == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "center"), [((9, 31), (4, 10)), ((25, 7), (3, 0)), ((5, 9, 14), (2, 8, 3))])
def test_mass_that_depends_on_the_distance_alone_is_isotropic_wherever_the_roi_lies(shape, center):
    roi = np.zeros(shape, bool)
    roi[center] = True
    fall = np.exp(-distance_to(roi, np.ones(len(shape)), "chebyshev") / 2)
    assert profile_of_map(fall, roi, block_size=1).anisotropy == pytest.approx(0, abs=1e-6)
    # A second moment in units of that of even mass over the image would call it directed.
    along = np.indices(shape)[int(np.argmax(shape))]
    beam = np.where(
        np.abs(np.indices(shape) - np.reshape(center, (-1,) + (1,) * len(shape))).sum(0) == np.abs(along - along[center]), 1, 0
    )
    assert profile_of_map(beam * 1.0, roi, block_size=1).anisotropy == pytest.approx(1, abs=1e-6)


def test_units_that_are_alone_in_their_bins_say_nothing_about_direction():
    units = np.array([[0, 1, 9], [9, 9, 9], [2, 9, 9]])
    effects = np.where(units == 1, 1.0, 0.0)
    roi = units == 0
    profile = profile_of_map(np.where(units == 2, 1.0, effects), roi, feature_mask=units, bin_width=1.0)
    assert sorted(profile.units["bin"]) == [1, 1, 2]
    alone = profile_of_map(np.where(units == 9, np.nan, effects), roi, feature_mask=units, bin_width=1.0)
    assert math.isnan(alone.anisotropy)


@pytest.mark.parametrize(
    ("effects", "gini"), [([1, 1, 1, 1], 0), ([0, 0, 0, 1], 0.75), ([1, -3], 0.25), ([0.5], 0), ([0, 0], math.nan)]
)
def test_concentration_is_the_gini_coefficient(effects, gini):
    values = np.array([[0.0, *effects]])
    roi = np.arange(values.size)[None] == 0
    assert profile_of_map(values, roi, block_size=1).concentration == pytest.approx(gini, nan_ok=True)


# ------------------------------------------------------------------------------------------------- examples, masks, inputs, outputs


def test_examples_with_masks_of_their_own_are_profiled_as_if_alone():
    masks = torch.stack([regions.grid((4, 12), 4), regions.grid((4, 12), (4, 6))])[:, None]
    effect = [[0.1, 0.2, 0.3], [-0.4, 0.5, 0.0]]
    status = [[EXCLUDED, 0, 0], [0, 0, ABSENT]]
    both = make(effect, 0.01, masks, status, whole_masks=True)
    roi = regions.box((4, 12), 0, 1)
    for n, units, distances in ((0, [1, 2], [4, 8]), (1, [0, 1], [0, 6])):
        profile = perception_profile(both, roi, example=n)
        assert profile.units["unit"].tolist() == units
        assert profile.units["distance"].tolist() == distances
        own = {"whole_masks": True, "unit_ids": both.unit_ids}
        alone = make(effect[n : n + 1], 0.01, masks[n : n + 1], status[n : n + 1], **own)
        assert perception_profile(alone, roi).summary() == pytest.approx(profile.summary(), nan_ok=True)
    assert perception_profile(both, roi, example=1).bin_width == 6


def test_units_of_several_channels_and_broadcast_axes():
    """One channel has columns as units, the other rows; a mask's axis of length 1 stands for the whole axis."""
    columns, rows = np.broadcast_to([0, 1, 2], (2, 3)), np.array([[3] * 3, [4] * 3])
    statistics = make([0.1, 0.2, 0.3, 0.4, 0.5], 0.0, np.stack([columns, rows])[None], whole_masks=True)
    roi = np.array([[True, False, False], [False, False, False]])
    profile = perception_profile(statistics, roi)
    assert profile.units["distance"].tolist() == [0, 1, 2, 0, 1]
    assert profile.units["displacement_0"].tolist() == [0.5, 0.5, 0.5, 0, 1]
    assert profile.units["displacement_1"].tolist() == [0, 1, 2, 1, 1]

    narrow = make([0.1, 0.2, 0.3], 0.0, np.array([0, 1, 2]).reshape(1, 1, 1, 3), whole_masks=True)
    narrow.input_shapes = ((1, 1, 2, 3),)
    wide = make([0.1, 0.2, 0.3], 0.0, np.array(columns))
    assert perception_profile(narrow, roi).units.equals(perception_profile(wide, roi).units)


def test_units_of_other_inputs_are_left_out():
    statistics = make([0.1, 0.2, 0.3, 0.4], 0.0, np.array([[0, 1, 1]]), extra_masks=[np.array([[1, 2, 3]])])
    profile = perception_profile(statistics, np.array([[True, False, False]]))
    assert profile.units["unit"].tolist() == [0, 1]
    assert profile.mass == pytest.approx(0.3)


def test_the_target_picks_the_output():
    effect = np.arange(1, 13).reshape(1, 3, 2, 2) / 100
    statistics = make(effect, 0.0, np.array([[0, 1, 2]]), axes=("class", "roi"))
    roi = np.array([[True, False, False]])
    for c, r in itertools.product(range(2), range(2)):
        profile = perception_profile(statistics, roi, (c, r))
        assert profile.units["effect"].tolist() == effect[0, :, c, r].tolist()
    with pytest.raises(ValueError, match="target: the forward function has 4 outputs"):
        perception_profile(statistics, roi)


@pytest.mark.parametrize("spatial", [(24, 16), (12, 8, 8)])
def test_a_real_attribution_and_its_map_have_the_same_profile(spatial):
    """From the face to the profile, in 2D and 3D; alpha=None and the painted map must agree."""
    torch.manual_seed(3)
    convolution = torch.nn.Conv2d if len(spatial) == 2 else torch.nn.Conv3d
    image, images = torch.rand(2, 1, *spatial), torch.rand(6, 1, *spatial)
    roi = regions.box(spatial, [length // 2 for length in spatial], 4)
    target = SegmentationTarget.from_prediction(convolution(1, 1, 5, padding=2), image, roi=roi, metric="probability_mean")
    attr, statistics = AverageTreatmentEffect(target).attribute(
        image, baselines=PatchBank(images), block_size=4, n_draws=6, n_screening_draws=0, return_statistics=True
    )
    for n in range(2):
        profile = perception_profile(statistics, roi, example=n, alpha=None)
        # The map in double precision, NaN on excluded units; those out of reach are no part of the profile.
        painted, status = statistics.to_map("effect")[n, 0], statistics.to_map("status")[n, 0]
        of_map = profile_of_map(torch.where(status == OUTSIDE, torch.nan, painted), roi, block_size=4)
        assert profile.units.drop(columns=["status", "standard_error", "p_value"]).equals(
            of_map.units.drop(columns=["status", "standard_error", "p_value"])
        )
        assert profile.counts == of_map.counts
        assert (profile.mass, profile.radius()) == (of_map.mass, of_map.radius())
        assert profile.summary()["share_within_1"] == pytest.approx(1)  # the convolution reaches 2 pixels far
        assert float(attr[n].abs().amax()) == pytest.approx(profile.units["effect"].abs().max())
        again = perception_profile(statistics, roi.numpy(), example=n, alpha=None)
        assert again.summary() == pytest.approx(profile.summary(), nan_ok=True, rel=0)


def test_a_map_knows_no_errors():
    effects = torch.tensor([[0.3, 0.3, math.nan, math.nan, 0.0, 0.0, -0.1, -0.1]], requires_grad=True)
    profile = profile_of_map(effects, torch.tensor([[False, False, True] + [False] * 5]), block_size=(1, 2))
    assert profile.units["unit"].tolist() == [0, 2, 3]
    assert profile.units["role"].tolist() == ["supporting", "null", "harming"]
    assert profile.alpha is None
    assert profile.units[["standard_error", "p_value"]].isna().all(axis=None)
    assert profile.by_distance["noise_mass"].isna().all()
    assert profile.by_distance["energy_standard_error"].isna().all()
    assert profile.by_distance["energy"].sum() == pytest.approx(0.09 + 0.01)
    assert math.isnan(profile.summary()["noise_mass"])
    assert profile.radius(0.9, of="energy") == 1


# --------------------------------------------------------------------------------------------------------------------- influence


def grouped_statistics():
    """Six units in two rows of three, two RoIs; unit 0 touches RoI 0, units 4 and 5 touch RoI 1."""
    effect = np.array([[[0.0, 0.1], [0.2, 0.3], [0.4, -0.5], [0.6, 0.7], [0.8, 0.0], [1.0, 0.0]]])
    error = np.array([[[1.0, 0.1], [0.1, 0.2], [0.3, 0.1], [0.1, 0.3], [0.4, 1.0], [0.1, 1.0]]])
    status = np.zeros((1, 6, 2))
    status[0, 0, 0] = status[0, 4:, 1] = EXCLUDED
    return make(effect, error, regions.grid((4, 6), 2), status, axes=("roi",)), effect, error


def test_the_influence_of_units_is_what_the_statistics_hold():
    statistics, _, _ = grouped_statistics()
    matrix = influence_matrix(statistics)
    np.testing.assert_array_equal(matrix.effect, statistics.effect[0])
    np.testing.assert_array_equal(matrix.standard_error, statistics.standard_error[0])
    np.testing.assert_array_equal(matrix.significant, statistics.significant()[0])
    assert matrix.effect.isna().to_numpy().nonzero()[0].tolist() == [0, 4, 5]
    assert (matrix.effect.index.name, matrix.effect.columns.name) == ("unit", "roi")
    assert matrix.effect.index.tolist() == [0, 1, 2, 3, 4, 5]


def test_regions_have_the_mean_effect_of_their_units_by_hand():
    """Columns 0..2 are region 7, the rest region 3: blocks 0, 3 lie in 7; 1, 4 half and half (to the smaller: 3); 2, 5 in 3."""
    statistics, effect, error = grouped_statistics()
    areas = np.where(np.arange(6) < 3, 7, 3) * np.ones((4, 1), dtype=int)
    matrix = influence_matrix(statistics, regions=torch.from_numpy(areas))
    assert matrix.effect.index.tolist() == [3, 7]
    assert matrix.effect.index.name == "region"
    members = {(3, 0): [1, 2, 4, 5], (7, 0): [3], (3, 1): [1, 2], (7, 1): [0, 3]}
    p_values = {}
    for (area, r), own in members.items():
        mean = sum(effect[0, u, r] for u in own) / len(own)
        variances = [error[0, u, r] ** 2 for u in own]
        spread = math.sqrt(sum(variances)) / len(own)
        assert matrix.effect.loc[area, r] == pytest.approx(mean)
        assert matrix.standard_error.loc[area, r] == pytest.approx(spread)
        freedom = sum(variances) ** 2 / sum(v**2 / 103 for v in variances)
        p_values[area, r] = 2 * scipy_stats.t.sf(abs(mean) / spread, freedom)
    for r in range(2):
        low, high = sorted([p_values[3, r], p_values[7, r]])
        for area in (3, 7):
            p = p_values[area, r]
            assert bool(matrix.significant.loc[area, r]) == (
                p <= 0.05 and (p == low or high <= 0.05) and (p <= 0.025 or high <= 0.05)
            )
    assert matrix.significant.to_numpy().tolist() == [[True, False], [True, True]]


def test_a_region_that_touches_an_roi_everywhere_is_unknown_and_an_exact_one_is_certain():
    effect = np.array([[[0.0, 0.1], [0.0, 0.2], [1e-9, 0.0]]])
    status = np.zeros((1, 3, 2))
    status[0, 0, 0] = EXCLUDED
    statistics = make(effect, 0.0, np.array([[0, 1, 2]]), status, axes=("roi",))
    matrix = influence_matrix(statistics, regions=np.array([[0, 1, 2]]))
    assert matrix.effect.isna().to_numpy().tolist() == [[True, False], [False, False], [False, False]]
    assert matrix.standard_error.isna().to_numpy().tolist() == [[True, False], [False, False], [False, False]]
    assert matrix.significant.to_numpy().tolist() == [[False, True], [False, True], [True, False]]


def test_infinite_standard_errors_of_regions_are_not_significant():
    statistics = make(np.full((1, 2, 2), 0.5), math.inf, np.array([[0, 1]]), axes=("roi",))
    matrix = influence_matrix(statistics, regions=np.array([[0, 0]]))
    assert np.isinf(matrix.standard_error).all(axis=None)
    assert not matrix.significant.any(axis=None)


def test_influence_of_a_class_of_one_example():
    """Two classes, two RoIs, two examples with masks of their own, through the face."""
    torch.manual_seed(5)
    image, rois = torch.rand(2, 1, 16, 16), torch.stack([regions.box((16, 16), s, 4) for s in (0, 12)])
    target = SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 7, padding=3), image, roi=rois, metric="probability_mean")
    masks = torch.stack([regions.grid((16, 16), 4), regions.grid((16, 16), 8)])[:, None]
    _, statistics = AverageTreatmentEffect(target).attribute(
        *(image, PatchBank(torch.rand(5, 1, 16, 16)), (1, 0)), feature_mask=masks, n_draws=5, return_statistics=True
    )
    for n, c in itertools.product(range(2), range(2)):
        matrix = influence_matrix(statistics, c, example=n)
        count = (16, 4)[n]
        assert matrix.effect.shape == (count, 2)
        np.testing.assert_array_equal(matrix.effect, statistics.effect[n, :count, c])
        np.testing.assert_array_equal(matrix.significant, statistics.significant()[n, :count, c])
        assert matrix.effect.isna().to_numpy().nonzero()[0].tolist() == [0, count - 1]


# -------------------------------------------------------------------------------------------------------------------------- pictures


def colors_of(patches):
    return [tuple(round(x, 3) for x in p.get_facecolor()[:3]) for p in patches]


RED, BLUE = (0.698, 0.094, 0.169), (0.129, 0.4, 0.675)


def test_the_pictures_of_a_profile_show_its_numbers(tmp_path):
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    profile = perception_profile(statistics, roi)
    figure = plot_profile(profile, title="a title", score_name="Dice")
    figure.savefig(tmp_path / "profile.png")
    pie, histogram, distance, ratio, *_ = sorted(
        figure.axes, key=lambda a: ["4 u", "3 e", "Hal", "Sup", ""].index(a.get_title()[:3])
    )
    assert figure.get_suptitle() == "a title"
    assert [t.get_text() for t in pie.get_legend().get_texts()] == [
        "supporting: 2 (50.0 %)",
        "harming: 1 (25.0 %)",
        "null: 1 (25.0 %)",
    ]
    assert colors_of(pie.patches)[:2] == [RED, BLUE]
    assert [p.theta2 - p.theta1 for p in pie.patches] == pytest.approx([180, 90, 90], abs=1e-4)
    assert [t.get_text() for t in ratio.texts] == ["71.4 %", "28.6 %"]
    assert [p.get_width() for p in ratio.patches] == pytest.approx([5 / 7, 2 / 7])
    assert histogram.get_xlabel() == "effect on the Dice"
    heights = dict.fromkeys((RED, BLUE), 0.0)
    for patch, color in zip(histogram.patches, colors_of(histogram.patches)):
        heights[color] += patch.get_height()
        if patch.get_height():
            assert (patch.get_x() + patch.get_width() / 2 > 0) == (color == RED)
    assert heights == {RED: 2, BLUE: 1}
    bars = [p for p in distance.patches if p.__class__.__name__ == "Rectangle"]
    assert [p.get_height() for p in bars] == pytest.approx([0.4, 0.1, 0.2, 0.0])
    assert [p.get_x() + p.get_width() / 2 for p in bars] == pytest.approx([2, 6, 2, 6])
    assert [p.get_y() for p in bars] == pytest.approx([0, 0, 0.4, 0.1])
    assert distance.get_title() == "Half of the mass lies within 1, 90 % within 5"
    assert distance.get_xlabel() == "distance from the region of interest (pixels)"
    assert "noise alone" in words_of_legend(figure)


def words_of_legend(figure):
    """Of the panel of distances; it belongs to the second axis, so that the line does not cross it."""
    second = next(a for a in figure.axes if a.get_ylabel().startswith("share of the mass"))
    return [t.get_text() for t in second.get_legend().get_texts()]


def test_the_legend_of_distances_lies_on_white_above_bars_and_line():
    """Bars have its own colors: on them its entries could not be seen."""
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    figure = plot_profile(perception_profile(statistics, roi))
    last = figure.axes[-1]
    assert last.get_ylabel().startswith("share of the mass")
    assert last.get_legend().get_frame_on()
    assert last.get_legend().get_frame().get_alpha() >= 0.9
    assert last.get_zorder() >= max(a.get_zorder() for a in figure.axes)


@pytest.mark.parametrize("effects", [[[0.0, 0.0, 0.0]], [[0.0, 1e-7, 0.0]], [[0.0, 3e4, -0.1]]])
def test_pictures_of_odd_profiles_can_be_drawn(effects, tmp_path):
    profile = profile_of_map(np.array(effects), np.array([[True, False, False]]), block_size=1, bin_width=(1, 2))
    figure = plot_profile(profile)
    figure.savefig(tmp_path / "profile.png")
    distance = next(a for a in figure.axes if a.get_xlabel().startswith("distance"))
    assert distance.get_xlabel().endswith("(bins)")
    assert "noise alone" not in words_of_legend(figure)


def test_the_picture_of_influence_marks_what_is_significant_and_hatches_what_is_unknown(tmp_path):
    statistics, _, _ = grouped_statistics()
    figure = plot_influence(influence_matrix(statistics), title="a title", roi_names=["left", "right"])
    figure.savefig(tmp_path / "influence.png")
    axes = figure.axes[0]
    # Standard errors 0.1 and 0.2 against 0.2 and 0.3: not significant; 0.4 / 0.3 neither.
    shown = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert shown == {
        **{(1, 0): "0.1", (0, 1): "0.2", (1, 1): "0.3", (0, 2): "0.4", (1, 2): "-0.5*"},
        **{(0, 3): "0.6*", (1, 3): "0.7*", (0, 4): "0.8", (0, 5): "1.0*"},
    }
    assert [t.get_text() for t in axes.get_xticklabels()] == ["left", "right"]
    assert axes.get_ylabel() == "unit"
    assert axes.patch.get_hatch() == "////"
    assert axes.images[0].norm.vcenter == 0
    assert axes.images[0].norm.vmax == -axes.images[0].norm.vmin == pytest.approx(1)
    assert axes.images[0].get_array().mask.sum() == 3
    red, _, blue = axes.images[0].to_rgba(np.array([[1.0, 0.0, -1.0]]))[0, :, :3].argmax(-1)
    assert (red, blue) == (0, 2)
    assert "hatched" in figure.get_supxlabel()


def test_large_influence_matrices_have_dots_for_numbers(tmp_path):
    effect = np.linspace(-1, 1, 200).reshape(1, 100, 2)
    statistics = make(effect, 0.2, np.arange(100)[None], axes=("roi",))
    matrix = influence_matrix(statistics)
    figure = plot_influence(matrix)
    figure.savefig(tmp_path / "influence.png")
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    assert len(axes.lines) == int(matrix.significant.to_numpy().sum()) > 0
    assert axes.get_ylabel() == "unit (100 of them)"
    assert figure.get_supxlabel() == "dot: significant"


def test_no_negative_zeros_in_the_picture():
    statistics = make(np.array([[[-1e-9, 0.0], [0.5, -0.5]]]), 1.0, np.array([[0, 1]]), axes=("roi",))
    texts = [t.get_text() for t in plot_influence(influence_matrix(statistics)).axes[0].texts]
    assert texts == ["0.00", "0", "0.50", "-0.50"]


# ------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"statistics": 3}, TypeError, "statistics: expected TreatmentEffectStatistics, got int"),
        ({"roi": torch.ones(4, 3) > 0}, ValueError, r"roi: expected one mask of the spatial shape \(4, 20\), got \(4, 3\)"),
        ({"roi": torch.zeros(4, 20)}, ValueError, "roi: it is empty"),
        ({"roi": torch.full((4, 20), 2)}, ValueError, "roi: expected a boolean mask"),
        ({"roi": [[True]]}, TypeError, "roi: expected a tensor or an array of real numbers, got list"),
        ({"example": 1}, ValueError, "example: expected an integer from 0 to 0, got 1"),
        ({"example": True}, ValueError, "example: expected an integer"),
        ({"alpha": 1.5}, ValueError, "alpha: expected a number between 0 and 1, got 1.5"),
        ({"spacing": (1, 2, 3)}, ValueError, r"spacing: expected one positive number or 2 of them .* got \(1, 2, 3\)"),
        ({"spacing": 0}, ValueError, "spacing: expected a positive number"),
        ({"spacing": math.nan}, ValueError, "spacing: expected a positive number"),
        ({"bin_width": -1.0}, ValueError, "bin_width: expected a positive number, got -1.0"),
        ({"bin_width": (1.0, math.inf)}, ValueError, r"bin_width\[1\]: expected a positive number, got inf"),
        ({"metric": "taxi"}, ValueError, "metric: expected .*\"cityblock\", got 'taxi'"),
        ({"target": 0}, ValueError, "target: 0 does not pick one of 1 outputs"),
    ],
)
def test_bad_input_of_perception_profile(options, error, message):
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    with pytest.raises(error, match=message):
        perception_profile(**({"statistics": statistics, "roi": roi} | options))


def test_nothing_to_profile():
    statistics, roi = row([0.1] * 5, status=[EXCLUDED] * 5)
    with pytest.raises(ValueError, match="statistics: no unit of example 0 was intervened on, all are excluded"):
        perception_profile(statistics, roi)
    statistics, roi = row([0.0] * 5, status=[OUTSIDE] * 2 + [EXCLUDED] + [OUTSIDE] * 2)
    with pytest.raises(ValueError, match="was intervened on, none can reach the RoI through the model"):
        perception_profile(statistics, roi)
    other = make([0.1, 0.2], 0.0, np.array([[0]]), [EXCLUDED, 0], extra_masks=[np.array([[1]])])
    with pytest.raises(ValueError, match="statistics: no unit of the first input was intervened on"):
        perception_profile(other, np.array([[True]]))
    flat = make([0.1, 0.2], 0.0, np.array([[0, 1]]))
    flat.input_shapes = ((1, 2),)
    with pytest.raises(ValueError, match="statistics: the first input has no spatial axes"):
        perception_profile(flat, np.array(True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block_size": None}, ValueError, "feature_mask, block_size: give one of them"),
        ({"feature_mask": np.zeros((2, 4), int)}, ValueError, "feature_mask, block_size: give one of them"),
        ({"block_size": None, "feature_mask": np.zeros((2, 4))}, TypeError, "feature_mask: expected integers, got float64"),
        (
            {"block_size": None, "feature_mask": np.zeros((2, 3), int)},
            ValueError,
            r"feature_mask: expected the spatial shape \(2, 4\)",
        ),
        ({"block_size": 1.5}, ValueError, "block_size: expected an integer, one per spatial axis or None, got 1.5"),
        ({"block_size": 4}, ValueError, r"block_size: a block of \(4, 4\) is larger than the image"),
        (
            {"effects": np.array([[1.0, 2, 0, 0], [1, 1, 0, 0]])},
            ValueError,
            "effects: expected one number on each unit, unit 0 holds",
        ),
        (
            {"effects": np.array([[1.0, math.nan, 0, 0], [1, 1, 0, 0]])},
            ValueError,
            "effects: expected one number on each unit, unit 0",
        ),
        (
            {"effects": np.array([[math.nan, 1.0, 0, 0], [1, 1, 0, 0]])},
            ValueError,
            "effects: expected one number on each unit, unit 0",
        ),
        ({"effects": np.full((2, 4), math.inf)}, ValueError, "effects: it holds infinite values"),
        ({"effects": np.full((2, 4), "a")}, TypeError, "effects: expected real numbers, got <U1"),
        ({"effects": np.full((2, 4), math.nan)}, ValueError, "effects: every unit touches the RoI or is NaN"),
        ({"roi": np.ones((2, 4), bool)}, ValueError, "effects: every unit touches the RoI or is NaN"),
    ],
)
def test_bad_input_of_profile_of_map(options, error, message):
    arguments = {"effects": np.ones((2, 4)), "roi": regions.box((2, 4), (0, 2), 2), "block_size": 2}
    with pytest.raises(error, match=message):
        profile_of_map(**(arguments | options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "share: expected a finite number of more than 0 and at most 1, got 0"),
        ({"share": 1.01}, "share: expected a finite number of more than 0 and at most 1, got 1.01"),
        ({"of": "units"}, 'of: expected "mass" or "energy", got \'units\''),
    ],
)
def test_bad_input_of_radius(arguments, message):
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    with pytest.raises(ValueError, match=message):
        perception_profile(statistics, roi).radius(**arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"statistics": None}, TypeError, "statistics: expected TreatmentEffectStatistics, got NoneType"),
        ({"target": 0}, ValueError, "target: the statistics have no classes to pick one of, expected None, got 0"),
        ({"alpha": 0}, ValueError, "alpha: expected a number between 0 and 1, got 0"),
        ({"example": -1}, ValueError, "example: expected an integer from 0 to 0, got -1"),
        ({"regions": np.zeros((4, 6))}, TypeError, "regions: expected integers, got float64"),
        ({"regions": np.zeros((6, 4), int)}, ValueError, r"regions: expected the spatial shape \(4, 6\), got \(6, 4\)"),
        ({"regions": "atlas"}, TypeError, "regions: expected a tensor or an array of integers or None, got str"),
    ],
)
def test_bad_input_of_influence_matrix(options, error, message):
    statistics, _, _ = grouped_statistics()
    with pytest.raises(error, match=message):
        influence_matrix(**({"statistics": statistics} | options))


def test_influence_needs_several_rois_and_a_class():
    statistics, _ = row([0.1, -0.2, 9.0, 0.4, 0.0])
    with pytest.raises(ValueError, match=r"statistics: expected scores of several RoIs .* got output axes \(\)"):
        influence_matrix(statistics)
    classes = make(np.zeros((1, 2, 3, 2)), 0.1, np.array([[0, 1]]), axes=("class", "roi"))
    for target in (None, 3, -1, True, (1, 0)):
        with pytest.raises(ValueError, match="target: expected a class, an integer from 0 to 2, got"):
            influence_matrix(classes, target)


def test_bad_input_of_the_pictures():
    statistics, _, _ = grouped_statistics()
    matrix = influence_matrix(statistics)
    with pytest.raises(ValueError, match="roi_names: expected 2 names, got 1"):
        plot_influence(matrix, roi_names=["one"])
    with pytest.raises(ValueError, match="region_names: expected 6 names, got 0"):
        plot_influence(matrix, region_names=[])
    with pytest.raises(TypeError, match="matrix: expected an InfluenceMatrix, got DataFrame"):
        plot_influence(matrix.effect)
    with pytest.raises(TypeError, match="profile: expected a PerceptionProfile, got InfluenceMatrix"):
        plot_profile(matrix)
