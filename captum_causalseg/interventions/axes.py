"""What the axes of a tensor mean: what is said of an axis anywhere holds wherever it goes."""

import math
from collections.abc import Iterator

__all__ = ["Axes", "Axis", "channel_axes", "composition", "is_of_batch", "projected", "space_of"]


class Axis:
    """An axis of one or several tensors.

    Attributes:
        length: how many entries it has.
        channel: whether a function treated it as the channels.
        batch: whether it is the inputs' first axis.
        space: which spatial axis of an image it is, where that is known.
        linear: whether a linear layer made it.
        parts: what it was made of or came apart into, in the order of the memory.
    """

    __slots__ = ("batch", "channel", "length", "linear", "links", "parts", "space")

    def __init__(self, length: int, *, channel: bool = False, space: int | None = None) -> None:
        self.length = length
        self.channel, self.space = channel, space
        self.batch = self.linear = False
        self.parts: list[tuple[Axis, ...]] = []
        # The same meaning: entry i here is entry i + offset there; None where entries do not correspond.
        self.links: list[tuple[Axis, int | None]] = []

    def link(self, other: "Axis", offset: int | None = 0) -> None:
        """Both mean the same; entry ``i`` of this one is entry ``i + offset`` of the other."""
        if other is not self:
            self.links.append((other, offset))
            other.links.append((self, None if offset is None else -offset))

    def alike(self) -> Iterator[tuple["Axis", int | None]]:
        """All axes that mean the same, this one first, with their offsets."""
        found: dict[Axis, int | None] = {self: 0}
        waiting = [self]
        while waiting:
            axis = waiting.pop(0)
            yield axis, found[axis]
            here = found[axis]
            for other, step in axis.links:
                if other not in found:
                    found[other] = None if here is None or step is None else here + step
                    waiting.append(other)


Axes = tuple[Axis, ...]
"""Of a tensor, one for each axis."""


def channel_axes(axes: Axes) -> list[int]:
    """Which of a tensor's axes, the first left out, are known to hold channels."""
    return [i for i, axis in enumerate(axes) if i and any(other.channel for other, _ in axis.alike())]


def is_of_batch(axis: Axis) -> bool:
    """Whether the axis is known to be that of the examples."""
    return any(other.batch for other, _ in axis.alike())


def projected(axis: Axis) -> bool:
    """Whether a linear layer made these very channels."""
    return any(other.linear and offset == 0 and other.length == axis.length for other, offset in axis.alike())


def composition(axis: Axis, n_parts: int) -> list[tuple[int, tuple[int, ...]]]:
    """Of how many times how many entries the axis is made: ``(first, lengths)``, each once.

    Before the entry ``first``, and after the product of the lengths, are entries of another kind (a class token).
    Compositions whose parts are known to be spatial axes in another order than the image's are left out.
    """
    found = []
    for other, offset in axis.alike():
        for parts in other.parts if offset is not None else ():
            assert offset is not None
            lengths = tuple(part.length for part in parts)
            spaces = [space for part in parts if (space := space_of(part)) is not None]
            fits = -offset >= 0 and math.prod(lengths) - offset <= axis.length
            if len(parts) == n_parts and fits and spaces == sorted(spaces) and (-offset, lengths) not in found:
                found.append((-offset, lengths))
    return found


def space_of(axis: Axis) -> int | None:
    """Which spatial axis of the image it is, where that is known."""
    return next((other.space for other, _ in axis.alike() if other.space is not None), None)
