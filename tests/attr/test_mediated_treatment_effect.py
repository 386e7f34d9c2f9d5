"""Total, indirect and direct effects against formulas, a literal loop with hooks by hand, and all donors."""

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    FrozenStatistics,
    MediatedTreatmentEffect,
    SegmentationTarget,
    Status,
    regions,
)
from captum_causalseg.engine.scores import ROUNDING
from captum_causalseg.interventions import replay

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
QUANTITIES = ("total", "indirect", "direct", "interaction")
# Differences of scores up to so much are none: an interaction that is not more in any draw is exactly 0.
ROUNDED = ROUNDING * torch.finfo(torch.float32).eps
# All donors of a small bank, each once: effects are exact, and a loop over the bank gives the same.
DRAIN = {"n_draws": 5, "n_screening_draws": 0, "sampling": "uniform", "return_statistics": True}


class TwoPaths(nn.Module):
    """What is deep and what is a skip connection meet in the end; ``bend`` makes them need each other."""

    def __init__(self, d, channels=1, bend=True):
        super().__init__()
        self.begin = nn.Identity()
        self.down, self.act, self.deep = CONV[d](channels, 3, 3, padding=1), nn.ReLU(inplace=True), CONV[d](3, 3, 3, padding=1)
        self.skip, self.out = CONV[d](channels, 3, 3, padding=1), CONV[d](3, 3, 1)
        self.aside = CONV[d](channels, 1, 1)
        self.bend = bend

    def forward(self, x):
        x = self.begin(x)
        self.aside(x)  # of no use
        met = self.deep(self.act(self.down(x))) + self.skip(x)
        return self.out(torch.tanh(met) if self.bend else met)


def case(d, n=2, channels=1, **options):
    torch.manual_seed(d)
    size = (12,) * d if d == 2 else (8,) * d
    model = TwoPaths(d, channels, **options).eval()
    images, donors = torch.rand(n, channels, *size), torch.rand(5, channels, *size)
    labels = torch.randint(0, 3, (n, *size))
    return model, images, donors, labels, size


def watch(module, edit):
    return module.register_forward_hook(lambda m, args, out: edit(out))


def literal(score, model, image, changed, layers):
    """The scores of the four runs, hooks by hand on modules that are called once."""
    modules = [model.get_submodule(name) for name in layers]

    def run(x, values=None):
        seen = {}
        handles = []
        for name, module in zip(layers, modules):
            handles.append(
                watch(module, lambda out, name=name: seen.setdefault(name, out.clone()) if values is None else values[name])
            )
        with torch.no_grad():
            found = score(x)
        for handle in handles:
            handle.remove()
        return found, seen

    observed, here = run(image)
    total, there = run(changed)
    return observed, total, run(image, there)[0], run(changed, here)[0]


def expected(score, model, image, donors, mask, unit, layers):
    sums = 0.0
    for donor in donors:
        changed = torch.where(mask == unit, donor, image)
        observed, total, indirect, direct = literal(score, model, image, changed, layers)
        parts = torch.stack([observed - total, observed - indirect, observed - direct])
        sums = sums + torch.cat([parts, (parts[0] - parts[1] - parts[2])[None]]) / len(donors)
    return sums


@pytest.mark.parametrize("support", ["auto", None])
@pytest.mark.parametrize("d", [2, 3])
def test_effects_equal_the_literal_loop(d, support, monkeypatch):
    monkeypatch.setattr(replay, "COMPARED", 0)  # whatever it saves
    model, images, donors, labels, size = case(d, channels=2)
    rois = torch.stack([regions.box(size, start=2, size=3), regions.box(size, start=3, size=4)])
    target = SegmentationTarget(model, roi=rois, reference=labels, metric="soft_dice")
    layers = ["deep", "skip", ("deep", "skip"), "down"]
    mask = regions.grid(size, 4)
    _, stats = MediatedTreatmentEffect(target, layers).attribute(
        images, donors, target=(1, 0), block_size=4, exclude=None, support=support, **DRAIN
    )
    assert stats.layers == ("deep", "skip", "deep+skip", "down")
    for name, modules in zip(stats.layers, (["deep"], ["skip"], ["deep", "skip"], ["down"])):
        layer = stats.of_layer(name)
        for n in range(2):
            # Masks and labels are each example's own.
            alone = SegmentationTarget(model, roi=rois, reference=labels[n : n + 1], metric="soft_dice")
            for u in range(0, int(mask.max()) + 1, 2):
                wanted = expected(alone, model, images[n : n + 1], donors, mask, u, modules)[:, 0]
                for quantity, one in zip(QUANTITIES, wanted):
                    found = layer.of_quantity(quantity).effect[n, u]
                    torch.testing.assert_close(found, one.double(), atol=2e-6, rtol=0)
        assert float(layer.indirect.effect.abs().max()) > 1e-3
    assert float(stats["deep"].interaction.effect.abs().max()) > 1e-5
    assert (stats["deep+skip"].direct.effect.nan_to_num() == 0).all(), "nothing goes around a cut"
    forwards = stats.settings["forwards"]
    assert forwards["indirect"] == forwards["direct"] == 4 * forwards["interventions"]


@pytest.mark.parametrize("d", [2, 3])
def test_the_total_effect_is_the_plain_one_on_the_same_draws(d):
    model, images, _, labels, size = case(d)
    donors = torch.rand(40, 1, *size)
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels, metric="soft_dice")
    asked = {"target": 1, "block_size": 4, "exclude": None, "n_draws": 8, "return_statistics": True}
    _, plain = AverageTreatmentEffect(target).attribute(images, donors, **asked)
    _, stats = MediatedTreatmentEffect(target, ["deep", "skip"]).attribute(images, donors, **asked)
    for name in ("effect", "standard_error", "status", "n_draws"):
        torch.testing.assert_close(getattr(stats.total, name), getattr(plain, name), atol=1e-6, rtol=0, equal_nan=True)
    for layer in stats.values():
        parts = layer.indirect.effect + layer.direct.effect + layer.interaction.effect
        torch.testing.assert_close(parts, plain.effect, atol=ROUNDED, rtol=0, equal_nan=True)
        torch.testing.assert_close(layer.rest.effect, plain.effect - layer.indirect.effect, atol=1e-6, rtol=0, equal_nan=True)
        # All from the same draws.
        assert (layer.indirect.n_draws == plain.n_draws).all()
        assert (layer.direct.status == plain.status).all()


def test_a_layer_at_the_input_has_it_all_and_one_that_nothing_follows_from_has_nothing():
    model, images, donors, labels, size = case(2)
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels, metric="soft_dice")
    _, stats = MediatedTreatmentEffect(target, ["begin", "aside"]).attribute(
        images, donors, target=1, block_size=4, exclude=None, **DRAIN
    )
    tried = stats.total.status == Status.ESTIMATED
    first, aside = stats["begin"], stats["aside"]
    torch.testing.assert_close(first.indirect.effect[tried], stats.total.effect[tried], atol=1e-7, rtol=0)
    torch.testing.assert_close(aside.direct.effect[tried], stats.total.effect[tried], atol=1e-7, rtol=0)
    for nothing in (first.direct, first.interaction, aside.indirect, aside.interaction):
        assert (nothing.effect[tried] == 0).all()
    assert float(stats.total.effect[tried].abs().max()) > 1e-3
    share, lower, upper = first.share_mediated()
    clear = ~share.isnan()
    assert bool(clear.any())
    torch.testing.assert_close(share[clear], torch.ones_like(share[clear]), atol=1e-4, rtol=0)
    assert bool(((lower <= 1 + 1e-4) & (upper >= 1 - 1e-4))[clear].all())


class Known(nn.Module):
    """The sum over the image, by two ways of known sizes and signs that also need each other."""

    def __init__(self, d, deep, skip, both):
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.axes, self.sizes = tuple(range(1, d + 2)), (deep, skip, both)

    def forward(self, x):
        first, second = self.first(x * 1.0).sum(self.axes), self.second(x * 1.0).sum(self.axes)
        deep, skip, both = self.sizes
        return deep * first + skip * second + both * first * second


@pytest.mark.parametrize("both", [0.0, 0.5])
@pytest.mark.parametrize("d", [2, 3])
def test_known_ways_by_formula(d, both):
    deep, skip = 2.0, -3.0
    model = Known(d, deep, skip, both)
    image, donors = torch.ones(1, 1, *(4,) * d), torch.arange(5.0).view(5, 1, *(1,) * d).expand(5, 1, *(4,) * d)
    _, stats = MediatedTreatmentEffect(model, {"deep": "first", "over": "second"}).attribute(
        image, donors.contiguous(), block_size=2, **DRAIN
    )
    whole, part = 4.0**d, 2.0**d
    # What a donor takes away from the sum, and its square, on the average.
    lost = part * (1 - torch.arange(5.0).double())
    for name, mine, other in (("deep", deep, skip), ("over", skip, deep)):
        layer = stats[name]
        indirect, direct = (slope * lost + both * lost * whole for slope in (mine, other))
        total = (mine + other) * lost + both * (whole**2 - (whole - lost) ** 2)
        for quantity, value in zip(QUANTITIES, (total, indirect, direct, total - indirect - direct)):
            found = layer.of_quantity(quantity).effect[0]
            torch.testing.assert_close(found, value.mean().expand(found.shape), atol=1e-4 * whole, rtol=0)
    if not both:
        assert float(stats["deep"].interaction.effect.abs().max()) <= 1e-6


def test_ways_that_cancel_are_not_screened_out():
    """The total effect of every draw is 0, while as much goes through each of the ways."""
    model = Known(2, 1.0, -1.0, 0.0)
    image, donors = torch.ones(1, 1, 4, 4), torch.rand(40, 1, 4, 4)
    _, stats = MediatedTreatmentEffect(model, ["first", "second"]).attribute(
        image, donors, block_size=2, n_draws=8, return_statistics=True
    )
    for quantity in QUANTITIES:
        for layer in stats.values():
            assert (layer.of_quantity(quantity).status == Status.ESTIMATED).all()
            assert (layer.of_quantity(quantity).n_draws == 8).all()
    assert (stats.total.effect.abs() <= 1e-6).all()
    assert (stats["first"].indirect.effect > 1.0).all()
    torch.testing.assert_close(stats["second"].indirect.effect, -stats["first"].indirect.effect, atol=1e-5, rtol=0)
    # Of a total that is not told from 0 no share can be given.
    assert stats["first"].share_mediated()[0].isnan().all()


def test_draws_where_they_are_needed_are_the_same_for_all_quantities():
    model, images, _, labels, size = case(2)
    target = SegmentationTarget(model, roi=regions.box(size, start=4, size=4), reference=labels, metric="soft_dice")
    _, stats = MediatedTreatmentEffect(target, ["deep", "skip"]).attribute(
        images,
        torch.rand(60, 1, *size),
        target=1,
        block_size=2,
        exclude=None,
        n_draws=12,
        allocation="needed",
        return_statistics=True,
    )
    assert stats.settings["allocation"] == "needed"
    drawn = stats.total.n_draws[..., 1]
    assert len(drawn[stats.total.status[..., 1] == Status.ESTIMATED].unique()) > 1
    for layer in stats.values():
        for quantity in QUANTITIES:
            assert (layer.of_quantity(quantity).n_draws[..., 1] == drawn).all()
        parts = layer.indirect.effect + layer.direct.effect + layer.interaction.effect
        torch.testing.assert_close(parts, stats.total.effect, atol=ROUNDED, rtol=0, equal_nan=True)


@pytest.mark.parametrize("d", [2, 3])
def test_a_network_without_a_bend_has_no_interactions(d):
    model, images, donors, _, _ = case(d, bend=False)
    model.act = nn.Identity()
    score = SegmentationTarget(model, metric="logit_mean")
    _, stats = MediatedTreatmentEffect(score, ["deep", "skip"]).attribute(images, donors, target=1, block_size=4, **DRAIN)
    for layer in stats.values():
        assert float(layer.interaction.effect.abs().max()) <= 1e-6
        assert float(layer.indirect.effect.abs().max()) > 1e-3


@pytest.mark.parametrize("norm", ["INSTANCE", ("GROUP", {"num_groups": 2})])
def test_frozen_statistics_split_what_is_near_from_what_is_everywhere(norm):
    torch.manual_seed(0)
    model = UNet(2, 1, 2, (4, 8), (2,), num_res_units=0, norm=norm).eval()
    image, donors = torch.rand(1, 1, 32, 32), torch.rand(5, 1, 32, 32)
    roi = regions.box((32, 32), start=0, size=4)
    target = SegmentationTarget.from_prediction(model, image, roi=roi, metric="probability_mean")
    _, stats = MediatedTreatmentEffect(target, FrozenStatistics()).attribute(
        image, donors, target=1, block_size=8, exclude=None, **DRAIN
    )
    layer = stats["statistics"]
    far, near = 15, 0  # the opposite corner, and the RoI's own
    assert abs(float(layer.total.effect[0, far, 1])) > 1e-6
    assert float(layer.direct.effect[0, far, 1]) == 0.0, "with frozen statistics nothing is seen from there"
    torch.testing.assert_close(layer.indirect.effect[0, far], layer.total.effect[0, far], atol=1e-7, rtol=0)
    assert abs(float(layer.direct.effect[0, near, 1])) > abs(float(layer.indirect.effect[0, near, 1]))

    # The same by hand: statistics of one run put into the norms of another.
    norms = [m for m in model.modules() if isinstance(m, (nn.InstanceNorm2d, nn.GroupNorm))]
    assert norms

    def run(x, given=None):
        seen, handles = [], []

        def forward(m, args, out, place):
            (h,) = args
            groups = m.num_groups if isinstance(m, nn.GroupNorm) else h.shape[1]
            parts = h.view(1, groups, -1)
            mine = parts.mean(2, keepdim=True), parts.var(2, unbiased=False, keepdim=True)
            seen.append(mine)
            mean, variance = mine if given is None else given[place]
            scaled = ((parts - mean) / (variance + m.eps).sqrt()).view(h.shape)
            return scaled if m.weight is None else scaled * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1)

        for place, m in enumerate(norms):
            handles.append(m.register_forward_hook(lambda m, args, out, place=place: forward(m, args, out, place)))
        with torch.no_grad():
            found = target(x)[0, 1]
        for handle in handles:
            handle.remove()
        return float(found), seen

    mask, sums = regions.grid((32, 32), 8), np.zeros(3)
    for donor in donors:
        changed = torch.where(mask == near, donor, image)
        (observed, here), (total, there) = run(image), run(changed)
        sums += (observed - np.array([total, run(image, there)[0], run(changed, here)[0]])) / len(donors)
    for quantity, value in zip(QUANTITIES, sums):
        assert float(layer.of_quantity(quantity).effect[0, near, 1]) == pytest.approx(value, abs=2e-6)


def test_what_is_carried_on_is_not_computed_again(monkeypatch):
    monkeypatch.setattr(replay, "COMPARED", 0)
    model, images, donors, labels, size = case(2, n=1)
    seen = dict.fromkeys(("skip", "deep", "out"), 0)
    for name in seen:
        module = getattr(model, name)

        def forward(x, name=name, own=module.forward):
            seen[name] += len(x)
            return own(x)

        monkeypatch.setattr(module, "forward", forward)
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels, metric="soft_dice")
    asked = {"target": 1, "block_size": 4, "exclude": None, "perturbations_per_eval": 4, **DRAIN}
    _, stats = MediatedTreatmentEffect(target, "deep").attribute(images, donors, **asked)
    forwards = stats.settings["forwards"]
    assert "replay" not in stats.settings["disabled"]
    assert "carrying" not in stats.settings["disabled"]
    # Of the direct runs, the first batch was whole; two rows of the next were compared.
    n, whole = forwards["interventions"], sum(forwards.values())
    assert seen["out"] <= whole
    assert whole - seen["skip"] >= 2 * n - 4 - 4 - forwards["replay compared"] > n
    monkeypatch.setattr(replay, "COMPARED", 10**9)
    _, slow = MediatedTreatmentEffect(target, "deep").attribute(images, donors, **asked)
    for quantity in QUANTITIES:
        torch.testing.assert_close(
            slow["deep"].of_quantity(quantity).effect,
            stats["deep"].of_quantity(quantity).effect,
            atol=1e-6,
            rtol=0,
            equal_nan=True,
        )


def test_images_one_by_one_give_the_same():
    model, images, donors, labels, size = case(2)
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels, metric="soft_dice")
    mediated = MediatedTreatmentEffect(target, ["deep", "skip"])
    asked = {"target": 1, "block_size": 4, **DRAIN}
    together, alone = (
        mediated.attribute(images, donors, **asked)[1],
        mediated.attribute(images, donors, perturbations_per_eval=1, **asked)[1],
    )
    for name in together.layers:
        torch.testing.assert_close(
            alone[name].indirect.effect, together[name].indirect.effect, atol=1e-6, rtol=0, equal_nan=True
        )


def test_the_attribution_is_the_quantity_that_is_asked_for():
    model, images, donors, labels, size = case(2)
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels, metric="soft_dice")
    mediated = MediatedTreatmentEffect(target, ["deep", "skip"])
    asked = {"target": 1, "block_size": 4, "exclude": None} | DRAIN
    attr, stats = mediated.attribute(images, donors, **asked)
    assert torch.equal(attr, stats["deep"].indirect.to_map("effect", 1).nan_to_num().float())
    for layer, quantity in ((1, "direct"), ("skip", "interaction"), (-1, "total")):
        attr = mediated.attribute(images, donors, layer=layer, quantity=quantity, **asked | {"return_statistics": False})
        assert torch.equal(attr, stats["skip"].of_quantity(quantity).to_map("effect", 1).nan_to_num().float())
    table = stats.to_dataframe()
    assert table["layer"].unique().tolist() == ["deep", "skip"]
    rows = table[(table["layer"] == "skip") & (table["class"] == 1) & (table["example"] == 1)].set_index("unit")
    assert rows["indirect"][3] == float(stats["skip"].indirect.effect[1, 3, 1])
    assert rows["total"][3] == float(stats.total.effect[1, 3, 1])
    quantities = {f"{name}{end}" for name in (*QUANTITIES, "share") for end in ("", "_lower", "_upper", "_p_value")}
    assert {"unit", "layer", *quantities} <= set(table.columns)
    known = table["share"].notna()
    assert known.any()
    assert (table.loc[known, "share_p_value"] == table.loc[known, "indirect_p_value"]).all()


def test_intervals_hold_the_truth():
    """Of indirect and direct effects, against all donors."""
    model, images, _, labels, size = case(2, n=1)
    donors = torch.rand(60, 1, *size)
    target = SegmentationTarget(model, roi=regions.box(size, start=4, size=4), reference=labels, metric="soft_dice")
    mediated = MediatedTreatmentEffect(target, "deep")
    asked = {"target": 1, "block_size": 2, "exclude": None, "n_screening_draws": 0, "return_statistics": True}
    _, truth = mediated.attribute(images, donors, n_draws=60, **asked)
    # Each example is another sample of donors.
    n = 40
    _, stats = mediated.attribute(images.expand(n, -1, -1, -1).contiguous(), donors, n_draws=10, seed=list(range(n)), **asked)
    for quantity in ("indirect", "direct"):
        true, found = truth["deep"].of_quantity(quantity), stats["deep"].of_quantity(quantity)
        tried = (true.standard_error[0, :, 1] == 0) & (true.effect[0, :, 1] != 0)
        assert int(tried.sum()) >= 15
        lower, upper = (end[:, tried, 1] for end in found.confidence_interval())
        known = true.effect[0, tried, 1]
        assert float(((lower <= known) & (known <= upper)).double().mean()) >= 0.92
        error = (found.effect[:, tried, 1] - known).square().mean().sqrt()
        assert float(found.standard_error[:, tried, 1].square().mean().sqrt() / error) <= 1.6


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ("dep", r"^layers: no module is named 'dep'; did you mean deep"),
        (["deep", "deep"], r"^layers: \['deep'\] named more than once"),
        ("levels", "^layers: 'levels' are known of the U-Nets of MONAI, nnU-Net and segmentation_models_pytorch"),
        (FrozenStatistics(), "^layers: the model has no norm over space"),
        (nn.ReLU(), "^layers: this ReLU is no module of the model"),
        ([], "^layers: expected a module, a name"),
    ],
)
def test_layers_that_are_none_are_refused(layers, match):
    model, images, donors, labels, size = case(2)
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels)
    with pytest.raises(ValueError, match=match):
        MediatedTreatmentEffect(target, layers).attribute(images, donors, target=1, block_size=4)


class Twice(TwoPaths):
    def forward(self, x):
        return super().forward(self.act(x))


def test_what_has_no_one_activation_is_refused():
    model, images, donors, labels, size = case(2)
    model.__class__ = Twice
    target = SegmentationTarget(model, roi=regions.box(size, start=2, size=4), reference=labels)
    with pytest.raises(ValueError, match=r"^layers: ReLU is called 2 times in one forward pass"):
        MediatedTreatmentEffect(target, "act").attribute(images, donors, target=1, block_size=4)


class Restless(TwoPaths):
    def __init__(self):
        super().__init__(2)
        self.noise = nn.Dropout(0.3)

    def forward(self, x):
        return super().forward(self.noise(self.begin(x)))


def test_all_runs_of_a_stochastic_model_meet_the_same_random_numbers():
    torch.manual_seed(0)
    model, size = Restless(), (12, 12)
    model.begin = nn.Identity()
    images, donors = torch.rand(2, 1, *size), torch.rand(5, 1, *size)
    target = SegmentationTarget(model.train(), reference=torch.randint(0, 3, (2, *size)), metric="soft_dice", n_samples=2)
    asked = {"target": 1, "block_size": 6, "n_draws": 3, "n_screening_draws": 0, "return_statistics": True}
    _, plain = AverageTreatmentEffect(target).attribute(images, donors, **asked)
    _, stats = MediatedTreatmentEffect(target, ["noise", "aside", ("deep", "skip"), "deep", "skip"]).attribute(
        images, donors, **asked
    )
    torch.testing.assert_close(stats.total.effect, plain.effect, atol=1e-6, rtol=0)
    assert float(plain.effect.abs().max()) > 1e-3
    for name in ("noise", "deep+skip"):
        # With other random numbers, what goes around a cut would be noise.
        torch.testing.assert_close(stats[name].indirect.effect, plain.effect, atol=1e-6, rtol=0)
        assert (stats[name].direct.effect.abs() <= 1e-6).all()
    assert (stats["aside"].indirect.effect.abs() <= 1e-6).all()
    for one, other in (("deep", "skip"), ("skip", "deep")):
        torch.testing.assert_close(stats[one].indirect.effect, stats[other].direct.effect, atol=1e-6, rtol=0)
    forwards = stats.settings["forwards"]
    assert forwards["indirect"] == forwards["direct"] == 5 * 2 * forwards["interventions"]
