"""Who may import whom: the floors are import-linter's (`make lint`); here that rooms keep what is private to themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import captum_causalseg

PACKAGE = Path(captum_causalseg.__file__).parent
# What everybody needs.
GROUND = {"_captum", "_checks", "_state", "_version"}
MOST_FLOORS = 10


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports() -> list[tuple[str, str]]:
    """Every ``(importing module, imported module or name)`` within the package, inside functions as well."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "captum_causalseg":
                found += [(module, f"{node.module}.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names if alias.name.startswith("captum_causalseg.")]
    return found


def test_no_room_takes_what_is_private_to_another():
    across = [(module, taken) for module, taken in imports() if room_of(module) != room_of(taken)]
    assert len(across) > 300, "this test looks into the right place"
    private = [
        (module, taken)
        for module, taken in across
        if any(part.startswith("_") and part not in GROUND and not part.startswith("__") for part in taken.split("."))
    ]
    assert private == []


def test_only_the_ground_floor_is_private_in_the_root():
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert {room for room in rooms if room.startswith("_") and not room.startswith("__")} == GROUND


def test_there_are_few_floors():
    below: dict[str, set[str]] = {}
    plugs = {("evaluation", "visualization"), ("demo", "cli")}
    for module, taken in imports():
        above, under = room_of(module), room_of(taken)
        is_module = (PACKAGE / under).is_dir() or (PACKAGE / f"{under}.py").exists()
        if (
            above not in ("__init__", "__main__", "activations")
            and is_module
            and above != under
            and (above, under) not in plugs
        ):
            below.setdefault(above, set()).add(under)

    def floor(room: str) -> int:  # a circle would not end
        return 1 + max((floor(other) for other in below.get(room, ())), default=0)

    assert max(map(floor, below)) <= MOST_FLOORS


def test_imports_go_down():
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_what_only_a_target_can_do_is_asked_of_a_scorer():
    """Whether something is a SegmentationTarget is looked at where scorers are made, and where any object is described."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("isinstance", "issubclass", "hasattr")
            ):
                found += [(file.name, node.func.id) for arg in node.args[1:] if "SegmentationTarget" in ast.unparse(arg)]
            elif isinstance(node, ast.Compare) and "SegmentationTarget" in ast.unparse(node):
                found.append((file.name, "compared"))
    assert sorted(found) == [("fingerprint.py", "isinstance"), ("scorer.py", "isinstance")]


def test_no_private_attribute_of_another_files_objects_is_read():
    """Of what is private to this package: each name that begins with an underscore belongs to the file that makes it."""

    def private(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__")

    made: dict[Path, set[str]] = {}
    read: list[tuple[Path, str]] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        mine = made.setdefault(file, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                mine.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                mine.add(node.id)
            elif isinstance(node, ast.Attribute) and private(node.attr):
                of_its_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                mine.update([node.attr] if of_its_own else [])
                read += [] if of_its_own else [(file, node.attr)]
    ours = set().union(*made.values())
    assert [(file.name, name) for file, name in read if name in ours - made[file]] == []


def test_no_context_variable_says_how_a_run_is_carried_out():
    files = [
        file for room in ("attr", "interventions", "engine", "target", "cohort") for file in (PACKAGE / room).rglob("*.py")
    ]
    assert [file.name for file in files if "ContextVar" in file.read_text(encoding="utf-8")] == []
