"""Which commands there are: those of this package, and those that installed packages bring."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from captum_causalseg.cli.command import Command
from captum_causalseg.cli.commands import COMMANDS
from captum_causalseg.cli.errors import InputError

__all__ = ["GROUP", "Listed", "listed"]

GROUP = "captum_causalseg.commands"


@dataclass(frozen=True)
class Listed:
    """A command that can be called.

    Args:
        name: what is typed.
        help: what it is for, in one line.
        load: the command; it is imported now.
    """

    name: str
    help: str
    load: Callable[[], Command]


def listed(called: str | None) -> tuple[list[Listed], list[str]]:
    """The commands, and what is to be said of those that cannot be called.

    Args:
        called: the command that is asked for. Where it is one of this package, nobody else's are looked for.
    """
    own = {command.name: Listed(command.name, command.help, command) for command in COMMANDS}
    if called in own:
        return [*own.values()], []
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    taken = [
        f"{name}, which {_packages(points)} brings, is a command of captum_causalseg"
        for name, points in found.items()
        if name in own
    ]
    others = [Listed(name, _summary(points), partial(_loaded, points)) for name, points in found.items() if name not in own]
    return [*own.values(), *sorted(others, key=lambda one: one.name)], taken


def _loaded(points: list[EntryPoint]) -> Command:
    """The command of an entry point; what is wrong with it is said of the package that brings it."""
    if len(points) > 1:
        raise InputError(f"{_packages(points)} bring a command of this name, uninstall all but one")
    (point,) = points
    try:
        made = point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{point.value} of {_packages(points)} cannot be imported: {error}") from error
    if not (isinstance(made, type) and issubclass(made, Command)):
        raise InputError(
            f"{point.value} of {_packages(points)}: expected a subclass of captum_causalseg.cli.Command, got {made!r}"
        )
    if getattr(made, "name", None) != point.name:
        raise InputError(
            f"{point.value} of {_packages(points)}: expected the name {point.name!r}, got {getattr(made, 'name', None)!r}"
        )
    return made()


def _summary(points: list[EntryPoint]) -> str:
    """Of the packages' metadata: their code is not run to list them."""
    if len(points) > 1 or points[0].dist is None:
        return f"({_packages(points)})"
    summary = points[0].dist.metadata.json.get("summary", "")
    return f"{summary} ({_packages(points)})".lstrip()


def _packages(points: list[EntryPoint]) -> str:
    names = sorted(
        "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}" for point in points
    )
    return " and ".join(names)
