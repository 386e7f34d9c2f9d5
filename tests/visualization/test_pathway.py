"""The picture of the ways through a network: what is said of each layer, whatever their number and names."""

import math

import pytest
import torch
from matplotlib.patches import FancyArrowPatch
from monai.networks.nets import UNet
from torch import nn

from captum_causalseg import SegmentationTarget, pathway, regions
from captum_causalseg.visualization import plot_pathway
from captum_causalseg.visualization.pictures import ROLES


def found(layers, n_levels=2, **options):
    torch.manual_seed(0)
    model = UNet(2, 1, 2, (4,) * (n_levels + 1), (2,) * n_levels, norm="BATCH").eval()
    size = (2 ** max(n_levels, 4),) * 2
    target = SegmentationTarget(model, roi=regions.box(size, start=0, size=4), metric="logit_mean")
    image, donors = torch.rand(1, 1, *size), torch.rand(5, 1, *size)
    asked = {
        "layers": layers,
        "output": 1,
        "block_size": size[0] // 4,
        "n_draws": 4,
        "support": None,
        "exclude": None,
    } | options
    return pathway(target, image, donors, **asked)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("n_levels", [1, 2, 6])
def test_each_level_and_skip_has_its_arrows_and_its_share(n_levels):
    figure = plot_pathway(found(["levels", "skips"], n_levels, region_units=1), title="case 7", score_name="Dice")
    said = texts(figure)
    names = [f"level {k}" for k in range(1, n_levels)] + ["bottleneck"] + [f"skip {k}" for k in range(n_levels)]
    for name in names:
        (mine,) = [text for text in said if text.split("\n")[0] == name]
        assert mine.split("\n")[1].startswith(("share ", "indirect "))
        assert mine.split("\n")[2].startswith("interaction ")
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    # Down and up for each level, one for each skip, in and out.
    assert len(arrows) == 2 * n_levels + n_levels + 2
    assert figure.axes[0].get_title().startswith("case 7\nEffect of the region on the Dice: ")


def test_arrows_are_as_thick_as_what_travels_and_have_its_color():
    one = found(["levels", "skips"], region_units=1)
    table = one.to_dataframe().set_index("layer")
    figure = plot_pathway(one)
    colored = [
        p
        for p in figure.axes[0].patches
        if isinstance(p, FancyArrowPatch) and p.get_arrowstyle().__class__.__name__ == "Simple"
    ]
    order = ["level 1", "level 1", "bottleneck", "bottleneck", "skip 0", "skip 1"]
    largest = max(table["total"].abs().max(), table["indirect"].abs().max())
    for patch, name in zip(colored, order, strict=True):
        row = table.loc[name]
        assert patch.get_arrowstyle().tail_width == pytest.approx(max(20 * abs(row["indirect"]) / largest, 0.8))
        told = row["indirect_lower"] > 0 or row["indirect_upper"] < 0
        role = "null" if not told else "supporting" if row["indirect"] > 0 else "harming"
        color = patch.get_facecolor()[:3]
        if role == "null":
            assert color[0] == color[1] == color[2]
        else:
            assert math.dist(color, [int(ROLES[role][i : i + 2], 16) / 255 for i in (1, 3, 5)]) < 1e-6


def test_layers_of_no_u_stand_one_below_the_other():
    torch.manual_seed(0)
    long = "an_encoder_with_a_name_that_goes_on_and_on_and_costs_$5"
    model = nn.Sequential()
    model.add_module(long, nn.Conv2d(1, 2, 3, padding=1))
    model.add_module("last", nn.Conv2d(2, 1, 3, padding=1))
    target = SegmentationTarget(model, metric="logit_mean")
    one = pathway(target, torch.rand(1, 1, 8, 8), torch.rand(5, 1, 8, 8), layers=[long, "last"], region_units=1, block_size=4)
    figure = one.plot()
    said = texts(figure)
    assert said[0].endswith("costs_$5")
    assert len(said[0]) <= 30
    assert "last" in said
    assert sum(text.startswith("share 1.00 [1.00, 1.00]") for text in said) == 2
    figure.draw_without_rendering()


def test_of_many_units_the_shares_by_distance_stand_beside():
    figure = plot_pathway(found("levels"), score_name="Dice")
    assert figure.axes[0].get_title().endswith(" units have an effect on the Dice that is told from 0")
    assert len(figure.axes) == 3
    assert figure.axes[2].get_xlabel() == "distance from the region of interest (pixels)"
    assert any(text.startswith("level 1\nshare ") for text in texts(figure))
    with pytest.raises(ValueError, match=r"^example: "):
        plot_pathway(found("levels", region_units=0), example=1)


def test_what_is_0_in_every_draw_is_said_without_an_interval():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(128, 1))
    cut = pathway(
        model, torch.rand(1, 1, 8, 8), torch.rand(5, 1, 8, 8), region_units=0, layers="0", block_size=4, exclude=None, n_draws=4
    )
    (said,) = [text for text in texts(plot_pathway(cut)) if "interaction" in text]
    assert said.split("\n")[1] == "interaction 0 in every draw"
    once = pathway(
        model, torch.rand(1, 1, 8, 8), torch.rand(5, 1, 8, 8), region_units=0, layers="0", block_size=4, exclude=None, n_draws=1
    )
    for found in (cut, once):
        assert not any("inf" in text for text in [*texts(plot_pathway(found)), str(found)])
