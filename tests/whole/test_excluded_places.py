"""Which units and donors are excluded where: of each input, example and region."""

import itertools

import pytest
import torch
from input_pairs import CORNER, GRID, ROI, SPATIAL, Case, both_dimensions, excluded_ids, random, statistics_of, toy, toy_inputs

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, PatchBank, Status, regions


def asked(exclude, d: int):
    """The mask of the corner for its name."""
    if isinstance(exclude, tuple):
        return tuple(asked(one, d) for one in exclude)
    return CORNER[d] if exclude == "corner" else exclude


@both_dimensions
@pytest.mark.parametrize(
    ("exclude", "in_2d", "in_3d"),
    [
        ("roi", [5, 9, 21, 25], [3, 11]),
        (("roi", "roi"), [5, 9, 21, 25], [3, 11]),
        (("roi", None), [5, 9], [3]),
        ((None, "roi"), [21, 25], [11]),
        (None, [], []),
        ((None, None), [], []),
        ("corner", [3, 19], [6, 14]),
        (("corner", None), [3], [6]),
        ((None, "corner"), [19], [14]),
        (("roi", "corner"), [5, 9, 19], [3, 14]),
        (("corner", "roi"), [3, 21, 25], [6, 11]),
    ],
    ids=str,
)
def test_units_are_excluded_where_it_was_asked_for(exclude, in_2d, in_3d, d):
    found = statistics_of(AverageTreatmentEffect(toy(d)), toy_inputs(d), asked(exclude, d))
    assert len(found.unit_ids) == {2: 32, 3: 16}[d]
    assert excluded_ids(found) == [in_2d if d == 2 else in_3d]
    assert found.effect[found.status == Status.EXCLUDED].isnan().all()
    assert found.effect[found.status != Status.EXCLUDED].isfinite().all()


@both_dimensions
def test_what_only_the_query_excludes_is_explained_in_the_support_images(d):
    """Excluded units carry 0; the same place of the other input carries its effect, whichever face explains it."""
    inputs, there = toy_inputs(d), {2: ([5, 9], [21, 25]), 3: ([3], [11])}[d]
    blocks = regions.grid(GRID[d], 2)
    for face, options in (
        (AverageTreatmentEffect(toy(d)), {"n_draws": 1}),
        (GradientTreatmentEffect(toy(d)), {}),
        (GradientTreatmentEffect(toy(d)), {"n_steps": 3}),
    ):
        one, other = face.attribute(inputs, 0.0, block_size=2, exclude=("roi", None), **options)
        place = torch.isin(blocks, torch.tensor(there[0]))
        assert (one[0, :, place] == 0).all()
        assert (one[0, :, ~place] != 0).all()
        assert (other[0, :, place] != 0).all()
        both = face.attribute(inputs, 0.0, block_size=2, exclude="roi", **options)
        assert (both[1][0, :, place] == 0).all()


@both_dimensions
def test_units_are_excluded_for_the_roi_that_they_touch_alone(d):
    two = torch.stack([ROI[d], CORNER[d]])
    statistics = statistics_of(AverageTreatmentEffect(toy(d, roi=two)), toy_inputs(d), ("roi", None), target=0)
    assert excluded_ids(statistics) == {2: [[5, 9], [3]], 3: [[3], [6]]}[d]
    statistics = statistics_of(AverageTreatmentEffect(toy(d, roi=two)), toy_inputs(d), (CORNER[d], "roi"), target=0)
    assert excluded_ids(statistics) == {2: [[3, 21, 25], [3, 19]], 3: [[6, 11], [6, 14]]}[d]


@both_dimensions
def test_every_example_excludes_its_own_roi(d):
    of_each = torch.stack([ROI[d], CORNER[d]])[:, None]
    statistics = statistics_of(AverageTreatmentEffect(toy(d, 2, of_each)), toy_inputs(d, 2), ("roi", None))
    assert [excluded_ids(statistics, n) for n in range(2)] == {2: [[[5, 9]], [[3]]], 3: [[[3]], [[6]]]}[d]


@both_dimensions
def test_a_unit_across_inputs_is_excluded_if_it_is_in_one_of_them(d):
    blocks = regions.grid(GRID[d], 2)[None, None]
    options = {"feature_mask": (blocks, blocks), "block_size": None}
    face = AverageTreatmentEffect(toy(d))
    for exclude in (("roi", None), (None, "roi")):
        statistics = statistics_of(face, toy_inputs(d), exclude, **options)
        assert excluded_ids(statistics) == [{2: [5, 9], 3: [3]}[d]]
    expected = {2: [3, 5, 9], 3: [3, 6]}[d]
    assert excluded_ids(statistics_of(face, toy_inputs(d), ("roi", CORNER[d]), **options)) == [expected]


@both_dimensions
@pytest.mark.parametrize("source", ["same image", "bank"])
@pytest.mark.parametrize(
    ("exclude", "avoided"),
    [
        ("roi", (True, True)),
        (("roi", "roi"), (True, True)),
        (("roi", None), (True, False)),
        ((None, "roi"), (True, True)),
        (None, (True, False)),
        ((None, None), (True, False)),
        ("corner", (True, False)),
        (("roi", "corner"), (True, False)),
    ],
    ids=str,
)
def test_donors_avoid_the_roi_where_it_lies(d, source, exclude, avoided):
    """In the segmented image always, in another input if the RoI is excluded there for being the RoI."""
    inputs = toy_inputs(d)
    n_blocks = {2: 16, 3: 8}[d]
    places = set(itertools.product(*(range(length - 1) for length in GRID[d])))
    boxes = {corner: tuple(slice(start, start + 2) for start in corner) for corner in places}
    touching = {corner for corner in places if bool(ROI[d][boxes[corner]].any())}
    # Of the last block, in the far corner.
    own = {corner for corner in places if all(start >= length - 3 for start, length in zip(corner, GRID[d]))}
    assert touching
    assert touching - own
    planned = AverageTreatmentEffect(toy(d)).plan(
        *(inputs, None if source == "same image" else tuple(PatchBank(one) for one in inputs)),
        block_size=2,
        exclude=asked(exclude, d),
        n_draws=1000,
        n_screening_draws=0,
        sampling="uniform",
        support=None,
    )
    for slot in range(2):
        last = (slot + 1) * n_blocks - 1
        found = {corner for one in planned if one.unit == last for _, _, corner in one.donors}
        expected = places - (touching if avoided[slot] else set()) - (own if source == "same image" else set())
        assert found == expected


@both_dimensions
def test_exclusion_per_input_in_a_batch_is_that_of_its_examples(d):
    case = Case("few-shot", d, 2)
    mask = regions.box(SPATIAL[d], 0, 2)
    together = case.explained(exclude=("roi", mask))[1]
    for example in range(2):
        alone = Case("few-shot", d, 2)
        alone.inputs = tuple(x[example : example + 1] for x in case.inputs)
        alone.labels = case.labels[example : example + 1]
        found = alone.explained(exclude=("roi", mask), additional_forward_args=case.others[example : example + 1])[1]
        assert torch.equal(found.status[0], together.status[example])
        torch.testing.assert_close(found.effect[0], together.effect[example], atol=1e-6, rtol=0, equal_nan=True)
    again = case.explained(exclude=("roi", mask))[1]
    assert torch.equal(again.effect.nan_to_num(), together.effect.nan_to_num())


@pytest.mark.parametrize(
    ("exclude", "error", "match"),
    [
        (("roi",), ValueError, r"^exclude: expected one per input \(2\), got 1$"),
        ((), ValueError, r"^exclude: expected one per input \(2\), got 0$"),
        (("roi", None, None), ValueError, r"^exclude: expected one per input \(2\), got 3$"),
        (("roi", "clicks"), ValueError, r"^exclude\[1\]: expected \"roi\", a boolean mask or None, got 'clicks'$"),
        ((True, None), TypeError, r'^exclude\[0\]: expected "roi", a boolean mask or None, got bool$'),
        (("roi", [[True]]), TypeError, r'^exclude\[1\]: expected "roi", a boolean mask or None, got list$'),
        (["roi", None], TypeError, '^exclude: expected "roi", a boolean mask or None, got list$'),
        ((None, ("roi",)), TypeError, r'^exclude\[1\]: expected "roi", a boolean mask or None, got tuple$'),
        (
            ("roi", torch.ones(8, 8) > 0),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask of spatial shape \(4, 6\), got torch.bool \(8, 8\)$",
        ),
        (
            (torch.ones(8, 8), None),
            ValueError,
            r"^exclude\[0\]: expected a boolean mask of spatial shape \(8, 8\), got torch.float32 \(8, 8\)$",
        ),
        (
            (None, torch.ones(1, 4, 6).numpy() > 0),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask of spatial shape \(4, 6\), got bool \(1, 4, 6\)$",
        ),
        (
            (None, torch.ones(4, 6).numpy()),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask of spatial shape \(4, 6\), got float32 \(4, 6\)$",
        ),
        (
            ("roi", "roi"),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask or None, the RoI of spatial shape \(8, 8\) has no place in an input of "
            r'spatial shape \(4, 6\), got "roi"$',
        ),
        (
            (torch.ones(8, 8) > 0, torch.ones(4, 6) > 0),
            ValueError,
            "^exclude: every unit of example 0 is excluded; choose smaller units",
        ),
    ],
)
@pytest.mark.parametrize("face", [AverageTreatmentEffect, GradientTreatmentEffect])
def test_an_exclusion_that_does_not_fit_is_named(face, exclude, error, match):
    inputs = random(1, 1, 8, 8), random(1, 2, 4, 6, seed=2)
    with pytest.raises(error, match=match):
        face(toy(2)).attribute(inputs, 0.0, block_size=2, exclude=exclude)
