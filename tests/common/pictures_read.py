"""What a picture shows, read back from it."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from picture_cases import statistics_of

from captum_causalseg.visualization.pictures import PALETTES

ALL = ("image", "effect", "standard_error", "lower", "upper", "significant", "p_value", "n_draws")
GREEN = {name: to_rgb(palette.outline) for name, palette in PALETTES.items()}


def drawn(axes):
    """The values that lie over the picture."""
    return np.ma.filled(axes.images[1].get_array(), np.nan)


def outline(axes, color=GREEN["accessible"]):
    """Corners ``(rows, columns)`` of the outline: first row, last row, first column, last column; None where there is none."""
    for found in axes.findobj(QuadContourSet):
        if not found.filled and tuple(found.get_edgecolor()[0][:3]) == pytest.approx(color):
            points = np.concatenate([path.vertices for path in found.get_paths()])
            (left, top), (right, bottom) = points.min(0) + 0.5, points.max(0) - 0.5
            return pytest.approx((top, bottom, left, right), abs=0.05)
    return None


def explained(figure):
    """What the legend and the notes say."""
    legend = [text.get_text() for one in figure.legends for text in one.get_texts()]
    return "\n".join([*legend, figure.get_supxlabel()])


def of_regions():
    """Two classes, two RoIs; effects say class, RoI and unit: 0.1 * class + 0.01 * RoI + 0.001 * unit."""
    mask = np.arange(4)[None].repeat(2, 0)
    classes, rois, units = np.ogrid[1:3, 1:3, 1:5]
    effect = (0.1 * classes + 0.01 * rois + 0.001 * units).transpose(2, 0, 1)[None]
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[0, :, 0] = masks[1, :, 3] = True
    return torch.rand(1, 1, 2, 4), statistics_of(effect, mask, axes=("class", "roi")), masks
