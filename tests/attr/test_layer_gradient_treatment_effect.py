"""The backpropagated effect of a layer: against interventions, autograd by hand and Captum."""

import pytest
import torch
from gradient_cases import Curved, Linear, case
from torch import Tensor, nn

from captum_causalseg import (
    ActivationBank,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    SegmentationTarget,
    Status,
)


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


@pytest.mark.parametrize("kind", ["channel", "block"])
@pytest.mark.parametrize("d", [2, 3])
def test_statistics_of_a_layers_gradient(d, kind):
    model, images, labels, roi = case(d, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    ran = []
    model.first.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    face, donors = LayerGradientTreatmentEffect(target, model.first), torch.rand(3, *images.shape[1:])
    given = {"layer_baselines": donors, "target": 1, "units": kind, "block_size": 4 if kind == "block" else None}
    attr, stats = face.attribute(images, **given, return_statistics=True)
    assert stats.n_forwards == sum(ran)
    assert torch.equal(attr, face.attribute(images, **given))
    torch.testing.assert_close(stats.to_map(target=1).float(), attr, atol=0, rtol=1e-6)
    assert stats.status[..., 1].unique().tolist() == [Status.FIRST_ORDER]
    assert stats.status[..., [0, 2]].unique().tolist() == [Status.EXCLUDED]
    assert bool(stats.standard_error.isnan().all() & stats.p_values().isnan().all() & (stats.population == 3).all())
    assert not bool(stats.significant().any())
    assert len(stats.to_dataframe()) == stats.effect.numel()
    if kind == "block":
        on_image = stats.on_image(images.shape[2:]).to_map(target=1)
        assert torch.equal(on_image, stats.to_map(target=1)[:, :1])


def test_statistics_of_a_layer_by_hand():
    layer = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([1.0, -3.0]).view(2, 1, 1, 1)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 1))
    nn.init.ones_(model[2].weight)
    face = LayerGradientTreatmentEffect(model, layer)
    donors = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    _, stats = face.attribute(torch.full((1, 1, 2, 2), 2.0), donors, target=0, return_statistics=True)
    assert stats.effect.tolist() == [[[6.0], [-18.0]]]  # 4 elements, 2 less the mean of 0 and 1, times 1 or -3
    assert bool(stats.standard_error.isnan().all())
