"""Regions of interest far apart are run in windows of their own, and nothing of the effects changes."""

import pytest
import torch
from torch import Tensor, nn
from window_cases import CONV, Local, on_and_off, pixels

from captum_causalseg import (
    AverageTreatmentEffect,
    JointTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    regions,
)
from captum_causalseg.interventions import window
from captum_causalseg.interventions.roi_groups import RoiGroup, hull_of

UNIFORM = {"n_draws": 3, "n_screening_draws": 0, "sampling": "uniform", "exclude": None, "return_statistics": True}


class Counted(nn.Module):
    """Counts the images that it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.network(x)


class Normed(nn.Module):
    """A U-Net with batch norm: half the resolution inside, a skip around it."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.first, self.down = CONV[d](1, 4, 3, padding=1), CONV[d](4, 6, 3, stride=2, padding=1)
        self.norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[d - 1](6)
        self.up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[d - 1](6, 4, 2, stride=2)
        self.last = CONV[d](8, 3, 3, padding=1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.sin(4 * self.first(x))
        return 3 * self.last(torch.cat([skip, self.up(self.norm(self.down(skip)).relu())], 1))


def apart(spatial, size=4):
    """Regions in opposite corners ``(2, *spatial)``, an even number of pixels from the edges."""
    near = regions.box(spatial, start=4, size=size)
    return torch.stack([near, regions.box(spatial, start=[n - 4 - size for n in spatial], size=size)])


def case(d=2, count=2, model=None):
    spatial = {1: (48,), 2: (40, 32), 3: (24, 20, 20)}[d]
    images = pixels(*spatial, count=count)
    model = Normed(d) if model is None else model
    return model, images, apart(spatial), PatchBank(pixels(*spatial, count=4))


@pytest.mark.parametrize(("metric", "exclude"), [("soft_dice", None), ("dice", "roi")])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_effects_are_those_of_whole_images_and_of_each_region_alone(d, metric, exclude):
    model, images, rois, bank = case(d)
    reference = model(images).argmax(1).roll(1, -1)

    def target(roi):
        return SegmentationTarget(model, roi=roi, reference=reference, metric=metric)

    options = {"baselines": bank, "exclude": exclude, "block_size": 4 if d < 3 else 8}
    on, off = on_and_off(AverageTreatmentEffect(target(rois)), images, target=(1, 0), **options)
    windows = on.settings["roi_windows"]
    assert [one["rois"] for one in windows] == [[0], [1]]
    assert on.settings["window"] == max(one["window"] for one in windows)
    assert torch.equal(on.n_draws.nan_to_num(), torch.where(on.status == Status.OUTSIDE_SUPPORT, 0, off.n_draws).nan_to_num())
    for r in range(2):
        arguments = UNIFORM | options | {"target": 1, "support": "always"}
        _, alone = AverageTreatmentEffect(target(rois[r])).attribute(images, **arguments)
        assert "roi_windows" not in alone.settings
        assert torch.equal(alone.status, on.status[..., r])
        # The same draws in windows of the same size: no tolerance, but where oneDNN sums batches of other sizes otherwise.
        torch.testing.assert_close(on.effect[..., r], alone.effect, atol=2e-7, rtol=0, equal_nan=True)
        torch.testing.assert_close(on.standard_error[..., r], alone.standard_error, atol=2e-7, rtol=0, equal_nan=True)


@pytest.mark.parametrize("d", [2, 3])
def test_the_effects_are_those_of_a_loop_over_whole_images(d):
    model, images, rois, _ = case(d, count=1)
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    spatial = images.shape[2:]
    mask = regions.grid(spatial, 8)[None, None]
    _, stats = AverageTreatmentEffect(target).attribute(images, 0.25, (1, 0), feature_mask=mask, **UNIFORM | {"n_draws": 1})
    assert len(stats.settings["roi_windows"]) == 2
    observed = target(images)[0]
    for unit in range(int(mask.max()) + 1):
        intervened = target(torch.where(mask == unit, 0.25, images))[0]
        torch.testing.assert_close(stats.effect[0, unit].float(), observed - intervened, atol=2e-6, rtol=0)


def test_a_unit_is_run_once_for_each_group_that_it_reaches():
    network = Counted(Local())
    image = pixels(48, 40)
    target = SegmentationTarget.from_prediction(network, image, roi=apart((48, 40)), metric="soft_dice")
    # The upper left and the lower right reach one region each, their outer rows together both; the other corners none.
    mask = torch.zeros(48, 40, dtype=torch.long)
    mask[4:24, :20], mask[24:44, 20:], mask[:4, :20], mask[44:, 20:] = 1, 2, 3, 3
    network.images = 0
    _, stats = AverageTreatmentEffect(target).attribute(
        image, PatchBank(pixels(48, 40, count=4), "aligned"), (1, 0), feature_mask=mask, **UNIFORM | {"n_draws": 4}
    )
    by_roi = (stats.status[0, :, 0] == Status.ESTIMATED).tolist()
    assert by_roi == [[False, False], [True, False], [False, True], [True, True]]
    forwards = stats.settings["forwards"]
    # Four donors of one unit that reaches both, of two that reach one.
    assert forwards["interventions"] == 4 * (2 + 1 + 1)
    assert forwards["observed again"] == 2
    assert stats.n_forwards == network.images == sum(forwards.values())


def test_a_unit_is_not_run_for_the_sake_of_a_region_that_it_touches():
    image = pixels(48, 40)
    target = SegmentationTarget.from_prediction(Local(), image, roi=apart((48, 40)), metric="soft_dice")
    # It touches one region and is beside the other.
    mask = torch.zeros(48, 40, dtype=torch.long)
    mask[5, 5] = mask[40, 29] = 1
    bank = PatchBank(pixels(48, 40, count=9), "aligned")
    options = UNIFORM | {"n_draws": 8, "feature_mask": mask, "exclude": "roi"}
    _, stats = AverageTreatmentEffect(target).attribute(image, bank, (1, 0), **options)
    assert (stats.status[0, 1, 0] == torch.tensor([Status.EXCLUDED, Status.ESTIMATED])).all()
    assert (stats.status[0, 0] == Status.EXCLUDED).all()
    assert stats.settings["forwards"]["interventions"] == 8


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_all_that_goes_through_the_model_is_counted(sampling):
    model, images, rois, bank = case()
    network = Counted(model)
    target = SegmentationTarget.from_prediction(network, images, roi=rois, metric="soft_dice")
    network.images = 0
    options = UNIFORM | {"sampling": sampling, "n_draws": 8, "n_screening_draws": 3, "block_size": 4, "controls": "edge"}
    _, stats = AverageTreatmentEffect(target).attribute(images, bank, (1, 0), **options)
    assert len(stats.settings["roi_windows"]) == 2
    forwards = stats.settings["forwards"]
    assert stats.n_forwards == network.images == sum(forwards.values())
    assert forwards["edge_shifted"] > 0
    assert forwards.get("gradient", 0) == (2 * 2 if sampling == "stratified" else 0)


def test_donors_are_ranked_by_the_gradient_of_the_windows():
    model, images, rois, bank = case()
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    arguments = {"sampling": "stratified", "n_draws": 6, "screening_threshold": 0.004, "n_screening_draws": 3}
    on, off = on_and_off(AverageTreatmentEffect(target), images, baselines=bank, target=(1, 0), **arguments)
    assert len(on.settings["roi_windows"]) == 2
    assert on.settings["sampling"] == off.settings["sampling"] == "stratified"


def test_examples_have_their_regions_at_places_of_their_own():
    model, images, rois, bank = case()
    mirrored = torch.stack([rois, rois.flip(-1)])
    target = SegmentationTarget.from_prediction(model, images, roi=mirrored, metric="soft_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=bank, target=(1, 0))
    assert len(on.settings["roi_windows"]) == 2
    for n in range(2):
        one = SegmentationTarget.from_prediction(model, images[n : n + 1], roi=mirrored[n : n + 1], metric="soft_dice")
        _, alone = AverageTreatmentEffect(one).attribute(images[n : n + 1], bank, (1, 0), **UNIFORM | {"block_size": 4})
        torch.testing.assert_close(on.effect[n], alone.effect[0], atol=1e-6, rtol=0)


def test_three_regions_of_which_two_share_a_window():
    model, images, rois, bank = case()
    rois = torch.stack([rois[1], rois[0], rois[1].roll(-2, -1)])
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=bank, target=(1, 0))
    assert [one["rois"] for one in on.settings["roi_windows"]] == [[0, 2], [1]]


def test_several_classes_in_one_region_have_one_window():
    model, images, rois, bank = case()
    target = SegmentationTarget.from_prediction(model, images, roi=rois[0], metric="soft_dice")
    _, stats = AverageTreatmentEffect(target).attribute(images, bank, 1, **UNIFORM | {"block_size": 4})
    assert stats.effect.shape[2:] == (3,)
    assert "roi_windows" not in stats.settings


@pytest.fixture
def in_one_window(monkeypatch):
    """Runs something as if regions were never grouped."""

    def run(do):
        with monkeypatch.context() as patched:
            patched.setattr(window, "roi_groups", lambda needed, fit, weight: [of_all(needed, fit, weight)])
            return do()

    def of_all(needed, fit, weight):
        everything = tuple(range(needed.shape[1]))
        return RoiGroup(everything, fit(hull_of(needed)), weight(everything))

    return run


def same(one, other):
    assert "roi_windows" in one.settings
    assert "roi_windows" not in other.settings
    assert torch.equal(one.status, other.status)
    assert torch.equal(one.n_draws, other.n_draws)
    for name in ("effect", "standard_error"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-6, rtol=0, equal_nan=True)


def test_draws_go_on_until_the_goal_is_reached_for_every_region(in_one_window):
    model, images, rois, bank = case(count=1)
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    options = UNIFORM | {"block_size": 4, "n_draws": 16, "precision": 0.02}

    def explain():
        return AverageTreatmentEffect(target).attribute(images, bank, (1, 0), **options)[1]

    found = explain()
    same(found, in_one_window(explain))
    assert len(found.n_draws[found.n_draws > 0].unique()) > 1, "all units have as many draws: there was no goal to reach"


def test_several_units_at_once_reach_what_any_of_them_reaches(in_one_window):
    model, images, rois, bank = case(count=1)
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    options = {"block_size": 4, "n_draws": 4, "exclude": None, "return_statistics": True}

    def explain():
        return JointTreatmentEffect(target).attribute(images, bank, (1, 0), **options)[1]

    same(explain(), in_one_window(explain))


def test_blocks_of_a_layer():
    model, images, rois, _ = case()
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.first)
    donors = pixels(*images.shape[2:], count=4)
    on, _ = on_and_off(face, images, layer_baselines=donors, target=(1, 0), units="block", block_size=4)
    assert len(on.settings["roi_windows"]) == 2
    assert on.n_forwards == sum(on.settings["forwards"].values())


def test_a_model_that_is_compiled_has_one_window(monkeypatch):
    """Each size would be compiled anew."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    model, images, rois, bank = case(count=1)
    rois[1] = rois[1].roll((-12, -8), (0, 1))
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    for compiled in (False, True):
        options = UNIFORM | {"block_size": 8, "n_draws": 1, "compile": compiled}
        _, stats = AverageTreatmentEffect(target).attribute(images, bank, (1, 0), **options)
        assert stats.settings["window"] is not None
        assert ("roi_windows" in stats.settings) != compiled
