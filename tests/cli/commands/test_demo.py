"""The demo on the command line, as a person meets it."""

import hashlib
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from captum_causalseg import Status, TreatmentEffectStatistics, cli
from captum_causalseg.demo import cases as demo


@pytest.fixture
def quick(monkeypatch):
    """The demo on a brain case that is cut down to what a test can wait for."""
    whole = demo.brain_case

    def small(box=None):
        case = whole(box)
        near = slice(144, 240), slice(40, 136)
        return demo.Case(
            **vars(case)
            | {"image": case.image[..., near[0], near[1]], "roi": case.roi[near], "reference": case.reference[near]}
        )

    monkeypatch.setattr(demo, "brain_case", small)


def test_the_demo_writes_what_it_says(quick, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--draws", "5"]) == 0
    printed = capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "effects.csv",
        "effects.png",
        "report.html",
        "statistics.npz",
    ]
    assert f"written to {tmp_path / 'out'}/: effects.csv, effects.png, report.html, statistics.npz" in printed.out
    assert "100%" in printed.err  # the progress bar
    stats = TreatmentEffectStatistics.load(tmp_path / "out" / "statistics.npz")
    table = pd.read_csv(tmp_path / "out" / "effects.csv")
    assert len(table) == 12 * 12 * 3
    # The network sees the slice from another border here, yet its Dice is close to that of the whole slice.
    assert f"(held out): dice of grey matter in box:184,88+32 is {float(stats.observed_score[0, 1]):.4f}" in printed.out
    assert f"{stats.n_forwards} forward passes" in printed.out
    best = table[(table["class"] == 1) & (table["status"] != "EXCLUDED")].sort_values("effect").iloc[-1]
    line = next(line for line in printed.out.splitlines() if line.strip().startswith("supports"))
    assert f"{best.effect:+.4f}  [{best.lower:+.4f}, {best.upper:+.4f}]" in line
    assert f"{best.start_0:.0f}-{best.stop_0 - 1:.0f}" in line.replace(" ", "")
    assert best.effect > 0
    words = {
        "ESTIMATED": "estimated",
        "SCREENED": "without effect in the first draws",
        "OUTSIDE_SUPPORT": "that cannot reach the region of interest",
        "EXCLUDED": "that touch it (not replaced)",
    }
    for name, count in table[table["class"] == 1]["status"].value_counts().items():
        assert f"{count} {words[name]}" in printed.out
    html = unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "made the model segment grey matter in box:184,88+32 as it did?" in html
    assert f"Its Dice there is {float(stats.observed_score[0, 1]):.4f}" in html
    assert "<script" in html
    # Only what the demo has is repeated; what only `explain` has is named with it.
    assert "causalseg demo --draws 5 --seed 0 --out out" in html
    assert "causalseg explain --refute" in html
    assert "--donors)" not in html
    weights = Path(demo.__file__).parent / "brain_unet.pt"
    assert f'brain_unet.pt</td><td class="text">{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}<' in html


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--image", "--label", "--patches", "--roi", "--draws", "--seed", "--out"))


def exit_status(arguments):
    """Whether the parser of arguments ends the program or what comes after it."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--roi", "72,88"], "expected box:ROW,COL+SIZE, e.g. box:72,88+32, got '72,88'"),
        (["demo", "--draws", "0"], "expected a positive number, got '0'"),
        (["demo", "--label", "x.png"], "--image: it needs --label and --patches"),
        (["demo", "--image", "x.png"], "--image needs"),
        ([], "required: command"),
    ],
)
def test_bad_options_are_explained(arguments, message, capsys):
    assert exit_status(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def picture(path, values):
    from PIL import Image

    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def test_bad_files_are_one_line_and_exit_2(tmp_path, capsys):
    image = picture(tmp_path / "image.png", np.zeros((20, 30, 3)))
    label = picture(tmp_path / "label.png", np.eye(20, 30) * 255)
    blank = picture(tmp_path / "blank.png", np.zeros((20, 30)))
    small = picture(tmp_path / "small.png", np.eye(10) * 255)
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:40])
    np.savez(tmp_path / "gray.npz", np.zeros((4, 8, 8), np.uint8))
    cases = [
        (tmp_path / "missing.png", label, None, "missing.png: cannot be read as a picture"),
        (tmp_path / "broken.png", label, None, "broken.png: cannot be read as a picture"),
        (image, small, None, "--label: it has 10 x 10 pixels, the picture 30 x 20"),
        (image, blank, None, "is the same everywhere; expected a mask with 0 for background"),
        (image, label, image, "cannot be read as an .npz file of patches"),
        (image, label, tmp_path / "gray.npz", "expected 8-bit patches of shape (D, h, w, 3), found uint8 (4, 8, 8)"),
    ]
    for picture_, mask, patches, message in cases:
        arguments = ["demo", "--image", str(picture_), "--label", str(mask), "--out", str(tmp_path / "out")]
        assert cli.main(arguments + (["--patches", str(patches)] if patches else [])) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("causalseg")
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_picture_of_ones_own_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FIT_STEPS", 3)
    monkeypatch.setattr(demo, "PICTURE_SIZE", 64)
    generator = np.random.default_rng(0)
    values = generator.integers(0, 255, (40, 60, 3))
    image = picture(tmp_path / "image.png", values)
    label = picture(tmp_path / "label.png", (np.indices((40, 60)).sum(0) % 37 < 12) * 255)
    np.savez(tmp_path / "patches.npz", patches=generator.integers(0, 255, (30, 8, 8, 3)).astype(np.uint8))
    arguments = ["demo", "--image", image, "--label", label, "--patches", tmp_path / "patches.npz", "--roi", "box:24,24+16"]
    assert cli.main([str(a) for a in arguments] + ["--draws", "4", "--out", str(tmp_path / "out")]) == 0
    assert "dice in box:24,24+16 is" in capsys.readouterr().out
    html = unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    line = "causalseg demo --image image.png --label label.png --patches patches.npz --roi box:24,24+16 --draws 4 --seed 0 --out out"
    assert line in html
    assert all(f'<td class="text">{name}</td>' in html for name in ("image.png", "label.png", "patches.npz"))
    assert "the 30 patches of patches.npz" in html
    assert str(tmp_path) not in html
    stats = TreatmentEffectStatistics.load(tmp_path / "out" / "statistics.npz")
    assert stats.effect.shape == (1, 64)
    assert int((stats.status == Status.EXCLUDED).sum()) == 4


def test_the_command_is_installed():
    run = subprocess.run(
        [sys.executable, "-c", "from captum_causalseg.cli import main; main(['--help'])"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "demo" in run.stdout
