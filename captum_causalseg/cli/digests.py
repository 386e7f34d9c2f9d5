"""Digests of the files that a result was computed from, by which they are told apart later."""

import argparse
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from captum_causalseg.cli.files import is_file_of, name_of, name_of_case
from captum_causalseg.cohort.digests import DIGITS, digest_of_file

__all__ = ["CaseFile", "digest_rows", "files_of"]


@dataclass(frozen=True)
class CaseFile:
    """A file, or a folder of files, that a case was read from.

    Args:
        what: it is to the case.
        name: that results give it.
        path: where it is.
    """

    what: str
    name: str
    path: Path


def digest_rows(files: Sequence[CaseFile]) -> list[tuple[str, str, str]]:
    """What each file is, its name, and the beginning of its SHA-256.

    A folder has one digest, of those of its files in the order of their names.
    """
    return [(file.what, file.name, _digest(file.path)) for file in files]


def files_of(options: argparse.Namespace) -> list[CaseFile]:
    """What the options name; with ``--private`` the files of the case have no names."""
    found = [CaseFile("image", name_of_case(options, file, "an image"), file) for file in options.image]
    for what in ("label", "roi", "region", "units"):
        value = getattr(options, what, None)
        if value is not None and is_file_of(what, value):
            said = {"label": "reference", "roi": "region of interest", "region": "region that is replaced", "units": "parts"}[
                what
            ]
            found.append(CaseFile(said, name_of_case(options, value, "a file"), Path(value)))
    found += [CaseFile("model", name_of(file), file) for file in _model_files(options)]
    if options.donors is not None:
        found.append(CaseFile("donors", name_of_case(options, options.donors, "a folder"), options.donors))
    return found


def _digest(file: Path) -> str:
    """Of a file, or of all files below a folder."""
    if not file.is_dir():
        return digest_of_file(file)
    found = hashlib.sha256()
    for one in sorted(one for one in file.rglob("*") if one.is_file()):
        found.update(f"{one.relative_to(file).as_posix()} {digest_of_file(one)}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:DIGITS]


def _model_files(options: argparse.Namespace) -> Iterator[Path]:
    """Weights, and what says how they are used."""
    if options.bundle is not None:
        inside = (file for folder in ("configs", "models") for file in sorted((options.bundle / folder).glob("*")))
        yield from (file for file in inside if file.is_file())
    elif options.nnunet is not None:
        yield from (options.nnunet / name for name in ("dataset.json", "plans.json"))
        name = "checkpoint_final.pth" if options.weights is None else options.weights.name
        yield from (options.nnunet / f"fold_{fold}" / name for fold in options.fold)
        return
    elif is_file_of("model", options.model):
        yield Path(options.model)
    else:
        found = importlib.util.find_spec(options.model.partition(":")[0])
        if found is not None and found.origin is not None and Path(found.origin).is_file():
            yield Path(found.origin)
    if options.weights is not None:
        yield options.weights
