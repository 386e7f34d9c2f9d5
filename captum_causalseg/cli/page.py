"""Pages of HTML: no file beside them, no network, readable on a phone and on paper. What they say stands in ``pages/``."""

import base64
import functools
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.style import library as styles
from PIL import features

from captum_causalseg._version import __version__
from captum_causalseg.writing.names import encodable

__all__ = ["Drawing", "Source", "packed_asset", "rendered", "text_asset"]

# Stands for what is known when the page is finished. No text of a user can hold it, as its brackets are escaped there.
_SIZE = "<!--size-->"

# At least and at most, on the screen.
_PIXELS_PER_INCH = (47, 78)
_DOTS_PER_INCH = 110
_MOST_BYTES = 10_000_000
# The cards of a page in dark colors, and its letters, as in `pages/style.css`.
_DARK_CARD, _DARK_LETTERS = "#1d232a", "#e4e8ed"
_ON_DARK, _ON_NARROW = "screen and (prefers-color-scheme: dark)", "screen and (max-width: 600px)"


@dataclass(frozen=True)
class Source:
    """A figure inside a page, as it is shown where a condition holds.

    Args:
        media: the condition, a media query; empty for what is shown where none holds.
        kind: of the image: png or webp.
        data: of the image, in base 64.
    """

    media: str
    kind: str
    data: str


class Drawing:
    """A picture that is drawn when it is first asked for: as a file, and in a page on light and on dark paper.

    Args:
        plot: draws a figure; a function of ``visualization``.
        *arguments: of it.
        times: in a page it is so many times as large as others, as one looks at it closely.
        narrow: options that are different on a narrow screen; None where it is the same there.
        **options: of ``plot``.
    """

    def __init__(
        self,
        plot: Callable[..., Figure],
        *arguments: Any,
        times: float = 1,
        narrow: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._plot = functools.partial(plot, *arguments, **options)
        self._times, self._narrow = times, narrow

    @functools.cached_property
    def figure(self) -> Figure:
        """On light paper."""
        return self._plot()

    def save(self, file: Path) -> None:
        """As a PNG."""
        self.figure.savefig(file, dpi=_DOTS_PER_INCH)

    @functools.cached_property
    def sources(self) -> list[Source]:
        """What a page holds of it, the first whose condition holds is shown."""
        with style.context(_dark_paper()):
            dark = self._plot()
        found = [self._source(_ON_DARK, dark), self._source("", self.figure)]
        if self._narrow is None:
            return found
        with style.context(_dark_paper()):
            small_dark = self._plot(**self._narrow)
        on_both = _ON_DARK + _ON_NARROW.removeprefix("screen")
        return [self._source(on_both, small_dark), self._source(_ON_NARROW, self._small), *found]

    @functools.cached_property
    def style(self) -> str:
        """How narrow and how wide it gets, pixels; all pictures are on one scale."""
        least, most = (pixels * float(self.figure.get_figwidth()) for pixels in _PIXELS_PER_INCH)
        said = f"--least: {least:.0f}px; --most: {most * self._times:.0f}px"
        if self._narrow is None:
            return said
        return f"{said}; --small: {_PIXELS_PER_INCH[1] * float(self._small.get_figwidth()):.0f}px"

    @functools.cached_property
    def _small(self) -> Figure:
        return self._plot(**(self._narrow or {}))

    def _source(self, media: str, figure: Figure) -> Source:
        # What is shown where nothing else can be is a PNG. WebP is a third smaller, without loss, where Pillow was built with it.
        kind = "webp" if media and features.check("webp") else "png"
        held, how = io.BytesIO(), {"lossless": True, "method": 1, "quality": 20} if kind == "webp" else {}
        figure.savefig(held, format=kind, dpi=_DOTS_PER_INCH * self._times, pil_kwargs=how)
        return Source(media, kind, base64.b64encode(held.getvalue()).decode("ascii"))


def _dark_paper() -> dict[str, Any]:
    """Matplotlib's dark style in the colors of a page."""
    colors = {"black": _DARK_CARD, "white": _DARK_LETTERS}
    return {
        name: colors.get(value, value) if isinstance(value, str) else value for name, value in styles["dark_background"].items()
    }


def rendered(name: str, **values: Any) -> str:
    """A page.

    Args:
        name: of its template.
        **values: what the template asks for. Texts are plain: what means something in HTML is escaped.
    """
    page = _environment().get_template(name).render(values, version=__version__, size_mark=Markup(_SIZE))
    if len(page) > _MOST_BYTES:
        # Each picture as it is on light paper and a wide screen, which is shown everywhere then.
        page = re.sub(r'<source [^>]*>| class="folds"', "", page)
    return page.replace(_SIZE, f"{len(page.encode()) / 1e6:.1f} MB")


def text_asset(name: str) -> str:
    """A file of ``pages/`` that pages hold as it is, such as a script."""
    return files("captum_causalseg.cli").joinpath("pages", name).read_text(encoding="utf-8")


def packed_asset(name: str) -> str:
    """A compressed file of ``pages/``, in base 64."""
    return base64.b64encode(files("captum_causalseg.cli").joinpath("pages", name).read_bytes()).decode("ascii")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("captum_causalseg.cli", "pages"),
        autoescape=True,
        finalize=_writable,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )


def _writable(value: Any) -> Any:
    """For HTML, which has no letter for some bytes of file names. What is HTML already has been here."""
    return value if isinstance(value, Markup) else encodable(str(value))
