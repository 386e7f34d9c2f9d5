"""Planted causes: the formula against every intervention made one by one."""

import itertools

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, PdCR, regions
from captum_causalseg.evaluation.planted import PlantedCause, PlantedNetwork, planted_case

SHAPES = {
    "2D": {"spatial_shape": (40, 48), "roi_size": 10, "block_size": 8},
    "2D, remainders": {"spatial_shape": (45, 51), "roi_size": (9, 17), "block_size": (8, 7)},
    "3D": {"spatial_shape": (20, 20, 16), "roi_size": 4, "block_size": 4},
    "1D": {"spatial_shape": (160,), "roi_size": 30, "block_size": 8},
}


def hard_dice(logits, roi):
    """The reference is the whole RoI."""
    found = (torch.sigmoid(logits[:, 0]) > 0.5) & roi
    return 2 * found.flatten(1).sum(1).double() / (found.flatten(1).sum(1) + roi.sum())


def every_intervention(case, example):
    """Each block's mean loss of Dice over all donors, pasted one by one; NaN for blocks that touch the RoI."""
    image, donors = case.images[example : example + 1], bank(case)
    observed = hard_dice(case.model(image), case.roi)
    effects = []
    for unit in range(int(case.units.max()) + 1):
        block = case.units == unit
        if (block & case.roi).any():
            effects.append(float("nan"))
            continue
        corner = block.nonzero().amin(0).tolist()
        extent = (block.nonzero().amax(0) - block.nonzero().amin(0) + 1).tolist()
        losses = []
        for donor in donors:
            # A smaller block at the image's edge takes any part of the donor.
            for shift in itertools.product(*(range(full - length + 1) for full, length in zip(donor.shape[1:], extent))):
                changed = image.clone()
                changed[(..., *(slice(a, a + n) for a, n in zip(corner, extent)))] = donor[
                    (slice(None), *(slice(a, a + n) for a, n in zip(shift, extent)))
                ]
                losses.append(float(observed - hard_dice(case.model(changed), case.roi)))
        effects.append(float(np.mean(losses)))
    return torch.tensor(effects, dtype=torch.float64)


def bank(case):
    """The donors themselves, through the public face of a donor source."""
    bound = case.donors.bind(case.images)
    box = case.causes[0].box
    return torch.stack([bound.read(0, box, number) for number in range(bound.population(0, box))])


@pytest.mark.parametrize("name", SHAPES)
def test_the_formula_is_the_mean_over_every_intervention(name):
    case = planted_case(**SHAPES[name], n_examples=2, n_donors=5, dark_share=0.4, seed=3)
    for example in range(2):
        torch.testing.assert_close(every_intervention(case, example), case.effects, atol=1e-12, rtol=0, equal_nan=True)


def test_the_formula_by_hand():
    # RoI of 256 pixels; 64 and 32 support, 16 harm: 240 are right. A quarter of the donors is dark.
    case = planted_case(shares=(1 / 4, 1 / 8, 1 / 16), n_donors=8, dark_share=0.25)
    assert int(case.roi.sum()) == 256
    assert case.dark_share == 0.25

    def dice(right):
        return 2 * right / (right + 256)

    found = case.effects[list(case.cause_units)]
    expected = [0.25 * (dice(240) - dice(176)), 0.25 * (dice(240) - dice(208)), 0.25 * (dice(240) - dice(256))]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=0)
    assert expected[0] > expected[1] > 0 > expected[2]
    assert int((case.effects != 0).sum()) == 3 + 4  # NaN is not 0: the RoI covers four blocks
    assert case.effects.isnan().nonzero().flatten().tolist() == case.units[case.roi].unique().tolist()
    assert float(case.target()(case.images)) == pytest.approx(dice(240), abs=1e-6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("metric", "tolerance"), [("dice", 1e-6), ("soft_dice", 1e-4)])
def test_a_drained_bank_gives_the_true_effects(name, metric, tolerance):
    case = planted_case(**SHAPES[name], supporting=3, harming=2, n_examples=3, n_donors=6, dark_share=1 / 3, seed=1)
    ate = AverageTreatmentEffect(case.target(metric))
    for options in ({}, {"sampling": "uniform", "support": None}):
        attr, stats = ate.attribute(
            case.images,
            baselines=case.donors,
            block_size=SHAPES[name]["block_size"],
            n_draws=10_000,
            n_screening_draws=0,
            return_statistics=True,
            **options,
        )
        expected = case.effects.expand(3, -1)
        torch.testing.assert_close(stats.effect.double(), expected, atol=tolerance, rtol=0, equal_nan=True)
        torch.testing.assert_close(attr, case.effects_of_map(), atol=tolerance, rtol=0)


@settings(max_examples=25)
@given(
    supporting=st.integers(0, 4),
    harming=st.integers(0, 3),
    n_donors=st.integers(1, 9),
    dark_share=st.floats(0, 1),
    roi_size=st.integers(5, 14),
    seed=st.integers(0, 2**31),
)
def test_any_case_behaves_as_its_formula_says(supporting, harming, n_donors, dark_share, roi_size, seed):
    case = planted_case(
        (48, 56), roi_size, 8, supporting, harming, seed=seed, n_donors=n_donors, dark_share=dark_share, n_examples=1
    )
    assert abs(case.dark_share - dark_share) <= 0.5 / n_donors + 1e-12
    observed = hard_dice(case.model(case.images), case.roi)
    nonzero = case.effects.nan_to_num().nonzero().flatten().tolist()
    assert sorted(nonzero) == (sorted(case.cause_units) if case.dark_share > 0 else [])
    for cause, unit in zip(case.causes, case.cause_units):
        losses = []
        for donor in bank(case):
            changed = case.images.clone()
            changed[(0, slice(None), *cause.box)] = donor
            losses.append(float(observed - hard_dice(case.model(changed), case.roi)))
        assert np.mean(losses) == pytest.approx(float(case.effects[unit]), abs=1e-12)
        assert np.sign(float(case.effects[unit])) == (cause.sign if case.dark_share > 0 else 0)


def test_shares_of_sum_one_use_up_the_region():
    # A sixth of 10 pixels is 1.67: six times 2 would be too many.
    case = planted_case((160,), 10, 8, 6, 0, shares=[1 / 6] * 6)
    assert sorted(int((case.model.parts == cause).sum()) for cause in range(6)) == [1, 1, 2, 2, 2, 2]


def test_causes_are_far_from_the_region_and_on_the_grid():
    for seed in range(20):
        case = planted_case(supporting=5, harming=5, seed=seed)
        rows, columns = case.roi.nonzero().T
        for cause, unit in zip(case.causes, case.cause_units):
            inside = torch.zeros_like(case.roi)
            inside[cause.box] = True
            assert torch.equal(inside, case.units == unit)
            gaps = [
                max(int(places.min()) - (start + size), start - 1 - int(places.max()))
                for places, start, size in zip((rows, columns), cause.start, cause.size)
            ]
            assert max(gaps) >= 8
        assert len(set(case.cause_units)) == 10


def test_gradients_have_the_signs_of_the_effects():
    case = planted_case((20, 20, 20), 4, 4, supporting=2, harming=2, n_examples=2)
    attr = GradientTreatmentEffect(case.target()).attribute(case.images, baselines=case.donors, block_size=4)
    assert torch.equal(attr.sign(), case.effects_of_map().sign())
    # They rank the causes as the truth does, too.
    units = [cause.box for cause in case.causes]
    found = torch.stack([attr[(0, 0, *box)].mean() for box in units])
    assert found.argsort().tolist() == case.effects[list(case.cause_units)].argsort().tolist()


def test_other_methods_see_the_same_signs():
    case = planted_case(harming=2)
    occluded = Occlusion(case.target()).attribute(case.images, sliding_window_shapes=(1, 8, 8), strides=(1, 8, 8))
    outside = ~case.roi
    assert torch.equal(occluded[0, 0][outside].sign(), case.effects_of_map()[0, 0][outside].sign())
    published = PdCR(case.target()).attribute(case.images, baselines=case.donors, n_screening_draws=20, n_draws=60)
    assert torch.equal(published.sign(), case.effects_of_map().sign())


def test_cases_are_reproducible_and_leave_the_random_state_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    several = planted_case(n_examples=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    again, one, other = planted_case(n_examples=3, seed=5), planted_case(seed=5), planted_case(seed=6)
    assert torch.equal(several.images, again.images)
    assert torch.equal(several.images[:1], one.images)
    assert several.causes == one.causes
    assert torch.equal(bank(several), bank(one))
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(several.images[0], several.images[1])
    assert len(several) == 3
    assert several.images.dtype == torch.float32
    assert several.effects_of_map().is_contiguous()


def test_nothing_outside_the_region_of_interest_depends_on_anything_far():
    case = planted_case()
    changed = case.images.clone()
    changed[(0, slice(None), *case.causes[0].box)] = 0.1
    there = case.model(case.images) != case.model(changed)
    block = torch.zeros_like(case.roi)
    block[case.causes[0].box] = True
    assert bool((there[0, 0] & case.roi).any())
    assert not bool((there[0, 0] & ~case.roi & ~block).any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supporting": -1}, "supporting: expected at least 0, got -1"),
        ({"n_examples": 0}, "n_examples: expected at least 1, got 0"),
        ({"n_donors": 2.5}, "n_donors: expected an integer"),
        ({"dark_share": 1.5}, r"dark_share: expected a finite number of at least 0 and at most 1, got 1.5"),
        ({"supporting": 200}, "supporting, harming: 201 causes asked for, but only"),
        ({"shares": (0.5,)}, "shares: expected 3, one per cause, got 1"),
        ({"shares": (0.5, 0.5, 0.5)}, "causes: expected shares of at least a pixel each and at most 1 in sum"),
        ({"shares": (0.5, 0.0, 0.1)}, r"shares\[1\]: expected a finite number of more than 0"),
        ({"roi_size": (16, 16, 16)}, "roi_size: expected one integer or 2 of them"),
        ({"roi_size": 100}, "roi_size: the box"),
        ({"block_size": 65}, "block_size: a block of"),
    ],
)
def test_bad_arguments_of_a_case(options, message):
    with pytest.raises(ValueError, match=message):
        planted_case(**options)


@pytest.mark.parametrize(
    ("roi", "causes", "options", "message"),
    [
        (torch.zeros(16, 16), [], {}, r"roi: expected booleans, got torch\.float32"),
        (torch.zeros(16, 16, dtype=torch.bool), [], {}, "roi: expected a boolean mask that is not empty"),
        (None, [PlantedCause((6, 6), (4, 4), 1, 0.5)], {}, "touches the RoI or another cause"),
        (None, [PlantedCause((0, 0), (4, 4), 1, 0.5)] * 2, {}, "touches the RoI or another cause"),
        (None, [PlantedCause((14, 0), (4, 4), 1, 0.5)], {}, "leaves axis 0"),
        (None, [], {"sharpness": 0.0}, "sharpness: expected a positive number, got 0.0"),
    ],
)
def test_bad_arguments_of_a_network(roi, causes, options, message):
    with pytest.raises(ValueError, match=message):
        PlantedNetwork(regions.box((16, 16), 8, 4) if roi is None else roi, causes, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 0), (4, 4), 0, 0.5), r"^sign: expected 1 or -1, got 0$"),
        (((0, 0), (4,), 1, 0.5), r"^size: expected a sequence of lengths, got \(4,\)$"),
        (((0, 0), (4, 4), 1, 0.0), r"^share: expected a finite number of more than 0 and at most 1, got 0\.0$"),
    ],
)
def test_bad_causes(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlantedCause(*arguments)


def test_a_network_refuses_images_of_another_shape():
    network = PlantedNetwork(regions.box((16, 16), 8, 4), [])
    with pytest.raises(ValueError, match=r"images: expected .* spatial shape \(16, 16\), got \(1, 1, 8, 8\)"):
        network(torch.rand(1, 1, 8, 8))
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 1, 16, 16)
