"""The folder that commands are run in."""

import pytest
from command_line import make_place


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with networks, weights, a picture, a scan, labels and donors; the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, make_place(tmp_path)
