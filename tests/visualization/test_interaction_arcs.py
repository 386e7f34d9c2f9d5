"""Arcs of interactions over the image."""

import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

from captum_causalseg import interaction_effects
from captum_causalseg.visualization import plot_interactions


class Planted(nn.Module):
    """Either of the first two corners, both of the last two."""

    def forward(self, image):
        x = image.flatten(2).mean(1)
        return torch.maximum(x[:, 0], x[:, 7]) + torch.minimum(x[:, 56], x[:, 63])


def table_of(image):
    return interaction_effects(Planted(), image, 0.0, pairs=[(0, 1), (2, 3), (0, 3)], block_size=4, n_draws=2)


def test_arcs_join_the_middles_of_units_in_the_colors_of_their_kind():
    image = torch.ones(1, 1, 8, 8)
    # Of a constant donor all draws are the same; the kinds are given, so that each is drawn.
    table = table_of(image).assign(kind=["redundant", "synergistic", "none"])
    axes = plot_interactions(table, image, roi=torch.eye(8, dtype=torch.bool), title="$x$").axes[0]
    colors = [to_hex(arc.get_edgecolor()) for arc in axes.patches]
    assert colors == ["#bfbfbf", "#2166ac", "#b2182b"]
    assert axes.patches[-1].get_linewidth() > axes.patches[0].get_linewidth()
    ends = {tuple(map(tuple, line.get_xydata())) for line in axes.lines}
    assert ((1.5, 1.5), (5.5, 1.5)) in ends  # column, row of units 0 and 1
    assert axes.get_title() == "$x$"


def test_volumes_and_the_most_arcs():
    image = torch.ones(1, 1, 8, 8, 6)
    table = table_of(image[..., 0]).assign(first_2=1.0, second_2=1.0)
    assert len(plot_interactions(table, image, max_arcs=2).axes[0].patches) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"table": pd.DataFrame({"example": [0]})},
            "table: expected one of interactions of parts of the image, got one without",
        ),
        ({"example": 1}, r"example: expected one of \[0\], got 1"),
        ({"table": 3}, "table: expected a table of interactions"),
        ({"max_arcs": 0}, "max_arcs: expected"),
    ],
)
def test_bad_arguments(change, message):
    image = torch.ones(1, 1, 8, 8)
    with pytest.raises((ValueError, TypeError), match=message):
        plot_interactions(**{"table": table_of(image), "image": image, **change})


def test_components_are_boxes_beside_the_image():
    image = torch.ones(1, 1, 8, 8)
    units = table_of(image)
    mixed = units.assign(second=["first.conv", "bottleneck[3]", "first.conv"], second_0=float("nan"), second_1=float("nan"))
    axes = plot_interactions(mixed, image).axes[0]
    boxes = {text.get_text(): text for text in axes.texts}
    assert set(boxes) == {"first.conv", "bottleneck[3]"}
    assert all(box.get_position()[0] > 8 and box.get_bbox_patch() is not None for box in boxes.values())
    assert len({box.get_position()[1] for box in boxes.values()}) == 2
    assert len(axes.patches) == 3
    assert all(len(line.get_xydata()) == 1 for line in axes.lines), "a dot in the unit, none in the box"
    ends = {tuple(arc._posA_posB[1]) for arc in axes.patches}
    assert ends == {box.get_position() for box in boxes.values()}
