"""The segmentation that is explained, in words and numbers: what is right, missed, too much."""

import math

import torch
from torch import Tensor

from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.results import score

__all__ = ["segmentation_rows", "segmentation_said"]


def segmentation_said(case: CommandCase) -> str:
    """What the numbers are about."""
    grid = f"the prepared image's {case.grids.noun}" if case.grids.differ else case.grids.noun
    if case.reference is None:
        return f"What the model predicts, in {grid}. There is no reference to compare it with, so the model's own prediction stands in for it."
    return (
        f"The prediction beside the reference, in {grid}: what both have is right, what only the reference has is missed, what only the prediction "
        "has is too much."
    )


def segmentation_rows(case: CommandCase) -> tuple[list[str], list[list[str]]]:
    """A header, and a row for the region of interest and one for the whole image."""
    places = (("region of interest", case.roi), ("whole image", torch.ones_like(case.roi)))
    if case.reference is None:
        return ["where", "predicted"], [[name, _amount(case, case.prediction & where)] for name, where in places]
    rows = []
    for name, where in places:
        predicted, truth = case.prediction & where, case.reference & where
        both, sizes = predicted & truth, int(predicted.sum() + truth.sum())
        dice = 2 * int(both.sum()) / sizes if sizes else math.nan
        parts = [predicted, truth, both, truth & ~predicted, predicted & ~truth]
        rows.append([name, *(_amount(case, part) for part in parts), "both empty" if math.isnan(dice) else score(dice)])
    return ["where", "predicted", "reference", "right", "missed", "too much", "Dice"], rows


def _amount(case: CommandCase, mask: Tensor) -> str:
    """Pixels, with their area or volume where their size is known."""
    count, spacing = int(mask.sum()), case.grids.prepared_spacing
    if spacing is None:
        return f"{count}"
    unit, thousands = ("mL", 1000) if len(spacing) == 3 else ("mm\u00b2", 1)
    size = count * math.prod(spacing) / thousands
    return f"{count} ({size:.0f} {unit})" if size >= 100 else f"{count} ({size:.3g} {unit})"
