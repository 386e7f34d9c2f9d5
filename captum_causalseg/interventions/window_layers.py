"""Interventions on a layer of the network in a sliding-window model.

The layer runs once in every *pass*: one window, through one network, flipped in one way. An intervention replaces its units in all the
passes whose windows touch a region of interest of the image; the other windows cannot change a score. A unit lies at the same place of
the window in all of them (of a flipped window: at the flipped place), and one donor image gives all of its values.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.activation import Activation, channels_first
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.frames import Frame
from captum_causalseg.interventions.recording import record_together
from captum_causalseg.interventions.replay import Replay
from captum_causalseg.interventions.sites import Layer, LayersSite, Site
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.window_runs import WindowRuns
from captum_causalseg.interventions.windows import ByWindows
from captum_causalseg.layout import Layout
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["Passes", "WindowLayersEvaluator", "WindowLayersSite", "answer_of", "record_passes"]


@dataclass(frozen=True, eq=False)
class Passes:
    """What a layer returned (or took) in the passes of some windows.

    Args:
        found: for each window, network and flip.
        layouts: of the tensors of one pass, where they are known.
    """

    found: tuple[tuple[tuple[Activation, ...], ...], ...]
    layouts: tuple[Layout | None, ...] = ()

    def laid_out(self, layouts: Sequence[Layout | None]) -> "Passes":
        """The same with what is known of the layouts."""
        return replace(self, layouts=tuple(layouts))

    @property
    def tensors(self) -> list[Tensor]:
        """Of each window, network and flip, in this order, the tensors ``(1, C, *spatial)``."""
        each = (one for folds in self.found for flips in folds for one in flips)
        return [tensor for one in each for tensor in one.laid_out(self.layouts).tensors]


def record_passes(
    model: WindowedModel,
    layers: Sequence[Sequence[nn.Module]],
    call: Sequence[Any],
    *,
    where: tuple[np.ndarray, np.ndarray],
    at_input: bool,
    batch_size: int,
) -> list[Passes]:
    """Run windows and record layers; for each of the layers what it is in all the passes.

    Args:
        model: whose windows they are.
        layers: for each, the module in every network.
        call: images ``(N, C, *spatial)``, and what the model is given besides.
        where: examples and windows, ``(J,)`` each.
        at_input: whether what a layer takes is recorded instead of what it returns.
        batch_size: windows at once.

    Raises:
        ValueError: a layer is not called once in a pass, or has no entry per window.
    """
    images = call[0]
    layout = model.layout(images.shape[2:])
    rows: list[list[tuple[tuple[Activation, ...], ...]]] = [[] for _ in layers]
    for begin in range(0, len(where[0]), batch_size):
        examples, windows = (column[begin : begin + batch_size] for column in where)
        with torch.no_grad():
            seen = model.seen(layout.cut(images, examples, windows), layout)
        args = model.arguments(call[1:], examples, images)
        batch: list[list[list[Activation]]] = [[] for _ in layers]
        for fold in range(len(model.networks)):
            for found in batch:
                found.append([])
            for flip in model.flips:
                given = [seen.flip(flip) if flip else seen.clone(), *args]
                answer = functools.partial(answer_of, model, fold)
                recorded, _ = record_together(answer, [one[fold] for one in layers], given, at_input=at_input)
                for found, activation in zip(batch, recorded):
                    activation.check(len(examples), "window")
                    found[fold].append(activation)
        for mine, found in zip(rows, batch):
            mine += [tuple(tuple(one.of_row(row) for one in flips) for flips in found) for row in range(len(examples))]
    return [Passes(tuple(mine)) for mine in rows]


def answer_of(model: WindowedModel, fold: int, *seen: Any) -> Tensor:
    """The logits of a network of a window as it sees it, and of what it is given besides."""
    return model.answer(fold, seen[0], seen[1:])


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowLayersSite(Site):
    """What a layer returns (or takes) in the passes of a call, those of the first window first.

    A pass of a window that does not touch any region of an example is zeros there: nothing is replaced in it.

    Args:
        runs: run the windows.
        modules: the layer in every network.
        windows: numbers of the windows that touch a region of some example.
        held: for each of these windows, network and flip, in this order, those of a pass, ``(N, C, *spatial)``.
        first: what the layer is in some pass of one window.
        inputs, arguments: as of :class:`Site`.
        at_input: whether it is what the layer takes.
    """

    runs: WindowRuns
    modules: tuple[nn.Module, ...]
    windows: np.ndarray
    held: tuple[Tensor, ...]
    first: Activation
    inputs: tuple[Tensor, ...]
    arguments: tuple[Any, ...] = ()
    at_input: bool = False
    frames: tuple[Frame | None, ...] | None = None

    no_window = "a layer inside windows is intervened on in the windows that touch the RoI"
    no_support = no_window

    @classmethod
    def recorded(
        cls,
        runs: WindowRuns,
        modules: tuple[nn.Module, ...],
        inputs: Sequence[Tensor],
        arguments: Sequence[Any] = (),
        *,
        at_input: bool = False,
    ) -> "WindowLayersSite":
        """The site of a layer as it lies, recorded in the windows that touch the regions of each image."""
        examples, seen = np.nonzero(runs.touching)
        pairs = (examples, seen)
        call, size = runs.call, runs.batch_size
        (passes,) = record_passes(runs.model, [modules], call, where=pairs, at_input=at_input, batch_size=size)
        runs.ledger.count("recording the layer", len(pairs[0]) * runs.model.runs_per_window)
        found, n = passes.tensors, len(inputs[0])
        per_window = len(found) // len(pairs[0])
        rows = {
            pair: found[k * per_window : (k + 1) * per_window]
            for k, pair in enumerate(zip(pairs[0].tolist(), pairs[1].tolist()))
        }
        windows, tensors = np.flatnonzero(runs.touching.any(0)), []
        for window in windows.tolist():
            for slot in range(per_window):
                # An image that is alone is not copied.
                of_each = [rows[e, window][slot] if (e, window) in rows else torch.zeros_like(found[slot]) for e in range(n)]
                tensors.append(of_each[0] if n == 1 else torch.cat(of_each))
        return cls(
            runs=runs,
            modules=modules,
            windows=windows,
            held=tuple(tensors),
            first=passes.found[0][0][0],
            inputs=tuple(inputs),
            arguments=tuple(arguments),
            at_input=at_input,
        )

    def laid_out(self, layouts: Sequence[Layout | None]) -> "WindowLayersSite":
        """The same, channels first, once it is known how the tensors of a pass lie."""
        held = channels_first(self.held, tuple(layouts) * (len(self.held) // self.per_pass))
        return replace(self, first=self.first.laid_out(layouts), held=tuple(held))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.tensors`."""
        return self.held

    @property
    def per_pass(self) -> int:
        """How many tensors a pass has."""
        return len(self.first.tensors)

    @property
    def shown(self) -> slice:  # type: ignore[override]
        """See :attr:`Site.shown`: those of the first pass, which is not flipped."""
        return slice(0, self.per_pass)

    @property
    def bypass(self) -> tuple[Tensor, ...]:
        """See :attr:`Site.bypass`."""
        return self.inputs

    @property
    def is_tuple(self) -> bool:  # type: ignore[override]
        """See :attr:`Site.is_tuple`."""
        return self.first.is_tuple

    @property
    def layouts(self) -> tuple[Layout | None, ...]:  # type: ignore[override]
        """See :attr:`Site.layouts`."""
        return (self.first.layouts or (None,) * self.per_pass) * (len(self.tensors) // self.per_pass)

    def masks(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """From masks of an unflipped pass's tensors ``(1, C or 1, *spatial or ones)`` to those of all passes.

        Raises:
            ValueError: units have places in the window of which it is not known where they are in a flipped one.
        """
        model = self.runs.model
        layouts = self.first.layouts or (None,) * self.per_pass
        of_window = [
            _flipped(mask, [axis - 2 for axis in flip], layout, n_spatial=self.inputs[0].ndim - 2)
            for _ in model.networks
            for flip in model.flips
            for mask, layout in zip(masks, layouts, strict=True)
        ]
        return of_window * len(self.windows)

    def slots(self, window: int, fold: int, flip: int) -> slice:
        """Which of the tensors are those of a pass."""
        model = self.runs.model
        place = int(np.searchsorted(self.windows, window))
        first = ((place * len(model.networks) + fold) * len(model.flips) + flip) * self.per_pass
        return slice(first, first + self.per_pass)

    def run(self, function: Any, tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """Not of a whole model: its windows are run by :class:`WindowLayersEvaluator`."""
        raise NotImplementedError("a layer inside windows is replaced window by window: WindowLayersEvaluator")

    def with_arguments(self, arguments: Sequence[Any]) -> "WindowLayersSite":
        """See :meth:`Site.with_arguments`."""
        return replace(self, arguments=tuple(arguments))

    def cropped(self, window: Frame, spatial: torch.Size) -> None:
        """See :meth:`Site.cropped`: the windows are the crop."""
        return


def _flipped(mask: Tensor, axes: Sequence[int], layout: Layout | None, *, n_spatial: int) -> Tensor:
    if not axes or all(length == 1 for length in mask.shape[2:]):
        return mask
    if layout is not None and layout.axes == "NLC" and layout.grid is not None and len(layout.grid) == n_spatial:
        first, stop = layout.first, layout.first + int(np.prod(layout.grid))
        grid = mask[..., first:stop].reshape(*mask.shape[:2], *layout.grid).flip([2 + axis for axis in axes]).flatten(2)
        return torch.cat([mask[..., :first], grid, mask[..., stop:]], -1)
    if mask.ndim - 2 != n_spatial or (layout is not None and layout.axes == "NLC"):
        raise ValueError(
            f"mirror_axes: windows are flipped, and where a unit of an activation {tuple(mask.shape)} lies then is not known; give units that "
            'are the same everywhere ("channel", "layer"), or the layout with the grid of the tokens'
        )
    return mask.flip([2 + axis for axis in axes])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pass(LayersSite):
    """The layer of one network in windows flipped in one way. Its examples are windows: number ``example * n_windows + window``."""

    runs: WindowRuns
    flip: tuple[int, ...]

    def call(self, examples: np.ndarray) -> list[Any]:
        """See :meth:`Site.call`."""
        runs = self.runs
        which, windows = np.divmod(examples, len(runs.layout))
        seen = runs.model.seen(runs.cut(which, windows), runs.layout)
        return [seen.flip(self.flip) if self.flip else seen, *runs.arguments(which)]


class WindowLayersEvaluator(ByWindows):
    """Replaces units of a layer in the windows that touch the regions, and adds up what they say.

    Args:
        site: the layer.
        like: scorer, local scores and ledger are those that the site's windows are run with.
        execution: how it is run.
        unit_donors: of the passes.
        observed: scores of the inputs as they are, if all windows were run for them; ``None``: those that meet the regions are enough.
    """

    site: WindowLayersSite

    def __init__(
        self, site: WindowLayersSite, execution: Execution, unit_donors: UnitDonors, *, observed: Tensor | None
    ) -> None:
        runs = self.runs = site.runs
        super().__init__(site, runs.scorer, execution, unit_donors, runs.ledger, local=runs.local)
        with torch.no_grad():
            self._observed = self._checked(runs.observed() if observed is None else observed, len(site.inputs[0]))
        self._passes = {
            (fold, flip): _Pass(layers=(Layer(site.modules[fold], site.first, site.at_input),), inputs=(), runs=runs, flip=axes)
            for fold in range(len(runs.model.networks))
            for flip, axes in enumerate(runs.model.flips)
        }
        given: Any = {"works": execution.replay, "sharers": len(self._passes), "singly": True}
        self._replays = {}
        for key, one in self._passes.items():
            function, run = functools.partial(answer_of, runs.model, key[0]), functools.partial(self._hooked, key)
            self._replays[key] = Replay(one, function, runs.ledger, batch=run, whole=run, **given)

    def observe(self, examples: np.ndarray) -> Tensor:
        """Scores ``(B, K)`` without intervention, from the run before the first intervention."""
        return self._observed[torch.as_tensor(examples, device=self._observed.device)]

    @property
    def most_checks(self) -> int:  # type: ignore[override]
        """See :attr:`ModelEvaluator.most_checks`."""
        return sum(one.most_checks(int(self.runs.touching.sum())) for one in self._replays.values())

    @property
    def answers_are_logits(self) -> bool:
        """Whether :meth:`answers` are logits, and not scores."""
        return True

    def localized(self) -> "WindowLayersEvaluator":
        """See :meth:`ModelEvaluator.localized`: it is that from the beginning."""
        return self

    def answers(self, interventions: Interventions) -> Tensor:
        """See :meth:`ModelEvaluator.answers`."""
        return self._near(self._fused(interventions, purpose="answered again"))

    def scores_with_gradient(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """See :meth:`ModelEvaluator.scores_with_gradient`."""
        runs = self.runs
        if runs.twins is None:
            raise ValueError(
                "the metric's differentiable twin may look beyond the RoI, and windows that touch the RoI are not enough for it"
            )

        def answer(rows: np.ndarray, windows: np.ndarray) -> list[Tensor]:
            numbers = self._numbers(examples[rows], windows)

            def one(fold: int, flip: int) -> Tensor:
                return self._hooked((fold, flip), self._gathered(tensors, rows, windows, key=(fold, flip)), numbers)

            return self._run(one, len(rows), purpose="gradient")

        return runs.scores_with_gradient(examples, answer)

    def _answers(self, interventions: Interventions) -> list[Tensor]:
        return self._fused(interventions)

    def _fused(self, interventions: Interventions, purpose: str | None = None) -> list[Tensor]:
        runs, examples = self.runs, interventions.example

        def answer(rows: np.ndarray, windows: np.ndarray) -> list[Tensor]:
            mine, numbers = interventions.rows(rows), self._numbers(examples[rows], windows)

            def one(fold: int, flip: int) -> Tensor:
                replaced = self._gathered(self.site.tensors, examples[rows], windows, key=(fold, flip), replaced=mine)
                # Whoever has another purpose looks at the model itself.
                run = self._replays[fold, flip].run if purpose is None else functools.partial(self._hooked, (fold, flip))
                found: Tensor = run(replaced, numbers)
                return found

            return self._run(one, len(rows), purpose=purpose)

        return runs.fused(examples, runs.touching[examples], answer)

    def _run(self, answer: Any, n_windows: int, *, purpose: str | None) -> list[Tensor]:
        runs = self.runs
        flips, dtype = runs.model.flips, runs.model.fused_dtype(runs.image)

        def run() -> list[Tensor]:
            return runs.model.blended(lambda fold, flip: answer(fold, flips.index(flip)), runs.layout, dtype)

        return runs.run(run, n_windows, purpose=purpose)

    def _gathered(
        self,
        tensors: Sequence[Tensor],
        rows: np.ndarray,
        windows: np.ndarray,
        *,
        key: tuple[int, int],
        replaced: Interventions | None = None,
    ) -> list[Tensor]:
        """Of the tensors of a pass of each of these windows these rows, ``(J, C, *spatial)``, in which interventions have been made."""
        parts: list[list[Tensor]] = []
        order = []
        for window in np.unique(windows).tolist():
            mine = np.flatnonzero(windows == window)
            slots = self.site.slots(window, *key)
            of_window = [tensor.index_select(0, torch.as_tensor(rows[mine], device=tensor.device)) for tensor in tensors[slots]]
            if replaced is not None:
                self.unit_donors.paste(of_window, replaced.rows(mine), first_slot=slots.start)
            parts.append(of_window)
            order.append(mine)
        if len(parts) == 1:
            return parts[0]
        back = torch.as_tensor(np.argsort(np.concatenate(order)), device=parts[0][0].device)
        return [torch.cat(slot).index_select(0, back) for slot in zip(*parts)]

    def _numbers(self, examples: np.ndarray, windows: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = examples * len(self.runs.layout) + windows
        return numbers

    def _hooked(
        self,
        key: tuple[int, int],
        tensors: Sequence[Tensor],
        numbers: np.ndarray,
        where: Sequence[Tensor] | None = None,
    ) -> Tensor:
        found: Tensor = self._passes[key].run(
            functools.partial(answer_of, self.runs.model, key[0]), tensors, numbers, where=where
        )
        return found

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        raise NotImplementedError("layers inside windows of a stochastic model are refused")

    def _with(self, site: Site, execution: Execution, local: Local) -> ModelEvaluator:
        raise NotImplementedError("the windows that touch the RoI are all that is run")
