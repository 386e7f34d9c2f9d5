"""Interactions of units of the image with components of the network: against a literal loop with hooks."""

import functools

import numpy as np
import pytest
import torch
from joint_oracle import drawn_donors, replaced
from monai.inferers import SlidingWindowInferer
from torch import nn

from captum_causalseg import ActivationBank, PatchBank, SegmentationTarget, WindowedModel, interaction_effects, regions


class Net(nn.Module):
    """Convolutions around a bottleneck, and a skip connection."""

    def __init__(self, d):
        super().__init__()
        conv = nn.Conv2d if d == 2 else nn.Conv3d
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.inner, self.last = conv(1, 3, 3, padding=1), conv(3, 4, 3, stride=2, padding=1), conv(7, 2, 1)
            self.up = nn.Upsample(scale_factor=2)

    def forward(self, x):
        x = torch.sin(2 * self.first(x))
        return self.last(torch.cat([x, self.up(torch.sin(3 * self.inner(x)))], 1))


def case(d, n=1):
    spatial = (8, 12) if d == 2 else (4, 8, 4)
    generator = torch.Generator().manual_seed(1)
    image, donors = torch.rand(n, 1, *spatial, generator=generator), torch.rand(5, 1, *spatial, generator=generator)
    net = Net(d).eval()
    target = SegmentationTarget.from_prediction(net, image, roi=regions.box(spatial, 0, 4), metric="soft_dice")
    return net, target, image, donors


def put(net, name, channel, value, score):
    """The score while a module's output (or a channel of it) is that of a donor; all else is what it becomes."""
    if name is None:
        return score()

    def hook(module, args, output):
        output = output.clone()
        places = slice(None) if channel is None else slice(channel, channel + 1)
        output[:, places] = value[:, places]
        return output

    handle = net.get_submodule(name).register_forward_hook(hook)
    try:
        return score()
    finally:
        handle.remove()


def heard(net, name, image):
    found = []
    handle = net.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output))
    net(image)
    handle.remove()
    return found[0]


@torch.no_grad()
def literal(net, target, image, donors, *, unit, component, numbers, mask, output):
    """Every draw's effects of the unit, of the component, and of both."""
    name, channel = component
    found = []
    for of_unit, of_component in zip(*numbers):
        changed = replaced(image, mask, donors, {unit: of_unit})
        value = heard(net, name, donors[of_component : of_component + 1])
        scores = [
            float(put(net, hooked, channel, value, functools.partial(target, shown))[0, output])
            for shown, hooked in ((image, None), (changed, None), (image, name), (changed, name))
        ]
        found.append([scores[0] - one for one in scores[1:]])
    return np.array(found)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("batch", [1, 16])
def test_against_a_literal_loop_with_hooks(d, batch):
    net, target, image, donors = case(d)
    mask = regions.grid(image.shape[2:], 4)[None, None]
    unit, last = 1, int(mask.max())
    pairs = [(unit, "inner"), (("first", 2), unit - 1)]
    table = interaction_effects(
        target,
        image,
        donors,
        output=1,
        pairs=pairs,
        block_size=4,
        n_draws=6,
        exclude=None,
        perturbations_per_eval=batch,
    ).set_index(["first", "second"])
    # Components are numbered on behind the units, in the order in which they are named.
    keys = {("inner", None): last + 1, ("first", 2): last + 2 + 2}
    for number, component in ((unit, ("inner", None)), (unit - 1, ("first", 2))):
        numbers = [drawn_donors(0, key, 5, 6) for key in (number, keys[component])]
        draws = literal(net, target, image, donors, unit=number, component=component, numbers=numbers, mask=mask, output=1)
        label = component[0] if component[1] is None else f"{component[0]}[{component[1]}]"
        row = table.loc[(number, label)]
        expected = [*draws.mean(0), (draws[:, 2] - draws[:, 0] - draws[:, 1]).mean()]
        found = [row.effect_first, row.effect_second, row.joint, row.interaction]
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert abs(row.interaction) > 1e-4
        assert np.isnan(row.second_0)
        assert row.lower < row.interaction < row.upper
    assert table.attrs["forwards"]["interventions"] == 6 * (4 + 2)


class Either(nn.Module):
    """The first pixel counts where the gate is shut (its bias is the image's own sign); both are redundant."""

    def __init__(self):
        super().__init__()
        self.gate, self.main = nn.Identity(), nn.Identity()

    def forward(self, image):
        x = image.flatten(1)
        return torch.maximum(self.main(x[:, :1]), self.gate(x[:, 1:2]))[:, 0] + torch.minimum(x[:, 2], self.gate_of(x))

    def gate_of(self, x):
        return x[:, 3]


def test_a_unit_and_a_component_that_stand_in_for_each_other():
    image, donors = torch.ones(1, 1, 1, 4), torch.rand(20, 1, 1, 4) / 10
    table = interaction_effects(Either(), image, donors, pairs=[(0, "gate"), (2, "gate")], block_size=1, n_draws=10).set_index(
        ["first", "second"]
    )
    assert table["kind"].to_dict() == {(0, "gate"): "redundant", (2, "gate"): "none"}
    assert table.loc[(0, "gate")].effect_second == 0


def test_two_components_one_behind_the_other():
    _, target, image, donors = case(2)
    table = interaction_effects(
        target, image, donors, output=1, pairs=[("first", "inner"), (4, "inner")], block_size=4, n_draws=4
    )
    both = table[table["first"] == "first"].iloc[0]
    assert both.joint != pytest.approx(both.effect_first + both.effect_second, abs=1e-5)
    assert table["first"].tolist().count("first") == 1


def test_examples_and_banks():
    _, target, image, donors = case(2, n=2)
    bank = ActivationBank(donors)
    found = [
        interaction_effects(
            target, image, given, output=1, pairs=[(5, "inner")], block_size=4, n_draws=4, component_baselines=component
        )
        for given, component in ((donors, None), (donors, bank), (PatchBank(donors, placement="aligned"), bank))
    ]
    assert found[0]["example"].tolist() in ([0, 1], [1, 0])
    for one in found[1:]:
        np.testing.assert_allclose(one["interaction"], found[0]["interaction"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": [(0, "iner")]}, "pairs: "),
        ({"pairs": [(0, ("inner", 4))]}, "pairs: 'inner' has 4 channels, there is no channel 4"),
        ({"pairs": [(0, ("inner", 1)), (1, "inner")]}, "pairs: 'inner' is named as a whole and by its channels"),
        ({"pairs": [(77, "inner")]}, "pairs: there is no unit 77; the ids are 0 to 5"),
        ({"pairs": [("inner", "inner")]}, "pairs: expected two different units or components, got inner twice"),
        ({"pairs": [(0, ("inner", -1))]}, "pairs[0][1]: expected a unit id of at least 0, a module's name"),
        ({"pairs": [(4, 5)], "component_baselines": 0.0}, "component_baselines: no pair names a component"),
        ({"baselines": 0.0}, "component_baselines: needed where pairs name components"),
        ({"component_baselines": torch.rand(2, 9)}, "component_baselines: "),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    _, target, image, donors = case(2)
    arguments = {"baselines": donors, "pairs": [(5, "inner")], "output": 1, "block_size": 4, "n_draws": 2} | change
    with pytest.raises((ValueError, TypeError)) as refused:
        interaction_effects(target, image, **arguments)
    assert str(refused.value).startswith(message), str(refused.value)


def test_layers_in_windows_and_stochastic_models_are_refused():
    net, _, image, donors = case(2)
    windowed = WindowedModel.from_monai(SlidingWindowInferer((8, 8), overlap=0.5), net)
    roi = regions.box((8, 12), 0, 4)
    target = SegmentationTarget.from_prediction(windowed, image, roi=roi, metric="soft_dice")
    name = next(name for name, module in windowed.named_modules() if module is net.inner)
    arguments = {"output": 1, "block_size": 4, "n_draws": 2}
    with pytest.raises(ValueError, match=r"pairs: .*inside a sliding window"):
        interaction_effects(target, image, donors, pairs=[(5, name)], **arguments)
    noisy = nn.Sequential(net, nn.Dropout(0.5)).train()
    target = SegmentationTarget(
        noisy, roi=roi, reference=image[0, 0] > 0.5, metric="soft_dice", activation="softmax", n_samples=2
    )
    with pytest.raises(ValueError, match=r"pairs: .*stochastic"):
        interaction_effects(target, image, donors, pairs=[(5, "0.inner")], **arguments)
