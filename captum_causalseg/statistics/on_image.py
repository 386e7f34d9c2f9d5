"""Units of a layer's activation, laid out on the image."""

import math

import torch
from torch import Tensor

from captum_causalseg.layout import Layout

__all__ = ["laid_out"]


def laid_out(layout: Layout, mask: Tensor, shape: tuple[int, ...], spatial: tuple[int, ...]) -> Tensor:
    """Units that are places, stretched to the image's spatial shape: ``(N or 1, 1, *spatial)``."""
    own = layout.spatial(shape)
    placed = layout.channels_first(mask)
    if placed.shape[1] > 1:
        raise ValueError(
            f'units: those of an activation {shape} that differ from channel to channel have no positions; give effects of units="token" '
            'or "block"'
        )
    placed = placed.expand(len(placed), 1, *own)
    if layout.axes == "NLC":
        if layout.grid is None:
            raise ValueError(
                f'layout: which grid the {own[0]} tokens lie on is not known; give attribute Layout("NLC", grid=(rows, columns))'
            )
        placed = placed[..., layout.first : layout.first + math.prod(layout.grid)].reshape(len(placed), 1, *layout.grid)
        own = layout.grid
    if len(own) != len(spatial):
        raise ValueError(f"spatial_shape: expected {len(own)} numbers, as many as the units' grid {own} has, got {spatial}")
    for axis, (coarse, fine) in enumerate(zip(own, spatial)):
        placed = placed.index_select(axis + 2, torch.arange(fine, device="cpu") * coarse // fine)
    return placed
