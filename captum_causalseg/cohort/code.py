"""Functions and classes: whose they are, and what a function reads besides its arguments."""

import dis
import functools
import importlib.metadata
import importlib.util
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from captum_causalseg._version import __version__

__all__ = ["imported", "nested", "package_of", "read_names", "resolved", "source_of"]

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
# What folders of installed packages are called.
_PLACES = frozenset({"site-packages", "dist-packages"})


def package_of(module: str) -> str | None:
    """Name and version of the installed package that a module belongs to; ``None`` for a module of the user's own.

    Python's own modules are named without a version, this package and its parts with its version.
    """
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return f"{top} {__version__}"
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return top
    found = sys.modules.get(module, sys.modules.get(top))
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if file is None or not _is_installed(file):
        return None
    version = getattr(sys.modules.get(top), "__version__", None)
    if not isinstance(version, str):
        version = _version_of(top)
    # What follows a plus is how it was built: of the same code, for another GPU.
    return f"{top} {version.partition('+')[0]}".strip()


def nested(code: CodeType) -> Iterator[CodeType]:
    """A piece of code and those within it."""
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from nested(constant)


def read_names(function: FunctionType) -> list[tuple[str, ...]]:
    """The global names that a function and the functions within it read, each with the attributes that are taken from it at once."""
    found: dict[tuple[str, ...], None] = {}
    for code in nested(function.__code__):
        chain: tuple[str, ...] = ()
        for step in dis.get_instructions(code):
            if step.opname in _GLOBAL:
                found |= {chain: None}
                chain = (step.argval,)
            elif step.opname in _ATTRIBUTE and chain:
                chain = (*chain, step.argval)
            elif step.opname != "EXTENDED_ARG":
                found |= {chain: None}
                chain = ()
        found |= {chain: None}
    return sorted(chain for chain in found if chain and chain[0] in function.__globals__)


def resolved(function: FunctionType, chain: tuple[str, ...]) -> tuple[str, Any]:
    """What such a name stands for. Only of modules of the user's own are attributes looked at: others are described as a whole."""
    name, value = chain[0], function.__globals__[chain[0]]
    for attribute in chain[1:]:
        if not isinstance(value, ModuleType) or package_of(value.__name__) is not None or attribute not in vars(value):
            break
        name, value = f"{name}.{attribute}", vars(value)[attribute]
    return name, value


def imported(function: FunctionType) -> list[str]:
    """Modules that a function imports when it runs."""
    found = set()
    package = function.__globals__.get("__package__")
    for code in nested(function.__code__):
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for number, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level = steps[number - 2].argval
                relative = isinstance(level, int) and level > 0 and package
                found.add(importlib.util.resolve_name("." * level + step.argval, package) if relative else step.argval)
    return sorted(found)


def source_of(module: str) -> Path | None:
    """The file of a module, whether it has been imported or not; ``None`` if there is none."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        file = None if spec is None else spec.origin
    return Path(file) if file is not None and Path(file).is_file() else None


@functools.cache
def _is_installed(file: str) -> bool:
    places = [
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
    # Of other environments, too, which are named in PYTHONPATH or a .pth file: clusters lay packages out in that way.
    return any(Path(file).is_relative_to(place) for place in places) or not _PLACES.isdisjoint(Path(file).parts)


@functools.cache
def _version_of(package: str) -> str:
    """Of an installed package that does not say it itself."""
    names = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(names[0]) if names else ""
