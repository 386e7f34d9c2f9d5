"""Interventions on the input of a sliding-window model: only the windows are run that hold a unit and touch a region of interest.

What the other windows say is kept from one run of the image as it is. Everything is added up in the model's own order, so that the
logits around the regions are those of a run of all windows.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from captum_causalseg.boxes import Box
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.frames import RowFrame
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.rounding import relative_tolerance
from captum_causalseg.interventions.window_geometry import RoiGroup, WindowGeometry
from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["WindowsEvaluator", "by_windows"]

Parts = dict[tuple[int, int], list[list[Tensor]]]
"""Of a row (or an example) and a window: for each group and network its weighted logits in the group's box, ``(C, *common part)``."""


def by_windows(evaluator: ModelEvaluator) -> ModelEvaluator:
    """The evaluator that runs only the windows that matter, where the model is a :class:`~captum_causalseg.WindowedModel` and it can."""
    model = evaluator.scorer.windowed_model
    if model is None or not isinstance(evaluator, InputEvaluator):
        return evaluator
    reason = _why_not(evaluator)
    if reason is None:
        found = WindowsEvaluator(evaluator, model)
        if not found.windows_mix:
            return found
        reason = "the network mixes the windows of a batch"
    evaluator.ledger.disable("windows", reason)
    return evaluator


def _why_not(evaluator: InputEvaluator) -> str | None:
    site = evaluator.site
    if len(site.inputs) > 1:
        return "with several inputs, windows are cut from the first alone"
    if evaluator.execution.compile:
        return "compile: the model is compiled as a whole"
    if evaluator.local is None or evaluator.scorer.rois(*site.inputs, *site.arguments) is None:
        return evaluator.scorer.why_not_local(*site.inputs, *site.arguments)
    return None


class WindowsEvaluator(InputEvaluator):
    """Runs the windows of a sliding-window model that interventions change, and adds them to what was kept of the others.

    Windows of several interventions, units and images go through the network together, as many as the model has in a batch. It counts
    windows, not images: one window through one network, unflipped, is one forward.

    Args:
        whole: the evaluator on whole images, which scores logits locally.
        model: what it runs.
    """

    def __init__(self, whole: InputEvaluator, model: WindowedModel) -> None:
        execution = replace(whole.execution, by_windows=True)
        given = whole.site, whole.scorer, execution, whole.unit_donors, whole.ledger
        super().__init__(*given, local=whole.local, output_shape=whole.output_shape)
        assert whole.local is not None
        self._model, self._image = model, whole.site.inputs[0]
        scores = whole.local.scores
        self._layout = model.layout(self._image.shape[2:])
        self.geometry = WindowGeometry(self._layout, scores.rois, self.unit_donors.units)
        self._scores_of_groups = self._grouped(scores)
        # In a box that evaluators of other donors (with_donors) share.
        self._windows_run = Counter[str]()

    def forwards(self, n_examples: int, n_interventions: int) -> dict[str, int]:
        """See :meth:`ModelEvaluator.forwards`; windows."""
        observed = n_examples * len(self._layout) * self._model.runs_per_window
        return {"observed": observed, "windows": self._windows_run["windows"]}

    def settings(self) -> dict[str, Any]:
        """See :meth:`ModelEvaluator.settings`."""
        touching = self.geometry.touching.any(2).sum(1).tolist()
        return {"windows": {"patch_size": list(self._layout.patch_size), "per_image": len(self._layout), "touching": touching}}

    def note(self, purpose: str, n_images: int) -> None:
        """See :meth:`ModelEvaluator.note`; windows are counted when they are run."""

    runs_of_gradient = 0
    """Likewise."""

    @functools.cached_property
    def windows_mix(self) -> bool:
        """Whether a window is answered otherwise beside others than alone; nothing can be kept then."""
        size = self._model.batch_size
        if size == 1:
            return False
        windows = np.flatnonzero(self.geometry.touching[0].any(1))[np.arange(size) % self.geometry.touching[0].any(1).sum()]
        examples = np.zeros(size, dtype=np.int64)
        together, alone = (
            self._weighted(self._image, examples[:count], windows[:count], purpose="windows compared") for count in (size, 1)
        )
        return any(
            not bool(((one[:1] - other).abs() <= relative_tolerance([other]) * other.abs().amax()).all())
            for one, other in zip(together, alone)
        )

    def answers(self, interventions: Interventions) -> Tensor:
        """See :meth:`ModelEvaluator.answers`.

        For each row at least one window is run anew, also where nothing is replaced: what was kept says nothing of the model now.
        """
        return self._near(self._fused(interventions, anew=True))

    def answers_without(self, examples: np.ndarray) -> Tensor:
        """See :meth:`ModelEvaluator.answers_without`."""
        return self.answers(Interventions.nothing(examples))

    def scores_with_gradient(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """See :meth:`ModelEvaluator.scores_with_gradient`; window by window: what a network holds for its gradient, it holds of one batch."""
        twins = self._twins
        if twins is None:
            return super().scores_with_gradient(tensors, examples)
        rows = np.arange(len(examples))
        logits = []
        for group in self.geometry.groups:
            totals = self._empty(group, len(examples))
            jobs = [(row, *part) for row in rows.tolist() for part in self.geometry.parts(group, int(examples[row]))]
            for batch in self._batches(len(jobs)):
                which = [jobs[job] for job in batch]
                row = np.array([job[0] for job in which])
                given = tensors[0], examples[row], np.array([job[1] for job in which])
                found = checkpoint(self._weighted, *given, row, purpose="gradient", use_reentrant=False)
                for k, weighted in enumerate(found):
                    for one, (at, _, inside, there) in zip(weighted, which):
                        place: Any = (at, slice(None), *there)
                        totals[k][place].add_(one[(slice(None), *inside)].to(totals[k].device))
            logits.append(self._model.fused(totals, self._count(group, examples)))
        return self._joined(twins, logits, examples)

    def _answers(self, interventions: Interventions) -> list[Tensor]:
        return self._fused(interventions)

    def _scores(self, answers: list[Tensor], examples: np.ndarray) -> Tensor:
        return self._joined(self._scores_of_groups, answers, examples)

    def _near(self, answers: Any) -> Tensor:
        near = [scores.near(logits).flatten(1) for scores, logits in zip(self._scores_of_groups, answers)]
        return torch.cat(near, 1)

    @functools.cached_property
    def _twins(self) -> list[LocalScores] | None:
        """What scores logits around the regions with the differentiable twin, if it looks at these alone."""
        assert self.local is not None
        found = self.scorer.surrogate().local_scores(*self.local.call)
        return None if found is None else self._grouped(found)

    def _grouped(self, scores: LocalScores) -> list[LocalScores]:
        return [
            scores.of_rois(group.rois.tolist()).cropped(group.frame.starts, group.frame.size) for group in self.geometry.groups
        ]

    def _joined(self, scores: Sequence[LocalScores], logits: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """Scores ``(B, ...)`` from logits around each group; several groups are several regions, which are the last axis."""
        found = [one(values, examples) for one, values in zip(scores, logits)]
        if len(found) == 1:
            return found[0]
        order = np.argsort(np.concatenate([group.rois for group in self.geometry.groups]))
        return torch.cat(found, -1).index_select(-1, torch.as_tensor(order, device=found[0].device))

    def _fused(self, interventions: Interventions, *, anew: bool = False) -> list[Tensor]:
        """Logits ``(B, C, *box)`` around each group of regions."""
        examples = interventions.example
        changed = self._changed(interventions)
        if anew:
            changed[~changed.any(1), :] = self.geometry.touching[examples[~changed.any(1)]].any(2).cumsum(1) == 1
            changed &= self.geometry.touching[examples].any(2)
        rows, windows = np.nonzero(changed)
        parts: Parts = {}
        for batch in self._batches(len(rows)):
            found = self._weighted(
                self._image,
                examples[rows[batch]],
                windows[batch],
                purpose="answered again" if anew else None,
                replaced=interventions.rows(rows[batch]),
            )
            self._keep(parts, found, owners=rows[batch], examples=examples[rows[batch]], windows=windows[batch])
        return [self._model.fused(self._added(g, examples, parts), self._count(group, examples)) for g, group in self._numbered]

    def _changed(self, interventions: Interventions) -> np.ndarray:
        """``(B, W)``: the windows that touch a region and hold a unit that is replaced."""
        examples = interventions.example
        changed = np.zeros((len(examples), len(self._layout)), dtype=bool)
        of = examples[interventions.row]
        for example in np.unique(of).tolist():
            mine = np.flatnonzero(of == example)
            np.logical_or.at(changed, interventions.row[mine], self.geometry.holding(example)[interventions.unit[mine]])
        changed &= self.geometry.touching[examples].any(2)
        return changed

    def _added(self, g: int, examples: np.ndarray, parts: Parts) -> list[Tensor]:
        """For each network the sum over the windows, in their order, ``(B, C, *box)``."""
        group = self.geometry.groups[g]
        totals = self._empty(group, len(examples))
        for example in np.unique(examples).tolist():
            rows = np.flatnonzero(examples == example)
            index = torch.as_tensor(rows, device=totals[0].device)
            for window, _, there in self.geometry.parts(group, example):
                for k, total in enumerate(totals):
                    kept = self._kept_parts[example, window][g][k]
                    values = torch.stack(
                        [parts[row, window][g][k] if (row, window) in parts else kept for row in rows.tolist()]
                    )
                    part = total[(slice(None), slice(None), *there)]
                    part.index_add_(0, index, values)
        return totals

    @functools.cached_property
    def _kept_parts(self) -> Parts:
        """What all windows say that meet a group's box, of the images as they are."""
        kept: Parts = {}
        jobs = sorted(
            {
                (example, window)
                for example in range(len(self._image))
                for group in self.geometry.groups
                for window, _, _ in self.geometry.parts(group, example)
            }
        )
        for batch in self._batches(len(jobs)):
            examples, windows = np.array([jobs[job] for job in batch]).T
            with torch.no_grad():
                found = self._weighted(self._image, examples, windows, purpose="windows kept")
            self._keep(kept, found, owners=examples, examples=examples, windows=windows)
        return kept

    def _keep(
        self, parts: Parts, found: Sequence[Tensor], owners: np.ndarray, examples: np.ndarray, windows: np.ndarray
    ) -> None:
        """Of the weighted logits of windows, what lies in the groups' boxes."""
        device = self._fusing_device
        for index, (owner, example, window) in enumerate(zip(owners.tolist(), examples.tolist(), windows.tolist())):
            parts[owner, window] = [
                [weighted[index][(slice(None), *inside[window])].to(device, copy=True) for weighted in found]
                if window in inside
                else []
                for inside in self._inside[example]
            ]

    @functools.cached_property
    def _inside(self) -> list[list[dict[int, Box]]]:
        """For each example and group by window: the part of a window that lies in the group's box."""
        return [
            [{window: inside for window, inside, _ in self.geometry.parts(group, n)} for group in self.geometry.groups]
            for n in range(len(self._image))
        ]

    def _weighted(
        self,
        images: Tensor,
        examples: np.ndarray,
        windows: np.ndarray,
        rows: np.ndarray | None = None,
        *,
        purpose: str | None,
        replaced: Interventions | None = None,
    ) -> list[Tensor]:
        """Weighted logits of windows of these examples, which are the images' ``rows`` (by default those of their number)."""
        count = len(examples) * self._model.runs_per_window
        if purpose is None:
            self._windows_run["windows"] += count
        else:
            self.ledger.count(purpose, count)
        cut = self._layout.cut(images, examples if rows is None else rows, windows)
        if replaced is not None:
            self.unit_donors.paste([cut], replaced, [RowFrame(self._layout.starts[windows], self._layout.size)])
        if self.execution.channels_last and cut.ndim in (4, 5):
            cut = cut.contiguous(memory_format=torch.channels_last if cut.ndim == 4 else torch.channels_last_3d)
        arguments = self._model.arguments(self._bare.arguments, examples, self._image)
        # Gradients are taken in the model's own precision.
        with nullcontext() if purpose == "gradient" else self._precision():
            return self._model.weighted(cut, self._layout, arguments)

    def _batches(self, count: int) -> Iterator[np.ndarray]:
        """Numbers of windows to be run at once; one at a time where every image has to be alone."""
        size = 1 if self.scorer.takes_batches is False else self._model.batch_size
        for begin in range(0, count, size):
            yield np.arange(begin, min(begin + size, count))

    def _empty(self, group: RoiGroup, n: int) -> list[Tensor]:
        """For each network, zeros ``(n, C, *box)``."""
        like = self._any_part
        return [like.new_zeros((n, len(like), *group.frame.size)) for _ in self._model.networks]

    def _count(self, group: RoiGroup, examples: np.ndarray) -> Tensor:
        """What the windows' weights add up to in the group's box of each example, ``(B, 1, *box)``."""
        whole = self._layout.count(self._model.fused_dtype(self._image))
        corners = group.frame.starts[examples]
        boxes = [whole[tuple(slice(a, a + n) for a, n in zip(corner, group.frame.size))] for corner in corners.tolist()]
        return torch.stack(boxes)[:, None].to(self._fusing_device)

    @property
    def _any_part(self) -> Tensor:
        """Some weighted logits ``(C, ...)``, for their channels, precision and device."""
        return next(values[0] for values in next(iter(self._kept_parts.values())) if values)

    @property
    def _numbered(self) -> Iterator[tuple[int, RoiGroup]]:
        return iter(enumerate(self.geometry.groups))

    @property
    def _fusing_device(self) -> torch.device:
        return torch.device(self._model.device or self._image.device)
