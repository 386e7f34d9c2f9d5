"""A bar that never runs backwards, and says before it begins what is to come."""

import re

import pytest
import torch

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg.attr import progress
from captum_causalseg.attr.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "a second"), (1, "1 s"), (100.4, "100 s"), (150, "2 min"), (6000, "100 min"), (9000, "2.5 h")],
)
def test_a_time_in_words(seconds, said):
    assert duration(seconds) == said


@pytest.fixture
def every_change(monkeypatch):
    """Everything is written, however soon."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_IN_FILES", 0.0)


def test_what_is_left_may_turn_out_less_but_never_more(every_change, capfd):
    with Progress("Some", True) as bar:
        bar.doing("thinking")
        assert not bar.has_begun
        bar.begin(7, most=100, noun="windows", pace=0.5)
        assert bar.has_begun
        for made, left in ((10, 90), (20, 60), (30, 400), (40, 20), (41, 19), (55, 0)):
            bar.advance(made, left=left)
        bar.finish()
    said = capfd.readouterr().err
    assert "Some: thinking [" in said
    assert "Some: 7 windows so far, at most 100 to come, about 50 s\n" in said
    counts = [(int(n), int(total)) for n, total in re.findall(r"\| (\d+)/(\d+) ", said)]
    assert counts[0] == (0, 100)
    assert counts[-1] == (55, 55)
    assert [total for _, total in counts] == sorted((total for _, total in counts), reverse=True)
    assert [n / total for n, total in counts] == sorted(n / total for n, total in counts)
    assert (40, 60) in counts


def test_no_time_is_said_where_none_was_measured(capfd):
    with Progress("Some", True) as bar:
        bar.begin(7, most=100, noun="forward passes", pace=None)
    assert "Some: 7 forward passes so far, at most 100 to come\n" in capfd.readouterr().err


def test_what_they_are_for_is_said_where_there_are_others(capfd):
    with Progress("Some", True) as bar:
        bar.begin(7, most=100, noun="windows", pace=1.0, purpose="for scores")
    assert "Some: 7 windows so far, at most 100 to come for scores, about 100 s\n" in capfd.readouterr().err


def test_nothing_is_shown_unless_it_is_asked_for(capfd):
    with Progress("Some", False) as bar:
        assert not bar.shown
        bar.doing("thinking")
        bar.begin(7, most=100, noun="windows", pace=0.5)
        bar.advance(10, left=0)
        bar.finish()
    assert capfd.readouterr().err == ""


def test_an_error_leaves_the_bar_where_it_was(every_change, capfd):
    def stop():
        with Progress("Some", True) as bar:
            bar.begin(0, most=100, noun="windows", pace=None)
            bar.advance(10, left=90)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    assert capfd.readouterr().err.strip().split("\r")[-1].startswith("Some:  10%")


def explained(report):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 5, padding=2), torch.nn.BatchNorm2d(2)).eval()
    network[0].train()
    target = SegmentationTarget(network, roi=regions.box((24, 24), 8, 8), metric="logit_mean")
    try:
        AverageTreatmentEffect(target).attribute(torch.rand(1, 1, 24, 24), target=1, n_draws=4, show_progress=report)
    finally:
        assert [module.training for module in network.modules()] == [False, True, False]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_function_is_told_in_place_of_a_bar(capfd):
    told = []
    explained(lambda *said: told.append(said))
    begun = [number for number, (_, _, most) in enumerate(told) if most]
    assert all(most == 0 and done == 0 for _, done, most in told[: begun[0]])
    assert told[begun[0]][0].startswith(f"at most {told[begun[0]][2]} forward passes to come")
    (_, done, most), counts = told[-1], [done for _, done, _ in told]
    assert done == most > 0
    assert counts == sorted(counts)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("when", ["before the interventions", "while they are made"])
def test_what_the_function_raises_ends_the_call_and_leaves_the_model_as_it_was(when):
    class Cancelled(Exception):
        pass

    def report(what, done, most):
        if when == "before the interventions" or done:
            raise Cancelled

    with pytest.raises(Cancelled):
        explained(report)


def test_only_a_function_or_whether_can_be_said():
    with pytest.raises(TypeError, match=r"^show_progress: expected True or False or a callable, got str"):
        explained("yes")
