"""Refuters: an honest estimate survives them, a dishonest one does not, and they raise few false alarms."""

import copy
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    Constant,
    LayerAverageTreatmentEffect,
    PatchBank,
    SameImage,
    SegmentationTarget,
    regions,
)
from captum_causalseg.demo import load_brain_slices, load_demo_network
from captum_causalseg.evaluation.refute import REFUTERS, Refutation, RefutationReport, refute

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
SPATIAL = {2: (20, 18), 3: (9, 8, 10)}


def network(d):
    """Convolutions with random weights, of a scale at which labels flip here and there; a window of the image is not enough."""
    generator = torch.Generator().manual_seed(d)
    sizes = {2: 5, 3: 3}[d]
    model = nn.Sequential(CONVOLUTIONS[d](1, 4, sizes, padding="same"), nn.Tanh(), CONVOLUTIONS[d](4, 2, sizes, padding="same"))
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / scale)
    return model


def case(d, n=1, metric="dice"):
    """A target with the network's own prediction as the reference, images, and donor images."""
    generator = torch.Generator().manual_seed(10 + d)
    images, donors = (torch.randn(count, 1, *SPATIAL[d], generator=generator) for count in (n, 40))
    roi = regions.box(SPATIAL[d], start=2, size=5)
    return SegmentationTarget.from_prediction(network(d), images, roi=roi, metric=metric), images, donors


OPTIONS = {2: {"block_size": 2}, 3: {"block_size": 2}}


@pytest.mark.parametrize("d", [2, 3])
def test_an_honest_estimate_survives_everything(d):
    target, images, donors = case(d)
    ate, bank = AverageTreatmentEffect(target), PatchBank(donors)
    report = refute(ate, images, bank, 1, n_draws=15, **OPTIONS[d])
    assert [one.name for one in report.refutations] == ["placebo", "split", "subset", "seed", "weights"]
    assert {one.name: one.verdict for one in report.refutations} == dict.fromkeys(REFUTERS, "pass"), str(report)
    assert report.passed
    direct = ate.attribute(images, baselines=bank, target=1, n_draws=15, return_statistics=True, **OPTIONS[d])[1]
    torch.testing.assert_close(report.statistics.effect, direct.effect, equal_nan=True, rtol=0, atol=0)
    assert report.n_forwards == report.statistics.n_forwards + sum(one.n_forwards for one in report.refutations)
    assert all(one.n_units > 5 and one.n_forwards > 0 and one.statistic >= 0 for one in report.refutations)


@pytest.mark.parametrize("d", [2, 3])
def test_an_honest_estimate_of_a_layer_survives_everything(d):
    target, images, donors = case(d, n=2)
    layer = LayerAverageTreatmentEffect(target, target.model[1])
    options = {"n_draws": 12, "units": "block", "block_size": 4}
    reports = [
        refute(layer, images, given, 1, seed=1, **options) for given in (donors, ActivationBank(list(donors), batch_size=7))
    ]
    for report in reports:
        assert {one.verdict for one in report.refutations} == {"pass"}, str(report)
        assert all(one.n_units > 5 for one in report.refutations)
    # Images in a tensor, or read one by one, are split alike.
    assert [(one.verdict, one.statistic) for one in reports[0].refutations] == [
        (one.verdict, one.statistic) for one in reports[1].refutations
    ]


def test_a_trained_network_on_a_brain_survives_everything():
    train, held_out = load_brain_slices().split()
    rows, columns = slice(152, 216), slice(72, 136)
    roi = regions.box((64, 64), start=24, size=16)
    target = SegmentationTarget(load_demo_network(), roi=roi, reference=held_out.labels[12, rows, columns])
    bank = PatchBank(train.images[:, :, rows, columns])
    report = refute(AverageTreatmentEffect(target), held_out.images[12:13, :, rows, columns], bank, 1, n_draws=8)
    assert report.passed, str(report)
    assert {one.verdict for one in report.refutations} == {"pass"}, str(report)


# --- Placebo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("metric", ["dice", "soft_dice", "logit_mean", "cross_entropy"])
@pytest.mark.parametrize("n", [1, 3])
def test_units_replaced_by_themselves_have_exactly_no_effect(d, metric, n):
    """Also where sums in another order or for another batch size differ in the last digits."""
    target, images, donors = case(d, n=n, metric=metric)
    for explainer in (AverageTreatmentEffect(target), LayerAverageTreatmentEffect(target, target.model[0])):
        for per_eval in (1, 16):
            options = {"n_draws": 2, "perturbations_per_eval": per_eval}
            (found,) = refute(explainer, images, donors, 1, refuters="placebo", **options).refutations
            assert (found.verdict, found.statistic, found.threshold) == ("pass", 0.0, 0.0), found


class Noisy(nn.Module):
    """Adds random numbers to what a model returns."""

    def __init__(self, model, size):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x):
        return self.model(x) + self.size * torch.randn(len(x), *(1,) * (x.ndim - 1), dtype=x.dtype)


class Drifting(nn.Module):
    """Remembers how often it was called."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        return self.model(x) * (1 + 0.01 * self.calls)


@pytest.mark.parametrize("kind", [lambda model: Noisy(model, 0.01), Drifting])
def test_a_model_that_is_not_a_function_of_its_input_cannot_even_be_explained(kind):
    target, images, donors = case(2, metric="logit_mean")
    unsound = target.with_model(kind(target.model))
    for explainer in (AverageTreatmentEffect(unsound), LayerAverageTreatmentEffect(unsound, unsound.model.model[0])):
        with pytest.raises(ValueError, match="the same image was answered twice"):
            refute(explainer, images, donors, 1, refuters=["placebo"], n_draws=2)


def shifted(face, by, *arguments):
    """An explainer whose effects are all wrong by so much, per output."""

    class Shifted(face):
        def attribute(self, *given, **options):
            attributions, statistics = super().attribute(*given, **options)
            statistics.effect = statistics.effect + torch.as_tensor(by, dtype=statistics.effect.dtype)
            return attributions, statistics

    return Shifted(*arguments)


def test_effects_that_are_wrong_fail_the_placebo():
    target, images, donors = case(2, metric="logit_mean")
    for face, *arguments in ((AverageTreatmentEffect, target), (LayerAverageTreatmentEffect, target, target.model[0])):
        report = refute(shifted(face, 1e-3, *arguments), images, donors, 1, refuters=["placebo"], n_draws=2)
        (found,) = report.refutations
        assert found.verdict == "fail"
        assert found.statistic == pytest.approx(1e-3)
        assert not report.passed
        assert "have an effect, up to" in found.message


def test_only_the_output_that_the_target_picks_is_tested():
    def scores(x):
        total = x.amax((1, 2, 3))
        return torch.stack([total, 2 * total], 1)

    explainer = shifted(AverageTreatmentEffect, [0.0, 0.1], scores)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    verdicts = [refute(explainer, images, 0.0, output, refuters=["placebo"], block_size=4)["placebo"] for output in (0, 1)]
    assert [(one.verdict, one.n_units) for one in verdicts] == [("pass", 8), ("fail", 8)]


# --- Seeds and halves ------------------------------------------------------------------------------------------------


def look_up(table):
    """A forward function whose interventions have exactly these effects ``(U, D)``: pixel u holding donor d's number.

    Units are pixels, donors numbers along the first axis of a tensor.
    """
    values = torch.from_numpy(table)

    def forward(x):
        donor = x[:, 0].long()
        unit = (donor >= 0).int().argmax(1)
        moved = values[unit, donor.gather(1, unit[:, None])[:, 0].clamp_min(0)]
        return torch.where((donor >= 0).any(1), -moved, 0.0)

    units, donors = table.shape
    numbers = torch.arange(donors, dtype=torch.float64).view(-1, 1, 1).expand(-1, 1, units)
    return forward, torch.full((1, 1, units), -1.0, dtype=torch.float64), numbers


def run_on_table(table, name, seed=0, **options):
    forward, image, numbers = look_up(table)
    options = {"block_size": 1, "sampling": "uniform", "perturbations_per_eval": 4096, "n_screening_draws": 0} | options
    return refute(AverageTreatmentEffect(forward), image, numbers, refuters=[name], seed=seed, **options)


def moderated_by_hand(variances, freedom):
    positive = [value for value in variances if value > 0]
    scale = math.exp(sum(math.log(value) for value in positive) / len(positive))
    return [(3 * scale + freedom * value) / (3 + freedom) for value in variances], 3 + freedom


def corrected_by_hand(p):
    """Benjamini and Hochberg's, as they wrote it: the smallest of p(j) m / j over j >= rank."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, smallest = [0.0] * len(p), 1.0
    for rank in range(len(p), 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * len(p) / rank)
        adjusted[order[rank - 1]] = smallest
    return adjusted


def p_by_hand(difference, squares, freedom):
    """Welch's t-test of a difference whose two parts have these squared standard errors, of equal freedom."""
    total = sum(squares)
    degrees = total**2 / sum(square**2 / freedom for square in squares)
    return 2 * scipy_stats.t.sf(abs(difference) / math.sqrt(total), degrees)


@pytest.mark.parametrize("n_draws", [7, 100])
def test_the_split_is_welchs_test_of_the_two_halves(n_draws):
    """Also where the halves of 12 donors are drained: there is no finite population correction."""
    table = np.random.default_rng(0).normal(size=(5, 24)) ** 3
    found = run_on_table(table, "split", n_draws=n_draws)["split"]
    forward, image, numbers = look_up(table)
    halves = PatchBank(numbers, placement="aligned").split(seed=0)
    ate, plain = AverageTreatmentEffect(forward), {"sampling": "uniform", "n_screening_draws": 0, "block_size": 1}
    both = [
        ate.attribute(image, baselines=half, n_draws=n_draws, seed=seed, return_statistics=True, **plain)[1]
        for seed, half in enumerate(halves)
    ]
    n = min(n_draws, 12)
    assert all((one.n_draws == n).all() for one in both)
    own = [one.sample_variance[0].tolist() for one in both]
    shrunk = [moderated_by_hand(values, n - 1)[0] for values in own]
    p = []
    for u in range(5):
        difference = float(both[0].effect[0, u] - both[1].effect[0, u])
        tests = [(shrunk, n + 2), (own, n - 1)]
        p.append(max(p_by_hand(difference, [values[k][u] / n for k in (0, 1)], freedom) for values, freedom in tests))
    assert found.statistic == pytest.approx(min(corrected_by_hand(p)), rel=1e-9)
    assert (found.n_units, found.threshold) == (5, 0.05)
    assert found.verdict == ("fail" if found.statistic <= 0.05 else "pass")
    assert found.n_forwards == sum(one.n_forwards for one in both)


def test_other_seeds_are_compared_by_welchs_test():
    table = np.random.default_rng(1).normal(size=(6, 30))
    report = run_on_table(table, "seed", n_draws=10)
    forward, image, numbers = look_up(table)
    again = AverageTreatmentEffect(forward).attribute(
        image,
        baselines=numbers,
        block_size=1,
        n_draws=10,
        n_screening_draws=0,
        sampling="uniform",
        seed=1,
        return_statistics=True,
    )[1]
    both = report.statistics, again
    factor = (1 - 10 / 30) / 10
    own = [one.sample_variance[0].tolist() for one in both]
    shrunk = [moderated_by_hand(values, 9)[0] for values in own]
    p = []
    for u in range(6):
        difference = float(both[0].effect[0, u] - both[1].effect[0, u])
        tests = [(shrunk, 12), (own, 9)]
        p.append(max(p_by_hand(difference, [values[k][u] * factor for k in (0, 1)], freedom) for values, freedom in tests))
    assert report["seed"].statistic == pytest.approx(min(corrected_by_hand(p)), rel=1e-9)
    assert report["seed"].n_forwards == again.n_forwards
    assert report["seed"].verdict == ("fail" if report["seed"].statistic <= 0.05 else "pass")


def test_exact_effects_must_be_equal_whatever_the_seed():
    table = np.random.default_rng(1).normal(size=(6, 10))
    found = run_on_table(table, "seed", n_draws=10)["seed"]
    assert (found.verdict, found.statistic, found.n_units) == ("pass", 1.0, 6)
    target, images, donors = case(2, metric="logit_mean")

    class WithItsSeed(AverageTreatmentEffect):
        """Effects that depend on the seed though all donors are used."""

        def attribute(self, *given, seed=0, **options):
            attributions, statistics = super().attribute(*given, seed=seed, **options)
            statistics.effect = statistics.effect * (1 + 0.01 * seed)
            return attributions, statistics

    found = refute(WithItsSeed(target), images, donors, 1, refuters=["seed"], n_draws=40, n_screening_draws=0)["seed"]
    assert (found.verdict, found.statistic) == ("fail", 0.0)
    assert found.message.startswith("two seeds disagree in ")


def test_units_that_were_screened_out_in_either_run_are_not_compared_by_seed():
    table = np.zeros((40, 1000))
    table[:, :200] = 1.0
    report = run_on_table(table, "seed", n_draws=10, n_screening_draws=3)
    left = int((report.statistics.status == 0).sum())
    assert 0 < report["seed"].n_units < left < 40


# Banks under the null: units by donors, donors exchangeable.
NULLS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "rare flips": lambda rng, shape: (rng.random(shape) < 0.1) * 0.02,
    "skewed": lambda rng, shape: rng.exponential(size=shape) ** 2 * rng.choice([0.01, 1.0], (shape[0], 1)),
    "units alike": lambda rng, shape: rng.normal(size=(1, shape[1])) + 0.3 * rng.normal(size=shape),
}


@pytest.mark.parametrize(("name", "null"), [*(("split", null) for null in NULLS), ("seed", "normal"), ("seed", "rare flips")])
def test_false_alarms_are_no_more_frequent_than_alpha(name, null):
    n_runs, alpha = 200, 0.05
    rng = np.random.default_rng(7)
    alarms = 0
    for seed in range(n_runs):
        found = run_on_table(NULLS[null](rng, (8, 60)), name, seed=seed, n_draws=15, alpha=alpha)[name]
        assert found.verdict != "inconclusive"
        alarms += found.verdict == "fail"
    assert alarms <= n_runs * alpha + 3 * math.sqrt(n_runs * alpha * (1 - alpha))


@pytest.mark.parametrize("listed", [False, True])
def test_a_bank_whose_images_are_unlike_fails_the_split(listed):
    """Three images are dark and one is bright: whichever half it falls into, the halves differ. Enough images are no problem."""
    target, images, _ = case(2, metric="logit_sum")
    generator = torch.Generator().manual_seed(0)
    few = 0.05 * torch.randn(4, 1, *SPATIAL[2], generator=generator)
    few[2] += 5
    ate = AverageTreatmentEffect(target)
    verdicts = []
    for bank in (few, few[:2].repeat(2, 1, 1, 1)):
        bank = PatchBank(list(bank) if listed else bank)
        found = refute(ate, images, bank, 1, refuters=["split"], n_draws=30, **OPTIONS[2])["split"]
        verdicts.append((found.verdict, found.statistic <= 0.05))
        assert found.n_units > 5
    assert verdicts == [("fail", True), ("pass", False)]


def test_the_halves_of_a_tuple_of_banks():
    """One input has donors to split, the other a constant, which stays."""

    def scores(x, y):
        return (x[:, :, :4] * 2).sum((1, 2, 3)) + y.sum(1)

    inputs = torch.ones(2, 1, 8, 8), torch.ones(2, 3)
    banks = PatchBank(torch.rand(30, 1, 8, 8)), 0.0
    found = refute(AverageTreatmentEffect(scores), inputs, banks, refuters=["split"], block_size=4, n_draws=10)["split"]
    assert (found.verdict, found.n_units) == ("pass", 2 * (4 + 3))
    pair = torch.rand(20, 1, 8, 8), torch.rand(30, 3)
    found = refute(AverageTreatmentEffect(scores), inputs, pair, refuters=["split", "subset"], block_size=4, n_draws=10)
    assert found["split"].verdict == "pass"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed = nn.Identity()

    def forward(self, x, y):
        return self.mixed(x * y).sum((2, 3))


def test_donor_images_of_two_inputs_stay_together():
    """Their product is 1 in every pair and in no other: were they split apart, the layer would take other values."""
    x = torch.rand(20, 1, 6, 6, dtype=torch.float64) + 0.5
    inputs = torch.full((1, 1, 6, 6), 2.0, dtype=torch.float64), torch.full((1, 1, 6, 6), 2.0, dtype=torch.float64)
    model = TwoInputs()
    layer = LayerAverageTreatmentEffect(model, model.mixed)
    report = refute(layer, inputs, (x, 1 / x), refuters=["split", "seed"], n_draws=5, units="block", block_size=3)
    assert float(report.statistics.effect.min()) == pytest.approx(9 * 3)
    # All draws of a unit are alike then, to rounding.
    assert report["split"].verdict in ("pass", "inconclusive"), str(report)


# --- Subsets ---------------------------------------------------------------------------------------------------------


class Fickle(AverageTreatmentEffect):
    """Effects that depend on how many donors there are."""

    def __init__(self, forward_func, n_donors, change):
        super().__init__(forward_func)
        self.n_donors, self.change = n_donors, change

    def attribute(self, inputs, baselines=None, **arguments):
        attribution, statistics = super().attribute(inputs, baselines=baselines, **arguments)
        if len(baselines) < self.n_donors:
            statistics.effect = self.change(statistics.effect)
        return attribution, statistics


def test_effects_that_depend_on_the_subset_are_refuted():
    table = np.random.default_rng(0).normal(size=(12, 50)) * 0.1 + np.arange(1, 13)[:, None]
    forward, image, numbers = look_up(table)
    options = {"refuters": ["subset"], "block_size": 1, "sampling": "uniform", "n_draws": 20}
    verdicts = {}
    for name, change in (("same", lambda e: e), ("flipped", lambda e: -e), ("shuffled", lambda e: e.flip(1))):
        found = refute(Fickle(forward, 50, change), image, numbers, **options)["subset"]
        verdicts[name] = found.verdict, found.threshold, found.n_units
        if name == "same":
            assert found.statistic == pytest.approx(1.0)
            assert found.message == "rank correlation 1.00 with 80% of the donors, signs of 24 of 24 units agree"
        if name == "flipped":
            assert found.message == "signs of 0 of 24 units agree; unit 0 of example 0 changes its own"
        if name == "shuffled":
            assert found.statistic == pytest.approx(-1.0)
    assert verdicts == {"same": ("pass", 0.7, 12), "flipped": ("fail", 0.7, 12), "shuffled": ("fail", 0.7, 12)}


def test_ranks_of_few_units_are_not_judged():
    table = np.random.default_rng(0).normal(size=(12, 50)) * 0.1
    table[:4] += np.arange(1, 5)[:, None]
    report = run_on_table(table, "subset", n_draws=20, alpha=1e-6)
    assert report["subset"].verdict == "inconclusive"
    assert report["subset"].message == "too few significant units to rank (4); signs of 8 of 8 units agree"
    assert not report.passed
    constant = run_on_table(np.ones((12, 50)), "subset", n_draws=50)["subset"]
    assert (constant.verdict, constant.message[:21]) == ("inconclusive", "all effects are equal")


# --- Weights ---------------------------------------------------------------------------------------------------------


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


# --- Inconclusive ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baselines", "reason"),
    [
        (0.0, r"there are no donor images to split (baselines=0.0)"),
        (None, r"there are no donor images to split (baselines=None)"),
        (Constant(1.0), r"there are no donor images to split (baselines=Constant(1.0))"),
        (SameImage(), r"there are no donor images to split (baselines=SameImage())"),
        (torch.zeros(1, 1, 8, 8), "too few donor images to split (1)"),
        (PatchBank(torch.zeros(1, 1, 8, 8)), "too few donor images to split (1)"),
    ],
)
def test_donors_that_cannot_be_split(baselines, reason):
    ate = AverageTreatmentEffect(lambda x: x.sum((1, 2, 3)))
    report = refute(ate, torch.rand(1, 1, 8, 8), baselines, refuters=["split", "subset"], block_size=4, n_draws=4)
    for one in report.refutations:
        assert (one.verdict, one.message, one.n_units, one.n_forwards) == ("inconclusive", reason, 0, 0)
        assert math.isnan(one.statistic)
    assert not report.passed
    assert str(report).splitlines()[-1].split()[:2] == ["overall", "inconclusive"]


def test_two_images_have_halves_but_no_subset():
    ate = AverageTreatmentEffect(lambda x: x.sum((1, 2, 3)))
    bank = PatchBank(torch.rand(2, 1, 16, 16))
    report = refute(ate, torch.rand(1, 1, 8, 8), bank, refuters=["split", "subset"], block_size=4, n_draws=6)
    assert report["split"].verdict != "inconclusive"
    assert report["subset"].message == "too few donor images to split (2)"


def test_halves_of_one_donor_show_no_spread():
    ate = AverageTreatmentEffect(lambda x: x.sum((1, 2, 3)))
    found = refute(ate, torch.rand(1, 1, 8, 8), torch.rand(2, 1, 8, 8), refuters=["split"], block_size=4)["split"]
    assert (found.verdict, found.message) == ("inconclusive", "no unit's draws show their spread")


def test_a_mean_activation_cannot_be_split():
    target, images, donors = case(2)
    layer = LayerAverageTreatmentEffect(target, target.model[0])
    found = refute(layer, images, ActivationBank(donors, reduction="mean"), 1, refuters=["split"])["split"]
    assert found.message == "there are no donor images to split (baselines=ActivationBank(40 images, reduction='mean'))"


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


def test_nothing_that_reaches_the_roi_is_nothing_to_test():
    model = nn.Conv2d(1, 2, 1)
    image = torch.rand(1, 1, 16, 16)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=4))
    report = refute(AverageTreatmentEffect(target), image, torch.rand(9, 1, 16, 16), 1, block_size=4, n_draws=5)
    assert {one.verdict for one in report.refutations} == {"inconclusive"}
    assert report["placebo"].message == "no unit can reach the RoI"


# --- The call and the report -----------------------------------------------------------------------------------------


def test_masks_per_example_and_additional_arguments_go_along():
    target, images, donors = case(2, n=2)
    reference = target.predict(images).long()[:, 1].roll(1, 0)
    rois = torch.stack([regions.box(SPATIAL[2], start=start, size=4) for start in (2, 8)])[:, None]

    class Scaled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, factor):
            return self.model(x) * factor.view(-1, 1, 1, 1)

    both = SegmentationTarget(Scaled(target.model), roi=rois, reference=reference)
    report = refute(
        AverageTreatmentEffect(both),
        images,
        PatchBank(donors),
        1,
        additional_forward_args=torch.tensor([1.0, 2.0]),
        n_draws=30,
        **OPTIONS[2],
    )
    assert report.passed, str(report)
    assert {one.verdict for one in report.refutations} == {"pass"}


def test_default_baselines_of_the_explainer_are_taken():
    target, images, donors = case(2)
    bank = PatchBank(donors)
    options = {"refuters": ["split"], "n_draws": 6, **OPTIONS[2]}
    given = refute(AverageTreatmentEffect(target), images, bank, 1, **options)
    held = refute(AverageTreatmentEffect(target, baselines=bank), images, None, 1, **options)
    assert given.refutations == held.refutations
    layer = LayerAverageTreatmentEffect(target, target.model[0], layer_baselines=donors)
    assert refute(layer, images, None, 1, refuters=["split"], n_draws=6)["split"].verdict == "pass"


def test_the_same_call_gives_the_same_report_and_leaves_no_trace():
    target, images, donors = case(2)
    options = {"n_draws": 6, **OPTIONS[2]}
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (refute(AverageTreatmentEffect(target), images, PatchBank(donors), 1, **options) for _ in range(2))
    assert first.refutations == second.refutations
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()
    other = refute(AverageTreatmentEffect(target), images, PatchBank(donors), 1, seed=5, **options)
    assert other["split"].statistic != first["split"].statistic


def a_report(*verdicts):
    table = np.ones((2, 3))
    statistics = run_on_table(table, "placebo").statistics
    given = [
        Refutation(f"check {i}", verdict, math.nan if verdict == "inconclusive" else 0.125, 0.05, 7 * i, 10**i, "a finding")
        for i, verdict in enumerate(verdicts)
    ]
    return RefutationReport(given, statistics)


def test_a_report_passes_if_nothing_failed_and_something_passed():
    assert a_report("pass", "inconclusive").passed
    assert not a_report("pass", "fail").passed
    assert not a_report("inconclusive").passed
    assert not a_report("fail").passed


def test_a_report_reads_well():
    report = a_report("pass", "fail", "inconclusive")
    assert str(report) == "\n".join(
        [
            "refuter  verdict       statistic  threshold  units  forwards  finding",
            "-" * 92,
            "check 0  pass              0.125       0.05      0         1  a finding",
            "check 1  fail              0.125       0.05      7        10  a finding",
            "check 2  inconclusive          -       0.05     14       100  a finding",
            "-" * 92,
            f"overall  fail                                            {report.n_forwards:>3}  1 pass, 1 fail, 1 inconclusive",
        ]
    )
    frame = report.to_dataframe()
    assert list(frame.columns) == ["name", "verdict", "statistic", "threshold", "n_units", "n_forwards", "message"]
    assert frame["verdict"].tolist() == ["pass", "fail", "inconclusive"]
    assert frame["n_forwards"].tolist() == [1, 10, 100]
    assert report.n_forwards == 111 + report.statistics.n_forwards
    assert report["check 1"] is report.refutations[1]
    with pytest.raises(KeyError, match="'seed' was not run"):
        report["seed"]
    assert repr(report).startswith("RefutationReport(check 0: pass, check 1: fail, check 2: inconclusive; ")


def test_refuters_of_ones_own(monkeypatch):
    def always(context):
        again = context.estimate(n_draws=2)
        return Refutation("always", "pass", float(again.n_draws.max()), 0.0, 1, again.n_forwards, "as ever")

    monkeypatch.setitem(REFUTERS, "always", always)
    forward, image, numbers = look_up(np.ones((2, 9)))
    report = refute(AverageTreatmentEffect(forward), image, numbers, refuters=["always", "placebo"], block_size=1)
    assert [one.name for one in report.refutations] == ["always", "placebo"]
    assert report["always"].statistic == 2


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"explainer": nn.Flatten()}, TypeError, "explainer: expected an AverageTreatmentEffect or a Layer.*, got Flatten"),
        ({"refuters": ["placebos"]}, ValueError, r"refuters: expected some of \['placebo', .*\], got \['placebos'\]"),
        ({"refuters": []}, ValueError, r"refuters: expected some of .*, got \[\]"),
        ({"alpha": 0.0}, ValueError, "alpha: expected a number between 0 and 1, got 0.0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"seed": [1]}, ValueError, r"seed: expected an integer, got \[1\]"),
        ({"return_statistics": True}, TypeError, "return_statistics: the statistics are in the report"),
        ({"layer_baselines": 0.0}, TypeError, "layer_baselines: give them as baselines"),
        ({"blocksize": 4}, TypeError, "unexpected keyword argument 'blocksize'"),
        ({"n_draws": 0}, ValueError, "n_draws: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_forward(changed, error, message):
    def never(x):
        raise AssertionError("it was run")

    given = {"explainer": AverageTreatmentEffect(never), "inputs": torch.rand(1, 1, 8, 8), "baselines": 0.0} | changed
    with pytest.raises(error, match=message):
        refute(**given)
