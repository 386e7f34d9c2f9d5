"""From a model's output to scores: which activation it needs, what a metric wants to be given, what it must return."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from captum_causalseg._checks import shown
from captum_causalseg.metrics import METRICS, Metric

__all__ = [
    "find_metric",
    "hard_labels",
    "in_domain",
    "in_single_precision",
    "named_score",
    "read_activation",
    "refuse_nan",
    "user_score",
]


def find_metric(metric: str | Callable[..., Tensor]) -> Metric:
    """The metric of this name, or one that calls the user's own function.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {sorted(METRICS)} or a callable, got {shown(metric)}")
        return METRICS[metric]
    if not callable(metric):
        raise TypeError(f"metric: expected a name or a callable, got {type(metric).__name__}")
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(name, metric, "probabilities", needs_reference=False, surrogate=name)


def read_activation(values: Tensor, activation: str) -> tuple[tuple[str, bool], bool]:
    """The activation for an output ``(N, C, *spatial)``, and whether classes exclude each other; then whether it is blank.

    Args:
        values: what the model returned.
        activation: what was asked for; ``"auto"`` is read from channel count and value range.
    """
    channels = values.shape[1]
    if activation == "softmax" and channels == 1:
        raise ValueError(
            'activation: "softmax" of a single channel is 1 everywhere; use "sigmoid" for a model with one channel'
        )
    if activation == "shares":
        if bool(values.amin() < 0):
            raise ValueError(
                f'activation: "shares" divides class scores by their sum, and these go down to {float(values.amin()):g}'
            )
        # A single class has all of the sum: what it has is compared with the threshold.
        return (("shares", True) if channels > 1 else ("none", False)), bool(values.amin() == values.amax())
    is_probability = bool((values.amin() >= 0) & (values.amax() <= 1))
    if activation == "auto":
        default = "sigmoid" if channels == 1 else "softmax"
        if bool(values.amin() == values.amax()):
            return (default, default == "softmax"), True
        activation = "none" if is_probability else default
    adds_to_one = channels > 1 and is_probability and bool((values.sum(1) - 1).abs().amax() < 1e-2)
    return (activation, activation == "softmax" or (activation == "none" and adds_to_one)), False


def refuse_nan(logits: Tensor) -> None:
    """Raise if a model's output holds NaN."""
    if bool(logits.isnan().any()):
        raise ValueError("model: it returned NaN; check the model and its inputs (half precision overflows, for one)")


def in_single_precision(logits: Tensor) -> Tensor:
    """The same logits, in float32 where they come in less: a sum over a region would lose most of it."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def probabilities(logits: Tensor, activation: str) -> Tensor:
    """The output after its activation."""
    if activation == "softmax":
        return logits.softmax(1)
    if activation == "shares":
        # Where no class has any, all have nothing.
        return logits / logits.sum(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    return logits.sigmoid() if activation == "sigmoid" else logits


def hard_labels(logits: Tensor, activation: str, exclusive: bool, threshold: float) -> Tensor:
    """Boolean ``(N, C, *spatial)``: the largest of exclusive classes, else whatever is above the threshold.

    Raises:
        ValueError: the threshold is one that all probabilities or none are above.
    """
    if activation == "labels":
        # Not the largest: a label beyond the known classes belongs to none of them.
        return logits > 0.5
    if exclusive:
        classes = torch.arange(logits.shape[1], device=logits.device)
        return logits.argmax(1, keepdim=True) == classes.view(-1, *(1,) * (logits.ndim - 2))
    if activation == "sigmoid" and not 0 < threshold < 1:
        raise ValueError(
            f"threshold: expected a probability between 0 and 1, for the output goes through a sigmoid, got {threshold:g}; with "
            'activation="none" it is compared with the output itself'
        )
    return probabilities(logits, activation) > threshold


def in_domain(metric: Metric, logits: Tensor, activation: str, exclusive: bool, threshold: float) -> Tensor:
    """What the metric wants to be given.

    Raises:
        ValueError: the model returns labels, and the metric wants more than that.
    """
    domain = metric.domain
    if activation == "labels" and METRICS.get(metric.name) is metric and domain != "labels":
        hard = sorted(name for name, one in METRICS.items() if one.domain == "labels")
        raise ValueError(
            f"metric: {metric.name!r} is computed from {domain.replace('_', ' ')}, but the model returns labels, which have none; "
            f"expected one of {hard} or a callable"
        )
    if domain == "labels":
        return hard_labels(logits, activation, exclusive, threshold=threshold).to(logits.dtype)
    if domain == "probabilities":
        return probabilities(logits, activation)
    if domain == "log_odds" and activation in ("none", "shares"):
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log() if exclusive else logits.logit(eps=1e-7)
    return logits


def named_score(
    metric: Metric, prediction: Tensor, truth: Tensor | None, masks: Tensor, given: Mapping[str, bool | float]
) -> Tensor:
    """The scores ``(N, C, R)`` of a metric of the table, which is passed those options of ``given`` that it takes.

    Raises:
        ValueError: it returned another shape.
    """
    scores = metric.function(prediction, truth, masks, **{name: given[name] for name in metric.options})
    if scores.ndim != 3 or scores.shape[::2] != (prediction.shape[0], masks.shape[1]):
        raise ValueError(
            f"metric: {metric.name!r} should return (N, C, R) with N={prediction.shape[0]} and R={masks.shape[1]}, got "
            f"{tuple(scores.shape)}"
        )
    return scores


def user_score(metric: Metric, prediction: Tensor, truth: Tensor | None, masks: Tensor) -> Tensor:
    """What a user's own function returns, if that is scores per example.

    Raises:
        ValueError: it is not.
    """
    n = prediction.shape[0]
    truth = None if truth is None else truth.expand(n, *truth.shape[1:])
    scores: Any = metric.function(prediction, truth, masks.expand(n, *masks.shape[1:]))
    if not isinstance(scores, Tensor) or scores.ndim == 0 or scores.shape[0] != n:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"metric: expected scores of shape (N, K) with N={n}, got {got}")
    return scores
