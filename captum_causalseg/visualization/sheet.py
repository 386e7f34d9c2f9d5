"""Where the panels of a picture go: pictures of given shapes in a grid, titles above, scales beside or below, notes at the foot.

Pictures have fixed shapes and text has fixed sizes, so that the sizes of the figure and of everything on it follow, in inches.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from captum_causalseg.visualization.marks import Legend

__all__ = ["Around", "Scale", "Sheet", "grid"]

_MARGIN, _GAP = 0.12, 0.14
_TITLE, _HEADING, _NOTE, _ROW_LABEL = 0.32, 0.28, 0.2, 0.24
# A bar; what it takes without its ticks' numbers, upright and lying; and a line of its label.
_BAR, _BAR_SPACE, _LYING_SPACE, _LABEL_LINE = 0.15, 0.42, 0.52, 0.17
# Lower pictures have their bars below.
_LEAST_UPRIGHT = 1.9


@dataclass(frozen=True)
class Scale:
    """What stands beside a bar: its label and the numbers at its ticks."""

    label: str
    ticks: Sequence[str]

    @property
    def beside(self) -> float:
        """What an upright bar takes, in inches."""
        numbers = max(text_width(tick, 9) for tick in self.ticks)
        return _BAR_SPACE + numbers + _LABEL_LINE * len(self.label.splitlines())

    @property
    def below(self) -> float:
        """What a lying bar takes, in inches."""
        return _LYING_SPACE + _LABEL_LINE * len(self.label.splitlines())


@dataclass(frozen=True)
class Around:
    """What stands around the panels.

    Args:
        title: above everything.
        notes: at the foot, side by side as far as there is room.
        legend: above the notes, marks with their labels.
        lines_below: so many lines below the pictures of the last row, their labels (the caller writes them).
    """

    title: str = ""
    notes: Sequence[str] = ()
    legend: Sequence[Artist] = ()
    lines_below: int = 0


@dataclass(frozen=True)
class Sheet:
    """A figure, the axes of its pictures (per column, one per row) and of its bars (None where a column has none)."""

    figure: Figure
    pictures: list[list[Axes]]
    bars: list[Axes | None]
    upright: bool

    def draw_bar(self, column: int, drawn: AxesImage, scale: Scale, *, places: Sequence[float], extend: str) -> None:
        """The bar of a column: the colors of what was drawn, opaque, with a scale's numbers at these places."""
        bar = self.figure.colorbar(
            drawn, cax=self.bars[column], extend=extend, orientation="vertical" if self.upright else "horizontal"
        )
        bar.set_label(scale.label, fontsize=9)
        bar.set_ticks(list(places), labels=list(scale.ticks), fontsize=9)
        bar.minorticks_off()
        # Maps are drawn by size, the scale is not.
        bar.solids.set_alpha(1)  # type: ignore[union-attr]


def text_width(text: str, fontsize: float) -> float:
    """About how wide a text is, in inches."""
    return 0.56 * fontsize / 72 * max((len(line) for line in text.split("\n")), default=0)


def grid(
    headings: Sequence[str],
    sizes: Sequence[tuple[float, float]],
    scales: Sequence[Scale | None],
    *,
    row_labels: Sequence[str] = (),
    row_heading: bool = False,
    fold: int | None = None,
    around: Around,
) -> Sheet:
    """A column per heading, a row per size.

    Args:
        headings: above the columns (the caller writes them; here they take their place).
        sizes: per row, height and width of its pictures in inches.
        scales: per column, what stands beside its bar (the caller writes it); None where it has none.
        row_labels: left of the rows.
        row_heading: every row has headings, not only the first.
        fold: so many columns on a line, the others below.
        around: everything else.
    """
    lines = [
        list(range(i, min(i + (fold or len(headings)), len(headings)))) for i in range(0, len(headings), fold or len(headings))
    ]
    widest = max(width for _, width in sizes)
    between = _HEADING + _GAP / 2 if row_heading else _GAP
    # Labels beside low pictures need their own height.
    named = [text_width(label, 10) for label in row_labels] or [0.0] * len(sizes)
    pitches = [max(height, label) for (height, _), label in zip(sizes, named)]
    stack = sum(pitches) + between * (len(sizes) - 1)
    upright = stack >= _LEAST_UPRIGHT
    left = _MARGIN + max((_ROW_LABEL * (1 + label.count("\n")) for label in row_labels if label), default=0.0)

    # Centers of the columns, line by line; a heading may be wider than its picture.
    centers, width = [0.0] * len(headings), 0.0
    for line in lines:
        x = left
        for i in line:
            half = text_width(headings[i], 11) / 2
            centers[i] = x + max(widest / 2, half)
            scale = scales[i]
            beside = scale.beside if scale is not None and upright else 0.0
            x = centers[i] + max(widest / 2 + beside, half) + _GAP
        width = max(width, x - _GAP + _MARGIN)
    width = max(width, 2.6)
    title_lines = _wrapped([around.title], width, 12) if around.title else []
    note_lines = _wrapped(around.notes, width, 9)
    legend = Legend(around.legend, width - 2 * _MARGIN)
    below = 0.0 if upright else max((scale.below for scale in scales if scale is not None), default=0.0)
    top = _MARGIN / 2 + _TITLE * len(title_lines)
    deep = _HEADING + stack + _NOTE * around.lines_below + below + _GAP
    height = top + len(lines) * deep + legend.height + _NOTE * len(note_lines) + _MARGIN / 2

    figure = Figure(figsize=(width, height))

    def add(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    pictures: list[list[Axes]] = []
    places: list[tuple[float, float]] = []
    for number, line in enumerate(lines):
        for i in line:
            y = top + number * deep + _HEADING
            column = []
            for (high, wide), pitch in zip(sizes, pitches):
                column.append(add(centers[i] - wide / 2, y + (pitch - high) / 2, wide=wide, high=high))
                y += pitch + between
            pictures.append(column)
            places.append((centers[i] + widest / 2, y - between))
    bars: list[Axes | None] = []
    for (right, bottom), scale in zip(places, scales):
        if scale is None:
            bars.append(None)
        elif upright:
            length = min(0.9 * stack, 3.2)
            bars.append(add(right + 0.1, bottom - stack / 2 - length / 2, wide=_BAR, high=length))
        else:
            bars.append(add(right - 0.95 * widest, bottom + 0.1 + _NOTE * around.lines_below, wide=0.9 * widest, high=_BAR))
    if title_lines:
        figure.suptitle("\n".join(title_lines), y=1 - _MARGIN / 2 / height, va="top", fontsize=12)
    legend.put(figure, bottom=_MARGIN / 2 + _NOTE * len(note_lines))
    if note_lines:
        figure.supxlabel("\n".join(note_lines), y=_MARGIN / 2 / height, va="bottom", fontsize=9)
    return Sheet(figure=figure, pictures=pictures, bars=bars, upright=upright)


def _wrapped(texts: Sequence[str], width: float, fontsize: float) -> list[str]:
    """Texts side by side as far as the width goes, too long ones broken."""
    letters = max(20, int((width - _MARGIN) / text_width("x", fontsize)))
    lines: list[str] = []
    for text in texts:
        longer = f"{lines[-1]}      {text}" if lines else text
        if lines and len(longer) <= letters:
            lines[-1] = longer
        else:
            lines += textwrap.wrap(text, letters)
    return lines
