"""`causalseg pathway`, as a person meets it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import on_picture

from captum_causalseg import cli

SOFT = ("--metric", "soft_dice", "--draws", "6")


def test_a_region_of_a_picture(place, capsys):
    _, name = place
    more = ["--label", "mask.png", "--donors", "donors", *SOFT, "--region", "box:2,8+6", "--layers", "0", "2"]
    assert cli.main(on_picture(name, *more, command="pathway")) == 0
    table = pd.read_csv("out/pathway.csv")
    assert table["layer"].tolist() == [0, 2]
    assert table["total"][0] != 0
    assert np.allclose(table["indirect"] + table["direct"] + table["interaction"], table["total"], atol=1e-6)
    said = capsys.readouterr().out
    assert f"the region's effect is {table['total'][0]:+.4f} [" in said
    assert f"  through 2: {table['indirect'][1]:+.4f} [" in said
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert f"{table['indirect'][1]:+.3g} [" in html
    assert "<dd>one region, box:2,8+6</dd>" in html
    assert sorted(file.name for file in Path("out").iterdir()) == ["pathway.csv", "pathway.png", "report.html"]


def test_a_region_out_of_reach(place, capsys):
    _, name = place
    assert cli.main(on_picture(name, *SOFT, "--region", "box:0,0+6", "--layers", "0", command="pathway")) == 0
    said = "he region cannot reach the region of interest through the network: its effect is 0"
    assert said in capsys.readouterr().out
    assert said in Path("out/report.html").read_text(encoding="utf-8")


def test_every_part_of_a_picture(place, capsys):
    _, name = place
    assert cli.main(on_picture(name, *SOFT, "--units", "4", "--layers", "0", command="pathway")) == 0
    table, by_distance = pd.read_csv("out/pathway.csv"), pd.read_csv("out/by_distance.csv")
    assert table["unit"].is_unique
    assert len(table) == 48
    assert by_distance["n_units"].sum() > 0
    assert "units have an effect that is told from 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--layers", "levels"],
            "--layers: 'levels' are known of the U-Nets of MONAI, nnU-Net and segmentation_models_pytorch, and Sequential is none of them; name its modules",
        ),
        (["--layers", "00"], "--layers: no module is named '00'"),
        (["--region", "box:0,0,0+6", "--layers", "0"], "--region: box:0,0,0+6 has 3 axes, the image 2"),
        (["--region", "label:1", "--layers", "0"], "--region: expected box:START+SIZE or a mask file, got 'label:1'"),
        (["--region", "none.png", "--layers", "0"], "--region: "),
    ],
)
def test_what_cannot_be_is_said_of_the_option(place, capsys, more, said):
    _, name = place
    assert cli.main(on_picture(name, *SOFT, *more, command="pathway")) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_section_of_the_report_of_explain(place, capsys):
    _, name = place
    more = [*SOFT, "--units", "4", "--components", "0", "--pathway", "0", "2"]
    assert cli.main(on_picture(name, "--label", "mask.png", "--donors", "donors", *more)) == 0
    table = pd.read_csv("out/pathway.csv")
    assert table["layer"].drop_duplicates().tolist() == [0, 2]
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert "Ways through the network</h2>" in html
    assert "By which ways" not in html
    assert {"by_distance.csv", "components.csv", "effects.csv", "pathway.png"} <= {file.name for file in Path("out").iterdir()}
    assert "units have an effect that is told from 0" in capsys.readouterr().out
    effects = pd.read_csv("out/effects.csv").query("`class` == 1").set_index("unit")["effect"]
    # The same draws, as none go where they are needed: from 12 on.
    total = table[table["layer"] == 0].set_index("unit")["total"].reindex(effects.index)
    assert np.allclose(total, effects, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pathway"], "--pathway: 'levels' are known of the U-Nets of MONAI"),
        (["--pathway", "00"], "--pathway: no module is named '00'"),
        (["--pathway", "statistics"], "--pathway: the model has no norm over space"),
        (["--pathway", "0", "--context", "shapley"], "--pathway: it is about effects of single parts"),
    ],
)
def test_what_cannot_be_in_explain_is_said_before_anything_is_computed(place, capsys, more, said):
    _, name = place
    assert cli.main(on_picture(name, *SOFT, *more)) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()
