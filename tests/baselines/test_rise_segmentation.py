"""RISE for segmentation against its paper's formula, written out on small inputs."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from baseline_cases import SHAPES, Net, random
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.baselines import MiSuRe, RiseSegmentation


def enlarged(grid: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation of cell centers along one axis, constant beyond the outermost centers."""
    count = grid.shape[axis]
    centers = (np.arange(size) + 0.5) * count / size - 0.5
    return np.apply_along_axis(lambda line: np.interp(centers, np.arange(count), line), axis, grid)


def mask_by_hand(seed: int, number: int, cells: tuple[int, ...], spatial: tuple[int, ...], probability: float) -> np.ndarray:
    generator = np.random.default_rng((seed, number))
    edges = [math.ceil(length / count) for length, count in zip(spatial, cells)]
    values = (generator.random(cells) < probability).astype(float)
    starts = [int(generator.integers(edge)) for edge in edges]
    for axis, (count, edge) in enumerate(zip(cells, edges)):
        values = enlarged(values, axis, (count + 1) * edge)
    return values[tuple(slice(start, start + length) for start, length in zip(starts, spatial))]


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("n_spatial", "grid"), [(2, 3), (2, (4, 2)), (3, (2, 3, 20))])
def test_rise_is_the_mean_of_masks_weighted_by_their_scores(n_spatial, grid, centered):
    spatial, n_masks = SHAPES[n_spatial], 13
    net, roi = Net(n_spatial), regions.box(SHAPES[n_spatial], start=2, size=3)
    image, baseline = random(1, 1, *spatial), random(1, 1, *spatial, seed=1)
    target = SegmentationTarget(net, roi=roi, reference=random(*spatial, seed=2).gt(0.5).long(), metric="soft_dice")
    found = RiseSegmentation(target).attribute(
        image, baselines=baseline, target=1, n_masks=n_masks, grid_size=grid, probability=0.3, seed=7, centered=centered
    )
    cells = tuple(min(g, s) for g, s in zip((grid,) * n_spatial if isinstance(grid, int) else grid, spatial))
    weighted, kept, scores = np.zeros(spatial), np.zeros(spatial), []
    for number in range(n_masks):
        mask = mask_by_hand(7, number, cells, spatial, 0.3)
        m = torch.from_numpy(mask).float()
        scores.append(target(image * m + baseline * (1 - m))[0, 1].item())
        weighted += scores[-1] * mask
        kept += mask
    expected = weighted / kept - (np.mean(scores) if centered else 0)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-6)
    assert found.shape == image.shape
    assert found.is_contiguous()
    assert not found.requires_grad


def recorded_masks(image: Tensor, **arguments: Any) -> Tensor:
    """What a function is shown when ones are hidden by zeros: the masks themselves, after the whole image."""
    shown: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        shown.append(x.clone())
        return x.flatten(1).sum(1)

    RiseSegmentation(function).attribute(torch.ones_like(image), **arguments)
    return torch.cat(shown[1:])


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_masks_lie_between_0_and_1_and_are_the_same_for_all_examples(spatial, grid, seed):
    arguments = {"grid_size": grid, "seed": seed, "n_masks": 4}
    masks = recorded_masks(torch.empty(2, 1, *spatial), perturbations_per_eval=3, **arguments)
    assert masks.shape == (8, 1, *spatial)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert torch.equal(masks[0::2], masks[1::2])
    alone = recorded_masks(torch.empty(1, 1, *spatial), perturbations_per_eval=1, **arguments)
    assert torch.equal(masks[0::2], alone)


def test_a_pixel_is_kept_with_the_probability():
    masks = recorded_masks(torch.empty(1, 1, 12, 12), n_masks=3000, grid_size=3, probability=0.3, perturbations_per_eval=500)
    # A cell's standard deviation over 3000 masks is 0.0084 at most.
    assert (masks.mean(0) - 0.3).abs().max() < 0.04
    assert (masks[0] != masks[1]).any()


def test_rise_says_what_supports_and_what_harms():
    def score(x: Tensor) -> Tensor:
        return x[:, 0, 2:6, 2:6].mean((1, 2)) - x[:, 0, 10:14, 10:14].mean((1, 2))

    found = RiseSegmentation(score).attribute(torch.ones(1, 1, 16, 16), n_masks=600, grid_size=8)[0, 0]
    assert found[2:6, 2:6].min() > 0.02
    assert found[10:14, 10:14].max() < -0.02
    assert found[10:14, 2:6].abs().max() < 0.02


def rise_case() -> tuple[SegmentationTarget, Tensor]:
    images = random(3, 1, *SHAPES[2])
    roi = torch.stack([regions.box(SHAPES[2], start=start, size=4) for start in (0, 2, 4)])
    return SegmentationTarget.from_prediction(Net(2), images, roi=roi[:, None], metric="soft_dice"), images


def test_a_batch_of_rise_maps_is_the_loop_over_its_examples_however_it_is_batched():
    target, images = rise_case()
    arguments = {"n_masks": 21, "grid_size": 4, "baselines": random(3, 1, *SHAPES[2], seed=4)}
    batch = RiseSegmentation(target).attribute(images, target=[1, 0, 2], **arguments)
    for size in (1, 8, 100):
        other = RiseSegmentation(target).attribute(images, target=[1, 0, 2], perturbations_per_eval=size, **arguments)
        torch.testing.assert_close(batch, other, atol=1e-6, rtol=0)
    for n, label in enumerate([1, 0, 2]):
        one = SegmentationTarget(target.model, roi=target.roi[n, 0], reference=target.reference[n], metric="soft_dice")
        arguments["baselines"] = random(3, 1, *SHAPES[2], seed=4)[n : n + 1]
        alone = RiseSegmentation(one).attribute(images[n : n + 1], target=label, **arguments)
        torch.testing.assert_close(batch[n : n + 1], alone, atol=1e-6, rtol=0)
    assert torch.equal(
        batch,
        RiseSegmentation(target).attribute(
            images, **(arguments | {"baselines": random(3, 1, *SHAPES[2], seed=4)}), target=[1, 0, 2]
        ),
    )


def test_the_outputs_of_any_function_in_captums_forms():
    def scores(x: Tensor, scale: Tensor) -> Tensor:
        columns = [x[..., start : start + 3].flatten(1).mean(1) * scale for start in (0, 3)]
        return torch.stack([torch.stack(columns, 1), -torch.stack(columns, 1)], 1)  # (N, 2, 2)

    images, scale = random(2, 2, 6, 6), torch.tensor([1.0, 3.0])
    rise = RiseSegmentation(scores)
    arguments = {"additional_forward_args": scale, "n_masks": 9, "grid_size": 3}
    pairs = {pair: rise.attribute(images, target=pair, **arguments) for pair in itertools.product(range(2), range(2))}
    torch.testing.assert_close(pairs[0, 1], -pairs[1, 1])
    assert not torch.allclose(pairs[0, 0], pairs[0, 1])
    mixed = rise.attribute(images, target=[(0, 1), (1, 0)], **arguments)
    assert torch.equal(mixed[0], pairs[0, 1][0])
    assert torch.equal(mixed[1], pairs[1, 0][1])
    assert torch.equal(mixed[:, 0], mixed[:, 1])  # all channels of a pixel alike
    with pytest.raises(ValueError, match=r"target: the forward function has 4 outputs \(2 output_0 x 2 output_1\) per example"):
        rise.attribute(images, **arguments)


def test_a_pixel_that_no_mask_keeps_is_given_the_mean_score():
    arguments = {"n_masks": 3, "grid_size": 4, "probability": 1e-9}
    rise = RiseSegmentation(lambda x: x.flatten(1).sum(1) + 5)
    assert torch.equal(rise.attribute(random(1, 1, 8, 8), **arguments), torch.zeros(1, 1, 8, 8))
    assert torch.equal(rise.attribute(random(1, 1, 8, 8), centered=False, **arguments), torch.full((1, 1, 8, 8), 5.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_masks": 0}, ValueError, "n_masks: expected at least 1, got 0"),
        ({"n_masks": 2.0}, TypeError, r"n_masks: expected an integer, got 2\.0"),
        ({"perturbations_per_eval": 0}, ValueError, "perturbations_per_eval: expected at least 1"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"probability": 0}, ValueError, "probability: expected a finite number of more than 0 and at most 1, got 0"),
        ({"probability": 1.0}, ValueError, "probability: expected less than 1"),
        ({"probability": "half"}, TypeError, "probability: expected a finite number .*, got 'half'"),
        ({"grid_size": 0}, ValueError, "grid_size: expected at least 1, got 0"),
        ({"grid_size": (2, 2, 2)}, ValueError, r"grid_size: expected one integer or 2 of them \(one per spatial axis\)"),
        ({"baselines": random(1, 1, 3, 3)}, ValueError, r"baselines: expected a number or a tensor .* got \(1, 1, 3, 3\)"),
        ({"baselines": torch.full((1, 1, 6, 6), torch.nan)}, ValueError, "baselines: it holds NaN or infinite"),
        ({"baselines": math.inf}, ValueError, "baselines: expected a finite number, got inf"),
        ({"baselines": "black"}, TypeError, "baselines: expected a finite number or a tensor of real numbers, got str"),
        ({"baselines": True}, TypeError, "baselines: expected a finite number or a tensor of real numbers, got bool"),
        ({"target": 1}, ValueError, "target: 1 does not pick"),
        ({"masks": 3}, TypeError, "unexpected keyword"),
    ],
)
def test_bad_arguments_of_rise(arguments, error, message):
    with pytest.raises(error, match=message):
        RiseSegmentation(lambda x: x.flatten(1).sum(1)).attribute(random(2, 1, 6, 6), **arguments)


@pytest.mark.parametrize("method", [RiseSegmentation, MiSuRe])
def test_images_that_cannot_be_hidden_in_part(method):
    explained = method(rise_case()[0])
    image = random(3, 1, *SHAPES[2])
    with pytest.raises(TypeError, match=r"inputs: expected one image batch .* got a tuple of 2; stack modalities"):
        explained.attribute((image, image), target=1)
    with pytest.raises(ValueError, match=r"inputs: expected an image batch .* with 1 to 3 spatial axes, got \(3, 4\)"):
        method(SegmentationTarget(nn.Linear(4, 4), metric="volume")).attribute(random(3, 4))
    with pytest.raises(TypeError, match="inputs: expected a tensor or a tuple of tensors, got ndarray"):
        explained.attribute(image.numpy(), target=1)


def test_scores_that_are_not_finite_or_change_their_shape():
    with pytest.raises(ValueError, match="forward_func: a score under a mask is NaN or infinite"):
        RiseSegmentation(lambda x: x.flatten(1).sum(1).log() * torch.inf).attribute(random(1, 1, 6, 6))
    with pytest.raises(ValueError, match="a function that aggregates over the batch"):
        RiseSegmentation(lambda x: x.sum()).attribute(random(1, 1, 6, 6))
    with pytest.raises(ValueError, match="its scores changed their shape"):
        RiseSegmentation(lambda x: x.flatten(1).sum(1).view(-1, 1).expand(-1, len(x))).attribute(random(1, 1, 6, 6), target=0)
