"""Perception profiles: by hand, by brute force, on the authors' own map, and by simulation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from profile_cases import ABSENT, EXCLUDED, OUTSIDE, SCREENED, make, row

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.evaluation.profile import perception_profile, profile_of_map
from captum_causalseg.evaluation.unit_space import distance_to
from captum_causalseg.visualization import plot_profile

HEATMAP = Path(__file__).parents[4] / "shared" / "data" / "paper_demo_heatmap.npz"


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
    with pytest.raises(ValueError, match="length_unit: it is the unit of spacing, so it needs spacing; got 'mm'"):
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


def test_a_drained_bank_is_exact():
    statistics, roi = row([1e-9, 0.0, 0, -1e-9, 0.0], error=0.0)
    profile = perception_profile(statistics, roi)
    assert profile.units["role"].tolist() == ["supporting", "null", "harming", "null"]
    assert profile.summary()["noise_mass"] == 0
    assert profile.summary()["energy"] == pytest.approx(2e-18)


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


def test_effects_of_a_gradient_have_no_profile():
    images = torch.rand(1, 1, 8, 8)
    _, statistics = GradientTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(
        images, 0.0, block_size=4, return_statistics=True
    )
    with pytest.raises(
        ValueError, match="no unit of example 0 was intervened on, its effects are those of a gradient, whose errors"
    ):
        perception_profile(statistics, regions.box((8, 8), 0, 4))


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
