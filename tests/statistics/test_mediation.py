"""Shares of effects: Fieller's intervals against their definition, and their coverage."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from captum_causalseg import MediatedTreatmentEffect, PatchBank
from captum_causalseg.statistics.mediation import fieller


def test_the_ends_are_where_the_difference_is_just_not_clear():
    """By definition the interval holds the ratios r for which numerator - r * denominator is not clearly nonzero."""
    rng = np.random.default_rng(0)
    n = 50
    b, a = rng.uniform(2, 4, n), rng.normal(size=n)
    half = rng.normal(size=(n, 2, 2)) * 0.4
    covariances = half @ half.swapaxes(1, 2)
    va, vb, cov, t = covariances[:, 0, 0], covariances[:, 1, 1], covariances[:, 0, 1], rng.uniform(1.5, 3, n)
    lower, upper = fieller(a, b, variances=(va, vb), covariance=cov, t=t)
    defined = t**2 * vb < b**2
    assert 10 < defined.sum() < n
    assert (np.isnan(lower) == ~defined).all()
    for end in (lower, upper):
        r = end[defined]
        distance = np.abs(a[defined] - r * b[defined])
        spread = np.sqrt((va - 2 * end * cov + end**2 * vb)[defined])
        np.testing.assert_allclose(distance, t[defined] * spread, rtol=1e-6, atol=1e-9)
    assert ((lower <= a / b) & (a / b <= upper))[defined].all()


def test_exact_estimates_have_an_exact_ratio():
    zero = np.zeros(1)
    ends = fieller(np.array([1.0]), np.array([-4.0]), variances=(zero, zero), covariance=zero, t=zero)
    assert [float(end[0]) for end in ends] == [-0.25, -0.25]
    ends = fieller(np.array([1.0]), zero, variances=(zero, zero), covariance=zero, t=zero)
    assert all(np.isnan(end).all() for end in ends)


def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say():
    rng, n, draws, level = np.random.default_rng(1), 4000, 12, 0.9
    samples = rng.multivariate_normal([0.6, 1.5], [[1.0, 0.7], [0.7, 1.0]], size=(n, draws))
    means, covariances = samples.mean(1), np.array([np.cov(one.T) for one in samples]) / draws
    t = np.full(n, scipy_stats.t.ppf(0.5 + level / 2, draws - 1))
    lower, upper = fieller(
        means[:, 0],
        means[:, 1],
        variances=(covariances[:, 0, 0], covariances[:, 1, 1]),
        covariance=covariances[:, 0, 1],
        t=t,
    )
    known = ~np.isnan(lower)
    assert known.mean() > 0.99
    held = ((lower <= 0.4) & (upper >= 0.4))[known].mean()
    assert abs(held - level) <= 3 * np.sqrt(level * (1 - level) / n)


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, x):
        return 3 * self.first(x * 1.0).sum((1, 2, 3)) + self.second(x * 1.0).square().sum((1, 2, 3))


def test_shares_are_known_where_the_total_is_clear():
    image, donors = (
        torch.ones(1, 1, 4, 4),
        0.5 + torch.rand(40, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(40, 1, 4, 4) / 4,
    )
    # A part that is given itself has no effect, and no share.
    donors = donors.clone()
    donors[:, :, :2, :2] = 1.0
    bank = PatchBank(donors.contiguous(), placement="aligned")
    _, stats = MediatedTreatmentEffect(Both(), ["first", "second"]).attribute(
        image, bank, block_size=2, n_draws=8, n_screening_draws=0, sampling="uniform", return_statistics=True
    )
    shares = {name: stats[name].share_mediated() for name in stats}
    for share, lower, upper in shares.values():
        assert all(bool(one[0, 0].isnan()) for one in (share, lower, upper))
        assert ((lower <= share) & (share <= upper))[0, 1:].all()
    together = shares["first"][0] + shares["second"][0]
    torch.testing.assert_close(together[0, 1:], torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    # Of all donors: 3 (1 - b) beside 1 - b^2.
    values = donors[:, 0, 3, 3].double()
    exact = float(3 * (1 - values).mean() / (3 * (1 - values) + 1 - values**2).mean())
    assert float(shares["first"][1][0, 3]) <= exact <= float(shares["first"][2][0, 3])


def test_what_is_not_there_is_refused_by_name():
    image = torch.ones(1, 1, 4, 4)
    _, stats = MediatedTreatmentEffect(Both(), ["first", "second"]).attribute(image, 0.0, return_statistics=True)
    assert list(stats) == ["first", "second"]
    assert stats.of_layer(1) is stats["second"]
    with pytest.raises(ValueError, match=r"^name: expected one of 'first', 'second', got 'third'"):
        stats.of_layer("third")
    assert "third" not in stats
    assert repr(stats).startswith("MediationStatistics(first, second; TreatmentEffectStatistics(1 example(s)")
