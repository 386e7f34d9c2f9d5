"""Overlap scores against MONAI's own, on what lies inside the RoI."""

import pytest
from metric_cases import Case, per_case
from monai.losses import DiceLoss
from monai.metrics import DiceMetric, compute_dice, compute_iou

HARD = {"dice": compute_dice, "iou": compute_iou}


@per_case
@pytest.mark.parametrize("metric", HARD)
def test_hard_overlap_equals_monai(metric, n_spatial, n, channels, exclusive):
    case = Case(n_spatial, n, channels, exclusive)
    prediction, reference = case.crop(case.prediction), case.crop(case.reference)
    case.expect(case.score(metric), HARD[metric](prediction, reference, include_background=True, ignore_empty=False))


def test_dice_equals_monais_stateful_metric():
    case = Case(2, 3, 3, True)
    peer = DiceMetric(include_background=True, reduction="none", ignore_empty=False)
    case.expect(case.score("dice"), peer(case.crop(case.prediction), case.crop(case.reference)))


@per_case
@pytest.mark.parametrize(("metric", "jaccard"), [("soft_dice", False), ("soft_iou", True)])
def test_soft_overlap_equals_monais_loss(metric, jaccard, n_spatial, n, channels, exclusive):
    case = Case(n_spatial, n, channels, exclusive)
    loss = DiceLoss(jaccard=jaccard, smooth_nr=0, smooth_dr=0, reduction="none")
    case.expect(case.score(metric), 1 - loss(case.crop(case.probabilities), case.crop(case.reference)))
