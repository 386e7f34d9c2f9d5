"""Parts that pictures are made of: palettes, backgrounds, outlines, overlays, scales."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter
from torch import Tensor

from captum_causalseg._checks import BOOLEAN, NONE, TEXT, for_each_axis, integer, number, one_of, sequence
from captum_causalseg.writing.names import printable

__all__ = [
    "BACKGROUND",
    "EFFECTS",
    "PALETTES",
    "PICTURE",
    "ROLES",
    "TINT",
    "Palette",
    "background",
    "contour",
    "decimals",
    "first",
    "grayscale",
    "literal",
    "palette_of",
    "robust_maximum",
    "round_up",
    "scale_labels",
    "shade",
    "short",
]


def _part_of(name: str, low: float, high: float) -> ListedColormap:
    return ListedColormap(colormaps[name](np.linspace(low, high, 256)), name=f"{name}, from {low:g} to {high:g}")


# ColorBrewer's red-blue is safe for the common kinds of color blindness. Without its ends, which are so dark that they are lost on a
# scan, it ends in the red and the blue that stand for support and harm in all pictures; pale colors are as far from white as before.
_SIGNED = np.linspace(-1, 1, 257)
EFFECTS: Colormap = ListedColormap(
    colormaps["RdBu_r"](0.5 + 0.4 * np.sign(_SIGNED) * np.abs(_SIGNED) ** 0.8), name="RdBu_r without its ends"
)
TINT = 0.35
BACKGROUND = "#b8860b"
ROLES = {"supporting": "#b2182b", "harming": "#2166ac", "null": "0.8"}


@dataclass(frozen=True)
class Palette:
    """Color maps, and the color of the outline of the region of interest."""

    effects: Colormap
    errors: Colormap
    outline: str


# What the arguments that all pictures share have to be.
PICTURE = {
    "example": integer(),
    "title": TEXT,
    "score_name": TEXT,
    "words": sequence(TEXT, length=2, expected="two strings, for effects above and below 0"),
    "spacing": NONE | for_each_axis(number(above=0)),
    "channel": NONE | integer(),
    "input_index": integer(),
    "columns": NONE | integer(1),
    "zoom": BOOLEAN | one_of("auto"),
    "opacity": one_of("effect", "significance"),
}

# Errors grow toward the light, for they lie on the picture.
PALETTES = {
    "accessible": Palette(EFFECTS, _part_of("viridis", 0.2, 1), "#2ee62e"),
    "paper": Palette(colormaps["bwr"], _part_of("gray", 0.3, 1), "#00ff00"),
}


def palette_of(name: str) -> Palette:
    """The palette of this name."""
    one_of(*PALETTES)("palette", name)
    return PALETTES[name]


def background(axes: Axes, picture: np.ndarray, title: str, *, fade: bool, aspect: float = 1.0) -> None:
    """The picture ``(H, W)`` or ``(H, W, 3)``; ``fade`` where effects are laid over it; ``aspect`` is a pixel's height over its width."""
    if fade:
        # Neither black nor white, so that light and dark colors of both signs stand out on it.
        picture = 0.1 + 0.65 * (picture.mean(-1) if picture.ndim == 3 else picture)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect)
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])


def contour(axes: Axes, mask: np.ndarray, color: str, linewidth: float, linestyle: Any = "-", *, closed: bool = True) -> None:
    """The border of a mask, along the edges of its pixels; ``closed`` also where it meets the border of the image."""
    values, extent = _enlarged(mask, "constant" if closed else "edge")
    if values.all():
        return
    with _same_limits(axes):
        drawn = axes.contour(values, levels=[0.5], colors=[color], linewidths=linewidth, linestyles=[linestyle], extent=extent)
    # Dashes are as long as they are said to be.
    drawn.set_capstyle("butt")


def shade(axes: Axes, mask: np.ndarray, hatch: str, color: str, tint: str | None = None) -> None:
    """Hatch a mask, and tint it."""
    if not mask.any():
        return
    values, extent = _enlarged(mask)
    with _same_limits(axes):
        if tint is not None:
            axes.contourf(values, levels=[0.5, 1.5], colors=[tint], alpha=TINT, extent=extent)
        hatched = axes.contourf(values, levels=[0.5, 1.5], colors="none", hatches=[hatch], extent=extent)
    hatched.set_edgecolor(color)
    hatched.set_linewidth(0)


def _enlarged(
    mask: np.ndarray, beyond: Literal["constant", "edge"] = "constant"
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Each pixel as several, so that contours keep to the pixels' edges and do not cut their corners; with a margin."""
    height, width = mask.shape
    times = max(2, 384 // max(height, width))
    large = np.pad(mask, 1, mode=beyond).astype(np.float32).repeat(times, 0).repeat(times, 1)
    near, half = -1.5, 0.5 / times
    return large, (near + half, near + width + 2 - half, near + half, near + height + 2 - half)


@contextmanager
def _same_limits(axes: Axes) -> Iterator[None]:
    """Contours widen what is shown."""
    across, down = axes.get_xlim(), axes.get_ylim()
    yield
    axes.set_xlim(across)
    axes.set_ylim(down)


def literal(figure: Figure) -> Figure:
    """The same figure, its texts drawn letter by letter: names may hold ``$``, which is no formula, and bytes that are no letters."""
    numbers: set[Text] = set()
    for axis in figure.findobj(Axis):
        assert isinstance(axis, Axis)
        # Powers of ten on a logarithmic scale are formulas of matplotlib's own.
        numbers |= {*axis.get_minorticklabels(), axis.offsetText}
        if not isinstance(axis.get_major_formatter(), (FixedFormatter, FuncFormatter)):
            numbers |= {*axis.get_majorticklabels()}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text not in numbers:
            text.set_parse_math(False)
            text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    return figure


def grayscale(values: Tensor, channel: int | None = None) -> np.ndarray:
    """``(*spatial)`` or, of three channels, ``(*spatial, 3)`` in [0, 1] from ``(C, *spatial)``; what is not finite is 0."""
    colored = values.shape[0] == 3 and channel is None
    array: np.ndarray = (values.movedim(0, -1) if colored else values[channel or 0]).double().numpy()
    known = np.isfinite(array)
    low, high = (float(array[known].min()), float(array[known].max())) if known.any() else (0.0, 0.0)
    scaled: np.ndarray = (array - low) / (high - low) if high > low else np.zeros_like(array)
    return np.where(known, scaled, 0.0)


def robust_maximum(values: np.ndarray) -> float:
    """The 99.5th percentile of what is finite and not 0, so that one extreme unit does not pale all others."""
    finite = values[np.isfinite(values) & (values > 0)]
    return float(np.quantile(finite, 0.995)) if len(finite) else 1.0


def round_up(value: float) -> float:
    """Up to two significant digits."""
    magnitude = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value / magnitude - 1e-9) * magnitude)


def scale_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks in three significant digits, 0 without sign, powers of ten without padding."""
    return [f"{tick + 0.0:.3g}".replace("e-0", "e-").replace("e+0", "e+") for tick in ticks]


def first(maps: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The map of the first input."""
    return maps[0] if isinstance(maps, tuple) else maps


def short(name: str, longest: int = 44) -> str:
    """The end of a long name, which tells modules apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def decimals(largest: float) -> int:
    """Digits behind the point that show two significant ones of ``largest``."""
    return int(np.clip(1 - np.floor(np.log10(largest)), 0, 6))
