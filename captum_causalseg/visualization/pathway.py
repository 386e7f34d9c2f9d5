"""The picture of the ways through a network: a U-Net drawn as a U, other layers one below the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.evaluation.pathways import Pathway, effect_in_words
from captum_causalseg.visualization.ink import ink, on_dark, role_color
from captum_causalseg.visualization.pictures import BACKGROUND, PICTURE, literal, short

__all__ = ["plot_pathway"]

_WIDEST = 20.0
"""Of an arrow that all travels through, in points."""
_DIM = 0.72
_ROW, _SIDE = 1.0, 4.4
_BOX = (0.52, 0.3)


@dataclass(frozen=True)
class _Way:
    """What is drawn of one layer.

    Args:
        name: of the layer.
        role, depth: where it is.
        size: what travels there, 1 for all; its sign does not matter.
        color: of the arrow.
        said: lines of text.
    """

    name: str
    role: str
    depth: int | None
    size: float
    color: str
    said: tuple[str, ...]


@checked(PICTURE, pathway=instance(Pathway), example=integer(0))
def plot_pathway(
    pathway: Pathway,
    *,
    example: int = 0,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """The network as a U, with arrows as thick as the share of the effect that travels there; other layers one below the other.

    Of one region, arrows have the color of the indirect effect's sign: red supports, blue harms, gray is not told from 0. Beside them stand
    the share mediated and the interaction, with 95 % intervals; the indirect effect in the place of the share where the total effect is not told from 0. Skip
    connections are drawn in thin lines where they are no mediators.

    Of many units, arrows show the share of all effects that are told from 0 (dark; the other color is against them), and the right panel these shares by the
    distance from the RoI, above the mass of the effects.

    Args:
        pathway: what :func:`captum_causalseg.pathway` returned.
        example: which example of the batch.
        title: above the picture.
        score_name: the name of the score, with its unit.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> from captum_causalseg import SegmentationTarget, pathway, regions
        >>> from captum_causalseg.visualization import plot_pathway
        >>> network = UNet(2, 1, 2, (4, 8, 8), (2, 2), norm="BATCH").eval()
        >>> image, donors = torch.rand(1, 1, 32, 32), torch.rand(20, 1, 32, 32)
        >>> roi = regions.box((32, 32), start=16, size=8)
        >>> target = SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice")
        >>> found = pathway(target, image, donors, region_units=[4, 5], layers=["levels", "skips"], block_size=8, output=1)
        >>> figure = plot_pathway(found, score_name="Dice")
        >>> [text.get_text().splitlines()[0] for text in figure.axes[0].texts if text.get_text().startswith(("level", "skip", "bottle"))]
        ['level 1', 'bottleneck', 'skip 0', 'skip 1']
    """
    if not pathway.is_region:
        return _of_many(pathway, example, title, score_name=score_name)
    table = pathway.to_dataframe()
    table = table[table["example"] == example]
    if table.empty:
        raise ValueError(f"example: the pathway has no example {example}")
    first, rows = table.iloc[0], table.to_dict("records")
    largest = max(abs(first["total"]), *(abs(row["indirect"]) for row in rows), np.finfo(float).tiny)
    ways = []
    for row in rows:
        told = row["indirect_lower"] > 0 or row["indirect_upper"] < 0
        color = role_color("supporting" if row["indirect"] > 0 else "harming") if told else ink(_DIM)
        known = not np.isnan(row["share"])
        through = (
            f"share {effect_in_words(row, 'share', '.2f')}" if known else f"indirect {effect_in_words(row, 'indirect', '+.2g')}"
        )
        said = (through, f"interaction {effect_in_words(row, 'interaction', '+.2g')}")
        depth = None if pd.isna(row["depth"]) else int(row["depth"])
        ways.append(_Way(row["layer"], row["role"], depth, size=abs(row["indirect"]) / largest, color=color, said=said))
    above, below = words
    figure, (axes,) = _figure(ways, title)
    _draw(axes, ways, ends=("region", "RoI"))
    heading = f"Effect of the region on the {score_name}: {effect_in_words(first, 'total', '+.2g')}"
    axes.set_title(heading if not title else f"{title}\n{heading}", fontsize=11)
    named = {above: role_color("supporting"), below: role_color("harming"), "not told from 0": ink(_DIM)}
    _legend(axes, {f"what travels there {name}" if color != ink(_DIM) else name: color for name, color in named.items()})
    return literal(figure)


def _of_many(pathway: Pathway, example: int, title: str, *, score_name: str) -> Figure:
    shares = pathway.shares(example=example)
    first, ways = shares.iloc[0], []
    largest = max(1.0, *shares["share"].abs().fillna(0.0))
    for row in shares.to_dict("records"):
        share = row["share"]
        known = not np.isnan(share)
        told = known and (row["share_lower"] > 0 or row["share_upper"] < 0)
        color = ink(_DIM) if not told else ink(0.25) if share > 0 else BACKGROUND
        said = (f"share {effect_in_words(row, 'share', '.2f')}" if known else "share not known",)
        depth = None if pd.isna(row["depth"]) else int(row["depth"])
        ways.append(_Way(row["layer"], row["role"], depth, size=abs(share) / largest if known else 0.0, color=color, said=said))
    figure, (axes, *panels) = _figure(ways, title, beside=pathway.rois is not None)
    _draw(axes, ways, ends=("units", "RoI"))
    heading = f"{first['n_clear']} of {first['n_units']} units have an effect on the {score_name} that is told from 0"
    axes.set_title(heading, fontsize=11)
    if title:
        figure.suptitle(title)
    _legend(axes, {"in the direction of the effects": ink(0.25), "against them": BACKGROUND, "not told from 0": ink(_DIM)})
    if panels:
        _distances(panels[0], panels[1], pathway.by_distance(example=example), score_name=score_name)
    return literal(figure)


def _figure(ways: Sequence[_Way], title: str, *, beside: bool = False) -> tuple[Figure, list[Axes]]:
    depth = max((way.depth or 0 for way in ways if way.role in ("level", "skip")), default=-1)
    levels = max(depth + (1 if any(way.role == "skip" and way.depth == depth for way in ways) else 0), 0)
    others = sum(way.role not in ("level", "skip") for way in ways)
    height = 1.5 + 1.05 * (levels + 1 if levels else 0) + 0.6 * others + 0.3 * bool(title)
    if not beside:
        figure = Figure(figsize=(11, height), layout="constrained")
        return figure, [figure.subplots()]
    figure = Figure(figsize=(17, max(height, 4.8)), layout="constrained")
    panels = figure.subplot_mosaic([["ways", "shares"], ["ways", "mass"]], width_ratios=[1.35, 1], height_ratios=[2.6, 1])
    return figure, [panels["ways"], panels["shares"], panels["mass"]]


def _draw(axes: Axes, ways: Sequence[_Way], *, ends: tuple[str, str]) -> None:
    """The U, and below it what has no place in it."""
    levels = {way.depth: way for way in ways if way.role == "level" and way.depth is not None}
    skips = {way.depth: way for way in ways if way.role == "skip" and way.depth is not None}
    n = max([*levels, *(depth + 1 for depth in skips)], default=0)
    y = 0.0
    if n:
        _u(axes, levels, skips, n=n, ends=ends)
        y = -n * _ROW - 0.75
    for way in ways:
        if way.role not in ("level", "skip"):
            _arrow(axes, way, start=(-0.2, y), stop=(_SIDE - 0.6, y))
            axes.text(-0.35, y, short(way.name, 30), ha="right", va="center", fontsize=10)
            axes.text(_SIDE - 0.5, y, "\n".join(way.said), ha="left", va="center", fontsize=9)
            y -= 0.6
    axes.set_xlim(-1.75, _SIDE + 2.35)
    axes.set_ylim(y + (0.25 if len(ways) > len(levels) + len(skips) else 0.35), 0.55)
    axes.set_axis_off()


def _u(axes: Axes, levels: dict[int, _Way], skips: dict[int, _Way], *, n: int, ends: tuple[str, str]) -> None:
    indent = min(0.3, 0.9 / n)
    arms = [(k * indent, _SIDE - k * indent, -k * _ROW) for k in range(n + 1)]
    for k in range(1, n + 1):
        (left, right, y), (above_left, above_right, above) = arms[k], arms[k - 1]
        way = levels.get(k)
        half = _BOX[1] / 2
        down = (above_left, above - half), (left, y + half)
        up = (right, y + half), (above_right, above - half)
        if way is None:
            for start, stop in (down, up):
                _thin(axes, start, stop)
            continue
        for start, stop in (down, up):
            _arrow(axes, way, start=start, stop=stop)
        axes.text(
            _SIDE + 0.55, (y + above) / 2, "\n".join([short(way.name, 30), *way.said]), ha="left", va="center", fontsize=9
        )
    for k in range(n):
        left, right, y = arms[k]
        start, stop = (left + _BOX[0] / 2, y), (right - _BOX[0] / 2, y)
        over = skips.get(k)
        if over is None:
            _thin(axes, start, stop, dotted=True)
            continue
        _arrow(axes, over, start=start, stop=stop)
        lift = 0.06 + _WIDEST * over.size / 2 / 75
        axes.text(
            (left + right) / 2, y - lift, "\n".join([short(over.name, 30), *over.said]), ha="center", va="top", fontsize=8
        )
    left, right, y = arms[n]
    axes.add_patch(_box(((left + right) / 2, y), right - left + _BOX[0]))
    for k in range(n):
        left, right, y = arms[k]
        for x in (left, right):
            axes.add_patch(_box((x, y), _BOX[0]))
            axes.text(x, y, f"1/{2**k}" if k else "1", ha="center", va="center", fontsize=8, color=ink(0.35))
    axes.text(
        (arms[n][0] + arms[n][1]) / 2,
        arms[n][2],
        f"1/{2**n} of the resolution",
        ha="center",
        va="center",
        fontsize=8,
        color=ink(0.35),
    )
    half = _BOX[0] / 2
    for name, x, start, stop, side in (
        (ends[0], -half - 0.5, (-half - 0.45, 0.0), (-half, 0.0), "right"),
        (ends[1], _SIDE + half + 0.5, (_SIDE + half, 0.0), (_SIDE + half + 0.45, 0.0), "left"),
    ):
        _thin(axes, start, stop)
        axes.text(x, 0.0, name, ha=side, va="center", fontsize=10)


def _box(middle: tuple[float, float], width: float) -> FancyBboxPatch:
    x, y = middle
    return FancyBboxPatch(
        (x - width / 2, y - _BOX[1] / 2),
        width,
        _BOX[1],
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=ink(0.96),
        edgecolor=ink(0.4),
        linewidth=0.8,
        zorder=3,
    )


def _arrow(axes: Axes, way: _Way, *, start: tuple[float, float], stop: tuple[float, float]) -> None:
    tail = max(_WIDEST * way.size, 0.8)
    head = tail + 7
    axes.add_patch(
        FancyArrowPatch(
            start,
            stop,
            arrowstyle=f"simple,tail_width={tail},head_width={head},head_length={min(4 + head / 2, 14)}",
            mutation_scale=1,
            shrinkA=0,
            shrinkB=0,
            color=way.color,
            linewidth=0,
            zorder=2,
        )
    )


def _thin(axes: Axes, start: tuple[float, float], stop: tuple[float, float], *, dotted: bool = False) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            stop,
            arrowstyle="->",
            mutation_scale=8,
            shrinkA=0,
            shrinkB=0,
            color=ink(0.6),
            linewidth=0.8,
            linestyle=":" if dotted else "-",
            zorder=1,
        )
    )


def _legend(axes: Axes, named: dict[str, str]) -> None:
    axes.legend(
        handles=[Patch(color=color, label=name) for name, color in named.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=3,
        frameon=False,
        fontsize=9,
    )


def _distances(axes: Axes, below: Axes, table: pd.DataFrame, *, score_name: str) -> None:
    """Shares by distance, and the mass that they are shares of."""
    names = table["layer"].drop_duplicates().tolist()
    colors = colormaps["viridis"](np.linspace(*((0.25, 1.0) if on_dark() else (0.0, 0.9)), len(names)))
    width = float((table["upper"] - table["lower"]).max()) or 1.0
    for place, (name, color) in enumerate(zip(names, colors)):
        own = table[table["layer"] == name]
        # Beside each other, or one interval would hide another.
        middle = own["upper"] - width / 2 + width * 0.5 * ((place + 0.5) / len(names) - 0.5)
        ends = np.abs(np.stack([own["share"] - own["share_lower"], own["share_upper"] - own["share"]]))
        line = {"level": "-", "skip": "--"}.get(own["role"].iloc[0], ":")
        axes.errorbar(
            middle,
            own["share"],
            yerr=ends,
            color=color,
            marker="o",
            markersize=4,
            linestyle=line,
            elinewidth=1,
            label=short(name),
        )
    for level in (0, 1):
        axes.axhline(level, color=ink(0.6), linewidth=0.8)
    known = table["share"].dropna()
    if len(known):
        # Wide intervals of few units shall not press the others flat.
        axes.set_ylim(min(-0.15, float(known.min()) - 0.15), max(1.15, float(known.max()) + 0.15))
    axes.set_ylabel("share of the effects")
    axes.set_title("What travels through each layer, by distance", fontsize=11)
    # Beside the panel, as curves may be anywhere in it.
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    first = table[table["layer"] == names[0]]
    below.bar(first["upper"] - width / 2, first["mass"], 0.9 * width, color=ink(0.6))
    for _, row in first.iterrows():
        below.text(row["upper"] - width / 2, row["mass"], f"{row['n_clear']:.0f}", ha="center", va="bottom", fontsize=8)
    below.margins(y=0.2)
    below.sharex(axes)
    below.set_xlabel("distance from the region of interest (pixels)")
    below.set_ylabel(f"sum of |effect|\non the {score_name}")
