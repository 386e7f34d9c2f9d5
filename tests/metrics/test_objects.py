"""Scores of objects: found, split, merged, and errors weighed by where they lie."""

import numpy as np
import pytest
import torch
from naive_outcomes import whole
from torch import Tensor

from captum_causalseg import metrics, regions


def picture(*rows: str) -> Tensor:
    return torch.tensor([[float(character == "#") for character in row] for row in rows], dtype=torch.float64)[None, None]


def test_two_objects_one_split_one_missed_and_a_false_alarm():
    reference = picture("###....", ".......", "....##.", "....##.")
    prediction = picture("#.#...#", ".......", ".......", ".......")
    roi = whole(reference)
    # Two of three pixels: 2/3 of the union. The other one is missed, the one at the right is nothing's.
    assert metrics.detection(prediction, reference, roi).item() == 0.5
    assert metrics.detection(prediction, reference, roi, threshold=0.7).item() == 0
    # One found, one piece too many: 2 / (2 + 1).
    assert metrics.uniformity(prediction, reference, roi).item() == pytest.approx(2 / 3)
    assert metrics.relative_volume(prediction, reference, roi).item() == pytest.approx(3 / 7)
    assert metrics.volumetric_similarity(prediction, reference, roi).item() == pytest.approx(1 - 4 / 10)


def test_two_objects_that_are_merged():
    reference, prediction = picture("##..##", "##..##"), picture("######", "######")
    roi = whole(reference)
    # Both found, by one object: 4 / (4 + 1). Intersection 4, union 12.
    assert metrics.uniformity(prediction, reference, roi).item() == pytest.approx(0.8)
    assert metrics.detection(prediction, reference, roi, threshold=4 / 12).item() == 1
    assert metrics.detection(prediction, reference, roi, threshold=0.34).item() == 0
    # A region that sees one of them only.
    left = roi.clone()
    left[..., 3:] = False
    assert metrics.uniformity(prediction, reference, left).item() == 1


def test_a_single_common_pixel_is_enough_with_threshold_0_and_none_is_not():
    reference = torch.zeros(1, 1, 9, 9)
    reference[..., 0, 0] = 1
    prediction = torch.ones(1, 1, 9, 9)
    assert metrics.detection(prediction, reference, whole(reference)).item() == 0
    assert metrics.detection(prediction, reference, whole(reference), threshold=0).item() == 1
    prediction[..., 0, 0] = 0
    assert metrics.detection(prediction, reference, whole(reference), threshold=0).item() == 0


@pytest.mark.parametrize("shape", [(13, 13), (9, 9, 9)])
def test_an_error_at_the_boundary_weighs_less_than_the_same_at_the_core_or_far_away(shape):
    reference = regions.box(shape, 2, 5)[None, None].double()
    errors = {"boundary": (2,) * len(shape), "core": (4,) * len(shape), "near": (7,) * len(shape), "far": (8,) * len(shape)}
    scores = {}
    for name, pixel in errors.items():
        prediction = reference.clone()
        prediction[(0, 0, *pixel)] = 1 - prediction[(0, 0, *pixel)]
        scores[name] = metrics.boundary_alignment(prediction, reference, whole(reference)).item()
    assert scores["core"] < scores["boundary"] < 1
    assert scores["far"] < scores["near"] < 1
    # Depth 3, weights 1/3, 2/3, 1 for the three shells; one pixel of the outermost shell is missing.
    sizes = np.array([5, 3, 1]) ** len(shape)
    total = (sizes[0] - sizes[1]) / 3 + (sizes[1] - sizes[2]) * 2 / 3 + sizes[2]
    assert scores["boundary"] == pytest.approx(2 * (total - 1 / 3) / (2 * total - 1 / 3))
    assert scores["core"] == pytest.approx(2 * (total - 1) / (2 * total - 1))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    mask = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"threshold: expected an intersection over union in \[0, 1\], got"):
        metrics.detection(mask, mask, whole(mask), threshold=threshold)
