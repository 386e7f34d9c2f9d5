"""Levels and skip connections of nnU-Net's networks: the first level and the outermost skip are all the ways there are."""

import pytest
import torch
from torch import nn

from captum_causalseg import MediatedTreatmentEffect, SegmentationTarget

pytestmark = pytest.mark.nnunet
unet = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason="nnunetv2 is not installed")


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_what_goes_around_the_first_level_goes_through_the_outermost_skip(name, d):
    torch.manual_seed(0)
    blocks = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}[name]
    model = getattr(unet, name)(
        1,
        3,
        (4, 8, 8),
        nn.Conv2d if d == 2 else nn.Conv3d,
        3,
        (1, 2, 2),
        num_classes=2,
        n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm2d if d == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{blocks: 1},
    ).eval()
    target = SegmentationTarget(model, metric="logit_mean")
    _, stats = MediatedTreatmentEffect(target, ["levels", "skips"]).attribute(
        torch.rand(1, 1, *(16,) * d),
        torch.rand(2, 1, *(16,) * d),
        target=1,
        block_size=8,
        n_draws=2,
        n_screening_draws=0,
        return_statistics=True,
    )
    assert stats.layers == ("level 1", "bottleneck", "skip 0", "skip 1")
    below, over, scale = stats["level 1"], stats["skip 0"], float(stats.total.effect.abs().max())
    for through, around in ((below, over), (over, below)):
        torch.testing.assert_close(through.indirect.effect, around.direct.effect, atol=1e-4 * scale, rtol=0)
        assert float(through.indirect.effect.abs().max()) > 0.01 * scale
