"""The command line and the names of files: any letters, any locale, and none of them where they are nobody's business."""

import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from captum_causalseg import cli, visualization
from captum_causalseg.cli import job, modules
from captum_causalseg.cohort import Cohort

pytest.importorskip("nibabel")
pytest.importorskip("PIL.Image")

from command_line import PROGRAM, on_picture, on_scan, status_of

# A patient's name in Latin-1, a formula of matplotlib's that cannot be parsed, one of a spreadsheet's, and letters beyond ASCII.
ODD = os.fsdecode(b"=M\xfcller $\\nope$ \xc3\xbc\xe8\x84\x91")
SHOWN = r"=M\xfcller $\nope$ ü脑"


STEPS = [
    {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
    {"_target_": "ScaleIntensityd", "keys": "image"},
]


def surroundings(**environment):
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | environment


def shell(line, folder):
    """Run a line of bash, in which ``"${command[@]}"`` is the installed program."""
    command = f"command=({shlex.join([sys.executable, '-c', PROGRAM])})\n"
    return subprocess.run(["bash", "-c", command + line], capture_output=True, timeout=300, cwd=folder, env=surroundings())


def odd_case(folder, name):
    """Arguments that explain the place's picture by names that only a file system takes."""
    for file in ("image.png", "mask.png", "two.pt", "donors"):
        shutil.move(folder / file, folder / f"{ODD} {file}")
    files = [
        "--image",
        f"{ODD} image.png",
        "--label",
        f"{ODD} mask.png",
        "--weights",
        f"{ODD} two.pt",
        "--donors",
        f"{ODD} donors",
    ]
    return on_picture(name, *files, "--draws", "2", "--units", "8", "--out", os.fsdecode(b"o\xfct"))


def check_names(printed, folder, shown):
    first, *_, last = printed.strip().splitlines()
    assert first.startswith(f"{shown} image.png: dice in box:8,8+8 is ")
    assert last == r"written to o\xfct/: effects.csv, effects.png, report.html, statistics.npz"
    html = (folder / os.fsdecode(b"o\xfct") / "report.html").read_text(encoding="utf-8")
    for file in ("image.png", "mask.png", "two.pt", "donors"):
        assert f"{SHOWN} {file}" in html


def test_any_name_works(place, capsys):
    folder, name = place
    assert cli.main(odd_case(folder, name)) == 0
    check_names(capsys.readouterr().out, folder, SHOWN)


# Two commands in one program, for it takes seconds to start.
BOTH = PROGRAM.replace(
    "sys.exit(main())", "at = sys.argv.index('then'); print(main(sys.argv[1:at])); print(main(sys.argv[at + 1 :]))"
)


def test_any_name_works_where_the_locale_knows_no_letters(place):
    """Of the files of one case, and in a table of cases."""
    folder, name = place
    shutil.copy("image.png", "gr\u00fc\u00df $a$.png")
    (folder / "cases.csv").write_text(
        "id,image,site\n=gr\u00fc\u00df,gr\u00fc\u00df $a$.png,-\u00dc\nb,n\u00f6.png,x\n", encoding="utf-8"
    )
    (folder / "study.yaml").write_text(f"model: {name}:two\nnormalize: 255\nroi: box:8,8+8\ndraws: 2\nunits: 8\n")
    study = ["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "study"]
    command = [sys.executable, "-c", BOTH, *map(os.fsencode, [*odd_case(folder, name), "then", *study])]
    environment = surroundings(LC_ALL="C", PYTHONUTF8="0")
    done = subprocess.run(command, capture_output=True, timeout=300, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    # Matplotlib's font does not have the last letter, which is no news to anyone.
    assert b"Glyph" not in done.stderr
    of_case, of_study = done.stdout.decode("ascii").split("\n0\n")
    check_names(of_case, folder, SHOWN.encode("ascii", "backslashreplace").decode())
    assert of_study.splitlines()[-1] == "1"
    assert r"b: InputError: --image: there is no file n\xf6.png" in of_study
    table = Cohort("study").cases().set_index("id")
    assert table["state"].to_dict() == {"=gr\u00fc\u00df": "finished", "b": "failed"}
    assert table["site"].tolist() == ["-\u00dc", "x"]
    assert table.at["b", "error"] == "InputError: --image: there is no file n\u00f6.png"


@pytest.mark.parametrize("model", ["TorchScript", "bundle"])
def test_models_by_any_name(quick, model):
    folder, name = quick
    if model == "bundle":
        bundle = os.fsdecode(b"b\xffndle")
        (folder / bundle / "configs").mkdir(parents=True)
        (folder / bundle / "models").mkdir()
        shutil.copy("two.ts", f"{bundle}/models/model.ts")
        shutil.copytree("donors", f"{ODD} scans")
        config = {
            "network_def": {"_target_": "torch.nn.Identity"},
            "preprocessing": {"_target_": "Compose", "transforms": STEPS},
        }
        (folder / bundle / "configs" / "inference.json").write_text(json.dumps(config))
        arguments = ["explain", "--bundle", bundle, *on_picture(name, "--image", f"{ODD} scans/0.png")[3:]]
        arguments = [word for word in arguments if word not in ("--normalize", "255")]
    else:
        shutil.move("two.ts", f"{ODD} two.ts")
        arguments = ["explain", "--model", f"{ODD} two.ts", *on_picture(name)[3:]]
    assert cli.main([*arguments, "--units", "8", "--draws", "2"]) == 0


def test_errors_name_files_as_they_can_be_printed(place, capsys):
    _, name = place
    assert status_of(on_picture(name, "--image", f"{ODD}.png")) == 2
    assert capsys.readouterr().err == f"causalseg explain: error: --image: there is no file {SHOWN}.png\n"


def test_a_reader_that_leaves_ends_nothing(place):
    folder, name = place
    arguments = shlex.join(on_picture(name, "--units", "8"))
    # Progress goes to the same reader.
    done = shell(f'"${{command[@]}}" {arguments} 2>&1 | true; echo "${{PIPESTATUS[0]}}"', folder)
    assert done.stdout.decode() == "141\n"
    assert done.stderr == b""
    assert sorted(file.name for file in (folder / "out").iterdir()) == [
        "effects.csv",
        "effects.png",
        "report.html",
        "statistics.npz",
    ]


@pytest.mark.parametrize(("arguments", "status"), [("explain --help", 141), ("explain --image nope.png", 2)])
def test_status_when_nobody_reads_what_is_said(place, arguments, status):
    done = shell(f'"${{command[@]}}" {arguments} 2>&1 | true; echo "${{PIPESTATUS[0]}}"', place[0])
    assert done.stdout.decode() == f"{status}\n"
    assert done.stderr == b""


def test_streams_are_as_they_were_afterwards(place, capsys):
    streams = sys.stdout, sys.stderr
    errors = [stream.errors for stream in streams]
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert (sys.stdout, sys.stderr) == streams
    assert [stream.errors for stream in streams] == errors
    assert capsys.readouterr().out.startswith("usage: causalseg")


def contents(folder):
    """Everything that was written, unpacked, as one text per file."""
    found = {}
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            if file.suffix == ".npz":
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    # NumPy keeps text as UTF-32.
                    data += b"".join(archive.read(part).replace(b"\0", b"") for part in archive.namelist())
            if file.suffix == ".gz":
                data += gzip.decompress(data)
            found[file.name] = data
    return found


PATIENT = "Erika-Mustermann"
FILE = "born-1964-08-12"


def private_files(folder):
    """The place's files, which their folders and names make those of a patient."""
    there = folder / PATIENT
    there.mkdir()
    names = {}
    for name, ending in (("image", ".png"), ("mask", ".png"), ("scan", ".nii.gz"), ("truth", ".nii.gz"), ("donors", "")):
        names[name] = str(there / f"{FILE}-{name}{ending}")
        shutil.move(folder / (name + ending), names[name])
    for name, ending in (("two", ".pt"), ("two", ".ts")):
        shutil.copy(folder / (name + ending), there / (name + ending))
    return names


def commands(name, files):
    picture = ["--image", files["image"], "--label", files["mask"], "--donors", files["donors"]]
    weights = ["--weights", f"{PATIENT}/two.pt"]
    scan = ["--image", files["scan"], "--label", files["truth"], "--roi", files["truth"], "--out", f"{PATIENT}/{FILE}-out"]
    whole = [*picture, "--roi", files["mask"], "--units", "8", "--draws", "2", "--out", f"{PATIENT}/{FILE}-out"]
    pathway = [*picture, "--roi", "box:18,24+4", "--draws", "2", "--out", f"{PATIENT}/{FILE}-out"]
    return {
        "explain": on_picture(name, *whole, *weights, "--components", "*"),
        "region": on_picture(name, *whole, *weights, "--kind", "necessary", command="region"),
        "pathway": on_picture(name, *pathway, *weights, "--region", files["mask"], "--layers", "0", command="pathway"),
        "components": on_picture(name, *whole, *weights, command="components"),
        "compare": on_picture(name, *whole, *weights, command="compare"),
        "refute": on_picture(name, *whole, *weights, "--refuters", "placebo", command="refute"),
        "scan": on_scan(name, *scan),
        "TorchScript": [*on_picture(name, *whole)[:1], "--model", f"{PATIENT}/two.ts", *on_picture(name, *whole)[3:]],
    }


@pytest.mark.parametrize(
    ("command", "private"),
    [
        ("explain", False),
        *(
            (command, True)
            for command in ("explain", "region", "pathway", "components", "compare", "refute", "scan", "TorchScript")
        ),
    ],
)
def test_folders_are_named_nowhere_and_files_only_where_that_is_no_secret(place, capsys, monkeypatch, command, private):
    folder, name = place
    files = private_files(folder)
    titles = []
    for module, plot in (
        (job, "plot_effects"),
        (modules, "plot_components"),
        (visualization, "plot_comparison"),
        (visualization, "plot_region"),
        (visualization, "plot_pathway"),
    ):
        original = getattr(module, plot)
        monkeypatch.setattr(module, plot, lambda *a, _plot=original, **k: titles.append(k.get("title", "")) or _plot(*a, **k))
    assert cli.main([*commands(name, files)[command], *(["--private"] if private else [])]) == 0
    written = contents(folder / PATIENT / f"{FILE}-out")
    assert "report.html" in written
    for file, data in written.items():
        assert PATIENT.encode() not in data, file
        assert str(folder).encode() not in data, file
        if private:
            assert FILE.encode() not in data, file
    html = written["report.html"].decode("utf-8")
    assert (FILE in html) is not private
    assert any(FILE in title for title in titles) is not private
    # What the model is remains known.
    assert f"{name}:" in html or "TorchScript two.ts" in html
    if command in ("explain", "region", "pathway", "components", "compare", "refute"):
        assert "--weights two.pt" in html
    printed = capsys.readouterr().out.splitlines()
    assert not any(FILE in line for line in printed[:-1]) or not private
    title = re.search("<h1>(.*?)</h1>", html)[1]
    assert title.endswith("?") is private


def test_a_report_names_the_region_and_the_units_without_their_folders(place):
    folder, name = place
    files = private_files(folder)
    more = ["--image", files["image"], "--label", files["mask"], "--donors", files["donors"], "--units", files["mask"]]
    assert cli.main(on_picture(name, *more)) == 0
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert f"<dd>those of {FILE}-mask.png, 2 of them</dd>" in html
    assert f"--units {FILE}-mask.png" in html
    assert cli.main(on_picture(name, *more, "--private")) == 0
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "<dd>those of a file, 2 of them</dd>" in html
    assert "--image IMAGE --label LABEL --roi box:8,8+8" in html
    assert "<dd>24 x 32 pixels, 1 channel(s)</dd>" in html
    assert "<dd>a reference segmentation</dd>" in html
