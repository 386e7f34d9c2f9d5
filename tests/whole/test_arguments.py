"""How arguments travel: few by position, few at all, none in bags that are unpacked into a call."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import captum_causalseg
from tests.whole.test_docs import public_values

PACKAGE = Path(captum_causalseg.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_PARAMETERS = 8
MOST_BY_POSITION = 3


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Every function in a tree: its name with those of its classes, itself, and whether it is a method."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{within}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield f"{within}{child.name}", child, isinstance(node, ast.ClassDef)
            yield from functions(child, f"{within}{child.name}.<locals>.")
        else:
            yield from functions(child, within)


def parameters(function: ast.FunctionDef, is_method: bool) -> list[str]:
    """Names of those that a call may fill by position, without the object itself."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if is_method and names[:1] in (["self"], ["cls"]) else names


def users() -> set[str]:
    """Full names of what users call: functions, methods and constructors that a door or the reference names."""
    found = set()
    for value in public_values().values():
        parts = vars(value).values() if inspect.isclass(value) else [value]
        for part in parts:
            function = inspect.unwrap(getattr(part, "__func__", part))
            if inspect.isfunction(function):
                found.add(f"{function.__module__}.{function.__qualname__}")
    return found


def test_below_what_users_call_no_function_takes_many_parameters():
    public = users()
    assert {"AverageTreatmentEffect.attribute", "SegmentationTarget.__init__", "compare"} <= {
        ".".join(name.split(".")[-2:]) if "." in name and name.split(".")[-2][0].isupper() else name.split(".")[-1]
        for name in public
    }
    long = []
    for file in FILES:
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name, function, is_method in functions(tree(file)):
            count = len(parameters(function, is_method)) + len(function.args.kwonlyargs)
            if count > MOST_PARAMETERS and f"{module}.{name}" not in public:
                long.append(f"{module}.{name}: {count}")
    assert long == []


@cache
def by_position() -> dict[str, int]:
    """Of every name that is called in the package and defined there: how many arguments are named and may be given by position."""
    most: dict[str, int] = {}
    for file in FILES:
        for name, function, is_method in functions(tree(file)):
            *_, last = name.split(".")
            whose = name.split(".")[-2] if last == "__init__" else last
            most[whose] = max(most.get(whose, 0), len(parameters(function, is_method)))
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
                most[node.name] = max(most.get(node.name, 0), len(fields))
    return most


def unpacks_a_tuple(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Starred) and isinstance(argument.value, (ast.Tuple, ast.List))


def test_calls_of_our_own_functions_give_few_arguments_by_position():
    assert by_position()["PlantedCause"] == 4, "this test sees what functions take"
    many = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                count = sum(len(one.value.elts) if unpacks_a_tuple(one) else 1 for one in node.args)
                if min(count, by_position().get(name, 0)) > MOST_BY_POSITION:
                    many.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {name} with {count}")
    assert many == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_line_begins_with_a_tuple_that_is_unpacked(file):
    assert re.findall(r"^\s*\*\(.*", file.read_text(encoding="utf-8"), re.MULTILINE) == []
