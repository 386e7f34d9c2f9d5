"""What is finished is kept, whatever becomes of the rest."""

import pandas as pd
import pytest
from command_line import on_picture, status_of

from captum_causalseg import TreatmentEffectStatistics
from captum_causalseg.cli import donors, modules, ways
from captum_causalseg.evaluation.refute import refuters

EFFECTS = ["effects.csv", "effects.png", "report.html", "statistics.npz"]


def fails(error):
    def fail(*args, **options):
        raise error

    return fail


def given(name, *more):
    return on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "8", *more)


@pytest.mark.parametrize(
    ("more", "room", "what"),
    [
        (["--components", "*"], modules, "component_effects"),
        (["--compare-donors"], donors, "compare_donors"),
        (["--refute"], refuters, "RefutationContext"),
        (["--pathway", "0"], ways, "pathway"),
    ],
)
def test_effects_are_kept_where_a_later_part_fails(quick, capsys, monkeypatch, more, room, what):
    folder, name = quick
    assert status_of(given(name)) == 0
    capsys.readouterr()
    expected = pd.read_csv("out/effects.csv")
    for file in (folder / "out").iterdir():
        file.unlink()
    monkeypatch.setattr(room, what, fails(RuntimeError("no memory left")))
    with pytest.raises(RuntimeError, match="no memory left"):
        status_of(given(name, *more))
    assert sorted(file.name for file in (folder / "out").iterdir()) == EFFECTS
    printed = capsys.readouterr()
    assert printed.out.startswith("image.png: dice in box:8,8+8 is ")
    assert f"kept in out/: {', '.join(EFFECTS)}" in printed.err
    pd.testing.assert_frame_equal(pd.read_csv("out/effects.csv"), expected)
    TreatmentEffectStatistics.load("out/statistics.npz")


def test_an_interruption_says_that_what_was_finished_is_kept(quick, capsys, monkeypatch):
    folder, name = quick
    monkeypatch.setattr(modules, "component_effects", fails(KeyboardInterrupt()))
    assert status_of(given(name, "--components", "*")) == 130
    assert "causalseg explain: interrupted, what was finished is kept" in capsys.readouterr().err
    assert sorted(file.name for file in (folder / "out").iterdir()) == EFFECTS
