"""Names of files, cases and classes, whatever letters they hold, in pictures, tables and printed lines."""

import csv
import io
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from picture_cases import case, statistics_of
from torch import nn

import captum_causalseg
from captum_causalseg import (
    AverageTreatmentEffect,
    PromptTreatmentEffect,
    SegmentationTarget,
    interaction_effects,
    pathway,
    sufficient_region,
    visualization,
)
from captum_causalseg.cohort import explain_cohort
from captum_causalseg.evaluation.comparison import Comparison
from captum_causalseg.evaluation.donor_comparison import DonorComparison
from captum_causalseg.evaluation.influence import InfluenceMatrix
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.interventions.support import Support
from captum_causalseg.writing.names import encodable, printable, write_csv

# A formula that cannot be parsed, a byte that is no UTF-8, and what a price looks like.
ODD = os.fsdecode(b"$\\nope$ scan-\xff for $5 and $6")
SHOWN = r"$\nope$ scan-\xff for $5 and $6"
# Tables cannot hold such bytes.
FORMULA = r"$\nope$ for $5 and $6"


def convergence():
    mask = np.arange(4).reshape(2, 2)
    runs = [statistics_of([[0.1, 0.2, 0.3, 0.0]], mask, 0.1 / n, n_draws=n, forwards=10 * n) for n in (1, 4)]
    return visualization.plot_convergence(runs, title=ODD, score_name=ODD)


def components():
    about = {"example": 0, "module": [FORMULA, "b"], "part": [FORMULA, "b"], "order": [0, 1], "effect": [0.3, -0.1]}
    table = pd.DataFrame(about | {"standard_error": 0.05, "lower": [0.2, -0.2], "upper": [0.4, 0.0]})
    return visualization.plot_components(table, title=ODD, score_name=ODD)


def influence():
    frame = pd.DataFrame([[0.1, -0.2]], index=pd.Index([0], name="unit"))
    matrix = InfluenceMatrix(frame, frame.abs() / 9, frame > 0)
    return visualization.plot_influence(matrix, ODD, ODD, ["one", ODD], [ODD])


def comparison():
    row = {"method": FORMULA, "example": 0, "metric": "irof", "value": 0.1, "score_direction": "higher", "source": ""}
    table = pd.DataFrame([row | {"forwards": 3.0, "seconds": 1.0}])
    found = Comparison(table, {FORMULA: torch.ones(1, 1, 8, 8)}, torch.rand(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool))
    return visualization.plot_comparison(found, title=ODD)


def support():
    found = Support((torch.eye(16, dtype=torch.bool)[None, None],), 1, None)
    return visualization.plot_support(torch.rand(1, 1, 16, 16), found, title=ODD)


def of_effects(spatial, plot=visualization.plot_effects):
    image, statistics, roi = case(spatial, 4, 4, 4)
    return plot(image, statistics, roi, title=ODD, score_name=ODD)


def donors():
    image, statistics, roi = case((16, 16), 4, 4, 4)
    found = DonorComparison({ODD: statistics, "zeros": statistics}, alpha=0.05, image=image, roi=roi[None])
    return visualization.plot_donors(found, title=ODD, score_name=ODD)


def profile():
    _, statistics, roi = case((24, 24), 4, 8, 8)
    return visualization.plot_profile(perception_profile(statistics, roi), ODD, ODD)


def region():
    largest = nn.Sequential(nn.Flatten(), nn.AdaptiveMaxPool1d(1))
    found = sufficient_region(largest, torch.ones(1, 1, 8, 8), 0.0, block_size=4)
    return visualization.plot_region(torch.ones(1, 1, 8, 8), found, title=ODD)


def heads():
    one = {"example": 0, "module": FORMULA, "order": 0, "head": 0, "effect": 0.1, "lower": 0.0, "upper": 0.2, "p_value": 0.1}
    return visualization.plot_heads(pd.DataFrame([one]), title=ODD, score_name=ODD)


def prompts():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 2, 2] = 1.0
    method = PromptTreatmentEffect(lambda image: image.sum((1, 2, 3)), maps=[0])
    statistics = method.attribute(images, return_statistics=True)[1]
    return visualization.plot_prompts(images, statistics, title=ODD, score_name=ODD)


def of_pathway():
    largest = nn.Sequential(nn.Flatten(), nn.AdaptiveMaxPool1d(1))
    found = pathway(largest, torch.ones(1, 1, 8, 8), 0.0, region_units=0, layers="0", block_size=4)
    return visualization.plot_pathway(found, title=ODD, score_name=ODD)


def interactions():
    largest = nn.Sequential(nn.Flatten(), nn.AdaptiveMaxPool1d(1))
    table = interaction_effects(largest, torch.ones(1, 1, 8, 8), 0.0, top=2, block_size=4, n_draws=2)
    return visualization.plot_interactions(table, torch.ones(1, 1, 8, 8), title=ODD)


PICTURES = {
    "plot_donors": donors,
    "plot_effects": lambda: of_effects((16, 16)),
    "plot_volume": lambda: of_effects((12, 12, 12), visualization.plot_volume),
    "plot_profile": profile,
    "plot_support": support,
    "plot_comparison": comparison,
    "plot_components": components,
    "plot_convergence": convergence,
    "plot_heads": heads,
    "plot_influence": influence,
    "plot_interactions": interactions,
    "plot_prompts": prompts,
    "plot_region": region,
    "plot_pathway": of_pathway,
}


def test_every_picture_is_tried():
    assert sorted(PICTURES) == visualization.__all__


@pytest.mark.parametrize("name", PICTURES)
def test_names_are_drawn_letter_by_letter(name, monkeypatch):
    figure = PICTURES[name]()
    assert SHOWN in " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())
    formulas = []
    parse = MathTextParser.parse

    def recorded(self, text, *more, **options):
        formulas.append(text)
        return parse(self, text, *more, **options)

    monkeypatch.setattr(MathTextParser, "parse", recorded)
    figure.savefig(io.BytesIO(), format="png")
    # Powers of ten are matplotlib's own.
    assert all(text.startswith(r"$\mathdefault{") for text in formulas)


def test_powers_of_ten_are_still_formulas():
    axes = profile().axes[1]
    assert axes.get_yscale() == "log"
    assert {label.get_parse_math() for label in axes.get_yticklabels()} == {True}
    assert axes.xaxis.label.get_parse_math() is False


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.png", "plain.png"),
        ("gr\u00fc\u00df-\u8111.png".encode(), "gr\u00fc\u00df-\u8111.png"),
        (b"latin-\xfc.png", r"latin-\xfc.png"),
        (b"\x1b[2J\n.png", r"\x1b[2J\n.png"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_file_name_is_printed_as_what_its_bytes_mean_in_any_locale(name, shown, encoding):
    assert printable(name.decode(encoding, "surrogateescape")) == shown


@given(st.text(st.characters(codec=None)))
def test_whatever_comes_can_be_encoded_and_what_can_be_is_left_alone(text):
    encodable(text).encode("utf-8")
    printable(text).encode("utf-8")
    assert encodable(encodable(text)) == encodable(text)
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert encodable(text) == text


def test_spreadsheets_compute_nothing(tmp_path):
    names = ["=1+2", '+HYPERLINK("x")', "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "a=b", "-5", "+0.5", "-5 ", "", "\udcff"]
    table = pd.DataFrame({"=name": pd.Series(names, dtype=object), "effect": np.linspace(-1, 1, len(names)), "kept": -3})
    before = table.copy()
    write_csv(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(table, before)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=name", "effect", "kept"]
    expected = [f"'{name}" for name in names[:5]] + ["'\n=1", "'\uff1d1"] + ["a=b", "-5", "+0.5", "'-5 ", "", r"\xff"]
    assert [row[0] for row in rows] == expected
    assert [float(row[1]) for row in rows] == table["effect"].tolist()
    assert {row[2] for row in rows} == {"-3"}


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_texts_of_every_type_are_written_as_texts(tmp_path, kind):
    table = pd.DataFrame({"name": pd.Series(["=1", None, "b"], dtype=kind)})
    write_csv(table, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == ["name", "'=1", '""', "b"]


def test_every_table_of_the_package_is_written_by_one_function():
    files = [
        file for file in Path(captum_causalseg.__file__).parent.rglob("*.py") if file.parts[-2:] != ("writing", "names.py")
    ]
    assert not [file for file in files if re.search(r"to_csv\(|csv\.writer", file.read_text(encoding="utf-8"))]


def test_cases_are_kept_whatever_they_are_called(tmp_path):
    def make_target(case):
        return SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 3, padding=1), case["image"][None])

    def prepare(case):
        if case["site"] == "failing":
            raise ValueError(f"no {ODD}")
        return case

    cases = [
        {"id": ODD, "site": ODD, "image": torch.rand(1, 8, 8)},
        {"id": "b", "site": "failing", "image": torch.rand(1, 8, 8)},
    ]
    options = {"baselines": 0.0, "block_size": 4, "n_draws": 1, "target": 1, "exclude": None, "show_progress": False}
    study = explain_cohort(
        *(cases, make_target),
        method=AverageTreatmentEffect,
        out=tmp_path / "study",
        prepare=prepare,
        columns=["site"],
        **options,
    )
    table = study.cases()
    assert table[["id", "site", "state"]].values.tolist() == [[SHOWN, SHOWN, "finished"], ["b", "failing", "failed"]]
    assert table["error"].iloc[1] == f"ValueError: no {SHOWN}"
    assert set(study.units()["case"]) == {SHOWN}
