"""The picture of attention heads: a row per layer, the numbers in their cells, and what is found and what is open."""

import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from captum_causalseg import component_effects
from captum_causalseg.visualization import plot_heads
from tests.common.transformer_cases import case

TABLE = pd.DataFrame(
    {
        "example": 0,
        "module": ["deep", "deep", "deep", "early"],
        "order": [7, 7, 7, 2],
        "head": [0, 1, 2, 0],
        "effect": [0.2, -0.1, 0.01, 0.05],
        "lower": [0.1, -0.2, -0.02, -0.01],
        "upper": [0.3, -0.05, 0.04, 0.11],
        "p_value": [0.0001, 0.001, 0.6, 0.09],
    }
)


def test_layers_stand_in_the_order_of_the_network_with_their_heads_side_by_side():
    axes = plot_heads(TABLE, score_name="Dice").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["early", "deep"]
    shown = axes.images[0].get_array()
    assert shown.filled(9).tolist() == [[0.05, 9, 9], [0.2, -0.1, 0.01]]
    said = {text.get_position(): text.get_text() for text in axes.texts}
    assert said == {(0, 0): "+0.05", (0, 1): "+0.20", (1, 1): "-0.10", (2, 1): "+0.01"}
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    framed = [(round(box.get_x() + 0.45), round(box.get_y() + 0.45)) for box in boxes if not box.get_hatch()]
    hatched = [(round(box.get_x() + 0.5), round(box.get_y() + 0.5)) for box in boxes if box.get_hatch()]
    assert sorted(framed) == [(0, 1), (1, 1)]
    assert sorted(hatched) == [(0, 0), (2, 1)]


def test_heads_of_a_transformer_fill_the_picture():
    _, target, images, donors = case("segformer", 2)
    table = component_effects(target, images, baselines=donors, level="head", output=1)
    axes = plot_heads(table, example=1).axes[0]
    assert axes.images[0].get_array().count(axis=1).tolist() == [1, 1, 2, 2]
    assert all(label.get_text().endswith("attention.o_proj") for label in axes.get_yticklabels())
    assert not any(patch.get_hatch() for patch in axes.patches)  # three donors, all used: effects are exact
    with pytest.raises(ValueError, match=r"^example: the table has no effects of example 2"):
        plot_heads(table, example=2)
    with pytest.raises(ValueError, match=r"^table: expected that of component_effects\(level=\"head\"\), got one without head"):
        plot_heads(table.drop(columns="head"))
