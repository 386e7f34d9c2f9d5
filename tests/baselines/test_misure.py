"""MiSuRe against its paper's formula, written out on small inputs."""

import math

import numpy as np
import pytest
import torch
from baseline_cases import blurred, random
from scipy import ndimage
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.baselines import MiSuRe


class Conditional(nn.Module):
    """Bright pixels are segmented, if a far block is bright as well; nothing else matters."""

    def __init__(self, spatial: tuple[int, ...], far: Tensor) -> None:
        super().__init__()
        self.register_buffer("far", far.float())

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.ndim))
        there = (x * self.far).sum(axes) / self.far.sum()
        return 12 * (x + there.view(-1, *(1,) * (x.ndim - 1)) - 1.5)


def conditional(n_spatial: int) -> tuple[SegmentationTarget, Tensor, Tensor, Tensor]:
    """A target, an image, where it is segmented in the RoI and the far block that this takes."""
    spatial = (14,) * n_spatial if n_spatial == 2 else (10,) * n_spatial
    near, far = regions.box(spatial, start=1, size=3), regions.box(spatial, start=7, size=2)
    image = torch.full((1, 1, *spatial), 0.25)
    image[0, 0][near | far] = 1.0
    target = SegmentationTarget(Conditional(spatial, far), roi=regions.box(spatial, start=0, size=5), metric="volume")
    return target, image, near, far


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_misure_keeps_what_suffices_and_drops_the_rest(n_spatial):
    target, image, near, far = conditional(n_spatial)
    assert float(target(image)) == near.sum()
    found = MiSuRe(target).attribute(image, l2=0.0, l1=0.02)
    region = MiSuRe(target).attribute(image, n_steps=0)
    assert found.shape == image.shape
    assert found.is_contiguous()
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    kept = found[0, 0]
    assert kept[near].min() > 0.5
    assert kept[far].mean() > 0.5  # without it nothing is segmented
    inside = region[0, 0].bool() & ~near & ~far
    assert inside.sum() > 30
    assert not kept[inside].any()
    assert not kept[~region[0, 0].bool()].any()
    # With the far block hidden as well, the mask would not suffice.
    assert float(target(image * found)) == near.sum()
    assert float(target(image * found * ~far)) == 0


def dice_by_hand(model: nn.Module, image: Tensor, truth: Tensor, roi: Tensor) -> float:
    predicted = (model(image)[0, 0] > 0) & roi
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


@pytest.mark.parametrize(("n_spatial", "dilation", "tau"), [(2, 1, 0.95), (2, 3, 0.95), (2, 1, 0.4), (3, 1, 1.0), (3, 2, 0.9)])
def test_the_region_grows_by_dilation_until_it_suffices(n_spatial, dilation, tau):
    target, image, near, _ = conditional(n_spatial)
    # Brighter pixels take less of the far block: the second example stops elsewhere.
    images = torch.cat([image, image])
    images[1, 0][near] = 1.2
    found = MiSuRe(target).attribute(images, n_steps=0, dilation=dilation, tau=tau, baselines=0.1)
    sizes = []
    for n in range(2):
        one = images[n : n + 1]
        truth = (target.model(one)[0, 0] > 0) & target.roi
        region = truth.clone()
        while dice_by_hand(target.model, torch.where(region, one, 0.1), truth, target.roi) < tau:
            box = np.ones((2 * dilation + 1,) * n_spatial, dtype=bool)
            region = torch.from_numpy(ndimage.binary_dilation(region.numpy(), structure=box))
        assert torch.equal(found[n, 0], region.float())
        sizes.append(int(region.sum()))
    if (n_spatial, dilation) == (2, 1):
        assert sizes[0] > sizes[1] > near.sum()


@pytest.mark.parametrize("n_spatial", [2, 3])
def test_the_mask_is_what_adam_makes_of_the_papers_loss(n_spatial):
    target, image = blurred(n_spatial)
    l1, l2, rate, steps = 0.3, 0.2, 0.06, 7
    arguments = {"l1": l1, "l2": l2, "learning_rate": rate, "tau": 0.8}
    found = MiSuRe(target).attribute(image, target=1, n_steps=steps, **arguments)
    region = MiSuRe(target).attribute(image, target=1, n_steps=0, **arguments)[0, 0]
    truth = (target.model(image)[0, 1] > 0) & target.roi
    area = region.sum()

    def loss(m: Tensor) -> Tensor:
        probability = target.model(image * m)[0, 1].sigmoid()[target.roi]
        y0 = truth[target.roi].double()
        dice = 2 * (probability * y0).sum() / (probability.sum() + y0.sum())
        neighbors = [(m.roll(-1, axis) - m).abs().narrow(axis, 0, m.shape[axis] - 1).sum() for axis in range(n_spatial)]
        return 1 - dice + l1 * m.sum() / area + l2 * sum(neighbors) / area

    m, first, second = region.clone(), torch.zeros_like(region), torch.zeros_like(region)
    path = [(loss(m).item(), m)]
    for step in range(1, steps + 1):
        leaf = m.clone().requires_grad_()
        loss(leaf).backward()
        gradient = leaf.grad * region * area
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved = m - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        m = moved.clamp(0, 1) * region
        path.append((loss(m).item(), m))
    best = min(path, key=lambda pair: pair[0])[1]
    torch.testing.assert_close(found[0, 0], best.detach(), atol=1e-6, rtol=0)
    assert ((best > 0) & (best < 1)).any()
    assert path[-1][0] < path[0][0]


def test_the_result_is_the_mask_of_the_smallest_loss_and_not_the_last():
    target, image, near, _ = conditional(2)
    # Steps so large that the mask is gone at once, and the prediction with it.
    found = MiSuRe(target).attribute(image, n_steps=1, learning_rate=1.0, l1=0.9)
    assert torch.equal(found, MiSuRe(target).attribute(image, n_steps=0))
    assert found[0, 0][near].all()


def test_coarser_masks_are_enlarged_linearly():
    target, image = blurred()
    few = {"target": 0, "n_steps": 5, "l1": 0.9, "l2": 0.0}
    region = MiSuRe(target).attribute(image, target=0, n_steps=0) > 0
    one = MiSuRe(target).attribute(image, cell_size=100, **few)[region]
    assert one.std() < 1e-12  # one cell: one value in all of the region
    assert 0 < one[0] < 0.9
    assert float(MiSuRe(target).attribute(image, cell_size=2, **few)[region].std()) > 1e-4
    # Predicted everywhere, so that the whole image is the region.
    target = SegmentationTarget(lambda x: 8 * x + 0.1, metric="volume", activation="sigmoid")
    rows = MiSuRe(target).attribute(random(1, 1, 10, 9), cell_size=(2, 1), n_steps=30, l1=0.15, l2=0.0)[0, 0]
    assert rows.std() > 0.05
    # Cells of 2 rows have their centers at 0.5, 2.5, 4.5, ...: rows 1 and 2 lie on one line, rows 3 and 4 on the next.
    steps = rows[1:-1].diff(dim=0)
    torch.testing.assert_close(steps[1::2], (steps[0:-1:2] + steps[2::2]) / 2)


def test_a_batch_of_masks_is_the_loop_over_its_examples_classes_and_rois():
    spatial = (10, 9)
    stack = torch.stack([regions.box(spatial, start=1, size=4), regions.box(spatial, start=5, size=4)])
    target, images = blurred(n=3, roi=stack)
    outputs = [(0, 1), (1, 0), (1, 1)]
    arguments = {"n_steps": 12, "l2": 0.02, "baselines": random(3, 1, *spatial, seed=3).double() / 4}
    batch = MiSuRe(target).attribute(images, target=outputs, **arguments)
    for n, (label, place) in enumerate(outputs):
        one = SegmentationTarget(target.model, roi=stack[place], metric="volume", activation="sigmoid")
        rest = arguments | {"baselines": arguments["baselines"][n : n + 1]}
        torch.testing.assert_close(batch[n : n + 1], MiSuRe(one).attribute(images[n : n + 1], target=label, **rest))
    assert torch.equal(batch, MiSuRe(target).attribute(images, target=outputs, **arguments))
    assert not torch.allclose(batch, MiSuRe(target).attribute(images, target=(1, 1), **arguments))


def test_the_targets_own_metric_and_reference_play_no_part_and_its_roi_may_come_with_the_call():
    target, images = blurred(n=2)
    expected = MiSuRe(target).attribute(images, target=1, n_steps=8)
    options = {"activation": "sigmoid", "reference": torch.ones(2, 10, 9)}
    other = SegmentationTarget(target.model, roi=target.roi, metric="iou", **options)
    assert torch.equal(expected, MiSuRe(other).attribute(images, target=1, n_steps=8))
    called = SegmentationTarget(target.model, roi="argument", metric="volume", activation="sigmoid")
    masks = target.roi.expand(2, *target.roi.shape)
    assert torch.equal(expected, MiSuRe(called).attribute(images, 1, masks, n_steps=8))


def test_a_model_with_arguments_of_its_own_one_roi_axis_and_probabilities():
    class Shifted(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return (8 * (x - level.view(-1, 1, 1, 1))).sigmoid()

    image = torch.zeros(2, 1, 8, 8)
    image[:, :, 2:5, 2:5] = 1.0
    roi = regions.box((8, 8), start=1, size=5)[None]
    level = torch.tensor([0.3, 0.7])
    target = SegmentationTarget(Shifted(), roi=roi, metric="volume")
    found = MiSuRe(target).attribute(image, target=0, additional_forward_args=level, l1=0.4, l2=0.0)
    kept = found[:, 0, 2:5, 2:5].flatten(1).mean(1)
    assert 0.3 < kept[0] < kept[1] <= 1  # the higher level needs more of the brightness
    assert found.sum() == found[:, :, 2:5, 2:5].sum()


def test_a_target_that_has_read_its_activation_keeps_it():
    class Probable(nn.Module):
        """Logits on the whole image, which read like probabilities where only the RoI is kept."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([0.4 + 0 * x, x], 1)

    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:5, 2:5] = 0.9
    image[..., 7, 7] = 3.0
    roi = regions.box((8, 8), start=1, size=5)
    few = {"target": 1, "n_steps": 10, "l1": 0.2}
    found = MiSuRe(SegmentationTarget(Probable(), roi=roi, metric="volume")).attribute(image, **few)
    fixed = MiSuRe(SegmentationTarget(Probable(), roi=roi, metric="volume", activation="softmax")).attribute(image, **few)
    other = MiSuRe(SegmentationTarget(Probable(), roi=roi, metric="volume", activation="none")).attribute(image, **few)
    assert torch.equal(found, fixed)
    assert not torch.allclose(found, other)


def test_a_region_that_never_suffices_ends_as_the_whole_image():
    class Fickle(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x if self.calls <= 2 else -x  # after the observed score and the prediction

    image = torch.ones(1, 1, 9, 9)
    target = SegmentationTarget(Fickle(), roi=regions.box((9, 9), start=1, size=3), metric="volume", activation="sigmoid")
    assert MiSuRe(target).attribute(image, n_steps=0).all()


def test_misure_explains_targets_only():
    with pytest.raises(TypeError, match=r"forward_func: expected a SegmentationTarget, .* got Conv2d"):
        MiSuRe(nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match="forward_func: expected a target with a named metric"):
        MiSuRe(SegmentationTarget(nn.Conv2d(1, 2, 1), metric=lambda prediction, reference, roi: prediction.flatten(2).sum(2)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tau": 0}, ValueError, "tau: expected a finite number of more than 0 and at most 1, got 0"),
        ({"tau": 95}, ValueError, "tau: expected a finite number of more than 0 and at most 1, got 95"),
        ({"tau": None}, TypeError, "tau: expected a finite number .*, got None"),
        ({"dilation": 0}, ValueError, "dilation: expected at least 1, got 0"),
        ({"n_steps": -1}, ValueError, "n_steps: expected at least 0, got -1"),
        ({"learning_rate": 0.0}, ValueError, r"learning_rate: expected a positive number, got 0\.0"),
        ({"l1": -1}, ValueError, "l1: expected a finite number of at least 0, got -1"),
        ({"l2": math.nan}, ValueError, "l2: expected a finite number of at least 0, got nan"),
        ({"cell_size": 0}, ValueError, "cell_size: expected at least 1, got 0"),
        ({"cell_size": (1, 2, 3)}, ValueError, r"cell_size: expected one integer or 2 of them \(one per spatial axis\)"),
        ({"target": None}, ValueError, r"target: the forward function has 2 outputs \(2 class\) per example"),
        ({"target": 2}, ValueError, "target: 2 does not pick one of 2 outputs"),
        ({"baselines": random(3, 1, 10, 9)}, ValueError, "baselines: expected a number or a tensor"),
        ({"steps": 3}, TypeError, "unexpected keyword"),
    ],
)
def test_bad_arguments_of_misure(arguments, error, message):
    target, image = blurred()
    with pytest.raises(error, match=message):
        MiSuRe(target).attribute(image, **({"target": 1} | arguments))


def test_nothing_to_explain_and_nothing_to_descend():
    target, image, near, _ = conditional(2)
    images = torch.cat([image, image * 0])
    with pytest.raises(ValueError, match=r"inputs: the model predicts nothing of the class in the RoI for example\(s\) \[1\]"):
        MiSuRe(target).attribute(images)
    with torch.no_grad():
        detached = SegmentationTarget(lambda x: target.model(x).detach(), roi=near, metric="volume", activation="sigmoid")
    assert MiSuRe(detached).attribute(image, n_steps=0).any()
    with pytest.raises(ValueError, match="forward_func: the model's output has no gradient with respect to its input"):
        MiSuRe(detached).attribute(image)
