"""Which layers carry the effect of a region: against effects of a mask made by hand, and sums of known effects."""

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from captum_causalseg import MediatedTreatmentEffect, SegmentationTarget, Status, pathway, perception_profile, regions
from captum_causalseg.evaluation.pathways import effect_in_words, share_in_words

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
# With five donors, every one is used, and effects are exact.
EXACT = {"exclude": None, "sampling": "uniform"}


class TwoWays(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.deep, self.skip = (CONV[d](1, 2, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return torch.tanh(self.deep(x)) + self.skip(x)


def case(d, n=1):
    torch.manual_seed(d)
    size = (12,) * d if d == 2 else (8,) * d
    rois = torch.stack([regions.box(size, start=0, size=3), regions.box(size, start=4, size=3)])
    target = SegmentationTarget(TwoWays(d), roi=rois, reference=torch.randint(0, 2, (n, *size)), metric="soft_dice")
    return target, torch.rand(n, 1, *size), torch.rand(5, 1, *size), size


@pytest.mark.parametrize("d", [2, 3])
def test_a_region_is_one_unit(d):
    target, images, donors, size = case(d, n=2)
    grid = regions.grid(size, 4)
    mask = torch.isin(grid, torch.tensor([1, 3]))
    by_hand = torch.where(mask, 1, 2)
    _, stats = MediatedTreatmentEffect(target, ["deep", "skip"]).attribute(
        images, donors, target=(1, 1), feature_mask=by_hand, n_draws=5, n_screening_draws=0, return_statistics=True, **EXACT
    )
    asked = {"layers": ["deep", "skip"], "output": (1, 1), **EXACT}
    found = [
        pathway(target, images, donors, region_units=[3, 1], block_size=4, **asked),
        pathway(target, images, donors, region_units=mask, **asked),
        pathway(target, images, donors, region_units=(1, 3), feature_mask=grid, **asked),
    ]
    for one in found:
        table = one.to_dataframe()
        assert table[["layer", "example"]].values.tolist() == [["deep", 0], ["deep", 1], ["skip", 0], ["skip", 1]]
        assert (one.statistics.total.status == Status.EXCLUDED).sum() == 2, "the rest costs nothing"
        for row in table.to_dict("records"):
            layer = stats[row["layer"]]
            for quantity in ("total", "indirect", "direct", "interaction"):
                wanted = float(layer.of_quantity(quantity).effect[row["example"], 0, 1, 1])
                assert row[quantity] == pytest.approx(wanted, abs=1e-9)
        assert one.settings["forwards"]["interventions"] == 2 * 5  # though each RoI has a window of its own
        assert torch.equal(one.rois, regions.box(size, start=4, size=3).expand(2, *size))
    assert table["total"].abs().min() > 1e-5
    assert found[0].shares(example=1)["share"].tolist() == found[0].to_dataframe().query("example == 1")["share"].tolist()


def test_shares_of_many_units_are_those_of_their_sums():
    target, images, donors, _ = case(2)
    found = pathway(target, images, donors, layers=["deep", "skip"], output=(1, 1), block_size=2, **EXACT)
    total = found.statistics.total
    profile = perception_profile(total, found.rois[0], bin_width=2)
    by_distance = found.by_distance(bin_width=2)
    assert set(found.shares()["n_units"]) == {len(profile.units)}
    for name in ("deep", "skip"):
        rows = by_distance[by_distance["layer"] == name].set_index("bin")
        assert rows["n_units"].to_dict() == profile.units.groupby("bin").size().to_dict()
        for number, row in rows.iterrows():
            units = profile.units[(profile.units["bin"] == number) & (profile.units["role"] != "null")]["unit"].tolist()
            effects = [(float(total.effect[0, u]), float(found.statistics[name].indirect.effect[0, u])) for u in units]
            mass = sum(abs(one) for one, _ in effects)
            assert row["n_clear"] == len(units)
            assert row["mass"] == pytest.approx(mass)
            if units:
                assert row["share"] == pytest.approx(sum(np.sign(one) * through for one, through in effects) / mass)
                assert row["share_lower"] == pytest.approx(row["share"])  # all is exact
            else:
                assert np.isnan(row["share"])
    assert {-1.0, 1.0} <= set(np.sign(total.effect[0].numpy())), "units of both signs"


def test_intervals_of_shares_hold_the_truth():
    """Of the sums of several units' effects, over many samples of donors."""
    torch.manual_seed(0)
    target, image, _, size = case(2)
    donors, n = torch.rand(60, 1, *size), 60
    asked = {
        "layers": "deep",
        "output": (1, 1),
        "exclude": None,
        "block_size": 4,
        "n_screening_draws": 0,
        "sampling": "uniform",
    }
    exact = pathway(target, image, donors, n_draws=60, **asked)
    units = np.arange(9) < 6
    true = exact.statistics["deep"].share_of_units(units)
    assert true[1] == pytest.approx(true[2])
    target = SegmentationTarget(target.model, roi=target.roi, reference=target.reference.expand(n, -1, -1), metric="soft_dice")
    found = pathway(target, image.expand(n, -1, -1, -1).contiguous(), donors, n_draws=10, seed=list(range(n)), **asked)
    ends = [found.statistics["deep"].share_of_units(units, example) for example in range(n)]
    held = [lower <= true[0] <= upper for share, lower, upper in ends if not np.isnan(share)]
    assert len(held) > 0.8 * n
    assert np.mean(held) >= 0.9


def test_levels_of_a_u_net_have_their_place():
    torch.manual_seed(0)
    model = UNet(2, 1, 2, (4, 8, 8), (2, 2), norm="BATCH").eval()
    target = SegmentationTarget(model, metric="logit_mean")
    image, donors = torch.rand(1, 1, 16, 16), torch.rand(5, 1, 16, 16)
    found = pathway(target, image, donors, region_units=0, layers=["levels", "skips", "model.0"], block_size=8, output=1)
    assert found.to_dataframe()[["layer", "role"]].values.tolist() == [
        ["level 1", "level"],
        ["bottleneck", "level"],
        ["skip 0", "skip"],
        ["skip 1", "skip"],
        ["model.0", "layer"],
    ]
    assert found.to_dataframe()["depth"].tolist()[:4] == [1, 2, 0, 1]
    assert str(found).startswith("the region's effect is ")
    assert "  through level 1: " in str(found)
    assert repr(found) == "Pathway(one region; level 1, bottleneck, skip 0, skip 1, model.0)"
    renamed = pathway(target, image, donors, region_units=0, layers={"deep": "model.0"}, block_size=8, output=1)
    assert renamed.places["deep"].role == "layer"


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"region_units": 9}, r"^region_units: there is no unit 9; the ids are 0 to 8"),
        ({"region_units": [0, 11, 9]}, r"^region_units: there is no unit 9, 11; the ids are 0 to 8"),
        (
            {"region_units": torch.ones(4, 4) > 0},
            r"^region_units: expected a mask of an input's spatial shape \(12, 12\), got \(4, 4\)",
        ),
        (
            {"region_units": 4},
            r"^region_units: the region touches what is excluded in example 0 \(by default, the RoI itself\)",
        ),
        (
            {"region_units": "0"},
            "^region_units: expected an integer, unit ids, a tensor or an array of booleans or None, got str",
        ),
        ({"region_units": 0, "layers": "dep"}, "^layers: no module is named 'dep'; did you mean deep"),
        ({"region_units": 0, "output": 5}, "^output: "),
    ],
)
def test_what_cannot_be_is_refused_by_name(asked, match):
    target, images, donors, _ = case(2)
    with pytest.raises(ValueError, match=match):
        pathway(target, images, donors, **{"layers": "deep", "output": (1, 1), "block_size": 4} | asked)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((-0.001, -0.004, 0.003), "0.00 [0.00, 0.00]"),
        ((0.5, 0.25, 0.75), "0.50 [0.25, 0.75]"),
        ((0.5, -0.5, 1.5), "0.50 [-0.50, 1.50], which says little"),
        ((1.5, 1.25, 1.75), "1.50 [1.25, 1.75], beyond 0 to 1: ways undo each other"),
        ((0.5, np.nan, np.nan), "0.50 (interval not known)"),
    ],
)
def test_shares_in_words(row, said):
    assert share_in_words(dict(zip(("share", "share_lower", "share_upper"), row))) == said


def test_what_is_rounded_to_0_has_no_sign():
    row = {"direct": -1e-9, "direct_lower": -0.002, "direct_upper": 2e-9}
    assert effect_in_words(row, "direct", "+.2f") == "0.00 [0.00, 0.00]"
    assert effect_in_words(row, "direct", "+.2g") == "-1e-09 [-0.002, +2e-09]"
    assert effect_in_words({"direct": 0.0, "direct_lower": 0.0, "direct_upper": -0.0}, "direct", "+.2g") == "0 [0, 0]"


def test_a_distance_takes_units_and_a_region_of_interest():
    target, images, donors, _ = case(2)
    one = pathway(target, images, donors, region_units=8, layers="deep", output=(1, 0), block_size=4)
    with pytest.raises(ValueError, match=r"^region_units: one region has one distance"):
        one.by_distance()
    whole = SegmentationTarget(target.model, metric="logit_mean")
    every = pathway(whole, images, donors, layers="deep", output=1, block_size=4)
    with pytest.raises(ValueError, match=r"^target: it has no region of interest"):
        every.by_distance()
    assert "travel\n  through deep: " in str(every)
