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
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:4] == ["Image and region of interest", "one", "two", "nothing"]
    assert CONTROL not in titles
    # A volume has its planes below each other.
    planes = [axes.get_title() for axes in figure.axes].index("one")
    assert planes == (1 if d == 2 else 3)
    drawn = [figure.axes[column * planes].get_images()[1] for column in (1, 2)]
    assert all((image.norm.vmin, image.norm.vmax) == (-1, 1) for image in drawn)
    # One scale: the largest outside the region is 1 in every panel, with its sign.
    values = torch.from_numpy(np.asarray(drawn[1].get_array()))
    assert bool((values <= 0).all())
    figure.canvas.draw()
