"""Reports as a person meets them in a browser: pointed at, walked through by keys, on a phone, at night, on paper, without scripts."""

import re
import shutil
from pathlib import Path

import pytest
from command_line import make_place, on_picture, on_scan

from captum_causalseg import cli

playwright = pytest.importorskip(
    "playwright.sync_api", reason='needs playwright, which drives the browser: pip install "captum-causalseg[browser]"'
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core, which looks for barriers")

pytestmark = [
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser, chromium, which no Python package brings"),
    # Each worker would make its own pages.
    pytest.mark.xdist_group("report in browser"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a picture and that of a scan."""
    folder = tmp_path_factory.mktemp("reports")
    name = make_place(folder)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, arguments in (
            ("picture", on_picture(name, "--label", "mask.png", "--weights", "two.pt")),
            ("volume", on_scan(name)),
        ):
            assert cli.main(arguments) == 0
            found[kind] = (folder / "out" / "report.html").rename(folder / f"{kind}.html").as_uri()
    return found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Slices of volumes need WebGL, which is there without a graphics card, if slowly.
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        found = started.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield found
        found.close()


@pytest.fixture
def shown(browser, pages):
    """Opens a page and waits for its viewer; at the end nothing may have gone wrong."""
    wrong, contexts = [], []

    def open_page(kind, width=1280, **context):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None
        )
        page.goto(pages[kind])
        if context.get("java_script_enabled", True):
            page.wait_for_function("document.documentElement.dataset.viewer", timeout=120_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def chosen(page):
    return page.inner_text("#viewer-chosen")


def count(page):
    return int(page.inner_text("[data-part=count]").split()[0])


@pytest.mark.parametrize("kind", ["picture", "volume"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_runs_over(shown, kind, width):
    page = shown(kind, width)
    assert page.evaluate("document.documentElement.dataset.viewer") == "shown"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", ["picture", "volume"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barriers_are_found(shown, kind, scheme):
    """Names of controls, contrast, order of headings, what keys can reach: axe-core's rules."""
    found = axe.Axe().run(shown(kind, color_scheme=scheme))
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_sliders_hide_small_and_uncertain_effects(shown, kind):
    page = shown(kind)
    everything = count(page)
    assert everything > 0
    before = page.locator(".stage").screenshot()
    page.focus("[data-part=effect]")
    page.keyboard.press("End")
    assert count(page) < everything
    assert page.get_attribute("[data-part=effect]", "aria-valuetext").startswith("effects of at least 0.")
    assert page.locator(".stage").screenshot() != before
    page.keyboard.press("Home")
    assert count(page) == everything
    page.focus("[data-part=level]")
    page.keyboard.press("End")
    assert "0.001" in page.inner_text("[data-part=level-said]")
    assert count(page) < everything


def test_a_part_of_a_picture_tells_its_numbers_under_the_pointer(shown):
    page = shown("picture")
    page.locator("[data-part=canvas]").scroll_into_view_if_needed()
    canvas = page.locator("[data-part=canvas]").bounding_box()
    # The picture is 27 of 32 columns wide, 24 rows high: row 12, column 20 is a part beside the region of interest.
    page.mouse.move(canvas["x"] + canvas["width"] * 20.5 / 27, canvas["y"] + canvas["height"] * 12.5 / 24)
    said = chosen(page)
    assert re.match(
        r"rows x columns 8-15 x 16-23 · (supports|harms): effect [+\u2212]0\.\d+ on the Dice · 95 % interval ", said
    ), said
    assert "adjusted p" in said
    assert "estimated, 4 draws" in said
    assert page.inner_text("[data-part=tip]") == said


def test_keys_walk_from_part_to_part_of_a_picture(shown):
    page = shown("picture")
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowLeft")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowUp")
    assert "rows x columns 0-7 x 0-7" in chosen(page)
    page.keyboard.press("ArrowRight")
    assert "0-7 x 8-15" in chosen(page)
    page.keyboard.press("ArrowDown")
    assert "8-15 x 8-15" in chosen(page)
    assert "touches the region of interest, not replaced" in chosen(page)
    page.keyboard.press("Escape")
    assert chosen(page) == "No part that was replaced lies here."


def test_keys_and_sliders_move_the_planes_of_a_volume(shown):
    page = shown("volume")
    assert "touches the region of interest" in chosen(page)
    page.get_by_role("application").focus()
    before = page.input_value("[data-part=plane-2]")
    page.keyboard.press("PageUp")
    assert int(page.input_value("[data-part=plane-2]")) == int(before) + 1
    # The patient's right is on the left, as radiologists look at it.
    before = page.input_value("[data-part=plane-0]")
    page.keyboard.press("ArrowLeft")
    assert int(page.input_value("[data-part=plane-0]")) == int(before) + 1
    page.focus("[data-part=plane-0]")
    page.keyboard.press("Home")
    assert page.inner_text("[data-part=plane-0-said]").startswith("1 of ")
    assert "touches the region of interest" not in chosen(page)


def test_rows_of_tables_lead_to_the_map(shown):
    page = shown("picture")
    button = page.locator("button[data-unit]").first
    place = re.fullmatch("Show (.*) in the map", button.get_attribute("aria-label"))[1]
    button.click()
    assert f"rows x columns {place} " in chosen(page)


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_without_scripts_there_are_plain_pictures(shown, kind):
    page = shown(kind, java_script_enabled=False)
    assert page.is_visible("#plain img >> nth=0")
    assert "Scripts do not run here" in page.inner_text("#viewer-missing")
    assert not page.is_visible("#viewer")
    assert not page.is_visible("button[data-unit] >> nth=0")


def test_without_webgl_a_volume_has_its_plain_pictures(browser, pages):
    context = browser.new_context()
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page = context.new_page()
    page.goto(pages["volume"])
    page.wait_for_function("document.documentElement.dataset.viewer")
    assert "WebGL 2" in page.inner_text("#viewer-missing")
    assert page.is_visible("#plain img >> nth=0")
    assert not page.is_visible("#viewer")
    context.close()


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_on_paper_there_are_plain_pictures_and_no_controls(shown, kind):
    page = shown(kind, color_scheme="dark")
    assert not page.is_visible("#plain")
    page.emulate_media(media="print")
    assert page.is_visible("#plain img >> nth=0")
    assert not page.is_visible("#viewer")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_file_is_small(pages):
    sizes = {kind: Path(uri.removeprefix("file://")).stat().st_size for kind, uri in pages.items()}
    assert sizes["picture"] < 1e6
    assert sizes["volume"] < 2.5e6
