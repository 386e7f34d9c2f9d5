"""Reports of one page."""

import functools
import gzip
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import on_picture
from matplotlib.figure import Figure

from captum_causalseg import TreatmentEffectStatistics, cli, metrics
from captum_causalseg.cli import job as _cli_job
from captum_causalseg.cli import report
from captum_causalseg.cli.page import Drawing
from captum_causalseg.evaluation.refute import REFUTERS
from captum_causalseg.visualization import plot_effects


def test_refuters_and_components_have_their_sections(quick, capsys):
    folder, name = quick
    assert cli.main(on_picture(name, "--donors", "donors", "--refute", "--components", "0", "--units", "8")) == 0
    printed, said = capsys.readouterr()
    assert "placebo" in printed
    # All that is to come is said before it begins, and once more when it is known how long the effects took.
    first, later = (
        said.index(words) for words in ("the effects first, then attempts to refute them", "to come: attempts to refute them")
    )
    assert first < later < said.index("to come: ") + 1
    assert re.search(
        r"about 10 times the work, some \d+ forward passes and (\d+ s|\d+ min|a second); the network's", said[later:]
    )
    # The refuters are done; the parts are left.
    assert "to come: the network's parts, which say what they take when they begin\n" in said
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Attempts to refute it" in html
    assert "Parts of the network" in html
    assert pd.read_csv("out/components.csv", dtype={"module": str})["module"].tolist() == ["0"]
    assert set(pd.read_csv("out/refutation.csv")["name"]) == set(REFUTERS) - {"joints"}


def test_scores_without_a_better_are_raised_and_lowered(quick, capsys):
    folder, name = quick
    assert cli.main(on_picture(name, "--weights", "two.pt", "--metric", "volume", "--components", "*")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"raises +\d+-\d+ x \d+-\d+ +\+", printed)
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"data:image/[a-z]+;base64,[^\"]+|<style>.*?</style>|class=\"[a-z ]*\"", "", html, flags=re.DOTALL)
    assert "raises" in words
    assert "no right direction" in words
    for text in (printed, words):
        assert not re.search(r"supports|supporting|harm", text)


def test_which_scores_have_a_better():
    without = {name for name, metric in metrics.METRICS.items() if not metric.larger_is_better}
    volumes = {"volume", "soft_volume", "relative_volume", "soft_relative_volume"}
    assert without == {"logit_sum", "logit_mean", "probability_mean"} | volumes


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_device_is_in_the_report(quick, device):
    folder, name = quick
    assert cli.main(on_picture(name, *(["--device", device] if device else []))) == 0
    used = device or ("cuda" if torch.cuda.is_available() else "cpu")
    assert f"on {used}</dd>" in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_both_ends_of_the_intervals_are_drawn_on_the_scale_of_the_effects(place, monkeypatch):
    _, name = place
    drawn = []

    def remember(*args, **options):
        figure = plot_effects(*args, **options)
        if "columns" not in options:  # of a wide screen
            drawn.append(figure)
        return figure

    monkeypatch.setattr(_cli_job, "plot_effects", remember)
    assert cli.main(on_picture(name, "--weights", "two.pt", "--label", "mask.png")) == 0
    effects, intervals = ({axes.get_title(): axes for axes in figure.axes} for figure in drawn)
    titles = ["Lower end of the 95 % interval", "Upper end of the 95 % interval"]
    assert [title for title in intervals if title] == titles
    for axes, field in zip((intervals[title] for title in titles), ("lower", "upper")):
        shown = axes.images[-1]
        assert shown.get_clim() == effects["Effect of each unit"].images[-1].get_clim()
        expected = TreatmentEffectStatistics.load("out/statistics.npz").to_map(field, 1)[0, 0].numpy()
        known = ~np.isnan(expected)
        np.testing.assert_allclose(shown.get_array()[known], expected[known])


@pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="needs chromium, which lays the page out: there is no other way to see what runs over",
)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_a_phone_and_a_desk_and_its_map_answers(place, width):
    """Without a tool that drives a browser; what takes one is in tests/whole/test_report_in_browser.py."""
    folder, name = place
    assert (
        cli.main(
            on_picture(
                name, "--label", "mask.png", "--donors", "donors", "--refute", "--components", "*", "--weights", "two.pt"
            )
        )
        == 0
    )
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    script = """
    const wrong = [];
    addEventListener("error", (event) => wrong.push(event.message));
    addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
    const part = (name) => document.querySelector(`[data-part="${name}"]`);
    const finished = setInterval(() => {
      const viewer = document.documentElement.dataset.viewer;
      if (!viewer) return;
      clearInterval(finished);
      const before = part("count").textContent;
      part("effect").value = 100;
      part("effect").dispatchEvent(new Event("input"));
      part("canvas").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      const told = [document.documentElement.scrollWidth, viewer, before, part("count").textContent, part("chosen").textContent, ...wrong];
      parent.postMessage(told.join("|"), "*");
    }, 20);
    """
    # A window has a least width; a frame does not.
    (folder / "report.html").write_text(html.replace("<head>", f"<head><script>{script}</script>", 1), encoding="utf-8")
    (folder / "frame.html").write_text(
        f"<body><script>onmessage = (e) => {{ document.title = e.data }}</script>"
        f"<iframe style='border: 0; width: {width}px; height: 900px' src='report.html'></iframe></body>"
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=20000",
    ]
    options += ["--window-size=1400,1000", "--dump-dom", (folder / "frame.html").as_uri()]
    shown = subprocess.run(["chromium", *options], capture_output=True, text=True, timeout=100, check=True).stdout
    found = re.search(r"<title>(.*)</title>", shown)
    assert found is not None, shown[:500]
    occupied, viewer, before, after, chosen, *wrong = unescape(found[1]).split("|")
    assert not wrong
    assert viewer == "shown"
    assert int(occupied) <= width
    all_of_them = re.fullmatch(r"(\d+) of (\d+) parts with an effect are shown\.", before)
    assert all_of_them[1] == all_of_them[2]
    assert int(after.split()[0]) < int(all_of_them[1])
    assert chosen.startswith("rows x columns ")


def test_sections_of_other_commands_stand_in_the_report_as_they_were_handed_over(quick, monkeypatch):
    folder, name = quick
    handed = report.Section(
        "Ways <through> it",
        sentences=["By & by."],
        figure=Drawing(Figure),
        alternative="The ways",
        header=("way", "effect"),
        rows=[("skip", "+0.1")],
        notes=["That is all."],
    )
    monkeypatch.setattr(report, "Further", functools.partial(report.Further, sections=(handed,)))
    assert cli.main(on_picture(name)) == 0
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    section = html[html.index("<h2>Ways &lt;through&gt; it</h2>") :].partition("</section>")[0]
    for said in ("<p>By &amp; by.</p>", 'alt="The ways"', "<td>skip</td><td>+0.1</td>", "<p>That is all.</p>"):
        assert said in section


def test_the_viewer_of_volumes_is_the_version_that_is_named():
    root = Path(__file__).parents[2]
    version = re.search(r"^NIIVUE := (\S+)", (root / "Makefile").read_text(), re.MULTILINE)[1]
    pages = root / "captum_causalseg" / "cli" / "pages"
    assert f'"{version}"' in gzip.decompress((pages / "niivue.umd.js.gz").read_bytes()).decode()
    assert f"NiiVue {version}" in (pages / "niivue.LICENSE.txt").read_text(encoding="utf-8")


def test_the_page_says_how_large_it_is(quick):
    folder, name = quick
    assert cli.main(on_picture(name)) == 0
    page = folder / "out" / "report.html"
    assert f"One file of {page.stat().st_size / 1e6:.1f} MB" in page.read_text(encoding="utf-8")
