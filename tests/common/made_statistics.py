"""Statistics made by hand."""

import math

import numpy as np
import torch

from captum_causalseg import TreatmentEffectStatistics


def make(
    effect=(0.5, -0.25, 0.0, 0.1),
    variance=(0.04, 0.01, 0.0, 0.0),
    draws=(10, 10, 10, 5),
    population=(math.inf, 20.0, math.inf, 5.0),
    status=(0, 0, 0, 0),
    output_shape=(),
    **options,
):
    shape = (1, len(effect), *output_shape)
    expand = [np.reshape(v, (1, len(effect), *(1,) * len(output_shape))) for v in (effect, variance, draws, status)]
    arrays = [torch.from_numpy(np.broadcast_to(v, shape).copy()) for v in expand]
    mask = torch.arange(len(effect)).repeat_interleave(2)[None, None]
    return TreatmentEffectStatistics(
        effect=arrays[0].double(),
        sample_variance=arrays[1].double(),
        n_draws=arrays[2].long(),
        population=torch.tensor([population], dtype=torch.float64),
        status=arrays[3].long(),
        observed_score=torch.full((1, *output_shape), 0.75, dtype=torch.float64),
        unit_ids=torch.arange(len(effect)),
        feature_mask=[mask],
        input_shapes=[(1, 3, mask.shape[-1])],
        n_forwards=36,
        **options,
    )
