"""Interventions in several windows: one for each group of regions of interest (RoIs) that lie far from the others."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.boxes import crop
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.roi_groups import RoiGroup
from captum_causalseg.interventions.sites import Site
from captum_causalseg.interventions.unit_donors import UnitDonors

__all__ = ["GroupsEvaluator"]


class GroupsEvaluator(ModelEvaluator):
    """Runs each intervention in the windows that its units can reach, if their scores are looked at; the scores of the other groups stay as they are.

    Its scores are those of all groups; it counts windows, not images. Its site is that of the whole images.

    Args:
        whole: the evaluator on whole images, which scores logits locally.
        groups: of the RoIs; their frames are the windows.
        parts: for each group the evaluator on its window, whose scores are those of its RoIs.
        reaches: ``(N, U, R)``: which units can reach which RoI.
    """

    def __init__(
        self, whole: ModelEvaluator, groups: Sequence[RoiGroup], parts: Sequence[ModelEvaluator], reaches: np.ndarray
    ) -> None:
        # As the largest window is run, which is the one to fit into memory.
        largest = max(groups, key=lambda group: int(np.prod(group.frame.size)))
        super().__init__(
            site=whole.site,
            scorer=whole.scorer,
            execution=parts[list(groups).index(largest)].execution,
            unit_donors=whole.unit_donors,
            ledger=whole.ledger,
            local=whole.local,
            output_shape=whole.output_shape,
        )
        self._whole, self._groups, self._parts = whole, tuple(groups), tuple(parts)
        # (N, U, G)
        self._reached = np.stack([reaches[..., list(group.rois)].any(2) for group in groups], -1)
        self._n_rois = reaches.shape[2]
        # Scores (K,) of the examples as they are, computed in the windows; evaluators of other donors share them.
        self._unchanged: dict[int, Tensor] = {}
        self._n_run = Counter[str]()
        self._last: list[dict[Hashable, Tensor]] = [{} for _ in self._parts]

    @property
    def whole(self) -> ModelEvaluator:
        """The evaluator on whole images."""
        return self._whole

    def observe(self, examples: np.ndarray) -> Tensor:
        """See :meth:`ModelEvaluator.observe`."""
        return self._whole.observe(examples)

    def baseline(self, examples: np.ndarray) -> Tensor:
        """See :meth:`ModelEvaluator.baseline`; computed once of each example."""
        missing = np.array(sorted(set(examples.tolist()) - self._unchanged.keys()), dtype=np.int64)
        if len(missing):
            nothing = Interventions.nothing(missing)
            found = self._joined([part(nothing) for part in self._parts])
            self.ledger.count("observed again", len(missing) * len(self._parts))
            self._unchanged.update(zip(missing.tolist(), found))
        return torch.stack([self._unchanged[example] for example in examples.tolist()])

    def answers(self, interventions: Interventions) -> Tensor:
        """See :meth:`ModelEvaluator.answers`; of all windows, also of those that are not reached."""
        self.ledger.count("answered again", len(interventions) * len(self._parts))
        return torch.cat([part.answers(interventions) for part in self._parts], 1)

    def answers_without(self, examples: np.ndarray) -> Tensor:
        """See :meth:`ModelEvaluator.answers_without`."""
        self.ledger.count("answered again", len(examples) * len(self._parts))
        return torch.cat([part.answers_without(examples) for part in self._parts], 1)

    @property
    def answers_are_logits(self) -> bool:
        """See :attr:`ModelEvaluator.answers_are_logits`."""
        return all(part.answers_are_logits for part in self._parts)

    def forwards(self, n_examples: int, n_interventions: int) -> dict[str, int]:
        """See :meth:`ModelEvaluator.forwards`; an intervention that reaches two windows is two forwards."""
        return {"observed": n_examples, "interventions": self._n_run["interventions"] - self.n_spared}

    def forwards_each(self, interventions: Interventions) -> np.ndarray:
        """See :meth:`ModelEvaluator.forwards_each`."""
        return np.asarray(self._wanted(interventions).sum(1))

    @property
    def n_spared(self) -> int:  # type: ignore[override]
        """See :attr:`ModelEvaluator.n_spared`."""
        return sum(part.n_spared for part in self._parts)

    def expect(self, n_interventions: int) -> None:
        """See :meth:`ModelEvaluator.expect`; how many of them reach which window is not known."""
        for part in self._parts:
            part.expect(n_interventions)

    @property
    def most_checks(self) -> int:  # type: ignore[override]
        """See :attr:`ModelEvaluator.most_checks`."""
        return sum(part.most_checks for part in self._parts)

    def note(self, purpose: str, n_images: int) -> None:
        """See :meth:`ModelEvaluator.note`; windows are counted when they are run."""

    def settings(self) -> dict[str, Any]:
        """See :meth:`ModelEvaluator.settings`."""
        return {"roi_windows": [{"rois": list(group.rois), "window": list(group.frame.size)} for group in self._groups]}

    def with_donors(self, unit_donors: UnitDonors) -> "GroupsEvaluator":
        """See :meth:`ModelEvaluator.with_donors`; its interventions are counted apart."""
        other = super().with_donors(unit_donors)
        assert isinstance(other, GroupsEvaluator)
        other._parts = tuple(part.with_donors(unit_donors) for part in self._parts)
        other._n_run = Counter()
        # Donors of the same number are others then.
        other._last = [{} for _ in self._parts]
        return other

    @property
    def has_gradient(self) -> bool:
        """See :attr:`ModelEvaluator.has_gradient`."""
        return all(part.has_gradient for part in self._parts)

    @property
    def runs_of_gradient(self) -> int:
        """See :attr:`ModelEvaluator.runs_of_gradient`."""
        return len(self._parts) if self.has_gradient else self._whole.runs_of_gradient

    def scores_with_gradient(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Tensor:
        """See :meth:`ModelEvaluator.scores_with_gradient`; window by window."""
        scores = []
        for part in self._parts:
            frames = part.site.frames or (None,) * len(tensors)
            held = [x if frame is None else crop(x, frame.starts[examples], frame.size) for x, frame in zip(tensors, frames)]
            scores.append(part.scores_with_gradient(held, examples))
        return self._joined(scores)

    def _answers(self, interventions: Interventions) -> list[tuple[int, np.ndarray, Tensor]]:
        """For each window that is reached: its group's number, the rows that reach it, and their scores there."""
        wanted = self._wanted(interventions)
        found = []
        for g, part in enumerate(self._parts):
            rows = np.flatnonzero(wanted[:, g])
            if len(rows):
                found.append((g, rows, self._of_window(g, part, interventions.rows(rows))))
        return found

    def _of_window(self, g: int, part: ModelEvaluator, interventions: Interventions) -> Tensor:
        """The scores in one window; of sets that are alike in what reaches it, one is run.

        Sets that grow by one unit after the other (along a permutation) differ in few windows. The scores of the last batch are kept, no more:
        the next one begins where it ended.
        """
        reaching = self._reached[interventions.example[interventions.row], interventions.unit, g]
        order = np.lexsort((interventions.unit, interventions.row))
        order = order[reaching[order]]
        ends = np.searchsorted(interventions.row[order], np.arange(len(interventions)), side="right")
        known, held, first = self._last[g], list[Hashable](), dict[Hashable, int]()
        for row, (start, stop) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist())):
            mine = order[start:stop]
            replaced = interventions.unit[mine].tobytes(), interventions.donor[mine].tobytes()
            besides = [None if one is None else one[row].tobytes() for one in (interventions.noise, interventions.outputs)]
            content = int(interventions.example[row]), *replaced, *besides
            held.append(content)
            if content not in known:
                first.setdefault(content, row)
        new = np.array(list(first.values()), dtype=np.int64)
        scores: list[Tensor] = list(part(interventions.rows(new)).clone()) if len(new) else []
        self._n_run["interventions"] += len(new)
        given = known | dict(zip(first, scores))
        self._last[g] = {content: given[content] for content in held}
        return torch.stack([given[content] for content in held])

    def _wanted(self, interventions: Interventions) -> np.ndarray:
        """``(B, G)``: the windows that a row's units can reach and whose scores are looked at."""
        reached = np.zeros((len(interventions), len(self._parts)), dtype=bool)
        of_each = self._reached[interventions.example[interventions.row], interventions.unit]
        np.logical_or.at(reached, interventions.row, of_each)
        if interventions.outputs is not None:
            of_rois = np.asarray(interventions.outputs.reshape(len(interventions), -1, self._n_rois).any(1))
            reached &= np.stack([of_rois[:, list(group.rois)].any(1) for group in self._groups], -1)
        return reached

    def _scores(self, answers: list[tuple[int, np.ndarray, Tensor]], examples: np.ndarray) -> Tensor:
        unchanged = self.baseline(examples).reshape(len(examples), -1, self._n_rois)
        scores = [unchanged[..., list(group.rois)].flatten(1) for group in self._groups]
        for g, rows, found in answers:
            scores[g][torch.as_tensor(rows, device=found.device)] = found
        shape = self._parts[0].output_shape
        assert shape is not None
        return self._joined(scores).reshape(len(examples), *shape[:-1], self._n_rois)

    def _joined(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores ``(B, K)`` from those of each group; several groups are several RoIs, which are the last axis."""
        of_rois = [one.reshape(len(one), -1, len(group.rois)) for one, group in zip(scores, self._groups)]
        order = np.argsort(np.concatenate([group.rois for group in self._groups]))
        return torch.cat(of_rois, -1).index_select(-1, torch.as_tensor(order, device=of_rois[0].device)).flatten(1)

    def _with(self, site: Site, execution: Execution, local: Local) -> ModelEvaluator:
        return self._whole._with(site, execution, local)

    def _intervened_with(self, noise: np.ndarray, interventions: Interventions) -> Tensor:
        return self._whole._intervened_with(noise, interventions)
