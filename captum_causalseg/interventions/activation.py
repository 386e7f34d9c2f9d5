"""The tensors in what a layer returns or takes, with their channels first, and how others are put in their place."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from captum_causalseg.layout import Layout

__all__ = ["Activation", "as_they_lie", "channels_first"]


class Activation:
    """The tensors in what a layer returns or takes, and how to put others in their place.

    Args:
        value: a tensor, or a tuple or list that holds tensors (and other things, which stay).
        layouts: of the tensors, where they are known; empty for tensors as they lie.

    Attributes:
        tensors: the tensors in it, detached, with their channels first.
        is_tuple: whether it was a tuple or list.
    """

    def __init__(self, value: Any, layouts: Sequence[Layout | None] = ()) -> None:
        self.is_tuple = isinstance(value, (tuple, list))
        self._value, self.layouts = value, tuple(layouts)
        items = list(value) if self.is_tuple else [value]
        self._places = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.is_floating_point()]
        if not self._places:
            raise TypeError(
                f"layer: expected it to return (or take) a floating-point tensor or a tuple of them, got {type(value).__name__}"
            )
        self.tensors = channels_first([items[i].detach() for i in self._places], self.layouts)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The same value with other tensors."""
        tensors = as_they_lie(tensors, self.layouts)
        if not self.is_tuple:
            return tensors[0]
        items = list(self._value)
        for i, tensor in zip(self._places, tensors):
            items[i] = tensor
        return type(self._value)(items) if type(self._value) in (tuple, list) else type(self._value)(*items)

    def replaced(self, tensors: Sequence[Tensor]) -> "Activation":
        """The same with other tensors, channels first."""
        return Activation(self.with_tensors(tensors), self.layouts)

    def of_row(self, row: int) -> "Activation":
        """That of one entry of the batch."""
        return self.replaced([tensor[row : row + 1] for tensor in self.tensors])

    def check(self, n: int, what: str, *, may_be_windows: bool = False) -> None:
        """Raise unless the tensors have one entry for each of ``n`` examples (``what`` they are, in a word), and are finite.

        With ``may_be_windows``, tensors of 3 axes may have several for each, as long as their layout is not known.
        """
        for tensor in self.tensors:
            in_windows = may_be_windows and tensor.ndim == 3 and tensor.shape[0] % n == 0
            if tensor.ndim < 2 or (tensor.shape[0] != n and not in_windows):
                raise ValueError(
                    f"layer: expected an activation with one entry per {what}, (N, ...) with N={n}, got {tuple(tensor.shape)}"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError("layer: its activation holds NaN or infinite values")

    def laid_out(self, layouts: Sequence[Layout | None]) -> "Activation":
        """The same with what is known of its layouts."""
        return Activation(self._value, layouts)


def channels_first(tensors: Sequence[Tensor], layouts: Sequence[Layout | None]) -> list[Tensor]:
    """Tensors of these layouts with their channels first; those of no known layout as they are."""
    return [
        x if layout is None else layout.channels_first(x)
        for x, layout in zip(tensors, layouts or (None,) * len(tensors), strict=True)
    ]


def as_they_lie(tensors: Sequence[Tensor], layouts: Sequence[Layout | None]) -> list[Tensor]:
    """The inverse of :func:`channels_first`."""
    return [
        x if layout is None else layout.as_it_lies(x)
        for x, layout in zip(tensors, layouts or (None,) * len(tensors), strict=True)
    ]
