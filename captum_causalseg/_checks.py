"""What arguments have to be, said once: every public callable declares it here, and is refused in the same words.

A :class:`Check` is called with an argument's name and value; it returns nothing, or raises ``name: expected ..., got ...``: an
:class:`ArgumentTypeError` where the value is of another kind, a ValueError where it is of the right kind and not good. Checks are
combined by ``|``::

    @checked(n_draws=integer(1), block_size=NONE | integer(1) | sequence(integer(1)))
    def attribute(self, inputs, n_draws=12, block_size=None): ...

What depends on several arguments at once is checked in the function, by the same checks (``integer(0, len(cases) - 1)("case", case)``).
"""

import difflib
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "ANY",
    "BOOLEAN",
    "FILE",
    "FOLDER",
    "FRACTION",
    "FUNCTION",
    "NEW_FILE",
    "NONE",
    "PATH",
    "SEED",
    "TEXT",
    "ArgumentTypeError",
    "Check",
    "array_of",
    "check_all",
    "checked",
    "for_each_axis",
    "instance",
    "integer",
    "key_of",
    "listed",
    "mapping",
    "misfit",
    "nearest",
    "no_module",
    "number",
    "one_of",
    "per_axis",
    "refusal",
    "renamed",
    "sequence",
    "shown",
    "shown_path",
    "tensor_of",
    "unexpected",
]

P = ParamSpec("P")
R = TypeVar("R")

_MOST_CHARACTERS = 80
_MOST_LISTED = 5


class ArgumentTypeError(TypeError, ValueError):
    """A value of a kind that an argument does not take.

    A TypeError by Python's rule; a ValueError as well, for whoever guards a call with that (scikit-learn does the same).
    """


# --- What is said ----------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as an error message shows it: in a few words, whatever its size."""
    if isinstance(value, Tensor):
        small = value.numel() <= 3 and not value.is_meta
        return repr(value) if small else f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, np.ndarray):
        return repr(value) if value.size <= 3 else f"an array of shape {value.shape} and {value.dtype}"
    if isinstance(value, (str, bytes)):
        return _cut(repr(value))
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        whole = repr(value) if _is_plain(value) else ""
        if whole and len(whole) <= _MOST_CHARACTERS:
            return whole
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, (numbers.Number, os.PathLike, slice, torch.dtype, np.generic)):
        return _cut(repr(value))
    return _cut(repr(value)) if isinstance(value, type) else type(value).__name__


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as an error message shows it: of a long one the end, which tells the file."""
    text = os.fspath(path)
    return repr(text if len(text) <= _MOST_CHARACTERS else f"...{text[3 - _MOST_CHARACTERS :]}")


def refusal(name: str, expected: str, got: Any) -> str:
    """``name: expected ..., got ...``; ``got`` is a value."""
    return f"{name}: expected {expected}, got {shown(got)}"


def listed(items: Iterable[Any], most: int = _MOST_LISTED) -> str:
    """The first few of many, and how many more there are."""
    texts = [item if isinstance(item, str) else shown(item) for item in items]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def nearest(name: str, names: Iterable[str], most: int = _MOST_LISTED) -> list[str]:
    """Those of ``names`` that ``name`` may have been meant for, the likeliest first; none if none is like it."""
    known = list(dict.fromkeys(names))
    lowered = {one.lower(): one for one in known}
    # Of dotted names, the last parts are what people remember.
    inside = [one for one in known if len(name) > 2 and name.lower() in one.lower()]
    alike = [lowered[one] for one in difflib.get_close_matches(name.lower(), lowered, n=most, cutoff=0.6)]
    return list(dict.fromkeys([*alike, *inside]))[:most]


def no_module(name: str, names: Iterable[str]) -> str:
    """What to say of a module's name (or pattern) that none has: those that come nearest, or a few of all."""
    names = list(names)
    alike = nearest(name.strip("*?"), names)
    return f"no module is named {shown(name)}; " + (f"did you mean {listed(alike)}?" if alike else f"there are {listed(names)}")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def _is_plain(value: Any) -> bool:
    """Whether a container's repr is short to make: few items, none of them an array."""
    if isinstance(value, dict):
        return len(value) <= 16 and all(_is_plain(one) for pair in value.items() for one in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) <= 16 and all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bytes, numbers.Number, slice, torch.dtype))


# --- Checks ----------------------------------------------------------------------------------------------------------


class Check:
    """What a value has to be.

    Args:
        expected: the kind of value, in words.
        fits: whether a value is of that kind; else an ArgumentTypeError.
        limits: what it has to hold besides, in words, and whether it does; else a ValueError.
        by_type: of a value of another kind, show the type and not the value.
    """

    def __init__(
        self,
        expected: str,
        fits: Callable[[Any], bool],
        *limits: tuple[str, Callable[[Any], bool]],
        by_type: bool = False,
        error: type[Exception] = TypeError,
    ) -> None:
        self.expected, self.fits, self.limits = expected, fits, limits
        self.by_type, self.error = by_type, error

    def __call__(self, name: str, value: Any) -> None:
        """Raise unless ``value`` is as described."""
        if not self.fits(value):
            raise ArgumentTypeError(self._refusal(name, self.expected, value, by_type=self.by_type))
        for expected, holds in self.limits:
            if not holds(value):
                raise ValueError(self._refusal(name, expected, value, by_type=False))

    def __or__(self, other: "Check") -> "Check":
        """Either of two."""
        return _Either(self, other)

    def _refusal(self, name: str, expected: str, value: Any, by_type: bool) -> str:
        return f"{name}: expected {expected}, got {type(value).__name__}" if by_type else refusal(name, expected, value)


class _Either(Check):
    """One of several kinds: the first that a value fits says whether it is good."""

    def __init__(self, *checks: Check) -> None:
        self._checks: tuple[Check, ...] = ()
        for one in checks:
            self._checks += one._checks if isinstance(one, _Either) else (one,)
        # None is said last.
        texts = [one.expected for one in sorted(self._checks, key=lambda one: one is NONE)]
        expected = ", ".join(texts[:-1]) + f" or {texts[-1]}"
        super().__init__(
            expected,
            lambda value: any(one.fits(value) for one in self._checks),
            by_type=any(one.by_type for one in self._checks),
        )

    def __call__(self, name: str, value: Any) -> None:
        for one in self._checks:
            if one.fits(value):
                one(name, value)
                return
        super().__call__(name, value)


class _KeyOf(Check):
    """A key of a table, as the table is when it is asked."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__("", lambda value: isinstance(value, str) and value in table)
        self._table = table

    def __call__(self, name: str, value: Any) -> None:
        one_of(*self._table)(name, value)


class _Sequence(Check):
    """A list or tuple, whose elements are checked as well."""

    def __init__(self, each: Check, least: int, expected: str | None, length: int | None) -> None:
        limits = [(expected or f"at least {least} of them", lambda value: len(value) >= least)] if least else []
        if length is not None:
            limits = [(expected or f"{length} of them", lambda value: len(value) == length)]
        super().__init__(expected or f"a sequence of which each is {each.expected}", _is_sequence, *limits)
        self._each = each

    def __call__(self, name: str, value: Any) -> None:
        super().__call__(name, value)
        for index, one in enumerate(value):
            self._each(f"{name}[{index}]", one)


class _Mapping(Check):
    def __init__(self, key: Check, each: Check, expected: str, least: int) -> None:
        limits = [(f"at least {least} of them", lambda value: len(value) >= least)] if least else []
        super().__init__(expected, lambda value: isinstance(value, Mapping), *limits)
        self._key, self._each = key, each

    def __call__(self, name: str, value: Any) -> None:
        super().__call__(name, value)
        for key, one in value.items():
            self._key(f"{name}: key", key)
            self._each(f"{name}[{shown(key)}]", one)


class _Array(Check):
    """A tensor (or an array), by its dtype, its axes and its values."""

    def __init__(
        self,
        holder: str,
        types: tuple[type, ...],
        kind: str | None,
        shape: str,
        axes: tuple[int, float],
        finite: bool,
        may_be_empty: bool,
    ) -> None:
        super().__init__(holder if kind is None else f"{holder} of {_KINDS[kind][0]}", lambda value: isinstance(value, types))
        self._kind, self._shape, self._axes, self._finite, self._may_be_empty = kind, shape, axes, finite, may_be_empty
        self.by_type = True

    def __call__(self, name: str, value: Any) -> None:
        super().__call__(name, value)
        if self._kind is not None and _letter(value) not in _KINDS[self._kind][1]:
            raise ArgumentTypeError(f"{name}: expected {_KINDS[self._kind][0]}, got {value.dtype}")
        least, most = self._axes
        if not least <= value.ndim <= most:
            raise ValueError(f"{name}: expected shape {self._shape}, got {tuple(value.shape)}")
        if not self._may_be_empty and 0 in value.shape:
            raise ValueError(f"{name}: expected shape {self._shape} without empty axes, got {tuple(value.shape)}")
        if self._finite and _letter(value) in "fc" and not bool(torch.as_tensor(value, device="cpu").isfinite().all()):
            raise ValueError(f"{name}: it holds NaN or infinite values")


_KINDS = {
    "float": ("floating-point numbers", "f"),
    "integer": ("integers", "iu"),
    "labels": ("integers", "iub"),
    "boolean": ("booleans", "b"),
    "real": ("real numbers", "fiub"),
}


def _letter(value: Any) -> str:
    """numpy's letter for the kind of a dtype."""
    if isinstance(value, np.ndarray):
        return str(value.dtype.kind)
    dtype = value.dtype
    return "b" if dtype == torch.bool else "c" if dtype.is_complex else "f" if dtype.is_floating_point else "i"


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def integer(least: int | None = None, most: int | None = None) -> Check:
    """An integer (no bool) within bounds."""
    limits: list[tuple[str, Callable[[Any], bool]]] = []
    if most is not None:
        limits.append((f"an integer from {least or 0} to {most}", lambda value: (least or 0) <= value <= most))
    elif least is not None:
        limits.append((f"at least {least}", lambda value: value >= least))
    return Check("an integer", _is_integer, *limits)


def number(least: float = -math.inf, most: float = math.inf, *, above: float | None = None) -> Check:
    """A finite real number (no bool) of at least ``least`` (or more than ``above``) and at most ``most``."""
    bounds = [f"more than {above:g}" if above is not None else f"at least {least:g}" if least > -math.inf else ""]
    bounds.append(f"at most {most:g}" if most < math.inf else "")
    said = " and ".join(filter(None, bounds))

    def holds(value: Any) -> bool:
        value = float(value)
        return math.isfinite(value) and least <= value <= most and (above is None or value > above)

    expected = "a positive number" if said == "more than 0" else "a finite number" + (f" of {said}" if said else "")
    return Check(expected, _is_number, (expected, holds))


def one_of(*choices: Any) -> Check:
    """One of a few words (or other constants)."""
    texts = [f'"{one}"' if isinstance(one, str) else repr(one) for one in choices]
    expected = (", ".join(texts[:-1]) + " or " if len(texts) > 1 else "") + texts[-1]

    def fits(value: Any) -> bool:
        return any(value is one or (type(value) is type(one) and bool(value == one)) for one in choices)

    return Check(expected, fits)


def key_of(table: Mapping[str, Any]) -> Check:
    """A name in a table that may grow: what is refused, and what the message lists, is what the table holds by then."""
    return _KeyOf(table)


def instance(*types: type, expected: str | None = None) -> Check:
    """An object of one of these classes."""
    names = [one.__name__ for one in types]
    words = expected or f"{'an' if names[0][0] in 'AEIOU' else 'a'} {' or '.join(names)}"
    return Check(words, lambda value: isinstance(value, types), by_type=True)


def sequence(each: Check, least: int = 0, *, expected: str | None = None, length: int | None = None) -> Check:
    """A list or tuple (no string) of at least so many elements, each as described."""
    return _Sequence(each=each, least=least, expected=expected, length=length)


def for_each_axis(each: Check) -> Check:
    """One value for all spatial axes, or one per axis; how many axes there are, :func:`per_axis` sees to."""
    return each | sequence(each, 1, expected="one per spatial axis")


def mapping(key: Check, each: Check, *, expected: str = "a mapping", least: int = 0) -> Check:
    """A mapping, its keys and values as described."""
    return _Mapping(key=key, each=each, expected=expected, least=least)


def tensor_of(
    kind: str | None = None,
    shape: str = "",
    axes: tuple[int, float] = (0, math.inf),
    *,
    finite: bool = False,
    may_be_empty: bool = True,
) -> Check:
    """A tensor of ``axes[0]`` to ``axes[1]`` axes.

    Args:
        kind: of its values: ``"float"``, ``"integer"``, ``"boolean"``, ``"labels"`` (integers or booleans), ``"real"``; None for any.
        shape: in words, for messages.
        axes: least and largest number.
        finite: refuse NaN and infinite values.
        may_be_empty: whether an axis may have length 0.
    """
    return _Array(
        holder="a tensor", types=(Tensor,), kind=kind, shape=shape, axes=axes, finite=finite, may_be_empty=may_be_empty
    )


def array_of(
    kind: str | None = None,
    shape: str = "",
    axes: tuple[int, float] = (0, math.inf),
    *,
    finite: bool = False,
    may_be_empty: bool = True,
) -> Check:
    """As :func:`tensor_of`, or a numpy array of the same kind."""
    return _Array(
        holder="a tensor or an array",
        types=(Tensor, np.ndarray),
        kind=kind,
        shape=shape,
        axes=axes,
        finite=finite,
        may_be_empty=may_be_empty,
    )


NONE = Check("None", lambda value: value is None)
ANY = Check("anything", lambda value: True)
BOOLEAN = Check("True or False", lambda value: isinstance(value, bool))
TEXT = Check("a string", lambda value: isinstance(value, str))
FUNCTION = Check("a callable", callable, by_type=True)
PATH = Check("a path", lambda value: isinstance(value, (str, os.PathLike)), ("a path", lambda value: str(value) != ""))
FRACTION = Check("a number between 0 and 1", _is_number, ("a number between 0 and 1", lambda value: 0 < value < 1))
SEED = integer(0)


class _File(Check):
    """A path that is there; that it is not is said as Python says it."""

    def __call__(self, name: str, value: Any) -> None:
        PATH(name, value)
        if not Path(value).expanduser().exists():
            raise FileNotFoundError(f"{name}: there is no {shown(os.fspath(value))}")


class _NewFile(Check):
    """A path to write to, in a folder that is there."""

    def __call__(self, name: str, value: Any) -> None:
        PATH(name, value)
        folder = Path(value).expanduser().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {shown_path(folder)}")


class _Folder(Check):
    """A folder that is there."""

    def __call__(self, name: str, value: Any) -> None:
        PATH(name, value)
        if not Path(value).expanduser().is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {shown_path(value)}")


FILE = _File(PATH.expected, PATH.fits)
FOLDER = _Folder(PATH.expected, PATH.fits)
NEW_FILE = _NewFile(PATH.expected, PATH.fits)


def per_axis(name: str, value: Any, axes: int, each: Check) -> tuple[Any, ...]:
    """One value for all axes, or one for each: a tuple of ``axes`` checked values."""
    expected = f"one {each.expected.partition(' ')[2]} or {axes} of them (one per spatial axis)"
    is_several = _is_sequence(value) or (isinstance(value, np.ndarray) and value.ndim == 1)
    values = tuple(value) if is_several else (value,) * axes
    if not all(map(each.fits, values)):
        raise ArgumentTypeError(refusal(name, expected, value))
    if len(values) != axes:
        raise ValueError(refusal(name, expected, value))
    for index, one in enumerate(values):
        each(f"{name}[{index}]" if is_several else name, one)
    return values


# --- Callables -------------------------------------------------------------------------------------------------------

# What Captum's methods (and ours) call a thing that another method calls otherwise, and what has to be known about it.
_ELSEWHERE: dict[str, tuple[tuple[str, ...], str]] = {
    "sliding_window_shapes": (("block_size",), "the edge of the blocks, per spatial axis and without channels"),
    "strides": (("block_size",), "blocks lie side by side; feature_mask takes any other units"),
    "n_samples": (("n_draws", "n_masks", "n_steps"), "donors per unit"),
    "nt_samples": (("n_draws",), "donors per unit"),
    "n_steps": (("n_draws",), "donors per unit; GradientTreatmentEffect has n_steps"),
    "n_perturb_samples": (("n_draws",), "donors per unit"),
    "internal_batch_size": (("perturbations_per_eval",), "interventions per forward pass"),
    "batch_size": (("perturbations_per_eval",), "interventions per forward pass"),
    "nt_samples_batch_size": (("perturbations_per_eval",), "interventions per forward pass"),
    "n_samples_batch_size": (("perturbations_per_eval",), "interventions per forward pass"),
    "stdevs": (("baselines", "layer_baselines"), "units are replaced by donors, no noise is added"),
    "baseline_dist": (("baselines", "layer_baselines"), "the donors"),
    "baselines": (("layer_baselines",), "donors over the layer's activation, or images to record them on"),
    "layer_baselines": (("baselines",), "the donors"),
    "feature_mask": (("layer_mask",), "units over the layer's activation"),
    "layer_mask": (("feature_mask",), "units over the inputs"),
    "return_convergence_delta": (("return_statistics",), "standard errors, intervals and p-values"),
    "attribute_to_neuron_input": (("attribute_to_layer_input",), ""),
    "random_seed": (("seed",), ""),
    "show_progress_bar": (("show_progress",), ""),
    "layer": (
        (),
        "the layer is an argument of the constructor of LayerAverageTreatmentEffect and LayerGradientTreatmentEffect",
    ),
    "layers": (("layer",), ""),
    "forward_fn": (("forward_func",), ""),
    "model": (("forward_func", "target"), ""),
}


def checked(*tables: Mapping[str, Check], **checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check a callable's arguments, in the order of its signature, before it is run.

    A keyword that it does not have is refused with the one that comes nearest. The signature stays as it is.

    Args:
        tables: checks that several callables share; of each, those that this one has arguments for.
        checks: its own.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        parameters = signature.parameters
        if missing := set(checks) - set(parameters):
            raise TypeError(f"checks: {function.__qualname__} has no argument {sorted(missing)}")
        every = {name: check for table in tables for name, check in table.items() if name in parameters} | checks
        is_open = any(one.kind is one.VAR_KEYWORD for one in parameters.values())

        @functools.wraps(function)
        def checking(*args: P.args, **kwargs: P.kwargs) -> R:
            if not is_open:
                for name in kwargs:
                    if name not in parameters:
                        raise TypeError(unexpected(name, function.__qualname__, list(parameters)))
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # Python says what is missing
            for name, value in given.items():
                if name in every:
                    every[name](name, value)
            return function(*args, **kwargs)

        return checking

    return decorate


def check_all(given: Mapping[str, Any], **checks: Check) -> None:
    """Check values by their names; for what is built in another way than by a call, a dataclass's fields say."""
    for name, check in checks.items():
        check(name, given[name])


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """What the block refuses under one name, the caller gave under another: ``renamed(target="output")``."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError, ArgumentTypeError):
            raise
        said = str(error)
        for inner, outer in names.items():
            if said.startswith((f"{inner}:", f"{inner}[")):
                raise type(error)(outer + said.removeprefix(inner)) from error.__cause__
        raise


def misfit(function: Callable[..., Any], count: int) -> str | None:
    """Why a function, or a module's ``forward``, cannot take so many positional arguments; None if it can, or if nobody can tell."""
    if isinstance(function, nn.Module):
        if function._forward_pre_hooks:
            return None  # which may change them
        function = function.forward
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        return str(error)
    return None


def unexpected(name: str, whose: str, parameters: Sequence[str]) -> str:
    """What to say of a keyword that a callable does not have: the one of its own that comes nearest."""
    takes = [one for one in parameters if one not in ("self", "cls")]
    where = whose.removesuffix(".__init__")
    said = f"{name}: {where if ' ' in where else where + '()'} got an unexpected keyword argument {name!r}"
    ours, about = _ELSEWHERE.get(name, ((), ""))
    for one in ours:
        if one in takes:
            return f"{said}; here it is {one}" + (f" ({about})" if about else "")
    if name in _ELSEWHERE and not ours:
        return f"{said}; {about}"
    alike = nearest(name, takes, most=1)
    if alike:
        return f"{said}; did you mean {alike[0]}?"
    return f"{said}; it takes {', '.join(takes) or 'none'}"
