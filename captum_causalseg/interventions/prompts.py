"""The prompts of a call: clicks, boxes, masks and texts among its arguments, and what is drawn of prompts in channels of its images.

What becomes of a prompt is one number: 0, it is as it was; -1, it is left out; ``k + 1``, it is moved to its place ``k``. A group knows how a
call is made from such numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg.donors.moved_prompts import PromptPlace

__all__ = ["AS_IT_IS", "LEFT_OUT", "Boxes", "Clicks", "DrawnPrompts", "Masks", "PromptGroup", "Texts"]

AS_IT_IS, LEFT_OUT = 0, -1

Offset = Callable[[int, int], tuple[int, ...]]
"""Of a row of a batch and a prompt of the group: how far it is moved."""


class PromptGroup(ABC):
    """Prompts that stand in the same arguments, ``U`` of them.

    Attributes:
        kind: what one of them is called.
        present: boolean ``(N, U)``: which example has which.
    """

    kind: str
    present: np.ndarray

    @abstractmethod
    def about(self, example: int, unit: int) -> dict[str, Any]:
        """What is to be known of a prompt: its ``label`` and where it is ``at``, as far as it has these."""

    @abstractmethod
    def place(self, example: int, unit: int) -> PromptPlace | None:
        """From where it can be moved; ``None`` where it cannot."""

    @abstractmethod
    def left(self, states: np.ndarray) -> tuple[int, ...]:
        """What decides the arguments' shapes, of the numbers ``(U,)``; of rows with the same, one batch is made."""

    @abstractmethod
    def put(self, call: list[Any], examples: np.ndarray, *, states: np.ndarray, offset: Offset) -> None:
        """Make the arguments of a call, fresh copies of those of the examples ``(B,)``, what the numbers ``(B, U)`` say."""

    @property
    def outputs_depend(self) -> bool:
        """Whether there may be an output for each of the prompts, so that without one there are fewer."""
        return False

    @property
    def how_left_out(self) -> str:
        """In a few words, for the statistics."""
        return "left out of the call"


@dataclass(frozen=True, eq=False)
class Clicks(PromptGroup):
    """Coordinates ``(N, ..., K, d)`` and labels ``(N, ..., K)``.

    Args:
        points, labels: of the call as it is.
        at, labels_at: where they stand in the call; ``None``: there are no labels.
        padding_label: of what is no click.
        spatial: of the image, in the order of the coordinates.
    """

    points: Tensor
    labels: Tensor | None
    at: int
    labels_at: int | None
    padding_label: int | None
    spatial: tuple[int, ...]
    kind = "click"

    @property
    def present(self) -> np.ndarray:  # type: ignore[override]
        """See :class:`PromptGroup`."""
        n = len(self.points)
        if self.labels is None or self.padding_label is None:
            return np.ones((n, self.points[0, ..., 0].numel()), dtype=bool)
        found: np.ndarray = (self.labels != self.padding_label).reshape(n, -1).cpu().numpy()
        return found

    @property
    def pads(self) -> bool:
        """Whether what is left out is given the label of padding: of several objects, one would have fewer clicks than the others."""
        return self.points.ndim > 3 and self.points[0, ..., 0, 0].numel() > 1

    @property
    def how_left_out(self) -> str:
        """See :attr:`PromptGroup.how_left_out`."""
        return f"label {self.padding_label}, which is padding" if self.pads else "left out of the call"

    def about(self, example: int, unit: int) -> dict[str, Any]:
        """See :meth:`PromptGroup.about`."""
        label = 1 if self.labels is None else self.labels[example].reshape(-1)[unit].item()
        return {"label": label, "at": self._point(example, unit)}

    def place(self, example: int, unit: int) -> PromptPlace:
        """See :meth:`PromptGroup.place`."""
        point = tuple(self._point(example, unit))
        return PromptPlace(point, point, self.spatial)

    def left(self, states: np.ndarray) -> tuple[int, ...]:
        """See :meth:`PromptGroup.left`."""
        return () if self.pads else (int((states != LEFT_OUT).sum()),)

    def put(self, call: list[Any], examples: np.ndarray, *, states: np.ndarray, offset: Offset) -> None:
        """See :meth:`PromptGroup.put`."""
        points, labels = call[self.at], None if self.labels_at is None else call[self.labels_at]
        flat = points.reshape(len(points), -1, points.shape[-1])
        for row, unit in zip(*np.nonzero(states > AS_IT_IS)):
            flat[row, unit] += torch.tensor(offset(int(row), int(unit)), dtype=points.dtype, device=points.device)
        kept = torch.from_numpy(states != LEFT_OUT).to(points.device)
        call[self.at] = flat.reshape(points.shape)
        if bool(kept.all()):
            return
        if self.pads:
            assert labels is not None
            assert self.labels_at is not None
            assert self.padding_label is not None
            call[self.labels_at] = torch.where(kept.reshape(labels.shape), labels, self.padding_label)
            return
        shape = (*points.shape[:-2], -1)
        is_none = not bool(kept[0].any())
        call[self.at] = None if is_none else flat[kept].reshape(*shape, points.shape[-1])
        if labels is not None:
            assert self.labels_at is not None
            call[self.labels_at] = None if is_none else labels.reshape(len(labels), -1)[kept].reshape(shape)

    def _point(self, example: int, unit: int) -> list[float]:
        found: list[float] = self.points[example].reshape(-1, self.points.shape[-1])[unit].tolist()
        return found


@dataclass(frozen=True, eq=False)
class Boxes(PromptGroup):
    """Boxes ``(N, B, 2 d)``: first corner, last corner.

    Args:
        boxes: of the call as it is.
        at: where they stand in the call.
        spatial: of the image, in the order of the coordinates.
    """

    boxes: Tensor
    at: int
    spatial: tuple[int, ...]
    kind = "box"

    @property
    def present(self) -> np.ndarray:  # type: ignore[override]
        """See :class:`PromptGroup`."""
        return np.ones(self.boxes.shape[:2], dtype=bool)

    @property
    def outputs_depend(self) -> bool:
        """See :attr:`PromptGroup.outputs_depend`."""
        return self.boxes.shape[1] > 1

    def about(self, example: int, unit: int) -> dict[str, Any]:
        """See :meth:`PromptGroup.about`."""
        return {"at": self.boxes[example, unit].tolist()}

    def place(self, example: int, unit: int) -> PromptPlace:
        """See :meth:`PromptGroup.place`."""
        sides, d = self.boxes[example, unit].tolist(), self.boxes.shape[2] // 2
        return PromptPlace(tuple(sides[:d]), tuple(sides[d:]), self.spatial, is_box=True)

    def left(self, states: np.ndarray) -> tuple[int, ...]:
        """See :meth:`PromptGroup.left`."""
        return (int((states != LEFT_OUT).sum()),)

    def put(self, call: list[Any], examples: np.ndarray, *, states: np.ndarray, offset: Offset) -> None:
        """See :meth:`PromptGroup.put`."""
        boxes = call[self.at]
        for row, unit in zip(*np.nonzero(states > AS_IT_IS)):
            boxes[row, unit] += torch.tensor(offset(int(row), int(unit)), dtype=boxes.dtype, device=boxes.device)
        kept = torch.from_numpy(states != LEFT_OUT).to(boxes.device)
        call[self.at] = boxes[kept].reshape(len(boxes), -1, boxes.shape[2]) if bool(kept[0].any()) else None


@dataclass(frozen=True, eq=False)
class Masks(PromptGroup):
    """Dense masks ``(N, M, *spatial)``, each a prompt.

    Args:
        masks: of the call as it is.
        at: where they stand in the call.
    """

    masks: Tensor
    at: int
    kind = "mask"

    @property
    def present(self) -> np.ndarray:  # type: ignore[override]
        """See :class:`PromptGroup`."""
        return np.ones(self.masks.shape[:2], dtype=bool)

    @property
    def outputs_depend(self) -> bool:
        """See :attr:`PromptGroup.outputs_depend`."""
        return self.masks.shape[1] > 1

    def about(self, example: int, unit: int) -> dict[str, Any]:
        """See :meth:`PromptGroup.about`."""
        return {}

    def place(self, example: int, unit: int) -> PromptPlace:
        """See :meth:`PromptGroup.place`: what goes over an edge is lost, and the other edge is what it was."""
        origin = (0.0,) * (self.masks.ndim - 2)
        return PromptPlace(origin, origin, None)

    def left(self, states: np.ndarray) -> tuple[int, ...]:
        """See :meth:`PromptGroup.left`."""
        return (int((states != LEFT_OUT).sum()),)

    def put(self, call: list[Any], examples: np.ndarray, *, states: np.ndarray, offset: Offset) -> None:
        """See :meth:`PromptGroup.put`."""
        masks = call[self.at]
        for row, unit in zip(*np.nonzero(states > AS_IT_IS)):
            moved = masks[row, unit]
            for axis, step in enumerate(offset(int(row), int(unit))):
                whence = (torch.arange(moved.shape[axis], device=moved.device) - step).clamp(0, moved.shape[axis] - 1)
                moved = moved.index_select(axis, whence)
            masks[row, unit] = moved
        kept = torch.from_numpy(states != LEFT_OUT).to(masks.device)
        call[self.at] = masks[kept].reshape(len(masks), -1, *masks.shape[2:]) if bool(kept[0].any()) else None


@dataclass(frozen=True, eq=False)
class Texts(PromptGroup):
    """A text: token ids or embeddings ``(N, ...)``, one prompt.

    Args:
        n_examples: how many there are.
        at: where it stands in the call.
        nothing: ``(...)`` what stands there without a text; ``None``: nothing does.
    """

    n_examples: int
    at: int
    nothing: Tensor | None
    kind = "text"

    @property
    def present(self) -> np.ndarray:  # type: ignore[override]
        """See :class:`PromptGroup`."""
        return np.ones((self.n_examples, 1), dtype=bool)

    @property
    def how_left_out(self) -> str:
        """See :attr:`PromptGroup.how_left_out`."""
        return "left out of the call" if self.nothing is None else "no_text in its place"

    def about(self, example: int, unit: int) -> dict[str, Any]:
        """See :meth:`PromptGroup.about`."""
        return {}

    def place(self, example: int, unit: int) -> None:
        """See :meth:`PromptGroup.place`: a text has none."""
        return None

    def left(self, states: np.ndarray) -> tuple[int, ...]:
        """See :meth:`PromptGroup.left`."""
        return (int(states[0]) if self.nothing is None else 0,)

    def put(self, call: list[Any], examples: np.ndarray, *, states: np.ndarray, offset: Offset) -> None:
        """See :meth:`PromptGroup.put`."""
        gone = torch.from_numpy(states[:, 0] == LEFT_OUT)
        if self.nothing is None:
            call[self.at] = None if bool(gone.any()) else call[self.at]
        else:
            call[self.at][gone.to(call[self.at].device)] = self.nothing.to(call[self.at])


class DrawnPrompts(PromptGroup):
    """What is drawn of prompts in a channel of an image, on a background of 0: each connected part is one.

    A moved one is wiped out where it was; where it meets others, the value that is further from 0 stays.

    Args:
        image: ``(N, C, *spatial)`` of the call as it is.
        at: where it stands in the call.
        channel: which of its channels.
    """

    kind = "drawn"

    def __init__(self, image: Tensor, at: int, channel: int) -> None:
        self.at, self.channel = at, channel
        self._maps = image[:, channel].detach()
        d = image.ndim - 2
        labels = [ndimage.label(one.cpu().numpy() != 0, np.ones((3,) * d))[0] for one in self._maps]
        self._parts = [
            [(box, torch.from_numpy(label[box] == u + 1)) for u, box in enumerate(ndimage.find_objects(label))]
            for label in labels
        ]
        self.present = np.arange(max(map(len, self._parts))) < np.array([[len(parts)] for parts in self._parts])

    def about(self, example: int, unit: int) -> dict[str, Any]:
        """See :meth:`PromptGroup.about`; ``at`` is the middle, rows first."""
        box, inside = self._parts[example][unit]
        middle = [float(axis.float().mean()) + side.start for axis, side in zip(inside.nonzero().T, box)]
        return {"channel": self.channel, "at": middle}

    def place(self, example: int, unit: int) -> PromptPlace:
        """See :meth:`PromptGroup.place`."""
        box, _ = self._parts[example][unit]
        lower, upper = (tuple(map(float, corner)) for corner in zip(*((side.start, side.stop - 1) for side in box)))
        return PromptPlace(lower, upper, tuple(self._maps.shape[1:]))

    def left(self, states: np.ndarray) -> tuple[int, ...]:
        """See :meth:`PromptGroup.left`."""
        return ()

    def put(self, call: list[Any], examples: np.ndarray, *, states: np.ndarray, offset: Offset) -> None:
        """See :meth:`PromptGroup.put`."""
        maps = call[self.at][:, self.channel]
        changed: Sequence[tuple[int, int]] = list(zip(*(axis.tolist() for axis in np.nonzero(states != AS_IT_IS))))
        for row, unit in changed:
            box, inside = self._parts[examples[row]][unit]
            maps[row][box].masked_fill_(inside.to(maps.device), 0)
        for row, unit in changed:
            if states[row, unit] == LEFT_OUT:
                continue
            box, inside = self._parts[examples[row]][unit]
            steps = offset(row, unit)
            there = maps[row][tuple(slice(side.start + step, side.stop + step) for side, step in zip(box, steps))]
            drawn = torch.where(inside.to(maps.device), self._maps[examples[row]][box], there)
            there.copy_(torch.where(drawn.abs() > there.abs(), drawn, there))
