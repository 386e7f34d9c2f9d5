"""Interventions on a layer's activation: the value that a module returns (or takes) is replaced while the model runs.

Two ways to the same scores. *Hooked*: the examples are repeated, once per intervention, and the whole model runs on them.
*vmap*: the model runs on one example under :func:`torch.func.vmap` over the replaced activations, so that everything
upstream of the layer is computed once per batch of interventions and not once per intervention.
"""

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._state import in_this_thread
from captum_causalseg.donors import BoundDonors
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.units import Frame, Units, gather
from captum_causalseg.layout import Layout
from captum_causalseg.target import SegmentationTarget

__all__ = ["Activation", "LayerActivation", "as_they_lie", "channels_first", "record"]

logger = logging.getLogger(__name__)


class Activation:
    """The tensors in what a layer returns or takes, and how to put others in their place.

    Args:
        value: a tensor, or a tuple or list that holds tensors (and other things, which stay).
        layouts: of the tensors, where they are known; empty for tensors as they lie.

    Attributes:
        tensors: the tensors in it, detached, with their channels first.
        is_tuple: whether it was a tuple or list.
    """

    def __init__(self, value: Any, layouts: Sequence[Layout | None] = ()) -> None:
        self.is_tuple = isinstance(value, (tuple, list))
        self._value, self.layouts = value, tuple(layouts)
        items = list(value) if self.is_tuple else [value]
        self._places = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.is_floating_point()]
        if not self._places:
            raise TypeError(
                f"layer: expected it to return (or take) a floating-point tensor or a tuple of them, got {type(value).__name__}"
            )
        self.tensors = channels_first([items[i].detach() for i in self._places], self.layouts)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The same value with other tensors."""
        tensors = as_they_lie(tensors, self.layouts)
        if not self.is_tuple:
            return tensors[0]
        items = list(self._value)
        for i, tensor in zip(self._places, tensors):
            items[i] = tensor
        return type(self._value)(items) if type(self._value) in (tuple, list) else type(self._value)(*items)

    def replaced(self, tensors: Sequence[Tensor]) -> "Activation":
        """The same with other tensors, channels first."""
        return Activation(self.with_tensors(tensors), self.layouts)

    def laid_out(self, layouts: Sequence[Layout | None]) -> "Activation":
        """The same with what is known of its layouts."""
        return Activation(self._value, layouts)


def channels_first(tensors: Sequence[Tensor], layouts: Sequence[Layout | None]) -> list[Tensor]:
    """Tensors of these layouts with their channels first; those of no known layout as they are."""
    return [
        x if layout is None else layout.channels_first(x)
        for x, layout in zip(tensors, layouts or (None,) * len(tensors), strict=True)
    ]


def as_they_lie(tensors: Sequence[Tensor], layouts: Sequence[Layout | None]) -> list[Tensor]:
    """The inverse of :func:`channels_first`."""
    return [
        x if layout is None else layout.as_it_lies(x)
        for x, layout in zip(tensors, layouts or (None,) * len(tensors), strict=True)
    ]


class _Visits:
    """What a layer returned (or took), call by call, one value per device that it ran on."""

    def __init__(self) -> None:
        self.values: dict[torch.device, list[Any]] = {}

    def add(self, value: Any) -> None:
        found = Activation(value)
        # Copies: what runs next may work in place (ReLU(inplace=True)).
        kept = found.with_tensors([tensor.clone() for tensor in found.tensors])
        self.values.setdefault(found.tensors[0].device, []).append(kept)


@contextmanager
def _watched(layer: nn.Module, at_input: bool, visit: Callable[[Any], Any], any_thread: bool = False) -> Iterator[None]:
    """Pass what the layer returns (or its positional arguments) through ``visit``; the hook is gone whatever happens.

    Only where this thread runs it: others may explain the same model at the same time. With ``any_thread`` all of them count, as
    those that ``DataParallel`` runs replicas in have to.
    """

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return visit(output)

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        replaced = visit(args if len(args) != 1 else args[0])
        return replaced if replaced is None or isinstance(replaced, tuple) else (replaced,)

    hook: Callable[..., Any] = before if at_input else after
    hook = hook if any_thread else in_this_thread(hook)
    # Before the hooks that the layer has: Hugging Face's collect hidden states, which have to be the replaced ones.
    handle = layer.register_forward_pre_hook(hook) if at_input else layer.register_forward_hook(hook, prepend=True)
    try:
        with _eagerly():
            yield
    finally:
        handle.remove()


def _eagerly() -> AbstractContextManager[Any]:
    """Run models of ``torch.compile`` uncompiled: code compiled before the hook was there does not call it."""
    # Where dynamo was never imported nothing is compiled, and importing it takes seconds. torch 2.5 has no stances.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def record(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: Sequence[Any],
    *,
    at_input: bool = False,
    device_ids: Sequence[int] | None = None,
) -> tuple[Activation, Any]:
    """Run ``forward_func`` once; the layer's activation for the whole batch, and what the function returned.

    Where the function runs the model image by image, the activation is put together from its calls.

    Raises:
        ValueError: the layer is not called, or more than once: then there is no one activation to intervene on.
    """
    if isinstance(layer, torch.jit.ScriptModule):
        raise ValueError(
            f"layer: {type(layer).__name__} cannot be intervened on: hooks do not run inside TorchScript; give the eager module"
        )
    visits = _Visits()
    with torch.no_grad(), _watched(layer, at_input, visits.add, any_thread=device_ids is not None):
        returned = forward_func(*inputs)
    if len(visits.values) == 1:
        (values,) = visits.values.values()
        each = _of_each_example(values, len(inputs[0]))
        if each:
            together = [torch.cat(slot) for slot in zip(*(activation.tensors for activation in each))]
            return Activation(each[0].with_tensors(together)), returned
    calls = {len(values) for values in visits.values.values()}
    if not calls:
        script = " (hooks do not run inside TorchScript; give the eager module)" if _scripted(forward_func, layer) else ""
        raise ValueError(f"layer: {type(layer).__name__} is not called when the model runs{script}")
    if calls != {1}:
        raise ValueError(
            f"layer: {type(layer).__name__} is called {max(calls)} times in one forward pass, so it has no one activation to "
            "intervene on; choose the module around it or a copy that is called once"
        )
    values = list(visits.values.values())
    if len(values) == 1:
        return Activation(values[0][0]), returned
    # DataParallel: one replica per device, examples in the order of the devices.
    order = list(device_ids) if device_ids is not None else sorted(d.index for d in visits.values if d.index is not None)
    parts = [
        Activation(visits.values[torch.device("cuda", index)][0])
        for index in order
        if torch.device("cuda", index) in visits.values
    ]
    home = parts[0].tensors[0].device
    joined = [torch.cat([part.tensors[slot].to(home) for part in parts]) for slot in range(len(parts[0].tensors))]
    return Activation(parts[0].with_tensors(joined)), returned


def _of_each_example(values: Sequence[Any], n_examples: int) -> list[Activation]:
    """The activations of ``n`` examples that went through the model alone; empty if they did not."""
    found = [Activation(value) for value in values]
    sizes = [activation.tensors[0].shape[:1] for activation in found]
    if len(found) == n_examples + 1:
        # A batch that the model turned out not to take, and that came as far as the layer, goes before.
        found, sizes = found[1:], sizes[1:]
    return found if n_examples > 1 and sizes == [(1,)] * n_examples else []


class LayerActivation(ModelEvaluator):
    """Replaces units of a layer's activation.

    Args:
        forward_func: inputs and additional arguments to scores.
        layer: a module that is called once when ``forward_func`` runs.
        inputs: tensors ``(N, C, *spatial)``.
        additional_forward_args: tensors ``(N, ...)`` go with their example.
        activation: the layer's activation for these inputs, as :func:`record` returns it.
        observed: what ``forward_func`` returned then.
        units: what is replaced, in the activation's tensors.
        donors: per tensor, what it is replaced by.
        at_input: replace what the layer takes instead of what it returns.
        paired: the donor of all the activation's tensors is the same one (column 0): they were recorded together.
        device_ids: of a ``DataParallel`` model.
        use_vmap: compute what lies upstream once; switched off by itself where the model does not allow it.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        inputs: Sequence[Tensor],
        additional_forward_args: Sequence[Any],
        activation: Activation,
        observed: Tensor,
        units: Units,
        donors: Sequence[BoundDonors],
        *,
        at_input: bool = False,
        paired: bool = False,
        device_ids: Sequence[int] | None = None,
        use_vmap: bool = True,
    ) -> None:
        super().__init__(forward_func, inputs, additional_forward_args, units, donors)
        self._layer, self._activation = layer, activation
        self._at_input, self._paired = at_input, paired
        self._device_ids = device_ids
        self._observed = self._checked(observed, len(inputs[0]))
        # Replicas run in threads of their own, which vmap does not reach; and vmap switches autocast off, which shifts scores.
        self._use_vmap = use_vmap and device_ids is None and not _autocasts(inputs[0].device)
        # How many rows of a batch vmap has been compared on.
        self._compared = 0
        reason = _no_window(activation.layouts)
        if reason is not None:
            self.switched_off["window"] = reason

    @property
    def tensors(self) -> list[Tensor]:
        """What is intervened on."""
        return self._activation.tensors

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, from the pass that recorded the activation."""
        return self._observed[torch.as_tensor(examples, device=self._observed.device)]

    def __call__(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, K)`` under interventions."""
        return self._scores(self._answers(interventions), interventions.example)

    @property
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""
        return isinstance(self.forward_func, SegmentationTarget) and self.noise_population == 1

    def _answers(self, interventions: Interventions) -> Any:
        """Logits of a segmentation target, or else scores."""
        examples = interventions.example
        replaced: list[Tensor] = gather(self.tensors, examples)
        self._paste(replaced, interventions)
        raw = self._vmapped(examples, replaced) if self._use_vmap else None
        return self._raw_hooked(examples, replaced) if raw is None else raw

    def logits(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """What a segmentation target is scored from, with these tensors as the layer's activation."""
        logits: Tensor = self._raw_hooked(examples, list(tensors))
        return logits

    def spread(self, donors: np.ndarray) -> np.ndarray:
        """Donor numbers for every tensor ``(B, slots)``: paired donors have theirs in the first column."""
        return np.repeat(donors[:, :1], donors.shape[1], axis=1) if self._paired else donors

    def _frames_in(self, window: Frame, spatial: torch.Size) -> list[Frame | None] | None:
        frames = [_scaled(window, spatial, tensor) for tensor in self.tensors]
        return None if super()._frames_in(window, spatial) is None or any(frame is None for frame in frames) else frames

    def _fit_to_window(self) -> None:
        self._activation = self._activation.replaced(self.crop(self.tensors))
        self._compared = 0

    @functools.cached_property
    def _takes_batches(self) -> bool:
        """Whether several interventions can go through the model at once; tried without them, where it is not known."""
        target = self.forward_func
        if not isinstance(target, SegmentationTarget):
            return bool(getattr(target, "takes_batches", True))
        if target.takes_batches is None:
            twice = np.zeros(2, dtype=np.int64)
            self.logits_of_inputs(gather(self.inputs, twice), twice)
            self.spent["trying a batch"] += 2
        return bool(target.takes_batches)

    def _raw_hooked(self, examples: np.ndarray, replaced: list[Tensor]) -> Any:
        if len(examples) > 1 and not self._takes_batches:
            one_by_one = (slice(row, row + 1) for row in range(len(examples)))
            return torch.cat([self._raw_hooked(examples[row], [tensor[row] for tensor in replaced]) for row in one_by_one])
        inputs, arguments = gather(self.inputs, examples), gather(self._model_arguments, examples)
        parallel = self._device_ids is not None
        with _watched(self._layer, self._at_input, self._substitute(replaced), any_thread=parallel):
            return self._raw(inputs, arguments)

    def _raw(self, inputs: list[Tensor], arguments: list[Any]) -> Any:
        """Scores, or of a segmentation target the logits: scoring looks at values (is there NaN?), which vmap does not allow."""
        target = self.forward_func
        return target.logits(*inputs, *arguments) if isinstance(target, SegmentationTarget) else target(*inputs, *arguments)

    def _scores(self, raw: Any, examples: np.ndarray) -> Tensor:
        if self._local is not None:
            raw = self._local(raw, examples)
        elif isinstance(self.forward_func, SegmentationTarget):
            raw = self.forward_func.score(raw, *gather(self.inputs, examples), *gather(self.arguments, examples))
        return self._checked(raw, len(examples))

    def _substitute(self, replaced: list[Tensor]) -> Callable[[Any], Any]:
        layouts = self._activation.layouts
        if self._device_ids is None:
            return lambda value: Activation(value, layouts).with_tensors(replaced)
        # Each replica gets the rows that DataParallel scatters to its device.
        parts = torch.nn.parallel.scatter_gather.scatter(tuple(replaced), list(self._device_ids))
        by_device = {part[0].device: list(part) for part in parts}
        return lambda value: Activation(value, layouts).with_tensors(by_device[Activation(value).tensors[0].device])

    def _vmapped(self, examples: np.ndarray, replaced: list[Tensor]) -> Tensor | None:
        """What :meth:`_raw_hooked` returns by vmap, or None (from now on) if the model does not go with it."""
        parts, order = [], []
        for example in np.unique(examples).tolist():
            rows = np.flatnonzero(examples == example)
            index = torch.as_tensor(rows, device=replaced[0].device)
            mine = [tensor.index_select(0, index) for tensor in replaced]
            try:
                raw = self._raw_vmapped(example, mine)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                # What vmap cannot take shows as any of these; a fault of the model's own comes back from the hooked run.
                self._give_up("vmap does not go with this model", error)
                return None
            if not self._agrees(raw, examples[rows], mine):
                return None
            parts.append(raw)
            order.append(rows)
        back = torch.as_tensor(np.argsort(np.concatenate(order)), device=parts[0].device)
        return torch.cat(parts)[back]

    def _raw_vmapped(self, example: int, replaced: list[Tensor]) -> Tensor:
        """Like :meth:`_raw_hooked` for interventions on one example, ``(B, ...)``."""
        one = np.array([example])
        inputs, arguments = gather(self.inputs, one), gather(self._model_arguments, one)

        def run(*tensors: Tensor) -> Any:
            def substitute(value: Any) -> Any:
                return Activation(value, self._activation.layouts).with_tensors([tensor.unsqueeze(0) for tensor in tensors])

            with _watched(self._layer, self._at_input, substitute):
                return self._raw(inputs, arguments)

        with warnings.catch_warnings():
            # Some attention kernels are run row by row, and say so; all that lies upstream is still computed once.
            warnings.filterwarnings(
                "ignore", message="There is a performance drop because we have not yet implemented the batching"
            )
            raw: Tensor = torch.func.vmap(run)(*replaced)
        return raw.flatten(0, 1)

    def _agrees(self, raw: Tensor, examples: np.ndarray, replaced: list[Tensor]) -> bool:
        """Whether the first batch agrees with the hooked run on a few of its rows; if not, vmap is not used."""
        few = np.unique(np.linspace(0, len(examples) - 1, 2).astype(int))
        # A single row says nothing of several.
        if len(few) <= self._compared:
            return True
        self.spent["vmap compared"] += len(few)
        rows = torch.as_tensor(few, device=replaced[0].device)
        plain = self._raw_hooked(examples[few], [tensor.index_select(0, rows) for tensor in replaced])
        found = raw.index_select(0, rows.to(raw.device))
        if plain.shape != found.shape:
            self._give_up(f"vmap gives shape {tuple(found.shape)}, the model itself {tuple(plain.shape)}")
            return False
        largest = float((plain.double() - found.double()).abs().max())
        # The two ways differ by the order of floating-point operations; more than half the digits is another result.
        digits = torch.finfo(plain.dtype).eps ** 0.5 if plain.is_floating_point() else 0.0
        if not largest <= digits * float(plain.double().abs().max()):
            self._give_up(f"vmap gives other values than the model itself, by {largest:.3g}")
            return False
        self._compared = len(few)
        return True

    def _give_up(self, reason: str, error: Exception | None = None) -> None:
        lines = str(error).strip().splitlines() if error is not None else []
        detail = f" ({lines[0]})" if lines else ""
        logger.info("%s%s: the whole model is run once per intervention instead", reason, detail)
        self.switched_off["vmap"] = f"{reason}{detail}"
        self._use_vmap = False


def _scaled(window: Frame, spatial: torch.Size, tensor: Tensor) -> Frame | None:
    """The window in the activation's own pixels, if its grid divides the image's and the window."""
    own = tensor.shape[2:]
    if len(own) != len(spatial) or any(length % side for length, side in zip(spatial, own)):
        return None
    stride = np.array([length // side for length, side in zip(spatial, own)])
    size = np.array(window.size)
    if (window.starts % stride).any() or (size % stride).any():
        return None
    return Frame(window.starts // stride, (size // stride).tolist())


def _no_window(layouts: Sequence[Layout | None]) -> str | None:
    """Why no window of the image goes with a window of the activation, if that is so."""
    if any(layout is None for layout in layouts):
        return "which axes of the activation are spatial is not known (layout=)"
    if any(layout is not None and layout.axes == "NLC" for layout in layouts):
        return "the activation is a row of tokens, a window of the image is no window of it"
    return None


def _autocasts(device: torch.device) -> bool:
    return bool(torch.amp.is_autocast_available(device.type)) and bool(torch.is_autocast_enabled(device.type))


def _scripted(forward_func: Callable[..., Any], layer: nn.Module) -> bool:
    inside = forward_func.modules() if isinstance(forward_func, nn.Module) else ()
    return any(isinstance(module, torch.jit.ScriptModule) for module in (layer, *inside))
