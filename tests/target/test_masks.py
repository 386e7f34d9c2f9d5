"""Regions and references: every layout of them, as attributes and as arguments."""

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from target_cases import SIZES, Net, S, dices, one_hot, random_rois
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("rois", "lead"), [((), (2,)), ((), (2, 1)), ((4,), (2, 4))])
def test_shapes_and_axes_with_rois_as_arguments(channels, rois, lead):
    target = SegmentationTarget(Net(2, channels), "argument", torch.zeros(8, 8))
    classes = () if channels == 1 else (channels,)
    scores = target(torch.randn(2, 1, 8, 8), torch.ones((*lead, 8, 8), dtype=torch.bool))
    assert scores.shape == (2, *classes, *rois)
    assert target.output_axes(scores.ndim - 1, (8, 8)) == ("class",) * len(classes) + ("roi",) * len(rois)


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
    spatial, classes = SIZES[n_spatial], 2 if kind == "bool" else 4
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
    spatial = SIZES[n_spatial]
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


def test_raw_outputs_of_several_classes_take_a_label_map():
    logits = 3 * torch.randn(1, 3, 6, 6)
    labels = torch.randint(0, 3, (6, 6))
    scores = SegmentationTarget(nn.Identity(), None, labels, activation="none")(logits)[0]
    for c in range(3):
        hard, truth = logits[0, c] > 0.5, labels == c
        assert float(scores[c]) == pytest.approx(float(2 * (hard & truth).sum() / (hard.sum() + truth.sum())))
