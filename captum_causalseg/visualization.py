"""Pictures of treatment effects; every function returns the matplotlib figure and shows nothing by itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg.interventions.support import Support
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["plot_components", "plot_effects", "plot_support"]

# ColorBrewer's red-blue and purples are safe for the common kinds of color blindness; the green of the outline is told
# apart by its lightness and its dark edge.
_EFFECTS, _ERRORS, _OUTLINE = "RdBu_r", "Purples", "#2ee62e"


def plot_support(
    image: Tensor, support: Support, roi: Tensor | None = None, *, example: int = 0, roi_index: int = 0, title: str = ""
) -> Figure:
    """The image where it can reach the region of interest through the model; what cannot is darkened and hatched.

    Args:
        image: the first of the explained inputs ``(N, C, *spatial)`` with 2 or 3 spatial axes; a volume is shown in the slice of its
            last axis that holds most of the RoI.
        support: what :func:`captum_causalseg.causal_support` returned.
        roi: boolean mask ``(*spatial)``, outlined in green.
        example: which example of the batch.
        roi_index: which of the RoIs.
        title: above the picture.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.
    """
    if image.ndim not in (4, 5):
        raise ValueError(f"image: expected (N, C, *spatial) with 2 or 3 spatial axes, got {tuple(image.shape)}")
    mask = support.masks[0][example, roi_index]
    if mask.shape != image.shape[2:]:
        raise ValueError(f"support: its first mask has shape {tuple(mask.shape)}, the image {tuple(image.shape[2:])}")
    picture = _picture(_plane(image[example].detach().cpu().float(), roi))
    outline = None if roi is None else _plane(roi[None].cpu(), roi)[0].numpy()
    reaches = _plane(mask[None].float(), roi)[0].numpy() > 0
    height, width = picture.shape[:2]
    figure = Figure(figsize=(5.4, 0.95 + 5.0 * height / width), layout="constrained")
    axes: Axes = figure.subplots()
    share = 100 * float(mask.float().mean())
    said = f"{share:.1f} % of the pixels can reach the region of interest"
    if support.doubt is not None:
        said = "what can reach the region of interest is not known"
    _background(axes, picture, title or said, outline, fade=False)
    if title:
        figure.supxlabel(said, fontsize=9)
    shade = np.zeros((*reaches.shape, 4))
    shade[~reaches] = (0.05, 0.08, 0.2, 0.62)
    axes.imshow(shade, interpolation="nearest")
    if not reaches.all():
        axes.contourf(~reaches, levels=[0.5, 1.5], colors="none", hatches=["//"])
        axes.contour(reaches, levels=[0.5], colors="white", linewidths=1.2, linestyles="--")
    return figure


def plot_effects(
    image: Tensor,
    statistics: TreatmentEffectStatistics,
    roi: Tensor | None = None,
    target: TargetType = None,
    *,
    example: int = 0,
    title: str = "",
    score_name: str = "score",
) -> Figure:
    """Three panels: the image with the RoI, every unit's effect on its score, and the standard error of that effect.

    Effects are drawn on a diverging scale centered on 0 (red supports, blue harms), the more opaque the larger. Units that
    were not intervened on are hatched; those that cannot reach the RoI lie beyond a dashed line. A volume is shown in the slice of its last axis that holds most of the RoI (the
    middle one without an RoI).

    Args:
        image: the explained inputs ``(N, C, *spatial)`` with 2 or 3 spatial axes; 3 channels are drawn as RGB, else the first.
        statistics: what ``attribute(..., return_statistics=True)`` returned for them.
        roi: boolean mask ``(*spatial)``, outlined in green.
        target: which output, as in ``attribute``.
        example: which example of the batch.
        title: above the panels.
        score_name: what the effects are effects on, with its unit.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.
    """
    if image.ndim not in (4, 5):
        raise ValueError(f"image: expected (N, C, *spatial) with 2 or 3 spatial axes, got {tuple(image.shape)}")
    maps = {name: statistics.to_map(name, target) for name in ("effect", "standard_error", "status")}
    planes = {name: _plane(_first(values)[example], roi)[0] for name, values in maps.items()}
    picture = _picture(_plane(image[example].detach().cpu().float(), roi))
    outline = None if roi is None else _plane(roi[None].cpu(), roi)[0].numpy()
    excluded = planes["status"].numpy() == Status.EXCLUDED

    height, width = picture.shape[:2]
    figure = Figure(figsize=(13.5, 0.75 + 3.65 * height / width), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 3)
    if title:
        figure.suptitle(title)
    outside = planes["status"].numpy() == Status.OUTSIDE_SUPPORT
    legend = ["hatched: touches the region of interest, not intervened on"] if excluded.any() else []
    legend += ["beyond the dashed line: cannot reach the region of interest"] if outside.any() else []
    if legend:
        figure.supxlabel("      ".join(legend), fontsize=9)
    effect, error = planes["effect"].numpy(), planes["standard_error"].numpy()
    _background(panels[0], picture, "Image and region of interest", outline, fade=False)
    largest = _round_up(_robust_maximum(np.abs(effect)))
    _overlay(
        *(figure, panels[1], picture, outline, excluded, effect, TwoSlopeNorm(0, -largest, largest), _EFFECTS),
        title="Effect of each unit (red supports, blue harms)",
        label=f"effect on the {score_name}",
    )
    _overlay(
        *(figure, panels[2], picture, outline, excluded, error, Normalize(0, _round_up(_robust_maximum(error))), _ERRORS),
        title="Standard error of the effect",
        label=f"standard error, {score_name}",
    )
    if outside.any() and not outside.all():
        for panel in panels[1:]:
            panel.contour(outside.astype(float), levels=[0.5], colors=["0.25"], linewidths=1.0, linestyles="--")
    return figure


def plot_components(
    table: pd.DataFrame, *, example: int = 0, max_bars: int = 40, title: str = "", score_name: str = "score"
) -> Figure:
    """Horizontal bars of the components' effects with 95 % intervals, in the order of the forward pass, by part of the network.

    Modules that follow each other in a chain have the same effect, because replacing either replaces all that passes: they share
    a bar, named after the first of them.

    Args:
        table: what :func:`captum_causalseg.component_effects` returned.
        example: which example of the batch.
        max_bars: only so many bars of largest absolute effect.
        title: above the bars.
        score_name: what the effects are effects on, with its unit.
    """
    shown = table[(table["example"] == example) & table["effect"].notna()].sort_values("order", kind="stable")
    if shown.empty:
        raise ValueError(f"example: the table has no effects of example {example}")
    names = shown["module"] + (" / " + shown["channel"].astype(str) if "channel" in shown else "")
    shown = shown.assign(name=names).assign(chain=shown.groupby(["part", "effect", "standard_error"], sort=False).ngroup())
    bars = shown.groupby("chain", sort=False).agg(
        **{column: (column, "first") for column in ("name", "part", "order", "effect", "lower", "upper")},
        count=("name", "size"),
    )
    bars = bars.loc[bars["effect"].abs().nlargest(max_bars).index].sort_values("order")
    labels = [_short(name) + (f" (+{n - 1})" if n > 1 else "") for name, n in zip(bars["name"], bars["count"])]

    figure = Figure(figsize=(9, 1.6 + 0.26 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(bars))
    effect = bars["effect"].to_numpy()
    whiskers = np.abs(np.stack([effect - bars["lower"], bars["upper"] - effect]))
    axes.barh(places, effect, color=["#b2182b" if e >= 0 else "#2166ac" for e in effect], alpha=0.85)
    axes.errorbar(
        effect, places, xerr=np.where(np.isfinite(whiskers), whiskers, 0), fmt="none", ecolor="0.15", elinewidth=1, capsize=2
    )
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(f"effect on the {score_name}, with 95 % interval\nred supports, blue harms")
    parts = bars["part"].tolist()
    for place in [i for i in range(1, len(parts)) if parts[i] != parts[i - 1]]:
        axes.axhline(place - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    for place in [i for i in range(len(parts)) if i == 0 or parts[i] != parts[i - 1]]:
        axes.text(1.01, place, parts[place], transform=axes.get_yaxis_transform(), va="center", fontsize=9, style="italic")
    axes.set_title(title)
    return figure


def _short(name: str, longest: int = 44) -> str:
    """The end of a long name, which tells modules apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _overlay(
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
    _background(axes, picture, title, outline, fade=True)
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


def _background(axes: Axes, picture: np.ndarray, title: str, outline: np.ndarray | None, *, fade: bool) -> None:
    if fade:
        # Light gray, so that colors of both signs stand out on dark and bright tissue alike.
        picture = 0.72 + 0.28 * (picture.mean(-1) if picture.ndim == 3 else picture)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    if outline is not None and outline.any():
        for color, linewidth in (("black", 3.0), (_OUTLINE, 1.5)):
            axes.contour(np.pad(outline, 1), levels=[0.5], colors=[color], linewidths=linewidth, extent=_extent(outline.shape))


def _extent(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Pixel centers of the padded outline, so that RoIs at the image's edge are closed curves too."""
    return -1.0, float(shape[1]), -1.0, float(shape[0])


def _plane(values: Tensor, roi: Tensor | None) -> Tensor:
    """``(C, H, W)`` from ``(C, H, W)`` or the slice of ``(C, H, W, D)`` that is shown."""
    if values.ndim == 3:
        return values
    depth = values.shape[-1] // 2 if roi is None else int(roi.sum((0, 1)).argmax())
    return values[..., depth]


def _picture(plane: Tensor) -> np.ndarray:
    values = plane.movedim(0, -1).numpy() if plane.shape[0] == 3 else plane[0].numpy()
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return scaled


def _robust_maximum(values: np.ndarray) -> float:
    """The 99.5th percentile of what is finite and not 0, so that one extreme unit does not pale all others."""
    finite = values[np.isfinite(values) & (values > 0)]
    return float(np.quantile(finite, 0.995)) if len(finite) else 1.0


def _round_up(value: float) -> float:
    """Up to two significant digits."""
    magnitude = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value / magnitude - 1e-9) * magnitude)


def _first(maps: Any) -> Tensor:
    """The map of the first input."""
    first: Tensor = maps[0] if isinstance(maps, tuple) else maps
    return first
