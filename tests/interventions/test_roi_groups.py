"""Regions share a box as long as it costs no more than a box for each."""

import itertools

import numpy as np
import pytest

from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.roi_groups import hull_of, roi_groups


def fit(needed):
    return Frame(needed[..., 0], (needed[..., 1] - needed[..., 0]).max(0).tolist())


def boxes(*of_each):
    """``(1, R, d, 2)`` from a corner and an edge for each region."""
    return np.array([[[(a, a + edge) for a in corner] for corner, edge in of_each]])


def grouped(*of_each, weight=lambda rois: 1.0):
    return [group.rois for group in roi_groups(boxes(*of_each), fit, weight)]


def test_regions_far_apart_are_alone_and_those_in_one_place_together():
    assert grouped(((0, 0), 4), ((40, 40), 4)) == [(0,), (1,)]
    assert grouped(((0, 0), 4), ((0, 0), 4)) == [(0, 1)]
    assert grouped(((0, 0), 4), ((40, 40), 4), ((1, 0), 4)) == [(0, 2), (1,)]


def test_a_box_that_costs_as_much_as_two_is_one():
    # Side by side, 4 x 8 = 4 x 4 + 4 x 4; one pixel apart, it is more.
    assert grouped(((0, 0), 4), ((0, 4), 4)) == [(0, 1)]
    assert grouped(((0, 0), 4), ((0, 5), 4)) == [(0,), (1,)]


def test_what_saves_most_is_merged_first():
    # The middle one would save 3 columns with the left one, 1 with the right one; all three are 4 x 12 against 4 x (5 + 4 + 4).
    assert grouped(((0, 0), 4), ((0, 1), 4), ((0, 8), 4)) == [(0, 1), (2,)]


def test_pixels_count_as_often_as_they_are_run():
    # Two that overlap in half of their columns, each reached by 10 units: where these are the same ones, one box is run less often.
    one = ((0, 0), 4), ((0, 2), 4)
    same, others = {(0,): 10, (1,): 10, (0, 1): 10}, {(0,): 10, (1,): 10, (0, 1): 20}
    assert grouped(*one, weight=same.__getitem__) == [(0, 1)]
    assert grouped(*one, weight=others.__getitem__) == [(0,), (1,)]


def test_a_group_holds_the_same_regions_in_each_example():
    near, far = boxes(((0, 0), 4), ((0, 1), 4)), boxes(((0, 0), 4), ((40, 40), 4))
    both = roi_groups(np.concatenate([near, far]), fit)
    assert [(group.rois, group.frame.size) for group in both] == [((0,), (4, 4)), ((1,), (4, 4))]
    assert both[1].frame.starts.tolist() == [[0, 1], [40, 40]]


@pytest.mark.parametrize("seed", range(5))
def test_no_two_groups_would_be_cheaper_as_one(seed):
    generator = np.random.default_rng(seed)
    regions = [(tuple(generator.integers(0, 30, 3)), int(generator.integers(2, 12))) for _ in range(7)]
    needed = boxes(*regions)
    groups = roi_groups(needed, fit)
    assert sorted(r for group in groups for r in group.rois) == list(range(7))
    for one, other in itertools.combinations(groups, 2):
        joint = np.prod(fit(hull_of(needed[:, [*one.rois, *other.rois]])).size)
        assert joint > one.cost + other.cost
