"""Palettes that the color-blind can tell apart, and scales that outliers do not stretch."""

import numpy as np
import pytest
from matplotlib import colormaps
from skimage.color import deltaE_ciede2000, rgb2lab

from captum_causalseg.visualization.pictures import PALETTES, robust_maximum, round_up, scale_labels


def test_the_papers_colors():
    assert PALETTES["paper"].outline == "#00ff00"
    ends = PALETTES["paper"].effects(np.array([0.0, 0.5, 1.0]))[:, :3]
    np.testing.assert_allclose(ends, [[0, 0, 1], [1, 1, 1], [1, 0, 0]], atol=0.01)


# Machado, Oliveira and Fernandes (2009): what dichromats see, of linear RGB.
SEEN = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def difference(one, other, seen):
    """CIEDE2000 of two colors as a dichromat sees them; 2 is just noticed, 20 is plain."""
    colors = np.array([one, other])
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4) @ np.array(SEEN[seen]).T
    linear = linear.clip(0, 1)
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return float(deltaE_ciede2000(*rgb2lab(back[None])[0]))


def least_difference(colors, seen):
    return min(difference(colors(0.5 + size)[:3], colors(0.5 - size)[:3], seen) for size in (0.125, 0.25, 0.375, 0.5))


@pytest.mark.parametrize("seen", SEEN)
def test_the_default_signs_differ_for_the_color_blind(seen):
    assert least_difference(PALETTES["accessible"].effects, seen) > 19
    # The measure tells: red against green does not pass.
    if seen != "tritanopia":
        assert least_difference(colormaps["RdYlGn"], seen) < 10


def test_scales_are_robust_and_round():
    assert robust_maximum(np.array([0.0, np.nan, np.inf])) == 1.0
    assert robust_maximum(np.r_[np.full(999, 1.0), 1000]) < 10
    assert [round_up(x) for x in (0.01234, 0.99, 1.0, 123.0)] == pytest.approx([0.013, 0.99, 1.0, 130])
    assert scale_labels([-2.5e-5, -0.0, 0.00125, 2.0, 120000.0]) == ["-2.5e-5", "0", "0.00125", "2", "1.2e+5"]
