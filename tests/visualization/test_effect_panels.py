"""Panels and montages of effects: images, volumes, one region or several."""

import math

import numpy as np
import pytest
import torch
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text
from picture_cases import statistics_of
from pictures_read import ALL, drawn, explained, of_regions, outline

from captum_causalseg import GradientTreatmentEffect, Status, regions
from captum_causalseg.visualization import plot_effects, plot_volume
from captum_causalseg.visualization.pictures import PALETTES, grayscale


def hatched(axes, hatch):
    """Which pixels are hatched so."""
    shape = axes.images[0].get_array().shape[:2]
    pixels = np.argwhere(np.ones(shape))
    inside = np.zeros(shape, bool)
    for found in axes.findobj(QuadContourSet):
        if found.hatches == [hatch]:
            for path in found.get_paths():
                inside[tuple(pixels.T)] |= path.contains_points(pixels[:, ::-1])
    return inside


def test_every_panel_shows_its_field():
    """Four units in a row by hand: significant, not significant, out of reach, excluded."""
    mask = np.repeat(np.arange(4), 4)[None].repeat(4, 0)
    status = [[Status.ESTIMATED, Status.ESTIMATED, Status.OUTSIDE_SUPPORT, Status.EXCLUDED]]
    statistics = statistics_of([[0.4, -0.1, 0.0, 9.0]], mask, [[0.1, 0.1, 0.0, 0.1]], status, n_draws=[[5, 20, 0, 0]])
    roi = regions.box((4, 16), (0, 12), 4)
    figure = plot_effects(torch.rand(1, 1, 4, 16), statistics, roi, panels=ALL)
    panels = dict(zip(ALL, figure.axes))
    normal = 1.959964  # of the standard normal distribution, at 97.5 %
    expected = {
        "effect": [0.4, -0.1, 0, 0],
        "standard_error": [0.1, 0.1, 0, 0],
        "lower": [0.4 - 0.1 * normal, -0.1 - 0.1 * normal, 0, 0],
        "upper": [0.4 + 0.1 * normal, -0.1 + 0.1 * normal, 0, 0],
        "significant": [0.4, -0.1, 0, 0],
        # Of 4 standard errors 0.00006, below the scale's end; of 1 standard error.
        "p_value": [1e-4, math.erfc(1 / math.sqrt(2)), 1, 1],
        "n_draws": [5, 20, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(drawn(panels[name]), np.repeat(values, 4)[None].repeat(4, 0), rtol=2e-5, err_msg=name)
    # Intervals on the scale of the effect: the largest, rounded up to two digits.
    for name in ("effect", "lower", "upper", "significant"):
        norm = panels[name].images[1].norm
        assert (norm.vmin, norm.vcenter, norm.vmax) == pytest.approx((-0.4, 0, 0.4))
    assert panels["n_draws"].images[1].norm.vmax == 20
    excluded = mask == 3
    for name in ALL[1:]:
        np.testing.assert_array_equal(hatched(panels[name], "////"), excluded)
        np.testing.assert_array_equal(hatched(panels[name], "...."), (mask == 1) & (name == "significant"))
        assert outline(panels[name]) == (0, 3, 12, 15)
    assert len(panels["image"].images) == 1
    assert outline(panels["image"]) == (0, 3, 12, 15)
    said = explained(figure)
    assert "not intervened on" in said
    assert "does not differ from 0" in said
    assert "beyond it: cannot reach" in said


def with_edges(effect, mask, joints):
    """With the control "edge_shifted"."""
    joint = statistics_of([joints], mask, 0.01)
    return statistics_of([effect], mask, 0.01).replaced(controls={"edge_shifted": joint.moments})


def test_effects_that_may_be_the_joint_are_crosshatched():
    mask = np.repeat(np.arange(4), 4)[None].repeat(4, 0)
    statistics = with_edges([0.4, -0.3, 0.2, 0.001], mask, [0.01, 0.29, -0.2, 0.5])
    figure = plot_effects(torch.rand(1, 1, 4, 16), statistics, panels=ALL)
    panels = dict(zip(ALL, figure.axes))
    for name in ALL[1:]:
        expected = np.isin(mask, [1, 2]) & (name in ("effect", "significant"))
        np.testing.assert_array_equal(hatched(panels[name], "xxxx"), expected, err_msg=name)
    said = "a joint alone, the unit's own tissue shifted by a pixel or two, may do as much"
    assert said in explained(figure).replace("\n", " ")
    for other in (
        plot_effects(torch.rand(1, 1, 4, 16), statistics, panels=("standard_error",)),
        plot_effects(torch.rand(1, 1, 4, 16), with_edges([0.4, -0.3, 0.2, 0.1], mask, [0.0] * 4)),
        plot_effects(torch.rand(1, 1, 4, 16), statistics.replaced(controls={})),
    ):
        assert "a joint alone" not in explained(other)


def test_in_volumes_as_well():
    mask = np.arange(2)[:, None, None].repeat(4, 0).repeat(4, 1).repeat(4, 2)
    figure = plot_volume(torch.rand(1, 1, 8, 4, 4), with_edges([0.4, 0.2], mask, [0.01, 0.2]), n_slices=2)
    for axes in figure.axes[:2]:
        np.testing.assert_array_equal(hatched(axes, "xxxx"), mask[..., 0] == 1)
    assert "a joint alone" in explained(figure)


def test_larger_effects_are_more_opaque():
    mask = np.arange(3)[None].repeat(3, 0)
    figure = plot_effects(torch.rand(1, 1, 3, 3), statistics_of([[0.0, 0.1, -0.4]], mask), panels=("effect",))
    np.testing.assert_allclose(figure.axes[0].images[1].get_alpha()[0], [0, 0.95 * 0.25**0.75, 0.95], rtol=1e-6)


@pytest.mark.parametrize("palette", PALETTES)
def test_colors_are_red_for_support_and_blue_for_harm(palette):
    statistics = statistics_of([[0.5, -0.5]], np.arange(2)[None].repeat(2, 0))
    for name in ("effect", "lower", "upper", "significant"):
        shown = plot_effects(torch.rand(1, 1, 2, 2), statistics, palette=palette, panels=(name,)).axes[0].images[1]
        colors = shown.cmap(shown.norm(np.array([0.3, -0.3])))[:, :3]
        assert colors.argmax(1).tolist() == [0, 2], name


def test_what_is_no_number_is_dark_and_does_not_set_the_scale():
    image = torch.tensor([[[0.0, 2.0], [math.nan, 1.0], [math.inf, -math.inf]]])
    assert grayscale(image).tolist() == [[0, 1], [0, 0.5], [0, 0]]
    assert grayscale(torch.full((1, 2, 2), math.nan)).tolist() == [[0, 0], [0, 0]]
    assert grayscale(torch.full((1, 1, 2), 7)).tolist() == [[0, 0]]


@pytest.mark.parametrize("target", [1, (1,), [1], torch.tensor([1])])
def test_a_row_for_each_region_that_the_target_leaves_open(target):
    image, statistics, rois = of_regions()
    figure = plot_effects(image, statistics, rois, target, panels=("image", "effect"))
    pictures = figure.axes[:4]
    assert [axes.get_ylabel() for axes in pictures] == ["RoI 0", "RoI 1", "", ""]
    assert [axes.get_title() for axes in pictures] == ["Image and region of interest", "", "Effect of each unit", ""]
    for axes, values, corners in zip(pictures[2:], (0.21, 0.22), ((0, 1, 0, 0), (0, 1, 3, 3))):
        np.testing.assert_allclose(drawn(axes)[0], values + 0.001 * np.arange(1, 5))
        assert outline(axes) == corners
    # One scale for both: 0.224 rounded up.
    assert [axes.images[1].norm.vmax for axes in pictures[2:]] == pytest.approx([0.23, 0.23])


@pytest.mark.parametrize("target", [(0, 1), [(0, 1)]])
def test_one_region_of_several(target):
    image, statistics, rois = of_regions()
    for masks in (rois, rois[1]):
        figure = plot_effects(image, statistics, masks, target, panels=("effect",))
        assert len(figure.axes) == 2
        np.testing.assert_allclose(drawn(figure.axes[0])[0], 0.12 + 0.001 * np.arange(1, 5))
        assert outline(figure.axes[0]) == (0, 1, 3, 3)
        assert figure.axes[0].get_ylabel() == "RoI 1"


@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1])])
def test_a_target_for_each_example(target):
    effect = np.array([[[0.1, 0.2]], [[0.3, 0.4]]])
    mask = np.zeros((2, 2), int)
    image = torch.rand(2, 1, 2, 2)
    of_classes = statistics_of(effect, mask, axes=("class",))
    figure = plot_effects(image, of_classes, target=target, example=1, panels=("effect",))
    np.testing.assert_allclose(drawn(figure.axes[0]), 0.4)
    # Classes per example, all regions.
    of_both = statistics_of(np.stack([effect, effect + 1], -1), mask, axes=("class", "roi"))
    figure = plot_effects(image, of_both, target=target, example=1, panels=("effect",))
    assert [drawn(axes)[0, 0] for axes in figure.axes[:2]] == pytest.approx([0.4, 1.4])


def test_regions_without_classes():
    mask = np.arange(2)[None].repeat(2, 0)
    statistics = statistics_of(np.arange(6).reshape(1, 2, 3), mask, axes=("roi",))
    figure = plot_effects(torch.rand(1, 1, 2, 2), statistics, panels=("effect",))
    assert [drawn(axes)[0].tolist() for axes in figure.axes[:3]] == [[0, 3], [1, 4], [2, 5]]
    assert drawn(plot_effects(torch.rand(1, 1, 2, 2), statistics, target=2, panels=("effect",)).axes[0])[0].tolist() == [2, 5]


@pytest.mark.parametrize(("d", "opacity"), [(2, "effect"), (2, "significance"), (3, "effect")])
def test_effects_of_a_gradient_are_shown_and_called_neither_significant_nor_null(d, opacity):
    image = torch.ones(1, 1, *(8,) * d)
    face = GradientTreatmentEffect(lambda x: x[:, :, :4].sum(tuple(range(1, d + 2))))
    _, statistics = face.attribute(image, 0.5, block_size=4, return_statistics=True)
    panels = ALL if d == 2 else ("effect",)
    figure = plot_effects(image, statistics, panels=panels, opacity=opacity)
    said = " ".join(" ".join(one.get_text() for one in figure.findobj(Text)).split())
    assert "their errors, intervals and p-values are not known, and none is called significant" in said
    assert "does not differ from 0" not in said
    for name, axes in zip(panels, figure.axes):
        if name != "image":
            assert bool(np.any(axes.images[1].get_alpha())) == (name == "effect" and opacity == "effect")
            assert not hatched(axes, "....").any()
    if d == 3:
        assert plot_volume(image, statistics, n_slices=2).axes[0].images
