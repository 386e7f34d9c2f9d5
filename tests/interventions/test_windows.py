"""Only the windows are run that hold a unit and touch a region of interest: the same effects as all windows give."""

import itertools

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn
from window_cases import CONV, Local, is_outside, on_and_off, pixels

from captum_causalseg import AverageTreatmentEffect, PatchBank, PdCR, SegmentationTarget, Status, WindowedModel, regions
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.windows import WindowsEvaluator, by_windows


class Counted(nn.Module):
    """Counts the windows that it sees."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, *args):
        self.seen.append(len(args[0]))
        return self.network(*args)


class Normed(nn.Module):
    """Everything in a window reaches everything in it."""

    def __init__(self, d=2):
        super().__init__()
        self.first, self.second = CONV[d](1, 4, 3, padding=1), CONV[d](4, 2, 3, padding=1)

    def forward(self, x):
        x = torch.sin(3 * self.first(x))
        axes = tuple(range(2, x.ndim))
        return 3 * self.second(x / (x.std(axes, keepdim=True) + 0.1) - x.mean(axes, keepdim=True))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def by_monai(network, size, **options):
    return WindowedModel.from_monai(SlidingWindowInferer(size, **{"overlap": 0.5, "mode": "gaussian", **options}), network)


def two(spatial, size=3):
    """Regions in opposite corners."""
    return torch.stack(
        [regions.box(spatial, start=1, size=size), regions.box(spatial, start=[n - 5 for n in spatial], size=size)]
    )


def both(explained, inputs, **arguments):
    """With the windows that matter, and with all of them; the first counts windows."""
    on, off = on_and_off(AverageTreatmentEffect(explained), inputs, **arguments)
    assert on.settings["windows"]["per_image"] > 1
    assert "windows" not in off.settings
    of_all = on.settings["windows"]["per_image"] * explained.model.runs_per_window
    assert on.settings["forwards"]["windows"] < off.settings["forwards"]["interventions"] * of_all
    return on, off


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_the_same_batches_give_the_very_same_effects(d, mode):
    spatial = (20, 18, 12)[:d]
    model = by_monai(seeded(lambda: Normed(d)), 8, mode=mode)
    image = pixels(*spatial)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box(spatial, start=2, size=4))
    on, off = both(target, image, baselines=PatchBank(pixels(*spatial, count=4)), target=1, block_size=4 if d == 2 else 6)
    assert is_outside(on)
    inside = on.status != Status.OUTSIDE_SUPPORT
    assert torch.equal(on.effect[inside], off.effect[inside])
    assert (off.effect[~inside] == 0).all()


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_images_regions_mirroring_folds(d, batch_size):
    spatial = (21, 14, 11)[:d]
    folds = [seeded(lambda: Local(d), seed) for seed in range(2)]
    corners = list(itertools.product(*[sorted({*range(0, n - 8, 5), n - 8}) for n in spatial]))
    weight = seeded(lambda: torch.rand((8,) * d)) + 0.1
    model = WindowedModel(folds, 8, corners, weight, (0, d - 1), batch_size=batch_size)
    images = pixels(*spatial, count=2)
    target = SegmentationTarget.from_prediction(model, images, roi=two(spatial), metric="soft_dice")
    on, _ = both(target, images, baselines=PatchBank(pixels(*spatial, count=3)), target=(1, 1), n_draws=2, block_size=7)
    # Each region has windows of its own.
    outside = (on.status == Status.OUTSIDE_SUPPORT)[:, :, 0].sum(1)
    assert (outside > 0).all()
    assert (on.status[:, :, 0, 0] != on.status[:, :, 0, 1]).any()


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "replicate", "circular"])
def test_images_smaller_than_a_window(padding_mode):
    model = by_monai(seeded(Normed), 12, padding_mode=padding_mode)
    images = pixels(7, 30, count=2)
    rois = torch.stack([regions.box((7, 30), start=start, size=3) for start in ((0, 0), (3, 26))])[:, None]
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    on, _ = both(target, images, baselines=PatchBank(pixels(7, 30, count=3)), target=1)
    assert is_outside(on)


def test_units_of_any_shape_and_of_some_channels():
    spatial = (20, 20)
    torch.manual_seed(3)
    model = by_monai(Local(2, channels=2), 8)
    image, donors = torch.rand(1, 2, *spatial), torch.rand(3, 2, *spatial)
    mask = torch.randint(0, 6, (1, 2, *spatial))
    mask[0, 0, :3, :3], mask[0, 1, 15:, 15:] = 6, 7
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box(spatial, start=1, size=4), metric="soft_dice")
    on, _ = both(target, image, baselines=PatchBank(donors, placement="aligned"), target=1, feature_mask=mask)
    assert on.status[0, :, 1].tolist()[-1] == Status.OUTSIDE_SUPPORT
    assert on.status[0, :, 1].tolist()[-2] == Status.ESTIMATED


def test_what_the_network_is_given_besides_goes_with_its_image():
    class Scaled(Local):
        def forward(self, x, factor):
            return super().forward(x * factor.view(-1, 1, 1, 1))

    model, images = by_monai(seeded(Scaled), 8, sw_batch_size=3), pixels(20, 18, count=2)
    roi, factor = regions.box((20, 18), start=2, size=4), torch.tensor([0.5, 2.0])
    target = SegmentationTarget(model, roi=roi, reference=torch.randint(0, 2, (2, 20, 18)), metric="soft_dice")
    both(target, images, baselines=PatchBank(pixels(20, 18, count=3)), target=1, additional_forward_args=factor)


def test_a_literal_loop_around_monais_inferer():
    network, inferer = seeded(Normed), SlidingWindowInferer(8, 2, overlap=0.25, mode="gaussian")
    image, donors, roi = pixels(20, 16), pixels(20, 16, count=3), regions.box((20, 16), start=(12, 8), size=4)
    reference = (pixels(20, 16)[0, 0] > 0.5).long()
    target = SegmentationTarget(WindowedModel.from_monai(inferer, network), roi=roi, reference=reference)
    blocks = regions.grid((20, 16), 4)
    attr = AverageTreatmentEffect(target).attribute(
        image, donors, target=1, block_size=4, exclude=None, n_draws=3, n_screening_draws=0
    )

    def dice(x):
        with torch.no_grad():
            found = inferer(x, network).argmax(1)[0][roi] == 1
        truth = reference[roi] == 1
        return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())

    expected = torch.zeros(20, 16)
    for unit in range(int(blocks.max()) + 1):
        inside = blocks == unit
        scores = [dice(torch.where(inside, donor, image[0])[None]) for donor in donors]
        expected[inside] = dice(image) - sum(scores) / 3
    assert (expected != 0).sum() > 60
    torch.testing.assert_close(attr[0, 0], expected, atol=1e-6, rtol=0)


def test_windows_are_counted_as_the_network_sees_them():
    network = Counted(seeded(Normed))
    model = WindowedModel.from_monai(SlidingWindowInferer(8, 2, overlap=0.5), network)
    model.mirror_axes = (0,)
    image, roi = pixels(24, 24), regions.box((24, 24), start=1, size=3)
    target = SegmentationTarget.from_prediction(model, image, roi=roi)
    bank = PatchBank(pixels(24, 24, count=5))
    for sampling in ("uniform", "stratified"):
        network.seen.clear()
        _, stats = AverageTreatmentEffect(target).attribute(
            image, bank, target=1, block_size=4, n_draws=4, n_screening_draws=0, sampling=sampling, return_statistics=True
        )
        assert sum(network.seen) == stats.n_forwards
        # 25 windows of 8 x 8 in steps of 4, flipped and not; one of them touches the region, three more the pixels next to it.
        assert stats.settings["windows"] == {"patch_size": [8, 8], "per_image": 25, "touching": [1]}
        forwards = stats.settings["forwards"]
        # The target knows its outputs: of the one window, and of two beside each other and one alone to see whether they mix.
        assert forwards["observed"] == (1 if sampling == "stratified" else 1 + 2 + 1) * 2
        assert forwards["windows kept"] == 4 * 2
        # Of the one that touches the region: once for the logits, once more where their gradient is needed.
        assert forwards.get("gradient", 0) == (2 * 2 if sampling == "stratified" else 0)
        # Three blocks besides the region's own one.
        assert forwards["windows"] == 3 * 4 * 2
        assert (stats.status == Status.OUTSIDE_SUPPORT).sum() == 32 * 2


def test_windows_of_controls_are_counted_too():
    network = Counted(seeded(Normed))
    model, image = by_monai(network, 8), pixels(24, 24)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((24, 24), start=1, size=3), metric="soft_dice")
    arguments = {
        "block_size": 4,
        "n_draws": 3,
        "n_screening_draws": 0,
        "sampling": "uniform",
        "return_statistics": True,
        "target": 1,
    }
    face, bank = AverageTreatmentEffect(target), PatchBank(pixels(24, 24, count=5))
    _, plain = face.attribute(image, bank, **arguments)
    network.seen.clear()
    _, stats = face.attribute(image, bank, controls="edge", **arguments)
    assert sum(network.seen) == stats.n_forwards
    assert stats.settings["forwards"]["windows"] == plain.settings["forwards"]["windows"]
    assert stats.settings["forwards"]["edge_shifted"] > 0
    assert stats.settings["forwards"]["edge_matched"] > 0
    assert torch.equal(stats.effect.nan_to_num(), plain.effect.nan_to_num())


def test_a_unit_is_run_in_the_windows_that_hold_it_alone():
    model = by_monai(seeded(Normed), 8)
    image, roi = pixels(16, 16), regions.box((16, 16), start=7, size=2)
    target = SegmentationTarget.from_prediction(model, image, roi=roi, metric="soft_dice")
    mask = torch.ones(16, 16, dtype=torch.long)
    mask[0, 0], mask[7, 7] = 0, 2  # in one of the nine windows, in four of them; all others in all of them
    on, _ = both(target, image, baselines=PatchBank(pixels(16, 16, count=5), placement="aligned"), target=1, feature_mask=mask)
    assert on.settings["forwards"]["windows"] == 3 * (1 + 9 + 4)


def test_the_gradient_window_by_window_is_that_of_all_of_them():
    model = by_monai(seeded(Normed), 8, sw_batch_size=3)
    images = pixels(20, 18, count=2)
    target = SegmentationTarget.from_prediction(model, images, roi=two((20, 18)), metric="soft_dice")
    bank = PatchBank(pixels(20, 18, count=40))
    for face in (AverageTreatmentEffect(target), PdCR(target)):
        options = {"n_draws": 4, "block_size": 4, "return_statistics": True, "target": (1, 0)}
        if isinstance(face, AverageTreatmentEffect):
            on, off = (face.attribute(images, bank, **options, support=support)[1] for support in ("auto", None))
            outside = on.status == Status.OUTSIDE_SUPPORT
            torch.testing.assert_close(on.effect[~outside], off.effect[~outside], atol=1e-6, rtol=0, equal_nan=True)
            assert on.settings["sampling"] == "stratified"
            assert on.settings["forwards"]["gradient"] > 0


def evaluator(model, images, rois, **options):
    """What the faces make of a target."""
    from captum_causalseg.attr.effort import Effort
    from captum_causalseg.attr.options import InputUnits, Options
    from captum_causalseg.attr.problem import prepare_inputs

    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice", **options)
    asked = InputUnits(block_size=4, exclude=None)
    problem = prepare_inputs(Options(forward_func=target, inputs=images, units=asked, baselines=0.0, effort=Effort()), asked)
    with torch.no_grad():
        problem.evaluator.observe(np.arange(len(images)))
    return problem.evaluator.localized()


def test_regions_far_apart_have_a_box_each():
    model, images = by_monai(seeded(Normed), 8), pixels(40, 36, count=2)
    whole = evaluator(model, images, torch.cat([two((40, 36)), regions.box((40, 36), start=3, size=5)[None]]))
    found = by_windows(whole)
    assert isinstance(found, WindowsEvaluator)
    groups = found.geometry.groups
    # The first and the last overlap in a corner: two boxes are fewer pixels than one around both.
    assert [group.rois for group in groups] == [(0,), (1,), (2,)]
    assert [group.frame.size for group in groups] == [(5, 5), (5, 5), (7, 7)]
    everyone = Interventions.of_sets(np.array([0, 1, 1]), [[(0, [0]), (89, [0])], [(3, [0])], []])
    with torch.no_grad():
        scores, expected = found(everyone), whole(everyone)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    held = sum(part.numel() for parts in found.runs.kept.values() for group in parts for part in group)
    # Two classes, two images, no more windows at a place than overlap there (4), and the boxes alone.
    assert held <= 2 * 2 * 4 * (5 * 5 + 5 * 5 + 7 * 7)


def test_the_logits_are_those_of_all_windows_to_the_bit():
    model, images = by_monai(seeded(Normed), 8), pixels(20, 18, count=2)
    found = by_windows(evaluator(model, images, regions.box((20, 18), start=3, size=6)))
    sets = Interventions.of_sets(np.array([1, 0, 1]), [[(u, [0]) for u in range(6)], [(7, [0])], [(24, [0])]])
    with torch.no_grad():
        (logits,) = found._answers(sets)
        changed = images[sets.example].clone()
        found.unit_donors.paste([changed], sets)
        whole = model(changed)
    assert torch.equal(logits, whole[:, :, 2:10, 2:10])


class Moving(Local):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + 0.01 * self.calls


class Random(Local):
    def forward(self, x):
        return super().forward(x) + torch.randn_like(x)


@pytest.mark.parametrize("network", [Moving, Random])
def test_models_whose_answers_cannot_be_kept_are_refused(network):
    model, image = by_monai(seeded(network), 8), pixels(20, 20)
    target = SegmentationTarget(model, roi=regions.box((20, 20), start=4, size=4), reference=torch.ones(20, 20))
    with pytest.raises(ValueError, match="forward_func: the same image was answered twice"):
        AverageTreatmentEffect(target).attribute(image, pixels(20, 20, count=2), target=1, block_size=4, exclude=None)


def test_a_network_that_mixes_its_windows_is_not_run_by_windows():
    class Mixing(Local):
        def forward(self, x):
            return super().forward(x - x.mean((0, 2, 3), keepdim=True))

    images = pixels(20, 20)
    whole = evaluator(by_monai(seeded(Mixing), 8, sw_batch_size=3), images, regions.box((20, 20), start=4, size=4))
    with torch.no_grad():
        assert by_windows(whole) is whole
    assert whole.ledger.disabled["windows"] == "the network mixes the windows of a batch"
    whole = evaluator(by_monai(seeded(Mixing), 8, sw_batch_size=1), images, regions.box((20, 20), start=4, size=4))
    with torch.no_grad():
        assert isinstance(by_windows(whole), WindowsEvaluator)


@pytest.mark.parametrize(
    ("options", "arguments", "reason"),
    [
        ({"roi": None}, {}, "without an RoI nothing lies outside it"),
        ({"metric": lambda p, t, r: p.mean((2, 3))}, {}, "the metric may look beyond the RoI"),
        ({}, {"compile": True}, None),
    ],
)
def test_why_all_windows_are_run(options, arguments, reason, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    model, image = by_monai(seeded(Local), 8), pixels(16, 16)
    given = {"roi": regions.box((16, 16), start=4, size=4), "reference": torch.ones(16, 16), **options}
    face = AverageTreatmentEffect(SegmentationTarget(model, **given))
    _, stats = face.attribute(
        image, pixels(16, 16, count=2), target=1, block_size=8, exclude=None, n_draws=2, return_statistics=True, **arguments
    )
    assert "windows" not in stats.settings
    assert stats.settings["disabled"]["windows"] == (reason or "compile: the model is compiled as a whole")


def test_one_image_at_a_time_is_one_window_at_a_time():
    network = Counted(seeded(Local))
    model, image = by_monai(network, 8, sw_batch_size=4), pixels(20, 20)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((20, 20), start=6, size=4), metric="soft_dice")
    arguments = {"baselines": pixels(20, 20, count=2), "target": 1, "perturbations_per_eval": 1, "sampling": "uniform"}
    both(target, image, **arguments)
    network.seen.clear()
    _, stats = AverageTreatmentEffect(target).attribute(image, block_size=4, return_statistics=True, **arguments)
    assert stats.settings["batch_size"] == 1
    assert network.seen.count(1) >= stats.settings["forwards"]["windows"] > 0


def test_in_lower_precision_and_another_format_of_memory():
    model, image = by_monai(seeded(Local), 8, sw_batch_size=4), pixels(20, 20)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((20, 20), start=6, size=4), metric="soft_dice")
    arguments = {
        "baselines": pixels(20, 20, count=2),
        "target": 1,
        "block_size": 4,
        "sampling": "uniform",
        "n_screening_draws": 0,
    }
    plain = AverageTreatmentEffect(target).attribute(image, **arguments)
    last = AverageTreatmentEffect(target).attribute(image, **arguments, memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)
    low = AverageTreatmentEffect(target).attribute(image, **arguments, autocast=torch.bfloat16)
    assert 0 < float((low - plain).abs().max()) < 0.05
