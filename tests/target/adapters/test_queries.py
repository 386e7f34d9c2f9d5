"""Class and mask queries: the semantic maps of the models' own processors, and objects."""

import importlib

import pytest
import torch
from family_cases import hugging_face
from output_cases import both_dimensions, generator, returning
from torch import Tensor
from torch.nn import functional

from captum_causalseg import SegmentationTarget
from captum_causalseg.target.adapters import class_scores, object_masks

MODELS = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "eomt": "Eomt", "oneformer": "OneFormer", "detr": "Detr"}
OUTPUTS = {"maskformer": "MaskFormerForInstanceSegmentationOutput", "detr": "DetrSegmentationOutput"}


def output_of(name: str, side: int) -> object:
    """As the model returns it, with five queries and three classes."""
    # The processors without torchvision, which are compared with, came with it.
    hugging_face("EomtForUniversalSegmentation")
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    kind = getattr(module, OUTPUTS.get(name, f"{MODELS[name]}ForUniversalSegmentationOutput"))
    values = generator(side)
    classes, masks = ("logits", "pred_masks") if name == "detr" else ("class_queries_logits", "masks_queries_logits")
    return kind(
        **{
            classes: 3 * torch.randn(2, 5, 4, generator=values),
            masks: 3 * torch.randn(2, 5, side // 4, side // 4, generator=values),
        }
    )


def semantic_maps(name: str, out: object, side: int) -> Tensor:
    """By the model's own processor, the one that needs no torchvision."""
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    call = getattr(module, f"{MODELS[name]}ImageProcessorPil").post_process_semantic_segmentation
    if name != "eomt":
        return torch.stack(call(None, out, [(side, side)] * 2))
    return torch.stack(call(None, out, [(side, side)] * 2, size={"shortest_edge": side, "longest_edge": side}))


@pytest.mark.parametrize(("name", "side"), [*((name, 48) for name in MODELS if name != "mask2former"), ("mask2former", 384)])
def test_the_semantic_map_is_that_of_the_models_processor(name, side):
    out = output_of(name, side)
    expected = semantic_maps(name, out, side)  # Mask2Former's enlarges masks to 384 x 384, whatever it is given
    images = torch.rand(2, 3, side, side)
    for output in (None, name):
        target = SegmentationTarget(returning(out), metric="volume", output=output)
        found = target.predict(images)
        assert torch.equal(found.int().argmax(1), expected)
        assert torch.equal(found.sum(1), torch.ones_like(expected))
        assert "activation=auto -> shares" in target.extra_repr()
    assert len(expected.unique()) == 3


@both_dimensions
def test_class_scores_are_votes_of_queries(d):
    masks, classes = torch.randn(2, 4, *(3,) * d), torch.randn(2, 4, 3)
    expected = torch.zeros(2, 2, *(3,) * d)
    for query in range(4):
        for c in range(2):
            vote = classes[:, query].softmax(-1)[:, c].view(-1, *(1,) * d)
            expected[:, c] += vote * masks[:, query].sigmoid()
    image = torch.rand(2, 1, *(6,) * d)
    mode = "bilinear" if d == 2 else "trilinear"
    for returned in (
        {"pred_logits": classes, "pred_masks": masks},
        (masks, classes),
        [classes, masks],
        {"logits": classes, "pred_masks": masks, "pred_boxes": torch.rand(2, 4, 2 * d)},
    ):
        torch.testing.assert_close(class_scores(returned, image), expected)
        target = SegmentationTarget(returning(returned), metric="probability_mean", output="detr")
        large = functional.interpolate(expected, size=(6,) * d, mode=mode, align_corners=False)
        torch.testing.assert_close(target(image), (large / large.sum(1, keepdim=True)).flatten(2).mean(-1))
    large = functional.interpolate(masks, size=(6,) * d, mode=mode, align_corners=False)
    torch.testing.assert_close(class_scores((masks, classes), image, fine_masks=True), class_scores((large, classes), image))


def test_the_score_of_a_single_class_is_compared_with_the_threshold():
    masks, classes = torch.tensor([[[[4.0, -4.0]]]]), torch.tensor([[[2.0, -2.0]]])
    target = SegmentationTarget(returning((masks, classes)), metric="volume", output="mask2former")
    assert target.predict(torch.rand(1, 1, 1, 2)).tolist() == [[[[True, False]]]]


def test_objects_are_queries_that_have_found_something():
    masks, classes = torch.full((1, 3, 2, 2), 4.0), torch.tensor([[[5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 5.0, 0.0]]])
    target = SegmentationTarget(returning((masks, classes)), metric="volume", output="instances")
    assert target.predict(torch.rand(1, 1, 2, 2)).flatten(2).any(-1).tolist() == [[True, False, True]]
    expected = masks.sigmoid() * (1 - classes.softmax(-1)[..., 2])[..., None, None]
    assert torch.equal(target.logits(torch.rand(1, 1, 2, 2)), expected)
    one = SegmentationTarget(returning((masks, classes)), metric="volume", output="instances:2")
    assert torch.equal(one.logits(torch.rand(1, 1, 2, 2)), expected[:, 2:])
    with pytest.raises(ValueError, match="output: 'instances:3' is not there: the model has 3 queries"):
        SegmentationTarget(returning((masks, classes)), metric="volume", output="instances:3")(torch.rand(1, 1, 2, 2))


def test_what_holds_no_queries_is_said():
    image = torch.rand(1, 3, 4, 4)
    for returned in (image, {"logits": image}, (image, image)):
        with pytest.raises(
            ValueError, match=r"output: expected masks \(N, queries, \*spatial\) and class scores .* of queries"
        ):
            SegmentationTarget(returning(returned), metric="volume", output="mask2former")(image)


def test_sam3_says_how_sure_it_is_of_each_object():
    class Out:
        pred_masks, pred_logits = torch.randn(1, 2, 4, 4), torch.tensor([[3.0, -3.0]])
        presence_logits = torch.tensor([[1.0]])

    expected = Out.pred_masks.sigmoid() * (Out.pred_logits.sigmoid() * Out.presence_logits.sigmoid())[..., None, None]
    assert torch.equal(object_masks(Out(), None), expected)
