"""Stochastic models: common random numbers, and standard errors that hold what is left of the noise."""

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    Status,
    component_effects,
    refute,
    regions,
)
from captum_causalseg.target.stochastic import seeded

ROI = regions.box((8, 8), 0, 4)


class Ambiguous(nn.Module):
    """The brightness of the image, seen through an ambiguous reader: an offset and a gain of its own at each answer."""

    def __init__(self, offset: float = 2.0, gain: float = 0.0, source: str = "torch") -> None:
        super().__init__()
        self.offset, self.gain, self.source = offset, gain, source
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        first, second = torch.randn(2, dtype=x.dtype) if self.source == "torch" else torch.from_numpy(np.random.randn(2)).to(x)
        bright = x.mean((1, 2, 3), keepdim=True) * self.weight
        return (bright * (1 + self.gain * second) + self.offset * first).expand(-1, 1, *x.shape[2:])


class PerPixel(nn.Module):
    """Noise of the batch's shape, as diffusion models have it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 1, 3, padding=1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + 0.3 * torch.randn_like(x))


def images(n: int = 1) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def target_of(model: nn.Module, **options) -> SegmentationTarget:
    return SegmentationTarget(
        model, **({"roi": ROI, "metric": "logit_mean", "n_samples": 3, "activation": "sigmoid"} | options)
    )


def of(scores: SegmentationTarget, inputs: Tensor, **options):
    given = {"baselines": 0.0, "block_size": 4, "n_draws": 12, "n_screening_draws": 0, "return_statistics": True} | options
    return AverageTreatmentEffect(scores).attribute(inputs, **given)[1]


@pytest.mark.parametrize("source", ["torch", "numpy"])
def test_scores_are_the_mean_over_seeded_answers(source):
    model, x = Ambiguous(source=source), images(3)
    expected = torch.zeros(3, dtype=torch.float64)
    for sample in range(3):
        for n in range(3):
            with seeded(5, 0, sample):
                expected[n] += model(x[n : n + 1])[0, 0, 0, 0].detach() / 3
    torch.testing.assert_close(target_of(model, seed=5)(x).detach(), expected)
    assert not torch.allclose(target_of(model, seed=6)(x).detach(), expected)


def test_the_same_whatever_the_batch_and_the_global_state():
    target, x = target_of(PerPixel()), images(4)
    together = target(x)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(torch.cat([target(one) for one in x.split(1)]), together)
    assert torch.equal(target(x.flip(0)), together.flip(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert together.requires_grad


def test_masks_per_example_travel_along():
    x = images(3)
    rois = torch.stack([regions.box((8, 8), k, 3) for k in range(3)])
    given = target_of(PerPixel(), roi=rois[:, None])(x)
    argument = target_of(PerPixel(), roi="argument")(x, rois)
    torch.testing.assert_close(given, argument)
    torch.testing.assert_close(given[1:2], target_of(PerPixel(), roi=rois[1])(x[1:2]))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("n_samples", [1, 3])
def test_a_deterministic_model_is_unchanged_bit_for_bit(n_samples, caplog):
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    bank = PatchBank(torch.rand(9, 1, 32, 32, generator=torch.Generator().manual_seed(1)))
    found = []
    for samples in (None, n_samples):
        target = SegmentationTarget(
            Counting(), roi=regions.box((32, 32), 8, 8), reference=torch.ones(32, 32), metric="soft_dice", n_samples=samples
        )
        stats = of(target, x, baselines=bank, block_size=8, target=1)
        found.append((target(x), stats))
    (plain, before), (sampled, after) = found
    assert torch.equal(plain, sampled)
    for name in ("effect", "standard_error", "status", "n_draws", "population"):
        assert torch.equal(getattr(before, name).nan_to_num(), getattr(after, name).nan_to_num())
    assert bool((after.status == Status.OUTSIDE_SUPPORT).any())
    assert before.settings["window"] == after.settings["window"]


def test_pairing_takes_the_common_noise_away():
    """The offset is the same in both runs of a pair: nothing of it is left. Unpaired, it would drown the effect."""
    x = images()
    stats = of(target_of(Ambiguous(offset=2.0), n_samples=1), x)
    truth = torch.stack([x[0, 0, r : r + 4, c : c + 4].sum() / 64 for r in (0, 4) for c in (0, 4)])[1:]
    torch.testing.assert_close(stats.effect[0, 1:], truth, rtol=0, atol=1e-9)
    assert float(stats.standard_error[0, 1:].max()) < 1e-9 or bool(stats.standard_error[0, 1:].isinf().all())
    # The same draws without common random numbers.
    unpaired = []
    for draw in range(200):
        with seeded(1, draw):
            model, block = Ambiguous(offset=2.0), x.clone()
            block[..., 4:] = 0
            unpaired.append(float((model(x) - model(block)).mean().detach()))
    assert np.std(unpaired) > 2 > 10 * float(stats.effect[0, 1])


def test_the_standard_error_holds_what_is_left():
    """The gain multiplies the effect: pairs differ. Only one donor, so all of the spread is the model's."""
    x, held, errors, claimed = images(), [], [], []
    truth = torch.stack([x[0, 0, r : r + 4, c : c + 4].sum() / 64 for r in (0, 4) for c in (0, 4)])[1:]
    for seed in range(60):
        # Another seed of the target: other noise altogether.
        stats = of(target_of(Ambiguous(gain=1.0), n_samples=1, seed=seed), x, seed=seed)
        low, high = (end[0, 1:] for end in stats.confidence_interval(0.95))
        held.append(((low <= truth) & (truth <= high)).numpy())
        errors.append((stats.effect[0, 1:] - truth).numpy())
        claimed.append(stats.standard_error[0, 1:].numpy())
    assert np.mean(held) >= 0.9
    ratio = np.sqrt(np.mean(np.square(claimed)) / np.mean(np.square(errors)))
    assert 0.8 <= ratio <= 1.3


def test_a_drained_bank_is_not_exact_then():
    stats = of(target_of(Ambiguous(gain=1.0), n_samples=1), images(), n_draws=50)
    assert float(stats.standard_error[0, 1:].min()) > 0
    assert stats.n_draws[0, 1] == 50


def test_more_samples_per_draw_leave_less():
    few, many = (
        of(target_of(Ambiguous(gain=1.0), n_samples=k), images(), n_draws=30).standard_error[0, 1:].mean() for k in (1, 9)
    )
    assert 0.2 < float(many / few) < 0.55  # a third


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_batches_do_not_matter(sampling):
    x = images(2)
    bank = PatchBank(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    found = [
        of(target_of(PerPixel(), n_samples=2), x[rows], baselines=bank, sampling=sampling, perturbations_per_eval=size)
        for rows, size in ((slice(None), 16), (slice(None), 3), (slice(1, 2), 5))
    ]
    assert found[0].settings["sampling"] == sampling
    torch.testing.assert_close(found[0].effect, found[1].effect, rtol=1e-10, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(found[0].effect[1:], found[2].effect, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_forwards_are_counted():
    model = Ambiguous(gain=1.0)
    target = target_of(model, n_samples=2)
    stats = of(target, images(), n_draws=5)
    assert stats.n_forwards == model.seen
    assert stats.settings["forwards"]["the same noise, no intervention"] > 0


def test_the_placebo_is_exactly_zero():
    report = refute(
        AverageTreatmentEffect(target_of(PerPixel(), n_samples=2)), images(), 0.0, refuters=["placebo"], block_size=4, n_draws=6
    )
    assert report["placebo"].verdict == "pass"
    assert report["placebo"].statistic == 0


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm, self.drop, self.last = (
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.Dropout2d(0.5),
                nn.Conv2d(8, 1, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x))))


def test_dropout_that_is_left_on_stays_on():
    model = Dropping().double().eval()
    model.drop.train()
    stats = of(target_of(model, n_samples=2), images())
    assert float(stats.standard_error[0, 1:].min()) > 0
    assert model.drop.training
    assert not model.norm.training
    # Without samples it is switched off, with a warning.
    with pytest.warns(UserWarning, match="training mode"):
        off = of(target_of(model, n_samples=None), images())
    assert float(off.standard_error[0, 1:].max()) == 0


def test_other_methods_meet_one_noise():
    target, x = target_of(PerPixel(), n_samples=2), images(2)
    first = IntegratedGradients(target).attribute(x, n_steps=4)
    assert torch.equal(first, IntegratedGradients(target).attribute(x, n_steps=4))
    effects = GradientTreatmentEffect(target).attribute(x, 0.0, block_size=4)
    assert bool(effects.isfinite().all())
    hard = SegmentationTarget(nn.Sequential(PerPixel(), nn.Sigmoid()), roi=ROI, reference=torch.ones(8, 8), n_samples=2)
    assert bool(PdCR(hard).attribute(x, 0.0, block_size=4, n_draws=3).isfinite().all())


def test_predictions_are_those_of_the_mean():
    target = SegmentationTarget.from_prediction(PerPixel(), images(), roi=ROI, n_samples=5, seed=3)
    assert torch.equal(target.predict(images()), target.predict(images()))
    assert 0 < float(target(images())) <= 1


class Noisy(nn.Module):
    """Noise before a layer and a gain of its own after it, at each answer; the middle layer is what is intervened on."""

    def __init__(self, before: float = 1.0, gain: float = 0.5) -> None:
        super().__init__()
        self.before, self.gain, self.middle, self.seen = before, gain, nn.Identity(), 0
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        activation = self.middle(torch.cat([x + self.before * torch.randn_like(x[:, :, :1, :1]), 2 * x], dim=1))
        return (1 + self.gain * torch.randn_like(x[:, :, :1, :1])) * activation.sum(1, keepdim=True) * self.weight


def layer_of(target, x, layer, n_draws=12, **options):
    options = {"layer_baselines": 0.0, "n_screening_draws": 0, "seed": 0} | options
    face = LayerAverageTreatmentEffect(target, layer)
    return face.attribute(x, n_draws=n_draws, return_statistics=True, **options)[1]


def test_layers_meet_the_noise_of_the_observed_run():
    """The noise before the layer and the offset after it are common; without a gain nothing of them is left.

    The mean over the RoI falls by that of the channel that is replaced by 0: with the noise that the run itself had.
    """
    model, x = Noisy(before=0.0, gain=0.0), images(2)
    quiet = layer_of(target_of(model, n_samples=1), x, model.middle)
    truth = torch.stack([x[:, 0, :4, :4].mean((1, 2)), 2 * x[:, 0, :4, :4].mean((1, 2))], dim=1)
    torch.testing.assert_close(quiet.effect, truth)
    model = Noisy(before=1.0, gain=0.0)
    stats = layer_of(target_of(model, n_samples=1), x, model.middle, n_draws=200)
    # The second channel does not hold the noise: its effect is exact in each pair.
    torch.testing.assert_close(stats.effect[:, 1], truth[:, 1], rtol=0, atol=1e-9)
    assert float((stats.effect[:, 0] - truth[:, 0]).abs().max()) < 4 / 200**0.5
    assert 0.5 / 200**0.5 < float(stats.standard_error[0, 0]) < 2 / 200**0.5


def test_the_standard_error_of_a_layer_holds_what_is_left():
    x, held, errors, claimed = images(), [], [], []
    truth = torch.stack([x[0, 0, :4, :4].mean(), 2 * x[0, 0, :4, :4].mean()])
    for seed in range(60):
        model = Noisy()
        stats = layer_of(target_of(model, n_samples=2, seed=seed), x, model.middle, seed=seed)
        low, high = (end[0] for end in stats.confidence_interval(0.95))
        held.append(((low <= truth) & (truth <= high)).numpy())
        errors.append((stats.effect[0] - truth).numpy())
        claimed.append(stats.standard_error[0].numpy())
    assert np.mean(held) >= 0.9
    assert 0.8 <= np.sqrt(np.mean(np.square(claimed)) / np.mean(np.square(errors))) <= 1.3


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_batches_do_not_matter_for_layers(sampling):
    model, x = PerPixel(), images(2)
    donors = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # One batch for all donors: what noise they meet is that of their place in it.
    options = {"layer_baselines": ActivationBank(donors, batch_size=32), "sampling": sampling}
    found = [
        layer_of(target_of(model, n_samples=2), x[rows], model.conv, perturbations_per_eval=size, **options)
        for rows, size in ((slice(None), 16), (slice(None), 3), (slice(1, 2), 5))
    ]
    assert found[0].settings["sampling"] == sampling
    assert "replay" in found[0].settings["disabled"]
    torch.testing.assert_close(found[0].effect, found[1].effect, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0].effect[1:], found[2].effect, rtol=1e-10, atol=1e-12)


def test_forwards_of_a_layer_are_counted():
    model = Noisy()
    stats = layer_of(target_of(model, n_samples=2), images(2), model.middle, layer_baselines=images(3))
    assert stats.n_forwards == model.seen
    assert stats.settings["forwards"]["recording the layer"] == 2


def test_the_placebo_of_a_layer_is_exactly_zero():
    model = Noisy()
    face = LayerAverageTreatmentEffect(target_of(model, n_samples=2), model.middle)
    report = refute(face, images(), 0.0, refuters=["placebo"], n_draws=6)
    assert report["placebo"].verdict == "pass"
    assert report["placebo"].statistic == 0


def test_components_of_an_ensemble():
    model = Dropping().double().eval()
    model.drop.train()
    table = component_effects(target_of(model, n_samples=2), images(), baselines=images(5), n_draws=4)
    assert sorted(table["module"]) == ["drop", "first", "last", "norm"]
    # A deterministic model asked for samples is explained as without.
    model.drop.eval()
    sampled, plain = (
        component_effects(target_of(model, n_samples=n), images(), baselines=images(5), n_draws=4) for n in (3, None)
    )
    # That it is deterministic takes some forwards to see, once.
    pd.testing.assert_frame_equal(sampled.drop(columns="forwards"), plain.drop(columns="forwards"))
    assert 0 <= sampled["forwards"].sum() - plain["forwards"].sum() <= 3


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x += torch.randn_like(x)
        return x * self.weight


def test_a_model_that_works_in_place_does_not_add_up_its_noise():
    x = images()
    target = target_of(InPlace(), n_samples=400)
    before = x.clone()
    # One answer's mean over the RoI scatters by 1/4: piled up, the last ones would by 5.
    assert abs(float((target(x) - before[..., :4, :4].mean()).detach())) < 4 * 0.25 / 20
    assert torch.equal(x, before)


def test_what_does_not_go_with_it():
    model = PerPixel()
    with pytest.raises(ValueError, match="the gradient at a layer is not defined for a stochastic model"):
        LayerGradientTreatmentEffect(target_of(model, n_samples=2), model.conv).attribute(images(), layer_baselines=0.0)
    with pytest.raises(ValueError, match="compile, autocast: not for a target with n_samples"):
        AverageTreatmentEffect(target_of(model)).attribute(images(), 0.0, block_size=4, autocast=torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_samples": 0}, "n_samples: expected at least 1, got 0"),
        ({"n_samples": True}, "n_samples"),
        ({"n_samples": 2.0}, "n_samples: expected an integer or None, got 2.0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_numbers_that_make_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        target_of(PerPixel(), **options)
