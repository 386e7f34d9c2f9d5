"""Shapes as masks of voxels."""

import numpy as np
import pytest

from captum_causalseg.napari.drawn import mask_of_shapes


def corners(*points):
    return np.array(points, dtype=float)


def test_a_rectangle_holds_the_pixels_whose_middles_lie_in_it():
    drawn = corners((1.5, 2.5), (1.5, 6.4), (4.6, 6.4), (4.6, 2.5))
    expected = np.zeros((8, 10), dtype=bool)
    expected[2:5, 3:7] = True
    assert np.array_equal(mask_of_shapes([("rectangle", drawn)], (8, 10)), expected)


def test_shapes_are_taken_together_and_may_leave_the_image():
    one, other = corners((-3, -3), (-3, 1.5), (1.5, 1.5), (1.5, -3)), corners((5.5, 5.5), (5.5, 20), (20, 20), (20, 5.5))
    found = mask_of_shapes([("rectangle", one), ("polygon", other)], (8, 8))
    assert np.argwhere(found).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [6, 6], [6, 7], [7, 6], [7, 7]]
    assert not mask_of_shapes([], (8, 8)).any()


def test_an_ellipse_is_round():
    drawn = corners((3.5, 1.5), (3.5, 16.5), (16.5, 16.5), (16.5, 1.5))
    rows, columns = np.indices((20, 20))
    expected = ((rows - 10) / 6.5) ** 2 + ((columns - 9) / 7.5) ** 2 < 1
    assert (mask_of_shapes([("ellipse", drawn)], (20, 20)) != expected).mean() < 0.01


@pytest.mark.parametrize("across", [0, 1, 2])
def test_in_a_volume_slices_on_both_sides_belong_to_it(across):
    plane = corners((0.5, 1.5), (0.5, 4.5), (3.5, 4.5), (3.5, 1.5))
    drawn = np.insert(plane, across, 1.2, axis=1)
    found = np.moveaxis(mask_of_shapes([("polygon", drawn)], (8, 8, 8), n_slices=2), across, 0)
    assert [int(one.sum()) for one in found] == [9, 9, 9, 9, 0, 0, 0, 0], "not before the first slice"
    assert found[0, 1:4, 2:5].all()
    alone = np.moveaxis(mask_of_shapes([("polygon", drawn)], (8, 8, 8)), across, 0)
    assert [int(one.sum()) for one in alone] == [0, 9, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "points", "shape", "said"),
    [
        (
            "line",
            [(1, 1), (4, 4)],
            (8, 8),
            r"^roi: expected rectangles, ellipses and polygons, got a line, which has no inside",
        ),
        ("polygon", [(1, 1), (4, 4), (1, 4)], (8, 8, 8), r"^roi: the shapes have 2 axes, the image 3; draw in a layer made"),
        ("polygon", [(1, 1, 1), (4, 4, 4), (7, 1, 4)], (8, 8, 8), r"^roi: a shape lies across the slices of the image"),
    ],
)
def test_what_has_no_place_is_said(kind, points, shape, said):
    with pytest.raises(ValueError, match=said):
        mask_of_shapes([(kind, corners(*points))], shape)
