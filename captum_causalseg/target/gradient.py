"""Scores that have no gradient, and say so where one is asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["has_gradient", "refusing_gradient", "why_no_gradient"]


def refusing_gradient(scores: Tensor, reason: str, sources: Sequence[Tensor]) -> Tensor:
    """The same scores, as if computed from ``sources``; whoever differentiates them is told the reason.

    PyTorch would say that an element of tensors "does not require grad".
    """
    flat: Tensor = _Flat.apply(scores, reason, *sources)  # type: ignore[no-untyped-call]
    return flat


def has_gradient(scores: Tensor) -> bool:
    """Whether scores can be differentiated."""
    return scores.requires_grad and why_no_gradient(scores) is None


def why_no_gradient(scores: Tensor) -> str | None:
    """What scores of :func:`refusing_gradient` say; ``None`` of others."""
    return getattr(scores.grad_fn, "no_gradient_for", None)


class _Flat(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, reason: str, *sources: Tensor) -> Tensor:
        return scores.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.no_gradient_for = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(ctx.no_gradient_for)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        raise RuntimeError(ctx.no_gradient_for)
