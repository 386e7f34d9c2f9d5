"""Files that appear whole or not at all, and work that is cleared away however it ends."""

import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["Ended", "cleared_away_when_ended", "moved_up", "on_disk", "staged", "written_whole"]

# Of a file's name, so much at its end is kept while it is being written: programs go by the ending.
_ENDING = 16


class Ended(SystemExit):
    """A signal asks the program to end; ``code`` is what shells say of it, 128 and the signal's number."""


@contextmanager
def cleared_away_when_ended() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise :class:`Ended`, so that blocks are left and clean up; by default Python stops on the spot.

    Signals that the program takes or ignores already (``nohup``) are left to it, and so are those of other threads than the main one.
    """
    taken: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        # Once: the same signal again would break off the cleaning up.
        for one in taken:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(128 + number)

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
        taken += [number for number in numbers if number is not None and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def written_whole(final: Path, beside: Path | None = None) -> Iterator[Path]:
    """A path to write to; when the block has come to its end the file there is moved to ``final`` at once, or not at all.

    A block that writes nothing leaves nothing.

    Args:
        final: where the file is to be.
        beside: the folder to write in, on the same file system; by default that of ``final``.
    """
    path = (final.parent if beside is None else beside) / f".{uuid.uuid4().hex}-{final.name[-_ENDING:]}"
    try:
        yield path
        if path.exists():
            on_disk(path)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder within ``out`` whose files are moved up into it when the block has come to its end; nothing is left of it otherwise, but what
    :func:`moved_up` has moved before.

    Within, because what is around may be another file system, or not writable: ``out`` may be where a volume is mounted. Folders that
    were made for it go again if nothing was written.
    """
    new = [folder for folder in (out.absolute(), *out.absolute().parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
        try:
            yield folder
            moved_up(folder)
        finally:
            shutil.rmtree(folder)
    finally:
        for made in new:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()


def moved_up(folder: Path) -> list[str]:
    """Move what is complete in a folder of :func:`staged` to where it is to be; the files' names."""
    files = sorted(folder.iterdir())
    for file in files:
        on_disk(file)
        os.replace(file, folder.parent / file.name)
    return [file.name for file in files]


def on_disk(file: Path) -> None:
    """Wait until a file's contents are."""
    with open(file, "r+b") as written:  # open for writing: Windows wants it
        os.fsync(written.fileno())
