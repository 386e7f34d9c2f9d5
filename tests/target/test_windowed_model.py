"""A sliding window as a module: what MONAI's inferer and nnU-Net's predictor give."""

import copy
import importlib.util
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.networks import nets
from torch import nn
from torch.nn import functional

from captum_causalseg import SegmentationTarget, WindowedModel

NETWORKS = {d: nets.UNet(d, 2, 3, channels=(4, 8), strides=(2,)).eval() for d in (2, 3)}


def images(*spatial, count=2, seed=0):
    return torch.randn(count, 2, *spatial, generator=torch.Generator().manual_seed(seed))


MODES = ("replicate", "circular", "reflect")


@st.composite
def sliding(draw):
    d = draw(st.sampled_from([2, 3]))
    spatial = tuple(draw(st.integers(5, 20)) for _ in range(d))
    size = draw(st.sampled_from([8, (8,) * d, (-1, *(8,) * (d - 1)), (None, *(8,) * (d - 1))]))
    if not isinstance(size, int) and size[0] != 8:
        spatial = (12, *spatial[1:])
    options = {
        "roi_size": size,
        "sw_batch_size": draw(st.integers(1, 5)),
        "overlap": draw(st.sampled_from([0.0, 0.25, 0.5, 0.99, (0.5, 0.1, 0.25)[:d]])),
        "mode": draw(st.sampled_from(["constant", "gaussian"])),
        "sigma_scale": draw(st.sampled_from([0.125, 0.05, (0.1, 0.2, 0.3)[:d]])),
        **dict(
            zip(
                ("padding_mode", "cval"), draw(st.sampled_from([("constant", -1.5), *((m, 0.0) for m in ("constant", *MODES))]))
            )
        ),
        "device": draw(st.sampled_from([None, "cpu"])),
        "sw_device": draw(st.sampled_from([None, "cpu"])),
        "cache_roi_weight_map": draw(st.booleans()) if isinstance(size, tuple) and size[0] == 8 else False,
    }
    if options["overlap"] == 0.99:
        spatial = tuple(min(length, 10) for length in spatial)
    return spatial, options, draw(st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(sliding())
def test_the_very_bits_of_monais_inferer(case):
    spatial, options, n = case
    x, inferer = images(*spatial, count=n), SlidingWindowInferer(**options)
    network = NETWORKS[len(spatial)]
    with torch.no_grad():
        found, expected = WindowedModel.from_monai(inferer, network)(x), inferer(x, network)
    assert torch.equal(found, expected)


def test_a_weight_map_of_ones_own_and_float64():
    inferer = SlidingWindowInferer((8, 8), 2, overlap=0.5)
    inferer.roi_weight_map = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    network = NETWORKS[2]
    assert torch.equal(WindowedModel.from_monai(inferer, network)(images(12, 19)), inferer(images(12, 19), network))
    double = copy.deepcopy(network).double()
    x = images(12, 19).double()
    assert torch.equal(WindowedModel.from_monai(inferer, double)(x), inferer(x, double))


def test_the_inferer_that_adapts_is_the_same_on_one_device():
    inferer = SlidingWindowInfererAdapt((8, 8), 3, overlap=0.25)
    assert torch.equal(WindowedModel.from_monai(inferer, NETWORKS[2])(images(12, 19)), inferer(images(12, 19), NETWORKS[2]))


@pytest.mark.parametrize("spatial", [(12, 7), (8, 8)])
def test_gradients_are_those_through_the_inferer(spatial):
    inferer, network = SlidingWindowInferer((8, 8), 3, overlap=0.5, mode="gaussian"), NETWORKS[2]
    one, other = (images(*spatial).requires_grad_() for _ in range(2))
    WindowedModel.from_monai(inferer, network)(one)[:, 1].square().sum().backward()
    inferer(other, network)[:, 1].square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def naive(networks, x, size, corners, weight, axes):
    """Voxel by voxel what the class says that it does."""
    total = 0
    for network in networks:
        top, below = 0, 0
        for corner in corners:
            box = (slice(None), slice(None), *(slice(a, a + n) for a, n in zip(corner, size)))
            flips = [f for k in range(len(axes) + 1) for f in itertools.combinations([a + 2 for a in axes], k)]
            logits = torch.stack([network(x[box].flip(f)).flip(f) for f in flips]).mean(0)
            one, two = torch.zeros(len(x), logits.shape[1], *x.shape[2:]), torch.zeros(x.shape[2:])
            one[box], two[box[2:]] = logits * weight, weight
            top, below = top + one, below + two
        total = total + top / below
    return total / len(networks)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_mirroring_and_folds(d):
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    torch.manual_seed(0)
    folds = [kinds[d](2, 3, 3, padding=1) for _ in range(2)]
    spatial, size = (9, 8, 7)[:d], (5, 4, 6)[:d]
    corners = list(itertools.product(*[(0, n - m) for n, m in zip(spatial, size)]))
    weight = torch.rand(size) + 0.1
    for axes in ((), tuple(range(d)), (d - 1,)):
        model = WindowedModel(folds, size, corners, weight, axes, batch_size=4)
        held = WindowedModel(nn.ModuleList(folds), size, corners, weight, axes, batch_size=4)
        assert torch.equal(held(images(*spatial)), model(images(*spatial)))
        torch.testing.assert_close(model(images(*spatial)), naive(folds, images(*spatial), size, corners, weight, axes))


def test_what_a_network_is_given_besides_goes_with_its_image():
    class Scaled(nn.Module):
        def forward(self, image, factor, shift):
            return image * factor.view(-1, 1, 1, 1) + shift

    model = WindowedModel.from_monai(SlidingWindowInferer(8, 3, overlap=0.5), Scaled())
    x, factor = images(12, 12), torch.tensor([2.0, 3.0])
    torch.testing.assert_close(model(x, factor, 1.0), x * factor.view(-1, 1, 1, 1) + 1.0)
    with pytest.raises(ValueError, match=r"args\[0\]: expected no image beside the first input"):
        model(x, x, 1.0)


def test_one_of_several_outputs():
    class Deep(nn.Module):
        def forward(self, image):
            return {"coarse": functional.avg_pool2d(image, 2), "fine": image}

    inferer = SlidingWindowInferer(8, 3)
    with pytest.raises(TypeError, match="say where they are with `output`"):
        WindowedModel.from_monai(inferer, Deep())(images(12, 12))
    torch.testing.assert_close(WindowedModel.from_monai(inferer, Deep(), output="fine")(images(12, 12)), images(12, 12))
    with pytest.raises(ValueError, match=r"network: expected logits of a window's size \(8, 8\), got \(4, 4\)"):
        WindowedModel.from_monai(inferer, Deep(), output="coarse")(images(12, 12))
    with pytest.raises(TypeError, match="network: expected logits or probabilities, got labels"):
        WindowedModel.from_monai(inferer, lambda x: x > 0)(images(12, 12))


def test_a_model_like_any_other():
    inferer = SlidingWindowInferer((8, 8), 3, overlap=0.25)
    model = WindowedModel.from_monai(inferer, copy.deepcopy(NETWORKS[2]))
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in NETWORKS[2].parameters())
    size = len(pickle.dumps(model))
    model(images(120, 200, count=1))
    assert len(pickle.dumps(model)) == size, "what can be made again is sent to no other process"
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(images(12, 20)), model(images(12, 20)))
    target = SegmentationTarget(model, metric="volume")
    assert target(images(12, 20)).shape == (2, 3)
    assert type(model(MetaTensor(images(12, 20)))) is torch.Tensor
    assert "patch_size=(8, 8)" in repr(model)
    assert "mirror_axes=(0,)" in repr(WindowedModel(nn.Identity(), 4, [(0,)], torch.ones(4), (0,)))


def test_in_half_precision_windows_are_added_up_in_single():
    model = WindowedModel(nn.Identity(), 4, [(0,), (2,)], torch.ones(4))
    assert model(torch.ones(1, 1, 6, dtype=torch.float16)).dtype == torch.float32


REFUSED = [
    (SlidingWindowInferer(8, buffer_steps=2), ValueError, "buffer_steps: "),
    (SlidingWindowInferer(8, with_coord=True), ValueError, "with_coord: "),
    (SlidingWindowInferer(8, cpu_thresh=10), ValueError, "cpu_thresh: "),
    (SliceInferer(0, roi_size=(8, 8)), TypeError, "inferer: expected a .*SlidingWindowInferer, got SliceInferer"),
    (8, TypeError, "inferer: expected a .*SlidingWindowInferer, got int"),
]


@pytest.mark.parametrize(("inferer", "error", "message"), REFUSED)
def test_what_cannot_be_the_same_is_refused(inferer, error, message):
    with pytest.raises(error, match=message):
        WindowedModel.from_monai(inferer, nn.Identity())


def test_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match="network: "):
        WindowedModel(3, 4, [(0,)], torch.ones(4))
    with pytest.raises(TypeError, match="starts: "):
        WindowedModel(nn.Identity(), 4, 3, torch.ones(4))
    with pytest.raises(ValueError, match="mirror_axes: expected spatial axes 0 to 0, got 1"):
        WindowedModel(nn.Identity(), 4, [(0,)], torch.ones(4), (1,))(torch.rand(1, 1, 4))
    with pytest.raises(ValueError, match="predictor: expected an initialized nnUNetPredictor"):
        WindowedModel.from_nnunet(object())


NNUNET = importlib.util.find_spec("nnunetv2") is not None


@pytest.mark.nnunet
@pytest.mark.skipif(not NNUNET, reason="nnunetv2 is not installed")
@pytest.mark.parametrize("mirroring", [False, True])
@pytest.mark.parametrize("spatial", [(30, 20, 22), (12, 40, 20), (10, 9, 8)])
def test_the_logits_of_nnunets_predictor(monkeypatch, mirroring, spatial):
    import numpy as np
    from nnunet_cases import made_predictor
    from nnunetv2.inference import predict_from_raw_data

    predictor = made_predictor(mirroring, folds=2)
    x = torch.randn(1, *spatial, generator=torch.Generator().manual_seed(0))
    model = WindowedModel.from_nnunet(predictor)
    with torch.no_grad():
        found = model(x[None])[0]
    # nnU-Net keeps what it adds up in half precision; here in single, as everything else in it is.
    monkeypatch.setattr(torch, "half", torch.float32)
    expected = predictor.predict_logits_from_preprocessed_data(x)
    assert predict_from_raw_data.torch.half is torch.float32
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4
    assert np.array_equal(found.argmax(0), expected.argmax(0))
    assert float(found.abs().max()) > 0.1


def test_a_module_and_its_like_in_the_other_networks():
    first, second = (nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()) for _ in range(2))
    model = WindowedModel([first, second], 4, [(0, 0)], torch.ones(4, 4))
    assert model.in_each_network(second[0]) == (first[0], second[0])
    assert model.in_each_network(first) == (first, second)
    assert model.in_each_network(model) is None
    assert model.in_each_network(nn.ReLU()) is None
    hidden = WindowedModel(lambda x: first(x), 4, [(0, 0)], torch.ones(4, 4))
    # What a function runs cannot be seen.
    assert hidden.in_each_network(first[0]) == (first[0],)
    assert hidden.in_each_network(hidden) is None
