"""The networks of `model_study.py`: MONAI's, in sizes that train within minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn

SIZE = (128, 96)
"""Of the slices, after two by two pixels of 1 mm became one."""


@dataclass(frozen=True)
class Architecture:
    """A network of MONAI.

    Args:
        network: its name in ``monai.networks.nets``.
        arguments: sizes that train within minutes; what is not named is MONAI's default, the normalization above all.
        mixing: what besides the normalization carries information across the whole image, for the table.
        learning_rate: the largest of the cycle. Transformers want smaller ones.
    """

    network: str
    arguments: dict[str, Any]
    mixing: str = ""
    learning_rate: float = 5e-3

    def build(self) -> nn.Module:
        """The network with the same initial weights every time; the global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = FirstOutput(getattr(nets, self.network)(**self.arguments))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                # PyTorch's default. EfficientNet's means move by a hundredth a step, too slow for a few hundred steps.
                module.momentum = 0.1
        return network.eval()


class FirstOutput(nn.Module):
    """A network that returns its segmentation alone, also where the one inside returns a list that starts with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)
        return found[0] if isinstance(found, (list, tuple)) else found


_UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "strides": (2, 2, 2)}
CONTROL = "UNet, batch norm"
ARCHITECTURES = {
    "UNet": Architecture("UNet", {**_UNET, "channels": (16, 32, 64, 128), "num_res_units": 2}),
    # The control: the same network, but what happens in one place cannot reach all others by way of the normalization.
    CONTROL: Architecture("UNet", {**_UNET, "channels": (16, 32, 64, 128), "num_res_units": 2, "norm": "batch"}),
    "BasicUNetPlusPlus": Architecture(
        "BasicUNetPlusPlus", {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "features": (8, 8, 16, 32, 64, 8)}
    ),
    "SegResNet": Architecture("SegResNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_filters": 8}),
    "AttentionUnet": Architecture("AttentionUnet", {**_UNET, "channels": (8, 16, 32, 64)}),
    "DynUNet": Architecture(
        "DynUNet",
        {
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "kernel_size": (3, 3, 3, 3)},
            **{"strides": (1, 2, 2, 2), "upsample_kernel_size": (2, 2, 2), "filters": (8, 16, 32, 64)},
        },
    ),
    "FlexibleUNet": Architecture(
        "FlexibleUNet",
        {
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "backbone": "efficientnet-b0", "pretrained": False},
            "decoder_channels": (64, 32, 16, 8, 8),
        },
        mixing="squeeze and excitation",
    ),
    "SwinUNETR": Architecture(
        "SwinUNETR",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "feature_size": 12},
        mixing="attention in shifted windows",
        learning_rate=2e-3,
    ),
    "UNETR": Architecture(
        "UNETR",
        {
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "img_size": SIZE},
            **{"feature_size": 8, "hidden_size": 96, "mlp_dim": 384, "num_heads": 4},
        },
        mixing="attention",
        learning_rate=2e-3,
    ),
}
