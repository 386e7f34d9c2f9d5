"""Digests of bytes: of arrays, files, and whatever JSON can say."""

import functools
import hashlib
import json
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DIGITS", "add", "digest_of_file", "digest_of_json", "digest_of_source"]

# Of digests in hexadecimal that stand for something in a study's files.
DIGITS = 16
_BLOCK = 2**20


def add(found: "hashlib._Hash", values: Tensor | np.ndarray) -> None:
    """Let a digest know of an array: its shape, type and contents, and where it lies if it has geometry."""
    if isinstance(values, Tensor):
        affine = getattr(values, "affine", None)
        tensor = values.detach()
        if torch.nn.parameter.is_lazy(values) or tensor.is_meta:
            found.update(b"no values")
            return
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        tensor = tensor.as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        # Any type as bytes: numpy has no bfloat16.
        array = tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
        if isinstance(affine, Tensor):
            add(found, affine)
    else:
        found.update(f"{values.shape} {values.dtype}".encode())
        array = np.ascontiguousarray(values)
    # As bytes, without a copy; an empty array cannot be cast.
    found.update(array.reshape(-1).view(np.uint8).data if array.size else b"")


def digest_of_json(value: Any) -> str:
    """Of what JSON can say, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def digest_of_file(file: str | os.PathLike[str]) -> str:
    """Of a file's contents, as they are on the disk now.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    with open(file, "rb") as contents:
        while block := contents.read(_BLOCK):
            found.update(block)
    return found.hexdigest()[:DIGITS]


def digest_of_source(file: str | os.PathLike[str]) -> str:
    """The same of a file that is asked for over and over: one that was not written to since is not read again."""
    state = os.stat(file)
    return _of_source(os.path.abspath(file), state.st_size, state.st_mtime_ns, number=state.st_ino)


@functools.lru_cache(maxsize=100_000)
def _of_source(file: str, size: int, touched: int, number: int) -> str:
    return digest_of_file(file)
