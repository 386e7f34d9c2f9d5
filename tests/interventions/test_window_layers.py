"""Layers of a network in a sliding window: against a literal loop around the whole sliding window, hooks by hand."""

import itertools

import numpy as np
import pytest
import torch
from layer_cases import Net
from monai.inferers import SlidingWindowInferer
from torch import nn
from transformer_cases import network
from window_layer_cases import SIZE, SPATIAL, case, expected_effects, in_mask, literal, mask_of, modules, recordings

from captum_causalseg import (
    ActivationBank,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    Layout,
    SegmentationTarget,
    WindowedModel,
    regions,
)
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions import replay

UNIFORM = {"sampling": "uniform", "n_draws": 3, "n_screening_draws": 0, "return_statistics": True, "target": 1}


# Parts of channels lie as blocks do, which are tried in 3D; there are many of them.
@pytest.mark.parametrize(
    ("d", "options", "kind"),
    [
        (d, options, kind)
        for d, options in [(2, {}), (2, {"mirror_axes": (0, 1), "n_folds": 2}), (3, {"mirror_axes": (2,)})]
        for kind in ("channel", "layer", "block", *(("channel_block",) if d == 2 else ()))
    ],
)
def test_effects_equal_the_literal_loop_around_all_windows(d, options, kind):
    model, images, donors, labels = case(d, n=1 if d == 3 or kind == "channel_block" else 2, **options)
    rois = torch.stack([regions.box(SPATIAL[d], start=1, size=3), regions.box(SPATIAL[d], start=4, size=4)])
    target = SegmentationTarget(model, roi=rois, reference=labels)
    layer = modules(model, "middle")[-1]
    asked = {"units": kind, "block_size": 3 if "block" in kind else None}
    attr, stats = LayerAverageTreatmentEffect(target, layer).attribute(images, donors, **asked, **{**UNIFORM, "target": (1, 0)})
    assert attr.shape == (len(images), 5, *(SIZE[d],) * d)
    mask = mask_of(kind, 5, d)
    # Of blocks of channels every fourth: each channel and each block is among them.
    units = mask.unique().tolist()[:: 4 if kind == "channel_block" else 1]
    expected = expected_effects(model, "middle", images, donors, labels, rois=rois, mask=mask, units=units)
    torch.testing.assert_close(stats.effect[:, units, 1], expected, atol=1e-6, rtol=0)
    assert float(expected.abs().max()) > 0.01, "the case is too dull to prove anything"
    for u, unit in enumerate(units):
        inside = (mask[0] == unit).expand(attr[0].shape)
        torch.testing.assert_close(attr[0][inside].double(), expected[0, u, 0].expand(int(inside.sum())), atol=1e-6, rtol=0)


def evaluator(model, images, layer, **asked):
    from captum_causalseg.attr.effort import Effort
    from captum_causalseg.attr.layer import prepare_layer
    from captum_causalseg.attr.options import LayerUnits, Options

    roi = regions.box(tuple(images.shape[2:]), start=3, size=3)
    target = SegmentationTarget.from_prediction(model, images, roi=roi, metric="soft_dice")
    units = LayerUnits(layer=layer, **asked)
    options = Options(
        forward_func=target, inputs=images, units=units, baselines=torch.rand(3, *images.shape[1:]), effort=Effort()
    )
    return prepare_layer(options, units).evaluator, options.baselines


@pytest.mark.parametrize(
    ("units", "name", "n_units"), [("head", "vit.blocks.0.attn.out_proj", 2), ("block", "vit.blocks.0", 4)]
)
def test_heads_and_blocks_of_tokens(units, name, n_units):
    model = WindowedModel(network("vit"), 32, [(0, 0), (0, 8), (8, 0), (8, 8)], torch.ones(32, 32), (0,), batch_size=4)
    generator = torch.Generator().manual_seed(0)
    image, donors = torch.rand(1, 1, 40, 40, generator=generator), torch.rand(3, 1, 40, 40, generator=generator)
    target = SegmentationTarget(
        model, roi=regions.box((40, 40), start=9, size=14), reference=torch.ones(40, 40), metric="logit_mean"
    )
    heads, given = units == "head", {"units": units, "block_size": None if units == "head" else 2}
    _, stats = LayerAverageTreatmentEffect(target, model.network.get_submodule(name)).attribute(
        image, donors, **given, **UNIFORM, attribute_to_layer_input=heads
    )
    assert stats.effect.shape[1] == n_units

    def where(unit):
        def inside(flip):
            if heads:
                return torch.arange(16) // 8 == unit
            rows = regions.grid((4, 4), 2).flip([axis - 2 for axis in flip])
            return (rows.flatten() == unit)[None, :, None]

        return inside

    with torch.no_grad():
        observed = target(image)[0, 1]
    recorded = [recordings(model, name, donor[None], at_input=heads) for donor in donors]
    for unit in range(n_units):
        found = [literal(model, name, image, donor, where(unit), at_input=heads) for donor in recorded]
        scores = torch.stack([logits[0, 1, 9:23, 9:23].mean() for logits in found])
        assert float(stats.effect[0, unit, 1]) == pytest.approx(float(observed - scores.mean()), abs=1e-5)
    assert float(stats.effect[0, :, 1].abs().min()) > 1e-3


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.one(x), "beside", self.other(x)


class OfPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.last = Pair(), nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, x):
        one, _, other = self.pair(x)
        return self.last(torch.sin(4 * torch.cat([one, other], 1)))


def test_a_layer_of_several_tensors():
    torch.manual_seed(1)
    model = WindowedModel(OfPair().eval(), 8, [(0, 0), (0, 4), (6, 0), (6, 4)], torch.ones(8, 8), (0,), batch_size=3)
    image, donors, labels = torch.rand(1, 1, 14, 12), torch.rand(3, 1, 14, 12), torch.randint(0, 2, (1, 14, 12))
    target = SegmentationTarget(model, roi=regions.box((14, 12), start=4, size=5), reference=labels, metric="soft_dice")
    pair, blocks = model.network.pair, regions.grid((8, 8), 4)[None, None]
    attr = LayerAverageTreatmentEffect(target, pair).attribute(image, donors, units="block", block_size=4, **UNIFORM)[0]
    assert [tuple(one.shape) for one in attr] == [(1, 3, 8, 8), (1, 2, 8, 8)]
    with torch.no_grad():
        observed = target(image)[0, 1]
    for slot, unit in itertools.product(range(2), range(4)):
        change = 0.0
        for donor in donors:
            seen = []
            handle = pair.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
            with torch.no_grad():
                model(donor[None])
            handle.remove()
            calls = itertools.count()

            def put(m, args, out, seen=seen, calls=calls, slot=slot, unit=unit):
                k, new = next(calls), list(out)
                place = 2 * slot
                new[place] = torch.where((blocks == unit).flip(model.flips[k % 2]), seen[k][place], out[place])
                return tuple(new)

            handle = pair.register_forward_hook(put)
            with torch.no_grad():
                change += float(observed - target(image)[0, 1]) / 3
            handle.remove()
        assert float(attr[slot][0, 0][blocks[0, 0] == unit][0]) == pytest.approx(change, abs=1e-6)
    assert float(attr[0].abs().max()) > 1e-3


def test_images_smaller_than_a_window_and_what_the_network_is_given_besides():
    class Scaled(Net):
        def forward(self, x, factor):
            return super().forward(x * factor.view(-1, 1, 1, 1))

    model = WindowedModel.from_monai(SlidingWindowInferer(12, 4, overlap=0.5, padding_mode="reflect"), Scaled(2).eval())
    images, labels = torch.rand(2, 1, 7, 30), torch.randint(0, 3, (2, 7, 30))
    roi, factor = (
        torch.stack([regions.box((7, 30), start=s, size=3) for s in ((0, 0), (3, 26))])[:, None],
        torch.tensor([0.5, 2.0]),
    )
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.network.middle)
    activations = torch.rand(2, 5, 12, 12)
    effects, stats = face.attribute(images, activations, additional_forward_args=factor, **UNIFORM)
    assert effects.shape == (2, 5, 12, 12)
    # Another region, other windows.
    assert stats.settings["windows"]["touching"] == [1, 1]
    with torch.no_grad():
        observed = target(images, factor)[:, 1]
    for channel in range(5):
        change = torch.zeros(2)
        for one in activations:

            def put(m, args, out, one=one, channel=channel):
                return torch.where((torch.arange(5) == channel).view(1, 5, 1, 1), one, out)

            handle = model.network.middle.register_forward_hook(put)
            with torch.no_grad():
                change += (observed - target(images, factor)[:, 1]).flatten() / 2
            handle.remove()
        torch.testing.assert_close(effects[:, channel, 0, 0], change, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_logits_are_those_of_all_windows(batch_size):
    model, images, _, _ = case(2, mirror_axes=(1,), batch_size=batch_size)
    found, donors = evaluator(model, images, model.network.middle)
    sets = Interventions.of_sets(np.zeros(4, dtype=np.int64), [[(unit, [k % 3])] for k, unit in enumerate((0, 4, 2, 2))])
    with torch.no_grad():
        (logits,) = found._answers(sets)
    group = found.runs.geometry.groups[0].frame
    near = tuple(slice(a, a + n) for a, n in zip(group.starts[0].tolist(), group.size))
    for row, (unit, donor) in enumerate(((0, 0), (4, 1), (2, 2), (2, 0))):
        recorded = recordings(model, "middle", donors[donor : donor + 1])
        logits_of_all = literal(model, "middle", images, recorded, in_mask(mask_of("channel", 5, 2), unit))
        expected = logits_of_all[(0, slice(None), *near)]
        # Inside the region; one pixel beside it, windows that touch no region are as they were.
        inside = (slice(None), slice(1, -1), slice(1, -1))
        if batch_size == 1:
            assert torch.equal(logits[row][inside], expected[inside])
        torch.testing.assert_close(logits[row][inside], expected[inside], atol=1e-5, rtol=0)


def test_with_and_without_replay_and_one_by_one(monkeypatch):
    model, images, donors, labels = case(2, n=2)
    target = SegmentationTarget(model, roi=regions.box((14, 12), start=3, size=4), reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.network.early)
    monkeypatch.setattr(replay, "COMPARED", 0)  # whatever it saves
    fast, stats = face.attribute(images, donors, **UNIFORM)
    assert "replay" not in stats.settings["disabled"]
    assert stats.settings["forwards"]["replay compared"] > 0
    alone = face.attribute(images, donors, **UNIFORM, perturbations_per_eval=1)[0]

    monkeypatch.setattr(replay, "COMPARED", float("inf"))
    slow, stats = face.attribute(images, donors, **UNIFORM)
    assert "replay compared" not in stats.settings["forwards"]
    for other in (slow, alone):
        torch.testing.assert_close(other, fast, atol=1e-5, rtol=0)
    assert float(fast.abs().max()) > 1e-3


def test_one_window_at_a_time_what_comes_before_the_layer_is_not_run_again(monkeypatch):
    monkeypatch.setattr(replay, "COMPARED", 0)
    model, images, donors, labels = case(2, batch_size=1)
    runs = dict.fromkeys(("early", "late"), 0)
    for name in runs:
        module = getattr(model.network, name)

        def forward(x, name=name, own=module.forward):
            runs[name] += len(x)
            return own(x)

        monkeypatch.setattr(module, "forward", forward)
    target = SegmentationTarget(model, roi=regions.box((14, 12), start=3, size=4), reference=labels)
    _, stats = LayerAverageTreatmentEffect(target, model.network.middle).attribute(images, donors, **UNIFORM)
    assert runs["late"] == stats.n_forwards
    n_windows = stats.settings["forwards"]["windows"]
    assert n_windows > 5 * 3 * stats.settings["windows"]["touching"][0]
    # Where the image as it is comes first, each window is written down.
    assert runs["late"] - runs["early"] == n_windows - stats.settings["windows"]["touching"][0]


def test_what_is_remembered_is_shared_by_all_passes(monkeypatch):
    model, images, _, _ = case(2, n_folds=2, mirror_axes=(0, 1))
    monkeypatch.setattr(replay, "COMPARED", 0)
    sizes = {}
    for most in (2**27, 20_000):
        monkeypatch.setattr(replay, "_MOST_ELEMENTS", most)
        found, _ = evaluator(model, images, modules(model, "late")[0])
        with torch.no_grad():
            found(Interventions.of_sets(np.zeros(6, dtype=np.int64), [[(0, [k % 3])] for k in range(6)]))
        sizes[most] = sum(memory.size for one in found._replays.values() for memory in one._memories.values())
    assert sizes[2**27] > 20_000
    assert 0 < sizes[20_000] <= 20_000


def test_only_windows_that_touch_the_region_are_run_and_batches_are_full():
    seen = []

    class Counted(Net):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    torch.manual_seed(0)
    model = WindowedModel.from_monai(SlidingWindowInferer(8, 5, overlap=0.5), Counted(2).eval())
    image, donors = torch.rand(1, 1, 24, 24), torch.rand(4, 1, 24, 24)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((24, 24), start=1, size=4))
    face = LayerAverageTreatmentEffect(target, model.network.middle)
    seen.clear()
    _, stats = face.attribute(image, donors, **{**UNIFORM, "n_draws": 4})
    assert stats.settings["windows"] == {"patch_size": [8, 8], "per_image": 25, "touching": [4]}
    forwards = stats.settings["forwards"]
    # For the target, four windows; five beside each other and one alone tell that they do not mix.
    assert forwards["observed"] == 4 + 5 + 1
    assert forwards["recording the layer"] == 4
    assert forwards["donors"] == 4 * 4
    # Five channels, four donors, in four windows; the observed image once more.
    assert forwards["windows"] == (5 * 4 + 1) * 4
    assert sum(seen) <= stats.n_forwards
    seen.clear()
    face.attribute(image, donors, **{**UNIFORM, "n_draws": 4}, perturbations_per_eval=1)
    assert seen.count(1) >= 80


@pytest.mark.parametrize("at_input", [False, True])
def test_baselines_of_every_kind_are_the_same_in_all_windows(at_input):
    model, images, donors, labels = case(2, mirror_axes=(0,))
    target = SegmentationTarget(model, roi=regions.box((14, 12), start=3, size=4), reference=labels, metric="soft_dice")
    face, layer = LayerAverageTreatmentEffect(target, model.network.middle), model.network.middle
    channels = 4 if at_input else 5
    given = {**UNIFORM, "attribute_to_layer_input": at_input}

    def literally(value):
        """All channels' effects when they become this value."""

        def after(m, args, out):
            return torch.full_like(out, value) if value.ndim == 0 else value.expand_as(out)

        def before(m, args):
            return (value.expand_as(args[0]),)

        handle = layer.register_forward_pre_hook(before) if at_input else layer.register_forward_hook(after)
        with torch.no_grad():
            found = target(images)[0, 1]
        handle.remove()
        return float(target(images)[0, 1].detach() - found)

    whole = face.attribute(images, 0.5, units="layer", **given)[0]
    assert float(whole[0].flatten()[0]) == pytest.approx(literally(torch.tensor(0.5)), abs=1e-6)
    activations = torch.rand(3, channels, 8, 8)
    effects = face.attribute(images, activations, units="layer", **given)[0]
    assert effects.shape == (1, channels, 8, 8)
    assert float(effects.flatten()[0]) == pytest.approx(sum(map(literally, activations)) / 3, abs=1e-6)
    one = ActivationBank(donors, reduction="mean")
    assert torch.isfinite(face.attribute(images, one, units="channel", **given)[0]).all()


@pytest.mark.parametrize("options", [{}, {"mirror_axes": (0,), "n_folds": 2}])
def test_the_gradient_is_that_of_all_windows(options):
    model, images, donors, labels = case(2, n=2, **options)
    rois = torch.stack([regions.box((14, 12), start=1, size=3), regions.box((14, 12), start=8, size=3)])
    target = SegmentationTarget(model, roi=rois, reference=labels, metric="soft_dice")
    face = LayerGradientTreatmentEffect(target, model.networks[0].middle)
    effects = face.attribute(images, donors, target=(1, 1))

    def run(x, function=model):
        """What the layer returns, call by call, with a handle on each for gradients."""
        seen = []

        def hook(m, args, out):
            # Its own, so that there is a gradient with respect to it.
            seen.append(out.detach().requires_grad_())
            return seen[-1]

        handles = [module.register_forward_hook(hook) for module in modules(model, "middle")]
        returned = function(x)
        for handle in handles:
            handle.remove()
        return seen, returned

    for n, image in enumerate(images):
        one = SegmentationTarget(model, roi=rois, reference=labels[n : n + 1], metric="soft_dice").surrogate()
        seen, score = run(image[None], one)
        gradients = torch.autograd.grad(score[0, 1, 1], seen)
        means = [torch.stack(calls).mean(0) for calls in zip(*(run(donor[None])[0] for donor in donors))]
        expected = sum((g * (a - b)).sum((0, 2, 3)) for g, a, b in zip(gradients, seen, means))
        expected = expected.detach()
        torch.testing.assert_close(effects[n, :, 0, 0], expected, atol=1e-6, rtol=1e-4)
        assert float(expected.abs().max()) > 1e-3
    steps = face.attribute(images, donors, target=(1, 1), n_steps=3)
    assert 0 < float((steps - effects).abs().max()) < 1


def test_stratified_draws_are_ranked_by_windows():
    model, images, _, labels = case(2)
    donors = torch.rand(12, 1, 14, 12)
    target = SegmentationTarget(model, roi=regions.box((14, 12), start=3, size=4), reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.network.middle)
    _, stats = face.attribute(images, donors, target=1, n_draws=4, n_screening_draws=0, return_statistics=True)
    assert stats.settings["sampling"] == "stratified"
    assert "stratified sampling" not in stats.settings["disabled"]
    assert stats.settings["forwards"]["gradient"] > 0
    exact = face.attribute(images, donors, target=1, n_draws=12, n_screening_draws=0)
    assert float((stats.to_map("effect", 1) - exact).abs().max()) < 0.5 * float(exact.abs().max())


def test_donors_from_one_window_of_images_of_any_size():
    model, images, _, labels = case(2, mirror_axes=(1,), n_folds=2)
    donors = [torch.rand(1, *spatial) for spatial in ((14, 12), (20, 9), (8, 8), (5, 30))]
    roi = regions.box((14, 12), start=3, size=4)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    model.starts = by_steps
    face = LayerAverageTreatmentEffect(target, model.networks[0].middle)
    bank = ActivationBank(donors, placement="anywhere")
    effects, stats = face.attribute(images, bank, units="block", block_size=4, **{**UNIFORM, "n_draws": 4})
    assert stats.settings["forwards"]["donors"] == 4 * model.runs_per_window
    with torch.no_grad():
        observed = target(images)[0, 1]
    mask = regions.grid((8, 8), 4)[None, None]
    for unit in range(4):
        change = 0.0
        for number, donor in enumerate(donors):
            layout = model.layout(donor.shape[1:])
            window = np.random.default_rng(number).integers(len(layout))
            seen = model.seen(layout.cut(donor[None], np.zeros(1, int), np.array([window])), layout)

            def put(fold, seen=seen, unit=unit):
                calls = itertools.count()
                with torch.no_grad():
                    network = model.networks[fold]
                    values = [network.middle(torch.sin(6 * network.early(seen.flip(flip)))) for flip in model.flips]

                def hook(m, args, out):
                    k = next(calls) % 2
                    return torch.where((mask == unit).flip(model.flips[k]), values[k].expand_as(out), out)

                return hook

            handles = [module.register_forward_hook(put(fold)) for fold, module in enumerate(modules(model, "middle"))]
            with torch.no_grad():
                change += float(observed - target(images)[0, 1]) / len(donors)
            for handle in handles:
                handle.remove()
        assert float(effects[0, 0][mask[0, 0] == unit][0]) == pytest.approx(change, abs=1e-6)
    assert float(effects.abs().max()) > 1e-3


def by_steps(spatial):
    return list(itertools.product(*[sorted({*range(0, n - 8, 3), n - 8}) for n in spatial]))


def test_a_layer_of_whole_images_has_no_windows():
    network, images = Net(2).eval(), torch.rand(1, 1, 12, 12)
    target = SegmentationTarget.from_prediction(network, images, roi=regions.box((12, 12), start=3, size=4))
    bank = ActivationBank(torch.rand(3, 1, 12, 12), placement="anywhere")
    with pytest.raises(ValueError, match='placement: "anywhere" is of layers inside a sliding window'):
        LayerAverageTreatmentEffect(target, network.middle).attribute(images, bank, target=1)


def test_several_windows_of_a_donor_do_not_have_to_fit_into_memory():
    model, images, donors, labels = case(2)
    target = SegmentationTarget(model, roi=regions.box((14, 12), start=3, size=4), reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.network.middle)
    inside, mapped = (face.attribute(images, ActivationBank(donors, memory_budget=n), **UNIFORM)[0] for n in (2**30, 1000))
    assert torch.equal(inside, mapped)


class Twice(Net):
    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(2))


def test_what_is_refused():
    def attribute(network, name="middle", images=None, donors=None, **options):
        model = WindowedModel.from_monai(SlidingWindowInferer(8, 4, overlap=0.5), network.eval())
        images = torch.rand(1, 1, 14, 12) if images is None else images
        given = {"roi": regions.box((14, 12), start=3, size=4), "reference": torch.zeros(14, 12), **options}
        target = SegmentationTarget(model, **given)
        donors = torch.rand(3, 1, 14, 12) if donors is None else donors
        return LayerAverageTreatmentEffect(target, network.get_submodule(name)).attribute(images, donors, **UNIFORM)

    with pytest.raises(ValueError, match="layer: Conv2d is called 2 times in one forward pass"):
        attribute(Twice(2))
    with pytest.raises(ValueError, match=r"layer: inside a sliding window.*without an RoI nothing lies outside it"):
        attribute(Net(2), roi=None)
    with pytest.raises(ValueError, match=r"layer: inside a sliding window.*the metric may look beyond the RoI"):
        attribute(Net(2), metric=lambda p, t, r: p.mean((2, 3)))
    with pytest.raises(
        ValueError, match=r"layer_baselines: donors come from the same windows.*size \(14, 12\), got \(20, 20\)"
    ):
        attribute(Net(2), donors=ActivationBank(torch.rand(3, 1, 20, 20)))

    class Mixing(Net):
        def forward(self, x):
            return super().forward(x - x.mean((0, 2, 3), keepdim=True))

    with pytest.raises(ValueError, match="layer: the network answers a window otherwise beside others"):
        attribute(Mixing(2))
    unused = Net(2)
    unused.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="layer: Conv2d is not called when the model runs"):
        attribute(unused, "unused")


def test_units_whose_place_in_a_flipped_window_is_not_known_are_refused():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.middle, self.after = nn.Conv2d(1, 4, 1), nn.Identity(), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            hidden = torch.cumsum(self.before(x).flatten(2).transpose(1, 2), 1)
            return self.after(torch.cumsum(self.middle(hidden), 1).transpose(1, 2).unflatten(2, x.shape[2:]))

    images, donors = torch.rand(1, 1, 12, 12), torch.rand(3, 1, 12, 12)
    for mirror_axes in ((), (1,)):
        model = WindowedModel(Rows().eval(), 8, [(0, 0), (0, 4), (4, 0), (4, 4)], torch.ones(8, 8), mirror_axes)
        target = SegmentationTarget.from_prediction(
            model, images, roi=regions.box((12, 12), start=3, size=4), metric="soft_dice"
        )
        face = LayerAverageTreatmentEffect(target, model.network.middle)
        given = {**UNIFORM, "layout": "NLC"}
        for units in ("channel", "layer"):
            assert face.attribute(images, donors, units=units, **given)[0].shape == (1, 64, 4)
        grid = Layout("NLC", grid=(8, 8))
        assert face.attribute(images, donors, units="block", block_size=4, **{**given, "layout": grid})[1].effect.shape[1] == 4
        if mirror_axes:
            with pytest.raises(ValueError, match="mirror_axes: windows are flipped, and where a unit"):
                face.attribute(images, donors, units="token", **given)
        else:
            assert face.attribute(images, donors, units="token", **given)[1].effect.shape[1] == 64
