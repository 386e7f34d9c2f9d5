"""Effects split at mediators: shares, tables, names."""

import pytest
import torch

from captum_causalseg import MediatedTreatmentEffect, PatchBank


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


def test_where_all_goes_through_in_every_draw_the_share_has_the_widest_interval_that_the_errors_allow():
    """``total - r indirect`` has the largest variance where the errors of both are opposite: then ``|total| (1 - r)`` is at most ``t s (1 + r)``."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 1))
    with torch.no_grad():
        for weights in model.parameters():
            weights.abs_()
    asked = {"block_size": 4, "exclude": None, "n_draws": 8, "n_screening_draws": 0, "sampling": "uniform"}
    _, stats = MediatedTreatmentEffect(model, "0").attribute(
        torch.ones(1, 1, 4, 4), torch.rand(40, 1, 4, 4), return_statistics=True, **asked
    )
    (row,) = stats.to_dataframe().to_dict("records")
    assert (row["share"], row["direct"], row["interaction"]) == (pytest.approx(1.0), 0.0, pytest.approx(0.0, abs=1e-6))
    low, high = sorted((row["total_lower"], row["total_upper"]), key=abs)
    assert row["share_lower"] == pytest.approx(low / high)
    assert row["share_upper"] == pytest.approx(high / low)
