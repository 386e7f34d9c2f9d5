"""Decides what of a cohort is to be done next, and notes what came of it."""

import functools
import logging
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from captum_causalseg.cohort.fingerprint import differences
from captum_causalseg.cohort.folder import Writer, damages, file_of, study_error
from captum_causalseg.cohort.worker import Loaded, Outcome, Recipe, Task, id_of

__all__ = ["CohortError", "Course", "Driver"]

logger = logging.getLogger(__name__)

# So many finished cases may be beyond building again before the study is taken to be another one.
_MOST_UNBUILT = 3


class CohortError(RuntimeError):
    """A case failed, and ``errors="raise"`` was asked for; the message says which and how.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.cohort import CohortError, explain_cohort
        >>> def make_target(case):
        ...     raise ValueError("no label")
        >>> options = {"out": tempfile.mkdtemp(), "errors": "raise", "show_progress": False}
        >>> cases = [{"id": "a", "image": torch.rand(1, 8, 8)}]
        >>> try:
        ...     explain_cohort(cases, make_target, method=AverageTreatmentEffect, **options)
        ... except CohortError as error:
        ...     print(str(error).splitlines()[0])
        case 'a' failed: ValueError: no label
    """


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a study is gone through.

    Args:
        shards, errors, show_progress: as of :func:`captum_causalseg.cohort.explain_cohort`.
        title: of the progress bar.
    """

    shards: int = 1
    errors: str = "record"
    show_progress: bool = True
    title: str = "cases"


class Driver:
    """Hands out the tasks of one call and takes what comes of them.

    Args:
        cases: as of :func:`captum_causalseg.cohort.explain_cohort`.
        recipe: what workers are told.
        writer: of the study's folder.
        course: how the study is gone through.

    Attributes:
        positions: of the cases that have come by, by their ids.
    """

    def __init__(self, cases: Any, recipe: Recipe, writer: Writer, course: Course) -> None:
        self.positions: dict[str, int] = {}
        self._recipe, self._writer, self._course = recipe, writer, course
        self._records = writer.cohort.records()
        self._finished = {name for name, record in self._records.items() if record["state"] == "finished"}
        # What workers load, as the first case that was finished had it.
        self._loaded = [record["call"]["loaded"] for record in self._records.values() if record["state"] == "finished"][:1]
        # One finished case is built again, to see that model, region and image are still those.
        self._unchecked = bool(self._finished)
        self._unbuilt: list[str] = []
        self._checking = False
        self._names: dict[int, str] = {}
        # Before anything else where cases can be looked at in any order; else when one comes by.
        self._ahead = isinstance(cases, (list, tuple)) or recipe.dataset is not None
        self._witnesses = iter(self._listed(cases)) if self._ahead else iter(())
        self._ready: deque[Task] = deque()
        self._parts_left: dict[int, int] = {}
        self._part_records: dict[int, dict[str, Any]] = {}
        self._cases = iter(self._listed(cases))
        self._total = len(cases) if hasattr(cases, "__len__") else None
        self._n_units = self._n_failed = 0

    @functools.cached_property
    def _bar(self) -> Any:
        # Not before the first task: what cannot begin has no progress.
        return tqdm(total=self._total, desc=self._course.title, disable=not self._course.show_progress, dynamic_ncols=True)

    def begun(self, loaded: Loaded) -> None:
        """A worker has loaded its model: it has to be the study's.

        Raises:
            ValueError: it is another one.
        """
        if self._recipe.load_model is None:
            return
        if not self._loaded:
            self._loaded.append(loaded.model)
        changed = differences({"model": self._loaded[0]}, {"model": loaded.model})
        if changed:
            raise study_error(self._recipe.folder, [f"load_model, {line}" for line in changed])

    def next_task(self) -> Task | None:
        """The next one, or ``None`` if there is none (at the moment)."""
        if self._checking:
            return None
        if self._unchecked and self._ahead and (task := self._next_witness()) is not None:
            return task
        self._bar.refresh()
        if not self._ready:
            self._look_ahead()
        return self._ready.popleft() if self._ready else None

    def done(self, task: Task, outcome: Outcome) -> None:
        """Note what came of a task."""
        if outcome.refused:
            raise study_error(self._recipe.folder, [f"case {outcome.name}, {line}" for line in outcome.refused])
        if task.kind == "check":
            self._compare(task, outcome)
            return
        if task.name is None and outcome.name is not None:
            # It was not known before it was read.
            self._claim(outcome.name, task.position)
        if outcome.error is None and not (task.n_parts > 1 and task.kind == "work"):
            self._publish(outcome)
        if outcome.error is not None:
            self._failed(task, outcome)
        elif task.n_parts > 1 and task.kind == "work":
            self._part_done(task, outcome)
        else:
            self._succeeded(task, outcome)

    def close(self) -> None:
        """Take the bar away."""
        if "_bar" in vars(self):
            self._bar.close()

    def _publish(self, outcome: Outcome) -> None:
        assert outcome.name is not None
        assert outcome.place is not None
        try:
            self._writer.publish(outcome.place, outcome.name, outcome.record["files"])
        except OSError as error:
            # It is this case's: the others go on.
            outcome.error = f"{type(error).__name__}: {error}"
            outcome.details, outcome.exception = traceback.format_exc(), error

    def _succeeded(self, task: Task, outcome: Outcome) -> None:
        name = outcome.name
        assert name is not None
        seconds = self._part_records.pop(task.position, {"seconds": 0.0})["seconds"] + outcome.record["seconds"]
        self._add(name, task, state="finished", error=None, more=outcome.record | {"seconds": seconds})
        unnamed = _unnamed(task.position)
        if unnamed in self._records and unnamed != name:
            # It failed before, when not even its name could be read.
            self._writer.add({"id": unnamed, "state": "withdrawn"})
            self._error_file(unnamed).unlink(missing_ok=True)
        self._finished.add(name)
        self._error_file(name).unlink(missing_ok=True)
        self._n_units += outcome.record["n_units"] or 0
        self._step()

    def _add(self, name: str, task: Task, state: str, error: str | None, more: Mapping[str, Any]) -> None:
        whose = {"id": name, "partition": self._writer.partition(name), "position": task.position}
        self._writer.add(whose | {"state": state, "error": error, **more})

    def _error_file(self, name: str) -> Path:
        return file_of(self._recipe.folder, self._writer.partition(name), "error")

    def _next_witness(self) -> Task | None:
        for position, name, case in self._witnesses:
            if name in self._finished:
                self._checking = True
                return Task(position, name, case, kind="check")
        self._unchecked = False
        if self._unbuilt:
            self._raise_unbuilt()
        return None

    def _look_ahead(self) -> None:
        """Put the tasks of the next case that is not finished where they are taken from."""
        for position, name, case in self._cases:
            if name is not None:
                self._claim(name, position)
            if name in self._finished and self._is_whole(name):
                if self._unchecked:
                    self._checking = True
                    self._ready.append(Task(position, name, case, kind="check"))
                    return
                self._bar.update()
                continue
            for part in range(self._course.shards):
                self._ready.append(Task(position=position, name=name, case=case, part=part, n_parts=self._course.shards))
            return

    def _is_whole(self, name: str) -> bool:
        """Whether the files of a finished case are as they were written, and what they were made of; else it is not finished."""
        record = self._records.get(name)
        if record is None or record["state"] != "finished":
            return True  # it was finished by this call
        found = damages(self._recipe.folder, record)
        if found:
            said = ", ".join(f"{path.relative_to(self._recipe.folder)} is {problem}" for path, problem in found)
            logger.warning("case %s is run again: %s", name, said)
            self._finished.discard(name)
            return False
        if self._recipe.work.is_outdated(record):
            logger.warning("case %s is run again: what it was made of has changed", name)
            self._finished.discard(name)
            return False
        return True

    def _listed(self, cases: Any) -> Iterator[tuple[int, str | None, Any]]:
        """Position, id where it is known without reading, and the case itself unless workers read it."""
        if self._recipe.dataset is None:
            for position, case in enumerate(cases):
                yield position, id_of(case, self._recipe.id_key, position), case
            return
        for position in range(len(cases)):
            if position not in self._names and (name := self._name_of(cases, position)) is not None:
                self._names[position] = name
            yield position, self._names.get(position), None

    def _name_of(self, dataset: Any, position: int) -> str | None:
        unread: Any = getattr(dataset, "data", None)
        listed = isinstance(unread, Sequence) and len(unread) == len(dataset)
        if listed and isinstance(unread[position], Mapping) and self._recipe.id_key in unread[position]:
            return id_of(unread[position], self._recipe.id_key, position)
        if not self._finished:
            return None
        # There is no other way to know whether it is finished.
        try:
            return id_of(dataset[position], self._recipe.id_key, position)
        except Exception:  # whatever a data set raises: the worker meets it again, and it is noted of the case
            return None

    def _claim(self, name: str, position: int) -> None:
        if self.positions.setdefault(name, position) != position:
            raise ValueError(f"cases: {name!r} is the id of two cases, at positions {self.positions[name]} and {position}")

    def _compare(self, task: Task, outcome: Outcome) -> None:
        self._checking = False
        name = task.name
        assert name is not None
        if outcome.error is not None:
            # Perhaps its file is gone; then another finished case has to do.
            self._unbuilt.append(f"{name!r}: {outcome.error}")
            logger.warning("case %s was explained before and cannot be rebuilt: %s", name, outcome.error)
            if len(self._unbuilt) >= _MOST_UNBUILT:
                self._raise_unbuilt()
        else:
            self._unchecked = False
            changed = differences(self._records[name]["call"], outcome.record["call"])
            if changed:
                raise study_error(self._recipe.folder, [f"case {name}, {line}" for line in changed])
        if not self._ahead:
            self._bar.update()

    def _raise_unbuilt(self) -> None:
        raise ValueError(f"cases: finished cases cannot be rebuilt, {'; '.join(self._unbuilt)}")

    def _part_done(self, task: Task, outcome: Outcome) -> None:
        kept = self._part_records.setdefault(task.position, {"seconds": 0.0})
        kept["seconds"] += outcome.record["seconds"]
        self._parts_left[task.position] = self._parts_left.get(task.position, self._course.shards) - 1
        if not self._parts_left[task.position]:
            del self._parts_left[task.position]
            self._ready.appendleft(
                Task(
                    position=task.position, name=outcome.name, case=task.case, part=0, n_parts=self._course.shards, kind="merge"
                )
            )

    def _failed(self, task: Task, outcome: Outcome) -> None:
        # What other parts of it are still to be done is left.
        self._ready = deque(one for one in self._ready if one.position != task.position)
        if task.n_parts > 1 and task.kind == "work":
            if self._parts_left.get(task.position) == -1:
                return
            self._parts_left[task.position] = -1
        name = outcome.name or task.name or _unnamed(task.position)
        error = str(outcome.error)
        path = self._error_file(name)
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(outcome.details, encoding="utf-8")
            details = str(path)
        except OSError as unwritten:
            details = f"its traceback cannot be written: {unwritten}"
        columns = outcome.record.get("columns", {})
        self._add(
            name, task, state="failed", error=error, more={"columns": columns, "seconds": outcome.record.get("seconds", 0.0)}
        )
        if self._course.errors == "raise":
            raise CohortError(f"case {name!r} failed: {error}") from outcome.exception
        logger.warning("case %s failed: %s (%s)", name, error, details)
        self._n_failed += 1
        self._step()

    def _step(self) -> None:
        failed = f"{self._n_failed} failed" if self._n_failed else ""
        units = f"{self._n_units} units" if self._n_units else ""
        self._bar.set_postfix_str(", ".join(filter(None, (units, failed))), refresh=False)
        self._bar.update()


def _unnamed(position: int) -> str:
    """What a case is called whose own name could not be read."""
    return f"position {position}"
