"""The folder that commands are run in."""

import pytest
from command_line import make_place
from matplotlib.figure import Figure

from captum_causalseg.cli import job, report
from captum_causalseg.cli.page import Drawing


@pytest.fixture(autouse=True)
def one_paper(request, monkeypatch):
    """Pictures take most of the time: only the tests of pages have them on dark paper and for narrow screens as well."""
    if not request.module.__name__.endswith("test_page") or "study" in request.module.__name__:
        monkeypatch.setattr(Drawing, "sources", property(lambda drawing: [drawing._source("", drawing.figure)]))


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
