"""What all pictures of an image show."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from picture_cases import case
from pictures_read import explained, of_regions, outline
from window_cases import Local

from captum_causalseg import SegmentationTarget, Status, causal_support, compare, regions
from captum_causalseg.evaluation.planted import planted_case
from captum_causalseg.visualization import plot_comparison, plot_effects, plot_support
from captum_causalseg.visualization.marks import AREAS, LINES
from captum_causalseg.visualization.planes import About
from captum_causalseg.visualization.scene import scene_and_planes


def border(axes, name, *, width=1.0):
    """Corners of a line, as ``outline`` has those of the region of interest; of a part of its usual width."""
    line = LINES[name]
    drawn = [one for one in axes.findobj(QuadContourSet) if not one.filled]
    lines = [one for one in drawn if one.get_linewidth()[0] == pytest.approx(width * line.width)]
    (found,) = [one for one in lines if tuple(one.get_edgecolor()[0][:3]) == pytest.approx(to_rgb(line.color))]
    points = np.concatenate([path.vertices for path in found.get_paths()])
    (left, top), (right, bottom) = points.min(0) + 0.5, points.max(0) - 0.5
    return pytest.approx((top, bottom, left, right), abs=0.05)


def far_from_the_region():
    """An image of which a small part reaches the region of interest."""
    image, statistics, roi = case((64, 96), 8, (16, 24), 8)
    near = torch.isin(statistics.unit_ids, torch.unique(regions.grid((64, 96), 8)[8:32, 16:40]))
    statistics.status[0, ~near] = Status.OUTSIDE_SUPPORT
    return image, statistics, roi


def test_every_panel_of_effects_shows_both_segmentations():
    image, statistics, roi = case((16, 16), 4, 4, 4)
    segmentation, reference = regions.box((16, 16), 2, 6), regions.box((16, 16), 4, 8)
    figure = plot_effects(image, statistics, roi, segmentation=segmentation, reference=reference)
    # Thinner where effects lie under them.
    for axes, width in zip(figure.axes[:3], (1.0, 0.6, 0.6)):
        assert border(axes, "segmentation", width=width) == (2, 7, 2, 7)
        assert border(axes, "reference", width=width) == (4, 11, 4, 11)
        assert outline(axes) == (4, 7, 4, 7)
    said = explained(figure)
    assert all(LINES[name].label in said for name in ("roi", "segmentation", "reference"))
    assert all(AREAS[name].label in said for name in ("missed", "too much"))
    assert figure.axes[0].get_title() == "Image and segmentation"
    # Only what is there is explained.
    alone = explained(plot_effects(image, statistics, roi, segmentation=segmentation))
    assert "reference segmentation" not in alone
    assert "missed" not in alone


def test_the_class_that_the_target_picks_is_outlined():
    image, statistics, rois = of_regions()
    masks = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    masks[0, 0, :, :2] = masks[0, 1, :, 1:] = True
    for target, columns in (((0, 1), (0, 1)), ((1, 0), (1, 3))):
        figure = plot_effects(image, statistics, rois, target, panels=("effect",), segmentation=masks)
        assert border(figure.axes[0], "segmentation", width=0.6) == (0, 1, *columns)
    one, one_statistics, roi = case((16, 16), 4, 4, 4)
    several = torch.ones(1, 2, 16, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="segmentation: it has 2 classes, and the target does not say"):
        plot_effects(one, one_statistics, roi, segmentation=several)


def test_only_what_reaches_the_region_is_enlarged_with_a_margin():
    image, statistics, roi = far_from_the_region()
    # Rows 8-31 and columns 16-39 reach it; a margin of 4 pixels, which is more than an eighth of 24.
    for zoom, rows, columns in (("auto", (35.5, 3.5), (11.5, 43.5)), (False, (63.5, -0.5), (-0.5, 95.5))):
        figure = plot_effects(image, statistics, roi, zoom=zoom)
        for axes in figure.axes[:3]:
            assert (axes.get_ylim(), axes.get_xlim()) == (rows, columns)
        assert [len(axes.child_axes) for axes in figure.axes[:3]] == [int(zoom == "auto"), 0, 0]
    # Where nearly all of it reaches the region, only when asked.
    image, statistics, roi = case((64, 64), 8, (16, 24), 16)
    assert plot_effects(image, statistics, roi).axes[0].get_xlim() == (-0.5, 63.5)
    with pytest.raises(TypeError, match='zoom: expected True or False or "auto"'):
        plot_effects(image, statistics, roi, zoom="yes")


def test_panels_below_each_other_for_a_narrow_page():
    image, statistics, roi = case((16, 16), 4, 4, 4)
    wide, narrow = (plot_effects(image, statistics, roi, columns=columns) for columns in (None, 1))
    assert narrow.get_figwidth() < 0.5 * wide.get_figwidth()
    boxes = [axes.get_position() for axes in narrow.axes[:3]]
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1


def test_opacity_by_significance():
    image, statistics, roi = case((16, 16), 4, 4, 4)
    figure = plot_effects(image, statistics, roi, panels=("effect",), opacity="significance")
    alpha = figure.axes[0].images[1].get_alpha()
    significant = statistics.to_map("significant")[0, 0].numpy() == 1
    assert alpha[significant].min() == alpha.max() == pytest.approx(0.95 * 0.8)
    assert (alpha[~significant] <= 0.5 * alpha.max() + 1e-9).all()
    assert "differs from 0 (false discovery rate 5 %)" in explained(figure)


def test_other_pictures_show_them_as_well():
    planted = planted_case((32, 32), roi_size=8)
    maps = {"truth": planted.effects_of_map()}
    comparison = compare(maps, planted.target(), planted.images, planted.donors, block_size=8, metrics=["irof"])
    prediction = regions.box((32, 32), 3, 6)
    figure = plot_comparison(comparison, segmentation=prediction)
    assert all(border(axes, "segmentation") == (3, 8, 3, 8) for axes in figure.axes[:2])
    roi = regions.box((16, 16, 16), 6, 4)
    image = torch.rand(1, 1, 16, 16, 16)
    support = causal_support(SegmentationTarget(Local(3), roi=roi, metric="logit_mean"), image)
    figure = plot_support(image, support, roi, reference=regions.box((16, 16, 16), 5, 6))
    # Three planes, the image and beside it what reaches the region.
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == [f"axis {axis}\nslice 7" for axis in (2, 1, 0)]
    assert all(border(axes, "reference") == (5, 10, 5, 10) for axes in figure.axes[:6])


def test_planes_go_through_the_region_or_the_middle():
    image, roi = torch.rand(1, 1, 8, 8, 8), np.zeros((8, 8, 8), bool)
    roi[2:5, 2:5, 6] = True
    for given, expected in ((roi, (3, 3, 6)), (None, (4, 4, 4)), (np.zeros_like(roi), (4, 4, 4))):
        _, planes = scene_and_planes(image, given, About(), example=0)
        assert [plane.cross for plane in planes] == [expected] * 3
