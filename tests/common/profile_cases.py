"""Statistics made by hand, to be profiled."""

import math

import numpy as np
import torch

from captum_causalseg import Status, TreatmentEffectStatistics, regions

EXCLUDED, SCREENED, OUTSIDE, ABSENT = (
    int(s) for s in (Status.EXCLUDED, Status.SCREENED, Status.OUTSIDE_SUPPORT, Status.ABSENT)
)


def make(effect, error, feature_mask, status=0, *, freedom=100.0, axes=(), extra_masks=(), whole_masks=False, unit_ids=None):
    """Statistics with exactly these effects and standard errors ``(N, U, *outputs)``, or ``(U,)`` for one example and output.

    Masks are ``(*spatial)``, or with ``whole_masks`` ``(N or 1, C or 1, *spatial)``.
    """
    effect, error, status = (torch.as_tensor(np.array(v)).double() for v in (effect, error, status))
    effect = effect[None] if effect.ndim == 1 else effect
    error, status = error.expand(effect.shape).clone(), status.expand(effect.shape).clone()
    unknown = (status == EXCLUDED) | (status == ABSENT)
    masks = [torch.as_tensor(np.asarray(m)) for m in (feature_mask, *extra_masks)]
    masks = masks if whole_masks else [m[None, None] for m in masks]
    # Moderation leaves sample variances alone that are all 1; an infinite error needs that none of them is known.
    seen = torch.isfinite(error)
    variance = 1.0 if bool(seen.all()) else torch.nan
    return TreatmentEffectStatistics(
        effect=torch.where(unknown, torch.nan, effect),
        sample_variance=torch.full_like(effect, variance),
        variance_factor=torch.where(seen, error**2, 1.0),
        variance_freedom=torch.full_like(effect, freedom if variance == 1 else 0.0),
        n_draws=torch.full(effect.shape, 10),
        population=torch.full(effect.shape[:2], math.inf).double(),
        status=status.long(),
        observed_score=torch.ones(effect.shape[0], *effect.shape[2:]).double(),
        unit_ids=torch.unique(torch.cat([m.flatten() for m in masks])) if unit_ids is None else unit_ids,
        feature_mask=masks,
        input_shapes=[(len(effect), m.shape[1], *m.shape[2:]) for m in masks],
        n_forwards=1,
        inputs_are_tuple=len(masks) > 1,
        output_axes=axes,
    )


def row(unit_values, error=0.01, status=None, **options):
    """Blocks of 4 x 4 in a row; the RoI is the middle one."""
    count = len(unit_values)
    status = [EXCLUDED if u == count // 2 else 0 for u in range(count)] if status is None else status
    statistics = make(unit_values, error, regions.grid((4, 4 * count), 4), status, **options)
    return statistics, regions.box((4, 4 * count), (0, count // 2 * 4), 4)


def grouped_statistics():
    """Six units in two rows of three, two RoIs; unit 0 touches RoI 0, units 4 and 5 touch RoI 1."""
    effect = np.array([[[0.0, 0.1], [0.2, 0.3], [0.4, -0.5], [0.6, 0.7], [0.8, 0.0], [1.0, 0.0]]])
    error = np.array([[[1.0, 0.1], [0.1, 0.2], [0.3, 0.1], [0.1, 0.3], [0.4, 1.0], [0.1, 1.0]]])
    status = np.zeros((1, 6, 2))
    status[0, 0, 0] = status[0, 4:, 1] = EXCLUDED
    return make(effect, error, regions.grid((4, 6), 2), status, axes=("roi",)), effect, error
