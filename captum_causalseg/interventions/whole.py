"""Interventions on the input: donors pasted into copies of it (or of the window that is enough), the model run on each."""

import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg.donors import BoundDonors
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.rounding import tolerance
from captum_causalseg.interventions.units import Units, gather, paste
from captum_causalseg.target import SegmentationTarget

__all__ = ["Execution", "WholeInput", "untimed"]

logger = logging.getLogger(__name__)

# The trial of the memory format: both in turn, on batches of so many images; so many times its work must lie ahead.
_TRIAL, _TRIAL_BATCH, _WORTH_A_TRIAL = (False, True, False, True), 4, 30
# A format has to be this much faster: at less, the clock would decide by chance from run to run.
_CLEARLY_FASTER = 1.1


@dataclass(frozen=True)
class Execution:
    """How the model is run.

    Args:
        compile: through :func:`torch.compile`.
        autocast: in this lower precision where torch thinks fit; ``None`` for the model's own.
    """

    compile: bool = False
    autocast: torch.dtype | None = None

    @property
    def exact(self) -> bool:
        """Whether scores are the model's own, to rounding."""
        return self.autocast is None and not self.compile


class WholeInput(ModelEvaluator):
    """Runs ``forward_func`` on intervened copies of the inputs.

    Args:
        forward_func, inputs, additional_forward_args, units, donors: as of :class:`ModelEvaluator`; the tensors are the inputs.
        execution: how the model is run.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Sequence[Tensor],
        additional_forward_args: Sequence[Any],
        units: Units,
        donors: Sequence[BoundDonors],
        execution: Execution | None = None,
    ) -> None:
        super().__init__(forward_func, inputs, additional_forward_args, units, donors)
        self.execution = execution or Execution()
        self.channels_last = False
        self._memory: list[Tensor] = []
        self._fast: Any = _compiled(forward_func) if self.execution.compile else forward_func

    @property
    def tensors(self) -> list[Tensor]:
        """What is intervened on."""
        return self.inputs

    @property
    def differs(self) -> bool:
        """Whether interventions are computed in another way than the observed scores are."""
        return super().differs or self.channels_last or self.execution.compile

    @functools.cached_property
    def noise_population(self) -> int:
        """Of how many random states a draw takes one, besides its donor: 1 where the model is not random."""
        population = super().noise_population
        if population > 1 and not self.execution.exact:
            raise ValueError(
                "compile, autocast: not for a target with n_samples, whose pairs of runs have to be the model's own"
            )
        return population

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        with self._precision():
            scores = self.forward_func(*gather(self.inputs, examples), *gather(self.arguments, examples))
        if self.runs_each > 1:
            self.spent["further samples"] += len(examples) * (self.runs_each - 1)
        return self._checked(scores, len(examples))

    def baseline(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, computed as those with one."""
        return self._scores(self._copies(examples), examples)

    def __call__(self, examples: np.ndarray, units: np.ndarray, donors: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` with each unit replaced by its donor."""
        n = len(examples)
        if self.noise_population > 1:
            return self._of_pairs(examples, units, donors)
        if self.execution.compile and self._memory and n < len(self._memory[0]):
            # Another batch size would be compiled anew.
            examples, units, donors = (
                np.pad(a, [(0, len(self._memory[0]) - n)] + [(0, 0)] * (a.ndim - 1), mode="edge")
                for a in (examples, units, donors)
            )
        inputs = self._copies(examples)
        paste(inputs, self.units, self._donors, examples, units, donors, self.frames)
        return self._scores(inputs, examples)[:n]

    def _intervened_with(self, noise: np.ndarray, examples: np.ndarray, units: np.ndarray, donors: np.ndarray) -> Tensor:
        inputs = self._copies(examples)
        paste(inputs, self.units, self._donors, examples, units, donors, self.frames)
        return self._sampled(inputs, examples, noise)

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, with these tensors in the inputs' place."""
        # Not in the lower precision of interventions: there, a window that gives other logits would pass for rounding.
        return self.logits_of_inputs(tensors, examples)

    def tune(self, batch_size: int, n_interventions: int) -> None:
        """Try both memory formats on small batches and keep the faster one, if enough lies ahead to make it worth it."""
        batch_size = min(batch_size, _TRIAL_BATCH)
        if not _TIMED.get():
            return
        if n_interventions < len(_TRIAL) * batch_size * _WORTH_A_TRIAL:
            return
        if not isinstance(self.forward_func, nn.Module) or not self.execution.exact or self.noise_population > 1:
            return
        if not any(isinstance(module, nn.modules.conv._ConvNd) for module in self.forward_func.modules()):
            return
        if not any(tensor.ndim in (4, 5) for tensor in self.inputs):
            return
        key = tuple((tuple(x.shape[1:]), x.dtype, x.device) for x in self.inputs), batch_size, torch.get_num_threads()
        known = _FORMATS.setdefault(_innermost(self.forward_func), {})
        if key not in known:
            known[key] = self._try_formats(batch_size)
        self._set_format(known[key])

    def _try_formats(self, batch_size: int) -> bool:
        examples = np.arange(batch_size) % len(self.inputs[0])
        seconds: dict[bool, list[float]] = {False: [], True: []}
        found: dict[bool, Tensor] = {}
        try:
            for channels_last in _TRIAL:
                self._set_format(channels_last)
                inputs = self._copies(examples)
                _wait_for(inputs[0].device)
                began = time.perf_counter()
                raw = self._raw(inputs, examples)
                _wait_for(inputs[0].device)
                seconds[channels_last].append(time.perf_counter() - began)
                # Not all of the output: two of them would be the most memory that is ever taken.
                found[channels_last] = raw if self._local is None else self._local.near(raw)
                del raw
                self.spent["memory format"] += batch_size
            difference = float((found[True] - found[False]).abs().max())
        except torch.OutOfMemoryError:
            return False
        except Exception:  # whatever a model says to a memory format that it does not take
            if not self.channels_last:
                raise
            return False
        gain = min(seconds[False]) / min(seconds[True])
        agrees = difference <= tolerance(found[False])
        logger.info("channels-last: %.2f times as fast, outputs differ by at most %.2g", gain, difference)
        return agrees and gain >= _CLEARLY_FASTER

    def _set_format(self, channels_last: bool) -> None:
        if channels_last != self.channels_last:
            self.channels_last, self._memory = channels_last, []

    def _copies(self, examples: np.ndarray) -> list[Tensor]:
        """Copies of the examples' inputs, in memory that all batches use."""
        n = len(examples)
        # What is left of a batch goes into the beginning; after memory ran out, the old one goes first.
        if not self._memory or not n <= len(self._memory[0]):
            self._memory = []
            self._memory = [_empty((n, *x.shape[1:]), x, self.channels_last) for x in self.inputs]
        copies = [memory[:n] for memory in self._memory]
        for copy, tensor in zip(copies, self.inputs):
            if len(tensor) == 1:
                copy.copy_(tensor.expand(copy.shape))
            else:
                copy.copy_(tensor.index_select(0, torch.as_tensor(examples, device=tensor.device)))
        return copies

    def _raw(self, inputs: list[Tensor], examples: np.ndarray) -> Any:
        """Logits where they can be scored locally, else scores."""
        with self._precision():
            if self._local is not None:
                return self._fast.logits(*inputs, *gather(self._model_arguments, examples))
            return self._fast(*inputs, *gather(self.arguments, examples))

    def _scores(self, inputs: list[Tensor], examples: np.ndarray) -> Tensor:
        raw = self._raw(inputs, examples)
        return self._checked(raw if self._local is None else self._local(raw, examples), len(examples))

    def _fit_to_window(self) -> None:
        self._memory, self.channels_last = [], False

    def _precision(self) -> AbstractContextManager[Any]:
        if self.execution.autocast is None:
            return nullcontext()
        return torch.autocast(self.inputs[0].device.type, dtype=self.execution.autocast)


# Whether the clock may decide how the model is run.
_TIMED: ContextVar[bool] = ContextVar("timed", default=True)
# Whether channels-last was faster, by model and batch: tried once.
_FORMATS: "weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]]" = weakref.WeakKeyDictionary()


@contextmanager
def untimed() -> Iterator[None]:
    """Within the block no trial decides how the model is run: the last digits are the same on every machine of a kind."""
    token = _TIMED.set(False)
    try:
        yield
    finally:
        _TIMED.reset(token)


def _compiled(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(forward_func, SegmentationTarget):
        return forward_func.with_model(torch.compile(forward_func.model))
    compiled: Callable[..., Any] = torch.compile(forward_func)
    return compiled


def _innermost(module: nn.Module) -> nn.Module:
    inner = module.model if isinstance(module, SegmentationTarget) else module
    return inner if isinstance(inner, nn.Module) else module


def _empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(len(shape), torch.contiguous_format) if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=wanted)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
