"""Random weights: an explainer that ignores the model is found out."""

import copy
import math
from typing import ClassVar

import pytest
import torch
from refutation_cases import OPTIONS, case
from torch import nn

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect
from captum_causalseg.evaluation.refute import refute


class IgnoresTheModel(AverageTreatmentEffect):
    """Explains one and the same function, whatever it is given."""

    def __init__(self, forward_func):
        super().__init__(forward_func)
        self.secret = forward_func

    def attribute(self, inputs, **arguments):
        return AverageTreatmentEffect(self.secret).attribute(inputs, **arguments)


class LayerIgnoresTheModel(LayerAverageTreatmentEffect):
    def __init__(self, forward_func, layer):
        super().__init__(forward_func, layer)
        self.secret = forward_func, layer

    def attribute(self, inputs, **arguments):
        return LayerAverageTreatmentEffect(*self.secret).attribute(inputs, **arguments)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_an_explainer_that_ignores_the_model_fails_the_weights(d, n):
    target, images, donors = case(d, n=n)
    layer = target.model[1]
    arguments = {"n_draws": 20}
    for honest, dishonest, more in (
        (AverageTreatmentEffect(target), IgnoresTheModel(target), OPTIONS[d]),
        (
            LayerAverageTreatmentEffect(target, layer),
            LayerIgnoresTheModel(target, layer),
            {"units": "block", "block_size": 4},
        ),
    ):
        found = refute(honest, images, donors, 1, refuters=["weights"], **arguments, **more)["weights"]
        assert found.verdict == "pass", found
        assert found.statistic >= 0.5 == found.threshold
        found = refute(dishonest, images, donors, 1, refuters=["weights"], **arguments, **more)["weights"]
        assert (found.verdict, found.statistic) == ("fail", 0.0), found
        assert found.n_units >= 5
        assert "(rank correlation of sizes 1.00)" in found.message


class Watching(nn.Module):
    """Keeps the weights with which it was run."""

    seen: ClassVar[list] = []

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("order", torch.arange(5))

    def forward(self, x):
        state = {name: value.clone() for name, value in self.state_dict().items()}
        if not Watching.seen or any(not torch.equal(state[name], Watching.seen[-1][name]) for name in state):
            Watching.seen.append(state)
        return self.model(x)


def test_random_weights_are_the_models_own_in_another_order():
    target, images, donors = case(2)
    model = Watching(target.model)
    before = copy.deepcopy(model.state_dict())
    Watching.seen = []
    ate = AverageTreatmentEffect(target.with_model(model))
    for seed in (0, 1):
        refute(ate, images, donors, 1, refuters=["weights"], n_draws=20, seed=seed, **OPTIONS[2])
    first, shuffled, again, other = Watching.seen
    for name, value in before.items():
        assert torch.equal(value, model.state_dict()[name])
        assert torch.equal(value, first[name])
        assert torch.equal(value, again[name])
        for changed in (shuffled, other):
            assert torch.equal(value.flatten().sort().values, changed[name].flatten().sort().values)
            if name == "order" or value.numel() > 2:  # buffers stay, and so may two numbers
                assert torch.equal(value, changed[name]) == (name == "order"), name
    assert any(not torch.equal(shuffled[name], other[name]) for name in before)


class Fragile(nn.Module):
    """Breaks with other weights, the first few times."""

    broken = 0

    def __init__(self, model, times, value):
        super().__init__()
        self.model, self.times, self.value = model, times, value
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]

    def forward(self, x):
        found = self.model(x)
        if all(torch.equal(a, b) for a, b in zip(self.weights, self.model.parameters())):
            return found
        if Fragile.broken < self.times:
            Fragile.broken += 1
            return found * self.value
        return found


def test_random_weights_whose_outputs_are_not_finite_are_drawn_again():
    target, images, donors = case(2)
    found = []
    for times in (2, 100):
        Fragile.broken = 0
        ate = AverageTreatmentEffect(target.with_model(Fragile(target.model, times, math.nan)))
        found.append(refute(ate, images, donors, 1, refuters=["weights"], n_draws=20, **OPTIONS[2])["weights"])
    assert [one.verdict for one in found] == ["pass", "inconclusive"]
    assert found[1].message.startswith("3 random models cannot be explained, the last one: model: it returned NaN")


def test_a_model_that_is_dead_with_random_weights_has_other_effects():
    """No unit moves its score then; the scale of the spread is that of the model itself."""
    target, images, donors = case(2)
    Fragile.broken = 0
    ate = AverageTreatmentEffect(target.with_model(Fragile(target.model, 10**9, 0.0)))
    found = refute(ate, images, donors, 1, refuters=["weights"], n_draws=20, **OPTIONS[2])["weights"]
    assert found.verdict == "pass"
    assert "rank" not in found.message


def test_a_plain_module_has_weights_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    image, donors = torch.ones(1, 1, 4, 4, dtype=torch.float64), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    found = refute(AverageTreatmentEffect(model), image, donors, 1, refuters=["weights"], block_size=1)["weights"]
    assert (found.verdict, found.n_units) == ("pass", 16)


def test_weights_that_cannot_be_shuffled():
    target, images, donors = case(2)
    options = {"refuters": ["weights"], "n_draws": 10, **OPTIONS[2]}
    found = refute(AverageTreatmentEffect(lambda x: target(x)), images, donors, 1, **options)["weights"]
    assert (found.verdict, found.message[:33]) == ("inconclusive", "the forward function is no module")
    weightless = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = refute(AverageTreatmentEffect(weightless), images + 5, donors, **options)["weights"]
    assert found.message == "the model has no weights to shuffle"
    found = refute(AverageTreatmentEffect(target), images, images, 1, **options)["weights"]
    assert found.message == "no effect is significant, so none can be expected to change"
    assert found.n_forwards == 0
