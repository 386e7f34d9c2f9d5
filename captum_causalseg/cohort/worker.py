"""What a worker does: read a case, build its target, work on it, write its files."""

import json
import shutil
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import captum
import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._version import __version__
from captum_causalseg.cohort.digests import digest_of_file
from captum_causalseg.cohort.fingerprint import described, differences, digest, modules_of, of_call
from captum_causalseg.cohort.folder import file_of_part, fresh_place, written_beside
from captum_causalseg.cohort.work import CaseWork, Subject
from captum_causalseg.interventions.execution import Part
from captum_causalseg.target.scorer import as_scorer
from captum_causalseg.writing.files import on_disk
from captum_causalseg.writing.names import encodable

__all__ = ["Loaded", "Outcome", "Recipe", "Task", "Worker"]


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to know of a study; sent to it once.

    Args:
        dataset: where cases are read by their position; ``None`` if they come with the tasks.
        make_target, load_model, prepare, case_arguments, id_key, image_key, columns: as of
            :func:`captum_causalseg.cohort.explain_cohort`.
        work: what is done of each case.
        arguments: of the work, the same for each case.
        folder: of the study.
        asked: a digest of all that is asked.
        held: digests of the models that ``make_target`` holds.
        known: digests of the models of finished cases, besides those that it holds.
        threads: of torch; ``None`` leaves them as they are.
    """

    dataset: Any
    make_target: Callable[..., Any]
    load_model: Callable[[], Any] | None
    prepare: Callable[..., Mapping[str, Any]] | None
    work: CaseWork
    arguments: Mapping[str, Any]
    case_arguments: Sequence[str]
    id_key: str
    image_key: str | tuple[str, ...]
    columns: Sequence[str]
    folder: Path
    asked: str = ""
    held: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    threads: int | None = None


@dataclass(frozen=True)
class Task:
    """One thing to do.

    Args:
        position: of the case among all.
        name: the case's id, where it is known before the case is read.
        case: the case itself, or ``None`` to read it from the data set.
        part, n_parts: do only this part of it.
        kind: ``"work"``; ``"merge"`` the parts; ``"check"`` only build it, and say what it was asked.
    """

    position: int
    name: str | None
    case: Any
    part: int = 0
    n_parts: int = 1
    kind: str = "work"


@dataclass
class Outcome:
    """What came of a task.

    Args:
        name: the case's id.
        record: for the manifest; of a part or a check, what it says of the call.
        error: of a failed case: type and message, one line.
        details: its traceback.
        exception: itself, where it happened in this process.
        place: the folder with the case's files, to be brought to where they belong.
        refused: what differs from the study, if the case must not become part of it.
    """

    name: str | None
    record: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    details: str = ""
    exception: BaseException | None = None
    place: Path | None = None
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """What came of loading the model.

    Args:
        model: what was loaded, in words and digests; ``None`` without ``load_model``.
        problem: what went wrong.
    """

    model: Any = None
    problem: str | None = None


class Worker:
    """Works on cases, one after another; the model is loaded once.

    Args:
        recipe: what to do.
        in_process: whether exceptions can be handed on as they are.
    """

    def __init__(self, recipe: Recipe, in_process: bool = False) -> None:
        self._recipe, self._in_process = recipe, in_process
        self._model: tuple[Any, ...] = ()
        self._loaded: Any = None
        self._known = set(recipe.known)
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)

    def set_up(self) -> Loaded:
        """Load the model."""
        if self._recipe.load_model is None:
            return Loaded()
        try:
            model = self._recipe.load_model()
            found = [described(module, "load_model") for module in modules_of(model)]
            self._model, self._loaded = (model,), found[0] if len(found) == 1 else found
        except Exception as error:  # whatever a user's function raises
            if self._in_process:
                raise
            return Loaded(problem=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return Loaded(self._loaded)

    def do(self, task: Task) -> Outcome:
        """Carry a task out. A case that fails is an outcome, not an exception."""
        outcome = Outcome(task.name)
        began = time.perf_counter()
        try:
            case = self._recipe.dataset[task.position] if task.case is None else task.case
            outcome.name = id_of(case, self._recipe.id_key, task.position)
            if task.name not in (None, outcome.name):
                raise ValueError(f"cases: expected {task.name!r} at position {task.position}, got {outcome.name!r}")
            # Kept of a case that fails, too.
            outcome.record["columns"] = {column: _plain(case[column], column) for column in self._recipe.columns}
            self._carry_out(case, task, outcome)
        except Exception as error:  # whatever a case, a user's function or a model raises
            outcome.error = encodable(f"{type(error).__name__}: {error}")
            outcome.details = encodable(traceback.format_exc())
            outcome.exception = error if self._in_process else None
        if outcome.place is not None and outcome.error is not None:
            shutil.rmtree(outcome.place, ignore_errors=True)
        outcome.record["seconds"] = time.perf_counter() - began
        return outcome

    def _carry_out(self, case: Mapping[str, Any], task: Task, outcome: Outcome) -> None:
        recipe = self._recipe
        if recipe.prepare is not None:
            case = recipe.prepare(case, *self._model)
        target = recipe.make_target(case, *self._model)
        inputs = self._inputs(case, target)
        own = {key: case[key] for key in recipe.case_arguments}
        call = of_call(target, inputs) | {"loaded": self._loaded}
        if own:
            call["arguments"] = described(own, "case_arguments")
        outcome.record["call"] = call
        if task.kind == "check":
            return
        outcome.refused = self._other_model(target, call)
        if outcome.refused:
            return
        subject = Subject(
            name=outcome.name or "",
            case=case,
            target=target,
            inputs=inputs,
            is_tuple=isinstance(recipe.image_key, tuple),
            arguments=dict(recipe.arguments) | own,
        )
        parts: list[Path] = []
        if task.n_parts > 1:
            # By all that they depend on: those of a call that was killed are taken over, those of another call are not.
            key = digest(call, recipe.asked, __version__)
            files = [f"part-{number}-of-{task.n_parts}-{key}.npz" for number in range(task.n_parts)]
            parts = [file_of_part(recipe.folder, subject.name, file) for file in files]
            if task.kind == "work":
                if not _is_whole(parts[task.part]):
                    with written_beside(parts[task.part], recipe.folder) as path:
                        recipe.work.write_part(subject, Part(task.part, task.n_parts), path)
                return
        outcome.record |= {
            "device": str(inputs[0].device),
            "seed": str(recipe.work.seed(subject)),
            "versions": json.dumps({"captum_causalseg": __version__, "torch": torch.__version__, "captum": captum.__version__}),
            "model": call["model"],
            "image": call["image"],
        }
        place = outcome.place = fresh_place(recipe.folder)
        outcome.record |= recipe.work.write(subject, place, parts)
        outcome.record["files"] = {}
        for file in sorted(place.iterdir()):
            on_disk(file)
            outcome.record["files"][file.name] = [file.stat().st_size, digest_of_file(file)]

    def _other_model(self, target: Any, call: Mapping[str, Any]) -> list[str]:
        """What is said of a model that is not the study's, which must not be explained in its name.

        A model that ``load_model`` makes has been compared when it was loaded. Without it, there are those that ``make_target`` holds,
        which are part of its description; and if it makes the model by itself, that is one and the same for all cases.
        """
        scorer = as_scorer(target)
        if self._recipe.load_model is not None or not scorer.knows_model or not modules_of(scorer.model):
            return []
        model = call["model"]
        if model in self._recipe.held:
            return []
        if self._known and model not in self._known:
            return differences({"model": min(self._known)}, {"model": model})
        self._known.add(model)
        return []

    def _inputs(self, case: Mapping[str, Any], target: Any) -> tuple[Tensor, ...]:
        """The case's images as batches of one, on the model's device."""
        keys = self._recipe.image_key if isinstance(self._recipe.image_key, tuple) else (self._recipe.image_key,)
        device = _device_of(target)
        images = []
        for key in keys:
            if key not in case:
                raise KeyError(f"image_key: the case has no {key!r}, only {', '.join(map(repr, case))}")
            image = case[key] if isinstance(case[key], Tensor) else torch.as_tensor(np.asarray(case[key]), device="cpu")
            image = image if _is_batch(image, target) else image[None]
            images.append(image if device is None else image.to(device))
        return tuple(images)


def id_of(case: Any, id_key: str, position: int) -> str:
    """The id of a case, as text.

    Raises:
        TypeError, KeyError, ValueError: the case is no mapping, or has no usable id.
    """
    if not isinstance(case, Mapping):
        raise TypeError(f"cases: expected dicts, got {type(case).__name__} at position {position}")
    if id_key not in case:
        raise KeyError(f"id_key: the case at position {position} has no {id_key!r}, only {', '.join(map(repr, case))}")
    value = case[id_key]
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        if np.size(value) != 1:
            raise ValueError(f"id_key: expected a name or a number at position {position}, got an array of {np.shape(value)}")
        value = value.item()
    name = encodable(str(value))
    if not name:
        raise ValueError(f"id_key: expected a name or a number at position {position}, got an empty text")
    return name


def _is_whole(part: Path) -> bool:
    """Whether a part is there and can be read."""
    try:
        with zipfile.ZipFile(part) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        # What is said of a changed byte depends on where it lies: as if encrypted, of an unknown method, cut short, not to be decompressed.
        return False


def _is_batch(image: Tensor, target: Any) -> bool:
    """Whether an image has a batch axis of length 1 already: its target's masks tell how many axes are spatial."""
    if image.ndim < 3 or image.shape[0] != 1:
        return False
    masks = as_scorer(target).masks

    def fits(axes: int) -> bool:
        return all(mask.ndim >= axes and mask.shape[-axes:] == image.shape[-axes:] for mask in masks) and bool(masks)

    return not fits(image.ndim - 1) and fits(image.ndim - 2)


def _device_of(target: Any) -> torch.device | None:
    module = target if isinstance(target, nn.Module) else None
    first = next(module.parameters(), None) if module is not None else None
    return None if first is None else first.device


def _plain(value: Any, column: str) -> Any:
    """An entry of a case that is kept in the table: a number, a word or nothing."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and np.size(value) == 1:
        value = value.item()
    if isinstance(value, (str, Path)):
        return encodable(str(value))
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"columns: expected a number or a word in {column!r}, got {type(value).__name__}")
