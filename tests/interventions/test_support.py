"""Supports found by NaN against supports known on paper, against brute force, and against models that hide NaN."""

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.networks import nets
from support_cases import NAN, box_mask, find, holds, smooth, three_taps
from torch import nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, regions
from captum_causalseg.interventions.support import Support, find_support


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_one_convolution_dilates_the_roi_and_is_clipped_at_the_border(k):
    rois = torch.stack([box_mask((40, 30), (10, 14), (20, 21)), box_mask((40, 30), (0, 2), (27, 30))])[None]
    h = k // 2
    hull = [[[10 - h, 14 + h], [20 - h, min(30, 21 + h)]], [[0, 2 + h], [27 - h, 30]]]
    support = find(lambda x: smooth(x, k), torch.rand(2, 3, 40, 30), rois)
    holds(support, [hull, hull])
    assert int(support.masks[0][0, 0].sum()) == (4 + 2 * h) * (min(30, 21 + h) - 20 + h)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_number_of_axes(d):
    rois = box_mask((1, 1, *(16,) * d), (0, 1), (0, 1), *((4, 6),) * d)
    holds(find(smooth, torch.rand(1, 2, *(16,) * d), rois), [[[[3, 7]] * d]])


def test_rois_of_every_shape_have_the_hull_of_their_pixels():
    roi = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 22)) | box_mask((1, 1, 64), (0, 1), (0, 1), (40, 41))
    holds(find(smooth, torch.rand(1, 1, 64), roi), [[[[19, 42]]]])


def test_strides_and_another_resolution_than_the_output():
    # Output pixel i of the first sees 2i-1 .. 2i+1, of both 4i-3 .. 4i+3.
    model = nn.Sequential(nn.Conv1d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv1d(2, 2, 3, 2, 1))
    rois = torch.stack([box_mask((16,), (5, 7)), box_mask((16,), (0, 1)), box_mask((16,), (15, 16))])[None]
    holds(find(model, torch.rand(1, 1, 64), rois), [[[[17, 28]], [[0, 4]], [[57, 64]]]])


def test_dilation_leaves_holes_that_blocks_find():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (32, 33))
    image = torch.rand(1, 1, 64)
    holds(find(lambda x: smooth(x, 3, 8), image, rois), [[[[24, 41]]]])
    support = find(lambda x: smooth(x, 3, 8), image, rois, block_size=4)
    expected = torch.zeros(64, dtype=torch.bool)
    expected[24:28] = expected[32:36] = expected[40:41] = True
    assert torch.equal(support.masks[0][0, 0], expected)
    holds(support, [[[[24, 41]]]])
    assert support.reaches(0, 0, [slice(28, 32)]).tolist() == [False]
    assert support.reaches(0, 0, [slice(27, 29)]).tolist() == [True]


def test_blocks_of_several_edges_and_rois():
    rois = torch.stack([box_mask((16, 16), (8, 9), (8, 9)), box_mask((16, 16), (0, 1), (0, 1))])[None]
    support = find(lambda x: x + x.roll((4, 4), (2, 3)), torch.rand(1, 1, 16, 16), rois, block_size=(2, 1))
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[0, 8, 8] = expected[0, 4:6, 4] = expected[1, 0:2, 0] = expected[1, 12:14, 12] = True
    expected[0, 9:] = expected[1, 13:] = False  # outside the box
    assert torch.equal(support.masks[0][0], expected)


def test_positions_inside_the_box_that_do_not_reach_stay_in_it():
    rois = box_mask((1, 1, 32), (0, 1), (0, 1), (16, 17))
    holds(find(lambda x: x + x.roll(10, 2), torch.rand(1, 1, 32), rois), [[[[6, 17]]]])


def test_every_example_has_its_own_roi_and_its_own_support():
    rois = torch.stack(
        [box_mask((1, 32), (0, 1), (4, 6)), box_mask((1, 32), (0, 1), (20, 21)), box_mask((1, 32), (0, 1), (0, 32))]
    )
    holds(find(smooth, torch.rand(3, 1, 32), rois), [[[[3, 7]]], [[[19, 22]]], [[[0, 32]]]])


def test_several_tensors_of_different_shapes():
    a, b, c, features = torch.rand(2, 2, 32, 24), torch.rand(2, 3, 32, 24), torch.rand(2, 1, 16, 12), torch.rand(2, 5)

    def model(a, b, c, features):
        up = functional.interpolate(smooth(c), size=(32, 24))
        return smooth(a) + smooth(b, 7) + up + features.sum(1)[:, None, None, None]

    rois = box_mask((1, 1, 32, 24), (0, 1), (0, 1), (8, 12), (2, 4))
    support = find(model, [a, b, c, features], rois)
    hulls = [[[[[7, 13], [1, 5]]]] * 2, [[[[5, 15], [0, 7]]]] * 2, [[[[3, 7], [0, 3]]]] * 2]
    holds(support, *hulls)
    assert support.masks[3].shape == (2, 1)
    assert support.masks[3].all()
    assert support.hull(3).shape == (2, 1, 0, 2)
    assert support.reaches(3, 0, ()).tolist() == [True]
    refined = find(model, [a, b, c, features], rois, block_size=4)
    holds(refined, *hulls)


def test_axes_from_the_third_on_are_spatial():
    tokens = torch.rand(2, 7, 12)
    rois = box_mask((1, 1, 12), (0, 1), (0, 1), (5, 6))
    holds(find(lambda t: smooth(t), tokens, rois), [[[[4, 7]]], [[[4, 7]]]])


def test_axes_of_length_one_are_not_probed():
    thin = find(smooth, torch.rand(1, 1, 1, 32), box_mask((1, 1, 1, 32), (0, 1), (0, 1), (0, 1), (9, 10)))
    holds(thin, [[[[0, 1], [8, 11]]]])
    line = find(smooth, torch.rand(1, 1, 32), box_mask((1, 1, 32), (0, 1), (0, 1), (9, 10)))
    assert thin.n_forwards == line.n_forwards


GLOBAL = {
    "mean": lambda x: smooth(x) + x.mean((1, 2, 3), keepdim=True),
    "maximum": lambda x: smooth(x) + x.amax((1, 2, 3), keepdim=True),
    "instance norm": lambda x: functional.instance_norm(smooth(x)),
    "group norm": lambda x: functional.group_norm(smooth(x), 1),
    "attention": lambda x: (
        functional.scaled_dot_product_attention(*(x.flatten(2).transpose(1, 2),) * 3).transpose(1, 2).reshape(x.shape)
    ),
    "batch statistics": lambda x: functional.batch_norm(smooth(x), None, None, training=True),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_global_support_takes_few_forwards(name):
    support = find(GLOBAL[name], torch.rand(1, 1, 32, 32), box_mask((1, 1, 32, 32), (0, 1), (0, 1), (8, 12), (8, 12)))
    assert support.doubt is None
    assert support.masks[0].all()
    assert support.n_forwards == 1 + 2 + 4


def test_batch_norm_in_evaluation_mode_is_local():
    norm = nn.BatchNorm2d(1).eval()
    norm.running_mean.fill_(0.3)
    rois = box_mask((1, 1, 32, 32), (0, 1), (0, 1), (8, 12), (8, 12))
    holds(find(lambda x: norm(smooth(x)), torch.rand(1, 1, 32, 32), rois), [[[[7, 13], [7, 13]]]])


def test_number_of_forwards():
    roi = box_mask((1, 1, 256, 256), (0, 1), (0, 1), (72, 104), (88, 120))
    support = find(lambda x: smooth(x, 9), torch.rand(1, 1, 256, 256), roi)
    # Plain, two controls; the outermost slices, then halving up to the RoI's far side; twelve trials.
    assert support.n_forwards <= 3 + 4 + 4 * 8 + 12
    # Equal RoIs ask the same questions.
    twice = find(lambda x: smooth(x, 9), torch.rand(1, 1, 256, 256), roi.expand(1, 2, 256, 256))
    assert twice.n_forwards == support.n_forwards
    # A support that is everything needs no falsification.
    assert find(smooth, torch.rand(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)).n_forwards == 3 + 4


def test_probes_for_one_roi_answer_for_the_others():
    """Every probe is one that some RoI cannot yet know the answer to."""
    places = [2, 3, 9, 30, 41, 80, 120, 121]
    rois = torch.stack([box_mask((128,), (i, i + 2)) for i in places])[None]
    asked = []

    def model(x):
        for row in x:
            nan = row[0].isnan().nonzero()[:, 0].tolist()
            if nan and (nan[0] == 0) != (nan[-1] == 127):
                asked.append((0, len(nan)) if nan[0] == 0 else (1, len(nan)))
        return smooth(x)

    support = find(model, torch.rand(1, 1, 128), rois, batch_size=1)
    holds(support, [[[[i - 1, i + 3]] for i in places]])
    # Widths of slabs along each side: silent ones, ones that hold the RoI and so are heard, the least that are heard.
    low = {(side, i): 0 for side in range(2) for i in places}
    high = {(0, i): i + 2 for i in places} | {(1, i): 128 - i for i in places}
    truth = {(0, i): i for i in places} | {(1, i): 126 - i for i in places}
    # Questions of one step are asked without knowing each other's answers: each step is sorted by side and width.
    steps = [[]]
    for question in asked:
        if steps[-1] and question <= steps[-1][-1]:
            steps.append([])
        steps[-1].append(question)
    for step in steps:
        for side, width in step:
            assert any(low[side, i] < width < high[side, i] for i in places)
        for side, width in step:
            for i in places:
                if width >= truth[side, i]:
                    high[side, i] = min(high[side, i], width)
                else:
                    low[side, i] = max(low[side, i], width)
    assert all(high[key] - low[key] == 1 for key in low)
    assert len(steps) <= 1 + 7


@st.composite
def chains(draw):
    d = draw(st.sampled_from([1, 1, 2]))
    length = draw(st.integers(12, 28)) if d == 1 else draw(st.integers(8, 12))
    layers, seed = [], draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    for _ in range(draw(st.integers(1, 3))):
        k, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, dilation * (k - 1) // 2))
        layer = {1: nn.Conv1d, 2: nn.Conv2d}[d](1, 1, k, stride, padding, dilation)
        layers.append(layer.double())
    model = nn.Sequential(*layers).eval()
    image = torch.rand((1, 1, *(length,) * d), dtype=torch.float64)
    try:
        output = model(image)
    except RuntimeError:
        assume(False)
    rois = torch.rand((1, 2, *output.shape[2:])) < draw(st.sampled_from([0.1, 0.5]))
    assume(bool(rois.flatten(2).any(2).all()))
    return model, image, rois


@settings(max_examples=60)
@given(chains())
def test_chains_of_convolutions_against_brute_force(case):
    model, image, rois = case
    spatial = image.shape[2:]
    single = image.repeat(image.numel(), *(1,) * (image.ndim - 1))
    rows = torch.arange(image.numel())
    plain = model(image)
    reached = {}
    for name, value in (("nan", NAN), ("perturbed", 1e3)):
        probes = single.clone()
        probes.flatten(1)[rows, rows] = value
        moved = ~((model(probes) - plain).abs() <= 1e-12)
        reached[name] = torch.stack([(moved & rois[:, r : r + 1]).flatten(1).any(1).reshape(spatial) for r in range(2)])
    assert torch.equal(reached["nan"], reached["perturbed"])
    support = find(model, image, rois)
    own = reached["nan"] & rois[0] if rois.shape[2:] == spatial else reached["nan"]
    if not own.flatten(1).any(1).all():
        assert support.doubt.startswith("NaN does not pass through this model")
        return
    brute = Support((reached["nan"][None],), 0, None)
    holds(support, brute.hull(0))
    assert not (reached["nan"] & ~support.masks[0][0]).any()
    refined = find(model, image, rois, block_size=1)
    assert refined.doubt is None
    assert torch.equal(refined.masks[0][0], reached["nan"])


def test_default_device_does_not_matter():
    rois, image = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24)), torch.rand(2, 1, 64)
    with torch.device("meta"):
        support = find_support(lambda tensors, _: three_taps(tensors[0]), [image], rois, block_size=2)
    holds(support, [[[[19, 25]]]] * 2)


def test_models_that_work_in_place_get_copies_of_their_own():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    holds(find(lambda x: smooth(x).add_(x.zero_()), torch.rand(2, 1, 64), rois), [[[[19, 25]]]] * 2)
    holds(find(lambda x: x.mul_(2), torch.rand(2, 1, 64), rois), [[[[20, 24]]]] * 2)


@pytest.mark.parametrize("batch_size", [1, 5, 16, 100])
def test_batches_do_not_matter(batch_size):
    rois = torch.stack([box_mask((32, 32), (8, 12), (2, 3)), box_mask((32, 32), (8, 12), (20, 30))])[None]
    images = torch.rand(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))

    def model(x):
        return smooth(smooth(x, 5), 5, 2)

    one = find(model, images, rois, batch_size=batch_size, block_size=5)
    other = find(model, images, rois, batch_size=7, block_size=5)
    assert one.n_forwards == other.n_forwards
    assert torch.equal(one.masks[0], other.masks[0])


@pytest.mark.parametrize("fits", [1, 3])
def test_out_of_memory_halves_the_batch(fits, caplog):
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    image = torch.rand(4, 1, 64)
    sizes = []

    def model(x):
        sizes.append(len(x))
        if len(x) > fits:
            raise torch.OutOfMemoryError("full")
        return smooth(x)

    small = find(model, image, rois)
    plain = find(smooth, image, rois)
    holds(small, [[[[19, 25]]]] * 4)
    assert small.n_forwards == plain.n_forwards
    assert sizes[:3] == [4, 2, 1] if fits == 1 else sizes[:2] == [4, 2]
    assert max(sizes[3:]) <= fits
    assert "Out of memory" in caplog.text


def test_out_of_memory_for_a_single_image_is_a_doubt():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))

    def model(x):
        if full:
            raise torch.OutOfMemoryError("full")
        return smooth(x)

    full = True
    assert find(model, torch.rand(2, 1, 64), rois).doubt == "memory ran out for a single image"

    def later(x):
        if x.isnan().any():
            raise torch.OutOfMemoryError("full")
        return smooth(x)

    assert find(later, torch.rand(2, 1, 64), rois).doubt == "memory ran out for a single image"


def test_interruptions_pass_through():
    def model(x):
        if x.isnan().any():
            raise KeyboardInterrupt
        return smooth(x)

    with pytest.raises(KeyboardInterrupt):
        find(model, torch.rand(1, 1, 64), box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24)))


def test_global_random_states_are_left_alone_and_results_repeat():
    rois = box_mask((1, 1, 64), (0, 1), (0, 1), (20, 24))
    image = torch.rand(2, 1, 64)
    runs = []

    def model(x):
        runs[-1].append(x.clone())
        return smooth(x, 3)

    smooth(image)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for seed in (3, 3, 4):
        runs.append([])
        find(model, image, rois, seed=seed)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    same = [[torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in zip(runs[0], runs[i])] for i in (1, 2)]
    assert all(same[0])
    assert not all(same[1])


def test_everywhere():
    support = Support.everywhere([torch.rand(2, 3, 4, 5), torch.rand(2, 6)], 3, doubt="why", n_forwards=7)
    assert [tuple(mask.shape) for mask in support.masks] == [(2, 3, 4, 5), (2, 3)]
    assert all(mask.all() for mask in support.masks)
    assert (support.doubt, support.n_forwards) == ("why", 7)
    assert support.hull(0)[1, 2].tolist() == [[0, 4], [0, 5]]
    assert Support.everywhere([torch.rand(1, 1, 2)], 1).doubt is None


def test_hull_of_nothing():
    support = Support((torch.zeros(1, 1, 4, 5, dtype=torch.bool),), 0, None)
    assert support.hull(0).tolist() == [[[[0, 0], [0, 0]]]]
    assert support.reaches(0, 0, [slice(0, 4), slice(0, 5)]).tolist() == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": []}, "tensors: expected"),
        ({"tensors": [torch.rand(2, 1, 8), torch.rand(3, 1, 8)]}, "tensors: expected"),
        ({"tensors": [torch.rand(8)]}, "tensors: expected"),
        ({"rois": torch.ones(1, 1, 8)}, "rois: expected bool"),
        ({"rois": torch.ones(3, 1, 8, dtype=torch.bool)}, "rois: expected bool"),
        ({"rois": torch.zeros(1, 1, 8, dtype=torch.bool)}, "rois: expected bool"),
        ({"rois": torch.ones(1, 1, 9, dtype=torch.bool)}, "logits: expected"),
        ({"rois": torch.ones(1, 1, 8, 8, dtype=torch.bool)}, "logits: expected"),
        ({"stand_ins": [[torch.rand(2, 1, 9)]]}, "stand_ins: expected"),
        ({"block_size": 0}, "block_size: expected"),
        ({"block_size": (2, 2)}, "block_size: expected"),
    ],
)
def test_errors(change, message):
    arguments = {"tensors": [torch.rand(2, 1, 8)], "rois": torch.ones(1, 1, 8, dtype=torch.bool), **change}
    with pytest.raises(ValueError, match=message):
        find_support(lambda tensors, _: smooth(tensors[0]), **arguments)


def shuffled(model):
    """Other batch norm statistics than 0 and 1, so that they matter."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def unet(norm, d=2, channels=(4, 8, 16), strides=(2, 2)):
    return nets.UNet(d, 1, 2, channels, strides, num_res_units=1, norm=norm)


# Network, image shape, whether its support must be smaller than the image.
NETWORKS = {
    "UNet": (lambda: unet("batch"), (96, 96), True),
    "UNet 3D": (lambda: unet("batch", 3, (2, 4), (2,)), (32, 32, 32), True),
    "UNet instance norm": (lambda: unet("instance"), (64, 64), False),
    "BasicUNet": (
        lambda: nets.BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4), norm=("batch", {"affine": True})),
        (96, 96),
        False,
    ),
    "BasicUNet instance norm": (lambda: nets.BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)), (64, 64), False),
    "SegResNet": (
        lambda: nets.SegResNet(2, 4, 1, 2, norm="batch", blocks_down=(1, 1), blocks_up=(1,)),
        (64, 64),
        True,
    ),
    "SegResNet group norm": (lambda: nets.SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), (64, 64), False),
    # It has instance norm of its own.
    "AttentionUnet": (lambda: nets.AttentionUnet(2, 1, 2, (4, 8), (2,)), (64, 64), False),
    "DynUNet": (
        lambda: nets.DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8), norm_name="batch"),
        (64, 64),
        True,
    ),
    "DynUNet instance norm": (lambda: nets.DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8)), (64, 64), False),
    "VNet": (lambda: nets.VNet(2, 1, 2), (64, 64), False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_the_roi_when_all_else_changes(name):
    make, spatial, local = NETWORKS[name]
    torch.manual_seed(1)
    model = shuffled(make())
    images = torch.rand(2 if len(spatial) == 2 and name != "VNet" else 1, 1, *spatial)
    rois = box_mask((1, 1, *spatial), (0, 1), (0, 1), *((10, 18),) * len(spatial))
    support = find(model, images, rois)
    mask = support.masks[0]
    assert support.doubt is None
    assert not local or not mask.all()
    assert mask[:, rois[0, 0][None].bool()].all()
    plain = model(images)
    tolerance = 1e-4 * float(plain.abs().max())
    for scale in (1, 100):
        other = torch.where(mask, images, torch.randn(images.shape) * scale)
        inside = (model(other) - plain).abs() * rois
        assert float(inside.max()) <= tolerance
    # The box is no larger than it has to be: NaN arrives from its outermost slices, and not from the next ones outside.
    for axis, (start, stop) in enumerate(support.hull(0)[0, 0].tolist()):
        for index, reaches in ((start - 1, False), (start, True), (stop - 1, True), (stop, False)):
            if 0 <= index < spatial[axis] and not mask.all():
                probe = images[:1].clone()
                probe.select(2 + axis, index).fill_(NAN)
                assert bool((model(probe).isnan() & rois).any()) == reaches


def test_blocks_of_a_network():
    torch.manual_seed(1)
    model, image = shuffled(unet("batch")), torch.rand(1, 1, 96, 96)
    roi = torch.zeros(1, 1, 96, 96, dtype=torch.bool)
    roi[..., 40:80, 40:80].copy_(torch.eye(40, dtype=torch.bool))
    box, blocks = find(model, image, roi).masks[0], find(model, image, roi, block_size=4).masks[0]
    assert not (blocks & ~box).any()
    assert int(blocks.sum()) < 0.9 * int(box.sum())
    other = torch.where(blocks, image, torch.randn(1, 1, 96, 96) * 10)
    torch.testing.assert_close(model(other)[:, :, roi[0, 0]], model(image)[:, :, roi[0, 0]])


def test_large_images_are_searched_in_a_crop_around_the_roi():
    """Forwards of the whole image: what is observed, the controls, the hardest trials, the window's references."""
    sizes = []

    class Local(nn.Module):
        def forward(self, image):
            sizes.append((len(image), image.shape[-1]))
            return torch.cat([smooth(image, 9), -smooth(image, 5)], 1)

    image = torch.rand(1, 1, 256, 256)
    target = SegmentationTarget.from_prediction(Local(), image, roi=regions.box((256, 256), (100, 3), 16), metric="soft_dice")
    sizes.clear()
    _, stats = AverageTreatmentEffect(target).attribute(
        image, PatchBank(torch.rand(9, 1, 32, 32)), 1, n_draws=4, return_statistics=True
    )
    whole = sum(count for count, side in sizes if side == 256)
    assert stats.settings["window"] == [24, 23]
    assert whole <= 1 + 8 + 3
    assert stats.n_forwards == sum(count for count, _ in sizes)
    beyond = stats.unit_ids[(stats.status[0] == Status.OUTSIDE_SUPPORT).all(-1)]
    assert len(beyond) > 1000, "of 1024"
    # Every seventh of them on the whole image. The others are one unit with the RoI, which is left out.
    units = regions.grid((256, 256), 8)
    units = torch.where(torch.isin(units, beyond) & (units % 7 == 0), units, int(units[108, 8]))
    options = {"feature_mask": units, "n_draws": 4, "support": None, "sampling": "uniform", "return_statistics": True}
    _, off = AverageTreatmentEffect(target).attribute(image, PatchBank(torch.rand(9, 1, 32, 32)), 1, **options)
    tried = torch.isin(off.unit_ids, beyond)
    assert int(tried.sum()) > 140
    assert not bool((off.status[0, tried] == Status.EXCLUDED).any())
    assert off.effect[0, tried].abs().max() < 1e-6


def test_of_a_box_only_what_the_mask_holds_is_asked_for():
    reached = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    reached[0, 0, 1, 1] = reached[0, 1, 2, 3] = True
    support, box = Support((reached,), 0, None), (slice(0, 3), slice(1, 4))
    assert support.reaches(0, 0, box).tolist() == [True, True]
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[2, 2] = True
    assert support.reaches(0, 0, box, mask).tolist() == [False, True]
