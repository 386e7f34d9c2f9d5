"""Many cases on a local Ray cluster of two workers: the same results, and workers and drivers that are killed."""

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pandas as pd
import pytest
import torch
from cohort_study import Deadly, contents, run, run_until_killed, slow_target, study

from captum_causalseg.cohort import Cohort, CohortError

ray = pytest.importorskip("ray")

# A worker takes seconds to start.
ONE = {"num_workers": 1}


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
    there = study(tmp_path / "s", engine="ray", make_target=Deadly(tmp_path, "case/1"), **ONE)
    assert (tmp_path / "was-here").exists()
    assert repr(there) == "Cohort(5 finished)"
    assert contents(there.folder) == contents(here.folder)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_case_that_kills_every_worker_fails_alone(tmp_path, cluster, shards):
    there = study(tmp_path / "s", 3, engine="ray", make_target=Deadly(tmp_path, "case/1", always=True), shards=shards, **ONE)
    table = there.cases()
    assert table["state"].tolist() == ["finished", "failed", "finished"]
    assert "its worker died 3 times" in table["error"][1]


def broken_model():
    raise OSError("weights.pt: no such file")


def breaks(case, model):
    raise RuntimeError(f"{case['id']} is broken")


def test_what_fails_on_the_cluster(tmp_path, cluster):
    with pytest.raises(RuntimeError, match=r"load_model: OSError: weights.pt: no such file"):
        study(tmp_path / "a", 2, engine="ray", load_model=broken_model, **ONE)
    there = study(tmp_path / "b", 2, engine="ray", make_target=breaks, **ONE)
    assert there.cases()["error"].tolist() == ["RuntimeError: case/0 is broken", "RuntimeError: case/1 is broken"]
    assert "in breaks" in (tmp_path / "b" / "errors" / "case%2F0.txt").read_text()
    with pytest.raises(CohortError, match="is broken"):
        study(tmp_path / "b", 2, engine="ray", make_target=breaks, errors="raise", **ONE)
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
    """What a cluster began goes on in one process as well."""
    out = tmp_path / "s"
    run_until_killed(out, "ray", 1, with_workers=True)
    run(out, "local")
    assert contents(out) == contents(whole.folder)


STARTS = """
import sys
from captum_causalseg.cohort.engines import Pool, on_ray
with on_ray(Pool(address=None, n_workers=1, num_cpus=1, num_gpus=0)):
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed in /proc")
def test_a_cluster_that_is_started_listens_to_this_machine_alone():
    mark = f"COHORT_CLUSTER_OF_A_TEST={uuid.uuid4().hex}"
    # An address in the environment is not one that was given.
    environment = os.environ | {"RAY_ADDRESS": "192.0.2.1:6379"} | dict([mark.split("=")])
    program = subprocess.Popen([sys.executable, "-c", STARTS], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert program.stdout.readline() == b"started\n"
        sockets = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone already
                if mark.encode() in (process / "environ").read_bytes():
                    sockets |= {os.readlink(file) for file in (process / "fd").iterdir()}
        open_to = []
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                    open_to.append(fields[1].split(":")[0])
        assert open_to
        loopback = {"0100007F", "0" * 16 + "FFFF0000" + "0100007F", "0" * 24 + "01000000"}
        assert {*open_to} <= loopback
    finally:
        program.communicate()
    assert program.returncode == 0
