"""The predicted and the reference segmentation of the class that a picture is about."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import shown
from captum_causalseg.target.masks import mask_source

__all__ = ["class_mask"]


def class_mask(
    name: str, given: Any, *, spatial: Sequence[int], n_examples: int, example: int, output: int | None
) -> np.ndarray | None:
    """Boolean ``(*spatial)`` of one example and class; None where nothing was given.

    Args:
        name: of the argument.
        given: a boolean mask of the class ``(*spatial)``, or ``(N, *spatial)``; labels (integers) of these shapes or ``(N, 1, *spatial)``;
            or one mask per class ``(N, C, *spatial)``, as :meth:`captum_causalseg.SegmentationTarget.segmentations` returns them.
        spatial: of the image.
        n_examples: of the batch.
        example: which of it.
        output: the class; None where there is only one.
    """
    source, mask = mask_source(name, given)
    if source == "argument":
        raise TypeError(f"{name}: expected a segmentation to outline, got {shown(given)}")
    if mask is None:
        return None
    lead = mask.ndim - len(spatial)
    fits = 0 <= lead <= 2 and tuple(mask.shape[lead:]) == tuple(spatial)
    if not fits or (lead and mask.shape[0] not in ({n_examples} if lead == 1 else {1, n_examples})):
        raise ValueError(
            f"{name}: expected a mask of the image's spatial shape {tuple(spatial)}, one per example, or one per example and class (N, C, "
            f"*spatial), for {n_examples} example(s); got {tuple(mask.shape)}"
        )
    mine = mask.cpu() if lead == 0 else mask[example if len(mask) > 1 else 0].cpu()
    if lead < 2 or len(mine) == 1:
        return _of_labels(name, mine if lead < 2 else mine[0], output)
    if not bool(((mine == 0) | (mine == 1)).all()):
        raise ValueError(f"{name}: expected one boolean mask per class, got {mine.dtype} with other values than 0 and 1")
    if output is None:
        raise ValueError(
            f"{name}: it has {len(mine)} classes, and the target does not say which is explained; pass the mask of the class that is, {tuple(spatial)}"
        )
    if not -len(mine) <= output < len(mine):
        raise ValueError(f"{name}: it has {len(mine)} classes, and class {output} is explained")
    found: np.ndarray = mine[output].bool().numpy()
    return found


def _of_labels(name: str, values: Tensor, output: int | None) -> np.ndarray:
    """A boolean mask is that of the class; whole numbers are labels."""
    if values.dtype == torch.bool:
        mask: np.ndarray = values.numpy()
        return mask
    if values.is_floating_point() and not bool((values == values.round()).all()):
        raise ValueError(f"{name}: expected a boolean mask or whole numbers as labels, got {values.dtype} with fractions")
    if output is None and not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(
            f"{name}: its labels go to {float(values.max()):g}, and the target does not say which is explained; pass the boolean mask of the one "
            "that is"
        )
    found: np.ndarray = (values == (1 if output is None else output)).numpy()
    return found
