"""The folder of a study: what was asked, what is finished, the tables."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from filelock import FileLock, Timeout

from captum_causalseg._checks import BOOLEAN, NONE, PATH, TEXT, checked, one_of, sequence
from captum_causalseg.cohort.digests import digest_of_file
from captum_causalseg.cohort.fingerprint import differences
from captum_causalseg.cohort.manifest import partition_of, problem_of_table, read_manifest, table_of_cases
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.writing.files import cleared_away_when_ended, written_whole

__all__ = [
    "Cohort",
    "Writer",
    "arrow",
    "damages",
    "file_of",
    "file_of_part",
    "fresh_place",
    "locked",
    "study_error",
    "written_beside",
]

# 2: canonical descriptions, digests of files and models. Format 1 can be read, and not gone on with.
_FORMAT = 2
_STUDY, _MANIFEST, _CASES, _UNITS, _MEDIATION, _PARTS, _LOCK, _BESIDE = (
    "study.json",
    "manifest.jsonl",
    "cases.parquet",
    "units",
    "mediation",
    "parts",
    ".lock",
    ".unfinished",
)
_FILES = ("units.parquet", "mediation.parquet", "statistics.npz", "effects.nii.gz", "map.npz")
# Where tables of cases lie: folders that readers of Parquet take for one table.
_TABLES = {"units.parquet": _UNITS, "mediation.parquet": _MEDIATION}
# Bytes of an escaped id: file systems take 255 (some that encrypt 143), and there is something before or behind it.
_LONGEST_NAME, _KEPT_NAME = 120, 80


class Cohort:
    """What :func:`explain_cohort` saved in a folder.

    The folder holds ``study.json`` (what was asked), ``manifest.jsonl`` (a line per case that came to its end, with the digests of its
    files), ``cases.parquet`` (a row per case), ``units/case=<id>/units.parquet`` (a row per unit and output),
    ``mediation/case=<id>/mediation.parquet`` (of effects that were split at layers: a row per layer, unit and output),
    ``cases/<id>/statistics.npz`` and, if asked for, ``cases/<id>/effects.nii.gz``, and ``errors/<id>.txt`` of the cases that failed.
    Ids are escaped there as in addresses (``%2F`` for a slash); very long ones, and such as differ from another in capital letters only,
    are cut short and end in a digest.

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

    @checked(folder=PATH)
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.study = _read_study(self.folder)
        self._read: tuple[Any, dict[str, dict[str, Any]]] = (None, {})

    def __repr__(self) -> str:
        states = [record["state"] for record in self.records().values()]
        counts = [f"{states.count(state)} {state}" for state in ("finished", "failed") if state in states]
        return f"Cohort({', '.join(counts) or 'nothing finished'})"

    def records(self) -> dict[str, dict[str, Any]]:
        """The manifest: per case, its id and latest line, in the order in which the cases were given, whichever came to its end first.

        A last line that a kill cut off counts as not written: that case is done again.

        Raises:
            ValueError: another line is damaged; the message says which.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> {name: record["state"] for name, record in study.records().items()}
            {'a': 'finished'}
        """
        path = self.folder / _MANIFEST
        try:
            state = os.stat(path)
        except FileNotFoundError:
            return {}
        if self._read[0] != (state.st_size, state.st_mtime_ns):
            records = sorted(read_manifest(path).items(), key=lambda one: one[1]["position"])
            self._read = (state.st_size, state.st_mtime_ns), dict(records)
        return dict(self._read[1])

    def verify(self) -> pd.DataFrame:
        """Compare the files of finished cases with the digests that were noted when they were written.

        Returns:
            One row per file that is not what it was: ``case`` (the id; missing for the table of cases), ``file`` (its path within the
            folder), ``problem`` (``"missing"`` or ``"damaged"``). No rows where all is well. The same call of :func:`explain_cohort`
            does the cases again whose files are named here.

        Raises:
            ValueError: the manifest is damaged, or the study is of an earlier version, which noted no digests.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> len(study.verify())  # nothing is missing or damaged
            0
            >>> study.file("a", "statistics.npz").unlink()
            >>> study.verify()[["case", "problem"]].values.tolist()
            [['a', 'missing']]
        """
        if self.study["format"] < _FORMAT:
            raise ValueError(
                f"folder: the study in {str(self.folder)!r} was written by an earlier version, which noted no digests"
            )
        records = self.records()
        rows: list[tuple[str | None, str, str]] = [
            (name, str(path.relative_to(self.folder)), problem)
            for name, record in records.items()
            for path, problem in damages(self.folder, record)
        ]
        table = self.folder / _CASES
        if records and (problem := problem_of_table(table, records)):
            rows.append((None, table.name, problem))
        return pd.DataFrame(rows, columns=["case", "file", "problem"]).astype("string")

    def cases(self) -> pd.DataFrame:
        """A row per case, in the order in which the cases were given.

        Columns: ``id``, ``state`` (``"finished"`` or ``"failed"``), ``error`` (of a failed one: type and message), whatever entries of
        the case were kept, ``observed_score`` (of the output that was asked for), ``n_units``, ``forwards`` (images that went
        through the model), ``seconds``, ``device``, ``seed``, ``versions`` (JSON), ``model``, ``image`` (digests) and ``partition`` (what
        other readers of ``units/`` see as ``case``: the id, unless that is very long).

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> study.cases()[["id", "state", "n_units"]].values.tolist()
            [['a', 'finished', 16]]
        """
        return table_of_cases(list(self.records().values()), self.study.get("columns", []))

    @checked(cases=NONE | sequence(TEXT), columns=NONE | sequence(TEXT), asked=BOOLEAN)
    def units(
        self, cases: Sequence[str] | None = None, columns: Sequence[str] | None = None, asked: bool = False
    ) -> pd.DataFrame:
        """The rows of all units of finished cases, as of :meth:`TreatmentEffectStatistics.to_dataframe`.

        Besides: ``case`` (the id), ``asked`` (whether it is the output that ``target`` picked), ``distance`` (of the unit to the region
        of interest, between centers of voxels, along the axis where it is largest; NaN where there is none) and ``distance_unit``:
        ``"mm"`` for images with geometry, else ``"pixel"``.

        Args:
            cases: their ids; all by default.
            columns: only these (and ``case``).
            asked: only rows of the output that was asked for.

        Raises:
            KeyError: a case that is not finished.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> table = study.units(columns=["unit", "effect"])
            >>> table.columns.tolist(), int(table.loc[table["effect"].idxmax(), "unit"]) in planted.cause_units
            (['case', 'unit', 'effect'], True)
        """
        return self._table("units.parquet", cases, columns, asked=asked)

    @checked(cases=NONE | sequence(TEXT), columns=NONE | sequence(TEXT), asked=BOOLEAN)
    def mediation(
        self, cases: Sequence[str] | None = None, columns: Sequence[str] | None = None, asked: bool = False
    ) -> pd.DataFrame:
        """The rows of all units and layers of finished cases, of a study whose effects were split at layers.

        Columns as of :meth:`MediationStatistics.to_dataframe`, and besides ``case``, ``order`` (of the layer among those that were named), ``asked``,
        ``distance`` and ``distance_unit`` as in :meth:`units`; ``covariance`` (of total and indirect effect) and ``degrees_of_freedom``, of which
        intervals of sums and shares are made.

        Args:
            cases, columns, asked: as in :meth:`units`.

        Raises:
            KeyError: a case that is not finished, or was not split at layers.

        Example:
            >>> import tempfile, torch
            >>> from captum_causalseg import MediatedTreatmentEffect, SegmentationTarget
            >>> from captum_causalseg.cohort import explain_cohort
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 1, 3, padding=1))
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": torch.rand(1, 8, 8)}], lambda case: SegmentationTarget(model, metric="logit_mean"),
            ...     method=MediatedTreatmentEffect, out=tempfile.mkdtemp(), show_progress=False, layers="0", baselines=0.0, block_size=4,
            ... )
            >>> study.mediation(columns=["layer", "unit", "share"]).round(3).values.tolist()[0]  # nothing goes around it
            ['a', '0', 0, 1.0]
        """
        return self._table("mediation.parquet", cases, columns, asked=asked)

    @checked(case=TEXT)
    def statistics(self, case: str) -> TreatmentEffectStatistics:
        """Everything about one case's effects.

        Raises:
            KeyError: it is not finished, or its method leaves no statistics.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> study.statistics("a").effect.shape
            torch.Size([1, 16])
        """
        path = self.file(case, "statistics.npz")
        if not path.exists():
            raise KeyError(f"case: no statistics of {case!r} in {str(self.folder)!r}")
        return TreatmentEffectStatistics.load(path)

    @checked(case=TEXT, name=one_of(*_FILES))
    def file(self, case: str, name: str) -> Path:
        """Where a file of a finished case lies: ``"units.parquet"``, ``"mediation.parquet"``, ``"statistics.npz"`` or ``"effects.nii.gz"``; ``"map.npz"`` of a
        comparison.

        Raises:
            KeyError: the case is not finished.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> study.file("a", "statistics.npz").exists()
            True
        """
        record = self.records().get(case, {"state": "missing"})
        if record["state"] != "finished":
            raise KeyError(f"case: {case!r} is not finished in {str(self.folder)!r}")
        return file_of(self.folder, partition_of(record), name)

    @checked(case=TEXT, name=one_of(*_FILES))
    def has(self, case: str, name: str) -> bool:
        """Whether a finished case left such a file; see :meth:`file`.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> study.has("a", "statistics.npz"), study.has("a", "mediation.parquet")
            (True, False)
        """
        return self.file(case, name).exists()

    def _table(self, file: str, cases: Sequence[str] | None, columns: Sequence[str] | None, *, asked: bool) -> pd.DataFrame:
        records = self.records()
        finished = [name for name, record in records.items() if record["state"] == "finished"]
        chosen = finished if cases is None else list(cases)
        missing = sorted({*chosen} - {*finished})
        if missing:
            raise KeyError(f"cases: {', '.join(map(repr, missing))} not finished in {str(self.folder)!r}")
        tables = [self._rows_of(records[name], file, columns, asked=asked) for name in chosen]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _rows_of(self, record: Mapping[str, Any], file: str, columns: Sequence[str] | None, *, asked: bool) -> pd.DataFrame:
        case = record["id"]
        wanted = None if columns is None else sorted({*columns} - {"case"} | ({"asked"} if asked else set()))
        path = file_of(self.folder, partition_of(record), file)
        if file not in record.get("files", {file: None}):
            raise KeyError(f"cases: {case!r} in {str(self.folder)!r} was not split at layers (method=MediatedTreatmentEffect)")
        # Not by way of the folder: a reader that guesses types would take the id "007" for a number.
        table = pd.read_parquet(path, columns=wanted, partitioning=None)
        if asked:
            table = table[table["asked"]]
        table.insert(0, "case", case)
        return table if columns is None else table[["case", *(name for name in columns if name != "case")]]


def file_of(folder: Path, partition: str, name: str) -> Path:
    """Where a file of a case lies; ids may hold any characters.

    Args:
        folder: of the study.
        partition: the case's name in it, see :func:`partition_of`.
        name: of the file; ``"error"`` for the text of an error.
    """
    escaped = quote(partition, safe="")
    if name in _TABLES:
        return folder / _TABLES[name] / f"case={escaped}" / name
    if name == "error":
        return folder / "errors" / f"{escaped}.txt"
    return folder / "cases" / escaped.replace(".", "%2E") / name


def file_of_part(folder: Path, case: str, name: str) -> Path:
    """Where a part of a case's statistics waits for the others."""
    return folder / _PARTS / sha256(case.encode()).hexdigest()[:32] / name


def damages(folder: Path, record: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """The files of a finished case that are ``"missing"`` or ``"damaged"``."""
    found = []
    for name, (size, digest) in record.get("files", {}).items():
        path = file_of(folder, partition_of(record), name)
        try:
            whole = path.stat().st_size == size and digest_of_file(path) == digest
        except FileNotFoundError:
            found.append((path, "missing"))
        except OSError as error:
            found.append((path, f"damaged ({error.strerror})"))
        else:
            found += [] if whole else [(path, "damaged")]
    return found


def fresh_place(folder: Path) -> Path:
    """A new folder of one's own, in which a case's files are written until all are whole."""
    place = folder / _BESIDE / uuid.uuid4().hex
    place.mkdir(parents=True)
    return place


@contextmanager
def written_beside(final: Path, folder: Path) -> Iterator[Path]:
    """As :func:`written_whole`, among the files of the study that are being written."""
    beside = folder / _BESIDE
    beside.mkdir(parents=True, exist_ok=True)
    with written_whole(final, beside) as path:
        yield path


class Writer:
    """The one driver that may write to a study's manifest and tables."""

    def __init__(self, folder: Path, study: Mapping[str, Any]) -> None:
        self.folder = folder
        self.cohort = Cohort(folder)
        self._study = study
        self._mend()
        records = self.cohort.records()
        self._partitions = {name: partition_of(record) for name, record in records.items()}
        # As file systems see them that do not tell capital letters apart.
        self._taken = {quote(partition, safe="").lower() for partition in self._partitions.values()}
        self._manifest = open(folder / _MANIFEST, "a", encoding="utf-8")  # noqa: SIM115 (until close)

    def add(self, record: Mapping[str, Any]) -> None:
        """A case came to its end; after this it is not done again."""
        self._manifest.write(json.dumps(record) + "\n")
        self._manifest.flush()
        os.fsync(self._manifest.fileno())

    def partition(self, case: str) -> str:
        """The case's name in the folder, see :func:`partition_of`: always the same for a case of this study."""
        if case not in self._partitions:
            short = case
            for digits in (16, 64):
                escaped = quote(short, safe="")
                if len(escaped.replace(".", "%2E")) <= _LONGEST_NAME and escaped.lower() not in self._taken:
                    break
                kept = next(
                    n for n in range(len(case), -1, -1) if len(quote(case[:n], safe="").replace(".", "%2E")) <= _KEPT_NAME
                )
                short = f"{case[:kept]}~{sha256(case.encode()).hexdigest()[:digits]}"
            self._partitions[case] = short
            self._taken.add(quote(short, safe="").lower())
        return self._partitions[case]

    def publish(self, place: Path, case: str, names: Iterable[str]) -> None:
        """Bring a case's files to where they belong.

        Raises:
            OSError: that cannot be done.
        """
        partition = self.partition(case)
        for name in _FILES:
            final = file_of(self.folder, partition, name)
            if name in names:
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(place / name, final)
            else:
                final.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(file_of_part(self.folder, case, "all").parent, ignore_errors=True)

    def close(self, positions: Mapping[str, int]) -> None:
        """Write ``cases.parquet``; cases of this call in its order, others after them."""
        self._manifest.close()
        last = len(positions)
        rows = [record | {"position": positions.get(name, last)} for name, record in self.cohort.records().items()]
        rows.sort(key=lambda record: record["position"])
        table = table_of_cases(rows, self._study["columns"])
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
def locked(folder: Path, study: dict[str, Any], resume: bool) -> Iterator[Writer]:
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
            f"out: another process is working in {str(folder)!r}; wait until it has finished, or choose another folder"
        ) from None
    with cleared_away_when_ended():
        try:
            _open(folder, study, resume)
            yield Writer(folder, study)
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
            raise ValueError(f"out: there is a study in {str(folder)!r} already; resume=True continues it")
        before = _read_study(folder)
        if before["format"] < _FORMAT:
            raise ValueError(
                f"out: the study in {str(folder)!r} was written by an earlier version, which described functions and models in another "
                "way; it can be read, but not resumed: choose another folder"
            )
        changed = differences(before["arguments"], study["arguments"])
        if changed:
            raise study_error(folder, changed)
        return
    ours = (_STUDY, _MANIFEST, _CASES, _UNITS, _MEDIATION, _PARTS, "cases", "errors")
    # What begins with a dot is the operating system's, and where a volume is mounted there is more of that kind.
    others = sorted(path.name for path in folder.iterdir() if path.name not in (*ours, "lost+found") and path.name[0] != ".")
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
        f"out: the study in {str(folder)!r} has other arguments; choose another folder, or use the same arguments:\n  {lines}"
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
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        number = study["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: {path} is damaged ({error}); without it, the arguments of the study are unknown") from error
    if number not in range(1, _FORMAT + 1):
        raise ValueError(
            f"folder: the study in {str(folder)!r} is of format {number}, this version reads up to {_FORMAT}; install a newer one"
        )
    return dict(study)
