"""Explain every case of a cohort, once, whatever happens in between."""

import functools
import inspect
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from captum_causalseg.attr.components import component_effects
from captum_causalseg.cohort import engines
from captum_causalseg.cohort.fingerprint import described, differences
from captum_causalseg.cohort.folder import Cohort, arrow, file_of, locked, study_error
from captum_causalseg.cohort.worker import Outcome, Recipe, Task, id_of
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["CohortError", "explain_cohort"]

logger = logging.getLogger(__name__)

# Arguments of `attribute` that a study gives by other means, or that make no sense in it.
_OURS = ("inputs", "return_statistics", "show_progress")
_RESERVED = ("id", "state", "error", "observed_score", "n_units", "forwards", "seconds", "device", "seed", "versions", "model")


class CohortError(RuntimeError):
    """A case failed, and ``errors="raise"`` was asked for; the message says which and how."""


def explain_cohort(
    cases: Iterable[Mapping[str, Any]] | Sequence[Mapping[str, Any]] | Any,
    make_target: Callable[..., Any],
    *,
    method: Callable[..., Any],
    out: str | os.PathLike[str],
    engine: Literal["local", "ray"] = "local",
    resume: bool = True,
    load_model: Callable[[], Any] | None = None,
    prepare: Callable[..., Mapping[str, Any]] | None = None,
    id_key: str = "id",
    image_key: str | tuple[str, ...] = "image",
    case_arguments: Sequence[str] = (),
    columns: Sequence[str] = (),
    nifti: bool | Callable[[Path, Mapping[str, Any], TreatmentEffectStatistics], None] = False,
    shards: int = 1,
    errors: Literal["record", "raise"] = "record",
    num_workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    show_progress: bool = True,
    **arguments: Any,
) -> Cohort:
    """Explain the cases of a cohort, one by one, and keep what is found in a folder.

    The same call goes on where an earlier one stopped, was killed or lost its machine: finished cases are not done again, failed
    ones are tried again, and the tables are those of a call that was never interrupted, bit for bit but for the column
    ``seconds``. Cases are read when it is their turn and forgotten when they are written.

    Args:
        cases: dicts with an id and an image, in any iterable; or a data set with ``len`` and indexing (torch, MONAI), whose items the
            workers read themselves. A MONAI ``Dataset`` of dicts with the id in ``dataset.data`` is not read to learn what is
            finished.
        make_target: a case to what is explained, a :class:`~captum_causalseg.SegmentationTarget` or any other function of images;
            with ``load_model``, a case and the model. It is sent to each worker once, with all that it refers to.
        method: a target to what has ``attribute(..., return_statistics=True)``: a class such as
            :class:`~captum_causalseg.AverageTreatmentEffect`, or a function such as
            ``lambda target: LayerAverageTreatmentEffect(target, target.model.decoder)``; or
            :func:`~captum_causalseg.component_effects` itself.
        out: the folder; see :class:`Cohort` for what is in it. On several machines, one that all of them see.
        engine: ``"local"``, this process; ``"ray"``, actors on a Ray cluster.
        resume: go on with a study that is there. With ``False``, one that is there is an error.
        load_model: makes the model, called once per worker.
        prepare: makes the case that is explained of the one that was given, in the worker: reads the files that it names, say. It is
            given the case (and the model, with ``load_model``); ``make_target`` gets what it returns.
        id_key: the entry of a case that is its stable, unique name.
        image_key: the entry that is explained, ``(C, *spatial)`` as data sets give it or a batch of one; a tuple for a model of several
            inputs. A ``MetaTensor`` keeps its geometry: distances are then in millimeters.
        case_arguments: entries of each case that are arguments of ``attribute`` by the same name (``feature_mask``, ...).
        columns: entries of each case, numbers or words, that are kept in ``cases.parquet`` (site, scanner, model, ...).
        nifti: write ``effects.nii.gz`` for each case, on its image's grid; or a function of a path, the case and its statistics that
            writes it.
        shards: into how many parts the units of each case are cut, to be explained by different workers: for volumes so large that
            one worker would take too long. The effects are the same; each part finds out anew what can reach the region of
            interest. Not with ``precision`` or ``decide``, whose budget is shared among units.
        errors: ``"record"``: a case that fails is kept with its error and the others go on; ``"raise"``: stop at the first.
        num_workers: how many actors; by default as many as fit on the cluster.
        num_cpus, num_gpus: what each actor reserves; ``num_gpus`` may be a fraction, several actors then share one. Each actor runs
            torch on ``num_cpus`` threads.
        address: of a running Ray cluster (``"auto"``, ``"ray://host:10001"``); by default one is started for the call.
        show_progress: bars over cases and units.
        **arguments: of ``attribute``, the same for each case: ``baselines``, ``target``, ``block_size``, ``n_draws``, ``seed``, ...

    Returns:
        The :class:`Cohort` in ``out``.

    Raises:
        TypeError, ValueError: an argument is not as described; the folder belongs to a study that was asked something else (the
            message says what changed), or another process is at work in it; two cases have the same id.
        CohortError: a case failed, with ``errors="raise"``.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.cohort import explain_cohort
        >>> model = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> cases = ({"id": k, "image": torch.rand(1, 16, 16), "site": "A"} for k in range(3))
        >>> def make_target(case):
        ...     return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box((16, 16), 4, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cohort = explain_cohort(
        ...         cases, make_target, method=AverageTreatmentEffect, out=folder, columns=["site"], show_progress=False,
        ...         baselines=PatchBank(torch.rand(5, 1, 16, 16)), block_size=4, target=1,
        ...     )
        ...     cohort.cases()[["id", "site", "state", "n_units"]].values.tolist()
        [['0', 'A', 'finished', 16], ['1', 'A', 'finished', 16], ['2', 'A', 'finished', 16]]
    """
    arrow()
    _check(
        make_target, method, engine, errors, load_model, prepare, shards, num_workers, num_cpus, num_gpus, arguments, columns
    )
    if address is not None and engine != "ray":
        raise ValueError('address: it goes with engine="ray"')
    folder = Path(out).absolute()
    dataset = cases if _is_dataset(cases) else None
    recipe = Recipe(
        dataset=dataset,
        make_target=make_target,
        load_model=load_model,
        prepare=prepare,
        method=method,
        arguments=arguments,
        case_arguments=tuple(case_arguments),
        id_key=id_key,
        image_key=tuple(image_key) if isinstance(image_key, (tuple, list)) else image_key,
        columns=tuple(columns),
        nifti=nifti if callable(nifti) else bool(nifti),
        folder=folder,
        threads=max(1, int(num_cpus)) if engine == "ray" else None,
        show_units=show_progress and engine == "local",
    )
    asked = {
        "make_target": described(make_target),
        "load_model": described(load_model),
        "prepare": described(prepare),
        "method": described(method),
        "arguments": described(arguments),
        "case_arguments": list(recipe.case_arguments),
        "id_key": id_key,
        "image_key": described(recipe.image_key),
        "columns": list(recipe.columns),
        "nifti": described(recipe.nifti),
        "shards": shards,
    }
    with locked(folder, {"arguments": asked, "columns": list(recipe.columns)}, resume) as writer:
        driver = _Driver(cases, recipe, writer.cohort.records(), shards, errors, writer.add, show_progress)
        try:
            if engine == "local":
                engines.run_here(recipe, driver.next_task, driver.done)
            else:
                with engines.on_ray(address, num_workers, num_cpus, num_gpus) as n_workers:
                    engines.run_on_ray(recipe, driver.next_task, driver.done, n_workers, num_cpus, num_gpus)
        finally:
            driver.close()
            writer.close(driver.positions)
    return writer.cohort


class _Driver:
    """Decides what is to be done next, and notes what came of it."""

    def __init__(
        self,
        cases: Any,
        recipe: Recipe,
        records: dict[str, dict[str, Any]],
        shards: int,
        errors: str,
        add: Callable[[dict[str, Any]], None],
        show_progress: bool,
    ) -> None:
        self.positions: dict[str, int] = {}
        self._recipe, self._shards, self._errors, self._add = recipe, shards, errors, add
        self._finished = {name for name, record in records.items() if record["state"] == "finished"}
        # One finished case is built again, to see that model, region and image are still those.
        self._witness = next((record for record in records.values() if record["state"] == "finished"), None)
        self._checking = False
        self._ready: deque[Task] = deque()
        self._parts_left: dict[int, int] = {}
        self._part_records: dict[int, dict[str, Any]] = {}
        self._cases = iter(self._listed(cases))
        self._total = len(cases) if hasattr(cases, "__len__") else None
        self._show_progress = show_progress
        self._n_units = self._n_failed = 0

    @functools.cached_property
    def _bar(self) -> Any:
        # Not before the first task: what cannot begin has no progress.
        return tqdm(total=self._total, desc="cases", disable=not self._show_progress, dynamic_ncols=True)

    def next_task(self) -> Task | None:
        """The next one, or ``None`` if there is none (at the moment)."""
        self._bar.refresh()
        if self._checking:
            return None
        if not self._ready:
            self._look_ahead()
        return self._ready.popleft() if self._ready else None

    def done(self, task: Task, outcome: Outcome) -> None:
        """Note what came of a task."""
        if task.kind == "check":
            self._compare(outcome)
            return
        name = outcome.name or task.name or f"position {task.position}"
        if task.name is None and outcome.name is not None:
            # It was not known before it was read.
            self._claim(outcome.name, task.position)
        if outcome.error is not None:
            self._failed(task, outcome, name)
            return
        if task.n_parts > 1 and task.kind == "explain":
            self._part_done(task, outcome)
            return
        seconds = self._part_records.pop(task.position, {"seconds": 0.0})["seconds"] + outcome.record["seconds"]
        record = {"id": name, "position": task.position, "state": "finished", "error": None}
        self._add(record | outcome.record | {"seconds": seconds})
        self._finished.add(name)
        file_of(self._recipe.folder, name, "error").unlink(missing_ok=True)
        self._n_units += outcome.record["n_units"]
        self._step()

    def close(self) -> None:
        """Take the bar away."""
        if "_bar" in vars(self):
            self._bar.close()

    def _look_ahead(self) -> None:
        """Put the tasks of the next case that is not finished where they are taken from."""
        for position, name, case in self._cases:
            if name is not None:
                self._claim(name, position)
            if name in self._finished:
                if self._witness is not None and self._witness["id"] == name:
                    self._checking = True
                    self._ready.append(Task(position, name, case, kind="check"))
                    return
                self._bar.update()
                continue
            for part in range(self._shards):
                self._ready.append(Task(position, name, case, part, self._shards))
            return

    def _listed(self, cases: Any) -> Iterator[tuple[int, str | None, Any]]:
        """Position, id where it is known without reading, and the case itself unless workers read it."""
        if self._recipe.dataset is None:
            for position, case in enumerate(cases):
                yield position, id_of(case, self._recipe.id_key, position), case
            return
        unread = getattr(cases, "data", None)
        for position in range(len(cases)):
            known = None
            if isinstance(unread, Sequence) and len(unread) == len(cases) and isinstance(unread[position], Mapping):
                known = unread[position].get(self._recipe.id_key)
            if known is None and self._finished:
                # There is no other way to know whether it is finished.
                known = id_of(cases[position], self._recipe.id_key, position)
            yield position, None if known is None else str(known), None

    def _claim(self, name: str, position: int) -> None:
        if self.positions.setdefault(name, position) != position:
            raise ValueError(f"cases: {name!r} is the id of two cases, at positions {self.positions[name]} and {position}")

    def _compare(self, outcome: Outcome) -> None:
        self._checking = False
        assert self._witness is not None
        if outcome.error is not None:
            raise ValueError(
                f"cases: {self._witness['id']!r} was explained before and cannot be built any more: {outcome.error}"
            )
        changed = differences(self._witness["call"], outcome.record["call"])
        if changed:
            raise study_error(self._recipe.folder, [f"case {self._witness['id']}, {line}" for line in changed])
        self._bar.update()

    def _part_done(self, task: Task, outcome: Outcome) -> None:
        kept = self._part_records.setdefault(task.position, {"seconds": 0.0})
        kept["seconds"] += outcome.record["seconds"]
        self._parts_left[task.position] = self._parts_left.get(task.position, self._shards) - 1
        if not self._parts_left[task.position]:
            del self._parts_left[task.position]
            self._ready.appendleft(Task(task.position, outcome.name, task.case, 0, self._shards, kind="merge"))

    def _failed(self, task: Task, outcome: Outcome, name: str) -> None:
        # What other parts of it are still to be done is left.
        self._ready = deque(one for one in self._ready if one.position != task.position)
        if task.n_parts > 1 and task.kind == "explain":
            if self._parts_left.get(task.position) == -1:
                return
            self._parts_left[task.position] = -1
        path = file_of(self._recipe.folder, name, "error")
        path.parent.mkdir(exist_ok=True)
        path.write_text(outcome.details, encoding="utf-8")
        known = {column: outcome.record.get(column) for column in self._recipe.columns}
        record = {"id": name, "position": task.position, "state": "failed", "error": outcome.error, **known}
        self._add(record | {"seconds": outcome.record.get("seconds", 0.0)})
        if self._errors == "raise":
            raise CohortError(f"case {name!r} failed: {outcome.error}") from outcome.exception
        logger.warning("case %s failed: %s (%s)", name, outcome.error, path)
        self._n_failed += 1
        self._step()

    def _step(self) -> None:
        failed = f", {self._n_failed} failed" if self._n_failed else ""
        self._bar.set_postfix_str(f"{self._n_units} units{failed}", refresh=False)
        self._bar.update()


def _is_dataset(cases: Any) -> bool:
    """Whether workers can read its items by themselves; what holds its items in memory is sent item by item."""
    return not isinstance(cases, (list, tuple)) and hasattr(cases, "__getitem__") and hasattr(cases, "__len__")


def _check(
    make_target: Any,
    method: Any,
    engine: str,
    errors: str,
    load_model: Any,
    prepare: Any,
    shards: Any,
    num_workers: Any,
    num_cpus: Any,
    num_gpus: Any,
    arguments: dict[str, Any],
    columns: Sequence[str],
) -> None:
    for name, value in (("make_target", make_target), ("method", method)):
        if not callable(value):
            raise TypeError(f"{name}: expected a function or a class, got {type(value).__name__}")
    for name, value in (("load_model", load_model), ("prepare", prepare)):
        if value is not None and not callable(value):
            raise TypeError(f"{name}: expected a function, got {type(value).__name__}")
    if engine not in ("local", "ray"):
        raise ValueError(f'engine: expected "local" or "ray", got {engine!r}')
    if errors not in ("record", "raise"):
        raise ValueError(f'errors: expected "record" or "raise", got {errors!r}')
    for name, value in (("shards", shards), ("num_workers", num_workers)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    for name, value, least in (("num_cpus", num_cpus, "positive"), ("num_gpus", num_gpus, "at least 0")):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (value == 0 and least == "positive"):
            raise ValueError(f"{name}: expected a number, {least}, got {value!r}")
    for column in columns:
        if column in _RESERVED:
            raise ValueError(f"columns: {column!r} is a column of the table already")
    if shards > 1 and method is component_effects:
        raise ValueError("shards: component_effects has no units to be shared out; its modules are explained by one worker")
    if shards > 1 and any(arguments.get(name) is not None for name in ("precision", "decide")):
        raise ValueError("shards: not with precision or decide, whose budget is shared among all units of a case")
    for name in _OURS:
        if name in arguments:
            raise TypeError(f"explain_cohort: {name!r} is not an argument of a study")
    attribute = method if method is component_effects else getattr(method, "attribute", None)
    if attribute is None:
        return  # a function that makes the explainer: it is seen when the first case is explained
    known = [*inspect.signature(attribute).parameters]
    if method is component_effects:
        known.append("target")
    elif "return_statistics" not in known:
        raise TypeError(f"method: {method.__name__} has no uncertainties to be kept; expected a class with return_statistics")
    unknown = sorted({*arguments} - {*known})
    if unknown:
        raise TypeError(f"explain_cohort: unknown argument {unknown[0]!r}; {method.__name__} has {', '.join(known[2:])}")
