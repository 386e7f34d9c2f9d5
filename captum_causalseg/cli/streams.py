"""Standard output and error whose readers may leave before the end, and whose encoding may not have every letter."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

__all__ = ["Watched", "watched_streams"]

# What shells say of a program that was ended by SIGPIPE, as most are whose reader leaves.
_READER_LEFT = 128 + 13


class Watched:
    """A stream that goes on into nothing when its reader has left: the work is done all the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_left = False

    def write(self, text: str) -> int:
        """Write; nothing is written any more once nobody reads."""
        written: int = self._tried(lambda: self._stream.write(text), len(text))
        return written

    def flush(self) -> None:
        """Flush, likewise."""
        self._tried(self._stream.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _tried(self, do: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return do()
        except BrokenPipeError:
            self.is_left = True
            # What is still held back goes there, too, also when the interpreter flushes it at its end.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
            return otherwise


class _Streams:
    def __init__(self) -> None:
        self.output: Watched | None = None

    def status(self, status: int | None) -> int:
        """The exit status of a program that would have had this one."""
        is_left = self.output is not None and self.output.is_left
        return _READER_LEFT if is_left and not status else status or 0


@contextmanager
def watched_streams() -> Iterator[_Streams]:
    """Within, nothing that is printed fails: not where nobody reads it, nor where a letter is not in the stream's encoding."""
    streams = _Streams()
    with ExitStack() as stack:
        # A program without a terminal may have none.
        if sys.stdout is not None:
            streams.output = stack.enter_context(redirect_stdout(Watched(_lenient(stack, sys.stdout))))
            stack.callback(streams.output.flush)
        if sys.stderr is not None:
            error = stack.enter_context(redirect_stderr(Watched(_lenient(stack, sys.stderr))))
            stack.callback(error.flush)
        try:
            yield streams
        except SystemExit as ended:
            # `--help`, say; it is printed by now, but perhaps not read.
            if streams.output is not None and not ended.code:
                streams.output.flush()
                raise SystemExit(streams.status(0)) from ended
            raise


def _lenient(stack: ExitStack, stream: TextIO) -> TextIO:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        stack.callback(reconfigure, errors=stream.errors)
        reconfigure(errors="backslashreplace")
    return stream
