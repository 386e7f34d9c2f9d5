"""One object on standard output, for other programs."""

import json

import pandas as pd
import pytest
from command_line import on_picture, status_of

from captum_causalseg import TreatmentEffectStatistics


@pytest.mark.parametrize("command", ["explain", "refute", "components", "compare", "region"])
def test_an_object_and_nothing_else(quick, capsys, command):
    folder, name = quick
    more = {"explain": ["--components", "*"], "refute": ["--refuters", "seed"]}.get(command, [])
    given = ["--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "8", "--metric", "soft_dice"]
    assert status_of(on_picture(name, *given, *more, "--json", command=command)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["metric"], found["folder"]) == (command, "soft_dice", "out")
    assert found["files"] == sorted(file.name for file in (folder / "out").iterdir())
    assert found["case"]["region_of_interest"].startswith("box:8,8+8")
    if command in ("explain", "refute"):
        stats = TreatmentEffectStatistics.load("out/statistics.npz").of_output(1)
        assert found["observed_score"] == pytest.approx(float(stats.observed_score))
        assert found["parts"]["significant"] == int(stats.significant(0.05).sum())
        table = pd.read_csv("out/effects.csv").query("`class` == 1").set_index("unit")
        first = found["strongest"][0]
        assert first["effect"] == pytest.approx(table.loc[first["unit"], "effect"])
        assert abs(first["effect"]) == pytest.approx(table["effect"].abs().max())
    part = {"explain": "components", "refute": "refutation", "compare": "comparison", "region": "regions"}.get(command, command)
    assert isinstance(found[part][0], dict)


def test_what_was_chosen_is_in_the_object(quick, capsys):
    _, name = quick
    arguments = on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--units", "8", "--json")
    arguments[arguments.index("box:8,8+8")] = "error:missed:1"
    assert status_of(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "detection"
    assert found["chosen"][0].startswith("error:missed:1: the largest missed part: ")
