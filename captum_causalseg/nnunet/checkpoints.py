"""Checkpoints of nnU-Net, read without running pickled code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captum_causalseg.bundle.weights import reason

__all__ = ["read_checkpoint"]

# What nnU-Net writes beside tensors and plain values: losses and learning rates are NumPy's scalars.
_SCALAR = getattr(np, "_core", None) or np.core
_DTYPES = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "uint8", "float16", "float32", "float64")]
_SAFE = [_SCALAR.multiarray.scalar, np.dtype, *_DTYPES]
_NEEDED = ("network_weights", "trainer_name", "init_args")


def read_checkpoint(file: Path, trust: bool = False) -> dict[str, Any]:
    """What a checkpoint holds.

    Args:
        file: ``fold_0/checkpoint_final.pth``, for example.
        trust: let the file run code of its own, as nnU-Net does.

    Raises:
        ValueError: it holds other objects, which could run code; or it is damaged, or no checkpoint of nnU-Net.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            found = torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint: {file} holds more than weights and numbers ({_unsafe(error)}), which could run code and is refused; trust=True "
            "reads it all the same: only for files whose origin you know"
        ) from error
    except Exception as error:
        raise ValueError(f"checkpoint: {file} is damaged or no checkpoint: {reason(error)}") from error
    missing = [name for name in _NEEDED if not isinstance(found, dict) or name not in found]
    if missing:
        raise ValueError(f"checkpoint: {file} is none of nnU-Net's, it holds no {missing[0]!r}")
    return dict(found)


def _unsafe(error: BaseException) -> str:
    """The object that torch did not read; its message advises to allow it."""
    said = str(error)
    _, _, rest = said.partition("GLOBAL ")
    return rest.split()[0] if rest else "other objects"
