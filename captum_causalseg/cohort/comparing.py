"""What :func:`~captum_causalseg.compare_cohort` does of each case: a method's map, and what judges say of it."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.cohort.folder import Cohort
from captum_causalseg.cohort.work import CaseWork, Subject
from captum_causalseg.evaluation.faithfulness import Faithfulness, FaithfulnessMetric
from captum_causalseg.evaluation.judging_cost import Effort, forecast
from captum_causalseg.evaluation.kinds_of_rois import roi_kind
from captum_causalseg.evaluation.question import Question, check_method
from captum_causalseg.evaluation.replacements import Attributions

__all__ = ["MAP", "JudgeCase", "MapCase", "read_map"]

MAP = "map.npz"


@dataclass(frozen=True)
class MapCase(CaseWork):
    """Makes a method's map of a case, and keeps it.

    Args:
        name: of the method.
        make: a function of the target that returns a method as :func:`captum_causalseg.compare` takes it.
        options: arguments of the method's ``attribute``.
    """

    name: str
    make: Callable[..., Any]
    options: Mapping[str, Any] | None = None

    def write(self, subject: Subject, place: Path, parts: Sequence[Path]) -> dict[str, Any]:
        """See :meth:`CaseWork.write`."""
        method = self.make(subject.target)
        if self.options is not None:
            method = method, self.options
        check_method(self.name, method)
        found = _question(subject).explained(method)
        maps = found.attributions if isinstance(found.attributions, tuple) else (found.attributions,)
        np.savez_compressed(place / MAP, *(one.numpy() for one in maps))
        forwards = None if math.isnan(found.forwards) else int(found.forwards)
        return {"n_units": None, "forwards": forwards, "observed_score": None, "explaining_seconds": found.seconds}

    def seed(self, subject: Subject) -> Any:
        """See :meth:`CaseWork.seed`: of the donors' halves; methods have seeds of their own."""
        return subject.arguments.get("seed", 0)


@dataclass(frozen=True)
class JudgeCase(CaseWork):
    """Judges a method's map of a case.

    Args:
        name: of the method.
        metrics: by which.
        maps: the folder with the method's maps; ``None`` for random maps.
        n_controls: how many of these.
    """

    name: str
    metrics: tuple[FaithfulnessMetric, ...]
    maps: Path | None
    n_controls: int = 0

    def forecast(self, arguments: Mapping[str, Any]) -> int:
        """Images that judging a case will take at most."""
        needed = [one for metric in self.metrics for one in metric.measurements or ()]
        return forecast(needed, Effort.of(arguments.get("faithfulness") or {}), max(self.n_controls, 1))

    def write(self, subject: Subject, place: Path, parts: Sequence[Path]) -> dict[str, Any]:
        """See :meth:`CaseWork.write`: all that is found stands in the table of cases."""
        question = _question(subject)
        if self.maps is None:
            made, digest = question.controls(self.n_controls), None
        else:
            record = _study(self.maps).records().get(subject.name, {"state": "missing", "error": "it is not done yet"})
            if record["state"] != "finished":
                raise ValueError(f"methods[{self.name!r}]: there is no map of {subject.name!r} to judge: {record['error']}")
            made, digest = [read_map(self.maps, subject.name, subject.is_tuple)], record["files"][MAP][1]
        judge = question.judge()
        scores = [list(found) for found in zip(*(_scores(judge, one, self.metrics) for one in made))]
        rows = []
        for metric, found in zip(self.metrics, scores):
            value = float(np.mean([score for score, _ in found]))
            rows.append([metric.name, value, metric.score_direction, metric.source, sum(forwards for _, forwards in found)])
        return {
            "n_units": None,
            "forwards": judge.n_forwards,
            "observed_score": float(judge.observed[0]),
            "map": digest,
            "scores": rows,
        } | _place(judge)

    def seed(self, subject: Subject) -> Any:
        """See :meth:`CaseWork.seed`."""
        return subject.arguments.get("seed", 0)

    def is_outdated(self, record: Mapping[str, Any]) -> bool:
        """See :meth:`CaseWork.is_outdated`: where the map is another one."""
        if self.maps is None:
            return False
        made = _study(self.maps).records().get(record["id"], {})
        return made.get("state") == "finished" and made["files"][MAP][1] != record["map"]


def read_map(folder: Path, case: str, is_tuple: bool = False) -> Attributions:
    """The map of a case, ``(1, C, *spatial)``; a tuple where there are several inputs."""
    with np.load(_study(folder).file(case, MAP)) as held:
        maps = tuple(torch.from_numpy(held[name]) for name in held.files)
    return maps if is_tuple or len(maps) > 1 else maps[0]


def _question(subject: Subject) -> Question:
    return Question(target=subject.target, inputs=subject.given, **subject.arguments)


def _scores(judge: Faithfulness, attributions: Attributions, metrics: Sequence[FaithfulnessMetric]) -> list[tuple[float, int]]:
    """Per metric, its value, and the images that it took beyond what those before it had measured."""
    found = []
    for metric in metrics:
        before = judge.n_forwards
        found.append((float(metric.function(judge, attributions)[0]), judge.n_forwards - before))
    return found


def _place(judge: Faithfulness) -> dict[str, Any]:
    """The kind of the region of interest, and how well the model segments it."""
    found, roi = judge.replacements.segmented(), judge.roi
    if found is None or found[1] is None:
        return {"kind": None, "roi_dice": None}
    prediction, reference = found[0][0], found[1][0]
    where: Tensor = torch.ones_like(prediction) if roi is None else roi[0].bool()
    seen, there = prediction & where, reference & where
    total = int(seen.sum() + there.sum())
    dice = 2 * int((seen & there).sum()) / total if total else 1.0
    return {"kind": roi_kind(prediction, reference, where), "roi_dice": dice}


@functools.lru_cache(maxsize=64)
def _study(folder: Path) -> Cohort:
    return Cohort(folder)
