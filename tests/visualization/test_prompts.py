"""The picture of prompts: each where it lies, in the color of its effect, with the number beside it."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from captum_causalseg import PromptTreatmentEffect
from captum_causalseg.donors import MovedPrompts
from captum_causalseg.visualization import plot_prompts
from tests.common.prompt_cases import drawn_case, sam_case


def markers(axes):
    """Of every marker: its kind, where it is (column, row), and its color."""
    return [(line.get_marker(), *line.get_xydata()[0].tolist(), line.get_color()) for line in axes.lines]


def is_red(color):
    red, _, blue, _ = to_rgba(color)
    return red > blue


def test_clicks_and_boxes_lie_where_they_were_given():
    target, images, (points, labels, boxes) = sam_case()
    statistics = PromptTreatmentEffect(target).attribute(
        images, additional_forward_args=(points, labels, boxes), target=0, return_statistics=True
    )[1]
    figure = plot_prompts(images, statistics, 0, roi=target.roi[0], prediction=target.roi[1], example=1, score_name="Dice")
    axes = figure.axes[0]
    effects = statistics.effect[1, :, 0]
    drawn = sorted((column, row, marker, is_red(color)) for marker, column, row, color in markers(axes))
    assert drawn == sorted((*points[1, 0, k].tolist(), "XP"[labels[1, 0, k]], bool(effects[k] > 0)) for k in range(3))
    box = [patch for patch in axes.patches if isinstance(patch, Rectangle)][-1]
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (4, 6, 20, 20)
    assert is_red(box.get_edgecolor()) == bool(effects[3] > 0)
    assert "Dice" in figure.axes[1].get_ylabel()
    signs = sorted(text.get_text()[0] for text in axes.texts)
    assert signs == sorted("+" if effect > 0 else "-" for effect in effects)


def test_intervals_stand_beside_effects_that_are_not_exact():
    target, images, (points, labels, _) = sam_case(n=1)
    statistics = PromptTreatmentEffect(target).attribute(
        images,
        MovedPrompts(6),
        additional_forward_args=(points, labels),
        target=0,
        n_draws=6,
        return_statistics=True,
    )[1]
    assert all(" ± " in text.get_text() for text in plot_prompts(images, statistics, 0).axes[0].texts)


def test_of_a_volume_one_slice_is_shown_and_prompts_of_others_say_where_they_are():
    target, images, clicks = drawn_case(3)
    statistics = PromptTreatmentEffect(target, maps=[1, 2]).attribute(images, target=0, return_statistics=True)[1]
    roi = torch.zeros(10, 10, 10, dtype=torch.bool)
    roi[2:5, 2:5, 3] = True
    axes = plot_prompts(images, statistics, 0, roi=roi, channel=0).axes[0]
    assert axes.images[0].get_array().shape == (10, 10)
    middles = sorted((at[1] + 0.5, at[0] + 0.5) for _, at in clicks[0])
    assert sorted((column, row) for _, column, row, _ in markers(axes)) == middles
    said = [text.get_text() for text in axes.texts]
    assert sum("(slice" in text for text in said) == 2  # of three, one lies in the third slice
    strongest = int(np.abs(statistics.effect[0, :, 0]).argmax())
    axes = plot_prompts(images, statistics, 0, channel=0).axes[0]
    assert f"{float(statistics.effect[0, strongest, 0]):+.2f}"[:4] in axes.texts[-1].get_text()
    assert "(slice" not in axes.texts[-1].get_text()


def test_what_has_no_place_is_listed_below():
    images = torch.rand(1, 1, 8, 8)
    method = PromptTreatmentEffect(lambda image, ids: image.mean((1, 2, 3)) if ids is None else image.sum((1, 2, 3)), texts=0)
    statistics = method.attribute(images, additional_forward_args=torch.ones(1, 3), return_statistics=True)[1]
    axes = plot_prompts(images, statistics).axes[0]
    assert axes.get_xlabel().startswith("text 0: +")
    assert not axes.texts
    with pytest.raises(ValueError, match=r"^example: expected one of \[0\], got 1"):
        plot_prompts(images, statistics, example=1)
    with pytest.raises(ValueError, match=r"^statistics: expected those of PromptTreatmentEffect"):
        plot_prompts(images, statistics.replaced(settings={}))
