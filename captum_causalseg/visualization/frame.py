"""What frames a picture: its part of the image, letters for directions, a bar of so many millimeters, and where on the whole it lies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from captum_causalseg.visualization.planes import Plane

__all__ = ["letter", "letters", "locator", "ruler", "show_part"]

_INSET = 0.3
# Matplotlib's names of the corners: at the top, on the left.
_CORNERS = {
    "lower left": (False, True),
    "lower right": (False, False),
    "upper left": (True, True),
    "upper right": (True, False),
}


def show_part(axes: Axes, plane: Plane) -> None:
    """The part of a plane that the picture shows."""
    (top, bottom), (left, right) = plane.limits
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def letter(
    axes: Axes, place: Sequence[float], text: str, *, size: float = 9, weight: str = "bold", relative: bool = False
) -> None:
    """White letters with a dark edge, to be read on anything; ``relative`` to the panel, or at a column and row."""
    across, down = place
    axes.text(
        across,
        down,
        text,
        transform=axes.transAxes if relative else axes.transData,
        ha="center",
        va="center",
        fontsize=size,
        fontweight=weight,
        color="white",
        path_effects=[withStroke(linewidth=2.2, foreground="black")],
        bbox={"boxstyle": "round,pad=0.12", "facecolor": (0, 0, 0, 0.45), "edgecolor": "none"},
        clip_on=True,
    )


def letters(axes: Axes, plane: Plane) -> None:
    """R, L, A, P, S, I at the picture's edges, where it is known which way the patient lies."""
    if not plane.geometry.toward or plane.axis is None:
        return
    row, column = plane.axes
    geometry = plane.geometry
    # The same distance from all edges.
    height, width = plane.size
    across, down = (0.05 * max(height, width) / edge for edge in (width, height))
    if down < 0.3:
        letter(axes, (0.5, 1 - down), geometry.beginning(row), relative=True)
        letter(axes, (0.5, down), geometry.end(row), relative=True)
    if across < 0.3:
        letter(axes, (across, 0.5), geometry.beginning(column), relative=True)
        letter(axes, (1 - across, 0.5), geometry.end(column), relative=True)


def free_corners(plane: Plane, masks: Sequence[np.ndarray]) -> list[str]:
    """Corners of the picture, those first where least of these masks ``(H, W)`` is covered."""
    (top, bottom), (left, right) = plane.limits
    part = (slice(round(top + 0.5), round(bottom + 0.5)), slice(round(left + 0.5), round(right + 0.5)))
    shown = [mask[part] for mask in masks]

    def covered(corner: str) -> int:
        at_top, at_left = _CORNERS[corner]
        found = 0
        for mask in shown:
            rows, columns = (int(np.ceil(_INSET * 1.1 * length)) for length in mask.shape)
            high = mask[:rows] if at_top else mask[-rows:]
            found += int((high[:, :columns] if at_left else high[:, -columns:]).sum())
        return found

    return sorted(_CORNERS, key=covered)


def ruler(axes: Axes, plane: Plane, corner: str) -> None:
    """A bar of a round number of millimeters."""
    if not plane.geometry.in_mm:
        return
    height, width = plane.size
    if height < 0.25 * width:
        return
    goal = 0.3 * width
    power = 10.0 ** np.floor(np.log10(goal))
    length = power * max(step for step in (1, 2, 5) if step * power <= goal)
    bar = AnchoredSizeBar(
        axes.transData,
        length / plane.geometry.spacing[plane.axes[1]],
        f"{length:g} mm",
        corner,
        pad=0.3,
        sep=4,
        color="white",
        frameon=False,
        size_vertical=0,
        fontproperties={"size": 8},
    )
    edge = [withStroke(linewidth=2.6, foreground="black")]
    bar.size_bar.get_children()[0].set(linewidth=1.6, path_effects=edge)
    bar.txt_label.get_children()[0].set_path_effects(edge)
    axes.add_artist(bar)


def locator(axes: Axes, plane: Plane, picture: np.ndarray, roi: np.ndarray | None, corner: str) -> None:
    """The whole plane, small in a corner, and on it the part that the picture shows, and the region of interest.

    Args:
        axes: of the picture.
        plane: of which a part is shown.
        picture: the whole plane, ``(H, W)`` or ``(H, W, 3)``.
        roi: of the plane, ``(H, W)``.
        corner: which.
    """
    if not plane.is_part:
        return
    height, width = (picture.shape[i] * plane.geometry.spacing[axis] for i, axis in enumerate(plane.axes))
    high, wide = plane.size
    # In parts of the panel, the proportions those of the whole plane.
    ratio = (width / height) / (wide / high)
    across, down = (_INSET, _INSET / ratio) if ratio > 1 else (_INSET * ratio, _INSET)
    at_top, at_left = _CORNERS[corner]
    gap = 0.02
    inset = axes.inset_axes((gap if at_left else 1 - gap - across, 1 - gap - down if at_top else gap, across, down))
    inset.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    inset.set_xticks([])
    inset.set_yticks([])
    inset.spines[:].set(color="white", linewidth=1.2)
    (top, bottom), (left, right) = plane.limits
    for color, width_of_line in (("black", 2.4), ("white", 1.2)):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=width_of_line)
        inset.add_patch(frame)
    if roi is not None and roi.any():
        rows, columns = np.flatnonzero(roi.any(1)), np.flatnonzero(roi.any(0))
        corner_of_roi = columns[0] - 0.5, rows[0] - 0.5
        size = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
        inset.add_patch(Rectangle(corner_of_roi, *size, fill=True, facecolor="#2ee62e", edgecolor="black", linewidth=0.5))
