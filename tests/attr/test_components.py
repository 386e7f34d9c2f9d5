"""The table of a network's components."""

import re

import numpy as np
import pytest
import torch
from component_cases import unet
from torch import nn

from captum_causalseg import (
    ActivationBank,
    LayerAverageTreatmentEffect,
    SegmentationTarget,
    WindowedModel,
    causal_support,
    component_effects,
    pathway,
    regions,
)
from captum_causalseg.attr.components import _seed_of


@pytest.mark.parametrize("d", [2, 3])
def test_rows_are_what_the_layer_face_says_sorted_by_effect(d):
    model, target, images, donors = unet(d, n=2)
    table = component_effects(target, images, ["model.0", "model.1.*conv*"], donors, output=1, n_draws=4, seed=3)
    assert table["effect"].groupby(table["example"]).apply(lambda e: e.is_monotonic_decreasing).all()
    modules = dict(model.named_modules())
    for row in table.itertuples():
        _, stats = LayerAverageTreatmentEffect(target, modules[row.module]).attribute(
            images,
            layer_baselines=donors,
            units="layer",
            target=1,
            n_draws=4,
            seed=_seed_of(row.module, 3),
            return_statistics=True,
        )
        assert row.effect == pytest.approx(float(stats.effect[row.example, 0, 1]), abs=1e-12)
        assert row.standard_error == pytest.approx(float(stats.of_output(1).standard_error[row.example, 0]), abs=1e-12)
        assert row.share == pytest.approx(row.effect / row.observed_score)
        assert row.lower <= row.effect <= row.upper
        assert row.n_draws == (3 if row.status == "SCREENED" else 5), "of five donors all are used"
        assert row.type == type(modules[row.module]).__name__


@pytest.mark.parametrize("n_folds", [1, 2])
def test_modules_inside_a_sliding_window(n_folds):
    folds = [unet(2)[0] for _ in range(n_folds)]
    for fold in folds[1:]:
        with torch.no_grad():
            fold.model[0].conv.weight.mul_(1.1)
    corners = [(i, j) for i in (0, 4, 8) for j in (0, 8)]
    model = WindowedModel(folds if n_folds > 1 else folds[0], 8, corners, torch.ones(8, 8), batch_size=3)
    images, donors = torch.rand(1, 1, 16, 16), torch.rand(4, 1, 16, 16)
    labels = torch.randint(0, 2, (1, 16, 16))
    target = SegmentationTarget(model, roi=regions.box((16, 16), 2, 4), reference=labels, metric="logit_mean")
    table = component_effects(target, images, baselines=donors, output=1, n_draws=4, n_screening_draws=0)
    prefix = "network" if n_folds == 1 else "folds.0"
    assert set(table["module"]) == {prefix, *(f"{prefix}.{name}" for name, _ in folds[0].named_modules() if name)}
    layer = folds[-1].model[0].conv
    _, stats = LayerAverageTreatmentEffect(target, layer).attribute(
        images, donors, units="layer", target=1, n_draws=4, n_screening_draws=0, return_statistics=True
    )
    row = table[table["module"] == f"{prefix}.model.0.conv"].iloc[0]
    assert row["effect"] == pytest.approx(float(stats.effect[0, 0, 1]), abs=1e-6)
    assert abs(row["effect"]) > 1e-4
    assert {"encoder", "bottleneck", "decoder"} >= set(table.loc[table["module"].str.endswith("conv"), "part"])
    together = "it is replaced together with folds.0.model.0.conv, its like in the first network"
    assert table.attrs["left_out"].get("folds.1.model.0.conv") == (together if n_folds > 1 else None)


def test_every_module_is_there_by_default_and_those_left_out_say_why():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 1, 1)
            self.twice, self.last = nn.ReLU(), nn.Conv2d(2, 2, 1)
            self.shape = Shape()

        def forward(self, x):
            self.shape(x)
            return self.last(self.twice(self.twice(self.first(x))))

    class Shape(nn.Module):
        def forward(self, x):
            return tuple(x.shape)

    torch.manual_seed(0)
    images = torch.rand(1, 1, 8, 8)
    target = SegmentationTarget.from_prediction(Odd().eval(), images, metric="soft_dice")
    table = component_effects(target, images, baselines=torch.rand(4, 1, 8, 8), output=1, n_draws=3)
    assert set(table["module"]) == {"first", "last"}
    assert table.attrs["left_out"] == {
        "unused": "it is not called",
        "twice": "it is called 2 times",
        "shape": "it returns no floating-point tensor",
    }
    assert (table["part"] == "network").all()
    with pytest.raises(
        ValueError, match=r"layers: none of twice has one activation to intervene on: it is called 2 times \(twice\)"
    ):
        component_effects(target, images, "twice", output=1)


def test_parts_follow_the_resolution_in_the_order_of_the_forward_pass():
    _, target, images, donors = unet()
    table = component_effects(target, images, baselines=donors, output=1, n_draws=2).set_index("module")
    assert table.loc["model.0", "part"] == "encoder"
    assert table.loc["model.1.submodule.1.submodule.conv", "part"] == "bottleneck"
    assert table.loc["model.2", "part"] == "decoder"
    inner = table[~table["part"].str.contains("-")]
    assert inner.sort_values("order")["part"].drop_duplicates().tolist() == ["encoder", "bottleneck", "decoder"]


def test_a_module_that_holds_several_parts_is_called_by_their_span():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = nn.Sequential(
                nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 2, stride=2)),
                nn.Conv2d(2, 2, 1),
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 1)),
            )
            self.head = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.head(self.whole(x))

    torch.manual_seed(0)
    images = torch.rand(1, 1, 8, 8)
    target = SegmentationTarget.from_prediction(Net().eval(), images, metric="soft_dice")
    table = component_effects(target, images, output=1, n_draws=1, n_screening_draws=0).set_index("module")
    assert table["part"].to_dict() == {
        "whole": "encoder-decoder",
        "whole.0": "encoder-bottleneck",
        "whole.0.0": "encoder",
        "whole.0.1": "bottleneck",
        "whole.1": "bottleneck",
        "whole.2": "decoder",
        "whole.2.0": "decoder",
        "whole.2.1": "decoder",
        "head": "decoder",
    }


def test_channels_have_a_row_each():
    model, target, images, donors = unet()
    table = component_effects(target, images, "model.0.conv", donors, level="channel", output=1, n_draws=4, n_screening_draws=0)
    assert sorted(table["channel"]) == [0, 1, 2, 3]
    _, stats = LayerAverageTreatmentEffect(target, model.model[0].conv).attribute(
        images, layer_baselines=ActivationBank(donors), target=1, n_draws=4, n_screening_draws=0, return_statistics=True
    )
    for row in table.itertuples():
        assert row.effect == pytest.approx(float(stats.effect[0, row.channel, 1]), abs=1e-12)


def test_hooks_are_gone_and_a_given_bank_holds_no_recordings_of_all_modules():
    model, target, images, donors = unet()
    bank = ActivationBank(donors)
    component_effects(target, images, "model.0*", bank, output=1, n_draws=2)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert len(bank._recorded) == 0


def test_bad_arguments_are_explained():
    _, target, images, donors = unet()
    with pytest.raises(ValueError, match=r"^layers: no module is named 'encoder\.\*'; there are model, .* and \d+ more$"):
        component_effects(target, images, "encoder.*", donors, output=1)
    with pytest.raises(ValueError, match=r"^level: expected \"module\", \"channel\", \"token\" or \"head\", got 'layer'"):
        component_effects(target, images, "model.0", donors, "layer", output=1)
    with pytest.raises(ValueError, match=r"^output: the forward function has 2 outputs"):
        component_effects(target, images, "model.0", donors)
    with pytest.raises(TypeError, match="target: its components are modules, but its model is a function"):
        component_effects(SegmentationTarget(lambda x: x, metric="volume"), images)


@pytest.mark.parametrize("level", ["module", "channel"])
def test_after_the_first_module_it_is_said_how_many_forwards_the_others_take_at_most(level, capsys):
    _, target, images, donors = unet()
    table = component_effects(target, images, "model.*", donors, level, output=1, n_draws=2, show_progress=True)
    # With as many donors as are used up, so that all of them are.
    said = capsys.readouterr().err
    made, most, modules = map(
        int,
        re.search(
            r"Component effects: (\d+) forward passes so far, at most (\d+) to come for (\d+) further modules, about", said
        ).groups(),
    )
    forwards = table.groupby(["order", "module"])["forwards"].first()
    assert modules == len(forwards) - 1
    assert made in forwards.to_list()
    assert forwards.sum() - made <= most <= 3 * (forwards.sum() - made) + 40 * modules
    assert "Component effects: 100%" in said


def test_scripted_modules_are_left_out():
    scripted = torch.jit.trace(nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8))
    model = nn.Sequential(scripted, nn.ReLU(), nn.Conv2d(2, 1, 1))
    target = SegmentationTarget(model, metric="logit_mean", activation="sigmoid")
    table = component_effects(target, torch.rand(1, 1, 8, 8), n_draws=1)
    assert sorted(table["module"]) == ["1", "2"]
    assert table.attrs["left_out"] == {"0": "hooks do not run inside TorchScript"}


@pytest.mark.parametrize(
    "model", [nn.Conv2d(1, 2, 1), torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 1)).eval()))]
)
def test_a_model_without_modules_inside_has_no_components(model):
    target = SegmentationTarget(model, metric="logit_mean", activation="sigmoid")
    with pytest.raises(ValueError, match=r"target: its model \(\w+\) has no modules inside .* give the eager model"):
        component_effects(target, torch.rand(1, 1, 8, 8), n_draws=1)


def chain(n_donors: int):
    """Two modules whose replacement is the same intervention, an image and donors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Identity(), nn.Conv2d(3, 2, 3, padding=1)).eval()
    images = torch.rand(1, 1, 12, 12)
    return SegmentationTarget.from_prediction(model, images, metric="soft_dice"), images, torch.rand(n_donors, 1, 12, 12)


def test_modules_have_draws_of_their_own_whatever_the_process():
    assert _seed_of("decoder.0", 3) == 105061185238278436
    assert _seed_of("decoder.0", [3, 4]) == [_seed_of("decoder.0", 3), _seed_of("decoder.0", 4)]
    target, images, donors = chain(100)
    found = []
    for seed in range(30):
        table = component_effects(target, images, ["0", "1"], donors, output=1, n_draws=3, n_screening_draws=0, seed=seed)
        found.append(table.set_index("module")["effect"][["0", "1"]])
    errors = np.array(found)
    assert abs(np.corrcoef(errors.T)[0, 1]) < 0.5, "with the same draws it is 1"


@pytest.mark.parametrize(
    ("level", "n_draws", "all_of", "of_more"), [("channel", 4, 8, 4), ("module", 4, 64, 20), ("module", 33, 66, 33)]
)
def test_few_donors_are_all_used(level, n_draws, all_of, of_more):
    """Of a module there is no other unit whose spread its own could lean on: of up to 64 donors all are used whatever is asked for, of more 20."""
    target, images, donors = chain(all_of + 1)
    options = {"level": level, "output": 1, "n_screening_draws": 0}
    exact = component_effects(target, images, "0", donors[:-1], n_draws=n_draws, **options).iloc[0]
    assert (exact.n_draws, exact.standard_error) == (all_of, 0.0)
    every = component_effects(target, images, "0", donors[:-1], n_draws=all_of, **options).iloc[0]
    assert exact.effect == pytest.approx(every.effect, abs=1e-7)
    some = component_effects(target, images, "0", donors, n_draws=n_draws, **options).iloc[0]
    assert some.n_draws == of_more
    assert some.standard_error > 0


def test_where_draws_end_when_a_goal_is_reached_few_donors_are_drawn_from():
    target, images, donors = chain(8)
    _, stopped = LayerAverageTreatmentEffect(target, target.model[0]).attribute(
        images, donors, 1, units="layer", n_draws=4, n_screening_draws=0, precision=1.0, return_statistics=True
    )
    assert int(stopped.n_draws.max()) == 4


def test_donors_are_run_once_for_all_modules_that_fit_into_memory_together():
    _, target, images, donors = unet()
    together = component_effects(target, images, "model.0*", ActivationBank(donors), output=1, n_draws=2, seed=1)
    runs = 0

    def count(module, args):
        nonlocal runs
        runs += len(args[0])

    handle = target.model.register_forward_pre_hook(count)
    apart = component_effects(target, images, "model.0*", ActivationBank(donors, memory_budget=1), output=1, n_draws=2, seed=1)
    many, runs = runs, 0
    component_effects(target, images, "model.0*", donors, output=1, n_draws=2, seed=1)
    handle.remove()
    modules = together["module"].nunique()
    assert modules > 3
    assert many - runs == (modules - 1) * len(donors)
    assert apart["forwards"].sum() - together["forwards"].sum() == (modules - 1) * len(donors)
    assert together["effect"].tolist() == apart["effect"].tolist()


def test_a_model_that_changes_between_modules_is_refused():
    class Drifting(nn.Sequential):
        calls, off = 0, range(0)

        def forward(self, x):
            self.calls += 1
            shift = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1) * (self.calls in self.off)
            return super().forward(x) + shift

    torch.manual_seed(0)
    model = Drifting(*(nn.Conv2d(1 if not i else 2, 2, 3, padding=1) for i in range(8))).eval()
    images, donors = torch.rand(1, 1, 12, 12), torch.rand(3, 1, 12, 12)
    target = SegmentationTarget(model, reference=torch.zeros(12, 12, dtype=torch.long), metric="soft_dice")
    component_effects(target, images, baselines=donors, output=1, n_draws=3)
    # From now on, it is another one in the middle: neither the first module nor the last sees that.
    model.off = range(model.calls + model.calls // 2, 2 * model.calls - model.calls // 4)
    with pytest.raises(
        ValueError, match=r"^target: the observed score was .* at the first module and .* at '\d': the model is random"
    ):
        component_effects(target, images, baselines=donors, output=1, n_draws=3)


def test_the_support_is_searched_where_it_can_pay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval()
    images = torch.rand(1, 1, 64, 64)
    target = SegmentationTarget.from_prediction(model, images, roi=regions.box((64, 64), start=24, size=8), metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model[0])

    def run(**given):
        return face.attribute(images, torch.rand(60, 1, 64, 64), 1, n_screening_draws=0, return_statistics=True, **given)[1]

    few, always, many = run(n_draws=2), run(n_draws=2, support="always"), run(n_draws=60)
    assert "support" not in few.settings["forwards"]
    assert few.settings["support"] is None
    assert few.settings["disabled"]["support"].startswith("finding it may take ")
    for found in (always, many):
        assert found.settings["support"] in ("always", "auto")
        assert found.settings["window"] is not None
        assert found.settings["forwards"]["support"] + found.settings["forwards"]["window"] <= 100
    assert few.effect.shape == always.effect.shape


def test_what_of_the_image_reaches_the_roi_is_searched_once_for_all_modules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    images, donors = torch.rand(1, 1, 64, 64), torch.rand(3, 1, 64, 64)
    target = SegmentationTarget.from_prediction(model, images, roi=regions.box((64, 64), start=24, size=8), metric="soft_dice")
    runs = 0

    def count(module, args):
        nonlocal runs
        runs += len(args[0])

    def effects(*layers: str):
        table = component_effects(target, images, list(layers), donors, output=1, support="always", level="channel")
        return table.sort_values(["module", "channel"]).set_index("module")

    alone = effects("1")
    with_handle = model.register_forward_pre_hook(count)
    both = effects("0", "1")
    with_handle.remove()
    np.testing.assert_allclose(both.loc["1", "effect"], alone.loc["1", "effect"], rtol=1e-5, atol=1e-7)
    at_first, later, by_itself = (
        int(table.loc[name, "forwards"].iloc[0]) for table, name in ((both, "0"), (both, "1"), (alone, "1"))
    )
    # One pass tells how modules are called; donors are run once, and counted at the first.
    assert at_first + later == runs - 1
    search = int(causal_support(target, images).n_forwards)
    assert search > 30
    assert by_itself - later - len(donors) == pytest.approx(search, abs=4), "the looks at the model are those of two modules"


class Ways(nn.Module):
    """Two ways side by side, one module on both, and one that nothing follows from."""

    def __init__(self, d):
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[d - 2]
        self.first, self.deep, self.skip, self.aside = conv(1, 2, 3, padding=1), *(conv(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        self.aside(x)
        return torch.tanh(self.deep(x)) + self.skip(x)


@pytest.mark.parametrize("d", [2, 3])
def test_shares_of_a_region_are_those_of_its_pathway(d):
    torch.manual_seed(d)
    size = (12,) * d
    target = SegmentationTarget(
        Ways(d), roi=regions.box(size, start=0, size=4), reference=torch.randint(0, 2, (2, *size)), metric="soft_dice"
    )
    images, donors = torch.rand(2, 1, *size), torch.rand(5, 1, *size)
    near, far = regions.box(size, start=4, size=4), regions.box(size, start=8, size=4)
    table = component_effects(target, images, None, donors, output=1, n_draws=5, region_units=near)
    found = pathway(target, images, donors, region_units=near, layers=["first", "deep", "skip", "aside"], output=1, n_draws=5)
    expected = found.to_dataframe().set_index(["example", "layer"])
    rows = table.set_index(["example", "module"])
    assert len(rows) == 8
    for key, row in rows.iterrows():
        assert row["share_mediated"] == pytest.approx(expected.loc[key, "share"])
        assert row["share_mediated_lower"] == pytest.approx(expected.loc[key, "share_lower"])
        assert row["share_mediated_upper"] == pytest.approx(expected.loc[key, "share_upper"])
    shares = rows["share_mediated"].unstack()
    assert shares["first"].tolist() == pytest.approx([1, 1], abs=1e-3)
    assert shares["aside"].tolist() == pytest.approx([0, 0], abs=1e-3)
    assert [one["total"] for one in table.attrs["region"]] == pytest.approx(
        expected["total"].groupby(level="example").first().tolist()
    )
    assert [one["shares_unknown"] for one in table.attrs["region"]] == ["", ""]
    # All else is as without a region.
    plain = component_effects(target, images, None, donors, output=1, n_draws=5)
    assert table.drop(columns=[name for name in table if name.startswith("share_")]).equals(plain)
    by_id = component_effects(
        target, images, "deep", donors, output=1, n_draws=5, region_units=4**d // 3, block_size=size[0] // 3
    )
    assert "share_mediated" in by_id
    unreached = component_effects(target, images, "deep", donors, output=1, n_draws=5, region_units=far)
    assert unreached["share_mediated"].isna().all()
    assert "cannot reach the region of interest" in unreached.attrs["region"][0]["shares_unknown"]


def test_shares_that_cannot_be_are_refused():
    _, target, images, donors = unet(2)
    corner = regions.box(images.shape[2:], start=0, size=2)
    for asked, said in (
        ({"level": "channel", "baselines": donors}, 'region_units: shares are of whole modules; expected level="module", got'),
        ({"region_units": None, "block_size": 4}, "block_size: it names the units of region_units, which is not given"),
        ({"baselines": ActivationBank(donors)}, "baselines: with region_units, expected donor images or a number"),
        (
            {"baselines": donors, "region_units": torch.ones(3, 3, dtype=torch.bool)},
            "region_units: expected a mask of an input's",
        ),
        (
            {"baselines": donors, "region_units": torch.ones(images.shape[2:], dtype=torch.bool)},
            "region_units: the region touches",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            component_effects(target, images, "model.0", output=1, n_draws=2, **{"region_units": corner} | asked)
        assert str(caught.value).startswith(said)
