"""Gradients of scores: the surrogate's, and why a hard score has none."""

import copy

import pytest
import torch
from captum.attr import (
    GuidedBackprop,
    IntegratedGradients,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Saliency,
)
from target_cases import SIZES, Case, Net, random_rois
from torch import nn

from captum_causalseg import SegmentationTarget, regions


@pytest.mark.parametrize(
    ("metric", "twin"),
    [
        ("dice", "soft_dice"),
        ("soft_dice", "soft_dice"),
        ("iou", "soft_iou"),
        ("surface_dice", "soft_dice"),
        ("volume", "soft_volume"),
        ("logit_sum", "logit_sum"),
        ("logit_mean", "logit_mean"),
        ("probability_mean", "probability_mean"),
        ("cross_entropy", "cross_entropy"),
    ],
)
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_the_surrogate_scores_the_twin_metric_with_the_same_model_and_masks(metric, twin, n_spatial):
    model, images = Net(n_spatial, 3), torch.randn(2, 1, *SIZES[n_spatial], requires_grad=True)
    masks = random_rois(2, *SIZES[n_spatial]), torch.randint(0, 3, (2, *SIZES[n_spatial]))
    target = SegmentationTarget(model, *masks, metric, empty_score=0.5)
    surrogate = target.surrogate()
    assert surrogate.model is model
    assert surrogate.metric == twin
    assert target.metric == metric
    scores = surrogate(images)
    assert torch.equal(scores, SegmentationTarget(model, *masks, twin, empty_score=0.5)(images))
    scores.sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_the_surrogate_can_be_another_metric():
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(6, 6))
    assert target.surrogate("cross_entropy").metric == "cross_entropy"
    assert target.metric == "dice"


@pytest.mark.parametrize("metric", ["dice", "iou", "volume", "surface_dice"])
def test_a_hard_metric_is_no_surrogate(metric):
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(6, 6))
    with pytest.raises(ValueError, match=f"metric: '{metric}' is scored on hard labels and has no gradient"):
        target.surrogate(metric)


def test_a_surrogate_that_compares_needs_a_reference():
    with pytest.raises(ValueError, match="reference: metric 'soft_dice' compares with a reference segmentation"):
        SegmentationTarget(nn.Identity(), metric="volume").surrogate("soft_dice")


@pytest.mark.parametrize("as_module", [True, False])
def test_a_callable_metric_is_its_own_surrogate_unless_another_is_named(as_module):
    class Mean(nn.Module):
        def forward(self, prediction, reference, roi):
            return prediction.flatten(2).mean(2)

    metric = Mean() if as_module else Mean().forward
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(6, 6), metric)
    images = torch.randn(2, 3, 6, 6)
    assert torch.equal(target.surrogate()(images), target(images))
    named = target.surrogate("soft_dice")
    assert torch.equal(named(images), SegmentationTarget(nn.Identity(), None, torch.zeros(6, 6), "soft_dice")(images))
    assert torch.equal(target(images), images.softmax(1).flatten(2).mean(2))


HARD = r"metric: 'dice' is scored on hard labels and has no gradient; .*: target.surrogate\(\) \(soft_dice\)"
LAYER_METHODS = {
    "LayerGradCam": (LayerGradCam, {}),
    "LayerIntegratedGradients": (LayerIntegratedGradients, {"n_steps": 2}),
    "LayerGradientXActivation": (LayerGradientXActivation, {}),
}


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients", "ignore:Setting backward hooks")
@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", ["Saliency", "IntegratedGradients", "GuidedBackprop", *LAYER_METHODS])
def test_gradient_methods_on_a_hard_score_are_sent_to_its_twin(method, n_spatial, frozen):
    model, spatial = Net(n_spatial, 3).requires_grad_(not frozen), SIZES[n_spatial]
    target = SegmentationTarget(model, regions.box(spatial, 1, 4), torch.randint(0, 3, spatial))

    def run(scored):
        images = torch.randn(2, 1, *spatial)
        if method in LAYER_METHODS:
            face, options = LAYER_METHODS[method]
            return face(scored, model.first).attribute(images, target=1, **options)
        face = {"Saliency": Saliency, "IntegratedGradients": IntegratedGradients, "GuidedBackprop": GuidedBackprop}[method]
        return face(scored).attribute(images, target=1)

    with pytest.raises(RuntimeError, match=HARD):
        run(target)
    assert run(target.surrogate()).any()


def test_why_there_is_no_gradient():
    model, images, labels = Net(2, 3), torch.randn(2, 1, 8, 9, requires_grad=True), torch.randint(0, 3, (8, 9))

    def own(prediction, reference, roi):
        return (prediction > 0.5).float().mean((2, 3))

    for target, match in (
        (
            SegmentationTarget(model, None, labels, "iou"),
            r"metric: 'iou' is scored on hard labels .* target.surrogate\(\) \(soft_iou\)",
        ),
        (
            SegmentationTarget(model, None, labels, own),
            r"metric: the scores of 'own' have no gradient.*target.surrogate\(\"soft_dice\"\)",
        ),
        (SegmentationTarget(torch.no_grad()(model.forward), None, labels), "model: its output is cut off from its inputs"),
        (
            SegmentationTarget(lambda x: model(x).argmax(1), None, labels),
            "model: it returns labels .torch.int64., which have no gradient",
        ),
        (SegmentationTarget(lambda x: model(x) + torch.rand(()), None, labels, n_samples=2), HARD),
    ):
        with pytest.raises(RuntimeError, match=match):
            target(images)[:, 1].sum().backward()
    hard = SegmentationTarget(model, None, labels)
    with pytest.raises(RuntimeError, match=HARD):
        torch.func.grad(lambda x: hard(x).sum())(images.detach())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_whoever_wants_no_gradient_gets_plain_numbers(context):
    model, images, labels = Net(2, 3), torch.randn(2, 1, 8, 9), torch.randint(0, 3, (8, 9))
    target = SegmentationTarget(model, None, labels)
    plain = target(images)
    assert not plain.requires_grad
    followed = target(images.clone().requires_grad_())
    assert torch.equal(followed, plain)
    with context():
        handle = model.first.register_forward_hook(lambda *_: None)
        assert not target(images.clone()).requires_grad
        handle.remove()
    assert copy.deepcopy(target)(images).grad_fn is None


def test_masks_of_the_twin_do_not_touch_the_target():
    target = SegmentationTarget(nn.Identity(), torch.ones(2, 1, 6, 6), torch.zeros(2, 6, 6))
    target.with_masks_as_arguments(2, 2)
    twin = target.surrogate()
    twin.roi = None
    assert target.roi is not None
    assert target.reference is not None


def test_saliency_is_the_gradient_of_the_soft_dice():
    case = Case(2)
    probabilities = case.model(case.images).softmax(1)[:, 2]
    truth, roi = (case.target.reference == 2).float(), case.target.roi[0].float()
    overlap = 2 * (probabilities * truth * roi).sum((1, 2))
    soft = overlap / ((probabilities * roi).sum((1, 2)) + (truth * roi).sum())
    (gradient,) = torch.autograd.grad(soft.sum(), case.images)
    attribution = Saliency(case.target.surrogate()).attribute(case.images, target=(2, 0), abs=False)
    torch.testing.assert_close(attribution, gradient)


def test_hooks_on_a_surrogate_are_not_hooks_on_the_target():
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(4, 4))
    target.surrogate().register_forward_hook(lambda *a: None)
    assert not target._forward_hooks
