"""The picture of a network's components."""

import pytest
from component_cases import unet
from matplotlib.figure import Figure

from captum_causalseg import component_effects
from captum_causalseg.visualization import plot_components


@pytest.mark.parametrize("level", ["module", "channel"])
def test_the_picture_has_a_bar_per_chain_in_forward_order(level, tmp_path):
    _, target, images, donors = unet()
    table = component_effects(target, images, "model.*", donors, level=level, output=1, n_draws=3, n_screening_draws=0)
    figure = plot_components(table, title="a title", max_bars=12)
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == len(axes.patches) <= 12
    widths = [bar.get_width() for bar in axes.patches]
    assert max(map(abs, widths)) == pytest.approx(table["effect"].abs().max())
    spans = {"encoder-bottleneck", "encoder-decoder", "bottleneck-decoder"}
    assert {text.get_text() for text in axes.texts} <= {"encoder", "bottleneck", "decoder"} | spans
    assert [bar.get_facecolor()[0] > bar.get_facecolor()[2] for bar in axes.patches] == [w >= 0 for w in widths]
    figure.savefig(tmp_path / "components.png")
    with pytest.raises(ValueError, match="example: the table has no effects of example 3"):
        plot_components(table, example=3)
