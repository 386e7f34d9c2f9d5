"""Pictures in pages."""

import base64
import io
import re

import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, features

from captum_causalseg.cli import page
from captum_causalseg.cli.page import Drawing, rendered


def plot(columns=2):
    figure = Figure(figsize=(2 * columns, 1))
    figure.subplots(1, columns)
    return figure


def images(drawing):
    """By their media queries: the size, and the color of the paper."""
    found = {}
    for one in drawing.sources:
        image = Image.open(io.BytesIO(base64.b64decode(one.data))).convert("RGB")
        found[one.media] = image.size, image.getpixel((0, 0))
    return found


def on_page(*drawings):
    """A page with nothing but pictures."""
    return rendered(
        "compare.html",
        title="",
        about={},
        raises="",
        lowers="",
        what="",
        pictures=drawings,
        header=["score"],
        rows=[],
        unknown=[],
        computed={},
    )


DARK, NARROW = "screen and (prefers-color-scheme: dark)", "screen and (max-width: 600px)"


def test_each_paper_and_each_width_has_its_picture():
    card = tuple(round(255 * one) for one in to_rgb(page._DARK_CARD))
    wide, narrow = (440, 110), (220, 110)
    assert images(Drawing(plot)) == {DARK: (wide, card), "": (wide, (255, 255, 255))}
    both = f"{DARK} and (max-width: 600px)"
    found = images(Drawing(plot, narrow={"columns": 1}))
    # The first whose condition holds is shown.
    assert list(found) == [both, NARROW, DARK, ""]
    assert found == {both: (narrow, card), NARROW: (narrow, (255, 255, 255)), DARK: (wide, card), "": (wide, (255, 255, 255))}
    assert rcParams["figure.facecolor"] == "white"


def test_the_card_in_dark_colors_is_that_of_the_style():
    dark = page.text_asset("style.css").partition("prefers-color-scheme: dark")[2]
    assert f"--card: {page._DARK_CARD};" in dark
    assert f"--text: {page._DARK_LETTERS};" in dark


@pytest.mark.skipif(not features.check("webp"), reason="needs Pillow with WebP, as its wheels are built")
def test_only_what_replaces_a_picture_is_a_webp():
    assert [one.kind for one in Drawing(plot).sources] == ["webp", "png"]


def test_a_picture_is_drawn_once_for_each_of_its_forms_whatever_it_is_asked_for(tmp_path):
    drawn = []

    def counted(columns=2):
        drawn.append(columns)
        return plot(columns)

    drawing = Drawing(counted, narrow={"columns": 1})
    drawing.save(tmp_path / "one.png")
    assert drawn == [2]
    first = on_page(drawing)
    assert on_page(drawing) == first
    assert sorted(drawn) == [1, 1, 2, 2]
    with Image.open(tmp_path / "one.png") as saved:
        assert saved.size == (440, 110)


def test_a_page_that_would_be_too_large_holds_each_picture_once(monkeypatch):
    drawing = Drawing(plot, narrow={"columns": 1})
    html = on_page(drawing)
    assert len(re.findall("<source ", html)) == 3
    assert html.count(' class="folds"') == 1
    monkeypatch.setattr(page, "_MOST_BYTES", 1000)
    html = on_page(drawing)
    assert "<source " not in html
    assert ' class="folds"' not in html
    assert len(re.findall('<img [^>]*src="data:image/png', html)) == 1
