"""Joint effects across the rooms: stochastic models, sliding windows, several inputs, cohorts, and intervals that hold the truth."""

import functools

import joint_oracle as oracle
import numpy as np
import pytest
import torch
from cohort_study import images as study_images
from cohort_study import load_model, make_cases, make_target
from torch import nn
from window_cases import Local, pixels

from captum_causalseg import (
    AverageTreatmentEffect,
    JointTreatmentEffect,
    LayerJointTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    regions,
)
from captum_causalseg.cohort import explain_cohort
from captum_causalseg.engine.contexts import donors_in_rounds
from captum_causalseg.target.scorer import as_scorer
from tests.interventions.test_windows import Normed, by_monai, seeded, two


class Noisy(nn.Module):
    """Each answer of its own: noise per pixel, and what comes of it."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(1, 3, 3, padding=1).double(), nn.Conv2d(3, 1, 1).double()

    def forward(self, x):
        return self.second(torch.sin(3 * self.first(x + 0.3 * torch.randn_like(x))))


class TestStochasticModels:
    def case(self):
        image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        donors = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        target = SegmentationTarget(
            Noisy(), roi=regions.box((8, 8), 0, 4), metric="logit_mean", n_samples=2, activation="sigmoid"
        )
        return target, image, donors

    def test_a_permutation_meets_one_noise_with_and_without_intervention(self):
        target, image, donors = self.case()
        scorer, observed = as_scorer(target), target(image)
        _, stats = JointTreatmentEffect(target).attribute(
            image, donors, block_size=4, n_draws=6, exclude=None, seed=3, return_statistics=True
        )
        mask = regions.grid((8, 8), 4)[None, None]
        ids = mask.unique().tolist()
        numbers = {unit: oracle.drawn_donors(3, unit, 3, 6) for unit in ids}
        noise = donors_in_rounds(np.random.default_rng((3, 1, 3)), [1024], 6)[:, 0].tolist()

        def worth(draw, chosen):
            changed = oracle.replaced(image, mask, donors, {unit: numbers[unit][draw] for unit in chosen})
            with_it, without = (scorer.sampled([noise[draw]], one) for one in (changed, image))
            return (observed - (without - with_it) if chosen else observed).detach().reshape(-1).numpy()

        pairs = oracle.values_of_pairs(worth, ids, n_pairs=3, seed=3)
        np.testing.assert_allclose(stats.effect[0], [pairs[unit].mean() for unit in ids], atol=1e-12)

    def test_batches_do_not_matter_and_values_add_up(self):
        target, image, donors = self.case()
        found = [
            JointTreatmentEffect(target).attribute(
                image, donors[:1], block_size=4, n_draws=8, exclude=None, perturbations_per_eval=size, return_statistics=True
            )[1]
            for size in (2, 64)
        ]
        torch.testing.assert_close(found[0].effect, found[1].effect, atol=1e-12, rtol=0)
        noise = donors_in_rounds(np.random.default_rng((0, 1, 3)), [1024], 8)[:, 0].tolist()
        scorer = as_scorer(target)
        gone = torch.stack([scorer.sampled([state], image) - scorer.sampled([state], donors[:1]) for state in noise])
        assert abs(float(found[0].effect.sum()) - float(gone.detach().mean())) < 1e-10

    def test_layers(self):
        target, image, donors = self.case()
        layer = LayerJointTreatmentEffect(target, target.model.first)
        found = [
            layer.attribute(image, donors, n_draws=8, perturbations_per_eval=size, return_statistics=True)[1]
            for size in (1, 64)
        ]
        torch.testing.assert_close(found[0].effect, found[1].effect, atol=1e-12, rtol=0)
        whole = layer.attribute(image, donors, n_draws=8, units="layer", return_statistics=True)[1]
        # The same random states; donors of the whole are those of its first channel.
        assert float(found[0].standard_error.min()) > 0
        assert float((found[0].effect.sum() - whole.effect.sum()).abs()) < 4 * float(whole.standard_error)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("context", ["shapley", "banzhaf"])
def test_windows_of_a_sliding_window_model_against_the_literal_loop(d, context):
    spatial, block = ((20, 18), 6) if d == 2 else ((12, 10, 8), 4)
    model, image, donors = by_monai(seeded(lambda: Normed(d)), 8), pixels(*spatial), pixels(*spatial, count=3)
    target = SegmentationTarget.from_prediction(model, image, roi=two(spatial, 2), metric="soft_dice")
    _, stats = JointTreatmentEffect(target).attribute(
        image, donors, target=(1, 0), block_size=block, exclude=None, context=context, n_draws=4, return_statistics=True
    )
    assert stats.settings["windows"]["per_image"] > 1
    assert (stats.status == Status.OUTSIDE_SUPPORT).any()
    mask = regions.grid(spatial, block)[None, None]
    ids = mask.unique().tolist()
    q = None if context == "shapley" else 0.5
    pairs = oracle.literal(oracle.scorer(target), image, mask, donors, ids, q=q, n_draws=4)
    expected = np.stack([pairs[unit].mean(0) for unit in ids])
    np.testing.assert_allclose(stats.effect[0].flatten(1), expected, atol=3e-6)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_along_a_permutation_only_windows_that_hold_the_next_unit_are_run(size):
    """As many as the same draws of single units take, however the sets fall into batches."""
    model, image, donors = by_monai(seeded(Normed), 8), pixels(20, 18), pixels(20, 18, count=3)
    target = SegmentationTarget.from_prediction(model, image, roi=two((20, 18), 2), metric="soft_dice")
    settings = {
        "target": (1, 0),
        "block_size": 6,
        "exclude": None,
        "n_draws": 4,
        "n_screening_draws": 0,
        "perturbations_per_eval": size,
        "return_statistics": True,
    }
    _, joint = JointTreatmentEffect(target).attribute(image, donors, **settings)
    _, single = AverageTreatmentEffect(target).attribute(image, donors.repeat(2, 1, 1, 1), sampling="uniform", **settings)
    assert (single.n_draws[single.hypotheses] == 4).all()
    assert joint.settings["forwards"]["windows"] == single.settings["forwards"]["windows"]


@pytest.mark.parametrize("size", [1, 3, 16])
def test_of_regions_far_apart_only_the_windows_that_the_next_unit_reaches_are_run(size):
    torch.manual_seed(0)
    network, image, donors = Local(2).eval(), pixels(48, 48), pixels(48, 48, count=3)
    target = SegmentationTarget.from_prediction(network, image, roi=two((48, 48)), metric="soft_dice")
    settings = {
        "target": (1, 0),
        "block_size": 6,
        "exclude": None,
        "n_draws": 4,
        "n_screening_draws": 0,
        "perturbations_per_eval": size,
        "support": "always",
        "return_statistics": True,
    }
    _, joint = JointTreatmentEffect(target).attribute(image, donors, **settings)
    _, single = AverageTreatmentEffect(target).attribute(image, donors.repeat(2, 1, 1, 1), sampling="uniform", **settings)
    assert len(joint.settings["roi_windows"]) == 2
    assert joint.settings["forwards"]["interventions"] == single.settings["forwards"]["interventions"]
    mask = regions.grid((48, 48), 6)[None, None]
    reaching = [int(unit) for unit in joint.unit_ids[joint.hypotheses[0].flatten(1).any(1)]]
    pairs = oracle.literal(oracle.scorer(target), image, mask, donors, reaching, n_draws=4)
    found = joint.effect[0].flatten(1)[reaching]
    np.testing.assert_allclose(found, np.stack([pairs[unit].mean(0) for unit in reaching]), atol=3e-6)


def test_several_inputs_whose_units_are_shared():
    def score(x, y):
        return torch.tanh(x.flatten(1).sum(1) * y.flatten(1).sum(1)) + x[:, 0, 0, 0] * y[:, 0, 1]

    image, vector = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2)
    donors = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2)
    masks = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2), torch.tensor([3, 4]).view(1, 1, 2)
    attr, stats = JointTreatmentEffect(score).attribute(
        (image, vector), donors, feature_mask=masks, n_draws=8, exclude=None, return_statistics=True
    )
    populations = {0: (3, 1), 1: (3, 1), 2: (3, 1), 3: (3, 3), 4: (1, 3)}
    numbers = {u: donors_in_rounds(np.random.default_rng((0, u)), p, 8).tolist() for u, p in populations.items()}

    def worth(draw, chosen):
        changed = [image.clone(), vector.clone()]
        for unit in chosen:
            for slot in range(2):
                here = masks[slot] == unit
                changed[slot][here] = donors[slot][numbers[unit][draw][slot]][None][here]
        return score(*changed).double().numpy()

    pairs = oracle.values_of_pairs(worth, range(5), n_pairs=4)
    np.testing.assert_allclose(stats.effect[0], [pairs[u].mean() for u in range(5)], atol=1e-6)
    assert [one.shape for one in attr] == [image.shape, vector.shape]
    assert float(attr[0][0, 0, 1, 1]) == float(attr[1][0, 0, 0])


def test_a_cohort(tmp_path):
    settings = {
        "baselines": PatchBank(study_images(5, seed=1)),
        "target": 1,
        "block_size": 8,
        "n_draws": 6,
        "context": "banzhaf",
    }
    study = explain_cohort(
        make_cases(3), make_target, method=JointTreatmentEffect, out=tmp_path / "study", load_model=load_model, **settings
    )
    model = load_model()
    for case in make_cases(3):
        stats = study.statistics(case["id"])
        _, expected = JointTreatmentEffect(make_target(case, model)).attribute(
            case["image"][None], **settings, return_statistics=True
        )
        assert torch.equal(stats.effect.nan_to_num(), expected.effect.nan_to_num())
        assert stats.settings["context"] == "banzhaf"
    with pytest.raises(ValueError, match="shards: contexts are made of all units"):
        explain_cohort(
            make_cases(3),
            make_target,
            method=JointTreatmentEffect,
            out=tmp_path / "parts",
            load_model=load_model,
            shards=2,
            **settings,
        )
    with pytest.raises(ValueError, match="context"):
        explain_cohort(
            make_cases(3),
            make_target,
            method=JointTreatmentEffect,
            out=tmp_path / "study",
            load_model=load_model,
            **settings | {"context": "shapley"},
        )


class Steps(nn.Module):
    """Hard Dice of sixteen pixels, each of which is on where a weighted sum of twelve units is above 0; two units do nothing."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weights = torch.randn(12, 16, generator=generator) * torch.rand(12, 1, generator=generator) ** 2
        self.weights[4:6] = 0

    def logits(self, x):
        return x.flatten(1) @ self.weights

    def forward(self, x):
        found, reference = self.logits(x) > 0, self.reference
        overlap, sizes = (found & reference).sum(1), found.sum(1) + reference.sum(1)
        return 2 * overlap / sizes.clamp_min(1)


@functools.cache
def steps(context):
    """The network, the image, its donors, and every unit's effect from a run of 16000 draws."""
    model, generator = Steps(), torch.Generator().manual_seed(7)
    image, donors = torch.randn(1, 1, 3, 4, generator=generator), torch.randn(40, 1, 3, 4, generator=generator)
    model.reference = model.logits(image) > 0
    settings = {"block_size": 1, "context": context, "exclude": None, "return_statistics": True, "support": None}
    _, long = JointTreatmentEffect(model).attribute(image, donors, n_draws=16_000, perturbations_per_eval=20_000, **settings)
    assert float(long.standard_error.max()) < 2e-3
    return model, image, donors, settings, long.effect[0].numpy()


@pytest.mark.parametrize("context", ["shapley", "banzhaf"])
@pytest.mark.parametrize("n_draws", [8, 20, 50])
def test_intervals_hold_the_effects_of_a_long_run(context, n_draws):
    model, image, donors, settings, truth = steps(context)
    runs = 200
    _, stats = JointTreatmentEffect(model).attribute(
        image.expand(runs, -1, -1, -1),
        donors,
        n_draws=n_draws,
        seed=list(range(1, runs + 1)),
        perturbations_per_eval=100,
        **settings,
    )
    lower, upper = (end.numpy() for end in stats.confidence_interval(0.95))
    held = (lower <= truth) & (truth <= upper)
    alive = np.abs(truth) > 0.005
    assert alive.sum() >= 6
    assert held.mean() >= 0.92
    assert held[:, alive].mean() >= 0.92
    error = stats.effect.numpy() - truth
    ratio = np.sqrt((stats.standard_error.numpy()[:, alive] ** 2).mean() / (error[:, alive] ** 2).mean())
    assert 0.8 <= ratio <= 1.5, "neither too short nor wide for nothing"


def test_units_that_do_nothing_are_seldom_significant():
    model, image, donors, settings, _ = steps("shapley")
    _, stats = JointTreatmentEffect(model).attribute(
        image.expand(200, -1, -1, -1), donors, n_draws=20, seed=list(range(1, 201)), perturbations_per_eval=100, **settings
    )
    assert (stats.effect[:, 4:6] == 0).all()
    assert not stats.significant()[:, 4:6].any()


def test_antithetic_pairs_pay():
    """The same number of draws without reversal has larger errors."""
    model, image, donors, settings, truth = steps("shapley")

    errors = []
    for context in (
        "shapley",
        lambda generator, ids: generator.permuted(np.arange(len(ids))) < generator.integers(len(ids) + 1),
    ):
        _, stats = JointTreatmentEffect(model).attribute(
            image.expand(200, -1, -1, -1),
            donors,
            n_draws=20,
            seed=list(range(1, 201)),
            perturbations_per_eval=100,
            **settings | {"context": context},
        )
        errors.append(float(((stats.effect.numpy() - truth) ** 2).mean()))
    assert errors[0] < 0.9 * errors[1]


def test_far_units_are_dummies_and_a_set_is_run_on_its_window():
    torch.manual_seed(0)
    image, bank = torch.rand(1, 1, 64, 64), PatchBank(torch.rand(4, 1, 64, 64))
    target = SegmentationTarget.from_prediction(
        Local(2).eval(), image, roi=regions.box((64, 64), start=8, size=8), metric="soft_dice"
    )
    found = [
        JointTreatmentEffect(target).attribute(image, bank, target=1, n_draws=6, support=support, return_statistics=True)[1]
        for support in ("auto", None)
    ]
    assert found[0].settings["window"] is not None
    outside = found[0].status == Status.OUTSIDE_SUPPORT
    torch.testing.assert_close(found[0].effect[~outside], found[1].effect[~outside], atol=2e-6, rtol=0, equal_nan=True)
    assert (found[0].effect[outside] == 0).all()
    assert found[1].effect[outside].abs().max() < 1e-6
    assert found[0].n_forwards < found[1].n_forwards / 3
