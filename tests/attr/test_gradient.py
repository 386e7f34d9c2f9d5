"""The backpropagated effect: against interventions, autograd by hand and Captum; and exact means of donors."""

import copy
import math

import captum.attr
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    Blur,
    Constant,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    SameImage,
    SegmentationTarget,
    regions,
)
from captum_causalseg._state import undisturbed
from captum_causalseg.donors import BoundDonors

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPATIAL = {1: (11,), 2: (9, 12), 3: (6, 7, 5)}


class Lazy:
    """Images that are counted as they are read."""

    def __init__(self, images) -> None:
        self.images, self.reads = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.images[index]


def box(start, size):
    return tuple(slice(a, a + b) for a, b in zip(start, size))


def assert_mean_is_literal(bound: BoundDonors, example: int, unit) -> None:
    literal = torch.stack([bound.read(example, unit, k).double() for k in range(bound.population(example, unit))]).mean(0)
    found = bound.mean(example, unit)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, literal, atol=1e-11, rtol=0)


# Exact means


@given(st.data())
def test_means_over_a_bank_are_those_of_all_its_donors(data):
    d = data.draw(st.integers(1, 3), "axes")
    channels = data.draw(st.integers(1, 2), "channels")
    highest = {1: 14, 2: 9, 3: 6}[d]
    sizes = st.tuples(*[st.integers(4, highest)] * d)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    images = [torch.randn(channels, *data.draw(sizes), generator=generator) for _ in range(data.draw(st.integers(1, 3)))]
    explained = images[0][None]
    roi = torch.rand(1, *explained.shape[2:], generator=generator) > data.draw(st.sampled_from([0.0, 0.8, 0.97]))
    lazy = data.draw(st.booleans(), "lazy")
    bound = PatchBank(Lazy(images) if lazy else images, cache_images=1).bind(explained, roi)
    for _ in range(3):  # small boxes before large ones and the other way round
        size = data.draw(st.tuples(*[st.integers(1, 4)] * d), "size")
        unit = box([0] * d, size)
        if bound.population(0, unit):
            assert_mean_is_literal(bound, 0, unit)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_means_over_aligned_donors_leave_out_the_explained_images_roi(d):
    images = torch.randn(4, 2, *SPATIAL[d])
    roi = regions.box(SPATIAL[d], start=2, size=2)
    bound = PatchBank(images, placement="aligned").bind(images[[1, 2]], roi[None])
    for example in range(2):
        for start in ((0,) * d, (2,) * d):
            assert_mean_is_literal(bound, example, box(start, (2, 3, 2)[:d]))
    assert bound.population(0, box((2,) * d, (2, 3, 2)[:d])) == 3


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("masks", ["none", "shared", "per example"])
def test_means_over_the_same_image_leave_out_the_unit_and_the_roi(d, masks):
    images = torch.randn(2, 2, *SPATIAL[d])
    rois = torch.stack([regions.box(SPATIAL[d], start=start, size=1) for start in (1, 3)])
    bound = SameImage().bind(images, {"none": None, "shared": rois[:1], "per example": rois}[masks])
    for example in range(2):
        for start, size in (((4, 5, 2), (2, 3, 2)), ((0, 0, 0), (3, 2, 1)), ((0, 9, 3), (2, 3, 2))):
            assert_mean_is_literal(bound, example, box(start[:d], size[:d]))


def test_means_of_single_donors_are_the_donors():
    images = torch.rand(2, 3, 8, 8)
    unit = box((2, 3), (4, 4))
    assert float(Constant(0.25).bind(images).mean(1, unit)) == 0.25
    blurred = Blur(2.0).bind(images)
    assert torch.equal(blurred.mean(1, unit), blurred.read(1, unit, 0).double())


def test_a_bank_is_read_once_for_all_images_and_units():
    images = Lazy(torch.rand(5, 1, 16, 16))
    bank = PatchBank(images, cache_images=1)
    bank.bind(torch.rand(1, 1, 16, 16))
    before = images.reads
    for _ in range(3):
        bound = bank.bind(torch.rand(1, 1, 16, 16))
        for start in ((0, 0), (8, 0), (8, 8)):
            bound.mean(0, box(start, (8, 8)))
            bound.mean(0, box(start, (5, 8)))
    # Binding looks at the first image; every other read would be of all five.
    assert images.reads - before <= 5 + 3


def test_sources_of_ones_own_have_a_mean_too():
    class Numbered(BoundDonors):
        def population(self, example, box):
            return 3

        def locate(self, example, box, number):
            return number, ()

        def read(self, example, box, number):
            return torch.full((1, 2, 2), float(number**2))

    assert torch.equal(Numbered().mean(0, box((0, 0), (2, 2))), torch.full((1, 2, 2), 5 / 3, dtype=torch.float64))


# Effects


class Linear(nn.Module):
    """Convolutions and nothing else: linear from the image to the logits."""

    def __init__(self, d: int, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = CONV[d](channels, 4, 3, padding=1), CONV[d](4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Curved(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sin(3 * self.first(x)))


def case(d: int = 2, kind: type[Linear] = Linear, n: int = 2):
    spatial = {2: (12, 10), 3: (7, 7, 8)}[d]
    images, labels = torch.rand(n, 1, *spatial), torch.randint(0, 3, (n, *spatial))
    return kind(d).eval(), images, labels, regions.box(spatial, start=4, size=3)


SOURCES = {
    "anywhere": lambda spatial: PatchBank(torch.rand(3, 1, *(length - 1 for length in spatial))),
    "aligned": lambda spatial: PatchBank(torch.rand(7, 1, *spatial), placement="aligned"),
    "tensor": lambda spatial: torch.rand(5, 1, *spatial),
    "same image": lambda spatial: None,
    "number": lambda spatial: 0.3,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("d", [2, 3])
def test_where_the_score_is_linear_the_effect_is_that_of_interventions(d, source):
    model, images, labels, roi = case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="logit_sum")
    arguments = {"baselines": SOURCES[source](images.shape[2:]), "target": 1, "block_size": 3}
    truth, stats = AverageTreatmentEffect(target).attribute(
        images, **arguments, n_draws=10**4, n_screening_draws=0, perturbations_per_eval=64, return_statistics=True
    )
    assert float(stats.standard_error.nan_to_num(0.0).max()) == 0, "the bank is not used up"
    for n_steps in (1, 3):
        attr = GradientTreatmentEffect(target).attribute(images, **arguments, n_steps=n_steps)
        torch.testing.assert_close(attr, truth, atol=1e-6 * max(1.0, float(truth.abs().max())), rtol=0)
    assert float(truth.abs().max()) > 0.01


@pytest.mark.parametrize("kind", ["channel", "block", "channel_block", "layer"])
@pytest.mark.parametrize("d", [2, 3])
def test_where_the_score_is_linear_in_a_layer_the_effect_is_that_of_interventions(d, kind):
    model, images, labels, roi = case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="logit_mean")
    bank = ActivationBank(torch.rand(6, *images.shape[1:]))
    arguments = {
        "layer_baselines": bank,
        "units": kind,
        "block_size": 4 if "block" in kind else None,
        "target": [(2,), (0,)],
    }
    truth = LayerAverageTreatmentEffect(target, model.first).attribute(images, **arguments, n_draws=6, n_screening_draws=0)
    face = LayerGradientTreatmentEffect(target, model.first)
    for n_steps in (1, 2):
        torch.testing.assert_close(face.attribute(images, **arguments, n_steps=n_steps), truth, atol=1e-6, rtol=0)
    at_input = {"attribute_to_layer_input": True} | arguments
    before = LayerAverageTreatmentEffect(target, model.second).attribute(images, **at_input, n_draws=6, n_screening_draws=0)
    found = LayerGradientTreatmentEffect(target, model.second).attribute(images, **at_input)
    torch.testing.assert_close(found, before, atol=1e-6, rtol=0)
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)


def test_one_step_is_the_gradient_at_the_image_times_the_distance_to_the_mean_donor():
    model, images, labels, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    donors = torch.rand(5, 1, 12, 10)
    attr = GradientTreatmentEffect(target).attribute(images, baselines=donors, target=2, block_size=(4, 5), exclude=None)
    leaf = images.clone().requires_grad_()
    target.surrogate()(leaf)[:, 2].sum().backward()
    product = leaf.grad * (images - donors.mean(0))
    grid = regions.grid((12, 10), (4, 5))
    for unit in grid.unique():
        inside = grid == unit
        for n in range(2):
            torch.testing.assert_close(attr[n, 0][inside], product[n, 0][inside].sum().expand(int(inside.sum())))
    kept = GradientTreatmentEffect(target).attribute(images, baselines=donors, target=2, block_size=(4, 5))
    touching = torch.isin(grid, grid[roi].unique())
    assert bool(touching.any())
    assert bool((kept[:, 0][:, touching] == 0).all())
    assert torch.equal(kept[:, 0][:, ~touching], attr[:, 0][:, ~touching])


def test_one_step_on_a_layer_is_the_gradient_at_the_activation():
    model, images, labels, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    donors = torch.rand(4, 1, 12, 10)
    attr = LayerGradientTreatmentEffect(target, model.first).attribute(images, layer_baselines=donors, target=1)
    seen = []
    handle = model.first.register_forward_hook(lambda m, a, out: seen.append(out))
    score = target.surrogate()(images)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, seen)
    with torch.no_grad():
        truth = (gradient * (seen[0] - model.first(donors).mean(0))).sum((2, 3), keepdim=True).expand(2, 4, 12, 10)
    torch.testing.assert_close(attr, truth, atol=1e-6, rtol=1e-5)


def test_single_elements_against_zero_are_captums_input_times_gradient():
    model, images, labels, roi = case(2, Curved)
    surrogate = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    elements = torch.arange(120).view(1, 1, 12, 10)
    attr = GradientTreatmentEffect(surrogate).attribute(images, baselines=0, target=1, feature_mask=elements, exclude=None)
    leaf = images.clone().requires_grad_()
    torch.testing.assert_close(attr, captum.attr.InputXGradient(surrogate).attribute(leaf, target=1).detach())


def test_many_steps_are_integrated_gradients_and_complete():
    model, images, _, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, metric="logit_mean")
    bank = PatchBank(torch.rand(5, 1, 9, 9))
    grid = regions.grid((12, 10), 4)
    attr = GradientTreatmentEffect(target).attribute(images, baselines=bank, target=1, block_size=4, n_steps=200)
    bound, baseline = bank.bind(images), images.clone()
    units = [unit for unit in grid.unique() if not bool((roi & (grid == unit)).any())]
    for unit in units:
        rows, columns = (grid == unit).nonzero().T
        inside = (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1))
        baseline[(slice(None), slice(None), *inside)] = bound.mean(0, inside).float()
    effects = torch.stack([attr[:, 0][:, grid == unit][:, 0] for unit in units], 1)
    with torch.no_grad():
        difference = target(images)[:, 1] - target(baseline)[:, 1]
    assert float(difference.abs().max()) > 0.01
    torch.testing.assert_close(effects.sum(1), difference, atol=1e-3, rtol=0)
    once = GradientTreatmentEffect(target).attribute(images, baselines=bank, target=1, block_size=4)
    assert float((once - attr).abs().max()) > 1e-3, "the case is too dull to tell the path from its end"
    integrated = captum.attr.IntegratedGradients(target).attribute(
        images, baselines=baseline, target=1, n_steps=200, method="riemann_middle"
    )
    for i, unit in enumerate(units):
        torch.testing.assert_close(effects[:, i], integrated[:, 0][:, grid == unit].sum(1).float(), atol=1e-5, rtol=0)


def test_a_layer_that_is_the_identity_at_the_input_has_the_inputs_effects():
    inner, images, labels, roi = case(2, Curved)
    model = nn.Sequential(nn.Identity(), inner)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    donors = torch.rand(5, 1, 12, 10)
    for n_steps in (1, 4):
        at_input = GradientTreatmentEffect(target).attribute(
            images, baselines=donors, target=1, block_size=4, exclude=None, n_steps=n_steps
        )
        at_layer = LayerGradientTreatmentEffect(target, model[0]).attribute(
            images, layer_baselines=donors, target=1, units="block", block_size=4, n_steps=n_steps
        )
        torch.testing.assert_close(at_layer, at_input, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
def test_models_that_work_in_place_have_the_same_effects(in_place):
    """The recorded activations are those that the layer returned, not what the next module made of them."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.LeakyReLU(0.3, in_place), nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(0.3, in_place), nn.Conv2d(4, 2, 3)
    )
    images, donors = torch.randn(2, 1, 8, 8), torch.randn(5, 1, 8, 8)
    before = images.clone(), donors.clone()

    def score(x: Tensor) -> Tensor:
        return model(x).sin().mean((2, 3))

    attr = GradientTreatmentEffect(score).attribute(images, baselines=donors, target=1, block_size=4)
    layer = LayerGradientTreatmentEffect(score, model[1]).attribute(images, layer_baselines=donors, target=1)
    assert torch.equal(images, before[0])
    assert torch.equal(donors, before[1])
    leaf = images.clone().requires_grad_()
    middle = model[1](nn.functional.leaky_relu(leaf, 0.3))
    out = model[3](nn.functional.leaky_relu(middle, 0.3)).sin().mean((2, 3))[:, 1].sum()
    at_leaf, at_middle = torch.autograd.grad(out, [leaf, middle])
    product = (at_leaf * (images - donors.mean(0)))[:, :, :4, :4].sum((1, 2, 3))
    torch.testing.assert_close(attr[:, 0, 0, 0], product)
    with torch.no_grad():
        mean = model[1](nn.functional.leaky_relu(donors, 0.3)).mean(0)
        torch.testing.assert_close(layer[:, :, 0, 0], (at_middle * (middle - mean)).sum((2, 3)))
        moved = LayerAverageTreatmentEffect(score, model[1]).attribute(
            images, layer_baselines=donors, target=1, units="layer", n_draws=5, n_screening_draws=0
        )
        torch.testing.assert_close(moved[:, 0, 0, 0], (score(images)[:, 1] - score(donors)[:, 1].mean()), atol=1e-6, rtol=0)


def test_tuples_of_inputs_and_units_across_them():
    def score(image: Tensor, other: Tensor, table: Tensor, unused: Tensor) -> Tensor:
        return (image.mean((1, 2, 3)) + 2 * other.sum((1, 2, 3))) * 3 + table @ torch.tensor([1.0, -2.0])

    inputs = torch.rand(2, 1, 4, 4), torch.rand(2, 2, 3, 3), torch.rand(2, 2), torch.rand(2, 1, 4, 4)
    masks = (
        torch.zeros(1, 1, 4, 4, dtype=torch.int64),
        torch.tensor([0, 5]).view(1, 2, 1, 1),  # channel 0 belongs with the image
        torch.tensor([[7, 9]]),
        torch.full((1, 1, 1, 1), 11),
    )
    attr = GradientTreatmentEffect(score).attribute(inputs, baselines=(0, torch.ones(3, 2, 3, 3), 0.5, 0.0), feature_mask=masks)
    assert [a.shape for a in attr] == [x.shape for x in inputs]
    image, other, table, _ = inputs
    shared = 3 * image.mean((1, 2, 3)) + 6 * (other[:, 0] - 1).sum((1, 2))
    torch.testing.assert_close(attr[0], shared.view(2, 1, 1, 1).expand(2, 1, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(attr[1][:, 0], shared.view(2, 1, 1).expand(2, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(attr[1][:, 1, 0, 0], 6 * (other[:, 1] - 1).sum((1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(attr[2], (table - 0.5) * torch.tensor([1.0, -2.0]), atol=1e-6, rtol=0)
    assert not bool(attr[3].any())


@pytest.mark.parametrize("target", [1, [1, 2], torch.tensor([1, 2]), torch.tensor(2)])
def test_every_form_of_target_and_masks_per_example(target):
    model, images, labels, roi = case(2, Curved)
    rois = torch.stack([roi, roi.flip(0)])[:, None]
    donors = torch.rand(4, 1, 12, 10)
    mask = torch.stack([regions.grid((12, 10), 3), 50 + regions.grid((12, 10), 4)])[:, None]
    whole = SegmentationTarget(model, roi=rois, reference=labels)
    together = GradientTreatmentEffect(whole).attribute(images, baselines=donors, target=target, feature_mask=mask)
    layer = LayerGradientTreatmentEffect(whole, model.first).attribute(images, layer_baselines=donors, target=target)
    chosen = torch.as_tensor(target).expand(2).tolist()
    for n in range(2):
        alone = SegmentationTarget(model, roi=rois[n, 0], reference=labels[n])
        one = {"target": chosen[n]}
        single = GradientTreatmentEffect(alone).attribute(
            images[n : n + 1], baselines=donors, feature_mask=mask[n : n + 1], **one
        )
        torch.testing.assert_close(together[n], single[0], atol=1e-6, rtol=0)
        single = LayerGradientTreatmentEffect(alone, model.first).attribute(images[n : n + 1], layer_baselines=donors, **one)
        torch.testing.assert_close(layer[n], single[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_unit_is_excluded_for_the_roi_that_it_touches_alone(n_steps):
    model, images, labels, roi = case(2, Curved)
    stack = torch.stack([roi, regions.box((12, 10), start=(8, 6), size=3)])
    donors = torch.rand(4, 1, 12, 10)
    both = GradientTreatmentEffect(SegmentationTarget(model, roi=stack, reference=labels))
    for r in range(2):
        alone = GradientTreatmentEffect(SegmentationTarget(model, roi=stack[r], reference=labels))
        torch.testing.assert_close(
            both.attribute(images, baselines=donors, target=(1, r), block_size=4, n_steps=n_steps),
            alone.attribute(images, baselines=donors, target=1, block_size=4, n_steps=n_steps),
        )


@pytest.mark.filterwarnings("ignore:The model is in training mode")
def test_nothing_is_left_behind():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1)).train()
    target = SegmentationTarget(model, roi=regions.box((12, 10), start=4, size=3), reference=torch.randint(0, 2, (12, 10)))
    images = torch.rand(2, 1, 12, 10, requires_grad=True)
    with torch.no_grad():
        model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    arguments = {"target": 1, "n_steps": 2}
    for recording in (torch.enable_grad, torch.no_grad):
        with recording():
            found = [
                GradientTreatmentEffect(target).attribute(images, baselines=0, block_size=4, **arguments),
                LayerGradientTreatmentEffect(target, model[1]).attribute(images, **arguments),
            ]
            assert torch.is_grad_enabled() == (recording is torch.enable_grad)
    for attr in found:
        assert not attr.requires_grad
        assert attr.is_contiguous()
        assert attr.dtype == images.dtype
        assert bool(attr.any())
    assert images.grad is None
    assert bool((model[0].weight.grad == 7).all())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    still = GradientTreatmentEffect(SegmentationTarget(model.eval(), roi=target.roi, reference=target.reference))
    torch.testing.assert_close(still.attribute(images, baselines=0, block_size=4, **arguments), found[0])


def test_gradients_are_recorded_also_in_inference_mode():
    model, images, labels, roi = case(2, Curved)
    face = GradientTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels))
    outside = face.attribute(images, baselines=0, target=1, block_size=4, n_steps=2)
    with torch.inference_mode():
        assert torch.equal(face.attribute(images, baselines=0, target=1, block_size=4, n_steps=2), outside)
    with undisturbed(model):
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_have_the_inputs_type(dtype):
    model, images, labels, roi = case()
    target = SegmentationTarget(model.to(dtype), roi=roi, reference=labels)
    attr = GradientTreatmentEffect(target).attribute(images.to(dtype), baselines=0.5, target=1, block_size=4, n_steps=2)
    assert attr.dtype == dtype
    assert bool(attr.any())
    layer = LayerGradientTreatmentEffect(target, model.first).attribute(images.to(dtype), target=1)
    assert layer.dtype == dtype


def test_tuple_activations_give_tuples():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str, Tensor]:
            return 2 * x, "kept", x[:, :, :3] ** 2

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            first, _, second = self.pair(x)
            return first.sum((1, 2, 3)) - 3 * second.sum((1, 2, 3))

    model, images, donors = Uses(), torch.rand(2, 1, 6, 5), torch.rand(4, 1, 6, 5)
    face = LayerGradientTreatmentEffect(model, model.pair)
    first, second = face.attribute(images, layer_baselines=donors)
    torch.testing.assert_close(first[:, 0, 0, 0], 2 * (images - donors.mean(0)).sum((1, 2, 3)))
    squares = (images**2 - (donors**2).mean(0))[:, :, :3].sum((1, 2, 3))
    torch.testing.assert_close(second[:, 0, 0, 0], -3 * squares)
    whole = face.attribute(images, layer_baselines=donors, units="layer")
    with torch.no_grad():
        truth = model(images) - model(donors).mean()
    torch.testing.assert_close(whole[0][:, 0, 0, 0], truth)


def test_a_bank_recorded_for_interventions_serves_the_gradient():
    model, images, labels, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    bank = ActivationBank(torch.rand(6, 1, 12, 10), batch_size=6)
    LayerAverageTreatmentEffect(target, model.first).attribute(images, layer_baselines=bank, target=1, n_draws=1)
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    LayerGradientTreatmentEffect(target, model.first).attribute(images, layer_baselines=bank, target=1, n_steps=3)
    # Before the gradients: recorded once, answered twice alone, and compared alone and beside each other.
    assert seen == [2] + [1, 1] + [1, 2] + [2] * (1 + 3)


def test_captums_noise_tunnel_runs_on_it():
    model, images, labels, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels[0])
    face = GradientTreatmentEffect(target, baselines=PatchBank(torch.rand(5, 1, 9, 9)))
    tunnel = captum.attr.NoiseTunnel(face)
    plain = face.attribute(images, target=1, block_size=4)
    smooth = tunnel.attribute(images, nt_samples=3, stdevs=1e-6, target=1, block_size=4)
    torch.testing.assert_close(smooth, plain, atol=1e-4, rtol=0)
    squared = tunnel.attribute(images, nt_type="smoothgrad_sq", nt_samples=2, stdevs=0.1, target=1, block_size=4)
    assert bool((squared >= 0).all())
    layer = LayerGradientTreatmentEffect(target, model.first, layer_baselines=ActivationBank(torch.rand(4, 1, 12, 10)))
    smooth = captum.attr.NoiseTunnel(layer).attribute(images, nt_samples=2, stdevs=1e-6, target=1)
    torch.testing.assert_close(smooth, layer.attribute(images, target=1), atol=1e-4, rtol=0)


def test_they_are_captums():
    model = nn.Conv2d(1, 1, 1)
    face, layer = GradientTreatmentEffect(model), LayerGradientTreatmentEffect(model, model)
    assert isinstance(face, captum.attr.GradientAttribution)
    assert isinstance(layer, captum.attr.GradientAttribution)
    assert isinstance(layer, captum.attr.LayerAttribution)
    assert face.multiplies_by_inputs
    assert layer.multiplies_by_inputs
    assert [face.get_name(), layer.get_name()] == ["Gradient Treatment Effect", "Layer Gradient Treatment Effect"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": None}, ValueError, "target: the forward function has 3 outputs .* say which one"),
        ({"target": 3}, ValueError, "target: 3 does not pick one of 3 outputs"),
        ({"n_steps": 0}, ValueError, "n_steps: expected at least 1, got 0"),
        ({"n_steps": 2.0}, TypeError, r"n_steps: expected an integer, got 2\.0"),
        ({"block_size": 40}, ValueError, "block_size: a block of"),
        ({"exclude": "all"}, ValueError, 'exclude: expected "roi"'),
        ({"baselines": math.inf}, ValueError, "baselines: expected a finite number"),
        ({"baselines": PatchBank(torch.rand(2, 1, 3, 3))}, ValueError, "is smaller than a unit of"),
        ({"n_draws": 5}, TypeError, "n_draws"),
    ],
)
def test_bad_arguments_are_explained(arguments, error, message):
    model, images, labels, roi = case()
    face = GradientTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels))
    with pytest.raises(error, match=message):
        face.attribute(images, **{"target": 1, "block_size": 4, "baselines": 0} | arguments)


def test_scores_without_a_gradient_are_refused():
    model, images, labels, roi = case()

    def hard(probabilities: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
        return (probabilities > 0.5).double().mean((2, 3))

    for score in (
        SegmentationTarget(model, roi=roi, reference=labels, metric=hard),
        lambda x: model(x.detach()).mean((2, 3)),
        lambda x: model(x).argmax(1).double().mean((1, 2))[:, None].expand(-1, 3),
    ):
        for n_steps in (1, 2):
            with pytest.raises(ValueError, match=r"forward_func: its score has no gradient .* SegmentationTarget\.surrogate"):
                GradientTreatmentEffect(score).attribute(images, baselines=0, target=1, block_size=4, n_steps=n_steps)
    with pytest.raises(ValueError, match="forward_func: the gradient of its score holds NaN or infinite values"):
        GradientTreatmentEffect(lambda x: (x * 0).sqrt().sum((1, 2, 3))).attribute(images, baselines=0, block_size=4)
    with pytest.raises(ValueError, match="forward_func: expected one score per example"):
        GradientTreatmentEffect(lambda x: x.sum()).attribute(images, baselines=0, block_size=4)
    with pytest.raises(TypeError, match="forward_func: expected a callable"):
        GradientTreatmentEffect("model")


def test_units_without_a_donor_are_refused():
    model, images, labels, _ = case(n=1)
    roi = torch.ones(12, 10, dtype=torch.bool)
    roi[0, 0] = False
    target = SegmentationTarget(model, roi=roi, reference=labels)
    with pytest.raises(ValueError, match="baselines: no donor is left for unit 0"):
        GradientTreatmentEffect(target).attribute(images, baselines=PatchBank(images), target=1, block_size=4, exclude=None)


def test_layers_without_one_activation_are_refused():
    class Twice(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(self.first(x)[:, :1]))

    _, images, labels, roi = case()
    model = Twice(2).eval()
    target = SegmentationTarget(model, roi=roi, reference=labels)
    with pytest.raises(ValueError, match="layer: Conv2d is called 2 times in one forward pass"):
        LayerGradientTreatmentEffect(target, model.first).attribute(images, target=1)
    with pytest.raises(TypeError, match=r"layer: expected a torch\.nn\.Module, got str"):
        LayerGradientTreatmentEffect(target, "first")
    with pytest.raises(ValueError, match="n_steps: expected at least 1"):
        LayerGradientTreatmentEffect(target, model.second).attribute(images, target=1, n_steps=0)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
