"""Models that take one image at a time."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_causalseg.target.scores import checked_scores

__all__ = ["Batches", "EachAlone", "rows"]

logger = logging.getLogger(__name__)


def rows(inputs: Sequence[Any], n_examples: int) -> Iterator[tuple[Any, ...]]:
    """The inputs of each example alone: tensors ``(N, ...)`` are cut, all else is passed as it is."""
    for example in range(n_examples):
        yield tuple(
            value[example : example + 1] if isinstance(value, Tensor) and value.ndim and len(value) == n_examples else value
            for value in inputs
        )


class Batches:
    """Whether a model takes several images at once, which shows when it first gets several.

    One that was written for a single image raises then, or returns one answer for all. If it answers each of them alone, that is how
    batches are run from then on. Once a batch went through, a failure is a failure.

    Args:
        taken: whether batches are taken, where that is known.
        why_not: why they are not, where that is known.

    Attributes:
        why_not: why batches are run image by image, once that is known.
    """

    def __init__(self, taken: bool | None = None, why_not: str | None = None) -> None:
        self.taken, self.why_not = taken, why_not

    def run(self, answer: Callable[..., Tensor], inputs: Sequence[Any], n_examples: int) -> Tensor:
        """``answer(*inputs)``, ``(N, ...)``; it raises where it is not an answer to every example."""
        if n_examples == 1:
            return answer(*inputs)
        if self.taken is False:
            return torch.cat([answer(*row) for row in rows(inputs, n_examples)])
        if self.taken:
            return answer(*inputs)
        try:
            # Copies: it may fail after it has worked in place.
            found = answer(*(value.clone() if isinstance(value, Tensor) else value for value in inputs))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            found = self._each_alone(answer, inputs, n_examples, error=error)
            self.taken = False
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.info("model: it takes one image at a time, batches are run image by image (%s)", reason)
            self.why_not = f"the model takes one image at a time: of several it says {reason!r}"
            return found
        self.taken = True
        return found

    @staticmethod
    def _each_alone(answer: Callable[..., Tensor], inputs: Sequence[Any], n_examples: int, error: Exception) -> Tensor:
        one_by_one = rows(inputs, n_examples)
        try:
            found = [answer(*next(one_by_one))]
        except Exception:
            # Not a matter of the batch: what it said to the batch is what is wrong.
            raise error from None
        found += [answer(*row) for row in one_by_one]
        return torch.cat(found)


class EachAlone:
    """A forward function that is given every example alone, whatever the batch.

    Args:
        forward_func: inputs and additional arguments to scores ``(N, ...)``.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    def __call__(self, *inputs: Any) -> Tensor:
        """The scores of each example, ``(N, ...)``."""
        scores: list[Tensor] = []
        for row in rows(inputs, len(inputs[0])):
            scores.append(checked_scores(self.forward_func(*row), 1, tuple(scores[0].shape[1:]) if scores else None))
        return torch.cat(scores)
