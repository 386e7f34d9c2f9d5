"""Where an intervention takes place: tensors that can be replaced while any function runs.

The function may be a scorer, for effects; its surrogate, for gradients; or a recorder. The tensors are the inputs, or what one or several layers
return or take. Several layers are an ordinary site: their tensors stand side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg.interventions.activation import Activation
from captum_causalseg.interventions.frames import Frame, gather
from captum_causalseg.interventions.recording import record, watched
from captum_causalseg.layout import Layout

__all__ = ["InputSite", "InputsAndLayersSite", "Layer", "LayersSite", "Site"]

Replace = Callable[[slice, Sequence[Tensor]], Sequence[Tensor]]
"""Which of a site's tensors a layer's are, and what they are in this run, to what they become."""


class Site(ABC):
    """Tensors of a call that can be replaced.

    Attributes:
        inputs: tensors ``(N, C, *spatial)``.
        arguments: additional ones; tensors ``(N, ...)`` go with their example, all else is passed as it is.
        tensors: what is replaced, channels first.
        is_tuple: whether they are a tuple for the user.
        layouts: of the tensors as they lie; empty for those that lie with their channels first.
        shown: the tensors that attributions look like; in the others, units are the same ones in further runs of a module.
        frames: per tensor, which window of it is held; ``None`` for the whole.
        bypass: what of the images reaches the output without passing through the tensors.
        no_window: why a window of the image is no window of these tensors; ``None`` where it may be one.
        no_support: why it cannot be found out what of the tensors reaches a region of interest.
    """

    inputs: tuple[Tensor, ...]
    arguments: tuple[Any, ...]
    is_tuple: bool
    frames: tuple[Frame | None, ...] | None
    layouts: tuple[Layout | None, ...] = ()
    shown: slice = slice(None)
    no_window: str | None = None
    no_support: str | None = None

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What is replaced, channels first."""

    @property
    @abstractmethod
    def bypass(self) -> tuple[Tensor, ...]:
        """What of the images reaches the output without passing through the tensors."""

    @abstractmethod
    def run(self, function: Callable[..., Any], tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """What a function returns with other tensors ``(B, ...)`` in the place of those of the examples ``(B,)``.

        The function may change these tensors.
        """

    @abstractmethod
    def with_arguments(self, arguments: Sequence[Any]) -> "Site":
        """The same in calls with other additional arguments."""

    @abstractmethod
    def cropped(self, window: Frame, spatial: torch.Size) -> "Site | None":
        """The same on a window of images of this spatial shape; ``None`` where the window is no window of all that is needed."""

    def call(self, examples: np.ndarray) -> list[Any]:
        """Fresh copies of the inputs and arguments of these examples."""
        return gather([*self.inputs, *self.arguments], examples)

    def crop(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like those of the whole, as this window holds them."""
        return [x if frame is None else frame.crop(x) for x, frame in zip(tensors, self.frames or (None,) * len(tensors))]


@dataclass(frozen=True, eq=False)
class InputSite(Site):
    """The inputs.

    Args:
        inputs, arguments, is_tuple, frames: as of :class:`Site`.
    """

    inputs: tuple[Tensor, ...]
    arguments: tuple[Any, ...] = ()
    is_tuple: bool = True
    frames: tuple[Frame | None, ...] | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.tensors`."""
        return self.inputs

    @property
    def bypass(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.bypass`."""
        return ()

    def run(self, function: Callable[..., Any], tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """See :meth:`Site.run`."""
        return function(*tensors, *gather(self.arguments, examples))

    def with_arguments(self, arguments: Sequence[Any]) -> "InputSite":
        """See :meth:`Site.with_arguments`."""
        return replace(self, arguments=tuple(arguments))

    def cropped(self, window: Frame, spatial: torch.Size) -> "InputSite | None":
        """See :meth:`Site.cropped`."""
        frames = window.frames(self.inputs, spatial)
        if frames is None:
            return None
        inputs, arguments = (tuple(window.crop_images(values, spatial)) for values in (self.inputs, self.arguments))
        return replace(self, inputs=inputs, arguments=arguments, frames=tuple(frames))


@dataclass(frozen=True, eq=False)
class Layer:
    """A module, and what it returned or took.

    Args:
        module: it is called once in a run.
        activation: for the inputs of the call, its layouts known or not.
        at_input: whether that is what it takes instead of what it returns.
    """

    module: nn.Module
    activation: Activation
    at_input: bool = False


@dataclass(frozen=True, eq=False)
class LayersSite(Site):
    """What one or several layers return (or take), the first layer's tensors first.

    Args:
        layers: modules that each run once.
        inputs, arguments, frames: as of :class:`Site`.
        device_ids: of a ``DataParallel`` model.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[Tensor, ...]
    arguments: tuple[Any, ...] = ()
    device_ids: tuple[int, ...] | None = None
    frames: tuple[Frame | None, ...] | None = None

    @classmethod
    def recorded(
        cls,
        function: Callable[..., Any],
        modules: Sequence[nn.Module],
        inputs: Sequence[Tensor],
        arguments: Sequence[Any] = (),
        *,
        at_input: bool = False,
    ) -> "LayersSite":
        """The site of these modules, whose activations are recorded while a function runs, once for each."""
        everyone = np.arange(len(inputs[0]))
        layers = [
            Layer(module, record(function, module, gather([*inputs, *arguments], everyone), at_input=at_input)[0], at_input)
            for module in modules
        ]
        return cls(tuple(layers), tuple(inputs), tuple(arguments))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.tensors`."""
        return tuple(tensor for layer in self.layers for tensor in layer.activation.tensors)

    @property
    def bypass(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.bypass`."""
        return self.inputs

    @property
    def is_tuple(self) -> bool:  # type: ignore[override]
        """Whether there are several tensors, or one in a tuple."""
        return len(self.layers) > 1 or self.layers[0].activation.is_tuple

    @property
    def layouts(self) -> tuple[Layout | None, ...]:  # type: ignore[override]
        """See :attr:`Site.layouts`."""
        return tuple(
            layout for layer in self.layers for layout in layer.activation.layouts or (None,) * len(layer.activation.tensors)
        )

    @property
    def no_window(self) -> str | None:  # type: ignore[override]
        """See :attr:`Site.no_window`."""
        if len(self.layers) > 1:
            return "of several layers, what one makes of the other at the edge of a window is not known"
        if any(layout is None for layout in self.layouts):
            return "which axes of the activation are spatial is not known (layout=)"
        if any(layout is not None and layout.axes == "NLC" for layout in self.layouts):
            return "the activation is a row of tokens, a window of the image is no window of it"
        return None

    @property
    def no_support(self) -> str | None:  # type: ignore[override]
        """See :attr:`Site.no_support`."""
        return "of several layers, one may reach the RoI through the other" if len(self.layers) > 1 else None

    def run(
        self,
        function: Callable[..., Any],
        tensors: Sequence[Tensor],
        examples: np.ndarray,
        where: Sequence[Tensor] | None = None,
    ) -> Any:
        """See :meth:`Site.run`.

        With ``where``, boolean tensors ``(B, ...)``, only these elements are replaced; all others are what they become in this very
        run, in a layer behind another one as well.
        """
        return self.run_on(function, self.call(examples), tensors, where=where)

    def run_on(
        self,
        function: Callable[..., Any],
        call: Sequence[Any],
        tensors: Sequence[Tensor],
        where: Sequence[Tensor] | None = None,
    ) -> Any:
        """The same as :meth:`run` in another call than that of the inputs as they are."""
        by_device = self._scattered(tensors, where)

        def put(slots: slice, live: Sequence[Tensor]) -> Sequence[Tensor]:
            given, places = by_device[live[0].device]
            if places is None:
                return given[slots]
            return [torch.where(here, new, old) for here, new, old in zip(places[slots], given[slots], live)]

        return self.edited(function, put, call)

    def edited(self, function: Callable[..., Any], edit: Replace, call: Sequence[Any]) -> Any:
        """What a function returns for a call in which the tensors of each layer become what ``edit`` makes of them."""
        with self._replacing(edit):
            return function(*call)

    def with_arguments(self, arguments: Sequence[Any]) -> "LayersSite":
        """See :meth:`Site.with_arguments`."""
        return replace(self, arguments=tuple(arguments))

    def cropped(self, window: Frame, spatial: torch.Size) -> "LayersSite | None":
        """See :meth:`Site.cropped`."""
        frames = [_scaled(window, spatial, tensor) for tensor in self.tensors]
        if window.frames(self.inputs, spatial) is None or any(frame is None for frame in frames):
            return None
        held = replace(self, frames=tuple(frames))
        tensors, layers = held.crop(self.tensors), []
        for layer in self.layers:
            own, tensors = tensors[: len(layer.activation.tensors)], tensors[len(layer.activation.tensors) :]
            layers.append(replace(layer, activation=layer.activation.replaced(own)))
        inputs, arguments = (tuple(window.crop_images(values, spatial)) for values in (self.inputs, self.arguments))
        return replace(held, layers=tuple(layers), inputs=inputs, arguments=arguments)

    @contextmanager
    def _replacing(self, edit: Replace) -> Iterator[None]:
        with ExitStack() as hooks:
            first = 0
            for layer in self.layers:
                slots = slice(first, first + len(layer.activation.tensors))
                first = slots.stop
                visit = _visit(edit, slots, layer.activation.layouts)
                hooks.enter_context(watched(layer.module, layer.at_input, visit, any_thread=self.device_ids is not None))
            yield

    def _scattered(
        self, tensors: Sequence[Tensor], where: Sequence[Tensor] | None
    ) -> dict[torch.device, tuple[list[Tensor], list[Tensor] | None]]:
        """By device, the rows of the tensors (and of the places in them) that are run there: those that DataParallel scatters to it."""
        parts: Sequence[Sequence[Tensor]] = [[*tensors, *(where or ())]]
        if self.device_ids is not None:
            parts = torch.nn.parallel.scatter_gather.scatter(tuple(parts[0]), list(self.device_ids))
        n = len(tensors)
        return {part[0].device: (list(part[:n]), None if where is None else list(part[n:])) for part in parts}


@dataclass(frozen=True, eq=False)
class InputsAndLayersSite(Site):
    """The inputs, and behind them what layers return: the inputs' tensors come first.

    What of a layer is not replaced is what becomes of the replaced inputs there.

    Args:
        layers: at the same inputs.
        arguments: as of :class:`Site`.
    """

    layers: LayersSite
    arguments: tuple[Any, ...] = ()

    is_tuple = True
    frames = None
    no_window = "parts of the image and of layers are replaced together"
    no_support = no_window

    @property
    def inputs(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """See :attr:`Site.inputs`."""
        return self.layers.inputs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.tensors`."""
        return (*self.inputs, *self.layers.tensors)

    @property
    def bypass(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.bypass`: all of the inputs is replaced as well."""
        return ()

    def run(
        self,
        function: Callable[..., Any],
        tensors: Sequence[Tensor],
        examples: np.ndarray,
        where: Sequence[Tensor] | None = None,
    ) -> Any:
        """See :meth:`LayersSite.run`; of the inputs all is replaced."""
        n = len(self.inputs)
        call = [*tensors[:n], *gather(self.arguments, examples)]
        return self.layers.run_on(function, call, tensors[n:], where=None if where is None else where[n:])

    def with_arguments(self, arguments: Sequence[Any]) -> "InputsAndLayersSite":
        """See :meth:`Site.with_arguments`."""
        return replace(self, arguments=tuple(arguments))

    def cropped(self, window: Frame, spatial: torch.Size) -> None:
        """See :meth:`Site.cropped`."""
        return None


def _visit(edit: Replace, slots: slice, layouts: Sequence[Layout | None]) -> Callable[[Any], Any]:
    def visit(value: Any) -> Any:
        found = Activation(value, layouts)
        return found.with_tensors(edit(slots, found.tensors))

    return visit


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
