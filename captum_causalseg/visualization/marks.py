"""The marks of all pictures, each told apart by its form and not only by its color, and the words that a legend has for them."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from captum_causalseg.visualization.pictures import PALETTES, TINT, contour, shade

__all__ = ["AREAS", "LINES", "Area", "Legend", "Line", "draw_area", "draw_line", "handle", "mistakes"]

# Of the legend, in points and inches: its letters, a line of it, a mark with the gaps beside it.
_FONT, _LETTER, _LINE, _HANDLE = 9, 0.069, 0.19, 0.6


# Both edges of a line, in points.
_EDGES = 1.2


@dataclass(frozen=True)
class Line:
    """The border of something.

    Args:
        label: what it is called.
        color: of the line.
        edge: the color on both its sides.
        width: of the line, in points.
        style: of the line and its edges; dashes in widths of the line.
    """

    label: str
    color: str
    edge: str
    width: float
    style: Any = "-"


@dataclass(frozen=True)
class Area:
    """A part of the picture that is hatched.

    Args:
        label: what it is called.
        hatch: of matplotlib's.
        color: of the hatch.
        tint: of the area; none where the picture shines through.
    """

    label: str
    hatch: str
    color: str
    tint: str | None = None


_GREEN = PALETTES["accessible"].outline

# Light and dark side by side, so that a line is seen on any color; thick, thin and broken ones.
LINES = {
    "roi": Line("region of interest", color=_GREEN, edge="black", width=2.0),
    "segmentation": Line("predicted segmentation", color="#ffd92f", edge="black", width=1.1),
    "reference": Line("reference segmentation", color="white", edge="black", width=1.1, style=(0, (3.5, 3.5))),
    "outside": Line(
        "beyond it: cannot reach the region of interest", color="0.1", edge="white", width=1.1, style=(0, (6, 2, 1, 2))
    ),
    "strongest": Line("strongest units, numbered by |effect|", color="black", edge="white", width=1.1),
    "significant": Line("differs from 0 (false discovery rate 5 %)", color="black", edge="white", width=0.8),
}
"""By the names that the pictures have for them."""

AREAS = {
    "missed": Area("missed", "\\\\\\\\", "#d0006f", tint="#ff5fb0"),
    "too much": Area("segmented too much", "ooo", "#a05a00", tint="#ff9f1a"),
    "excluded": Area("not intervened on", "////", "white"),
    "edge": Area("a joint alone, the unit's own tissue shifted by a pixel or two, may do as much", "xxxx", "0.1"),
    "undecided": Area("does not differ from 0 (false discovery rate 5 %)", "....", "0.2"),
    "unreached": Area("cannot reach the region of interest", "//", "black"),
    "turned": Area("another sign, significantly", "xxxx", "0.2"),
}
"""The same."""


def draw_line(axes: Axes, mask: np.ndarray, name: str, color: str | None = None, *, faint: bool = False) -> None:
    """The border of a mask, as its kind is drawn; ``color`` in the place of its usual one; ``faint`` where it must not hide what lies under it."""
    if not mask.any():
        return
    line = LINES[name]
    if faint:
        contour(axes, mask, color or line.color, linewidth=0.6 * line.width, linestyle=line.style, closed=name != "outside")
        return
    wide = line.width + _EDGES
    contour(axes, mask, line.edge, linewidth=wide, linestyle=_scaled(line.style, line.width / wide), closed=name != "outside")
    contour(axes, mask, color or line.color, linewidth=line.width, linestyle=line.style, closed=name != "outside")


def _scaled(style: Any, factor: float) -> Any:
    """Dashes are counted in widths of their line."""
    return style if isinstance(style, str) else (style[0], tuple(factor * length for length in style[1]))


def draw_area(axes: Axes, mask: np.ndarray, name: str) -> None:
    """Hatch a mask, as its kind is drawn."""
    area = AREAS[name]
    shade(axes, mask, area.hatch, color=area.color, tint=area.tint)


def mistakes(segmentation: np.ndarray | None, reference: np.ndarray | None) -> dict[str, np.ndarray]:
    """What a segmentation misses, and what it has too much, as far as there is any."""
    if segmentation is None or reference is None:
        return {}
    found = {"missed": reference & ~segmentation, "too much": segmentation & ~reference}
    return {name: mask for name, mask in found.items() if mask.any()}


def handle(name: str, color: str | None = None) -> Artist:
    """What stands before a label in a legend: the mark itself."""
    if name in AREAS:
        area = AREAS[name]
        face = to_rgba("0.5") if area.tint is None else to_rgba(area.tint, TINT)
        return Patch(facecolor=face, edgecolor=area.color, hatch=area.hatch, linewidth=0, label=area.label)
    line = LINES[name]
    effects = [Stroke(linewidth=line.width + _EDGES, foreground=line.edge), Normal()]
    drawn = Line2D([], [], color=color or line.color, linewidth=line.width, linestyle=line.style, label=line.label)
    drawn.set_path_effects(effects)
    return drawn


@dataclass(frozen=True)
class Legend:
    """The one legend of a figure, as wide as that: what the marks on it are called.

    Args:
        handles: marks with their labels.
        width: of the figure, in inches.
    """

    handles: Sequence[Artist]
    width: float

    @property
    def columns(self) -> int:
        """As many as there is room for."""
        return next((n for n in range(len(self.handles), 1, -1) if self._breadth(n) <= self.width), 1)

    @property
    def height(self) -> float:
        """In inches."""
        if not self.handles:
            return 0.0
        parts = np.array_split([label.count("\n") + 1 for label in self._labels], self.columns)
        return _LINE * max(int(part.sum()) for part in parts) + 0.08

    def put(self, figure: Figure, bottom: float | None = None) -> None:
        """Draw it, its lower edge so many inches above that of the figure; outside the panels where the figure's layout finds the place."""
        if not self.handles:
            return
        place = (
            {"loc": "outside lower center"}
            if bottom is None
            else {"loc": "lower center", "bbox_to_anchor": (0.5, bottom / figure.get_figheight())}
        )
        figure.legend(
            handles=list(self.handles),
            labels=self._labels,
            ncols=self.columns,
            fontsize=_FONT,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            labelspacing=0.35,
            columnspacing=1.4,
            handlelength=2.0,
            **place,
        )

    @property
    def _labels(self) -> list[str]:
        room = max(20, int((self.width - _HANDLE) / _LETTER))
        return [textwrap.fill(str(one.get_label()), room) for one in self.handles]

    def _breadth(self, columns: int) -> float:
        """matplotlib fills column by column."""
        parts = np.array_split([max(map(len, label.split("\n"))) for label in self._labels], columns)
        return sum(_HANDLE + _LETTER * float(part.max()) for part in parts)
