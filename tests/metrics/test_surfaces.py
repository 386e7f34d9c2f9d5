"""Surface Dice against MONAI's and against a naive one."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import Case
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from naive_outcomes import SHAPES, blobs, masks, naive_hausdorff, naive_outline, scene, score, score_of, whole
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, metrics, regions
from captum_causalseg.metrics import METRICS


@pytest.mark.parametrize(("n_spatial", "n", "channels"), [(2, 1, 1), (2, 3, 3), (3, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("whole", ["none", "mask"])
def test_surface_dice_of_the_whole_image_equals_monais(whole, n_spatial, n, channels):
    case = Case(n_spatial, n, channels, False)
    # Blobs, not noise: objects with an inside, some of them at the image's edge.
    pool = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[n_spatial]
    case.logits = pool(case.logits, 5, 1, 2)
    case.reference = (pool(case.reference.float(), 5, 1, 2) > 0.5).long()
    expected = compute_surface_dice(
        (case.logits > 0).long(), case.reference, class_thresholds=[1.0] * channels, include_background=True
    )
    assert expected.min() > 0
    assert expected.min() < 1
    roi = None if whole == "none" else torch.ones(case.spatial, dtype=torch.bool)
    case.expect(case.score("surface_dice", roi=roi), expected)


def naive_boundary(mask: np.ndarray, roi: np.ndarray) -> list[tuple[int, ...]]:
    """Pixels in object and RoI with a face neighbor that is in the RoI but not in the object, or is no pixel at all."""
    found = []
    for pixel in map(tuple, np.argwhere(mask & roi)):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbor = (*pixel[:axis], pixel[axis] + step, *pixel[axis + 1 :])
                outside = not 0 <= neighbor[axis] < mask.shape[axis]
                if (outside or (roi[neighbor] and not mask[neighbor])) and pixel not in found:
                    found.append(pixel)
    return found


def naive_surface_dice(first: np.ndarray, second: np.ndarray, roi: np.ndarray, tolerance: float, empty_score: float) -> float:
    edges = naive_boundary(first, roi), naive_boundary(second, roi)
    if not edges[0] and not edges[1]:
        if not (first & roi).any() and not (second & roi).any():
            return empty_score
        return float(((first & roi) == (second & roi)).all())
    near = sum(
        any(np.hypot.reduce(np.subtract(p, q)) <= tolerance for q in others)
        for mine, others in (edges, edges[::-1])
        for p in mine
    )
    return near / (len(edges[0]) + len(edges[1]))


@given(
    st.sampled_from([(12,), (5, 6), (3, 4, 3)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 1.5]),
    st.sampled_from([0.0, 1.0]),
    st.floats(0, 1),
)
@settings(max_examples=60)
def test_surface_dice_equals_the_naive_one(shape, seed, tolerance, empty_score, filled):
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, *shape)) < filled
    roi = rng.random(shape) < 0.7
    scored = metrics.surface_dice(
        *(torch.from_numpy(mask)[None, None] for mask in (first, second, roi)), empty_score=empty_score, tolerance=tolerance
    )
    assert scored.item() == pytest.approx(naive_surface_dice(first, second, roi, tolerance, empty_score), abs=1e-6)


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_cutting_an_object_at_the_rois_border_makes_no_boundary_there(n_spatial):
    shape = (12,) * n_spatial
    large, small = regions.box(shape, 1, 10), regions.box(shape, 4, 4)
    roi = regions.box(shape, 3, 6)
    one = {"roi": roi, "activation": "none", "metric": "surface_dice"}
    score = SegmentationTarget(nn.Identity(), reference=small, **one)
    # The large object covers the RoI and has no boundary in it; the RoI's border is none, or it would be near small's.
    assert score(large[None, None].float()).item() == 0
    assert score(small[None, None].float()).item() == 1
    assert SegmentationTarget(nn.Identity(), reference=large, **one)(large[None, None].float()).item() == 1


@pytest.mark.parametrize(("predicted", "expected"), [(0.0, 0.25), (1.0, 0.0)])
def test_surface_dice_of_a_filled_roi_against_an_empty_one_is_0(predicted, expected):
    roi = regions.box((8, 8), 2, 4)
    target = SegmentationTarget(nn.Identity(), roi, torch.zeros(8, 8), "surface_dice", "none", empty_score=0.25)
    assert target(torch.full((1, 1, 8, 8), predicted)).item() == expected


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
    for metric, wanted in expected.items():
        assert METRICS[metric].function(prediction, reference, whole(prediction)).item() == pytest.approx(wanted), metric


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


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_an_object_that_is_cut_by_the_region_has_no_boundary_there(n_spatial):
    shape = (12,) * n_spatial
    large, roi = regions.box(shape, 1, 10), regions.box(shape, 3, 6)
    shifted = large.roll(1, 0)
    # Outside the region only.
    assert score("hausdorff_95", shifted, large, roi) == 0
    assert score("boundary_alignment", shifted, large, roi) == 1


@pytest.mark.parametrize("spacing", [0, -1.0, (1.0, 1.0, 1.0), (1.0,), (1.0, float("nan")), float("inf")])
@pytest.mark.parametrize("function", [metrics.average_surface_distance, metrics.hausdorff_95])
def test_a_spacing_that_is_none_is_refused(function, spacing):
    mask = torch.ones(1, 1, 4, 4)
    said = r"^spacing(\[1\])?: expected (a positive number|one positive number or 2 of them \(one per spatial axis\)), got"
    with pytest.raises(ValueError, match=said):
        function(mask, mask, whole(mask), spacing=spacing)


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
