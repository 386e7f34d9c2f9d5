"""Scores of curves that the field uses: the paper's Dice-based attribution score, and areas between what donors leave and what was observed."""

import numpy as np

from captum_causalseg._checks import NONE, checked, instance, number
from captum_causalseg.evaluation.faithfulness import Curve, Faithfulness, register
from captum_causalseg.evaluation.replacements import Attributions

__all__ = ["attribution_score", "relative_area"]

_FEW = 0.2


@checked(judge=instance(Faithfulness), share=NONE | number(0, 1))
def attribution_score(judge: Faithfulness, attributions: Attributions, share: float | None = None) -> np.ndarray:
    """The Dice-based attribution score of PdCR (arXiv 2602.20511) ``(N,)``: what the model makes of the highest units and the region of interest alone.

    All other units hold donors; units that are never replaced stay as they are. The target's score, Dice or not.

    Args:
        judge: images and donors.
        attributions: the map.
        share: of the replaceable units that is kept; ``None`` for the area over all shares from 0 to 1. Between two points of
            :meth:`~captum_causalseg.evaluation.Faithfulness.retention`, on the line through them.

    Returns:
        In the score's own units; larger is better. NaN where the map has no positive value.

    Example:
        >>> from captum_causalseg.evaluation import Faithfulness, attribution_score
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
        >>> judge = Faithfulness(case.target(), case.images, case.donors, block_size=8)
        >>> right, wrong = (attribution_score(judge, sign * case.effects_of_map(), 0.5) for sign in (1, -1))
        >>> bool(right[0] > wrong[0])
        True
    """
    curve = judge.retention(attributions)
    if share is None:
        return curve.area
    found = np.array([np.interp(share, fraction, score) for fraction, score in zip(curve.fraction, curve.score)])
    return np.where(np.isnan(curve.area), np.nan, found)


def relative_area(judge: Faithfulness, curve: Curve, all_replaced: int) -> np.ndarray:
    """``(N,)``: where the curve's area lies between the score with all units replaced (0) and the observed one (1).

    NaN where that says nothing: all units replaced do not lower the score by more than two standard errors over the draws of donors, so that no order of units can
    be told from another. So it is of hard scores that cannot move.

    Args:
        judge: whose curve it is.
        curve: of supporting units.
        all_replaced: which of its points is that of all units replaced, 0 or -1.
    """
    floor, error = curve.score[:, all_replaced], curve.standard_error[:, all_replaced]
    lost = judge.observed - floor
    moves = lost > np.maximum(2 * np.nan_to_num(error), 1e-6)
    found: np.ndarray = np.where(moves, (curve.area - floor) / np.where(moves, lost, 1), np.nan)
    return found


_PAPER = "PdCR (arXiv 2602.20511)"
_KEPT = f"{_PAPER}: the highest units and the region of interest kept"
_CURVES = "Petsiuk et al. 2018 (arXiv 1806.07421), with donors, relative to what all units do"
register("attribution score", attribution_score, "higher", source=_KEPT, measurements=("retention",), on_request=True)
register(
    "attribution score, a fifth kept",
    lambda f, a: attribution_score(f, a, _FEW),
    "higher",
    source=f"{_KEPT}, a fifth of the units",
    measurements=("retention",),
    on_request=True,
)
register(
    "attribution score, relative",
    lambda f, a: relative_area(f, f.retention(a), 0),
    "higher",
    source=f"{_KEPT}, relative to what all units do",
    measurements=("retention",),
    on_request=True,
)
register(
    "deletion, relative",
    lambda f, a: relative_area(f, f.deletion(a), -1),
    "lower",
    source=_CURVES,
    measurements=("deletion, supporting",),
    on_request=True,
)
register(
    "insertion, relative",
    lambda f, a: relative_area(f, f.insertion(a), 0),
    "higher",
    source=_CURVES,
    measurements=("insertion, supporting",),
    on_request=True,
)
