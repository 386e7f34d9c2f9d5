"""Files appear whole, on whatever file system; nothing is left when the work is ended from outside."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import PROGRAM, make_place, on_picture, status_of

from captum_causalseg.writing.files import Ended, cleared_away_when_ended, staged, written_whole


@pytest.fixture
def mounted(monkeypatch):
    """Folders that are file systems of their own: files cannot be moved into them."""
    volumes: list[Path] = []
    replace = os.replace

    def moving(source, destination):
        for volume in volumes:
            if (volume in Path(source).absolute().parents) != (volume in Path(destination).absolute().parents):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", moving)
    return volumes


def test_results_on_a_volume_of_their_own(tmp_path, monkeypatch, mounted):
    name = make_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    mounted.append(tmp_path / "out")
    assert status_of(on_picture(name)) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("effects.csv", "effects.png", "report.html", "statistics.npz")
    ]
    assert sorted({*tmp_path.iterdir()} - {tmp_path / "out", tmp_path / "__pycache__"}) == before


def test_files_appear_when_all_are_there(tmp_path):
    out = tmp_path / "new" / "out"

    def break_off():
        with staged(out) as folder:
            (folder / "a").write_text("half")
            assert folder.parent == out
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        break_off()
    assert not list(tmp_path.iterdir())
    with staged(out) as folder:
        (folder / "a").write_text("whole")
        assert not (out / "a").exists()
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("a", "whole")]


def test_a_file_of_the_longest_name(tmp_path):
    final = tmp_path / f"{'n' * 248}.nii.gz"
    with written_whole(final) as path:
        assert path.name.endswith(".nii.gz")
        path.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == [final.name]
    with written_whole(final):
        pass  # nothing written, nothing changed
    assert final.read_text() == "whole"


@pytest.fixture
def _untaken():
    """Signals as a program finds them: Ray, in the tests of clusters, takes SIGTERM and keeps it."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_untaken")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_block_and_nothing_else(number, tmp_path):
    before = signal.getsignal(number)

    def work():
        with cleared_away_when_ended(), staged(tmp_path / "out"):
            os.kill(os.getpid(), number)
            time.sleep(10)

    with pytest.raises(Ended) as ended:
        work()
    assert ended.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("_untaken")
def test_signals_that_are_taken_or_ignored_stay_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cleared_away_when_ended():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def elsewhere():
        with cleared_away_when_ended():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


SLOW = """
import time, torch

class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(0.2)
        return torch.cat([x, -x], 1)

def slow():
    return Slow()
"""


def test_a_command_that_is_ended_leaves_nothing(tmp_path):
    """By one of the two signals above; a cohort is ended by the other one in ``tests/cohort/test_driver.py``."""
    name = make_place(tmp_path)
    (tmp_path / f"{name}.py").write_text(SLOW)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *on_picture(name, model="slow")],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("out/*")):
        assert program.poll() is None
        time.sleep(0.05)
    program.send_signal(signal.SIGTERM)
    said = program.communicate()[1]
    assert program.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1].endswith("causalseg explain: interrupted, nothing was written")
    assert not (tmp_path / "out").exists()
