"""Joint effects of regions: against Captum, against all subsets, against formulas, and against a literal loop."""

import inspect

import joint_oracle as oracle
import numpy as np
import pytest
import torch
from captum.attr import ShapleyValueSampling
from oracle import effect_and_error
from scipy.special import digamma
from window_cases import CONV, Local

from captum_causalseg import AverageTreatmentEffect, JointTreatmentEffect, PatchBank, SegmentationTarget, Status, regions
from captum_causalseg.evaluation.planted import planted_case

BLOCKS = {2: (4, 4), 3: (2, 4, 2)}


def joint(function, inputs, baselines, **arguments):
    plain = {"block_size": 1, "return_statistics": True, "support": None, "exclude": None}
    return JointTreatmentEffect(function).attribute(inputs, baselines, **plain | arguments)


def bent(image):
    """Some function in which everything depends on everything: ``(B, ...)`` to ``(B,)``."""
    x = image.flatten(1)
    return torch.tanh(x @ torch.linspace(-1, 2, x.shape[1])) + x[:, 0] * x[:, 1] * x[:, -1] + (x[:, 2] * x[:, 3]).relu()


class TestAgainstCaptum:
    def test_shapley_values_of_the_same_permutations_and_one_baseline(self):
        image, n_draws = torch.randn(1, 1, 2, 4), 12
        captum = ShapleyValueSampling(bent)
        captum.permutation_generator = lambda n, n_samples: oracle.orders(3, range(n), n_samples // 2)
        mask = torch.arange(8).view(1, 1, 2, 4)
        theirs = captum.attribute(image, baselines=0.25, feature_mask=mask, n_samples=n_draws)
        ours, stats = joint(bent, image, 0.25, n_draws=n_draws, seed=3)
        torch.testing.assert_close(ours, theirs.float(), atol=1e-6, rtol=0)
        assert (stats.n_draws == n_draws).all()


class TestAgainstAllSubsets:
    """Eight units and three donors of each: all combinations, against many draws."""

    @pytest.mark.parametrize(
        ("context", "weight"),
        [
            ("shapley", oracle.shapley_weight(8)),
            ("banzhaf", oracle.binomial_weight(8, 0.5)),
            (0.2, oracle.binomial_weight(8, 0.2)),
            (1, oracle.binomial_weight(8, 1)),
        ],
    )
    def test_estimates_are_unbiased(self, context, weight):
        generator = torch.Generator().manual_seed(0)
        image, donors = torch.randn(8, generator=generator), torch.randn(3, 8, generator=generator)
        worths = oracle.exact_worths(bent, image, donors)
        exact = oracle.exact_effects(worths, 8, weight)
        shape = (1, 1, 2, 4)
        _, stats = joint(
            bent, image.view(shape), donors.view(3, 1, 2, 4), context=context, n_draws=6000, perturbations_per_eval=1000
        )
        effect, error = stats.effect[0].numpy(), stats.standard_error[0].numpy()
        assert np.abs(effect - exact).max() > 0, "an estimate"
        assert (np.abs(effect - exact) < 4 * error).all()
        assert error.max() < 0.1 * np.abs(exact).max()


class TestAgainstTheLiteralLoop:
    @pytest.mark.parametrize("d", [2, 3])
    @pytest.mark.parametrize("context", ["shapley", "banzhaf", 0.3])
    @pytest.mark.parametrize("support", ["auto", None])
    def test_effects_and_errors_of_several_regions_and_classes(self, d, context, support):
        torch.manual_seed(0)
        network = Local(d).eval()
        spatial = (12, 16) if d == 2 else (4, 12, 8)
        block = BLOCKS[d]
        image, donors = torch.rand(1, 1, *spatial), torch.rand(3, 1, *spatial)
        rois = torch.zeros(2, *spatial, dtype=torch.bool)
        rois[(0, *(slice(2, 5) for _ in spatial))] = rois[(1, *(slice(1, 3) for _ in spatial[:-1]), slice(6, 8))] = True
        target = SegmentationTarget(network, roi=rois, reference=(image[:, 0] > 0.5).long(), metric="soft_dice")
        _, stats = joint(
            target, image, donors, block_size=block, target=(0, 0), context=context, n_draws=10, support=support, seed=5
        )
        mask = regions.grid(spatial, block)[None, None]
        units = mask.unique().tolist()
        q = {"shapley": None, "banzhaf": 0.5}.get(context, context)
        pairs = oracle.literal(oracle.scorer(target), image, mask, donors, units, q=q, n_draws=10, seed=5)
        expected = np.stack([pairs[unit].mean(0) for unit in units])
        found = stats.effect[0].flatten(1).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-6)
        outside = (stats.status[0].flatten(1) == Status.OUTSIDE_SUPPORT).numpy()
        assert outside.any() == (support == "auto")
        assert (found[outside] == 0).all()
        assert (stats.standard_error[0].flatten(1).numpy()[outside] == 0).all()
        if support is None:
            return
        for k in range(4):
            mine = [unit for unit in units if not outside[unit, k]]
            _, errors = effect_and_error([pairs[unit][:, k].tolist() for unit in mine], [np.inf] * len(mine))
            # The common scale of variances of five pairs is too small by this.
            errors = np.array(errors) * np.sqrt(2 / np.exp(digamma(2)))
            np.testing.assert_allclose(stats.standard_error[0].flatten(1)[mine, k], errors, rtol=2e-2)

    @pytest.mark.parametrize("support", ["always", None])
    def test_regions_with_other_excluded_units_are_games_of_their_own(self, support):
        """Each is run in its own window alone. (Of few donors, some sets would be alike by chance, and run once.)"""
        torch.manual_seed(1)
        edge = 16 if support is None else 48
        network, image, donors = Local(2).eval(), torch.rand(1, 1, edge, edge), torch.rand(60, 1, edge, edge)
        rois = torch.zeros(2, edge, edge, dtype=torch.bool)
        rois[0, 1:3, 1:3] = rois[1, -7:-4, -7:-4] = True
        settings = {"reference": (image[:, 0] > 0.5).long(), "metric": "soft_dice"}
        asked = {"block_size": 4, "exclude": "roi", "n_draws": 6, "support": support}
        both, first, second = (
            joint(SegmentationTarget(network, roi=roi, **settings), image, donors, target=output, **asked)[1]
            for roi, output in ((rois, (0, 0)), (rois[0], 0), (rois[1], 0))
        )
        for k, one in enumerate((first, second)):
            torch.testing.assert_close(both.effect[..., k], one.effect, atol=1e-6, rtol=0, equal_nan=True)
            assert torch.equal(both.status[..., k], one.status)
        forwards = [one.settings["forwards"]["interventions"] for one in (both, first, second)]
        assert forwards[0] == forwards[1] + forwards[2]

    def test_examples_with_seeds_and_units_of_their_own(self):
        images, donors = torch.randn(2, 1, 2, 4), torch.randn(5, 1, 2, 4)
        mask = torch.stack([torch.arange(8), torch.arange(8) // 2 * 2]).view(2, 1, 2, 4)
        _, stats = joint(bent, images, donors, block_size=None, feature_mask=mask, n_draws=8, seed=[3, 4])
        for n, units in enumerate((range(8), (0, 2, 4, 6))):
            pairs = oracle.literal(
                oracle.scorer(bent), images[n : n + 1], mask[n : n + 1], donors, units, n_draws=8, seed=3 + n
            )
            found = [float(stats.effect[n, unit]) for unit in units]
            np.testing.assert_allclose(found, [pairs[unit].mean() for unit in units], atol=1e-6)
        assert (stats.status[1, 1::2] == Status.ABSENT).all()


@pytest.mark.parametrize("d", [2, 3])
class TestPlantedFormulas:
    """Units of one element, present (1) or replaced by 0: worths are known in closed form."""

    def image(self, d, m=4):
        return torch.ones(1, 1, *(1,) * (d - 1), m)

    def test_either_of_two_is_enough(self, d):
        def either(x):
            x = x.flatten(1)
            return torch.maximum(x[:, 0], x[:, 1])

        for context, each in (("shapley", 1 / 2), ("banzhaf", 1 / 2), (0.25, 1 / 4), (0, 0)):
            _, stats = joint(
                either, self.image(d), 0.0, context=context, n_draws=2000 if context else 4, perturbations_per_eval=4096
            )
            found, error = stats.effect[0].numpy(), stats.standard_error[0].numpy()
            assert (np.abs(found[:2] - each) <= 4 * error[:2]).all()
            assert (found[2:] == 0).all()
        assert float(stats.effect.abs().max()) == 0, "single effects do not see it"

    def test_both_of_two_are_needed(self, d):
        def both(x):
            x = x.flatten(1)
            return torch.minimum(x[:, 0], x[:, 1]) + 2 * x[:, 3]

        for context, each in (("shapley", 1 / 2), ("banzhaf", 1 / 2), (0.25, 3 / 4)):
            _, stats = joint(both, self.image(d), 0.0, context=context, n_draws=2000, perturbations_per_eval=4096)
            found, error = stats.effect[0].numpy(), stats.standard_error[0].numpy()
            assert (np.abs(found[:2] - each) <= 4 * error[:2]).all()
            assert found[2] == 0
            assert found[3] == 2
        _, single = joint(both, self.image(d), 0.0, context=0)
        assert single.effect[0].tolist() == [1, 1, 0, 2], "single effects count it twice"

    def test_a_convolution_whose_score_is_carried_by_either_of_two_regions(self, d):
        """A network sees two far regions through a maximum; the score is 1 where either is bright."""
        conv = CONV[d](1, 1, 1, bias=False)
        conv.weight.data.fill_(1.0)

        def score(x):
            seen = conv(x).flatten(1)
            return seen[:, : seen.shape[1] // 2].amax(1).maximum(seen[:, seen.shape[1] // 2 :].amax(1))

        image = torch.zeros(1, 1, *(4,) * d)
        image.view(-1)[[0, -1]] = 1.0
        _, stats = joint(score, image, 0.0, block_size=2, n_draws=400, perturbations_per_eval=4096)
        ends = stats.effect[0, [0, -1]].numpy()
        assert (np.abs(ends - 0.5) <= 4 * stats.standard_error[0, [0, -1]].numpy()).all()
        assert (stats.effect[0, 1:-1] == 0).all()


class TestAxioms:
    def case(self):
        torch.manual_seed(2)
        network, image = Local(2).eval(), torch.rand(2, 1, 24, 24)
        target = SegmentationTarget(
            network, roi=regions.box((24, 24), start=2, size=5), reference=(image[:, 0] > 0.5).long(), metric="soft_dice"
        )
        return target, image, PatchBank(torch.rand(6, 1, 24, 24))

    def test_values_add_up_to_what_all_units_carry(self):
        target, image, bank = self.case()
        for n_draws in (4, 10):
            _, stats = joint(target, image, bank, block_size=6, target=1, n_draws=n_draws, support="always")
            assert (stats.status == Status.OUTSIDE_SUPPORT).any()
            whole = joint(target, image, bank, block_size=24, target=1, n_draws=4, support="always")[1]
            assert whole.effect.shape[1] == 1
        # One donor: all replaced is that donor image.
        other = torch.rand(1, 1, 24, 24)
        for context in ("shapley",):
            _, stats = joint(target, image, other, block_size=6, target=1, context=context, n_draws=6, support="auto")
            expected = target(image) - target(other.expand(image.shape))
            torch.testing.assert_close(stats.effect.sum(1), expected.double(), atol=1e-6, rtol=0)

    def test_values_add_up_with_several_donors(self):
        image, donors = torch.randn(1, 1, 2, 4), torch.randn(3, 1, 2, 4)
        _, stats = joint(bent, image, donors, n_draws=14)
        numbers = {unit: oracle.drawn_donors(0, unit, 3, 14) for unit in range(8)}
        mask = torch.arange(8).view(1, 1, 2, 4)
        gone = [oracle.replaced(image, mask, donors, {u: numbers[u][draw] for u in range(8)}) for draw in range(14)]
        expected = bent(image) - torch.stack([bent(one) for one in gone]).mean()
        assert abs(float(stats.effect.sum()) - float(expected)) < 1e-6

    def test_what_cannot_reach_the_roi_is_a_dummy(self):
        target, image, bank = self.case()
        attr, stats = joint(target, image, bank, block_size=6, target=1, n_draws=4, support="auto")
        outside = stats.status == Status.OUTSIDE_SUPPORT
        assert outside.any()
        assert (stats.effect[outside] == 0).all()
        assert not stats.hypotheses[outside].any()
        assert (attr[0, 0, 18:, 18:] == 0).all()

    def test_units_that_count_alike_have_like_values(self):
        image = torch.ones(1, 1, 1, 6)
        _, stats = joint(lambda x: x.flatten(1).prod(1), image, 0.0, n_draws=4000, perturbations_per_eval=4096)
        assert (np.abs(stats.effect[0].numpy() - 1 / 6) < 4 * stats.standard_error[0].numpy()).all()

    def test_excluded_units_are_never_replaced(self):
        seen = []

        def score(x):
            seen.append(bool((x[..., :4, :4] == image[..., :4, :4]).all()))
            return x.sum((1, 2, 3))

        image = torch.rand(1, 1, 8, 8)
        roi = torch.zeros(8, 8, dtype=torch.bool)
        roi[1, 1] = True
        attr, stats = joint(score, image, 0.0, block_size=4, exclude=roi, n_draws=4)
        assert all(seen)
        assert int(stats.status[0, 0]) == Status.EXCLUDED
        assert float(attr[0, 0, 0, 0]) == 0
        assert torch.isnan(stats.effect[0, 0])


class TestPlainContext:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"n_draws": 9, "n_screening_draws": 0, "sampling": "uniform"},
            {"n_draws": 20, "precision": 0.05},
            {"n_draws": 1, "decide": 0.01},
            {"n_draws": 16, "allocation": "needed"},
        ],
    )
    def test_no_context_gives_the_numbers_of_the_plain_effect(self, arguments):
        case = planted_case((32, 32), roi_size=8)
        target, n = case.target(), case.images
        arguments = {"seed": 7, "return_statistics": True, **arguments}
        attr, stats = JointTreatmentEffect(target).attribute(n, case.donors, context=0, **arguments)
        plain, single = AverageTreatmentEffect(target).attribute(n, case.donors, **arguments)
        assert torch.equal(attr, plain)
        for name in ("effect", "standard_error", "status", "n_draws", "decision", "test_variance", "adjustment"):
            assert torch.equal(getattr(stats, name).nan_to_num(), getattr(single, name).nan_to_num()), name
        assert stats.n_forwards == single.n_forwards
        assert stats.settings == single.settings | {"context": 0.0}

    def test_defaults_are_those_of_the_plain_face(self):
        single = inspect.signature(AverageTreatmentEffect.attribute).parameters
        ours = inspect.signature(JointTreatmentEffect.attribute).parameters
        theirs_alone = {"n_screening_draws", "screening_threshold", "sampling", "allocation"}
        for name in set(ours) & set(single) - theirs_alone:
            assert ours[name].default == single[name].default, name
        assert set(single) - set(ours) == {"controls"}


class TestHowItIsRun:
    @pytest.mark.parametrize("context", ["shapley", "banzhaf", lambda generator, ids: generator.random(len(ids)) < 0.3])
    def test_batches_do_not_matter(self, context):
        images, donors = torch.randn(2, 1, 2, 4), torch.randn(3, 1, 2, 4)
        found = [
            joint(bent, images, donors, n_draws=8, context=context, perturbations_per_eval=size)[1] for size in (1, 3, 16, 500)
        ]
        for one in found[1:]:
            torch.testing.assert_close(one.effect, found[0].effect, atol=1e-6, rtol=0)
            torch.testing.assert_close(one.standard_error, found[0].standard_error, atol=1e-5, rtol=0)
            assert one.settings["forwards"]["interventions"] == found[0].settings["forwards"]["interventions"]

    def test_forwards_are_those_that_are_documented(self):
        image, donors = torch.randn(1, 1, 2, 4), torch.randn(3, 1, 2, 4)
        _, stats = joint(bent, image, donors, n_draws=10)
        assert stats.settings["forwards"]["interventions"] == 10 * 8
        assert stats.settings["context"] == "shapley"

    def test_a_longer_run_continues_a_shorter_one(self):
        image, donors = torch.randn(1, 1, 2, 4), torch.randn(3, 1, 2, 4)
        short, long = (joint(bent, image, donors, n_draws=n)[1] for n in (4, 8))
        pairs = oracle.literal(oracle.scorer(bent), image, torch.arange(8).view(1, 1, 2, 4), donors, range(8), n_draws=8)
        np.testing.assert_allclose(short.effect[0], [pairs[u][:2].mean() for u in range(8)], atol=1e-6)
        np.testing.assert_allclose(long.effect[0], [pairs[u].mean() for u in range(8)], atol=1e-6)

    def test_a_context_of_ones_own(self):
        seen = []

        def all_left_of_the_unit_that_is_drawn(generator, ids):
            seen.append(ids.tolist())
            return ids < generator.choice(ids)

        image = torch.randn(1, 1, 1, 4)
        _, stats = joint(lambda x: x.flatten(1).prod(1), image, 0.0, context=all_left_of_the_unit_that_is_drawn, n_draws=5)
        assert seen == [[0, 1, 2, 3]] * 5
        assert "all_left_of_the_unit_that_is_drawn" in stats.settings["context"]
        assert (stats.n_draws == 5).all()

    def test_statistics_travel(self, tmp_path):
        case = planted_case((32, 32), roi_size=8)
        _, stats = JointTreatmentEffect(case.target()).attribute(case.images, case.donors, n_draws=8, return_statistics=True)
        stats.save(tmp_path / "one.npz")
        again = type(stats).load(tmp_path / "one.npz")
        assert torch.equal(again.standard_error.nan_to_num(), stats.standard_error.nan_to_num())
        assert again.settings["context"] == "shapley"
        table = stats.to_dataframe()
        known = table[table.status == "ESTIMATED"]
        assert (known.lower < known.effect).all()
        assert (known.p_value.between(0, 1)).all()


class TestGoals:
    def test_precision_is_reached_or_the_budget_used_up(self):
        image, donors = torch.randn(1, 1, 2, 4), torch.randn(3, 1, 2, 4)
        for precision, n_draws in ((0.4, 2000), (1e-4, 50)):
            _, stats = joint(bent, image, donors, n_draws=n_draws, precision=precision, perturbations_per_eval=512)
            lower, upper = stats.confidence_interval()
            reached = float((upper - lower).max()) / 2 <= precision
            used = int(stats.n_draws.max())
            assert reached == (precision == 0.4)
            assert used < n_draws if reached else used in (n_draws, n_draws - 2, n_draws + 2)
            assert stats.settings["precision"] == precision

    def test_decisions(self):
        image = torch.tensor([3.0, 0.0, 1.0, -2.0]).view(1, 1, 1, 4)
        noisy = torch.randn(40, 1, 1, 4) * 0.3
        _, stats = joint(lambda x: x.flatten(1).sum(1), image, noisy, n_draws=60, decide=0.5)
        assert stats.decision[0].tolist() == [1, -1, 1, -1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"n_draws": 2}, "n_draws: expected at least 4, two antithetic pairs, got 2"),
            ({"n_draws": 7}, "n_draws: expected an even number, because draws come in antithetic pairs, got 7"),
            (
                {"n_draws": 1, "context": lambda g, ids: ids > 0},
                "n_draws: expected at least 2, two draws of the context, got 1",
            ),
            ({"context": "owen"}, 'context: expected "shapley", "banzhaf", a number'),
            ({"context": 1.5}, "context: expected"),
            ({"context": True}, "context: expected"),
            ({"context": float("nan")}, "context: expected"),
            ({"n_screening_draws": 3}, "n_screening_draws: only for the plain effect"),
            ({"screening_threshold": 0.1}, "screening_threshold: only for the plain effect"),
            ({"sampling": "stratified"}, "sampling: only for the plain effect"),
            ({"allocation": "needed"}, "allocation: only for the plain effect"),
            ({"context": lambda g, ids: ids}, "context: expected a function that returns booleans of shape (8,)"),
            ({"context": lambda g, ids: ids[1:] > 0}, "context: expected a function that returns booleans of shape (8,)"),
        ],
    )
    def test_what_makes_no_sense(self, arguments, message):
        with pytest.raises(ValueError) as refused:
            joint(bent, torch.randn(1, 1, 2, 4), 0.0, **arguments)
        assert str(refused.value).startswith(message)

    def test_other_libraries_names(self):
        for name in ("n_samples", "n_permutations", "budget"):
            with pytest.raises(TypeError, match=f"{name}: JointTreatmentEffect.attribute.* unexpected keyword"):
                joint(bent, torch.randn(1, 1, 2, 4), 0.0, **{name: 5})

    def test_scores_that_are_not_finite(self):
        def score(x):
            return torch.where(x.flatten(1).abs().sum(1) == 0, torch.nan, x.flatten(1).sum(1))

        with pytest.raises(ValueError, match=r"forward_func: .* not finite .* with units 0, 1, 2, 3 replaced together"):
            joint(score, torch.ones(1, 1, 1, 4), 0.0, n_draws=4)

    def test_what_says_the_same_as_the_context_is_taken(self):
        joint(bent, torch.randn(1, 1, 2, 4), 0.0, n_draws=4, n_screening_draws=0, sampling="uniform")
