"""Queries, candidates and objects are no classes."""

import pytest
import torch
from family_cases import mask2former, maskformer
from output_cases import Scores, both_dimensions, generator, images, returning
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, SegmentationTarget, regions

QUERIES = {"masks_queries_logits": (2, 6, 16, 16), "class_queries_logits": (2, 6, 4)}


@pytest.fixture(scope="module")
def query_models():
    """Mask2Former and MaskFormer with three classes and six queries, for images (N, 3, 64, 64)."""
    torch.manual_seed(0)
    return {"Mask2Former": mask2former().eval(), "MaskFormer": maskformer().eval()}


def class_scores(out) -> Tensor:
    """What the error message tells people to write."""
    return torch.einsum("bqc,bqhw->bchw", out.class_queries_logits.softmax(-1)[..., :-1], out.masks_queries_logits.sigmoid())


@pytest.mark.parametrize("name", ["Mask2Former", "MaskFormer"])
@pytest.mark.parametrize(
    "output",
    [
        *("masks_queries_logits", "class_queries_logits", 0, 1, -4, lambda out: out.masks_queries_logits),
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
    assert 'activation="shares"' in said
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
    assert 'Say where the logits are (an index); output="mask2former"' in str(caught.value)
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
    einsum = r'torch.einsum\("bqc,bqhw->bchw", {}.softmax\(-1\)\[..., :-1\], {}.sigmoid\(\)\), activation="shares"'
    as_attributes, as_keys = (
        einsum.format("out.logits", "out.pred_masks"),
        einsum.format(r'out\["pred_logits"\]', r'out\["pred_masks"\]'),
    )
    for returned, output, match in (
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
def test_class_scores_of_queries_are_made_of_replayed_layers_too(d):
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
    assert "replay" not in statistics.settings["disabled"]
    with pytest.raises(ValueError, match=f"bq{axes}->bc{axes}"):
        SegmentationTarget(model, metric="volume")(images(d))
