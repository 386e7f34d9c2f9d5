"""Influence matrices: by hand, and of a class through the face."""

import itertools
import math

import numpy as np
import pytest
import torch
from profile_cases import EXCLUDED, grouped_statistics, make, row
from scipy import stats as scipy_stats

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.evaluation.influence import influence_matrix


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
