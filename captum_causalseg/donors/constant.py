"""The same value everywhere."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_causalseg._checks import array_of, checked, number, sequence
from captum_causalseg.donors.source import BIND, BoundDonors, DonorSource
from captum_causalseg.donors.whole_image import BoundWhole

__all__ = ["Constant"]


class Constant(DonorSource):
    """The same value everywhere: a number, or one per channel.

    Args:
        value: a finite number or a sequence of ``C`` numbers.

    Example:
        >>> from captum_causalseg.donors import Constant
        >>> Constant(0.0)
        Constant(0.0)
    """

    @checked(
        value=number()
        | sequence(number(), 1, expected="one per channel")
        | array_of("real", "(C,)", (0, 1), finite=True, may_be_empty=False)
    )
    def __init__(self, value: float | Sequence[float]) -> None:
        self.value = value
        self._values = torch.as_tensor(value, dtype=torch.float64, device="cpu")

    def __repr__(self) -> str:
        return f"Constant({self.value})"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if self._values.ndim == 1 and len(self._values) != images.shape[1]:
            raise ValueError(f"baselines: {len(self._values)} values given for images of {images.shape[1]} channels")
        return BoundWhole(self._values.reshape(1, -1, *(1,) * (images.ndim - 2)))
