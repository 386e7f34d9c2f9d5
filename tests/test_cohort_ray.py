"""Many cases on a local Ray cluster of two workers: the same results, and workers and drivers that are killed."""

import os
import sys

import pandas as pd
import pytest
import torch
from cohort_study import Deadly, slow_target, study
from test_cohort import contents, run, run_until_killed

from captum_causalseg.cohort import Cohort, CohortError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=here)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the actors have it
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Cohort:
    torch.set_num_threads(1)
    return study(tmp_path_factory.mktemp("here") / "s")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Cohort:
    """What the program leaves that is never interrupted."""
    torch.set_num_threads(1)
    return study(tmp_path_factory.mktemp("whole") / "s", 8, make_target=slow_target)


def test_the_same_as_in_one_process(tmp_path, cluster, here):
    there = study(tmp_path / "s", engine="ray")
    assert contents(there.folder) == contents(here.folder)
    assert ray.is_initialized()  # it was there before


def test_parts_go_to_both(tmp_path, cluster, here):
    there = study(tmp_path / "s", 2, engine="ray", shards=4)
    for case in ("case/0", "case/1"):
        one, other = here.statistics(case), there.statistics(case)
        for name in ("effect", "standard_error", "n_draws", "status"):
            assert torch.equal(getattr(one, name).double().nan_to_num(7.0), getattr(other, name).double().nan_to_num(7.0))
    pd.testing.assert_frame_equal(here.units(["case/0", "case/1"]), there.units())


def test_a_worker_that_is_killed_is_replaced(tmp_path, cluster, here):
    there = study(tmp_path / "s", engine="ray", make_target=Deadly(tmp_path, "case/1"))
    assert (tmp_path / "was-here").exists()
    assert repr(there) == "Cohort(5 finished)"
    assert contents(there.folder) == contents(here.folder)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_case_that_kills_every_worker_fails_alone(tmp_path, cluster, shards):
    there = study(tmp_path / "s", 3, engine="ray", make_target=Deadly(tmp_path, "case/1", always=True), shards=shards)
    table = there.cases()
    assert table["state"].tolist() == ["finished", "failed", "finished"]
    assert "its worker died 3 times" in table["error"][1]


def broken_model():
    raise OSError("weights.pt: no such file")


def breaks(case, model):
    raise RuntimeError(f"{case['id']} is broken")


def test_what_fails_on_the_cluster(tmp_path, cluster):
    with pytest.raises(RuntimeError, match=r"load_model: OSError: weights.pt: no such file"):
        study(tmp_path / "a", 2, engine="ray", load_model=broken_model)
    there = study(tmp_path / "b", 2, engine="ray", make_target=breaks)
    assert there.cases()["error"].tolist() == ["RuntimeError: case/0 is broken", "RuntimeError: case/1 is broken"]
    assert "in breaks" in (tmp_path / "b" / "errors" / "case%2F0.txt").read_text()
    with pytest.raises(CohortError, match="is broken"):
        study(tmp_path / "b", 2, engine="ray", make_target=breaks, errors="raise")
    with pytest.raises(ValueError, match="num_gpus: a worker asks for 1, the cluster has 0 GPU in all"):
        study(tmp_path / "c", 2, engine="ray", num_gpus=1)


def test_the_driver_is_killed(tmp_path, whole):
    """And with it its cluster: the same call goes on, on a new one."""
    out = tmp_path / "s"
    run_until_killed(out, "ray", 2)
    before = Cohort(out).records()
    assert 2 <= len(before) < 8
    run(out, "ray")
    assert contents(out) == contents(whole.folder)
    lines = (out / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 8  # nothing was noted twice


def test_driver_and_workers_are_killed_at_once(tmp_path, whole):
    out = tmp_path / "s"
    run_until_killed(out, "ray", 1, with_workers=True)
    run(out, "ray")
    assert contents(out) == contents(whole.folder)
