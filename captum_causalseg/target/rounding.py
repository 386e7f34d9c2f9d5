"""By how much two computations of the same output may differ: another order of operations, other kernels."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["relative_tolerance", "tolerance"]


def tolerance(values: Tensor) -> float:
    """By how much values that are computed in another way may differ from these, at most."""
    return relative_tolerance([values]) * float(values.double().abs().max())


def relative_tolerance(tensors: Sequence[Tensor]) -> float:
    """The same as a share of the largest of the last tensor's values, which were computed from the other tensors.

    A thousand units in the last place: what deep networks accumulate, and far below what a pixel that belongs there makes. No
    wider than that takes: a needless doubt costs time, an influence taken for rounding is a wrong result.
    """
    eps = max(torch.finfo(values.dtype).eps for values in tensors)
    if eps > 1e-5:
        # Half precision: sums are in float32, whose noise now and then flips the last bit of a layer's output. A thousand of
        # these bits would be the values themselves.
        return 8 * eps
    if eps > 1e-10 and tensors[-1].is_cuda:
        # TF32 rounds the factors to 10 bits, always alike; as above, only noise that flips one of these bits is left.
        with contextlib.suppress(RuntimeError):  # set through PyTorch's newer interface, which forbids asking through this one
            if not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
                return 1e3 * eps
        return 2**-10
    return 1e3 * eps
