"""`causalseg compare`, as a person meets it."""

import re
import shutil

import pandas as pd
import pytest
from command_line import on_picture, status_of

from captum_causalseg import TreatmentEffectStatistics, cli


@pytest.mark.parametrize("command", ["compare", "refute"])
def test_torchscript_is_compared_and_refuted(place, command):
    folder, _ = place
    arguments = on_picture("", "--donors", "donors", "--label", "mask.png", command=command)
    arguments[2] = "two.ts"
    assert cli.main(arguments) == 0
    assert (folder / "out" / "report.html").is_file()


def test_the_comparison_marks_the_best_by_its_direction(place):
    folder, name = place
    more = ["--weights", "two.pt", "--donors", "donors", "--label", "mask.png"]
    assert cli.main(on_picture(name, *more, command="compare")) == 0
    table = pd.read_csv("out/comparison.csv")
    table = table[(table["metric"] == "infidelity") & ~table["method"].str.startswith("random")]
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    row = re.search(r"<td>infidelity</td>.*?</tr>", html)[0]
    assert re.findall(r"<td>([^<]+) \*</td>", row) == [f"{table['value'].min():.4g}"]


def test_the_legend_of_the_comparison_explains_every_score_as_it_is_computed(place):
    folder, name = place
    assert (
        cli.main(on_picture(name, "--weights", "two.pt", "--donors", "donors", "--label", "mask.png", command="compare")) == 0
    )
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr[^>]*><td>([a-z ,]+)</td>", html)
    legend = dict(re.findall(r"<dt>([a-z ,]+)</dt><dd>([^<]+)</dd>", html))
    explained = {one.strip() for names in legend for one in names.split(",")}
    scores = set(pd.read_csv("out/comparison.csv")["metric"])
    assert scores < set(rows)
    assert {one.split(",")[0] for one in scores} <= explained
    # |change outside| / (|change outside| + |change inside|), the strongest tenth replaced: not about attributions at all.
    assert "share of the second in both" in legend["leakage"]
    assert "tenth of the parts with the largest attributions is replaced" in legend["leakage"]


def test_joint_effects_are_compared_with_single_ones_and_refuted(place):
    folder, name = place
    more = ["--weights", "two.pt", "--donors", "donors", "--label", "mask.png", "--units", "8", "--context", "banzhaf"]
    assert cli.main(on_picture(name, *more, command="compare")) == 0
    methods = pd.read_csv("out/comparison.csv")["method"].unique().tolist()
    assert methods[:2] == ["treatment effects", "joint effects, banzhaf"]
    assert cli.main(on_picture(name, *more, "--refuters", "placebo,dose", command="refute")) == 0
    assert TreatmentEffectStatistics.load("out/statistics.npz").settings["context"] == "banzhaf"
    assert pd.read_csv("out/refutation.csv")["verdict"].tolist() == ["pass", "inconclusive"]
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"The effects are\s+joint, of each unit while each other one is replaced as well", page)
    assert cli.main(on_picture(name, *more, "--draws", "2", command="refute")) == 2


def write_cases(folder, name):
    options = {"model": f"{name}:two", "weights": "two.pt", "roi": "box:8,8+8", "draws": 4, "units": 8, "donors": "donors"}
    (folder / "study.yaml").write_text("".join(f"{key}: {value}\n" for key, value in options.items()))
    (folder / "cases.csv").write_text("id,image,label,site\na,image.png,mask.png,Bern\nb,other.png,mask.png,Jena\n")
    shutil.copy(folder / "donors" / "0.png", folder / "other.png")


def test_methods_are_compared_on_every_row_of_a_table(place, capsys):
    folder, name = place
    write_cases(folder, name)
    line = ["compare", "--cases", "cases.csv", "--config", "study.yaml", "--out", "many"]
    assert status_of(line) == 0
    said = capsys.readouterr().out
    assert "means of 2 cases:" in said
    assert "written to many/: scores.csv, means.csv, differences.csv, ranks.csv, comparison/" in said
    scores = pd.read_csv("many/scores.csv")
    methods = [
        "treatment effects",
        "gradient treatment effects",
        "integrated gradients",
        "feature ablation",
        "random (control)",
    ]
    assert scores["method"].unique().tolist() == methods
    assert scores.groupby("case")["site"].first().to_dict() == {"a": "Bern", "b": "Jena"}
    differences = pd.read_csv("many/differences.csv")
    assert set(differences["against"]) == {"treatment effects"}
    assert set(differences["n_pairs"]) <= {0, 1, 2}
    # The same line goes on: nothing is left to do, and nothing is done again.
    kept = {file: file.stat().st_mtime_ns for file in (folder / "many" / "comparison").rglob("map.npz")}
    assert len(kept) == 2 * 4
    assert status_of(line) == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    # A row by itself has the same numbers.
    more = ["--weights", "two.pt", "--donors", "donors", "--label", "mask.png", "--units", "8", "--draws", "4"]
    alone = on_picture(name, *more, command="compare")
    alone[alone.index("--normalize") + 1] = "none"
    assert status_of(alone) == 0
    one = pd.read_csv("out/comparison.csv").set_index(["method", "metric"])["value"]
    other = scores[scores["case"] == "a"].set_index(["method", "metric"])["value"]
    pd.testing.assert_series_equal(one.sort_index(), other.sort_index(), check_exact=True)


def test_with_a_table_nothing_else_is_said_on_the_line(place, capsys):
    folder, name = place
    write_cases(folder, name)
    for more, said in (
        (["--roi", "box:0,0+8", "--config", "study.yaml"], "--roi: with --cases, it is said in --config or in the table"),
        ([], "--config: it has to be given with --cases"),
    ):
        assert status_of(["compare", "--cases", "cases.csv", "--out", "many", *more]) == 2
        assert said in capsys.readouterr().err
    assert status_of(on_picture(name, "--config", "study.yaml", command="compare")) == 2
    assert "--config: it goes with --cases" in capsys.readouterr().err
    assert status_of(["compare", "--out", "many"]) == 2
    assert "the following arguments are required: --image, --roi" in capsys.readouterr().err
