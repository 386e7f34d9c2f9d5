"""Small transformers, and their layers."""

import torch
from monai.networks import nets
from torch import Tensor, nn
from transformers import BeitConfig, BeitForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from captum_causalseg import SegmentationTarget, regions

SIZE = {"segformer": 64, "beit": 64, "unetr": 32, "swin": 64, "vit": 32, "plain": 32}


class PlainViT(nn.Module):
    """A class token, PyTorch's own encoder layers, and a head that lays the tokens out on their grid."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 8, stride=8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.blocks(torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1))
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        return nn.functional.interpolate(self.head(maps), scale_factor=8.0, mode="bilinear")


class ViT(nn.Module):
    """MONAI's encoder, whose tokens become the segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = nets.ViT(1, (32, 32), (8, 8), hidden_size=16, mlp_dim=32, num_layers=2, num_heads=2, spatial_dims=2)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens, _ = self.vit(x)
        maps = self.head(tokens).reshape(len(x), 4, 4, 2).permute(0, 3, 1, 2)
        return nn.functional.interpolate(maps, scale_factor=8.0)


def network(name: str) -> nn.Module:
    """With weights so large that what happens in a layer can be seen in the segmentation."""
    model = untrained(name)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.4, generator=generator)
    return model


def untrained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "segformer":
            config = SegformerConfig(
                num_channels=1,
                num_labels=2,
                depths=[1] * 4,
                hidden_sizes=[8, 8, 16, 16],
                num_attention_heads=[1, 1, 2, 2],
                sr_ratios=[4, 2, 1, 1],
                mlp_ratios=[2] * 4,
                decoder_hidden_size=8,
            )
            return SegformerForSemanticSegmentation(config).eval()
        if name == "beit":
            config = BeitConfig(
                image_size=64,
                patch_size=8,
                num_channels=1,
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=32,
                num_labels=2,
                out_indices=[1, 2, 3, 4],
                pool_scales=[1, 2],
                use_auxiliary_head=False,
            )
            return BeitForSemanticSegmentation(config).eval()
        if name == "unetr":
            sizes = {"feature_size": 4, "hidden_size": 16, "mlp_dim": 32, "num_heads": 2}
            return nets.UNETR(1, 2, (32, 32), **sizes, spatial_dims=2, norm_name="instance").eval()
        if name == "swin":
            sizes = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
            return nets.SwinUNETR(1, 2, **sizes, spatial_dims=2, norm_name="instance").eval()
        return (ViT() if name == "vit" else PlainViT()).eval()


def case(name: str, n: int = 1):
    model, size = network(name), SIZE[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((n, 1, size, size), generator=generator)
    donors = torch.rand((3, 1, size, size), generator=generator)
    labels = torch.randint(0, 2, (n, size, size), generator=generator)
    roi = regions.box((size, size), start=8, size=16)
    return model, SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice"), images, donors


class Opaque(nn.Module):
    """The layer in the middle is between functions that tell nothing of what its axes mean."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.middle, self.after = nn.Conv2d(1, 4, 1), nn.Identity(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.middle(torch.cumsum(self.before(x), 2))
        return self.after(torch.cumsum(hidden, 2))
