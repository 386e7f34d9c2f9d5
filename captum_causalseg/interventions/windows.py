"""Interventions on the input of a sliding-window model: only the windows are run that hold a unit and touch a region of interest.

What the other windows say is kept from one run of the image as it is.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.frames import RowFrame
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.window_geometry import UnitWindows
from captum_causalseg.interventions.window_runs import Contents, WindowRuns
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["ByWindows", "WindowsEvaluator", "by_windows"]


def by_windows(evaluator: ModelEvaluator) -> ModelEvaluator:
    """The evaluator that runs only the windows that matter, where the model is a :class:`~captum_causalseg.WindowedModel` and it can."""
    model = evaluator.scorer.windowed_model
    if model is None or not isinstance(evaluator, InputEvaluator):
        return evaluator
    reason = _why_not(evaluator)
    if reason is None:
        found = WindowsEvaluator(evaluator, model)
        if not found.runs.mix:
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


class ByWindows(ModelEvaluator):
    """An evaluator that runs windows of a sliding-window model; its answers are logits around each group of regions.

    Windows of several interventions, units and images go through the network together, as many as the model has in a batch. It counts
    windows, not images.

    Attributes:
        runs: runs them.
    """

    runs: WindowRuns

    def forwards(self, n_examples: int, n_interventions: int) -> dict[str, int]:
        """See :meth:`ModelEvaluator.forwards`; windows."""
        return {"observed": self.ledger.windows_observed if n_examples else 0, "windows": self.runs.count}

    def settings(self) -> dict[str, Any]:
        """See :meth:`ModelEvaluator.settings`."""
        return self.runs.settings()

    def forwards_each(self, interventions: Interventions) -> np.ndarray:
        """See :meth:`ModelEvaluator.forwards_each`; all windows that touch a region, where it is not known which of them change."""
        return np.asarray(self.runs.touching[interventions.example].sum(1) * self.runs.model.runs_per_window)

    def note(self, purpose: str, n_images: int) -> None:
        """See :meth:`ModelEvaluator.note`; windows are counted when they are run."""

    runs_of_gradient = 0
    """Likewise."""

    def with_donors(self, unit_donors: UnitDonors) -> "ByWindows":
        """See :meth:`ModelEvaluator.with_donors`; the windows of its interventions are counted apart."""
        other = super().with_donors(unit_donors)
        assert isinstance(other, ByWindows)
        other.runs = self.runs.counted_apart()
        return other

    def answers_without(self, examples: np.ndarray) -> Tensor:
        """See :meth:`ModelEvaluator.answers_without`."""
        return self.answers(Interventions.nothing(examples))

    def _scores(self, answers: list[Tensor], examples: np.ndarray) -> Tensor:
        return self.runs.scores(answers, examples)

    def _near(self, answers: Any) -> Tensor:
        return self.runs.near(answers)


class WindowsEvaluator(ByWindows, InputEvaluator):
    """Runs the windows of a sliding-window model that interventions change, and adds them to what was kept of the others.

    Args:
        whole: the evaluator on whole images, which scores logits locally.
        model: what it runs.
    """

    def __init__(self, whole: InputEvaluator, model: WindowedModel) -> None:
        execution = replace(whole.execution, by_windows=True)
        given = whole.site, whole.scorer, execution, whole.unit_donors, whole.ledger
        super().__init__(*given, local=whole.local, output_shape=whole.output_shape)
        assert whole.local is not None
        self.runs = WindowRuns(
            model,
            [*whole.site.inputs, *self._bare.arguments],
            local=whole.local,
            scorer=self.scorer,
            execution=execution,
            ledger=self.ledger,
        )
        self.geometry = self.runs.geometry
        self._contents = Contents()

    def with_donors(self, unit_donors: UnitDonors) -> "WindowsEvaluator":
        """See :meth:`ModelEvaluator.with_donors`; donors of the same number are others then."""
        other = super().with_donors(unit_donors)
        assert isinstance(other, WindowsEvaluator)
        other._contents = Contents()
        return other

    @functools.cached_property
    def held(self) -> UnitWindows:
        """Which windows hold which unit."""
        return UnitWindows(self.geometry, self.unit_donors.units)

    def answers(self, interventions: Interventions) -> Tensor:
        """See :meth:`ModelEvaluator.answers`.

        For each row at least one window is run anew, also where nothing is replaced: what was kept says nothing of the model now.
        """
        return self._near(self._fused(interventions, anew=True))

    def scores_with_gradient(self, tensors: Sequence[Tensor], examples: np.ndarray) -> Any:
        """See :meth:`ModelEvaluator.scores_with_gradient`."""
        runs = self.runs
        if runs.twins is None:
            return super().scores_with_gradient(tensors, examples)

        # Once: the gradient of every window would be as large as the images.
        part = runs.layout.around(np.flatnonzero(runs.touching[examples].any(0)))
        near = tensors[0][(slice(None), slice(None), *part)]

        def answer(rows: np.ndarray, windows: np.ndarray) -> list[Tensor]:
            return runs.weighted(runs.layout.cut(near, rows, windows, part=part), examples[rows], purpose="gradient")

        return runs.scores_with_gradient(examples, answer)

    def _answers(self, interventions: Interventions) -> list[Tensor]:
        return self._fused(interventions)

    def _fused(self, interventions: Interventions, *, anew: bool = False) -> list[Tensor]:
        """Logits ``(B, C, *box)`` around each group of regions."""
        runs, examples = self.runs, interventions.example
        changed = self._changed(interventions)
        if anew:
            changed[~changed.any(1), :] = runs.touching[examples[~changed.any(1)]].cumsum(1) == 1
            changed &= runs.touching[examples]

        def answer(rows: np.ndarray, windows: np.ndarray) -> list[Tensor]:
            cut = runs.cut(examples[rows], windows)
            frame = RowFrame(runs.layout.starts[windows], runs.layout.size)
            self.unit_donors.paste([cut], interventions.rows(rows), [frame])
            return runs.weighted(cut, examples[rows], purpose="answered again" if anew else None)

        if anew:
            return runs.fused(examples, changed, answer)
        return runs.fused(examples, changed, answer, held=self._holding(interventions), contents=self._contents)

    def _holding(self, interventions: Interventions) -> Callable[[int, int], Hashable]:
        """From a row and a window to what is replaced in that window, and by what."""
        order = np.lexsort((interventions.unit, interventions.row))
        unit, donor = interventions.unit[order], interventions.donor[order]
        ends = np.cumsum(np.bincount(interventions.row, minlength=len(interventions)))

        def held(row: int, window: int) -> Hashable:
            example = int(interventions.example[row])
            mine = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
            here = self.held.holding(example)[unit[mine], window]
            return example, window, unit[mine][here].tobytes(), donor[mine][here].tobytes()

        return held

    def forwards_each(self, interventions: Interventions) -> np.ndarray:
        """See :meth:`ModelEvaluator.forwards_each`."""
        return np.asarray(self._changed(interventions).sum(1) * self.runs.model.runs_per_window)

    def _changed(self, interventions: Interventions) -> np.ndarray:
        """``(B, W)``: the windows that touch a region and hold a unit that is replaced."""
        examples = interventions.example
        changed = np.zeros((len(examples), len(self.runs.layout)), dtype=bool)
        of = examples[interventions.row]
        for example in np.unique(of).tolist():
            mine = np.flatnonzero(of == example)
            np.logical_or.at(changed, interventions.row[mine], self.held.holding(example)[interventions.unit[mine]])
        changed &= self.runs.touching[examples]
        return changed
