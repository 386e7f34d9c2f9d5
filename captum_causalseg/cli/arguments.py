"""Arguments, read without torch: what the parsers of all commands share."""

import argparse
import re
from typing import Any, NoReturn

from captum_causalseg.cli.command import Command

__all__ = ["Parser", "add_all_units", "add_command", "add_context", "amount", "box_of", "positive"]


def add_command(subparsers: "argparse._SubParsersAction[Any]", command: Command) -> None:
    """Add a command and its options."""
    parser = subparsers.add_parser(
        command.name,
        help=command.help.replace("%", "%%"),
        description=command.description or command.help,
        epilog=command.epilog,
        formatter_class=_Formatter,
    )
    command.add_arguments(parser)


def box_of(text: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Start and size in ``box:72,88+32`` or ``box:72,88,4+32,32,8``; ``None`` if it is something else."""
    found = re.fullmatch(r"box:(\d+(?:,\d+)*)\+(\d+(?:,\d+)*)", text)
    if found is None:
        return None
    start, size = (tuple(map(int, part.split(","))) for part in found.groups())
    return start, size * len(start) if len(size) == 1 else size


def positive(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def amount(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def add_context(parser: argparse.ArgumentParser) -> None:
    """The option ``--context`` of commands that can take joint effects in the place of single ones."""
    parser.add_argument(
        "--context",
        type=_context,
        metavar="WHICH",
        help="joint effects: how much of the score is owed to each part where parts stand in for each other or need each other. shapley: each part is "
        "replaced after those that come before it in random orders; banzhaf: while each other part is replaced with probability 1/2; a number: with "
        "that probability (default: all other parts stay as they are)",
    )


def add_all_units(parser: argparse.ArgumentParser) -> None:
    """The option ``--all-units`` of commands that write ``effects.csv``."""
    parser.add_argument(
        "--all-units",
        action="store_true",
        help="write the parts that cannot reach the region of interest into effects.csv, too; their effect is 0",
    )


def _context(text: str) -> str | float:
    """``shapley``, ``banzhaf`` or a probability."""
    if text in ("shapley", "banzhaf"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected shapley, banzhaf or a number from 0 to 1, got {text!r}")
    return value


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where more is said."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # An option that is cut short may come to mean another one when options are added.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}  ({self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are filled, lines of a table or an example kept."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
        fill = super(argparse.RawDescriptionHelpFormatter, self)._fill_text
        filled = [
            paragraph.rstrip() if "\n" in paragraph.strip() else fill(paragraph, width, indent) for paragraph in paragraphs
        ]
        return "\n\n".join(filled)
