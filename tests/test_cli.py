"""The commands that explain a case of one's own, as a person meets them."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

from captum_causalseg import TreatmentEffectStatistics, _cli_case, _cli_run, cli, images

nibabel = pytest.importorskip("nibabel")
pillow = pytest.importorskip("PIL.Image")

NETS = """
import torch

def two():
    torch.manual_seed(36)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1))

def three():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1)

def color():
    return torch.nn.Conv2d(3, 2, 1)

def number():
    return 3

def fails():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with networks, weights, a picture, a scan, labels and donors; the current one."""
    monkeypatch.chdir(tmp_path)
    name = "nets_" + re.sub(r"\W", "_", tmp_path.name + tmp_path.parent.name)
    (tmp_path / f"{name}.py").write_text(NETS)
    generator = np.random.default_rng(0)
    pillow.fromarray(generator.integers(0, 256, (24, 32), dtype=np.uint8)).save("image.png")
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[6:18, 8:20] = 255
    pillow.fromarray(mask).save("mask.png")
    (tmp_path / "donors").mkdir()
    for number in range(4):
        pillow.fromarray(generator.integers(0, 256, (24, 32), dtype=np.uint8)).save(f"donors/{number}.png")
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(generator.random((16, 16, 8), dtype=np.float32), affine), "scan.nii.gz")
    truth = np.zeros((16, 16, 8), dtype=np.uint8)
    truth[4:8, 4:8, 2:4] = 2
    nibabel.save(nibabel.Nifti1Image(truth, affine), "truth.nii.gz")
    torch.manual_seed(7)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1))
    torch.save(network.state_dict(), "two.pt")
    torch.jit.script(network).save("two.ts")
    return tmp_path, name


def picture(name, *more, command="explain", model="two"):
    arguments = [command, "--model", f"{name}:{model}", "--image", "image.png", "--normalize", "255", "--roi", "box:8,8+8"]
    return [*arguments, "--draws", "4", "--out", "out", *more]


def test_explain_writes_a_folder_and_a_report_of_one_page(place, capsys):
    folder, name = place
    more = ["--weights", "two.pt", "--label", "mask.png", "--donors", "donors", "--units", "4x8"]
    assert cli.main(picture(name, *more)) == 0
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
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert line in html
    assert f"[{best.lower:+.4f}, {best.upper:+.4f}]" in html
    assert "mask.png" in html
    assert "box:8,8+8" in html
    assert html.count("data:image/png;base64,") == 2
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)  # nothing beside it


def test_the_weights_and_the_score_are_those_of_the_files(place):
    _, name = place
    assert cli.main(picture(name, "--weights", "two.pt", "--label", "mask.png")) == 0
    network = torch.jit.load("two.ts")
    image = torch.from_numpy(np.array(pillow.open("image.png"))).float()[None, None] / 255
    truth = torch.from_numpy(np.array(pillow.open("mask.png"))) > 0
    with torch.no_grad():
        found = network(image)[0].argmax(0) == 1
    found, truth = found[8:16, 8:16], truth[8:16, 8:16]
    expected = 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())
    assert float(TreatmentEffectStatistics.load("out/statistics.npz").observed_score[0, 1]) == pytest.approx(expected, abs=1e-6)


def test_torchscript_is_the_same_network(place):
    _, name = place
    assert cli.main(picture(name, "--weights", "two.pt", "--label", "mask.png")) == 0
    first = pd.read_csv("out/effects.csv")
    arguments = picture(name, "--label", "mask.png", "--out", "again")
    arguments[2] = "two.ts"
    assert cli.main(arguments) == 0
    np.testing.assert_allclose(pd.read_csv("again/effects.csv")["effect"], first["effect"], atol=1e-6)


@pytest.mark.parametrize("roi", ["label:2", "point:5,5,3", "truth.nii.gz", "box:4,4,2+4,4,2"])
def test_a_scan_gets_its_map_in_its_own_space(place, roi):
    _, name = place
    arguments = ["explain", "--model", f"{name}:three", "--image", "scan.nii.gz", "--label", "truth.nii.gz", "--class", "2"]
    assert cli.main([*arguments, "--roi", roi, "--units", "4x4x2", "--draws", "3", "--out", "out"]) == 0
    scan, found = images.load_image("scan.nii.gz"), nibabel.load("out/effects.nii.gz")
    np.testing.assert_array_equal(found.affine, scan.affine)
    expected = TreatmentEffectStatistics.load("out/statistics.npz").to_map("effect", 2)[0, 0]
    np.testing.assert_allclose(found.get_fdata(), expected, rtol=1e-6)


def test_the_boundary_is_that_of_the_predicted_class():
    prediction = torch.zeros(3, 8, 8, dtype=torch.bool)
    prediction[2, :, 5:] = True
    found = _cli_case._roi("boundary:1", torch.zeros(1, 1, 8, 8), None, prediction, 2)
    assert found.nonzero()[:, 1].unique().tolist() == [4, 5]


def test_refuters_and_components_have_their_sections(place, capsys):
    folder, name = place
    assert cli.main(picture(name, "--donors", "donors", "--refute", "--components", "0", "--units", "8")) == 0
    printed = capsys.readouterr().out
    assert "placebo" in printed
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Attempts to refute it" in html
    assert "Parts of the network" in html
    assert pd.read_csv("out/components.csv", dtype={"module": str})["module"].tolist() == ["0"]
    assert set(pd.read_csv("out/refutation.csv")["name"]) == {"placebo", "split", "subset", "seed", "weights"}


@pytest.mark.parametrize(
    ("command", "more", "files", "said"),
    [
        ("components", ["--layers", "*"], ["components.csv", "components.png"], "Conv2d"),
        ("compare", [], ["comparison.csv", "comparison.png"], "integrated gradients"),
        ("refute", ["--refuters", "placebo,seed"], ["effects.png", "refutation.csv"], "overall"),
    ],
)
def test_the_other_commands(place, capsys, command, more, files, said):
    folder, name = place
    assert cli.main(picture(name, "--donors", "donors", "--label", "mask.png", *more, command=command)) == 0
    assert sorted(p.name for p in (folder / "out").iterdir()) == files
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--image", "none.png"], r"--image: there is no file none.png"),
        (["--image", "broken.png"], r"--image: broken.png cannot be read"),
        (["--image", "series.nii.gz"], r"--image: series.nii.gz holds 3 spatial axes and another of length 3"),
        (["--label", "truth.nii.gz"], r"--label: truth.nii.gz holds 3 spatial axes .* expected 2"),
        (["--label", "small.png"], r"--label: expected the image's grid"),
        (["--roi", "box:20,8+8"], r"--roi: the box 20..28 leaves axis 0"),
        (["--roi", "box:1,1,1+8"], r"--roi: box:1,1,1\+8 has 3 axes, the image 2"),
        (["--roi", "label:7"], r"--roi: the label map holds 0, 1, got 7"),
        (["--roi", "point:0,0"], r"--roi: the mask is 0 at \(0, 0\)"),
        (["--roi", "box:x"], r"--roi: expected box:72,88\+32, point"),
        (["--metric", "nice"], r"--metric: there is no 'nice'; expected one of dice"),
        (["--class", "2"], r"--class: expected 0..1, got 2"),
        (["--units", "64"], r"--units: a block of .* is larger than the image"),
        (["--donors", "nowhere"], r"--donors: there is no folder nowhere"),
        (["--donors", "rgb"], r"--donors: rgb/0.png holds 3 channel\(s\), the image 1"),
        (["--weights", "broken.png"], r"--weights: broken.png is "),
        (["--model", "MODULE:number"], r"--model: expected \w+:number to return a torch.nn.Module, got int"),
        (["--model", "MODULE:fails"], r"--model: \w+:fails failed: RuntimeError: no luck"),
        (["--model", "MODULE:nothing"], r"--model: \w+ has no function 'nothing'"),
        (["--model", "no_such_package:net"], r"--model: no_such_package cannot be imported: ModuleNotFoundError"),
        (["--model", "none.ts"], r"--model: expected package.module:factory or a TorchScript file, and there is no file"),
        (["--model", "two.pt"], r"--model: two.pt is no TorchScript file"),
        (["--model", "MODULE:three"], r"--image: expected logits \(N, C, \*spatial\) with N=1 and 2 spatial axes"),
        (["--model", "MODULE:color"], r"--image: the model fails on an image of shape \(1, 1, 24, 32\): RuntimeError"),
        (["--units", "24x32"], r"--units: every unit touches the region of interest"),
        (["--components", "nothing"], r"--components: no module is named 'nothing'"),
        (["--out", "image.png"], r"--out: image.png is a file"),
        (["--precision", "-1"], r"--precision: expected a positive number"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, capsys, change, message):
    folder, name = place
    (folder / "broken.png").write_bytes((folder / "image.png").read_bytes()[:60])
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4, 3), dtype=np.float32), np.eye(4)), "series.nii.gz")
    pillow.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("small.png")
    (folder / "rgb").mkdir()
    pillow.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save("rgb/0.png")
    before = sorted(folder.rglob("*"))
    change = [part.replace("MODULE", name) for part in change]
    assert cli.main(picture(name, "--label", "mask.png", *change)) == 2
    error = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("causalseg")]
    assert len(error) == 1
    assert re.match(f"causalseg: error: {message}", error[0]), error
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_bundle_and_one_without_weights(place, capsys):
    folder, _ = place
    for part in ("configs", "models"):
        (folder / "bundle" / part).mkdir(parents=True)
    network = (
        '{"network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1}}'
    )
    (folder / "bundle" / "configs" / "inference.json").write_text(network)
    arguments = ["explain", "--bundle", "bundle", "--image", "image.png", "--roi", "box:8,8+8", "--draws", "3", "--out", "out"]
    assert cli.main(arguments) == 2
    assert re.match(r"causalseg: error: --bundle: none in .*models, expected model.pt", capsys.readouterr().err)
    torch.manual_seed(0)
    torch.save(torch.nn.Conv2d(1, 1, 3, padding=1).state_dict(), folder / "bundle" / "models" / "model.pt")
    assert cli.main(arguments) == 0
    assert (folder / "out" / "report.html").is_file()


def test_ctrl_c_leaves_nothing_and_says_so(place, capsys, monkeypatch):
    folder, name = place

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_cli_run, "plot_effects", interrupted)
    assert cli.main(picture(name, "--out", "deep/er/out")) == 130
    assert capsys.readouterr().err.endswith("causalseg: interrupted, nothing was written\n")
    assert not (folder / "deep").exists()


@pytest.mark.parametrize("command", ["explain", "components", "compare", "refute", "demo"])
def test_help_reads_without_torch_s_names(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--out DIR" in said
    assert "%%" not in said


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_a_phone_and_a_desk(place, width):
    folder, name = place
    assert cli.main(picture(name, "--label", "mask.png", "--donors", "donors", "--refute", "--components", "*")) == 0
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    # A window has a least width; a frame does not.
    (folder / "report.html").write_text(
        html.replace("</body>", "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script></body>")
    )
    (folder / "frame.html").write_text(
        f"<body><script>onmessage = (e) => {{ document.title = 'width ' + e.data }}</script>"
        f"<iframe style='border: 0; width: {width}px; height: 900px' src='report.html'></iframe></body>"
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000",
    ]
    options += ["--window-size=1400,1000", "--dump-dom", (folder / "frame.html").as_uri()]
    shown = subprocess.run(["chromium", *options], capture_output=True, text=True, timeout=100, check=True).stdout
    found = re.search(r"<title>width (\d+)</title>", shown)
    assert found is not None, shown[:500]
    assert int(found[1]) <= width
