"""Pictures of treatment effects; every function returns the matplotlib figure and shows nothing by itself."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._pictures import (
    EFFECTS,
    ERRORS,
    background,
    decimals,
    first,
    grayscale,
    overlay,
    plane,
    robust_maximum,
    round_up,
    short,
)
from captum_causalseg._profile_panels import histogram, mass_by_distance, pie, ratio
from captum_causalseg.evaluation.comparison import CONTROL, Comparison
from captum_causalseg.evaluation.profile import InfluenceMatrix, PerceptionProfile
from captum_causalseg.interventions.support import Support
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["plot_comparison", "plot_components", "plot_effects", "plot_influence", "plot_profile", "plot_support"]


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
    picture = grayscale(plane(image[example].detach().cpu().float(), roi))
    outline = None if roi is None else plane(roi[None].cpu(), roi)[0].numpy()
    reaches = plane(mask[None].float(), roi)[0].numpy() > 0
    height, width = picture.shape[:2]
    figure = Figure(figsize=(5.4, 0.95 + 5.0 * height / width), layout="constrained")
    axes: Axes = figure.subplots()
    share = 100 * float(mask.float().mean())
    said = f"{share:.1f} % of the pixels can reach the region of interest"
    if support.doubt is not None:
        said = "what can reach the region of interest is not known"
    background(axes, picture, title or said, outline, fade=False)
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
    planes = {name: plane(first(values)[example], roi)[0] for name, values in maps.items()}
    picture = grayscale(plane(image[example].detach().cpu().float(), roi))
    outline = None if roi is None else plane(roi[None].cpu(), roi)[0].numpy()
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
    background(panels[0], picture, "Image and region of interest", outline, fade=False)
    largest = round_up(robust_maximum(np.abs(effect)))
    overlay(
        *(figure, panels[1], picture, outline, excluded, effect, TwoSlopeNorm(0, -largest, largest), EFFECTS),
        title="Effect of each unit (red supports, blue harms)",
        label=f"effect on the {score_name}",
    )
    overlay(
        *(figure, panels[2], picture, outline, excluded, error, Normalize(0, round_up(robust_maximum(error))), ERRORS),
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
    labels = [short(name) + (f" (+{n - 1})" if n > 1 else "") for name, n in zip(bars["name"], bars["count"])]

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


def plot_profile(profile: PerceptionProfile, title: str = "", score_name: str = "score") -> Figure:
    """The paper's pie, ratio bar and histogram, and how the mass of the effects falls with the distance from the RoI.

    Pie: the shares of supporting (red), harming (blue) and null units (gray). Bar: how the mass ``sum |effect|`` divides into
    both signs. Histogram: the effects that are not 0, gray where they are not significant (by the profile's ``alpha``), with
    counts on a logarithmic scale. Right: the mass per bin of distance, stacked by sign; the dashed steps are the mass that noise
    alone would have (left out where it is not known); the line is the share of the mass up to that distance.

    Args:
        profile: of :func:`captum_causalseg.evaluation.profile.perception_profile` or ``profile_of_map``.
        title: above the panels.
        score_name: what the effects are effects on, with its unit.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.
    """
    if not isinstance(profile, PerceptionProfile):
        raise TypeError(f"profile: expected a PerceptionProfile, got {type(profile).__name__}")
    figure = Figure(figsize=(14.5, 4.6), layout="constrained")
    panels = figure.subplot_mosaic(
        [["pie", "histogram", "distance"], ["ratio", "histogram", "distance"]],
        height_ratios=[4, 1],
        width_ratios=[1, 1.25, 1.9],
    )
    if title:
        figure.suptitle(title)
    pie(panels["pie"], profile)
    ratio(panels["ratio"], profile)
    histogram(panels["histogram"], profile, score_name)
    mass_by_distance(panels["distance"], profile, score_name)
    return figure


def plot_influence(
    matrix: InfluenceMatrix,
    title: str = "",
    score_name: str = "score",
    roi_names: Sequence[str] | None = None,
    region_names: Sequence[str] | None = None,
) -> Figure:
    """What every region (rows) does to the score of every RoI (columns): red supports, blue harms.

    Up to 120 cells carry their number, with a star where it is significant; in larger matrices a dot marks those. Where there
    was no intervention the cell is hatched.

    Args:
        matrix: of :func:`captum_causalseg.evaluation.profile.influence_matrix`.
        title: above the picture.
        score_name: what the effects are effects on, with its unit.
        roi_names: one per column; their numbers by default.
        region_names: one per row; their ids by default.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.

    Raises:
        ValueError: as many names as there are rows or columns were expected.
    """
    if not isinstance(matrix, InfluenceMatrix):
        raise TypeError(f"matrix: expected an InfluenceMatrix, got {type(matrix).__name__}")
    effect, significant = matrix.effect.to_numpy(), matrix.significant.to_numpy()
    rows, columns = effect.shape
    labels = []
    for argument, names, index in (
        ("region_names", region_names, matrix.effect.index),
        ("roi_names", roi_names, matrix.effect.columns),
    ):
        if names is not None and len(names) != len(index):
            raise ValueError(f"{argument}: expected {len(index)} names, got {len(names)}")
        labels.append([str(name) for name in (index if names is None else names)])
    numbered = effect.size <= 120
    named = numbered or rows <= 50
    width, height = (0.85, 0.42) if numbered else (0.55, min(0.2, 10 / rows))
    longest = max(map(len, labels[0]))
    size = (max(4.6, 2.4 + 0.075 * longest + width * columns), max(3.2, 1.5 + height * rows))
    figure = Figure(figsize=size, layout="constrained")
    axes: Axes = figure.subplots()
    largest = round_up(robust_maximum(np.abs(effect)))
    drawn = axes.imshow(effect, cmap=EFFECTS, norm=TwoSlopeNorm(0, -largest, largest), aspect="auto", interpolation="nearest")
    # NaN cells are not painted: the hatched background shows.
    axes.patch.set(facecolor="0.96", edgecolor="0.6", hatch="////", linewidth=0)
    for i, j in np.argwhere(np.isfinite(effect)):
        # Dark cells of either sign.
        color = "white" if abs(effect[i, j]) > 0.6 * largest else "black"
        if numbered:
            # Plus 0, against "-0.00".
            rounded = round(effect[i, j], decimals(largest)) + 0.0
            text = ("0" if effect[i, j] == 0 else f"{rounded:.{decimals(largest)}f}") + ("*" if significant[i, j] else "")
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
        elif significant[i, j]:
            axes.plot(j, i, ".", color=color, markersize=3 if named else 1)
    axes.set_yticks(range(rows) if named else [], labels[0] if named else [], fontsize=8)
    turned = max(map(len, labels[1])) > 8
    axes.set_xticks(range(columns), labels[1], fontsize=8, rotation=40 if turned else 0, ha="right" if turned else "center")
    axes.set_ylabel(str(matrix.effect.index.name) + (f" ({rows} of them)" if not named else ""))
    axes.set_xlabel("region of interest")
    axes.set_title(title, fontsize=11)
    legend = [f"{'*' if numbered else 'dot'}: significant"] if significant.any() else []
    legend += ["hatched: touches it, not intervened on"] if np.isnan(effect).any() else []
    figure.supxlabel("      ".join(legend), fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, extend="both")
    bar.set_label(f"effect on the {score_name}\nred supports, blue harms")
    return figure


def plot_comparison(comparison: Comparison, *, example: int = 0, columns: int = 4, title: str = "") -> Figure:
    """The maps of several methods side by side, red supports and blue harms, each relative to its own largest value.

    Methods have units of their own (Dice, logits, none at all): what can be compared is where and with which sign, so every map is
    divided by the 99.5th percentile of its magnitudes outside the region of interest (some methods replace that region itself,
    others leave it alone). Below each stands what it cost. The random control is left out.

    Args:
        comparison: what :func:`captum_causalseg.compare` returned; a volume is shown in the slice of its last axis that holds most
            of the RoI.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.
    """
    roi = None if comparison.roi is None else comparison.roi[example]
    image = comparison.image[example].float()
    picture = grayscale(plane(image, roi))
    outline = None if roi is None else plane(roi[None], roi)[0].numpy()
    costs = comparison.table.groupby("method")[["forwards", "seconds"]].first()
    names = [name for name in comparison.attributions if name != CONTROL]
    columns = min(columns, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    height, width = picture.shape[:2]
    edge = 2.6
    figure = Figure(figsize=(1.2 + edge * columns, 0.5 + rows * (0.5 + edge * height / width)), layout="constrained")
    panels: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    if title:
        figure.suptitle(title)
    background(panels[0, 0], picture, "Image and region of interest", outline, fade=False)
    drawn = None
    for axes, name in zip(panels.flat[1:], names):
        found = first(comparison.attributions[name])[example].sum(0, keepdim=True)
        values = plane(found, roi)[0].double().numpy()
        elsewhere = np.abs(values) if outline is None or outline.all() else np.abs(values[~outline])
        values = values / robust_maximum(elsewhere)
        background(axes, picture, name, outline, fade=True)
        size = np.clip(np.abs(values), 0, 1)
        norm = Normalize(-1, 1)
        drawn = axes.imshow(values, cmap=EFFECTS, norm=norm, alpha=0.95 * np.sqrt(size), interpolation="nearest")
        forwards, seconds = costs.loc[name]
        counted = "" if np.isnan(forwards) else f"{forwards:.0f} forwards, "
        axes.set_xlabel(f"{counted}{seconds:.1f} s", fontsize=9)
    for axes in panels.flat[1 + len(names) :]:
        axes.set_visible(False)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, shrink=0.6, extend="both")
        bar.set_label("attribution / the method's largest outside the RoI\n(red supports, blue harms)")
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
    return figure
