"""The folder of a study: what was asked, what is finished, the tables."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from filelock import FileLock, Timeout

from captum_causalseg.cohort.fingerprint import differences
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["Cohort", "arrow", "file_of", "locked", "study_error", "written_beside"]

_FORMAT = 1
_STUDY, _MANIFEST, _CASES, _UNITS, _LOCK, _BESIDE = (
    "study.json",
    "manifest.jsonl",
    "cases.parquet",
    "units",
    ".lock",
    ".unfinished",
)


class Cohort:
    """What :func:`explain_cohort` left in a folder.

    The folder holds ``study.json`` (what was asked), ``manifest.jsonl`` (a line per case that came to its end), ``cases.parquet``
    (a row per case), ``units/case=<id>/units.parquet`` (a row per unit and output), ``cases/<id>/statistics.npz`` and, if asked
    for, ``cases/<id>/effects.nii.gz``, and ``errors/<id>.txt`` of the cases that failed.

    Args:
        folder: where it is.

    Raises:
        ValueError: there is no study in that folder, or one of another format.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
        >>> from captum_causalseg.cohort import Cohort, explain_cohort
        >>> model = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> cases = [{"id": f"case-{k}", "image": torch.rand(1, 16, 16)} for k in range(2)]
        >>> def make_target(case):
        ...     return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box((16, 16), 4, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"baselines": 0.0, "block_size": 4, "n_draws": 1, "target": 1, "show_progress": False}
        ...     explain_cohort(cases, make_target, method=AverageTreatmentEffect, out=folder, **options)
        ...     Cohort(folder).units().groupby("case").size().to_dict()
        Cohort(2 finished)
        {'case-0': 32, 'case-1': 32}
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.study = _read_study(self.folder)

    def __repr__(self) -> str:
        states = [record["state"] for record in self.records().values()]
        counts = [f"{states.count(state)} {state}" for state in ("finished", "failed") if state in states]
        return f"Cohort({', '.join(counts) or 'nothing finished'})"

    def records(self) -> dict[str, dict[str, Any]]:
        """The manifest: per case, its id and latest line, in the order in which cases first came to an end."""
        found: dict[str, dict[str, Any]] = {}
        path = self.folder / _MANIFEST
        if not path.exists():
            return found
        with open(path, encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    break  # cut off by a kill: that case is done again
                record = json.loads(line)
                found[record["id"]] = record
        return found

    def cases(self) -> pd.DataFrame:
        """A row per case, in the order in which the cases were given.

        Columns: ``id``, ``state`` (``"finished"`` or ``"failed"``), ``error`` (of a failed one: type and message), whatever entries of
        the case were kept, ``observed_score`` (of the output that was asked for), ``n_units``, ``forwards`` (images that went
        through the model), ``seconds``, ``device``, ``seed``, ``versions`` (JSON) and ``model``, ``image`` (digests).
        """
        rows = sorted(self.records().values(), key=lambda record: record["position"])
        return _table_of_cases(rows, self.study.get("columns", []))

    def units(
        self, cases: Sequence[str] | None = None, columns: Sequence[str] | None = None, asked: bool = False
    ) -> pd.DataFrame:
        """The rows of all units of finished cases, as of :meth:`TreatmentEffectStatistics.to_dataframe`.

        Besides: ``case`` (the id), ``asked`` (whether it is the output that ``target`` picked), ``distance`` (of the unit to the region
        of interest; in millimeters for images with geometry, else in pixels; NaN where there is none).

        Args:
            cases: their ids; all by default.
            columns: only these (and ``case``).
            asked: only rows of the output that was asked for.

        Raises:
            KeyError: a case that is not finished.
        """
        finished = [name for name, record in self.records().items() if record["state"] == "finished"]
        chosen = finished if cases is None else list(cases)
        missing = sorted({*chosen} - {*finished})
        if missing:
            raise KeyError(f"cases: {', '.join(map(repr, missing))} not finished in {str(self.folder)!r}")
        tables = [self._units_of(name, columns, asked) for name in chosen]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def statistics(self, case: str) -> TreatmentEffectStatistics:
        """Everything about one case's effects.

        Raises:
            KeyError: it is not finished, or its method leaves no statistics.
        """
        path = file_of(self.folder, case, "statistics.npz")
        if self.records().get(case, {}).get("state") != "finished" or not path.exists():
            raise KeyError(f"case: no statistics of {case!r} in {str(self.folder)!r}")
        return TreatmentEffectStatistics.load(path)

    def _units_of(self, case: str, columns: Sequence[str] | None, asked: bool) -> pd.DataFrame:
        wanted = None if columns is None else sorted({*columns} - {"case"} | ({"asked"} if asked else set()))
        path = self.folder / _UNITS / f"case={quote(case, safe='')}" / "units.parquet"
        # Not by way of the folder: a reader that guesses types would take the id "007" for a number.
        table = pd.read_parquet(path, columns=wanted, partitioning=None)
        if asked:
            table = table[table["asked"]]
        table.insert(0, "case", case)
        return table if columns is None else table[["case", *(name for name in columns if name != "case")]]


def file_of(folder: Path, case: str, name: str) -> Path:
    """Where a file of a case lies; ids may hold any characters."""
    if name == "units.parquet":
        return folder / _UNITS / f"case={quote(case, safe='')}" / name
    if name == "error":
        return folder / "errors" / f"{quote(case, safe='')}.txt"
    return folder / "cases" / quote(case, safe="").replace(".", "%2E") / name


@contextmanager
def written_beside(final: Path, folder: Path) -> Iterator[Path]:
    """A path to write to; when the block has come to its end the file there is moved to ``final`` at once, or not at all.

    A block that writes nothing leaves nothing.
    """
    beside = folder / _BESIDE
    beside.mkdir(parents=True, exist_ok=True)
    path = beside / f"{uuid.uuid4().hex}-{final.name}"
    try:
        yield path
        if path.exists():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
    finally:
        path.unlink(missing_ok=True)


class _Writer:
    """The one driver that may write to a study's manifest and tables."""

    def __init__(self, folder: Path, study: Mapping[str, Any]) -> None:
        self.folder = folder
        self.cohort = Cohort(folder)
        self._study = study
        self._mend()
        self._manifest = open(folder / _MANIFEST, "a", encoding="utf-8")  # noqa: SIM115 (until close)

    def add(self, record: Mapping[str, Any]) -> None:
        """A case came to its end; after this it is not done again."""
        self._manifest.write(json.dumps(record) + "\n")
        self._manifest.flush()
        os.fsync(self._manifest.fileno())

    def close(self, positions: Mapping[str, int]) -> None:
        """Write ``cases.parquet``; cases of this call in its order, others after them."""
        self._manifest.close()
        last = len(positions)
        rows = [record | {"position": positions.get(name, last)} for name, record in self.cohort.records().items()]
        rows.sort(key=lambda record: record["position"])
        table = _table_of_cases(rows, self._study["columns"])
        with written_beside(self.folder / _CASES, self.folder) as path:
            table.to_parquet(path, index=False)

    def _mend(self) -> None:
        """Cut off a last line that a kill left incomplete, and what was being written beside."""
        shutil.rmtree(self.folder / _BESIDE, ignore_errors=True)
        path = self.folder / _MANIFEST
        if path.exists():
            held = path.read_bytes()
            whole = held[: held.rfind(b"\n") + 1]
            if whole != held:
                with open(path, "r+b") as file:
                    file.truncate(len(whole))


@contextmanager
def locked(folder: Path, study: dict[str, Any], resume: bool) -> Iterator[_Writer]:
    """Open a folder for one driver: create the study, or go on with it if it is the same.

    Raises:
        ValueError: another driver is at work there, the study there was asked something else, or it is not to be resumed.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        # The operating system lets go of it when the process dies, whatever way.
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"out: another process is at work in {str(folder)!r}; wait until it is done, or choose another folder"
        ) from None
    try:
        _open(folder, study, resume)
        yield _Writer(folder, study)
    finally:
        shutil.rmtree(folder / _BESIDE, ignore_errors=True)
        begun = _has_records(folder)
        if not begun and (folder / _STUDY).exists():
            # No case came to its end: there is nothing to go on with, and the next call may ask something else.
            for name in (_STUDY, _MANIFEST, _CASES):
                (folder / name).unlink(missing_ok=True)
        lock.release()
        if new and not begun:
            (folder / _LOCK).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _open(folder: Path, study: dict[str, Any], resume: bool) -> None:
    if _has_records(folder):
        if not resume:
            raise ValueError(f"out: there is a study in {str(folder)!r} already; resume=True goes on with it")
        changed = differences(_read_study(folder)["arguments"], study["arguments"])
        if changed:
            raise study_error(folder, changed)
        return
    ours = (_LOCK, _BESIDE, _STUDY, _MANIFEST, _CASES)
    others = sorted(path.name for path in folder.iterdir() if path.name not in (*ours, "cases", _UNITS))
    if others:
        raise ValueError(f"out: {str(folder)!r} holds other things ({', '.join(others[:3])}); choose an empty folder")
    with written_beside(folder / _STUDY, folder) as path:
        path.write_text(json.dumps(study | {"format": _FORMAT}, indent=1) + "\n", encoding="utf-8")


def _has_records(folder: Path) -> bool:
    """Whether a case came to its end."""
    path = folder / _MANIFEST
    return path.exists() and b"\n" in path.read_bytes()


def study_error(folder: Path, changed: Sequence[str]) -> ValueError:
    """What is said to someone who goes on with a study but asks something else."""
    lines = "\n  ".join(changed)
    return ValueError(
        f"out: the study in {str(folder)!r} was asked something else; choose another folder, or ask the same:\n  {lines}"
    )


def arrow() -> None:
    """Raise if tables cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(f'cohorts are kept in Parquet tables: pip install "captum-causalseg[cohort]" ({error})') from error


def _read_study(folder: Path) -> dict[str, Any]:
    path = folder / _STUDY
    if not path.exists():
        raise ValueError(f"folder: there is no study in {str(folder)!r}")
    study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if study.get("format") != _FORMAT:
        raise ValueError(f"folder: the study in {str(folder)!r} was written by another version, in another format")
    return study


def _table_of_cases(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    names = ["id", "state", "error", *columns]
    numbers = ["observed_score", "n_units", "forwards", "seconds"]
    words = ["device", "seed", "versions", "model", "image"]
    table = pd.DataFrame({name: [row.get(name) for row in rows] for name in [*names, *numbers, *words]})
    # Of one type also where all is missing, so that tables of several studies fit together.
    for name in ["id", "state", "error", "device", "seed", "versions", "model", "image"]:
        table[name] = table[name].astype("string")
    return table.astype({"observed_score": "float64", "n_units": "Int64", "forwards": "Int64", "seconds": "float64"})
