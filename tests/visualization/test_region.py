"""Pictures of regions."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

from captum_causalseg import necessary_region, sufficient_region
from captum_causalseg.visualization import plot_region


class Corners(nn.Module):
    """Either the first corner or the last is enough."""

    def forward(self, image):
        x = image.flatten(1)
        return torch.maximum(x[:, 0], x[:, -1])


def case(spatial=(8, 12), channels=1, face=sufficient_region, **arguments):
    image = torch.ones(1, channels, *spatial)
    given = {"block_size": 4, "alternatives": 1, **arguments}
    return image, face(Corners(), image, 0.25, **given)


def outlines(axes):
    """The colors of the contours on a panel, and how they are drawn; white edges left out."""
    found = [one for one in axes.collections if to_hex(one.get_edgecolor()[0]) != "#ffffff"]
    return {to_hex(one.get_edgecolor()[0]): one.get_linestyle()[0][1] is not None for one in found}


def test_a_region_and_its_alternative_are_outlined_and_the_model_s_picture_is_shown():
    image, region = case()
    figure = plot_region(image, region, title="$x$")
    left, right = figure.axes
    assert outlines(left) == outlines(right) == {"#b2182b": False, "#2166ac": True}
    before, after = (axes.images[0].get_array() for axes in (left, right))
    assert (before == 1).all()
    assert np.array_equal(np.asarray(after) == 1, region.mask[0, 0].numpy())
    assert figure.get_suptitle() == "$x$"
    assert figure.get_supxlabel() == (
        "1 of 6 units kept: 1.000 of the span is kept [1.000, 1.000]\nscore 1.000; observed 1.000, all replaced 0.250"
    )


def test_necessary_regions_and_what_is_not_reached():
    image, region = case(face=necessary_region)
    figure = plot_region(image, region)
    assert [axes.get_title() for axes in figure.axes] == ["necessary region", "replaced by donors"]
    assert "2 of 6 units replaced: 1.000 of the span is lost" in figure.get_supxlabel()
    other = dataclasses.replace(region, reached=False, reason="so it is")
    assert "; 0.95 is not reached" in plot_region(image, other).get_supxlabel()
    unknown = dataclasses.replace(other, share_reached=-0.0, share_interval=(-np.inf, np.inf))  # the span is not told from 0
    said = plot_region(image, unknown).get_supxlabel()
    assert said.startswith("2 of 6 units replaced: what share of the span is lost is not known; 0.95 is not reached")


def test_the_planes_of_a_volume_go_through_the_region():
    image, region = case((8, 8, 12))
    figure = plot_region(image, region, spacing=(1, 1, 2), roi=region.mask[0, 0].roll(4, 0))
    assert len(figure.axes) == 6
    assert all("#b2182b" in outlines(axes) for axes in figure.axes)
    assert [axes.images[0].get_array().shape for axes in figure.axes[:3]] == [(8, 8), (8, 12), (8, 12)]


def test_one_of_several_inputs_and_channels():
    class Second(nn.Module):
        def forward(self, image, other):
            return other[:, 1, 0, 0]

    inputs = torch.ones(1, 1, 4, 4), torch.ones(1, 3, 4, 8)
    region = sufficient_region(Second(), inputs, 0.0, block_size=4, channels="each")
    colored, gray, first = (
        plot_region(inputs, region, **given)
        for given in ({"input_index": 1}, {"input_index": 1, "channel": 0}, {"input_index": 0})
    )
    assert colored.axes[0].images[0].get_array().shape == (4, 8, 3)
    assert outlines(colored.axes[0])
    assert not outlines(gray.axes[0])
    assert not outlines(first.axes[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.ones(1, 1, 8, 8)}, r"image: expected the explained input \(N, 1, 8, 12\)"),
        ({"image": (torch.ones(1, 1, 8, 12),) * 2}, "image: expected a tensor, or a tuple of the 1 input"),
        ({"region": 3}, "region: expected"),
        ({"roi": torch.ones(3, 3)}, "roi: expected"),
        ({"example": 1}, "example: expected"),
        ({"input_index": 1}, "input_index: expected"),
        ({"channel": 1}, "channel: expected"),
        ({"spacing": 0}, "spacing: expected"),
    ],
)
def test_bad_arguments(change, message):
    image, region = case()
    with pytest.raises((TypeError, ValueError), match=message):
        plot_region(**{"image": image, "region": region, **change})
