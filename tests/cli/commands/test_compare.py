"""`causalseg compare`, as a person meets it."""

import re

import pandas as pd
import pytest
from command_line import on_picture

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
