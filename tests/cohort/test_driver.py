"""Cases that are stopped, fail, or are resumed: nothing is lost, and nothing is done twice."""

import signal

import pandas as pd
import pytest
import torch
from cohort_study import Unasked, contents, make_cases, make_target, program, study, waiting_target

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg.cohort import Cohort, CohortError


def test_cases_are_not_held(tmp_path):
    """A generator is read one by one: when a case is asked for, the one before it is written."""

    def reading():
        for k, case in enumerate(make_cases(4)):
            manifest = tmp_path / "s" / "manifest.jsonl"
            done = manifest.read_text().count("\n") if manifest.exists() else 0
            assert done == k
            yield case

    study(tmp_path / "s", cases=reading())


def test_finished_cases_are_not_done_again(tmp_path):
    seen = []

    def watching(case, model):
        seen.append(case["id"])
        return make_target(case, model)

    watching = Unasked(watching)
    study(tmp_path / "s", 3, make_target=watching)
    study(tmp_path / "s", 5, make_target=watching)
    # The first is built again, to see that it is the same.
    assert seen == ["case/0", "case/1", "case/2", "case/0", "case/3", "case/4"]
    assert contents(tmp_path / "s") == contents(study(tmp_path / "t", 5, make_target=watching).folder)


def test_what_fails_is_kept_and_the_others_go_on(tmp_path):
    broken = {"case/1"}

    def sometimes(case, model):
        if case["id"] in broken:
            raise RuntimeError("no such scan")
        return make_target(case, model)

    sometimes = Unasked(sometimes)
    cohort = study(tmp_path / "s", 3, make_target=sometimes)
    assert repr(cohort) == "Cohort(2 finished, 1 failed)"
    row = cohort.cases().iloc[1]
    assert (row["id"], row["state"], row["error"], row["site"]) == ("case/1", "failed", "RuntimeError: no such scan", "B")
    report = tmp_path / "s" / "errors" / "case%2F1.txt"
    assert "in sometimes" in report.read_text()
    assert sorted(cohort.units()["case"].unique()) == ["case/0", "case/2"]
    with pytest.raises(KeyError, match="case/1"):
        cohort.units(["case/1"])
    with pytest.raises(KeyError, match="case/1"):
        cohort.statistics("case/1")
    with pytest.raises(CohortError, match=r"case 'case/1' failed: RuntimeError: no such scan") as caught:
        study(tmp_path / "s", 3, make_target=sometimes, errors="raise")
    assert isinstance(caught.value.__cause__, RuntimeError)
    # It is tried again, and the tables are those of a study in which it never failed.
    broken.clear()
    cohort = study(tmp_path / "s", 3, make_target=sometimes)
    assert repr(cohort) == "Cohort(3 finished)"
    assert not report.exists()
    whole = study(tmp_path / "t", 3, make_target=sometimes)
    assert contents(tmp_path / "s") == contents(whole.folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Cohort:
    """What a program leaves that is never interrupted."""
    return study(tmp_path_factory.mktemp("whole") / "s", 8, make_target=waiting_target)


def test_a_kill_loses_nothing(tmp_path, whole):
    with program(tmp_path / "s", "local", 3):
        pass
    before = (tmp_path / "s" / "manifest.jsonl").read_text()
    assert before.count("\n") == 3
    assert not (tmp_path / "s" / "cases.parquet").exists()
    study(tmp_path / "s", 8, make_target=waiting_target)
    assert (tmp_path / "s" / "manifest.jsonl").read_text().startswith(before)
    assert contents(tmp_path / "s") == contents(whole.folder)
    assert not (tmp_path / "s" / ".unfinished").exists()


def test_a_program_that_is_told_to_end_clears_up(tmp_path):
    """By a closed terminal; a command is ended by the other signal in ``tests/writing/test_files.py``. Until then no other may work there."""
    out = tmp_path / "s"
    with program(out, "local", 2) as running:
        with pytest.raises(ValueError, match="out: another process is working in"):
            study(out, 8, make_target=waiting_target)
        running.send_signal(signal.SIGHUP)
        assert running.wait() == 128 + signal.SIGHUP
    assert not (out / ".unfinished").exists()
    assert len(Cohort(out).records()) == 2
    # The tables are those of what is finished.
    assert len(pd.read_parquet(out / "cases.parquet")) == 2
    assert Cohort(out).verify().empty
    assert len(study(out, 8, make_target=waiting_target).records()) == 8


def test_a_line_cut_off_by_a_kill_is_done_again(tmp_path):
    study(tmp_path / "s", 3)
    manifest = tmp_path / "s" / "manifest.jsonl"
    held = manifest.read_text()
    manifest.write_text(held[:-20])
    assert repr(Cohort(tmp_path / "s")) == "Cohort(2 finished)"
    study(tmp_path / "s", 3)
    assert manifest.read_text().count("\n") == 3
    assert contents(tmp_path / "s") == contents(study(tmp_path / "t", 3).folder)


def test_parts_of_a_call_that_was_killed_are_taken_over(tmp_path):
    """And only those: of another image or other arguments they are not."""

    class Stop(BaseException):
        pass

    left, seen = [3], []

    def stopping(case, model):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return make_target(case, model)

    def counted(target):
        seen.append(1)
        return AverageTreatmentEffect(target)

    stopping, counted = Unasked(stopping), Unasked(counted)
    options = {"shards": 5, "method": counted}
    with pytest.raises(Stop):
        study(tmp_path / "s", 1, make_target=stopping, **options)
    held = sorted((tmp_path / "s" / "parts").glob("*/part-*"))
    assert [path.name[:11] for path in held] == ["part-0-of-5", "part-1-of-5", "part-2-of-5"]
    seen.clear()
    left[0] = 100
    cohort = study(tmp_path / "s", 1, make_target=stopping, **options)
    whole = study(tmp_path / "t", 1)
    # Two parts were left; then the parts are merged, which asks for the default of an argument only.
    assert torch.equal(
        cohort.statistics("case/0").standard_error.nan_to_num(7.0), whole.statistics("case/0").standard_error.nan_to_num(7.0)
    )
    assert cohort.cases()["forwards"][0] > whole.cases()["forwards"][0]
    assert not list((tmp_path / "s").rglob("part-*"))
    for name, changed in (("u", {"n_draws": 5}), ("v", {"cases": make_cases(2)[1:]})):
        left[0] = 3
        with pytest.raises(Stop):
            study(tmp_path / name, 1, make_target=stopping, **options)
        left[0] = 100
        changed_case = [case | {"id": "case/0"} for case in changed.pop("cases", make_cases(1))]
        again = study(tmp_path / name, cases=changed_case, make_target=stopping, **options, **changed)
        fresh = study(tmp_path / f"{name}-fresh", cases=changed_case, make_target=stopping, **options, **changed)
        assert contents(again.folder) == contents(fresh.folder)
