"""Scores of probabilities: cross entropy and the Brier score."""

import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg.metrics.volume import inside_mean

__all__ = ["brier", "negated_cross_entropy"]


def negated_cross_entropy(prediction: Tensor, reference: Tensor, roi: Tensor, exclusive: bool) -> Tensor:
    """Mean log-likelihood of the reference over the RoI's pixels, i.e. **minus** the cross entropy; at most 0.

    With exclusive classes (softmax), column ``c`` is the share of the pixels that belong to class ``c``: the columns add
    up to ``-torch.nn.functional.cross_entropy`` on the RoI. Otherwise each column is minus the binary cross entropy.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> logits, truth = torch.tensor([[[2.0, -2.0]]]), torch.tensor([[[1.0, 0.0]]])
        >>> roi = torch.ones(1, 1, 2, dtype=torch.bool)
        >>> found = metrics.negated_cross_entropy(logits, truth, roi, exclusive=False)
        >>> torch.allclose(found, -torch.nn.functional.binary_cross_entropy_with_logits(logits, truth))
        True
    """
    if exclusive:
        likelihood = torch.where(reference.bool(), functional.log_softmax(prediction, dim=1), 0)
    else:
        likelihood = functional.logsigmoid(torch.where(reference.bool(), prediction, -prediction))
    return inside_mean(likelihood, None, roi)


def brier(prediction: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
    """**Minus** the Brier score: the mean squared difference of probability and truth over the RoI's pixels, in [-1, 0].

    It rewards probabilities that are right and calibrated (Brier 1950). Each column is its class's own share; with exclusive
    classes the columns add up to minus Brier's multi-class score.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> probabilities, truth = torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
        >>> metrics.brier(probabilities, truth, torch.ones(1, 1, 2, dtype=torch.bool)).item()
        -0.125
    """
    return -inside_mean((prediction - reference) ** 2, None, roi)
