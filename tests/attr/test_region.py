"""What is reported of a region: its fields as a table and in a sentence."""

import torch
from torch import nn

from captum_causalseg import necessary_region, sufficient_region


class Either(nn.Module):
    def forward(self, image):
        return image.flatten(1)[:, [1, 3]].amax(1)


def region(face=sufficient_region, **arguments):
    image, donors = torch.ones(1, 1, 1, 5), torch.rand(20, 1, 1, 5, generator=torch.Generator().manual_seed(0)) / 10
    return face(Either(), image, donors, **{"block_size": 1, "alternatives": 3, **arguments})


def test_a_table_has_a_row_for_each_alternative():
    found = region()
    table = found.to_dataframe()
    assert table["units"].tolist() == [" ".join(map(str, one.units)) for one in found]
    assert sorted(table["units"]) == ["1", "3"]
    assert table["n_units"].tolist() == [1, 1]
    assert (table["share_lower"] < table["share_reached"]).all()
    for number, one in enumerate(found):
        row = table.loc[number]
        assert (row["score_lower"], row["score_upper"]) == one.score_interval
        assert (row["reached"], row["complete"], row["smallest"], row["n_draws"]) == (True, True, True, 32)
        assert row["reason"] is None


def test_in_a_sentence():
    one, other = str(region()).splitlines()
    assert one.startswith("sufficient: 1 of 5 units keeps 1.000 of the span [0.891, 1.109]; score 1.0000, observed 1.0000")
    assert other.startswith("sufficient: 1 of 5 units keeps")
    assert str(region(necessary_region)).startswith(
        "necessary: 2 of 5 units take away 1.000 of the span [1.000, 1.000]; score 0.0"
    )
    assert repr(region()).endswith("alternatives=1)")


def test_that_it_is_not_reached_is_said():
    found = region(necessary_region, share_of="score", share=1.0)
    assert not found.reached
    assert found.units == (0, 1, 2, 3, 4)
    assert str(found).endswith("not reached: not even all units together reach it")
    assert found.to_dataframe()["reason"].tolist() == ["not even all units together reach it"]
