"""The kinds of networks that the study explains, in sizes that train within minutes on one core.

MONAI's own where it has them, transformers' SegFormer from a configuration, and three that are written here from what their papers describe, with
few channels: SegNet (Badrinarayanan et al. 2017, arXiv 1511.00561), HRNet (Wang et al. 2020, arXiv 1908.07919) and UNeXt (Valanarasu and Patel 2022,
arXiv 2203.04967). None has weights from elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["KINDS", "FirstOutput", "Kind", "last_layer", "lowest_layer"]


class FirstOutput(nn.Module):
    """A network that returns its segmentation alone, also where the one inside returns a list that starts with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        return found[0] if isinstance(found, (list, tuple)) else found


class SegFormer(nn.Module):
    """transformers' SegFormer, its logits brought to the size of the images."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation  # no requirement of the other kinds

        config = SegformerConfig(
            **{"num_channels": in_channels, "num_labels": out_channels, "depths": [2] * 4, "hidden_sizes": [16, 32, 64, 128]},
            **{
                "num_attention_heads": [1, 2, 4, 4],
                "sr_ratios": [8, 4, 2, 1],
                "mlp_ratios": [2] * 4,
                "decoder_hidden_size": 32,
            },
            **{"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0},
        )
        self.segformer = SegformerForSemanticSegmentation(config)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.segformer(images).logits
        return functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class SegNet(nn.Module):
    """Encoder and decoder; what the decoder gets beside the lowest features are the places of the encoder's maxima."""

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        steps = list(zip((in_channels, *widths[:-1]), widths))
        self.down = nn.ModuleList(nn.Sequential(_convolution(a, b), _convolution(b, b)) for a, b in steps)
        ups = [(b, a if a != in_channels else widths[0]) for a, b in reversed(steps)]
        self.up = nn.ModuleList(nn.Sequential(_convolution(a, a), _convolution(a, b)) for a, b in ups)
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        found, places = images, []
        for stage in self.down:
            found = stage(found)
            size = found.shape[2:]
            found, where = functional.max_pool2d(found, 2, return_indices=True)
            places.append((where, size))
        for stage, (where, size) in zip(self.up, reversed(places)):
            found = stage(functional.max_unpool2d(found, where, 2, output_size=list(size)))
        return self.head(found)


class HRNet(nn.Module):
    """Three resolutions side by side from a fourth of the image's on, which exchange what they found after each stage."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 16, stages: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(in_channels, width, 2), _convolution(width, width, 2))
        self.widths = (width, 2 * width, 4 * width)
        self.begin = nn.ModuleList([_convolution(width, width), _convolution(width, 2 * width, 2)])
        self.begin.append(nn.Sequential(_convolution(width, 2 * width, 2), _convolution(2 * width, 4 * width, 2)))
        self.branches = nn.ModuleList()
        self.exchanges = nn.ModuleList()
        for _ in range(stages):
            self.branches.append(nn.ModuleList(nn.Sequential(_convolution(w, w), _convolution(w, w)) for w in self.widths))
            self.exchanges.append(nn.ModuleList(nn.ModuleList(self._exchange(a, b) for a in range(3)) for b in range(3)))
        self.head = nn.Sequential(_convolution(sum(self.widths), 2 * width), nn.Conv2d(2 * width, out_channels, 1))

    def _exchange(self, source: int, to: int) -> nn.Module:
        before, after = self.widths[source], self.widths[to]
        if source == to:
            return nn.Identity()
        if source > to:
            return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        steps = [_convolution(before, before, 2) for _ in range(to - source - 1)]
        return nn.Sequential(*steps, nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        found = [step(stem) for step in self.begin]
        for branches, exchanges in zip(self.branches, self.exchanges):
            found = [branch(one) for branch, one in zip(branches, found)]
            found = [
                torch.relu(sum(functional.interpolate(step(one), there.shape[2:]) for step, one in zip(steps, found)))
                for steps, there in zip(exchanges, found)
            ]
        size = found[0].shape[2:]
        together = torch.cat([functional.interpolate(one, size, mode="bilinear", align_corners=False) for one in found], 1)
        return functional.interpolate(self.head(together), images.shape[2:], mode="bilinear", align_corners=False)


class _ShiftedMLP(nn.Module):
    """UNeXt's block of tokens: channels in five groups, each moved by another step along one axis, then a layer over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.into, self.out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)

    @staticmethod
    def _moved(found: Tensor, axis: int) -> Tensor:
        groups = found.chunk(5, 1)
        return torch.cat([torch.roll(one, step, axis) for one, step in zip(groups, range(-2, 3))], 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.into(self._moved(self.norm(images), 2))
        found = functional.gelu(self.depthwise(found))
        return images + self.out(self._moved(found, 3))


class UNeXt(nn.Module):
    """Convolutions at the three high resolutions, shifted MLPs at the two low ones, sums for skip connections."""

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...] = (16, 32, 64, 80, 128)) -> None:
        super().__init__()
        steps = list(zip((in_channels, *widths[:-1]), widths))
        self.down = nn.ModuleList(_convolution(a, b) for a, b in steps)
        self.tokens = nn.ModuleList([_ShiftedMLP(widths[3]), _ShiftedMLP(widths[4])])
        self.up = nn.ModuleList(_convolution(b, a) for a, b in reversed(steps[1:]))
        self.up_tokens = nn.ModuleList([_ShiftedMLP(widths[3]), _ShiftedMLP(widths[2])])
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        found, skips = images, []
        for number, stage in enumerate(self.down):
            found = functional.max_pool2d(stage(found), 2)
            if number >= 3:
                found = self.tokens[number - 3](found)
            skips.append(found)
        for number, (stage, skip) in enumerate(zip(self.up, reversed(skips[:-1]))):
            found = functional.interpolate(stage(found), skip.shape[2:], mode="bilinear", align_corners=False) + skip
            if number < 2:
                found = self.up_tokens[number](found)
        return functional.interpolate(self.head(found), images.shape[2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Args:
        make: from the numbers of channels of the images and of the logits, and the images' height and width.
        learning_rate: the largest of the cycle. Transformers want smaller ones.
        effort: how many times as many steps it is trained as the others.
    """

    make: Callable[[int, int, tuple[int, int]], nn.Module]
    learning_rate: float = 5e-3
    effort: int = 1

    def build(self, in_channels: int, out_channels: int, size: tuple[int, int], seed: int = 0) -> nn.Module:
        """The network with the seed's initial weights; the global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = FirstOutput(self.make(in_channels, out_channels, size))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                # PyTorch's default. EfficientNet's means move by a hundredth a step, too slow for a few hundred steps.
                module.momentum = 0.1
        return network.eval()


def _monai(name: str, **arguments: Any) -> Callable[[int, int, tuple[int, int]], nn.Module]:
    def make(in_channels: int, out_channels: int, size: tuple[int, int]) -> nn.Module:
        own = {"img_size": size} if name == "UNETR" else {}
        return getattr(nets, name)(spatial_dims=2, in_channels=in_channels, out_channels=out_channels, **own, **arguments)

    return make


_UNET: dict[str, Any] = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
KINDS = {
    "UNet, batch norm": Kind(_monai("UNet", **_UNET, norm="batch")),
    "UNet, instance norm": Kind(_monai("UNet", **_UNET)),
    "SegFormer": Kind(lambda before, after, size: SegFormer(before, after), 1.5e-3, 2),
    "UNeXt-like": Kind(lambda before, after, size: UNeXt(before, after)),
    "HRNet-like": Kind(lambda before, after, size: HRNet(before, after)),
    "SegResNet": Kind(_monai("SegResNet", init_filters=8)),
    "SegNet": Kind(lambda before, after, size: SegNet(before, after)),
    "AttentionUnet": Kind(_monai("AttentionUnet", channels=(8, 16, 32, 64), strides=(2, 2, 2))),
    "DynUNet": Kind(
        _monai(
            *("DynUNet",),
            **{
                "kernel_size": (3, 3, 3, 3),
                "strides": (1, 2, 2, 2),
                "upsample_kernel_size": (2, 2, 2),
                "filters": (8, 16, 32, 64),
            },
        )
    ),
    "UNet++": Kind(_monai("BasicUNetPlusPlus", features=(8, 8, 16, 32, 64, 8))),
    "FlexibleUNet": Kind(
        _monai("FlexibleUNet", backbone="efficientnet-b0", pretrained=False, decoder_channels=(64, 32, 16, 8, 8))
    ),
    "UNETR": Kind(_monai("UNETR", feature_size=8, hidden_size=96, mlp_dim=384, num_heads=4), 2e-3),
    "SwinUNETR": Kind(_monai("SwinUNETR", feature_size=12), 2e-3),
}
"""By name, in the order in which they are trained and explained: the first ones are the cheapest of different make."""


def _resolutions(network: nn.Module, image: Tensor) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Convolutions in the order in which they run, and the shape of what each makes of an image."""
    found: list[tuple[nn.Module, tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, made: found.append((module, tuple(made.shape))))
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def lowest_layer(network: nn.Module, image: Tensor) -> nn.Module:
    """The last convolution of the coarsest resolution that is still a map of more than one place."""
    layers = [(module, shape) for module, shape in _resolutions(network, image) if shape[2] * shape[3] > 1]
    least = min(shape[2] * shape[3] for _, shape in layers)
    return [module for module, shape in layers if shape[2] * shape[3] == least][-1]


def last_layer(network: nn.Module, image: Tensor, out_channels: int) -> nn.Module:
    """The last convolution before the one that makes the logits."""
    layers = [module for module, shape in _resolutions(network, image) if shape[1] != out_channels]
    return layers[-1]
