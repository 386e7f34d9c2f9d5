"""Calls that are refused: what they say, and that nothing was paid for."""

import math

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PdCR

QUICKLY = settings(max_examples=50, deadline=None, derandomize=True)
SIZE = 8
N = 2
NAN, INF = math.nan, math.inf


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def images(n: int = N, channels: int = 1) -> Tensor:
    return random(n, channels, SIZE, SIZE)


class Counting(nn.Module):
    """Counts the calls of a function of the number of the call and its arguments; by default three scores per example."""

    def __init__(self, function=None) -> None:
        super().__init__()
        self.calls = 0
        self.function = function or (lambda call, x, *_: torch.stack([x.flatten(1).sum(1) * k for k in (1, 2, 3)], 1))

    def forward(self, *arguments):
        self.calls += 1
        return self.function(self.calls, *arguments)


def refused(expected, match, *, at_most: int, method=AverageTreatmentEffect, model=None, explained=None, **arguments) -> str:
    """Attribute, expect the error, count what it cost, and return the message. ``model`` counts what ``explained`` costs."""
    model = model or Counting()
    arguments = {"inputs": images(), "baselines": 0, "block_size": 2, "perturbations_per_eval": 2} | arguments
    if "feature_mask" in arguments and arguments["block_size"] == 2:
        del arguments["block_size"]
    with pytest.raises(expected, match=match) as caught:
        method(explained or model).attribute(**arguments)
    assert model.calls <= at_most, f"{model.calls} forwards were spent before: {caught.value}"
    return str(caught.value)


METHODS = pytest.mark.parametrize("method", [AverageTreatmentEffect, PdCR])
