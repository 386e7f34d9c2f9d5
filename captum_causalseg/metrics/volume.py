"""Sums, means and volumes inside regions of interest."""

import torch
from torch import Tensor

from captum_causalseg.metrics.overlap import ratio, sum_inside

__all__ = ["inside_mean", "inside_sum", "relative_volume", "volumetric_similarity"]


def inside_sum(prediction: Tensor, reference: Tensor | None, roi: Tensor) -> Tensor:
    """Sum over the RoI: Seg-Grad-CAM's score on logits, the volume in voxels on labels, its soft twin on probabilities.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 6, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 1, 1, 1, 1, 0]]])
        >>> prediction = torch.tensor([[[0.0, 0, 1, 1, 0, 0]]])
        >>> metrics.inside_sum(prediction, None, roi).item()
        2.0
    """
    return sum_inside(prediction, roi)


def inside_mean(prediction: Tensor, reference: Tensor | None, roi: Tensor) -> Tensor:
    """Mean over the RoI's pixels, of logits or probabilities.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 6, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 1, 1, 1, 1, 0]]])
        >>> prediction = torch.tensor([[[0.0, 0, 1, 1, 0, 0]]])
        >>> roi[..., 3:] = False
        >>> round(metrics.inside_mean(prediction, None, roi).item(), 4)
        0.3333
    """
    return sum_inside(prediction, roi) / roi.flatten(2).sum(-1)[:, None]


def relative_volume(prediction: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
    """Volume of the prediction in the RoI divided by that of the reference: 1 is right, 2 is twice as large as it should be.

    Like ``volume`` it has no "better": an effect > 0 says that what is there makes the segmentation *larger*, an effect < 0
    that it makes it smaller; ``volumetric_similarity`` is the same comparison with a direction. Where the reference is empty
    it counts as one pixel, so that the score is then the volume.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 6, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 1, 1, 1, 1, 0]]])
        >>> prediction = torch.tensor([[[0.0, 0, 1, 1, 0, 0]]])
        >>> metrics.relative_volume(prediction, reference, roi).item()
        0.5
    """
    return sum_inside(prediction, roi) / sum_inside(reference, roi).clamp_min(1)


def volumetric_similarity(prediction: Tensor, reference: Tensor, roi: Tensor, empty_score: float = 1.0) -> Tensor:
    """``1 - |V(p) - V(r)| / (V(p) + V(r))`` in [0, 1], whatever lies where (Taha and Hanbury 2015, doi 10.1186/s12880-015-0068-x).

    ``empty_score`` where both are empty. Soft on probabilities.

    Example:
        >>> import torch
        >>> from captum_causalseg import metrics
        >>> roi = torch.ones(1, 1, 6, dtype=torch.bool)
        >>> reference = torch.tensor([[[0.0, 1, 1, 1, 1, 0]]])
        >>> prediction = torch.tensor([[[0.0, 0, 1, 1, 0, 0]]])
        >>> round(metrics.volumetric_similarity(prediction, reference, roi).item(), 4)
        0.6667
        >>> metrics.volumetric_similarity(reference.roll(2, dims=-1), reference, roi).item()  # as large, in the wrong place
        1.0
    """
    first, second = sum_inside(prediction, roi), sum_inside(reference, roi)
    return ratio(2 * torch.minimum(first, second), first + second, empty_score)
