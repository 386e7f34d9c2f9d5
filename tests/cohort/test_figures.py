"""Pictures of a cohort."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from captum_causalseg.cohort import plot_cohort_components, plot_cohort_profile, summarize


def test_profile_picture_shows_each_group_with_its_intervals(near, far):
    summary = summarize({"near": near, "far": far})
    figure = plot_cohort_profile(summary, panels=("mean_absolute_effect", "share"), title="Two models", score_name="Dice")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["near (5 cases)", "far (4 cases)"]
    assert axes.get_ylabel() == "mean |effect| on the Dice"
    for study, drawn in zip(("near", "far"), axes.containers):
        rows = summary.profile[summary.profile["study"] == study]
        np.testing.assert_allclose(drawn.lines[0].get_ydata(), rows["mean_absolute_effect"])
        bars = np.array([segment[:, 1] for segment in drawn.lines[2][0].get_segments()])
        drawn_to = rows[["mean_absolute_effect_lower", "mean_absolute_effect_upper"]].dropna()
        np.testing.assert_allclose(bars[: len(drawn_to)], drawn_to)
    colors = [drawn.lines[0].get_color() for drawn in axes.containers]
    assert len({*colors}) == 2
    figure.savefig("/dev/null", format="png")


def test_components_picture_is_a_forest(components):
    summary = summarize({"one": components, "two": components})
    figure = plot_cohort_components(summary, max_rows=2)
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == 2
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 4
    assert all(text.startswith("n = ") for text in texts)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    first = summary.components.query("study == 'one'").set_index("module").loc[shown]
    # Prediction intervals first, the intervals of the mean above them.
    ends = [segment[:, 0] for segment in axes.collections[1].get_segments()]
    np.testing.assert_allclose(ends, first[["lower", "upper"]])
    figure.savefig("/dev/null", format="png")
    single = summarize(components, by="site")
    assert plot_cohort_components(single).axes[0].get_legend() is not None
    assert plot_cohort_components(summarize(components)).axes[0].get_legend() is None


def test_names_in_pictures_are_no_formulas(near, far, components):
    odd = r"$\nope$"
    for plot, first, second in ((plot_cohort_profile, near, far), (plot_cohort_components, components, components)):
        figure = plot(summarize({odd: first, "b": second}), title=odd, score_name=odd)
        assert odd in " ".join(text.get_text() for text in figure.axes[0].get_legend().get_texts())
        figure.savefig("/dev/null", format="png")


def test_pictures_of_something_else(near, components):
    with pytest.raises(TypeError, match=r"summary: expected a CohortSummary, got Cohort"):
        plot_cohort_profile(near)
    with pytest.raises(ValueError, match=r"summary: it has no profile"):
        plot_cohort_profile(summarize(components))
    with pytest.raises(ValueError, match=r"summary: it has no components"):
        plot_cohort_components(summarize(near))
    with pytest.raises(ValueError, match=r"panels: expected some of .*, got \('mass',\)"):
        plot_cohort_profile(summarize(near), panels=("mass",))
    with pytest.raises(ValueError, match=r"max_rows: expected at least 1, got 0"):
        plot_cohort_components(summarize(components), max_rows=0)
