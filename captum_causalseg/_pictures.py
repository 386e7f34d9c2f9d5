"""Parts that pictures are made of: planes of volumes, backgrounds, overlays, scales."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

__all__ = [
    "EFFECTS",
    "ERRORS",
    "OUTLINE",
    "ROLES",
    "background",
    "decimals",
    "extent",
    "first",
    "grayscale",
    "overlay",
    "plane",
    "robust_maximum",
    "round_up",
    "short",
]

# ColorBrewer's red-blue and purples are safe for the common kinds of color blindness; the green of the outline is told
# apart by its lightness and its dark edge.
EFFECTS, ERRORS, OUTLINE = "RdBu_r", "Purples", "#2ee62e"
ROLES = {"supporting": "#b2182b", "harming": "#2166ac", "null": "0.8"}


def overlay(
    figure: Figure,
    axes: Axes,
    picture: np.ndarray,
    outline: np.ndarray | None,
    excluded: np.ndarray,
    values: np.ndarray,
    norm: Normalize,
    colors: str,
    *,
    title: str,
    label: str,
) -> None:
    background(axes, picture, title, outline, fade=True)
    # Small values let the image through.
    size = np.clip(np.abs(np.nan_to_num(values)) / norm.vmax, 0, 1)
    drawn = axes.imshow(
        np.nan_to_num(values, posinf=np.nan), cmap=colors, norm=norm, alpha=0.95 * np.sqrt(size), interpolation="nearest"
    )
    if excluded.any():
        hatched = axes.contourf(excluded.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
        hatched.set_edgecolor("0.35")
        hatched.set_linewidth(0)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, extend="both" if isinstance(norm, TwoSlopeNorm) else "max")
    bar.set_label(label)
    # The scale is drawn opaque, the map by size.
    bar.solids.set_alpha(1)  # type: ignore[union-attr]


def background(axes: Axes, picture: np.ndarray, title: str, outline: np.ndarray | None, *, fade: bool) -> None:
    if fade:
        # Light gray, so that colors of both signs stand out on dark and bright tissue alike.
        picture = 0.72 + 0.28 * (picture.mean(-1) if picture.ndim == 3 else picture)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    if outline is not None and outline.any():
        for color, linewidth in (("black", 3.0), (OUTLINE, 1.5)):
            axes.contour(np.pad(outline, 1), levels=[0.5], colors=[color], linewidths=linewidth, extent=extent(outline.shape))


def extent(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Pixel centers of the padded outline, so that RoIs at the image's edge are closed curves too."""
    return -1.0, float(shape[1]), -1.0, float(shape[0])


def plane(values: Tensor, roi: Tensor | None) -> Tensor:
    """``(C, H, W)`` from ``(C, H, W)`` or the slice of ``(C, H, W, D)`` that is shown."""
    if values.ndim == 3:
        return values
    depth = values.shape[-1] // 2 if roi is None else int(roi.sum((0, 1)).argmax())
    return values[..., depth]


def grayscale(plane: Tensor) -> np.ndarray:
    values = plane.movedim(0, -1).numpy() if plane.shape[0] == 3 else plane[0].numpy()
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return scaled


def robust_maximum(values: np.ndarray) -> float:
    """The 99.5th percentile of what is finite and not 0, so that one extreme unit does not pale all others."""
    finite = values[np.isfinite(values) & (values > 0)]
    return float(np.quantile(finite, 0.995)) if len(finite) else 1.0


def round_up(value: float) -> float:
    """Up to two significant digits."""
    magnitude = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value / magnitude - 1e-9) * magnitude)


def first(maps: Any) -> Tensor:
    """The map of the first input."""
    first: Tensor = maps[0] if isinstance(maps, tuple) else maps
    return first


def short(name: str, longest: int = 44) -> str:
    """The end of a long name, which tells modules apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def decimals(largest: float) -> int:
    """Digits behind the point that show two significant ones of ``largest``."""
    return int(np.clip(1 - np.floor(np.log10(largest)), 0, 6))
