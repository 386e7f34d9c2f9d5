"""What functions of PyTorch do with the axes of their tensors, function by function.

Functions that keep an axis (addition, ReLU, permutation) hand it on, functions that work on channels (convolution, normalization, a linear
layer) say so, and reshaping says what an axis is made of.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_causalseg.interventions.axes import Axes, Axis, space_of

__all__ = ["RULES", "Call", "tensors_in"]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in an argument, those in containers included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


class Call:
    """A function and what it was given."""

    def __init__(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], axes: dict[int, Axes]
    ) -> None:
        self.func, self.name, self.args, self.kwargs = func, name, args, kwargs
        self._axes = axes

    def given(self, place: int, *names: str) -> Any:
        """The argument at this place or of one of these names; ``None`` if there is none."""
        if place < len(self.args):
            return self.args[place]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def axes(self, tensor: Any) -> Axes:
        """Of one of its tensors; none if it is no tensor."""
        return self._axes.get(id(tensor), ())

    @property
    def tensor(self) -> Any:
        """The first argument."""
        return self.given(0, "input", "self", "query")

    @property
    def first(self) -> Axes:
        """Its axes."""
        return self.axes(self.tensor)

    @property
    def all(self) -> list[Axes]:
        """Of all tensors, in the order of the arguments."""
        return [self.axes(x) for x in tensors_in((self.args, self.kwargs))]

    def dims(self, place: int, *names: str) -> list[int] | None:
        """An argument of one or several axes of the first tensor; ``None`` if it is something else."""
        given = self.given(place, *names)
        given = [given] if isinstance(given, int) else given
        if not isinstance(given, (tuple, list)) or not all(isinstance(dim, int) for dim in given) or not self.first:
            return None
        return [dim % len(self.first) for dim in given]


_Shapes = list[tuple[int, ...]]


def _fresh(shape: Sequence[int]) -> Axes:
    return tuple(map(Axis, shape))


def _same(call: Call, shapes: _Shapes) -> list[Axes]:
    return [call.first] * len(shapes)


def _elementwise(call: Call, shapes: _Shapes) -> list[Axes]:
    """Axes that are broadcast have no say."""
    made = []
    for shape in shapes:
        axes = []
        for place in range(1, len(shape) + 1):
            length = shape[-place]
            here = [given[-place] for given in call.all if len(given) >= place and given[-place].length == length]
            if length > 1:
                for other in here[1:]:
                    here[0].link(other)
            axes.append(here[0] if here else Axis(length))
        made.append(tuple(axes[::-1]))
    return made


def _reordered(call: Call, shapes: _Shapes) -> list[Axes]:
    """A small tensor whose axes all differ tells where they go."""
    lengths = range(2, 2 + len(call.first))
    args = tuple(torch.empty(tuple(lengths), device="meta") if x is call.tensor else x for x in call.args)
    kwargs = {name: torch.empty(tuple(lengths), device="meta") if x is call.tensor else x for name, x in call.kwargs.items()}
    return [tuple(call.first[length - 2] if length > 1 else Axis(1) for length in call.func(*args, **kwargs).shape)]


def _reshaped(call: Call, shapes: _Shapes) -> list[Axes]:
    """Runs of axes with the same product belong together."""
    old, new = [axis.length for axis in call.first], list(shapes[0])
    axes: list[Axis] = []
    i = j = 0
    while i < len(old) and j < len(new):
        a, b = i + 1, j + 1
        while math.prod(old[i:a]) != math.prod(new[j:b]):
            if math.prod(old[i:a]) < math.prod(new[j:b]) and a < len(old):
                a += 1
            elif b < len(new):
                b += 1
            else:
                return []
        axes += _regrouped(call.first[i:a], new[j:b])
        i, j = a, b
    return [(*axes, *_fresh(new[j:]))]


def _regrouped(old: Axes, lengths: Sequence[int]) -> list[Axis]:
    if len(old) == 1 and len(lengths) == 1:
        return list(old)
    wide, there = [axis for axis in old if axis.length > 1], [length for length in lengths if length > 1]
    if len(wide) == 1 and len(there) == 1:
        made = [wide[0] if length > 1 else Axis(1) for length in lengths]
    else:
        made = list(_fresh(lengths))
    if len(old) == 1:
        old[0].parts.append(tuple(Axis(axis.length) if axis is old[0] else axis for axis in made))
    elif len(lengths) == 1:
        made[0].parts.append(tuple(Axis(axis.length) if axis is made[0] else axis for axis in old))
    return made


def _squeezed(call: Call, shapes: _Shapes) -> list[Axes]:
    dims = call.dims(1, "dim")
    gone = range(len(call.first)) if dims is None else dims
    return [tuple(axis for i, axis in enumerate(call.first) if i not in gone or axis.length > 1)]


def _expanded(call: Call, shapes: _Shapes) -> list[Axes]:
    missing = len(shapes[0]) - len(call.first)
    old = (*_fresh([1] * missing), *call.first)
    return [tuple(axis if axis.length == length else Axis(length) for axis, length in zip(old, shapes[0]))]


def _indexed(call: Call, shapes: _Shapes) -> list[Axes]:
    index = call.given(1)
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(item is None or item is Ellipsis or (isinstance(item, (int, slice)) and item is not True) for item in items):
        return []
    consuming = sum(item is not None and item is not Ellipsis for item in items)
    rest = [slice(None)] * (len(call.first) - consuming)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    axes: list[Axis] = []
    old = iter(call.first)
    for item in (*items[:at], *rest, *items[at + 1 :]):
        if item is None:
            axes.append(Axis(1))
            continue
        axis = next(old)
        if isinstance(item, slice):
            start, stop, step = item.indices(axis.length)
            axes.append(_part(axis, start, len(range(start, stop, step)), step=step))
    return [tuple(axes)]


def _part(axis: Axis, start: int, length: int, step: int = 1) -> Axis:
    if (start, length, step) == (0, axis.length, 1):
        return axis
    part = Axis(length)
    part.link(axis, start if step == 1 else None)
    return part


def _parted(call: Call, shapes: _Shapes) -> list[Axes]:
    """split, chunk"""
    dim = (call.dims(2, "dim") or [0])[0]
    starts = itertools.accumulate((shape[dim] for shape in shapes), initial=0)
    return [
        tuple(_part(axis, start, shape[dim]) if i == dim else axis for i, axis in enumerate(call.first))
        for start, shape in zip(starts, shapes)
    ]


def _narrowed(call: Call, shapes: _Shapes) -> list[Axes]:
    dim, start = (call.dims(1, "dim") or [0])[0], call.given(2, "start")
    if not isinstance(start, int):
        return []
    start %= max(1, call.first[dim].length)
    return [tuple(_part(axis, start, shapes[0][dim]) if i == dim else axis for i, axis in enumerate(call.first))]


def _picked(call: Call, shapes: _Shapes) -> list[Axes]:
    """select, unbind"""
    dim = (call.dims(1, "dim") or [0])[0]
    return [tuple(axis for i, axis in enumerate(call.first) if i != dim)] * len(shapes)


def _reduced(call: Call, shapes: _Shapes) -> list[Axes]:
    if len(shapes[0]) == len(call.first):
        return [tuple(old if old.length == n else Axis(n) for old, n in zip(call.first, shape)) for shape in shapes]
    dims = call.dims(1, "dim", "axis")
    return [] if dims is None else [tuple(axis for i, axis in enumerate(call.first) if i not in dims)] * len(shapes)


def _joined(call: Call, shapes: _Shapes) -> list[Axes]:
    """cat"""
    dim = call.given(1, "dim", "axis") or 0
    # Empty ones of one axis are allowed.
    given = [axes for axes in map(call.axes, tensors_in(call.given(0, "tensors"))) if len(axes) == len(shapes[0])]
    if not isinstance(dim, int) or not given:
        return []
    dim %= len(shapes[0])
    for others in given[1:]:
        for i, axis in enumerate(given[0]):
            if i != dim:
                axis.link(others[i])
    whole = Axis(shapes[0][dim])
    start = 0
    for axes in given:
        axes[dim].link(whole, start)
        start += axes[dim].length
    return [(*given[0][:dim], whole, *given[0][dim + 1 :])]


def _stacked(call: Call, shapes: _Shapes) -> list[Axes]:
    dim = call.given(1, "dim") or 0
    given = [call.axes(x) for x in tensors_in(call.given(0, "tensors"))]
    if not isinstance(dim, int) or not given:
        return []
    for others in given[1:]:
        for axis, other in zip(given[0], others):
            axis.link(other)
    dim %= len(shapes[0])
    return [(*given[0][:dim], Axis(len(given)), *given[0][dim:])]


def _padded(call: Call, shapes: _Shapes) -> list[Axes]:
    pad = call.given(1, "pad")
    if not isinstance(pad, (tuple, list)) or not all(isinstance(one, int) for one in pad):
        return []
    axes = list(call.first)
    for place in range(len(pad) // 2):
        old = axes[-1 - place]
        if pad[2 * place] or pad[2 * place + 1]:
            axes[-1 - place] = Axis(shapes[0][-1 - place])
            axes[-1 - place].link(old, -pad[2 * place])
    return [tuple(axes)]


def _moved(call: Call, shapes: _Shapes) -> list[Axes]:
    """roll, flip: the same axes, entry by entry others"""
    made = _fresh(shapes[0])
    for axis, old in zip(made, call.first):
        axis.link(old, None)
    return [made]


def _on_image(call: Call, shapes: _Shapes, n_spatial: int | None = None) -> list[Axes]:
    """(N, C, *spatial), or without N where ``n_spatial`` tells; the channels stay if they are as many"""
    begin = 1 if n_spatial is None else len(call.first) - 1 - n_spatial
    if begin not in (0, 1) or len(call.first) < begin + 1:
        return []
    call.first[begin].channel = True
    made = []
    for shape in shapes:
        if len(shape) != len(call.first):
            return []
        axes = list(call.first[: begin + 1])
        if n_spatial is not None or axes[begin].length != shape[begin]:
            axes[begin] = Axis(shape[begin], channel=True)
        for number, (old, length) in enumerate(zip(call.first[begin + 1 :], shape[begin + 1 :])):
            if space_of(old) is None:
                old.space = number
            axes.append(Axis(length, space=space_of(old)))
        made.append(tuple(axes))
    return made


def _convolved(call: Call, shapes: _Shapes) -> list[Axes]:
    return _on_image(call, shapes, int(call.name[-2]))


def _normalized(call: Call, shapes: _Shapes) -> list[Axes]:
    """batch_norm, instance_norm, group_norm"""
    if len(call.first) > 1:
        call.first[1].channel = True
    return [call.first]


def _layer_normalized(call: Call, shapes: _Shapes) -> list[Axes]:
    over = call.given(1, "normalized_shape")
    if call.first and isinstance(over, (tuple, list)) and len(over) == 1:
        call.first[-1].channel = True
    return [call.first]


def _channels_made(length: int) -> Axis:
    axis = Axis(length, channel=True)
    axis.linear = True
    return axis


def _linear(call: Call, shapes: _Shapes) -> list[Axes]:
    if not call.first or not shapes[0]:
        return []
    call.first[-1].channel = True
    return [(*call.first[:-1], _channels_made(shapes[0][-1]))]


def _attended(call: Call, shapes: _Shapes) -> list[Axes]:
    """A whole attention module: queries, keys and values (..., channels)."""
    for place, name in enumerate(("query", "key", "value")):
        axes = call.axes(call.given(place, name))
        if axes:
            axes[-1].channel = True
    return _linear(call, shapes)


def _encoded(call: Call, shapes: _Shapes) -> list[Axes]:
    """A whole encoder layer."""
    if call.first:
        call.first[-1].channel = True
    return [call.first]


def _attention(call: Call, shapes: _Shapes) -> list[Axes]:
    """scaled_dot_product_attention"""
    value = call.axes(call.given(2, "value"))
    return [(*call.first[:-1], value[-1])] if call.first and value else []


def _multiplied(call: Call, shapes: _Shapes) -> list[Axes]:
    """matmul"""
    left, right = call.first, call.axes(call.given(1, "other", "mat2"))
    if min(len(left), len(right)) < 2:
        return []
    leading = left[:-2] if len(left) >= len(right) else right[:-2]
    return [(*leading, left[-2], right[-1])]


def _einsum(call: Call, shapes: _Shapes) -> list[Axes]:
    equation = call.given(0, "equation")
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return []
    inputs, output = equation.replace(" ", "").split("->")
    found: dict[str, Axis] = {}
    for letters, axes in zip(inputs.split(","), call.all):
        for letter, axis in zip(letters, axes):
            if letter not in found or found[letter].length == 1:
                found[letter] = axis
            elif axis.length > 1:
                found[letter].link(axis)
    return [tuple(found[letter] for letter in output)] if all(letter in found for letter in output) else []


def _of(rule: Callable[[Call, _Shapes], list[Axes]], names: str) -> dict[str, Callable[[Call, _Shapes], list[Axes]]]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Callable[[Call, _Shapes], list[Axes]]] = {
    **_of(
        _same,
        "alpha_dropout as_subclass bfloat16 celu clone contiguous cpu cuda detach double dropout dropout1d dropout2d dropout3d elu "
        "feature_alpha_dropout feature_dropout float gelu half hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax "
        "logsigmoid mish normalize prelu relu relu6 requires_grad rrelu selu sigmoid silu softmax softmin softplus softshrink "
        "softsign tanh tanhshrink threshold to type type_as",
    ),
    **_of(
        _elementwise,
        "abs add addcdiv addcmul ceil clamp clamp_max clamp_min clip copy cos div divide erf exp expm1 floor floor_divide "
        "floordiv fmax fmin iadd idiv imul ipow isub itruediv lerp log log1p masked_fill maximum minimum mul multiply nan_to_num neg "
        "pow radd rdiv reciprocal remainder rmul round rpow rsqrt rsub rtruediv sign sin sqrt square sub subtract tan true_divide "
        "truediv where",
    ),
    **_of(_reordered, "movedim moveaxis permute swapaxes swapdims t transpose unsqueeze"),
    **_of(_reshaped, "flatten reshape reshape_as unflatten view view_as"),
    **_of(_squeezed, "squeeze"),
    **_of(_expanded, "broadcast_to expand expand_as repeat tile"),
    **_of(_indexed, "getitem"),
    **_of(_parted, "chunk split split_with_sizes tensor_split"),
    **_of(_narrowed, "narrow"),
    **_of(_picked, "select unbind"),
    **_of(_reduced, "amax amin logsumexp max mean min norm prod std sum var"),
    **_of(_joined, "cat concat concatenate"),
    **_of(_stacked, "stack"),
    **_of(_padded, "pad"),
    **_of(_moved, "flip roll"),
    **_of(
        _on_image,
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "avg_pool1d avg_pool2d avg_pool3d interpolate lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d max_pool3d "
        "max_unpool1d max_unpool2d max_unpool3d pixel_shuffle pixel_unshuffle upsample",
    ),
    **_of(_convolved, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_of(_normalized, "batch_norm group_norm instance_norm"),
    **_of(_layer_normalized, "layer_norm rms_norm"),
    **_of(_linear, "linear"),
    **_of(_attended, "multi_head_attention_forward native_multi_head_attention"),
    **_of(_encoded, "transformer_encoder_layer_fwd"),
    **_of(_attention, "scaled_dot_product_attention"),
    **_of(_multiplied, "bmm matmul mm"),
    **_of(_einsum, "einsum"),
}
