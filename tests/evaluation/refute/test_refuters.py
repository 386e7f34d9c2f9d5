"""Refuters: an honest estimate survives them, and a dishonest one does not."""

import math

import numpy as np
import pytest
import torch
from refutation_cases import OPTIONS, SPATIAL, case, look_up, run_on_table, shifted
from torch import nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    Constant,
    JointTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerJointTreatmentEffect,
    PatchBank,
    SameImage,
    SegmentationTarget,
    regions,
)
from captum_causalseg.demo import load_brain_slices, load_demo_network
from captum_causalseg.evaluation.refute import REFUTERS, refute


@pytest.mark.parametrize("d", [2, 3])
def test_an_honest_estimate_survives_everything(d):
    target, images, donors = case(d)
    ate, bank = AverageTreatmentEffect(target), PatchBank(donors)
    report = refute(ate, images, bank, 1, n_draws=15, **OPTIONS[d])
    names = ["placebo", "recompute", "split", "subset", "seed", "crossed", "dose", "weights"]
    assert [one.name for one in report.refutations] == names == [name for name in REFUTERS if name != "joints"]
    verdicts = dict.fromkeys(names, "pass") | {"dose": "reported"}
    assert {one.name: one.verdict for one in report.refutations} == verdicts, str(report)
    assert report.passed
    direct = ate.attribute(images, baselines=bank, target=1, n_draws=15, return_statistics=True, **OPTIONS[d])[1]
    torch.testing.assert_close(report.statistics.effect, direct.effect, equal_nan=True, rtol=0, atol=0)
    assert report.n_forwards == report.statistics.n_forwards + sum(one.n_forwards for one in report.refutations)
    assert all(one.n_units >= 3 and one.n_forwards > 0 and one.statistic >= 0 for one in report.refutations)


@pytest.mark.parametrize("d", [2, 3])
def test_an_honest_estimate_of_a_layer_survives_everything(d):
    target, images, donors = case(d, n=2)
    layer = LayerAverageTreatmentEffect(target, target.model[1])
    options = {"n_draws": 12, "units": "block", "block_size": 4}
    reports = [
        refute(layer, images, given, 1, seed=1, **options) for given in (donors, ActivationBank(list(donors), batch_size=7))
    ]
    for report in reports:
        verdicts = {name: "pass" for name in REFUTERS if name != "joints"} | {"dose": "inconclusive"}
        assert {one.name: one.verdict for one in report.refutations} == verdicts, str(report)
        assert all(one.n_units >= 5 for one in report.refutations if one.name != "dose")
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
    assert {one.verdict for one in report.refutations} == {"pass", "reported"}, str(report)


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


def test_effects_that_are_wrong_fail_the_placebo():
    target, images, donors = case(2, metric="logit_mean")
    for face, *arguments in ((AverageTreatmentEffect, target), (LayerAverageTreatmentEffect, target, target.model[0])):
        report = refute(shifted(face, 1e-3, *arguments), images, donors, 1, refuters=["placebo"], n_draws=2)
        (found,) = report.refutations
        assert found.verdict == "fail"
        assert found.statistic == pytest.approx(1e-3)
        assert not report.passed
        assert "have an effect, up to" in found.message


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


def test_nothing_that_reaches_the_roi_is_nothing_to_test():
    model = nn.Conv2d(1, 2, 1)
    image = torch.rand(1, 1, 16, 16)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=4))
    report = refute(AverageTreatmentEffect(target), image, torch.rand(9, 1, 16, 16), 1, block_size=4, n_draws=5)
    assert {one.verdict for one in report.refutations} == {"inconclusive"}
    assert report["placebo"].message == "no unit can reach the RoI"


SINGLE = ["recompute", "crossed", "dose"]
"""What is about single effects."""


@pytest.mark.parametrize("of_layer", [False, True], ids=["image", "layer"])
@pytest.mark.parametrize("context", ["shapley", "banzhaf"])
def test_joint_effects_are_tried_by_what_makes_sense_of_them(of_layer, context):
    target, images, donors = case(2, metric="soft_dice")
    options = {"n_draws": 24, "context": context} | ({} if of_layer else {"block_size": 4})
    face = LayerJointTreatmentEffect(target, target.model[0]) if of_layer else JointTreatmentEffect(target)
    report = refute(face, images, donors, 1, **options)
    assert [one.name for one in report.refutations] == ["placebo", "split", "subset", "seed", "weights"]
    assert report["placebo"].verdict == report["split"].verdict == report["seed"].verdict == "pass", str(report)
    assert report["placebo"].statistic == 0
    assert report.passed
    assert report.statistics.settings["context"] == context
    asked = refute(face, images, donors, 1, refuters=SINGLE, **options)
    for one in asked.refutations:
        assert one.verdict == "inconclusive"
        assert one.message.startswith("it is about single effects: ")
        assert one.n_forwards == 0


def test_joint_effects_that_are_wrong_do_not_survive():
    target, images, donors = case(2, metric="soft_dice")
    options = {"n_draws": 16, "block_size": 4}
    always = shifted(JointTreatmentEffect, 0.1, target)
    assert refute(always, images, donors, 1, refuters=["placebo"], **options)["placebo"].verdict == "fail"

    class TooSure(JointTreatmentEffect):
        """Half of what it says is chance."""

        def attribute(self, *given, seed=0, **options):
            attribution, statistics = super().attribute(*given, seed=seed, **options)
            noise = torch.randn(statistics.effect.shape[1], generator=torch.Generator().manual_seed(seed))
            statistics.effect = statistics.effect + 10 * statistics.standard_error.nan_to_num().amax() * noise.double()[:, None]
            return attribution, statistics

    assert refute(TooSure(target), images, donors, 1, refuters=["seed"], **options)["seed"].verdict == "fail"


def test_halves_of_a_small_bank_whose_donors_are_drawn_again_and_again_are_not_said_to_differ():
    """Of few donors each draw is known well, but the halves are other donors."""
    image, verdicts = torch.zeros(1, 1, 2, 4, dtype=torch.float64), []
    for seed in range(12):
        donors = torch.randn(12, 1, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        joint = JointTreatmentEffect(lambda x: x.flatten(1).sum(1))
        report = refute(joint, image, donors, block_size=1, n_draws=60, support=None, seed=seed, refuters=["split"])
        verdicts.append(report["split"].verdict)
    assert verdicts.count("fail") <= 2
    assert refute(joint, image, donors[:6], block_size=1, n_draws=60, refuters=["split"])["split"].verdict == "inconclusive"
