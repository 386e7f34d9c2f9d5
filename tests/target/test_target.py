"""SegmentationTarget: shapes, masks, activations, finding the logits, and Captum's own methods on top."""

import copy
import logging
import math
import pickle
import random
import re
from collections import OrderedDict, namedtuple
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    GuidedBackprop,
    IntegratedGradients,
    LayerFeatureAblation,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Occlusion,
    Saliency,
)
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg._state import undisturbed

SPATIAL = {1: (10,), 2: (8, 9), 3: (6, 5, 7)}
CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """Two convolutions from one channel to ``classes``, and a count of how often it ran."""

    def __init__(self, n_spatial: int, classes: int) -> None:
        super().__init__()
        self.first = CONVOLUTION[n_spatial](1, 4, 3, padding=1)
        self.last = CONVOLUTION[n_spatial](4, classes, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 3 * self.last(torch.tanh(self.first(x)))


def dice(first: Tensor, second: Tensor, roi: Tensor, empty_score: float = 1.0) -> float:
    """Of one class of one example, by counting."""
    first, second = first.numpy().astype(bool) & roi.numpy(), second.numpy().astype(bool) & roi.numpy()
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else empty_score


def dices(prediction: Tensor, reference: Tensor, rois: Tensor) -> Tensor:
    """``(N, C, R)`` of one-hot ``(N, C, ...)`` and RoIs ``(N, R, ...)``."""
    n, classes = prediction.shape[:2]
    return torch.tensor(
        [[[dice(prediction[i, c], reference[i, c], roi) for roi in rois[i]] for c in range(classes)] for i in range(n)]
    )


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return functional.one_hot(labels, classes).movedim(-1, 1)


def random_rois(*shape: int) -> Tensor:
    return torch.rand(shape) < 0.5


every_size = pytest.mark.parametrize(("n_spatial", "n"), [(1, 3), (2, 1), (2, 3), (3, 1), (3, 3)])


# Activations: which pixels belong to a class


@every_size
def test_a_single_channel_goes_through_a_sigmoid(n_spatial, n):
    logits, labels = torch.randn(n, 1, *SPATIAL[n_spatial]), torch.randint(0, 2, (n, *SPATIAL[n_spatial]))
    roi = random_rois(*SPATIAL[n_spatial])
    target = SegmentationTarget(nn.Identity(), roi, labels)
    expected = dices(logits > 0, labels[:, None], roi.expand(n, 1, *roi.shape))
    torch.testing.assert_close(target(logits), expected[:, 0, 0])
    assert "activation=auto -> sigmoid" in repr(target)


@every_size
def test_several_channels_go_through_a_softmax(n_spatial, n):
    logits, labels = torch.randn(n, 3, *SPATIAL[n_spatial]), torch.randint(0, 3, (n, *SPATIAL[n_spatial]))
    roi = random_rois(*SPATIAL[n_spatial])
    target = SegmentationTarget(nn.Identity(), roi, labels)
    expected = dices(one_hot(logits.argmax(1), 3), one_hot(labels, 3), roi.expand(n, 1, *roi.shape))
    torch.testing.assert_close(target(logits), expected[..., 0])
    assert "activation=auto -> softmax" in repr(target)


@every_size
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_labels_that_overlap_go_through_a_sigmoid_each(n_spatial, n, threshold):
    logits = 3 * torch.randn(n, 3, *SPATIAL[n_spatial])
    masks, roi = torch.randint(0, 2, logits.shape), random_rois(*SPATIAL[n_spatial])
    target = SegmentationTarget(nn.Identity(), roi, masks, activation="sigmoid", threshold=threshold)
    hard = logits > torch.logit(torch.tensor(threshold))
    assert (hard.sum(1) > 1).any()
    torch.testing.assert_close(target(logits), dices(hard, masks, roi.expand(n, 1, *roi.shape))[..., 0])
    assert torch.equal(target.predict(logits), hard)


@every_size
@pytest.mark.parametrize("channels", [1, 3])
def test_raw_outputs_are_thresholded_as_they_are(n_spatial, n, channels):
    outputs = 4 * torch.randn(n, channels, *SPATIAL[n_spatial])
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
    logits = 3 * torch.randn(n, 3, *SPATIAL[n_spatial])
    for probabilities, hard in (
        (logits.softmax(1), one_hot(logits.argmax(1), 3)),  # the largest wins, also below the threshold
        (logits.sigmoid(), logits > 0),
        (logits[:, :1].sigmoid(), logits[:, :1] > 0),
    ):
        soft = SegmentationTarget(nn.Identity(), metric="probability_mean")
        torch.testing.assert_close(soft(probabilities).reshape(n, -1), probabilities.flatten(2).mean(2))
        assert torch.equal(soft.predict(probabilities), hard.bool())
        assert "activation=auto -> none" in repr(soft)


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
    expected = [f"activation: took {chosen!r} for an output of {channels} channel(s) in [-2, 5]"] * (activation == "auto")
    assert [record.getMessage() for record in caplog.records] == expected


def test_the_activation_is_settled_on_the_first_output():
    target = SegmentationTarget(nn.Identity(), metric="probability_mean")
    target(torch.tensor([[[-3.0, 3.0]]]))
    assert target(torch.full((1, 1, 2), 0.5)).item() == pytest.approx(torch.tensor(0.5).sigmoid().item())
    assert target.surrogate("soft_volume")(torch.zeros(1, 1, 2)).item() == 1.0


# Shapes of the scores


@every_size
@pytest.mark.parametrize(("metric", "channels"), [("dice", 1), ("dice", 3), ("soft_dice", 3), ("cross_entropy", 1)])
def test_shapes_of_the_scores(metric, channels, n_spatial, n):
    spatial = SPATIAL[n_spatial]
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("rois", "lead"), [((), (2,)), ((), (2, 1)), ((4,), (2, 4))])
def test_shapes_and_axes_with_rois_as_arguments(channels, rois, lead):
    target = SegmentationTarget(Net(2, channels), "argument", torch.zeros(8, 8))
    classes = () if channels == 1 else (channels,)
    scores = target(torch.randn(2, 1, 8, 8), torch.ones((*lead, 8, 8), dtype=torch.bool))
    assert scores.shape == (2, *classes, *rois)
    assert target.output_axes(scores.ndim - 1, (8, 8)) == ("class",) * len(classes) + ("roi",) * len(rois)


def test_axes_of_ones_own_metric_are_scores():
    target = SegmentationTarget(nn.Identity(), metric=lambda prediction, reference, roi: prediction)
    assert [target.output_axes(n, (4,)) for n in (1, 2)] == [("score",), ("score_0", "score_1")]


# Masks per example, through the constructor and as arguments


@pytest.fixture(params=[(1, 3, 1), (2, 1, 3), (2, 3, 1), (2, 3, 3), (3, 1, 1), (3, 3, 3)])
def per_example(request):
    """Logits, and RoIs and labels of each example, with the Dice scores they must give."""
    n_spatial, n, channels = request.param
    spatial = SPATIAL[n_spatial]
    logits, labels = torch.randn(n, channels, *spatial), torch.randint(0, max(channels, 2), (n, *spatial))
    rois = random_rois(n, 2, *spatial)
    hard = (logits > 0) if channels == 1 else one_hot(logits.argmax(1), channels)
    expected = dices(hard, labels[:, None] if channels == 1 else one_hot(labels, channels), rois)
    return SimpleNamespace(logits=logits, labels=labels, rois=rois, expected=expected[:, 0] if channels == 1 else expected)


def test_each_example_is_scored_with_its_own_masks(per_example):
    p = per_example
    for labels in (p.labels, p.labels[:, None]):
        torch.testing.assert_close(SegmentationTarget(nn.Identity(), p.rois, labels)(p.logits), p.expected)
        one = SegmentationTarget(nn.Identity(), p.rois[:, :1], labels)
        torch.testing.assert_close(one(p.logits), p.expected[..., 0])


def test_masks_as_arguments_come_last_roi_before_reference(per_example):
    p = per_example
    both = SegmentationTarget(nn.Identity(), "argument", "argument")
    torch.testing.assert_close(both(p.logits, p.rois, p.labels), p.expected)
    torch.testing.assert_close(both(p.logits, p.rois.float(), p.labels[:, None].float()), p.expected)
    torch.testing.assert_close(both(p.logits, p.rois[:, 1], p.labels), p.expected[..., 1])
    torch.testing.assert_close(SegmentationTarget(nn.Identity(), "argument", p.labels)(p.logits, p.rois), p.expected)
    torch.testing.assert_close(SegmentationTarget(nn.Identity(), p.rois, "argument")(p.logits, p.labels), p.expected)


def test_the_models_own_arguments_come_before_the_masks(per_example):
    p = per_example
    target = SegmentationTarget(lambda image, shift, factor: (image + shift) * factor, "argument", "argument")
    torch.testing.assert_close(target(p.logits - 5, 5 * torch.ones_like(p.logits), 2.0, p.rois, p.labels), p.expected)


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


def test_masks_turned_into_arguments_give_the_same_scores(per_example):
    p = per_example
    n, n_spatial = len(p.logits), p.logits.ndim - 2
    for roi, labels, arguments in (
        (p.rois, p.labels, ()),
        (p.rois, "argument", (p.labels,)),
        ("argument", p.labels, (p.rois,)),
        ("argument", "argument", (p.rois, p.labels)),
        (p.rois[0, 0], p.labels, ()),
        (p.rois[0], p.labels[:1, None], ()),
    ):
        target = SegmentationTarget(nn.Identity(), roi, labels)
        twin, moved = target.with_masks_as_arguments(n, n_spatial, arguments)
        assert torch.equal(twin(p.logits, *moved), target(p.logits, *arguments))
        # Now they travel with the examples.
        order = torch.arange(n).flip(0)
        travelling = [mask[order] for mask in moved]
        assert torch.equal(twin(p.logits[order], *travelling), target(p.logits, *arguments)[order])
        twice = [mask.repeat_interleave(2, 0) for mask in moved]
        assert torch.equal(twin(p.logits.repeat_interleave(2, 0), *twice)[::2], target(p.logits, *arguments))


@pytest.mark.parametrize("overlapping", [True, False])
def test_one_mask_per_class_stays_that_where_there_are_as_many_examples_as_classes(overlapping):
    logits = torch.randn(3, 3, 6, 6)
    masks = torch.randint(0, 2, (3, 6, 6)) if overlapping else one_hot(torch.randint(0, 3, (1, 6, 6)), 3)[0]
    target = SegmentationTarget(nn.Identity(), None, masks, activation="sigmoid" if overlapping else "auto")
    twin, arguments = target.with_masks_as_arguments(3, 2)
    assert torch.equal(twin(logits, *arguments), target(logits))
    five = [argument[[0, 0, 1, 2, 2]] for argument in arguments]
    assert torch.equal(twin(logits[[0, 0, 1, 2, 2]], *five), target(logits)[[0, 0, 1, 2, 2]])


@pytest.mark.parametrize(
    ("roi", "reference"),
    [
        (None, torch.zeros(8, 8)),
        (torch.ones(3, 8, 8), torch.zeros(3, 8, 8)),  # a stack of RoIs, one mask per class
        (torch.ones(1, 3, 8, 8), torch.zeros(1, 8, 8)),
    ],
)
def test_masks_shared_by_all_examples_stay_where_they_are(roi, reference):
    target = SegmentationTarget(Net(2, 3), roi, reference)
    twin, arguments = target.with_masks_as_arguments(2, 2, (4.0,))
    assert twin is target
    assert arguments == (4.0,)


@pytest.mark.parametrize("name", ["roi", "reference"])
def test_masks_of_another_batch_do_not_become_arguments(name):
    target = SegmentationTarget(Net(2, 3), **{"reference": torch.zeros(8, 8)} | {name: torch.ones(4, 3, 8, 8)})
    with pytest.raises(ValueError, match=f"{name}: it holds 4 examples, the batch 2"):
        target.with_masks_as_arguments(2, 2)


def test_roi_masks_are_those_of_the_call():
    images, rois = torch.randn(3, 1, 8, 8), random_rois(3, 2, 8, 8)
    assert torch.equal(SegmentationTarget(Net(2, 1), "argument", metric="volume").roi_masks((images, rois)), rois)
    assert torch.equal(SegmentationTarget(Net(2, 1), rois, metric="volume").roi_masks((images,)), rois)
    assert torch.equal(SegmentationTarget(Net(2, 1), rois[0], metric="volume").roi_masks((images,)), rois[:1])
    assert SegmentationTarget(Net(2, 1), metric="volume").roi_masks((images,)) is None


# Layouts of the reference


KINDS = {
    "int64": torch.Tensor.long,
    "uint8": lambda mask: mask.to(torch.uint8),
    "float": torch.Tensor.float,
    "half": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "uint16": lambda mask: mask.to(torch.uint16),
    "numpy": lambda mask: mask.numpy(),
    "numpy uint16": lambda mask: mask.numpy().astype(np.uint16),
    "float8": lambda mask: mask.to(torch.float8_e4m3fn),
    "numpy float64": lambda mask: mask.numpy().astype(np.float64),
    "numpy long double": lambda mask: mask.numpy().astype(np.longdouble),
    "numpy without masked values": lambda mask: np.ma.array(mask.numpy()),
    "big-endian": lambda mask: mask.numpy().astype(">i2"),
    "flipped": lambda mask: np.flip(np.flip(mask.numpy()).copy()),
    "mapped": lambda mask: np.broadcast_to(mask.numpy(), mask.shape),
    "MONAI": MetaTensor,
}


@pytest.mark.parametrize("kind", [*KINDS, "bool"])
@pytest.mark.parametrize("n_spatial", [2, 3])
def test_layouts_of_the_reference(kind, n_spatial):
    """Of 4 classes (2, where labels are boolean) in a batch of 3, so that nothing is ambiguous."""
    spatial, classes = SPATIAL[n_spatial], 2 if kind == "bool" else 4
    logits, labels = torch.randn(3, classes, *spatial), torch.randint(0, classes, (3, *spatial))
    convert = torch.Tensor.bool if kind == "bool" else KINDS[kind]
    hot = one_hot(labels, classes)
    rois = torch.ones(3, 1, *spatial, dtype=torch.bool)
    hard = one_hot(logits.argmax(1), classes)
    for layout in (labels, labels[:, None], hot):
        torch.testing.assert_close(
            SegmentationTarget(nn.Identity(), None, convert(layout))(logits), dices(hard, hot, rois)[..., 0]
        )
    shared = dices(hard, hot[:1].expand(3, -1, *spatial), rois)[..., 0]
    for layout in (labels[0], labels[:1], labels[:1, None], hot[0], hot[:1]):
        torch.testing.assert_close(SegmentationTarget(nn.Identity(), None, convert(layout))(logits), shared)


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_reference_of_another_number_of_classes_is_refused(n_spatial, n):
    spatial = SPATIAL[n_spatial]
    logits, labels = torch.randn(n, 6, *spatial), torch.randint(0, 2, (n, *spatial))
    masks = one_hot(labels, 2)
    for reference, match in (
        (
            labels.bool(),
            "reference: a boolean mask has 2 classes, the model's output 6; give a label map of the model's classes, or",
        ),
        (labels[:, None].bool(), "a boolean mask has 2 classes, the model's output 6"),
        (labels[0].bool(), "a boolean mask has 2 classes, the model's output 6"),
        (masks, "reference: it has 2 channels, the model 6"),
        (
            masks[0],
            "reference: it has 2 classes, one mask each, the model's output 6; give a label map or",
        ),  # also in a batch of 2
        (masks[0].bool(), "reference: it has 2 classes, one mask each, the model's output 6"),
    ):
        for activation in ("auto", "none"):
            target = SegmentationTarget(nn.Identity(), None, reference, activation=activation)
            with pytest.raises(ValueError, match=match):
                target(logits)
            twin, arguments = target.with_masks_as_arguments(n, n_spatial)
            with pytest.raises(ValueError, match=match):
                twin(logits, *arguments)
    with pytest.raises(ValueError, match="a boolean mask has 2 classes, the model's output 6"):
        SegmentationTarget(nn.Identity(), None, "argument")(logits, labels.bool())
    only = SegmentationTarget(nn.Identity(), None, labels * 4)(logits)[:, 4]  # what the messages tell people to do
    expected = dices((logits.argmax(1) == 4)[:, None], labels[:, None], torch.ones(n, 1, *spatial, dtype=torch.bool))
    torch.testing.assert_close(only, expected[:, 0, 0])
    # Two masks that complement each other are those of two classes, for a model of one as well.
    with pytest.raises(ValueError, match="reference: it has 2 classes, one mask each, the model's output 1"):
        SegmentationTarget(nn.Identity(), None, masks[0])(logits[:, :1])


def test_classes_that_are_absent_from_the_image_are_nothing_unusual(caplog):
    logits, labels = torch.randn(2, 6, 8, 9), torch.randint(0, 4, (2, 8, 9))
    target = SegmentationTarget(nn.Identity(), None, labels)
    with caplog.at_level(logging.INFO):
        found = target(logits)
        target(logits)
        target.surrogate()(logits)
    expected = dices(one_hot(logits.argmax(1), 6), one_hot(labels, 6), torch.ones(2, 1, 8, 9, dtype=torch.bool))[..., 0]
    torch.testing.assert_close(found, expected)
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith("reference: ")]
    assert told == [
        ("INFO", "reference: its largest label is 3, the model has 6 classes; labels are read as classes 0..3 of these")
    ]


@pytest.mark.parametrize("convert", [Tensor.long, Tensor.float, lambda mask: mask.numpy().astype(np.uint8)])
@pytest.mark.parametrize("shared", [True, False])
def test_0_and_1_for_more_classes_may_be_a_mask_which_is_said_once(convert, shared, caplog):
    logits, labels = torch.randn(2, 6, 8, 9), torch.randint(0, 2, (2, 8, 9))
    target = SegmentationTarget(nn.Identity(), None, convert(labels[0] if shared else labels))
    assert target(logits).shape == (2, 6)
    AverageTreatmentEffect(target).attribute(logits, 0.0, target=1, block_size=8, n_draws=1)
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith("reference: ")]
    assert told == [
        (
            "WARNING",
            "reference: its largest label is 1, the model has 6 classes; labels are read as classes 0..1 of these. If it is the mask of "
            "another class c, give mask.long() * c and look at target=c",
        )
    ]


@pytest.mark.parametrize(("channels", "largest"), [(2, 1), (6, 5), (6, 0), (1, 1)])
def test_of_label_maps_that_can_be_meant_in_one_way_only_nothing_is_said(channels, largest, caplog):
    labels = torch.randint(0, largest + 1, (8, 9))
    labels[0, 0] = largest
    with caplog.at_level(logging.INFO):
        SegmentationTarget(nn.Identity(), None, labels)(torch.randn(2, channels, 8, 9))
    assert not [r for r in caplog.records if r.getMessage().startswith("reference: ")]


@pytest.mark.parametrize("kind", [*KINDS, "bool"])
def test_layouts_of_a_binary_reference_and_of_the_roi(kind):
    logits, labels, roi = torch.randn(3, 1, 8, 9), torch.randint(0, 2, (3, 8, 9)), random_rois(3, 2, 8, 9)
    convert = torch.Tensor.bool if kind == "bool" else KINDS[kind]
    expected = dices(logits > 0, labels[:, None], roi)[:, 0]
    target = SegmentationTarget(nn.Identity(), convert(roi.long()), convert(labels))
    torch.testing.assert_close(target(logits), expected)
    assert target.roi.dtype == torch.bool
    torch.testing.assert_close(SegmentationTarget(nn.Identity(), roi, convert(labels[0]))(logits)[0], expected[0])
    if not kind.startswith(("numpy", "big", "flipped", "mapped")):
        as_arguments = SegmentationTarget(nn.Identity(), "argument", "argument")
        scores = as_arguments(logits, convert(roi.long()), convert(labels))
        assert type(scores) is Tensor
        torch.testing.assert_close(scores, expected)


def test_an_array_that_changes_later_changes_no_target():
    labels, roi = np.zeros((6, 6), dtype=int), np.ones((6, 6), dtype=bool)
    target = SegmentationTarget(nn.Identity(), roi, labels)
    before = target(torch.zeros(1, 1, 6, 6) - 1)
    labels[:], roi[:3] = 1, False
    assert torch.equal(target(torch.zeros(1, 1, 6, 6) - 1), before)


def test_as_many_binary_maps_as_classes_are_one_mask_per_class_only_if_they_can_be():
    logits = torch.randn(3, 3, 6, 6)
    hard, rois = one_hot(logits.argmax(1), 3), torch.ones(3, 1, 6, 6, dtype=torch.bool)
    labels = one_hot(torch.randint(0, 3, (1, 6, 6)), 3)[0]
    per_class = dices(hard, labels.expand(3, 3, 6, 6), rois)[..., 0]
    torch.testing.assert_close(SegmentationTarget(nn.Identity(), None, labels)(logits), per_class)
    # Three label maps of 0 and 1 in which the pixels' classes do not add up to one.
    labels = labels.clone()
    labels[0] = 1
    per_map = dices(hard, one_hot(labels, 3), rois)[..., 0]
    torch.testing.assert_close(SegmentationTarget(nn.Identity(), None, labels)(logits), per_map)
    # Labels that may overlap have no label maps.
    per_label = dices(logits > 0, labels.expand(3, 3, 6, 6), rois)[..., 0]
    torch.testing.assert_close(SegmentationTarget(nn.Identity(), None, labels, activation="sigmoid")(logits), per_label)


def test_a_label_that_is_absent_everywhere_scores_empty_score_where_it_is_not_predicted():
    logits = torch.stack([torch.ones(4), torch.zeros(4), -torch.ones(4)])[None]
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(4), empty_score=0.25)
    assert target(logits).tolist() == [[1, 0.25, 0.25]]


# Masks that do not fit


S = (8, 9)
REFUSED_BEFORE = {
    "reference of another shape": (
        {"reference": torch.zeros(8, 8)},
        r"reference: expected a label map of the images' spatial shape \(8, 9\), .* got \(8, 8\)",
    ),
    "reference of fewer axes": ({"reference": torch.zeros(9)}, r"reference: expected a label map .*\(8, 9\), .* got \(9,\)"),
    "reference of more axes": ({"reference": torch.zeros(1, 1, 3, *S)}, r"reference: expected .* got \(1, 1, 3, 8, 9\)"),
    "reference of another batch": (
        {"reference": torch.zeros(4, 3, *S)},
        r'reference: it holds 4 examples, the batch 2.*reference="argument"',
    ),
    "roi of another shape": (
        {"roi": torch.ones(8, 8)},
        r"roi: expected a mask of the images' spatial shape \(8, 9\) .*got \(8, 8\)",
    ),
    "roi of more axes": ({"roi": torch.ones(1, 1, 1, *S)}, r"roi: expected a mask .* got \(1, 1, 1, 8, 9\)"),
    "roi of another batch": ({"roi": torch.ones(4, 1, *S)}, r'roi: it holds 4 examples, the batch 2.*roi="argument"'),
    "one empty roi in a stack": (
        {"roi": torch.stack([torch.ones(S), torch.zeros(S)])},
        r"roi: it is empty for \(example, RoI\) \[\[0, 1\]\]",
    ),
    "one empty roi of one example": (
        {"roi": torch.ones(2, 3, *S) * torch.tensor([[1, 1, 1], [1, 0, 1]])[..., None, None]},
        r"roi: it is empty for \(example, RoI\) \[\[1, 1\]\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BEFORE)
def test_masks_that_do_not_fit_are_refused_before_the_model_runs(case):
    options, match = REFUSED_BEFORE[case]
    model = Net(2, 3)
    target = SegmentationTarget(model, **{"reference": torch.zeros(S)} | options)
    with pytest.raises(ValueError, match=match):
        target(torch.randn(2, 1, *S))
    assert model.calls == 0


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


REFUSED_LABELS = {
    "too large": (3, {}, torch.full(S, 3), r"reference: labels 3\.\.3 are outside the model's classes 0\.\.2"),
    "negative": (3, {}, torch.full(S, -1), r"reference: labels -1\.\.-1 are outside the model's classes 0\.\.2"),
    "255 of 3 classes": (
        3,
        {},
        255 * torch.eye(8, 9),
        r"reference: labels 0\.\.255 are outside the model's classes 0\.\.2; a mask of 0 and 255 has to be divided by 255",
    ),
    "255 of one channel": (
        1,
        {},
        255 * torch.eye(8, 9),
        r"reference: expected 0 and 1 for a model of 1 channel.*found 0\.\.255; a mask of 0 and 255 has to be divided by 255",
    ),
    "label 2 of one channel": (1, {}, torch.full(S, 2), r"reference: expected 0 and 1 for a model of 1 channel.*found 2\.\.2"),
    "fractions": (3, {}, torch.full(S, 0.5), "reference: expected whole numbers as labels, got fractions"),
    "fractions of one channel": (1, {}, torch.full(S, 0.5), r"reference: expected 0 and 1 .* found 0.5\.\.0.5"),
    "NaN": (3, {}, torch.full(S, torch.nan), "reference: expected whole numbers as labels, got NaN"),
    "NaN of one channel": (1, {}, torch.full(S, torch.nan), "reference: expected 0 and 1 .* found NaN"),
    "some NaN": (1, {}, torch.eye(8, 9).masked_fill(torch.eye(8, 9).bool(), torch.nan), r"found 0\.\.0 and NaN"),
    "-1 of one channel": (1, {}, -torch.eye(8, 9).long(), r"reference: expected 0 and 1 .* found -1\.\.0"),
    "infinity": (3, {}, torch.full(S, torch.inf), r"reference: labels inf\.\.inf are outside the model's classes"),
    "255 among other labels": (
        3,
        {},
        torch.tensor([0, 1, 2, 255]).repeat(18).view(S),
        r"labels 0\.\.255 are outside .* 0\.\.2; where 255 stands for pixels to ignore, leave them out of the RoI",
    ),
    "fractions one-hot": (3, {}, torch.full((2, 3, *S), 1 / 3), r"reference: expected 0 and 1 .* found 0.333"),
    "too few channels": (3, {}, torch.zeros(2, 2, *S), "reference: it has 2 channels, the model 3; give a label map or"),
    "too many channels": (1, {}, torch.zeros(2, 3, *S), "reference: it has 3 channels, the model 1"),
    "label map of overlapping labels": (
        3,
        {"activation": "sigmoid"},
        torch.zeros(S),
        r"reference: the model's 3 labels may overlap .* give one mask per label, \(C, \*spatial\) or \(N, C, \*spatial\)",
    ),
    "neither examples nor classes": (3, {}, torch.zeros(5, *S), "reference: it holds 5 examples, the batch 2"),
}


@pytest.mark.parametrize("case", REFUSED_LABELS)
@pytest.mark.parametrize("metric", ["dice", "soft_dice"])
def test_labels_that_the_model_does_not_have_are_refused(case, metric):
    channels, options, reference, match = REFUSED_LABELS[case]
    with pytest.raises(ValueError, match=match):
        SegmentationTarget(Net(2, channels), None, reference, metric, **options)(torch.randn(2, 1, *S))


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("where", [..., (0, 0, 0, 0)])
def test_nan_from_the_model_is_an_error(channels, where):
    logits = torch.randn(2, channels, 4, 4)
    logits[where] = torch.nan
    target = SegmentationTarget(nn.Identity(), regions.box((4, 4), 2, 2), torch.zeros(4, 4))
    for call in (target, target.predict, lambda x: SegmentationTarget.from_prediction(nn.Identity(), x)):
        with pytest.raises(ValueError, match="model: it returned NaN"):
            call(logits)


# Finding the logits


LOGITS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
Pair = namedtuple("Pair", ["aux", "out"])
LogitsLast = namedtuple("LogitsLast", ["loss", "logits"])


class ModelOutput(OrderedDict):
    """What Hugging Face's models return: an ordered mapping, whose items are attributes and positions too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@pytest.mark.parametrize(
    "returned",
    [
        LOGITS,
        [LOGITS, OTHER],
        (LOGITS, OTHER),
        [[LOGITS, OTHER], OTHER],
        {"aux": OTHER, "out": LOGITS},
        {"loss": torch.tensor(1.0), "logits": LOGITS},
        {"image": OTHER, "pred": LOGITS},
        OrderedDict(aux=OTHER, out=LOGITS),
        {"out": [LOGITS, OTHER]},
        Pair(OTHER, LOGITS),
        LogitsLast(torch.tensor(1.0), LOGITS),
        ModelOutput(loss=torch.tensor(1.0), logits=LOGITS),
        MetaTensor(LOGITS),
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_logits_are_found(returned):
    found = SegmentationTarget(lambda image: returned, metric="volume").logits(torch.zeros(2, 1, 8, 8))
    assert type(found) is Tensor
    assert torch.equal(found, LOGITS)


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ({"out": OTHER, "main": LOGITS}, "main"),
        (Pair(LOGITS, OTHER), "aux"),
        (SimpleNamespace(mask=LOGITS), "mask"),
        ([OTHER, LOGITS], 1),
        ((OTHER, OTHER, LOGITS), -1),
        ({0: OTHER, 1: LOGITS}, 1),
        (ModelOutput(loss=OTHER, masks=LOGITS), "masks"),
        ([{"deep": LOGITS}], lambda returned: returned[0]["deep"]),
        (torch.cat([OTHER, LOGITS], 1), lambda returned: returned[:, 3:]),
    ],
)
def test_output_says_where_the_logits_are(returned, output):
    target = SegmentationTarget(lambda image: returned, metric="volume", output=output)
    assert torch.equal(target.logits(torch.zeros(2, 1, 8, 8)), LOGITS)
    assert torch.equal(target.surrogate("logit_sum").logits(torch.zeros(2, 1, 8, 8)), LOGITS)


@pytest.mark.parametrize(
    ("returned", "output", "match"),
    [
        (
            {"b": LOGITS, "a": OTHER},
            None,
            r"model: no logits found in what it returns \(dict with keys \['a', 'b'\]\); .*`output`",
        ),
        (None, None, r"\(NoneType\); say where they are with `output` \(a key, an index or a callable\)"),
        ([], None, r"\(list\)"),
        (LOGITS.numpy(), None, r"\(ndarray\)"),
        ({"a": LOGITS}, "b", r"\(dict with keys \['a'\]\) at output='b'"),
        ([LOGITS], 3, r"\(list\) at output=3"),
        (Pair(OTHER, LOGITS), "mask", r"\(Pair\) at output='mask'"),
        (None, 0, r"\(NoneType\) at output=0"),
        ({"a": LOGITS}, lambda returned: None, r"\(dict with keys \['a'\]\) at output=<function"),
    ],
)
def test_where_no_logits_are_found_the_error_says_what_there_was(returned, output, match):
    target = SegmentationTarget(lambda image: returned, metric="volume", output=output)
    with pytest.raises(TypeError, match=match) as caught:
        target(torch.zeros(2, 1, 8, 8))
    assert str(caught.value).startswith("model: no logits found in what it returns (")


@pytest.mark.parametrize("output", [0, -1, 1, "real", "T", "logits"])
def test_a_tensor_is_no_collection_of_outputs(output):
    """Index 0 of a batch of as many images as classes would be the first image's classes, taken for images."""
    target = SegmentationTarget(nn.Identity(), metric="volume", output=output)
    with pytest.raises(TypeError, match=f"output: the model returns a tensor, .* expected None or a callable, got {output!r}"):
        target(torch.randn(3, 3, 8, 8))


def test_logits_of_half_precision_are_hard_where_single_precision_is():
    # Its sigmoid is above 0.5 by less than bfloat16 can tell.
    logits = torch.full((1, 1, 4, 4), 1e-3, dtype=torch.bfloat16)
    target = SegmentationTarget.from_prediction(nn.Identity(), logits, activation="sigmoid")
    assert target.reference.all()
    assert target(logits).item() == 1


@pytest.mark.parametrize(("n_spatial", "mode"), [(1, "linear"), (2, "bilinear"), (3, "trilinear")])
@pytest.mark.parametrize("n", [1, 3])
def test_smaller_logits_are_resized_to_the_input(n_spatial, mode, n):
    spatial, small = (12, 16, 8)[:n_spatial], (3, 4, 2)[:n_spatial]
    logits = torch.randn(n, 3, *small)
    target = SegmentationTarget(lambda image: logits, None, torch.zeros(spatial))
    expected = functional.interpolate(logits, size=spatial, mode=mode, align_corners=False)
    assert torch.equal(target.logits(torch.zeros(n, 1, *spatial)), expected)
    assert target(torch.zeros(n, 1, *spatial)).shape == (n, 3)


@every_size
def test_a_model_without_channel_axis_has_one_channel(n_spatial, n):
    model = nn.Flatten(1, 2)  # (N, 1, H, ...) to (N, H, ...)
    images, labels = torch.randn(n, 1, *SPATIAL[n_spatial]), torch.randint(0, 2, SPATIAL[n_spatial])
    expected = SegmentationTarget(nn.Identity(), None, labels)(images)
    assert torch.equal(SegmentationTarget(model, None, labels)(images), expected)


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (
            torch.zeros(2, 5),
            r"model: expected logits \(N, C, \*spatial\) with N=2 and 2 spatial axes .*\(2, 1, 8, 8\), got \(2, 5\)",
        ),
        (torch.zeros(3, 1, 8, 8), r"with N=2 .* got \(3, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, 8), r"got \(2, 1, 8, 8, 8\)"),
        (torch.zeros(2, 0, 8, 8), r"model: expected logits \(N, C, \*spatial\), got \(2, 0, 8, 8\), which holds none"),
        (
            torch.zeros(2, 8, 8, 3),
            r"got \(2, 8, 8, 3\) for images of \(8, 8\), with the classes on the last axis; output=lambda y: y.movedim",
        ),
        (torch.zeros(2, 1, 8, 8, dtype=torch.long), "model: expected floating-point logits or probabilities, got torch.int64"),
    ],
)
def test_logits_that_do_not_fit_the_image_are_refused(returned, match):
    with pytest.raises(ValueError, match=match):
        SegmentationTarget(lambda image: returned, metric="volume")(torch.zeros(2, 1, 8, 8))


# The model's own prediction


@every_size
@pytest.mark.parametrize(("channels", "activation"), [(1, "auto"), (3, "auto"), (3, "sigmoid"), (2, "none")])
def test_the_prediction_as_reference_has_dice_1(n_spatial, n, channels, activation):
    model, images = Net(n_spatial, channels), torch.randn(n, 1, *SPATIAL[n_spatial])
    rois = random_rois(n, 2, *SPATIAL[n_spatial])
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


# The differentiable twin


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
    model, images = Net(n_spatial, 3), torch.randn(2, 1, *SPATIAL[n_spatial], requires_grad=True)
    masks = random_rois(2, *SPATIAL[n_spatial]), torch.randint(0, 3, (2, *SPATIAL[n_spatial]))
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
    model, spatial = Net(n_spatial, 3).requires_grad_(not frozen), SPATIAL[n_spatial]
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


def test_another_scoring_keeps_model_masks_and_output():
    images, labels, roi = torch.randn(2, 1, 6, 6), torch.randint(0, 2, (2, 6, 6)), random_rois(6, 6)
    target = SegmentationTarget(lambda x: {"main": x}, roi, labels, output="main")
    other = target.with_scoring(metric="iou", activation="none", threshold=0.7, empty_score=0.0)
    expected = SegmentationTarget(nn.Identity(), roi, labels, "iou", "none", 0.7, 0.0)
    assert torch.equal(other(images), expected(images))
    arguments = SegmentationTarget(nn.Identity(), "argument", "argument")
    moved = arguments.with_scoring(metric="iou", activation="none", threshold=0.7, empty_score=0.0)
    assert torch.equal(moved(images, roi.expand(2, -1, -1), labels), expected(images))


# One's own metric


@every_size
@pytest.mark.parametrize("roi_shape", [None, (), (4,), "N,1", "N,4"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_callable_metric_gets_the_documented_shapes(n_spatial, n, roi_shape, shared):
    spatial = SPATIAL[n_spatial]
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


# It is a module


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


# Captum's own methods


class Case:
    """A model, a batch of 2, a target with two RoIs and one with the examples' own masks."""

    def __init__(self, n_spatial: int) -> None:
        spatial = {2: (16, 16), 3: (8, 8, 8)}[n_spatial]
        self.model = Net(n_spatial, 3)
        # No class is rare: hard scores have something to lose.
        nn.init.zeros_(self.model.last.bias)
        # Captum's gradient methods warn of an input that does not require gradients.
        self.images = torch.randn(2, 1, *spatial, requires_grad=True)
        rois = torch.stack([regions.box(spatial, 1, 5), regions.box(spatial, 3, 5)])
        labels = torch.randint(0, 3, (2, *spatial))
        self.target = SegmentationTarget(self.model, rois, labels[0])
        self.travelling = SegmentationTarget(self.model, "argument", "argument")
        self.masks = torch.stack([rois, rois.flip(0)]), labels
        self.window = (1, *(4,) * n_spatial)
        self.blocks = regions.grid(spatial, 4)[None, None]


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


def test_saliency_is_the_gradient_of_the_soft_dice():
    case = Case(2)
    probabilities = case.model(case.images).softmax(1)[:, 2]
    truth, roi = (case.target.reference == 2).float(), case.target.roi[0].float()
    overlap = 2 * (probabilities * truth * roi).sum((1, 2))
    soft = overlap / ((probabilities * roi).sum((1, 2)) + (truth * roi).sum())
    (gradient,) = torch.autograd.grad(soft.sum(), case.images)
    attribution = Saliency(case.target.surrogate()).attribute(case.images, target=(2, 0), abs=False)
    torch.testing.assert_close(attribution, gradient)


# What helpers of other methods rely on


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


def test_a_blank_first_output_does_not_settle_the_activation():
    target = SegmentationTarget(nn.Identity(), metric="probability_mean")
    assert float(target(torch.zeros(1, 1, 4, 4))) == 0.5
    logits = 5 * torch.randn(1, 1, 4, 4)
    assert float(target(logits)) == pytest.approx(float(logits.sigmoid().mean()))


def test_hooks_on_a_surrogate_are_not_hooks_on_the_target():
    target = SegmentationTarget(nn.Identity(), None, torch.zeros(4, 4))
    target.surrogate().register_forward_hook(lambda *a: None)
    assert not target._forward_hooks


def test_raw_outputs_of_several_classes_take_a_label_map():
    logits = 3 * torch.randn(1, 3, 6, 6)
    labels = torch.randint(0, 3, (6, 6))
    scores = SegmentationTarget(nn.Identity(), None, labels, activation="none")(logits)[0]
    for c in range(3):
        hard, truth = logits[0, c] > 0.5, labels == c
        assert float(scores[c]) == pytest.approx(float(2 * (hard & truth).sum() / (hard.sum() + truth.sum())))
