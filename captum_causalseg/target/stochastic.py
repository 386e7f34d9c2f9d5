"""Models that answer differently each time, made repeatable: the same noise for the same key."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._state import RANDOM_STATES
from captum_causalseg.target.batches import rows

__all__ = ["one_by_one", "seeded"]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch (CPU and CUDA), numpy and random with a key of integers within the block, and put their states back.

    These states are the whole process's: other threads that want them seeded wait.
    """
    states = np.random.SeedSequence(key).generate_state(4, np.uint32)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with RANDOM_STATES:
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=devices):
                # Where there is no other device, `torch.manual_seed` remembers the call for each of them, with its stack: that takes 300 times as long.
                seed = torch.default_generator.manual_seed if torch.get_device_module() is torch.cpu else torch.manual_seed
                seed(int(states[0]) << 31 | int(states[1]) >> 1)
                np.random.seed(int(states[2]))
                random.seed(int(states[3]))
                yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def one_by_one(
    function: Callable[..., Tensor], inputs: Sequence[Any], n_examples: int, keys: Sequence[tuple[int, ...]]
) -> Tensor:
    """Every example alone, with the random numbers of its own key: they depend neither on the batch nor on the place in it.

    Args:
        function: inputs to ``(1, ...)``.
        inputs: tensors ``(N, ...)`` are cut into examples, all else is passed as it is.
        n_examples: ``N``.
        keys: one per example.

    Returns:
        ``(N, ...)``.
    """
    found = []
    for row, key in zip(rows(inputs, n_examples), keys):
        # Copies: what a model does to its inputs in place must not reach the next sample.
        copies = [value.clone() if isinstance(value, Tensor) and value.ndim else value for value in row]
        with seeded(*key):
            found.append(function(*copies))
    return torch.cat(found)
