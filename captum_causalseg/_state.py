"""Leave a model and the process as they were: modes, buffers and global random states."""

import functools
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["undisturbed"]

# Frames that stand between a user and a warning.
_OURS = ("captum_causalseg", "captum", "contextlib")


@contextmanager
def undisturbed(forward_func: Callable[..., object], gradients: bool = False) -> Iterator[None]:
    """Evaluate ``forward_func`` without a trace: no gradients, evaluation mode, everything put back on the way out.

    With ``gradients`` they are recorded, whatever mode the caller is in.

    Modules found in training mode are evaluated in evaluation mode (with a warning), because batch norm in training
    mode would mix the examples of a batch and move its running statistics (dropout stays on in a target with ``n_samples``). Modes, buffers and the global random states
    of torch (CPU and CUDA), numpy and random are restored however the block ends, Ctrl-C included. A module's bound methods
    and partials are seen through; any other function hides its modules, and only the random states are protected then.
    """
    modules = list(module.modules()) if (module := _module_of(forward_func)) is not None else []
    # Of a segmentation target that samples, dropout that is in training mode is meant to be.
    random_on_purpose = getattr(forward_func, "keeps_dropout", False) is True
    # Frozen TorchScript is in evaluation mode for good and has no such attribute.
    training = [
        m
        for m in modules
        if getattr(m, "training", False) and not (random_on_purpose and isinstance(m, nn.modules.dropout._DropoutNd))
    ]
    buffers: list[tuple[nn.Module, dict[str, Tensor | None]]] = [(module, dict(module._buffers.items())) for module in modules]
    values = [[None if b is None else b.clone() for b in found.values()] for _, found in buffers]
    if any(_behaves_differently_in_training(module) for module in training):
        warnings.warn(
            "The model is in training mode, where batch norm mixes the examples of a batch and dropout is random: "
            "it is evaluated in evaluation mode here and put back afterwards.",
            UserWarning,
            stacklevel=_caller_level(),
        )
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if _uses_cuda() else []
    try:
        with torch.random.fork_rng(devices=devices), _recording() if gradients else torch.no_grad():
            for module in training:
                module.training = False
            yield
    finally:
        for module in training:
            module.training = True
        for (module, found), before in zip(buffers, values):
            if not isinstance(module, torch.jit.ScriptModule):  # where buffers can neither come nor go
                module._buffers.clear()  # also of what the model has cached there
                module._buffers.update(found)
            with torch.no_grad():
                for buffer, value in zip(found.values(), before):
                    if buffer is not None and value is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _recording() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _module_of(forward_func: Callable[..., object]) -> nn.Module | None:
    while isinstance(forward_func, functools.partial):
        forward_func = forward_func.func
    owner = getattr(forward_func, "__self__", forward_func)
    return owner if isinstance(owner, nn.Module) else None


def _caller_level() -> int:
    """How many frames up the user's own code is, for a warning raised by the caller of this function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _behaves_differently_in_training(module: nn.Module) -> bool:
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return is_norm or is_dropout
