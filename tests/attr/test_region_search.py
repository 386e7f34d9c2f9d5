"""Sufficient and necessary regions: planted cases, all subsets, held-out donors, intervals, windows, refusals."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from window_cases import Local

from captum_causalseg import (
    PatchBank,
    SegmentationTarget,
    WindowedModel,
    necessary_region,
    regions,
    sufficient_region,
)
from captum_causalseg.evaluation.planted import load_shortcut_case

FACES = {"sufficient": sufficient_region, "necessary": necessary_region}
SHAPES = {2: (2, 4), 3: (2, 2, 2)}


class Score(nn.Module):
    """A function of the pixels ``(N, P)``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, image):
        return self.function(image.flatten(1))


def found(kind, function, d=2, n=1, **arguments):
    image = torch.ones(n, 1, *SHAPES[d])
    donors = torch.rand(20, 1, *SHAPES[d], generator=torch.Generator().manual_seed(0)) / 10
    return FACES[kind](Score(function), image, **{"baselines": donors, "block_size": 1, **arguments})


def units(region):
    return [one.units for one in region]


class TestPlanted:
    """The smallest sets are known."""

    @pytest.mark.parametrize("offset", [0, 10])
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("d", [2, 3])
    def test_both_are_needed(self, d, sign, offset):
        """Also where the score does not fall to 0, and where it grows when the image is replaced."""

        def both(pixels):
            return offset + sign * pixels[:, [2, 5]].amin(1)

        enough = found("sufficient", both, d, alternatives=3)
        assert units(enough) == [(2, 5)]
        assert enough.share_reached == 1
        assert enough.score == enough.observed_score == offset + sign
        assert enough.mask.shape == (1, 1, *SHAPES[d])
        assert enough.mask.flatten().nonzero().flatten().tolist() == [2, 5]
        needed = found("necessary", both, d, alternatives=3)
        assert sorted(units(needed)) == [(2,), (5,)]
        for one in (enough, needed, *needed.alternatives):
            assert one.reached
            assert one.smallest
            assert one.share_interval[0] <= one.share_reached <= one.share_interval[1]

    @pytest.mark.parametrize("d", [2, 3])
    def test_either_is_enough(self, d):
        def either(pixels):
            return pixels[:, [2, 5]].amax(1)

        assert sorted(units(found("sufficient", either, d, alternatives=3))) == [(2,), (5,)]
        assert units(found("necessary", either, d, alternatives=3)) == [(2, 5)]

    def test_groups_stand_in_for_each_other(self):
        def groups(pixels):
            return torch.maximum(pixels[:, [0, 1, 2]].amin(1), pixels[:, [5, 6]].amin(1))

        assert units(found("sufficient", groups, alternatives=1)) == [(5, 6), (0, 1, 2)]
        needed = found("necessary", groups, alternatives=5)
        assert len(needed.units) == 2
        assert set(needed.units) & {5, 6}
        assert set(needed.units) & {0, 1, 2}
        assert len(needed.alternatives) == 1, "of the pair, none is left then"

    def test_shares_of_what_adds_up(self):
        """Weights 5, 3, 2 of single donors: all is exact."""

        def weighted(pixels):
            return pixels[:, :3] @ torch.tensor([0.5, 0.3, 0.2])

        for kind in FACES:
            for share, expected in ((0.5, (0,)), (0.55, (0, 2)), (0.75, (0, 1)), (0.95, (0, 1, 2)), (1.0, (0, 1, 2))):
                region = found(kind, weighted, share=share, baselines=0.0)
                assert len(region.units) == len(expected), (kind, share)
                assert region.n_draws == 1
                assert region.share_interval == (region.share_reached, region.share_reached)
                assert region.share_reached >= share - 1e-6

    def test_of_the_score_itself(self):
        def offset(pixels):
            return 10 + pixels[:, [2, 5]].amin(1)

        assert found("sufficient", offset, share=0.9, share_of="score").units == (), "all replaced has more than 0.9 of it"
        region = found("sufficient", offset, share=0.95, share_of="score", baselines=0.0)
        assert region.units == (2, 5)
        assert region.share_reached == 1
        lost = found("necessary", offset, share=0.05, share_of="score", baselines=0.0)
        assert len(lost.units) == 1
        assert lost.share_reached == pytest.approx(1 / 11)

    def test_nothing_to_take_shares_of(self):
        region = found("sufficient", lambda pixels: 0 * pixels[:, 0] + 1)
        assert region.units == ()
        assert not region.reached
        assert np.isnan(region.share_reached)
        assert region.reason == "replacing all units does not clearly change the score"


@pytest.mark.parametrize("kind", FACES)
@pytest.mark.parametrize("seed", range(4))
def test_no_smaller_of_all_subsets_of_eight_units(kind, seed):
    """Any function of which units are there, single donors."""
    table = torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, 256))
    table[0], table[255] = 0, 1
    powers = 2 ** torch.arange(8)

    def score(pixels):
        return table[((pixels > 0.5).long() * powers).sum(1)]

    share = 0.8
    everything = [one for size in range(9) for one in itertools.combinations(range(8), size)]
    kept = [float(table[sum(2**unit for unit in one)]) for one in everything]
    reached = [len(one) for one, has in zip(everything, kept) if has >= share]
    if kind == "necessary":
        reached = [8 - len(one) for one, has in zip(everything, kept) if 1 - has >= share]
    region = found(kind, score, share=share, baselines=0.0)
    assert len(region.units) == min(reached)
    assert region.smallest
    assert region.complete


class TestHeldOut:
    def test_what_holds_with_the_donors_that_were_searched_with_alone_is_not_reached(self):
        """Donors to judge by have 1 at pixel 5, which the score must not have; those to search with have 0."""
        first, second = PatchBank(torch.arange(20.0).view(20, 1, 1, 1)).split(0.5, 0.5, seed=4)
        unit = (slice(0, 1), slice(0, 1))
        bound = second.bind(torch.zeros(1, 1, 1, 1))
        to_judge = [int(bound.read(0, unit, k)) for k in range(10)]
        donors = torch.zeros(20, 1, *SHAPES[2])
        donors[to_judge, 0, 1, 1] = 1
        image = torch.ones(1, 1, *SHAPES[2])
        image[0, 0, 1, 1] = 0
        region = sufficient_region(
            Score(lambda pixels: pixels[:, 2] * (1 - pixels[:, 5])), image, donors, block_size=1, seed=4, alternatives=2
        )
        assert first.n_images == 10
        assert region.units == (2,)
        assert not region.reached
        assert region.share_reached == 0
        assert region.reason == "it was with the donors that were searched with, and is not with others"
        assert region.alternatives == ()

    @pytest.mark.parametrize("baselines", ["bank", "image"])
    def test_no_donor_is_met_in_both(self, baselines):
        met: list[set[float]] = [set(), set()]
        judging = False

        def score(pixels):
            met[judging].update(pixels.flatten().tolist())
            return pixels[:, :4].mean(1)

        generator = torch.Generator().manual_seed(1)
        image, bank = torch.rand(1, 1, 6, 6, generator=generator), torch.rand(30, 1, 6, 6, generator=generator)
        given = {"baselines": PatchBank(bank) if baselines == "bank" else None, "block_size": 2, "n_draws": 4, "share": 0.5}
        region = sufficient_region(Score(score), image, **given)
        # What is shown is the first of the draws that were judged by.
        judged = set(region.image[~region.mask].tolist())
        assert not region.mask.all()
        if baselines == "bank":
            assert judged <= set(bank.flatten().tolist())
            first, _ = PatchBank(bank).split(0.5, 0.5, seed=0)
            bound, unit = first.bind(image), (slice(0, 1), slice(0, 1))
            searched = {float(bound.read(0, unit, k)) for k in range(bound.population(0, unit))}
            assert not searched & judged
        else:
            assert judged <= set(image.flatten().tolist())

    def test_intervals_hold_the_mean_over_the_held_out_donors(self):
        weights, held = torch.tensor([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), []
        image = torch.ones(1, 1, *SHAPES[2])
        bank = torch.rand(40, 1, *SHAPES[2], generator=torch.Generator().manual_seed(2))
        for seed in range(30):
            region = sufficient_region(
                Score(lambda pixels: pixels @ weights), image, bank, block_size=1, share=0.6, n_draws=10, seed=seed
            )
            _, second = PatchBank(bank, placement="aligned").split(0.5, 0.5, seed=seed)
            bound = second.bind(image)
            mean = torch.stack(
                [bound.mean(0, (slice(r, r + 1), slice(c, c + 1))).flatten()[0] for r in range(2) for c in range(4)]
            )
            kept = region.mask.flatten()
            score = float((torch.where(kept, 1.0, mean) * weights).sum())
            share = float(((1 - mean) * weights)[kept].sum() / ((1 - mean) * weights).sum())
            held.append(
                [
                    low <= exact <= high
                    for (low, high), exact in ((region.score_interval, score), (region.share_interval, share))
                ]
            )
        assert np.mean(held, axis=0).min() >= 0.92


class TestOnModels:
    def case(self, d=2, n=1):
        torch.manual_seed(0)
        spatial = (24, 24) if d == 2 else (8, 20, 8)
        image, bank = torch.rand(n, 1, *spatial), PatchBank(torch.rand(8, 1, *spatial) / 3)
        roi = regions.box(spatial, start=2, size=4)
        return SegmentationTarget.from_prediction(Local(d).eval(), image, roi=roi), image, bank

    @pytest.mark.parametrize("kind", FACES)
    @pytest.mark.parametrize("d", [2, 3])
    def test_what_cannot_reach_the_region_of_interest_is_no_candidate_and_changes_nothing(self, d, kind):
        target, image, bank = self.case(d)
        region = FACES[kind](target, image, bank, output=1, block_size=4, n_draws=6, exclude=None, support="always")
        grid = regions.grid(image.shape[2:], 4)
        assert region.n_candidates < len(grid.unique())
        assert region.settings["window"] is not None
        assert region.reached
        assert torch.equal(region.mask[0, 0], torch.isin(grid, torch.tensor(region.units)))
        reached = torch.zeros(image.shape[2:], dtype=torch.bool)
        reached[tuple(slice(0, 9) for _ in image.shape[2:])] = True
        assert not (region.mask[0, 0] & ~torch.isin(grid, grid[reached])).any()
        changed = torch.where(reached, region.image, torch.rand(image.shape))
        assert not torch.equal(changed, region.image)
        torch.testing.assert_close(target(changed), target(region.image), atol=1e-6, rtol=0)

    def test_what_is_shown_is_the_image_in_the_region_and_donors_elsewhere(self):
        target, image, bank = self.case()
        asked = {"output": 1, "block_size": 4, "n_draws": 4, "share": 0.8, "support": None}
        shown, other = (FACES[kind](target, image, bank, **asked) for kind in FACES)
        roi = torch.isin(regions.grid((24, 24), 4), regions.grid((24, 24), 4)[2:6, 2:6].unique())  # the blocks that touch it
        assert torch.equal(shown.image[shown.mask], image[shown.mask])
        assert torch.equal(shown.image[..., roi], image[..., roi])
        assert (shown.image[~shown.mask & ~roi] <= 1 / 3).all()
        assert torch.equal(other.image[~other.mask], image[~other.mask])
        assert (other.image[other.mask] <= 1 / 3).all()

    def test_each_example_of_a_batch_has_its_own(self):
        target, image, bank = self.case(n=2)
        asked = {"output": 1, "block_size": 4, "n_draws": 4, "exclude": None, "support": None}
        both = necessary_region(target, image, bank, **asked)
        assert isinstance(both, tuple)
        for n, one in enumerate(both):
            alone = SegmentationTarget.from_prediction(target.model, image[n : n + 1], roi=regions.box((24, 24), 2, 4))
            expected = necessary_region(alone, image[n : n + 1], bank, **asked)
            assert one.units == expected.units
            assert one.score == pytest.approx(expected.score, abs=1e-5)
            assert one.mask.shape == (1, 1, 24, 24)

    @pytest.mark.parametrize("support", ["always", None])
    def test_one_of_several_regions_of_interest(self, support):
        """They have a window each; of the other one, nothing is run."""
        torch.manual_seed(1)
        network, image, bank = Local(2).eval(), torch.rand(1, 1, 48, 48), PatchBank(torch.rand(8, 1, 48, 48) / 3)
        rois = torch.zeros(2, 48, 48, dtype=torch.bool)
        rois[0, 1:4, 1:4] = rois[1, -8:-4, -8:-4] = True
        asked = {"block_size": 4, "n_draws": 6, "share": 0.8, "support": support}
        both, alone = (
            necessary_region(SegmentationTarget.from_prediction(network, image, roi=roi), image, bank, output=output, **asked)
            for roi, output in ((rois, (1, 1)), (rois[1], 1))
        )
        assert both.units == alone.units
        assert both.score == pytest.approx(alone.score, abs=1e-6)
        if support == "always":
            assert both.n_candidates == alone.n_candidates < 143
            assert sum(both.settings["interventions"].values()) == sum(alone.settings["interventions"].values())

    def test_progress_is_shown_and_nothing_is_left_behind(self, capfd):
        target, image, bank = self.case()
        state = torch.random.get_rng_state()
        sufficient_region(target, image, bank, output=1, block_size=4, n_draws=4, show_progress=True)
        assert "Sufficient region attribution: 100%" in capfd.readouterr().err
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not target.model._forward_hooks

    def test_batches_do_not_matter(self):
        target, image, bank = self.case()
        asked = {"output": 1, "block_size": 4, "n_draws": 4, "beam": 2}
        first, second = (sufficient_region(target, image, bank, perturbations_per_eval=size, **asked) for size in (1, 64))
        assert first.units == second.units
        assert first.score == pytest.approx(second.score, abs=1e-6)

    def test_windows_give_the_region_of_the_whole(self):
        torch.manual_seed(3)
        network, image = Local(2).eval(), torch.rand(1, 1, 16, 24)
        model = WindowedModel(network, patch_size=(16, 16), starts=[(0, 0), (0, 8)], weight=torch.ones(16, 16))
        target = SegmentationTarget(
            model, roi=regions.box((16, 24), start=2, size=4), reference=(image[:, 0] > 0.5).long(), metric="soft_dice"
        )
        bank = PatchBank(torch.rand(6, 1, 16, 24))
        asked = {"output": 1, "block_size": 4, "n_draws": 4, "share": 0.8}
        in_windows = sufficient_region(target, image, bank, **asked)
        whole = sufficient_region(target, image, bank, support=None, **asked)
        assert in_windows.units == whole.units
        assert in_windows.score == pytest.approx(whole.score, abs=1e-5)
        assert "windows" in in_windows.settings["forwards"]

    def test_a_random_model_meets_its_noise_in_pairs(self):
        class Noisy(nn.Module):
            def forward(self, image):
                return torch.cat([-image, image], 1) * 8 - 4 + torch.randn(image.shape[0], 2, 1, 1)

        image = torch.full((1, 1, 4, 4), 0.2)
        image[..., :2, :2] = 0.9
        target = SegmentationTarget(
            Noisy(),
            roi=torch.ones(4, 4, dtype=torch.bool),
            reference=(image[:, 0] > 0.5).long(),
            metric="soft_dice",
            n_samples=2,
        )
        region = necessary_region(target, image, 0.2, output=1, block_size=2, exclude=None, n_draws=8, share=0.5)
        assert region.units == (0,)
        assert region.n_draws == 8

    def test_several_inputs(self):
        class Two(nn.Module):
            def forward(self, image, other):
                return torch.minimum(image.flatten(1)[:, 1], other.flatten(1)[:, 0])

        inputs = torch.ones(1, 1, 1, 3), torch.ones(1, 2)
        region = sufficient_region(Two(), inputs, (torch.rand(8, 1, 1, 3) / 9, 0.0), block_size=1)
        assert region.units == (1, 3)
        assert [mask.flatten().tolist() for mask in region.mask] == [[False, True, False], [True, False]]
        assert [one.shape for one in region.image] == [one.shape for one in inputs]


def test_the_planted_shortcut_of_a_trained_network_is_in_both_regions():
    """A letter in the corner decides whether it segments the lesion."""
    pytest.importorskip("nilearn")
    case = load_shortcut_case(0)
    asked = {"block_size": 8, "n_draws": 4, "max_forwards": 512}
    found = {kind: face(case.target(), case.images, case.donors, **asked) for kind, face in FACES.items()}
    assert case.marker_unit in found["sufficient"].units
    assert found["necessary"].units == (case.marker_unit,)
    assert found["necessary"].reached


class TestBudget:
    def test_it_is_kept_and_said(self):
        def both(pixels):
            return pixels[:, [2, 5]].amin(1)

        free = found("sufficient", both, n_draws=8)
        assert free.complete
        assert sum(free.settings["interventions"].values()) == free.settings["forwards"]["interventions"] + 16
        least = 2 * 8 + 2 * 8 + 2 * 8
        short = found("sufficient", both, n_draws=8, max_forwards=least)
        assert sum(short.settings["interventions"].values()) <= least
        assert not short.complete
        assert {2, 5} <= set(short.units)
        assert short.reached
        with pytest.raises(ValueError, match=f"max_forwards: expected at least {least} for the 8 units of example 0"):
            found("sufficient", both, n_draws=8, max_forwards=least - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "share: expected"),
        ({"share": 1.1}, "share: expected"),
        ({"share_of": "dice"}, 'share_of: expected "span" or "score"'),
        ({"alternatives": -1}, "alternatives: expected"),
        ({"beam": 0}, "beam: expected"),
        ({"n_draws": 1}, "n_draws: expected"),
        ({"max_forwards": 3}, "max_forwards: expected at least 144"),
        (
            {"baselines": torch.zeros(3, 1, 2, 4)},
            "baselines: expected at least 4 donors of every unit, .* unit 0 of example 0 has 3",
        ),
        ({"baselines": PatchBank(torch.zeros(3, 1, 9, 9))}, "baselines: expected at least 4 donor images, .* got 3"),
        ({"output": 3}, "output: "),
        ({"share_of": "score", "sign": -1}, "share_of: a share of the score is one of a positive score .* example 0 has -1"),
        ({"shapes": 3}, ".*shapes"),
    ],
)
@pytest.mark.parametrize("kind", FACES)
def test_bad_arguments(kind, arguments, message):
    given = {name: value for name, value in arguments.items() if name != "sign"}
    sign = arguments.get("sign", 1)
    with pytest.raises((ValueError, TypeError), match=message):
        found(kind, lambda pixels: sign * pixels[:, 2], **given)


def test_a_distance_has_no_share_of_its_own():
    image = torch.rand(1, 1, 12, 12)
    target = SegmentationTarget.from_prediction(Local(2).eval(), image, roi=regions.box((12, 12), 4, 4), metric="hausdorff_95")
    with pytest.raises(ValueError, match=r"share_of: .* \"span\" goes with every score"):
        sufficient_region(target, image, torch.rand(6, 1, 12, 12), output=1, block_size=4, share_of="score")
