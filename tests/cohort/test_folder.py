"""What is left of a finished case: damaged files, ids of any kind, folders of the first version."""

import json
import logging
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from cohort_study import Reading, Unasked, contents, make_cases, make_target, study

from captum_causalseg.cohort import Cohort


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    else:
        held = bytearray(path.read_bytes())
        held[len(held) // 2] ^= 1
        path.write_bytes(held[:-9] if how == "short" else held)


@pytest.mark.parametrize("how", ["missing", "short", "changed"])
def test_a_case_with_damaged_files_is_done_again(tmp_path, how, caplog):
    seen = []

    def target(case, model):
        seen.append(case["id"])
        return make_target(case, model)

    target = Unasked(target)
    cohort = study(tmp_path / "s", 3, make_target=target)
    whole = contents(tmp_path / "s")
    assert cohort.verify().empty
    damage(cohort.file("case/0", "units.parquet"), how)
    damage(cohort.file("case/2", "statistics.npz"), how)
    found = cohort.verify()
    problem = "missing" if how == "missing" else "damaged"
    assert found.to_numpy().tolist() == [
        ["case/0", "units/case=case%2F0/units.parquet", problem],
        ["case/2", "cases/case%2F2/statistics.npz", problem],
    ]
    seen.clear()
    with caplog.at_level(logging.WARNING, logger="captum_causalseg"):
        cohort = study(tmp_path / "s", 3, make_target=target)
    assert f"case case/2 is run again: cases/case%2F2/statistics.npz is {problem}" in caplog.text
    assert seen == ["case/0", "case/0", "case/2"]  # the first one as the witness, too
    assert cohort.verify().empty
    assert contents(tmp_path / "s") == whole


def test_the_table_of_cases_is_looked_at(tmp_path):
    cohort = study(tmp_path / "s", 2)
    table = tmp_path / "s" / "cases.parquet"
    written = pd.read_parquet(table)
    for change, problem in (
        (lambda: table.unlink(), "missing"),
        (lambda: table.write_bytes(b"PAR1 no more"), "damaged"),
        (lambda: written.assign(state=["finished", "failed"]).to_parquet(table), "damaged"),
        (lambda: written[:1].to_parquet(table), "damaged"),
    ):
        change()
        found = cohort.verify()
        assert found[["file", "problem"]].to_numpy().tolist() == [["cases.parquet", problem]]
        assert found["case"].isna().all()
        study(tmp_path / "s", 2)
        assert cohort.verify().empty


def test_a_damaged_part_is_done_again(tmp_path):
    class Stop(BaseException):
        pass

    left = [2]

    def stopping(case, model):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return make_target(case, model)

    stopping = Unasked(stopping)
    with pytest.raises(Stop):
        study(tmp_path / "s", 1, make_target=stopping, shards=3)
    damage(sorted((tmp_path / "s" / "parts").glob("*/part-0*"))[0], "changed")
    left[0] = 100
    study(tmp_path / "s", 1, make_target=stopping, shards=3)
    whole = study(tmp_path / "t", 1, make_target=stopping, shards=3)
    assert contents(tmp_path / "s") == contents(whole.folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": "case/1", "state": "finis', "JSONDecodeError"),
        (b"\x00\x00\xff", "UnicodeDecodeError"),
        (b"[1, 2]", "TypeError"),
        (b'{"id": "case/1"}', "KeyError: 'state'"),
        (b'{"id": "case/1", "state": "done"}', "the state 'done' of 'case/1' is none of finished, failed"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    cohort = study(tmp_path / "s", 3)
    manifest = tmp_path / "s" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + line + b"\n" + lines[2])
    for read in (cohort.records, cohort.verify, lambda: study(tmp_path / "s", 3)):
        with pytest.raises(ValueError, match=r"manifest.jsonl, line 2, is damaged") as caught:
            read()
        assert said in str(caught.value)
    # What it tells to do.
    manifest.write_bytes(lines[0] + lines[2])
    assert repr(study(tmp_path / "s", 3)) == "Cohort(3 finished)"


def test_a_damaged_study_is_named(tmp_path):
    study(tmp_path / "s", 1)
    (tmp_path / "s" / "study.json").write_text('{"arguments": {')
    for read in (lambda: Cohort(tmp_path / "s"), lambda: study(tmp_path / "s", 1)):
        with pytest.raises(ValueError, match=r"folder: .*study.json is damaged"):
            read()


IDS = [
    "x" * 300,
    "x" * 299 + "y",
    "研究" * 60,
    "Straße ä/ö",
    "a",
    "A",
    "İ",
    "..",
    "CON",
    "a b",
    "50%",
    "a" * 119,
    "scan-\udcff",
    "é" * 30,
]


def test_ids_of_any_kind(tmp_path):
    cases = [case | {"id": name} for case, name in zip(make_cases(len(IDS)), IDS)]
    cohort = study(tmp_path / "s", cases=cases, n_draws=2)
    kept = [name if name != "scan-\udcff" else r"scan-\xff" for name in IDS]
    table = cohort.cases()
    assert table["id"].tolist() == kept
    assert table["state"].tolist() == ["finished"] * len(IDS)
    # No file system fails on the names, and none takes two for one.
    parts = [part for path in (tmp_path / "s").rglob("*") for part in [path.name]]
    assert max(len(part.encode()) for part in parts) < 143
    for folder in ("units", "cases"):
        names = [path.name for path in (tmp_path / "s" / folder).iterdir()]
        assert len({name.lower() for name in names}) == len(names) == len(IDS)
    units = cohort.units(columns=["effect"])
    assert sorted(units["case"].unique()) == sorted(kept)
    for name in kept:
        assert cohort.statistics(name).effect.shape[1] == 36
    # Other readers see the partition, which the table of cases names.
    seen = pd.read_parquet(tmp_path / "s" / "units")["case"].astype(str).unique()
    assert sorted(seen) == sorted(table["partition"])
    assert table["partition"].tolist()[3:5] == ["Straße ä/ö", "a"]
    before = (tmp_path / "s" / "manifest.jsonl").read_text()
    study(tmp_path / "s", cases=cases[::-1], n_draws=2)
    assert (tmp_path / "s" / "manifest.jsonl").read_text() == before


def test_failures_of_cases_with_long_ids(tmp_path):
    def breaks(case, model):
        raise RuntimeError("no \udcff scan")

    cases = [case | {"id": name} for case, name in zip(make_cases(2), ["x" * 300, "研究" * 60])]
    cohort = study(tmp_path / "s", cases=cases, make_target=breaks)
    assert cohort.cases()["error"].tolist() == [r"RuntimeError: no \xff scan"] * 2
    assert len(list((tmp_path / "s" / "errors").iterdir())) == 2


class Unreadable(Reading):
    """A data set with a file that is gone for a while."""

    def __init__(self, n: int, with_data: bool, broken: set[int]) -> None:
        super().__init__(n, with_data)
        self.broken = broken

    def __getitem__(self, index: int) -> dict:
        if index in self.broken:
            raise FileNotFoundError(f"{index}.nii.gz")
        return super().__getitem__(index)


@pytest.mark.parametrize("with_data", [False, True])
def test_a_file_that_cannot_be_read_stops_nothing(tmp_path, with_data):
    broken = {1}
    for n in (3, 4):
        cohort = study(tmp_path / "s", cases=Unreadable(n, with_data, broken))
        table = cohort.cases()
        assert table["state"].tolist() == ["finished", "failed", "finished", "finished"][:n]
        assert table["error"][1] == "FileNotFoundError: 1.nii.gz"
        assert table["id"][1] == ("case/1" if with_data else "position 1")
    broken.clear()
    cohort = study(tmp_path / "s", cases=Unreadable(4, with_data, broken))
    assert repr(cohort) == "Cohort(4 finished)"
    assert cohort.cases()["id"].tolist() == [f"case/{k}" for k in range(4)]
    assert not list((tmp_path / "s" / "errors").iterdir())


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    replace, write_text = os.replace, Path.write_text

    def full(source, destination):
        if "case%2F1" in str(destination):
            raise OSError(28, "No space left on device")
        replace(source, destination)

    def also(path, *arguments, **options):
        if path.parent.name == "errors":
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "write_text", also)
    with caplog.at_level(logging.WARNING, logger="captum_causalseg"):
        cohort = study(tmp_path / "s", 3)
    assert cohort.cases()["state"].tolist() == ["finished", "failed", "finished"]
    assert cohort.cases()["error"][1] == "OSError: [Errno 28] No space left on device"
    assert "its traceback cannot be written" in caplog.text
    monkeypatch.undo()
    assert repr(study(tmp_path / "s", 3)) == "Cohort(3 finished)"
    assert contents(tmp_path / "s") == contents(study(tmp_path / "t", 3).folder)


def test_columns_may_have_any_name_and_mixed_entries(tmp_path):
    cases = [
        case | {"position": "prone", "call": k, "files": None, "age": age}
        for k, (case, age) in enumerate(zip(make_cases(3), (31, "unknown", None)))
    ]
    cohort = study(tmp_path / "s", cases=cases, columns=["position", "call", "files", "age"])
    table = pd.read_parquet(tmp_path / "s" / "cases.parquet")
    assert table["position"].tolist() == ["prone"] * 3
    assert table["call"].tolist() == [0, 1, 2]
    assert table["age"].fillna("").tolist() == ["31", "unknown", ""]
    assert cohort.verify().empty
    assert repr(study(tmp_path / "s", cases=cases, columns=["position", "call", "files", "age"])) == "Cohort(3 finished)"


def as_format_1(folder: Path) -> None:
    """What the first version wrote."""
    asked = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(asked | {"format": 1}))
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for record in records:
        record |= record.pop("columns")
        del record["files"], record["partition"], record["call"]["loaded"]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_folders_of_the_first_version_can_be_read(tmp_path):
    cohort = study(tmp_path / "s", 3)
    before = cohort.cases(), cohort.units(), cohort.statistics("case/1").effect
    as_format_1(tmp_path / "s")
    old = Cohort(tmp_path / "s")
    assert repr(old) == "Cohort(3 finished)"
    pd.testing.assert_frame_equal(old.cases(), before[0])
    pd.testing.assert_frame_equal(old.units(), before[1])
    assert torch.equal(old.statistics("case/1").effect.nan_to_num(7.0), before[2].nan_to_num(7.0))
    with pytest.raises(ValueError, match=r"out: .* by an earlier version, .* not resumed: choose another folder"):
        study(tmp_path / "s", 3)
    with pytest.raises(ValueError, match=r"folder: .* by an earlier version, which noted no digests"):
        old.verify()
    (tmp_path / "s" / "study.json").write_text(json.dumps(cohort.study | {"format": 3}))
    with pytest.raises(ValueError, match="is of format 3, this version reads up to 2; install a newer one"):
        Cohort(tmp_path / "s")


def test_tables_are_in_the_order_of_the_cases_whichever_was_finished_first(tmp_path):
    cohort = study(tmp_path / "s", 3)
    manifest = tmp_path / "s" / "manifest.jsonl"
    manifest.write_text("".join(reversed(manifest.read_text().splitlines(keepends=True))))
    again = Cohort(tmp_path / "s")
    assert [*again.records()] == ["case/0", "case/1", "case/2"]
    pd.testing.assert_frame_equal(again.units(), cohort.units())
    pd.testing.assert_frame_equal(again.cases(), cohort.cases())


def test_a_volume_that_was_just_mounted_is_empty(tmp_path):
    for name in ("lost+found", ".snapshot"):
        (tmp_path / name).mkdir()
    assert repr(study(tmp_path, 1)) == "Cohort(1 finished)"
    (tmp_path / "t" / ".cache").mkdir(parents=True)
    (tmp_path / "t" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"):
        study(tmp_path / "t", 1)
