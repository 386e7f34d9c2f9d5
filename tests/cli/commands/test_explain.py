"""`causalseg explain`, as a person meets it."""

import argparse
import contextlib
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import on_picture, on_scan

from captum_causalseg import TreatmentEffectStatistics, cli, images
from captum_causalseg.cli import job as _cli_job
from captum_causalseg.cli import report as _cli_report
from captum_causalseg.cli.commands.explain import _to_come
from captum_causalseg.cli.places import find_roi
from captum_causalseg.preparation.grid import Grids
from captum_causalseg.preparation.image_files import FilePreparation
from captum_causalseg.visualization import plot_effects

nibabel = pytest.importorskip("nibabel")
pillow = pytest.importorskip("PIL.Image")


def test_explain_writes_a_folder_and_a_report_of_one_page(place, capsys):
    folder, name = place
    more = ["--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "4x8", "--all-units"]
    assert cli.main(on_picture(name, *more)) == 0
    printed = capsys.readouterr()
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["effects.csv", "effects.png", "report.html", "statistics.npz"]
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    assert f"dice in box:8,8+8 is {float(stats.observed_score[0, 1]):.4f}" in printed.out
    table = pd.read_csv("out/effects.csv")
    assert len(table) == 6 * 4 * 2
    best = table[(table["class"] == 1) & table["effect"].notna()].sort_values("effect").iloc[-1]
    line = f"{best.start_0}-{best.stop_0 - 1} x {best.start_1}-{best.stop_1 - 1}"
    assert re.search(rf"supports +{line} +{re.escape(f'{best.effect:+.4f}')}", printed.out)
    told = stats.of_output(1).significant(0.05)[0]
    printed_rows = [one for one in printed.out.splitlines() if re.match("  (supports|harms) ", one)]
    assert printed_rows
    for row in table[table["class"] == 1].itertuples():
        mark = f" {row.start_0}-{row.stop_0 - 1} x {row.start_1}-{row.stop_1 - 1} "
        for one in (one for one in printed_rows if mark in one):
            assert one.endswith("]  not told from 0") != bool(told[row.unit])
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert line in html
    assert f"[{best.lower:+.4f}, {best.upper:+.4f}]" in html
    assert "mask.png" in html
    assert "box:8,8+8" in html
    assert re.findall('<img alt="([^"]+)"', html) == [
        "The image with the outlines of the prediction and the reference and the region of interest",
        "The image with its region of interest, the effect of every unit, and its standard error",
        "Lower and upper end of the 95 % interval of every effect",
        "Shares of effects of either sign, and effects by distance",
    ]
    assert_is_one_page(html)


def assert_is_one_page(html):
    assert html.startswith("<!DOCTYPE html>")
    assert html.rstrip().endswith("</html>")
    assert not re.findall(
        r"""(?:src|href)=["'](?!data:|#)|url\(|@import|https?:""", re.sub("<script.*?</script>", "", html, flags=re.DOTALL)
    )  # nothing beside it
    for version in ("captum_causalseg: ", "torch: ", "captum: ", "monai: "):
        assert version in html


def test_the_weights_and_the_score_are_those_of_the_files(quick):
    _, name = quick
    assert cli.main(on_picture(name, "--weights", "two.pt", "--label", "mask.png")) == 0
    network = torch.jit.load("two.ts")
    image = torch.from_numpy(np.array(pillow.open("image.png"))).float()[None, None] / 255
    truth = torch.from_numpy(np.array(pillow.open("mask.png"))) > 0
    with torch.no_grad():
        found = network(image)[0].argmax(0) == 1
    found, truth = found[8:16, 8:16], truth[8:16, 8:16]
    expected = 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())
    assert float(TreatmentEffectStatistics.load("out/statistics.npz").observed_score[0, 1]) == pytest.approx(expected, abs=1e-6)


def test_torchscript_is_the_same_network(quick):
    _, name = quick
    assert cli.main(on_picture(name, "--weights", "two.pt", "--label", "mask.png")) == 0
    first = pd.read_csv("out/effects.csv")
    torch.jit.freeze(torch.jit.load("two.ts").eval()).save("frozen.ts")
    for file in ("two.ts", "frozen.ts"):
        arguments = on_picture(name, "--label", "mask.png", "--out", file[:-3])
        arguments[2] = file
        assert cli.main(arguments) == 0
        np.testing.assert_allclose(pd.read_csv(f"{file[:-3]}/effects.csv")["effect"], first["effect"], atol=1e-6)


@pytest.mark.parametrize("roi", ["label:2", "point:5,5,3", "truth.nii.gz", "box:4,4,2+4,4,2"])
def test_a_scan_gets_its_map_in_its_own_space(quick, roi):
    _, name = quick
    assert cli.main(on_scan(name, "--roi", roi)) == 0
    scan, found = images.load_image("scan.nii.gz"), nibabel.load("out/effects.nii.gz")
    np.testing.assert_array_equal(found.affine, scan.affine)
    expected = TreatmentEffectStatistics.load("out/statistics.npz").to_map("effect", 2)[0, 0]
    np.testing.assert_allclose(found.get_fdata(), expected.nan_to_num(0.0), rtol=1e-6)


def test_distances_of_a_scan_are_in_millimeters_along_a_straight_line(place, monkeypatch):
    folder, name = place
    profiles = []
    plot = _cli_report.plot_profile
    monkeypatch.setattr(_cli_report, "plot_profile", lambda profile, **more: profiles.append(profile) or plot(profile, **more))
    drawn = []
    monkeypatch.setattr(_cli_job, "plot_effects", lambda *args, **more: drawn.append(plot_effects(*args, **more)) or drawn[-1])
    assert cli.main(on_scan(name)) == 0
    # Its slices across the first axis are upright, as radiologists look at them: 16 mm from front to back, 8 slices of 3 mm high.
    height, width = (getattr(drawn[0].axes[2].get_position(), side) for side in ("height", "width"))
    inches = drawn[0].get_size_inches()
    assert width * inches[0] / (height * inches[1]) == pytest.approx(16 / (8 * 3))
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    labels, region = stats.feature_mask[0][0, 0].numpy(), np.argwhere(nibabel.load("truth.nii.gz").get_fdata() == 2)
    edges = np.array([1.0, 1.0, 3.0])
    found = profiles[0].units.set_index("unit")
    assert len(found) > 5
    for unit, distance in found["distance"].items():
        apart = (np.argwhere(labels == unit)[:, None] - region) * edges
        assert distance == pytest.approx(np.sqrt((apart**2).sum(-1)).min())
    half, most = profiles[0].radius(0.5), profiles[0].radius(0.9)
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert f"within {half:.4g} mm of the region of interest, 90 % within {most:.4g} mm, in a straight line." in html


def test_distances_in_a_picture_are_in_pixels(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "4")) == 0
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"within \d+ pixels of the region of interest, 90 % within \d+ pixels", html)


def test_the_boundary_is_that_of_the_predicted_class():
    prediction = torch.zeros(3, 8, 8, dtype=torch.bool)
    prediction[2, :, 5:] = True
    image = torch.zeros(1, 1, 8, 8)
    found, _ = find_roi(
        "boundary:1",
        Grids(image, image, picture=True),
        FilePreparation("none", None),
        label=None,
        prediction=prediction,
        channel=2,
    )
    assert found.nonzero()[:, 1].unique().tolist() == [4, 5]


class Named(FilePreparation):
    @property
    def labels(self):
        return {"back": 0, "gray": 1, "white": 2}


def test_classes_by_their_names():
    labels = torch.tensor([[0, 1], [2, 2]])
    image = torch.zeros(1, 1, 2, 2)
    prediction = torch.nn.functional.one_hot(labels.T, 4).movedim(-1, 0).bool()  # the fourth class is nowhere

    def found(text, label=None, prediction=prediction):
        given = {"label": label, "prediction": prediction, "channel": 1}
        return find_roi(text, Grids(image, image, picture=True), Named("none", None), **given)[0].tolist()

    assert found("label:white", (labels, True)) == found("label:2", (labels, True)) == [[False, False], [True, True]]
    assert found("label:white") == found("label:2") == [[False, True], [False, True]]
    with pytest.raises(ValueError, match="expected a number or one of back, gray, white, got 'label:black'"):
        found("label:black")
    with pytest.raises(ValueError, match="gray is nowhere in the reference"):
        found("label:gray", (labels.clamp_min(2), True))
    with pytest.raises(ValueError, match="the model predicts 3 nowhere"):
        found("label:3")
    with pytest.raises(ValueError, match=r"expected one of the model's classes 0\.\.3, got 4"):
        found("label:4")
    # Masks that overlap are no label map: each class is its own.
    overlapping = torch.stack([labels >= 0, labels >= 1, labels >= 2])
    assert found("label:2", prediction=overlapping) == [[False, False], [True, True]]
    assert found("point:0,1", prediction=overlapping) == [[False, True], [True, True]]


@pytest.mark.parametrize(
    ("command", "more", "files", "said", "shown"),
    [
        ("components", ["--layers", "*"], ["components.csv", "components.png"], "Conv2d", "Which parts of the network matter?"),
        (
            "compare",
            [],
            ["comparison.csv", "comparison.png"],
            "integrated gradients",
            '<td>infidelity</td><td class="text">lower</td>',
        ),
        (
            "refute",
            ["--refuters", "placebo,seed"],
            ["effects.csv", "effects.png", "refutation.csv", "statistics.npz"],
            "overall",
            "Attempts to refute it",
        ),
    ],
)
def test_the_other_commands(place, capsys, command, more, files, said, shown):
    folder, name = place
    assert cli.main(on_picture(name, "--donors", "donors", "--label", "mask.png", *more, command=command)) == 0
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted([*files, "report.html"])
    assert said in capsys.readouterr().out
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert_is_one_page(html)
    assert shown in html
    assert f"causalseg {command} --model" in html
    assert "--donors donors" in html


def test_precision_is_kept_or_missed_aloud(quick, capsys):
    _, name = quick
    arguments = on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--precision", "0.015")
    assert cli.main(arguments) == 0
    assert re.search(r"[1-9] intervals are still wider than 0.015 to either side", capsys.readouterr().out)
    del arguments[arguments.index("--draws") : arguments.index("--draws") + 2]
    assert cli.main(arguments) == 0
    assert "every interval is at most 0.015 to either side" in capsys.readouterr().out
    table = pd.read_csv("out/effects.csv").query("`class` == 1 and status == 'ESTIMATED'")
    assert table["n_draws"].max() > 4
    assert ((table["upper"] - table["lower"]) / 2 <= 0.015 + 1e-9).all()


def test_units_of_a_file(quick):
    folder, name = quick
    units = np.zeros((24, 32), dtype=np.uint8)
    units[:, 20:], units[20:, :20] = 7, 9
    pillow.fromarray(units).save("units.png")
    assert cli.main(on_picture(name, "--label", "mask.png", "--donors", "donors", "--units", "units.png", "--all-units")) == 0
    table = pd.read_csv("out/effects.csv").query("`class` == 1").set_index("unit")
    boxes = table[["start_0", "stop_0", "start_1", "stop_1"]]
    assert boxes.to_dict("split")["data"] == [[0, 20, 0, 20], [0, 24, 20, 32], [20, 24, 0, 20]]
    assert table["status"].tolist()[0] == "EXCLUDED"
    assert "those of units.png, 3 of them" in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_donors_are_those_of_the_folder(quick):
    """A folder of images that are 0 everywhere is the same as replacing by 0."""
    folder, name = quick
    (folder / "black").mkdir()
    pillow.fromarray(np.zeros((24, 32), dtype=np.uint8)).save("black/0.png")
    assert cli.main(on_picture(name, "--weights", "two.pt", "--donors", "black", "--metric", "probability_mean")) == 0
    network, image = torch.jit.load("two.ts"), torch.from_numpy(np.array(pillow.open("image.png"))).float()[None, None] / 255
    table = pd.read_csv("out/effects.csv").query("`class` == 1 and status == 'ESTIMATED'")
    assert len(table) > 3
    for row in table.itertuples():
        changed = image.clone()
        changed[..., row.start_0 : row.stop_0, row.start_1 : row.stop_1] = 0
        with torch.no_grad():
            means = [network(x).softmax(1)[0, 1, 8:16, 8:16].mean() for x in (image, changed)]
        assert row.effect == pytest.approx(float(means[0] - means[1]), abs=1e-6)


def test_a_dicom_series(quick):
    pytest.importorskip("pydicom")
    import pydicom
    from image_files import GAP, ORIGIN, write_series

    folder, name = quick
    volume = np.random.default_rng(0).integers(0, 255, (6, 16, 16))
    write_series(pydicom, folder / "series", volume)
    arguments = ["explain", "--model", f"{name}:three", "--image", "series", "--normalize", "range", "--class", "1"]
    assert cli.main([*arguments, "--roi", "box:4,4,2+4,4,2", "--draws", "2", "--units", "4x4x2", "--out", "out"]) == 0
    found = nibabel.load("out/effects.nii.gz")
    assert found.shape == (16, 16, 6)
    np.testing.assert_allclose(found.affine[:3, 3], [-ORIGIN[0], -ORIGIN[1], ORIGIN[2]], atol=1e-4)
    np.testing.assert_allclose(found.affine[:3, 2], [0, 0, GAP], atol=1e-4)
    assert (found.get_fdata()[4:8, 4:8, 2:4] == 0).all()


def test_donors_that_fit_and_other_kinds_of_them(quick, capsys):
    folder, name = quick
    given = ["--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "8", "--metric", "soft_dice"]
    assert cli.main(on_picture(name, *given, "--match", "mean", "--blend", "2", "--compare-donors")) == 0
    printed = capsys.readouterr().out
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    assert "match='mean', blend=2" in stats.settings["baselines"]
    html = unescape((folder / "out" / "report.html").read_text(encoding="utf-8"))
    assert "places of 4 images in donors, given the part's own mean, faded in over 2 pixels" in html
    assert "Is it the tissue, or the edge of the patch?" in html
    assert (folder / "out" / "donors.png").is_file()
    table = pd.read_csv("out/donors.csv")
    assert len(table) == 15
    assert set(table["first"]) | set(table["second"]) == {"raw", "matched", "blended", "neighbors", "blur", "zeros"}
    conclusion = re.search(r"\d+ of \d+ units have a significant effect with raw donors.*", printed).group().rstrip(".")
    assert conclusion in html
    assert "The effects with every kind of donors, on one scale" in html
    # Those of all kinds are counted, beside those of the effects themselves.
    forwards = int(re.search(r"Forward passes of one image</dt><dd>(\d+)", html).group(1))
    assert forwards > 5 * stats.n_forwards
    assert_is_one_page((folder / "out" / "report.html").read_text(encoding="utf-8"))


def test_the_edge_as_a_control(quick, capsys):
    folder, name = quick
    given = ["--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "4", "--metric", "soft_dice"]
    assert cli.main(on_picture(name, *given)) == 0
    plain = TreatmentEffectStatistics.load("out/statistics.npz")
    assert "joint" not in capsys.readouterr().out
    assert "What a joint does by itself" not in (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert cli.main(on_picture(name, *given, "--controls", "edge")) == 0
    printed = capsys.readouterr().out
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    assert torch.equal(stats.effect.nan_to_num(7.0), plain.effect.nan_to_num(7.0))
    table = pd.read_csv("out/effects.csv")
    for column in ("edge_shifted", "edge_shifted_lower", "edge_shifted_upper", "edge_matched", "edge_suspect"):
        assert column in table
    one = stats.of_output(1)
    has_control = ~one.controls["edge_shifted"].effect.isnan()
    n, k = int((one.significant() & has_control).sum()), int(one.edge_suspect().sum())
    assert n > 0
    assert re.search(
        rf"Of {n} parts? whose effect differs from 0, {k or 'none'} ha(s|ve) one that is not clearly larger", printed
    )
    known = one.significant()[0] & ~one.controls["edge_matched"].effect[0].isnan()
    effect, matched = one.effect[0][known], one.controls["edge_matched"].effect[0][known]
    left = f"{float((effect * matched).sum() / (effect * effect).sum()):.0%} of these effects is left"
    assert left in printed
    html = unescape((folder / "out" / "report.html").read_text(encoding="utf-8"))
    assert "What a joint does by itself" in html
    assert left in html
    best = table[(table["class"] == 1)].set_index("unit").loc[int(one.unit_ids[known][effect.abs().argmax()])]
    shifted = "not known" if pd.isna(best.edge_shifted) else rf"{best.edge_shifted:+.4f}"
    assert f"<td>{shifted}" in html
    assert len(re.findall("may be the joint", html)) == len(re.findall("may be the joint", printed)) == min(k, 10)
    assert_is_one_page((folder / "out" / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--match", "mean"], "--match: it goes with --donors, whose images it changes"),
        (["--blend", "2"], "--blend: it goes with --donors, whose images it changes"),
        (["--blend", "-1", "--donors", "donors"], "--blend: expected at least 0, got -1"),
        (["--compare-donors"], "--compare-donors: it needs --donors, a folder of images to make the kinds of"),
        (
            ["--donors", "donors", "--blend", "3", "--units", "4"],
            r"--blend: expected less than 2 pixel\(s\) for a unit of \(4, 4\) pixels, got 3",
        ),
    ],
)
def test_what_does_not_go_with_donors(place, capsys, more, message):
    _, name = place
    assert cli.main(on_picture(name, "--weights", "two.pt", "--label", "mask.png", *more)) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(("given", "found"), [([], "needed"), (["--allocation", "equal"], "equal")])
def test_draws_go_where_they_are_needed_or_every_unit_has_as_many(place, given, found):
    _, name = place
    given = ["--donors", "donors", "--units", "8", "--draws", "12", *given]
    assert cli.main(on_picture(name, "--weights", "two.pt", *given)) == 0
    assert TreatmentEffectStatistics.load("out/statistics.npz").settings["allocation"] == found


@pytest.mark.parametrize("context", ["shapley", "banzhaf", "0.25"])
def test_joint_effects(quick, capsys, context):
    folder, name = quick
    given = ["--weights", "two.pt", "--label", "mask.png", "--units", "8", "--draws", "4", "--context", context]
    assert cli.main(on_picture(name, *given)) == 0
    stats = TreatmentEffectStatistics.load("out/statistics.npz")
    assert str(stats.settings["context"]) == context
    assert int(stats.n_draws.max()) == 4
    words = {"shapley": "Shapley values", "banzhaf": "Banzhaf values"}.get(context, "with probability 0.25")
    assert re.search(f"effects: joint, of each unit while .*{words}", capsys.readouterr().out)
    page = re.sub(r"\s+", " ", unescape((folder / "out" / "report.html").read_text(encoding="utf-8")))
    assert "The effects are joint, of each unit while" in page
    assert words in page


def test_joint_effects_are_refuted_by_what_makes_sense_of_them(quick):
    _, name = quick
    given = [
        "--weights",
        "two.pt",
        "--label",
        "mask.png",
        "--donors",
        "donors",
        "--units",
        "8",
        "--context",
        "shapley",
        "--refute",
    ]
    assert cli.main(on_picture(name, *given)) == 0
    assert pd.read_csv("out/refutation.csv")["name"].tolist() == ["placebo", "split", "subset", "seed", "weights"]


@pytest.mark.parametrize(("given", "draws"), [([], 50), (["--context", "0"], 20)])
def test_joint_effects_have_draws_of_their_own_by_default(quick, given, draws):
    _, name = quick
    arguments = on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--units", "8", "--context", "banzhaf", *given)
    del arguments[arguments.index("--draws") : arguments.index("--draws") + 2]
    assert cli.main(arguments) == 0
    assert TreatmentEffectStatistics.load("out/statistics.npz").settings["n_draws"] == draws


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--context", "owen"], "argument --context: expected shapley, banzhaf or a number from 0 to 1, got 'owen'"),
        (["--context", "1.5"], "argument --context: expected shapley, banzhaf or a number from 0 to 1, got '1.5'"),
        (["--context", "shapley", "--controls", "edge"], "--controls: it is about effects of single parts"),
        (["--context", "shapley", "--draws", "2"], "--draws: expected at least 4, two antithetic pairs, got 2"),
        (["--context", "banzhaf", "--draws", "5"], "--draws: expected an even number"),
        (["--context", "banzhaf", "--allocation", "needed"], "--allocation: only for the plain effect (context=0)"),
    ],
)
def test_what_joint_effects_do_not_go_with(place, capsys, given, message):
    _, name = place
    with contextlib.suppress(SystemExit):
        assert cli.main(on_picture(name, "--weights", "two.pt", *given)) == 2
    assert message in capsys.readouterr().err


def test_what_is_to_come_is_forecast_part_by_part_and_in_all():
    asked = argparse.Namespace(refute=True, compare_donors=False, components="*", pathway=["a", "b"])
    # Two layers: a pass for the total effect, two for each layer.
    assert _to_come(asked, mediators=2, measured=(100, 6.0)) == (
        "attempts to refute them, about 10 times the work, some 1000 forward passes and 60 s; "
        "the network's parts, which say what they take when they begin; "
        "ways through the network, about 5 times the work, some 500 forward passes and 30 s; "
        "together some 1500 forward passes and 90 s, without the network's parts"
    )
    assert _to_come(asked, mediators=2, measured=(100, 6.0), done=["refute", "components"]) == (
        "ways through the network, about 5 times the work, some 500 forward passes and 30 s"
    )
    assert _to_come(asked, mediators=2, measured=(100, 6.0), done=["refute", "components", "pathway"]) == ""
