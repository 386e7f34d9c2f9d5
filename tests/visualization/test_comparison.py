"""The picture of a comparison of methods."""

import numpy as np
import pytest
import torch
from comparison_cases import Case
from torch import nn

from captum_causalseg import PatchBank, SegmentationTarget
from captum_causalseg.evaluation.comparison import CONTROL
from captum_causalseg.visualization import plot_comparison


@pytest.mark.parametrize(("d", "channels"), [(2, 1), (3, 1), (2, 3)])
def test_the_picture_has_a_panel_for_each_method(d, channels):
    case = Case(d)
    if channels == 3:
        net = nn.Conv2d(3, 2, 5, padding=2)
        case.images = torch.rand(1, 3, 16, 16)
        case.target = SegmentationTarget.from_prediction(net, case.images, roi=case.rois)
        case.bank = PatchBank(torch.rand(4, 3, 16, 16))
    methods = {"one": lambda x: x - 0.5, "two": lambda x: -x, "nothing": torch.zeros_like}
    found = case.compare(methods)
    figure = plot_comparison(found, columns=3, title="All")
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles[:4] == ["Image and region of interest", "one", "two", "nothing"]
    assert CONTROL not in titles
    drawn = [image for axes in figure.axes[1:3] for image in axes.get_images()[1:]]
    assert all((image.norm.vmin, image.norm.vmax) == (-1, 1) for image in drawn)
    # One scale: the largest outside the region is 1 in every panel, with its sign.
    roi = case.rois[0] if d == 2 else case.rois[0][..., 4]
    assert np.sign(np.asarray(drawn[1].get_array())[~roi.numpy()]).max() <= 0
    figure.canvas.draw()
