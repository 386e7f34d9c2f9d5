"""The panels of a picture of effects: what each shows, on which scale, and how they are laid out."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from captum_causalseg.evaluation.profile import BackgroundEffect, background_effect
from captum_causalseg.statistics import EDGE_SHIFTED, Status, TreatmentEffectStatistics
from captum_causalseg.visualization.frame import letter, show_part
from captum_causalseg.visualization.ink import ink
from captum_causalseg.visualization.marks import draw_area, draw_line
from captum_causalseg.visualization.pictures import Palette, grayscale, robust_maximum, round_up, scale_labels
from captum_causalseg.visualization.planes import Layout, Output, Plane, View, center, chosen_slices, layout_of, peak
from captum_causalseg.visualization.scene import OPACITY, Scene, panel_sizes
from captum_causalseg.visualization.sheet import Around, Scale, Sheet, grid

__all__ = ["PANELS", "Slices", "Style", "effects_figure", "volume_figure"]

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
# The 97.5th percentile of the normal distribution.
_NORMAL = 1.96
# The opacity of an effect that differs from 0.
_SURE = 0.8
# Of the strongest units of a volume, so many are marked.
_MARKED = 3
# Of a thin volume, a figure has rows for so many slices.
_SLICES = 3

# Where it is seen what may be the joint's.
_OF_EFFECTS = ("effect", "significant")


class Maps:
    """What the statistics say of one output, painted over the input."""

    def __init__(
        self, statistics: TreatmentEffectStatistics, view: View, output: Output, *, panels: Sequence[str], opacity: str
    ) -> None:
        fields = {"effect", "status", *(PANELS[name].field for name in panels if name != "image")}
        fields |= {"significant"} if "significant" in panels or opacity == "significance" else set()
        fields |= {"standard_error"} if opacity == "significance" else set()
        fields |= {"edge_suspect"} if EDGE_SHIFTED in statistics.controls else set()
        self.output = output
        # Units that lie in another input have no distance from the region.
        placed = output.roi is not None and view.slot == 0
        self.background = (
            background_effect(statistics, output.roi, output.target, example=view.example, spacing=view.geometry.spacing)
            if placed and output.roi is not None
            else None
        )
        self.why_empty = statistics.why_empty(output.target, example=view.example)
        self.values = {field: view.map(statistics, field, output.target) for field in fields}
        status = self.values["status"]
        self.excluded = (status == Status.EXCLUDED) | (status == Status.ABSENT)
        self.outside = status == Status.OUTSIDE_SUPPORT
        self.first_order = status == Status.FIRST_ORDER
        self.edge = self.values.get("edge_suspect", np.zeros(status.shape)) == 1
        self.undecided = np.zeros(status.shape, bool)
        if "significant" in fields:
            # What cannot reach the region is known to have no effect; of a gradient nothing is known.
            self.undecided = (self.values["significant"] == 0) & ~self.excluded & ~self.outside & ~self.first_order
        self.strongest = _strongest(statistics, view, output) if status.ndim == 3 else []
        self.reached = ~self.outside if output.roi is None else ~self.outside | output.roi

    @property
    def position(self) -> tuple[int, ...]:
        """Where the planes of a volume cross: in the region of interest, if there is one."""
        return peak(self.values["effect"], None) if self.output.roi is None else center(self.output.roi)

    def planes(self, layout: Layout) -> list[Plane]:
        """That a figure has rows for: of a thin volume slices, through the region of interest, the strongest units, and others with effects."""
        position, thin = self.position, layout.thin
        if thin is None:
            return layout.through(position)
        others = chosen_slices(self.values["effect"], self.output.roi, thin, count=_SLICES)[0]
        found = dict.fromkeys([position[thin], *(strong.middle[thin] for strong in self.strongest), *others])
        return layout.across(thin, sorted([*found][:_SLICES]))

    def opacity(self) -> np.ndarray:
        """Of the effects, by how sure they are: the most where they differ from 0, and else at most half of it."""
        error, effect = self.values["standard_error"], np.abs(np.nan_to_num(self.values["effect"]))
        ratio = np.divide(effect, _NORMAL * error, out=np.zeros(effect.shape), where=error > 0)
        unsure: np.ndarray = 0.5 * np.clip(ratio, 0, 1) ** 2
        sure: np.ndarray = np.where(self.values["significant"] == 1, _SURE, _SURE * unsure) * (effect > 0)
        return sure


@dataclass(frozen=True)
class Strong:
    """One of the strongest units: its place among them, from 1; where it is, ``(*spatial)``; and its middle."""

    number: int
    mask: np.ndarray
    middle: tuple[int, ...]


def _strongest(statistics: TreatmentEffectStatistics, view: View, output: Output) -> list[Strong]:
    """The strongest units of the input that is shown, by ``|effect|``."""
    masks = statistics.feature_mask[view.slot]
    mask = masks[min(view.example, len(masks) - 1), min(view.channel, masks.shape[1] - 1)].cpu().numpy()
    effect = statistics.select(statistics.effect, output.target)[view.example].abs().nan_to_num(0.0).numpy()
    ids = statistics.unit_ids.cpu().numpy()
    here = np.isin(ids, np.unique(mask)) & (effect > 0)
    order = np.flatnonzero(here)[np.argsort(-effect[here], kind="stable")][:_MARKED]
    places = [np.broadcast_to(mask == ids[unit], view.image.shape[1:]) for unit in order]
    return [Strong(number, place, center(place)) for number, place in enumerate(places, 1)]


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

    def of(self, panel: Panel) -> tuple[Normalize, Colormap, str, list[float]]:
        """The scale, its color map, at which end it goes on, and its ticks."""
        if panel.kind == _SIGNED:
            largest = self.largest_effect
            ticks = [-largest, -largest / 2, 0.0, largest / 2, largest]
            return TwoSlopeNorm(0, -largest, largest), self.palette.effects, "both", ticks
        if panel.kind == _PROBABILITY:
            return LogNorm(_LEAST_PROBABILITY, 1), self.palette.errors.reversed(), "min", [1e-4, 1e-3, 0.01, 0.05, 1]
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
        opacity: what it follows: ``"effect"`` or ``"significance"``.
        zoom: whether to enlarge the part that reaches the region of interest, or ``"auto"``.
    """

    palette: Palette
    channel: int | None
    title: str
    score_name: str
    words: tuple[str, str]
    opacity: str
    zoom: bool | str


def effects_figure(
    statistics: TreatmentEffectStatistics,
    view: View,
    *,
    outputs: Sequence[Output],
    panels: Sequence[str],
    columns: int | None,
    style: Style,
) -> Figure:
    """A row of panels per output, or per output and plane of a volume."""
    picture = grayscale(view.image, style.channel)
    maps = [Maps(statistics, view, output, panels=panels, opacity=style.opacity) for output in outputs]
    scenes = [Scene(picture, one.roi, one.segmentations, color=style.palette.outline) for one in outputs]
    layout = _layout(maps, view, style)
    rows = [(scene, one, plane) for scene, one in zip(scenes, maps) for plane in one.planes(layout)]
    headings = [scenes[0].heading if name == "image" else PANELS[name].title for name in panels]
    scales = Scales(maps, style.palette)
    beside = [None if name == "image" else _beside(PANELS[name], scales, style) for name in panels]
    sheet = grid(
        headings,
        panel_sizes([plane for *_, plane in rows]),
        beside,
        row_labels=[_label(one.output, plane) for _, one, plane in rows],
        # One row of many panels is folded.
        fold=columns or (-(-len(panels) // 2) if len(rows) == 1 and len(panels) > 4 else None),
        around=Around(
            title=style.title,
            notes=[*_notes(maps, panels), *_behind(maps, panels, [plane for *_, plane in rows]), *view.geometry.notes()],
            legend=_legend(scenes, maps, panels, style=style),
        ),
    )
    for place, (name, heading, scale, column) in enumerate(zip(panels, headings, beside, sheet.pictures)):
        for number, (axes, (scene, one, plane)) in enumerate(zip(column, rows)):
            Drawing(scene, maps=one, plane=plane, scales=scales, style=style).draw(axes, name, heading if number == 0 else "")
            if name == panels[0]:
                scene.frame(axes, plane)
        if scale is not None:
            _draw_bar(sheet, place, panel=PANELS[name], scales=scales, scale=scale)
    for column in sheet.pictures[:: columns or len(panels)]:
        for axes, (_, one, plane) in zip(column, rows):
            axes.set_ylabel(_label(one.output, plane), fontsize=10)
    return sheet.figure


def volume_figure(
    statistics: TreatmentEffectStatistics,
    view: View,
    *,
    output: Output,
    panel: str,
    style: Style,
    slices: "Slices",
) -> Figure:
    """Slices of a volume side by side."""
    picture = grayscale(view.image, style.channel)
    maps = Maps(statistics, view, output, panels=[panel], opacity=style.opacity)
    scene = Scene(picture, output.roi, output.segmentations, color=style.palette.outline)
    layout, axis = _layout([maps], view, style), slices.axis
    indices, strongest = chosen_slices(maps.values["effect"], output.roi, axis, count=slices.count)
    planes = layout.across(axis, indices)
    height, width = planes[0].size
    across, scale = _fit(len(planes), height, width, columns=slices.columns)
    rows = -(-len(planes) // across)
    scales = Scales([maps], style.palette)
    beside = _beside(PANELS[panel], scales, style)
    titles = [f"slice {plane.index}" + (": largest" if plane.index == strongest else "") for plane in planes]
    cut = view.geometry.cut_name(axis)
    which = (
        f"{cut} slices, {layout.shape[axis]} in all" if view.geometry.toward else f"slices along {cut} of {layout.shape[axis]}"
    )
    sheet = grid(
        [max(titles, key=len)] * across,
        [(height * scale, width * scale)] * rows,
        [None] * (across - 1) + [beside],
        row_heading=True,
        around=Around(
            title=style.title,
            notes=[which, *_notes([maps], [panel]), *view.geometry.notes()],
            legend=_legend([scene], [maps], [panel], style=style),
        ),
    )
    cells = [sheet.pictures[i % across][i // across] for i in range(across * rows)]
    for number, (axes, plane, said) in enumerate(zip(cells, planes, titles)):
        Drawing(scene, maps=maps, plane=plane, scales=scales, style=style).draw(axes, panel, said)
        if number == 0:
            scene.frame(axes, plane)
        axes.title.set_fontsize(10)
        if plane.index == strongest:
            axes.title.set_fontweight("bold")
            axes.spines[:].set(linewidth=2.5, color=ink())
    for axes in cells[len(planes) :]:
        axes.set_visible(False)
    _draw_bar(sheet, across - 1, panel=PANELS[panel], scales=scales, scale=beside)
    return sheet.figure


@dataclass(frozen=True)
class Slices:
    """Which slices of a volume are shown: along which axis, how many at most, and how many in a row (None for what fits)."""

    axis: int
    count: int
    columns: int | None


def _layout(maps: Sequence[Maps], view: View, style: Style) -> Layout:
    """One part of the image for all outputs."""
    reached = np.logical_or.reduce([one.reached for one in maps])
    return layout_of(view.image.shape[1:], view.geometry, reached, zoom=style.zoom)


@dataclass(frozen=True)
class Drawing:
    """A plane of an image, and what is drawn on it.

    Args:
        scene: the image.
        maps: the values.
        plane: which part of both.
        scales: their colors.
        style: the rest.
    """

    scene: Scene
    maps: Maps
    plane: Plane
    scales: Scales
    style: Style

    def draw(self, axes: Axes, name: str, heading: str) -> None:
        """One panel: the picture, darkened under the values; hatches and borders; the segmentations and the region of interest on top."""
        scene, plane = self.scene, self.plane
        scene.begin(axes, plane, heading, faded=name != "image")
        if name == "image":
            scene.tell(axes, plane)
        else:
            self._values(axes, name)
        # Outlines of what is folded, such as a brain's cortex, would cover the effects.
        scene.finish(axes, plane, faint=name != "image")
        if name in _OF_EFFECTS:
            self._strongest(axes)

    def _values(self, axes: Axes, name: str) -> None:
        maps, plane, panel = self.maps, self.plane, PANELS[name]
        norm, colors, _, _ = self.scales.of(panel)
        values = plane.cut(maps.values[panel.field])
        low, high = float(norm.vmin or 0), float(norm.vmax or 1)
        # What is infinite lies beyond the end of the scale; what is unknown is left blank.
        shown = np.nan_to_num(values, nan=1.0 if panel.kind == _PROBABILITY else 0.0, posinf=2 * high, neginf=-2 * high)
        if panel.kind == _PROBABILITY:
            shown = np.maximum(shown, low)
            opacity = (np.log(shown) / np.log(low)) ** OPACITY
        elif name in _OF_EFFECTS and self.style.opacity == "significance":
            opacity = plane.cut(maps.opacity())
        else:
            # Small values let the image through.
            opacity = np.clip(np.abs(shown) / high, 0, 1) ** OPACITY
        if name == "significant":
            # No dots either: that they do not differ from 0 is not known.
            opacity = np.where(plane.cut(maps.first_order), 0.0, opacity)
        axes.imshow(
            shown,
            cmap=colors,
            norm=norm,
            alpha=(0.95 if panel.kind == _SIGNED else 0.7) * opacity,
            interpolation="nearest",
            aspect=plane.aspect,
        )
        show_part(axes, plane)
        draw_area(axes, plane.cut(maps.excluded), "excluded")
        if name in _OF_EFFECTS:
            draw_area(axes, plane.cut(maps.edge), "edge")
        if name == "significant":
            draw_area(axes, plane.cut(maps.undecided), "undecided")
        if name in _OF_EFFECTS and self.style.opacity == "significance":
            draw_line(axes, plane.cut(maps.values["significant"] == 1), "significant")
        draw_line(axes, plane.cut(maps.outside), "outside")

    def _strongest(self, axes: Axes) -> None:
        """Outline and number those that the plane cuts; the numbers of the others stand in parentheses, where planes cross."""
        numbers: dict[tuple[float, float], list[str]] = {}
        near = 0.08 * max(stop - start for start, stop in self.plane.limits)
        for strong in self.maps.strongest:
            mask, place = self.plane.cut(strong.mask), self.plane.place(strong.middle)
            if mask.any():
                draw_line(axes, mask, "strongest")
            elif self.plane.cross is None:
                continue
            # One behind the other.
            known = next((one for one in numbers if np.hypot(one[0] - place[0], one[1] - place[1]) < near), place)
            numbers.setdefault(known, []).append(str(strong.number) if mask.any() else f"({strong.number})")
        for (row, column), said in numbers.items():
            letter(axes, (column, row), " ".join(said), size=8.5)


def _legend(scenes: Sequence[Scene], maps: Sequence[Maps], panels: Sequence[str], *, style: Style) -> list[Artist]:
    """Of the marks that are drawn, in the order of what one looks for."""
    shown = [name for name in panels if name != "image"]
    of_effects = any(name in _OF_EFFECTS for name in shown)
    marks = [scene.marks(told="image" in panels) for scene in scenes]
    drawn = {name: any(one[name] for one in marks) for name in marks[0]}
    drawn |= {
        "excluded": bool(shown) and any(one.excluded.any() for one in maps),
        "outside": bool(shown) and any(one.outside.any() and not one.outside.all() for one in maps),
        "undecided": "significant" in shown and any(one.undecided.any() for one in maps),
        "significant": of_effects
        and style.opacity == "significance"
        and any((one.values["significant"] == 1).any() for one in maps),
        "edge": of_effects and any(one.edge.any() for one in maps),
        "strongest": of_effects and any(one.strongest for one in maps),
    }
    return scenes[0].handles(drawn)


def _beside(panel: Panel, scales: Scales, style: Style) -> Scale:
    words = style.words
    label = textwrap.fill(panel.label.format(style.score_name), 38)
    if panel.kind == _SIGNED:
        label += f"\n{words[1]} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {words[0]}"
    return Scale(label, scale_labels(scales.of(panel)[-1]))


def _draw_bar(sheet: Sheet, column: int, *, panel: Panel, scales: Scales, scale: Scale) -> None:
    bar_axes = sheet.bars[column]
    if bar_axes is None:
        return
    _, _, extend, ticks = scales.of(panel)
    sheet.draw_bar(column, sheet.pictures[column][0].images[1], scale, places=ticks, extend=extend)
    if panel.kind == _SIGNED:
        across, along = (bar_axes.axhline, bar_axes.axhspan) if sheet.upright else (bar_axes.axvline, bar_axes.axvspan)
        for background in scales.backgrounds:
            along(background.lower, background.upper, color="black", alpha=0.3, linewidth=0)
            across(background.effect, color="black", linewidth=1.6)
    if panel.kind == _PROBABILITY:
        (bar_axes.invert_yaxis if sheet.upright else bar_axes.invert_xaxis)()


def _fit(count: int, height: float, width: float, *, columns: int | None) -> tuple[int, float]:
    """How many pictures in a row, and inches per unit of length, so that all are as large as a page lets them be."""
    found = []
    for across in [min(columns, count)] if columns else range(1, count + 1):
        rows = -(-count // across)
        # Titles and gaps take their own; small pictures need no page.
        edge = min((9.5 - 0.14 * across) / across, 2.6), max((8.5 - 0.35 * rows) / rows, 0.4)
        found.append((min(edge[0] / width, edge[1] / height, 3.4 / height), -(across * rows - count), across))
    scale, _, across = max(found)
    return across, scale


def _label(output: Output, plane: Plane) -> str:
    lines = [output.name] if output.name else []
    lines += [plane.name] if plane.name else []
    return "\n".join(lines)


def _behind(maps: Sequence[Maps], panels: Sequence[str], planes: Sequence[Plane]) -> list[str]:
    """What the parentheses mean, where there are any."""
    there = any(name in _OF_EFFECTS for name in panels) and any(one.strongest for one in maps)
    return ["number in parentheses: before or behind the plane"] if there and planes[0].cross is not None else []


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
    if "standard_error" in shown and any(np.isinf(one.values["standard_error"]).any() for one in maps):
        notes.append("standard errors that are not known are drawn as the largest")
    if any(one.first_order.any() for one in maps):
        notes.append(
            "effects of a gradient: their errors, intervals and p-values are not known, and none is called significant"
        )
    return notes
