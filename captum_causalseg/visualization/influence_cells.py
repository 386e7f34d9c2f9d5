"""The cells of a matrix of influences."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from captum_causalseg._checks import ANY, NONE, checked, instance, sequence
from captum_causalseg.evaluation.influence import InfluenceMatrix
from captum_causalseg.visualization.ink import ink
from captum_causalseg.visualization.pictures import EFFECTS, PICTURE, decimals, literal, robust_maximum, round_up
from captum_causalseg.writing.names import printable

__all__ = ["plot_influence"]


@checked(
    PICTURE,
    matrix=instance(InfluenceMatrix),
    roi_names=NONE | sequence(ANY, expected="a name for each region of interest"),
    region_names=NONE | sequence(ANY, expected="a name for each row"),
)
def plot_influence(
    matrix: InfluenceMatrix,
    title: str = "",
    score_name: str = "score",
    roi_names: Sequence[str] | None = None,
    region_names: Sequence[str] | None = None,
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """What every region (rows) does to the score of every RoI (columns): red supports, blue harms.

    Up to 120 cells carry their number, with a star where it is significant; in larger matrices a dot marks those. Where there
    was no intervention the cell is hatched.

    Args:
        matrix: of :func:`captum_causalseg.evaluation.profile.influence_matrix`.
        title: above the picture.
        score_name: the name of the score, with its unit.
        roi_names: one per column; their numbers by default.
        region_names: one per row; their ids by default.
        words: what effects above and below 0 do; for a score without better and worse, ``("raises", "lowers")``.

    Returns:
        A new figure, not registered with pyplot: save it with ``savefig``.

    Raises:
        TypeError: ``matrix`` is no InfluenceMatrix.
        ValueError: as many names as there are rows or columns were expected; ``words`` are not two strings.

    Example:
        >>> import pandas as pd
        >>> from captum_causalseg.evaluation import InfluenceMatrix
        >>> from captum_causalseg.visualization import plot_influence
        >>> effect = pd.DataFrame([[0.2, 0.0], [-0.1, 0.3]], index=pd.Index(["left", "right"], name="region"))
        >>> matrix = InfluenceMatrix(effect, effect.abs() / 10, effect != 0)
        >>> figure = plot_influence(matrix, score_name="Dice", roi_names=["lesion", "cortex"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.20*', '0', '-0.10*', '0.30*']
    """
    above, below = words
    effect, significant = matrix.effect.to_numpy(), matrix.significant.to_numpy()
    rows, columns = effect.shape
    labels = []
    for argument, names, index in (
        ("region_names", region_names, matrix.effect.index),
        ("roi_names", roi_names, matrix.effect.columns),
    ):
        if names is not None and len(names) != len(index):
            raise ValueError(f"{argument}: expected {len(index)} names, got {len(names)}")
        labels.append([printable(str(name)) for name in (index if names is None else names)])
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
    axes.patch.set(facecolor=ink(0.96), edgecolor=ink(0.6), hatch="////", linewidth=0)
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
    bar.set_label(f"effect on the {score_name}\n{below} \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} {above}")
    return literal(figure)
