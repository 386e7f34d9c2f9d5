"""Files of a case: one per channel, numbered as nnU-Net numbers them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case", "cases_in", "files_of"]

_NUMBER = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class Case:
    """One image.

    Args:
        files: of its channels, in their order; or one that holds them all.
    """

    files: tuple[Path, ...]

    def same(self, other: "Case") -> bool:
        """Whether both are read from a common file."""
        return bool({file.resolve() for file in self.files} & {file.resolve() for file in other.files})


def files_of(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], channels: Sequence[str], ending: str) -> Case:
    """The case that these files are, or that the one file begins.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: there are more or fewer than channels.
    """
    named = [given] if isinstance(given, (str, os.PathLike)) else given
    files = [Path(file).expanduser() for file in named]
    if len(files) == 1 and len(channels) > 1 and (begun := _number(files[0], ending)) is not None:
        stem, number = begun
        others = [files[0].with_name(f"{stem}_{k:04d}{ending}") for k in range(len(channels))]
        # One picture may hold all channels: red, green and blue.
        if number == 0 and (any(file.is_file() for file in others[1:]) or not files[0].is_file() or not _may_hold_all(ending)):
            files = others
    missing = [(file, name) for file, name in zip(files, channels) if not file.is_file()]
    if missing:
        said = ", ".join(f"{file} ({name})" for file, name in missing)
        raise FileNotFoundError(f"image_file: there is no file {said}")
    if len(files) not in (1, len(channels)):
        raise ValueError(
            f"image_file: expected {len(channels)} files, one per channel ({', '.join(channels)}), got {len(files)}: "
            f"{', '.join(map(str, files))}"
        )
    return Case(tuple(files))


def cases_in(folder: Path, channels: Sequence[str], ending: str) -> list[Case]:
    """All cases of a folder such as ``imagesTr``, by name.

    Raises:
        FileNotFoundError: a channel of a case is missing.
        ValueError: there is no case.
    """
    first = [file for file in sorted(folder.iterdir()) if (begun := _number(file, ending)) is not None and begun[1] == 0]
    if not first:
        raise ValueError(f"cases: no file in {folder} is named as nnU-Net names images (case_0000{ending})")
    return [files_of(file, channels, ending) for file in first]


def _number(file: Path, ending: str) -> tuple[str, int] | None:
    """The name of the case and the number of the channel."""
    if not file.name.lower().endswith(ending.lower()):
        return None
    stem = file.name[: -len(ending)]
    found = _NUMBER.search(stem)
    return None if found is None else (stem[: found.start()], int(found.group(1)))


def _may_hold_all(ending: str) -> bool:
    return ending.lower() in (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
