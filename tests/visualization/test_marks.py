"""Marks and their legend."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captum_causalseg.visualization.marks import AREAS, LINES, Legend, draw_line, handle, mistakes


def test_marks_differ_by_more_than_their_color():
    lines = [(line.width, str(line.style), line.edge) for line in LINES.values()]
    areas = [area.hatch for area in AREAS.values()]
    assert len(set(lines)) == len(lines)
    # No picture has both of the last two.
    assert len(set(areas)) == len(areas) - 1


def test_what_is_missed_and_what_is_too_much():
    segmentation, reference = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    found = mistakes(segmentation, reference)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "missed": [[False, False, True, False]],
        "too much": [[False, True, False, False]],
    }
    assert mistakes(segmentation, segmentation) == mistakes(segmentation, None) == mistakes(None, reference) == {}


def test_the_border_of_what_is_reached_does_not_follow_the_border_of_the_image():
    axes = Figure().subplots()
    mask = np.zeros((4, 6), bool)
    mask[:, :2] = True
    for name, expected in (("outside", (1.5, 1.5)), ("roi", (-0.5, 1.5))):
        draw_line(axes, mask, name)
        points = np.concatenate([path.vertices for path in axes.collections[-1].get_paths()])
        assert (points[:, 0].min(), points[:, 0].max()) == pytest.approx(expected, abs=0.02), name


@pytest.mark.parametrize("width", [2.6, 5.0, 13.0])
def test_a_legend_keeps_to_its_width_and_its_height(width):
    legend = Legend([handle(name) for name in (*LINES, *AREAS)], width)
    figure = Figure(figsize=(width, legend.height + 0.1))
    legend.put(figure, bottom=0.0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert box.x0 >= -1
    assert box.x1 <= canvas.get_width_height()[0] + 1
    assert box.y1 <= canvas.get_width_height()[1] + 1
    assert [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()] == [
        one.label for one in (*LINES.values(), *AREAS.values())
    ]


def test_no_marks_no_legend():
    figure = Figure()
    Legend([], 5.0).put(figure)
    assert Legend([], 5.0).height == 0
    assert figure.legends == []
