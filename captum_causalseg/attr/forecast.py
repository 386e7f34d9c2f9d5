"""How many forwards plans take at most, before they are carried out and while they are."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from captum_causalseg.attr.controls import Control
from captum_causalseg.attr.progress import Progress
from captum_causalseg.engine.goal import Goal
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.plan import Plan
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.repeatability import Witness
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["Forecast", "ModulesForecast", "Runs"]


@dataclass(frozen=True)
class Runs:
    """How often the model runs beyond once for every intervention.

    Args:
        each: runs for each intervention.
        n_checks: forwards that are made besides, at most, to see that what is spared is the same.
    """

    each: int = 1
    n_checks: int = 0


class Forecast:
    """Tells a progress bar how many forwards are made and how many are left at most; windows, where these are run one by one.

    Args:
        progress: that is told.
        plan: what is carried out.
        evaluator: with what.
        witness: who has looked whether answers can be compared, and looks again when all is done.
        goal: that draws may go on for, as far as its budget goes.
        in_context: whether sets of units are replaced, and not single ones.
        controls: what is measured besides.
        runs: of the model.
    """

    def __init__(
        self,
        progress: Progress,
        plan: Plan,
        evaluator: ModelEvaluator,
        *,
        witness: Witness | None = None,
        goal: Goal | None = None,
        in_context: bool = False,
        controls: Mapping[str, Control],
        runs: Runs | None = None,
    ) -> None:
        self._progress, self._plan, self._evaluator, self._witness = progress, plan, evaluator, witness
        self._budget, self._in_context = 0 if goal is None else goal.budget, in_context
        self._n_controls = sum(control.most_draws(plan) for control in controls.values())
        self._runs = Runs() if runs is None else runs
        self._n_looks = self._runs.n_checks + (0 if witness is None else witness.n_forwards)
        self._done, self._dearest, self._before = 0, 0, 0

    def run(self, done: int, total: int) -> None:
        """So many interventions of so many at most are done."""
        if not self._progress.shown or not self._plan.active.any():
            return
        self._done, total = done, max(total, self._budget)
        if not self._progress.has_begun:
            self._begin(total)
        left = (total - done + self._n_controls) * self._dearest + self._n_looks + self._evaluator.most_checks
        self._progress.advance(self._made(), left=left)

    def controls(self, done: int, forwards: int) -> None:
        """So many interventions of controls are done; the control that is being measured has taken so many forwards."""
        if self._progress.has_begun:
            left = max(0, self._n_controls - done) * self._dearest + self._n_looks + self._evaluator.most_checks
            self._progress.advance(self._made() + forwards, left=left)

    def _begin(self, total: int) -> None:
        rows, most, each = np.flatnonzero(self._plan.active.any(1)), total, self._forwards_each()
        self._dearest = int(each.max())
        # Who gets the draws that go where they are needed is not known yet.
        if self._budget or self._in_context or self._plan.shares_out:
            most *= self._dearest
        else:
            most = sum(self._plan.design(row).end(1) * cost for row, cost in zip(rows.tolist(), each.tolist()))
        self._before = self._made()
        self._progress.begin(
            self._before,
            most=most + self._n_controls * self._dearest + self._n_looks + self._evaluator.most_checks,
            noun="windows" if self._evaluator.execution.by_windows else "forward passes",
            pace=None if self._witness is None else self._witness.pace,
        )

    def _forwards_each(self) -> np.ndarray:
        """Of every active row ``(M,)``, or of all units of an example at once, ``(N,)``."""
        rows = np.flatnonzero(self._plan.active.any(1))
        example, unit = self._plan.example[rows], self._plan.unit[rows]
        none = np.zeros((len(rows), 1), dtype=np.int64)
        if not self._in_context:
            single = Interventions.single(example, unit, none, outputs=self._plan.active[rows])
            return self._runs.each * self._evaluator.forwards_each(single)
        examples, of_example = np.unique(example, return_inverse=True)
        return self._runs.each * self._evaluator.forwards_each(Interventions(examples, of_example, unit, donor=none))

    def _made(self) -> int:
        """Forwards since it began, whatever for, but those of a control that is not complete."""
        evaluator = self._evaluator
        n = len(evaluator.site.inputs[0])
        return sum(evaluator.forwards(n, self._done).values()) + evaluator.ledger.forwards.total() - self._before


class ModulesForecast:
    """Tells a progress bar how many forwards there are at most of modules that are explained one after the other, once the first of them is done.

    What the first took besides its interventions is what each of the others takes at most: what they have in common is found out there.

    Args:
        progress: that is told.
        most: how many interventions each module may have, by its name, in the order in which they come.
    """

    def __init__(self, progress: Progress, most: Mapping[str, int]) -> None:
        self._progress, self._left = progress, dict(most)
        self._began, self._made, self._first, self._besides, self._each = time.monotonic(), 0, 0, 0, 1

    def begin(self, name: str) -> None:
        """A module is being explained."""
        if not self._progress.has_begun:
            self._progress.doing(f"{name}, the first of {len(self._left)} modules")

    def done(self, name: str, statistics: TreatmentEffectStatistics) -> None:
        """A module has been explained."""
        if not self._progress.shown:
            return
        del self._left[name]
        made = statistics.n_forwards
        interventions = int(statistics.n_draws.reshape(*statistics.n_draws.shape[:2], -1).amax(2).sum())
        # Of a sliding window, an intervention takes a forward per window that touches the region.
        self._each = max([self._each, *statistics.settings.get("windows", {}).get("touching", ())])
        self._besides = max(self._besides, made - interventions * self._each)
        self._made += made
        left = sum(self._each * most + self._besides for most in self._left.values())
        if self._progress.has_begun:
            self._progress.advance(self._made - self._first, left=left)
        elif left:
            self._first = self._made
            noun = "windows" if "windows" in statistics.settings else "forward passes"
            pace = (time.monotonic() - self._began) / max(made, 1)
            self._progress.begin(made, most=left, noun=noun, pace=pace, purpose=f"for {len(self._left)} further modules")
