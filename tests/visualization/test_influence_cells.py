"""Pictures of influence: what is significant, what is unknown, and no negative zeros."""

import numpy as np
import pytest
from profile_cases import grouped_statistics, make

from captum_causalseg.evaluation.influence import influence_matrix
from captum_causalseg.visualization import plot_influence


def test_the_picture_of_influence_marks_what_is_significant_and_hatches_what_is_unknown(tmp_path):
    statistics, _, _ = grouped_statistics()
    figure = plot_influence(influence_matrix(statistics), title="a title", roi_names=["left", "right"])
    figure.savefig(tmp_path / "influence.png")
    axes = figure.axes[0]
    # Standard errors 0.1 and 0.2 against 0.2 and 0.3: not significant; 0.4 / 0.3 neither.
    shown = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert shown == {
        **{(1, 0): "0.1", (0, 1): "0.2", (1, 1): "0.3", (0, 2): "0.4", (1, 2): "-0.5*"},
        **{(0, 3): "0.6*", (1, 3): "0.7*", (0, 4): "0.8", (0, 5): "1.0*"},
    }
    assert [t.get_text() for t in axes.get_xticklabels()] == ["left", "right"]
    assert axes.get_ylabel() == "unit"
    assert axes.patch.get_hatch() == "////"
    assert axes.images[0].norm.vcenter == 0
    assert axes.images[0].norm.vmax == -axes.images[0].norm.vmin == pytest.approx(1)
    assert axes.images[0].get_array().mask.sum() == 3
    red, _, blue = axes.images[0].to_rgba(np.array([[1.0, 0.0, -1.0]]))[0, :, :3].argmax(-1)
    assert (red, blue) == (0, 2)
    assert "hatched" in figure.get_supxlabel()


def test_large_influence_matrices_have_dots_for_numbers(tmp_path):
    effect = np.linspace(-1, 1, 200).reshape(1, 100, 2)
    statistics = make(effect, 0.2, np.arange(100)[None], axes=("roi",))
    matrix = influence_matrix(statistics)
    figure = plot_influence(matrix)
    figure.savefig(tmp_path / "influence.png")
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    assert len(axes.lines) == int(matrix.significant.to_numpy().sum()) > 0
    assert axes.get_ylabel() == "unit (100 of them)"
    assert figure.get_supxlabel() == "dot: significant"


def test_no_negative_zeros_in_the_picture():
    statistics = make(np.array([[[-1e-9, 0.0], [0.5, -0.5]]]), 1.0, np.array([[0, 1]]), axes=("roi",))
    texts = [t.get_text() for t in plot_influence(influence_matrix(statistics)).axes[0].texts]
    assert texts == ["0.00", "0", "0.50", "-0.50"]
