"""The package's front door: names are imported when they are asked for, and nothing tells them from names that always were."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import captum_causalseg

HEAVY = {"torch", "monai", "captum", "numpy", "pandas", "scipy", "matplotlib"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["explain", "--help"], ["cohort", "--help"], ["explain"]])
def test_the_command_line_reads_its_arguments_without_torch(arguments):
    code = f"""
import sys
from captum_causalseg.cli import main
try:
    main({arguments})
finally:
    print("imported:", sorted({HEAVY} & set(sys.modules)))
"""
    assert "imported: []" in run("-c", code).stdout


def test_the_version_is_told():
    done = run("-m", "captum_causalseg", "--version")
    assert (done.returncode, done.stdout) == (0, f"causalseg {captum_causalseg.__version__}\n")


def test_the_package_runs_as_a_module():
    assert "causalseg COMMAND --help" in run("-m", "captum_causalseg", "--help").stdout
    nothing = run("-m", "captum_causalseg")
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("causalseg: error: ")


def test_importing_the_package_alone_is_cheap():
    done = run("-c", f"import sys, captum_causalseg; print(sorted({HEAVY} & set(sys.modules)), dir(captum_causalseg))")
    assert done.stdout.startswith("[] ")
    assert all(f"'{name}'" in done.stdout for name in captum_causalseg.__all__), "dir() lists what is not imported yet"


def test_every_public_name_is_one_of_its_place():
    scope: dict[str, object] = {}
    exec("from captum_causalseg import *", scope)
    assert set(captum_causalseg.__all__) <= set(scope)
    for name in captum_causalseg.__all__:
        assert getattr(captum_causalseg, name) is scope[name]


def test_what_type_checkers_read_and_what_is_imported_are_the_same():
    tree = ast.parse(Path(captum_causalseg.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If) and node.orelse == [] and len(node.body) > 2]
    read = {alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    modules = {name for name, place in read.items() if place == "captum_causalseg"}
    assert {name: place for name, place in read.items() if name not in modules} == captum_causalseg._PLACES
    assert read.keys() | {"__version__"} == set(captum_causalseg.__all__)


def test_modules_are_attributes_without_an_import_of_their_own():
    # The first does not import the second.
    code = "import captum_causalseg as c; print(c.statistics.__name__, c.visualization.__name__)"
    done = run("-c", code)
    assert done.stdout.split() == ["captum_causalseg.statistics", "captum_causalseg.visualization"], done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error_that_knows_the_near_one():
    with pytest.raises(AttributeError, match=r"^module 'captum_causalseg' has no attribute 'PatchBnk'$"):
        _ = captum_causalseg.PatchBnk
    assert "Did you mean: 'PatchBank'?" in run("-c", "import captum_causalseg; captum_causalseg.PatchBnk").stderr
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from captum_causalseg import nothing")


def test_pickles_name_the_module_that_defines():
    bank = captum_causalseg.Constant(0.5)
    assert type(pickle.loads(pickle.dumps(bank))) is captum_causalseg.Constant
    assert captum_causalseg.Constant.__module__ != "captum_causalseg"
