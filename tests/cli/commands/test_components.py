"""`causalseg components`, as a person meets it."""

import re

import bundle_cases
import nibabel
import numpy as np
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


def test_components_of_a_bundle_that_runs_in_windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = bundle_cases.network(2).state_dict()
    bundle_cases.write(tmp_path / "bundle", weights, inference=bundle_cases.inference(2))
    (tmp_path / "donors").mkdir()
    generator = np.random.default_rng(0)
    for name in ("scan", "donors/0", "donors/1", "donors/2"):
        nibabel.save(nibabel.Nifti1Image(generator.uniform(0, 100, (32, 24)).astype("float32"), np.eye(4)), f"{name}.nii.gz")
    given = [
        "--bundle",
        "bundle",
        "--image",
        "scan.nii.gz",
        "--roi",
        "box:4,4+8",
        "--donors",
        "donors",
        "--metric",
        "soft_dice",
    ]
    assert cli.main(["components", *given, "--layers", "network.model.*conv", "--draws", "3", "--out", "out"]) == 0
    table = pd.read_csv("out/components.csv")
    assert set(table["module"]) >= {"network.model.0.conv", "network.model.2.conv"}
    assert (table["effect"].abs() > 1e-4).any()
    assert set(table["part"]) <= {"bottleneck", "decoder"}
