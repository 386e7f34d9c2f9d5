"""Names that users give (files, cases, classes), written so that every terminal, page, picture and spreadsheet takes them as names."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["encodable", "name_of", "native", "printable", "write_csv"]

# Python's stand-ins for the bytes of a file name that the locale's encoding does not know.
_BYTES = re.compile("[\udc80-\udcff]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
# What spreadsheets take for the beginning of a formula, in full width, too.
_FORMULA = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")


def encodable(text: str) -> str:
    r"""The text without lone surrogates, which no encoding has: bytes of a file name that are UTF-8 as what they mean, others as ``\xff``.

    Example:
        >>> import os
        >>> from captum_causalseg.writing.names import encodable
        >>> print(encodable(os.fsdecode(b"scan-\xff.png")))
        scan-\xff.png
    """
    text = _BYTES.sub(lambda found: found[0].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(name: str | os.PathLike[str]) -> str:
    r"""A name in one line, as :func:`encodable` has it, with control characters (which move a terminal's cursor) as ``\x1b``.

    Example:
        >>> from captum_causalseg.writing.names import printable
        >>> print(printable("two\nlines.png"))
        two\nlines.png
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), encodable(os.fspath(name)))


def name_of(path: str | Path) -> str:
    """A file or folder without where it is."""
    path = Path(path)
    return printable(path.name or path.resolve().name)


def native(name: str) -> str:
    """A file name that was read from a text in UTF-8, as this locale's functions of files take it.

    Where the locale's encoding does not have its letters (``LC_ALL=C``), the file is called by their bytes in UTF-8.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    return name


def write_csv(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table in UTF-8 without its index, so that spreadsheets show texts and compute none.

    Texts that begin with ``=``, ``+``, ``-``, ``@``, a tab or a line break get a ``'`` before them, unless they are numbers; columns
    of numbers are left as they are.

    Example:
        >>> import pandas as pd, tempfile, pathlib
        >>> from captum_causalseg.writing.names import write_csv
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "table.csv"
        >>> write_csv(pd.DataFrame({"case": ["=1+2", "-7"], "effect": [-0.5, 0.25]}), path)
        >>> path.read_text().splitlines()
        ['case,effect', "'=1+2,-0.5", '-7,0.25']
    """
    written = table.rename(columns=_cell)
    for name in written.select_dtypes(exclude=["number", "bool"]).columns:
        written[name] = written[name].map(_cell)
    written.to_csv(path, index=False, encoding="utf-8")


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A carriage return alone would not be quoted, and begin a row.
    text = "\n".join(encodable(value).replace("\r\n", "\n").split("\r"))
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    # float() passes over blanks around the number.
    return text == text.strip()
