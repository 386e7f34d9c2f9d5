"""Which layout a layer's activation has, read from what the model does with it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules import batchnorm, conv, instancenorm, normalization, pooling, upsampling

from captum_causalseg._state import in_this_thread
from captum_causalseg.interventions.activation import Activation
from captum_causalseg.interventions.axes import Axes, channel_axes, composition, is_of_batch, projected
from captum_causalseg.interventions.axis_trace import AxisTrace
from captum_causalseg.layout import Layout

__all__ = ["Sighting", "channels_first_by_type", "follow", "following", "read_layout", "unclear", "with_grid", "with_heads"]

# Modules that by definition take and return (N, C, *spatial).
_CHANNELS_FIRST = (
    conv._ConvNd,
    batchnorm._BatchNorm,
    instancenorm._InstanceNorm,
    normalization.GroupNorm,
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    upsampling.Upsample,
)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True)
class Sighting:
    """A module in one forward pass, for each tensor that it took and returned: what its axes are."""

    taken: tuple[Axes, ...] = ()
    returned: tuple[Axes, ...] = ()


class _Seen(BaseException):
    """All that was asked for has been seen; what runs the model lets it through."""


def follow(
    run: Callable[[], Any],
    inputs: Sequence[Any],
    modules: Mapping[str, nn.Module],
    *,
    enough: Callable[[str, Sighting], bool] = lambda name, sighting: False,
) -> dict[str, Sighting]:
    """Run the model and watch what it does with what these modules take and return.

    Args:
        run: runs it on ``inputs``.
        inputs: what the model takes, images ``(N, C, *spatial)`` among them.
        modules: by name.
        enough: whether a module, by name, and what was seen of it tell all that is asked: what comes after it is not run then.
    """
    with suppress(_Seen), torch.no_grad(), following(inputs, modules, enough, ends_run=True) as found:
        run()
    return found


@contextmanager
def following(
    inputs: Sequence[Any],
    modules: Mapping[str, nn.Module],
    enough: Callable[[str, Sighting], bool] = lambda name, sighting: False,
    *,
    ends_run: bool = False,
) -> Iterator[dict[str, Sighting]]:
    """Within, the model runs on these very inputs, and what is seen of the modules is in the dictionary.

    Args:
        inputs, modules, enough: as of :func:`follow`.
        ends_run: whether the run ends where enough has been seen, which leaves the context; if not, it goes on unwatched.
    """
    trace = AxisTrace()
    found: dict[str, Sighting] = {}

    def axes(value: Any) -> tuple[Axes, ...]:
        try:
            return tuple(trace.axes(tensor) for tensor in Activation(value).tensors)
        except TypeError:  # no floating-point tensor
            return ()

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
            if trace.watches:
                found[name] = Sighting(axes(args if len(args) != 1 else args[0]), axes(returned))
                trace.watches = not enough(name, found[name])
                if ends_run and not trace.watches:
                    raise _Seen

        return after

    handles = [
        module.register_forward_hook(in_this_thread(hook(name)))
        for name, module in modules.items()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with trace:
            for image in inputs:
                trace.note_image(image)
            yield found
    finally:
        for handle in handles:
            handle.remove()


def channels_first_by_type(layer: nn.Module) -> bool:
    """Whether the module takes and returns ``(N, C, *spatial)`` by definition."""
    return isinstance(layer, _CHANNELS_FIRST)


def read_layout(axes: Axes, n_spatial: int) -> Layout | None:
    """The layout of an activation with these axes; ``None`` if they do not tell.

    Args:
        axes: what is known of them, from a run on one image.
        n_spatial: spatial axes of the image: of tokens, those of the grid that they lie on.

    Raises:
        ValueError: the examples of the batch are not its first axis.
    """
    shape = tuple(axis.length for axis in axes)
    moved = [i for i, axis in enumerate(axes) if i and is_of_batch(axis)]
    if moved:
        raise ValueError(
            f"layer: the examples are axis {moved[0]} of its activation {shape}, expected them to be the first; choose another layer"
        )
    if len(axes) == 2:
        return Layout("NC*")
    channels = channel_axes(axes)
    if channels == [1]:
        return Layout("NC*")
    if channels != [len(axes) - 1]:
        return None
    if len(axes) == 3 and axes[0].length > 1:
        # What was followed is one image: these are windows of it.
        return Layout("NLC", windows=axes[0].length)
    return with_grid(Layout("N*C"), axes, n_spatial) if len(axes) > 3 else with_grid(Layout("NLC"), axes, n_spatial)


def with_grid(layout: Layout, axes: Axes, n_spatial: int) -> Layout:
    """The same with the grid of the tokens, if the model lays them out on one."""
    if layout.axes != "NLC" or layout.grid is not None or layout.windows > 1 or len(axes) != 3:
        return layout
    grids = composition(axes[1], n_spatial)
    return layout if len(grids) != 1 else replace(layout, grid=grids[0][1], first=grids[0][0])


def unclear(shape: Sequence[int], name: str) -> str:
    """A message that asks for the layout, with what each would mean."""
    shape = tuple(shape)
    positions = " x ".join(map(str, shape[2:])), " x ".join(map(str, shape[1:-1]))
    last = f'"NLC" ({shape[1]} tokens of {shape[2]} channels)'
    if len(shape) > 3:
        last = f'"N*C" ({shape[-1]} channels at {positions[1]} positions)'
    return (
        f"layout: what the model does with the activation {shape} of {name} does not tell which of its axes holds the channels; say "
        f'which it is: "NC*" ({shape[1]} channels at {positions[0]} positions) or {last}'
    )


def with_heads(layout: Layout, name: str, modules: Mapping[str, nn.Module], seen: Mapping[str, Sighting], axes: Axes) -> Layout:
    """The same with the number of attention heads that lie side by side in its channels.

    Heads lie there where the model splits or joins them: in what the output projection of the attention takes, and in queries, keys
    and values. Their number must be one that a module around (``num_heads`` or the like) or its ``config`` names, or that of ``layout``.

    Args:
        layout: of the activation.
        name: of the layer.
        modules: of the model, by name.
        seen: what they took and returned.
        axes: of the activation.

    Raises:
        ValueError: the activation holds no heads side by side; the message says which module to give.
    """
    around = [name.rsplit(".", i)[0] for i in range(name.count(".") + 1)]
    around = [one for one in (*around, "") if one in modules]
    named = {layout.heads} if layout.heads is not None else set().union(*(_head_counts(modules[one]) for one in around))
    channel = axes[1 if layout.axes == "NC*" else -1]
    found = _heads_in(channel) & named
    if len(found) == 1:
        return replace(layout, heads=found.pop())
    if layout.heads is not None and not projected(channel) and not _heads_in(channel):
        return layout  # nothing speaks against it
    attention = next((one for one in around if any(isinstance(getattr(modules[one], a, None), int) for a in _HEADS)), None)
    inside = [] if attention is None else [one for one in seen if one.startswith(f"{attention}.") or attention == ""]
    holding = [one for one in inside if any(_heads_in(axes[-1]) & named for axes in seen[one].taken[:1] if len(axes) > 2)]
    told = f"units: the channels of {name!r} are no attention heads side by side"
    if projected(channel):
        told += " (a projection has mixed them)"
    if holding:
        told += f"; give the module {holding[-1]!r} with attribute_to_layer_input=True"
    elif attention is not None and isinstance(modules[attention], nn.MultiheadAttention):
        told += (
            f"; {attention!r} is a torch.nn.MultiheadAttention, which projects them inside one function: after captum_causalseg.reveal_heads(model), "
            f"give {attention + '.out_proj'!r} with attribute_to_layer_input=True"
        )
    elif not named:
        told += ", and no module around it has a num_heads; give layout=Layout(..., heads=...)"
    else:
        told += "; give the module that projects them, with attribute_to_layer_input=True"
    raise ValueError(told)


def _heads_in(channel: Any) -> set[int]:
    """Of how many heads the channels are made, where two parts make them."""
    return {lengths[0] for first, lengths in composition(channel, 2) if first == 0 and math.prod(lengths) == channel.length}


def _head_counts(module: nn.Module) -> set[int]:
    found = [getattr(module, name, None) for name in _HEADS]
    config = getattr(getattr(module, "config", None), "num_attention_heads", None)
    found += list(config) if isinstance(config, (list, tuple)) else [config]
    return {one for one in found if isinstance(one, int) and not isinstance(one, bool)}
