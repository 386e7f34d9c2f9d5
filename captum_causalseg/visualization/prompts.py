"""Prompts over the image, colored by what they do."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import NONE, TEXT, checked, instance, integer, sequence, tensor_of
from captum_causalseg.attr.prompt_treatment_effect import PromptTreatmentEffect
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.visualization.ink import ink
from captum_causalseg.visualization.marks import Legend, draw_line, handle
from captum_causalseg.visualization.pictures import (
    EFFECTS,
    background,
    decimals,
    grayscale,
    literal,
    round_up,
    scale_labels,
)

__all__ = ["plot_prompts"]

_MASK = NONE | tensor_of("boolean", "(H, W) or (H, W, D)", (2, 3))
# Of a click of label 1, of one that is not, and of what is drawn in a map.
_MARKERS = {True: "P", False: "X", None: "o"}


@checked(
    image=tensor_of("real", "(N, C, H, W) or (N, C, H, W, D)", (4, 5)),
    statistics=instance(TreatmentEffectStatistics),
    roi=_MASK,
    prediction=_MASK,
    example=integer(0),
    channel=NONE | integer(0),
    title=TEXT,
    score_name=TEXT,
    words=sequence(TEXT, length=2, expected="two strings, for effects above and below 0"),
)
def plot_prompts(
    image: Tensor,
    statistics: TreatmentEffectStatistics,
    target: TargetType = None,
    *,
    roi: Tensor | None = None,
    prediction: Tensor | None = None,
    example: int = 0,
    channel: int | None = None,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """Clicks (plus: label 1 and more, cross: all others), boxes and drawn prompts over the image, red where they support the segmentation, blue where they harm it.

    Beside each stands its effect, and the half-width of its 95 % interval where it is not exact. Masks and texts, which have no one place, are listed
    below. Of a volume, one slice is shown: that with most of the region of interest, or else that of the prompt with the largest absolute effect; prompts of other slices are pale and say in which they lie.

    Args:
        image: ``(N, C, H, W)`` or ``(N, C, H, W, D)``.
        statistics: of :meth:`captum_causalseg.PromptTreatmentEffect.attribute`.
        target: of several outputs, the one that is meant.
        roi: the region of interest, ``(H, W)`` or ``(H, W, D)``, outlined.
        prediction: the segmentation, likewise.
        example: which example of the batch.
        channel: of the image, the one that is shown; by default the first, or three as colors.
        title: above the picture.
        score_name: the name of the score, with its unit.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        ValueError: the statistics are not of prompts, or have none of this example.

    Example:
        >>> import torch
        >>> from captum_causalseg import PromptTreatmentEffect
        >>> from captum_causalseg.visualization import plot_prompts
        >>> images = torch.zeros(1, 2, 16, 16)
        >>> images[0, 1, 4, 5], images[0, 1, 11, 9] = 1.0, -1.0
        >>> method = PromptTreatmentEffect(lambda images: images[:, 1].sum((1, 2)), maps=[1])
        >>> figure = plot_prompts(images, method.attribute(images, return_statistics=True)[1], channel=0)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['+1.0', '-1.0']
    """
    table = PromptTreatmentEffect.table(statistics, target)
    mine = table[table["example"] == example]
    if example >= len(image) or mine.empty:
        raise ValueError(f"example: expected one of {sorted(set(table['example']))}, got {example}")
    flip = statistics.settings.get("indexing") == "xy"
    depth = None if image.ndim == 4 else _depth(mine, roi, flip=flip)
    picture, outline, found = (
        None if values is None else _cut(values, depth)
        for values in (grayscale(image[example].detach().cpu(), channel), _array(roi), _array(prediction))
    )
    assert picture is not None
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    axes = figure.subplots()
    background(axes, picture, title, fade=True)
    lines = {name: mask for name, mask in (("segmentation", found), ("roi", outline)) if mask is not None}
    for name, mask in lines.items():
        draw_line(axes, mask, name)
    Legend([handle(name) for name in reversed(lines)], figure.get_figwidth()).put(figure)
    largest = round_up(float(mine["effect"].abs().max()) or 1.0)
    scale = ScalarMappable(Normalize(-largest, largest), EFFECTS)
    digits = decimals(largest)
    nowhere = []
    for row in mine.sort_values("effect", key=abs).to_dict("records"):  # the strongest on top
        said = _said(row, digits)
        if row["at"] is None:
            nowhere.append(f"{row['kind']} {row['unit']}: {said}")
            continue
        _draw(axes, row, said, color=scale.to_rgba(row["effect"]), flip=flip and row["kind"] != "drawn", depth=depth)
    if nowhere:
        axes.set_xlabel("\n".join(nowhere), fontsize=9)
    bar = figure.colorbar(scale, ax=axes, shrink=0.8)
    ticks = np.linspace(-largest, largest, 5).tolist()
    bar.set_ticks(ticks, labels=scale_labels(ticks))
    bar.set_label(f"effect on the {score_name}\n{words[1]} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {words[0]}")
    return literal(figure)


def _array(mask: Tensor | None) -> np.ndarray | None:
    return None if mask is None else mask.cpu().numpy()


def _cut(values: np.ndarray, depth: int | None) -> np.ndarray:
    return values if depth is None else values[:, :, depth]


def _corners(row: dict[Any, Any], *, flip: bool) -> list[list[float]]:
    """Where a prompt lies, rows first: one corner, or of a box two."""
    at = row["at"]
    parts = [at[: len(at) // 2], at[len(at) // 2 :]] if row["kind"] == "box" else [at]
    return [part[::-1] if flip else part for part in parts]


def _depth(table: pd.DataFrame, roi: Tensor | None, *, flip: bool) -> int:
    if roi is not None:
        return int(roi.sum((0, 1)).argmax())
    placed = table[table["at"].notna()]
    if placed.empty:
        return 0
    row = placed.loc[placed["effect"].abs().idxmax()].to_dict()
    corners = _corners(row, flip=flip and row["kind"] != "drawn")
    return round(sum(corner[2] for corner in corners) / len(corners))


def _said(row: dict[Any, Any], digits: int) -> str:
    half = (row["upper"] - row["lower"]) / 2
    return f"{row['effect']:+.{digits}f}" + (f" ± {half:.{digits}f}" if half > 0 else "")


def _draw(axes: Axes, row: dict[Any, Any], said: str, *, color: Any, flip: bool, depth: int | None) -> None:
    corners = _corners(row, flip=flip)
    far = depth is not None and not math.floor(corners[0][2]) <= depth <= math.ceil(corners[-1][2])
    if far:
        said += f" (slice {round(corners[0][2])})"
    alpha = 0.35 if far else 1.0
    (top, left), (bottom, right) = corners[0][:2], corners[-1][:2]
    if row["kind"] == "box":
        for edge, width in (("black", 4.5), (color, 2.5)):
            shape = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=width, alpha=alpha)
            axes.add_patch(shape)
    else:
        label = row["label"]
        axes.plot(
            left,
            top,
            _MARKERS[None if label is None else label > 0],
            color=color,
            markersize=13,
            markeredgecolor="black",
            markeredgewidth=1.2,
            alpha=alpha,
        )
    axes.annotate(
        said,
        (left, top),
        xytext=(9, 7),
        textcoords="offset points",
        fontsize=9,
        alpha=max(alpha, 0.6),
        bbox={"boxstyle": "round,pad=0.2", "facecolor": ink(1), "edgecolor": "none", "alpha": 0.8},
    )
