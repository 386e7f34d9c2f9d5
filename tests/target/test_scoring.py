"""From outputs to scores: activations, thresholds, precision, and metrics of one's own."""

import math

import pytest
import torch
from target_cases import SIZES, dices, every_size, one_hot, random_rois
from torch import nn

from captum_causalseg import SegmentationTarget, regions


@every_size
def test_a_single_channel_goes_through_a_sigmoid(n_spatial, n):
    logits, labels = torch.randn(n, 1, *SIZES[n_spatial]), torch.randint(0, 2, (n, *SIZES[n_spatial]))
    roi = random_rois(*SIZES[n_spatial])
    target = SegmentationTarget(nn.Identity(), roi, labels)
    expected = dices(logits > 0, labels[:, None], roi.expand(n, 1, *roi.shape))
    torch.testing.assert_close(target(logits), expected[:, 0, 0])
    assert "activation=auto -> sigmoid" in repr(target)


@every_size
def test_several_channels_go_through_a_softmax(n_spatial, n):
    logits, labels = torch.randn(n, 3, *SIZES[n_spatial]), torch.randint(0, 3, (n, *SIZES[n_spatial]))
    roi = random_rois(*SIZES[n_spatial])
    target = SegmentationTarget(nn.Identity(), roi, labels)
    expected = dices(one_hot(logits.argmax(1), 3), one_hot(labels, 3), roi.expand(n, 1, *roi.shape))
    torch.testing.assert_close(target(logits), expected[..., 0])
    assert "activation=auto -> softmax" in repr(target)


@every_size
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_labels_that_overlap_go_through_a_sigmoid_each(n_spatial, n, threshold):
    logits = 3 * torch.randn(n, 3, *SIZES[n_spatial])
    masks, roi = torch.randint(0, 2, logits.shape), random_rois(*SIZES[n_spatial])
    target = SegmentationTarget(nn.Identity(), roi, masks, activation="sigmoid", threshold=threshold)
    hard = logits > torch.logit(torch.tensor(threshold))
    assert (hard.sum(1) > 1).any()
    torch.testing.assert_close(target(logits), dices(hard, masks, roi.expand(n, 1, *roi.shape))[..., 0])
    assert torch.equal(target.predict(logits), hard)


@every_size
@pytest.mark.parametrize("channels", [1, 3])
def test_raw_outputs_are_thresholded_as_they_are(n_spatial, n, channels):
    outputs = 4 * torch.randn(n, channels, *SIZES[n_spatial])
    target = SegmentationTarget(nn.Identity(), metric="volume", activation="none")
    expected = (outputs > 0.5).flatten(2).sum(2).float()
    assert torch.equal(target(outputs), expected[:, 0] if channels == 1 else expected)


def test_a_pixel_at_the_threshold_belongs_to_no_class():
    outputs = torch.tensor([[[0.5, 0.5000001, 0.4999999, 0.0]]])
    assert SegmentationTarget(nn.Identity(), metric="volume", activation="none")(outputs).tolist() == [1]
    assert SegmentationTarget(nn.Identity(), metric="volume", activation="sigmoid")(torch.zeros(1, 1, 4)).tolist() == [0]


@pytest.mark.parametrize("threshold", [-1, 0, 1, 127.5])
def test_a_threshold_that_no_probability_can_cross_is_refused_where_it_matters(threshold):
    logits, labels = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (8, 8))
    match = rf'threshold: expected a probability between 0 and 1, .* sigmoid, got {threshold}; with activation="none"'
    for activation in ("auto", "sigmoid"):
        target = SegmentationTarget(nn.Identity(), None, labels, activation=activation, threshold=threshold)
        for call in (target, target.predict):
            with pytest.raises(ValueError, match=match):
                call(logits)
    # It is on the output's own scale, or not used at all.
    raw = SegmentationTarget(nn.Identity(), metric="volume", activation="none", threshold=threshold)
    assert raw(logits + threshold).item() == (logits > 0).sum()
    exclusive = SegmentationTarget(nn.Identity(), None, labels, threshold=threshold)
    assert exclusive(torch.randn(1, 2, 8, 8)).shape == (1, 2)


@every_size
def test_outputs_that_are_probabilities_already_are_taken_as_they_are(n_spatial, n):
    logits = 3 * torch.randn(n, 3, *SIZES[n_spatial])
    for probabilities, hard in (
        (logits.softmax(1), one_hot(logits.argmax(1), 3)),  # the largest wins, also below the threshold
        (logits.sigmoid(), logits > 0),
        (logits[:, :1].sigmoid(), logits[:, :1] > 0),
    ):
        soft = SegmentationTarget(nn.Identity(), metric="probability_mean")
        torch.testing.assert_close(soft(probabilities).reshape(n, -1), probabilities.flatten(2).mean(2))
        assert torch.equal(soft.predict(probabilities), hard.bool())
        assert "activation=auto -> none" in repr(soft)


def test_axes_of_ones_own_metric_are_scores():
    target = SegmentationTarget(nn.Identity(), metric=lambda prediction, reference, roi: prediction)
    assert [target.output_axes(n, (4,)) for n in (1, 2)] == [("score",), ("score_0", "score_1")]


def test_each_example_is_scored_with_its_own_masks(per_example):
    p = per_example
    for labels in (p.labels, p.labels[:, None]):
        torch.testing.assert_close(SegmentationTarget(nn.Identity(), p.rois, labels)(p.logits), p.expected)
        one = SegmentationTarget(nn.Identity(), p.rois[:, :1], labels)
        torch.testing.assert_close(one(p.logits), p.expected[..., 0])


def test_logits_computed_elsewhere_are_scored_alike(per_example):
    p = per_example
    target = SegmentationTarget(lambda image, shift: image + shift, "argument", "argument")
    call = p.logits - 5, 5 * torch.ones_like(p.logits), p.rois, p.labels
    inputs = target.model_inputs(*call)
    assert len(inputs) == 2
    assert inputs[0] is call[0]
    assert inputs[1] is call[1]
    torch.testing.assert_close(target.score(p.logits, *call), p.expected)
    assert torch.equal(target.score(target.logits(*inputs), *call), target(*call))


def test_a_label_that_is_absent_everywhere_scores_empty_score_where_it_is_not_predicted():
    logits = torch.stack([torch.ones(4), torch.zeros(4), -torch.ones(4)])[None]
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(4), empty_score=0.25)
    assert target(logits).tolist() == [[1, 0.25, 0.25]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("where", [..., (0, 0, 0, 0)])
def test_nan_from_the_model_is_an_error(channels, where):
    logits = torch.randn(2, channels, 4, 4)
    logits[where] = torch.nan
    target = SegmentationTarget(nn.Identity(), regions.box((4, 4), 2, 2), torch.zeros(4, 4))
    for call in (target, target.predict, lambda x: SegmentationTarget.from_prediction(nn.Identity(), x)):
        with pytest.raises(ValueError, match="model: it returned NaN"):
            call(logits)


def test_logits_of_half_precision_are_hard_where_single_precision_is():
    # Its sigmoid is above 0.5 by less than bfloat16 can tell.
    logits = torch.full((1, 1, 4, 4), 1e-3, dtype=torch.bfloat16)
    target = SegmentationTarget.from_prediction(nn.Identity(), logits, activation="sigmoid")
    assert target.reference.all()
    assert target(logits).item() == 1


@every_size
@pytest.mark.parametrize("roi_shape", [None, (), (4,), "N,1", "N,4"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_callable_metric_gets_the_documented_shapes(n_spatial, n, roi_shape, shared):
    spatial = SIZES[n_spatial]
    lead = {"N,1": (n, 1), "N,4": (n, 4)}.get(roi_shape, roi_shape)
    n_rois = 1 if lead in (None, ()) else lead[-1]
    images, labels = torch.randn(n, 3, *spatial), torch.randint(0, 3, spatial if shared else (n, *spatial))
    seen = {}

    def metric(prediction, reference, roi):
        seen.update(prediction=prediction, reference=reference, roi=roi)
        return torch.stack([prediction.flatten(1).sum(1), roi.flatten(1).sum(1)], 1)

    roi = None if lead is None else torch.ones((*lead, *spatial), dtype=torch.bool)
    scores = SegmentationTarget(nn.Identity(), roi, labels, metric)(images)
    assert scores.shape == (n, 2)
    torch.testing.assert_close(seen["prediction"], images.softmax(1))
    assert torch.equal(seen["reference"], one_hot(labels.expand(n, *spatial), 3).float())
    assert seen["roi"].shape == (n, n_rois, *spatial)
    assert seen["roi"].dtype == torch.bool
    assert seen["roi"].all()


def test_a_callable_metric_without_reference_gets_none_and_keeps_its_shape():
    def metric(prediction, reference, roi):
        assert reference is None
        return prediction[:, 0, :2, :3]

    images = torch.randn(2, 1, 6, 6)
    assert SegmentationTarget(nn.Identity(), metric=metric)(images).shape == (2, 2, 3)
    assert "metric=metric, roi=none, reference=none" in repr(SegmentationTarget(nn.Identity(), metric=metric))


@pytest.mark.parametrize(
    ("returned", "got"), [(torch.tensor(1.0), r"\(\)"), (torch.zeros(3, 2), r"\(3, 2\)"), (0.5, "float"), (None, "NoneType")]
)
def test_what_a_callable_metric_returns_is_checked(returned, got):
    target = SegmentationTarget(nn.Identity(), metric=lambda prediction, reference, roi: returned)
    with pytest.raises(ValueError, match=rf"metric: expected scores of shape \(N, K\) with N=2, got {got}"):
        target(torch.zeros(2, 1, 6, 6))


def test_infinite_values_outside_every_roi_do_not_matter():
    logits = torch.randn(1, 2, 8, 8)
    roi = regions.box((8, 8), 2, 3)
    spoiled = torch.where(roi, logits, torch.tensor([-math.inf, math.inf]).view(1, 2, 1, 1))
    for metric in ("logit_sum", "logit_mean", "probability_mean", "soft_dice", "dice", "volume"):
        target = SegmentationTarget(nn.Identity(), roi, torch.ones(8, 8), metric, activation="softmax")
        torch.testing.assert_close(target(spoiled), target(logits), msg=metric)


def test_softmax_of_a_single_channel_is_refused():
    with pytest.raises(ValueError, match='activation: "softmax" of a single channel is 1 everywhere'):
        SegmentationTarget(nn.Identity(), metric="volume", activation="softmax")(torch.zeros(1, 1, 4, 4))
