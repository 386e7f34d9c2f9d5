"""Where the logits are in what a model returns, and the image in what it takes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["find_logits", "first_image"]

_OUTPUT_NAMES = ("out", "logits", "pred")


def find_logits(returned: Any, output: Any) -> Tensor:
    """The logits at ``output`` (a key, an index, an attribute, a callable), or where they usually are (``None``)."""
    found = returned
    if callable(output):
        found = output(returned)
    elif output is not None:
        by_name = isinstance(output, str) and not isinstance(returned, Mapping)
        try:
            found = getattr(returned, str(output)) if by_name else returned[output]
        except (AttributeError, LookupError, TypeError):
            found = None
    else:
        names = [name for name in _OUTPUT_NAMES if _has(found, name)]
        if names:
            found = found[names[0]] if isinstance(found, Mapping) else getattr(found, names[0])
        while isinstance(found, (list, tuple)) and found:
            found = found[0]
    if not isinstance(found, Tensor):
        held = f" with keys {sorted(map(str, returned))}" if isinstance(returned, Mapping) else ""
        where = "" if output is None else f" at output={output!r}"
        raise TypeError(
            f"model: no logits found in what it returns ({type(returned).__name__}{held}){where}; "
            "say where they are with `output` (a key, an index or a callable)"
        )
    return found.as_subclass(Tensor) if type(found) is not Tensor else found


def first_image(inputs: tuple[Any, ...]) -> Tensor:
    """The first tensor with spatial axes among a model's arguments."""
    for value in inputs:
        if isinstance(value, Tensor) and value.ndim > 2:
            return value
    raise ValueError("inputs: expected an image batch (N, C, *spatial) as the first tensor")


def _has(value: Any, name: str) -> bool:
    if isinstance(value, Mapping):
        return name in value
    return hasattr(value, "_fields") and name in value._fields
