"""Planes and slices of volumes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from picture_cases import case, statistics_of
from pictures_read import drawn, explained, of_regions

from captum_causalseg import Status
from captum_causalseg.visualization import plot_effects, plot_volume
from captum_causalseg.visualization.pictures import grayscale
from captum_causalseg.visualization.planes import chosen_slices, peak


def volume():
    """Blocks of 4 x 4 x 2 in 12 x 8 x 6 voxels; the largest effect is harmful, in the block that ends the volume."""
    image, statistics, roi = case((12, 8, 6), (4, 4, 2), 0, (4, 4, 2))
    statistics.effect[0, -1] = -0.5
    statistics.status[0, -1] = Status.ESTIMATED
    return image, statistics, roi


def test_a_volume_is_shown_in_the_planes_through_the_region():
    image, statistics, roi = volume()
    figure = plot_effects(image, statistics, roi, panels=("image", "effect"), spacing=(1, 2, 5))
    values = statistics.to_map("effect")[0, 0].nan_to_num(0)
    # The middle of rows 0-3, columns 0-3, slices 0-1; of the two in the middle the first.
    position = (1, 1, 0)
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["axis 2\nslice 0", "axis 1\nslice 1", "axis 0\nslice 1"]
    for row, (axis, aspect) in enumerate([(2, 1 / 2), (1, 1 / 5), (0, 2 / 5)]):
        for axes in (figure.axes[row], figure.axes[3 + row]):
            assert axes.get_aspect() == pytest.approx(aspect)
        np.testing.assert_allclose(drawn(figure.axes[3 + row]), values.select(axis, position[axis]))
        picture = grayscale(image[0]).take(position[axis], axis)
        np.testing.assert_allclose(figure.axes[row].images[0].get_array(), picture)
        # Where the other two planes cross it.
        crossing = [line.get_xydata()[0] for line in figure.axes[row].lines]
        across, down = (position[a] for a in range(3) if a != axis)
        assert (crossing[0][1], crossing[1][0]) == (across, down)
    # The pictures' boxes have the volume's proportions: 12 x 8 voxels of 1 x 2, and so on.
    for axes, (height, width) in zip(figure.axes[:3], [(12, 16), (12, 30), (16, 30)]):
        box = axes.get_position()
        wide, high = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
        assert high / wide == pytest.approx(height / width)


def test_without_a_region_the_planes_go_through_the_largest_effect():
    image, statistics, _ = volume()
    labels = [axes.get_ylabel() for axes in plot_effects(image, statistics).axes[:3]]
    assert labels == ["axis 2\nslice 4", "axis 1\nslice 5", "axis 0\nslice 9"]


def test_the_strongest_units_are_numbered_where_the_planes_cut_them_and_in_parentheses_elsewhere():
    image, statistics, roi = volume()
    effect = torch.zeros_like(statistics.effect)
    # In the plane of the region along axis 2, and at the end of the volume, one behind the other along axis 0.
    for place, value in (((4, 4, 0), -0.5), ((8, 4, 4), 0.4), ((4, 4, 4), 0.3), ((0, 4, 0), 0.1)):
        effect[0, int(statistics.feature_mask[0][0, 0][place])] = value
    statistics.effect = torch.where(statistics.effect.isnan(), torch.nan, effect)
    statistics.status[:] = torch.where(statistics.status == Status.EXCLUDED, Status.EXCLUDED, Status.ESTIMATED)
    figure = plot_effects(image, statistics, roi, panels=("image", "effect"))
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes[:6]]
    assert said[:3] == [[], [], []]
    assert said[3:] == [["1 (3)", "(2)"], ["(1)", "(2)", "(3)"], ["(1)", "(2) (3)"]]
    assert "strongest units" in explained(figure)
    assert "in parentheses: before or behind" in explained(figure)
    # Slices have only their own.
    slices = plot_volume(image, statistics, roi, n_slices=2)
    assert [[text.get_text() for text in axes.texts] for axes in slices.axes[:2]] == [["1"], ["2", "3"]]
    assert "parentheses" not in explained(slices)


def test_planes_are_turned_as_a_radiologist_looks_at_them():
    image, statistics, roi = volume()
    # The axes of the array run to the back, to the right and to the head: of spacing 0.5, 2 and 3.
    affine = torch.tensor([[0, 2.0, 0, 7], [-0.5, 0, 0, 1], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    scan = MetaTensor(image, affine=affine)
    values = statistics.to_map("effect")[0, 0].nan_to_num(0)
    for said in ({"image": scan}, {"image": MetaTensor(image, affine=affine[None])}, {"image": image, "affine": affine}):
        figure = plot_effects(statistics=statistics, roi=roi, panels=("effect",), **said)
        axial, coronal, sagittal = figure.axes[:3]
        names = [axes.get_ylabel() for axes in (axial, coronal, sagittal)]
        assert names == ["axial\nslice 0", "coronal\nslice 1", "sagittal\nslice 1"]
        assert [axes.get_aspect() for axes in figure.axes[:3]] == pytest.approx([0.5 / 2, 3 / 2, 3 / 0.5])
        np.testing.assert_allclose(drawn(axial), values[:, :, 0].flip(1))
        np.testing.assert_allclose(drawn(coronal), values[1].T.flip(0, 1))
        np.testing.assert_allclose(drawn(sagittal), values[:, 1].T.flip(0))
    letters = [[text.get_text() for text in axes.texts if text.get_text().isalpha()] for axes in figure.axes[:3]]
    assert letters == [["A", "P", "R", "L"], ["S", "I", "R", "L"], ["S", "I", "A", "P"]]
    told = plot_effects(scan, statistics, roi, panels=("effect",), spacing=1)
    assert [axes.get_aspect() for axes in told.axes[:3]] == [1, 1, 1]
    assert plot_volume(scan, statistics, roi, axis=1, n_slices=1).axes[0].get_aspect() == pytest.approx(3 / 0.5)


def test_a_thin_volume_has_slices_and_no_strips():
    image, statistics, roi = case((32, 32, 3), (8, 8, 1), (8, 8, 1), (8, 8, 1))
    figure = plot_effects(image, statistics, roi, panels=("effect",))
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == [f"axis 2\nslice {index}" for index in range(3)]
    # Where slices are thick, there are planes to see.
    thick = plot_effects(image, statistics, roi, panels=("effect",), spacing=(1, 1, 5))
    assert [axes.get_ylabel().split("\n")[0] for axes in thick.axes[:3]] == ["axis 2", "axis 1", "axis 0"]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_montage_has_the_largest_effect_marked(axis):
    image, statistics, roi = volume()
    figure = plot_volume(image, statistics, roi, axis=axis, n_slices=4, score_name="Dice")
    values = statistics.to_map("effect")[0, 0].nan_to_num(0)
    strongest = (9, 5, 4)[axis]
    pictures = [axes for axes in figure.axes if axes.get_title().startswith("slice")]
    assert len(pictures) == 4
    marked = 0
    for axes in pictures:
        name, _, largest = axes.get_title().partition(": ")
        index = int(name.split()[1])
        np.testing.assert_allclose(drawn(axes), values.select(axis, index))
        assert (largest == "largest") == (index == strongest)
        thick = axes.spines["top"].get_linewidth() > 2
        assert thick == (index == strongest)
        marked += thick
    assert marked == 1
    assert f"slices along axis {axis % 3} of {image.shape[2:][axis]}" in figure.get_supxlabel()


def test_slices_without_effects_are_those_of_the_region():
    image, statistics, roi = case((8, 8, 10), (4, 4, 2), (0, 0, 4), (4, 4, 4))
    statistics.effect[:] = torch.where(statistics.effect.isnan(), torch.nan, 0.0)
    figure = plot_volume(image, statistics, roi, n_slices=3)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["slice 4", "slice 6", "slice 7"]
    assert "all effects are 0" in figure.get_supxlabel()
    assert plot_effects(image, statistics, roi).axes[0].get_ylabel() == "axis 2\nslice 5"


@given(
    values=st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0, 2.0, math.nan]), min_size=1, max_size=30),
    count=st.integers(1, 12),
)
def test_slices_are_even_and_hold_the_largest(values, count):
    effect = np.array(values)[None, :, None]
    chosen, strongest = chosen_slices(effect, None, 1, count)
    known = np.nan_to_num(np.abs(values))
    available = np.flatnonzero(known) if known.any() else np.arange(len(values))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(available)
    assert len(chosen) == min(count, len(available))
    if known.any():
        assert known[strongest] == known.max()
        assert strongest in chosen
    else:
        assert strongest is None
    # Evenly: neighbors are within one and a half steps, but for the one that made room for the largest.
    if len(chosen) > 2:
        places = np.searchsorted(available, chosen)
        assert np.diff(places).max() <= 1.5 * (len(available) - 1) / (len(chosen) - 1) + 1


@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6)])
def test_the_position_is_inside_the_strongest_unit(shape):
    effect = np.zeros(shape)
    # An L, whose middle lies beside it.
    effect[1:4, 0] = effect[3, 0:4] = -3.0
    effect[0, -1] = 2.0
    found = peak(effect, None)
    assert effect[found] == -3.0
    assert peak(np.full(shape, math.nan), None) == tuple(length // 2 for length in shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": 3}, "axis: expected an integer from -3 to 2, got 3"),
        ({"axis": 1.0}, "axis: expected an integer, got 1.0"),
        ({"n_slices": 0}, "n_slices: expected at least 1, got 0"),
        ({"columns": 0}, "columns: expected at least 1, got 0"),
        ({"panel": "image"}, r"panel: expected \"effect\", \"standard_error\", .*got 'image'"),
    ],
)
def test_wrong_arguments_of_a_montage_are_named(change, message):
    image, statistics, roi = volume()
    with pytest.raises(ValueError, match=message):
        plot_volume(image, statistics, roi, **change)


def test_images_and_several_regions_are_no_montage():
    image, statistics, rois = of_regions()
    with pytest.raises(ValueError, match=r"image: expected a volume \(N, C, \*spatial\) with 3 spatial axes, got 2"):
        plot_volume(image, statistics, rois, (1, 1))
    mask = np.zeros((2, 2, 2), int)
    several = statistics_of(np.ones((1, 1, 2)), mask, axes=("roi",))
    with pytest.raises(
        ValueError, match=r"target: it does not say which of 2 regions of interest to draw; pass \(class, roi\)"
    ):
        plot_volume(torch.rand(1, 1, 2, 2, 2), several)
    assert plot_volume(torch.rand(1, 1, 2, 2, 2), several, target=1).axes[0].get_title() == "slice 0: largest"
