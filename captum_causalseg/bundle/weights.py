"""Weights of a bundle: a state dict, a checkpoint that holds one, or TorchScript. No pickled code is run."""

import pickle
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["checkpoint", "is_torchscript", "mismatch", "reason", "state_of"]

_STATES = ("model", "state_dict", "model_state_dict", "network", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")


def is_torchscript(file: Path) -> bool:
    """Whether a file is TorchScript, whatever its name; broken ones go by it."""
    if not zipfile.is_zipfile(file):
        return file.suffix.lower() == ".ts"
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def checkpoint(file: Path) -> Any:
    """What the file holds, read without running pickled code."""
    with file.open("rb") as opened:
        if opened.read(24).startswith(b"version https://git-lfs"):
            raise ValueError(f"weights: {file} is a Git LFS pointer, the weights themselves were not downloaded (git lfs pull)")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it without that protection.
        raise ValueError(
            f"weights: {file} is no file of weights, or holds other objects too (a whole pickled model, say), which could run "
            "code and are refused; save the model's state_dict()"
        ) from error
    except Exception as error:
        raise ValueError(f"weights: {file} is damaged or no file of weights: {reason(error)}") from error


def state_of(found: Any, network: nn.Module, file: Path) -> dict[str, Any]:
    """The state dict in a checkpoint, under the network's own names where a wrapper has put a prefix before them all."""
    state = found
    if isinstance(state, Mapping) and not all(isinstance(value, Tensor) for value in state.values()):
        state = next((state[name] for name in _STATES if isinstance(state.get(name), Mapping)), state)
    if not isinstance(state, Mapping):
        raise ValueError(f"weights: expected a state dict in {file}, got {type(state).__name__}")
    expected = set(network.state_dict())
    for prefix in _PREFIXES:
        if all(str(key).startswith(prefix) for key in state):
            bare = {str(key)[len(prefix) :]: value for key, value in state.items()}
            if set(bare) == expected:
                return bare
    return dict(state)


def mismatch(network: nn.Module, state: dict[str, Any]) -> str:
    """What differs, in a few names."""
    expected = network.state_dict()
    differing = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if isinstance(state.get(key), Tensor) and isinstance(value, Tensor) and state[key].shape != value.shape
    ]
    found = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [str(key) for key in state if key not in expected],
        "of another shape": differing,
    }
    return "; ".join(
        f"{len(keys)} {name}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}" for name, keys in found.items() if keys
    )


def reason(error: BaseException) -> str:
    """The error that started it all, in one line."""
    # MONAI says which reference is undefined, and its cause only that a key was not found.
    while error.__cause__ is not None and not str(error).startswith("the referring item"):
        error = error.__cause__
    said = textwrap.shorten(str(error), 200, placeholder=" ...")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
