"""The panels of a picture of effects: what each shows, on which scale, and how they are laid out."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from captum_causalseg.evaluation.profile import BackgroundEffect, background_effect
from captum_causalseg.statistics import EDGE_SHIFTED, Status, TreatmentEffectStatistics
from captum_causalseg.visualization.pictures import (
    Palette,
    background,
    contour,
    grayscale,
    outlined,
    robust_maximum,
    round_up,
    scale_labels,
    shade,
)
from captum_causalseg.visualization.planes import Output, Plane, View, chosen_slices, peak
from captum_causalseg.visualization.sheet import Scale, grid

__all__ = ["PANELS", "Style", "effects_figure", "volume_figure"]

# How the values of a panel are colored: on the signed scale of the effects, from 0 up, or from 1 down.
_SIGNED, _POSITIVE, _PROBABILITY = "signed", "positive", "probability"


@dataclass(frozen=True)
class Panel:
    """What a panel shows: a field of the statistics, its title, the label of its scale (of the score's name), and the kind of scale."""

    field: str
    title: str
    label: str
    kind: str


PANELS = {
    "effect": Panel(field="effect", title="Effect of each unit", label="effect on the {}", kind=_SIGNED),
    "standard_error": Panel(
        field="standard_error", title="Standard error of the effect", label="standard error, {}", kind=_POSITIVE
    ),
    "lower": Panel(field="lower", title="Lower end of the 95 % interval", label="effect on the {}", kind=_SIGNED),
    "upper": Panel(field="upper", title="Upper end of the 95 % interval", label="effect on the {}", kind=_SIGNED),
    "significant": Panel(field="effect", title="Significant effects", label="effect on the {}", kind=_SIGNED),
    "p_value": Panel(field="p_value", title="p-value of no effect", label="p-value, each unit by itself", kind=_PROBABILITY),
    "n_draws": Panel(field="n_draws", title="Draws", label="interventions on the unit", kind=_POSITIVE),
}
"""All panels but ``"image"``."""

_LEAST_PROBABILITY = 1e-4

# Where it is seen what may be the joint's.
_OF_EFFECTS = ("effect", "significant")


class Maps:
    """What the statistics say of one output, painted over the input."""

    def __init__(self, statistics: TreatmentEffectStatistics, view: View, output: Output, panels: Sequence[str]) -> None:
        fields = {"effect", "status", *(PANELS[name].field for name in panels if name != "image")}
        fields |= {"significant"} & set(panels)
        fields |= {"edge_suspect"} if EDGE_SHIFTED in statistics.controls else set()
        self.output = output
        # Units that lie in another input have no distance from the region.
        placed = output.roi is not None and view.slot == 0
        self.background = (
            background_effect(statistics, output.roi, output.target, example=view.example, spacing=view.spacing)
            if placed and output.roi is not None
            else None
        )
        self.why_empty = statistics.why_empty(output.target, example=view.example)
        self.values = {field: view.map(statistics, field, output.target) for field in fields}
        status = self.values["status"]
        self.excluded = (status == Status.EXCLUDED) | (status == Status.ABSENT)
        self.outside = status == Status.OUTSIDE_SUPPORT
        self.edge = self.values.get("edge_suspect", np.zeros(status.shape)) == 1
        self.undecided = np.zeros(status.shape, bool)
        if "significant" in fields:
            # What cannot reach the region is known to have no effect.
            self.undecided = (self.values["significant"] == 0) & ~self.excluded & ~self.outside
        self.position = peak(self.values["effect"], output.roi) if status.ndim == 3 else None


class Scales:
    """The color scales, each the same in every panel of its kind."""

    def __init__(self, maps: Sequence[Maps], palette: Palette) -> None:
        self._maps, self.palette = maps, palette
        self.largest_effect = self._largest("effect")

    def _largest(self, field: str) -> float:
        return round_up(robust_maximum(np.concatenate([np.abs(one.values[field]).ravel() for one in self._maps])))

    @property
    def backgrounds(self) -> list[BackgroundEffect]:
        """What far places do to each output, if they do something."""
        return [one.background for one in self._maps if one.background is not None and one.background.effect != 0]

    def of(self, panel: Panel) -> tuple[Normalize, str, str, list[float]]:
        """The scale, its color map, at which end it goes on, and its ticks."""
        if panel.kind == _SIGNED:
            largest = self.largest_effect
            ticks = [-largest, -largest / 2, 0.0, largest / 2, largest]
            return TwoSlopeNorm(0, -largest, largest), self.palette.effects, "both", ticks
        if panel.kind == _PROBABILITY:
            return LogNorm(_LEAST_PROBABILITY, 1), self.palette.errors + "_r", "min", [1e-4, 1e-3, 0.01, 0.05, 1]
        if panel.field == "n_draws":
            most = max(1, round(max(float(np.nan_to_num(one.values["n_draws"]).max()) for one in self._maps)))
            return Normalize(0, most), self.palette.errors, "neither", sorted({0, most // 2, most})
        largest = self._largest(panel.field)
        return Normalize(0, largest), self.palette.errors, "max", [0.0, largest / 2, largest]


@dataclass(frozen=True, kw_only=True)
class Style:
    """How figures of effects look.

    Args:
        palette: colors.
        channel: which channel of the image is drawn in gray; None for all.
        title: above the panels.
        score_name: the name of the score, with its unit.
        words: what effects above and below 0 do.
    """

    palette: Palette
    channel: int | None
    title: str
    score_name: str
    words: tuple[str, str]


def effects_figure(
    statistics: TreatmentEffectStatistics, view: View, *, outputs: Sequence[Output], panels: Sequence[str], style: Style
) -> Figure:
    """A row of panels per output, or per output and plane of a volume."""
    picture = grayscale(view.image, style.channel)
    maps = [Maps(statistics=statistics, view=view, output=output, panels=panels) for output in outputs]
    shape = view.image.shape[1:]
    rows = [
        (one, plane)
        for one in maps
        for plane in (
            [Plane.whole(shape, view.spacing)] if one.position is None else Plane.through(shape, view.spacing, one.position)
        )
    ]
    image_heading = "Image" if view.rois is None else "Image and region of interest"
    headings = [image_heading if name == "image" else PANELS[name].title for name in panels]
    scales = Scales(maps, style.palette)
    beside = [None if name == "image" else _beside(PANELS[name], scales, style) for name in panels]
    sheet = grid(
        headings,
        _sizes([plane for _, plane in rows]),
        beside,
        row_labels=[_label(one.output, plane) for one, plane in rows],
        # One row of many panels is folded.
        fold=-(-len(panels) // 2) if len(rows) == 1 and len(panels) > 4 else None,
        title=style.title,
        notes=_notes(maps, panels),
    )
    for name, heading, scale, column, bar in zip(panels, headings, beside, sheet.pictures, sheet.bars):
        for number, (axes, (one, plane)) in enumerate(zip(column, rows)):
            said = heading if number == 0 else ""
            _draw(axes, picture, name=name, maps=one, plane=plane, scales=scales, heading=said)
        if bar is not None and scale is not None:
            _draw_bar(bar, column[0], panel=PANELS[name], scales=scales, beside=scale, upright=sheet.upright)
    for axes, (one, plane) in zip(sheet.pictures[0], rows):
        axes.set_ylabel(_label(one.output, plane), fontsize=10)
    return sheet.figure


def volume_figure(
    statistics: TreatmentEffectStatistics,
    view: View,
    *,
    output: Output,
    panel: str,
    style: Style,
    axis: int,
    n_slices: int,
    columns: int | None,
) -> Figure:
    """Slices of a volume side by side."""
    picture = grayscale(view.image, style.channel)
    maps = Maps(statistics=statistics, view=view, output=output, panels=[panel])
    shape = view.image.shape[1:]
    slices, strongest = chosen_slices(maps.values["effect"], output.roi, axis, count=n_slices)
    planes = [Plane.of_volume(shape, view.spacing, axis, index=index) for index in slices]
    height, width = planes[0].size
    across = min(columns or _columns(len(slices), height / width), len(slices))
    edge = min(2.5, 9 / across)
    scale = min(edge / width, 1.4 * edge / height)
    rows = -(-len(slices) // across)
    scales = Scales([maps], style.palette)
    beside = _beside(PANELS[panel], scales, style)
    titles = [f"slice {plane.index}" + (": largest" if plane.index == strongest else "") for plane in planes]
    sheet = grid(
        [max(titles, key=len)] * across,
        [(height * scale, width * scale)] * rows,
        [None] * (across - 1) + [beside],
        row_heading=True,
        title=style.title,
        notes=[f"slices along axis {axis} of {shape[axis]}", *_notes([maps], [panel])],
    )
    cells = [sheet.pictures[i % across][i // across] for i in range(across * rows)]
    for axes, plane, said in zip(cells, planes, titles):
        _draw(axes, picture, name=panel, maps=maps, plane=plane, scales=scales, heading=said)
        axes.title.set_fontsize(10)
        if plane.index == strongest:
            axes.title.set_fontweight("bold")
            axes.spines[:].set(linewidth=2.5, color="black")
    for axes in cells[len(planes) :]:
        axes.set_visible(False)
    bar = sheet.bars[-1]
    if bar is not None:
        _draw_bar(bar, cells[0], panel=PANELS[panel], scales=scales, beside=beside, upright=sheet.upright)
    return sheet.figure


def _draw(
    axes: Axes,
    picture: np.ndarray,
    *,
    name: str,
    maps: Maps,
    plane: Plane,
    scales: Scales,
    heading: str,
) -> None:
    """One panel: the picture, faded under the values; hatches, borders, and the region of interest on top."""
    roi = maps.output.roi
    outline = None if roi is None else plane.cut(roi)
    background(axes, plane.cut(picture), heading, outline=None, fade=name != "image", aspect=plane.aspect)
    if name != "image":
        panel = PANELS[name]
        norm, colors, _, _ = scales.of(panel)
        values = plane.cut(maps.values[panel.field])
        low, high = float(norm.vmin or 0), float(norm.vmax or 1)
        # What is infinite lies beyond the end of the scale; what is unknown is left blank.
        shown = np.nan_to_num(values, nan=1.0 if panel.kind == _PROBABILITY else 0.0, posinf=2 * high, neginf=-2 * high)
        if panel.kind == _PROBABILITY:
            shown = np.maximum(shown, low)
            size = np.log(shown) / np.log(low)
        else:
            size = np.clip(np.abs(shown) / high, 0, 1)
        # Small values let the image through.
        axes.imshow(*(shown, colors, norm), alpha=0.95 * np.sqrt(size), interpolation="nearest", aspect=plane.aspect)
        outside, undecided = plane.cut(maps.outside), plane.cut(maps.undecided)
        shade(axes, plane.cut(maps.excluded), "////", color="0.35")
        if name in _OF_EFFECTS:
            shade(axes, plane.cut(maps.edge), "xxxx", color="0.1")
        if name == "significant":
            shade(axes, undecided, "....", color="0.45")
        if outside.any() and not outside.all():
            contour(axes, outside, color="0.25", linewidth=1.0, linestyle="--")
    if plane.cross is not None:
        row, column = plane.cross
        axes.axhline(row, color="0.25", linewidth=0.6, linestyle=":")
        axes.axvline(column, color="0.25", linewidth=0.6, linestyle=":")
    if outline is not None:
        outlined(axes, outline, scales.palette.outline)


def _beside(panel: Panel, scales: Scales, style: Style) -> Scale:
    words = style.words
    label = textwrap.fill(panel.label.format(style.score_name), 38)
    if panel.kind == _SIGNED:
        label += f"\n{words[1]} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {words[0]}"
    return Scale(label, scale_labels(scales.of(panel)[-1]))


def _draw_bar(bar_axes: Axes, drawn: Axes, *, panel: Panel, scales: Scales, beside: Scale, upright: bool) -> None:
    _, _, extend, ticks = scales.of(panel)
    orientation = "vertical" if upright else "horizontal"
    bar = drawn.figure.colorbar(drawn.images[1], cax=bar_axes, extend=extend, orientation=orientation)
    bar.set_label(beside.label, fontsize=9)
    bar.set_ticks(ticks, labels=beside.ticks, fontsize=9)
    bar.minorticks_off()
    # The scale is drawn opaque, the map by size.
    bar.solids.set_alpha(1)  # type: ignore[union-attr]
    if panel.kind == _SIGNED:
        across, along = (bar_axes.axhline, bar_axes.axhspan) if upright else (bar_axes.axvline, bar_axes.axvspan)
        for background in scales.backgrounds:
            along(background.lower, background.upper, color="black", alpha=0.3, linewidth=0)
            across(background.effect, color="black", linewidth=1.6)
    if panel.kind == _PROBABILITY:
        (bar_axes.invert_yaxis if upright else bar_axes.invert_xaxis)()


def _sizes(planes: Sequence[Plane]) -> list[tuple[float, float]]:
    """Height and width of each picture in inches, all to one scale."""
    height, width = (max(plane.size[i] for plane in planes) for i in (0, 1))
    edge = 3.4 if len(planes) == 1 else 2.7
    scale = min(edge / width, 1.35 * edge / height)
    return [(plane.size[0] * scale, plane.size[1] * scale) for plane in planes]


def _columns(count: int, ratio: float) -> int:
    """About as wide as high, or one wider if that fills the last row better."""
    middle = max(1, round(math.sqrt(count * ratio)))
    return min((middle + 1, middle), key=lambda columns: -count % columns)


def _label(output: Output, plane: Plane) -> str:
    lines = [output.name] if output.name else []
    lines += [] if plane.axis is None else [f"axis {plane.axis}, slice {plane.index}"]
    return "\n".join(lines)


def _notes(maps: Sequence[Maps], panels: Sequence[str]) -> list[str]:
    shown = [name for name in panels if name != "image"]
    if not shown:
        return []
    notes = []
    # The reason is mostly the same for all.
    empty = [one for one in maps if one.why_empty is not None]
    for why in dict.fromkeys(one.why_empty for one in empty):
        whose = [one.output.name for one in empty if one.why_empty == why and one.output.name]
        notes.append(f"{', '.join(whose)}: {why}" if whose and len(whose) < len(maps) else str(why))
    if not empty and not any(np.nan_to_num(one.values["effect"]).any() for one in maps):
        notes.append("all effects are 0")
    if any(PANELS[name].kind == _SIGNED for name in shown):
        for one in maps:
            if one.background is not None and one.background.effect != 0:
                notes.append(f"line on the scale{f', {one.output.name}' if one.output.name else ''}: {one.background}")
    if any(one.excluded.any() for one in maps):
        notes.append("hatched: not intervened on")
    if any(name in _OF_EFFECTS for name in shown) and any(one.edge.any() for one in maps):
        notes.append("crosshatched: a joint alone, the unit's own tissue shifted by a pixel or two, may do as much")
    if any(one.outside.any() for one in maps):
        notes.append("beyond the dashed line: cannot reach the region of interest")
    if "significant" in shown and any(one.undecided.any() for one in maps):
        notes.append("dotted: does not differ from 0 (false discovery rate 5 %)")
    if "standard_error" in shown and any(np.isinf(one.values["standard_error"]).any() for one in maps):
        notes.append("standard errors that are not known are drawn as the largest")
    return notes
