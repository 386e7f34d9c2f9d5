"""The refuter that takes the step of brightness out of the joints."""

from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._checks import checked
from captum_causalseg.donors.patch_bank import PatchBank
from captum_causalseg.evaluation.refute.context import CONTEXT, LayerExplainer, RefutationContext, largest_unit_name
from captum_causalseg.evaluation.refute.differences import sign_changes
from captum_causalseg.evaluation.refute.report import Refutation, inconclusive, verdict

__all__ = ["joints"]

_THRESHOLD = 0.5


@checked(context=CONTEXT)
def joints(context: RefutationContext) -> Refutation:
    """The same donors, shifted to the unit's own mean (``PatchBank(match="mean")``), must say much the same.

    A raw patch brings a step of brightness and an edge, and networks answer to those. Both estimates are made of the same uniform draws
    without screening, so that what differs is the step. Fails if a significant effect changes its sign and is significant with the other one as
    well, or if the slope ``sum(raw * matched) / sum(raw**2)`` over the significant units is below one half: then most of what was
    measured is the step.

    **It sees** effects that are those of the joint. **It does not see** edges that are left when the mean is right, and it takes a
    network that does look at brightness for one that looks at joints: read it together with :func:`dose` and compare donors. A failure says
    nothing against the estimate, which is right for these donors: it says that another question may have been answered than the one that was meant.
    Raw patches fail this on many networks, the demo's among them, so it is run on request only.

    The statistic is the slope, the threshold 0.5. Inconclusive for layers, for donors that are no images or are fitted already, where
    no effect is significant, and for units of one pixel, which have nothing but their mean. The cost: two estimates without screening.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> refute(ate, case.images, 0.3, refuters=["joints"])["joints"].message
        'there are no donor images to match (baselines=0.3)'
    """
    if isinstance(context.explainer, LayerExplainer):
        return inconclusive("joints", _THRESHOLD, 0, message="donors of a layer have no joints in the image")
    given = context.baselines if isinstance(context.baselines, tuple) else (context.baselines,)
    matched = tuple(_matched(one) for one in given)
    if all(one is None for one in matched):
        reason = f"there are no donor images to match (baselines={context.baselines!r})"
        return inconclusive("joints", _THRESHOLD, 0, message=reason)
    chosen = tuple(one if found is None else found for one, found in zip(given, matched))
    plain: dict[str, Any] = {"sampling": "uniform", "n_screening_draws": 0, "precision": None, "decide": None}
    raw = context.estimate(**plain)
    try:
        fitted = context.estimate(baselines=chosen if isinstance(context.baselines, tuple) else chosen[0], **plain)
    except ValueError as refusal:
        if not str(refusal).startswith("match: "):
            raise
        return inconclusive("joints", _THRESHOLD, raw.n_forwards, message=str(refusal).removeprefix("match: "))
    forwards = raw.n_forwards + fitted.n_forwards
    surely = raw.significant(context.alpha).numpy()
    if not surely.any():
        return inconclusive("joints", _THRESHOLD, forwards, message="no effect is significant")
    before, now = raw.effect.numpy(), fitted.effect.numpy()
    flips = sign_changes(raw, fitted, context.alpha)
    slope = float((before[surely] * now[surely]).sum() / (before[surely] ** 2).sum())
    message = f"with donors of the units' own brightness {slope:.0%} of the effects is left"
    if flips.any():
        at = np.unravel_index(int(np.where(flips, np.abs(before), 0).argmax()), flips.shape)
        message += f"; {int(flips.sum())} change their sign, {largest_unit_name(raw, np.where(flips, np.abs(before), 0))} from "
        message += f"{before[at]:.3g} to {now[at]:.3g}"
    passed = not flips.any() and slope >= _THRESHOLD
    return verdict("joints", passed, slope, threshold=_THRESHOLD, tested=surely, n_forwards=forwards, message=message)


def _matched(baselines: Any) -> PatchBank | None:
    """The same donors with the units' own mean; ``None`` where there are no raw donor images."""
    if isinstance(baselines, Tensor) and baselines.ndim > 2:
        return PatchBank(baselines, placement="aligned", match="mean")
    if not isinstance(baselines, PatchBank) or baselines.fit.changes:
        return None
    return baselines.fitted(match="mean")
