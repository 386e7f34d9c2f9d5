"""Models that return a mask and class scores for each query: MaskFormer, Mask2Former, OneFormer, EoMT, DETR and their kin."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg._checks import shown
from captum_causalseg.target.queries import fields_of_queries, holders

__all__ = ["class_scores", "object_masks"]


def class_scores(returned: Any, image: Tensor | None, fine_masks: bool = False) -> Tensor:
    """Each class's score ``(N, C, *spatial)``, as the models' processors add up the queries for a semantic map.

    ``score_c = sum_q p(q is of class c) p(pixel belongs to q)``, between 0 and the number of queries: the class scores of a query go
    through a softmax whose last class, "no object", is left out, its mask through a sigmoid.

    Args:
        returned: by the model; see :func:`captum_causalseg.target.queries.fields_of_queries`.
        image: that was given to the model.
        fine_masks: bring the masks to the image's size before all this (Mask2Former, EoMT), rather than their sums after it.

    Raises:
        ValueError: no masks and class scores of queries are found.
    """
    masks, classes = _masks_and_classes(returned, "class scores (N, queries, classes + 1)")
    if fine_masks and image is not None and masks.shape[2:] != image.shape[2:]:
        mode = ("linear", "bilinear", "trilinear")[masks.ndim - 3]
        masks = functional.interpolate(masks, size=image.shape[2:], mode=mode, align_corners=False)
    if classes.ndim != 3:
        raise ValueError(f"output: expected class scores (N, queries, classes + 1), got {tuple(classes.shape)}")
    axes = "dhw"[5 - masks.ndim :]
    return torch.einsum(f"bqc,bq{axes}->bc{axes}", classes.softmax(-1)[..., :-1], masks.sigmoid())


def object_masks(returned: Any, image: Tensor | None, entry: int | None = None) -> Tensor:
    """For each query the probability ``(N, Q, *spatial)`` that a pixel belongs to an object that it has found.

    That is the mask's probability times the probability that the query is an object: one less "no object", the last class, or, where
    there is a single class (SAM 3), its sigmoid, times that of its presence.

    Args:
        returned: by the model; see :func:`captum_causalseg.target.queries.fields_of_queries`.
        image: that was given to the model; not looked at.
        entry: the only query to be looked at, ``(N, 1, *spatial)``; ``None`` for all.

    Raises:
        ValueError: no masks and class scores of queries are found, or there are not so many.
    """
    del image
    masks, is_object = _prompted(returned)
    if masks is None:
        masks, classes = _masks_and_classes(returned, "class scores (N, queries, classes + 1)")
        is_object = 1 - classes.softmax(-1)[..., -1]
    if entry is not None and entry >= masks.shape[1]:
        raise ValueError(f"output: 'instances:{entry}' is not there: the model has {masks.shape[1]} queries")
    found = masks.sigmoid() * is_object.view(*is_object.shape, *(1,) * (masks.ndim - 2))
    return found if entry is None else found[:, entry : entry + 1]


def _prompted(returned: Any) -> tuple[Tensor | None, Tensor]:
    """Masks and probabilities of objects ``(N, Q)`` of which a prompt has said what they are."""
    masks, scores, presence = (getattr(returned, name, None) for name in ("pred_masks", "pred_logits", "presence_logits"))
    if not (isinstance(masks, Tensor) and isinstance(scores, Tensor) and scores.shape == masks.shape[:2]):
        return None, torch.empty(0)
    return masks, scores.sigmoid() if presence is None else scores.sigmoid() * presence.sigmoid()


def _masks_and_classes(returned: Any, expected: str) -> tuple[Tensor, Tensor]:
    """Of all queries, ``(N, Q, *spatial)`` and ``(N, Q, ...)``; of several layers of a decoder, what comes with the first holder."""
    for holder in holders(returned):
        masks, classes = fields_of_queries(holder)
        mask = next((m for m in masks.values() if isinstance(m, Tensor)), None)
        scores = next((c for c in classes.values() if isinstance(c, Tensor)), None)
        if mask is not None and scores is not None:
            return mask, scores
    if isinstance(returned, (list, tuple)):
        tensors = [value for value in returned if isinstance(value, Tensor)]
        for scores in tensors:
            for mask in tensors:
                if scores.ndim == 3 < mask.ndim and scores.shape[:2] == mask.shape[:2]:
                    return mask, scores
    raise ValueError(
        f"output: expected masks (N, queries, *spatial) and {expected} of queries in what the model returns, got "
        f"{shown(type(returned).__name__)}"
    )
