"""Pictures of the support."""

import math

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from window_cases import Local, NanHider, pixels

from captum_causalseg import SegmentationTarget, causal_support, regions, visualization


def said(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("title", ["", "a title"])
def test_the_picture_of_the_support_says_its_share(d, channels, title):
    spatial = (24, 20, 16)[:d]
    roi = regions.box(spatial, start=9, size=4)
    images = torch.rand(2, channels, *spatial)
    target = SegmentationTarget(Local(d, channels), roi=roi, metric="logit_mean")
    support = causal_support(target, images)
    share = 100 * (10**d) / math.prod(spatial)
    for mask in (roi, None):
        figure = visualization.plot_support(images, support, mask, example=1, title=title)
        assert isinstance(figure, Figure)
        assert f"{share:.1f} % of the pixels can reach" in said(figure)
        assert title in said(figure)
        figure.canvas.draw()


def test_the_picture_of_a_doubt_says_that_nothing_is_known():
    target = SegmentationTarget(NanHider(), roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    image = pixels(24, 24)
    support = causal_support(target, image)
    assert support.doubt is not None
    assert support.masks[0].all()
    figure = visualization.plot_support(image, support, target.roi)
    assert "what can reach the region of interest is not known" in said(figure)
    assert "%" not in said(figure)


def test_pictures_of_another_image_are_refused():
    target = SegmentationTarget(Local(), roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    support = causal_support(target, pixels(24, 24))
    with pytest.raises(ValueError, match=r"support: its first mask has shape \(24, 24\), the image \(24, 20\)"):
        visualization.plot_support(pixels(24, 20), support)
    with pytest.raises(ValueError, match="image: expected"):
        visualization.plot_support(torch.rand(1, 1, 24), support)
