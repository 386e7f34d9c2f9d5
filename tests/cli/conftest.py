"""The folder that commands are run in."""

import pytest
from command_line import make_place
from matplotlib.figure import Figure

from captum_causalseg.cli import job, report


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with networks, weights, a picture, a scan, labels and donors; the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, make_place(tmp_path)


@pytest.fixture
def quick(place, monkeypatch):
    """The same, for tests that look at no picture: pictures take most of the time."""
    monkeypatch.setattr(job, "plot_effects", lambda *args, **options: Figure())
    monkeypatch.setattr(report, "plot_effects", lambda *args, **options: Figure())
    monkeypatch.setattr(report, "plot_profile", lambda *args, **options: Figure())
    return place
