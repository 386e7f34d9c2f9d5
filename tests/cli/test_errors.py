"""Input that the command line cannot use: status 2, one line that names the option and the file, and nothing is written."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")
pillow = pytest.importorskip("PIL.Image")

from command_line import make_place, on_picture, on_scan, status_of  # noqa: E402


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of the command line, with files that are broken or do not fit."""
    monkeypatch.chdir(tmp_path)
    name = make_place(tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "image.png").read_bytes()[:60])
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "scan.nii.gz").read_bytes()[:900])
    (tmp_path / "broken.ts").write_bytes((tmp_path / "two.ts").read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no image")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4, 3), dtype=np.float32), np.eye(4)), "series.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((16, 16, 8), np.nan, dtype=np.float32), np.eye(4)), "nan.nii.gz")
    moved = np.diag([1.0, 1.0, 3.0, 1.0])
    moved[0, 3] = 5
    truth = nibabel.load("truth.nii.gz").get_fdata().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(truth, moved), "moved.nii.gz")
    nibabel.save(nibabel.Nifti1Image(truth * 2, np.diag([1.0, 1.0, 3.0, 1.0])), "four.nii.gz")
    nibabel.save(nibabel.Nifti1Image(truth * 0, np.diag([1.0, 1.0, 3.0, 1.0])), "empty.nii.gz")
    nibabel.save(nibabel.Nifti1Image(truth * 0.3, np.diag([1.0, 1.0, 3.0, 1.0])), "fractions.nii.gz")
    pillow.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("small.png")
    pillow.fromarray(np.full((24, 32), 9, dtype=np.uint8)).save("flat.png")
    (tmp_path / "rgb").mkdir()
    pillow.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save("rgb/0.png")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "0.png").write_bytes((tmp_path / "image.png").read_bytes())
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "0.png").write_bytes((tmp_path / "broken.png").read_bytes())
    return tmp_path, name


def check(folder, capsys, arguments, message):
    before = sorted(folder.rglob("*"))
    assert status_of(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert re.match(f"causalseg {arguments[0]}: error: {message}", lines[0]), lines[0]
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--image", "none.png"], r"--image: there is no file none.png"),
        (["--image", "broken.png"], r"--image: broken.png cannot be read"),
        (["--image", "notes.txt"], r"--image: the kind of notes.txt is not known"),
        (["--image", "series.nii.gz"], r"--image: series.nii.gz holds 3 spatial axes and another of length 3"),
        (["--image", "flat.png", "--normalize", "zscore"], r"--image: flat.png is 9 everywhere, it cannot be normalized"),
        (["--dims", "3"], r"--image: image.png holds 2 spatial axes \(24, 32\), expected 3"),
        (["--label", "none.png"], r"--label: there is no file none.png"),
        (["--label", "broken.png"], r"--label: broken.png cannot be read"),
        (["--label", "truth.nii.gz"], r"--label: truth.nii.gz holds 3 spatial axes .* expected 2"),
        (["--label", "small.png"], r"--label: expected the image's grid, .*\(24, 32\), got 1 of \(8, 8\)"),
        (["--label", "flat.png"], r"--label: labels 9..9 are outside the model's classes 0..1"),
        (["--roi", "box:20,8+8"], r"--roi: the box 20..28 leaves axis 0"),
        (["--roi", "box:1,1,1+8"], r"--roi: box:1,1,1\+8 has 3 axes, the image 2"),
        (["--roi", "label:7"], r"--roi: the label map holds 0, 1, got 7"),
        (["--roi", "point:0,0"], r"--roi: the mask is 0 at \(0, 0\)"),
        (["--roi", "box:x"], r"--roi: expected box:72,88\+32, point"),
        (["--roi", "none.png"], r"--roi: there is no file none.png"),
        (["--roi", "broken.png"], r"--roi: broken.png cannot be read"),
        (["--roi", "small.png"], r"--roi: expected the image's grid"),
        (["--metric", "nice"], r"--metric: there is no 'nice'; expected one of dice"),
        (["--class", "2"], r"--class: expected 0..1, got 2"),
        (["--units", "64"], r"--units: a block of .* is larger than the image"),
        (["--units", "4x4x4"], r"--units: expected one integer or 2 of them"),
        (["--units", "24x32"], r"--units: every unit touches the region of interest"),
        (["--units", "none.png"], r"--units: there is no file none.png"),
        (["--units", "small.png"], r"--units: expected the image's grid"),
        (["--donors", "nowhere"], r"--donors: there is no folder nowhere"),
        (["--donors", "nothing"], r"--donors: there is no file in nothing"),
        (["--image", "alone/0.png", "--donors", "alone"], r"--donors: there is no image in alone but the explained one"),
        (["--donors", "rgb"], r"--donors: rgb/0.png holds 3 channel\(s\), the image 1"),
        (["--donors", "mixed"], r"--donors: mixed/0.png cannot be read"),
        (["--weights", "none.pt"], r"--weights: there is no file none.pt"),
        (["--weights", "broken.png"], r"--weights: broken.png is "),
        (["--model", "MODULE:number"], r"--model: expected \w+:number to return a torch.nn.Module, got int"),
        (["--model", "MODULE:fails"], r"--model: \w+:fails failed: RuntimeError: no luck"),
        (["--model", "MODULE:nothing"], r"--model: \w+ has no function 'nothing'"),
        (["--model", "no_such_package:net"], r"--model: no_such_package cannot be imported: ModuleNotFoundError"),
        (
            ["--model", "none.ts"],
            r"--model: expected package.module:factory or a TorchScript file, and there is no file none.ts",
        ),
        (["--model", "two.pt"], r"--model: two.pt is no TorchScript file"),
        (["--model", "broken.ts"], r"--model: broken.ts cannot be read as TorchScript"),
        (["--model", "two.ts", "--weights", "two.pt"], r"--weights: a TorchScript file brings its own"),
        (["--model", "MODULE:color", "--weights", "two.pt"], r"--weights: two.pt does not fit the network of \w+:color: "),
        (["--model", "MODULE:three"], r"--model: expected logits \(N, C, \*spatial\) with N=1 and 2 spatial axes"),
        (
            ["--model", "MODULE:color"],
            r"--image: the model failed on the image \(1, 1, 24, 32\): RuntimeError: Given groups=1, weight of size \[2, 3, 1, 1\]",
        ),
        (
            ["--model", "MODULE:divisible"],
            r"--image: the model failed on the image \(1, 1, 24, 32\): ValueError: sizes should be divisible by 64$",
        ),
        (["--device", "gpu"], r"--device: expected cpu, cuda, cuda:1 or mps, got 'gpu'"),
        (["--device", "cuda:x"], r"--device: expected cpu, cuda, cuda:1 or mps, got 'cuda:x'"),
        (["--device", "cuda:99"], r"--device: cuda:99 is not available, there "),
        (["--components", "nothing"], r"--components: no module is named 'nothing'; there are 0, 1, 2"),
        (["--out", "image.png"], r"--out: image.png is a file"),
        (["--precision", "-1"], r"--precision: expected a positive number"),
        (["--precision", "inf"], r"--precision: expected a positive number"),
        (["--seed", "-1"], r"--seed: expected a number of at least 0, got -1"),
    ],
)
def test_pictures(place, capsys, change, message):
    folder, name = place
    change = [part.replace("MODULE", name) for part in change]
    check(folder, capsys, on_picture(name, "--label", "mask.png", *change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--image", "broken.nii.gz"], r"--image: broken.nii.gz cannot be read as NIfTI"),
        (["--image", "series.nii.gz"], r"--image: series.nii.gz holds 3 spatial axes and another of length 3"),
        (["--image", "nan.nii.gz"], r"--image: nan.nii.gz holds 2048 NaN or infinite values"),
        (["--label", "broken.nii.gz"], r"--label: broken.nii.gz cannot be read as NIfTI"),
        (["--label", "moved.nii.gz"], r"--label: it is not on the image's grid"),
        (["--label", "four.nii.gz", "--roi", "label:4"], r"--label: labels 0..4 are outside the model's classes 0..2"),
        (["--label", "four.nii.gz"], r"--roi: the label map holds 0, 4, got 2"),
        (["--label", "fractions.nii.gz"], r"--label: fractions.nii.gz holds fractions"),
        (["--roi", "label:5"], r"--roi: the label map holds 0, 2, got 5"),
        (["--roi", "moved.nii.gz"], r"--roi: it is not on the image's grid"),
        (["--roi", "empty.nii.gz"], r"--roi: empty.nii.gz is 0 everywhere, so it contains no RoI"),
        (["--units", "moved.nii.gz"], r"--units: it is not on the image's grid"),
        (["--class", "9"], r"--class: expected 0..2, got 9"),
    ],
)
def test_scans(place, capsys, change, message):
    folder, name = place
    check(folder, capsys, on_scan(name, *change), message)


def test_a_model_of_several_classes_needs_one(place, capsys):
    folder, name = place
    arguments = on_scan(name)
    del arguments[arguments.index("--class") : arguments.index("--class") + 2]
    check(folder, capsys, arguments, r"--class: the model has 3 classes, say which one \(0..2\)")


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("components", ["--layers", "nothing"], r"--layers: no module is named 'nothing'"),
        (
            "components",
            ["--model", "two.ts"],
            r"--layers: the parts of a TorchScript model cannot be reached; give the network with --model ",
        ),
        ("components", ["--donors", "sizes"], r"--donors: the network's parts need donor images as large as the image"),
        ("components", ["--model", "MODULE:single"], r"--layers: the network is a single module and has no parts"),
        ("refute", ["--refuters", "placebo,nothing"], r"--refuters: there is no 'nothing'; expected some of placebo"),
        ("region", ["--share", "2"], r"--share: expected a finite number of more than 0 and at most 1, got 2"),
        ("region", ["--alternatives", "-1"], r"--alternatives: expected at least 0, got -1"),
        ("region", ["--draws", "1"], r"--draws: expected at least 2, got 1"),
        ("compare", ["--donors", "rgb"], r"--donors: rgb/0.png holds 3 channel"),
    ],
)
def test_the_other_commands(place, capsys, command, more, message):
    folder, name = place
    (folder / "sizes").mkdir()
    pillow.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("sizes/0.png")
    more = [part.replace("MODULE", name) for part in more]
    check(folder, capsys, on_picture(name, "--label", "mask.png", *more, command=command), message)


def test_units_that_this_image_has_no_donors_for(place, capsys):
    folder, name = place
    units = np.zeros((24, 32), dtype=np.uint8)
    units[:, 16:] = 1
    pillow.fromarray(units).save("units.png")
    assert status_of(on_picture(name, "--units", "units.png")) == 2
    assert re.search(r"causalseg explain: error: --donors: .* has no place .*; give --donors\n", capsys.readouterr().err)
    assert not (folder / "out").exists()


def test_donors_that_are_smaller_than_a_unit(place, capsys):
    """Found when they are drawn from."""
    folder, name = place
    (folder / "tiny").mkdir()
    pillow.fromarray(np.zeros((3, 3), dtype=np.uint8)).save("tiny/0.png")
    assert status_of(on_picture(name, "--donors", "tiny")) == 2
    assert re.search(r"causalseg explain: error: --donors: .*\(3, 3\)", capsys.readouterr().err)
    assert not (folder / "out").exists()


BUNDLE = {"network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1}}
LOADING = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]


# MONAI leaves a broken picture open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("config", "weights", "more", "message"),
    [
        (BUNDLE, False, [], r"--bundle: none in .*models, expected model.pt"),
        ({}, True, [], r"--bundle: no network in .*inference.json"),
        (
            {"network_def": {"_target_": "no.such.Network"}},
            True,
            [],
            r"--bundle: 'network_def' of .*inference.json cannot be built",
        ),
        (BUNDLE, True, ["--bundle", "none"], r"--bundle: there is no folder none"),
        (
            BUNDLE | {"preprocessing": LOADING},
            True,
            ["--normalize", "255"],
            r"--normalize: the bundle prepares its images itself",
        ),
        (BUNDLE | {"preprocessing": LOADING}, True, ["--dims", "3"], r"--image: the bundle makes 2 spatial axes of image.png"),
        (
            BUNDLE | {"preprocessing": [*LOADING, {"_target_": "Orientationd", "keys": "image", "axcodes": "XYZ"}]},
            True,
            [],
            r"--image: the preprocessing of .*bundle failed on image.png",
        ),
        (
            BUNDLE | {"preprocessing": LOADING},
            True,
            ["--image", "broken.png"],
            r"--image: the preprocessing of .* on broken.png",
        ),
        (BUNDLE | {"preprocessing": LOADING}, True, ["--donors", "mixed"], r"--donors: the preprocessing of .* on mixed/0.png"),
    ],
)
def test_bundles(place, capsys, config, weights, more, message):
    folder, _ = place
    for part in ("configs", "models"):
        (folder / "bundle" / part).mkdir(parents=True)
    (folder / "bundle" / "configs" / "inference.json").write_text(json.dumps(config))
    if weights:
        torch.save(torch.nn.Conv2d(1, 1, 3, padding=1).state_dict(), folder / "bundle" / "models" / "model.pt")
    arguments = ["explain", "--bundle", "bundle", "--image", "image.png", "--roi", "box:8,8+8", "--draws", "3", "--out", "out"]
    check(folder, capsys, [*arguments, *more], message)


def test_one_line_in_a_real_shell(place):
    """With everything that other packages print on their own."""
    folder, name = place
    code = "import sys; from captum_causalseg import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, *on_scan(name, "--label", "moved.nii.gz")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder)
    assert ended.returncode == 2
    assert not ended.stdout
    assert re.fullmatch(r"causalseg explain: error: --label: it is not on the image's grid\. .*\n", ended.stderr)
