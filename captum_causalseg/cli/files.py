"""Files as results name them: folders hold patients' names, and with ``--private`` so do the names of files."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from captum_causalseg.cli.arguments import box_of
from captum_causalseg.writing.names import name_of, printable

__all__ = ["command_line", "image_name", "is_file_of", "name_of", "name_of_case", "option_name", "place_name", "units_name"]

# Options that may hold a patient's name; the others name models and their parts.
_OF_A_PATIENT = ("image", "label", "donors", "roi", "region", "units", "out", "cases")


def name_of_case(options: argparse.Namespace, path: str | Path, otherwise: str) -> str:
    """The name of a file or folder of the case; with ``--private`` what stands for it."""
    return otherwise if options.private else name_of(path)


def image_name(options: argparse.Namespace) -> str:
    """What the image is called in titles; with ``--private`` nothing."""
    return "" if options.private else ", ".join(name_of(file) for file in options.image)


def place_name(options: argparse.Namespace, name: str = "roi") -> str:
    """What ``--roi`` (or ``--region``) says, a file without its folder; with ``--private`` without its name, too."""
    value = getattr(options, name)
    return name_of_case(options, value, "a mask") if is_file_of(name, value) else str(value)


def units_name(options: argparse.Namespace) -> str:
    """Where the units of ``--units`` come from if it is a file, else nothing."""
    if options.units is None or not is_file_of("units", options.units):
        return ""
    return f"those of {name_of_case(options, options.units, 'a file')},"


def command_line(options: argparse.Namespace) -> str:
    """The command as it would be typed in the folder where all its files are."""
    said = [f"causalseg {options.command}"]
    for name, value in vars(options).items():
        if name == "command" or value is None or value is False:
            continue
        if name == "fold" and options.nnunet is None:
            continue
        word = f"--{name.rstrip('_').replace('_', '-')}"
        said.append(word if value is True else f"{word} {_value(name, value, options.private)}")
    return " ".join(said)


def option_name(options: argparse.Namespace, name: str) -> str:
    """An option as it is typed; one that the command does not have is one of ``causalseg explain``."""
    word = f"--{name.replace('_', '-')}"
    return word if name in vars(options) else f"causalseg explain {word}"


def _value(name: str, value: Any, private: bool) -> str:
    if isinstance(value, list):
        return " ".join(_value(name, one, private) for one in value)
    if not is_file_of(name, value):
        return shlex.quote(printable(str(value)))
    return name.upper() if private and name in _OF_A_PATIENT else shlex.quote(name_of(value))


def is_file_of(name: str, value: Any) -> bool:
    """Whether this option's value is a file or folder, of those that may also be something else."""
    if isinstance(value, Path):
        return True
    if name in ("roi", "region"):
        return box_of(value) is None and value.partition(":")[0] not in ("box", "point", "label", "boundary", "error")
    if name == "units":
        return value != "channel_block" and not value.replace("x", "").isdecimal()
    return name == "model" and (Path(value).is_file() or ":" not in value)
