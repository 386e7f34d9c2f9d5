"""Interventions on the prompts of a call, and on its images beside them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.donors.moved_prompts import BoundMoves
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.frames import Frame, gather
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.prompts import LEFT_OUT, PromptGroup
from captum_causalseg.interventions.sites import Site

__all__ = ["PromptEvaluator", "PromptSite"]


@dataclass(frozen=True, eq=False)
class PromptSite(Site):
    """The prompts of a call: a tensor ``(N, 1, U)`` of what becomes of each of them, 0 as it is.

    Args:
        inputs, arguments: as of :class:`Site`.
        groups: the prompts, ``U`` in all.
        moves: where they are moved; ``None`` where they are left out.
        with_inputs: whether the inputs are replaced as well; their tensors come first then.
    """

    inputs: tuple[Tensor, ...]
    arguments: tuple[Any, ...]
    groups: tuple[PromptGroup, ...]
    moves: BoundMoves | None = None
    with_inputs: bool = False
    frames: None = field(default=None, init=False)
    no_window = "a prompt may change what is segmented anywhere"
    no_support = no_window

    @property
    def is_tuple(self) -> bool:  # type: ignore[override]
        """See :attr:`Site.is_tuple`."""
        return self.with_inputs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.tensors`."""
        n_prompts = sum(group.present.shape[1] for group in self.groups)
        as_they_are = torch.zeros(len(self.inputs[0]), 1, n_prompts, dtype=torch.float64, device="cpu")
        return (*(self.inputs if self.with_inputs else ()), as_they_are)

    @property
    def bypass(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.bypass`."""
        return () if self.with_inputs else self.inputs

    def calls(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Rows that have arguments of the same shapes, and the call for them."""
        states = tensors[-1][:, 0].cpu().numpy().astype(np.int64)
        ends = np.cumsum([group.present.shape[1] for group in self.groups]).tolist()
        parts = [slice(end - group.present.shape[1], end) for group, end in zip(self.groups, ends)]
        keys = [tuple(group.left(row[part]) for group, part in zip(self.groups, parts)) for row in states]
        for key in dict.fromkeys(keys):
            rows = np.array([place for place, other in enumerate(keys) if other == key])
            images = [one[rows] for one in tensors[:-1]] if self.with_inputs else gather(self.inputs, examples[rows])
            call = [*images, *gather(self.arguments, examples[rows])]
            for group, part in zip(self.groups, parts):

                def offset(row: int, unit: int, rows: np.ndarray = rows, first: int = part.start) -> tuple[int, ...]:
                    assert self.moves is not None
                    number = int(states[rows[row], first + unit]) - 1
                    return self.moves.offset(int(examples[rows[row]]), first + unit, number)

                group.put(call, examples[rows], states=states[rows][:, part], offset=offset)
            yield rows, call

    def run(self, function: Callable[..., Any], tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """See :meth:`Site.run`."""
        found = [(rows, function(*call)) for rows, call in self.calls(tensors, examples)]
        if len(found) == 1:
            return found[0][1]
        shapes = {tuple(answer.shape[1:]) for _, answer in found}
        if len(shapes) > 1:
            raise ValueError(_several_objects(sorted(shapes)))
        order = np.argsort(np.concatenate([rows for rows, _ in found]))
        return torch.cat([answer for _, answer in found])[torch.from_numpy(order).to(found[0][1].device)]

    def with_arguments(self, arguments: Sequence[Any]) -> "PromptSite":
        """See :meth:`Site.with_arguments`."""
        return replace(self, arguments=tuple(arguments))

    def cropped(self, window: Frame, spatial: torch.Size) -> None:
        """See :meth:`Site.cropped`."""
        return None


class PromptEvaluator(InputEvaluator):
    """Runs a scorer on calls with other prompts; arguments as of :class:`ModelEvaluator`, the site is a :class:`PromptSite`."""

    site: PromptSite
    _answer_shape: tuple[int, ...] | None = None

    def answered(self, inputs: Sequence[Tensor], examples: np.ndarray) -> Any:
        """See :meth:`InputEvaluator.answered`."""
        answers = super().answered(inputs, examples)
        states = inputs[-1]
        if any(group.outputs_depend for group in self.site.groups) and bool((states == LEFT_OUT).any()):
            if self._answer_shape is None:
                self.note("the call as it is", 1)
                as_it_is = [tensor[:1] for tensor in self.site.tensors]
                self._answer_shape = tuple(super().answered(as_it_is, np.zeros(1, dtype=np.int64)).shape[1:])
            if tuple(answers.shape[1:]) != self._answer_shape:
                raise ValueError(_several_objects([tuple(answers.shape[1:]), self._answer_shape]))
        return answers

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        found, order = [], []
        for rows, call in self.site.calls(self.intervened(interventions), interventions.example):
            found.append(self._checked(self.scorer.sampled(noise[rows].tolist(), *call), len(rows)))
            order.append(rows)
        return torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate(order)))]


def _several_objects(shapes: Sequence[tuple[int, ...]]) -> str:
    return (
        "additional_forward_args: without one of the prompts, the model's answer has another shape "
        f"({' and '.join(map(str, shapes))}): each prompt is an object of its own there. Explain one object at a time, or move its prompts "
        "(baselines=MovedPrompts(radius=8))"
    )
