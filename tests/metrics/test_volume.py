"""Sums, means and volumes inside the RoI."""

import numpy as np
import torch
from metric_cases import Case, per_case
from scipy import special


@per_case
def test_sums_and_means_equal_numpys(n_spatial, n, channels, exclusive):
    case = Case(n_spatial, n, channels, exclusive, torch.float64)
    raw = case.crop(case.logits).flatten(2).numpy()
    probabilities = special.softmax(raw, axis=1) if exclusive else special.expit(raw)
    volume = np.zeros(raw.shape[:2])
    for i, c, pixel in np.ndindex(*raw.shape):
        volume[i, c] += raw[i, :, pixel].argmax() == c if exclusive else raw[i, c, pixel] > 0
    expected = {
        "logit_sum": raw.sum(2),
        "logit_mean": raw.mean(2),
        "probability_mean": probabilities.mean(2),
        "soft_volume": probabilities.sum(2),
        "volume": volume,
    }
    for metric, value in expected.items():
        case.expect(case.score(metric, reference=None), value, rtol=1e-12, atol=1e-12)


def test_logits_are_scored_before_the_activation_and_volume_after_the_threshold():
    case = Case(2, 1, 1, False, torch.float64)
    case.expect(case.score("logit_sum", threshold=0.9), case.crop(case.logits).sum())
    case.expect(case.score("volume", threshold=0.9), (special.expit(case.crop(case.logits).numpy()) > 0.9).sum())
