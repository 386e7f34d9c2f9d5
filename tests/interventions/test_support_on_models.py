"""With the support and without it, MONAI's networks get the same effects; what cannot reach the RoI really does nothing."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks import nets
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    causal_support,
    regions,
)

BATCH, INSTANCE = ("batch", {"affine": True}), ("instance", {"affine": True})


@dataclass(frozen=True)
class Case:
    """A network and what is known about it.

    Args:
        make: builds it, with random weights.
        spatial: of the image.
        outside: whether some units cannot reach some RoI.
        window: whether a window is found that is enough for both RoIs, or one for each of which one is smaller than the image.
        block_size: of the units.
    """

    make: Callable[[], nn.Module]
    spatial: tuple[int, ...]
    outside: bool
    window: bool
    block_size: int = 16


def unet(d: int, norm: str, levels: int = 2) -> nn.Module:
    return nets.UNet(d, 1, 2, (4, 8, 8)[: levels + 1], (2,) * levels, num_res_units=1, norm=norm)


def basic(d: int, norm: object) -> nn.Module:
    return nets.BasicUNet(d, 1, 2, (4, 4, 4, 8, 8, 4), norm=norm)


def plus_plus(d: int, norm: object, deep_supervision: bool = False) -> nn.Module:
    return nets.BasicUNetPlusPlus(d, 1, 2, (4, 4, 4, 4, 4, 4), norm=norm, deep_supervision=deep_supervision)


def seg_res(d: int, norm: object) -> nn.Module:
    return nets.SegResNet(d, 4, 1, 2, norm=norm, blocks_down=(1, 1), blocks_up=(1,))


def dyn(d: int, norm: object) -> nn.Module:
    return nets.DynUNet(d, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 4, 8), norm_name=norm, deep_supervision=True)


def swin(d: int) -> nn.Module:
    # MONAI 1.4 wants to know the image's size, and does nothing with it but check it.
    more = {"img_size": 64} if "img_size" in inspect.signature(nets.SwinUNETR).parameters else {}
    small = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 4, "feature_size": 12}
    return nets.SwinUNETR(in_channels=1, out_channels=2, spatial_dims=d, **small, **more)


def unetr(d: int, size: int) -> nn.Module:
    return nets.UNETR(1, 2, size, feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2, spatial_dims=d)


class Windows(nn.Module):
    """A network run on overlapping windows of the image."""

    def __init__(self, model: nn.Module, size: int, overlap: float, mode: str) -> None:
        super().__init__()
        self.model = model
        self.inferer = SlidingWindowInferer(size, 4, overlap, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.inferer(x, self.model)


# Networks with batch norm only reach as far as their kernels; deep ones, farther than a small image.
CASES = {
    "UNet 2D batch": Case(lambda: unet(2, "batch"), (128, 128), True, True),
    "UNet 3D batch": Case(lambda: unet(3, "batch", 1), (48, 32, 40), True, True),
    "UNet 2D instance": Case(lambda: unet(2, "instance"), (64, 64), False, False),
    "UNet 3D instance": Case(lambda: unet(3, "instance"), (32, 32, 32), False, False),
    "BasicUNet 2D batch": Case(lambda: basic(2, BATCH), (128, 128), True, False),
    "BasicUNet 3D batch": Case(lambda: basic(3, BATCH), (32, 32, 32), False, False),
    "BasicUNet 2D instance": Case(lambda: basic(2, INSTANCE), (64, 64), False, False),
    "BasicUNet 3D instance": Case(lambda: basic(3, INSTANCE), (32, 32, 32), False, False),
    # Of a list of outputs the first is taken, which is here the one of the shallowest path.
    "BasicUNetPlusPlus 2D batch, deep supervision": Case(lambda: plus_plus(2, BATCH, True), (96, 96), True, True),
    "BasicUNetPlusPlus 2D batch": Case(lambda: plus_plus(2, BATCH), (64, 64), False, False),
    "BasicUNetPlusPlus 3D batch": Case(lambda: plus_plus(3, BATCH), (16, 16, 16), False, False, 8),
    "BasicUNetPlusPlus 2D instance": Case(lambda: plus_plus(2, INSTANCE), (64, 64), False, False),
    "BasicUNetPlusPlus 3D instance": Case(lambda: plus_plus(3, INSTANCE), (32, 16, 16), False, False),
    "SegResNet 2D batch": Case(lambda: seg_res(2, "batch"), (96, 128), True, True),
    "SegResNet 3D batch": Case(lambda: seg_res(3, "batch"), (40, 32, 32), True, True),
    "SegResNet 2D instance": Case(lambda: seg_res(2, "instance"), (64, 64), False, False),
    "SegResNet 3D group": Case(lambda: seg_res(3, ("group", {"num_groups": 2})), (32, 32, 32), False, False),
    # Batch norm inside, instance norm at the gates.
    "AttentionUnet 2D": Case(lambda: nets.AttentionUnet(2, 1, 2, (4, 8), (2,)), (64, 64), False, False),
    "AttentionUnet 3D": Case(lambda: nets.AttentionUnet(3, 1, 2, (4, 8), (2,)), (32, 32, 32), False, False),
    "DynUNet 2D batch": Case(lambda: dyn(2, BATCH), (128, 128), True, True),
    "DynUNet 3D batch": Case(lambda: dyn(3, BATCH), (48, 32, 32), True, False),
    "DynUNet 2D instance": Case(lambda: dyn(2, INSTANCE), (64, 64), False, False),
    "DynUNet 3D instance": Case(lambda: dyn(3, INSTANCE), (32, 32, 32), False, False),
    "SwinUNETR 2D": Case(lambda: swin(2), (64, 64), False, False),
    "SwinUNETR 3D": Case(lambda: swin(3), (64, 32, 32), False, False, 32),
    "UNETR 2D": Case(lambda: unetr(2, 64), (64, 64), False, False),
    "UNETR 3D": Case(lambda: unetr(3, 32), (32, 32, 32), False, False),
    "VNet 2D": Case(lambda: nets.VNet(2, 1, 2), (64, 64), False, False),
    "VNet 3D": Case(lambda: nets.VNet(3, 1, 2), (16, 16, 16), False, False, 8),
    # Squeeze and excitation.
    "FlexibleUNet 2D": Case(
        lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0", decoder_channels=(16, 8, 8, 4, 4)), (64, 64), False, False
    ),
    "FlexibleUNet 3D": Case(
        lambda: nets.FlexibleUNet(1, 2, "resnet10", decoder_channels=(8, 8, 4, 4, 4), spatial_dims=3),
        (32, 32, 32),
        False,
        False,
    ),
    "sliding windows 2D": Case(lambda: Windows(unet(2, "instance"), 32, 0.25, "constant"), (128, 128), True, True),
    "sliding windows 3D": Case(lambda: Windows(unet(3, "instance", 1), 16, 0.5, "gaussian"), (32, 24, 24), True, False, 8),
    "sliding windows of batch norm 2D": Case(lambda: Windows(unet(2, "batch"), 64, 0.5, "gaussian"), (128, 128), True, True),
}


def built(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The network, an image, donors and two RoIs, in a corner and in the middle."""
    case = CASES[name]
    torch.manual_seed(1)
    model = case.make().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    corner = regions.box(case.spatial, start=4, size=6)
    middle = regions.box(case.spatial, start=[side // 2 - 3 for side in case.spatial], size=6)
    return model, torch.randn(1, 1, *case.spatial), 2 * torch.randn(5, 1, *case.spatial), torch.stack([corner, middle])


def statistics(
    target: SegmentationTarget, image: Tensor, donors: Tensor, block_size: int, support: str | None
) -> TreatmentEffectStatistics:
    return AverageTreatmentEffect(target).attribute(
        image,
        baselines=PatchBank(donors),
        target=(1, 0),
        block_size=block_size,
        n_draws=2,  # the fewest that have a standard error
        n_screening_draws=0,
        sampling="uniform",
        support=support,
        exclude=None,
        perturbations_per_eval=16,
        return_statistics=True,
    )[1]


def assert_equal_but_for_work(on: TreatmentEffectStatistics, off: TreatmentEffectStatistics) -> None:
    """Effects, errors and draws are the same, and what is left out has no effect; seen: up to 1.2e-7, the last digit of a Dice."""
    outside = on.status == Status.OUTSIDE_SUPPORT
    assert (off.status == Status.ESTIMATED).all()
    assert ((on.status == Status.ESTIMATED) | outside).all()
    torch.testing.assert_close(on.effect[~outside], off.effect[~outside], atol=1e-6, rtol=0)
    torch.testing.assert_close(on.standard_error[~outside], off.standard_error[~outside], atol=1e-6, rtol=0)
    torch.testing.assert_close(on.observed_score, off.observed_score, atol=0, rtol=0)
    assert (on.effect[outside] == 0).all()
    assert (on.standard_error[outside] == 0).all()
    assert not outside.any() or float(off.effect[outside].abs().max()) <= 1e-6
    assert off.settings["window"] is None
    assert "support" not in off.settings["forwards"]


@pytest.mark.parametrize("name", CASES)
def test_effects_and_errors_are_equal_with_and_without_support(name):
    case = CASES[name]
    model, image, donors, rois = built(name)
    target = SegmentationTarget.from_prediction(model, image, roi=rois, metric="soft_dice")
    on, off = (statistics(target, image, donors, case.block_size, support) for support in ("auto", None))
    assert_equal_but_for_work(on, off)
    assert float(off.effect.abs().max()) > 5e-5, "the case is too dull to prove anything"
    assert bool((on.status == Status.OUTSIDE_SUPPORT).any()) == case.outside
    assert (on.settings["window"] is not None) == case.window
    if not case.outside:
        assert on.settings["forwards"]["interventions"] == off.settings["forwards"]["interventions"]
    else:
        # A unit is left out if it reaches neither RoI; of RoIs with a window each, it runs in those of the RoIs that it reaches.
        reaching = (on.status != Status.OUTSIDE_SUPPORT).any(2)
        windows = [window["rois"] for window in on.settings.get("roi_windows", [{"rois": [0, 1]}])]
        assert on.settings["forwards"]["interventions"] == 2 * sum(int(reaching[..., rois].any(2).sum()) for rois in windows)


@pytest.mark.parametrize("name", ["UNet 2D batch", "UNet 2D instance", "SegResNet 3D batch", "sliding windows 2D"])
def test_hard_dice_is_equal_with_and_without_support(name):
    model, image, donors, rois = built(name)
    target = SegmentationTarget.from_prediction(model, image, roi=rois)
    on, off = (statistics(target, image, donors, CASES[name].block_size, support) for support in ("auto", None))
    assert_equal_but_for_work(on, off)
    assert float(off.effect.abs().max()) > 0.01


@pytest.mark.parametrize(
    ("name", "corner", "middle"),
    [
        # Windows begin at 0, 24, 48, 72 and 96; at 0, 8 and (the first axis) 16.
        ("sliding windows 2D", [[0, 32]] * 2, [[48, 80]] * 2),
        ("sliding windows 3D", [[0, 24], [0, 24], [0, 24]], [[0, 32], [0, 24], [0, 24]]),
    ],
)
def test_sliding_windows_reach_as_far_as_the_windows_that_meet_the_roi(name, corner, middle):
    model, image, _, rois = built(name)
    support = causal_support(SegmentationTarget(model, roi=rois, metric="logit_sum"), image)
    assert support.doubt is None
    assert support.hull(0)[0].tolist() == [corner, middle]


def test_weights_that_make_the_network_global_are_seen():
    """The same network with instance norm in its deepest block alone."""
    model, image, _, rois = built("UNet 2D batch")
    target = SegmentationTarget(model, roi=rois, metric="logit_sum")
    assert not causal_support(target, image).masks[0].all()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    deepest = max(names, key=lambda name: name.count("submodule"))
    parent, _, child = deepest.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.InstanceNorm2d(8))
    assert causal_support(target, image).masks[0].all()
