"""SegmentationTarget: shapes, settings, predictions, copies, and Captum's own methods on top."""

import copy
import logging
import pickle
import random
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, IntegratedGradients, LayerFeatureAblation, LayerGradCam, Occlusion, Saliency
from target_cases import SIZES, Case, Net, S, dices, every_size, one_hot, random_rois
from torch import nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg._state import undisturbed


@pytest.mark.parametrize(
    ("activation", "channels", "chosen"), [("auto", 1, "sigmoid"), ("auto", 2, "softmax"), ("sigmoid", 2, "sigmoid")]
)
def test_repr_and_log_say_which_activation_was_taken(activation, channels, chosen, caplog):
    target = SegmentationTarget(nn.Identity(), metric="volume", activation=activation)
    assert f"activation={activation}," in repr(target)
    with caplog.at_level(logging.INFO, logger="captum_causalseg.target"):
        for _ in range(2):
            target(torch.linspace(-2, 5, channels * 4).reshape(1, channels, 4))
    assert f"activation={activation if chosen == activation else f'auto -> {chosen}'}," in repr(target)
    expected = [f"activation: chose {chosen!r} for an output of {channels} channel(s) in [-2, 5]"] * (activation == "auto")
    assert [record.getMessage() for record in caplog.records] == expected


def test_the_activation_is_settled_on_the_first_output():
    target = SegmentationTarget(nn.Identity(), metric="probability_mean")
    target(torch.tensor([[[-3.0, 3.0]]]))
    assert target(torch.full((1, 1, 2), 0.5)).item() == pytest.approx(torch.tensor(0.5).sigmoid().item())
    assert target.surrogate("soft_volume")(torch.zeros(1, 1, 2)).item() == 1.0


@every_size
@pytest.mark.parametrize(("metric", "channels"), [("dice", 1), ("dice", 3), ("soft_dice", 3), ("cross_entropy", 1)])
def test_shapes_of_the_scores(metric, channels, n_spatial, n):
    spatial = SIZES[n_spatial]
    classes = () if channels == 1 else (channels,)
    model = Net(n_spatial, channels)
    images = torch.randn(n, 1, *spatial)
    options = {"reference": torch.randint(0, max(channels, 2), spatial), "metric": metric}
    for roi_shape, rois in (
        (None, ()),
        (spatial, ()),
        ((n, 1, *spatial), ()),
        ((1, *spatial), (1,)),
        ((4, *spatial), (4,)),
        ((n, 4, *spatial), (4,)),
        ((1, 4, *spatial), (4,)),
    ):
        roi = None if roi_shape is None else torch.ones(roi_shape, dtype=torch.bool)
        target = SegmentationTarget(model, roi, **options)
        calls = model.calls
        scores = target(images)
        assert scores.shape == (n, *classes, *rois), roi_shape
        assert model.calls == calls + 1
        axes = ("class",) * len(classes) + ("roi",) * len(rois)
        assert target.output_axes(scores.ndim - 1, spatial) == axes


REFUSED_ARGUMENTS = {
    "no mask": (
        {"reference": "argument"},
        (),
        r'reference: this target takes it as its last positional.*\(reference="argument"\)',
    ),
    "one mask of two": (
        {"roi": "argument", "reference": "argument"},
        (torch.ones(2, *S),),
        r'roi: this target takes it as its last positional argument \(roi="argument"\)',
    ),
    "a number": ({"roi": "argument"}, (3,), "roi: this target takes it as its last positional argument"),
    "no batch axis": ({"roi": "argument"}, (torch.ones(S),), r"roi: as an argument it needs a batch axis, got \(8, 9\)"),
    "reference without batch axis": (
        {"reference": "argument"},
        (torch.zeros(S),),
        r"reference: as an argument it needs a batch axis, got \(8, 9\)",
    ),
    "shared": ({"roi": "argument"}, (torch.ones(1, *S),), "roi: it holds 1 examples, the batch 2"),
    "shared reference": ({"reference": "argument"}, (torch.zeros(1, *S),), "reference: it holds 1 examples, the batch 2"),
    "another batch": ({"reference": "argument"}, (torch.zeros(3, 3, *S),), "reference: it holds 3 examples, the batch 2"),
    "empty": ({"roi": "argument"}, (torch.zeros(2, *S),), "roi: it is empty, no pixel is True"),
    "one empty": (
        {"roi": "argument"},
        (torch.eye(2)[..., None, None] * torch.ones(S),),
        r"empty for .* \[\[0, 1\], \[1, 0\]\]",
    ),
    "255": (
        {"roi": "argument"},
        (255 * torch.ones(2, *S),),
        r"roi: expected a boolean mask \(or 0 and 1\), got torch.float32 with other values; a mask of 0 and 255 has to be divided by 255",
    ),
}


@pytest.mark.parametrize("case", REFUSED_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused_before_the_model_runs(case):
    options, arguments, match = REFUSED_ARGUMENTS[case]
    model = Net(2, 3)
    target = SegmentationTarget(model, **{"reference": torch.zeros(S)} | options)
    with pytest.raises(ValueError, match=match):
        target(torch.randn(2, 1, *S), *arguments)
    assert model.calls == 0


REFUSED_AT_ONCE = {
    "empty roi": ({"roi": torch.zeros(S)}, ValueError, "roi: it is empty, no pixel is True"),
    "roi of 255": ({"roi": 255 * np.ones(S)}, ValueError, r"roi: expected a boolean mask \(or 0 and 1\), got torch.float64"),
    "roi of fractions": ({"roi": torch.full(S, 0.5)}, ValueError, "roi: expected a boolean mask"),
    "roi of NaN": ({"roi": torch.full(S, torch.nan)}, ValueError, "roi: expected a boolean mask"),
    "roi by name": ({"roi": "all"}, ValueError, "roi: expected a mask, None or \"argument\", got 'all'"),
    "roi as a list": ({"roi": [[1, 0]]}, TypeError, "roi: expected a tensor or an array, got list"),
    "reference as a list": ({"reference": [[1, 0]]}, TypeError, "reference: expected a tensor or an array, got list"),
    "masked array": (
        {"reference": np.ma.masked_equal(np.eye(8), 0)},
        ValueError,
        r"reference: expected an array with a value everywhere, got a masked one; .*\.filled\(0\)",
    ),
    "complex": (
        {"reference": torch.zeros(S, dtype=torch.complex64)},
        TypeError,
        "reference: expected a mask or labels, got torch.complex64",
    ),
    "array of complex": (
        {"roi": np.ones(S, dtype=complex)},
        TypeError,
        "roi: expected an array of numbers or booleans, got complex128",
    ),
    "array of strings": ({"roi": np.array([["a"]])}, TypeError, "roi: expected an array of numbers or booleans, got <U1"),
    "array of objects": (
        {"reference": np.array([[None]])},
        TypeError,
        "reference: expected an array of numbers or .*, got object",
    ),
    "sparse": ({"reference": torch.eye(8).to_sparse()}, TypeError, "reference: expected a dense tensor, got a sparse one"),
    "seed": ({"seed": None}, ValueError, "seed: expected an integer, got None"),
    "no reference": ({"reference": None, "metric": "dice"}, ValueError, "reference: metric 'dice' compares with a reference"),
    "activation": ({"activation": "relu"}, ValueError, "activation: expected .*, got 'relu'"),
    "model": ({"model": None}, TypeError, "model: expected a torch.nn.Module or a callable, got NoneType"),
}


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_refused_when_it_is_built(case):
    options, error, match = REFUSED_AT_ONCE[case]
    with pytest.raises(error, match=match):
        SegmentationTarget(**{"model": nn.Identity(), "metric": "volume"} | options)


@pytest.mark.parametrize(
    ("inputs", "got"), [((torch.zeros(2, 3),), r"\(2, 3\)"), ((np.zeros((1, 1, 8, 9)), 3), "ndarray, int"), ((), "nothing")]
)
def test_inputs_without_an_image_are_refused(inputs, got):
    with pytest.raises(
        ValueError, match=rf"inputs: expected an image batch \(N, C, \*spatial\) as the first tensor, got {got}"
    ):
        SegmentationTarget(nn.Identity(), metric="volume")(*inputs)


@every_size
@pytest.mark.parametrize(("channels", "activation"), [(1, "auto"), (3, "auto"), (3, "sigmoid"), (2, "none")])
def test_the_prediction_as_reference_has_dice_1(n_spatial, n, channels, activation):
    model, images = Net(n_spatial, channels), torch.randn(n, 1, *SIZES[n_spatial])
    rois = random_rois(n, 2, *SIZES[n_spatial])
    target = SegmentationTarget.from_prediction(model, images, roi=rois, activation=activation, threshold=0.6)
    assert torch.equal(target(images), torch.ones(n, channels, 2).squeeze(1) if channels == 1 else torch.ones(n, channels, 2))
    assert torch.equal(target.reference, target.predict(images))
    assert target.reference.dtype == torch.bool
    assert (target.surrogate()(images) != 1).all()
    assert (target(torch.randn(images.shape)) < 1).any()


def test_from_prediction_passes_further_inputs_and_arguments_on():
    def model(first, second, factor):
        return (first + second) * factor

    first, second = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    target = SegmentationTarget.from_prediction(model, (first, second), -2.0, metric="iou")
    assert torch.equal(target.reference, first + second < 0)
    assert target(first, second, -2.0).tolist() == [1, 1]
    assert target(first, second, 2.0).tolist() == [0, 0]


def test_from_prediction_settles_the_activation():
    images = torch.tensor([[[-1.0, 2.0, 0.25]]])
    target = SegmentationTarget.from_prediction(nn.Identity(), images, metric="probability_mean")
    assert "activation=auto -> sigmoid" in repr(target)
    # On its own this would read as probabilities.
    assert target(torch.zeros(1, 1, 3)).item() == 0.5


def test_from_prediction_takes_no_reference():
    with pytest.raises(TypeError, match="reference: from_prediction takes the model's own prediction"):
        SegmentationTarget.from_prediction(nn.Identity(), torch.zeros(1, 1, 4, 4), reference=torch.zeros(4, 4))


def test_predict_leaves_mode_buffers_and_random_states_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(1), nn.Conv2d(1, 3, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.last(self.norm(x)) + torch.randn(()) + float(np.random.rand()) + random.random()

    model, images = Counting().train(), torch.randn(2, 1, 6, 6)
    target = SegmentationTarget(model, metric="volume")
    model.last.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.warns(UserWarning, match="training mode"):
        first = target.predict(images)
    assert [module.training for module in target.modules()] == [True, True, True, False]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    with pytest.warns(UserWarning, match="training mode"):
        assert torch.equal(target.predict(images), first)
    assert not first.requires_grad


def test_another_scoring_keeps_model_masks_and_output():
    images, labels, roi = torch.randn(2, 1, 6, 6), torch.randint(0, 2, (2, 6, 6)), random_rois(6, 6)
    target = SegmentationTarget(lambda x: {"main": x}, roi, labels, output="main")
    other = target.with_scoring(metric="iou", activation="none", threshold=0.7, empty_score=0.0)
    expected = SegmentationTarget(nn.Identity(), roi, labels, "iou", "none", 0.7, 0.0)
    assert torch.equal(other(images), expected(images))
    arguments = SegmentationTarget(nn.Identity(), "argument", "argument")
    moved = arguments.with_scoring(metric="iou", activation="none", threshold=0.7, empty_score=0.0)
    assert torch.equal(moved(images, roi.expand(2, -1, -1), labels), expected(images))


def test_device_ids_are_the_models_or_absent():
    model = Net(2, 1)
    assert not hasattr(SegmentationTarget(model, metric="volume"), "device_ids")
    assert not hasattr(SegmentationTarget(lambda x: x, metric="volume"), "device_ids")
    model.device_ids = [0, 1]
    target = SegmentationTarget(model, metric="volume")
    assert target.device_ids == [0, 1]
    assert target.surrogate().device_ids == [0, 1]


def test_modes_move_with_the_model_and_masks_with_the_device():
    model = Net(2, 1).train()
    target = SegmentationTarget(model, torch.ones(6, 6), torch.zeros(6, 6), "dice")
    assert target.training
    target.eval()
    assert not model.training
    assert not SegmentationTarget(model, metric="volume").training
    assert {name for name, _ in target.named_buffers()} == {"roi", "reference"}
    assert target.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}
    assert target.to("meta").roi.device.type == "meta"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda target: pickle.loads(pickle.dumps(target))])
def test_it_can_be_copied_and_pickled(clone):
    images = torch.randn(2, 1, 6, 6)
    target = SegmentationTarget(Net(2, 3), regions.box((6, 6), 1, 4), torch.randint(0, 3, (6, 6)), "soft_dice")
    assert torch.equal(clone(target)(images), target(images))


FROZEN = {
    "script": lambda model, images: torch.jit.freeze(torch.jit.script(model)),
    "trace": lambda model, images: torch.jit.freeze(torch.jit.trace(model, images)),
    "optimized": lambda model, images: torch.jit.optimize_for_inference(torch.jit.trace(model, images)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("how", FROZEN)
def test_frozen_torchscript_has_neither_mode_nor_parameters(how):
    norm = nn.BatchNorm2d(4)
    norm.running_mean += 0.1
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Dropout(0.9), nn.Conv2d(4, 3, 3, padding=1)).eval()
    images, donors = torch.randn(2, 1, 12, 12), torch.randn(5, 1, 12, 12)
    frozen = FROZEN[how](model, images)
    assert not hasattr(frozen, "training")
    roi = regions.box((12, 12), start=4, size=4)
    target = SegmentationTarget.from_prediction(frozen, images, roi=roi)
    expected = SegmentationTarget.from_prediction(model, images, roi=roi)
    assert not target.training
    assert torch.equal(target(donors[:2]), expected(donors[:2]))
    assert torch.equal(copy.deepcopy(target).train().eval()(donors[:2]), expected(donors[:2]))
    options = {"baselines": donors, "target": 1, "block_size": 4, "sampling": "uniform"}
    found = AverageTreatmentEffect(target).attribute(images, **options)
    torch.testing.assert_close(found, AverageTreatmentEffect(expected).attribute(images, **options))
    assert found.any()
    # Seen as what it is, too, and inside of another module.
    around = nn.Sequential(frozen, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert AverageTreatmentEffect(around).attribute(images, **options).any()
    with undisturbed(frozen):
        frozen(images)


def test_repr_names_score_and_masks():
    target = SegmentationTarget(nn.Identity(), torch.ones(4, 6, 6), "argument", "iou", "softmax", 0.3)
    described = "metric=iou, roi=(4, 6, 6), reference=argument, activation=softmax, threshold=0.3"
    assert re.search(re.escape(described), repr(target))


METHODS = {
    "Saliency": lambda c, t: (Saliency(t.surrogate()), {}),
    "IntegratedGradients": lambda c, t: (IntegratedGradients(t.surrogate()), {"n_steps": 4}),
    "LayerGradCam": lambda c, t: (LayerGradCam(t.surrogate(), c.model.first), {}),
    "Occlusion": lambda c, t: (
        Occlusion(t),
        {"sliding_window_shapes": c.window, "strides": c.window, "perturbations_per_eval": 3},
    ),
    "FeatureAblation": lambda c, t: (FeatureAblation(t), {"feature_mask": c.blocks, "perturbations_per_eval": 3}),
    "LayerFeatureAblation": lambda c, t: (LayerFeatureAblation(t, c.model.first), {"layer_mask": c.blocks}),
}


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_captums_methods_run_on_it(method, n_spatial):
    case = Case(n_spatial)
    explainer, options = METHODS[method](case, case.target)
    attributions = [explainer.attribute(case.images, target=(c, r), **options) for c in range(3) for r in range(2)]
    assert all(one.isfinite().all() and (one.abs().flatten(1).sum(1) > 0).all() for one in attributions)
    assert attributions[0].shape[2:] == case.images.shape[2:]
    assert not any(torch.equal(first, second) for first, second in combinations(attributions, 2))


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_captums_methods_carry_masks_with_their_examples(method, n_spatial):
    case = Case(n_spatial)
    explainer, options = METHODS[method](case, case.travelling)
    together = explainer.attribute(case.images, target=(1, 0), additional_forward_args=case.masks, **options)
    for i in range(2):
        masks = tuple(mask[i : i + 1] for mask in case.masks)
        alone = explainer.attribute(case.images[i : i + 1], target=(1, 0), additional_forward_args=masks, **options)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-6)


def test_occlusion_is_the_difference_of_two_dice_scores():
    case = Case(2)
    attribution = Occlusion(case.target).attribute(
        case.images, target=(2, 1), sliding_window_shapes=(1, 4, 4), strides=(1, 4, 4), baselines=0.3
    )
    occluded = case.images.detach().clone()
    occluded[..., 4:8, :4] = 0.3
    scores = []
    for images in (case.images, occluded):
        hard = one_hot(case.model(images).argmax(1), 3)
        truth = one_hot(case.target.reference[None], 3).expand(2, -1, -1, -1)
        scores.append(dices(hard, truth, case.target.roi[None].expand(2, -1, -1, -1))[:, 2, 1])
    torch.testing.assert_close(attribution[:, 0, 5, 1], scores[0] - scores[1])


def test_a_blank_first_output_does_not_settle_the_activation():
    target = SegmentationTarget(nn.Identity(), metric="probability_mean")
    assert float(target(torch.zeros(1, 1, 4, 4))) == 0.5
    logits = 5 * torch.randn(1, 1, 4, 4)
    assert float(target(logits)) == pytest.approx(float(logits.sigmoid().mean()))


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_prediction_and_reference_of_a_call_class_by_class(n_spatial):
    shape = (6,) * n_spatial
    model = (nn.Conv2d, nn.Conv3d)[n_spatial - 2](1, 3, 3, padding=1)
    images, labels = torch.rand(2, 1, *shape), torch.randint(3, (2, *shape))
    target = SegmentationTarget(model, reference="argument")
    prediction, reference = target.segmentations(images, labels)
    assert torch.equal(prediction, target.predict(images))
    assert torch.equal(reference, torch.stack([labels == c for c in range(3)], 1))
    same = SegmentationTarget(model, reference=labels[0]).segmentations(images)[1]
    assert torch.equal(same, torch.stack([labels[:1] == c for c in range(3)], 1).expand(2, 3, *shape))
    assert SegmentationTarget(model, metric="volume").segmentations(images)[1] is None
