"""Many cases from the command line."""

import re
import shutil
import sys

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import on_picture, on_scan, status_of

from captum_causalseg import TreatmentEffectStatistics
from captum_causalseg.cohort import Cohort


def write_study(folder, name, cases, **options):
    options = {"model": f"{name}:two", "normalize": "255", "roi": "box:8,8+8", "draws": 4, "units": 8} | options
    (folder / "study.yaml").write_text("".join(f"{key}: {value}\n" for key, value in options.items()))
    (folder / "cases.csv").write_text(cases)


def line(*more):
    return ["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "study", *more]


def test_each_row_is_explained_as_by_itself(place, capsys):
    folder, name = place
    shutil.copy(folder / "donors" / "0.png", folder / "other.png")
    write_study(folder, name, "id,image,label,site\na,image.png,mask.png,Bern\nb,other.png,,Jena\n", donors="donors")
    assert status_of(line()) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 of 2 cases finished, ")
    assert "written to study/: report.html, cases.parquet, units/, cases/, summary.csv, profile.csv, profile.png" in said
    cohort = Cohort("study")
    scores = [float(cohort.statistics(case).of_output(1).observed_score) for case in "ab"]
    mean, half = sum(scores) / 2, 12.7062 * abs(scores[0] - scores[1]) / 2  # Student's t with one degree of freedom
    summary = pd.read_csv("study/summary.csv").iloc[0]
    assert summary["observed_score"] == pytest.approx(mean, abs=1e-6)
    assert summary["observed_score_upper"] - mean == pytest.approx(half, rel=1e-4)
    assert re.search(
        rf"means of 2 cases \[95 % interval between cases\]:\n  Dice of the region of interest +{mean:.4g}  \[", said
    )
    assert (pd.read_csv("study/profile.csv")["n_cases"] == 2).any()
    assert (folder / "study" / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert cohort.cases()[["id", "site", "state"]].values.tolist() == [["a", "Bern", "finished"], ["b", "Jena", "finished"]]
    for case, image, more in (("a", "image.png", ["--label", "mask.png"]), ("b", "other.png", [])):
        alone = [*on_picture(name, "--donors", "donors", "--units", "8", *more)]
        alone[alone.index("image.png")] = image
        assert status_of(alone) == 0
        one, other = TreatmentEffectStatistics.load("out/statistics.npz"), cohort.statistics(case)
        assert torch.equal(one.effect.nan_to_num(7.0), other.effect.nan_to_num(7.0))
        assert torch.equal(one.standard_error.nan_to_num(7.0), other.standard_error.nan_to_num(7.0))
    assert not list((folder / "study").rglob("effects.nii.gz"))  # pictures have no geometry
    # The same line does nothing more.
    before = (folder / "study" / "manifest.jsonl").read_text()
    assert status_of(line()) == 0
    assert (folder / "study" / "manifest.jsonl").read_text() == before


def test_a_study_may_ask_for_controls(place):
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\n", controls="edge", metric="soft_dice")
    assert status_of(line()) == 0
    cohort = Cohort("study")
    assert set(cohort.statistics("a").controls) == {"edge_shifted", "edge_matched"}
    assert "edge_shifted_lower" in cohort.units(["a"])


def test_a_study_may_ask_for_joint_effects(place, capsys):
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\n", context="shapley", metric="soft_dice")
    assert status_of(line()) == 0
    assert Cohort("study").statistics("a").settings["context"] == "shapley"
    # A part of the units would have contexts of its own.
    assert status_of(["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "other", "--shards", "2"]) == 2
    assert "--shards: the contexts of joint effects are made of all units of a case" in capsys.readouterr().err


def test_a_study_may_split_effects_at_layers(place, capsys):
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\nb,image.png\n", pathway="['0', '2']", metric="soft_dice")
    assert status_of(line()) == 0
    assert Cohort("study").mediation()["layer"].unique().tolist() == ["0", "2"]
    ways = pd.read_csv("study/pathways.csv")
    assert ways[["layer", "quantity"]].values.tolist() == [[0, "share"], [2, "share"]]
    said = capsys.readouterr().out
    assert "  share through 0: " in said
    assert "pathways.csv" in said
    write_study(folder, name, "id,image\na,image.png\n", pathway="['0']", metric="soft_dice", controls="edge")
    assert status_of(["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "other"]) == 2
    assert "--config: pathway: effects are split at layers without context and controls" in capsys.readouterr().err


def test_scans_get_their_maps_on_their_own_grid(place):
    folder, name = place
    write_study(
        *(folder, name, "id,image,label\nscan,scan.nii.gz,truth.nii.gz\n"),
        **{"model": f"{name}:three", "normalize": "none", "class": 2, "roi": "label:2", "units": "4x4x2", "draws": 3},
    )
    assert status_of(line()) == 0
    assert status_of(on_scan(name)) == 0
    one, other = (nibabel.load(path) for path in ("study/cases/scan/effects.nii.gz", "out/effects.nii.gz"))
    np.testing.assert_array_equal(one.affine, other.affine)
    np.testing.assert_array_equal(np.nan_to_num(one.get_fdata(), nan=7.0), np.nan_to_num(other.get_fdata(), nan=7.0))
    # Distances are in millimeters: slices are 3 mm apart.
    units = Cohort("study").units(asked=True).set_index(["start_0", "start_1", "start_2"])
    assert units.loc[(4, 4, 4), "distance"] == 3.0
    assert units.loc[(8, 4, 2), "distance"] == 1.0


def test_an_image_in_several_files_is_explained_as_by_itself(place, capsys):
    import bundle_cases

    folder, _ = place
    conv = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1}
    steps = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    config = {"network_def": conv, "preprocessing": {"_target_": "Compose", "transforms": steps}}
    torch.manual_seed(0)
    bundle_cases.write(folder / "two", torch.nn.Conv3d(2, 2, 3, padding=1).state_dict(), inference=config)
    volumes = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)
    for name, volume in zip(("t1", "t2"), volumes):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / f"{name}.nii.gz")
    (folder / "cases.csv").write_text("id,image,image_2,age\na,t1.nii.gz,t2.nii.gz,50\nb,t1.nii.gz,,60\n")
    (folder / "study.yaml").write_text(
        "bundle: two\nroi: box:0,0,0+2\nunits: 4\ndraws: 12\nallocation: equal\nmetric: soft_dice\n"
    )
    assert status_of(line()) == 1
    assert "1 of 2 cases finished" in (said := capsys.readouterr().out)
    assert "  b: InputError: --image: " in said  # one channel of two
    cohort = Cohort("study")
    assert cohort.cases()["age"].tolist() == ["50", "60"]
    words = ["explain", "--bundle", "two", "--image", "t1.nii.gz", "t2.nii.gz", "--roi", "box:0,0,0+2", "--units", "4"]
    words += ["--draws", "12", "--allocation", "equal", "--metric", "soft_dice", "--out", "out"]
    assert status_of(words) == 0
    alone = TreatmentEffectStatistics.load("out/statistics.npz").effect
    assert cohort.statistics("a").settings["allocation"] == "equal"
    assert torch.equal(cohort.statistics("a").effect.nan_to_num(7.0), alone.nan_to_num(7.0))


def test_rows_may_say_it_for_themselves_and_files_are_found_from_their_tables(place, monkeypatch):
    folder, name = place
    write_study(folder, name, "id,image,roi,class\na,image.png,point:10,0\n".replace("point:10", '"box:0,0+8"'))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(elsewhere)
    arguments = ["cohort", "--cases", "../cases.csv", "--config", "../study.yaml", "--out", "study"]
    assert status_of(arguments) == 0
    units = Cohort("study").units(asked=True).set_index(["start_0", "start_1"])
    assert units.loc[(0, 0), "status"] == "EXCLUDED"
    assert set(units["class"]) == {0}


def test_what_fails_is_said_and_tried_again(place, capsys):
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\nb,missing.png\n")
    assert status_of(line()) == 1
    said = capsys.readouterr().out
    assert said.startswith("1 of 2 cases finished, ")
    assert "  b: InputError: --image: there is no file missing.png" in said.replace(str(folder) + "/", "")
    assert "the same line tries them again; their errors are in study/errors/" in said
    shutil.copy(folder / "image.png", folder / "missing.png")
    assert status_of(line()) == 0
    units = pd.read_parquet("study/units")
    assert set(units["case"].astype(str)) == {"a", "b"}


def test_files_are_compared_with_their_digests(place, capsys):
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\nb,image.png\n")
    assert status_of(line()) == 0
    capsys.readouterr()
    verify = ["cohort", "--out", "study", "--verify"]
    assert status_of(verify) == 0
    assert capsys.readouterr().out == "study/: all files of 2 finished cases are as they were written\n"
    (folder / "study" / "units" / "case=b" / "units.parquet").unlink()
    (folder / "study" / "cases" / "a" / "statistics.npz").write_bytes(b"PK")
    assert status_of(verify) == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 files of 2 finished cases are missing or damaged",
        "  study/cases/a/statistics.npz: damaged",
        "  study/units/case=b/units.parquet: missing",
        "the line that explained these cases does them again",
    ]
    assert status_of(line()) == 0
    assert status_of(verify) == 0
    manifest = folder / "study" / "manifest.jsonl"
    manifest.write_text("x\n" + manifest.read_text())
    capsys.readouterr()
    assert status_of(verify) == 2
    assert "error: --out: study/manifest.jsonl, line 1, is damaged" in capsys.readouterr().err
    assert status_of(["cohort", "--out", "nowhere", "--verify"]) == 2
    assert "--out: there is no study in 'nowhere'" in capsys.readouterr().err
    assert status_of(line("--verify")) == 2
    assert "--cases: --verify explains nothing and works only with --out" in capsys.readouterr().err
    assert status_of(["cohort", "--out", "study", "--cases", "cases.csv"]) == 2
    assert "--config: it has to be given; only --verify does without" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["weights", "code", "donors"])
def test_another_model_in_the_folder_is_refused(place, capsys, how):
    """The words are the same, what is in the files is not."""
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\n", weights="two.pt", donors="donors")
    assert status_of(line()) == 0
    before = (folder / "study" / "manifest.jsonl").read_text()
    assert status_of(line()) == 0
    if how == "weights":
        state = torch.load("two.pt")
        torch.save({key: value * 1.01 for key, value in state.items()}, "two.pt")
    elif how == "code":
        made = folder / f"{name}.py"
        made.write_text(made.read_text().replace("torch.nn.ReLU()", "torch.nn.Sigmoid()"))
        sys.modules.pop(name)
    else:
        shutil.copy("donors/0.png", "donors/1.png")
    (folder / "cases.csv").write_text("id,image\na,image.png\nb,image.png\n")
    capsys.readouterr()
    assert status_of(line()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("causalseg cohort: error: --out: the study in")
    said = (
        r"case a, arguments.baselines"
        if how == "donors"
        else r"load_model, model: was Sequential \w{16}, .*now Sequential \w{16}"
    )
    assert re.search(said, error)
    assert (folder / "study" / "manifest.jsonl").read_text() == before


def test_another_study_in_the_folder_is_refused(place, capsys):
    folder, name = place
    write_study(folder, name, "id,image\na,image.png\n")
    assert status_of(line()) == 0
    write_study(folder, name, "id,image\na,image.png\n", draws=5)
    capsys.readouterr()
    assert status_of(line()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("causalseg cohort: error: --out: the study in")
    assert "arguments.n_draws: was 4, now 5" in error


@pytest.mark.parametrize(
    ("cases", "study", "said"),
    [
        ("id,picture\na,image.png\n", {}, "--cases: cases.csv has no column 'image', only id, picture"),
        ("id,image\n", {}, "--cases: there is no case in cases.csv"),
        ("id,image\na,image.png,3\n", {}, "--cases: cases.csv, line 2: expected 2 values"),
        ("id,image\na\n", {}, "--cases: cases.csv, line 2: expected 2 values"),
        ("id,image\n,image.png\n", {}, "--cases: cases.csv, line 2: expected an id and an image"),
        ("id,image\na,image.png\na,image.png\n", {}, "--cases: cases.csv, line 3: the id 'a' is that of line 2"),
        (
            "id,image,class\na,image.png,x\n",
            {},
            "--cases: cases.csv, line 2: --class: expected a number, got 'x'; names go with --nnunet",
        ),
        (
            "id,image,image_3\na,0.png,1.png\n",
            {},
            "--cases: cases.csv: expected the columns image, image_2, image_3, ... without gaps",
        ),
        (
            "id,image,image_2,image_3\na,0.png,,1.png\n",
            {},
            "--cases: cases.csv, line 2: image_2 is empty, and a later file of the image is not",
        ),
        ("id,image\na,image.png\n", {"fold": "[0, one]"}, "--config: study.yaml: --fold: expected numbers or all, got 'one'"),
        ("id,image\na,image.png\n", {"drawz": 3}, "--config: study.yaml: there is no option 'drawz'; expected some of bundle"),
        ("id,image\na,image.png\n", {"draws": "[1, 2]"}, "--config: study.yaml: expected a word or a number for 'draws'"),
        (
            "id,image\na,image.png\n",
            {"draws": 0},
            "--config: study.yaml: argument --draws: expected a positive number, got '0'",
        ),
        ("id,image\na,image.png\n", {"draws": "{"}, "--config: study.yaml is no YAML file"),
        ("id,image\na,image.png\n", {"model": "nowhere:net"}, "--config: --model: nowhere cannot be imported"),
        ("id,image\na,image.png\n", {"seed": -1}, "--config: study.yaml: --seed: expected a number of at least 0, got -1"),
    ],
)
def test_what_cannot_be_used_is_one_line(place, capsys, cases, study, said):
    folder, name = place
    write_study(folder, name, cases, **study)
    assert status_of(line()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (folder / "study" / "cases.parquet").exists()


def test_missing_files(place, capsys):
    assert status_of(line()) == 2
    assert "--config: there is no file study.yaml" in capsys.readouterr().err
    write_study(*place, "id,image\na,image.png\n")
    (place[0] / "cases.csv").unlink()
    assert status_of(line()) == 2
    assert "--cases: there is no file cases.csv" in capsys.readouterr().err
