"""The command line's entry: arguments, exit status, what is said on interruption."""

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Sequence

from captum_causalseg._version import __version__
from captum_causalseg.cli.arguments import Parser, add_command
from captum_causalseg.cli.command import Command
from captum_causalseg.cli.errors import InputError
from captum_causalseg.cli.listing import listed
from captum_causalseg.cli.streams import watched_streams
from captum_causalseg.cli.warned import warnings_once
from captum_causalseg.writing.files import Ended, cleared_away_when_ended
from captum_causalseg.writing.names import printable

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done; 1: cases failed; 2: input that cannot be used, which is named in one line; 130 after Ctrl-C, 143 after SIGTERM, 129 after
    SIGHUP; 141: all was done, but the reader of the output closed it early (``| head -1``). Errors of the program itself keep their
    traceback.

    Args:
        arguments: what is typed after ``causalseg``; by default what was typed.

    Example:
        >>> from captum_causalseg.cli import main
        >>> main(["cohort", "--out", "no such folder", "--verify"])  # says on stderr that there is no study
        2
    """
    with watched_streams() as streams:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
    return streams.status(status)


def _run(arguments: list[str]) -> int:
    # No option before the command takes a value.
    called = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parser, command = _parser(called)
    except InputError as error:
        return _refused(called, error)
    options = parser.parse_args(arguments)
    assert command is not None  # the parser has left otherwise
    # Other packages' advice to programmers; what is wrong with the input is said in words of our own.
    logging.getLogger("monai").setLevel(logging.ERROR)
    try:
        with cleared_away_when_ended(), warnings_once(called):
            warnings.filterwarnings("ignore", module=r"(?!captum_causalseg)")
            # A name in letters that matplotlib's font does not have is whole on the page and in what is printed.
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
            said, status = command.run(options)
    except InputError as error:
        return _refused(called, error)
    except (KeyboardInterrupt, Ended) as ended:
        left = f", {command.when_interrupted}" if command.when_interrupted else ""
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            print(f"causalseg {called}: interrupted{left}", file=sys.stderr)
        return int(ended.code or 0) if isinstance(ended, Ended) else 130
    print(said)
    return status


def _refused(called: str | None, error: InputError) -> int:
    print(f"causalseg {called}: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return 2


def _parser(called: str | None) -> tuple[argparse.ArgumentParser, Command | None]:
    """The parser, and the command that is called, if there is one of that name: no other is asked for its options, nor imported."""
    commands, left_out = listed(called)
    parser = Parser(
        prog="causalseg",
        description="Which parts of an image made a model segment a region the way it did, and how sure are we?",
        epilog=" ".join(["causalseg COMMAND --help says more of each.", *(f"Left out: {said}." for said in left_out)]),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="command")
    command: Command | None = None
    for one in commands:
        if one.name == called:
            command = one.load()
            add_command(subparsers, command)
        else:
            subparsers.add_parser(one.name, help=one.help.replace("%", "%%"))
    return parser, command
