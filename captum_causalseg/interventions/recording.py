"""Layers that are watched while a function runs: what they return or take is recorded, or replaced."""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from captum_causalseg._state import in_this_thread
from captum_causalseg.interventions.activation import Activation
from captum_causalseg.target.scorer import Scorer
from captum_causalseg.target.stochastic import one_by_one

__all__ = ["record", "record_one_by_one", "record_together", "watched"]


class _Visits:
    """What a layer returned (or took), call by call, one value per device that it ran on."""

    def __init__(self, apart: bool) -> None:
        self.values: dict[torch.device, list[Any]] = {}
        self._apart = apart

    def add(self, value: Any) -> Any:
        found = Activation(value)
        # Copies: what runs next may work in place (ReLU(inplace=True)).
        kept = found.with_tensors([tensor.clone() for tensor in found.tensors])
        self.values.setdefault(found.tensors[0].device, []).append(kept)
        return found.with_tensors([tensor.clone() for tensor in found.tensors]) if self._apart else None


@contextmanager
def watched(
    layer: nn.Module, at_input: bool, visit: Callable[[Any], Any], *, any_thread: bool = False, keywords: bool = False
) -> Iterator[None]:
    """Pass what the layer returns (or its positional arguments) through ``visit``; the hook is gone whatever happens.

    Only where this thread runs it: others may explain the same model at the same time. With ``any_thread`` all of them count, as
    those that ``DataParallel`` runs replicas in have to. With ``keywords``, arguments given by keyword follow the positional ones, in the
    order of the layer's signature, however they are written where it is called.
    """

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return visit(output)

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        replaced = visit(args if len(args) != 1 else args[0])
        return replaced if replaced is None or isinstance(replaced, tuple) else (replaced,)

    def before_all(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        places = {name: place for place, name in enumerate(inspect.signature(module.forward).parameters)}
        names = sorted(named, key=lambda name: places.get(name, len(places)))
        replaced = before(module, (*args, *(named[name] for name in names)))
        return None if replaced is None else (replaced[: len(args)], dict(zip(names, replaced[len(args) :], strict=True)))

    hook: Callable[..., Any] = after if not at_input else before_all if keywords else before
    hook = hook if any_thread else in_this_thread(hook)
    # Before the hooks that the layer has: Hugging Face's collect hidden states, which have to be the replaced ones.
    handle = (
        layer.register_forward_pre_hook(hook, with_kwargs=keywords)
        if at_input
        else layer.register_forward_hook(hook, prepend=True)
    )
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
    apart: bool = False,
) -> tuple[Activation, Any]:
    """Run ``forward_func`` once; the layer's activation for the whole batch, and what the function returned.

    Where the function runs the model image by image, the activation is put together from its calls. With ``apart``, what goes on from the layer is a
    copy, so that tensors that follow from the layer are others than those that do not, where the layer hands on what it takes.

    Raises:
        ValueError: the layer is not called, or more than once: then there is no one activation to intervene on.
    """
    (found,), returned = record_together(forward_func, [layer], inputs, at_input=at_input, device_ids=device_ids, apart=apart)
    return found, returned


def record_together(
    forward_func: Callable[..., Any],
    layers: Sequence[nn.Module],
    inputs: Sequence[Any],
    *,
    at_input: bool = False,
    device_ids: Sequence[int] | None = None,
    apart: bool = False,
) -> tuple[list[Activation], Any]:
    """The same for several layers, in one run."""
    for layer in layers:
        if isinstance(layer, torch.jit.ScriptModule):
            raise ValueError(
                f"layer: {type(layer).__name__} cannot be intervened on: hooks do not run inside TorchScript; give the eager module"
            )
    visits = [_Visits(apart) for _ in layers]
    with torch.no_grad(), ExitStack() as hooks:
        for layer, seen in zip(layers, visits):
            hooks.enter_context(watched(layer, at_input, seen.add, any_thread=device_ids is not None))
        returned = forward_func(*inputs)
    found = [
        _put_together(forward_func, layer, seen, n=len(inputs[0]), device_ids=device_ids) for layer, seen in zip(layers, visits)
    ]
    return found, returned


def _put_together(
    forward_func: Callable[..., Any], layer: nn.Module, visits: _Visits, *, n: int, device_ids: Sequence[int] | None
) -> Activation:
    """The activation of all ``n`` examples, from the visits of a layer."""
    if len(visits.values) == 1:
        (values,) = visits.values.values()
        each = _of_each_example(values, n)
        if each:
            together = [torch.cat(slot) for slot in zip(*(activation.tensors for activation in each))]
            return Activation(each[0].with_tensors(together))
    calls = {len(values) for values in visits.values.values()}
    if not calls:
        script = " (hooks do not run inside TorchScript; give the eager module)" if _scripted(forward_func, layer) else ""
        if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
            # By this class PyTorch marks the projection of its attention.
            script = "; torch.nn.MultiheadAttention computes it in one function with all else: captum_causalseg.reveal_heads(model) has it run by itself"
        raise ValueError(f"layer: {type(layer).__name__} is not called when the model runs{script}")
    if calls != {1}:
        raise ValueError(
            f"layer: {type(layer).__name__} is called {max(calls)} times in one forward pass, so it has no one activation to "
            "intervene on; choose the module around it or a copy that is called once"
        )
    values = list(visits.values.values())
    if len(values) == 1:
        return Activation(values[0][0])
    # DataParallel: one replica per device, examples in the order of the devices.
    order = list(device_ids) if device_ids is not None else sorted(d.index for d in visits.values if d.index is not None)
    parts = [
        Activation(visits.values[torch.device("cuda", index)][0])
        for index in order
        if torch.device("cuda", index) in visits.values
    ]
    home = parts[0].tensors[0].device
    joined = [torch.cat([part.tensors[slot].to(home) for part in parts]) for slot in range(len(parts[0].tensors))]
    return Activation(parts[0].with_tensors(joined))


def _of_each_example(values: Sequence[Any], n_examples: int) -> list[Activation]:
    """The activations of ``n`` examples that went through the model alone; empty if they did not."""
    found = [Activation(value) for value in values]
    sizes = [activation.tensors[0].shape[:1] for activation in found]
    if len(found) == n_examples + 1:
        # A batch that the model turned out not to take, and that came as far as the layer, goes before.
        found, sizes = found[1:], sizes[1:]
    return found if n_examples > 1 and sizes == [(1,)] * n_examples else []


def record_one_by_one(scorer: Scorer, layer: nn.Module, inputs: Sequence[Any], **watch: Any) -> Activation:
    """The layer's activation for the whole batch in the model's first answer, every example with the same random numbers.

    Args:
        scorer: of a stochastic model.
        layer: a module that is called once in an answer.
        inputs: the model's inputs, no masks among them.
        **watch: as of :func:`record`.
    """
    found: list[Activation] = []

    def one(*row: Any) -> Tensor:
        found.append(record(scorer.answer, layer, row, **watch)[0])
        first: Tensor = found[-1].tensors[0]
        return first

    n = len(inputs[0])
    one_by_one(one, inputs, n, keys=[(scorer.seed,)] * n)
    joined = [torch.cat(slot) for slot in zip(*(activation.tensors for activation in found))]
    return Activation(found[0].with_tensors(joined))


def _scripted(forward_func: Callable[..., Any], layer: nn.Module) -> bool:
    inside = forward_func.modules() if isinstance(forward_func, nn.Module) else ()
    return any(isinstance(module, torch.jit.ScriptModule) for module in (layer, *inside))
