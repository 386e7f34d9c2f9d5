"""Which output a target picks."""

import pytest
import torch
from made_statistics import make

from captum_causalseg.statistics import target_index


def test_maps_of_several_outputs_need_a_target():
    stats = make(output_shape=(2, 3), output_axes=("class", "roi"))
    stats.effect[:, :, 1, 2] = 7
    assert (stats.to_map("effect", (1, 2)) == 7).all()
    with pytest.raises(ValueError, match=r"target: .* 6 outputs \(2 class x 3 roi\) per example; say which one"):
        stats.to_map("effect")


@pytest.mark.parametrize(
    ("target", "flat"),
    [
        ((1, 2), [5, 5]),
        ([(0, 1), (1, 0)], [1, 3]),
    ],
)
def test_targets_of_two_axes(target, flat):
    assert target_index(target, 2, (2, 3), ("class", "roi")).tolist() == flat


@pytest.mark.parametrize(
    ("target", "flat"), [(2, [2, 2]), (torch.tensor(1), [1, 1]), (torch.tensor([2, 0]), [2, 0]), ([0, 1], [0, 1]), (-1, [2, 2])]
)
def test_targets_of_one_axis(target, flat):
    assert target_index(target, 2, (3,), ("class",)).tolist() == flat


@pytest.mark.parametrize("target", [3, (0, 0), [0], torch.tensor([0, 1, 2]), [0, 3], "a"])
def test_targets_that_pick_nothing_are_refused(target):
    with pytest.raises(ValueError, match=r"target: .*3 outputs \(3 class\)"):
        target_index(target, 2, (3,), ("class",))


def test_a_target_that_picks_several_outputs_is_refused():
    with pytest.raises(ValueError, match="target: 1 picks 3 of 6 outputs"):
        target_index(1, 2, (2, 3), ("class", "roi"))
