"""How a run is carried out: chosen once, handed on whole, and said in the settings of what comes of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from captum_causalseg.interventions.frames import Frame
from captum_causalseg.target.scorer import Scorer, as_scorer

__all__ = ["FEWEST_ON_CPU", "WHOLE", "Execution", "Part"]


FEWEST_ON_CPU = 2
"""Images that a CPU runs at once: one volume of 64 x 64 x 64 alone takes four times as long as each of two (192 and 51 ms)."""


@dataclass(frozen=True)
class Part:
    """Every ``of``-th unit, from ``number`` on. Neighbors go to different parts: units that matter lie together.

    The draws of a unit do not depend on which others there are.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"number: expected 0 to {self.of - 1} for {self.of} part(s), got {self.number}")

    def units(self, n_units: int) -> np.ndarray:
        """Which units ``(U,)`` are in it."""
        mine: np.ndarray = np.arange(n_units) % self.of == self.number
        return mine


WHOLE = Part()
"""All units."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the model is run, and on what.

    Args:
        perturbations_per_eval: interventions per example in one forward pass; with 1, every image goes through the model alone.
        compile: through :func:`torch.compile`.
        autocast: in this lower precision where torch thinks fit; ``None`` for the model's own.
        memory_format: how intervened images lie in memory; in another one than the model's own, its answers differ in the last
            digits.
        device_ids: of a ``DataParallel`` model.
        part: of the units, those that are intervened on.
        window: of the images, what is run; ``None`` for the whole. Of several windows, the largest.
        by_windows: of a sliding-window model, only the windows are run that matter.
        witnessed: whether it is looked at, before and after, that the model's answers can be compared; else the caller does that for
            several runs.
        replay: what does not follow from a layer is not computed again; given up by itself where the model does not allow it.
    """

    perturbations_per_eval: int = 16
    compile: bool = False
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format | None = None
    device_ids: tuple[int, ...] | None = None
    part: Part = WHOLE
    window: Frame | None = None
    by_windows: bool = False
    witnessed: bool = True
    replay: bool = True

    def scorer(self, forward_func: Callable[..., Any]) -> Scorer:
        """What is run: the function, every image alone if it is one perturbation at a time."""
        scorer = as_scorer(forward_func)
        return scorer if self.perturbations_per_eval > 1 else scorer.each_alone()

    @property
    def channels_last(self) -> bool:
        """Whether images lie pixel by pixel in memory, and not channel by channel."""
        return self.memory_format in (torch.channels_last, torch.channels_last_3d)

    @property
    def exact(self) -> bool:
        """Whether scores are the model's own, to rounding."""
        return self.autocast is None and not self.compile

    @property
    def differs(self) -> bool:
        """Whether what is computed differs in the last digits from what the model gives by itself."""
        return self.window is not None or self.by_windows or self.channels_last or self.compile

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """The precision that the model is run in."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)

    def settings(self) -> dict[str, Any]:
        """What is kept with the statistics."""
        return {
            "compile": self.compile,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "memory_format": "channels_last" if self.channels_last else "contiguous",
        }
