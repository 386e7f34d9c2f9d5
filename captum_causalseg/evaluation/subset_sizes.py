"""Sensitivity-n: do attributions add up to what removing units does, for subsets of few and of many units?"""

from collections.abc import Sequence

import numpy as np

from captum_causalseg._checks import FRACTION, checked, instance, sequence
from captum_causalseg.evaluation.faithfulness import Faithfulness, register
from captum_causalseg.evaluation.judging_cost import SHARES, subsets_of_a_size
from captum_causalseg.evaluation.replacements import Attributions

__all__ = ["sensitivity_n"]

# Of random numbers: others than those of a judge's own subsets.
_PURPOSE = 3


@checked(judge=instance(Faithfulness), shares=sequence(FRACTION, 1))
def sensitivity_n(judge: Faithfulness, attributions: Attributions, shares: Sequence[float] = SHARES) -> np.ndarray:
    """Sensitivity-n of Ancona et al. (2018, arXiv 1711.06104) ``(N,)``, in [-1, 1]: the mean over subset sizes of Pearson's correlations.

    The judge's number of random subsets is spread over the sizes, at least three of each: the correlation of the sums of their attributions with what replacing them takes from
    the score. Sizes are shares of the units, at least one unit; donors are the judge's.

    Args:
        judge: images and donors.
        attributions: the map.
        shares: of the units.

    Returns:
        NaN where no size has a correlation: the sums or the changes are all the same. Sizes without one are left out.

    Example:
        >>> from captum_causalseg.evaluation import Faithfulness, sensitivity_n
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
        >>> judge = Faithfulness(case.target(), case.images, case.donors, block_size=8)
        >>> right, wrong = (sensitivity_n(judge, sign * case.effects_of_map()) for sign in (1, -1))
        >>> bool(right[0] > 0.5), bool(wrong[0] < -0.5)
        (True, True)
    """
    units = judge.unit_attributions(attributions)
    n, count = judge.n_examples, subsets_of_a_size(judge.n_subsets, len(shares))
    found = np.full((len(shares), n), np.nan)
    for place, share in enumerate(shares):
        keys = np.where(judge.replaceable[:, None], judge.replacements.random_numbers(_PURPOSE + place, count), np.inf)
        sizes = np.maximum(1, np.round(share * judge.replaceable.sum(1)))
        chosen: np.ndarray = (keys.argsort(2).argsort(2) < sizes[:, None, None]) & judge.replaceable[:, None]
        examples, subsets = (axis.ravel() for axis in np.indices((n, count)))
        scores = judge.replacements.scores(examples, subsets % judge.n_draws, chosen.reshape(n * count, -1)).reshape(n, count)
        for example in range(n):
            claimed, change = chosen[example] @ units[example], judge.observed[example] - scores[example]
            if np.ptp(claimed) > 0 and np.ptp(change) > 0:
                found[place, example] = np.corrcoef(claimed, change)[0, 1]
    known = (~np.isnan(found)).sum(0)
    mean: np.ndarray = np.where(known > 0, np.nansum(found, 0) / np.maximum(known, 1), np.nan)
    return mean


register(
    "sensitivity n",
    sensitivity_n,
    "higher",
    source="Ancona et al. 2018 (arXiv 1711.06104)",
    measurements=("subsets of many sizes",),
    on_request=True,
)
