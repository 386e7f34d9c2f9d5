"""What a larger unit around each of the strongest ones does: reported, not judged."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg._checks import checked, integer
from captum_causalseg.evaluation.refute.by_hand import RowOfCall
from captum_causalseg.evaluation.refute.context import (
    CONTEXT,
    JointExplainer,
    LayerExplainer,
    RefutationContext,
    as_reported,
    attributed,
    unit_name,
)
from captum_causalseg.evaluation.refute.report import Refutation, inconclusive
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["dose"]

_OWN = ("feature_mask", "block_size", "exclude", "additional_forward_args", "n_screening_draws", "precision", "decide")


@checked(context=CONTEXT, n_units=integer(1))
def dose(context: RefutationContext, n_units: int = 3) -> Refutation:
    """Each of the strongest units is replaced together with all that touch it: the effect of a larger dose beside its own.

    The larger unit is the unit and its neighbors (across edges and corners, in all inputs that it reaches into), without those that the
    RoI excludes and those that cannot reach it; its donors are natural patches of that size. **There is no verdict** (``"reported"``): a cause in one place gives about
    the same effect, one that is spread over the neighbors a larger one, neighbors that stand in for each other a much larger one, and an
    effect that vanishes or changes its sign with its surroundings may be that of the joint between the unit and what is around it. The
    message lists the effects.

    **It sees** nothing that is right or wrong for sure; it shows how much the size of the units has to do with the answer.

    The statistic is the strongest unit's ratio of the larger unit's effect to its own; there is no threshold (NaN). Inconclusive for joint effects and for layers,
    where no effect is significant, and where donor images are smaller than the larger units. The cost: ``n_draws`` forwards and
    those that find the support, for each of the units.

    Args:
        context: the estimate.
        n_units: how many of the units with the largest significant effects, over all examples.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> refute(ate, case.images, 0.0, refuters=["dose"])["dose"].verdict
        'reported'
    """
    if isinstance(context.explainer, JointExplainer):
        return inconclusive("dose", np.nan, 0, message="it is about single effects: of a larger unit alone there is no context")
    if isinstance(context.explainer, LayerExplainer):
        return inconclusive("dose", np.nan, 0, message="units of a layer have no surroundings in the image")
    statistics = context.statistics
    sizes = torch.where(statistics.significant(context.alpha), statistics.effect.abs(), 0.0).numpy()
    strongest = [unit for unit in np.argsort(-sizes, axis=None)[:n_units].tolist() if sizes.flat[unit] > 0]
    if not strongest:
        return inconclusive("dose", np.nan, 0, message="no effect is significant")
    row = RowOfCall(context.explainer.forward_func, context.inputs, context.arguments.get("additional_forward_args"))
    forwards, ratios, said = 0, [], []
    for example, unit in (divmod(one, sizes.shape[1]) for one in strongest):
        masks, count = _larger(statistics, example, unit)
        try:
            found = _estimate(context, row, example, masks=masks)
        except ValueError as refusal:
            if not str(refusal).startswith("baselines: donor image"):
                raise
            return inconclusive("dose", np.nan, forwards, message=str(refusal).removeprefix("baselines: "))
        forwards += found.n_forwards
        position = int(torch.searchsorted(found.unit_ids, 1))
        own, larger = float(statistics.effect[example, unit]), float(found.effect[0, position])
        ratios.append(larger / own)
        spread, neighbors = float(found.standard_error[0, position]), f"{count - 1} neighbor{'s' * (count != 2)}"
        said.append(f"{unit_name(statistics, example, unit)} {own:.3g}, with its {neighbors} {larger:.3g} ± {spread:.1g}")
    return Refutation(
        name="dose",
        verdict="reported",
        statistic=ratios[0],
        threshold=np.nan,
        n_units=len(said),
        n_forwards=forwards,
        message="; ".join(said),
    )


def _larger(statistics: TreatmentEffectStatistics, example: int, unit: int) -> tuple[tuple[Tensor, ...], int]:
    """Per input, where ``(1, C or 1, *spatial)`` a unit and those that touch it are; and how many units that are."""
    masks = [mask[example : example + 1] if len(mask) > 1 else mask for mask in statistics.feature_mask]
    number = int(statistics.unit_ids[unit])
    touching = {number}
    for mask, shape in zip(masks, statistics.input_shapes):
        places = (mask == number).any(1, keepdim=True).expand(1, 1, *shape[2:])
        touching |= set(mask.expand(1, -1, *shape[2:])[_grown(places).expand(1, mask.shape[1], *shape[2:])].tolist())
    status = {int(one): int(state) for one, state in zip(statistics.unit_ids, statistics.status[example])}
    free = [one for one in sorted(touching) if status[one] in (Status.ESTIMATED, Status.SCREENED)]
    return tuple(torch.isin(mask, torch.tensor(free)) for mask in masks), len(free)


def _grown(places: Tensor) -> Tensor:
    """Places ``(1, 1, *spatial)`` and those that touch them."""
    n_spatial = places.ndim - 2
    if n_spatial == 0 or n_spatial > 3:
        return places
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[n_spatial - 1]
    return pool(places.float(), kernel_size=3, stride=1, padding=1).bool()


def _estimate(
    context: RefutationContext, row: RowOfCall, example: int, *, masks: tuple[Tensor, ...]
) -> TreatmentEffectStatistics:
    """The effect of one unit of one example, number 1 of these masks; all else is excluded."""
    explainer = copy.copy(context.explainer)
    explainer.forward_func = row.scorer.function
    given: dict[str, Any] = {name: value for name, value in context.arguments.items() if name not in _OWN}
    inputs, arguments = tuple(row.inputs(example)), tuple(row.arguments(example))
    outside = tuple(~mask.any(1)[0].expand(*one.shape[2:]) if one.ndim > 2 else None for mask, one in zip(masks, inputs))
    numbers = tuple(mask.long() for mask in masks)
    several = isinstance(context.inputs, tuple)
    target = context.target
    if isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1):
        target = target[example]
    given |= {
        "baselines": context.baselines,
        "seed": context.seed,
        "feature_mask": numbers if several else numbers[0],
        "exclude": outside if several else outside[0],
        "additional_forward_args": arguments or None,
        "n_screening_draws": 0,
    }
    return as_reported(attributed(explainer, inputs if several else inputs[0], target, arguments=given), target)
