"""Interventions on the input: donors pasted into copies of it (or of the window that is enough), the model run on each."""

import functools
import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._local_scores import LocalScores
from captum_causalseg.donors import BoundDonors
from captum_causalseg.interventions.units import Frame, Units, gather, paste
from captum_causalseg.target import SegmentationTarget

__all__ = ["Execution", "WholeInput", "checked_scores", "relative_tolerance", "tolerance"]

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


class WholeInput:
    """An evaluator (see :mod:`captum_causalseg.engine.run`) that runs ``forward_func`` on intervened copies of the inputs.

    Args:
        forward_func: inputs and additional arguments to scores ``(N, *output_shape)``.
        inputs: tensors ``(N, C, *spatial)``.
        additional_forward_args: tensors ``(N, ...)`` go with their example, all else is passed as it is.
        units: what is replaced.
        donors: per input, what it is replaced by.
        execution: how the model is run.

    Attributes:
        output_shape: shape of one example's scores, known after :meth:`observe`.
        spent: images that went through the model besides the interventions and the observed ones, by purpose.
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
        self.forward_func = forward_func
        self.inputs, self.arguments = list(inputs), list(additional_forward_args)
        self._units, self._donors = units, donors
        self.execution = execution or Execution()
        self.output_shape: tuple[int, ...] | None = None
        self.spent: Counter[str] = Counter()
        self.channels_last = False
        self._frames: list[Frame | None] | None = None
        self._local: LocalScores | None = None
        self._smooth: LocalScores | None = None
        self._memory: list[Tensor] = []
        self._fast: Any = _compiled(forward_func) if self.execution.compile else forward_func

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` of the inputs as they are."""
        with self._precision():
            scores = self.forward_func(*gather(self.inputs, examples), *gather(self.arguments, examples))
        return self._checked(scores, len(examples))

    @property
    def differs(self) -> bool:
        """Whether interventions are computed in another way than the observed scores are."""
        return self._frames is not None or self.channels_last or self.execution.compile

    def baseline(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, computed as those with one."""
        return self._scores(self._copies(examples), examples)

    def __call__(self, examples: np.ndarray, units: np.ndarray, donors: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` with each unit replaced by its donor."""
        n = len(examples)
        if self.execution.compile and self._memory and n < len(self._memory[0]):
            # Another batch size would be compiled anew.
            examples, units, donors = (
                np.pad(a, [(0, len(self._memory[0]) - n)] + [(0, 0)] * (a.ndim - 1), mode="edge")
                for a in (examples, units, donors)
            )
        inputs = self._copies(examples)
        paste(inputs, self._units, self._donors, examples, units, donors, self._frames)
        return self._scores(inputs, examples)[:n]

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, ``(B, C, *spatial)``, with these tensors in the inputs' place."""
        assert isinstance(self.forward_func, SegmentationTarget)
        return self.forward_func.logits(*tensors, *gather(self._model_arguments, examples))

    @property
    def tensors(self) -> list[Tensor]:
        """What is intervened on."""
        return self.inputs

    def local_scores(self) -> LocalScores | None:
        """How rows of logits are scored from the surroundings of the RoIs (from now on); ``None`` if that is not possible."""
        if self._local is None and isinstance(self.forward_func, SegmentationTarget):
            self._local = self.forward_func.local_scores(*self.inputs, *self.arguments)
        return self._local

    @property
    def local_rois(self) -> Tensor:
        """The regions of interest in this window, ``(N or 1, R, *spatial)``; there must be local scores."""
        assert self._local is not None
        return self._local.rois

    def windowed(self, window: Frame, spatial: torch.Size) -> "WholeInput | None":
        """The same on a window of images of this spatial shape; ``None`` if an input is an image of another one."""
        frames = window.frames(self.inputs, spatial)
        if frames is None or self._local is None:
            return None
        arguments = window.crop_images(self._model_arguments, spatial)
        inputs = window.crop_images(self.inputs, spatial)
        other = WholeInput(self.forward_func, inputs, arguments, self._units, self._donors, self.execution)
        other._frames, other._local = frames, self._local.cropped(window.starts, window.size)
        other._smooth = smooth_local(self.forward_func, [*self.inputs, *self.arguments], window)
        other.output_shape, other._fast, other.spent = self.output_shape, self._fast, self.spent
        return other

    def smooth_scores(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor | None:
        """Differentiable scores of a window that holds these tensors; ``None`` if only the whole image gives them."""
        return None if self._smooth is None else self._smooth(self.logits(tensors, examples), examples)

    @property
    def frames(self) -> list[Frame | None] | None:
        """Per input, which window of it is held; ``None`` for the whole."""
        return self._frames

    def crop(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like :attr:`tensors` of the whole, as this window holds them."""
        frames = self._frames or [None] * len(tensors)
        return [x if frame is None else frame.crop(x) for x, frame in zip(tensors, frames)]

    def tune(self, batch_size: int, n_interventions: int) -> None:
        """Try both memory formats on small batches and keep the faster one, if enough lies ahead to make it worth it."""
        batch_size = min(batch_size, _TRIAL_BATCH)
        if n_interventions < len(_TRIAL) * batch_size * _WORTH_A_TRIAL:
            return
        if not isinstance(self.forward_func, nn.Module) or not self.execution.exact:
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

    def spread(self, donors: np.ndarray) -> np.ndarray:
        """Donor numbers for every input ``(B, slots)``."""
        return donors

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

    def _checked(self, scores: Any, n: int) -> Tensor:
        checked = checked_scores(scores, n, self.output_shape)
        self.output_shape = tuple(checked.shape[1:])
        return checked.flatten(1) if checked.ndim > 1 else checked[:, None]

    @functools.cached_property
    def _model_arguments(self) -> list[Any]:
        """The additional arguments that the model itself takes: no masks among them."""
        if self._frames is not None or not isinstance(self.forward_func, SegmentationTarget):
            return self.arguments
        return list(self.forward_func.model_inputs(*self.inputs, *self.arguments)[len(self.inputs) :])

    def _precision(self) -> AbstractContextManager[Any]:
        if self.execution.autocast is None:
            return nullcontext()
        return torch.autocast(self.inputs[0].device.type, dtype=self.execution.autocast)


# Whether channels-last was faster, by model and batch: tried once.
_FORMATS: "weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]]" = weakref.WeakKeyDictionary()


def tolerance(values: Tensor) -> float:
    """By how much values that are computed in another order of operations may differ from these, at most."""
    return relative_tolerance(values) * float(values.double().abs().max())


def relative_tolerance(values: Tensor) -> float:
    """The same as a share of the largest of them.

    A thousand units in the last place: what deep networks accumulate, and far below what a pixel that belongs there makes. In
    half precision, a thousand of these would be the values themselves; sums are in float32, and a few bits flip.
    """
    resolution = torch.finfo(values.dtype).eps
    if resolution > 1e-5:
        return 8 * resolution
    if values.is_cuda and torch.backends.cudnn.allow_tf32:
        resolution = max(resolution, 1e-5)  # factors of ten bits: a hundredth is what deep networks accumulate
    return 1e3 * resolution


def smooth_local(forward_func: Any, arguments: Sequence[Any], window: Frame) -> LocalScores | None:
    """What scores a window's logits with the target's differentiable twin, if it has one that looks at the RoIs alone."""
    try:
        twin = forward_func.surrogate()
    except ValueError:
        return None
    local: LocalScores | None = twin.local_scores(*arguments)
    return None if local is None else local.cropped(window.starts, window.size)


def checked_scores(scores: Any, batch: int, output_shape: tuple[int, ...] | None) -> Tensor:
    """What a forward function returned, if it is one score (or ``output_shape`` scores) per example."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"forward_func: expected a tensor of one score per example, got {type(scores).__name__}")
    if scores.ndim == 0 or scores.shape[0] != batch:
        raise ValueError(
            f"forward_func: expected one score per example, (N, ...) with N={batch}, got {tuple(scores.shape)}; a function "
            "that aggregates over the batch cannot be explained example by example"
        )
    if scores.is_complex():
        raise TypeError("forward_func: expected real scores, got complex ones")
    if output_shape is not None and tuple(scores.shape[1:]) != output_shape:
        raise ValueError(
            f"forward_func: its scores changed their shape, from {output_shape} per example to {tuple(scores.shape[1:])}"
        )
    return scores


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
