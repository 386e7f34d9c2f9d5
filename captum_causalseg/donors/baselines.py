"""What a ``baselines`` argument means."""

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import checked, renamed, shown
from captum_causalseg.donors.constant import Constant
from captum_causalseg.donors.patch_bank import PatchBank
from captum_causalseg.donors.same_image import SameImage
from captum_causalseg.donors.source import IMAGES, DonorSource

__all__ = ["as_donor_source"]


@checked(images=IMAGES)
def as_donor_source(baselines: Any, images: Tensor) -> DonorSource:
    """The donor source that a ``baselines`` argument means for one input.

    Args:
        baselines: a :class:`DonorSource`; a number; a tensor ``(D, C, *spatial)``, a distribution of ``D`` donor images taken
            at the unit's own place (as in Captum's ``GradientShap``); or ``None``, the image's other positions.
        images: the input, ``(N, C, *spatial)``.

    Example:
        >>> import torch
        >>> from captum_causalseg.donors import as_donor_source
        >>> image = torch.rand(1, 1, 8, 8)
        >>> as_donor_source(None, image), as_donor_source(0.0, image), as_donor_source(torch.rand(5, 1, 8, 8), image)
        (SameImage(), Constant(0.0), PatchBank(5 images, placement='aligned'))
    """
    if baselines is None:
        return SameImage()
    if isinstance(baselines, DonorSource):
        return baselines
    if isinstance(baselines, Tensor):
        if baselines.is_complex() or baselines.dtype == torch.bool:
            raise TypeError(f"baselines: expected real numbers, got a tensor of {baselines.dtype}")
        if baselines.ndim == 0:
            return _constant(baselines)
        shape = tuple(baselines.shape)
        if len(shape) != images.ndim or any(d not in (1, s) for d, s in zip(shape[1:], images.shape[1:])):
            raise ValueError(
                f"baselines: expected a tensor (D, {', '.join(map(str, images.shape[1:]))}), a distribution along its first "
                f"axis, got {shape}; patches to be pasted anywhere are a PatchBank"
            )
        return PatchBank(baselines.expand(shape[0], *images.shape[1:]), placement="aligned")
    if isinstance(baselines, numbers.Real) and not isinstance(baselines, bool):
        return _constant(baselines)
    came = type(baselines).__name__
    if isinstance(baselines, (list, np.ndarray)):
        came = f"{shown(baselines)}; images are a PatchBank(images)"
    raise TypeError(f"baselines: expected a donor source (PatchBank, ...), a number, a tensor or None, got {came}")


def _constant(value: Any) -> Constant:
    with renamed(value="baselines"):
        return Constant(float(value))
