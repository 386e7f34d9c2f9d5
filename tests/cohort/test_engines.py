"""Many cases on a local Ray cluster of two workers: the same results, and workers and drivers that are killed.

A cluster and its workers take seconds to start: the tests share one, and one story of a program that is killed, which has its own.
"""

import contextlib
import os
import signal
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients
from cohort_study import (
    Deadly,
    contents,
    images,
    load_model,
    make_cases,
    make_target,
    processes_with,
    program,
    study,
    waiting_target,
)

from captum_causalseg import PatchBank, compare_cohort
from captum_causalseg.cohort import Cohort, CohortError, engines

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")

# A worker takes seconds to start.
ONE = {"num_workers": 1}


@pytest.fixture(scope="module")
def cluster():
    import ray

    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=here)
    yield ray
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
    return study(tmp_path_factory.mktemp("whole") / "s", 8, make_target=waiting_target)


def test_the_same_as_in_one_process(tmp_path, cluster, here):
    study(tmp_path / "s", 2)
    there = study(tmp_path / "s", engine="ray")  # and what one process began goes on there
    assert contents(there.folder) == contents(here.folder)
    assert cluster.is_initialized()  # it was there before


def test_parts_go_to_both(tmp_path, cluster, here):
    there = study(tmp_path / "s", 2, engine="ray", shards=4)
    for case in ("case/0", "case/1"):
        one, other = here.statistics(case), there.statistics(case)
        for name in ("effect", "standard_error", "n_draws", "status"):
            assert torch.equal(getattr(one, name).double().nan_to_num(7.0), getattr(other, name).double().nan_to_num(7.0))
    pd.testing.assert_frame_equal(here.units(["case/0", "case/1"]), there.units())


@pytest.fixture
def _fewer_attempts(monkeypatch):
    """Each worker that is killed takes seconds: two of them for a case, not three."""
    assert engines._ATTEMPTS == 3
    monkeypatch.setattr(engines, "_ATTEMPTS", 2)


@pytest.mark.usefixtures("_fewer_attempts")
def test_a_worker_that_is_killed_is_replaced_and_a_case_that_kills_every_one_fails_alone(tmp_path, cluster, here):
    there = study(tmp_path / "s", engine="ray", make_target=Deadly(tmp_path, always="case/1", once="case/3"), **ONE)
    assert (tmp_path / "was-here").exists()
    table = there.cases()
    assert table["state"].tolist() == ["finished", "failed", "finished", "finished", "finished"]
    assert "its worker died 2 times" in table["error"][1]
    of_others = {name: data for name, data in contents(here.folder).items() if name != "cases" and "case%2F1" not in name}
    assert len(of_others) == 8
    assert of_others.items() <= contents(there.folder).items()


@pytest.mark.usefixtures("_fewer_attempts")
def test_a_case_in_parts_that_kills_every_worker_fails_alone(tmp_path, cluster):
    there = study(tmp_path / "s", 3, engine="ray", make_target=Deadly(tmp_path, always="case/1"), shards=3, **ONE)
    table = there.cases()
    assert table["state"].tolist() == ["finished", "failed", "finished"]
    assert "its worker died 2 times" in table["error"][1]


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


def soft_target(case, model):
    return make_target(case, model, metric="soft_dice")


def test_methods_are_compared_as_in_one_process(tmp_path, cluster):
    # Maps and judging are a study each, with a worker of its own.
    methods = {"gradients": (lambda target: IntegratedGradients(target.surrogate()), {"n_steps": 2})}
    options = {
        "load_model": load_model,
        "metrics": ["irof"],
        "n_controls": 1,
        "block_size": 4,
        "output": 1,
        "show_progress": False,
    }
    options |= {
        "baselines": PatchBank(images(12, seed=1)),
        "faithfulness": {"n_draws": 2, "n_steps": 3, "perturbations_per_eval": 4},
    }
    there, here = (
        compare_cohort(methods, make_cases(2), soft_target, out=tmp_path / name, **options, **how)
        .table()
        .drop(columns="seconds")
        for name, how in (("a", {"engine": "ray", **ONE}), ("b", {}))
    )
    assert len(there) == 4
    pd.testing.assert_frame_equal(there, here)


class Killed:
    """A program that began a cluster, and was killed when three of eight cases were finished.

    Attributes:
        folder: of its study.
        listening: the addresses at which it and its cluster accepted connections, as /proc/net has them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mark = f"COHORT_STUDY_OF_A_TEST={uuid.uuid4().hex}"
        # An address in the environment is not one that was given.
        with program(folder, "ray", 3, RAY_ADDRESS="192.0.2.1:6379", **dict([mark.split("=")])):
            self.listening = listening(mark) if Path("/proc/net/tcp").exists() else None


def listening(mark: str) -> set[str]:
    sockets = set()
    for process in processes_with(mark):
        for file in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed already
                sockets.add(os.readlink(file))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].split(":")[0])
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed") / "s")


def test_a_cluster_that_is_started_listens_to_this_machine_alone(killed):
    if killed.listening is None:
        pytest.skip("needs /proc, which lists the sockets of a process")
    assert killed.listening
    assert killed.listening <= {"0100007F", "0" * 16 + "FFFF0000" + "0100007F", "0" * 24 + "01000000"}


def test_the_driver_is_killed_and_then_all_of_its_workers_at_once(killed, whole):
    """And with a driver its cluster: the same call goes on, on a new one, and what that began in one process as well."""
    out = killed.folder
    before = (out / "manifest.jsonl").read_text()
    assert before.count("\n") == 3
    mark = f"COHORT_STUDY_OF_A_TEST={uuid.uuid4().hex}"
    with program(out, "ray", 6, **dict([mark.split("=")])) as driver:
        driver.send_signal(signal.SIGKILL)
        for process in processes_with(mark):
            os.kill(int(process.name), signal.SIGKILL)
    between = (out / "manifest.jsonl").read_text()
    assert between.startswith(before)
    assert between.count("\n") == 6
    study(out, 8, make_target=waiting_target)
    assert contents(out) == contents(whole.folder)
    lines = (out / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 8  # nothing was noted twice
