"""What models return: deep supervision in any order, structures of every kind, other resolutions, and labels in place of logits."""

import copy
import logging
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
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

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
SPATIAL = {2: (12, 16), 3: (8, 12, 8)}
both_dimensions = pytest.mark.parametrize("d", [2, 3])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dice(first: Tensor, second: Tensor, roi: Tensor) -> float:
    """Of two boolean masks, by counting; 1 where both are empty."""
    first, second = first[roi], second[roi]
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


class Scores(nn.Module):
    """Two convolutions: the scores of classes that the models below turn into outputs of many kinds."""

    def __init__(self, d: int, classes: int = 3) -> None:
        super().__init__()
        self.first = CONVOLUTION[d](1, 4, 3, padding=1)
        self.last = CONVOLUTION[d](4, classes, 3, padding=1)
        values = generator(d)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=values)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Wrapped(nn.Module):
    """Scores, and what is made of them."""

    def __init__(self, d: int, make, classes: int = 3) -> None:
        super().__init__()
        self.scores, self.make = Scores(d, classes), make

    def forward(self, x: Tensor):
        return self.make(self.scores(x))


def returning(value):
    """A model that returns this whatever it is given."""
    return lambda image: value


def label_map(scores: Tensor) -> Tensor:
    return scores.argmax(1)


def label_channel(scores: Tensor) -> Tensor:
    return scores.argmax(1, keepdim=True).to(torch.uint8)


def images(d: int, n: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, *SPATIAL[d], generator=generator(seed))


def labels(d: int, n: int = 1, classes: int = 3) -> Tensor:
    """That hold every class."""
    values = torch.randint(0, classes, (n, *SPATIAL[d]), generator=generator(5))
    values.flatten()[:classes] = torch.arange(classes)
    return values


# --- Lists and tuples ------------------------------------------------------------------------------------------------


def resolutions(d: int, n: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of three classes at the whole, half and a quarter of the resolution."""
    return tuple(
        torch.randn(n, 3, *(side // factor for side in SPATIAL[d]), generator=generator(factor)) for factor in (1, 2, 4)
    )


@both_dimensions
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("form", [list, tuple, lambda items: {"out": list(items)}, lambda items: [[items[0]], list(items[1:])]])
def test_of_deep_supervision_the_full_resolution_is_taken(d, order, form):
    given = resolutions(d, 2)
    returned = form([given[i] for i in order])
    target = SegmentationTarget(returning(returned), metric="volume")
    assert torch.equal(target.logits(images(d, 2)), given[0])


@both_dimensions
def test_without_one_of_full_resolution_the_first_is_taken_and_resized(d):
    _, half, quarter = resolutions(d)
    for returned in ([half, quarter], (quarter, half)):
        expected = functional.interpolate(
            returned[0], size=SPATIAL[d], mode={2: "bilinear", 3: "trilinear"}[d], align_corners=False
        )
        found = SegmentationTarget(returning(returned), metric="volume").logits(images(d))
        assert torch.equal(found, expected)


def test_of_two_at_full_resolution_the_first_is_taken_and_output_chooses_another():
    first, second = torch.randn(1, 2, 12, 16), torch.randn(1, 2, 12, 16)
    target = SegmentationTarget(lambda image: [first, second], metric="volume")
    assert torch.equal(target.logits(images(2)), first)
    last = SegmentationTarget(lambda image: [first, second], metric="volume", output=-1)
    assert torch.equal(last.logits(images(2)), second)


@both_dimensions
@pytest.mark.parametrize("form", [list, tuple, lambda items: {"out": items}, lambda items: [[items[0]], items[1]]])
def test_maps_of_different_heads_are_not_guessed_among(d, form):
    segmentation, reconstruction = torch.randn(2, 3, *SPATIAL[d]), torch.randn(2, 1, *SPATIAL[d])
    for items in ([segmentation, reconstruction], [reconstruction, segmentation]):
        target = SegmentationTarget(returning(form(items)), metric="volume")
        with pytest.raises(
            ValueError, match=r"output: the model returns several maps of the images' size, \(2, .* and \(2, .*; say which"
        ):
            target.logits(images(d, 2))
    chosen = SegmentationTarget(returning([reconstruction, segmentation]), metric="volume", output=1)
    assert torch.equal(chosen.logits(images(d, 2)), segmentation)
    # Labels beside the logits that they come from, or a coarser output of another head, leave nothing open.
    for beside in (segmentation.argmax(1), torch.randn(2, 1, *(side // 2 for side in SPATIAL[d]))):
        assert torch.equal(
            SegmentationTarget(returning((segmentation, beside)), metric="volume").logits(images(d, 2)), segmentation
        )


@both_dimensions
def test_losses_and_class_scores_beside_the_segmentation_are_passed_over(d):
    full, half, _ = resolutions(d, 2)
    for segmentation in (full, half):
        for returned in (
            (torch.tensor(0.5), segmentation),  # a loss
            (torch.randn(2, 7), segmentation),  # what is in the image
            (torch.randn(3, 3, *SPATIAL[d]), segmentation),  # of another batch
        ):
            found = SegmentationTarget(returning(returned), metric="volume").logits(images(d, 2))
            assert found.shape == (2, 3, *SPATIAL[d])
            assert torch.equal(found, full) == (segmentation is full)


def test_the_full_resolution_without_channels_is_found_too():
    coarse, fine = torch.randn(2, 1, 6, 8), torch.randn(2, 12, 16)
    found = SegmentationTarget(lambda image: [coarse, fine], metric="volume").logits(images(2, 2))
    assert torch.equal(found, fine[:, None])


def test_a_key_or_an_index_may_lead_to_a_list():
    full, half, _ = resolutions(2)
    for returned, output in (
        ({"decoder": [half, full]}, "decoder"),
        (("loss", [half, full]), 1),
        ({"decoder": [half, full]}, lambda found: found["decoder"]),
    ):
        target = SegmentationTarget(returning(returned), metric="volume", output=output)
        assert torch.equal(target.logits(images(2)), full)


def test_samples_stacked_on_an_axis_of_their_own_are_refused():
    stacked = torch.randn(1, 4, 3, 12, 16)
    with pytest.raises(ValueError, match=r"got \(1, 4, 3, 12, 16\); `output` says where to find them"):
        SegmentationTarget(lambda image: stacked, metric="volume").logits(images(2))
    first = SegmentationTarget(lambda image: stacked, metric="volume", output=lambda returned: returned[:, 0])
    assert torch.equal(first.logits(images(2)), stacked[:, 0])


# --- Mappings and objects with names ---------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor
    features: Tensor


Named = namedtuple("Named", ["features", "pred"])


@both_dimensions
@pytest.mark.parametrize(
    "form",
    [
        lambda found, other: {"features": other, "out": found},
        lambda found, other: OrderedDict(loss=torch.tensor(1.0), logits=found),
        lambda found, other: {"image": other, "pred": found},
        lambda found, other: Named(other, found),
        lambda found, other: Output(found, other),
    ],
)
def test_usual_names_are_found_in_whatever_has_them(d, form):
    found, other = torch.randn(1, 3, *SPATIAL[d]), torch.randn(1, 3, *SPATIAL[d])
    target = SegmentationTarget(lambda image: form(found, other), metric="volume")
    assert torch.equal(target.logits(images(d)), found)


def test_the_outputs_of_hugging_face_are_read():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    coarse = torch.randn(1, 3, 3, 4)
    expected = functional.interpolate(coarse, size=(12, 16), mode="bilinear", align_corners=False)
    for returned in (
        outputs.SemanticSegmenterOutput(logits=coarse),
        outputs.SemanticSegmenterOutput(loss=torch.tensor(1.0), logits=coarse),
        outputs.SemanticSegmenterOutput(loss=torch.tensor(1.0), logits=coarse).to_tuple(),
    ):
        assert torch.equal(SegmentationTarget(returning(returned), metric="volume").logits(images(2)), expected)


# --- Queries are no classes ------------------------------------------------------------------------------------------

QUERIES = {"masks_queries_logits": (2, 6, 16, 16), "class_queries_logits": (2, 6, 4)}


@pytest.fixture(scope="module")
def query_models():
    """Mask2Former and MaskFormer with three classes and six queries, for images (N, 3, 64, 64)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=2,
        out_features=[f"stage{stage}" for stage in range(1, 5)],
    )
    sizes = {"mask_feature_size": 32, "num_labels": 3, "backbone_config": backbone}
    decoder = transformers.DetrConfig(
        **{
            f"{side}_{name}": n
            for side in ("encoder", "decoder")
            for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
        },
        d_model=16,
        num_queries=6,
    )
    second = transformers.Mask2FormerConfig(
        feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        **sizes,
    )
    first = transformers.MaskFormerConfig(fpn_feature_size=32, decoder_config=decoder, **sizes)
    return {
        "Mask2Former": transformers.Mask2FormerForUniversalSegmentation(second).eval(),
        "MaskFormer": transformers.MaskFormerForInstanceSegmentation(first).eval(),
    }


def class_scores(out) -> Tensor:
    """What the error message tells people to write."""
    return torch.einsum("bqc,bqhw->bchw", out.class_queries_logits.softmax(-1)[..., :-1], out.masks_queries_logits.sigmoid())


@pytest.mark.parametrize("name", ["Mask2Former", "MaskFormer"])
@pytest.mark.parametrize(
    "output",
    [
        *(None, "masks_queries_logits", "class_queries_logits", 0, 1, -4, lambda out: out.masks_queries_logits),
        *(lambda out: out["masks_queries_logits"][:, :4], lambda out: list(out.values())),
    ],
)
def test_queries_are_no_classes(query_models, name, output):
    image, reference = torch.rand(2, 3, 64, 64, generator=generator()), torch.randint(0, 2, (64, 64))
    target = SegmentationTarget(query_models[name], None, reference, output=output)
    with pytest.raises(
        ValueError, match=r"output: '(masks|class)_queries_logits' of Mask\w+Output, .*queries are no classes"
    ) as caught:
        target(image)
    said = str(caught.value)
    assert (
        'torch.einsum("bqc,bqhw->bchw", out.class_queries_logits.softmax(-1)[..., :-1], out.masks_queries_logits.sigmoid())'
        in said
    )
    assert 'activation="softmax"' in said
    with pytest.raises(ValueError, match="queries are no classes"):
        SegmentationTarget.from_prediction(query_models[name], image, output=output)


@pytest.mark.parametrize("name", ["Mask2Former", "MaskFormer"])
def test_class_scores_made_of_queries_are_explained(query_models, name):
    model, image = query_models[name], torch.rand(2, 3, 64, 64, generator=generator())
    target = SegmentationTarget.from_prediction(
        model, image, roi=regions.box((64, 64), 16, 32), metric="probability_mean", output=class_scores, activation="softmax"
    )
    with torch.no_grad():
        out = model(image)
    assert {name: tuple(out[name].shape) for name in QUERIES} == QUERIES
    # Query by query: its mask votes for each class as much as it is of that class.
    votes = torch.zeros(2, 3, 16, 16)
    for query in range(6):
        share, mask = out.class_queries_logits[:, query].softmax(-1), out.masks_queries_logits[:, query].sigmoid()
        for c in range(3):
            votes[:, c] += share[:, c, None, None] * mask
    votes = functional.interpolate(votes, size=(64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(target.predict(image).int().argmax(1), votes.argmax(1))
    assert target(image).shape == (2, 3)
    # The weights are random: blocks move the score by less than screening lets pass.
    found = AverageTreatmentEffect(target).attribute(
        *(image, torch.rand(5, 3, 64, 64, generator=generator(1)), 1), block_size=16, n_draws=2, n_screening_draws=0
    )
    assert found.any()


def test_queries_without_names_are_seen_by_their_class_scores(query_models):
    image = torch.rand(2, 3, 64, 64, generator=generator())
    target = SegmentationTarget(lambda x: query_models["Mask2Former"](x, return_dict=False), metric="volume")
    with pytest.raises(
        ValueError, match=r"output: the model returns \(2, 6, 16, 16\) beside \(2, 6, 4\), .* of 6 queries"
    ) as caught:
        target(image)
    assert "Say where the logits are (an index), or make class scores with a callable" in str(caught.value)
    # Logits beside features of some other kind are just that, and who says which is taken at their word.
    logits = torch.randn(2, 6, 64, 64)
    for beside in (torch.randn(2, 5, 4), torch.zeros(2, 6, 4).long(), torch.randn(2, 6)):
        assert torch.equal(SegmentationTarget(returning((beside, logits)), metric="volume").logits(image), logits)
    chosen = SegmentationTarget(returning((torch.randn(2, 6, 4), logits)), metric="volume", output=1)
    assert torch.equal(chosen.logits(image), logits)


def test_masks_of_objects_and_candidates_are_no_classes():
    detr = pytest.importorskip("transformers.models.conditional_detr.modeling_conditional_detr")
    sam = pytest.importorskip("transformers.models.sam.modeling_sam")
    scores, masks, boxes = torch.randn(1, 5, 4), torch.randn(1, 5, 3, 4), torch.rand(1, 5, 4)
    einsum = r'torch.einsum\("bqc,bqhw->bchw", {}.softmax\(-1\)\[..., :-1\], {}.sigmoid\(\)\), activation="softmax"'
    as_attributes, as_keys = (
        einsum.format("out.logits", "out.pred_masks"),
        einsum.format(r'out\["pred_logits"\]', r'out\["pred_masks"\]'),
    )
    for returned, output, match in (
        (detr.ConditionalDetrSegmentationOutput(logits=scores, pred_boxes=boxes, pred_masks=masks), None, as_attributes),
        (
            detr.ConditionalDetrSegmentationOutput(logits=scores, pred_boxes=boxes, pred_masks=masks),
            "pred_masks",
            as_attributes,
        ),
        ({"pred_logits": scores, "pred_masks": masks, "aux_outputs": []}, "pred_masks", as_keys),  # MaskDINO
        ({"pred_logits": scores, "pred_masks": masks, "aux_outputs": []}, None, as_keys),
        ({"pred_masks": masks, "pred_boxes": boxes}, "pred_masks", r'candidate mask.* out\["pred_masks"\]\[:, :1\]'),
        (
            sam.SamImageSegmentationOutput(iou_scores=torch.rand(1, 1, 3), pred_masks=masks[:, None, :3]),
            "pred_masks",
            r"object or candidate mask, .* output=lambda out: out.pred_masks\[:, 0, :1\]",
        ),
        (
            sam.SamImageSegmentationOutput(iou_scores=torch.rand(1, 1, 3), pred_masks=masks[:, None, :3]),
            lambda out: out.pred_masks.squeeze(1),
            r"output: 'pred_masks' of SamImageSegmentationOutput, \(1, 3, 3, 4\), .* out.pred_masks\[:, 0, :1\]",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            SegmentationTarget(returning(returned), metric="volume", output=output)(images(2))
    one = sam.SamImageSegmentationOutput(iou_scores=torch.rand(1, 1, 3), pred_masks=masks[:, None, :3])
    chosen = SegmentationTarget(returning(one), metric="volume", output=lambda out: out.pred_masks[:, 0, :1])
    assert chosen(images(2)).shape == (1,)


def test_a_segmentation_beside_masks_of_objects_is_one():
    logits, masks, boxes = torch.randn(1, 3, 12, 16), torch.randn(1, 5, 3, 4), torch.rand(1, 5, 4)
    for returned, output in (
        ({"logits": logits, "pred_masks": masks, "pred_boxes": boxes}, None),
        (
            {"semantic_seg": logits, "pred_masks": masks, "pred_boxes": boxes, "pred_logits": torch.randn(1, 5, 2)},
            "semantic_seg",
        ),
        ({"pred_masks": logits}, "pred_masks"),  # a name alone says nothing
        ({"pred_masks": logits, "logits": logits}, "pred_masks"),
    ):
        assert torch.equal(SegmentationTarget(returning(returned), metric="volume", output=output).logits(images(2)), logits)


@both_dimensions
def test_class_scores_of_queries_are_made_under_vmap_too(d):
    axes = "hw" if d == 2 else "dhw"

    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.masks, self.classes = Scores(d, 4), nn.Parameter(torch.randn(4, 3, generator=generator(8)))

        def forward(self, x):
            masks = self.masks(x)
            return {"pred_masks": masks, "pred_logits": self.classes.expand(len(x), -1, -1)}

    def made(out):
        return torch.einsum(f"bqc,bq{axes}->bc{axes}", out["pred_logits"].softmax(-1)[..., :-1], out["pred_masks"].sigmoid())

    model = Queries()
    target = SegmentationTarget.from_prediction(model, images(d), metric="soft_dice", output=made, activation="softmax")
    layer = LayerAverageTreatmentEffect(target, model.masks.first)
    attributions, statistics = layer.attribute(images(d), images(d, 3, seed=2), target=1, n_draws=3, return_statistics=True)
    assert attributions.any()
    assert "vmap" not in statistics.settings["switched_off"]
    with pytest.raises(ValueError, match=f"bq{axes}->bc{axes}"):
        SegmentationTarget(model, metric="volume")(images(d))


# --- A quarter of the resolution, end to end -------------------------------------------------------------------------


@both_dimensions
@pytest.mark.parametrize("activation", ["auto", "sigmoid"])
def test_effects_of_a_model_of_a_quarter_resolution(d, activation):
    mode = {2: "bilinear", 3: "trilinear"}[d]
    pool = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[d]
    model = Wrapped(d, lambda scores: {"logits": pool(scores, 4)})
    image, donors, roi = images(d), 2 * images(d, 2, seed=1), regions.box(SPATIAL[d], start=4, size=4)
    truth = functional.one_hot(labels(d), 3).movedim(-1, 1)

    def score(x: Tensor) -> Tensor:
        logits = functional.interpolate(pool(model.scores(x), 4), size=SPATIAL[d], mode=mode, align_corners=False)
        p = logits.softmax(1) if activation == "auto" else logits.sigmoid()
        return 2 * (p * truth)[..., roi].sum(-1) / (p[..., roi].sum(-1) + truth[..., roi].sum(-1))

    target = SegmentationTarget(model, roi, truth, metric="soft_dice", activation=activation)
    statistics = AverageTreatmentEffect(target).attribute(
        *(image, PatchBank(donors, placement="aligned"), 1), block_size=4, n_draws=2, return_statistics=True
    )[1]
    with torch.no_grad():
        observed = score(image)
        torch.testing.assert_close(statistics.observed_score.float(), observed)
        changed = image.repeat(2, *[1] * (d + 1))
        corner = (..., *[slice(0, 4)] * d)
        changed[corner] = donors[corner]
        effect = observed[0] - score(changed).mean(0)
    torch.testing.assert_close(statistics.effect[0, 0].float(), effect, atol=1e-5, rtol=0)
    assert float(effect.abs().max()) > 1e-4


# --- Labels in place of logits ---------------------------------------------------------------------------------------


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


# --- Labels end to end -----------------------------------------------------------------------------------------------


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
    why = statistics.settings["switched_off"]
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


def test_nothing_is_switched_off_where_nothing_is_in_the_way():
    model = Scores(2)
    target = SegmentationTarget(model, regions.box((12, 16), start=4, size=4), labels(2))
    attribute = AverageTreatmentEffect(target).attribute
    statistics = attribute(images(2), PatchBank(images(2, 9)), target=1, block_size=4, n_draws=3, return_statistics=True)[1]
    assert statistics.settings["switched_off"] == {}
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


# --- Activations, on the same scores ---------------------------------------------------------------------------------


@both_dimensions
@pytest.mark.parametrize(
    ("make", "classes", "hard", "named"),
    [
        (lambda s: s, 1, lambda s: s > 0, "sigmoid"),
        (lambda s: s.sigmoid(), 1, lambda s: s > 0, "none"),
        (lambda s: s, 3, lambda s: functional.one_hot(s.argmax(1), 3).movedim(-1, 1).bool(), "softmax"),
        (lambda s: s.softmax(1), 3, lambda s: functional.one_hot(s.argmax(1), 3).movedim(-1, 1).bool(), "none"),
        (lambda s: s.sigmoid(), 3, lambda s: s > 0, "none"),  # labels that may overlap
    ],
)
@pytest.mark.parametrize("form", [lambda y: y, lambda y: [y], lambda y: {"out": y}, lambda y: (torch.tensor(0.0), y)])
def test_activations_are_read_alike_whatever_holds_the_output(d, form, make, classes, hard, named):
    image = images(d, 2)
    model = Wrapped(d, lambda scores: form(make(scores)), classes)
    target = SegmentationTarget(model, metric="volume")
    assert torch.equal(target.predict(image), hard(model.scores(image)))
    assert f"activation=auto -> {named}," in repr(target)
