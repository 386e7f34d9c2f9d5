"""Parts of a report that is one HTML page: no script, no file beside it, readable on a phone."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from captum_causalseg.writing.names import encodable

__all__ = ["facts", "page", "paragraph", "picture", "preformatted", "section", "table"]

# At least and at most, on the screen.
_PIXELS_PER_INCH = (47, 78)
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1d2530; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.25rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 0.6rem; }
section { background: #fff; border: 1px solid #dde1e7; border-radius: 8px; padding: 1rem 1.25rem; margin: 0 0 1rem; }
p { margin: 0 0 0.7rem; max-width: 75ch; }
.wide { overflow-x: auto; }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: right; border-bottom: 1px solid #e6e9ee; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; white-space: normal; }
td.text:last-child { min-width: 14em; }
.wide + p, .wide + dl { margin-top: 0.8rem; }
.supports { color: #b2182b; }
.harms { color: #2166ac; }
dl { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 0.25rem 1.25rem; margin: 0; }
dt { color: #5a6675; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; margin: 0; }
@media (max-width: 600px) {
  main { padding: 0.6rem; }
  section { padding: 0.8rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.5rem; }
  table { font-size: 0.8rem; }
  th, td { padding-right: 0.5rem; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def _escaped(text: str) -> str:
    """For HTML, which has no letter for some bytes of file names."""
    return html.escape(encodable(text))


def page(title: str, sections: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{_escaped(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A titled box of parts that are HTML already."""
    return f"<section>\n<h2>{_escaped(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{_escaped(text)}</p>"


def preformatted(text: str) -> str:
    """Plain text, its lines kept."""
    return f"<pre>{_escaped(text)}</pre>"


def facts(values: Mapping[str, object]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{_escaped(str(k))}</dt><dd>{_escaped(str(v))}</dd>" for k, v in values.items()) + "</dl>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None, text_columns: Sequence[int] = ()
) -> str:
    """Rows of plain text; the first column and ``text_columns`` to the left, numbers to the right, a style class per row."""
    kinds = [' class="text"' if column in text_columns else "" for column in range(len(header))]
    head = "".join(f"<th{kind}>{_escaped(name)}</th>" for kind, name in zip(kinds, header))
    body = [
        f'<tr class="{_escaped("" if classes is None else classes[i])}">'
        + "".join(f"<td{kind}>{_escaped(cell)}</td>" for kind, cell in zip(kinds, row))
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>' + "".join(body) + "</tbody></table></div>"


def picture(figure: Figure, alternative: str) -> str:
    """A figure inside the page, all of them on one scale.

    On a narrow screen it is scrolled sideways rather than shrunk until nothing can be read.
    """
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    data = base64.b64encode(held.getvalue()).decode("ascii")
    inches = float(figure.get_figwidth())
    sides = f"max-width: {_PIXELS_PER_INCH[1] * inches:.0f}px; min-width: {_PIXELS_PER_INCH[0] * inches:.0f}px"
    return f'<div class="wide"><img alt="{_escaped(alternative)}" style="{sides}" src="data:image/png;base64,{data}"></div>'
