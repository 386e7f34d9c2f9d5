"""What a study was asked, in words and digests, so that two calls can be told apart."""

import dataclasses
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._donor_images import ChosenImages, FolderImages, as_tensor
from captum_causalseg.activations import ActivationBank
from captum_causalseg.donors import DonorSource, PatchBank
from captum_causalseg.target import SegmentationTarget

__all__ = ["described", "differences", "digest", "of_call"]

_DIGITS = 16
# How deep objects of other people's classes are looked into.
_DEEPEST = 4


def described(value: Any) -> Any:
    """A value as JSON: numbers and words as they are, arrays and images by their shape and digest, functions by name and code.

    Two values that differ in what they hold are described differently; the same value is described alike in every process.
    """
    return _described(value, 0, set())


def digest(*values: Any) -> str:
    """Hexadecimal digits that stand for the contents of tensors, modules, and whatever else can be described."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, nn.Module):
            found.update(type(value).__qualname__.encode())
            for name, tensor in value.state_dict().items():
                found.update(name.encode())
                _update(found, tensor)
        elif isinstance(value, (Tensor, np.ndarray)):
            _update(found, value)
        else:
            found.update(repr(described(value)).encode())
    return found.hexdigest()[:_DIGITS]


def of_call(target: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Of one case: what its image, model, region of interest, reference and score were."""
    found: dict[str, Any] = {"image": digest(*inputs)}
    if isinstance(target, SegmentationTarget):
        return found | _target(target)
    return found | {"model": digest(target) if isinstance(target, nn.Module) else described(target)}


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """One line for everything that changed from one description to another."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in sorted({*before, *now}, key=str):
            inner = f"{name}.{key}" if name else str(key)
            if key not in before:
                lines.append(f"{inner}: was not given, now {_short(now[key])}")
            elif key not in now:
                lines.append(f"{inner}: was {_short(before[key])}, now not given")
            else:
                lines += differences(before[key], now[key], inner)
        return lines
    return [] if before == now else [f"{name}: was {_short(before)}, now {_short(now)}"]


def _target(target: SegmentationTarget) -> dict[str, Any]:
    found = {"model": digest(target.model) if isinstance(target.model, nn.Module) else described(target.model)}
    for name in ("roi", "reference"):
        mask = getattr(target, name)
        found[name] = "argument" if mask is None and getattr(target, f"_{name}_source") == "argument" else described(mask)
    for name in ("metric", "activation", "threshold", "empty_score", "output", "n_samples", "seed"):
        found[name] = described(getattr(target, name))
    return found


def _short(value: Any, longest: int = 120) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _described(value: Any, depth: int, above: set[int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} {digest(value)}"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {value.dtype} {digest(value)}"
    if isinstance(value, SegmentationTarget):
        return _target(value)
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} {digest(value)}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if id(value) in above:
        return "itself"
    above = above | {id(value)}

    def inner(one: Any) -> Any:
        return _described(one, depth + 1, above)

    if isinstance(value, Mapping):
        return {str(key): inner(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(str(inner(one)) for one in value)
    if isinstance(value, PatchBank):
        return {"type": inner(type(value)), "placement": value.placement, "images": _images(value._images._images, inner)}
    if isinstance(value, ActivationBank):
        images = [_images(one, inner) for one in value._images]
        return {"type": inner(type(value)), "reduction": value.reduction, "images": images}
    if isinstance(value, Sequence):
        return [inner(one) for one in value]
    if isinstance(value, functools.partial):
        return {"function": inner(value.func), "arguments": inner(value.args), "keywords": inner(value.keywords)}
    if inspect.ismethod(value):
        return {"function": inner(value.__func__), "object": inner(value.__self__)}
    if inspect.isfunction(value):
        return _function(value, inner)
    if dataclasses.is_dataclass(value) or isinstance(value, DonorSource) or depth < _DEEPEST:
        held = getattr(value, "__dict__", None)
        if held:
            # What begins with an underscore is mostly a cache, but for donors it is where the images are.
            private = isinstance(value, DonorSource)
            public = {k: v for k, v in held.items() if private or not k.startswith("_")}
            return {"type": inner(type(value)), **{k: inner(v) for k, v in sorted(public.items())}}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _images(images: Any, inner: Callable[[Any], Any]) -> Any:
    """Donor images: all of those in memory; of a data set that is read image by image, its length and its first and last."""
    if isinstance(images, (Tensor, np.ndarray)):
        return inner(images)
    if isinstance(images, (list, tuple)):
        return f"{len(images)} images {digest(*images)}"
    if isinstance(images, ChosenImages):
        return {"of": _images(images._images, inner), "chosen": digest(np.asarray(images._indices))}
    if isinstance(images, FolderImages):
        files = [(file.name, file.stat().st_size) for file in images._files]
        return {"files": f"{len(files)} {digest(files)}", "transform": inner(images._transform)}
    return {
        "type": inner(type(images)),
        "length": len(images),
        "first and last": digest(as_tensor(images[0]), as_tensor(images[len(images) - 1])),
    }


def _function(function: Any, inner: Any) -> Any:
    """A function by its name, its code, and the values that it closes over."""
    code = hashlib.sha256()
    _update_code(code, function.__code__)
    found: dict[str, Any] = {"function": f"{function.__module__}.{function.__qualname__}", "code": code.hexdigest()[:_DIGITS]}
    # What is written to between calls (caches, counters) does not say what is asked.
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    cells = [one for one in cells if not isinstance(one, (list, dict, set))]
    if cells:
        found["closure"] = [inner(one) for one in cells]
    if function.__defaults__:
        found["defaults"] = inner(function.__defaults__)
    return found


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _update_code(found: Any, code: Any) -> None:
    """Not the file nor the line numbers: moving a function changes nothing."""
    found.update(code.co_code)
    found.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if inspect.iscode(constant):
            _update_code(found, constant)
        else:
            found.update(repr(constant).encode())


def _update(found: Any, values: Any) -> None:
    if isinstance(values, Tensor):
        tensor = values.detach().as_subclass(Tensor).cpu().contiguous()
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        # Any type as bytes: numpy has no bfloat16.
        array = tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    elif isinstance(values, np.ndarray):
        found.update(f"{values.shape} {values.dtype}".encode())
        array = np.ascontiguousarray(values)
    else:  # what a module keeps in its state besides tensors
        array = np.frombuffer(repr(values).encode(), np.uint8)
    # As bytes, without a copy; an empty array cannot be cast.
    found.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
