"""Interactions of pairs: planted redundancy and synergy, intervals, refusals."""

import numpy as np
import pytest
import torch
from torch import nn
from window_cases import Local

from captum_causalseg import PatchBank, SegmentationTarget, interaction_effects, regions


class Planted(nn.Module):
    """Either of the first two units is enough, both of the next two are needed, the last two add up."""

    def forward(self, image):
        a, b, c, d, e, f = image.flatten(1).T
        return torch.maximum(a, b) + torch.minimum(c, d) + e + 0.5 * f


def planted(d=2, **arguments):
    image = torch.ones(1, 1, *(1,) * (d - 1), 6)
    donors = torch.rand(40, 1, *image.shape[2:], generator=torch.Generator().manual_seed(0)) / 4
    return interaction_effects(Planted(), image, donors, **{"block_size": 1, "n_draws": 20, **arguments})


@pytest.mark.parametrize("d", [2, 3])
def test_redundancy_and_synergy_are_told_apart_from_what_adds_up(d):
    table = planted(d, pairs=[(0, 1), (3, 2), (4, 5), (0, 2)]).set_index(["first", "second"])
    assert table["kind"].to_dict() == {(0, 1): "redundant", (2, 3): "synergistic", (4, 5): "none", (0, 2): "none"}
    # Donors are below 1/4: the larger of two takes the place of both.
    both = table.loc[(0, 1)]
    assert both.effect_first == both.effect_second == 0
    assert both.interaction == both.joint
    assert 0.75 < both.lower < both.interaction < both.upper < 1
    need = table.loc[(2, 3)]
    assert need.interaction == pytest.approx(need.joint - need.effect_first - need.effect_second, abs=1e-9)
    assert need.upper < -0.5
    assert table.loc[(4, 5)].interaction == pytest.approx(0, abs=1e-6)


def test_the_strongest_units_are_found():
    table = planted(top=4, n_draws=10)
    assert len(table) == 6
    assert set(table["first"]) | set(table["second"]) <= {0, 1, 2, 3, 4, 5}
    assert 4 in set(table["first"]) | set(table["second"]), "the unit with the largest effect of all"
    assert table["interaction"].abs().is_monotonic_decreasing
    assert table.attrs["forwards"]["interventions"] == 10 * (4 + 6)
    assert table.attrs["forwards"]["choosing the units"] >= 16 * 6


def test_intervals_hold_the_mean_over_all_donors():
    image, donors = torch.ones(1, 1, 1, 6), torch.rand(6, 1, 1, 6, generator=torch.Generator().manual_seed(1))
    score, held, n = Planted(), [], 40
    a, b = donors[:, 0, 0, 0].double(), donors[:, 0, 0, 2].double()
    c = donors[:, 0, 0, 3].double()
    exact = float((torch.minimum(b[:, None], torch.tensor(1.0)) - torch.minimum(b[:, None], c[None])).mean() - (1 - c.mean()))
    for seed in range(n):
        table = interaction_effects(score, image, donors, pairs=[(2, 3), (0, 1)], block_size=1, n_draws=12, seed=seed)
        row = table[table["first"] == 2].iloc[0]
        # joint less singles: M(p) + M(q) - M(x) - M(p, q), each with every donor.
        held.append(row.lower <= exact <= row.upper)
    assert len(a) == 6
    assert np.mean(held) >= 0.85


def test_a_pair_that_cannot_reach_the_roi_interacts_by_nothing():
    torch.manual_seed(0)
    image, bank = torch.rand(1, 1, 32, 32), PatchBank(torch.rand(4, 1, 32, 32))
    target = SegmentationTarget.from_prediction(
        Local(2).eval(), image, roi=regions.box((32, 32), start=8, size=8), metric="soft_dice"
    )
    table = interaction_effects(
        target,
        image,
        bank,
        output=1,
        pairs=[(1, 4), (1, 15), (14, 15)],
        block_size=8,
        n_draws=4,
        support="always",
        exclude=None,
    ).set_index(["first", "second"])
    for pair in ((1, 15), (14, 15)):
        assert table.loc[pair, "interaction"] == 0
        assert table.loc[pair, "n_draws"] == 0
        assert table.loc[pair, "kind"] == "none"
    assert table.loc[(1, 4), "n_draws"] == 4
    assert table.loc[(1, 4), "standard_error"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pairs, top: give one of them, got neither"),
        ({"pairs": [(0, 1)], "top": 3}, "pairs, top: give one of them, got both"),
        ({"pairs": [(0, 0)]}, "pairs: expected two different units or components, got 0 twice"),
        ({"pairs": [(0, 9)]}, "pairs: there is no unit 9; the ids are 0 to 5"),
        ({"pairs": [(0, 1, 2)]}, "pairs[0]: expected a pair of units or components, got (0, 1, 2)"),
        ({"top": 1}, "top: expected"),
        ({"pairs": [(0, 1)], "n_draws": 1}, "n_draws: expected"),
        (
            {"pairs": [(0, 1)], "exclude": torch.tensor([[True] + [False] * 5])},
            "pairs: unit 0 of example 0 is excluded or absent",
        ),
        ({"pairs": [(0, 1)], "output": 3}, "output: "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError)) as refused:
        planted(**arguments)
    assert str(refused.value).startswith(message)
