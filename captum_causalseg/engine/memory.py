"""As much at once as fits into memory."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["fitting"]

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found")


def fitting(evaluate: Callable[[int], _Found], size: int, what: str = "interventions") -> tuple[_Found, int]:
    """What is found for as many as fit into memory, and how many that are.

    Args:
        evaluate: for the first so many.
        size: how many to begin with; halved whenever memory runs out, which is said in the log.
        what: is evaluated, in words.

    Raises:
        torch.OutOfMemoryError: one alone does not fit.
    """
    while True:
        try:
            return evaluate(size), size
        except torch.OutOfMemoryError:
            if size <= 1:
                raise
        # Outside of the handler: the error holds the frames, and what they hold.
        size //= 2
        logger.warning("Out of memory: continuing with %d %s per batch", size, what)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
