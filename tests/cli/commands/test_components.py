"""`causalseg components`, as a person meets it."""

import re

import pandas as pd
import pytest
from command_line import on_picture

from captum_causalseg import cli


def test_components_are_in_the_report_with_their_intervals(place):
    folder, name = place
    assert cli.main(on_picture(name, "--label", "mask.png", command="components")) == 0
    table = pd.read_csv("out/components.csv", dtype={"module": str}).sort_values("order")
    best = table.loc[table["effect"].abs().idxmax()]
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    row = re.search(rf"<td>{best.module}(?: \(\+\d\))?</td>.*?</tr>", html)[0]
    assert f"{best.effect:+.4f}" in row
    assert f"[{best.lower:+.4f}, {best.upper:+.4f}]" in row


@pytest.mark.parametrize(("level", "modules", "count"), [("token", ["attention"], 12), ("head", ["attention.project"], 2)])
def test_components_by_token_and_by_head(place, capsys, level, modules, count):
    _, name = place
    more = ["--donors", "donors", "--label", "mask.png", "--metric", "soft_dice", "--level", level]
    layers = ["--layers", "attention" if level == "token" else "*"]
    assert cli.main(on_picture(name, *more, *layers, command="components", model="Tokens")) == 0
    table = pd.read_csv("out/components.csv")
    assert table["module"].unique().tolist() == modules
    assert sorted(table[level]) == list(range(count))
    assert f"{modules[0]} / {level} {table[level][0]}" in capsys.readouterr().out


def test_names_of_modules_are_no_formulas_in_a_spreadsheet(place):
    _, name = place
    assert cli.main(on_picture(name, command="components", model="Named")) == 0
    table = pd.read_csv("out/components.csv")
    assert table["module"].tolist() == ["'=1+2"]
    assert table["effect"].dtype == float
