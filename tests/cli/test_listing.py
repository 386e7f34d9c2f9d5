"""Commands that other packages bring: listed without being imported, called like those of this package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import status_of

from captum_causalseg import cli

TWICE = """
from captum_causalseg.cli import Command, InputError

class Twice(Command):
    name, help = "twice", "a number twice"
    when_interrupted = "half of it is done"

    def add_arguments(self, parser):
        parser.add_argument("--number", type=int, required=True, metavar="N", help="100 %% of it")

    def run(self, options):
        if options.number < 0:
            raise InputError("--number: expected at least 0,\\ngot " + str(options.number))
        if options.number == 5:
            raise KeyboardInterrupt
        if options.number == 6:
            raise ValueError("a bug of its own")
        return options.command + ": " + str(2 * options.number), int(options.number == 7)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package that brings a command: its code in a module of its own, its metadata beside it."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(package, code=TWICE, command="twice", attribute="Twice", summary="Doubles 100 % of a number"):
        module = f"{package}_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        metadata = tmp_path / f"{package}-1.5.dist-info"
        metadata.mkdir()
        said = f"Summary: {summary}\n" if summary else ""
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n{said}", encoding="utf-8")
        points = f"[captum_causalseg.commands]\n{command} = {module}:{attribute}\n"
        (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
        return module

    return make


def help_of(capsys):
    assert status_of(["--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_command_of_another_package_is_listed_by_its_metadata_and_not_imported(install, capsys):
    module = install("doubling", code="raise SystemExit('imported')")
    install("halving", command="half", summary="")
    listed = help_of(capsys)
    assert "twice Doubles 100 % of a number (doubling 1.5)" in listed
    assert "half (halving 1.5)" in listed
    assert listed.index("demo") < listed.index("half (") < listed.index("twice Doubles")
    assert module not in sys.modules


def test_it_runs_as_those_of_this_package_do(install, capsys):
    module = install("doubling")
    assert cli.main(["twice", "--number", "4"]) == 0
    assert capsys.readouterr().out == "twice: 8\n"
    assert cli.main(["twice", "--number", "7"]) == 1
    assert module in sys.modules
    capsys.readouterr()
    assert cli.main(["twice", "--number=-1"]) == 2
    assert capsys.readouterr().err == "causalseg twice: error: --number: expected at least 0, got -1\n"
    assert cli.main(["twice", "--number", "5"]) == 130
    assert capsys.readouterr().err == "causalseg twice: interrupted, half of it is done\n"
    with pytest.raises(ValueError, match="a bug of its own"):
        cli.main(["twice", "--number", "6"])


def test_its_options_are_read_and_told_like_those_of_this_package(install, capsys):
    install("doubling")
    assert status_of(["twice"]) == 2
    said = "causalseg twice: error: the following arguments are required: --number  (causalseg twice --help)\n"
    assert capsys.readouterr().err == said
    assert status_of(["twice", "--help"]) == 0
    told = capsys.readouterr().out
    assert "a number twice" in told
    assert "100 % of it" in told


def test_a_wrong_name_lists_it(install, capsys):
    install("doubling")
    assert status_of(["twise"]) == 2
    assert "twice" in capsys.readouterr().err


def test_nobody_takes_the_name_of_a_command_of_this_package(install, capsys):
    install("grabbing", command="explain")
    listed = help_of(capsys)
    assert "explain explain one segmentation of a model of your own" in listed
    assert "Left out: explain, which grabbing 1.5 brings, is a command of captum_causalseg." in listed
    assert status_of(["explain"]) == 2
    assert "--image, --roi" in capsys.readouterr().err


def test_of_two_packages_with_one_name_neither_is_called(install, capsys):
    install("doubling")
    install("redoubling")
    assert "twice (doubling 1.5 and redoubling 1.5)" in help_of(capsys)
    assert status_of(["twice", "--number", "4"]) == 2
    said = "doubling 1.5 and redoubling 1.5 bring a command of this name, uninstall all but one"
    assert capsys.readouterr().err == f"causalseg twice: error: {said}\n"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"code": "import no_such_module"}, "{} of doubling 1.5 cannot be imported: No module named 'no_such_module'"),
        ({"attribute": "Thrice"}, "{} of doubling 1.5 cannot be imported: module '{module}' has no attribute 'Thrice'"),
        (
            {"code": "Twice = print"},
            "{} of doubling 1.5: expected a subclass of captum_causalseg.cli.Command, got <built-in function print>",
        ),
        ({"command": "double"}, "{} of doubling 1.5: expected the name 'double', got 'twice'"),
    ],
    ids=["a module is missing", "no such class", "no command", "another name"],
)
def test_what_is_wrong_with_it_is_said_of_its_package(install, capsys, made, said):
    module = install("doubling", **made)
    command, attribute = made.get("command", "twice"), made.get("attribute", "Twice")
    assert status_of([command, "--number", "4"]) == 2
    said = said.format(f"{module}:{attribute}", module=module)
    assert capsys.readouterr().err == f"causalseg {command}: error: {said}\n"


def test_errors_of_its_module_keep_their_traceback(install):
    install("doubling", code="1 / 0")
    with pytest.raises(ZeroDivisionError):
        cli.main(["twice"])


def test_neither_it_nor_torch_is_imported_to_list_it(install, tmp_path):
    module = install("doubling", code="import torch\n" + TWICE)
    for arguments, imported in ((["--help"], []), (["explain", "--help"], []), (["twice", "--help"], [module, "torch"])):
        code = (
            "import sys\nfrom captum_causalseg.cli import main\n"
            f"try:\n    main({arguments})\nfinally:\n    print(sorted({{'torch', {module!r}}} & set(sys.modules)))"
        )
        path = os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parents[2])])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.stdout.splitlines()[-1] == str(sorted(imported)), done.stderr
