"""Leave a model and the process as they were: modes, buffers and global random states."""

import functools
import random
import sys
import sysconfig
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["RANDOM_STATES", "in_this_thread", "modules_of", "modules_within", "undisturbed"]

# Frames that stand between a user and a warning.
_OURS = ("captum_causalseg", "captum", "contextlib")

RANDOM_STATES = threading.RLock()
"""Held while the global random states are other than the process has them: they are common to all threads."""

# How far from a function modules are looked for (a closure over an object with a list of models is four steps away), in how long
# containers, and among how many things.
_FARTHEST, _LONGEST, _MOST = 8, 1000, 20_000
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@contextmanager
def undisturbed(forward_func: Callable[..., object], gradients: bool = False) -> Iterator[None]:
    """Evaluate ``forward_func`` without a trace: no gradients, evaluation mode, everything put back on the way out.

    With ``gradients`` they are recorded, whatever mode the caller is in.

    Modules found in training mode (see :func:`modules_of`) are evaluated in evaluation mode (with a warning), because batch norm in
    training mode would mix the examples of a batch and move its running statistics (dropout stays on in a target with
    ``n_samples``). Modes, buffers and the global random states of torch (CPU and CUDA), numpy and random are restored however the
    block ends, Ctrl-C included.

    Threads may share a model: the first to come switches it over and the last to go puts it back. Nobody waits for anybody.

    Raises:
        RuntimeError: another thread has the same dropout on that has to be off here, or off that has to stay on.
    """
    modules = modules_within(forward_func)
    # Of a segmentation target that samples, dropout that is in training mode is meant to be.
    random_on_purpose = getattr(forward_func, "keeps_dropout", False) is True
    stays = [random_on_purpose and isinstance(module, nn.modules.dropout._DropoutNd) for module in modules]
    if any(_in_training(m) and not stay and _behaves_differently_in_training(m) for m, stay in zip(modules, stays)):
        warnings.warn(
            "The model is in training mode, where batch norm mixes the examples of a batch and dropout is random: "
            "it is evaluated in evaluation mode here and put back afterwards.",
            UserWarning,
            stacklevel=_caller_level(),
        )
    with (
        _known(forward_func, modules),
        _held(modules, stays),
        _random_states_kept(),
        _recording() if gradients else torch.no_grad(),
    ):
        yield


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module that does nothing where another thread runs the module: others may explain the same model at the same time."""
    mine = threading.get_ident()

    @functools.wraps(hook)
    def called(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == mine else None

    return called


def modules_of(function: Any) -> list[nn.Module]:
    """The modules that a forward function can be seen to run, each once.

    A module and all that it consists of; the one whose bound method it is; those among the arguments of a partial, in a closure,
    among the defaults and the global names of a function (and of the user's functions that it calls), and in the attributes and
    containers of what is found there.
    """
    found: dict[int, nn.Module] = {}
    seen: dict[int, Any] = {}
    pending = deque([(function, 0)])
    while pending and len(seen) < _MOST:
        value, distance = pending.popleft()
        if id(value) in seen or distance > _FARTHEST:
            continue
        seen[id(value)] = value  # kept: an id is another object's once its own is gone
        if isinstance(value, nn.Module):
            for module in value.modules():
                found.setdefault(id(module), module)
        pending.extend((other, distance + 1) for other in _referred_to(value))
    return list(found.values())


def _referred_to(value: Any) -> Iterable[Any]:
    """What may hold the modules that a value runs."""
    if isinstance(value, (Tensor, np.ndarray, type, types.ModuleType, str, bytes, int, float)) or value is None:
        return
    if isinstance(value, nn.Module):
        for module in value.modules():
            # Functions and models that a module has hidden from torch, as a target has the function that it scores.
            yield from (held for name, held in vars(module).items() if name not in _OF_EVERY_MODULE)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if not value.__code__.co_filename.startswith(_INSTALLED):
            yield from _globals_of(value)
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, Mapping):
        yield from list(value.values())[:_LONGEST]
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from list(value)[:_LONGEST]
    elif hasattr(value, "__dict__"):
        yield from list(vars(value).values())


def _globals_of(function: types.FunctionType) -> Iterator[Any]:
    """The values of the global names in a function and in the functions within it."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not yet
        return False


_WITHIN = threading.local()


def modules_within(function: Any) -> list[nn.Module]:
    """The modules of a function; where it is undisturbed already, those that it was found to have then."""
    found: dict[int, tuple[Any, list[nn.Module]]] = getattr(_WITHIN, "found", {})
    return found[id(function)][1] if id(function) in found else modules_of(function)


@contextmanager
def _known(function: Any, modules: list[nn.Module]) -> Iterator[None]:
    """Within, this thread need not look for the function's modules again."""
    before = getattr(_WITHIN, "found", {})
    _WITHIN.found = before | {id(function): (function, modules)}
    try:
        yield
    finally:
        _WITHIN.found = before


class _Hold:
    """A module as it was before the first thread took hold of it."""

    def __init__(self, module: nn.Module, stays: bool) -> None:
        self.module, self.stays, self.n = module, stays, 1
        self.training = _in_training(module)
        self.buffers = dict(module._buffers.items())
        self.values = [None if buffer is None else buffer.clone() for buffer in self.buffers.values()]
        if self.training and not stays:
            module.training = False

    def put_back(self) -> None:
        if self.training and not self.stays:
            self.module.training = True
        if isinstance(self.module, torch.jit.ScriptModule):
            pass  # where buffers can neither come nor go
        elif list(self.module._buffers.items()) != list(self.buffers.items()):
            self.module._buffers.clear()  # also of what the model has cached there
            self.module._buffers.update(self.buffers)
        with torch.no_grad():
            for buffer, value in zip(self.buffers.values(), self.values):
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)


_HOLDS: dict[int, _Hold] = {}
_HOLDS_LOCK = threading.Lock()


@contextmanager
def _held(modules: list[nn.Module], stays: list[bool]) -> Iterator[None]:
    """Modules in evaluation mode, except those that stay as they are; put back as they were when the last thread lets go."""
    mine: list[_Hold] = []
    try:
        with _HOLDS_LOCK:
            for module, stay in zip(modules, stays):
                hold = _HOLDS.get(id(module))
                if hold is None:
                    hold = _HOLDS[id(module)] = _Hold(module, stay)
                elif hold.training and hold.stays != stay:
                    raise RuntimeError(
                        "The model is in use by another call, which keeps its dropout "
                        f"{'on' if hold.stays else 'off'} where this one keeps it {'on' if stay else 'off'} (n_samples): make these "
                        "calls one after the other, or give each thread a copy of the model."
                    )
                else:
                    hold.n += 1
                mine.append(hold)
        yield
    finally:
        with _HOLDS_LOCK:
            for hold in mine:
                hold.n -= 1
                if not hold.n:
                    del _HOLDS[id(hold.module)]
                    hold.put_back()


@contextmanager
def _random_states_kept() -> Iterator[None]:
    with RANDOM_STATES:
        before = _random_states()
    try:
        yield
    finally:
        with RANDOM_STATES:
            # Only what has moved: another thread that draws numbers of its own is not set back without need.
            python_state, numpy_state, *torch_states = _random_states()
            if python_state != before[0]:
                random.setstate(before[0])
            if not all(np.array_equal(now, then) for now, then in zip(numpy_state, before[1])):
                np.random.set_state(before[1])
            for device, (now, then) in enumerate(zip(torch_states, before[2:]), start=-1):
                if not torch.equal(now, then):
                    torch.set_rng_state(then) if device < 0 else torch.cuda.set_rng_state(then, device)


def _random_states() -> tuple[Any, ...]:
    """Of random, numpy, torch on the CPU, and torch on each CUDA device in use."""
    devices = range(torch.cuda.device_count()) if _uses_cuda() else ()
    cuda = (torch.cuda.get_rng_state(device) for device in devices)
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), *cuda


@contextmanager
def _recording() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _caller_level() -> int:
    """How many frames up the user's own code is, for a warning raised by the caller of this function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _in_training(module: nn.Module) -> bool:
    # TorchScript that was frozen has no mode any more.
    return bool(getattr(module, "training", False))


def _behaves_differently_in_training(module: nn.Module) -> bool:
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return is_norm or is_dropout
