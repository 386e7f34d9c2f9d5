"""Attention heads of all layers: a row per layer, a cell per head, in the color of its effect."""

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from captum_causalseg._checks import checked, instance
from captum_causalseg.statistics import adjust_p_values
from captum_causalseg.visualization.ink import ink
from captum_causalseg.visualization.pictures import EFFECTS, PICTURE, decimals, literal, round_up, scale_labels, short
from captum_causalseg.writing.names import printable

__all__ = ["plot_heads"]

_COLUMNS = ("example", "module", "order", "head", "effect", "lower", "upper")


@checked(PICTURE, table=instance(pd.DataFrame))
def plot_heads(
    table: pd.DataFrame,
    *,
    example: int = 0,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """Layers (rows, in the order of the forward pass) by attention heads (columns): red where a head supports the segmentation, blue where it harms it.

    In each cell stands the effect. Cells whose 95 % interval holds 0 are hatched: the sign is open. A frame is around heads whose
    effect differs from 0 at a false discovery rate of 0.05 over all heads (Benjamini and Hochberg, from the column ``p_value``). Layers may have different numbers of heads.

    Args:
        table: what :func:`captum_causalseg.component_effects` returned with ``level="head"``, or means of such tables over cases, in the same columns.
        example: which example of the batch.
        title: above the picture.
        score_name: the name of the score, with its unit.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        ValueError: the table is not of heads, or has none of this example.

    Example:
        >>> import pandas as pd
        >>> from captum_causalseg.visualization import plot_heads
        >>> table = pd.DataFrame(
        ...     {
        ...         "example": 0,
        ...         "module": ["stage 1", "stage 2", "stage 2"],
        ...         "order": [0, 1, 1],
        ...         "head": [0, 0, 1],
        ...         "effect": [0.3, -0.1, 0.02],
        ...         "lower": [0.2, -0.2, -0.03],
        ...         "upper": [0.4, -0.05, 0.07],
        ...         "p_value": [0.001, 0.002, 0.4],
        ...     }
        ... )
        >>> figure = plot_heads(table, score_name="Dice")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['stage 1', 'stage 2']
    """
    if missing := [name for name in (*_COLUMNS, "p_value") if name not in table]:
        raise ValueError(f'table: expected that of component_effects(level="head"), got one without {", ".join(missing)}')
    mine = table[(table["example"] == example) & table["effect"].notna()].sort_values(["order", "head"], kind="stable")
    if mine.empty:
        raise ValueError(f"example: the table has no effects of example {example}")
    layers = list(dict.fromkeys(mine["module"]))
    n_heads = int(mine["head"].max()) + 1
    largest = round_up(float(mine["effect"].abs().max()) or 1.0)
    figure = Figure(figsize=(4.2 + 0.85 * n_heads, 1.6 + 0.42 * len(layers)), layout="constrained")
    axes = figure.subplots()
    cells = np.full((len(layers), n_heads), np.nan)
    rows = [layers.index(module) for module in mine["module"]]
    cells[rows, mine["head"]] = mine["effect"]
    axes.set_facecolor(ink(0.93))
    shown = axes.imshow(cells, cmap=EFFECTS, norm=Normalize(-largest, largest), aspect="auto", interpolation="nearest")
    digits, found = decimals(largest), _found(mine["p_value"].to_numpy(dtype=float))
    for row, head, is_found, (effect, lower, upper) in zip(
        rows, mine["head"], found, mine[["effect", "lower", "upper"]].to_numpy(dtype=float)
    ):
        is_open = not (lower > 0 or upper < 0)
        dark = abs(effect) > 0.6 * largest
        corner = head - 0.5, row - 0.5
        if is_open:
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor=(0.6, 0.6, 0.6, 0.6), linewidth=0))
        if is_found:
            axes.add_patch(Rectangle((head - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor="black", linewidth=1.3))
        color = "white" if dark else "0.35" if is_open else "black"
        axes.text(head, row, f"{effect:+.{digits}f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(n_heads), [str(head) for head in range(n_heads)])
    axes.set_yticks(range(len(layers)), [printable(short(layer)) for layer in layers], fontsize=8)
    axes.set_xlabel("head\nframe: found at a false discovery rate of 0.05; hatched: the 95 % interval holds 0", fontsize=9)
    axes.set_title(title)
    bar = figure.colorbar(shown, ax=axes, shrink=0.9)
    ticks = np.linspace(-largest, largest, 5).tolist()
    bar.set_ticks(ticks, labels=scale_labels(ticks))
    bar.set_label(f"effect on the {score_name}\n{words[1]} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {words[0]}")
    return literal(figure)


def _found(p: np.ndarray) -> np.ndarray:
    known = np.isfinite(p)
    found = np.zeros(len(p), dtype=bool)
    found[known] = adjust_p_values(p[known], "fdr_bh") <= 0.05
    return found
