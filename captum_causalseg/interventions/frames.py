"""Parts of batches: the entries of some examples, and a window of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import box_at, crop

__all__ = ["Frame", "RowFrame", "gather"]


def gather(values: Sequence[Any], examples: np.ndarray) -> list[Any]:
    """Fresh copies of the tensors' entries for these examples; whatever is no tensor ``(N, ...)`` as it is.

    What a model does to them in place stays there.
    """

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 0:
            return value.detach().clone()
        return value.detach().index_select(0, torch.as_tensor(examples, device=value.device))

    return [one(value) for value in values]


class Frame:
    """A window of each example: of one size, at its own place.

    Args:
        starts: ``(N, d)`` first index along the spatial axes.
        size: ``(d,)``.
    """

    def __init__(self, starts: np.ndarray, size: Sequence[int]) -> None:
        self.starts = np.asarray(starts, dtype=np.int64)
        self.size = tuple(int(length) for length in size)

    def starts_of(self, examples: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Where the windows begin that these rows of a batch hold, of these examples: ``(P, d)`` for ``(P,)`` each."""
        found: np.ndarray = self.starts[examples]
        return found

    def crop(self, values: Tensor) -> Tensor:
        """``(N or 1, C, *spatial)`` to ``(N or 1, C, *size)``, a tensor of its own."""
        return crop(values, self.starts, self.size).clone()

    def uncrop(self, values: Tensor, spatial: Sequence[int], examples: Sequence[int] | None = None) -> Tensor:
        """``(B, C, *size)`` of these examples (or of all) to ``(B, C, *spatial)``, 0 outside the window."""
        whole = values.new_zeros((*values.shape[:2], *spatial))
        starts = self.starts if examples is None else self.starts[list(examples)]
        for held, one, corner in zip(values, whole, starts.tolist()):
            one[(slice(None), *box_at(corner, self.size))] = held
        return whole

    def frames(self, tensors: Sequence[Tensor], spatial: torch.Size) -> "list[Frame | None] | None":
        """This window for every tensor that is an image of this spatial shape; ``None`` if one is an image of another."""
        if any(x.ndim > 2 and x.shape[2:] != spatial for x in tensors):
            return None
        return [self if x.ndim > 2 else None for x in tensors]

    def crop_images(self, values: Sequence[Any], spatial: torch.Size) -> list[Any]:
        """Those among the values that are image batches of this spatial shape cut to the window, the others as they are."""
        return [self.crop(v) if isinstance(v, Tensor) and v.ndim > 2 and v.shape[2:] == spatial else v for v in values]


class RowFrame(Frame):
    """A window of each row of a batch, which may hold several windows of one example.

    Args:
        starts: ``(B, d)`` first index along the spatial axes.
        size: ``(d,)``.
    """

    def starts_of(self, examples: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See :meth:`Frame.starts_of`."""
        found: np.ndarray = self.starts[rows]
        return found
