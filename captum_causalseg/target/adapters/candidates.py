"""Models that are prompted and propose several masks for each prompt: SAM, SAM 2, SAM 3 and their kin."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captum_causalseg._checks import shown

__all__ = ["best_candidate"]

# Logits before zeros and ones: `masks` may be either.
_MASKS = ("pred_masks", "low_res_logits", "low_res_masks", "high_res_masks", "masks")
_QUALITY = ("iou_scores", "iou_predictions", "iou_pred")


def best_candidate(returned: Any, image: Tensor | None, entry: int | None = None) -> Tensor:
    """Logits ``(N, P, *spatial)``, one mask per prompt: the candidate whose predicted quality is best, or the one asked for.

    Args:
        returned: masks ``(N, P, M, *spatial)`` or, of a single prompt, ``(N, M, *spatial)``, and their predicted quality
            ``(N, P, M)`` or ``(N, M)``, by the names that SAM's implementations give them or as the first two of a tuple. A map
            ``semantic_seg`` ``(N, 1, *spatial)`` (SAM 3, prompted by a text) is taken as it is.
        image: that was given to the model; not looked at.
        entry: which candidate; ``None`` for the best of each prompt and image.

    Raises:
        ValueError: no masks are found, or there are not so many.
    """
    del image
    semantic = _field(returned, ("semantic_seg",))
    if semantic is not None and entry is None:
        return semantic
    masks, quality = _field(returned, _MASKS), _field(returned, _QUALITY)
    if isinstance(returned, (list, tuple)) and masks is None:
        masks, quality = _pair(returned)
    if masks is None or (quality is None and semantic is None):
        raise ValueError(
            f"output: 'sam' expects masks of candidates ({' or '.join(map(repr, _MASKS))}) and their quality "
            f"({' or '.join(map(repr, _QUALITY))}), or a tuple of the two, got {_what(returned)}"
        )
    axis = 1 if quality is None else quality.ndim - 1
    if quality is not None and masks.shape[: quality.ndim] != quality.shape:
        raise ValueError(
            f"output: 'sam' expects one quality for each mask, got masks {tuple(masks.shape)} and qualities {tuple(quality.shape)}"
        )
    n = masks.shape[axis]
    if entry is not None and entry >= n:
        raise ValueError(f"output: 'sam:{entry}' is not there: the model proposes {n} masks, 0 to {n - 1}")
    if entry is not None or quality is None:
        chosen = masks.select(axis, entry or 0)
    else:
        which = quality.argmax(-1).view(*quality.shape[:-1], *(1,) * (masks.ndim - axis))
        chosen = torch.take_along_dim(masks, which, axis).squeeze(axis)
    return chosen if axis > 1 else chosen.unsqueeze(1)


def _field(returned: Any, names: tuple[str, ...]) -> Tensor | None:
    for name in names:
        value = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        if isinstance(value, Tensor):
            return value
    return None


def _pair(values: list[Any] | tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Masks and qualities without names: tensors of which one's shape is where the other's begins."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    for masks in tensors:
        for quality in tensors:
            if 2 <= quality.ndim <= 3 and masks.ndim > quality.ndim + 1 and masks.shape[: quality.ndim] == quality.shape:
                return masks, quality
    return None, None


def _what(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"{type(returned).__name__} with keys {sorted(map(str, returned))}"
    return shown(type(returned).__name__)
