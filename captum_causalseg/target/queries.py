"""Outputs whose second axis holds queries: masks of objects, or candidates for one mask, that are no classes."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["fields_of_queries", "holders", "refuse_queries"]

# By these names transformers document one entry per query (MaskFormer, Mask2Former, OneFormer, EoMT).
_MASKS_OF_QUERIES = ("masks_queries_logits", "transformer_decoder_mask_predictions")
_CLASSES_OF_QUERIES = ("class_queries_logits", "transformer_decoder_class_predictions")
# These are masks of queries or candidates (DETR, RF-DETR, MaskDINO, Mask2Former as it was published, SAM) if what belongs to each
# of those is beside them; alone they may be anything (SegGPT's `pred_masks` are a picture).
_MASKS = ("pred_masks", "out_masks", "masks", "low_res_masks", "high_res_masks", "low_res_logits")
_CLASSES = ("pred_logits", "logits")
_QUALITIES = ("iou_scores", "iou_predictions")
_BESIDE = ("pred_boxes", *_QUALITIES, "object_score_logits")
_ADAPTED = (
    'output="mask2former" (also "maskformer", "oneformer", "eomt", "detr") makes a semantic map of them as the model\'s processor does, '
    'output="instances" takes each query for an object; or choose one query\'s mask'
)


def refuse_queries(returned: Any, found: Any, is_asked: bool) -> None:
    """Raise if the tensor found in what a model returned is one entry per query, or a part of one with several.

    Args:
        returned: by the model.
        found: in it; if that is no tensor, whatever holds queries is refused.
        is_asked: whether the user said where to look.

    Raises:
        ValueError: saying how to make class scores of it.
    """
    for holder in holders(returned):
        masks, classes = fields_of_queries(holder)
        for name, field in (masks | classes).items():
            if any(_is_part(found, tensor) for tensor in _tensors(field)):
                raise ValueError(_said(holder, name, masks=masks, classes=classes, found=found))
        if masks and not isinstance(found, Tensor) and not is_asked:
            raise ValueError(_said(holder, next(iter(masks)), masks=masks, classes=classes, found=found))
    if isinstance(found, Tensor) and not is_asked and type(returned) in (list, tuple):
        beside = [t for t in _tensors(returned) if t.ndim == 3 < found.ndim and t.shape[:2] == found.shape[:2]]
        if found.shape[1] > 1 and beside and beside[0].is_floating_point():
            # What is named elsewhere comes without names from `return_dict=False` and from traced models.
            raise ValueError(
                f"output: the model returns {tuple(found.shape)} beside {tuple(beside[0].shape)}, which look like masks and class scores "
                f"of {found.shape[1]} queries, and queries are no classes. Say where the logits are (an index); {_ADAPTED}, or class scores "
                f"with a callable: {_class_scores('out[...]', 'out[...]', found.ndim, n_classes=beside[0].shape[-1])}"
            )


def holders(value: Any) -> Iterator[Any]:
    """The objects with named values in what a model returned, lists of them included."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for item in value:
            yield from holders(item)
    elif not isinstance(value, Tensor):
        yield value


def fields_of_queries(holder: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """By name, the masks and the class scores of queries that an object holds."""

    def held(names: tuple[str, ...]) -> dict[str, Any]:
        found = {name: _value(holder, name) for name in names}
        return {name: value for name, value in found.items() if any(True for _ in _tensors(value))}

    masks, classes = held(_MASKS_OF_QUERIES), held(_CLASSES_OF_QUERIES)
    possible = {name: value for name, value in held(_MASKS).items() if isinstance(value, Tensor) and value.ndim > 3}
    for mask in possible.values():
        # Class scores (N, Q, K) of the masks (N, Q, *spatial); logits (N, C, *spatial) are a segmentation, whatever is beside them.
        classes |= {
            n: v for n, v in held(_CLASSES).items() if isinstance(v, Tensor) and v.ndim == 3 and v.shape[:2] == mask.shape[:2]
        }
    if possible and (classes or held(_BESIDE)):
        masks |= possible
    return masks, classes


def _value(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _is_part(found: Any, field: Tensor) -> bool:
    """Whether this is the field, or several entries of its memory; a single mask of it is one's own choice."""
    if found is field:
        return True
    if not isinstance(found, Tensor) or found.ndim < 2 or found.shape[1] < 2 or not found._is_view():
        return False
    owner = field._base if field._is_view() else field
    begin = field.storage_offset()
    return found._base is owner and begin <= found.storage_offset() < begin + field.numel()


def _said(holder: Any, name: str, masks: Mapping[str, Any], classes: Mapping[str, Any], found: Any) -> str:
    where = 'out["{}"]' if isinstance(holder, Mapping) and not hasattr(holder, name) else "out.{}"
    values = masks.get(name, classes.get(name))
    shape = tuple(found.shape) if isinstance(found, Tensor) else tuple(next(_tensors(values)).shape)
    said = f"output: {name!r} of {type(holder).__name__}, {shape}, holds one entry per "
    mask = next((n for n in masks if isinstance(masks[n], Tensor)), None)
    scores = next((n for n in classes if isinstance(classes[n], Tensor)), None)
    if mask is not None and scores is not None:
        made = _class_scores(where.format(scores), where.format(mask), masks[mask].ndim, n_classes=classes[scores].shape[-1])
        return f"{said}query, and queries are no classes. {_ADAPTED}, or class scores with a callable: {made}"
    if mask is not None:
        one = f"{where.format(mask)}[:, {'0, ' * (masks[mask].ndim - 4)}:1]"
        rated = any(_value(holder, name) is not None for name in _QUALITIES)
        best = 'output="sam" takes the best of each prompt, "sam:0" the first. ' if rated else ""
        return (
            f"{said}object or candidate mask, which are no classes. {best}Choose one with a callable: output=lambda out: {one}"
        )
    return f"{said}query, and queries are no classes. {_ADAPTED}"


def _class_scores(scores: str, mask: str, n_axes: int, n_classes: int) -> str:
    axes = "dhw"[5 - n_axes :] if n_axes <= 5 else "..."
    made = f'torch.einsum("bqc,bq{axes}->bc{axes}", {scores}.softmax(-1)[..., :-1], {mask}.sigmoid())'
    activation = "shares" if n_classes > 2 else "none"
    return (
        f'output=lambda out: {made}, activation="{activation}" (its last class is "no object"; where a model has none: '
        f"{scores}.sigmoid())"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
