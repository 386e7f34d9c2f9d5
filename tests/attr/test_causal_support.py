"""The support on its own: what can reach the region, of every example, region and input."""

import pytest
import torch
from torch import Tensor, nn
from window_cases import NAN, Local, pixels

from captum_causalseg import SegmentationTarget, causal_support, regions


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_support_has_an_entry_per_example_region_and_input(d):
    spatial = (24, 20, 18)[:d]
    rois = torch.stack([regions.box(spatial, start=2, size=4), regions.box(spatial, start=9, size=4)])

    class Model(Local):
        def forward(self, x, features):
            return super().forward(x) + features.sum(1).view(-1, *(1,) * (d + 1))

    target = SegmentationTarget(Model(d), roi=rois, metric="logit_mean")
    inputs = pixels(*spatial, count=3), torch.rand(3, 5)
    support = causal_support(target, inputs)
    assert support.doubt is None
    assert [tuple(mask.shape) for mask in support.masks] == [(3, 2, *spatial), (3, 2)]
    assert support.hull(0).tolist() == [[[[0, 9]] * d, [[6, 16]] * d]] * 3
    assert support.masks[1].all()
    assert support.n_forwards > 0


def test_the_support_with_regions_of_each_example_and_masks_as_arguments():
    model, images = Local(), pixels(24, 24, count=2)
    rois = torch.stack([regions.box((24, 24), start=3, size=4), regions.box((24, 24), start=12, size=4)])
    expected = [[[[0, 10]] * 2], [[[9, 19]] * 2]]
    held = SegmentationTarget(model, roi=rois[:, None], metric="logit_mean")
    assert causal_support(held, images).hull(0).tolist() == expected
    asked = SegmentationTarget(model, roi="argument", metric="logit_mean")
    assert causal_support(asked, images, rois).hull(0).tolist() == expected
    # The metric does not matter.
    own = SegmentationTarget(model, roi=rois[:, None], metric=lambda prediction, reference, roi: prediction.flatten(2).mean(2))
    assert causal_support(own, images).hull(0).tolist() == expected


def test_blocks_batches_and_seeds_of_the_support():
    class Holes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.roll(8, 3)

    image = pixels(32, 32)
    target = SegmentationTarget(Holes(), roi=regions.box((32, 32), start=(8, 16), size=4), metric="logit_mean")
    box, blocks = causal_support(target, image), causal_support(target, image, block_size=4)
    assert box.hull(0).tolist() == blocks.hull(0).tolist() == [[[[8, 12], [8, 20]]]]
    assert int(box.masks[0].sum()) == 48
    assert int(blocks.masks[0].sum()) == 32
    other = causal_support(target, image, perturbations_per_eval=1, seed=5)
    assert torch.equal(other.masks[0], box.masks[0])
    assert other.n_forwards == box.n_forwards


def test_the_support_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    target = SegmentationTarget(model, roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    image, state = pixels(24, 24), torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="training mode"):
        support = causal_support(target, image)
    assert support.hull(0).tolist() == [[[[7, 15]] * 2]]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": Local()}, TypeError, "target: expected a SegmentationTarget, .* got Local"),
        ({"target": SegmentationTarget(Local(), metric="logit_mean")}, ValueError, "target: it has no RoI"),
        ({"perturbations_per_eval": 0}, ValueError, "perturbations_per_eval: expected at least 1, got 0"),
        ({"perturbations_per_eval": 2.0}, TypeError, "perturbations_per_eval: expected an integer"),
        ({"seed": -1}, ValueError, "seed: expected at least 0"),
        ({"block_size": 0}, ValueError, "block_size: expected at least 1, got 0"),
        ({"block_size": (4, 4, 4)}, ValueError, "block_size: expected a positive edge"),
        ({"inputs": [torch.rand(1, 1, 24, 24)]}, TypeError, "inputs: expected a tensor or a tuple"),
        ({"inputs": torch.full((1, 1, 24, 24), NAN)}, ValueError, "inputs: it holds NaN"),
        ({"additional_forward_args": torch.rand(3, 1)}, ValueError, r"additional_forward_args\[0\]: a tensor needs one entry"),
    ],
)
def test_wrong_arguments_of_the_support_are_named(change, error, message):
    target = SegmentationTarget(Local(), roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    with pytest.raises(error, match=message):
        causal_support(**{"target": target, "inputs": pixels(24, 24), **change})
