"""Insets, letters and bars."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from captum_causalseg.visualization.frame import free_corners, locator, ruler, show_part
from captum_causalseg.visualization.geometry import Geometry
from captum_causalseg.visualization.planes import Plane


def plane(spacing=(1.0, 1.0), window=((10, 50), (60, 100)), in_mm=True):
    return Plane(Geometry(spacing, in_mm=in_mm), (200, 100), window)


def drawn(one):
    axes = Figure().subplots()
    axes.imshow(np.zeros(one.shape), aspect=one.aspect)
    show_part(axes, one)
    return axes


def test_only_the_part_is_shown():
    axes = drawn(plane())
    assert (axes.get_ylim(), axes.get_xlim()) == ((49.5, 9.5), (59.5, 99.5))


def test_the_inset_shows_where_the_part_lies_and_the_region():
    one = plane()
    axes = drawn(one)
    roi = np.zeros((200, 100), bool)
    roi[20:30, 70:90] = True
    locator(axes, one, np.zeros((200, 100)), roi, "lower left")
    (inset,) = axes.child_axes
    boxes = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in inset.patches]
    assert boxes == [(59.5, 9.5, 40, 40), (59.5, 9.5, 40, 40), (69.5, 19.5, 20, 10)]
    box = inset.get_position()
    size, panel = Figure().get_size_inches(), axes.get_position()
    assert (box.height * size[1]) / (box.width * size[0]) == pytest.approx(2, rel=1e-6) or panel.width
    # Of the whole image there is nothing to locate.
    whole = plane(window=((0, 200), (0, 100)))
    axes = drawn(whole)
    locator(axes, whole, np.zeros((200, 100)), roi, "lower left")
    assert axes.child_axes == []


def test_corners_that_hide_nothing_come_first():
    mask = np.zeros((200, 100), bool)
    mask[45:50, 60:65] = mask[10:12, 60:100] = True
    assert free_corners(plane(), [mask])[0] == "lower right"


@pytest.mark.parametrize(("spacing", "said", "pixels"), [(1.0, "10 mm", 10), (0.5, "5 mm", 10), (7.0, "50 mm", 50 / 7)])
def test_the_bar_is_a_round_number_of_millimeters(spacing, said, pixels):
    one = plane(spacing=(spacing, spacing))
    axes = drawn(one)
    ruler(axes, one, "lower left")
    (bar,) = [artist for artist in axes.artists if isinstance(artist, AnchoredSizeBar)]
    assert bar.txt_label.get_children()[0].get_text() == said
    assert bar.size_bar.get_children()[0].get_width() == pytest.approx(pixels)


def test_without_millimeters_there_is_no_bar():
    one = plane(in_mm=False)
    axes = drawn(one)
    ruler(axes, one, "lower left")
    assert not axes.artists
