"""What the axes of a layer's activation mean, and the units that it falls into.

| layout | activation | of |
|---|---|---|
| `"NC*"` | `(N, C, *spatial)` | convolutions |
| `"N*C"` | `(N, *spatial, C)` | transformers whose tokens lie on a grid (Swin) |
| `"NLC"` | `(N, L, C)` | transformers of a row of tokens (ViT, BEiT, SegFormer) |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from captum_causalseg._checks import (
    BOOLEAN,
    FUNCTION,
    NONE,
    TEXT,
    check_all,
    checked,
    for_each_axis,
    instance,
    integer,
    key_of,
    one_of,
    per_axis,
    sequence,
    tensor_of,
)
from captum_causalseg.boxes import number_blocks

__all__ = ["AXES", "UNIT_KINDS", "Layout", "UnitKind", "Units", "register_units", "unit_mask"]

AXES = ("NC*", "N*C", "NLC")
UnitKind: TypeAlias = str
"""A name in :data:`UNIT_KINDS`."""
BlockSize: TypeAlias = int | tuple[int, ...] | None
_SHAPE = sequence(integer(0), 2, expected="the shape of an activation (N, ...)")
_BLOCK_SIZE = NONE | for_each_axis(integer(1))


@dataclass(frozen=True)
class Units:
    """A kind of unit that activations fall into.

    Args:
        function: ``(layout, shape, block_size) -> mask``; see :func:`register_units`.
        in_blocks: whether it needs a ``block_size``; if not, it is given ``None``.

    Example:
        >>> from captum_causalseg.layout import UNIT_KINDS
        >>> UNIT_KINDS["channel"].in_blocks, UNIT_KINDS["block"].in_blocks
        (False, True)
    """

    function: "Callable[[Layout, tuple[int, ...], BlockSize], Tensor]"
    in_blocks: bool = False

    def __post_init__(self) -> None:
        check_all(vars(self), function=FUNCTION, in_blocks=BOOLEAN)


UNIT_KINDS: dict[str, Units] = {}
"""The table: every kind of unit by its name; :func:`register_units` adds to it."""


@dataclass(frozen=True)
class Layout:
    """What the axes of an activation mean.

    Wherever a ``layout`` is asked for, the name alone does (``"NLC"``); what else is known then comes from the model.

    Args:
        axes: ``"NC*"``: channels first; ``"N*C"``: channels last, behind the spatial axes; ``"NLC"``: tokens, then channels.
        grid: of tokens, the grid that they lie on, row by row, such as ``(8, 8)``.
        first: how many special tokens (class token, registers) come before the grid; those behind it are what is left.
        heads: how many attention heads lie side by side in the channels.
        windows: of tokens, in how many windows those of an image lie, one after the other along the first axis, ``(N * windows, L, C)``, as in the window
            attention of a Swin transformer. All tokens of an image count as one row, window by window.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> from captum_causalseg import Layout
        >>> beit = Layout("NLC", grid=(8, 8), first=1, heads=2)
        >>> beit.special_tokens((1, 65, 16)), beit.n_units("token", (1, 65, 16)), beit.n_units("head", (1, 65, 16))
        ((0,), 65, 2)
    """

    axes: str
    grid: tuple[int, ...] | None = None
    first: int = 0
    heads: int | None = None
    windows: int = 1

    def __post_init__(self) -> None:
        check_all(
            vars(self),
            axes=one_of(*AXES),
            grid=NONE | sequence(integer(1), 1, expected="a tuple of lengths, one per spatial axis"),
            first=integer(0),
            heads=NONE | integer(1),
            windows=integer(1),
        )
        if self.windows > 1 and (self.axes != "NLC" or self.grid is not None):
            raise ValueError(
                'windows: they hold tokens that lie on no grid of the image; it works only with axes="NLC" and without grid'
            )
        if self.grid is not None:
            object.__setattr__(self, "grid", tuple(self.grid))
            if self.axes != "NLC":
                raise ValueError(f'grid: it works only with axes="NLC"; with {self.axes!r} the grid is axes of the activation')
        if self.first and self.grid is None:
            raise ValueError("first: it says where the grid begins, so it needs grid")

    @checked(shape=_SHAPE, name=TEXT)
    def check(self, shape: Sequence[int], name: str = "layout") -> None:
        """Raise unless an activation of this shape can have this layout."""
        shape = tuple(shape)
        if self.axes == "NLC" and len(shape) != 3:
            raise ValueError(f'{name}: "NLC" is of activations of 3 axes, got {shape}')
        if self.axes == "N*C" and len(shape) < 3:
            raise ValueError(f'{name}: "N*C" is of activations of 3 axes or more, got {shape}')
        if shape[0] % self.windows:
            raise ValueError(
                f"{name}: {self.windows} windows for each image do not divide the {shape[0]} of the activation {shape}"
            )
        if self.grid is not None and self.first + math.prod(self.grid) > shape[1]:
            raise ValueError(
                f"{name}: a grid of {_times(self.grid)} tokens after {self.first} special ones needs "
                f"{self.first + math.prod(self.grid)} tokens, the activation {shape} has {shape[1]}"
            )
        channels = shape[1] if self.axes == "NC*" else shape[-1]
        if self.heads is not None and channels % self.heads:
            raise ValueError(f"{name}: {self.heads} heads do not divide the {channels} channels of the activation {shape}")

    @checked(tensor=tensor_of(None, "(N, ...)", (2, math.inf)))
    def channels_first(self, tensor: Tensor) -> Tensor:
        """``(N, C, *spatial)`` of an activation (or a mask) as it lies; tokens are one spatial axis."""
        if self.windows > 1:
            tensor = tensor.reshape(len(tensor) // self.windows, -1, tensor.shape[-1])
        return tensor if self.axes == "NC*" else tensor.movedim(-1, 1).contiguous()

    @checked(tensor=tensor_of(None, "(N, C, ...)", (2, math.inf)))
    def as_it_lies(self, tensor: Tensor) -> Tensor:
        """The inverse of :meth:`channels_first`."""
        found = tensor if self.axes == "NC*" else tensor.movedim(1, -1).contiguous()
        return found if self.windows == 1 else found.reshape(len(tensor) * self.windows, -1, tensor.shape[1])

    @property
    def merged(self) -> "Layout":
        """That of all tokens of an image in one row, ``(N, windows * L, C)``.

        Example:
            >>> from captum_causalseg import Layout
            >>> Layout("NLC", heads=3, windows=4).merged
            Layout(axes='NLC', grid=None, first=0, heads=3, windows=1)
        """
        return replace(self, windows=1)

    @checked(shape=_SHAPE)
    def spatial(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Lengths of the spatial axes of an activation of this shape; of tokens, how many there are."""
        if self.windows > 1:
            return (self.windows * shape[1],)
        return tuple(shape[2:]) if self.axes == "NC*" else tuple(shape[1:-1])

    @checked(shape=_SHAPE)
    def special_tokens(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Which tokens of an activation of this shape lie on no grid; none where the grid is not known.

        Example:
            >>> from captum_causalseg import Layout
            >>> Layout("NLC", grid=(2, 2), first=1).special_tokens((1, 6, 16))  # a class token in front, another behind
            (0, 5)
        """
        if self.grid is None:
            return ()
        stop = self.first + math.prod(self.grid)
        return tuple(i for i in range(shape[1]) if not self.first <= i < stop)

    @checked(
        units=key_of(UNIT_KINDS),
        shape=_SHAPE,
        block_size=_BLOCK_SIZE,
    )
    def n_units(self, units: UnitKind, shape: Sequence[int], block_size: BlockSize = None) -> int:
        """How many units of this kind an activation of this shape has.

        Example:
            >>> from captum_causalseg import Layout
            >>> layout = Layout("NC*")
            >>> layout.n_units("channel", (1, 16, 8, 8)), layout.n_units("block", (1, 16, 8, 8), block_size=4)
            (16, 4)
        """
        if block_size is None and UNIT_KINDS[units].in_blocks:
            raise ValueError(f"block_size: units={units!r} needs it, in positions of the grid")
        channels = shape[1 if self.axes == "NC*" else -1]
        return (
            int(unit_mask(self, units, (shape[0] // self.windows, channels, *self.spatial(shape)), block_size=block_size).max())
            + 1
        )

    def described(self) -> dict[str, Any]:
        """As it is kept with the statistics."""
        found: dict[str, Any] = {"axes": self.axes}
        if self.grid is not None:
            found |= {"grid": list(self.grid), "first": self.first}
        if self.windows > 1:
            found["windows"] = self.windows
        return found if self.heads is None else found | {"heads": self.heads}


@checked(layout=instance(Layout), units=key_of(UNIT_KINDS), shape=_SHAPE, block_size=_BLOCK_SIZE)
def unit_mask(layout: Layout, units: UnitKind, shape: Sequence[int], block_size: BlockSize = None) -> Tensor:
    """The units of an activation as integers, to be broadcast over it, channels first.

    Args:
        layout: of the activation as it lies.
        units: ``"channel"``; ``"token"``: all channels at one position; ``"head"``: all channels of one attention head; ``"block"``:
            ``block_size`` positions of the spatial grid, special tokens one by one behind them; ``"channel_block"``: one channel of
            one block; ``"layer"``: all of it; or another name in :data:`UNIT_KINDS`.
        shape: of the activation with its channels first, ``(N, C, *spatial)``.
        block_size: edge of blocks in positions of the grid.

    Returns:
        ``(1, C or 1, *spatial or 1)``, numbered from 0.

    Raises:
        ValueError: the activation has no such units; the message begins with the argument that helps.

    Example:
        >>> from captum_causalseg.layout import Layout, unit_mask
        >>> unit_mask(Layout("NLC", heads=2), "head", (1, 6, 65)).flatten().tolist()
        [0, 0, 0, 1, 1, 1]
    """
    shape = tuple(shape)
    return _numbered(units, UNIT_KINDS[units].function(layout, shape, block_size), shape)


@checked(name=TEXT, function=FUNCTION, in_blocks=BOOLEAN)
def register_units(
    name: str, function: Callable[[Layout, tuple[int, ...], BlockSize], Tensor], *, in_blocks: bool = False
) -> None:
    """Add your own kind of unit to the table :data:`UNIT_KINDS`, for ``units=name`` of the layer methods.

    Args:
        name: must not be taken.
        function: ``(layout, shape, block_size) -> mask`` for an activation that lies as the :class:`Layout` says and has the shape
            ``(N, C, *spatial)`` with its channels first (of tokens ``(N, C, L)``). The mask holds integers, ``(1, C or 1, *spatial or
            ones)``; equal numbers are one unit. They are renumbered from 0 in ascending order.
        in_blocks: whether it needs ``block_size``.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> import torch
        >>> from captum_causalseg import Layout
        >>> from captum_causalseg.layout import UNIT_KINDS, register_units, unit_mask
        >>> def halves(layout, shape, block_size):
        ...     return (torch.arange(shape[-1]) >= shape[-1] // 2).long().view(1, *(1,) * (len(shape) - 2), -1)
        >>> register_units("halves", halves)  # the left and the right half of every channel
        >>> unit_mask(Layout("NC*"), "halves", (1, 8, 3, 4)).tolist()
        [[[[0, 0, 1, 1]]]]
        >>> del UNIT_KINDS["halves"]
    """
    if name in UNIT_KINDS:
        raise ValueError(f"name: units called {name!r} exist already")
    UNIT_KINDS[name] = Units(function, in_blocks)


def _numbered(units: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask that a kind's function returned, with its units numbered from 0."""
    fits = isinstance(mask, Tensor) and not (mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool)
    if not fits or mask.ndim != len(shape) or any(n not in (1, most) for n, most in zip(mask.shape, (1, *shape[1:]))):
        came = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"units: expected the function of {units!r} to return integers that can be broadcast to {(1, *shape[1:])}, got {came}"
        )
    numbered: Tensor = torch.unique(mask.cpu(), return_inverse=True)[1]
    return numbered


def _channels(layout: Layout, shape: tuple[int, ...], block_size: BlockSize) -> Tensor:
    return torch.arange(shape[1], device="cpu").view(1, -1, *(1,) * (len(shape) - 2))


def _heads(layout: Layout, shape: tuple[int, ...], block_size: BlockSize) -> Tensor:
    if layout.heads is None:
        raise ValueError("units: how many heads lie in the channels is not known; give layout=Layout(..., heads=...)")
    return _channels(layout, shape, None) // (shape[1] // layout.heads)


def _tokens(layout: Layout, shape: tuple[int, ...], block_size: BlockSize) -> Tensor:
    if layout.axes == "NC*":
        raise ValueError(
            f'units: an activation (N, C, *spatial) has no tokens, got one of shape {shape}; units="block", block_size=1 '
            "takes its positions one by one"
        )
    return torch.arange(math.prod(shape[2:]), device="cpu").view(1, 1, *shape[2:])


def _blocks(layout: Layout, shape: tuple[int, ...], block_size: BlockSize) -> Tensor:
    spatial = shape[2:]
    if not spatial:
        raise ValueError(f"block_size: the activation {shape} has no spatial axes")
    assert block_size is not None
    places = spatial if layout.axes != "NLC" else _grid_of(layout)
    blocks = number_blocks(places, per_axis("block_size", block_size, len(places), each=integer(1)))
    if layout.axes == "NLC":
        placed = torch.full(spatial, -1, dtype=torch.int64, device="cpu")
        placed[layout.first : layout.first + blocks.numel()] = blocks.flatten()
        special = placed < 0
        placed[special] = torch.arange(int(special.sum()), device="cpu") + int(blocks.max()) + 1
        blocks = placed
    return blocks[None, None]


def _channel_blocks(layout: Layout, shape: tuple[int, ...], block_size: BlockSize) -> Tensor:
    blocks = _blocks(layout, shape, block_size)
    return blocks + _channels(layout, shape, None) * (int(blocks.max()) + 1)


def _whole(layout: Layout, shape: tuple[int, ...], block_size: BlockSize) -> Tensor:
    return torch.zeros((1,) * len(shape), dtype=torch.int64, device="cpu")


register_units("channel", _channels)
register_units("token", _tokens)
register_units("head", _heads)
register_units("block", _blocks, in_blocks=True)
register_units("channel_block", _channel_blocks, in_blocks=True)
register_units("layer", _whole)


def _grid_of(layout: Layout) -> tuple[int, ...]:
    if layout.grid is None:
        raise ValueError(
            'layout: which grid the tokens lie on is not known; give Layout("NLC", grid=(rows, columns), first=...)'
        )
    return layout.grid


def _times(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))
