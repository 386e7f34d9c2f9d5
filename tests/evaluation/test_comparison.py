"""Several methods in one call: what each is given and what is measured."""

import logging

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, IntegratedGradients, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from comparison_cases import FEW, Case
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    JointTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    compare,
    regions,
)
from captum_causalseg.evaluation import faithfulness as room
from captum_causalseg.evaluation.comparison import CONTROL


def methods_of(case: Case) -> dict:
    soft = case.target.surrogate()
    return {
        "effects": (AverageTreatmentEffect(case.target), {"n_draws": 4, "support": None}),
        "gradient effects": GradientTreatmentEffect(case.target),
        "layer effects": (
            LayerAverageTreatmentEffect(case.target, case.net[0]),
            {"layer_baselines": case.images, "n_draws": 1},
        ),
        "occlusion": (Occlusion(case.target), {"sliding_window_shapes": (1, *(4,) * (case.images.ndim - 2))}),
        "integrated gradients": (IntegratedGradients(soft), {"n_steps": 3}),
        "saliency": (Saliency(soft), {"abs": False}),
        "smooth": (NoiseTunnel(Saliency(soft)), {"nt_samples": 2}),
        "Seg-Grad-CAM": LayerGradCam(case.target.surrogate("logit_sum"), case.net[0]),
        "a function": lambda x: x - 0.5,
        "a map": torch.ones_like(case.images),
    }


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")  # Captum's, of every gradient
@pytest.mark.parametrize(("d", "n"), [(2, 1), (2, 3), (3, 1)])
def test_any_method_of_captum_and_ours(d, n):
    case = Case(d, n)
    methods = methods_of(case)
    found = case.compare(methods)
    assert list(found.attributions) == [*methods, CONTROL]
    table = found.table
    assert len(table) == (len(methods) + 1) * n * len(room.METRICS)
    assert not table.duplicated(["method", "example", "metric"]).any()
    assert table.columns.tolist() == [
        *("method", "example", "metric", "value", "score_direction", "source", "why", "forwards", "seconds")
    ]
    wide = found.wide()
    assert wide.index.tolist() == list(found.attributions)
    assert wide.columns.tolist() == [*room.METRICS, "forwards", "seconds"]
    one = table[(table["method"] == "occlusion") & (table["metric"] == "irof")]["value"]
    assert wide.loc["occlusion", "irof"] == pytest.approx(one.mean())
    for values in found.attributions.values():
        assert values.shape in ((n, 1, *case.images.shape[2:]), case.images.shape)
    assert torch.equal(found.roi, case.rois[0].expand(n, *case.rois[0].shape))


def test_the_scores_are_those_of_the_held_out_half():
    case = Case()
    found = case.compare({"ours": (AverageTreatmentEffect(case.target), {"n_draws": 4})}, seed=3, n_controls=0)
    estimation, held_out = case.bank.split(parts=2, seed=3)
    effects = AverageTreatmentEffect(case.target).attribute(
        case.images, baselines=estimation, target=(1, 0), block_size=4, n_draws=4
    )
    torch.testing.assert_close(found.attributions["ours"], effects)
    expected = room.Faithfulness(case.target, case.images, held_out, (1, 0), block_size=4, seed=3, **FEW).evaluate(effects)
    np.testing.assert_array_equal(found.table["value"], expected["value"])


def test_donors_of_ones_own_for_methods_and_scores():
    case = Case()
    zero = case.compare({"ours": AverageTreatmentEffect(case.target)}, baselines=0.0, held_out=0.0, n_controls=0)
    expected = FeatureAblation(case.target).attribute(
        case.images, baselines=0, target=(1, 0), feature_mask=regions.grid((16, 16), 4)
    )
    outside = ~torch.isin(regions.grid((16, 16), 4), regions.grid((16, 16), 4)[case.rois[0]])
    torch.testing.assert_close(zero.attributions["ours"][..., outside], expected[..., outside])
    # Donors that a method brings along go before those of the call; so do its units.
    own = AverageTreatmentEffect(case.target, baselines=0.0)
    again = case.compare({"ours": own}, n_controls=0)
    torch.testing.assert_close(again.attributions["ours"], zero.attributions["ours"])
    finer = case.compare({"ours": (own, {"block_size": 2})}, n_controls=0).attributions["ours"]
    assert len(finer.unique()) > len(zero.attributions["ours"].unique())


def test_donors_that_cannot_be_split_are_said_so(caplog):
    case = Case()
    with caplog.at_level(logging.WARNING, "captum_causalseg"):
        case.compare({"a map": torch.ones(1, 1, 16, 16)}, baselines=0.0, n_controls=0)
    assert "no donor images to split (baselines=0.0); methods are judged with donors that they may have seen" in caplog.text
    caplog.clear()
    case.compare({"a map": torch.ones(1, 1, 16, 16)}, n_controls=0)
    case.compare({"a map": torch.ones(1, 1, 16, 16)}, baselines=torch.rand(4, 1, 16, 16), n_controls=0)
    assert not caplog.text


def test_forwards_are_those_of_the_model():
    case = Case()
    count = 0

    def add(module, args):
        nonlocal count
        count += len(args[0])

    found = case.compare(
        {
            "ours": (AverageTreatmentEffect(case.target), {"n_draws": 4}),
            "occlusion": (Occlusion(case.target), {"sliding_window_shapes": (1, 4, 4), "strides": (1, 4, 4)}),
        },
        n_controls=0,
    )
    _, stats = AverageTreatmentEffect(case.target).attribute(
        case.images, case.bank.split(parts=2)[0], (1, 0), block_size=4, n_draws=4, return_statistics=True
    )
    forwards = found.wide()["forwards"]
    assert forwards["ours"] == stats.n_forwards
    handle = case.net.register_forward_pre_hook(add)
    Occlusion(case.target).attribute(case.images, (1, 4, 4), (1, 4, 4), target=(1, 0))
    handle.remove()
    assert forwards["occlusion"] == count == 17
    assert not case.net._forward_pre_hooks
    # A plain function hides its model.
    hidden = compare(
        {"o": torch.ones(1, 1, 16, 16), "f": lambda x: x},
        lambda x: x.flatten(1).sum(1),
        case.images,
        0.0,
        block_size=4,
        faithfulness=FEW,
    )
    assert np.isnan(hidden.wide()["forwards"]["f"])
    assert hidden.roi is None


def test_layers_are_summed_over_channels_and_brought_to_the_inputs_size():
    case = Case()
    wide = torch.zeros(1, 3, 8, 8)
    wide[:, :, 2, 3] = 1.0
    found = case.compare({"layer": lambda x: wide}, n_controls=0).attributions["layer"]
    assert found.shape == (1, 1, 16, 16)
    expected = nn.functional.interpolate(wide.sum(1, keepdim=True), (16, 16), mode="bilinear")
    torch.testing.assert_close(found, expected)


def test_the_control_is_the_mean_of_random_maps():
    case = Case()
    found = case.compare({"a map": torch.ones(1, 1, 16, 16)}, n_controls=3, metrics=["irof", "leakage"])
    generator = torch.Generator().manual_seed(0)
    held_out = case.bank.split(parts=2, seed=0)[1]
    judge = room.Faithfulness(case.target, case.images, held_out, (1, 0), block_size=4, **FEW)
    values = [judge.evaluate(torch.randn(1, 1, 16, 16, generator=generator), ["irof", "leakage"])["value"] for _ in range(3)]
    of_control = found.table[found.table["method"] == CONTROL]["value"]
    np.testing.assert_allclose(of_control, np.mean(values, axis=0))
    assert CONTROL not in case.compare({"a map": torch.ones(1, 1, 16, 16)}, n_controls=0).attributions


def test_effects_beat_the_control_where_units_add_up():
    """On a linear score with known weights, by a wide margin and in the direction that each metric states."""
    case = Case()
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(1, 1, 16, 16, generator=generator)

    def linear(x: Tensor) -> Tensor:
        return (x * weights).flatten(1).sum(1)

    found = compare(
        {"ours": (AverageTreatmentEffect(linear), {"n_draws": 8})},
        *(linear, case.images, case.bank),
        block_size=4,
        faithfulness={"n_steps": 8},
    )
    wide = found.wide()
    directions = {name: metric.score_direction for name, metric in room.METRICS.items() if name != "leakage"}
    for name, direction in directions.items():
        ours, chance = wide.loc["ours", name], wide.loc[CONTROL, name]
        assert (ours > chance) if direction == "higher" else (ours < chance), name


def test_several_inputs():
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x.flatten(1).sum(1) - y.sum(1)

    inputs = torch.rand(2, 1, 4, 4), torch.rand(2, 2)
    found = compare(
        {"ablation": FeatureAblation(forward), "maps": inputs, "ours": AverageTreatmentEffect(forward)},
        *(forward, inputs, (0.0, 0.0)),
        block_size=((2, 2), ()),
        faithfulness=FEW,
    )
    assert [one.shape for one in found.attributions["ours"]] == [x.shape for x in inputs]
    torch.testing.assert_close(found.attributions["ours"][1], found.attributions["ablation"][1])
    assert found.plot().axes


@pytest.mark.parametrize(
    ("methods", "error", "said"),
    [
        ({}, ValueError, "methods: expected at least 1 of them"),
        ({"x": 3}, TypeError, r"methods\['x'\]: expected a Captum attribution object, a pair .* got int"),
        (
            {"x": (torch.nn.ReLU(), {})},
            TypeError,
            r"methods\['x'\]: arguments are only for a Captum attribution object, got ReLU",
        ),
        ({"x": ()}, TypeError, r"methods\['x'\]"),
        ({CONTROL: lambda x: x}, ValueError, "is taken by the control"),
        ({"x": lambda x: "map"}, TypeError, r"expected a map for each of 1 input\(s\), got \['str'\]"),
        ({"x": lambda x: x[:, :, 0]}, ValueError, "attributions: expected the input's shape"),
    ],
)
def test_methods_that_are_none(methods, error, said):
    with pytest.raises(error, match=said):
        Case().compare(methods)


def test_arguments_that_make_no_sense():
    case = Case()
    with pytest.raises(ValueError, match="n_controls: expected at least 0"):
        case.compare({"f": lambda x: x}, n_controls=-1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_drwas'"):
        case.compare({"f": lambda x: x}, faithfulness={"n_drwas": 3})
    with pytest.raises(ValueError, match=r"metrics: expected names from .* got \['dice'\]"):
        case.compare({"f": lambda x: x}, metrics=["dice"])
    with pytest.raises(ValueError, match="output: the forward function has"):
        case.compare({"f": lambda x: x}, output=None)


def test_progress(capsys):
    Case().compare({"f": lambda x: x, "g": lambda x: -x}, show_progress=True)
    assert "Comparing methods" in capsys.readouterr().err


def test_nothing_is_left_behind():
    case = Case()
    case.net.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    case.compare({"f": lambda x: x})
    assert torch.equal(torch.get_rng_state(), state)
    assert case.net.training


def test_pdcr_is_compared_with_its_own_protocol():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 9, padding=4), nn.Sigmoid())
    image = torch.rand(1, 1, 32, 32, generator=generator)
    label = torch.rand(32, 32, generator=generator) > 0.5
    target = SegmentationTarget(model, roi=regions.box((32, 32), 8, 8), reference=label)
    bank = PatchBank(torch.rand(20, 1, 8, 8, generator=generator))
    methods = {"PdCR": (PdCR(target), {"n_draws": 3}), "joint": (JointTreatmentEffect(target), {"n_draws": 4})}
    found = compare(methods, target, image, bank, block_size=8, faithfulness=FEW)
    assert found.wide().loc["PdCR", "forwards"] > 0
    assert found.wide().loc["joint", "forwards"] > 0


def test_to_exclude_nothing_is_handed_on():
    case = Case()
    found = case.compare({"effects": AverageTreatmentEffect(case.target)}, exclude=None)
    inside = found.attributions["effects"][:, :, case.rois[0]]
    assert float(inside.abs().max()) > 0
    excluded = case.compare({"effects": AverageTreatmentEffect(case.target)}).attributions["effects"]
    assert float(excluded[:, :, case.rois[0]].abs().max()) == 0


def test_what_has_no_value_says_why():
    """A constant map orders nothing, one above 0 says nothing of harm, and one of 0 not of support either."""
    case = Case()
    maps = {"same": torch.ones_like(case.images), "nothing": torch.zeros_like(case.images)}
    found = case.compare(maps, n_controls=1)
    table = found.table
    assert ((table["why"] != "") == table["value"].isna()).all()
    why = table.set_index(["method", "metric"])["why"]
    assert why["same", "deletion, supporting"] == ""
    assert why["same", "deletion, harming"] == "the map has no value below 0"
    assert why["nothing", "insertion, supporting"] == "the map has no value above 0"
    assert why["same", "mu fidelity"].startswith("the sums of the map, or the changes of the score")
    assert "deletion, harming of same, nothing: the map has no value below 0" in found.unknown()
    assert not [said for said in found.unknown() if "random" in said]
