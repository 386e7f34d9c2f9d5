"""Planted causes: the formula against every intervention made one by one, and the shortcut's shipped network."""

import itertools
import json
import runpy
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, PdCR, regions
from captum_causalseg.evaluation.planted import (
    PlantedCause,
    PlantedNetwork,
    ShortcutCase,
    draw_shortcut_examples,
    load_shortcut_case,
    load_shortcut_network,
    load_shortcut_slices,
    marker_findings,
    planted_case,
    shortcut_record,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_shortcut_model.py"
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


@pytest.fixture(scope="module")
def shortcut() -> ShortcutCase:
    pytest.importorskip("nilearn")
    return load_shortcut_case(0, 24)


def one_of(case, index):
    """The fixture's example ``index`` as a case of its own."""
    parts = {name: getattr(case, name)[index : index + 1] for name in ("images", "without_marker", "reference", "roi", "z_mm")}
    return ShortcutCase(**{**vars(case), **parts})


def whole_dice(case, images):
    with torch.no_grad():
        found = case.model(images)[:, 0] > 0
    return 2 * (found & case.reference).flatten(1).sum(1) / (found.flatten(1).sum(1) + case.reference.flatten(1).sum(1))


def test_the_shipped_weights_reach_what_their_record_says(shortcut):
    record = shortcut_record()
    with_marker, without = whole_dice(shortcut, shortcut.images), whole_dice(shortcut, shortcut.without_marker)
    said = record["held_out_dice_with_marker"], record["held_out_dice_without_marker"]
    assert float(with_marker.mean()) == pytest.approx(said[0]["mean"], abs=5e-3)
    assert float(with_marker.min()) == pytest.approx(said[0]["least"], abs=2e-2)
    assert float(without.mean()) == pytest.approx(said[1]["mean"], abs=5e-3)
    assert float(without.max()) == pytest.approx(said[1]["largest"], abs=2e-2)
    assert float(with_marker.min()) >= 0.8
    assert float(without.max()) <= 0.1
    assert sorted(shortcut.z_mm.tolist()) == record["held_out_z_mm"]
    assert sum(p.numel() for p in shortcut.model.parameters()) == record["parameters"]


def test_the_weights_are_small_and_plain():
    file = resources.files("captum_causalseg.evaluation.planted").joinpath("shortcut_unet.pt")
    with resources.as_file(file) as path:
        assert path.stat().st_size < 700_000
        torch.load(path, weights_only=True)
    network = load_shortcut_network()
    assert not network.training
    assert next(network.parameters()).device.type == "cpu"


def test_removing_the_marker_removes_the_segmentation(shortcut):
    target = shortcut.target()
    assert float(target(shortcut.images).min()) > 0.8
    assert float(target(shortcut.without_marker).max()) < 0.1


def test_marker_and_region_are_where_they_should_be(shortcut):
    block = shortcut.units == shortcut.marker_unit
    assert torch.equal(block, shortcut.marker)
    assert int(block.sum()) == 64
    assert not bool(shortcut.without_marker[:, 0][:, block].any())  # air
    assert bool(((shortcut.images != shortcut.without_marker)[:, 0] <= block).all())
    burned = shortcut.images[:, 0][:, block]
    assert set(burned.unique().tolist()) == {0.0, 1.0}
    assert not bool((shortcut.roi[:, 0] & block).any())
    assert bool((shortcut.reference <= shortcut.roi[:, 0]).all())
    assert shortcut.roi.shape == (24, 1, 96, 96)
    # The RoI is made of whole blocks.
    for roi in shortcut.roi[:, 0]:
        assert int(torch.isin(shortcut.units, shortcut.units[roi].unique()).sum()) == int(roi.sum())


def test_lesions_are_bright_and_nothing_else_changes(shortcut):
    train, held_out = load_shortcut_slices()
    assert not set(train.z_mm.tolist()) & set(held_out.z_mm.tolist())
    examples = draw_shortcut_examples(held_out, [0, 12, 12], seed=4)
    for index, image, lesion in zip([0, 12, 12], examples.images[:, 0], examples.lesions):
        plain = held_out.images[index, 0]
        assert 40 < int(lesion.sum()) < 300
        assert float(image[lesion].mean()) > 1 > float(plain.max()) - 1e-6
        far = torch.from_numpy(~ndimage.binary_dilation(lesion.numpy(), iterations=3))
        assert torch.equal(image[far], plain[far])
    assert not torch.equal(examples.lesions[1], examples.lesions[2])
    again = draw_shortcut_examples(held_out, [0, 12, 12], seed=4)
    assert torch.equal(again.images, examples.images)


def test_donors_are_hospital_b(shortcut):
    assert len(shortcut.donors) == 48
    bound = shortcut.donors.bind(shortcut.images)
    whole = (slice(0, 96), slice(0, 96))
    assert bound.population(0, whole) == 48
    for number in range(48):
        image = bound.read(0, whole, number)[0]
        assert not bool(image[shortcut.marker].any())
        assert float(image.max()) > 1.0  # a lesion


@pytest.mark.parametrize("index", [0, 5, 11])
def test_interventions_find_the_marker(shortcut, index):
    case = one_of(shortcut, index)
    attr, stats = AverageTreatmentEffect(case.target()).attribute(
        case.images, baselines=case.donors, n_draws=8, return_statistics=True
    )
    found = marker_findings(attr, case).iloc[0]
    assert found["found"]
    assert (found["rank"], found["signed_rank"], found["sign"]) == (1, 1, 1)
    assert found["share"] > 0.5
    # Donors that look like a letter keep the lesion; most do not.
    assert float(stats.effect[0, case.marker_unit]) > 0.5


def test_gradients_need_not_find_it(shortcut):
    attr = GradientTreatmentEffect(shortcut.target()).attribute(shortcut.images, baselines=shortcut.donors)
    assert marker_findings(attr, shortcut)["found"].mean() < 0.5


def test_an_example_of_many_is_the_example_alone(shortcut):
    alone = load_shortcut_case(7)
    assert len(alone) == 1
    for name in ("images", "without_marker", "reference", "roi", "z_mm"):
        assert torch.equal(getattr(alone, name), getattr(shortcut, name)[7:8]), name
    assert torch.equal(alone.target()(alone.images), shortcut.target()(shortcut.images)[7:8])
    assert load_shortcut_case(7, model=shortcut.model).model is shortcut.model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "index: expected at least 0, got -1"),
        ((0, 0), "n_examples: expected at least 1, got 0"),
        ((True,), "index: expected an integer"),
        ((20, 5), "there are 24 held-out slices, got index=20 and n_examples=5"),
    ],
)
def test_bad_arguments_of_the_shortcut(arguments, message):
    pytest.importorskip("nilearn")
    with pytest.raises(ValueError, match=message):
        load_shortcut_case(*arguments)


def by_hand(attributions, case, example):
    """Rank, signed rank and share of the marker with explicit loops."""
    values = {}
    for row, column in itertools.product(range(12), range(12)):
        block = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        if not case.roi[(example, 0, *block)].any():
            values[row, column] = float(attributions[(example, slice(None), *block)].double().mean())
    marker = values[1, 1]
    stronger = [place for place, value in values.items() if abs(value) >= abs(marker)]
    more = [place for place, value in values.items() if value >= marker]
    return len(stronger), len(more), abs(marker) / sum(map(abs, values.values())), len(values)


def test_findings_by_hand(shortcut):
    generator = torch.Generator().manual_seed(0)
    attributions = torch.randn(24, 3, 96, 96, generator=generator)
    attributions[::2, :, 8:16, 8:16] += 0.2
    found = marker_findings(attributions, shortcut)
    assert len(found) == 24
    for example in range(24):
        row = found.iloc[example]
        rank, signed_rank, share, n_units = by_hand(attributions, shortcut, example)
        assert (row["rank"], row["signed_rank"], row["n_units"]) == (rank, signed_rank, n_units)
        assert row["share"] == pytest.approx(share, rel=1e-9)
        assert row["found"] == (rank == 1 and attributions[example, :, 8:16, 8:16].mean() > 0)


def test_findings_of_plain_maps(shortcut):
    case = one_of(shortcut, 0)
    n_units = 144 - int(case.roi.sum()) // 64

    def row(value, elsewhere=0.0, inside=0.0):
        attributions = torch.full((1, 1, 96, 96), elsewhere)
        attributions[case.roi] = inside
        attributions[..., case.marker] = value
        return marker_findings(attributions, case).iloc[0].to_dict()

    # What is said of the RoI itself does not count.
    assert row(2.0, inside=9.0) == {"rank": 1, "signed_rank": 1, "sign": 1, "share": 1.0, "found": True, "n_units": n_units}
    harmful = row(-2.0)
    assert (harmful["rank"], harmful["signed_rank"], harmful["sign"], harmful["found"]) == (1, n_units, -1, False)
    # Among equals the last place; a map of zeros finds nothing.
    assert row(1.0, 1.0)["rank"] == n_units
    nothing = row(0.0)
    assert (nothing["rank"], nothing["sign"], nothing["share"], nothing["found"]) == (n_units, 0, 0.0, False)


def test_findings_of_bad_maps(shortcut):
    case = one_of(shortcut, 0)
    with pytest.raises(ValueError, match=r"attributions: expected \(N, C, \*spatial\) with N=1 .* got \(1, 1, 3, 3\)"):
        marker_findings(torch.zeros(1, 1, 3, 3), case)
    with pytest.raises(ValueError, match="attributions: expected"):
        marker_findings(torch.zeros(2, 1, 96, 96), case)
    with pytest.raises(ValueError, match="attributions: it holds NaN"):
        marker_findings(torch.full((1, 1, 96, 96), float("nan")), case)


def test_the_training_script_writes_weights_and_a_record(tmp_path, monkeypatch):
    pytest.importorskip("nilearn")
    out = tmp_path / "new" / "weights.pt"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--out", str(out), "--steps", "2", "--examples", "4"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    load_shortcut_network().load_state_dict(torch.load(out, weights_only=True))
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert record.keys() == shortcut_record().keys()
    assert record["steps"] == 2
