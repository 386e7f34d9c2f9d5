"""What is pasted over everything outside a support, which must leave the regions of interest as they are."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.interventions.support_probes import at_least_single

__all__ = ["Trial", "hardest", "trials_of"]

Trial = tuple[str, Callable[[int, int], Tensor]]
"""What is pasted: its name, and the values ``(C, *spatial)`` for an example and a tensor."""


def trials_of(tensors: Sequence[Tensor], stand_ins: Sequence[Sequence[Tensor]], seed: int) -> list[Trial]:
    """All but the first are finite in the tensors' type; large is relative to the example's largest absolute value."""

    def constant(factor: float, tint: int, n: int, slot: int) -> Tensor:
        image = tensors[slot][n]
        amplitude, largest = _amplitude(image)
        # Equal constants in all channels and tensors would not be seen by a difference of them.
        share = np.random.default_rng((seed, tint, n, slot)).uniform(-1, 1, (len(image), *(1,) * (image.ndim - 1)))
        return torch.from_numpy((share if tint else np.ones_like(share)) * np.clip(factor * amplitude, -largest, largest))

    def noise(factor: int, n: int, slot: int) -> Tensor:
        image = tensors[slot][n]
        amplitude, largest = _amplitude(image)
        mean, scale = 0.0, factor * amplitude
        if factor == 0 and (finite := at_least_single(image[image.isfinite()])).numel():
            mean, scale = float(finite.mean()), float(finite.std(correction=0))
        drawn = np.random.default_rng((seed, factor, n, slot)).standard_normal(tuple(image.shape))
        return torch.from_numpy(drawn).mul_(scale).add_(mean).clamp_(-largest, largest)

    natural = list(stand_ins)
    if not natural:
        natural.append([t.flip(list(range(1, t.ndim))) for t in tensors])
        natural.append([t.roll([length // 2 for length in t.shape[1:]], list(range(1, t.ndim))) for t in tensors])
        natural += [[t.roll(1, 0) for t in tensors]] if len(tensors[0]) > 1 else []
    given = [partial(lambda values, n, slot: values[slot][n], values) for values in natural]
    trials: list[Trial] = [("NaN", partial(constant, torch.nan, 0)), ("noise like the image", partial(noise, 0))]
    trials += [(f"natural stand-in {i}", values) for i, values in enumerate(given)]
    trials += [(f"noise ({f} times the largest value)", partial(noise, f)) for f in (10, 1000)]
    trials += [(f"{f} times the largest value", partial(constant, f, 0)) for f in (1, -1, 1000, -1000)]
    return trials + [(f"a constant per channel, number {i}", partial(constant, 1000, i)) for i in (1, 2)]


def hardest(trials: Sequence[Trial]) -> list[Trial]:
    """NaN, natural stand-ins, and the largest values: what has been through all trials on a part of the image needs no more."""
    return [
        trial
        for trial in trials
        if trial[0] == "NaN" or "stand-in" in trial[0] or "(1000" in trial[0] or "number 1" in trial[0]
    ]


def _amplitude(image: Tensor) -> tuple[float, float]:
    """The largest absolute value, 1 if that is 0, and the largest that the type can hold."""
    values = at_least_single(torch.where(image.isfinite(), image, 0.0))
    return float(values.abs().max()) or 1.0, torch.finfo(image.dtype).max
