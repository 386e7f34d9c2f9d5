"""Scores of a segmentation inside regions of interest: a table of named functions, open to the user's own.

Every function here has the signature ``(prediction, reference, roi, ...) -> scores`` with

- ``prediction``: ``(N, C, *spatial)``, what :class:`Metric` ``.domain`` names: hard 0/1 labels, probabilities, logits (the
  model's output as it is) or log odds (the output before its activation, recovered where the model activates it);
- ``reference``: ``(N or 1, C, *spatial)``, one-hot, or ``None`` for the metrics that need none;
- ``roi``: ``(N or 1, R, *spatial)``, boolean;
- the result: ``(N, C, R)``, in the metric's own units (Dice in [0, 1], volume in pixels or voxels), never in percent.

Scores are oriented so that **larger is better** wherever there is a better, so that a positive treatment effect always means
"supports the segmentation": ``cross_entropy`` (a log-likelihood), ``brier``, ``average_surface_distance`` and ``hausdorff_95``
are *negated*. Sums, means and volumes, ``relative_volume`` among them, have no better: there a positive effect means "makes it
more". Every score of finite numbers is finite, also where prediction or reference is empty.
"""

from captum_causalseg.metrics.objects import best_dice, boundary_alignment, detection, soft_best_dice, uniformity
from captum_causalseg.metrics.overlap import dice, iou, sum_inside
from captum_causalseg.metrics.probability import brier, negated_cross_entropy
from captum_causalseg.metrics.surfaces import average_surface_distance, hausdorff_95, surface_dice
from captum_causalseg.metrics.table import METRICS, Metric, register
from captum_causalseg.metrics.volume import inside_mean, inside_sum, relative_volume, volumetric_similarity

__all__ = [
    "METRICS",
    "Metric",
    "average_surface_distance",
    "best_dice",
    "boundary_alignment",
    "brier",
    "detection",
    "dice",
    "hausdorff_95",
    "inside_mean",
    "inside_sum",
    "iou",
    "negated_cross_entropy",
    "register",
    "relative_volume",
    "soft_best_dice",
    "sum_inside",
    "surface_dice",
    "uniformity",
    "volumetric_similarity",
]
