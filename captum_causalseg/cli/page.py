"""Pages of HTML: no file beside them, no network, readable on a phone and on paper. What they say stands in ``pages/``."""

import base64
import functools
import io
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from captum_causalseg._version import __version__
from captum_causalseg.writing.names import encodable

__all__ = ["Picture", "packed_asset", "picture", "rendered", "text_asset"]

# Stands for what is known when the page is finished. No text of a user can hold it, as its brackets are escaped there.
_SIZE = "<!--size-->"

# At least and at most, on the screen.
_PIXELS_PER_INCH = (47, 78)


@dataclass(frozen=True)
class Picture:
    """A figure inside a page.

    Args:
        data: PNG, in base 64.
        least: pixels, how narrow it gets.
        most: pixels, how wide.
    """

    data: str
    least: int
    most: int


def picture(figure: Figure, times: float = 1) -> Picture:
    """A figure as pages take it, all of them on one scale; some are so many times as large, as one looks at them closely."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110 * times)
    data = base64.b64encode(held.getvalue()).decode("ascii")
    width = float(figure.get_figwidth())
    return Picture(data, least=round(_PIXELS_PER_INCH[0] * width), most=round(_PIXELS_PER_INCH[1] * width * times))


def rendered(name: str, **values: Any) -> str:
    """A page.

    Args:
        name: of its template.
        **values: what the template asks for. Texts are plain: what means something in HTML is escaped.
    """
    page = _environment().get_template(name).render(values, version=__version__, size_mark=Markup(_SIZE))
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
