"""Bars of the effects of a network's parts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.visualization.ink import ink, role_color
from captum_causalseg.visualization.pictures import PICTURE, literal, short
from captum_causalseg.writing.names import printable

__all__ = ["name_of", "plot_components"]


def name_of(row: Mapping[Any, Any]) -> str:
    """Of a row of the table: the module, and which channel, token or head of it."""
    if "channel" in row:
        return f"{row['module']} / {row['channel']}"
    part = next((name for name in ("token", "head") if name in row), None)
    return str(row["module"]) if part is None else f"{row['module']} / {part} {row[part]}"


@checked(PICTURE, table=instance(pd.DataFrame), max_bars=integer(1))
def plot_components(
    table: pd.DataFrame,
    *,
    example: int = 0,
    max_bars: int = 40,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """Horizontal bars of the components' effects with 95 % intervals, in the order of the forward pass, by part of the network.

    Modules that follow each other in a chain have the same effect, because replacing either replaces all that passes: they share
    a bar, named after the first of them.

    Args:
        table: what :func:`captum_causalseg.component_effects` returned.
        example: which example of the batch.
        max_bars: the most bars to draw: those of largest absolute effect.
        title: above the bars.
        score_name: the name of the score, with its unit.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        ValueError: the table has no effects of this example; ``words`` are not two strings.

    Example:
        >>> import pandas as pd
        >>> from captum_causalseg.visualization import plot_components
        >>> table = pd.DataFrame(
        ...     {
        ...         "example": 0,
        ...         "module": ["encoder", "decoder"],
        ...         "part": ["encoder", "decoder"],
        ...         "order": [0, 1],
        ...         "effect": [0.3, -0.1],
        ...         "standard_error": [0.05, 0.02],
        ...         "lower": [0.2, -0.14],
        ...         "upper": [0.4, -0.06],
        ...     }
        ... )
        >>> figure = plot_components(table, score_name="Dice")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['encoder', 'decoder']
    """
    above, below = words
    shown = table[(table["example"] == example) & table["effect"].notna()].sort_values("order", kind="stable")
    if shown.empty:
        raise ValueError(f"example: the table has no effects of example {example}")
    names = [name_of(row) for row in shown.to_dict("records")]
    shown = shown.assign(name=names).assign(chain=shown.groupby(["part", "effect", "standard_error"], sort=False).ngroup())
    bars = shown.groupby("chain", sort=False).agg(
        **{column: (column, "first") for column in ("name", "part", "order", "effect", "lower", "upper")},
        count=("name", "size"),
    )
    bars = bars.loc[bars["effect"].abs().nlargest(max_bars).index].sort_values("order", kind="stable")
    labels = [printable(short(name)) + (f" (+{n - 1})" if n > 1 else "") for name, n in zip(bars["name"], bars["count"])]

    figure = Figure(figsize=(9, 1.6 + 0.26 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(bars))
    effect = bars["effect"].to_numpy()
    whiskers = np.abs(np.stack([effect - bars["lower"], bars["upper"] - effect]))
    axes.barh(places, effect, color=[role_color("supporting" if e >= 0 else "harming") for e in effect], alpha=0.85)
    axes.errorbar(
        effect, places, xerr=np.where(np.isfinite(whiskers), whiskers, 0), fmt="none", ecolor=ink(0.15), elinewidth=1, capsize=2
    )
    axes.axvline(0, color=ink(0.3), linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(
        f"effect on the {score_name}, with 95 % interval\n{below} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {above}"
    )
    parts = bars["part"].tolist()
    for place in [i for i in range(1, len(parts)) if parts[i] != parts[i - 1]]:
        axes.axhline(place - 0.5, color=ink(0.6), linewidth=0.8, linestyle=":")
    for place in [i for i in range(len(parts)) if i == 0 or parts[i] != parts[i - 1]]:
        axes.text(1.01, place, parts[place], transform=axes.get_yaxis_transform(), va="center", fontsize=9, style="italic")
    axes.set_title(title)
    return literal(figure)
