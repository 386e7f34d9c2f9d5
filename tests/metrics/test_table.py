"""The table of scores: what every entry of it promises, and entries of one's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import BOX, SPATIAL, Case
from torch import nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget, metrics, regions
from captum_causalseg.metrics import METRICS


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
    "soft_best_dice",
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
