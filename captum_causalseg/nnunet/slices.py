"""A 2D configuration on volumes: windows are parts of slices."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from captum_causalseg.target import WindowedModel
from captum_causalseg.target.window_recipes import NnunetStarts, nnunet_networks, nnunet_weight

__all__ = ["SliceNetwork", "slice_by_slice"]


class SliceNetwork(nn.Module):
    """A network for pictures, given windows that are one slice thick along their first axis."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.train(network.training)

    def forward(self, windows: Tensor, *args: Any) -> Tensor:
        """``(B, C, 1, h, w)`` to ``(B, C_out, 1, h, w)``."""
        logits: Tensor = self.network(windows[:, :, 0], *args)
        return logits[:, :, None]


@dataclass(frozen=True)
class SliceStarts:
    """The windows of nnU-Net's predictor in every slice.

    Args:
        within: a slice's.
    """

    within: NnunetStarts

    def __call__(self, spatial: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Corners for a padded image of this spatial shape."""
        first, *rest = spatial
        return [(k, *corner) for k in range(first) for corner in self.within(tuple(rest))]


def slice_by_slice(predictor: Any) -> WindowedModel:
    """The model that a predictor of a 2D configuration runs on a prepared volume."""
    size = tuple(map(int, predictor.configuration_manager.patch_size))
    mirrored = predictor.use_mirroring and predictor.allowed_mirroring_axes
    return WindowedModel(
        [SliceNetwork(network) for network in nnunet_networks(predictor)],
        (1, *size),
        starts=SliceStarts(NnunetStarts(size, predictor.tile_step_size)),
        weight=nnunet_weight(predictor, size)[None],
        mirror_axes=tuple(axis + 1 for axis in predictor.allowed_mirroring_axes) if mirrored else (),
        window_device=predictor.device,
    )
