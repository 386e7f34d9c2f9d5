"""The window that is enough to compute the RoI: the same effects as on the whole image, and none where it would not be enough."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import (
    AverageTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    causal_support,
    metrics,
    regions,
    visualization,
)
from captum_causalseg.interventions import layer as layer_module
from captum_causalseg.target.local_scores import LocalScores

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NAN = float("nan")


class Local(nn.Module):
    """Reaches three pixels far, and bends."""

    def __init__(self, d: int = 2, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.first, self.second = CONV[d](channels, 4, 5, padding=2), CONV[d](4, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.second(torch.sin(4 * self.first(x)))


class Strided(nn.Module):
    """Half the resolution inside; sizes that are no multiple of two as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = torch.sin(4 * self.first(x))
        up = functional.interpolate(small, scale_factor=2, mode="nearest")
        return 3 * self.second(up[(..., *map(slice, x.shape[2:]))])


def on_and_off(face, inputs, **arguments) -> tuple[TreatmentEffectStatistics, TreatmentEffectStatistics]:
    """Statistics with support and without it, which say the same."""
    if not ({"block_size", "feature_mask", "units", "layer_mask"} & set(arguments)):
        arguments["block_size"] = 4
    plain = {"n_draws": 3, "n_screening_draws": 0, "sampling": "uniform", "return_statistics": True, **arguments}
    if isinstance(face, AverageTreatmentEffect):
        plain.setdefault("exclude", None)
    on, off = (face.attribute(inputs, **plain, support=support)[1] for support in ("auto", None))
    assert "support" not in off.settings["forwards"]
    assert off.settings["window"] is None
    outside = on.status == Status.OUTSIDE_SUPPORT
    assert torch.equal(on.status[~outside], off.status[~outside])
    for name in ("effect", "standard_error"):
        left, right = getattr(on, name), getattr(off, name)
        torch.testing.assert_close(left[~outside], right[~outside], atol=2e-6, rtol=0, equal_nan=True)
        assert (left[outside] == 0).all()
    assert not outside.any() or float(off.effect[outside].abs().max()) <= 1e-6
    assert torch.equal(on.observed_score, off.observed_score)
    assert float(off.effect.nan_to_num().abs().max()) > 1e-3, "the case is too dull to prove anything"
    return on, off


def is_outside(statistics: TreatmentEffectStatistics) -> bool:
    return bool((statistics.status == Status.OUTSIDE_SUPPORT).any())


def left_nothing_out(statistics: TreatmentEffectStatistics) -> bool:
    return statistics.settings["window"] is None and not is_outside(statistics)


def pixels(*shape: int, count: int = 1) -> Tensor:
    return torch.rand((count, 1, *shape))


# Where the RoIs are


CORNERS = [
    ([0, 0], [20, 14]),
    ([34, 31], [0, 0]),
    ([34, 0], [0, 31]),
    ([16, 15], [17, 16]),
    ([17, 31], [3, 3]),
    ([0, 15], [33, 15]),
]


@pytest.mark.parametrize("model", [Local, Strided])
@pytest.mark.parametrize("corners", CORNERS)
def test_every_example_has_a_window_of_its_own_at_borders_too(corners, model):
    """The image's sides are no multiples of the stride."""
    images = pixels(40, 37, count=2)
    rois = torch.stack([regions.box((40, 37), start=corner, size=6) for corner in corners])[:, None]
    target = SegmentationTarget.from_prediction(model(), images, roi=rois, metric="soft_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=PatchBank(pixels(40, 37, count=4)), target=1)
    # 6 pixels, 3 or 4 on both sides, and what makes starts even; as wide for the example that the border cuts off.
    height, width = on.settings["window"]
    assert 9 <= height <= 16
    assert 9 <= width <= 16
    for n in range(2):
        assert (on.status[n] == Status.OUTSIDE_SUPPORT).sum() > 100


@pytest.mark.parametrize("d", [1, 2, 3])
def test_any_number_of_axes(d):
    spatial = (26, 24, 20)[:d]
    images = pixels(*spatial, count=2)
    roi = torch.stack([regions.box(spatial, start=3, size=4), regions.box(spatial, start=7, size=4)])
    target = SegmentationTarget.from_prediction(Local(d), images, roi=roi, metric="soft_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=PatchBank(pixels(*spatial, count=4)), target=(1, 1))
    assert on.settings["window"] == [14] * d  # 0 to 11 + 3
    # Each RoI has a support of its own.
    outside = (on.status == Status.OUTSIDE_SUPPORT)[:, :, 0].sum((0, 1)).tolist()
    assert all(0 < count < 2 * on.effect.shape[1] for count in outside)


def test_the_whole_image_as_region_leaves_nothing_out():
    image = pixels(24, 24)
    for roi in (None, torch.ones(24, 24, dtype=torch.bool)):
        target = SegmentationTarget.from_prediction(Local(), image, roi=roi, metric="soft_dice")
        on, _ = on_and_off(AverageTreatmentEffect(target), image, target=1, baselines=pixels(24, 24, count=3))
        assert left_nothing_out(on)


def test_a_window_of_nearly_the_whole_image_is_not_used():
    image = pixels(24, 24)
    target = SegmentationTarget.from_prediction(Local(), image, roi=regions.box((24, 24), start=4, size=16), metric="soft_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), image, target=1, baselines=pixels(24, 24, count=3), block_size=1)
    assert on.settings["window"] is None
    assert is_outside(on)


def test_masks_that_are_arguments():
    model, images = Local(), pixels(32, 30, count=2)
    rois = torch.stack([regions.box((32, 30), start=(2, 20), size=6), regions.box((32, 30), start=(20, 0), size=6)])
    labels = torch.randint(0, 2, (2, 32, 30))
    target = SegmentationTarget(model, roi="argument", reference="argument", metric="soft_dice")
    bank = PatchBank(pixels(32, 30, count=4))
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=bank, target=1, additional_forward_args=(rois, labels))
    assert on.settings["window"] == [12, 12]
    held = SegmentationTarget(model, roi=rois[:, None], reference=labels, metric="soft_dice")
    same, _ = on_and_off(AverageTreatmentEffect(held), images, baselines=bank, target=1)
    assert torch.equal(on.effect, same.effect)


# Inputs and arguments


class Wide(nn.Module):
    """Takes another image (or two), a number per example and a plain number."""

    def __init__(self, reach: int = 1) -> None:
        super().__init__()
        self.inner, self.far = Local(channels=2), nn.Conv2d(1, 2, 2 * reach + 1, padding=reach)

    def forward(self, x: Tensor, other: Tensor, numbers: Tensor, factor: float, zero_dim: Tensor) -> Tensor:
        joined = torch.cat([x, other], 1)
        return factor * self.inner(joined) + 4 * self.far(other) + (numbers[:, :2, None, None] + zero_dim)


@pytest.mark.parametrize("reach", [1, 9])
def test_arguments_that_are_images_are_cropped_along(reach):
    """Also where the argument is needed from farther away than the input: such a window would not do."""
    images, other = pixels(48, 46, count=2), pixels(48, 46, count=2)
    arguments = (other, torch.rand(2, 3), 0.8, torch.tensor(0.1))
    rois = torch.stack([regions.box((48, 46), start=(4, 30), size=6), regions.box((48, 46), start=(30, 11), size=6)])
    target = SegmentationTarget.from_prediction(Wide(reach), images, arguments, roi=rois[:, None], metric="soft_dice")
    on, _ = on_and_off(
        AverageTreatmentEffect(target),
        images,
        baselines=PatchBank(pixels(48, 46, count=4)),
        target=1,
        additional_forward_args=arguments,
    )
    assert is_outside(on)
    if reach == 1:
        assert on.settings["window"] == [12, 12]
    else:
        assert on.settings["window"] is None or min(on.settings["window"]) >= 24


def test_an_argument_without_a_channel_axis_is_an_image_that_is_not_cropped():
    class Model(Local):
        def forward(self, x, other):
            return super().forward(x) + other[:, None]

    image, other = pixels(32, 32), torch.rand(1, 32, 32)
    target = SegmentationTarget.from_prediction(
        Model(), image, other, roi=regions.box((32, 32), start=9, size=6), metric="soft_dice"
    )
    on, _ = on_and_off(
        AverageTreatmentEffect(target), image, target=1, baselines=pixels(32, 32, count=3), additional_forward_args=other
    )
    assert on.settings["window"] is None
    assert is_outside(on)


def test_two_images_of_one_shape():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = Local(), nn.Conv2d(1, 2, 13, padding=6)

        def forward(self, a, b):
            return self.near(a) + torch.sin(4 * self.far(b))

    images = pixels(40, 40, count=2), pixels(40, 40, count=2)
    target = SegmentationTarget.from_prediction(
        Model(), images, roi=regions.box((40, 40), start=(20, 3), size=6), metric="soft_dice"
    )
    banks = tuple(PatchBank(pixels(40, 40, count=4)) for _ in range(2))
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=banks, target=1)
    assert on.settings["window"] == [18, 15]
    first, second = ((on.status[:, half, 1] == Status.OUTSIDE_SUPPORT).sum() for half in (slice(0, 100), slice(100, 200)))
    assert first > second > 0


class Shapes(nn.Module):
    """A second input of another shape, which is resized, or a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.coarse = Local(), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if other.ndim == 2:
            return self.near(x + 0.3 * torch.sin(other.sum(1))[:, None, None, None])
        return self.near(x) + 3 * functional.interpolate(self.coarse(other), size=x.shape[2:])


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


def test_a_vector_beside_the_image_stays_as_it_is():
    inputs = pixels(32, 32, count=2), torch.rand(2, 3)
    target = SegmentationTarget.from_prediction(
        Shapes(), inputs, roi=regions.box((32, 32), start=9, size=6), metric="soft_dice"
    )
    on, _ = on_and_off(AverageTreatmentEffect(target), inputs, baselines=(pixels(32, 32, count=3), torch.rand(3, 3)), target=1)
    assert on.settings["window"] == [12, 12]
    assert (on.status[:, -3:] == Status.ESTIMATED).all()


# Units


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


@given(st.data())
def test_windows_change_nothing_whatever_the_units_and_regions(data):
    spatial = tuple(data.draw(st.lists(st.integers(14, 26), min_size=2, max_size=2), label="spatial"))
    seed = data.draw(st.integers(0, 99), label="seed")
    generator = torch.Generator().manual_seed(seed)
    n = data.draw(st.integers(1, 2), label="n")
    rois = torch.zeros(n, 2, *spatial, dtype=torch.bool)
    for roi in rois.flatten(0, 1):
        corner = [data.draw(st.integers(0, side - 3)) for side in spatial]
        roi[tuple(slice(start, start + data.draw(st.integers(1, 3))) for start in corner)] = True
    lengths = [data.draw(st.sampled_from([1, side])) for side in (n, 1, *spatial)]
    mask = torch.randint(0, data.draw(st.integers(2, 6)), lengths, generator=generator)
    model = data.draw(st.sampled_from([Local, Strided]))().requires_grad_(False)
    images, donors = torch.rand(n, 1, *spatial, generator=generator), torch.rand(3, 1, *spatial, generator=generator)
    target = SegmentationTarget(model, roi=rois, metric="logit_mean")
    face = AverageTreatmentEffect(target)
    options = {"n_draws": 3, "n_screening_draws": 0, "sampling": "uniform", "return_statistics": True, "exclude": None}
    on, off = (
        face.attribute(images, PatchBank(donors), (1, 0), feature_mask=mask, support=support, **options)[1]
        for support in ("auto", None)
    )
    torch.testing.assert_close(on.effect, off.effect, atol=5e-6, rtol=0)


# Scores


def test_what_lies_next_to_the_region_is_in_the_window():
    """A boundary is where the object ends inside the RoI, not where the window ends."""
    images = pixels(32, 32, count=2)
    model = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([-8.0, 8.0]).view(2, 1, 1, 1))
        model.bias.copy_(torch.tensor([3.0, -3.0]))
    rois = torch.stack([regions.box((32, 32), start=(9, 20), size=9), regions.box((32, 32), start=(0, 23), size=9)])[:, None]
    smooth = functional.avg_pool2d(functional.pad(images, (2,) * 4, mode="replicate"), 5, 1) * 2 - 0.6
    labels = (functional.avg_pool2d(functional.pad(images, (3,) * 4, mode="replicate"), 7, 1) > 0.5)[:, 0].long()
    target = SegmentationTarget(model, roi=rois, reference=labels, metric="surface_dice")
    on, _ = on_and_off(AverageTreatmentEffect(target), smooth, baselines=pixels(32, 32, count=6), target=1, block_size=3)
    assert on.settings["window"] == [11, 11]


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


def case(**options) -> tuple[SegmentationTarget, Tensor, Tensor]:
    image = pixels(32, 32)
    target = SegmentationTarget(Local(), roi=regions.box((32, 32), start=9, size=6), **options)
    return target, image, pixels(32, 32, count=3)


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


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
def test_every_metric_gives_the_same_effects_on_the_window(metric):
    images = pixels(40, 37, count=2)
    rois = torch.stack([regions.box((40, 37), start=(0, 20), size=8), regions.box((40, 37), start=(20, 8), size=8)])
    rois[1, 22:24, 9:12] = False
    reference = torch.randint(0, 3, (2, 40, 37))
    target = SegmentationTarget(Local(classes=3), roi=rois[:, None], reference=reference, metric=metric)
    scale = {"volume": 64.0, "soft_volume": 64.0, "logit_sum": 64.0}.get(metric, 1.0)
    face = AverageTreatmentEffect(target)
    options = {"n_draws": 3, "n_screening_draws": 0, "sampling": "uniform", "return_statistics": True, "block_size": 4}
    donors = PatchBank(pixels(40, 37, count=4))
    on, off = (face.attribute(images, donors, 2, support=support, **options)[1] for support in ("auto", None))
    assert on.settings["window"] is not None
    torch.testing.assert_close(on.effect, off.effect, atol=2e-6 * scale, rtol=0, equal_nan=True)
    assert float(off.effect.nan_to_num().abs().max()) > 1e-3


class Probable(nn.Module):
    """Probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1) if x.shape[1] > 1 else x.sigmoid()


def local_and_whole(target: SegmentationTarget, images: Tensor, logits: Tensor, examples: np.ndarray, *arguments: Tensor):
    """The scores of rows of logits that belong to these examples, from the surroundings of the RoIs and from everything."""
    target(images, *arguments)
    local = target.local_scores(images, *arguments)
    assert local is not None
    index = torch.from_numpy(examples)
    rows = [target.score(logits[b : b + 1], images[n : n + 1], *(a[n : n + 1] for a in arguments)) for b, n in enumerate(index)]
    return local, torch.cat(rows)


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("activation", ["auto", "sigmoid", "none"])
@pytest.mark.parametrize("place", ["inside", "border", "corner", "everything", "scattered"])
def test_scores_from_around_the_regions_are_the_scores(metric, classes, activation, place):
    generator = torch.Generator().manual_seed(classes)
    spatial, n = (13, 11), 3
    rois = torch.zeros(n, 2, *spatial, dtype=torch.bool)
    boxes = {
        "inside": [(2, 7, 3, 8), (4, 9, 2, 5)],
        "border": [(0, 5, 3, 8), (8, 13, 2, 11)],
        "corner": [(0, 3, 0, 4), (9, 13, 7, 11)],
        "everything": [(0, 13, 0, 11), (5, 6, 5, 6)],
        "scattered": [(1, 12, 1, 10), (3, 10, 0, 11)],
    }[place]
    for k in range(n):
        for r, (a, b, c, d) in enumerate(boxes):
            rois[k, r, max(a - k, 0) : b, c : min(d + k, 11)] = True
    if place == "scattered":
        rois &= torch.rand(rois.shape, generator=generator) > 0.5
    images = torch.rand(n, 1, *spatial, generator=generator)
    overlapping = classes == 1 or activation == "sigmoid"
    shape = (n, classes, *spatial) if overlapping else (n, *spatial)
    reference = torch.randint(0, 2 if overlapping else classes, shape, generator=generator)
    blobs = torch.randn(5, classes, *spatial, generator=generator)
    logits = functional.avg_pool2d(functional.pad(blobs, (1,) * 4), 3, 1) * 4
    model = nn.Conv2d(1, classes, 1)
    if activation == "none":
        logits, model = logits.softmax(1) if classes > 1 else logits.sigmoid(), nn.Sequential(model, Probable())
    examples = np.array([2, 0, 1, 1, 2])
    arguments = SegmentationTarget(model, roi="argument", reference="argument", metric=metric, activation=activation)
    local, expected = local_and_whole(arguments, images, logits, examples, rois, reference)
    torch.testing.assert_close(local(logits, examples), expected, atol=1e-6, rtol=2e-6)
    target = SegmentationTarget(model, roi=rois, reference=reference, metric=metric, activation=activation)
    target(images)
    own = target.local_scores(images)
    torch.testing.assert_close(own(logits, examples), expected, atol=1e-6, rtol=2e-6)
    assert own(logits, examples).shape == expected.shape
    shared = SegmentationTarget(model, roi=rois[0], reference=reference[0], metric=metric, activation=activation)
    local, expected = local_and_whole(shared, images, logits, examples)
    torch.testing.assert_close(local(logits, examples), expected, atol=1e-6, rtol=2e-6)


def test_scores_are_nan_where_the_logits_around_the_regions_are():
    images = pixels(16, 16, count=2)
    roi = torch.stack([regions.box((16, 16), start=4, size=4), regions.box((16, 16), start=(6, 8), size=3)])
    target = SegmentationTarget(nn.Conv2d(1, 2, 1), roi=roi, metric="logit_mean")
    target(images)
    local = target.local_scores(images)
    logits = torch.rand(4, 2, 16, 16)
    logits[0, 1, 5, 5] = logits[1, 0, 3, 3] = logits[2, 0, 14, 14] = NAN
    scores = local(logits, np.array([0, 1, 0, 1]))
    assert scores.flatten(1).isnan().all(1).tolist() == [True, True, False, False]
    assert not scores[2:].isnan().any()


def test_scores_of_one_example_do_not_depend_on_the_others():
    images, rois = pixels(16, 16, count=2), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    rois[0, 0, 2:6, 2:6] = rois[1, 0, 9:14, 8:12] = True
    target = SegmentationTarget(nn.Conv2d(1, 2, 1), roi=rois, metric="logit_mean")
    target(images)
    local = target.local_scores(images)
    logits = torch.rand(2, 2, 16, 16)
    expected = torch.stack([logits[0, :, 2:6, 2:6].mean((1, 2)), logits[1, :, 9:14, 8:12].mean((1, 2))])
    torch.testing.assert_close(local(logits, np.array([0, 1])), expected)
    part = local.cropped(np.array([[1, 1], [8, 7]]), (7, 7))
    assert isinstance(part, LocalScores)
    crops = torch.stack([logits[0, :, 1:8, 1:8], logits[1, :, 8:15, 7:14]])
    torch.testing.assert_close(part(crops, np.array([0, 1])), expected)


def test_no_local_scores_before_the_first_call_or_with_ones_own_metric():
    target, image, _ = case(metric="logit_mean")
    assert target.local_scores(image) is None
    target(image)
    assert target.local_scores(image) is not None
    own, image, _ = case(metric=lambda prediction, reference, roi: prediction.flatten(2).mean(2))
    own(image)
    assert own.local_scores(image) is None


# Models


class Sixteen(Local):
    """Takes sizes that are multiples of sixteen only."""

    def forward(self, x: Tensor) -> Tensor:
        if any(side % 16 for side in x.shape[2:]):
            raise RuntimeError(f"sizes must be multiples of 16, got {tuple(x.shape)}")
        return super().forward(x)


class Coordinates(Local):
    """Sees where in the image it is."""

    def __init__(self, channels: int = 1, weight: float = 1.0) -> None:
        super().__init__(channels=2)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device).expand_as(x)
        return super().forward(torch.cat([x, self.weight * place], 1))


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


class NanHider(Local):
    """Takes NaN for 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.nan_to_num(0.0)
        return super().forward(x) + x.mean((1, 2, 3), keepdim=True)


def compared(model: nn.Module, *, side: int = 32, start=9, dtype=torch.float32, donors=None, image=None):
    image = pixels(side, side) if image is None else image
    donors = pixels(side, side, count=4) if donors is None else donors
    roi = regions.box((side, side), start=start, size=6)
    target = SegmentationTarget(model.eval().to(dtype), roi=roi, metric="logit_mean", activation="softmax")
    return on_and_off(AverageTreatmentEffect(target), image.to(dtype), baselines=PatchBank(donors.to(dtype)), target=1)[0]


def test_a_model_that_refuses_crops_gets_an_aligned_one():
    on = compared(Sixteen(), side=64, start=20)
    assert on.settings["window"] == [16, 16]  # 17 to 29: from 16 to 32


def test_the_window_lies_on_the_grid_of_a_network_with_strides():
    model = nets.UNet(2, 1, 2, (4, 8, 8), (2, 2), norm="batch")
    on = compared(model, side=128, start=61)
    assert on.settings["window"] is not None
    assert all(side % 4 == 0 for side in on.settings["window"])


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_have_windows_too(dtype):
    image = pixels(32, 32).to(dtype)
    target = SegmentationTarget(Local().to(dtype), roi=regions.box((32, 32), start=9, size=6), metric="probability_mean")
    donors = PatchBank(pixels(32, 32, count=4).to(dtype))
    options = {"block_size": 4, "n_draws": 3, "sampling": "uniform", "return_statistics": True, "n_screening_draws": 0}
    face = AverageTreatmentEffect(target)
    on, off = (face.attribute(image, donors, 1, support=support, **options)[1] for support in ("auto", None))
    # Where the CPU sums bfloat16 in blocks, NaN spreads to a neighbor.
    assert max(on.settings["window"]) <= 13
    digits = torch.finfo(dtype).eps
    torch.testing.assert_close(on.effect, off.effect, atol=4 * max(digits, 1e-7), rtol=0, equal_nan=True)


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


@pytest.mark.parametrize("corners", [([0, 180], [40, 100]), ([150, 250], [0, 0])])
@pytest.mark.parametrize("name", LARGE)
def test_in_large_images_the_support_is_that_of_the_whole_image(name, corners):
    """It may be looked for in a part of the image first."""
    spatial = (160, 256)
    images = pixels(*spatial, count=2)
    rois = torch.stack([regions.box(spatial, start=corner, size=6) for corner in corners])[:, None]
    target = SegmentationTarget(LARGE[name](), roi=rois, metric="logit_mean", activation="softmax")
    on, _ = on_and_off(
        AverageTreatmentEffect(target),
        images,
        baselines=PatchBank(pixels(*spatial, count=3)),
        target=1,
        block_size=32,
        n_draws=1,
    )
    reaches = causal_support(target, images).masks[0][:, 0].float()
    expected = functional.max_pool2d(reaches[:, None], 32, ceil_mode=True).flatten(1) > 0
    assert torch.equal(on.status[:, :, 1] != Status.OUTSIDE_SUPPORT, expected)


# Work and repetition


@pytest.mark.parametrize("corners", [([0, 180], [40, 100]), ([150, 250], [0, 0]), ([90, 83], [101, 160])])
def test_in_large_images_the_support_is_looked_for_in_a_part_of_them(corners):
    """No search by halves on the whole image: that alone takes some 30 forwards per example."""
    whole = [0]
    model = Local()
    model.register_forward_pre_hook(
        lambda module, args: whole.__setitem__(0, whole[0] + len(args[0]) * (args[0].shape[3] == 256))
    )
    images = pixels(160, 256, count=2)
    rois = torch.stack([regions.box((160, 256), start=corner, size=6) for corner in corners])[:, None]
    target = SegmentationTarget(model, roi=rois, metric="logit_mean")
    options = {"block_size": 32, "n_draws": 1, "sampling": "uniform", "exclude": None, "return_statistics": True}
    _, stats = AverageTreatmentEffect(target).attribute(images, PatchBank(pixels(160, 256, count=3)), 1, **options)
    assert stats.settings["window"] is not None
    assert whole[0] < 2 * 20


def test_batches_are_larger_on_windows_but_never_above_the_limit():
    seen: list[tuple[int, int]] = []
    model = Local()
    model.register_forward_pre_hook(lambda module, args: seen.append((len(args[0]), args[0].shape[-1])))
    image = pixels(128, 128)
    target = SegmentationTarget(model, roi=regions.box((128, 128), start=60, size=4), metric="logit_mean")
    face = AverageTreatmentEffect(target)
    options = {"block_size": 1, "n_draws": 20, "n_screening_draws": 0, "sampling": "uniform", "exclude": None}
    bank = PatchBank(pixels(128, 128, count=3))
    for wanted, least, most in ((2, 300, 400), (64, 1024, 1024)):
        seen.clear()
        face.attribute(image, bank, 1, perturbations_per_eval=wanted, **options)
        assert least <= max(n for n, side in seen if side < 128) <= most
        assert max(n for n, side in seen if side == 128) <= wanted
    seen.clear()
    face.attribute(image, bank, 1, perturbations_per_eval=1500, **options)
    assert max(n for n, side in seen if side < 128) == 1500, "what was asked for is given"


def test_the_count_of_forwards_is_what_went_through_the_model():
    count = [0]
    model = nn.Sequential(Local())
    model.register_forward_pre_hook(lambda module, args: count.__setitem__(0, count[0] + len(args[0])))
    images = pixels(40, 40, count=2)
    target = SegmentationTarget(model, roi=regions.box((40, 40), start=9, size=6), metric="logit_mean")
    for sampling in ("uniform", "stratified"):
        for support in ("auto", None):
            count[0] = 0
            _, stats = AverageTreatmentEffect(target).attribute(
                images,
                PatchBank(pixels(40, 40, count=9)),
                1,
                block_size=4,
                n_draws=5,
                n_screening_draws=2,
                sampling=sampling,
                support=support,
                return_statistics=True,
            )
            assert stats.n_forwards == count[0] == sum(stats.settings["forwards"].values())
            assert (stats.settings["window"] is None) == (support is None)
            if support is not None:
                # What is compared is computed alike.
                assert stats.settings["forwards"]["observed again"] == 2


@pytest.mark.parametrize("metric", ["dice", "soft_dice"])
def test_screening_and_stratified_draws_are_the_same_on_the_window(metric):
    images = pixels(48, 48, count=2)
    rois = torch.stack([regions.box((48, 48), start=(9, 20), size=8), regions.box((48, 48), start=(30, 3), size=8)])[:, None]
    target = SegmentationTarget.from_prediction(Strided(), images, roi=rois, metric=metric)
    bank = PatchBank(pixels(48, 48, count=6))
    options = {"n_draws": 8, "n_screening_draws": 3, "sampling": "stratified", "screening_threshold": 0.004}
    on, _ = on_and_off(AverageTreatmentEffect(target), images, baselines=bank, target=1, exclude="roi", **options)
    assert on.settings["sampling"] == "stratified"
    assert on.settings["window"] is not None
    for status in (Status.SCREENED, Status.ESTIMATED, Status.EXCLUDED, Status.OUTSIDE_SUPPORT):
        assert (on.status == status).any()


def test_repeated_calls_give_the_same_bits_and_batches_the_same_values():
    images = pixels(40, 40, count=2)
    target = SegmentationTarget.from_prediction(
        Strided(), images, roi=regions.box((40, 40), start=(9, 20), size=6), metric="soft_dice"
    )
    face, bank = AverageTreatmentEffect(target), PatchBank(pixels(40, 40, count=6))
    options = {"baselines": bank, "target": 1, "block_size": 4, "n_draws": 6, "return_statistics": True}
    first, again = (face.attribute(images, **options)[1] for _ in range(2))
    for name in ("effect", "standard_error", "n_draws", "status", "observed_score"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.settings["window"] is not None
    few, many = (face.attribute(images, **options, perturbations_per_eval=size)[1] for size in (4, 64))
    assert torch.equal(few.status, many.status)
    torch.testing.assert_close(few.effect, many.effect, atol=1e-6, rtol=0, equal_nan=True)
    torch.testing.assert_close(few.standard_error, many.standard_error, atol=1e-6, rtol=0, equal_nan=True)
    assert few.settings["window"] == many.settings["window"] == first.settings["window"]


def test_each_example_gets_what_it_gets_alone():
    images = pixels(40, 40, count=2)
    rois = torch.stack([regions.box((40, 40), start=(9, 20), size=6), regions.box((40, 40), start=(30, 2), size=8)])[:, None]
    labels = torch.randint(0, 2, (2, 40, 40))
    model, bank = Strided(), PatchBank(pixels(40, 40, count=6))

    def of(index):
        target = SegmentationTarget(model, roi=rois[index], reference=labels[index], metric="soft_dice")
        options = {"block_size": 4, "n_draws": 4, "sampling": "uniform", "return_statistics": True}
        return AverageTreatmentEffect(target).attribute(images[index], bank, 1, **options)[1]

    both = of(slice(0, 2))
    for n in range(2):
        alone = of(slice(n, n + 1))
        assert torch.equal(both.status[n], alone.status[0])
        torch.testing.assert_close(both.effect[n], alone.effect[0], atol=1e-6, rtol=0, equal_nan=True)


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


# Layers


class Net(nn.Module):
    """A layer at full and one at half resolution, and the image beside both."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.last = nn.Conv2d(11, 2, 3, padding=1)

    def forward(self, x: Tensor, number: Tensor | None = None) -> Tensor:
        early = torch.sin(4 * self.early(x))
        deep = functional.interpolate(torch.sin(4 * self.down(early)), scale_factor=2)
        if number is not None:
            deep = deep + number[:, :1, None, None] * x
        return 3 * self.last(torch.cat([x, early, deep], 1))


def switch_vmap_off(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("switched off by the test")

    monkeypatch.setattr(layer_module.torch.func, "vmap", refuse)


@pytest.mark.parametrize("vmap", [True, False])
@pytest.mark.parametrize(
    "units",
    [
        {"units": "channel"},
        {"units": "block", "block_size": 4},
        {"units": "channel_block", "block_size": 4},
        {"units": "layer"},
        {"layer_mask": (torch.arange(40) // 4 % 3)[None, None, None]},
    ],
    ids=lambda units: units.get("units", "layer_mask"),
)
@pytest.mark.parametrize("name", ["early", "down"])
def test_units_of_a_layer_have_the_same_effects_on_the_window(name, units, vmap, monkeypatch, caplog):
    caplog.set_level("INFO")
    if not vmap:
        switch_vmap_off(monkeypatch)
    if "layer_mask" in units and name == "down":
        units = {"layer_mask": units["layer_mask"][..., :20]}
    images = pixels(40, 40, count=2)
    rois = torch.stack([regions.box((40, 40), start=(9, 20), size=6), regions.box((40, 40), start=(30, 2), size=6)])[:, None]
    model = Net()
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, getattr(model, name))
    on, _ = on_and_off(face, images, layer_baselines=pixels(40, 40, count=4), target=1, **units)
    assert on.settings["window"] is not None
    assert on.n_forwards == sum(on.settings["forwards"].values())
    if units.get("units") in ("channel", "layer"):
        assert not is_outside(on)
    elif "units" in units:
        assert (on.status == Status.OUTSIDE_SUPPORT).flatten(1).any(1).all()
    assert ("vmap does not go with" in caplog.text) != vmap


@pytest.mark.parametrize("at_input", [True, False])
def test_a_layer_of_a_network_in_three_dimensions(at_input):
    model = nets.UNet(3, 1, 2, (4, 8), (2,), norm="batch", act=("relu", {"inplace": False})).eval()
    images, donors = torch.randn(1, 1, 32, 24, 24), torch.randn(4, 1, 32, 24, 24)
    target = SegmentationTarget.from_prediction(
        model, images, roi=regions.box((32, 24, 24), start=4, size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.model[1].submodule)
    arguments = {"layer_baselines": donors, "units": "block", "block_size": 4, "attribute_to_layer_input": at_input}
    on, _ = on_and_off(face, images, target=1, **arguments)
    assert on.settings["window"] is not None
    assert is_outside(on)


def test_arguments_of_a_model_with_a_layer_on_the_window():
    images, model = pixels(40, 40, count=2), Net()
    numbers = torch.rand(2, 2)
    target = SegmentationTarget.from_prediction(
        model, images, numbers, roi=regions.box((40, 40), start=(9, 20), size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.down)
    on, _ = on_and_off(face, images, layer_baselines=0.3, target=1, units="channel", additional_forward_args=numbers)
    assert on.settings["window"] is not None


def test_images_as_arguments_of_a_model_with_a_layer_are_cropped_along():
    class Two(Net):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return super().forward(x) + 3 * other

    images, other, model = pixels(40, 40, count=2), pixels(40, 40, count=2), Two()
    rois = torch.stack([regions.box((40, 40), start=(9, 20), size=6), regions.box((40, 40), start=(30, 2), size=6)])
    target = SegmentationTarget(model, roi="argument", metric="probability_mean")
    face = LayerAverageTreatmentEffect(target, model.down)
    on, _ = on_and_off(
        face,
        images,
        layer_baselines=0.3,
        target=1,
        units="channel",
        additional_forward_args=(other * torch.ones(2, 1, 1, 1), rois),
    )
    assert on.settings["window"] is not None


def test_the_window_holds_what_goes_past_the_layer_as_well():
    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = Local(), nn.Conv2d(1, 2, 13, padding=6)

        def forward(self, x: Tensor) -> Tensor:
            return self.near(x) + torch.sin(4 * self.far(x))

    model, images = Past(), pixels(48, 48, count=2)
    target = SegmentationTarget.from_prediction(
        model, images, roi=regions.box((48, 48), start=(9, 20), size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.near.first)
    on, _ = on_and_off(face, images, layer_baselines=pixels(48, 48, count=3), target=1, units="block", block_size=4)
    assert on.settings["window"] == [18, 18]
    # Of the layer, one pixel around the RoI: 8 to 16, and 19 to 27.
    assert (on.status[0, :, 1] != Status.OUTSIDE_SUPPORT).sum() == 2 * 3


class Ragged(nn.Module):
    """A layer whose grid does not divide the image: a convolution without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Conv2d(1, 4, 4), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.pad(torch.sin(4 * self.inner(x)), (1, 2, 1, 2)))


def test_a_layer_whose_grid_does_not_divide_the_image_has_no_window_but_units_are_left_out():
    images, model = pixels(40, 40, count=2), Ragged()
    target = SegmentationTarget.from_prediction(
        model, images, roi=regions.box((40, 40), start=(9, 20), size=6), metric="soft_dice"
    )
    face = LayerAverageTreatmentEffect(target, model.inner)
    on, _ = on_and_off(face, images, layer_baselines=pixels(40, 40, count=3), target=1, units="block", block_size=4)
    assert on.settings["window"] is None
    assert is_outside(on)


def test_a_layer_of_a_model_that_knows_its_place_has_no_window():
    model, images = Coordinates(), pixels(32, 32)
    target = SegmentationTarget(model, roi=regions.box((32, 32), start=9, size=6), metric="logit_mean", activation="softmax")
    # What lies upstream of the first layer is replaced; where the second one is, it is not.
    face = LayerAverageTreatmentEffect(target, model.first)
    on, _ = on_and_off(face, images, layer_baselines=pixels(32, 32, count=3), target=1, units="block", block_size=4)
    assert is_outside(on)
    face = LayerAverageTreatmentEffect(target, model.first)
    arguments = {"layer_baselines": torch.rand(3, 2, 32, 32), "attribute_to_layer_input": True}
    on, _ = on_and_off(face, images, target=1, units="block", block_size=4, **arguments)
    assert is_outside(on)


# The support alone


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_support_has_an_entry_per_example_region_and_input(d):
    spatial = (24, 20, 18)[:d]
    rois = torch.stack([regions.box(spatial, start=2, size=4), regions.box(spatial, start=9, size=4)])

    class Model(Local):
        def forward(self, x, features):
            return super().forward(x) + features.sum(1).view(-1, *(1,) * (d + 1))

    target = SegmentationTarget(Model(d), roi=rois, metric="logit_mean")
    inputs = pixels(*spatial, count=3), torch.rand(3, 5)
    support = causal_support(target, inputs)
    assert support.doubt is None
    assert [tuple(mask.shape) for mask in support.masks] == [(3, 2, *spatial), (3, 2)]
    assert support.hull(0).tolist() == [[[[0, 9]] * d, [[6, 16]] * d]] * 3
    assert support.masks[1].all()
    assert support.n_forwards > 0


def test_the_support_with_regions_of_each_example_and_masks_as_arguments():
    model, images = Local(), pixels(24, 24, count=2)
    rois = torch.stack([regions.box((24, 24), start=3, size=4), regions.box((24, 24), start=12, size=4)])
    expected = [[[[0, 10]] * 2], [[[9, 19]] * 2]]
    held = SegmentationTarget(model, roi=rois[:, None], metric="logit_mean")
    assert causal_support(held, images).hull(0).tolist() == expected
    asked = SegmentationTarget(model, roi="argument", metric="logit_mean")
    assert causal_support(asked, images, rois).hull(0).tolist() == expected
    # The metric does not matter.
    own = SegmentationTarget(model, roi=rois[:, None], metric=lambda prediction, reference, roi: prediction.flatten(2).mean(2))
    assert causal_support(own, images).hull(0).tolist() == expected


def test_blocks_batches_and_seeds_of_the_support():
    class Holes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.roll(8, 3)

    image = pixels(32, 32)
    target = SegmentationTarget(Holes(), roi=regions.box((32, 32), start=(8, 16), size=4), metric="logit_mean")
    box, blocks = causal_support(target, image), causal_support(target, image, block_size=4)
    assert box.hull(0).tolist() == blocks.hull(0).tolist() == [[[[8, 12], [8, 20]]]]
    assert int(box.masks[0].sum()) == 48
    assert int(blocks.masks[0].sum()) == 32
    other = causal_support(target, image, perturbations_per_eval=1, seed=5)
    assert torch.equal(other.masks[0], box.masks[0])
    assert other.n_forwards == box.n_forwards


def test_the_support_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    target = SegmentationTarget(model, roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    image, state = pixels(24, 24), torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="training mode"):
        support = causal_support(target, image)
    assert support.hull(0).tolist() == [[[[7, 15]] * 2]]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": Local()}, TypeError, "target: expected a SegmentationTarget, .* got Local"),
        ({"target": SegmentationTarget(Local(), metric="logit_mean")}, ValueError, "target: it has no RoI"),
        ({"perturbations_per_eval": 0}, ValueError, "perturbations_per_eval: expected at least 1, got 0"),
        ({"perturbations_per_eval": 2.0}, TypeError, "perturbations_per_eval: expected an integer"),
        ({"seed": -1}, ValueError, "seed: expected at least 0"),
        ({"block_size": 0}, ValueError, "block_size: expected at least 1, got 0"),
        ({"block_size": (4, 4, 4)}, ValueError, "block_size: expected a positive edge"),
        ({"inputs": [torch.rand(1, 1, 24, 24)]}, TypeError, "inputs: expected a tensor or a tuple"),
        ({"inputs": torch.full((1, 1, 24, 24), NAN)}, ValueError, "inputs: it holds NaN"),
        ({"additional_forward_args": torch.rand(3, 1)}, ValueError, r"additional_forward_args\[0\]: a tensor needs one entry"),
    ],
)
def test_wrong_arguments_of_the_support_are_named(change, error, message):
    target = SegmentationTarget(Local(), roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    with pytest.raises(error, match=message):
        causal_support(**{"target": target, "inputs": pixels(24, 24), **change})


def said(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("title", ["", "a title"])
def test_the_picture_of_the_support_says_its_share(d, channels, title):
    spatial = (24, 20, 16)[:d]
    roi = regions.box(spatial, start=9, size=4)
    images = torch.rand(2, channels, *spatial)
    target = SegmentationTarget(Local(d, channels), roi=roi, metric="logit_mean")
    support = causal_support(target, images)
    share = 100 * (10**d) / math.prod(spatial)
    for mask in (roi, None):
        figure = visualization.plot_support(images, support, mask, example=1, title=title)
        assert isinstance(figure, Figure)
        assert f"{share:.1f} % of the pixels can reach" in said(figure)
        assert title in said(figure)
        figure.canvas.draw()


def test_the_picture_of_a_doubt_says_that_nothing_is_known():
    target = SegmentationTarget(NanHider(), roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    image = pixels(24, 24)
    support = causal_support(target, image)
    assert support.doubt is not None
    assert support.masks[0].all()
    figure = visualization.plot_support(image, support, target.roi)
    assert "what can reach the region of interest is not known" in said(figure)
    assert "%" not in said(figure)


def test_pictures_of_another_image_are_refused():
    target = SegmentationTarget(Local(), roi=regions.box((24, 24), start=9, size=4), metric="logit_mean")
    support = causal_support(target, pixels(24, 24))
    with pytest.raises(ValueError, match=r"support: its first mask has shape \(24, 24\), the image \(24, 20\)"):
        visualization.plot_support(pixels(24, 20), support)
    with pytest.raises(ValueError, match="image: expected"):
        visualization.plot_support(torch.rand(1, 1, 24), support)


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
