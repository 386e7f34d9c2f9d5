"""Effects of prompts against the literal loop: every call made by hand, without the click or with the click elsewhere."""

import itertools

import numpy as np
import pytest
import torch

from captum_causalseg import PromptTreatmentEffect, SegmentationTarget, TreatmentEffectStatistics
from captum_causalseg.donors import MovedPrompts
from tests.common.prompt_cases import drawn_case, redrawn, sam_case, steps_of


def score(target: SegmentationTarget, example: int, *call: object) -> torch.Tensor:
    """The scores of one example's call by itself, with its own reference."""
    alone = SegmentationTarget(
        target.model,
        roi=target.roi,
        reference=target.reference[example : example + 1],
        metric=target.metric,
        activation="sigmoid",
    )
    return alone(*call)[0].detach().double()


def without(tensor: torch.Tensor, k: int, axis: int) -> torch.Tensor:
    return tensor.index_select(axis, torch.tensor([i for i in range(tensor.shape[axis]) if i != k]))


def test_prompts_of_sam_left_out_are_what_it_says_to_calls_without_them():
    target, images, (points, labels, boxes) = sam_case()
    effects, statistics = PromptTreatmentEffect(target).attribute(
        images, additional_forward_args=(points, labels, boxes), target=1, return_statistics=True
    )
    for n in range(2):
        call = images[[n]], points[[n]], labels[[n]], boxes[[n]]
        observed = score(target, n, *call)
        for k in range(3):
            gone = score(target, n, call[0], without(call[1], k, 2), without(call[2], k, 2), call[3])
            assert torch.allclose(statistics.effect[n, k], observed - gone, atol=1e-5)
        gone = score(target, n, *call[:3], None)
        assert torch.allclose(statistics.effect[n, 3], observed - gone, atol=1e-5)
    assert statistics.effect.shape == (2, 4, 2)
    assert torch.allclose(effects, statistics.effect[:, :, 1].to(effects.dtype))
    assert effects.abs().min() > 1e-6
    assert not statistics.standard_error.any()
    assert statistics.n_draws.unique().tolist() == [1]
    assert statistics.settings["baselines"] == "left out of the call"
    assert statistics.settings["forwards"]["interventions"] == 8


def test_the_only_click_left_out_is_a_call_without_clicks():
    target, images, (points, labels, _) = sam_case(n=1)
    effect = PromptTreatmentEffect(target).attribute(
        images, additional_forward_args=(points[:, :, :1], labels[:, :, :1]), target=0
    )
    expected = score(target, 0, images, points[:, :, :1], labels[:, :, :1]) - score(target, 0, images, None, None)
    assert torch.allclose(effect[0, 0].double(), expected[0], atol=1e-5)


def test_clicks_and_boxes_of_sam_moved_to_all_places_around_them():
    target, images, (points, labels, boxes) = sam_case(n=1)
    points[0, 0, 0] = torch.tensor([1.0, 30.0])  # two of its places lie outside the image
    statistics = PromptTreatmentEffect(target).attribute(
        images,
        MovedPrompts(2, share=0.05),
        additional_forward_args=(points, labels, boxes),
        target=0,
        n_draws=40,
        return_statistics=True,
    )[1]
    observed = score(target, 0, images, points, labels, boxes)
    for k in range(3):
        at = tuple(points[0, 0, k].tolist())
        steps, scores = steps_of(2, at, at, (32, 32)), []
        for step in steps:
            moved = points.clone()
            moved[0, 0, k] += torch.tensor(step)
            scores.append(score(target, 0, images, moved, labels, boxes))
        assert torch.allclose(statistics.effect[0, k], observed - torch.stack(scores).mean(0), atol=1e-5)
        assert statistics.n_draws[0, k].unique().tolist() == [len(steps)]
    scores = []
    for step in itertools.product((-1, 0, 1), repeat=4):  # a twentieth of 20 pixels is one
        if any(step):
            scores.append(score(target, 0, images, points, labels, boxes + torch.tensor(step)))
    assert len(scores) == 80
    assert torch.allclose(statistics.effect[0, 3], observed - torch.stack(scores).mean(0), atol=1e-5)
    assert not statistics.standard_error.any()


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_clicks_drawn_in_maps_left_out_and_moved(n_spatial):
    target, images, clicks = drawn_case(n_spatial, n_classes=2, n=2)
    method = PromptTreatmentEffect(target, maps=[1, 2, 3, 4])
    gone = method.attribute(images, target=(0, 0), return_statistics=True)[1]
    moved = method.attribute(images, MovedPrompts(1), target=(0, 0), return_statistics=True)[1]
    for n, mine in enumerate(clicks):
        image = images[[n]]
        observed = score(target, n, image)
        for u, click in enumerate(mine):
            assert torch.allclose(gone.effect[n, u], observed - score(target, n, redrawn(image, click, None)), atol=1e-5)
            lower = tuple(map(float, click[1]))
            steps = steps_of(1, lower, tuple(a + 1 for a in lower), image.shape[2:])
            scores = torch.stack([score(target, n, redrawn(image, click, step)) for step in steps])
            assert torch.allclose(moved.effect[n, u], observed - scores.mean(0), atol=1e-5)
    assert gone.effect.shape == (2, 6, 2, 2)
    # Clicks of one class say nothing of the other.
    assert gone.effect[:, :3, 0].abs().max() > 0.01
    assert not gone.effect[:, :3, 1].any()


def test_few_of_many_places_are_drawn_and_the_interval_holds_their_mean():
    target, images, (points, labels, _) = sam_case(n=1)
    method = PromptTreatmentEffect(target)
    call = {"additional_forward_args": (points, labels), "target": 0, "return_statistics": True}
    everything = method.attribute(images, MovedPrompts(5), n_draws=100, **call)[1]
    assert everything.n_draws.min() > 12
    assert not everything.standard_error.any()
    inside = []
    for seed in range(20):
        some = method.attribute(images, MovedPrompts(5), n_draws=12, seed=seed, **call)[1]
        assert some.n_draws.unique().tolist() == [12]
        lower, upper = some.confidence_interval()
        inside.append(((lower <= everything.effect) & (everything.effect <= upper)).numpy())
    assert np.mean(inside) >= 0.9


def test_what_is_padding_is_no_prompt():
    target, images, (points, labels, boxes) = sam_case()
    labels[1, 0, 2], points[1, 0, 2] = -10, 0.0
    call = points, labels, boxes
    with pytest.raises(ValueError, match=r"^padding_label: some labels are -10, which SAM's processors give"):
        PromptTreatmentEffect(target).attribute(images, additional_forward_args=call, target=0)
    method = PromptTreatmentEffect(target, padding_label=-10)
    effects, statistics = method.attribute(images, additional_forward_args=call, target=0, return_statistics=True)
    table = method.table(statistics, 0)
    assert table.groupby("example").size().tolist() == [4, 3]
    assert effects[1, 2] == 0
    alone = score(target, 1, images[[1]], points[[1]], labels[[1]], boxes[[1]])
    gone = score(target, 1, images[[1]], without(points[[1]], 0, 2), without(labels[[1]], 0, 2), boxes[[1]])
    assert torch.allclose(effects[1, 0].double(), (alone - gone)[0], atol=1e-5)


def test_of_several_objects_a_click_becomes_padding():
    target, images, (points, labels, _) = sam_case(n=1, objects=2)
    with pytest.raises(ValueError, match=r"^padding_label: the points \(1, 2, 3, 2\) are those of several objects"):
        PromptTreatmentEffect(target).attribute(images, additional_forward_args=(points, labels), target=(0, 0))
    method = PromptTreatmentEffect(target, padding_label=-10)
    statistics = method.attribute(images, additional_forward_args=(points, labels), target=(0, 0), return_statistics=True)[1]
    observed = score(target, 0, images, points, labels)
    for p, k in itertools.product(range(2), range(3)):
        padded = labels.clone()
        padded[0, p, k] = -10
        assert torch.allclose(statistics.effect[0, 3 * p + k], observed - score(target, 0, images, points, padded), atol=1e-5)
    # SAM decodes one object by itself.
    assert not statistics.effect[0, :3, 1].any()
    assert statistics.settings["baselines"] == "label -10, which is padding"


def test_a_box_that_is_an_object_cannot_be_left_out():
    target, images, (_, _, boxes) = sam_case(n=1, objects=2)
    method = PromptTreatmentEffect(target, boxes="input_boxes")
    with pytest.raises(
        ValueError, match=r"^additional_forward_args: without one of the prompts, the model's answer has another"
    ):
        method.attribute(images, additional_forward_args=(None, None, boxes), target=(0, 0))
    moved = method.attribute(images, MovedPrompts(1), additional_forward_args=(None, None, boxes), target=(0, 0))
    assert moved.shape == (1, 2)


def test_texts_are_left_out_or_become_an_empty_one():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn((10, 4), generator=generator)

    def model(image, ids):
        words = torch.zeros(len(image), 4) if ids is None else embedding[ids].mean(1)
        return image * words.sum(1).view(-1, 1, 1, 1)

    images, ids = torch.rand((2, 1, 8, 8), generator=generator), torch.tensor([[1, 2, 3], [4, 5, 6]])

    def mean(image, ids):
        return model(image, ids).mean((1, 2, 3))

    left_out = PromptTreatmentEffect(mean, texts=0).attribute(images, additional_forward_args=ids)
    assert torch.allclose(left_out[:, 0], mean(images, ids))
    empty = torch.tensor([7, 7, 7])
    method = PromptTreatmentEffect(mean, texts="ids", no_text=empty)
    effect, statistics = method.attribute(images, additional_forward_args=ids, return_statistics=True)
    assert torch.allclose(effect[:, 0], mean(images, ids) - mean(images, empty.expand(2, 3)))
    assert method.table(statistics)["kind"].tolist() == ["text", "text"]


def test_masks_are_left_out_and_moved_with_their_edges_kept():
    target, images, (points, labels, boxes) = sam_case(n=1)
    masks = torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(5))
    method = PromptTreatmentEffect(target, masks="input_masks")
    call = {"additional_forward_args": (points, labels, boxes, masks), "target": 0}
    observed = score(target, 0, images, points, labels, boxes, masks)[0]
    gone = score(target, 0, images, points, labels, boxes, None)[0]
    assert torch.allclose(method.attribute(images, **call)[0, 0].double(), observed - gone, atol=1e-5)
    scores = []
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        rows, columns = (np.clip(np.arange(16) - step, 0, 15) for step in (down, right))
        scores.append(score(target, 0, images, points, labels, boxes, masks[:, :, rows][..., columns])[0])
    moved = method.attribute(images, MovedPrompts(1), **call)
    assert torch.allclose(moved[0, 0].double(), observed - torch.stack(scores).mean(), atol=1e-5)


def test_draws_do_not_depend_on_batches_and_the_table_outlives_a_file(tmp_path):
    target, images, (points, labels, boxes) = sam_case()
    method = PromptTreatmentEffect(target)
    call = {"additional_forward_args": (points, labels, boxes), "target": 0, "return_statistics": True, "n_draws": 6}
    one, other = (method.attribute(images, MovedPrompts(6), perturbations_per_eval=size, **call)[1] for size in (1, 16))
    assert torch.allclose(one.effect, other.effect, atol=1e-6)
    one.save(tmp_path / "effects.npz")
    table = method.table(TreatmentEffectStatistics.load(tmp_path / "effects.npz"), 0)
    assert table["kind"].tolist() == ["click", "click", "click", "box"] * 2
    assert table["label"].tolist()[:3] == [1, 0, 1]
    assert table["at"][1] == points[0, 0, 1].tolist()
    assert table["at"][3] == boxes[0, 0].tolist()
    assert table["effect"].tolist() == one.effect[:, :, 0].flatten().tolist()
    with pytest.raises(ValueError, match=r"^statistics: expected those of PromptTreatmentEffect"):
        method.table(one.replaced(settings={}))


def test_a_click_that_takes_away_what_another_one_finds_harms():
    target, images, _ = drawn_case(2)
    bright = images.clone()
    bright[:, 0] = 1.0
    wanted = bright.clone()
    wanted[:, 2] = 0.0  # without the click of label 0
    truth = (target.model(wanted)[:, 0] > 0).long()
    asked = SegmentationTarget(target.model, reference=truth, activation="sigmoid")
    method = PromptTreatmentEffect(asked, maps=[1, 2])
    effects, statistics = method.attribute(bright, return_statistics=True)
    assert method.table(statistics)["kind"].tolist() == ["drawn"] * 3
    assert effects[0, 0] > 0.1
    assert effects[0, 2] < -0.1


@pytest.mark.parametrize("moved", [None, MovedPrompts(1)])
def test_interactions_of_prompts_and_regions_are_the_four_scores_by_hand(moved):
    target, images, clicks = drawn_case(2, n=2)
    donors = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(9))
    method = PromptTreatmentEffect(target, maps=[1, 2])
    pairs = [(0, 0), (1, 0), (2, 3)]
    table = method.interactions(
        images,
        donors,
        target=0,
        pairs=pairs,
        prompt_baselines=moved,
        block_size=8,
        exclude=None,
        n_draws=12,
    )
    assert len(table) == 6
    for row in table.to_dict("records"):
        n, unit, prompt = row["example"], row["first"], int(row["second"].split()[1])
        assert (prompt, unit) in pairs
        block = slice(8 * (unit // 2), 8 * (unit // 2) + 8), slice(8 * (unit % 2), 8 * (unit % 2) + 8)
        lower = tuple(map(float, clicks[n][prompt][1]))
        steps = [None] if moved is None else steps_of(1, lower, tuple(a + 1 for a in lower), (16, 16))
        observed = score(target, n, images[[n]])[0]
        singles, together = [], []
        for donor in donors:
            image = images[[n]].clone()
            image[(0, 0, *block)] = donor[(0, *block)]
            singles.append(score(target, n, image)[0])
            together.append(
                torch.stack([score(target, n, redrawn(image, clicks[n][prompt], step))[0] for step in steps]).mean()
            )
        prompts = torch.stack([score(target, n, redrawn(images[[n]], clicks[n][prompt], step))[0] for step in steps]).mean()
        unit_alone = torch.stack(singles).mean()
        assert row["effect_first"] == pytest.approx(float(observed - unit_alone), abs=1e-5)
        assert row["effect_second"] == pytest.approx(float(observed - prompts), abs=1e-5)
        if moved is None:  # of both, 12 draws hold every combination equally often only where the click has one donor
            expected = float(prompts + unit_alone - observed - torch.stack(together).mean())
            assert row["interaction"] == pytest.approx(expected, abs=1e-5)


def test_interactions_say_that_a_click_needs_what_lies_below_it():
    target, images, _ = drawn_case(2)
    method = PromptTreatmentEffect(target, maps=[1, 2])
    table = method.interactions(images, 0.0, target=0, block_size=8, exclude=None)
    assert len(table) == 12  # three prompts and four blocks
    assert table["n_draws"].unique().tolist() == [1]
    assert not table["standard_error"].any()
    strongest = table.iloc[0]
    assert (strongest["first"], strongest["second"], strongest["kind"]) == (0, "prompt 0", "synergistic")
    with pytest.raises(ValueError, match=r"^pairs: there is no prompt 3; they are 0 to 2"):
        method.interactions(images, 0.0, target=0, pairs=[(3, 0)], block_size=8, exclude=None)
    with pytest.raises(ValueError, match=r"^pairs: there is no unit 7; the ids are 0 to 4"):
        method.interactions(images, 0.0, target=0, pairs=[(0, 7)], block_size=8, exclude=None)
