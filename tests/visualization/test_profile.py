"""Pictures of profiles show their numbers."""

import numpy as np
import pytest
from profile_cases import grouped_statistics, row

from captum_causalseg.evaluation.influence import influence_matrix
from captum_causalseg.evaluation.profile import perception_profile, profile_of_map
from captum_causalseg.visualization import plot_influence, plot_profile


def colors_of(patches):
    return [tuple(round(x, 3) for x in p.get_facecolor()[:3]) for p in patches]


RED, BLUE = (0.698, 0.094, 0.169), (0.129, 0.4, 0.675)


def test_the_pictures_of_a_profile_show_its_numbers(tmp_path):
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    profile = perception_profile(statistics, roi)
    figure = plot_profile(profile, title="a title", score_name="Dice")
    figure.savefig(tmp_path / "profile.png")
    pie, histogram, distance, ratio, *_ = sorted(
        figure.axes, key=lambda a: ["4 u", "3 e", "Hal", "Sup", ""].index(a.get_title()[:3])
    )
    assert figure.get_suptitle() == "a title"
    assert [t.get_text() for t in pie.get_legend().get_texts()] == [
        "supporting: 2 (50.0 %)",
        "harming: 1 (25.0 %)",
        "null: 1 (25.0 %)",
    ]
    assert colors_of(pie.patches)[:2] == [RED, BLUE]
    assert [p.theta2 - p.theta1 for p in pie.patches] == pytest.approx([180, 90, 90], abs=1e-4)
    assert [t.get_text() for t in ratio.texts] == ["71.4 %", "28.6 %"]
    assert [p.get_width() for p in ratio.patches] == pytest.approx([5 / 7, 2 / 7])
    assert histogram.get_xlabel() == "effect on the Dice"
    heights = dict.fromkeys((RED, BLUE), 0.0)
    for patch, color in zip(histogram.patches, colors_of(histogram.patches)):
        heights[color] += patch.get_height()
        if patch.get_height():
            assert (patch.get_x() + patch.get_width() / 2 > 0) == (color == RED)
    assert heights == {RED: 2, BLUE: 1}
    bars = [p for p in distance.patches if p.__class__.__name__ == "Rectangle"]
    assert [p.get_height() for p in bars] == pytest.approx([0.4, 0.1, 0.2, 0.0])
    assert [p.get_x() + p.get_width() / 2 for p in bars] == pytest.approx([2, 6, 2, 6])
    assert [p.get_y() for p in bars] == pytest.approx([0, 0, 0.4, 0.1])
    assert distance.get_title() == "Half of the mass lies within 1, 90 % within 5"
    assert distance.get_xlabel() == "distance from the region of interest (pixels)"
    assert "noise alone" in words_of_legend(figure)


def words_of_legend(figure):
    """Of the panel of distances; it belongs to the second axis, so that the line does not cross it."""
    second = next(a for a in figure.axes if a.get_ylabel().startswith("share of the mass"))
    return [t.get_text() for t in second.get_legend().get_texts()]


def test_the_legend_of_distances_lies_on_white_above_bars_and_line():
    """Bars have its own colors: on them its entries could not be seen."""
    statistics, roi = row([0.1, -0.2, 9.0, 0.4, 0.0])
    figure = plot_profile(perception_profile(statistics, roi))
    last = figure.axes[-1]
    assert last.get_ylabel().startswith("share of the mass")
    assert last.get_legend().get_frame_on()
    assert last.get_legend().get_frame().get_alpha() >= 0.9
    assert last.get_zorder() >= max(a.get_zorder() for a in figure.axes)


@pytest.mark.parametrize("effects", [[[0.0, 0.0, 0.0]], [[0.0, 1e-7, 0.0]], [[0.0, 3e4, -0.1]]])
def test_pictures_of_odd_profiles_can_be_drawn(effects, tmp_path):
    profile = profile_of_map(np.array(effects), np.array([[True, False, False]]), block_size=1, bin_width=(1, 2))
    figure = plot_profile(profile)
    figure.savefig(tmp_path / "profile.png")
    distance = next(a for a in figure.axes if a.get_xlabel().startswith("distance"))
    assert distance.get_xlabel().endswith("(bins)")
    assert "noise alone" not in words_of_legend(figure)


def test_bad_input_of_the_pictures():
    statistics, _, _ = grouped_statistics()
    matrix = influence_matrix(statistics)
    with pytest.raises(ValueError, match="roi_names: expected 2 names, got 1"):
        plot_influence(matrix, roi_names=["one"])
    with pytest.raises(ValueError, match="region_names: expected 6 names, got 0"):
        plot_influence(matrix, region_names=[])
    with pytest.raises(TypeError, match="matrix: expected an InfluenceMatrix, got DataFrame"):
        plot_influence(matrix.effect)
    with pytest.raises(TypeError, match="profile: expected a PerceptionProfile, got InfluenceMatrix"):
        plot_profile(matrix)
