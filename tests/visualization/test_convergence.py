"""The picture of effects and errors against the work that they took."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from picture_cases import statistics_of

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, regions
from captum_causalseg.visualization import plot_convergence

MASK = np.arange(4)[None]
ESTIMATED, SCREENED, EXCLUDED = Status.ESTIMATED, Status.SCREENED, Status.EXCLUDED


def run(effect, error, forwards, *, draws=10, status=ESTIMATED, axes=(), mask=MASK):
    effect = np.array(effect)[None]
    return statistics_of(effect, mask, error, status, n_draws=draws, axes=axes, forwards=forwards)


def lines(axes):
    """Label to points; what errorbar draws counts as one line."""
    handles, labels = axes.get_legend_handles_labels()
    return {name: np.asarray((h[0] if hasattr(h, "has_yerr") else h).get_xydata()) for h, name in zip(handles, labels)}


def test_root_mean_squares_by_hand():
    few = run([0.3, -0.1, 0.02, 0.0], [[0.3, 0.4, 0.0, 0.0]], 40)
    many = run([0.2, -0.2, 0.01, 0.0], [[0.03, 0.04, 0.0, 0.0]], 400)
    truth = run([0.2, -0.1, 0.01, 0.0], 0.0, 4000)
    figure = plot_convergence([many, few], truth, score_name="Dice", title="a title")
    found = lines(figure.axes[1])
    np.testing.assert_allclose(found["standard error"], [[40, 0.25], [400, 0.025]])
    # Of the differences 0.1, 0, 0.01, 0 and 0, 0.1, 0, 0.
    expected = [[40, math.sqrt(0.0101 / 4)], [400, 0.05]]
    np.testing.assert_allclose(found["error against the reference"], expected)
    np.testing.assert_allclose(found["four times the work, half the error"], [[40, 0.25], [400, 0.25 / math.sqrt(10)]])
    assert (figure.axes[1].get_xscale(), figure.axes[1].get_yscale()) == ("log", "log")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["40", "400"]
    assert figure.get_suptitle() == "a title"
    assert figure.get_supxlabel() == "dashed: the reference"


def test_the_strongest_units_with_their_intervals():
    few = run([0.3, -0.1, 0.02, -0.9], [[0.1, 0.2, 0.1, 0.1]], 40, status=[[ESTIMATED, ESTIMATED, ESTIMATED, EXCLUDED]])
    many = run([0.2, -0.4, 0.01, 0.0], 0.01, 400)
    figure = plot_convergence([few, many], n_units=2)
    found = lines(figure.axes[0])
    # The excluded unit has no effect in the first run; the strongest are those of the last.
    assert list(found) == ["unit 1", "unit 0"]
    np.testing.assert_allclose(found["unit 1"][:, 1], [-0.1, -0.4])
    np.testing.assert_allclose(found["unit 0"][:, 1], [0.3, 0.2])
    # Side by side, nowhere near the next run.
    assert found["unit 1"][0, 0] < 40 < found["unit 0"][0, 0] < 100
    whiskers = [container.lines[2][0].get_segments() for container in figure.axes[0].containers]
    half = 1.959964 * 0.2
    np.testing.assert_allclose(whiskers[0][0][:, 1], [-0.1 - half, -0.1 + half], rtol=1e-4)
    # With a reference, the strongest of that, at its level.
    truth = run([0.0, 0.1, 0.5, 0.2], 0.0, 9)
    figure = plot_convergence([few, many], truth, n_units=1)
    assert list(lines(figure.axes[0])) == ["unit 2"]
    dashed = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed == [0.5]


def test_only_units_that_every_run_knows_count():
    status = [[ESTIMATED, SCREENED, ESTIMATED, EXCLUDED]]
    few = run([0.1, 0.1, 0.1, 0.1], [[0.3, 0.5, 0.1, 0.1]], 10, status=status, draws=[[8, 2, 5, 0]])
    status = [[ESTIMATED, SCREENED, EXCLUDED, ESTIMATED]]
    many = run([0.1, 0.1, 0.1, 0.1], [[0.1, 0.2, 0.1, 0.1]], 20, status=status, draws=[[80, 3, 0, 9]])
    found = lines(plot_convergence([few, many], against="draws").axes[1])["standard error"]
    np.testing.assert_allclose(found, [[5, math.sqrt(0.17)], [41.5, math.sqrt(0.025)]])


def test_unknown_standard_errors_are_left_out():
    few, some, many = (run([0.1, 0.1, 0.1, 0.1], error, n) for error, n in ((math.inf, 4), (0.4, 8), (0.2, 16)))
    some.standard_error[0, 0] = math.inf
    many.standard_error[0, 0] = 7.0
    found = lines(plot_convergence([few, some, many]).axes[1])["standard error"]
    np.testing.assert_allclose(found, [[8, 0.4], [16, 0.2]])


def test_the_output_and_the_example():
    effect = np.arange(16).reshape(2, 4, 2) / 10
    both = [statistics_of(effect, MASK, 0.1, axes=("class",), forwards=n) for n in (10, 20)]
    found = lines(plot_convergence(both, target=1, example=1, n_units=1).axes[0])
    assert list(found) == ["unit 3"]
    np.testing.assert_allclose(found["unit 3"][:, 1], 1.5)
    with pytest.raises(ValueError, match="target: the forward function has 2 outputs"):
        plot_convergence(both)
    with pytest.raises(ValueError, match="example: expected an integer from 0 to 1, got 2"):
        plot_convergence(both, target=0, example=2)


@pytest.mark.parametrize(
    ("error", "said"), [(0.0, "every error is 0"), (math.inf, "no standard error is known"), (0.1, "standard error")]
)
def test_a_single_run(error, said, tmp_path):
    figure = plot_convergence([run([0.1, 0.2, 0.3, 0.0], error, 10)])
    figure.savefig(tmp_path / "picture.png")
    assert said in [text.get_text() for text in figure.axes[1].texts] + list(lines(figure.axes[1]))


def test_an_exact_run_is_said_to_be_left_out():
    runs = [run([0.1, 0.2, 0.3, 0.0], error, n) for error, n in ((0.1, 10), (0.0, 100))]
    figure = plot_convergence(runs)
    assert figure.get_supxlabel() == "an error of 0 is not drawn"
    assert lines(figure.axes[1])["standard error"].tolist() == [[10, 0.1]]


def test_ticks_of_near_runs_do_not_overlap():
    runs = [run([0.1, 0.2, 0.3, 0.0], 0.1, n) for n in (1000, 1001, 1010, 1100, 2000, 2010, 8000)]
    figure = plot_convergence(runs)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in axes.get_xticklabels()]
        assert len(boxes) >= 3
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_errors_of_a_real_explanation_shrink():
    model = torch.nn.Conv2d(1, 2, 5, padding=2)
    image, roi = torch.rand(1, 1, 16, 16), regions.box((16, 16), 4, 4)
    ate = AverageTreatmentEffect(SegmentationTarget(model, roi=roi, metric="probability_mean"))
    bank = PatchBank(torch.rand(40, 1, 4, 4))
    common = {"target": 1, "block_size": 4, "n_screening_draws": 0, "return_statistics": True, "sampling": "uniform"}
    runs = [ate.attribute(image, bank, n_draws=n, **common)[1] for n in (4, 8, 20)]
    truth = ate.attribute(image, bank, n_draws=40, **common)[1]
    found = lines(plot_convergence(runs, truth, target=1).axes[1])
    errors = found["standard error"][:, 1]
    assert (np.diff(errors) < 0).all()
    # The standard errors are about the errors.
    assert found["error against the reference"][:, 1] == pytest.approx(errors, rel=0.8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runs": []}, ValueError, r"runs: expected a sequence of TreatmentEffectStatistics, got \[\]"),
        ({"runs": run([1.0] * 4, 0.1, 1)}, TypeError, "runs: expected a sequence of TreatmentEffectStatistics, got Treatment"),
        ({"runs": [1]}, TypeError, r"runs\[0\]: expected TreatmentEffectStatistics, got int"),
        (
            {"runs": [run([1.0] * 4, 0.1, 1), run([1.0], 0.1, 1, mask=np.array([[0]]))]},
            ValueError,
            r"runs\[1\]: expected effects of shape \(1, 4\) as in runs\[0\], got \(1, 1\)",
        ),
        (
            {"reference": run([1.0] * 4, 0.1, 1, mask=MASK + 1)},
            ValueError,
            "reference: its units have other ids than those of runs",
        ),
        ({"n_units": 0}, ValueError, "n_units: expected at least 1, got 0"),
        ({"against": "time"}, ValueError, r"against: expected \"forwards\" or \"draws\", got 'time'"),
        ({"runs": [run([1.0] * 4, 0.1, 1, status=EXCLUDED)]}, ValueError, "runs: there is no unit that all of them"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        plot_convergence(**{"runs": [run([1.0] * 4, 0.1, 1)], **arguments})
