"""Pictures on light and dark paper."""

import contextlib
import doctest
import io

import numpy as np
import pytest
from matplotlib import rc_context, style
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from captum_causalseg import cohort, visualization
from captum_causalseg.visualization import pictures
from captum_causalseg.visualization.ink import ink, on_dark, role_color, series_colors

PLOTS = [name for name in visualization.__all__ if name.startswith("plot_") and name != "plot_comparison"]
PLOTS += ["plot_cohort_comparison", "plot_cohort_components", "plot_cohort_profile"]


def contrast(one, other):
    """Of two colors, by the Web Content Accessibility Guidelines."""

    def luminance(color):
        values = np.array(to_rgb(color))
        return np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def drawn_by(name):
    """The figures that the example in its docstring draws."""
    function = getattr(visualization, name, None) or getattr(cohort, name)
    found, literal = [], pictures.literal

    def noted(figure):
        found.append(figure)
        return literal(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(function.__wrapped__.__globals__, "literal", noted)
        examples = [one for test in doctest.DocTestFinder().find(function, name) for one in test.examples]
        scope = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for example in examples:
                exec(compile(example.source, name, "exec"), scope)
    assert found
    return found


def on_paper(figure):
    """Texts that lie on nothing but the paper."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        over = text.axes is not None and text.axes.images and text in text.axes.texts
        if text.get_text() and text.get_visible() and not over and text.get_bbox_patch() is None:
            yield text


@pytest.mark.parametrize("name", PLOTS)
def test_a_dark_style_holds_for_every_picture(name):
    with style.context("dark_background"):
        figures = drawn_by(name)
    for figure in figures:
        # Here the style is over, as where a figure is saved later.
        figure.savefig(io.BytesIO(), dpi=40)
        assert to_hex(figure.get_facecolor()) == "#000000"
        wrong = {one.get_text(): one.get_color() for one in on_paper(figure) if contrast(one.get_color(), "black") < 4.5}
        inside = [axes for axes in figure.axes if axes.axison and contrast(axes.get_facecolor()[:3], "black") > 1.5]
        # Numbers in the bars of a profile have the paper's color, on the bars.
        assert {text: color for text, color in wrong.items() if not (name == "plot_profile" and text.endswith("%"))} == {}
        assert inside == []


def test_on_white_paper_ink_is_gray_as_it_is_called():
    assert [ink(gray) for gray in (0, 0.3, 1)] == ["#000000", to_hex((0.3, 0.3, 0.3)), "#ffffff"]
    assert (role_color("supporting"), role_color("harming")) == ("#b2182b", "#2166ac")
    assert not on_dark()


def test_on_other_paper_it_lies_between_letters_and_paper():
    with rc_context({"figure.facecolor": "#202020", "text.color": "#e0e0e0"}):
        assert [ink(0), ink(1)] == ["#e0e0e0", "#202020"]
        assert ink(0.5) == "#808080"
        assert on_dark()
        assert series_colors()[-1] == "#e0e0e0"
        for role in ("supporting", "harming"):
            assert contrast(role_color(role), "#202020") > 3
    with rc_context({"figure.facecolor": "none", "text.color": "white"}):
        assert on_dark()
        assert ink(1) == "#000000"
    with rc_context({"figure.facecolor": "none"}):
        assert not on_dark()


def test_ticks_keep_the_style_that_they_were_made_in():
    with style.context("dark_background"):
        figure = Figure()
        figure.subplots().plot([0, 1], [0, 1])
        pictures.literal(figure)
    figure.savefig(io.BytesIO(), dpi=40)
    assert {label.get_color() for label in figure.axes[0].get_xticklabels()} == {"white"}
