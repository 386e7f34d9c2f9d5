"""What cannot reach the region is left out, and nothing else; where that is not certain, nothing is."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from window_cases import (
    Coordinates,
    Local,
    NanHider,
    Shapes,
    Sixteen,
    Strided,
    case,
    compared,
    is_outside,
    left_nothing_out,
    on_and_off,
    pixels,
)

from captum_causalseg import (
    AverageTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    Status,
    causal_support,
    metrics,
    regions,
)


@pytest.mark.parametrize("side", [16, 13])
def test_images_of_two_shapes_have_no_window_but_units_are_left_out(side):
    images = pixels(32, 32, count=2), pixels(side, side, count=2)
    target = SegmentationTarget.from_prediction(
        Shapes(), images, roi=regions.box((32, 32), start=9, size=6), metric="soft_dice"
    )
    on, _ = on_and_off(
        AverageTreatmentEffect(target), images, baselines=(pixels(32, 32, count=3), pixels(side, side, count=3)), target=1
    )
    assert on.settings["window"] is None
    assert (on.status[:, :64] == Status.OUTSIDE_SUPPORT).any()
    assert (on.status[:, 64:] == Status.OUTSIDE_SUPPORT).any()


def waves(*shape: int) -> Tensor:
    grids = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    return ((torch.sin(grids[0] / 2.3) * 3 + grids[-1]).long() // 3 + 2) % 5


IRREGULAR = {
    "stripes": waves(32, 30)[None, None],
    "of each example": torch.stack([waves(32, 30), waves(30, 32).T])[:, None],
    "of each channel": torch.stack([waves(32, 30), 5 + waves(32, 30)])[None],
    "blocks of each channel": torch.stack([regions.grid((32, 30), 4), 64 + regions.grid((32, 30), 4)])[None],
    "rows": (torch.arange(32) // 3 % 4)[None, None, :, None],
    "columns of blocks": (torch.arange(30) // 5)[None, None, None, :],
    "columns": (torch.arange(30) // 2 % 4)[None, None, None, :],
    "one channel": torch.arange(2)[None, :, None, None],
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_units_of_any_shape_that_straddle_the_edge_of_the_window(name):
    images, donors = torch.rand(2, 2, 32, 30), torch.rand(4, 2, 32, 30)
    rois = torch.stack([regions.box((32, 30), start=(9, 20), size=6), regions.box((32, 30), start=(22, 7), size=6)])[:, None]
    target = SegmentationTarget.from_prediction(Local(channels=2), images, roi=rois, metric="soft_dice")
    on, _ = on_and_off(
        AverageTreatmentEffect(target), images, baselines=PatchBank(donors), target=1, feature_mask=IRREGULAR[name]
    )
    assert on.settings["window"] == [12, 12]


def test_a_unit_around_the_support_is_outside_though_its_box_is_not():
    image = pixels(32, 32)
    ring = torch.ones(32, 32, dtype=torch.long)
    ring[5:27, 5:27] = 0
    roi = regions.box((32, 32), start=9, size=6)
    target = SegmentationTarget.from_prediction(Local(), image, roi=roi, metric="soft_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), image, baselines=pixels(32, 32, count=3), target=1, feature_mask=ring)
    assert on.status[0, :, 1].tolist() == [Status.ESTIMATED, Status.OUTSIDE_SUPPORT]


@pytest.fixture
def registered():
    """Adds metrics that are gone afterwards."""
    before = dict(metrics.METRICS)
    yield metrics.register
    metrics.METRICS.clear()
    metrics.METRICS.update(before)


def spread(prediction: Tensor, reference: Tensor | None, roi: Tensor) -> Tensor:
    """Looks at the whole image."""
    return metrics.inside_mean(prediction, None, roi) + prediction.flatten(2).mean(2)[..., None]


def test_a_registered_metric_leaves_nothing_out_unless_it_says_that_it_stays_inside(registered):
    registered("spread", spread, needs_reference=False)
    target, image, donors = case(metric="spread")
    on, _ = on_and_off(AverageTreatmentEffect(target), image, baselines=donors, target=1)
    assert left_nothing_out(on)
    assert "support" not in on.settings["forwards"]
    assert (on.effect.abs() > 1e-6).all()
    registered("mean", metrics.inside_mean, needs_reference=False, inside_roi=True)
    target, image, donors = case(metric="mean")
    on, _ = on_and_off(AverageTreatmentEffect(target), image, baselines=donors, target=1)
    assert on.settings["window"] == [12, 12]


def test_a_metric_of_ones_own_leaves_nothing_out():
    target, image, donors = case(metric=lambda prediction, reference, roi: spread(prediction, reference, roi)[..., 0])
    on, _ = on_and_off(AverageTreatmentEffect(target), image, baselines=donors, target=1)
    assert left_nothing_out(on)
    assert "support" not in on.settings["forwards"]
    assert (on.effect.abs() > 1e-6).all()


def test_a_function_that_is_no_target_leaves_nothing_out():
    target, image, donors = case(metric="logit_mean")
    on, _ = on_and_off(AverageTreatmentEffect(lambda x: target(x)), image, baselines=donors, target=1)
    assert left_nothing_out(on)
    assert "support" not in on.settings["forwards"]


class Circular(Local):
    """The image's left border is its right border's neighbor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 5, padding=2, padding_mode="circular")


class Normalized(Local):
    """Divides by the largest value of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.amax((1, 2, 3), keepdim=True))


class Sized(Local):
    """Its output depends on how large the image is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * math.sqrt(32 * 32 / x[0, 0].numel())


class Cut(Local):
    """Returns a part of the output, which is resized to the image; of a small image another part."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if x.shape[2:] == (32, 32) else out[..., 1:, 1:]


def test_a_model_that_knows_its_place_has_no_window_but_units_are_left_out():
    on = compared(Coordinates())
    assert on.settings["window"] is None
    assert is_outside(on)


def test_a_place_that_matters_for_donors_alone_is_seen():
    class Gated(Local):
        def forward(self, x: Tensor) -> Tensor:
            place = torch.linspace(0, 1, x.shape[3]).expand_as(x)
            return super().forward(x) + (x - 1).relu() * torch.cat([place, -place], 1)

    on = compared(Gated(), donors=2 * pixels(32, 32, count=4))
    assert on.settings["window"] is None
    assert is_outside(on)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_other_precisions_a_place_that_matters_is_no_rounding(dtype):
    image = pixels(32, 32)
    roi = regions.box((32, 32), start=20, size=6)
    model = Coordinates(weight=0.3).to(dtype)
    target = SegmentationTarget(model, roi=roi, metric="probability_mean", activation="softmax")
    _, stats = AverageTreatmentEffect(target).attribute(
        image.to(dtype),
        PatchBank(pixels(32, 32, count=4).to(dtype)),
        1,
        block_size=4,
        n_draws=3,
        sampling="uniform",
        return_statistics=True,
    )
    assert stats.settings["window"] is None
    assert is_outside(stats)


def test_large_values_elsewhere_do_not_hide_a_difference_in_the_region():
    class Bright(Coordinates):
        """A border of a million around, which is rounding's measure for none but itself."""

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            frame = functional.pad(torch.zeros_like(out[..., 2:-2, 2:-2]), (2,) * 4, value=1e6)
            return out + frame

    on = compared(Bright(), side=40, start=20)
    assert on.settings["window"] is None


def test_large_values_in_one_example_or_region_do_not_hide_a_difference_in_another():
    """Logits a million times as large in the first example's RoI, and in its neighbor."""
    images = pixels(40, 40, count=2)
    near, far = (regions.box((40, 40), start=start, size=4) for start in ((10, 10), (10, 15)))
    images[0, 0, far] *= 1e6

    class Ramp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            place = torch.linspace(0, 1, x.shape[3]).expand_as(x)
            return torch.cat([x + place, x - place], 1)

    for rois, who in ((torch.stack([near, far])[None], images[:1]), (torch.stack([far, near])[:, None], images)):
        target = SegmentationTarget(Ramp(), roi=rois, metric="logit_mean", activation="softmax")
        _, stats = AverageTreatmentEffect(target).attribute(
            who,
            PatchBank(images[:1] + 0.1, "aligned"),
            (1, 0) if len(who) == 1 else 1,
            block_size=4,
            n_draws=1,
            sampling="uniform",
            exclude=None,
            return_statistics=True,
        )
        assert stats.settings["window"] is None
        assert is_outside(stats)


@pytest.mark.parametrize("model", [Sized, Cut])
def test_a_model_whose_output_depends_on_the_size_has_no_window_but_units_are_left_out(model):
    on = compared(model())
    assert on.settings["window"] is None
    assert is_outside(on)


@pytest.mark.parametrize(("start", "window"), [(9, [12, 12]), ((9, 0), [12, None]), (26, None)])
def test_circular_padding_reaches_around(start, window):
    on = compared(Circular(), start=start)
    if window is None:
        assert on.settings["window"] is None
    else:
        found = on.settings["window"]
        assert found[0] == 12
        assert found[1] == (window[1] or 32)
    columns = on.to_map("status", 1)[0, 0]
    near_left, near_right = (columns[:, side] == Status.OUTSIDE_SUPPORT for side in (0, -1))
    if start == 9:
        assert near_left.all()
        assert near_right.all()
    else:
        assert not near_left.all()
        assert not near_right.all()


def test_a_model_that_normalizes_by_the_largest_value_reaches_everywhere():
    on = compared(Normalized())
    assert left_nothing_out(on)
    assert on.settings["forwards"]["support"] < 10


def test_a_model_that_hides_nan_leaves_nothing_out_and_says_so(caplog):
    caplog.set_level("INFO")
    on = compared(NanHider())
    assert left_nothing_out(on)
    lines = [r.getMessage() for r in caplog.records if "support" in r.getMessage()]
    assert len(lines) == 1
    assert "every position counts as reaching" in lines[0]


class Far(nn.Module):
    """Sees pixels that lie far away, or everything in images that are large."""

    def __init__(self, reach: int, only_above: int = 0) -> None:
        super().__init__()
        self.near, self.reach, self.only_above = Local(), reach, only_above

    def forward(self, x: Tensor) -> Tensor:
        out = self.near(x)
        if x.shape[3] > self.only_above:
            padded = functional.pad(x, (self.reach, 0, 0, 0))
            out = out + torch.sin(4 * torch.cat([padded[..., : x.shape[3]], x], 1))
        return out


LARGE = {
    "local": Local,
    "strided": Strided,
    "far": lambda: Far(80),
    "far in large images only": lambda: Far(80, only_above=128),
    "place": Coordinates,
    "sixteen": Sixteen,
    "circular": Circular,
    "largest value": Normalized,
    "hidden NaN": NanHider,
}


@pytest.mark.parametrize(
    ("corners", "together"), [(([0, 180], [40, 100]), False), (([150, 250], [0, 0]), False), (([150, 250], [0, 0]), True)]
)
@pytest.mark.parametrize("name", LARGE)
def test_in_large_images_the_support_is_that_of_the_whole_image(name, corners, together):
    """It may be looked for in parts of the image first."""
    spatial = (160, 256)
    images = pixels(*spatial, count=1 if together else 2)
    rois = torch.stack([regions.box(spatial, start=corner, size=6) for corner in corners])
    rois = rois[None] if together else rois[:, None]
    target = SegmentationTarget(LARGE[name](), roi=rois, metric="logit_mean", activation="softmax")
    on, _ = on_and_off(
        AverageTreatmentEffect(target),
        images,
        baselines=PatchBank(pixels(*spatial, count=3)),
        target=(1, 0) if together else 1,
        block_size=32,
        n_draws=1,
    )
    for r in range(rois.shape[1]):
        reaches = causal_support(target, images).masks[0][:, [r]].float()
        expected = functional.max_pool2d(reaches, 32, ceil_mode=True).flatten(1) > 0
        of_class = on.status[:, :, 1].reshape(*on.status.shape[:2], -1)
        assert torch.equal(of_class[:, :, r] != Status.OUTSIDE_SUPPORT, expected)


@pytest.mark.parametrize(
    ("corners", "together"),
    [
        (([0, 180], [40, 100]), False),
        (([150, 250], [0, 0]), False),
        (([90, 83], [101, 160]), False),
        (([0, 180], [40, 100]), True),
        (([150, 250], [0, 0]), True),
    ],
)
def test_in_large_images_the_support_is_looked_for_in_parts_of_them(corners, together):
    """No search by halves on the whole image: that alone takes some 30 forwards per example.

    The regions are those of two examples, or of each: far apart, they have parts of their own.
    """
    whole = [0]
    model = Local()
    model.register_forward_pre_hook(
        lambda module, args: whole.__setitem__(0, whole[0] + len(args[0]) * (args[0].shape[3] == 256))
    )
    images = pixels(160, 256, count=2)
    rois = torch.stack([regions.box((160, 256), start=corner, size=6) for corner in corners])
    rois = rois[None] if together else rois[:, None]
    target = SegmentationTarget(model, roi=rois, metric="logit_mean")
    options = {"block_size": 32, "n_draws": 1, "sampling": "uniform", "exclude": None, "return_statistics": True}
    bank, output = PatchBank(pixels(160, 256, count=3)), (1, 0) if together else 1
    _, stats = AverageTreatmentEffect(target).attribute(images, bank, output, **options)
    assert stats.settings["window"] is not None
    assert whole[0] < 2 * 20


class Wide(nn.Module):
    """It sees 60 pixels away."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: dict[tuple[int, ...], int] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        self.forwards[size] = self.forwards.get(size, 0) + len(x)
        far = functional.avg_pool2d(x, (1, 121), stride=1, padding=(0, 60)) + functional.avg_pool2d(
            x, (121, 1), stride=1, padding=(60, 0)
        )
        return torch.cat([far, x], 1)


@pytest.mark.parametrize(("n_draws", "searched"), [(1, False), (3, True)])
def test_of_large_images_the_edges_of_crops_are_looked_at_first(n_draws, searched):
    """Where the support goes up to them, the crop is not searched, nor the whole image where that takes more than there is to save."""
    images, bank = pixels(160, 256), PatchBank(pixels(160, 256, count=9))
    roi = regions.box((160, 256), start=(77, 120), size=6)

    def attributed(support: str | None) -> tuple[Wide, object]:
        model = Wide()
        target = SegmentationTarget(model, roi=roi, metric="logit_mean", activation="softmax")
        options = {"block_size": 32, "n_draws": n_draws, "n_screening_draws": 0, "sampling": "uniform", "exclude": None}
        return model, AverageTreatmentEffect(target).attribute(
            images, bank, 1, support=support, return_statistics=True, **options
        )[1]

    model, found = attributed("auto")
    crops = [count for size, count in model.forwards.items() if size != (160, 256) and 96 in size]
    assert crops == [1 + 4], "the image as it is, and four sides"
    assert ("support" not in found.settings["disabled"]) == searched
    assert is_outside(found) == searched
    _, always = attributed("always")
    assert is_outside(always)
    _, never = attributed(None)
    for one in (found, always):
        torch.testing.assert_close(one.effect, never.effect, atol=1e-6, rtol=0)
    if not searched:
        assert "of 40 interventions" in found.settings["disabled"]["support"]
        assert model.forwards[160, 256] < 40 + 15


def test_pdcr_never_looks_for_the_support():
    image = pixels(64, 64)
    model = nn.Sequential(Local(classes=1), nn.Sigmoid())
    target = SegmentationTarget(model, roi=regions.box((64, 64), start=24, size=8), reference=torch.ones(64, 64).long())
    sizes = set()
    model.register_forward_pre_hook(lambda module, args: sizes.add((args[0].shape[-1], bool(args[0].isnan().any()))))
    _, stats = PdCR(target).attribute(image, PatchBank(torch.rand(9, 1, 8, 8)), n_draws=2, return_statistics=True)
    assert sizes == {(64, False)}
    assert not is_outside(stats)
    assert stats.settings["window"] is None
    assert stats.settings["support"] is None
    assert set(stats.settings["forwards"]) == {"observed", "interventions", "answered again"}


@pytest.mark.parametrize(("decide", "expected"), [(0.01, -1), (-0.01, 1), (0.0, 0)])
def test_what_cannot_reach_the_region_is_decided_without_a_draw(decide, expected):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Local()
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), 0, 8), metric="soft_dice")
    _, stats = AverageTreatmentEffect(target).attribute(image, 0.0, 1, block_size=8, decide=decide, return_statistics=True)
    outside = stats.status == Status.OUTSIDE_SUPPORT
    assert int(outside[..., 1].sum()) == 12
    assert bool((stats.decision[outside] == expected).all())
