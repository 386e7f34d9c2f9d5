"""Models that return labels in place of logits: scored like the logits that they come from."""

import copy
import logging
import pickle

import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from hypothesis import given
from hypothesis import strategies as st
from output_cases import SPATIAL, Scores, Wrapped, both_dimensions, generator, images, labels, returning
from torch import Tensor
from torch.nn import functional

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    regions,
)


def dice(first: Tensor, second: Tensor, roi: Tensor) -> float:
    """Of two boolean masks, by counting; 1 where both are empty."""
    first, second = first[roi], second[roi]
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def label_map(scores: Tensor) -> Tensor:
    return scores.argmax(1)


def label_channel(scores: Tensor) -> Tensor:
    return scores.argmax(1, keepdim=True).to(torch.uint8)


@both_dimensions
@pytest.mark.parametrize("make", [label_map, label_channel, lambda scores: scores.argmax(1).int()])
@pytest.mark.parametrize("n", [1, 3])
def test_label_maps_are_scored_like_the_logits_that_they_come_from(d, make, n):
    model = Wrapped(d, make)
    rois = torch.rand(n, 2, *SPATIAL[d], generator=generator(3)) < 0.5
    image, truth = images(d, n), labels(d, n)
    found = SegmentationTarget(model, rois, truth)(image)
    assert found.shape == (n, 3, 2)
    predicted = model.scores(image).argmax(1)
    expected = [[[dice(predicted[i] == c, truth[i] == c, roi) for roi in rois[i]] for c in range(3)] for i in range(n)]
    torch.testing.assert_close(found, torch.tensor(expected))
    for metric in ("dice", "iou", "surface_dice", "volume"):
        hard = SegmentationTarget(model, rois, truth, metric=metric)
        torch.testing.assert_close(hard(image), SegmentationTarget(model.scores, rois, truth, metric=metric)(image))
    assert "activation=auto -> labels" in repr(hard)
    assert torch.equal(hard.predict(image), torch.stack([predicted == c for c in range(3)], 1))


@both_dimensions
def test_boolean_masks_are_one_mask_per_label(d):
    model = Wrapped(d, lambda scores: scores > 0)
    image, roi = images(d, 2), regions.box(SPATIAL[d], start=2, size=5)
    masks = torch.rand(2, 3, *SPATIAL[d], generator=generator(4)) < 0.5
    expected = SegmentationTarget(model.scores, roi, masks, activation="sigmoid")(image)
    assert torch.equal(SegmentationTarget(model, roi, masks)(image), expected)
    whole = Wrapped(d, lambda scores: (scores > 0).long())
    assert torch.equal(SegmentationTarget(whole, roi, masks)(image), expected)
    one = Wrapped(d, lambda scores: scores[:, 0] > 0)
    assert torch.equal(SegmentationTarget(one, roi, masks[:, :1])(image), expected[:, 0])


@pytest.mark.parametrize(
    "reference",
    [
        lambda truth: truth,
        lambda truth: truth[:, None],
        lambda truth: functional.one_hot(truth, 3).movedim(-1, 1),
        lambda truth: truth.to(torch.uint8).numpy(),
        lambda truth: truth.float(),
    ],
)
def test_every_layout_of_the_reference_tells_the_number_of_classes(reference):
    model, image, truth = Wrapped(2, label_map), images(2, 2), labels(2, 2)
    expected = SegmentationTarget(model.scores, None, truth)(image)
    assert torch.equal(SegmentationTarget(model, None, reference(truth))(image), expected)
    shared = SegmentationTarget(model.scores, None, truth[0])(image)
    assert torch.equal(SegmentationTarget(model, None, reference(truth[:1])[0])(image), shared)


def test_a_reference_given_with_the_call_tells_too():
    model, image, truth = Wrapped(2, label_map), images(2, 3), labels(2, 3)
    expected = SegmentationTarget(model.scores, None, truth)(image)
    assert torch.equal(SegmentationTarget(model, None, "argument")(image, truth), expected)
    target = SegmentationTarget(model, None, truth)
    twin, arguments = target.with_masks_as_arguments(3, 2)
    assert twin is not target
    assert torch.equal(twin(image, *arguments), expected)
    # The order of examples is free from then on, also where a batch lacks the last class.
    truth[2] = 0
    assert SegmentationTarget(model, None, "argument")(image, truth).shape == (3, 3)


def test_one_mask_per_class_shared_by_as_many_examples():
    model, image = Wrapped(2, label_map), images(2, 3)
    truth = functional.one_hot(labels(2), 3).movedim(-1, 1)[0]
    target = SegmentationTarget(model, None, truth)
    twin, arguments = target.with_masks_as_arguments(3, 2)
    assert torch.equal(twin(image, *arguments), SegmentationTarget(model.scores, None, truth)(image))


def test_two_label_maps_of_two_classes_are_no_masks_of_classes():
    model, image = Wrapped(2, label_map, classes=2), images(2, 2)
    truth = labels(2, 2, classes=2)
    assert torch.equal(SegmentationTarget(model, None, truth)(image), SegmentationTarget(model.scores, None, truth)(image))


def test_a_label_beyond_the_references_belongs_to_no_class():
    returned = torch.tensor([[[0, 1, 2, 2]]])
    target = SegmentationTarget(returning(returned), None, torch.tensor([[0, 1, 1, 0]]))
    assert target.predict(torch.zeros(1, 1, 1, 4)).tolist() == [[[[True, False, False, False]], [[False, True, False, False]]]]
    assert target(torch.zeros(1, 1, 1, 4)).tolist() == [[pytest.approx(2 / 3), pytest.approx(2 / 3)]]


def test_more_labels_than_the_reference_has_classes_are_refused_or_said(caplog):
    model, image, truth = Wrapped(2, label_map, classes=4), images(2, 2), labels(2, 2, classes=2)
    largest = int(model(image).max())
    assert largest > 1
    masks = functional.one_hot(truth, 2).movedim(-1, 1)
    for reference in (truth.bool(), truth[0].bool(), masks, masks[0], masks[0].bool()):
        target = SegmentationTarget(model, None, reference)
        for _ in range(2):
            with pytest.raises(ValueError, match=f"reference: it has 2 classes, the model's labels go up to {largest}"):
                target(image)
    assert not caplog.records
    target = SegmentationTarget(model, None, truth)
    assert target(image).shape == (2, 2)
    target(image)
    assert [record.getMessage() for record in caplog.records] == [
        f"reference: its labels are of 2 classes, the model's go up to {largest}; labels are read as the model's classes, and those from 2 "
        "on are not scored"
    ]


def test_an_empty_reference_has_two_classes():
    target = SegmentationTarget(lambda image: torch.tensor([[[0, 1, 1, 0]]]), None, torch.zeros(1, 4))
    assert target(torch.zeros(1, 1, 1, 4)).tolist() == [[pytest.approx(2 * 2 / 6), 0.0]]


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.int16])
def test_label_maps_of_less_resolution_keep_their_labels(dtype):
    coarse = torch.tensor([[[2, 0], [1, 2]]], dtype=dtype)
    truth = torch.tensor([[2, 2, 0, 0], [2, 2, 0, 0], [1, 1, 2, 2], [1, 1, 2, 2]])
    target = SegmentationTarget(returning(coarse[:, None]), None, truth)
    assert target(torch.zeros(1, 1, 4, 4)).tolist() == [[1, 1, 1]]
    assert target.logits(torch.zeros(1, 1, 4, 4)).argmax(1)[0].tolist() == truth.tolist()


@both_dimensions
def test_the_prediction_of_a_label_map_as_reference(d):
    model, image = Wrapped(d, label_channel), images(d, 2)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box(SPATIAL[d], start=2, size=5))
    assert torch.equal(target(image), torch.ones(2, 3))
    assert torch.equal(target.reference, target.predict(image))
    assert (target(2 - image) < 1).any()


@given(classes=st.integers(2, 5), n=st.integers(1, 3), seed=st.integers(0, 99))
def test_label_maps_in_a_batch_are_scored_one_by_one(classes, n, seed):
    values = generator(seed)
    predicted = torch.randint(0, classes, (n, 4, 5), generator=values)
    truth = torch.randint(0, classes, (n, 4, 5), generator=values)
    truth[:, 0, 0] = classes - 1
    image = predicted[:, None].float()
    together = SegmentationTarget(lambda x: x[:, 0].long(), None, truth[:, None])(image)
    alone = [SegmentationTarget(lambda x: x[:, 0].long(), None, truth[i])(image[i : i + 1])[0] for i in range(n)]
    assert torch.equal(together, torch.stack(alone))
    expected = [
        [dice(predicted[i] == c, truth[i] == c, torch.ones(4, 5, dtype=torch.bool)) for c in range(classes)] for i in range(n)
    ]
    torch.testing.assert_close(together, torch.tensor(expected))


def test_ones_own_metric_gets_zeros_and_ones():
    seen = []

    def metric(prediction, reference, roi):
        seen.append((prediction, reference))
        return (prediction * roi).flatten(2).sum(2)

    model, image, truth = Wrapped(2, label_map), images(2), labels(2)
    scores = SegmentationTarget(model, None, truth, metric=metric)(image)
    expected = functional.one_hot(model.scores(image).argmax(1), 3).movedim(-1, 1).float()
    assert torch.equal(seen[0][0], expected)
    assert torch.equal(scores, expected.flatten(2).sum(2))


@both_dimensions
@pytest.mark.parametrize("n", [1, 2])
def test_effects_on_a_label_map_are_those_on_its_logits_with_uniform_draws(d, n, caplog):
    model, image = Wrapped(d, label_map), images(d, n)
    bank = PatchBank(2 * images(d, 5, seed=1))
    roi, truth = regions.box(SPATIAL[d], start=4, size=4), labels(d, n)
    options = {"block_size": 4, "target": 1, "n_draws": 3, "n_screening_draws": 0, "return_statistics": True}
    with caplog.at_level(logging.INFO):
        statistics = AverageTreatmentEffect(SegmentationTarget(model, roi, truth)).attribute(image, bank, **options)[1]
    expected = AverageTreatmentEffect(SegmentationTarget(model.scores, roi, truth)).attribute(
        *(image, bank), sampling="uniform", support=None, **options
    )[1]
    torch.testing.assert_close(statistics.effect, expected.effect, equal_nan=True)
    assert float(expected.effect.nan_to_num().abs().max()) > 0
    assert statistics.settings["sampling"] == "uniform"
    # It said so once, and says why in the settings; NaN cannot be followed through a label map either.
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("sampling: ")]
    assert len(told) == 1
    assert "drawn uniformly" in told[0]
    assert "the model returns labels (torch.int64), which have no gradient" in told[0]
    why = statistics.settings["disabled"]
    assert "the model returns labels (torch.int64)" in why["stratified sampling"]
    assert "NaN does not pass through this model" in why["support"]
    assert not (statistics.status == Status.OUTSIDE_SUPPORT).any()


@both_dimensions
def test_layer_effects_on_a_label_map_are_those_on_its_logits(d):
    model, image, donors = Wrapped(d, label_map), images(d, 2), 2 * images(d, 2, seed=1)
    roi, truth = regions.box(SPATIAL[d], start=4, size=4), labels(d, 2)
    options = {"layer_baselines": donors, "target": 1, "n_draws": 2}
    found = LayerAverageTreatmentEffect(SegmentationTarget(model, roi, truth), model.scores.first).attribute(image, **options)
    expected = LayerAverageTreatmentEffect(SegmentationTarget(model.scores, roi, truth), model.scores.first).attribute(
        image, **options
    )
    assert found.shape == (2, 4, *SPATIAL[d])
    torch.testing.assert_close(found, expected)
    assert float(expected.abs().max()) > 0


def test_nothing_is_disabled_where_nothing_is_in_the_way():
    model = Scores(2)
    target = SegmentationTarget(model, regions.box((12, 16), start=4, size=4), labels(2))
    attribute = AverageTreatmentEffect(target).attribute
    statistics = attribute(images(2), PatchBank(images(2, 9)), target=1, block_size=4, n_draws=3, return_statistics=True)[1]
    assert statistics.settings["disabled"] == {}
    assert statistics.settings["sampling"] == "stratified"


@pytest.mark.parametrize("metric", ["soft_dice", "soft_iou", "probability_mean", "logit_sum", "cross_entropy", "soft_volume"])
def test_soft_metrics_of_labels_are_refused_with_the_hard_ones_named(metric):
    target = SegmentationTarget(Wrapped(2, label_map), None, labels(2), metric=metric)
    said = f"metric: '{metric}' is computed from .*, but the model returns labels, which have none; expected one of .*'dice'.*'iou'"
    with pytest.raises(ValueError, match=said):
        target(images(2))


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_there_is_no_surrogate_of_labels():
    model, image, truth = Wrapped(2, label_map), images(2), labels(2)
    early = SegmentationTarget(model, None, truth).surrogate()  # not known before the model has run
    target = SegmentationTarget(model, None, truth)
    target(image)
    for known in (target, copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        for options in ({}, {"metric": "soft_iou"}):
            with pytest.raises(
                ValueError, match=r"surrogate: the model returns labels \(torch.int64\), which have no gradient"
            ):
                known.surrogate(**options)
    own = SegmentationTarget(model, None, truth, metric=lambda prediction, reference, roi: prediction.flatten(1))
    own(image)
    with pytest.raises(ValueError, match="surrogate: the model returns labels"):
        own.surrogate()
    # One that was made before says the same when it is used.
    for method in (Saliency(early), LayerGradCam(early, model.scores.first), GradientTreatmentEffect(early)):
        with pytest.raises(ValueError, match="the model returns labels"):
            method.attribute(image, target=1)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_labels_take_no_activation(activation):
    target = SegmentationTarget(Wrapped(2, label_map), None, labels(2), activation=activation)
    with pytest.raises(ValueError, match=rf"activation: the model returns labels .* \"none\", got '{activation}'"):
        target(images(2))
    assert SegmentationTarget(Wrapped(2, label_map), None, labels(2), activation="none")(images(2)).shape == (1, 3)


def test_without_a_reference_the_number_of_classes_is_not_known():
    model = Wrapped(2, label_map)
    with pytest.raises(ValueError, match=r"model: .* got torch.int64: label maps.*read from the reference, and there is none"):
        SegmentationTarget(model, metric="volume")(images(2))
    one_hot = SegmentationTarget(
        model, metric="volume", output=lambda found: functional.one_hot(found, 3).movedim(-1, 1).bool()
    )
    expected = functional.one_hot(model.scores(images(2)).argmax(1), 3).flatten(1, 2).sum(1).float()
    assert torch.equal(one_hot(images(2)), expected)


@pytest.mark.parametrize(
    ("returned", "reference", "match"),
    [
        (torch.full((1, 3, 4, 4), 2), torch.zeros(1, 3, 4, 4), r"torch.int64 in 3 channels, .* values up to 2; say .*`output`"),
        (torch.zeros(1, 4, 4).long(), 255 * torch.eye(4), "reference: expected labels 0..C-1, got a mask of 0 and 255"),
        (
            torch.zeros(1, 2, 4, 4, dtype=torch.complex64),
            torch.zeros(4, 4),
            "model: expected floating-point .* torch.complex64",
        ),
        (torch.zeros(1, 5).long(), torch.zeros(4, 4), r"model: expected logits \(N, C, \*spatial\).* got \(1, 5\)"),
        (torch.zeros(1, 4, 4).long(), torch.full((4, 4), 0.5), "reference: expected whole numbers as labels, got fractions"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(returned, reference, match):
    with pytest.raises(ValueError, match=match):
        SegmentationTarget(returning(returned), None, reference)(torch.zeros(1, 1, 4, 4))
