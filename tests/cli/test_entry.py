"""Help, misspelled options, interruptions and errors of the program."""

import re

import numpy as np
import pandas as pd
import pytest
from command_line import on_picture, status_of

from captum_causalseg import AverageTreatmentEffect, cli
from captum_causalseg.cli import job as _cli_job


@pytest.mark.gpu
@pytest.mark.parametrize("command", ["explain", "region", "components", "compare", "refute"])
def test_the_commands_run_on_a_gpu(place, command):
    _, name = place
    more = ["--donors", "donors", "--label", "mask.png", "--device"]
    assert cli.main(on_picture(name, *more, "cuda:0", command=command)) == 0
    if command == "explain":
        assert cli.main(on_picture(name, *more, "cpu", "--out", "again")) == 0
        found, expected = (pd.read_csv(f"{out}/effects.csv")["effect"] for out in ("out", "again"))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_ctrl_c_leaves_nothing_and_says_so(place, capsys, monkeypatch):
    folder, name = place

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_cli_job, "plot_effects", interrupted)
    assert cli.main(on_picture(name, "--out", "deep/er/out")) == 130
    assert capsys.readouterr().err.endswith("causalseg explain: interrupted, nothing was written\n")
    assert not (folder / "deep").exists()


@pytest.mark.parametrize("where", ["attribute", "plot_effects"])
@pytest.mark.parametrize("error", [ValueError("a bug"), ValueError("values: a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_errors_of_the_program_are_not_blamed_on_the_user(place, monkeypatch, error, where):
    folder, name = place

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(AverageTreatmentEffect if where == "attribute" else _cli_job, where, broken)
    with pytest.raises(type(error), match="a bug"):
        cli.main(on_picture(name))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [None, "explain", "region", "components", "compare", "refute", "demo"])
def test_help_fits_the_screen(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert status_of(["--help"] if command is None else [command, "--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) < columns
    assert "%%" not in said
    if command is not None:
        assert "--out DIR" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"causalseg: error: the following arguments are required: command  \(causalseg --help\)"),
        (["explian"], r"causalseg: error: argument command: invalid choice: 'explian'.*  \(causalseg --help\)"),
        (
            ["explain", "--image", "a", "--roi", "b"],
            r"causalseg explain: error: one of the arguments --bundle --nnunet --model is required  .*",
        ),
        (["explain", "--model", "a", "--bundle", "b"], r"causalseg explain: error: argument --bundle: not allowed with .*"),
        (["compare", "--model", "a"], r"causalseg compare: error: .* required: --image, --roi  \(causalseg compare --help\)"),
        (["demo", "--nothing"], r"causalseg: error: unrecognized arguments: --nothing  \(causalseg --help\)"),
        (["demo", "--dra", "3"], r"causalseg: error: unrecognized arguments: --dra 3  .*"),
        (["demo", "--draws", "0"], r"causalseg demo: error: argument --draws: expected a positive number, got '0'  .*"),
        (["demo", "--label", "mask.png"], r"causalseg demo: error: --image: it needs --label and --patches"),
        (["demo", "--image", "none.png", "--label", "none.png"], r"causalseg demo: error: .*none.png: cannot be read.*"),
    ],
)
def test_misspelled_options_are_one_line(arguments, message, capsys):
    assert status_of(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(message, lines[0])
