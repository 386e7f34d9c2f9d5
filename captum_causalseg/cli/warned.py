"""Warnings as the command line says them."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from captum_causalseg.writing.names import printable

__all__ = ["warnings_once"]


@contextmanager
def warnings_once(called: str | None) -> Iterator[None]:
    """Within, a warning is one line on standard error, and each is said once: Python forgets what it has said whenever filters change.

    Args:
        called: the command's name.
    """
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = printable(" ".join(str(message).split()))
        if text not in said:
            said.add(text)
            # Loaded by then where a bar is on the screen, which the line goes above.
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(f"causalseg {called}: warning: {text}", file=sys.stderr)
            else:
                print(f"causalseg {called}: warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
