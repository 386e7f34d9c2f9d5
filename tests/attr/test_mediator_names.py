"""Mediators as a user names them."""

import pytest
import torch
from torch import nn

from captum_causalseg import FrozenStatistics
from captum_causalseg.attr.mediator_names import find_mediators
from captum_causalseg.interventions.mediators import StatisticsPort


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.group, self.instance, self.batch = nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.BatchNorm2d(2)
        self.of_space, self.of_channels = nn.LayerNorm((2, 4, 4)), nn.LayerNorm(2)
        self.running = nn.InstanceNorm2d(2, track_running_stats=True).eval()


def found(layers):
    model = Net()
    return {
        mediator.name: [name for port in mediator.through for name, module in model.named_modules() if module is port.module]
        for mediator in find_mediators(model, layers(model) if callable(layers) else layers, n_spatial=2)
    }


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("first", {"first": ["first"]}),
        (lambda model: model.second, {"second": ["second"]}),
        (["first", "third"], {"first": ["first"], "third": ["third"]}),
        ("*ir*", {"first": ["first"], "third": ["third"]}),
        ([("first", "third"), "second"], {"first+third": ["first", "third"], "second": ["second"]}),
        ([["*ir*"]], {"first+third": ["first", "third"]}),
        ({"deep": "second", "ends": ("first", "third")}, {"deep": ["second"], "ends": ["first", "third"]}),
        ({"ends": "*ir*"}, {"ends": ["first", "third"]}),
        (FrozenStatistics(), {"statistics": ["group", "instance", "of_space"]}),
        (FrozenStatistics("*s*", name="some"), {"some": ["instance", "of_space"]}),
    ],
)
def test_names_mean(layers, expected):
    assert found(layers) == expected


def test_statistics_are_those_of_norms_over_space():
    (mediator,) = find_mediators(Net(), FrozenStatistics(), n_spatial=2)
    assert all(isinstance(port, StatisticsPort) for port in mediator.ports)
    with pytest.raises(ValueError, match=r"^layers: no norm over space is named 'batch'; there are group, instance, of_space"):
        find_mediators(Net(), FrozenStatistics("batch"), n_spatial=2)


@pytest.mark.parametrize("norm", ["group", "instance", "of_space"])
def test_a_norm_scales_by_the_statistics_that_it_is_given(norm):
    torch.manual_seed(0)
    model = Net()
    module = model.get_submodule(norm)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    (mediator,) = find_mediators(model, FrozenStatistics(norm), n_spatial=2)
    (port,) = mediator.ports
    x, other = torch.rand(3, 2, 4, 4), 2 * torch.rand(3, 2, 4, 4) - 1
    seen = []
    with torch.no_grad():
        with port.passing(lambda live: seen.append(list(live))):
            plain, there = module(x), module(other)
        with port.passing(lambda live: seen[0]):
            torch.testing.assert_close(module(x), plain, atol=1e-6, rtol=1e-6)
            moved = module(other)
        assert not torch.allclose(moved, there)
        # An affine function of what it is given, the same that takes x to what it becomes.
        weight = (plain[:, :, 0, 0] - plain[:, :, 0, 1]) / (x[:, :, 0, 0] - x[:, :, 0, 1]) if norm != "of_space" else None
        if weight is not None:
            expected = plain[:, :, :1, :1] + weight[..., None, None] * (other - x[:, :, :1, :1])
            torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)


def test_modules_of_a_function_are_given_themselves():
    layer = nn.Conv2d(1, 2, 1)
    (mediator,) = find_mediators(lambda x: layer(x), layer, n_spatial=2)
    assert mediator.name == "Conv2d"
    with pytest.raises(ValueError, match=r"^layers: the model \(function\) has no modules with names; give the modules"):
        find_mediators(lambda x: layer(x), "0", n_spatial=2)


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 2, 3)
        self.inner = torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1)))

    def forward(self, x):
        return self.inner(self.first(x))


@pytest.mark.parametrize("layers", ["inner", "inner.0", "*", {"a": ["first", "inner"]}])
def test_what_is_inside_torch_script_is_refused(layers):
    model = Scripted().eval()
    assert [one.name for one in find_mediators(model, "first", n_spatial=2)] == ["first"]
    with pytest.raises(ValueError, match=r"^layers: '(inner|inner\.0|a)' is inside TorchScript, .* give the eager module"):
        find_mediators(model, layers, n_spatial=2)
    frozen = torch.jit.freeze(torch.jit.script(model))
    with pytest.raises(
        ValueError, match=r"^layers: the model \(RecursiveScriptModule\) has no modules .* give the eager model"
    ):
        find_mediators(frozen, "first", n_spatial=2)
