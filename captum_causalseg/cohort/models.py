"""Which model it is: its weights, buffers and architecture in one digest."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from captum_causalseg.cohort.digests import DIGITS, add

__all__ = ["attributes_of", "digest_of_model", "unwrapped"]

# What every module has; hooks come under their functions' names.
_OF_EVERY = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside of what only spreads or compiles it."""
    while True:
        spread = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = getattr(module, "module" if spread else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def digest_of_model(module: nn.Module, described: Callable[[Any], str]) -> str:
    """Hexadecimal digits that stand for a model's parameters, buffers (also those that are not saved) and architecture.

    Architecture is every part's class, with its code where it is the user's own, and what it prints of itself; of TorchScript, its program.

    Args:
        module: the model.
        described: classes and the like in words.
    """
    found = hashlib.sha256()
    for name, part in unwrapped(module).named_modules():
        found.update(f"{name}: {_kind(part, described)}\n".encode())
        for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            found.update(key.encode())
            add(found, tensor)
        if isinstance(part, torch.jit.ScriptModule):
            for key, tensor in _constants(part):
                found.update(key.encode())
                add(found, tensor)
        elif type(part).get_extra_state is not nn.Module.get_extra_state:
            found.update(described(part.get_extra_state()).encode())
    return found.hexdigest()[:DIGITS]


def attributes_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What a model's parts hold besides tensors of theirs that are registered: numbers, words, flags, lists of modules."""
    found = {}
    for name, part in unwrapped(module).named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        kept = getattr(type(part), "__getstate__", None)
        own = kept is not None and kept is not getattr(object, "__getstate__", None)
        state = part.__getstate__() if own else vars(part)
        held = {key: value for key, value in dict(state).items() if key not in _OF_EVERY}
        hooks = [
            getattr(hook, "__qualname__", type(hook).__qualname__) for kind in _HOOKS for hook in vars(part)[kind].values()
        ]
        found[name] = held | ({"hooks": hooks} if hooks else {})
    return found


def _kind(part: nn.Module, described: Callable[[Any], str]) -> str:
    if isinstance(part, torch.jit.ScriptModule):
        return f"{part.original_name} {_program(part)}"
    return f"{described(type(part))} {re.sub(r' at 0x[0-9a-fA-F]+', '', part.extra_repr())}"


def _program(part: torch.jit.ScriptModule) -> str:
    try:
        return str(part.code)
    except (RuntimeError, AttributeError):  # a container that is not called
        return ""


def _constants(part: torch.jit.ScriptModule) -> list[tuple[str, torch.Tensor]]:
    """Where a frozen program keeps its weights."""
    try:
        kept = part.code_with_constants[1].const_mapping
    except (RuntimeError, AttributeError):
        return []
    return [(name, value) for name, value in sorted(kept.items()) if isinstance(value, torch.Tensor)]
