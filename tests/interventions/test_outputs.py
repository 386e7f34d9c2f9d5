"""Which scores an example has, which is asked for, and what is known of each."""

import itertools

import numpy as np
import pytest
import torch

from captum_causalseg.interventions.outputs import Outputs
from captum_causalseg.target.scorer import as_scorer


def outputs(shape=(2, 3), axes=("class", "roi"), chosen=(1, 5), has_own_metric=False) -> Outputs:
    return Outputs(shape=shape, axes=axes, chosen=np.array(chosen), has_own_metric=has_own_metric)


def test_what_holds_for_a_roi_holds_for_its_score_of_every_class():
    per_roi = np.random.default_rng(0).random((2, 4, 3)) < 0.5
    found = outputs().of_rois(per_roi)
    assert found.shape == (2, 4, 6)
    for n, u, c, r in itertools.product(range(2), range(4), range(2), range(3)):
        assert found[n, u, 3 * c + r] == per_roi[n, u, r]


@pytest.mark.parametrize("other", [{"has_own_metric": True}, {"shape": (4,), "axes": ("output",), "chosen": (0, 3)}])
def test_where_scores_are_of_no_known_roi_all_of_them_count(other):
    some = outputs(**other)
    per_roi = np.array([[[True, True, False], [True, True, True]]] * 2)
    assert np.array_equal(some.of_rois(per_roi), np.repeat([[[False], [True]]] * 2, some.count, axis=2))


def test_the_output_that_is_asked_for():
    some = outputs()
    of_all = np.arange(2 * 4 * 6).reshape(2, 4, 6)
    assert some.of_chosen(of_all).tolist() == [of_all[0, :, 1].tolist(), of_all[1, :, 5].tolist()]
    assert [place.tolist() for place in some.places()] == [[0, 1], [1, 2]]
    # Class 0 of the first example, class 1 of the second, on all three RoIs.
    assert some.on_every_roi().tolist() == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3]


@pytest.mark.parametrize("n", [1, 2])
def test_the_region_of_the_output_that_is_asked_for(n):
    rois = torch.arange(n * 3 * 4).reshape(n, 3, 4)
    found = outputs().region(rois)  # RoI 1 of the first example, 2 of the second
    assert torch.equal(found, torch.stack([rois[0, 1], rois[-1, 2]]))
    assert torch.equal(outputs(shape=(6,), axes=("class",)).region(rois), torch.stack([rois[0, 0], rois[-1, 0]]))


def test_one_score_has_no_axes():
    some = outputs(shape=(), axes=(), chosen=(0, 0))
    assert (some.count, some.places(), some.on_every_roi().tolist()) == (1, (), [[True], [True]])


def test_a_segmentation_in_the_place_of_scores_is_named():
    scorer = as_scorer(torch.nn.Conv2d(1, 2, 3, padding=1))
    with pytest.raises(ValueError, match=r"^forward_func: it returns \(2, 8, 8\) per example, a segmentation and not scores"):
        Outputs.of(scorer, (8, 8), shape=(2, 8, 8), n=1, target=None)
    with pytest.raises(ValueError, match=r"^target: "):
        Outputs.of(scorer, (8, 8), shape=(2,), n=1, target=None)
