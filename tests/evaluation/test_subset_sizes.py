"""Sensitivity-n: on scores that are sums, and on one that is not, by a loop."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg.evaluation import Faithfulness, sensitivity_n
from captum_causalseg.evaluation.judging_cost import SHARES


class Weighted(nn.Module):
    """Linear in blocks of two pixels of each axis."""

    def __init__(self, effects: torch.Tensor, power: int = 1) -> None:
        super().__init__()
        for axis in range(effects.ndim):
            effects = effects.repeat_interleave(2, axis)
        self.effects, self.power = effects / 2**effects.ndim, power

    def forward(self, x):
        return (self.effects * x[:, 0]).flatten(1).sum(1) ** self.power


@pytest.mark.parametrize("d", [1, 2, 3])
def test_exact_attributions_of_a_sum_have_a_correlation_of_1_at_every_size(d):
    effects = torch.randn((4,) * d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    model, images = Weighted(effects), torch.ones(2, 1, *(8,) * d, dtype=torch.float64)
    judge = Faithfulness(model, images, 0.0, block_size=2, n_draws=2, n_subsets=40)
    maps = model.effects.expand(2, 1, *model.effects.shape)
    np.testing.assert_allclose(sensitivity_n(judge, maps), 1)
    np.testing.assert_allclose(sensitivity_n(judge, -maps), -1)
    assert np.isnan(sensitivity_n(judge, torch.zeros_like(images))).all()


def test_it_is_the_mean_over_sizes_of_correlations_by_hand():
    effects = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, image = Weighted(effects, power=3), torch.ones(1, 1, 8, 8, dtype=torch.float64)
    judge = Faithfulness(model, image, 0.0, block_size=2, n_draws=1, n_subsets=20)
    noise = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = noise.repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    by_size = []
    for place, share in enumerate(SHARES):
        order = judge.replacements.random_numbers(3 + place, 5).argsort(1)
        claimed, change = [], []
        for row in order:
            gone = row[: round(share * 16)]
            kept = effects.flatten().clone()
            kept[gone] = 0
            change.append(float(effects.sum() ** 3 - kept.sum() ** 3))
            claimed.append(float(noise.flatten()[gone].sum()))
        by_size.append(np.corrcoef(claimed, change)[0, 1])
    assert sensitivity_n(judge, maps)[0] == pytest.approx(np.mean(by_size))
