"""The window that is enough to compute the RoI: the same effects as on the whole image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional
from window_cases import Local, Shapes, Sixteen, Strided, compared, is_outside, left_nothing_out, on_and_off, pixels

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, metrics, regions

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
    # From 0 to 11 + 3; or, where two windows of 4 + 2 * 3 take fewer pixels, one for each.
    assert on.settings["window"] == ([14] if d == 1 else [10] * d)
    assert ("roi_windows" in on.settings) == (d > 1)
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


def test_a_vector_beside_the_image_stays_as_it_is():
    inputs = pixels(32, 32, count=2), torch.rand(2, 3)
    target = SegmentationTarget.from_prediction(
        Shapes(), inputs, roi=regions.box((32, 32), start=9, size=6), metric="soft_dice"
    )
    on, _ = on_and_off(AverageTreatmentEffect(target), inputs, baselines=(pixels(32, 32, count=3), torch.rand(3, 3)), target=1)
    assert on.settings["window"] == [12, 12]
    assert (on.status[:, -3:] == Status.ESTIMATED).all()


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


def test_a_model_that_refuses_crops_gets_an_aligned_one():
    on = compared(Sixteen(), side=64, start=20)
    assert on.settings["window"] == [16, 16]  # 17 to 29: from 16 to 32


def test_the_window_lies_on_the_grid_of_a_network_with_strides():
    model = nets.UNet(2, 1, 2, (4, 8, 8), (2, 2), norm="batch")
    on = compared(model, side=128, start=61)
    assert on.settings["window"] is not None
    assert all(side % 4 == 0 for side in on.settings["window"])


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


@pytest.mark.parametrize("wanted", [16, 64])
def test_windows_of_a_batch_stay_in_the_caches_of_a_cpu(wanted):
    seen: list[tuple[int, int]] = []
    model = Local()
    model.register_forward_pre_hook(lambda module, args: seen.append((len(args[0]), args[0].shape[-1])))
    target = SegmentationTarget(model, roi=regions.box((256, 256), start=100, size=60), metric="logit_mean")
    options = {"block_size": 4, "n_draws": 2, "n_screening_draws": 0, "sampling": "uniform", "exclude": None}
    options |= {"baselines": PatchBank(pixels(256, 256, count=3)), "target": 1, "perturbations_per_eval": wanted}
    AverageTreatmentEffect(target).attribute(pixels(256, 256), **options)
    largest, side = max(one for one in seen if one[1] < 256)
    # As many windows as fit, whatever was asked for.
    assert largest == 2**18 // side**2


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
