"""Where an effect may pass on its way through a network: the tensors of a mediator, read in one run and put into another."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from captum_causalseg.interventions.activation import Activation
from captum_causalseg.interventions.recording import watched

__all__ = ["LayerPort", "Mediator", "Port", "Role", "StatisticsPort", "answering", "has_statistics", "passing", "recorded"]

Visit = Callable[[list[Tensor]], Sequence[Tensor] | None]
"""What passes a port in a call, to what is to pass instead; ``None``: the same."""


class Port(ABC):
    """Tensors ``(B, ...)`` that pass one place of a network in one run.

    Attributes:
        module: whose place it is; it is called once in a run.
    """

    module: nn.Module

    @abstractmethod
    def passing(self, visit: Visit) -> AbstractContextManager[None]:
        """Within, every call shows ``visit`` what passes; the model is as it was whatever happens."""


@dataclass(frozen=True, eq=False)
class LayerPort(Port):
    """What a module returns or takes.

    Args:
        module: see :class:`Port`.
        at_input: what it takes, by position or by keyword (in the order of its signature), instead of what it returns.
        slots: which of its floating-point tensors, where it is several; ``None``: all of them.
    """

    module: nn.Module
    at_input: bool = False
    slots: tuple[int, ...] | None = None

    def passing(self, visit: Visit) -> AbstractContextManager[None]:
        """See :meth:`Port.passing`."""

        def one(value: Any) -> Any:
            activation = Activation(value)
            tensors = list(activation.tensors)
            mine = range(len(tensors)) if self.slots is None else self.slots
            if max(mine) >= len(tensors):
                raise ValueError(
                    f"layers: {type(self.module).__name__} is given {len(tensors)} tensor(s): no skip connection arrives there; name the others "
                    "one by one"
                )
            found = visit([tensors[slot] for slot in mine])
            if found is None:
                return None
            for slot, tensor in zip(mine, found, strict=True):
                tensors[slot] = tensor
            return activation.with_tensors(tensors)

        return watched(self.module, self.at_input, one, keywords=True)


@dataclass(frozen=True, eq=False)
class StatisticsPort(Port):
    """Mean and variance by which a norm over space scales what it is given: instance, group and layer norm.

    With others in their place, the norm scales by these what it is given itself.

    Args:
        module: the norm; see :func:`has_statistics`.
    """

    module: nn.Module

    @contextmanager
    def passing(self, visit: Visit) -> Iterator[None]:
        """See :meth:`Port.passing`."""
        given: list[Tensor] = []

        def before(value: Any) -> None:
            given.append(value[0] if isinstance(value, tuple) else value)

        def after(value: Tensor) -> Tensor | None:
            x = given.pop()
            found = visit(list(self._statistics(x)))
            return None if found is None else self._scaled(x, *found)

        with watched(self.module, True, before), watched(self.module, False, after):
            yield

    def _grouped(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input such that what shares statistics lies along the axes, and which these are."""
        norm = self.module
        if isinstance(norm, nn.GroupNorm):
            return x.reshape(len(x), norm.num_groups, -1), (2,)
        if isinstance(norm, nn.LayerNorm):
            return x, tuple(range(x.ndim - len(norm.normalized_shape), x.ndim))
        return x, tuple(range(2, x.ndim))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grouped, axes = self._grouped(x)
        variance, mean = torch.var_mean(grouped, axes, correction=0, keepdim=True)
        return mean, variance

    def _scaled(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        norm: Any = self.module
        grouped, _ = self._grouped(x)
        scaled: Tensor = ((grouped - mean) * torch.rsqrt(variance + norm.eps)).reshape(x.shape)
        if norm.weight is None:
            return scaled
        shape = norm.weight.shape if isinstance(norm, nn.LayerNorm) else (1, -1, *(1,) * (x.ndim - 2))
        scaled = scaled * norm.weight.reshape(shape)
        return scaled if norm.bias is None else scaled + norm.bias.reshape(shape)


def has_statistics(module: nn.Module, *, n_spatial: int) -> bool:
    """Whether a module scales by statistics of the example that it is given, over space."""
    if isinstance(module, nn.LayerNorm):
        # Over the channels of one position alone, nothing travels through space.
        return len(module.normalized_shape) > n_spatial
    if isinstance(module, _InstanceNorm):
        return not module.track_running_stats or module.training
    return isinstance(module, nn.GroupNorm)


Role = Literal["level", "skip", "statistics", "layer"]


@dataclass(frozen=True, eq=False)
class Mediator:
    """Tensors that an effect may pass, together.

    Args:
        name: what the user calls it.
        through: the ports that it consists of.
        around: ports beside it, through which nothing of the mediator passes: what a module returns there is, in a run that has the
            mediator's values of another, its own run's. Without them, what a skip connection carries could not be told from what goes on
            into the depth.
        role: what it is in the network: a ``"level"`` or ``"skip"`` of a U-Net, ``"statistics"`` of norms, or a ``"layer"`` of no known place.
        depth: of a level or skip connection, how many halvings of the resolution lie above it.
    """

    name: str
    through: tuple[Port, ...]
    around: tuple[Port, ...] = ()
    role: Role = "layer"
    depth: int | None = None

    @property
    def ports(self) -> tuple[Port, ...]:
        """All of them, the mediator's own first."""
        return self.through + self.around


@contextmanager
def passing(ports: Sequence[Port], values: Sequence[Sequence[Tensor]]) -> Iterator[None]:
    """Within, these tensors pass at the ports, in every call."""
    with answering(ports, [[tensors] for tensors in values], each_time=True):
        yield


@contextmanager
def answering(ports: Sequence[Port], calls: Sequence[Sequence[Sequence[Tensor]]], *, each_time: bool = False) -> Iterator[None]:
    """Within, these tensors pass at the ports, in the first call, the second, and so on; or in each call the same."""
    with ExitStack() as hooks:
        for port, own in zip(ports, calls, strict=True):
            left = itertools.cycle(own) if each_time else iter(own)
            hooks.enter_context(port.passing(lambda live, left=left: next(left)))  # type: ignore[misc]  # a default binds it
        yield


@contextmanager
def recorded(ports: Sequence[Port], n_calls: int = 1) -> Iterator[list[list[list[Tensor]]]]:
    """Within, the model gives so many answers; afterward the list holds what passed at each of the ports in each of them, in copies.

    Raises:
        ValueError: a port's module was not called once in an answer.
    """
    found: list[list[list[Tensor]]] = [[] for _ in ports]

    def visit(place: int, tensors: list[Tensor]) -> None:
        # Copies: what runs next may work in place.
        found[place].append([tensor.detach().clone() for tensor in tensors])

    with ExitStack() as hooks:
        for place, port in enumerate(ports):
            hooks.enter_context(port.passing(lambda live, place=place: visit(place, live)))  # type: ignore[misc]  # as above
        yield found
    for port, calls in zip(ports, found):
        if len(calls) != n_calls:
            times = f"{len(calls)} times in one forward pass" if n_calls == 1 else f"{len(calls)} times in {n_calls} answers"
            raise ValueError(
                f"layers: {type(port.module).__name__} is {'not called when the model runs' if not calls else f'called {times}'}, so that no one "
                "activation of it could carry an effect; name the module around it, or a copy that is called once"
            )
