"""Levels and skip connections of U-Nets: what comes from below and what comes over make up the whole."""

import pytest
import torch
from monai.networks.nets import UNETR, AttentionUnet, BasicUNet, DynUNet, FlexibleUNet, SegResNet, SwinUNETR, UNet, VNet
from torch import nn

from captum_causalseg import MediatedTreatmentEffect, SegmentationTarget
from captum_causalseg.interventions.unets import levels_and_skips

NETWORKS = {
    "UNet": lambda d: UNet(d, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="BATCH"),
    "BasicUNet": lambda d: BasicUNet(d, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="batch"),
    "AttentionUnet": lambda d: AttentionUnet(d, 1, 2, (4, 8, 8), (2, 2)),
    "DynUNet": lambda d: DynUNet(d, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name="batch"),
    "SegResNet": lambda d: SegResNet(d, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "UNETR": lambda d: UNETR(1, 2, (16,) * d, feature_size=4, hidden_size=16, mlp_dim=16, num_heads=2, spatial_dims=d),
    "SwinUNETR": lambda d: SwinUNETR(
        in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), spatial_dims=d
    ),
    "VNet": lambda d: VNet(d, 1, 2),
}
LEVELS = {"UNet": 2, "BasicUNet": 4, "AttentionUnet": 2, "DynUNet": 2, "SegResNet": 2, "UNETR": 4, "SwinUNETR": 5, "VNet": 4}
# In 3D those that differ in kind: nested, merged, and added.
CASES = [(name, 2) for name in NETWORKS] + [("UNet", 3), ("DynUNet", 3), ("SegResNet", 3)]


def enlivened(model):
    """As they are made, hardly anything comes from below in some networks."""
    for parameter in model.parameters():
        if parameter.ndim > 2:
            nn.init.kaiming_normal_(parameter)


@pytest.mark.parametrize(("name", "d"), CASES)
def test_the_first_level_and_the_outermost_skip_are_all_the_ways_there_are(name, d):
    torch.manual_seed(1)
    model = NETWORKS[name](d).eval()
    enlivened(model)
    size = (64 if name == "SwinUNETR" else 16,) * d
    levels, skips = levels_and_skips(model)
    assert [level.name for level in levels] == [f"level {k}" for k in range(1, LEVELS[name])] + ["bottleneck"]
    assert [skip.name for skip in skips] == [f"skip {k}" for k in range(LEVELS[name])]
    image, donors = torch.rand(1, 1, *size), torch.rand(2, 1, *size)
    target = SegmentationTarget(model, metric="logit_mean")
    _, stats = MediatedTreatmentEffect(target, ["levels", "skips"]).attribute(
        image, donors, target=1, block_size=size[0] // 2, n_draws=2, n_screening_draws=0, return_statistics=True
    )
    below, over, total = stats["level 1"], stats["skip 0"], stats.total.effect
    # What goes around the one goes through the other.
    scale = float(total.abs().max())
    for through, around in ((below, over), (over, below)):
        torch.testing.assert_close(through.indirect.effect, around.direct.effect, atol=1e-4 * scale, rtol=0)
    assert float(over.indirect.effect.abs().max()) > 1e-3 * scale
    # What comes from deeper is a part of what comes from a level: it changes, not only through the deepest.
    assert (stats["bottleneck"].indirect.effect - below.indirect.effect).abs().max() > 1e-6 * scale


def test_the_skips_and_the_bottleneck_together_are_a_cut():
    torch.manual_seed(0)
    model = NETWORKS["DynUNet"](2).eval()
    target = SegmentationTarget(model, metric="logit_mean")
    names = [
        name for name, module in model.named_modules() if type(module).__name__ == "UnetUpBlock" and "skip_layers" not in name
    ]
    assert len(names) == 2
    # The last block of the decoder holds both ways.
    _, stats = MediatedTreatmentEffect(target, names[-1:]).attribute(
        torch.rand(1, 1, 16, 16), torch.rand(2, 1, 16, 16), target=1, n_draws=2, n_screening_draws=0, return_statistics=True
    )
    assert (stats[names[-1]].direct.effect == 0).all()
    assert float(stats[names[-1]].indirect.effect.abs().max()) > 0


def test_networks_that_are_no_u_nets_have_none():
    assert levels_and_skips(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU())) == ([], [])


class Block(nn.Module):
    """A block of a decoder as segmentation_models_pytorch has them: sizes between what comes from below and what comes over."""

    def __init__(self, below, over, out):
        super().__init__()
        self.conv = nn.Conv2d(below + over, out, 3, padding=1)

    def forward(self, feature_map, target_height, target_width, skip_connection=None):
        up = nn.functional.interpolate(feature_map, (target_height, target_width))
        return self.conv(up if skip_connection is None else torch.cat([up, skip_connection], 1)).relu()


class UnetDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(8, 6, 6), Block(6, 4, 4), Block(4, 0, 4)])

    def forward(self, features):
        sizes = [(len(x[0, 0]), len(x[0, 0, 0])) for x in features[::-1]]
        x, *over = features[:0:-1]
        x = self.blocks[0](x, *sizes[1], skip_connection=over[0])
        x = self.blocks[1](skip_connection=over[1], target_width=sizes[2][1], target_height=sizes[2][0], feature_map=x)
        return self.blocks[2](x, *sizes[3])


class ByKeyword(nn.Module):
    """A U-Net whose skip connections arrive by keyword, once before what comes from below."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((1, 4), (4, 6), (6, 8))])
        self.decoder, self.head = UnetDecoder(), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        features = [x]
        for layer in self.down:
            features.append(layer(features[-1]).relu())
        return self.head(self.decoder(features))


UnetDecoder.__module__ = "segmentation_models_pytorch.decoders.unet.decoder"


def without_a_skip_at_the_top(model, names, size):
    """All passes level 1, and the skip connection below it is what does not come from level 2."""
    enlivened(model)
    levels, skips = levels_and_skips(model)
    assert [one.name for one in (*levels, *skips)] == names
    assert [one.depth for one in skips] == [*range(1, len(levels))]
    target = SegmentationTarget(model, metric="logit_mean")
    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    image, donors = torch.rand(1, channels, size, size), torch.rand(2, channels, size, size)
    _, stats = MediatedTreatmentEffect(target, ["levels", "skips"]).attribute(
        image, donors, target=1, block_size=size // 2, n_draws=2, n_screening_draws=0, return_statistics=True
    )
    total = stats.total.effect
    scale = float(total.abs().max())
    assert scale > 0
    torch.testing.assert_close(stats["level 1"].indirect.effect, total, atol=1e-4 * scale, rtol=0)
    assert (stats["level 1"].direct.effect == 0).all()
    below, over = stats[levels[1].name], stats["skip 1"]
    for through, around in ((below, over), (over, below)):
        torch.testing.assert_close(through.indirect.effect, around.direct.effect, atol=1e-4 * scale, rtol=0)
        assert float(through.indirect.effect.abs().max()) > 1e-3 * scale


def test_skips_that_arrive_by_keyword_are_found():
    torch.manual_seed(0)
    names = ["level 1", "level 2", "bottleneck", "skip 1", "skip 2"]
    without_a_skip_at_the_top(ByKeyword().eval(), names, size=16)


@pytest.mark.parametrize("name", ["Unet", "Linknet", "MAnet"])
def test_networks_of_segmentation_models_pytorch(name):
    # No extra brings it: it needs torchvision, whose CPU builds lag behind those of torch.
    package = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(package, name)(
        "resnet18", encoder_depth=4, encoder_weights=None, in_channels=1, classes=2, **WIDTHS.get(name, {})
    )
    names = ["level 1", "level 2", "level 3", "bottleneck", "skip 1", "skip 2", "skip 3"]
    without_a_skip_at_the_top(model.eval(), names, size=32)


WIDTHS = {name: {"decoder_channels": (16, 16, 8, 8)} for name in ("Unet", "MAnet")}


def test_a_decoder_of_monai_without_a_skip_at_the_top():
    torch.manual_seed(0)
    names = ["level 1", "level 2", "level 3", "level 4", "bottleneck", "skip 1", "skip 2", "skip 3", "skip 4"]
    model = FlexibleUNet(1, 2, "efficientnet-b0", decoder_channels=(16, 16, 8, 8, 8), spatial_dims=2).eval()
    without_a_skip_at_the_top(model, names, size=32)


class UpCat(nn.Module):
    def forward(self, x):
        return x.relu()


UpCat.__module__ = "monai.networks.nets"


def test_a_block_that_no_skip_arrives_at_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), UpCat())
    target = SegmentationTarget(model, metric="logit_mean")
    with pytest.raises(ValueError, match=r"^layers: UpCat is given 1 tensor\(s\): no skip connection arrives there"):
        MediatedTreatmentEffect(target, "skips").attribute(torch.rand(1, 1, 32, 32), 0.0, target=1)
