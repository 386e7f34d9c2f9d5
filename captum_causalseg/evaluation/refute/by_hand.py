"""Interventions done by hand: one whole image at a time, the donor pasted under the unit's mask, the function called directly.

Nothing of what makes the engine fast is used here: no batches, no windows, no replay, no gathering of donors. What both do, they do by
ways that have the arguments and the plan in common, and nothing else.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._state import in_this_thread, undisturbed
from captum_causalseg.attr.estimate import Intervention
from captum_causalseg.attr.problem import prepare_call
from captum_causalseg.evaluation.refute.context import Explainer, LayerExplainer
from captum_causalseg.interventions.activation import Activation, channels_first
from captum_causalseg.statistics import TreatmentEffectStatistics, target_index
from captum_causalseg.target.scorer import Scorer

__all__ = ["ByHand", "RowOfCall"]

Change = Callable[[list[Tensor]], list[Tensor]]


class RowOfCall:
    """How ``forward_func`` is called with one example of a batch alone.

    Args:
        forward_func: what is explained.
        inputs: ``(N, C, *spatial)``, or a tuple of such.
        additional_forward_args: as ``attribute`` takes them.

    Attributes:
        scorer: of ``forward_func``; it takes masks per example as arguments.
    """

    def __init__(self, forward_func: Callable[..., Any], inputs: Any, additional_forward_args: Any) -> None:
        call = prepare_call(forward_func, inputs, additional_forward_args)
        self.scorer, self._inputs, self._arguments = call.scorer, call.inputs, call.arguments

    def inputs(self, example: int) -> list[Tensor]:
        """Its tensors ``(1, C, *spatial)``, copies."""
        return [tensor[example : example + 1].clone() for tensor in self._inputs]

    def arguments(self, example: int) -> list[Any]:
        """Its additional arguments, copies."""
        return [
            value[example : example + 1].clone() if isinstance(value, Tensor) and value.ndim else value
            for value in self._arguments
        ]


class ByHand:
    """Scores of single examples with a unit replaced.

    Args:
        explainer: whose function is called, and which layer is meant.
        inputs, target: as ``attribute`` takes them.
        arguments: its other arguments.
        statistics: which elements a unit has.

    Attributes:
        n_forwards: images that went through the model so far.
    """

    def __init__(
        self,
        explainer: Explainer,
        inputs: Any,
        target: TargetType,
        arguments: Mapping[str, Any],
        statistics: TreatmentEffectStatistics,
    ) -> None:
        self._call = RowOfCall(explainer.forward_func, inputs, arguments.get("additional_forward_args"))
        self._layer: nn.Module | None = explainer.layer if isinstance(explainer, LayerExplainer) else None
        self._at_input = bool(arguments.get("attribute_to_layer_input", False))
        self._autocast = arguments.get("autocast")
        self._layouts = statistics.layouts
        self._masks = channels_first(statistics.feature_mask, statistics.layouts)
        self._target, self._n_examples = target, len(statistics.effect)
        # The engine ranks donors by it wherever there is one.
        self._has_gradient = statistics.settings.get("sampling") == "stratified"
        self._gradient_of: dict[int, list[Tensor]] = {}
        self.n_forwards = 0

    def score(self, example: int, change: Change | None = None) -> float:
        """The score with the inputs (or the layer's activation) changed; without a change, of the image as it is."""
        scorer = self._call.scorer
        with undisturbed(scorer.function):
            return float(self._score(scorer, example, change))

    def products(self, steps: Sequence[Intervention]) -> np.ndarray:
        """Of planned interventions in one unit, one at least: the gradient of the score times the donor's values, summed over the unit."""
        weights = self._weights(steps[0])
        return np.array([_product(weights, step.read()) for step in steps])

    def product_of_mean(self, step: Intervention) -> float:
        """The same of the mean over all the unit's donors."""
        return _product(
            self._weights(step),
            [
                source.mean_value(step.example, piece.box, channels=piece.channels, mask=piece.mask)
                for source, piece in step.sources
            ],
        )

    def _weights(self, step: Intervention) -> list[Tensor]:
        """The gradient in the unit's elements, 0 beside them, in the box of each of its pieces."""
        found = []
        for slot, _, _ in step.donors:
            gradient = self._gradients(step.example)[slot]
            inside, box = self._places(slot, step.example, step.unit, shape=gradient.shape)
            found.append(torch.where(inside.to(gradient.device), gradient, 0.0)[box])
        return found

    def _gradients(self, example: int) -> list[Tensor]:
        """Of the score, per tensor ``(C, *spatial)`` in float64; ones where donors could not be ranked by it."""
        if example not in self._gradient_of:
            leaves: list[Tensor] = []

            def watch(tensors: list[Tensor]) -> list[Tensor]:
                leaves[:] = [tensor.detach().requires_grad_() for tensor in tensors]
                return [leaf.clone() for leaf in leaves]  # a model may work in place

            scorer = self._call.scorer.surrogate() if self._has_gradient else self._call.scorer
            with undisturbed(scorer.function, gradients=self._has_gradient):
                score = self._score(scorer, example, watch)
                found: Sequence[Tensor | None] = [torch.ones_like(leaf) for leaf in leaves]
                if self._has_gradient:
                    found = torch.autograd.grad(score, leaves, allow_unused=True)
            known = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found)]
            self._gradient_of[example] = [one.detach()[0].double() for one in known]
        return self._gradient_of[example]

    def _score(self, scorer: Scorer, example: int, change: Change | None) -> Tensor:
        inputs = self._call.inputs(example)
        if change is not None and self._layer is None:
            inputs = change(inputs)
        with self._changed(change), self._cast(inputs[0].device):
            scores = scorer(*inputs, *self._call.arguments(example))
        self.n_forwards += 1
        output = int(target_index(self._target, self._n_examples, scores.shape[1:], output_axes=())[example])
        score: Tensor = scores.double().flatten()[output]
        return score

    def replaced(self, step: Intervention) -> Change:
        """The change that an intervention makes."""
        values = {slot: values for (slot, _, _), values in zip(step.donors, step.read())}
        return lambda tensors: [
            self._pasted(tensor, slot, example=step.example, unit=step.unit, values=values.get(slot))
            for slot, tensor in enumerate(tensors)
        ]

    def nudged(self, example: int, unit: int) -> Change:
        """The unit's own values, each moved to the next number that there is; 0 stays, and so does what is in half precision."""

        def next_number(x: Tensor) -> Tensor:
            return x if torch.finfo(x.dtype).eps > 1e-5 else torch.where(x == 0, x, torch.nextafter(x, x.new_tensor(torch.inf)))

        return lambda tensors: [
            self._pasted(
                tensor,
                slot,
                example=example,
                unit=unit,
                values=next_number(tensor[0])[self._places(slot, example, unit, shape=tensor.shape[1:])[1]],
            )
            for slot, tensor in enumerate(tensors)
        ]

    def tensors(self, example: int) -> list[Tensor]:
        """What units are parts of, ``(C, *spatial)``: the inputs, or the layer's activation."""
        if self._layer is None:
            return [tensor[0] for tensor in self._call.inputs(example)]
        held: list[Tensor] = []

        def watch(tensors: list[Tensor]) -> list[Tensor]:
            held[:] = [tensor[0].clone() for tensor in tensors]
            return tensors

        self.score(example, watch)
        return held

    def _pasted(self, tensor: Tensor, slot: int, example: int, unit: int, values: Tensor | None) -> Tensor:
        """A tensor ``(1, C, *spatial)`` with these values ``(channels or 1, *box)`` in the place of the unit, if it is there."""
        inside, box = self._places(slot, example, unit, shape=tensor.shape[1:])
        if values is None or not bool(inside.any()):
            return tensor
        whole = tensor.clone()
        whole[0][box] = values.to(tensor)
        return torch.where(inside.to(tensor.device), whole, tensor)

    def _places(self, slot: int, example: int, unit: int, shape: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
        """Which elements of a tensor ``(C, *spatial)`` a unit has, and the box around them."""
        mask = self._masks[slot]
        inside = (mask[example if len(mask) > 1 else 0] == unit).expand(*shape)
        places = inside.nonzero()
        if not len(places):
            return inside, ()
        return inside, tuple(slice(int(side.min()), int(side.max()) + 1) for side in places.T)

    @contextmanager
    def _changed(self, change: Change | None) -> Iterator[None]:
        if change is None or self._layer is None:
            yield
            return
        called = 0

        def replace(value: Any) -> Any:
            nonlocal called
            called += 1
            # One image is run: what there are several of are its windows.
            several = [len(tensor) for tensor in Activation(value).tensors]
            layouts = [
                one if one is None or one.axes != "NLC" else dataclasses.replace(one, windows=count)
                for one, count in zip(self._layouts, several)
            ]
            activation = Activation(value, layouts if self._layouts else ())
            return activation.with_tensors(change([tensor.clone() for tensor in activation.tensors]))

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            replaced = replace(args if len(args) != 1 else args[0])
            return replaced if isinstance(replaced, tuple) else (replaced,)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            return replace(output)

        handle = (
            self._layer.register_forward_pre_hook(in_this_thread(before))
            if self._at_input
            else self._layer.register_forward_hook(in_this_thread(after), prepend=True)
        )
        try:
            yield
        finally:
            handle.remove()
        if called != 1:
            raise ValueError(f"layer: expected it to be called once for one example alone, it was called {called} times")

    def _cast(self, device: torch.device) -> Any:
        return nullcontext() if self._autocast is None else torch.autocast(device.type, dtype=self._autocast)


def _product(weights: Sequence[Tensor], values: Sequence[Tensor]) -> float:
    total = 0.0
    for weight, one in zip(weights, values):
        total += float((weight * one.to(weight).expand(weight.shape)).sum())
    return total
