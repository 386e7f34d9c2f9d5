"""Class and mask queries: the semantic maps of the models' own processors, and objects."""

import importlib

import pytest
import torch
from family_cases import hugging_face
from output_cases import CONVOLUTION, SPATIAL, both_dimensions, generator, returning
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions, register_adapter
from captum_causalseg.target.adapters import ADAPTERS, class_scores, object_masks

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


class Objects(nn.Module):
    """Three queries that see an object each, by their brightness, at two resolutions; the last one is sure of nothing."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.masks = CONVOLUTION[d](1, 4, 3, padding=1)
        values = generator(d)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=4, generator=values)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        sure = torch.tensor([4.0, 3.0, 2.0, -4.0], dtype=x.dtype).expand(len(x), 4)
        return {"pred_masks": self.masks(x - 0.5), "pred_logits": torch.stack([sure, 0 * sure], -1)}


def by_hand(model: nn.Module, image: Tensor, objects: Tensor, roi: Tensor, hard: bool = True) -> float:
    """Best Dice of one image, object by object and query by query."""
    returned = model(image)
    best = []
    for one in objects:
        scores = []
        for query in range(4):
            p = returned["pred_masks"][0, query].sigmoid() * returned["pred_logits"][0, query].softmax(-1)[0]
            p = (p > 0.5).double() if hard else p
            scores.append((2 * p[roi & one].sum() / (p[roi].sum() + (roi & one).sum())).item())
        best += [max(scores)] if (roi & one).any() else []
    return sum(best) / len(best)


def scene_of_objects(d: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A model, two images, donors, RoI, and objects ``(2, 3, *spatial)``, the last of which no RoI holds."""
    model, pictures = Objects(d).double().eval(), torch.rand(5, 1, *SPATIAL[d], generator=generator(), dtype=torch.double)
    objects = torch.zeros(2, 3, *SPATIAL[d], dtype=torch.bool)
    for example in range(2):
        objects[example, 0] = regions.box(SPATIAL[d], 2, 2)
        objects[example, 1] = regions.box(SPATIAL[d], 4 + example, 2)
    objects[:, 2, ..., -1] = True
    return model, pictures[:2], pictures[2:], regions.box(SPATIAL[d], 2, 5), objects


@both_dimensions
@pytest.mark.parametrize("form", ["masks", "labels", "ids", "argument"])
@torch.no_grad()
def test_the_instance_that_matches_best_is_scored_and_sought_anew(d, form):
    model, pictures, donors, roi, objects = scene_of_objects(d)
    labels = (objects * torch.tensor([1, 2, 3]).view(3, *(1,) * d)).sum(1)
    reference = {"masks": objects, "labels": labels, "ids": labels[:, None] * 1000.0, "argument": "argument"}[form]
    more = labels if form == "argument" else None
    target = SegmentationTarget(model, roi, reference, metric="best_dice", output="instances")
    scores = [by_hand(model, pictures[n : n + 1], objects[n], roi) for n in range(2)]
    assert 0.1 < min(scores) < max(scores) < 0.99
    given = (pictures,) if more is None else (pictures, more)
    assert target(*given).tolist() == pytest.approx(scores)
    assert target.surrogate()(*given).tolist() == pytest.approx(
        [by_hand(model, pictures[n : n + 1], objects[n], roi, hard=False) for n in range(2)]
    )
    found = AverageTreatmentEffect(target).attribute(
        *(pictures, PatchBank(donors, placement="aligned")),
        additional_forward_args=more,
        block_size=4,
        n_draws=3,
        n_screening_draws=0,
        exclude=None,
    )
    corner = (0, ...) + (slice(4, 8),) * d
    for n in range(2):
        changed = []
        for donor in donors:
            image = pictures[n : n + 1].clone()
            image[corner] = donor[corner[1:]]
            changed.append(by_hand(model, image, objects[n], roi))
        assert found[(n, 0, *(5,) * d)].item() == pytest.approx(scores[n] - sum(changed) / 3, abs=1e-9)
        assert abs(found[(n, 0, *(5,) * d)]) > 1e-3


def test_another_instance_takes_an_object_over():
    """The score follows the object, and with another metric a query."""
    lesion = regions.box((8, 8), 2, 3)

    def model(image: Tensor) -> tuple[Tensor, Tensor]:  # the first query finds it in bright images, the second in dark ones
        bright = image.mean((1, 2, 3)) > 0.5
        masks = torch.where(lesion, 9.0, -9.0) * torch.stack([bright, ~bright], 1)[..., None, None] - 1
        return masks, torch.tensor([9.0, -9.0]).expand(len(image), 2, 2)

    both = torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)])
    assert SegmentationTarget(model, None, lesion, "best_dice", output="instances")(both).tolist() == [1, 1]
    each = SegmentationTarget(model, None, lesion, "dice", output="instances")
    assert each(both).tolist() == [[1, 0], [0, 1]]
    assert SegmentationTarget(model, None, lesion, "dice", output="instances:0")(both).tolist() == [1, 0]


def test_nothing_to_find_and_nothing_found():
    masks, classes = torch.full((1, 2, 4, 4), -9.0), torch.tensor([[[9.0, -9.0]] * 2])
    nothing = torch.zeros(4, 4)
    target = SegmentationTarget(returning((masks, classes)), None, nothing, "best_dice", empty_score=0.25, output="instances")
    assert target(torch.rand(1, 1, 4, 4)).tolist() == [0.25]
    masks[0, 1, 0, 0] = 9
    assert target(torch.rand(1, 1, 4, 4)).tolist() == [0]


def test_pictures_of_instances_show_those_that_match():
    masks = torch.full((1, 3, 4, 4), -9.0)
    masks[0, 0, 0], masks[0, 1, :2], masks[0, 2, 3] = 9, 9, 9
    target = SegmentationTarget(
        returning((masks, torch.tensor([[[9.0, -9.0]] * 3]))),
        None,
        regions.box((4, 4), 0, (2, 4)),
        "best_dice",
        output="instances",
    )
    prediction, reference = target.segmentations(torch.rand(1, 1, 4, 4))
    assert torch.equal(prediction, reference)
    assert prediction[0, 0].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_one_prediction_is_its_own_best_match():
    """Masks of objects that overlap; some queries have found nothing."""
    model, pictures, _, roi, _ = scene_of_objects(2)
    for metric, expected in (("best_dice", [1, 1]), ("dice", [[1] * 4] * 2)):
        target = SegmentationTarget.from_prediction(model, pictures, roi=roi, metric=metric, output="instances")
        assert target(pictures).tolist() == expected


def test_references_that_hold_no_objects_are_refused():
    model, pictures, _, _, objects = scene_of_objects(2)
    several = objects[0].long().argmax(0)
    for reference, metric, said in (
        (objects[0, :2], "dice", "metric 'dice' compares each of the model's 4 instances with one object, and there are 2"),
        (
            objects[0],
            "best_dice",
            r"expected a label map of objects, one per example \(N, \*spatial\) with N=1, or one mask per object",
        ),
        (objects[:1] * 2, "best_dice", "expected 0 and 1 in one mask per object, found 0..2"),
        (several - 1, "best_dice", r"expected labels of objects from 0 \(none\) on, found -1..1"),
        (several / 4, "best_dice", "expected whole numbers as labels, got fractions"),
    ):
        given = reference[None] if metric == "dice" else reference
        target = SegmentationTarget(model, None, given, metric, output="instances")
        with pytest.raises(ValueError, match=f"^reference: {said}"):
            target(pictures[:1])


def test_instances_that_sum_to_1_are_no_exclusive_classes():
    masks = torch.tensor([[[[0.4, 0.6]], [[0.6, 0.4]]]]).logit()
    target = SegmentationTarget(
        returning((masks, torch.tensor([[[99.0, -99.0]] * 2]))), metric="volume", threshold=0.7, output="instances"
    )
    assert not target.predict(torch.rand(1, 1, 1, 2)).any()


def test_instances_of_ones_own():
    register_adapter("own", lambda returned, image: returned["planes"], activation="none", instances=True)
    try:
        lesion = regions.box((4, 4), 0, 2)
        planes = torch.stack([torch.ones(4, 4), lesion.float()])[None]
        target = SegmentationTarget(returning({"planes": planes}), None, lesion * 7, "best_dice", output="own")
        assert target(torch.rand(1, 1, 4, 4)).tolist() == [1]
    finally:
        del ADAPTERS["own"]
