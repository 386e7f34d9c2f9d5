"""Statistics made by hand for the tests of pictures: no model runs."""

import math

import numpy as np
import torch

from captum_causalseg import Status, TreatmentEffectStatistics, regions


def statistics_of(effect, feature_mask, error=0.01, status=0, *, n_draws=10, axes=(), channels=1, forwards=100):
    """Statistics with exactly these effects and standard errors ``(N, U, *outputs)``; masks ``(*spatial)``, or a tuple of them."""
    effect = torch.as_tensor(np.array(effect)).double()
    error = torch.as_tensor(np.broadcast_to(error, effect.shape).copy()).double()
    status = torch.as_tensor(np.broadcast_to(status, effect.shape).copy()).long()
    # Moderation leaves sample variances alone that are all 1; an infinite error needs that none of them is known.
    seen = torch.isfinite(error)
    known = bool(seen.all())
    masks = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    masks = [torch.as_tensor(np.asarray(mask))[None, None] for mask in masks]
    return TreatmentEffectStatistics(
        effect=torch.where(status == Status.EXCLUDED, torch.nan, effect),
        sample_variance=torch.full_like(effect, 1.0 if known else math.nan),
        variance_factor=torch.where(seen, error**2, 1.0),
        variance_freedom=torch.full_like(effect, 1e6 if known else 0.0),
        n_draws=torch.as_tensor(np.broadcast_to(n_draws, effect.shape).copy()),
        population=torch.full(effect.shape[:2], math.inf).double(),
        status=status,
        observed_score=torch.ones(effect.shape[0], *effect.shape[2:]).double(),
        unit_ids=torch.unique(torch.cat([mask.flatten() for mask in masks])),
        feature_mask=masks,
        input_shapes=[(effect.shape[0], channels, *mask.shape[2:]) for mask in masks],
        n_forwards=forwards,
        inputs_are_tuple=len(masks) > 1,
        output_axes=axes,
    )


def case(spatial, block, start, size, *, channels=1, scale=0.05, n_examples=1):
    """Image, statistics and RoI: effects of both signs that fade with the distance, beyond which nothing reaches the RoI."""
    mask = np.asarray(regions.grid(spatial, block))
    roi = regions.box(spatial, start, size)
    units = int(mask.max()) + 1
    generator = np.random.default_rng(0)
    middle = np.argwhere(roi.numpy()).mean(0)
    centers = np.array([np.argwhere(mask == unit).mean(0) for unit in range(units)])
    distance = np.sqrt(((centers - middle) ** 2).sum(1)) / max(spatial)
    status = np.where(distance > 0.5, Status.OUTSIDE_SUPPORT, Status.ESTIMATED)
    status[np.unique(mask[roi.numpy()])] = Status.EXCLUDED
    effect = scale * generator.uniform(0.5, 1, units) * generator.choice([-1, 1], units) * np.exp(-6 * distance)
    effect = np.where(status == Status.OUTSIDE_SUPPORT, 0, effect)
    error = np.where(status == Status.OUTSIDE_SUPPORT, 0, scale * generator.uniform(0.02, 0.08, units))
    grid = np.indices(spatial)
    bowl = sum(((axis - length / 2) / (length / 2)) ** 2 for axis, length in zip(grid, spatial))
    picture = np.clip(1.2 - bowl, 0, 1) * (0.7 + 0.3 * np.sin(grid.sum(0) / 4))
    image = torch.from_numpy(np.stack([picture * (1 - 0.25 * c) for c in range(channels)])).float()
    draws = np.where(status == Status.ESTIMATED, generator.integers(3, 21, units), 0)
    several = [np.broadcast_to(values, (n_examples, units)) for values in (effect, error, status, draws)]
    statistics = statistics_of(several[0], mask, several[1], several[2], n_draws=several[3], channels=channels)
    return image[None].repeat(n_examples, *[1] * image.ndim), statistics, roi
