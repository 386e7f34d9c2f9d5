"""The windows of a sliding-window model around regions of interest: run in batches, kept of the images as they are, and added up.

Everything is added up in the model's own order, so that the logits around the regions are those of a run of all windows.
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from captum_causalseg.boxes import Box
from captum_causalseg.interventions.evaluator import Local
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.roi_groups import RoiGroup
from captum_causalseg.interventions.window_geometry import WindowGeometry
from captum_causalseg.target.local_scores import LocalScores
from captum_causalseg.target.scorer import Scorer
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["Contents", "WindowRuns"]

Answer = Callable[[np.ndarray, np.ndarray], list[Tensor]]
"""Rows of a batch ``(J,)`` and one window of each ``(J,)`` to the weighted logits of these windows, ``(J, C, *size)`` for each network."""

Parts = dict[tuple[int, int], list[list[Tensor]]]
"""Of a row (or an example) and a window: for each group and network its weighted logits in the group's box, ``(C, *common part)``."""


class Contents:
    """What windows hold, so that one that holds the same again is not run again: next to each other, sets of units differ in few windows.

    What the last batch gave is kept, no more: a set that grows by one unit after the other begins in a batch where it ended in the one before.
    """

    def __init__(self) -> None:
        self.last: dict[Hashable, list[list[Tensor]]] = {}

    def new(self, held: Sequence[Hashable]) -> list[int]:
        """The first of each that is not known yet."""
        first: dict[Hashable, int] = {}
        for place, content in enumerate(held):
            if content not in self.last:
                first.setdefault(content, place)
        return list(first.values())


class WindowRuns:
    """Runs windows and adds them up around each group of regions. It counts windows: one through one network, unflipped, is one forward.

    Args:
        model: what runs them.
        call: the images, and what the model is given besides.
        local: scores logits from the surroundings of the regions.
        scorer: what is scored.
        execution: how it is run.
        ledger: where windows are counted that are no interventions.

    Attributes:
        call, local, scorer, ledger: as they were given.
        layout: the windows.
        geometry: where they and the regions lie.
        touching: boolean ``(N, W)``, which windows touch a region.
    """

    def __init__(
        self,
        model: WindowedModel,
        call: Sequence[Any],
        *,
        local: Local,
        scorer: Scorer,
        execution: Execution,
        ledger: Ledger,
    ) -> None:
        self.model, self.call, self.image = model, tuple(call), call[0]
        self.local, self.scorer, self.ledger, self._execution = local, scorer, ledger, execution
        self.layout = model.layout(self.image.shape[2:])
        self.geometry = WindowGeometry(self.layout, local.scores.rois, len(self.image))
        self.touching = np.asarray(self.geometry.touching.any(2))
        self._scores_of_groups = self._grouped(local.scores)
        self._counted = Counter[str]()

    def counted_apart(self) -> "WindowRuns":
        """The same with a count of its own."""
        other = copy.copy(self)
        other._counted = Counter()
        return other

    @property
    def count(self) -> int:
        """The windows that interventions took."""
        return self._counted["windows"]

    def settings(self) -> dict[str, Any]:
        """What is to be known of the windows."""
        touching = self.touching.sum(1).tolist()
        return {"windows": {"patch_size": list(self.layout.patch_size), "per_image": len(self.layout), "touching": touching}}

    @functools.cached_property
    def mix(self) -> bool:
        """Whether a window is answered otherwise beside others than alone; nothing can be kept then."""

        def weighted(windows: np.ndarray) -> list[Tensor]:
            examples = np.zeros_like(windows)
            return self.weighted(self.cut(examples, windows), examples, purpose="windows compared")

        return self.model.mixes(self.touching[0], weighted)

    def cut(self, examples: np.ndarray, windows: np.ndarray) -> Tensor:
        """Of each of these examples one window, ``(J, C, *size)``, a tensor of its own."""
        return self.layout.cut(self.image, examples, windows)

    def arguments(self, examples: np.ndarray) -> list[Any]:
        """What the network is given besides windows of these examples."""
        return self.model.arguments(self.call[1:], examples, self.image)

    def weighted(self, windows: Tensor, examples: np.ndarray, *, purpose: str | None) -> list[Tensor]:
        """Weighted logits of windows ``(J, C, *size)`` of these examples; without a purpose they are interventions."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if self._execution.channels_last and windows.ndim in formats:
            windows = windows.contiguous(memory_format=formats[windows.ndim])
        return self.run(
            lambda: self.model.weighted(windows, self.layout, self.arguments(examples)), len(examples), purpose=purpose
        )

    def run(self, answer: Callable[[], list[Tensor]], n_windows: int, *, purpose: str | None) -> list[Tensor]:
        """What so many windows give, counted and in the precision that they are run in."""
        count = n_windows * self.model.runs_per_window
        if purpose is None:
            self._counted["windows"] += count
        else:
            self.ledger.count(purpose, count)
        # Gradients are taken in the model's own precision.
        with nullcontext() if purpose == "gradient" else self._execution.precision(self.image.device):
            return answer()

    def batches(self, count: int) -> Iterator[np.ndarray]:
        """Numbers of windows to be run at once; one at a time where every image has to be alone."""
        for begin in range(0, count, self.batch_size):
            yield np.arange(begin, min(begin + self.batch_size, count))

    @property
    def batch_size(self) -> int:
        """So many windows are run at once."""
        return 1 if self.scorer.takes_batches is False else self.model.batch_size

    def fused(
        self,
        examples: np.ndarray,
        changed: np.ndarray,
        answer: Answer,
        *,
        held: Callable[[int, int], Hashable] | None = None,
        contents: Contents | None = None,
    ) -> list[Tensor]:
        """Logits ``(B, C, *box)`` around each group of regions.

        Args:
            examples: ``(B,)``.
            changed: boolean ``(B, W)``, the windows that are run anew; the others are as they were kept.
            answer: runs them.
            held: what a row's window holds, the same for the same content; ``None``: each is run.
            contents: what windows held before.
        """
        rows, windows = np.nonzero(changed)
        # Those of one image and window together: what they have in common may be computed once.
        order = np.lexsort((rows, windows, examples[rows]))
        rows, windows = rows[order], windows[order]
        places = list(zip(rows.tolist(), windows.tolist()))
        known: list[Hashable] = []
        if held is not None and contents is not None:
            known = [held(*place) for place in places]
            new = contents.new(known)
            rows, windows = rows[new], windows[new]
        parts: Parts = {}
        for batch in self.batches(len(rows)):
            found = answer(rows[batch], windows[batch])
            self._keep(parts, found, owners=rows[batch], examples=examples[rows[batch]], windows=windows[batch])
        if contents is not None:
            given = contents.last | {content: parts[place] for place, content in zip(places, known) if place in parts}
            parts = {place: given[content] for place, content in zip(places, known)}
            contents.last = {content: given[content] for content in known}
        return [
            self.model.fused(self._added(g, examples, parts), self._count(group, examples))
            for g, group in enumerate(self.geometry.groups)
        ]

    def observed(self) -> Tensor:
        """The scores ``(N, ...)`` of the images as they are, from the windows that meet the regions."""
        everyone = np.arange(len(self.image))
        return self.scores(self.fused(everyone, np.zeros((len(everyone), len(self.layout)), dtype=bool), _nothing), everyone)

    def scores(self, logits: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """The scores ``(B, ...)`` of logits around each group."""
        return self._joined(self._scores_of_groups, logits, examples)

    def near(self, logits: Sequence[Tensor]) -> Tensor:
        """What is looked at of them, ``(B, P)``."""
        return torch.cat([scores.near(one).flatten(1) for scores, one in zip(self._scores_of_groups, logits)], 1)

    @functools.cached_property
    def twins(self) -> list[LocalScores] | None:
        """What scores logits around the groups with the differentiable twin, if it looks at these alone."""
        found = self.scorer.surrogate().local_scores(*self.local.call)
        return None if found is None else self._grouped(found)

    def scores_with_gradient(self, examples: np.ndarray, answer: Answer) -> Tensor:
        """Scores ``(B, ...)`` of the differentiable twin; window by window: what a network holds for its gradient, it holds of one batch.

        Args:
            examples: ``(B,)``.
            answer: runs windows that touch the regions, with a gradient.
        """
        assert self.twins is not None
        logits = []
        for g, group in enumerate(self.geometry.groups):
            totals = self._empty(group, len(examples))
            jobs = [(row, *part) for row, n in enumerate(examples.tolist()) for part in self.geometry.parts(group, n)]
            run = [job for job in jobs if self.touching[examples[job[0]], job[1]]]
            parts: dict[tuple[int, int], list[Tensor]] = {}
            for batch in self.batches(len(run)):
                some = [run[job] for job in batch]
                rows, windows = (np.array(column) for column in zip(*((row, window) for row, window, _, _ in some)))
                insides = [inside for _, _, inside, _ in some]
                found = checkpoint(self._cut_out, answer, rows, windows, insides, use_reentrant=False)
                parts |= dict(zip(zip(rows.tolist(), windows.tolist()), found))
            for row, window, _, there in jobs:
                # The others are beside the regions.
                mine = parts.get((row, window)) or self.kept[int(examples[row]), window][g]
                for total, part in zip(totals, mine):
                    place: Any = (row, slice(None), *there)
                    total[place].add_(part.to(total.device))
            logits.append(self.model.fused(totals, self._count(group, examples)))
        return self._joined(self.twins, logits, examples)

    @staticmethod
    def _cut_out(answer: Answer, rows: np.ndarray, windows: np.ndarray, insides: list[Box]) -> list[list[Tensor]]:
        """For each window the common part of each network's weighted logits, of which copies are held and not the whole windows."""
        found = answer(rows, windows)
        return [[weighted[index][(slice(None), *inside)].clone() for weighted in found] for index, inside in enumerate(insides)]

    @functools.cached_property
    def kept(self) -> Parts:
        """What all windows say that meet a group's box, of the images as they are."""
        kept: Parts = {}
        jobs = sorted(
            {
                (example, window)
                for example in range(len(self.image))
                for group in self.geometry.groups
                for window, _, _ in self.geometry.parts(group, example)
            }
        )
        for batch in self.batches(len(jobs)):
            examples, windows = np.array([jobs[job] for job in batch]).T
            with torch.no_grad():
                found = self.weighted(self.cut(examples, windows), examples, purpose="windows kept")
            self._keep(kept, found, owners=examples, examples=examples, windows=windows)
        return kept

    def _grouped(self, scores: LocalScores) -> list[LocalScores]:
        return [scores.of_rois(group.rois).cropped(group.frame.starts, group.frame.size) for group in self.geometry.groups]

    def _joined(self, scores: Sequence[LocalScores], logits: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """Scores ``(B, ...)`` from logits around each group; several groups are several regions, which are the last axis."""
        found = [one(values, examples) for one, values in zip(scores, logits)]
        if len(found) == 1:
            return found[0]
        order = np.argsort(np.concatenate([group.rois for group in self.geometry.groups]))
        return torch.cat(found, -1).index_select(-1, torch.as_tensor(order, device=found[0].device))

    def _added(self, g: int, examples: np.ndarray, parts: Parts) -> list[Tensor]:
        """For each network the sum over the windows, in their order, ``(B, C, *box)``."""
        group = self.geometry.groups[g]
        totals = self._empty(group, len(examples))
        for example in np.unique(examples).tolist():
            rows = np.flatnonzero(examples == example)
            index = torch.as_tensor(rows, device=totals[0].device)
            for window, _, there in self.geometry.parts(group, example):
                for k, total in enumerate(totals):
                    kept = self.kept[example, window][g][k]
                    values = torch.stack(
                        [parts[row, window][g][k] if (row, window) in parts else kept for row in rows.tolist()]
                    )
                    part = total[(slice(None), slice(None), *there)]
                    part.index_add_(0, index, values)
        return totals

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
            for n in range(len(self.image))
        ]

    def _empty(self, group: RoiGroup, n: int) -> list[Tensor]:
        """For each network, zeros ``(n, C, *box)``."""
        like = next(values[0] for values in next(iter(self.kept.values())) if values)
        return [like.new_zeros((n, len(like), *group.frame.size)) for _ in self.model.networks]

    def _count(self, group: RoiGroup, examples: np.ndarray) -> Tensor:
        """What the windows' weights add up to in the group's box of each example, ``(B, 1, *box)``."""
        whole = self.layout.count(self.model.fused_dtype(self.image))
        corners = group.frame.starts[examples]
        boxes = [whole[tuple(slice(a, a + n) for a, n in zip(corner, group.frame.size))] for corner in corners.tolist()]
        return torch.stack(boxes)[:, None].to(self._fusing_device)

    @property
    def _fusing_device(self) -> torch.device:
        return torch.device(self.model.device or self.image.device)


def _nothing(rows: np.ndarray, windows: np.ndarray) -> list[Tensor]:
    return []
