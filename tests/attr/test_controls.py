"""The edge as a control: what a joint does by itself, by hand and by the engine."""

import itertools
import math

import numpy as np
import pytest
import torch
from layer_cases import case as layer_case
from torch import nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    Blur,
    LayerAverageTreatmentEffect,
    Layout,
    NeighborBank,
    PatchBank,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    refute,
    regions,
)
from captum_causalseg.attr.controls import EveryJoint
from captum_causalseg.attr.parts import merge_parts
from captum_causalseg.interventions.execution import Part


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def network(d, channels=1, seed=0):
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[d]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(), conv(4, 3, 3, padding=1)).eval()


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = network(2, 2)

    def forward(self, first, second):
        return self.one(torch.cat([first, second], 1))


def shifts_by_hand(mask, unit, roi):
    """Of a unit in one input ``(C, *spatial)``: its elements, and the shifts that fit, the shortest first."""
    elements = np.argwhere(mask == unit)
    start, stop = elements[:, 1:].min(0), elements[:, 1:].max(0) + 1
    fitting = []
    for length, sign, axis in itertools.product((1, 2), (-1, 1), range(mask.ndim - 1)):
        shift = np.zeros(mask.ndim - 1, dtype=int)
        shift[axis] = sign * length
        inside = (start + shift >= 0).all() and (stop + shift <= mask.shape[1:]).all()
        moved = tuple(slice(a, b) for a, b in zip(start + shift, stop + shift))
        if inside and (roi is None or not roi[moved].any()):
            fitting.append(shift)
    return elements, fitting


def shifted_by_hand(score, inputs, masks, unit, roi):
    """``observed - shifted`` of every shift, ``(n, *outputs)``; of several inputs, each one's shifts in turn."""
    parts = [shifts_by_hand(mask, unit, roi) if (mask == unit).any() else None for mask in masks]
    count = max(len(part[1]) for part in parts if part is not None)
    found = []
    for number in range(count):
        changed = [one.clone() for one in inputs]
        for slot, part in enumerate(parts):
            if part is None:
                continue
            elements, fitting = part
            for channel, *place in elements.tolist():
                there = [p + s for p, s in zip(place, fitting[number % len(fitting)].tolist())]
                changed[slot][(0, channel, *place)] = inputs[slot][(0, channel, *there)]
        found.append(score(inputs) - score(changed))
    return np.stack(found)


def irregular(edge):
    """Two channels, each with units of its own: blocks without every third element, and these elements."""
    row, column = np.indices((edge, edge))
    blocks = regions.grid((edge, edge), 5).numpy()
    mask = np.stack([2 * blocks + ((row + column + c) % 3 == 0) + 100 * c for c in range(2)])
    return torch.from_numpy(mask)[None]


def case(kind):
    """Function, inputs, masks (one per input), RoIs, further arguments."""
    if kind == "volume":
        shape, roi = (8, 8, 6), regions.box((8, 8, 6), 2, 3)
        inputs, masks = (random(1, 1, *shape),), (regions.grid(shape, (3, 4, 3))[None, None],)
        return network(3), inputs, masks, roi[None]
    shape = (14, 14)
    rois = torch.stack([regions.box(shape, 5, 4), regions.box(shape, (1, 9), 3)])
    if kind == "two inputs":
        mask = regions.grid(shape, 4)[None, None]
        # The last column of units reaches into both inputs, whose places differ there.
        other = torch.where(mask % 4 == 3, mask.roll(3, -1), mask + 100)
        return Both(), (random(1, 1, *shape), random(1, 1, *shape, seed=1)), (mask, other), rois[:1]
    if kind == "irregular":
        return network(2, 2), (random(1, 2, *shape),), (irregular(14),), rois
    if kind == "batch":
        mask = torch.stack([regions.grid(shape, 4), regions.grid(shape, (4, 7))])[:, None]
        return network(2), (random(2, 1, *shape),), (mask,), rois
    return network(2), (random(1, 1, *shape),), (regions.grid(shape, 4)[None, None],), rois


KINDS = ["blocks", "volume", "irregular", "two inputs", "batch"]


def explained(kind, bank=None, **options):
    model, inputs, masks, rois = case(kind)
    target = SegmentationTarget.from_prediction(model, *inputs, roi=rois, metric="soft_dice")
    banks = tuple(PatchBank(random(6, *x.shape[1:], seed=7 + k)) for k, x in enumerate(inputs))
    single = len(inputs) == 1
    ate = AverageTreatmentEffect(target)
    asked = {
        "baselines": banks[0] if single else banks,
        "target": (1, 0),
        "feature_mask": masks[0] if single else masks,
        "n_draws": 5,
        "n_screening_draws": 0,
        "return_statistics": True,
    }
    _, stats = ate.attribute(inputs[0] if single else inputs, **asked | options)
    return stats, target, inputs, masks, rois


@pytest.mark.parametrize("support", ["auto", None])
@pytest.mark.parametrize("kind", KINDS)
def test_shifting_and_pasting_by_hand_is_what_the_engine_does(kind, support):
    stats, target, inputs, masks, rois = explained(kind, controls="edge", support=support, perturbations_per_eval=3)
    control, seen = stats.controls["edge_shifted"], 0
    union = rois.any(0).numpy()
    for n in range(len(inputs[0])):
        one = [x[n : n + 1] for x in inputs]

        def score(tensors, n=n):
            full = [x.clone() for x in inputs]
            for x, tensor in zip(full, tensors):
                x[n] = tensor[0]
            return target(*full)[n].detach().double().numpy()

        full = [m.expand(-1, x.shape[1], *x.shape[2:])[n if len(m) > 1 else 0].numpy() for m, x in zip(masks, inputs)]
        for u, unit in enumerate(stats.unit_ids.tolist()):
            estimated = (stats.status[n, u] == Status.ESTIMATED).numpy()
            if not estimated.any():
                continue
            parts = [shifts_by_hand(mask, unit, union)[1] for mask in full if (mask == unit).any()]
            if not all(parts):
                assert control.effect[n, u].isnan()[torch.from_numpy(estimated)].all()
                continue
            by_hand = shifted_by_hand(score, one, full, unit, union)
            found = control.effect[n, u].numpy()
            np.testing.assert_allclose(found[estimated], by_hand.mean(0)[estimated], atol=2e-6)
            variance = control.sample_variance[n, u].numpy()
            if len(by_hand) > 1:
                np.testing.assert_allclose(variance[estimated], by_hand.var(0, ddof=1)[estimated], atol=1e-7)
            assert (control.n_draws[n, u].numpy()[estimated] == len(by_hand)).all()
            np.testing.assert_allclose(control.variance_factor[n, u].numpy()[estimated], 1 / len(by_hand))
            seen += 1
    assert seen > 3
    drawn = control.n_draws.amax(2)  # (N, U, R); a window for each group of regions is a forward for each
    windows = [one["rois"] for one in stats.settings.get("roi_windows", [{"rois": range(drawn.shape[2])}])]
    assert stats.settings["forwards"]["edge_shifted"] == sum(int(drawn[..., list(rois)].amax(2).sum()) for rois in windows)


@pytest.mark.parametrize("kind", ["blocks", "volume", "irregular", "batch"])
def test_matched_donors_are_those_of_a_matched_bank(kind):
    stats, target, inputs, masks, _ = explained(kind, controls="edge")
    bank = PatchBank(random(6, *inputs[0].shape[1:], seed=7), match="mean")
    n_draws = 4 * (inputs[0].ndim - 2)
    _, matched = AverageTreatmentEffect(target).attribute(
        inputs[0],
        bank,
        target=(1, 0),
        feature_mask=masks[0],
        n_draws=n_draws,
        n_screening_draws=0,
        sampling="uniform",
        return_statistics=True,
    )
    found = stats.controls["edge_matched"]
    wanted = found.status == Status.ESTIMATED
    assert wanted.sum() > 5
    for name in ("effect", "sample_variance", "n_draws", "variance_factor"):
        assert torch.equal(getattr(found, name)[wanted], getattr(matched, name)[wanted]), name


@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_the_same_bits_with_and_without(kind):
    plain, with_controls = explained(kind)[0], explained(kind, controls="edge")[0]
    for name, values in vars(plain.moments).items():
        np.testing.assert_array_equal(values, getattr(with_controls.moments, name), err_msg=name)
    assert torch.equal(plain.standard_error.nan_to_num(-1), with_controls.standard_error.nan_to_num(-1))
    assert plain.controls == {}
    spent = {name: with_controls.settings["forwards"][name] for name in with_controls.controls}
    assert with_controls.n_forwards == plain.n_forwards + sum(spent.values())
    assert {name: one.n_forwards for name, one in with_controls.controls.items()} == spent
    assert "controls" not in plain.settings


def test_a_network_that_sees_brightness_alone():
    """Score: a weighted sum of the image. Everything is known: shifts give sums of differences, matched donors exactly 0."""
    image, donors = random(1, 1, 12, 12), random(9, 1, 12, 12, seed=1) + 0.3
    ate = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3)))
    _, stats = ate.attribute(image, PatchBank(donors), block_size=4, n_draws=20, controls="edge", return_statistics=True)
    middle = image[0, 0].double()
    block = middle[4:8, 4:8].sum()
    moved = [middle[4 + a : 8 + a, 4 + b : 8 + b].sum() for s in (1, 2) for a, b in ((s, 0), (-s, 0), (0, s), (0, -s))]
    assert float(stats.controls["edge_shifted"].effect[0, 4]) == pytest.approx(float(block - sum(moved) / 8) / 144, abs=1e-7)
    matched = stats.controls["edge_matched"]
    assert (matched.effect == 0).all()
    assert (matched.sample_variance == 0).all()
    assert (stats.effect < -0.01).all()
    assert not stats.edge_suspect().any()


def test_a_network_that_answers_to_joints_alone():
    ramp = (torch.arange(24.0) / 24).expand(1, 1, 24, 24)
    steps = ramp + torch.tensor([-2.0, -1.0, 1.0, 2.0]).view(-1, 1, 1, 1) / 24
    ate = AverageTreatmentEffect(lambda image: image.diff(dim=3).abs().mean((1, 2, 3)))
    _, stats = ate.attribute(ramp, steps, block_size=8, controls="edge", return_statistics=True)
    # Replaced by itself, one or two columns further: the same steps as the donors', but for those along the ramp's lines, which do nothing.
    control = stats.controls["edge_shifted"]
    assert float(control.effect[0, 4]) == pytest.approx(float(stats.effect[0, 4]) / 2, abs=1e-7)
    assert stats.edge_suspect().all()
    assert (stats.to_map("edge_suspect") == 1).all()


def test_of_what_is_screened_out_nothing_is_asked():
    image, bank = random(1, 1, 16, 16), PatchBank(random(9, 1, 16, 16, seed=2))
    ate = AverageTreatmentEffect(lambda x: x[..., :8].amax((1, 2, 3)) * 0 + x[..., :4].mean((1, 2, 3)))
    _, stats = ate.attribute(image, bank, block_size=4, n_draws=8, controls="edge", return_statistics=True)
    screened = stats.status == Status.SCREENED
    assert screened[0].view(4, 4)[:, 1:].all()
    for control in stats.controls.values():
        assert (control.status[screened] == Status.EXCLUDED).all()
        assert control.effect[screened].isnan().all()
        assert not control.effect[~screened].isnan().any()


def test_what_cannot_reach_the_roi_is_0_here_too_and_what_is_excluded_is_nan():
    image = random(1, 1, 32, 32)
    target = SegmentationTarget.from_prediction(network(2), image, roi=regions.box((32, 32), 12, 4), metric="soft_dice")
    _, stats = AverageTreatmentEffect(target).attribute(
        image, block_size=4, target=1, n_draws=4, n_screening_draws=0, controls="edge", return_statistics=True
    )
    outside, excluded = (stats.status == status for status in (Status.OUTSIDE_SUPPORT, Status.EXCLUDED))
    assert outside.any()
    assert excluded.any()
    assert stats.settings["disabled"] == {}  # what is excluded needs no control
    for control in stats.controls.values():
        assert (control.status[outside] == Status.OUTSIDE_SUPPORT).all()
        assert (control.effect[outside] == 0).all()
        assert control.effect[excluded].isnan().all()


def test_a_unit_without_room_has_no_control_and_that_is_said():
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.long)
    mask[..., 2, 2] = 1
    mask[..., 4, 4] = 1
    ate, bank = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))), PatchBank(random(4, 1, 6, 6))
    image = random(1, 1, 6, 6, seed=3)
    _, stats = ate.attribute(image, bank, feature_mask=mask, controls="edge", return_statistics=True)
    shifted = stats.controls["edge_shifted"]
    assert shifted.effect[0].isnan().tolist() == [True, False]  # around unit 1 lies the other, as large as the image
    assert stats.settings["disabled"]["edge_shifted"].startswith("of some units (NaN) no shift lies in the image")
    assert not stats.edge_suspect()[0, 0]
    _, stats = ate.attribute(image, bank, block_size=6, controls="edge", return_statistics=True)
    assert stats.controls["edge_shifted"].effect.isnan().all()
    assert stats.settings["disabled"]["edge_shifted"] == "no unit has room for a shift"


def test_images_and_units_of_one_pixel():
    ate = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3)))
    asked = {"block_size": 1, "controls": "edge", "return_statistics": True}
    _, stats = ate.attribute(torch.ones(1, 1, 1, 1), PatchBank(torch.zeros(3, 1, 1, 1)), **asked)
    assert all(control.effect.isnan().all() for control in stats.controls.values())
    assert stats.settings["disabled"]["edge_matched"] == "units of one pixel (NaN) have nothing but their level"
    _, stats = ate.attribute(random(1, 1, 3, 3), PatchBank(torch.zeros(3, 1, 3, 3)), **asked)
    assert not stats.controls["edge_shifted"].effect.isnan().any()
    assert stats.controls["edge_matched"].effect.isnan().all()


@pytest.mark.parametrize(
    ("baselines", "names"),
    [
        (PatchBank(random(5, 1, 12, 12), match="mean_std"), ["edge_shifted"]),
        (PatchBank(random(5, 1, 12, 12), blend=1), ["edge_shifted"]),
        (NeighborBank(random(5, 1, 16, 16), k=9, ring=2), ["edge_shifted", "edge_matched"]),
        (random(5, 1, 12, 12), ["edge_shifted", "edge_matched"]),
        (Blur(1.0), ["edge_shifted", "edge_matched"]),
        (0.5, ["edge_shifted", "edge_matched"]),
        (None, ["edge_shifted", "edge_matched"]),
    ],
    ids=["matched", "blended", "neighbors", "aligned", "blur", "number", "same image"],
)
def test_whatever_the_donors_are(baselines, names):
    ate = AverageTreatmentEffect(lambda x: x.square().mean((1, 2, 3)))
    asked = {"block_size": 4, "n_draws": 4, "n_screening_draws": 0, "controls": "edge", "return_statistics": True}
    _, stats = ate.attribute(random(1, 1, 12, 12, seed=4), baselines, **asked)
    assert list(stats.controls) == list(stats.settings["controls"]) == names
    assert not any(control.effect.isnan().any() for control in stats.controls.values())
    if len(names) == 1:
        assert stats.settings["disabled"]["edge_matched"] == "the donors are fitted to the units already"


def test_a_stochastic_model_is_answered_in_pairs():
    class Noisy(nn.Module):
        def forward(self, x):
            shift = torch.randn(x.shape[0], 1, 1, 1) * 0.1
            return torch.cat([x, 0.5 + shift + 0 * x], 1)

    image = random(1, 1, 12, 12)
    target = SegmentationTarget(
        Noisy(), roi=regions.box((12, 12), 4, 4), reference=image[0, 0] > 0.5, metric="soft_dice", n_samples=2
    )
    asked = {"block_size": 4, "n_draws": 6, "n_screening_draws": 0, "exclude": None, "controls": "edge"}
    _, stats = AverageTreatmentEffect(target).attribute(image, target=1, return_statistics=True, **asked)
    control = stats.controls["edge_shifted"]
    assert control.n_draws[0, :, 1].tolist() == [4, 4, 4, 4, 0, 4, 4, 4, 4]  # the RoI's own unit has no tissue but the RoI's
    assert (control.effect[0, [0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()  # of paired runs the noise is no effect
    assert stats.settings["forwards"]["edge_shifted"] == 32


def test_every_joint_once_and_of_random_states_different_ones():
    design = EveryJoint(np.random.default_rng(0), [6, 1, 4, 1024], n_first=8)
    drawn = design.donors(design.end(1))
    assert drawn[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert drawn[:, 1].tolist() == [0] * 6
    assert drawn[:, 2].tolist() == [0, 1, 2, 3, 0, 1]
    assert len(set(drawn[:, 3].tolist())) == 6
    assert np.array_equal(design.donors(3), drawn[:3])
    assert (design.end(0), design.total([6])) == (0, math.inf)
    assert design.selection(1).total == math.inf
    assert EveryJoint(np.random.default_rng(0), [1024], n_first=8).donors(8).shape == (8, 1)


def test_parts_of_a_case_are_put_together_again(tmp_path):
    whole = explained("blocks", controls="edge")[0]
    model, inputs, masks, rois = case("blocks")
    target = SegmentationTarget.from_prediction(model, *inputs, roi=rois, metric="soft_dice")
    parts = []
    for number in range(3):
        ate = AverageTreatmentEffect(target).only(Part(number, 3))
        _, part = ate.attribute(
            inputs[0],
            PatchBank(random(6, 1, 14, 14, seed=7)),
            target=(1, 0),
            feature_mask=masks[0],
            n_draws=5,
            n_screening_draws=0,
            controls="edge",
            return_statistics=True,
        )
        part.save(tmp_path / f"{number}.npz")
        parts.append(TreatmentEffectStatistics.load(tmp_path / f"{number}.npz"))
    together = merge_parts(parts)
    for name, moments in whole.control_moments.items():
        for field, values in vars(moments).items():
            np.testing.assert_allclose(getattr(together.control_moments[name], field), values, atol=1e-9, err_msg=field)
        assert torch.allclose(
            together.controls[name].standard_error, whole.controls[name].standard_error, atol=1e-9, equal_nan=True
        )


def test_refuters_repeat_the_estimate_without_its_controls():
    image, bank = random(1, 1, 16, 16), PatchBank(random(9, 1, 16, 16, seed=2))
    target = SegmentationTarget.from_prediction(network(2), image, roi=regions.box((16, 16), 4, 4), metric="soft_dice")
    asked = {"refuters": ["placebo", "seed", "recompute", "split", "crossed"], "block_size": 4, "n_draws": 6}
    plain = refute(AverageTreatmentEffect(target), image, bank, 1, **asked)
    report = refute(AverageTreatmentEffect(target), image, bank, 1, controls="edge", **asked)
    assert report.statistics.settings["forwards"]["edge_shifted"] > 0
    assert set(report.statistics.controls) == {"edge_shifted", "edge_matched"}
    assert [one.n_forwards for one in report.refutations] == [one.n_forwards for one in plain.refutations]
    assert [one.message for one in report.refutations] == [one.message for one in plain.refutations]


def test_bad_arguments():
    ate, image = AverageTreatmentEffect(lambda x: x.flatten(1).sum(1)), random(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"^controls: expected \"edge\" or None, got 'edges'$"):
        ate.attribute(image, controls="edges", return_statistics=True)
    with pytest.raises(ValueError, match=r"^controls: 'edge' is measured for the statistics; give return_statistics=True"):
        ate.attribute(image, controls="edge")
    with pytest.raises(
        ValueError, match=r"^controls: \"edge\" is about the joint .* tensors of shape \(2, 5\) have no spatial axes"
    ):
        ate.attribute(random(2, 5), 0.0, controls="edge", return_statistics=True)
    with pytest.raises(TypeError, match="controls"):
        ate.plan(image, controls="edge")


def with_activation(model, score, activation):
    """A score with this in the place of the middle layer's activation."""
    handle = model.middle.register_forward_hook(lambda *_: activation.clone())
    try:
        return score().detach().double().numpy()
    finally:
        handle.remove()


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("units", ["block", "channel_block", "mask"])
def test_blocks_of_a_layer_by_hand(d, units):
    model, images, labels, donors, roi = layer_case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    own = model.middle(torch.sin(6 * model.early(images))).detach()
    asked = {"units": units, "block_size": 4}
    if units == "mask":
        where = np.indices(own.shape[2:])
        mask = torch.from_numpy((where // 4 * np.array([1, 3, 9])[:d].reshape(-1, *(1,) * d)).sum(0) * 2 + where.sum(0) % 2)
        asked = {"layer_mask": mask[None, None]}
    _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
        images, donors, target=1, n_draws=5, n_screening_draws=0, controls="edge", return_statistics=True, **asked
    )
    shifted, matched = stats.controls["edge_shifted"], stats.controls["edge_matched"]
    bank = ActivationBank(donors, match="mean")
    _, by_bank = LayerAverageTreatmentEffect(target, model.middle).attribute(
        images, bank, target=1, n_draws=4 * d, n_screening_draws=0, sampling="uniform", return_statistics=True, **asked
    )
    known = matched.status == Status.ESTIMATED
    torch.testing.assert_close(matched.effect[known], by_bank.effect[known], atol=1e-6, rtol=0)
    mask, seen = stats.feature_mask[0].expand(1, *own.shape[1:])[0].numpy(), 0
    for n, (u, unit) in itertools.product(range(2), enumerate(stats.unit_ids.tolist())):
        if (shifted.status[n, u] == Status.OUTSIDE_SUPPORT).all() or seen > 12:
            continue

        def score(tensors, n=n):
            changed = own.clone()
            changed[n] = tensors[0][0]
            return with_activation(model, lambda: target(images)[n], changed)

        by_hand = shifted_by_hand(score, [own[n : n + 1]], [mask], unit, None)
        reached = (shifted.status[n, u] == Status.ESTIMATED).numpy()
        np.testing.assert_allclose(shifted.effect[n, u].numpy()[reached], by_hand.mean(0)[reached], atol=2e-6)
        assert (shifted.n_draws[n, u].numpy()[reached] == len(by_hand)).all()
        seen += 1
    assert seen > 5


def test_of_a_stochastic_model_a_layers_blocks_are_shifted_in_each_answer():
    """Noise of one level for the whole activation: a shifted block brings that same level with it, and a score of sums hardly moves."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.middle = nn.Identity()

        def forward(self, x):
            level = 4 * self.middle(x + torch.randn(len(x), 1, 1, 1)).mean((2, 3), keepdim=True)
            return torch.cat([level + 0 * x, 0 * x], 1)

    model, image = Noisy(), torch.full((1, 1, 12, 12), 0.3)
    target = SegmentationTarget(
        model,
        roi=regions.box((12, 12), 4, 4),
        reference=torch.ones(12, 12).long(),
        metric="soft_dice",
        activation="softmax",
        n_samples=2,
    )
    _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
        image,
        random(6, 1, 12, 12, seed=1),
        target=1,
        units="block",
        block_size=4,
        n_draws=4,
        n_screening_draws=0,
        controls="edge",
        return_statistics=True,
    )
    assert float(stats.effect.abs().max()) > 1e-3
    for control in stats.controls.values():
        assert (control.status == Status.ESTIMATED).all()
        assert float(control.effect.abs().max()) < 1e-6


def test_tensors_whose_donors_belong_together_are_shifted_apart():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (torch.nn.Conv2d(1, 2, 3, padding=1) for _ in range(2))

        def forward(self, x):
            return self.one(x), self.other(x)

    torch.manual_seed(0)
    pair, last = Pair(), torch.nn.Conv2d(4, 2, 3, padding=1)

    def score(x):
        return last(torch.sin(4 * torch.cat(pair(x), 1)))[:, 1, 4:8, 4:8].mean((1, 2))

    image, donors = torch.rand(1, 1, 12, 12), torch.rand(3, 1, 12, 12)
    _, stats = LayerAverageTreatmentEffect(score, pair).attribute(
        image, donors, units="block", block_size=4, n_draws=3, controls="edge", return_statistics=True, layout=("NC*", "NC*")
    )
    assert stats.effect.shape == (1, 18)
    assert float(stats.controls["edge_shifted"].effect.nan_to_num().abs().max()) > 0


def test_units_of_a_layer_without_a_border_are_refused():
    model, images, labels, donors, roi = layer_case(2)
    layer = LayerAverageTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels), model.middle)
    asked = {"controls": "edge", "return_statistics": True}
    for units in ("channel", "layer"):
        with pytest.raises(
            ValueError, match=rf'^controls: "edge" is about .* every unit \({units}\) of the activation \(2, 5, 12, 10\)'
        ):
            layer.attribute(images, donors, 1, units=units, **asked)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x):
            return self.mix(x[:, 0]).mean((1, 2))

    tokens = Tokens()
    with pytest.raises(ValueError, match=r'^controls: "edge" is about the joint .* tokens are a row'):
        LayerAverageTreatmentEffect(tokens, tokens.mix).attribute(
            random(1, 1, 8, 8), units="token", layout=Layout("NLC", grid=(4, 2)), **asked
        )
