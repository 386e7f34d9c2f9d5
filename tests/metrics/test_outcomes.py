"""Outcomes beyond Dice, each against a naive implementation (``naive_outcomes``), alone and explained."""

import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_outcomes import NEW, SHAPES, Pixel, masks, naive_distances, naive_hausdorff, pixels_of, scene, score_of, values_for
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.metrics import METRICS


def naive_average(first, second, roi, spacing=1.0) -> float:
    found = naive_distances(first, second, roi, np.broadcast_to(spacing, first.ndim))
    return -found if isinstance(found, float) else -sum(found[0] + found[1]) / len(found[0] + found[1])


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


def naive_best(first, second, roi, empty_score=1.0) -> float:
    predicted, wanted = naive_components(first & roi), naive_components(second & roi)
    if not wanted:
        return 0.0 if predicted else empty_score
    best = [max([0.0, *(2 * len(one & other) / (len(one) + len(other)) for other in predicted)]) for one in wanted]
    return sum(best) / len(best)


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
    "best_dice": naive_best,
    "uniformity": naive_uniformity,
    "boundary_alignment": naive_alignment,
    "soft_boundary_alignment": naive_alignment,
    "relative_volume": naive_relative,
    "soft_relative_volume": naive_relative,
    "volumetric_similarity": naive_similarity,
    "soft_volumetric_similarity": naive_similarity,
    "brier": naive_brier,
}


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


TWINS = dict.fromkeys(["average_surface_distance", "hausdorff_95", "detection", "uniformity"], "soft_dice") | {
    "best_dice": "soft_best_dice",
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
