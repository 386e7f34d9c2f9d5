"""Banks of activations: recorded once, of every kind of images, refused with the reason."""

import gc

import pytest
import torch
from layer_cases import PLAIN, case

from captum_causalseg import (
    ActivationBank,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    Layout,
    SegmentationTarget,
)


def test_baselines_of_every_kind():
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.middle)
    with torch.no_grad():
        activations = model.middle(torch.sin(6 * model.early(donors)))
    everything = {"target": 1, "n_draws": 6, "n_screening_draws": 0}
    by_images = face.attribute(images, layer_baselines=donors, **everything)
    for same in (activations, ActivationBank(donors), ActivationBank(list(donors), batch_size=4), (activations,)):
        torch.testing.assert_close(face.attribute(images, layer_baselines=same, **everything), by_images, atol=1e-6, rtol=0)
    mean = face.attribute(images, layer_baselines=activations.mean(0, keepdim=True), **everything)
    torch.testing.assert_close(
        face.attribute(images, layer_baselines=ActivationBank(donors, reduction="mean"), **everything), mean, atol=1e-6, rtol=0
    )
    zero = face.attribute(images, layer_baselines=0, **everything)
    torch.testing.assert_close(face.attribute(images, **everything), zero)
    assert not torch.allclose(zero, mean, atol=1e-3)
    constructor = LayerAverageTreatmentEffect(target, model.middle, layer_baselines=donors)
    torch.testing.assert_close(constructor.attribute(images, **everything), by_images)


def test_a_bank_is_recorded_once_per_layer_until_the_weights_change():
    model, images, labels, donors, roi = case(2)
    calls = []
    model.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    bank = ActivationBank(donors, batch_size=4)
    forwards = []
    for i in range(3):
        # A target per image, as in a loop over a data set.
        target = SegmentationTarget(model, roi=roi, reference=labels[i % 2], activation="softmax")
        _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
            images[:1], layer_baselines=bank, target=1, n_draws=1, n_screening_draws=0, return_statistics=True, **PLAIN
        )
        forwards.append(stats.n_forwards)
        if i == 1:
            with torch.no_grad():
                model.early.weight.mul_(1.5)
    # Observed once, while the layer is recorded; five channels; answered again, which checks what replay says as well.
    always = 1 + 5 + 4
    # That the model takes several images is known from the donors, where they are recorded, and tried on two where they are not.
    assert forwards == [always + 6, always + 2, always + 6]
    assert calls.count(4) == 2


def test_large_recordings_go_to_a_file_that_is_gone_with_the_bank(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    arguments = {"target": 1, "n_draws": 6, "n_screening_draws": 0}
    bank = ActivationBank(donors, memory_budget=1000)
    mapped = LayerAverageTreatmentEffect(target, model.middle).attribute(images, layer_baselines=bank, **arguments)
    assert [p.name for p in tmp_path.rglob("*.npy")] == ["activations.npy"]
    torch.testing.assert_close(
        mapped, LayerAverageTreatmentEffect(target, model.middle).attribute(images, layer_baselines=donors, **arguments)
    )
    del bank
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"reduction": "median"}, {"batch_size": 0}, {"memory_budget": -1}])
def test_bad_banks_are_explained(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: expected"):
        ActivationBank(torch.rand(2, 1, 8, 8), **arguments)
    with pytest.raises(ValueError, match="images: expected as many donors for every input"):
        ActivationBank((torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8)))


def matched_by_hand(donor, own, inside, match):
    """Of one channel: the donor's values with the unit's own mean (and spread) over the places ``inside``."""
    b, x = donor.double(), own.double()
    mean_b, mean_x = (v[inside].mean() for v in (b, x))
    scale = 1.0
    if match == "mean_std":
        scale = ((x[inside] - mean_x) ** 2).mean().sqrt() / ((b[inside] - mean_b) ** 2).mean().sqrt()
    return torch.where(inside, (b - mean_b) * scale + mean_x, x).to(own.dtype)


def bent(activation):
    """Units that are no boxes and run through the channels."""
    place = sum(
        torch.arange(n).view([-1 if a == axis else 1 for a in range(activation.ndim - 2)])
        for axis, n in enumerate(activation.shape[2:])
    )
    channel = torch.arange(activation.shape[1]).view(1, -1, *(1,) * (activation.ndim - 2))
    return (place % 3 + 3 * (channel // 2)).long()


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("match", ["mean", "mean_std"])
@pytest.mark.parametrize("units", ["channel", "block", "layer", "bent"])
def test_matched_donors_are_those_made_by_hand_channel_by_channel(d, match, units):
    model, images, labels, donors, roi = case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    with torch.no_grad():
        early = torch.sin(6 * model.early(images))
        own, recorded = model.middle(early), model.middle(torch.sin(6 * model.early(donors)))

        def score(n, activation):
            full = own.clone()
            full[n] = activation
            handle = model.middle.register_forward_hook(lambda *_: full.clone())
            try:
                return target(images)[n, 1]
            finally:
                handle.remove()

        more = {"layer_mask": bent(own)} if units == "bent" else {"units": units}
        more |= {"block_size": 5} if units == "block" else {}
        _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
            images,
            layer_baselines=ActivationBank(donors, match=match),
            target=1,
            n_draws=20,
            n_screening_draws=0,
            return_statistics=True,
            **more,
        )
        assert float(stats.standard_error[..., 1].max()) == 0  # drained
        mask = stats.feature_mask[0].expand(1, *own.shape[1:])[0]
        for n in range(2):
            for u, unit in enumerate(stats.unit_ids.tolist()):
                moved = []
                for donor in recorded:
                    given = own[n].clone()
                    for channel in range(len(given)):
                        inside = mask[channel] == unit
                        if inside.any():
                            given[channel] = matched_by_hand(donor[channel], own[n, channel], inside, match)
                    moved.append(score(n, own[n]) - score(n, given))
                assert float(stats.effect[n, u, 1]) == pytest.approx(float(torch.stack(moved).mean()), abs=2e-6)


def test_the_same_draws_with_and_without():
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.middle)
    plans = [face.plan(images, ActivationBank(donors, match=match), 1, n_draws=4, **PLAIN) for match in (None, "mean")]
    assert [(one.unit, one.donors) for one in plans[0]] == [(one.unit, one.donors) for one in plans[1]]
    raw, matched = (plan[0].read()[0] for plan in plans)
    assert float((raw - raw.mean()).sub(matched - matched.mean()).abs().max()) < 1e-6


@pytest.mark.parametrize("match", ["mean", "mean_std", "histogram"])
def test_the_image_itself_is_a_placebo(match):
    model, images, labels, _, roi = case(2, n=1)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    for units in ({"units": "channel"}, {"units": "block", "block_size": 4}):
        attr = LayerAverageTreatmentEffect(target, model.middle).attribute(
            images, layer_baselines=ActivationBank(images, match=match), target=1, n_draws=3, n_screening_draws=0, **units
        )
        assert float(attr.abs().max()) == 0


def test_the_first_order_effect_knows_of_the_match():
    """Of a score that is linear in the activation, the mean-matched effect is ``<gradient, x - b + mean(b) - mean(x)>``, exactly."""
    model, images, _, donors, _ = case(2)
    weights = torch.rand(5, 12, 10, generator=torch.Generator().manual_seed(3))

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.middle = model.middle

        def forward(self, x):
            return (self.middle(torch.sin(6 * model.early(x))) * weights).sum((1, 2, 3))

    linear, bank = Linear(), ActivationBank(donors, match="mean")
    exact = LayerAverageTreatmentEffect(linear, linear.middle).attribute(images, layer_baselines=bank, n_draws=20)
    first_order = LayerGradientTreatmentEffect(linear, linear.middle).attribute(images, layer_baselines=bank)
    torch.testing.assert_close(first_order[..., 0, 0], exact[..., 0, 0], atol=1e-3, rtol=1e-4)


def test_units_of_one_value_are_refused_before_anything_is_replaced():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 1)
    )
    bank, image = ActivationBank(torch.rand(3, 1, 8, 8), match="mean"), torch.rand(1, 1, 8, 8)
    said = r"^match: unit 0 \(channel\) of an activation \(1, 4, 1, 1\) has one value per channel"
    with pytest.raises(ValueError, match=said):
        LayerAverageTreatmentEffect(model, model[1]).attribute(image, layer_baselines=bank, target=0)

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.mix(x[:, 0]).mean((1, 2))

    tokens = Tokens()
    layer = LayerAverageTreatmentEffect(tokens, tokens.mix)
    asked = {"layer_baselines": bank, "layout": Layout("NLC", grid=(8, 1)), "n_draws": 2}
    with pytest.raises(ValueError, match=r"^match: unit 0 \(token\) of an activation \(1, 8, 8\) has one value per channel"):
        layer.attribute(image, units="token", **asked)
    assert layer.attribute(image, units="channel", **asked).shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r'^match: expected .*"mean"'):
        ActivationBank(torch.rand(3, 1, 8, 8), match="means")


def test_a_match_goes_along():
    bank = ActivationBank(torch.rand(6, 1, 8, 8), match="mean")
    assert repr(bank) == "ActivationBank(6 images, reduction=None, match='mean')"
    assert [one.match for one in (bank.fresh(), bank.chosen([0, 1]), *bank.split())] == ["mean"] * 4
    assert bank.describe()["match"] == "mean"


def test_of_a_stochastic_model_the_match_is_with_the_activation_of_each_answer():
    """With its own mean in every answer a unit keeps its sum, whatever the noise: the effect on a score of sums is 0."""

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.middle = torch.nn.Identity()

        def forward(self, x):
            level = 4 * self.middle(x + 0.3 * torch.randn(len(x), 1, 1, 1)).mean((2, 3), keepdim=True)
            return torch.cat([level + 0 * x, 0 * x], 1)

    model, images, _, donors, roi = Noisy(), *case(2)[1:]
    target = SegmentationTarget(
        model, roi=roi, reference=torch.ones(12, 10).long(), metric="soft_dice", activation="softmax", n_samples=2
    )
    effects = []
    for match in (None, "mean"):
        _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
            images,
            layer_baselines=ActivationBank(donors, match=match),
            target=1,
            n_draws=4,
            n_screening_draws=0,
            return_statistics=True,
        )
        effects.append(float(stats.effect.abs().max()))
    assert effects[0] > 1e-3
    assert effects[1] < 1e-6
