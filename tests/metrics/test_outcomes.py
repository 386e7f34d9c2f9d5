"""Outcomes beyond Dice: distances, components, volumes, calibration; each against a naive implementation, alone and explained."""

import itertools
import logging
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, metrics, regions
from captum_causalseg.metrics import METRICS

Pixel = tuple[int, ...]
NEW = [
    *("average_surface_distance", "hausdorff_95", "detection", "uniformity", "boundary_alignment", "soft_boundary_alignment"),
    *("relative_volume", "soft_relative_volume", "volumetric_similarity", "soft_volumetric_similarity", "brier"),
]
SHAPES = [(12,), (7, 8), (4, 5, 4)]


# The naive implementations: lists of pixels, loops, no library.


def pixels_of(mask: np.ndarray) -> list[Pixel]:
    return list(map(tuple, np.argwhere(mask)))


def naive_outline(mask: np.ndarray, roi: np.ndarray) -> list[Pixel]:
    """Pixels in object and RoI with a face neighbor that is in the RoI but not in the object, or is no pixel at all."""
    found = []
    for pixel in pixels_of(mask & roi):
        neighbors = [(*pixel[:a], pixel[a] + step, *pixel[a + 1 :]) for a in range(mask.ndim) for step in (-1, 1)]
        outside = [any(not 0 <= i < length for i, length in zip(other, mask.shape)) for other in neighbors]
        if any(out or (roi[other] and not mask[other]) for out, other in zip(outside, neighbors)):
            found.append(pixel)
    return found


def naive_distances(first: np.ndarray, second: np.ndarray, roi: np.ndarray, spacing: np.ndarray):
    """Distances there and back, or a single number where there are none."""
    one, other = naive_outline(first, roi), naive_outline(second, roi)
    where = np.argwhere(roi)
    worst = np.linalg.norm((where.max(0) - where.min(0) + 1) * spacing)
    if not one or not other:
        return 0.0 if not one and not other and pixels_of(first & roi) == pixels_of(second & roi) else worst

    def nearest(pixel: Pixel, others: list[Pixel]) -> float:
        return min(float(np.linalg.norm(np.subtract(pixel, q) * spacing)) for q in others)

    return [nearest(p, other) for p in one], [nearest(q, one) for q in other]


def naive_average(first, second, roi, spacing=1.0) -> float:
    found = naive_distances(first, second, roi, np.broadcast_to(spacing, first.ndim))
    return -found if isinstance(found, float) else -sum(found[0] + found[1]) / len(found[0] + found[1])


def percentile(values: list[float], share: float) -> float:
    """With linear interpolation between the order statistics."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def naive_hausdorff(first, second, roi, spacing=1.0) -> float:
    found = naive_distances(first, second, roi, np.broadcast_to(spacing, first.ndim))
    return -found if isinstance(found, float) else -max(percentile(found[0], 0.95), percentile(found[1], 0.95))


def naive_components(mask: np.ndarray) -> list[set[Pixel]]:
    left, found = set(pixels_of(mask)), []
    while left:
        queue = [left.pop()]
        component = set(queue)
        while queue:
            pixel = queue.pop()
            for step in itertools.product((-1, 0, 1), repeat=mask.ndim):
                other = tuple(i + s for i, s in zip(pixel, step))
                if other in left:
                    left.remove(other)
                    component.add(other)
                    queue.append(other)
        found.append(component)
    return found


def naive_detection(first, second, roi, empty_score=1.0, threshold=0.1) -> float:
    predicted, wanted = naive_components(first & roi), naive_components(second & roi)
    if not wanted:
        return 0.0 if predicted else empty_score
    found = 0
    for lesion in wanted:
        touching = set().union(*(other for other in predicted if other & lesion))
        found += bool(touching) and len(touching & lesion) / len(touching | lesion) >= threshold
    return found / len(wanted)


def naive_uniformity(first, second, roi, empty_score=1.0) -> float:
    predicted, wanted = naive_components(first & roi), naive_components(second & roi)
    if not predicted and not wanted:
        return empty_score
    true = split = merged = 0
    for lesion in wanted:
        related = sum(bool(other & lesion) for other in predicted)
        true, split = true + (related > 0), split + max(related - 1, 0)
    for other in predicted:
        merged += max(sum(bool(other & lesion) for lesion in wanted) - 1, 0)
    return 2 * true / (2 * true + split + merged) if true else 0.0


def naive_alignment(first, second, roi, empty_score=1.0) -> list[float]:
    """Two bounds, where pixels are as near to one object as to another. ``first`` may be probabilities."""
    inside, wanted = pixels_of(roi), pixels_of(second & roi)
    beyond = [pixel for pixel in inside if pixel not in wanted]
    weights = {pixel: [1.0] for pixel in inside}
    if wanted and beyond:
        far = {p: min(np.linalg.norm(np.subtract(p, q)) for q in beyond) for p in wanted}
        deepest = {p: max(far[q] for q in lesion) for lesion in naive_components(second & roi) for p in lesion}
        for pixel in inside:
            away = min(np.linalg.norm(np.subtract(pixel, q)) for q in wanted)
            # Several objects may be equally near: any of them will do.
            owners = [q for q in wanted if np.linalg.norm(np.subtract(pixel, q)) == away]
            weights[pixel] = [min(1.0, far.get(pixel, away) / deepest[q]) for q in owners]
    scores = []
    for pick in (min, max):
        both = sum(pick(weights[p]) * float(first[p]) * float(second[p]) for p in inside)
        total = sum(pick(weights[p]) * (float(first[p]) + float(second[p])) for p in inside)
        scores.append(2 * both / total if total else empty_score)
    return scores


def naive_brier(first, second, roi) -> float:
    errors = [(float(first[p]) - float(second[p])) ** 2 for p in pixels_of(roi)]
    return -sum(errors) / len(errors)


def naive_relative(first, second, roi) -> float:
    inside = pixels_of(roi)
    return sum(float(first[p]) for p in inside) / max(1.0, sum(float(second[p]) for p in inside))


def naive_similarity(first, second, roi, empty_score=1.0) -> float:
    inside = pixels_of(roi)
    one, other = (sum(float(values[p]) for p in inside) for values in (first, second))
    return 1 - abs(one - other) / (one + other) if one + other else empty_score


NAIVE = {
    "average_surface_distance": naive_average,
    "hausdorff_95": naive_hausdorff,
    "detection": naive_detection,
    "uniformity": naive_uniformity,
    "boundary_alignment": naive_alignment,
    "soft_boundary_alignment": naive_alignment,
    "relative_volume": naive_relative,
    "soft_relative_volume": naive_relative,
    "volumetric_similarity": naive_similarity,
    "soft_volumetric_similarity": naive_similarity,
    "brier": naive_brier,
}


def blobs(rng: np.random.Generator, shape: tuple[int, ...], filled: float) -> np.ndarray:
    """Objects with an inside that fill this share of the image."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 0.8, mode="wrap")
    return noise > np.quantile(noise, 1 - filled) if 0 < filled < 1 else np.full(shape, filled > 0.5)


def masks(seed: int, shape: tuple[int, ...], n: int = 1, c: int = 1, r: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Hard prediction ``(n, c, *shape)``, reference and RoIs ``(n, r, *shape)``; now and then empty or full ones."""
    rng = np.random.default_rng(seed)
    shares = [0.0, 0.2, 0.4, 0.6, 1.0]
    first, second = (
        np.stack([[blobs(rng, shape, rng.choice(shares)) for _ in range(c)] for _ in range(n)]).astype(np.float64) for _ in "ab"
    )
    roi = rng.random((n, r, *shape)) < 0.9
    for example, k in np.ndindex(n, r):
        cut = [np.sort(rng.choice(length + 1, 2, replace=False)) for length in shape]
        box = np.zeros(shape, dtype=bool)
        box[tuple(slice(a, b) for a, b in cut)] = True
        roi[example, k] &= box
        roi[example, k][tuple(a for a, _ in cut)] = True
    return torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(roi)


def softened(prediction: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.7 * prediction + 0.3 * torch.rand(prediction.shape, generator=generator, dtype=prediction.dtype)).clamp(0, 1)


def values_for(metric: str, prediction: Tensor, seed: int) -> Tensor:
    return prediction if METRICS[metric].domain == "labels" else softened(prediction, seed)


def naive_score(metric: str, first: np.ndarray, second: np.ndarray, roi: np.ndarray, **options):
    """The score; two bounds of it where the definition leaves a choice."""
    first = first.astype(bool) if METRICS[metric].domain == "labels" else first
    return NAIVE[metric](first, second.astype(bool), roi, **options)


@pytest.mark.parametrize("metric", NEW)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40)
def test_every_outcome_equals_the_naive_one(metric, shape, seed, empty_score):
    prediction, reference, roi = masks(seed, shape)
    prediction = values_for(metric, prediction, seed)
    options = {"empty_score": empty_score} if "empty_score" in METRICS[metric].options else {}
    scored = METRICS[metric].function(prediction, reference, roi, **options)
    assert scored.shape == (1, 1, 1)
    expected = naive_score(metric, *(values[0, 0].numpy() for values in (prediction, reference, roi)), **options)
    if isinstance(expected, list) and min(expected) != max(expected):
        # Pixels between two objects belong to either: which one, is not said.
        assert 0 <= scored.item() <= 1
    else:
        assert scored.item() == pytest.approx(np.max(expected), abs=1e-6)


# What the numbers are, on pictures that can be counted


def picture(*rows: str) -> Tensor:
    return torch.tensor([[float(character == "#") for character in row] for row in rows], dtype=torch.float64)[None, None]


def whole(values: Tensor) -> Tensor:
    return torch.ones_like(values[:, :1], dtype=torch.bool)


def test_a_line_that_is_two_pixels_too_long():
    prediction, reference = torch.zeros(2, 1, 1, 8, dtype=torch.float64)
    prediction[..., 2:5], reference[..., 2:3] = 1, 1
    expected = {
        # The prediction's outline are its two ends, 0 and 2 pixels away; the reference's only pixel is met.
        "average_surface_distance": -(0 + 2 + 0) / 3,
        "hausdorff_95": -(0 + 0.95 * 2),
        # One pixel in common, three in all.
        "detection": 1,
        "uniformity": 1,
        "relative_volume": 3,
        "volumetric_similarity": 0.5,
        # The reference's depth is 1, so every pixel weighs 1: the Dice.
        "boundary_alignment": 2 * 1 / (3 + 1),
        # Two of eight pixels are wrong.
        "brier": -0.25,
    }
    for metric, score in expected.items():
        assert METRICS[metric].function(prediction, reference, whole(prediction)).item() == pytest.approx(score), metric


def test_two_objects_one_split_one_missed_and_a_false_alarm():
    reference = picture("###....", ".......", "....##.", "....##.")
    prediction = picture("#.#...#", ".......", ".......", ".......")
    roi = whole(reference)
    # Two of three pixels: 2/3 of the union. The other one is missed, the one at the right is nothing's.
    assert metrics.detection(prediction, reference, roi).item() == 0.5
    assert metrics.detection(prediction, reference, roi, threshold=0.7).item() == 0
    # One found, one piece too many: 2 / (2 + 1).
    assert metrics.uniformity(prediction, reference, roi).item() == pytest.approx(2 / 3)
    assert metrics.relative_volume(prediction, reference, roi).item() == pytest.approx(3 / 7)
    assert metrics.volumetric_similarity(prediction, reference, roi).item() == pytest.approx(1 - 4 / 10)


def test_two_objects_that_are_merged():
    reference, prediction = picture("##..##", "##..##"), picture("######", "######")
    roi = whole(reference)
    # Both found, by one object: 4 / (4 + 1). Intersection 4, union 12.
    assert metrics.uniformity(prediction, reference, roi).item() == pytest.approx(0.8)
    assert metrics.detection(prediction, reference, roi, threshold=4 / 12).item() == 1
    assert metrics.detection(prediction, reference, roi, threshold=0.34).item() == 0
    # A region that sees one of them only.
    left = roi.clone()
    left[..., 3:] = False
    assert metrics.uniformity(prediction, reference, left).item() == 1


def test_a_single_common_pixel_is_enough_with_threshold_0_and_none_is_not():
    reference = torch.zeros(1, 1, 9, 9)
    reference[..., 0, 0] = 1
    prediction = torch.ones(1, 1, 9, 9)
    assert metrics.detection(prediction, reference, whole(reference)).item() == 0
    assert metrics.detection(prediction, reference, whole(reference), threshold=0).item() == 1
    prediction[..., 0, 0] = 0
    assert metrics.detection(prediction, reference, whole(reference), threshold=0).item() == 0


@pytest.mark.parametrize("shape", [(13, 13), (9, 9, 9)])
def test_an_error_at_the_boundary_weighs_less_than_the_same_at_the_core_or_far_away(shape):
    reference = regions.box(shape, 2, 5)[None, None].double()
    errors = {"boundary": (2,) * len(shape), "core": (4,) * len(shape), "near": (7,) * len(shape), "far": (8,) * len(shape)}
    scores = {}
    for name, pixel in errors.items():
        prediction = reference.clone()
        prediction[(0, 0, *pixel)] = 1 - prediction[(0, 0, *pixel)]
        scores[name] = metrics.boundary_alignment(prediction, reference, whole(reference)).item()
    assert scores["core"] < scores["boundary"] < 1
    assert scores["far"] < scores["near"] < 1
    # Depth 3, weights 1/3, 2/3, 1 for the three shells; one pixel of the outermost shell is missing.
    sizes = np.array([5, 3, 1]) ** len(shape)
    total = (sizes[0] - sizes[1]) / 3 + (sizes[1] - sizes[2]) * 2 / 3 + sizes[2]
    assert scores["boundary"] == pytest.approx(2 * (total - 1 / 3) / (2 * total - 1 / 3))
    assert scores["core"] == pytest.approx(2 * (total - 1) / (2 * total - 1))


# Peers


@pytest.mark.parametrize("shape", [(17, 15), (9, 10, 11)])
@pytest.mark.parametrize("spacing", [None, 0.5, "anisotropic"])
@pytest.mark.parametrize("given", ["none", "mask"])
def test_distances_in_the_whole_image_equal_monais(shape, spacing, given):
    rng = np.random.default_rng(3)
    # Shares that leave no mask empty; objects at the image's edges among them.
    prediction, reference = (
        torch.from_numpy(np.stack([[blobs(rng, shape, share) for share in (0.2, 0.5, 0.8)] for _ in range(2)])).double()
        for _ in "ab"
    )
    spacing = [0.5, 2.0, 1.5][: len(shape)] if spacing == "anisotropic" else spacing
    options = {"include_background": True, "spacing": spacing}
    average = compute_average_surface_distance(prediction, reference, symmetric=True, **options)
    ninety_five = compute_hausdorff_distance(prediction, reference, percentile=95, **options)
    assert average.min() > 0
    roi = torch.ones(1, 1, *shape, dtype=torch.bool)
    for function, expected in ((metrics.average_surface_distance, average), (metrics.hausdorff_95, ninety_five)):
        scores = function(prediction, reference, roi, spacing=spacing)[..., 0]
        torch.testing.assert_close(scores, -expected.double(), rtol=1e-6, atol=1e-6)
    if spacing is None:
        region = None if given == "none" else roi[0, 0]
        for metric, expected in (("average_surface_distance", average), ("hausdorff_95", ninety_five)):
            target = SegmentationTarget(nn.Identity(), region, reference, metric, "none")
            torch.testing.assert_close(target(prediction), -expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4])
def test_the_brier_columns_of_exclusive_classes_add_up_to_the_multi_class_score(channels):
    logits = torch.randn(3, channels, 6, 7, dtype=torch.float64)
    labels = torch.randint(0, channels, (3, 6, 7))
    scores = SegmentationTarget(nn.Identity(), None, labels, "brier", "softmax")(logits)
    truth = torch.nn.functional.one_hot(labels, channels).movedim(-1, 1)
    torch.testing.assert_close(scores.sum(1), -((logits.softmax(1) - truth) ** 2).sum(1).flatten(1).mean(1))


# Nothing is there


def score(metric: str, prediction: Tensor, reference: Tensor, roi: Tensor, **options) -> float:
    target = SegmentationTarget(nn.Identity(), roi, reference, metric, "none", **options)
    return target(prediction[None, None].double()).item()


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


@pytest.mark.parametrize("shape", [(10, 9), (6, 7, 5)])
@pytest.mark.parametrize("metric", ["average_surface_distance", "hausdorff_95"])
def test_nothing_that_is_there_is_as_far_away_as_nothing(metric, shape):
    reference, prediction = torch.zeros(2, *shape)
    reference[(0,) * len(shape)] = 1
    prediction[(-1,) * len(shape)] = 1
    roi = torch.ones(shape, dtype=torch.bool)
    far = score(metric, prediction, reference, roi)
    assert far == pytest.approx(-np.linalg.norm(np.array(shape) - 1))
    assert score(metric, torch.zeros(shape), reference, roi) == pytest.approx(-np.linalg.norm(shape))


def test_the_worst_distance_is_in_the_spacings_units():
    full = torch.ones(1, 1, 3, 4)
    roi = whole(full)
    scores = metrics.hausdorff_95(torch.zeros_like(full), full, roi, spacing=(2.0, 0.5))
    assert scores.item() == pytest.approx(-np.hypot(6, 2))


# Ranges, symmetry, independence


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


@pytest.mark.parametrize(
    "metric",
    ["average_surface_distance", "hausdorff_95", "surface_dice", "volumetric_similarity", "soft_volumetric_similarity"],
)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_distances_and_similarities_are_symmetric(metric, shape, seed):
    prediction, reference, roi = masks(seed, shape)
    function = METRICS[metric].function
    torch.testing.assert_close(
        function(prediction, reference, roi), function(reference, prediction, roi), rtol=1e-12, atol=1e-12
    )


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


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_an_object_that_is_cut_by_the_region_has_no_boundary_there(n_spatial):
    shape = (12,) * n_spatial
    large, roi = regions.box(shape, 1, 10), regions.box(shape, 3, 6)
    shifted = large.roll(1, 0)
    # Outside the region only.
    assert score("hausdorff_95", shifted, large, roi) == 0
    assert score("boundary_alignment", shifted, large, roi) == 1


def test_nothing_is_changed_in_place_and_no_generator_is_drawn_from():
    prediction, reference, roi = masks(1, (6, 7), 2, 2, 2)
    before, state = [values.clone() for values in (prediction, reference, roi)], torch.get_rng_state()
    for metric in NEW:
        first = METRICS[metric].function(prediction, reference, roi)
        assert torch.equal(first, METRICS[metric].function(prediction, reference, roi))
    assert all(torch.equal(old, new) for old, new in zip(before, (prediction, reference, roi)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spacing", [0, -1.0, (1.0, 1.0, 1.0), (1.0,), (1.0, float("nan")), float("inf")])
@pytest.mark.parametrize("function", [metrics.average_surface_distance, metrics.hausdorff_95])
def test_a_spacing_that_is_none_is_refused(function, spacing):
    mask = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"spacing: expected one positive number or 2 of them \(one per spatial axis\), got"):
        function(mask, mask, whole(mask), spacing=spacing)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    mask = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"threshold: expected an intersection over union in \[0, 1\], got"):
        metrics.detection(mask, mask, whole(mask), threshold=threshold)


# Explained


class Net(nn.Module):
    """Three exclusive classes that depend on what lies up to four pixels away; steep, so that donors flip pixels."""

    def __init__(self, n_spatial: int) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[n_spatial]
        with torch.random.fork_rng():
            torch.manual_seed(n_spatial)
            self.first = conv(1, 4, 3, padding=1)
            self.second = conv(4, 3, 3, padding=3, dilation=3)

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.second(torch.sin(8 * self.first(x)))


EXPLAINED = {2: ((16, 12), (4, 4), 8, 4), 3: ((8, 12, 8), (2, 4, 2), 4, 4)}
"""Image, corner and edge of the RoI, edge of a unit."""


def scene(n_spatial: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, int]:
    spatial, start, size, block = EXPLAINED[n_spatial]
    generator = torch.Generator().manual_seed(n_spatial)
    images, donors = (torch.rand((n, 1, *spatial), generator=generator) for n in (2, 3))
    model = Net(n_spatial).eval()
    # A reference that the model meets in part: its own prediction on a slightly different image.
    labels = model(images + 0.02 * torch.randn(images.shape, generator=generator)).argmax(1)
    return model, images, donors, labels, regions.box(spatial, start, size if n_spatial == 2 else (4, 4, 4)), block


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("metric", NEW)
@pytest.mark.parametrize("sampling", ["stratified", "uniform"])
def test_effects_equal_interventions_made_by_hand(metric, n_spatial, sampling):
    model, images, donors, labels, roi, block = scene(n_spatial)
    target = SegmentationTarget(model, roi, reference=labels, metric=metric)
    options = {"n_draws": 3, "n_screening_draws": 0, "block_size": block, "sampling": sampling}
    attr = AverageTreatmentEffect(target).attribute(images, PatchBank(donors, placement="aligned"), 1, **options)
    units, kind = regions.grid(images.shape[2:], block), METRICS[metric].domain
    region = roi.numpy()

    def by_hand(logits: Tensor, n: int) -> list:
        probabilities = logits.double().softmax(0)[1]
        prediction = logits.argmax(0) == 1 if kind == "labels" else probabilities
        value = naive_score(metric, prediction.detach().numpy(), (labels[n] == 1).numpy(), region)
        return value if isinstance(value, list) else [value, value]

    moved, compared = 0, 0
    for n in range(len(images)):
        observed = by_hand(model(images[n : n + 1])[0], n)
        for unit in units.unique():
            where = units == unit
            if (where & roi).any():
                assert (attr[n, 0][where] == 0).all()
                continue
            scores = [by_hand(model(torch.where(where, donor, images[n : n + 1]))[0], n) for donor in donors]
            effect = np.array(observed) - np.mean(scores, axis=0)
            if effect[0] != effect[1]:
                continue
            assert attr[n, 0][where].unique().item() == pytest.approx(effect[0], abs=1e-6 * max(1, abs(observed[0])))
            compared += 1
            moved += abs(effect[0]) > 1e-3
    assert compared
    assert moved


def score_of(metric: str, n_spatial: int = 2, **options) -> tuple[SegmentationTarget, Tensor, Tensor]:
    model, images, donors, labels, roi, _ = scene(n_spatial)
    return SegmentationTarget(model, roi, reference=labels, metric=metric, **options), images, donors


TWINS = dict.fromkeys(["average_surface_distance", "hausdorff_95", "detection", "uniformity"], "soft_dice") | {
    "boundary_alignment": "soft_boundary_alignment",
    "soft_boundary_alignment": "soft_boundary_alignment",
    "relative_volume": "soft_relative_volume",
    "soft_relative_volume": "soft_relative_volume",
    "volumetric_similarity": "soft_volumetric_similarity",
    "soft_volumetric_similarity": "soft_volumetric_similarity",
    "brier": "brier",
}


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("metric", NEW)
def test_donors_are_ranked_through_the_surrogate(metric, n_spatial, caplog):
    target, images, donors = score_of(metric, n_spatial)
    twin = target.surrogate()
    assert twin.metric == TWINS[metric]
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(twin(images)[:, 1].sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    options = {"n_draws": 2, "block_size": 4, "return_statistics": True}
    with caplog.at_level(logging.WARNING):
        _, found = AverageTreatmentEffect(target).attribute(images.detach(), PatchBank(donors), 1, **options)
    assert "drawn uniformly" not in caplog.text
    assert found.effect.nan_to_num().isfinite().all()
    assert found.standard_error.nan_to_num().isfinite().all()


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("metric", ["average_surface_distance", "hausdorff_95", "detection", "boundary_alignment", "brier"])
def test_an_effect_is_positive_where_what_is_there_supports_the_segmentation(metric, n_spatial):
    """The network sees a lesion where it, and the marker beside it, are bright; the RoI holds the lesion, the marker lies outside."""
    spatial = (24,) * n_spatial if n_spatial == 2 else (12,) * 3

    class Beside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 20 * (x * x.roll(4, 2) - 0.25)

    image = torch.zeros(1, 1, *spatial)
    lesion = regions.box(spatial, 4, 4)
    image[0, 0, lesion | lesion.roll(-4, 0)] = 1
    roi = regions.box(spatial, (4, *(3,) * (n_spatial - 1)), (4, *(6,) * (n_spatial - 1)))
    target = SegmentationTarget(Beside(), roi, lesion, metric, "sigmoid")
    attr = AverageTreatmentEffect(target).attribute(image, 0.0, block_size=(4, *(4,) * (n_spatial - 1)))
    marker = lesion.roll(-4, 0)
    assert (attr[0, 0, marker] > 0.05).all()
    assert (attr[0, 0, ~marker] == 0).all()


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_surface_dice_on_a_boundary_region_end_to_end(n_spatial):
    model, images, donors, labels, _, block = scene(n_spatial)
    lesion = regions.box(images.shape[2:], 0, 3)
    band = regions.boundary(lesion, width=1)
    labels = torch.where(lesion, 1, labels[0] * (labels[0] != 1))
    target = SegmentationTarget(model, band, labels, "surface_dice")
    options = {"n_draws": 3, "n_screening_draws": 0, "block_size": block}
    attr = AverageTreatmentEffect(target).attribute(images, PatchBank(donors, placement="aligned"), 1, **options)
    units, reference = regions.grid(images.shape[2:], block), (labels == 1).numpy()

    def by_hand(image: Tensor) -> float:
        mask = (model(image)[0].argmax(0) == 1).numpy()
        ours, theirs = naive_outline(mask, band.numpy()), naive_outline(reference, band.numpy())
        near = [any(np.linalg.norm(np.subtract(p, q)) <= 1 for q in b) for a, b in ((ours, theirs), (theirs, ours)) for p in a]
        return sum(near) / len(near)

    moved = 0
    for n, unit in itertools.product(range(len(images)), units.unique()):
        where = units == unit
        if (where & band).any():
            assert (attr[n, 0][where] == 0).all()
            continue
        scores = [by_hand(torch.where(where, donor, images[n : n + 1])) for donor in donors]
        effect = by_hand(images[n : n + 1]) - np.mean(scores)
        assert attr[n, 0][where].unique().item() == pytest.approx(effect, abs=1e-6)
        moved += abs(effect) > 1e-3
    assert moved


def test_a_distance_in_millimeters_is_registered_under_a_name_of_ones_own():
    before = dict(METRICS)
    try:
        function = partial(metrics.hausdorff_95, spacing=(0.5, 2.0))
        metrics.register("hausdorff_95_mm", function, domain="labels", surrogate="soft_dice", inside_roi=True)
        target, images, _ = score_of("hausdorff_95_mm")
        labels, roi = target.reference, target.roi
        prediction = target.predict(images)[:, 1].numpy()
        expected = [
            naive_hausdorff(mask, (truth == 1).numpy(), roi.numpy(), (0.5, 2.0)) for mask, truth in zip(prediction, labels)
        ]
        assert target(images)[:, 1].tolist() == pytest.approx(expected, abs=1e-6)
        assert target.surrogate().metric == "soft_dice"
    finally:
        METRICS.clear()
        METRICS.update(before)
