"""Masses, energies, radii and noise of a profile, by hand."""

import math

import numpy as np
import pytest
import torch
from profile_cases import EXCLUDED, SCREENED, make, row
from scipy import stats as scipy_stats

from captum_causalseg import JointTreatmentEffect
from captum_causalseg.evaluation.planted import planted_case
from captum_causalseg.evaluation.profile import perception_profile, profile_of_map


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


def test_roles_follow_benjamini_and_hochberg_by_hand():
    effect = np.array([0.5, -0.4, 0.23, 0.21, 0.05, 0.0])
    freedom = 1000.0
    # Each of the six has five others to learn the common scale from.
    p = 2 * scipy_stats.t.sf(np.abs(effect) / 0.1, freedom + 3 * 5 / 6)
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


def test_joint_effects_add_up_over_distances_to_what_the_score_loses():
    """Of Shapley values, those of all distances are together the score less that with everything replaced."""
    case = planted_case((32, 32), roi_size=8)
    _, stats = JointTreatmentEffect(case.target()).attribute(
        case.images, case.donors, n_draws=12, block_size=8, return_statistics=True
    )
    profile = perception_profile(stats, case.roi)
    assert len(profile.units) + profile.n_outside == int((~stats.effect[0].isnan()).sum())
    near = profile.by_distance
    lost = float((near["supporting_mass"] - near["harming_mass"]).sum())
    assert lost == pytest.approx(float(stats.effect[0].nansum()), abs=1e-9)
    assert profile.counts["supporting"] >= 2
