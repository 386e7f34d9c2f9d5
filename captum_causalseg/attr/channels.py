"""Channels of the inputs as units of their own, and channels that are left as they are."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_causalseg._checks import NONE, integer, key_of, one_of, sequence
from captum_causalseg.layout import UNIT_KINDS

__all__ = ["CHANNELS", "UNITS", "Channels", "of_channels"]

Channels = Literal["each"] | Sequence[int] | None

CHANNELS = NONE | one_of("each") | sequence(integer(0), 1, expected="channels")
"""What ``channels=`` takes."""
UNITS = key_of(UNIT_KINDS)
"""What ``units=`` takes."""


def of_channels(masks: Sequence[Tensor], tensors: Sequence[Tensor], channels: Channels) -> tuple[list[Tensor], int]:
    """Units within channels.

    Args:
        masks: per input ``(1 or N, 1 or C, *spatial or ones)``, ids of at least 0.
        tensors: the inputs ``(N, C, *spatial)``; those without spatial axes keep their units.
        channels: ``None``: units as they are. ``"each"``: in place of unit ``u``, one for each channel ``c``, ``u * C + c`` with the largest
            number of channels ``C`` of an input. Numbers: units hold these channels only.

    Returns:
        The masks, and the id of what belongs to no unit then (-1: there is nothing).

    Raises:
        ValueError: no input has such a channel.
    """
    if channels is None:
        return list(masks), -1
    most = max((tensor.shape[1] for tensor in tensors if tensor.ndim > 2), default=0)
    if channels == "each":
        if most < 2:
            raise ValueError(f"channels: expected images of several channels, got {most or 'none'}; each is a unit already")
        return [_each(mask, tensor, most) if tensor.ndim > 2 else mask * most for mask, tensor in zip(masks, tensors)], -1
    wanted = sorted({int(channel) for channel in channels})
    if wanted[-1] >= most:
        raise ValueError(f"channels: expected 0..{most - 1}, got {wanted[-1]}")
    left_out = 1 + max(int(mask.max()) for mask in masks)
    return [
        _some(mask, tensor, wanted=wanted, left_out=left_out) if tensor.ndim > 2 else mask
        for mask, tensor in zip(masks, tensors)
    ], left_out


def _all_channels(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.expand(-1, tensor.shape[1], *mask.shape[2:])


def _each(mask: Tensor, tensor: Tensor, most: int) -> Tensor:
    number = torch.arange(tensor.shape[1], device="cpu").view(1, -1, *(1,) * (tensor.ndim - 2))
    return (_all_channels(mask, tensor) * most + number).contiguous()


def _some(mask: Tensor, tensor: Tensor, wanted: Sequence[int], left_out: int) -> Tensor:
    kept = _all_channels(mask, tensor).clone()
    others = [channel for channel in range(tensor.shape[1]) if channel not in wanted]
    kept[:, others] = left_out
    return kept
