"""Where prompts are found among the arguments of a call, and what is said where they are not."""

import pytest
import torch

from captum_causalseg import PromptTreatmentEffect
from captum_causalseg.donors import MovedPrompts
from tests.common.prompt_cases import drawn_case, sam_case

IMAGE = torch.rand(1, 1, 12, 16)
POINTS, LABELS = torch.tensor([[[3.0, 4.0], [9.0, 5.0]]]), torch.tensor([[1, 0]])


def volume(image, point_coords, point_labels, box_coords=None):
    """Called as VISTA3D's; the sum of what is clicked on."""
    found = image.sum((1, 2, 3)) * 0
    if point_coords is not None:
        for k in range(point_coords.shape[1]):
            x, y = point_coords[:, k].long().T
            found = found + image[torch.arange(len(image)), 0, y, x] * (2.0 * point_labels[:, k] - 1)
    return found


def positional(*call):
    return volume(*call)


def test_clicks_are_found_by_the_names_of_arguments_or_said():
    expected = torch.stack([IMAGE[:, 0, 4, 3], -IMAGE[:, 0, 5, 9]], 1)
    call = {"additional_forward_args": (POINTS, LABELS)}
    for method in (
        PromptTreatmentEffect(volume),
        PromptTreatmentEffect(volume, points="point_coords", labels=1),
        PromptTreatmentEffect(positional, points=0, labels=1),
    ):
        assert torch.allclose(method.attribute(IMAGE, **call), expected)


def test_bounds_follow_the_order_of_coordinates():
    """Nine columns in, the click may go on to the right in an image of 16 columns, not where 12 rows are meant."""
    wide = torch.tensor([[[14.0, 4.0]]])
    call = {"additional_forward_args": (wide, torch.ones(1, 1)), "return_statistics": True}
    statistics = PromptTreatmentEffect(volume).attribute(IMAGE, MovedPrompts(1), **call)[1]
    assert statistics.n_draws.tolist() == [[4]]
    statistics = PromptTreatmentEffect(
        lambda image, points, labels: volume(image, points.flip(-1), labels), indexing="ij"
    ).attribute(IMAGE, MovedPrompts(1), additional_forward_args=(wide.flip(-1), torch.ones(1, 1)), return_statistics=True)[1]
    assert statistics.n_draws.tolist() == [[4]]


def test_the_masks_of_a_target_are_no_prompts():
    """References per example become arguments of the call, where SAM has its masks."""
    target, images, call = sam_case()
    statistics = PromptTreatmentEffect(target).attribute(
        images, additional_forward_args=call, target=0, return_statistics=True
    )[1]
    assert [one["kind"] for one in statistics.settings["prompts"]] == ["click", "click", "click", "box"]


@pytest.mark.parametrize(
    ("made", "call", "message"),
    [
        ({}, (None, None), r"^additional_forward_args: no prompts were found in the call\. Say where they are: points="),
        (
            {"points": "clicks"},
            (POINTS, LABELS),
            r"^points: the forward has no argument 'clicks'; it has point_coords, point_labels",
        ),
        ({"points": 3}, (POINTS, LABELS), r"^points: argument additional_forward_args\[3\] is not in the call, which has 2"),
        ({"points": 1}, (POINTS, LABELS), r"^points: expected \(N, points, 2\) or \(N, objects, points, 2\), coordinates"),
        ({"points": 0, "labels": 0}, (POINTS, LABELS), r"^labels: expected one per point, \(1, 2\), got \(1, 2, 2\)"),
        ({"labels": 1}, (POINTS, LABELS), r"^labels: they are those of clicks; say which argument holds the points"),
        ({"points": 0, "boxes": 1}, (POINTS, LABELS), r"^boxes: expected \(N, boxes, 4\), the first corner and the last"),
        ({"points": 0, "no_text": LABELS[0]}, (POINTS, LABELS), r"^no_text: it stands in the place of a text"),
        ({"texts": 1, "no_text": LABELS}, (POINTS, LABELS), r"^no_text: expected what stands for one example's text, \(2,\)"),
        ({"maps": [1]}, (POINTS, LABELS), r"^maps: there is no channel 1 of an image in input 0; the inputs are"),
        ({"maps": [0]}, (POINTS, LABELS), r"^maps: channel 0 of input 0 is nowhere 0, and where one prompt ends"),
    ],
)
def test_what_cannot_be_prompts_is_refused(made, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PromptTreatmentEffect(volume, **made).attribute(IMAGE + 1, additional_forward_args=call or None)


def test_prompts_without_a_place_to_go_to_are_refused():
    boxes = torch.tensor([[[2.0, 2.0, 8.0, 8.0]]])
    method = PromptTreatmentEffect(volume, boxes=2)
    with pytest.raises(
        ValueError, match=r"^baselines: prompt 0 of example 0 \(box\) has no place to go to: its sides are too short"
    ):
        method.attribute(IMAGE, MovedPrompts(1, share=0.1), additional_forward_args=(POINTS, LABELS, boxes))
    with pytest.raises(ValueError, match=r"^baselines: a text cannot be moved"):
        PromptTreatmentEffect(volume, texts=1).attribute(IMAGE, MovedPrompts(1), additional_forward_args=(POINTS, LABELS))
    with pytest.raises(TypeError, match=r"^baselines: expected a MovedPrompts or None, got"):
        method.attribute(IMAGE, torch.zeros(4, 1, 12, 16), additional_forward_args=(POINTS, LABELS, boxes))


def test_maps_without_anything_drawn_are_refused():
    target, images, _ = drawn_case(2)
    images[:, 1:] = 0.0
    with pytest.raises(ValueError, match=r"^maps: nothing is drawn in these channels"):
        PromptTreatmentEffect(target, maps=[1, 2]).attribute(images, target=0)


def test_clicks_of_a_map_in_an_input_of_its_own():
    target, images, _ = drawn_case(2)
    together = PromptTreatmentEffect(target, maps=[1, 2]).attribute(images, target=0)
    apart = PromptTreatmentEffect(lambda image, clicks: target(torch.cat([image, clicks], 1)), maps=[(1, 0), (1, 1)])
    assert torch.allclose(apart.attribute((images[:, :1], images[:, 1:]), target=0), together, atol=1e-6)
