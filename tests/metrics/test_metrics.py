"""Every metric against an independent implementation, on what lies inside the RoI and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss
from monai.metrics import DiceMetric, compute_dice, compute_iou, compute_surface_dice
from scipy import special
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget, metrics, regions
from captum_causalseg.metrics import METRICS

SPATIAL = {1: (11,), 2: (9, 12), 3: (6, 7, 8)}
BOX = {1: ((2,), (7,)), 2: ((1, 3), (6, 7)), 3: ((1, 2, 0), (4, 5, 6))}
HARD = {"dice": compute_dice, "iou": compute_iou}

per_case = pytest.mark.parametrize(
    ("n_spatial", "n", "channels", "exclusive"),
    [(1, 3, 3, True), (2, 1, 1, False), (2, 3, 3, True), (2, 3, 2, False), (3, 1, 3, True), (3, 3, 1, False)],
)


class Case:
    """Random logits, the reference in one-hot form, a box RoI and what lies in it. The model is the identity."""

    def __init__(self, n_spatial: int, n: int, channels: int, exclusive: bool, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1000 * n_spatial + 100 * n + 10 * channels + exclusive)
        self.spatial = SPATIAL[n_spatial]
        start, size = BOX[n_spatial]
        self.roi = regions.box(self.spatial, start, size)
        self.window = (..., *(slice(a, a + b) for a, b in zip(start, size)))
        self.logits = (4 * torch.randn((n, channels, *self.spatial), generator=generator)).to(dtype)
        self.labels = torch.randint(0, max(channels, 2), (n, *self.spatial), generator=generator)
        overlapping = torch.randint(0, 2, (n, channels, *self.spatial), generator=generator)
        self.reference = functional.one_hot(self.labels, channels).movedim(-1, 1) if exclusive else overlapping
        self.activation = "softmax" if exclusive else "sigmoid"
        self.probabilities = self.logits.softmax(1) if exclusive else self.logits.sigmoid()
        winners = functional.one_hot(self.logits.argmax(1), channels).movedim(-1, 1)
        self.prediction = winners if exclusive else (self.logits > 0).long()
        self.squeezed = (n,) if channels == 1 else (n, channels)

    def score(self, metric: str, **options) -> Tensor:
        options = {"roi": self.roi, "reference": self.reference, "activation": self.activation} | options
        return SegmentationTarget(nn.Identity(), metric=metric, **options)(self.logits)

    def crop(self, values: Tensor) -> Tensor:
        return values[self.window]

    def expect(self, scores: Tensor, expected, **tolerance) -> None:
        torch.testing.assert_close(
            scores,
            torch.as_tensor(expected).reshape(self.squeezed).to(scores.dtype),
            **({"rtol": 1e-6, "atol": 1e-6} | tolerance),
        )


@per_case
@pytest.mark.parametrize("metric", HARD)
def test_hard_overlap_equals_monai(metric, n_spatial, n, channels, exclusive):
    case = Case(n_spatial, n, channels, exclusive)
    prediction, reference = case.crop(case.prediction), case.crop(case.reference)
    case.expect(case.score(metric), HARD[metric](prediction, reference, include_background=True, ignore_empty=False))


def test_dice_equals_monais_stateful_metric():
    case = Case(2, 3, 3, True)
    peer = DiceMetric(include_background=True, reduction="none", ignore_empty=False)
    case.expect(case.score("dice"), peer(case.crop(case.prediction), case.crop(case.reference)))


@per_case
@pytest.mark.parametrize(("metric", "jaccard"), [("soft_dice", False), ("soft_iou", True)])
def test_soft_overlap_equals_monais_loss(metric, jaccard, n_spatial, n, channels, exclusive):
    case = Case(n_spatial, n, channels, exclusive)
    loss = DiceLoss(jaccard=jaccard, smooth_nr=0, smooth_dr=0, reduction="none")
    case.expect(case.score(metric), 1 - loss(case.crop(case.probabilities), case.crop(case.reference)))


@pytest.mark.parametrize(("n_spatial", "n"), [(1, 3), (2, 1), (2, 3), (3, 1), (3, 3)])
def test_cross_entropy_is_torchs_negated_and_split_over_the_classes(n_spatial, n):
    case = Case(n_spatial, n, 3, True, torch.float64)
    scores = case.score("cross_entropy")
    pixelwise = functional.cross_entropy(case.crop(case.logits), case.crop(case.labels), reduction="none")
    torch.testing.assert_close(scores.sum(1), -pixelwise.flatten(1).mean(1))
    for c in range(3):
        share = torch.where(case.crop(case.labels) == c, pixelwise, 0)
        torch.testing.assert_close(scores[:, c], -share.flatten(1).mean(1))


@pytest.mark.parametrize(("n_spatial", "n", "channels"), [(1, 3, 1), (2, 3, 2), (3, 1, 1), (3, 3, 2)])
def test_cross_entropy_of_overlapping_labels_is_torchs_binary_one_negated(n_spatial, n, channels):
    case = Case(n_spatial, n, channels, False, torch.float64)
    truth = case.crop(case.reference).double()
    pixelwise = functional.binary_cross_entropy_with_logits(case.crop(case.logits), truth, reduction="none")
    case.expect(case.score("cross_entropy"), -pixelwise.flatten(2).mean(2))


@pytest.mark.parametrize("exclusive", [True, False])
def test_cross_entropy_of_probabilities_equals_that_of_their_logits(exclusive):
    case = Case(2, 3, 3, exclusive, torch.float64)
    expected = case.score("cross_entropy")
    case.logits = case.probabilities
    # Sigmoids are clamped 1e-7 from 0 and 1.
    case.expect(case.score("cross_entropy", activation="none"), expected, atol=1e-4 if not exclusive else 1e-9)


@pytest.mark.parametrize("exclusive", [True, False])
def test_cross_entropy_is_finite_where_a_label_that_is_absent_is_ruled_out(exclusive):
    case = Case(2, 1, 3, exclusive)
    case.reference[:, 2] = 0
    case.reference[:, 0] = 1 - case.reference[:, 1]
    case.logits[:, 2] = -torch.inf
    assert case.score("cross_entropy")[0, 2] == 0
    if exclusive:
        pixelwise = functional.cross_entropy(case.crop(case.logits), case.crop(case.reference[:, 1]))
        torch.testing.assert_close(case.score("cross_entropy").sum(), -pixelwise)


@per_case
def test_sums_and_means_equal_numpys(n_spatial, n, channels, exclusive):
    case = Case(n_spatial, n, channels, exclusive, torch.float64)
    raw = case.crop(case.logits).flatten(2).numpy()
    probabilities = special.softmax(raw, axis=1) if exclusive else special.expit(raw)
    volume = np.zeros(raw.shape[:2])
    for i, c, pixel in np.ndindex(*raw.shape):
        volume[i, c] += raw[i, :, pixel].argmax() == c if exclusive else raw[i, c, pixel] > 0
    expected = {
        "logit_sum": raw.sum(2),
        "logit_mean": raw.mean(2),
        "probability_mean": probabilities.mean(2),
        "soft_volume": probabilities.sum(2),
        "volume": volume,
    }
    for metric, value in expected.items():
        case.expect(case.score(metric, reference=None), value, rtol=1e-12, atol=1e-12)


def test_logits_are_scored_before_the_activation_and_volume_after_the_threshold():
    case = Case(2, 1, 1, False, torch.float64)
    case.expect(case.score("logit_sum", threshold=0.9), case.crop(case.logits).sum())
    case.expect(case.score("volume", threshold=0.9), (special.expit(case.crop(case.logits).numpy()) > 0.9).sum())


# Surface Dice


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


# Empty masks, gradients, orientation


@pytest.mark.parametrize("metric", ["dice", "iou", "soft_dice", "soft_iou", "surface_dice"])
@pytest.mark.parametrize("n_spatial", [1, 2, 3])
def test_empty_against_empty_scores_empty_score_and_else_0(metric, n_spatial):
    spatial = SPATIAL[n_spatial]
    roi = regions.box(spatial, *BOX[n_spatial])
    # Outside the RoI both are full: it is the RoI that is empty.
    empty = (~roi)[None, None].float()
    full = torch.ones_like(empty)
    options = {"roi": roi, "metric": metric, "activation": "none"}
    assert SegmentationTarget(nn.Identity(), reference=empty, **options)(empty).tolist() == [1]
    assert SegmentationTarget(nn.Identity(), reference=empty, empty_score=0, **options)(empty).tolist() == [0]
    assert SegmentationTarget(nn.Identity(), reference=empty, empty_score=0.5, **options)(empty).tolist() == [0.5]
    assert SegmentationTarget(nn.Identity(), reference=empty, **options)(full).tolist() == [0]
    assert SegmentationTarget(nn.Identity(), reference=full, **options)(empty).tolist() == [0]


@pytest.mark.parametrize("empty_score", [-0.1, 1.5, float("nan")])
def test_an_empty_score_outside_0_to_1_is_refused(empty_score):
    with pytest.raises(ValueError, match="empty_score: expected a finite number of at least 0 and at most 1, got"):
        SegmentationTarget(nn.Identity(), metric="volume", empty_score=empty_score)


DIFFERENTIABLE = [
    "soft_dice",
    "soft_iou",
    "cross_entropy",
    "logit_sum",
    "logit_mean",
    "probability_mean",
    "soft_volume",
    "brier",
    "soft_relative_volume",
    "soft_volumetric_similarity",
    "soft_boundary_alignment",
]

# Nothing that is compared with is better or worse there, only larger or smaller.
UNORIENTED = ["relative_volume", "soft_relative_volume"]


def test_every_metrics_surrogate_is_differentiable():
    assert {metric.surrogate for metric in METRICS.values()} == set(DIFFERENTIABLE)
    assert {name for name, metric in METRICS.items() if metric.domain != "labels"} == set(DIFFERENTIABLE)


@pytest.mark.parametrize("metric", DIFFERENTIABLE)
@pytest.mark.parametrize("exclusive", [True, False])
def test_gradients_equal_numeric_ones(metric, exclusive):
    case = Case(2, 1, 2, exclusive, torch.float64)
    target = SegmentationTarget(nn.Identity(), case.roi, case.reference, metric, case.activation)
    assert torch.autograd.gradcheck(target, (case.logits.requires_grad_(),))


@pytest.mark.parametrize("metric", DIFFERENTIABLE)
@pytest.mark.parametrize(("activation", "value"), [("sigmoid", -3.0), ("softmax", -3.0), ("none", 0.0), ("none", 1.0)])
def test_gradients_are_finite_where_the_reference_is_empty(metric, activation, value):
    logits = torch.full((1, 2, 6, 6), value, requires_grad=True)
    reference = torch.zeros(2, 6, 6)
    if activation == "softmax":
        reference[1] = 1
    SegmentationTarget(nn.Identity(), regions.box((6, 6), 1, 3), reference, metric, activation)(logits).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "metric", [name for name, metric in METRICS.items() if metric.needs_reference and name not in UNORIENTED]
)
@pytest.mark.parametrize("exclusive", [True, False])
def test_larger_is_better(metric, exclusive):
    case = Case(2, 3, 3, exclusive)
    imperfect = case.score(metric)
    case.logits = 20.0 * (2 * case.reference - 1)
    perfect = case.score(metric)
    assert (perfect >= imperfect).all()
    assert (perfect > imperfect).any()


# What lies outside, and stacks of RoIs


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 3]),
    st.sampled_from([(1, "sigmoid"), (3, "sigmoid"), (3, "softmax"), (2, "none")]),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 1e6, 1e30]),
)
@settings(max_examples=150)
def test_logits_outside_the_rois_change_no_bit_of_any_score(metric, n_spatial, n, output, n_rois, seed, size):
    channels, activation = output
    generator = torch.Generator().manual_seed(seed)
    spatial = SPATIAL[n_spatial]
    rois = torch.rand((n, n_rois, *spatial), generator=generator) < 0.3
    rois[..., (0,) * n_spatial] = True
    logits = torch.randn((n, channels, *spatial), generator=generator)
    reference = torch.randint(0, 2, (n, channels, *spatial), generator=generator)
    if activation == "softmax":
        reference = functional.one_hot(reference.argmax(1), channels).movedim(-1, 1)
    target = SegmentationTarget(nn.Identity(), rois, reference, metric, activation)
    union = rois.any(1, keepdim=True)
    other = torch.where(union, logits, size * torch.randn(logits.shape, generator=generator))
    assert torch.equal(target(logits), target(other))


@pytest.mark.parametrize("metric", METRICS)
def test_logits_inside_the_roi_do_matter(metric):
    case = Case(2, 1, 1, False)
    case.logits = torch.where(case.reference == 1, case.logits.abs(), -case.logits.abs())
    before = case.score(metric)
    case.logits = torch.where(case.roi, -case.logits.abs(), case.logits)
    assert before != case.score(metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_a_stack_of_rois_scores_as_that_many_targets(metric, shared, n_spatial):
    case = Case(n_spatial, 3, 3, True, torch.float64)
    generator = torch.Generator().manual_seed(5)
    lead = () if shared else (3,)
    stack = torch.rand((*lead, 4, *case.spatial), generator=generator) < 0.4
    scores = case.score(metric, roi=stack)
    assert scores.shape == (3, 3, 4)
    for r in range(4):
        alone = stack[r] if shared else stack[:, r : r + 1]
        torch.testing.assert_close(scores[..., r], case.score(metric, roi=alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exclusive", [True, False])
def test_float64_stays_float64_and_half_is_scored_in_float32(metric, exclusive):
    case = Case(2, 3, 3, exclusive, torch.float64)
    assert case.score(metric).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        half = case.logits.to(dtype)
        case.logits = half
        scores = case.score(metric)
        case.logits = half.float()
        assert scores.dtype == torch.float32
        assert torch.equal(scores, case.score(metric))


# The table


@pytest.fixture
def registered():
    """``metrics.register``; the table is put back."""
    before = dict(METRICS)
    yield metrics.register
    METRICS.clear()
    METRICS.update(before)


def test_a_registered_metric_is_used_by_name(registered):
    def largest(prediction, reference, roi):
        assert reference is None
        return torch.where(roi[:, None], prediction[:, :, None], -torch.inf).flatten(3).amax(3)

    registered("largest", largest, needs_reference=False)
    case = Case(2, 3, 3, True)
    case.expect(case.score("largest", reference=None), case.crop(case.probabilities).flatten(2).amax(2))
    assert METRICS["largest"].surrogate == "largest"


def test_a_registered_metric_gets_its_domain_and_names_its_surrogate(registered):
    seen = {}

    def keep(name):
        def function(prediction, reference, roi):
            seen[name] = prediction
            return metrics.sum_inside(prediction, roi)

        return function

    registered("my_labels", keep("labels"), domain="labels", needs_reference=False, surrogate="my_logits")
    registered("my_logits", keep("logits"), domain="logits", needs_reference=False)
    case = Case(2, 3, 3, True)
    target = SegmentationTarget(nn.Identity(), metric="my_labels", activation="softmax")
    target(case.logits)
    target.surrogate()(case.logits)
    assert torch.equal(seen["labels"], case.prediction.float())
    assert torch.equal(seen["logits"], case.logits)


def test_a_registered_metric_that_needs_a_reference_asks_for_it(registered):
    registered("mine", metrics.dice)
    with pytest.raises(ValueError, match="reference: metric 'mine' compares with a reference"):
        SegmentationTarget(nn.Identity(), metric="mine")


def test_a_registered_metric_of_another_shape_is_refused(registered):
    registered("flat", lambda prediction, reference, roi: prediction.flatten(2).sum(2), needs_reference=False)
    with pytest.raises(ValueError, match=r"metric: 'flat' should return \(N, C, R\) with N=3 and R=1, got \(3, 2\)"):
        SegmentationTarget(nn.Identity(), metric="flat")(Case(2, 3, 2, False).logits)


def test_a_name_that_is_taken_and_an_unknown_domain_are_refused(registered):
    with pytest.raises(ValueError, match="name: a metric called 'dice' exists already"):
        registered("dice", metrics.dice)
    with pytest.raises(ValueError, match=r"domain: expected .*\"labels\".*, got 'pixels'"):
        registered("other", metrics.dice, domain="pixels")
    assert "other" not in METRICS


def test_an_unknown_metric_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"metric: expected one of .*'soft_dice'.* or a callable, got 'jaccard'"):
        SegmentationTarget(nn.Identity(), metric="jaccard")
    with pytest.raises(TypeError, match="metric: expected a name or a callable, got int"):
        SegmentationTarget(nn.Identity(), metric=3)
