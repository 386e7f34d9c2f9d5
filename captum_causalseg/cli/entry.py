"""The command line's entry: arguments, exit status, what is said on interruption."""

import argparse
import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from captum_causalseg._version import __version__
from captum_causalseg.cli.arguments import Parser, add_cohort, add_commands, positive
from captum_causalseg.cli.errors import InputError
from captum_causalseg.cli.streams import watched_streams
from captum_causalseg.writing.files import Ended, cleared_away_when_ended
from captum_causalseg.writing.names import printable

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for input that cannot be used, 1 if cases failed, 130 after Ctrl-C, 143 and 129
    after SIGTERM and SIGHUP, 141 if all was done but nobody read to the end what was printed (``| head -1``).

    Input that cannot be used is named in one line. Errors of the program itself keep their traceback.
    """
    with watched_streams() as streams:
        status = _run(arguments)
    return streams.status(status)


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    # Other packages' advice to programmers; what is wrong with the input is said in words of our own.
    logging.getLogger("monai").setLevel(logging.ERROR)
    try:
        with cleared_away_when_ended(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(?!captum_causalseg)")
            # A name in letters that matplotlib's font does not have is whole on the page and in what is printed.
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
            status = 0
            if options.command == "demo":
                from captum_causalseg.cli.demo import run_demo

                said = run_demo(options)
            elif options.command == "cohort":
                from captum_causalseg.cli.cohort import run_cohort

                said, status = run_cohort(options)
            else:
                # Imported late: `--help` should not wait for MONAI.
                from captum_causalseg.cli.run import run

                said = run(options)
    except InputError as error:
        print(f"causalseg {options.command}: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Ended) as ended:
        left = "the same line goes on" if options.command == "cohort" else "nothing was written"
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            print(f"causalseg {options.command}: interrupted, {left}", file=sys.stderr)
        return int(ended.code or 0) if isinstance(ended, Ended) else 130
    print(said)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="causalseg",
        description="Which parts of an image made a model segment a region the way it did, and how sure are we?",
        epilog="causalseg COMMAND --help says more of each.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")
    add_commands(commands)
    add_cohort(commands)
    demo = commands.add_parser(
        "demo",
        help="explain a brain slice, or a picture of your own",
        description="Estimate the effect of every 8 x 8 block on the Dice of a region of interest, with natural donors, and write a "
        "picture (effects.png), a table (effects.csv) and the statistics (statistics.npz). Without --image: grey matter in an axial "
        "slice of the ICBM152 brain, segmented by a small U-Net that ships with the package.",
    )
    demo.add_argument(
        "--image", type=Path, metavar="FILE", help="an RGB picture to explain instead; a small network is fitted to it"
    )
    demo.add_argument("--label", type=Path, metavar="FILE", help="its mask, 0 for background")
    demo.add_argument(
        "--patches", type=Path, metavar="FILE.npz", help="donors: 8-bit patches (D, h, w, 3); default: the picture itself"
    )
    demo.add_argument(
        "--roi", type=_box, metavar="box:ROW,COL+SIZE", help="where to look, e.g. box:72,88+32 (in the 256 x 256 picture)"
    )
    demo.add_argument("--draws", type=positive, default=20, metavar="N", help="interventions per block (default: 20)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("causalseg-demo"),
        metavar="DIR",
        help="folder for the results (default: causalseg-demo)",
    )
    return parser


def _box(text: str) -> tuple[tuple[int, ...], int]:
    found = re.fullmatch(r"box:(\d+),(\d+)\+(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected box:ROW,COL+SIZE, e.g. box:72,88+32, got {text!r}")
    row, column, size = map(int, found.groups())
    return (row, column), size
