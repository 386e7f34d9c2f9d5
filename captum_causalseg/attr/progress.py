"""What is shown of a run while it lasts: what is being done, how many forwards there are at most, and about how long they take."""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from captum_causalseg._captum import progress
from captum_causalseg._checks import BOOLEAN, FUNCTION

__all__ = ["SHOW_PROGRESS", "Progress", "Report", "duration"]

Report: TypeAlias = Callable[[str, int, int], object]
"""Is told what is being done, how many forwards are made, and how many there are at most, 0 as long as that is not known."""

SHOW_PROGRESS = BOOLEAN | FUNCTION
"""What ``show_progress`` has to be where it may be a function."""

# A terminal is written over; in a file every change stays.
_SECONDS_BETWEEN, _SECONDS_BETWEEN_IN_FILES = 0.5, 30.0


class Progress:
    """A progress bar over forwards that never runs backwards, with a line before it that says how many there will be.

    Args:
        name: of what is done.
        shown: whether anything is shown at all; a function is told in place of a bar, and what it raises ends the work.
    """

    def __init__(self, name: str, shown: bool | Report) -> None:
        self._name, self._most, self._noun = name, 0, ""
        self._report = None if isinstance(shown, bool) else shown
        seconds = _SECONDS_BETWEEN if _is_watched() else _SECONDS_BETWEEN_IN_FILES
        how: dict[str, Any] = {"mininterval": seconds, "maxinterval": seconds, "bar_format": "{desc} [{elapsed}]"}
        self._bar: Any = progress(desc=self._name, **how) if shown is True else None

    @property
    def shown(self) -> bool:
        """Whether anything is shown."""
        return self._bar is not None or self._report is not None

    @property
    def has_begun(self) -> bool:
        """Whether it is known how many forwards there are."""
        return self._most > 0

    def doing(self, what: str) -> None:
        """Say what is being done before the interventions."""
        if self._report is not None:
            self._report(what, 0, 0)
        if self._bar is not None:
            self._bar.set_description_str(f"{self._name}: {what}")

    def begin(self, made: int, *, most: int, noun: str, pace: float | None, purpose: str = "") -> None:
        """Say what is to come.

        Args:
            made: so many forwards were made.
            most: at most so many are to come.
            noun: what they are.
            pace: measured seconds of one; ``None`` where none were measured.
            purpose: of those to come, in words, where there are others besides.
        """
        if not self.shown:
            return
        self._most, self._noun = most, noun
        takes = "" if pace is None else f", about {duration(most * pace)}"
        if self._report is not None:
            self._report(f"at most {most} {noun} to come{purpose and ' '}{purpose}{takes}", 0, most)
            return
        # Not beside the bar: the line stays.
        self._bar.clear()
        print(f"{self._name}: {made} {noun} so far, at most {most} to come{purpose and ' '}{purpose}{takes}", file=sys.stderr)
        self._bar.bar_format, self._bar.unit = None, f" {noun}"
        self._bar.set_description(self._name, refresh=False)
        self._bar.reset(total=most)

    def advance(self, made: int, *, left: int) -> None:
        """So many of the forwards that were to come are made, and at most so many are left."""
        if not self.shown:
            return
        self._most = max(made, min(self._most, made + left))
        if self._report is not None:
            self._report(self._noun, made, self._most)
            return
        self._bar.total = self._most
        self._bar.update(made - self._bar.n)

    def finish(self) -> None:
        """All is done: a bar that has begun is full."""
        if self._report is not None and self.has_begun:
            self._report(self._noun, self._most, self._most)
        if self._bar is not None and self.has_begun:
            self._bar.total = self._bar.n
            self._bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """A time in words, by two digits or so."""
    if seconds < 1:
        return "a second"
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 120 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def _is_watched() -> bool:
    """Whether what is written is shown and not kept: a terminal, or a notebook, whose bar is no text."""
    is_terminal = getattr(sys.stderr, "isatty", None)
    return (is_terminal is not None and bool(is_terminal())) or "ipykernel" in sys.modules
