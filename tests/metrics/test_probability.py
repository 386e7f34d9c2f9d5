"""Scores of probabilities against torch's own losses."""

import pytest
import torch
from metric_cases import Case
from torch import nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget


@pytest.mark.parametrize(("n_spatial", "n"), [(1, 3), (2, 1), (2, 3), (3, 1), (3, 3)])
def test_cross_entropy_is_torchs_negated_and_split_over_the_classes(n_spatial, n):
    case = Case(n_spatial, n, 3, True, torch.float64)
    scores = case.score("cross_entropy")
    pixelwise = functional.cross_entropy(case.crop(case.logits), case.crop(case.labels), reduction="none")
    torch.testing.assert_close(scores.sum(1), -pixelwise.flatten(1).mean(1))
    for c in range(3):
        share = torch.where(case.crop(case.labels) == c, pixelwise, 0)
        torch.testing.assert_close(scores[:, c], -share.flatten(1).mean(1))


@pytest.mark.parametrize(("n_spatial", "n", "channels"), [(1, 3, 1), (2, 3, 2), (3, 1, 1), (3, 3, 2)])
def test_cross_entropy_of_overlapping_labels_is_torchs_binary_one_negated(n_spatial, n, channels):
    case = Case(n_spatial, n, channels, False, torch.float64)
    truth = case.crop(case.reference).double()
    pixelwise = functional.binary_cross_entropy_with_logits(case.crop(case.logits), truth, reduction="none")
    case.expect(case.score("cross_entropy"), -pixelwise.flatten(2).mean(2))


@pytest.mark.parametrize("exclusive", [True, False])
def test_cross_entropy_of_probabilities_equals_that_of_their_logits(exclusive):
    case = Case(2, 3, 3, exclusive, torch.float64)
    expected = case.score("cross_entropy")
    case.logits = case.probabilities
    # Sigmoids are clamped 1e-7 from 0 and 1.
    case.expect(case.score("cross_entropy", activation="none"), expected, atol=1e-4 if not exclusive else 1e-9)


@pytest.mark.parametrize("exclusive", [True, False])
def test_cross_entropy_is_finite_where_a_label_that_is_absent_is_ruled_out(exclusive):
    case = Case(2, 1, 3, exclusive)
    case.reference[:, 2] = 0
    case.reference[:, 0] = 1 - case.reference[:, 1]
    case.logits[:, 2] = -torch.inf
    assert case.score("cross_entropy")[0, 2] == 0
    if exclusive:
        pixelwise = functional.cross_entropy(case.crop(case.logits), case.crop(case.reference[:, 1]))
        torch.testing.assert_close(case.score("cross_entropy").sum(), -pixelwise)


@pytest.mark.parametrize("channels", [2, 4])
def test_the_brier_columns_of_exclusive_classes_add_up_to_the_multi_class_score(channels):
    logits = torch.randn(3, channels, 6, 7, dtype=torch.float64)
    labels = torch.randint(0, channels, (3, 6, 7))
    scores = SegmentationTarget(nn.Identity(), None, labels, "brier", "softmax")(logits)
    truth = torch.nn.functional.one_hot(labels, channels).movedim(-1, 1)
    torch.testing.assert_close(scores.sum(1), -((logits.softmax(1) - truth) ** 2).sum(1).flatten(1).mean(1))
