"""The picture of a comparison over cases."""

import io

import numpy as np
import pandas as pd
import pytest

from captum_causalseg import summarize_comparison
from captum_causalseg.cohort import plot_cohort_comparison
from captum_causalseg.cohort.comparison_figures import _cliques


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    rows = []
    for number, method in enumerate(["ours", "$other$", "third", "silent"]):
        for case in range(8):
            value = np.nan if method == "silent" else generator.normal(-number, 0.5)
            kind = ("missed", "boundary")[case % 2]
            rows.append((case, method, "irof", value, "higher", kind))
    return pd.DataFrame(rows, columns=["case", "method", "metric", "value", "score_direction", "kind"])


def test_methods_stand_in_order_with_intervals_differences_and_ranks(table):
    figure = plot_cohort_comparison(summarize_comparison(table, against="ours"), "irof", title="8 cases")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ours", "$other$", "third"]
    assert [axes.get_title() for axes in figure.axes] == ["irof (higher is better)", "difference from ours", "mean ranks"]
    said = [text.get_text() for text in figure.axes[2].texts]
    assert said[0] == "ours  1.00"
    figure.savefig(io.BytesIO(), format="png")
    assert len(summarize_comparison(table).plot("irof").axes) == 2


def test_groups_are_chosen(table):
    summary = summarize_comparison(table, against="ours", by="kind")
    first = plot_cohort_comparison(summary, "irof")
    other = plot_cohort_comparison(summary, "irof", group={"kind": "missed"})
    assert first.get_supxlabel().startswith("kind boundary;")
    assert other.get_supxlabel().startswith("kind missed;")
    with pytest.raises(ValueError, match="group: there is no group"):
        plot_cohort_comparison(summary, "irof", group={"kind": "inside"})
    with pytest.raises(ValueError, match=r"group: expected a value for each of \['kind'\]"):
        plot_cohort_comparison(summary, "irof", group={"site": "A"})
    with pytest.raises(ValueError, match="metric: expected one of irof, got 'leakage'"):
        plot_cohort_comparison(summary, "leakage")
    with pytest.raises(ValueError, match="no method has a value of 'irof'"):
        plot_cohort_comparison(summarize_comparison(table[table["method"] == "silent"]), "irof")


def test_bars_join_what_is_not_told_apart():
    assert _cliques(np.array([1.0, 1.5, 2.2, 4.0]), 1.0) == [(1.0, 1.5), (1.5, 2.2)]
    assert _cliques(np.array([1.0, 1.5, 1.8]), 1.0) == [(1.0, 1.8)]
    assert _cliques(np.array([1.0, 2.5]), 1.0) == []
