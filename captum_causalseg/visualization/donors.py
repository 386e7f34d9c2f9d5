"""The picture of a comparison of donors."""

import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from captum_causalseg._checks import checked, instance, integer
from captum_causalseg.evaluation.donor_comparison import DonorComparison
from captum_causalseg.visualization.pictures import (
    EFFECTS,
    PICTURE,
    background,
    first,
    grayscale,
    literal,
    plane,
    robust_maximum,
    round_up,
)

__all__ = ["plot_donors"]


@checked(PICTURE, comparison=instance(DonorComparison), columns=integer(1))
def plot_donors(
    comparison: DonorComparison,
    *,
    example: int = 0,
    columns: int = 3,
    title: str = "",
    score_name: str = "score",
    words: tuple[str, str] = ("supports", "harms"),
) -> Figure:
    """The effects with every kind of donors side by side, on one scale; hatched where the sign changes significantly.

    Args:
        comparison: what :func:`captum_causalseg.compare_donors` returned; a volume is shown in the slice of its last axis that holds
            most of the RoI.
        example: which example of the batch.
        columns: panels in a row.
        title: above the panels.
        score_name: what the effects are effects on.
        words: what effects above and below 0 do.

    Returns:
        A figure of its own, not registered with pyplot: save it with ``savefig``.

    Example:
        >>> from captum_causalseg import Constant, compare_donors
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> from captum_causalseg.visualization import plot_donors
        >>> case = planted_case((32, 32), roi_size=8)
        >>> given = {"raw": case.donors, "zeros": Constant(0.0)}
        >>> figure = plot_donors(compare_donors(case.target(), case.images, given, block_size=8, n_draws=20))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['raw', 'zeros']
    """
    above, below = words
    integer(0, len(comparison.image) - 1)("example", example)
    roi = None if comparison.roi is None else comparison.roi[example]
    picture = grayscale(plane(comparison.image[example].float(), roi))
    outline = None if roi is None else plane(roi[None], roi)[0].numpy()
    names = list(comparison.statistics)
    maps = {}
    for name, statistics in comparison.statistics.items():
        painted = first(statistics.to_map("effect"))[example].sum(0, keepdim=True) / first(statistics.to_map("effect")).shape[1]
        maps[name] = np.nan_to_num(plane(painted, roi)[0].double().numpy())
    largest = round_up(robust_maximum(np.concatenate([np.abs(one).ravel() for one in maps.values()])))
    norm = TwoSlopeNorm(0, -largest, largest)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    height, width = picture.shape[:2]
    edge = 2.8
    figure = Figure(figsize=(1.4 + edge * columns, 0.6 + rows * (0.6 + edge * height / width)), layout="constrained")
    panels: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    if title:
        figure.suptitle(title)
    drawn = None
    reference = names[0]
    for axes, name in zip(panels.flat, names):
        values = maps[name]
        background(axes, picture, name, outline=outline, fade=True)
        size = np.clip(np.abs(values) / largest, 0, 1)
        drawn = axes.imshow(values, cmap=EFFECTS, norm=norm, alpha=0.95 * np.sqrt(size), interpolation="nearest")
        turned = comparison.sign_differs(reference, name)[example] if name != reference else None
        statistics = comparison.statistics[name]
        if turned is not None:
            if bool(turned.any()):
                mask = first(statistics.feature_mask)
                labels = mask[example if len(mask) > 1 else 0]
                marked = np.isin(labels.numpy(), statistics.unit_ids[turned].numpy()).any(0, keepdims=True)
                whole = np.broadcast_to(marked, (1, *comparison.image.shape[2:])).copy()
                flat = plane(torch.from_numpy(whole), roi)[0].numpy()
                axes.contourf(flat.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
            axes.set_xlabel(f"{int(turned.sum())} changed sign{'s' * (int(turned.sum()) != 1)} against {reference}", fontsize=9)
        else:
            axes.set_xlabel(f"{int(statistics.significant(comparison.alpha)[example].sum())} significant units", fontsize=9)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, shrink=0.7, extend="both")
        bar.set_label(f"effect on the {score_name}\n(red {above}, blue {below};\nhatched: another sign, significantly)")
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
    return literal(figure)
