"""What every score does with examples, classes and regions: each as if it were alone, whatever is empty."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_outcomes import NEW, SHAPES, masks, score, values_for

from captum_causalseg import regions
from captum_causalseg.metrics import METRICS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("metric", NEW)
def test_scores_are_finite_where_prediction_reference_or_both_are_empty_or_full(metric, shape):
    roi = regions.box(shape, 1, 2)
    nothing, everything, elsewhere = torch.zeros(shape), torch.ones(shape), (~roi).float()
    part = nothing.clone()
    part[(1,) * len(shape)] = 1
    found = {
        pair: score(metric, *pair_of, roi)
        for pair, pair_of in {
            "both empty": (nothing, nothing),
            "empty in the RoI": (elsewhere, nothing),
            "both full": (everything, everything),
            "missed": (nothing, part),
            "missed full": (nothing, everything),
            "false": (part, nothing),
            "false full": (everything, nothing),
            "too large": (everything, part),
            "equal": (part, part),
        }.items()
    }
    assert all(np.isfinite(value) for value in found.values())
    pixels = 2 ** len(shape)
    diagonal = 2 * np.sqrt(len(shape))
    if "distance" in metric or "hausdorff" in metric:
        assert found == pytest.approx(
            dict.fromkeys(found, -diagonal) | dict.fromkeys(["both empty", "empty in the RoI", "both full", "equal"], 0)
        )
    elif "relative" in metric:
        assert found["both empty"] == found["empty in the RoI"] == found["missed"] == found["missed full"] == 0
        assert found["both full"] == found["equal"] == found["false"] == 1
        assert found["too large"] == found["false full"] == pixels
    elif metric == "brier":
        assert found["both empty"] == found["both full"] == found["equal"] == 0
        assert found["missed"] == found["false"] == -1 / pixels
        assert found["missed full"] == found["false full"] == -1
    else:
        assert [found[k] for k in ("both empty", "empty in the RoI", "both full", "equal")] == [1] * 4
        assert [found[k] for k in ("missed", "missed full", "false", "false full")] == [0] * 4
        assert score(metric, nothing, nothing, roi, empty_score=0.25) == 0.25


RANGE = {"average_surface_distance": (-np.inf, 0), "hausdorff_95": (-np.inf, 0), "brier": (-1, 0)} | dict.fromkeys(
    ["relative_volume", "soft_relative_volume"], (0, np.inf)
)


@pytest.mark.parametrize("metric", NEW)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=25)
def test_a_batch_is_a_loop_over_examples_classes_and_regions(metric, shape, seed, n, c, r):
    prediction, reference, roi = masks(seed, shape, n, c, r)
    prediction = values_for(metric, prediction, seed)
    function = METRICS[metric].function
    scores = function(prediction, reference, roi)
    assert scores.shape == (n, c, r)
    assert scores.isfinite().all()
    low, high = RANGE.get(metric, (0, 1))
    assert scores.min() >= low
    assert scores.max() <= high
    for i, j, k in np.ndindex(n, c, r):
        alone = function(prediction[i : i + 1, j : j + 1], reference[i : i + 1, j : j + 1], roi[i : i + 1, k : k + 1])
        torch.testing.assert_close(scores[i, j, k], alone[0, 0, 0], rtol=1e-12, atol=1e-12)
    for shared_reference, shared_roi in ((reference[:1], roi), (reference, roi[:1]), (reference[:1], roi[:1])):
        shared = function(prediction, shared_reference, shared_roi)
        expanded = function(prediction, shared_reference.expand_as(reference), shared_roi.expand_as(roi))
        torch.testing.assert_close(shared, expanded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", NEW)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_what_lies_outside_the_region_has_no_part(metric, shape, seed):
    prediction, reference, roi = masks(seed, shape)
    prediction = values_for(metric, prediction, seed)
    function = METRICS[metric].function
    expected = function(prediction, reference, roi)
    others = (torch.where(roi, values, 1 - values) for values in (prediction, reference))
    assert torch.equal(function(*others, roi), expected)


@pytest.mark.parametrize("metric", [name for name in NEW if "relative" not in name])
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_nothing_scores_more_than_the_truth(metric, shape, seed):
    prediction, reference, roi = masks(seed, shape)
    prediction = values_for(metric, prediction, seed)
    function = METRICS[metric].function
    best = function(reference, reference, roi).item()
    assert best == RANGE.get(metric, (0, 1))[1]
    assert function(prediction, reference, roi).item() <= best


def test_nothing_is_changed_in_place_and_no_generator_is_drawn_from():
    prediction, reference, roi = masks(1, (6, 7), 2, 2, 2)
    before, state = [values.clone() for values in (prediction, reference, roi)], torch.get_rng_state()
    for metric in NEW:
        first = METRICS[metric].function(prediction, reference, roi)
        assert torch.equal(first, METRICS[metric].function(prediction, reference, roi))
    assert all(torch.equal(old, new) for old, new in zip(before, (prediction, reference, roi)))
    assert torch.equal(state, torch.get_rng_state())
