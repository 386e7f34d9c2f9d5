"""SAM and its kin: for each prompt the candidate of best predicted quality, or the one that was asked for."""

import pytest
import torch
from family_cases import hugging_face
from output_cases import both_dimensions, generator, returning
from torch import Tensor
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg.target.adapters import best_candidate

ROI = regions.box((64, 64), 8, 48)


@pytest.fixture(scope="module", params=["sam", "sam2"])
def prompted(request):
    hugging_face("Sam2Model")
    import prompted_cases  # which imports transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(prompted_cases, request.param)(), prompted_cases.prompts


def photos(n: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 64, 64, generator=generator(seed))


@torch.no_grad()
def chosen_by_hand(model, images: Tensor, *prompts: Tensor, candidate: int | None = None) -> Tensor:
    """Prompt by prompt, as SAM's processors enlarge masks."""
    out = model(images, *prompts)
    found = torch.stack(
        [
            torch.stack([masks[int(quality.argmax()) if candidate is None else candidate] for masks, quality in zip(*of_image)])
            for of_image in zip(out.pred_masks, out.iou_scores)
        ]
    )
    return functional.interpolate(found, size=(64, 64), mode="bilinear", align_corners=False)


@torch.no_grad()  # with gradients, attention is computed by another kernel
def test_the_best_candidate_of_each_prompt_is_found_without_being_asked(prompted):
    model, prompts = prompted
    images = photos(2)
    target = SegmentationTarget(model, ROI, metric="volume")
    expected = chosen_by_hand(model, images, *prompts(2))
    assert torch.equal(target.logits(images, *prompts(2)), expected)
    assert torch.equal(target.predict(images, *prompts(2)), expected > 0)  # SAM's mask threshold
    assert "activation=auto -> sigmoid" in target.extra_repr()
    named = SegmentationTarget(model, ROI, metric="volume", output="sam")
    assert torch.equal(named(images, *prompts(2)), (expected > 0)[..., ROI].sum(-1).float())


@torch.no_grad()
def test_one_candidate_may_be_asked_for(prompted):
    model, prompts = prompted
    images = photos(1)
    for candidate in range(3):
        target = SegmentationTarget(model, ROI, metric="volume", output=f"sam:{candidate}")
        expected = chosen_by_hand(model, images, *prompts(), candidate=candidate)
        assert torch.equal(target.logits(images, *prompts()), expected)
    with pytest.raises(ValueError, match="output: 'sam:3' is not there: the model proposes 3 masks, 0 to 2"):
        SegmentationTarget(model, ROI, metric="volume", output="sam:3")(images, *prompts())


def test_effects_on_a_prompted_mask_are_those_made_by_hand(prompted):
    model, prompts = prompted
    image, donors = photos(), photos(2, seed=1)
    target = SegmentationTarget.from_prediction(model, image, prompts(), roi=ROI, metric="soft_dice")
    found, statistics = AverageTreatmentEffect(target).attribute(
        *(image, donors, 1, prompts()), block_size=32, n_draws=2, n_screening_draws=0, exclude=None, return_statistics=True
    )

    def score(photo: Tensor) -> Tensor:
        p = chosen_by_hand(model, photo, *prompts(len(photo))).sigmoid()[..., ROI]
        r = (chosen_by_hand(model, image, *prompts()) > 0)[..., ROI].float()
        return 2 * (p * r).sum(-1) / (p.sum(-1) + r.sum(-1))

    changed = image.expand(2, -1, -1, -1).clone()
    changed[..., 32:, :32] = donors[..., 32:, :32]
    expected = score(image)[0] - score(changed).mean(0)
    torch.testing.assert_close(statistics.effect[0, 2].float(), expected, atol=1e-6, rtol=0)
    assert found[0, 0, 40, 8] == pytest.approx(float(expected[1]), abs=1e-6)
    assert expected.abs().min() > 1e-4


def test_gradients_go_through_the_chosen_candidate(prompted):
    model, prompts = prompted
    image = photos().requires_grad_()
    target = SegmentationTarget(model, ROI, metric="logit_mean", output="sam")
    (found,) = torch.autograd.grad(target(image, *prompts())[0, 1], image)
    out = model(image, *prompts())
    mask = out.pred_masks[0, 1, int(out.iou_scores[0, 1].argmax())]
    large = functional.interpolate(mask[None, None], size=(64, 64), mode="bilinear", align_corners=False)
    (expected,) = torch.autograd.grad(large[0, 0][ROI].mean(), image)
    torch.testing.assert_close(found, expected)
    assert found.any()


@both_dimensions
@pytest.mark.parametrize("kind", ["mapping", "tuple", "tuple, quality first", "segment_anything"])
def test_masks_and_qualities_by_any_name(d, kind):
    masks, quality = torch.randn(2, 3, *(6,) * d), torch.tensor([[0.1, 0.9, 0.2], [0.7, 0.0, 0.3]])
    returned = {
        "mapping": {"pred_masks": masks, "iou_scores": quality},
        "tuple": (masks, quality),
        "tuple, quality first": [quality, masks],
        "segment_anything": {"masks": masks > 0, "iou_predictions": quality, "low_res_logits": masks},
    }[kind]
    images = torch.rand(2, 1, *(6,) * d)
    target = SegmentationTarget(returning(returned), metric="volume", output="sam")
    assert torch.equal(target.logits(images), torch.stack([masks[0, 1:2], masks[1, :1]]))


def test_a_map_for_a_text_is_taken_as_it_is():
    masks, semantic = torch.randn(1, 5, 4, 4), torch.randn(1, 1, 8, 8)
    returned = {"pred_masks": masks, "pred_logits": torch.randn(1, 5), "semantic_seg": semantic}
    assert best_candidate(returned, None) is semantic
    assert torch.equal(best_candidate(returned, None, 3), masks[:, 3:4])


def test_what_is_no_candidate_is_said():
    image = torch.rand(1, 1, 8, 8)
    for returned, match in (
        ({"logits": image}, r"'sam' expects masks of candidates .* got dict with keys \['logits'\]"),
        (image, r"'sam' expects masks of candidates .* got a tensor \(1, 1, 8, 8\)"),
        (
            {"pred_masks": torch.rand(1, 2, 3, 8, 8), "iou_scores": torch.rand(1, 2, 4)},
            r"one quality for each mask, got masks \(1, 2, 3, 8, 8\) and qualities \(1, 2, 4\)",
        ),
    ):
        with pytest.raises(ValueError, match=f"output: .*{match}"):
            SegmentationTarget(returning(returned), metric="volume", output="sam")(image)
    for output in ("sam:", "sam:best", "sam:-1", "mask2former:1"):
        with pytest.raises(ValueError, match=r"output: expected '(sam' or 'sam:<number>'|mask2former'), got"):
            SegmentationTarget(returning(image), metric="volume", output=output)
