"""Pictures of interactions: arcs between the units of a pair, over the image, and to components of the network, beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from captum_causalseg._checks import NONE, TEXT, checked, instance, integer, tensor_of
from captum_causalseg.target.masks import plain_tensor
from captum_causalseg.visualization.ink import ink, role_color
from captum_causalseg.visualization.marks import Legend
from captum_causalseg.visualization.pictures import literal
from captum_causalseg.visualization.planes import About, Plane
from captum_causalseg.visualization.scene import scene_and_planes

__all__ = ["plot_interactions"]

_WORDS = {
    "redundant": "stand in for each other",
    "synergistic": "need each other",
    "unclear": "unclear",
    "none": "no interaction found",
}
_COLUMNS = {"example", "interaction", "kind", "first_0", "first_1", "second_0", "second_1"}


@checked(
    table=instance(pd.DataFrame, expected="a table of interactions"),
    image=tensor_of("real", "(N, C, H, W) or (N, C, H, W, D)", (4, 5)),
    roi=NONE | tensor_of("boolean", "(H, W) or (H, W, D)", (2, 3)),
    example=integer(0),
    max_arcs=integer(1),
    title=TEXT,
)
def plot_interactions(
    table: pd.DataFrame,
    image: Tensor,
    *,
    roi: Tensor | None = None,
    example: int = 0,
    max_arcs: int = 20,
    title: str = "",
    segmentation: Tensor | np.ndarray | None = None,
    reference: Tensor | np.ndarray | None = None,
    affine: Tensor | np.ndarray | None = None,
) -> Figure:
    """Arcs between units that stand in for each other (red) and that need each other (blue); the stronger the interaction, the thicker.

    Components of the network are boxes on the right of the image.

    Of a volume, one slice is shown, through the middle of the region of interest (or of the volume); arcs of all depths are drawn on it.

    Args:
        table: what :func:`captum_causalseg.interaction_effects` returned, of units that are parts of the image, and of components.
        image: ``(N, C, H, W)`` or ``(N, C, H, W, D)``.
        roi: the region of interest, ``(H, W)`` or ``(H, W, D)``, outlined.
        example: which example of the batch.
        max_arcs: the most arcs to draw: those of the largest absolute interactions.
        title: above the picture.
        segmentation: what the model predicted of the class: a boolean mask ``(*spatial)``, or ``(N, *spatial)``.
        reference: the segmentation that it is compared with.
        affine: from voxels to millimeters, as in :func:`plot_effects`; that of a ``MetaTensor`` by default.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        ValueError: the table has no interactions of this example.

    Example:
        >>> import torch
        >>> from captum_causalseg import interaction_effects
        >>> from captum_causalseg.visualization import plot_interactions
        >>> class Either(torch.nn.Module):
        ...     def forward(self, image):
        ...         return image.flatten(1)[:, [0, -1]].amax(1)
        >>> image = torch.ones(1, 1, 8, 8)
        >>> table = interaction_effects(Either(), image, 0.0, pairs=[(0, 3), (1, 2)], block_size=4, n_draws=2)
        >>> len(plot_interactions(table, image).axes[0].patches)
        2
    """
    if missing := sorted(_COLUMNS - set(table.columns)):
        raise ValueError(f"table: expected one of interactions of parts of the image, got one without {', '.join(missing)}")
    mine = table[table["example"] == example]
    if example >= len(image) or mine.empty:
        raise ValueError(f"example: expected one of {sorted(set(table['example']))}, got {example}")
    shown = mine.iloc[np.argsort(-mine["interaction"].abs().to_numpy(), kind="stable")[:max_arcs]]
    outline = None if roi is None else plain_tensor(roi).cpu().numpy()
    about = About(segmentation, reference, affine=affine)
    scene, planes = scene_and_planes(image, outline, about, example=example)
    view = replace(planes[0], cross=None)
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots()
    scene.begin(axes, view, title, faded=True)
    scene.finish(axes, view)
    scene.frame(axes, view)
    kinds = _kinds()
    strongest = float(shown["interaction"].abs().max()) or 1.0
    boxes = _boxes(axes, shown, view.cut(scene.picture).shape[:2])
    for row in shown[::-1].to_dict("records"):  # the strongest on top
        ends = [boxes.get(row[name]) or _end(view, row, name) for name in ("first", "second")]
        width = 0.8 + 4.2 * abs(row["interaction"]) / strongest
        arc = _arc(ends, kinds[row["kind"]], width=width)
        axes.add_patch(arc)
        arc.set_clip_on(False)
        places = [end for name, end in zip(("first", "second"), ends) if row[name] not in boxes]
        if places:
            axes.plot(
                *np.array(places).T, "o", color=kinds[row["kind"]], markersize=4, markeredgecolor="white", markeredgewidth=0.6
            )
    drawn = [kind for kind in kinds if (shown["kind"] == kind).any()]
    handles: list[Artist] = [Line2D([], [], color=kinds[kind], linewidth=3, label=_WORDS[kind]) for kind in drawn]
    Legend([*handles, *scene.handles(scene.marks(told=False))], figure.get_figwidth()).put(figure)
    return literal(figure)


def _kinds() -> dict[str, str]:
    """The colors of arcs, the strongest statement first."""
    return {
        "redundant": role_color("supporting"),
        "synergistic": role_color("harming"),
        "unclear": ink(0.35),
        "none": ink(0.75),
    }


def _end(plane: Plane, row: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Where an arc to a part of the image ends: column and row."""
    down, across = plane.place([row[f"{name}_{axis}"] for axis in range(len(plane.shape))])
    return across, down


def _boxes(axes: Axes, shown: pd.DataFrame, size: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Draw a box for each component, and say where arcs to it end (column, row)."""
    names = list(dict.fromkeys(one for one in [*shown["first"], *shown["second"]] if isinstance(one, str)))
    height, width = size
    places = {}
    for number, name in enumerate(names):
        place = 1.08 * width, (number + 0.5) * height / len(names)
        frame = {"boxstyle": "round,pad=0.35", "facecolor": ink(1), "edgecolor": ink(0.35)}
        axes.text(*place, name, ha="left", va="center", fontsize=8, bbox=frame, clip_on=False)
        places[name] = place
    return places


def _arc(ends: Sequence[tuple[float, float]], color: str, *, width: float) -> FancyArrowPatch:
    return FancyArrowPatch(
        *ends, arrowstyle="-", connectionstyle="arc3,rad=0.25", color=color, linewidth=width, alpha=0.85, shrinkA=0, shrinkB=0
    )
