"""What several methods are asked of one segmentation, and who judges their answers."""

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import pandas as pd
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import renamed
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
from captum_causalseg.attr.pdcr import PdCR
from captum_causalseg.donors.split import donor_parts
from captum_causalseg.evaluation.faithfulness import Faithfulness
from captum_causalseg.evaluation.replacements import Attributions
from captum_causalseg.target.outputs import interpolated
from captum_causalseg.target.scorer import as_scorer

__all__ = ["CONTROL", "Explanation", "Method", "Question", "check_method", "mean_scores"]

logger = logging.getLogger(__name__)

Method: TypeAlias = Attribution | tuple[Attribution, Mapping[str, Any]] | Callable[..., Attributions] | Attributions
CONTROL = "random (control)"
_OURS = (AverageTreatmentEffect, GradientTreatmentEffect, JointTreatmentEffect, PdCR)


@dataclass(frozen=True)
class Explanation:
    """A method's answer.

    Args:
        attributions: the map, of the inputs' spatial shape, on the CPU.
        forwards: images that went through the model for it; NaN where they cannot be counted.
        seconds: that it took.
    """

    attributions: Attributions
    forwards: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Question:
    """One output of a segmentation, and what methods and judge are given; arguments as of :func:`captum_causalseg.compare`."""

    target: Callable[..., Any]
    inputs: Tensor | tuple[Tensor, ...]
    baselines: Any = None
    output: TargetType = None
    additional_forward_args: Any = None
    held_out: Any = None
    feature_mask: Tensor | tuple[Tensor, ...] | None = None
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    exclude: Exclude = "roi"
    seed: int = 0
    faithfulness: Mapping[str, Any] | None = None

    def judge(self) -> Faithfulness:
        """Who scores the maps: with donors that no method has seen, where there are enough."""
        with renamed(target="output", forward_func="target", **({} if self.held_out is None else {"baselines": "held_out"})):
            return Faithfulness(
                forward_func=self.target,
                inputs=self.inputs,
                baselines=self._donors[1],
                target=self.output,
                additional_forward_args=self.additional_forward_args,
                **(self._units | {"seed": self.seed} | dict(self.faithfulness or {})),
            )

    def explained(self, method: Method) -> Explanation:
        """A method's answer."""
        call = self._call(method)
        if not callable(call):
            return Explanation(self._like_inputs(call), 0.0, 0.0)
        with _counting(self.target) as count:
            began = time.perf_counter()
            found = self._like_inputs(call(self.inputs))  # on the CPU, so that a device has finished
            seconds = time.perf_counter() - began
        return Explanation(found, count[0], seconds)

    def controls(self, n: int) -> list[Attributions]:
        """``n`` random maps."""
        generator = torch.Generator().manual_seed(self.seed)
        maps = [tuple(torch.randn(one.shape, generator=generator) for one in _as_tuple(self.inputs)) for _ in range(n)]
        return list(maps) if isinstance(self.inputs, tuple) else [one[0] for one in maps]

    @cached_property
    def _donors(self) -> tuple[Any, Any]:
        """Donors for the methods, and others to judge them with."""
        if self.held_out is not None:
            return self.baselines, self.held_out
        halves = donor_parts(self.baselines, (0.5, 0.5), self.seed, least=2)
        if isinstance(halves, str):
            logger.warning("compare: %s; methods are judged with donors that they may have seen", halves)
            return self.baselines, self.baselines
        return halves[0], halves[1]

    @property
    def _units(self) -> dict[str, Any]:
        return {"feature_mask": self.feature_mask, "block_size": self.block_size, "exclude": self.exclude}

    def _call(self, method: Any) -> Callable[..., Any] | Attributions:
        """The method as a function of the inputs; a map is a map."""
        arguments: dict[str, Any] = {}
        if isinstance(method, tuple) and isinstance(method[1], Mapping):
            method, arguments = method[0], dict(method[1])
        if isinstance(method, (Tensor, tuple)):
            return method
        if not isinstance(method, Attribution):
            return partial(method)
        accepted = set(inspect.signature(method.attribute).parameters)
        if "kwargs" in accepted:  # wrappers such as NoiseTunnel pass them on
            accepted |= {"target", "additional_forward_args"}
        common = {"target": self.output, "additional_forward_args": self.additional_forward_args}
        if isinstance(method, _OURS):
            units = {"feature_mask", "block_size"} & set(arguments)
            common |= {
                n: v
                for n, v in ({"baselines": self._donors[0]} | self._units).items()
                # `exclude=None` says something.
                if (v is not None or n == "exclude") and not (units and n in ("feature_mask", "block_size"))
            }
            if method.baselines is not None:
                common.pop("baselines", None)
        return partial(method.attribute, **({n: v for n, v in common.items() if n in accepted} | arguments))

    def _like_inputs(self, found: Any) -> Attributions:
        """Maps of the inputs' spatial shape, on the CPU; those of a layer summed over channels and interpolated."""
        tensors = _as_tuple(self.inputs)
        maps = found if isinstance(found, tuple) else (found,)
        if len(maps) != len(tensors) or not all(isinstance(one, Tensor) for one in maps):
            kinds = [type(one).__name__ for one in maps]
            raise TypeError(f"methods: expected a map for each of {len(tensors)} input(s), got {kinds}")
        brought = []
        for one, tensor in zip(maps, tensors):
            one = one.detach().cpu()
            if one.ndim == tensor.ndim and one.ndim > 2 and one.shape != tensor.shape:
                one = one.sum(1, keepdim=True)
                if one.shape[2:] != tensor.shape[2:]:
                    one = interpolated(one, tensor.shape[2:])
            brought.append(one)
        return tuple(brought) if isinstance(self.inputs, tuple) else brought[0]


def mean_scores(judge: Faithfulness, maps: Sequence[Attributions], metrics: Sequence[str]) -> pd.DataFrame:
    """Of several maps, as :meth:`Faithfulness.evaluate` has them of one."""
    scored = [judge.evaluate(one, list(metrics)) for one in maps]
    means = pd.concat([one["value"] for one in scored], axis=1).mean(axis=1)
    return scored[0].assign(value=means, why=scored[0]["why"].where(means.isna(), ""))


def check_method(name: str, method: Any) -> None:
    """Refuse what is no method."""
    if isinstance(method, tuple) and len(method) == 2 and isinstance(method[1], Mapping):
        method = method[0]
        if not isinstance(method, Attribution):
            raise TypeError(
                f"methods[{name!r}]: arguments are only for a Captum attribution object, got {type(method).__name__}"
            )
    maps = isinstance(method, tuple) and bool(method) and all(isinstance(one, Tensor) for one in method)
    if not (isinstance(method, (Attribution, Tensor)) or maps or callable(method)):
        raise TypeError(
            f"methods[{name!r}]: expected a Captum attribution object, a pair of one and its arguments, a function or a map, got "
            f"{type(method).__name__}"
        )


@contextmanager
def _counting(target: Any) -> Iterator[list[float]]:
    """How many images go through the target's model within the block (windows, of one in windows); NaN if it is no module."""
    scorer, count = as_scorer(target), [0.0]
    model, windowed = scorer.model, scorer.windowed_model
    if windowed is not None:
        before = windowed.windows_run
        yield count
        count[0] = float(windowed.windows_run - before)
        return
    if not isinstance(model, nn.Module):
        yield [float("nan")]
        return

    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        tensors = [value for value in args if isinstance(value, Tensor) and value.ndim]
        count[0] += len(tensors[0]) if tensors else 0

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
