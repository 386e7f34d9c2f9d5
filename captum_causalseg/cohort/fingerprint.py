"""What a study was asked, in words and digests, so that two calls can be told apart."""

import copyreg
import enum
import functools
import hashlib
import inspect
import json
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg.cohort.code import imported, nested, package_of, read_names, resolved, source_of
from captum_causalseg.cohort.digests import DIGITS, add, digest_of_json, digest_of_source
from captum_causalseg.cohort.models import attributes_of, digest_of_model, unwrapped
from captum_causalseg.donors.any_source import AnySource
from captum_causalseg.donors.images import BankImages, ChosenImages, DatasetImages, as_tensor
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.target.scorer import as_scorer

__all__ = ["described", "differences", "digest", "model_of", "modules_of", "of_call"]

# Longer ones are described by their digest.
_LONGEST = 50
_DEEPEST = 200
_SLOTS = (MemberDescriptorType, GetSetDescriptorType)


def described(value: Any, name: str = "value") -> Any:
    """A value as JSON that is the same in every process, and different for values that hold something else.

    Numbers and words are described as they are; arrays, models and long lists by digests; functions by their code, their defaults, the
    values that they close over and the global names that they read, functions of the user's own modules among these alike; what
    belongs to installed packages by its name and the package's version; other objects by their class and their state, as ``pickle``
    sees it (``__getstate__``).

    Args:
        value: anything.
        name: what it is called in an error.

    Raises:
        TypeError: it holds something that has no contents to be compared: a lock, an open file, a generator.
    """
    return _Describer(name).of(value)


def digest(*values: Any) -> str:
    """Hexadecimal digits that stand for the contents of tensors, models, and whatever else can be described."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, (Tensor, np.ndarray)):
            add(found, value)
        else:
            found.update(digest_of_json(described(value)).encode())
    return found.hexdigest()[:DIGITS]


def modules_of(value: Any) -> list[nn.Module]:
    """The models that a value holds, a function's closure and global names and a module's plain attributes included.

    Of modules within others only the outermost.
    """
    looking = _Describer("value", lenient=True, only_modules=True)
    looking.of(value)
    found = {id(unwrapped(module)): module for module in looking.modules}
    inner = {id(part) for module in found.values() for part in unwrapped(module).modules() if part is not unwrapped(module)}
    return [module for number, module in found.items() if number not in inner]


def model_of(model: Any) -> str:
    """The digest of a model: its weights, buffers and architecture; of a function, those of the modules that it refers to."""
    found = [digest_of_model(module, _in_words) for module in modules_of(model)]
    if len(found) == 1:
        return found[0]
    return digest_of_json(found or _Describer("model", lenient=True).of(model))


def of_call(target: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Of one case: what its image, model, region of interest, reference and score were."""
    found: dict[str, Any] = {"image": digest(*inputs)}
    arguments = as_scorer(target).constructor_arguments()
    if arguments is not None:
        return found | _Describer("target").target(arguments)
    return found | {"model": model_of(target), "target": described(target, "target")}


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


def _short(value: Any, longest: int = 120) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _in_words(value: Any) -> str:
    return digest_of_json(_Describer("model", lenient=True).of(value))


class _Describer:
    """Describes one value and all that it holds.

    Args:
        name: of the value, for errors.
        lenient: describe what has no contents by its type, instead of raising.
        only_modules: only look for models, do not read them.

    Attributes:
        modules: the models that were met, in order, if only these are looked for.
    """

    def __init__(self, name: str, lenient: bool = False, only_modules: bool = False) -> None:
        self.modules: list[nn.Module] = []
        self._only_modules = only_modules
        self._path = [name]
        self._above: list[int] = []
        self._lenient = lenient
        # Functions and classes are described where they are met first; they are held, so that no other gets their place in memory.
        self._met: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """The description."""
        simple = _simple(value)
        if simple is not None or value is None:
            return simple
        if self._only_modules and isinstance(value, (Tensor, np.ndarray, np.generic, BankImages)):
            return "values"
        if isinstance(value, Tensor):
            return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} {digest(value)}"
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            if array.dtype.hasobject:
                return {"array": list(array.shape), "of": self._step("array", array.tolist())}
            return f"array {array.shape} {array.dtype} {digest(array)}"
        if isinstance(value, (weakref.ref, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
            return f"a {type(value).__name__}"  # of what others hold
        if id(value) in self._above:
            return f"what holds it, {len(self._above) - self._above.index(id(value))} up"
        if len(self._above) > _DEEPEST:
            return self._unknown(value, f"lies more than {_DEEPEST} deep")
        self._above.append(id(value))
        try:
            return self._held(value)
        finally:
            self._above.pop()

    def target(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What its constructor was given; the model by its digest alone."""
        model = arguments["model"]
        found: dict[str, Any] = {"model": model_of(model)}
        if not isinstance(model, nn.Module):
            found["forward"] = digest_of_json(self._step("model", model))
        return found | {name: self._step(name, value) for name, value in arguments.items() if name != "model"}

    def _held(self, value: Any) -> Any:
        if isinstance(value, SegmentationTarget):
            return self._step("model", value.model) if self._only_modules else self.target(value.constructor_arguments())
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, ModuleType):
            return self._python_module(value.__name__)
        if isinstance(value, type):
            return self._named(value, value.__module__) or self._once(value, self._class)
        if isinstance(value, enum.Enum):
            return {"is a": self.of(type(value)), "name": value.name, "value": self._step("value", value.value)}
        if isinstance(value, (dict, MappingProxyType)):
            return self._mapping(value)
        if isinstance(value, (set, frozenset)):
            members = sorted((self._step("{}", one) for one in value), key=_in_order)
            return {"set": _shortened(members)}
        if isinstance(value, (list, tuple)):
            return _shortened([self._step(f"[{number}]", one) for number, one in enumerate(value)])
        if isinstance(value, functools.partial):
            given = {"arguments": self._step("args", value.args), "keywords": self._step("keywords", value.keywords)}
            return {"function": self._step("func", value.func), **given}
        if isinstance(value, MethodType):
            return {"function": self._step("__func__", value.__func__), "object": self._step("__self__", value.__self__)}
        if isinstance(value, FunctionType):
            return self._once(value, self._function)
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            if owner is None or isinstance(owner, (ModuleType, type)):
                return f"{value.__module__ or getattr(owner, '__name__', '')}.{value.__qualname__}"
            return {"function": value.__qualname__, "object": self._step("__self__", owner)}
        if isinstance(value, functools._lru_cache_wrapper):
            return self._step("__wrapped__", value.__wrapped__)
        if isinstance(value, CodeType):
            return self._code(value)
        if isinstance(value, BankImages):
            return self._images(value.given)
        if isinstance(value, AnySource) and not self._only_modules:
            made_of = {name: self._step(name, one) for name, one in value.describe().items()}
            return {"is a": self._step("class", type(value))} | made_of
        return self._object(value)

    def _step(self, name: str, value: Any) -> Any:
        self._path.append(name)
        try:
            return self.of(value)
        finally:
            self._path.pop()

    def _named(self, value: Any, module: str) -> str | None:
        """What belongs to an installed package, in words."""
        package = package_of(module)
        name = f"{value.__module__}.{value.__qualname__}"
        return package and (name if name.startswith(f"{package}.") else f"{name} ({package})")

    def _once(self, value: Any, describe: Callable[[Any], Any]) -> Any:
        # Not by its module: what a script calls __main__ has a name of its own where it is imported.
        if id(value) in self._met:
            return f"{value.__qualname__} (above)"
        self._met[id(value)] = value
        return describe(value)

    def _unknown(self, value: Any, reason: str) -> Any:
        if self._lenient:
            return f"a {type(value).__module__}.{type(value).__qualname__}"
        where = "".join(part if part.startswith(("[", "{")) else f".{part}" for part in self._path[1:])
        raise TypeError(
            f"{self._path[0]}: expected what can be compared with another call, got a {type(value).__qualname__} in "
            f"{self._path[0]}{where}, which {reason}; make it inside of the function that uses it, or leave it out of its "
            "owner's state (__getstate__)"
        )

    @contextmanager
    def _leniently(self) -> Iterator[None]:
        before, self._lenient = self._lenient, True
        try:
            yield
        finally:
            self._lenient = before

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        if all(type(key) is str for key in value):
            found = {key: self._step(key, one) for key, one in value.items()}
            return found if len(found) <= _LONGEST else f"{len(found)} entries {digest_of_json(found)}"
        entries = [[self._step("{}", key), self._step(f"[{key!r}]", one)] for key, one in value.items()]
        return {"entries": _shortened(sorted(entries, key=_in_order))}

    def _module(self, module: nn.Module) -> str:
        if self._only_modules:
            if id(module) not in self._met:
                self._met[id(module)] = module
                self.modules.append(module)
                self._step("attributes", attributes_of(module))
            return "module"
        with self._leniently():
            attributes = self._step("attributes", attributes_of(module))
        return f"{type(unwrapped(module)).__qualname__} {model_of(module)}, attributes {digest_of_json(attributes)}"

    def _python_module(self, name: str) -> Any:
        package = package_of(name)
        if package is not None:
            return package
        file = source_of(name)
        return {"module": name, "source": None if file is None else digest_of_source(file)}

    def _function(self, function: FunctionType) -> Any:
        # Not its own word for it, which a decorator takes from the function within.
        named = self._named(function, str(function.__globals__.get("__name__")))
        found: dict[str, Any] = {"function": named or function.__qualname__}
        if named is None:
            found["code"] = self._code(function.__code__)
            reads = dict(resolved(function, chain) for chain in read_names(function))
            reads |= {f"import {module}": module for module in imported(function)}
            if reads:
                found["reads"] = {
                    key: self._python_module(key[7:]) if key.startswith("import ") else self._step(key, value)
                    for key, value in reads.items()
                }
            for part, given in (("defaults", function.__defaults__), ("keyword defaults", function.__kwdefaults__)):
                if given:
                    found[part] = self._step(part, given)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
        closure = {key: self._step(key, cell.cell_contents) for key, cell in cells.items() if _is_filled(cell)}
        if closure:
            found["closure"] = closure
        return found if len(found) > 1 else found["function"]

    def _code(self, code: CodeType) -> str:
        """Not the file nor the line numbers: moving a function changes nothing."""
        found = []
        for part in nested(code):
            constants = [self.of(one) for one in part.co_consts if not inspect.iscode(one)]
            found.append([part.co_code.hex(), list(part.co_names), constants])
        # Another Python compiles the same function to other code.
        return f"{digest_of_json(found)} (Python {sys.version_info.major}.{sys.version_info.minor})"

    def _class(self, one: type) -> Any:
        found: dict[str, Any] = {"class": one.__qualname__}
        if issubclass(one, enum.Enum):
            return found | {"members": {key: self._step(key, member.value) for key, member in one.__members__.items()}}
        bases = [self.of(base) for base in one.__bases__ if base is not object]
        if bases:
            found["derived from"] = bases
        with self._leniently():
            for key, member in sorted(vars(one).items()):
                functions = _functions_of(member)
                if functions:
                    found |= {f"{key}{part}": self._step(key, function) for part, function in functions.items()}
                # Of other special names Python makes what it likes.
                elif not (key.startswith("__") or key == "_abc_impl" or isinstance(member, _SLOTS)):
                    found[key] = self._step(key, member)
        return found

    def _object(self, value: Any) -> Any:
        """As ``pickle`` would take it apart."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:  # whatever a class of somebody else raises
            return self._unknown(value, f"has no contents to compare ({type(error).__name__}: {error})")
        if isinstance(parts, str):
            return f"{getattr(value, '__module__', None)}.{parts}"
        function, arguments, state, members, entries = (*parts, None, None, None)[:5]
        found: dict[str, Any] = {}
        if function in (copyreg.__newobj__, copyreg.__newobj_ex__):  # type: ignore[attr-defined]
            found["is a"], arguments = self._step("class", type(value)), arguments[1:]
        else:
            found["is a"] = self._step("class", function)
        if arguments:
            found["arguments"] = self._step("arguments", list(arguments))
        states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(one is None or isinstance(one, dict) for one in states):
            for held in states:
                found |= {str(key): self._step(str(key), one) for key, one in self._own(value, held or {}).items()}
        elif state is not None:
            found["state"] = self._step("state", state)
        for part, there in (("members", members), ("entries", entries)):
            if there is not None and (kept := list(there)):
                found[part] = self._step(part, kept)
        return found

    def _own(self, value: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state without what is found out on the way."""
        compose = getattr(sys.modules.get("monai.transforms.compose"), "Compose", None)
        if compose is not None and type(value) is compose:
            # It only hands its random numbers on to the transforms that are random, which have their own.
            return {key: one for key, one in state.items() if key != "R"}
        return dict(state)

    def _images(self, images: Any) -> Any:
        """Donor images: those in memory by their contents, others by those of their files, if they say which (``files``).

        Of a data set that does not, its length, its first and its last image, and what it was made of (``data``, ``transform``).
        """
        if isinstance(images, (Tensor, np.ndarray)):
            return self.of(images)
        if isinstance(images, (list, tuple)):
            return f"{len(images)} images {digest(*map(as_tensor, images))}"
        if isinstance(images, ChosenImages):
            return {"of": self._images(images.images), "chosen": digest(np.asarray(images.indices))}
        dataset = images.dataset if isinstance(images, DatasetImages) else images
        found: dict[str, Any] = {"is a": self._step("class", type(dataset)), "length": len(images)}
        if isinstance(images, DatasetImages):
            found |= {"key": self._step("key", images.key), "chosen": digest(images.indices)}
        files = getattr(dataset, "files", None)
        if isinstance(files, (list, tuple)) and all(isinstance(file, (str, PurePath)) for file in files):
            found["files"] = digest_of_json([[PurePath(file).name, _contents(Path(file))] for file in files])
        else:
            found["first and last"] = digest(as_tensor(images[0]), as_tensor(images[len(images) - 1]))
        with self._leniently():
            made_of = {name: getattr(dataset, name) for name in ("data", "transform") if hasattr(dataset, name)}
            return found | {name: self._step(name, value) for name, value in made_of.items()}


def _contents(file: Path) -> Any:
    """Of a file, or of all in a folder."""
    if not file.is_dir():
        return digest_of_source(file)
    return [[one.name, _contents(one)] for one in sorted(file.iterdir())]


def _simple(value: Any) -> Any:
    """Numbers, words, and what is as good as a word; ``None`` for all else."""
    if isinstance(value, enum.Enum):
        return None
    if isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, np.generic) and value.dtype.kind in "biufSU" and value.dtype.itemsize <= 8:
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        # NaN is not equal to itself.
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, complex):
        return {"complex": repr(complex(value))}
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:DIGITS]}"
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, PurePath)):
        return str(value)
    return "..." if value is Ellipsis else None


def _in_order(description: Any) -> str:
    return json.dumps(description, sort_keys=True)


def _shortened(members: list[Any]) -> Any:
    return members if len(members) <= _LONGEST else f"{len(members)} values {digest_of_json(members)}"


def _functions_of(member: Any) -> dict[str, Any]:
    """The functions that stand behind what a class holds under a name, by what is added to that name."""
    if isinstance(member, (staticmethod, classmethod)):
        return {"": member.__func__}
    if isinstance(member, property):
        parts = {" (get)": member.fget, " (set)": member.fset}
        return {part: function for part, function in parts.items() if function is not None}
    if isinstance(member, functools.cached_property):
        return {"": member.func}
    return {"": member} if isinstance(member, FunctionType) else {}


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
