"""Where tasks are carried out: in this process, or by actors of a Ray cluster that may die."""

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from captum_causalseg.cohort.worker import Loaded, Outcome, Recipe, Task, Worker

__all__ = ["Pool", "Tasks", "WorkerError", "on_ray", "run_here", "run_on_ray"]

logger = logging.getLogger(__name__)

# A case that took so many workers with it (memory, mostly) would take the next one, too.
_ATTEMPTS = 3


class WorkerError(RuntimeError):
    """A worker could not begin: the model could not be loaded."""


class Tasks(Protocol):
    """What is to be done."""

    def begun(self, loaded: Loaded) -> None:
        """Told of every model that a worker has loaded, before it is used."""

    def next_task(self) -> Task | None:
        """The next one, or ``None`` if there is none now: perhaps one that is being carried out brings another."""

    def done(self, task: Task, outcome: Outcome) -> None:
        """Told what came of a task."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers of a cluster.

    Args:
        address: of a running cluster; ``None`` for one that is started here.
        n_workers: how many at most; ``None`` for as many as fit.
        num_cpus, num_gpus: what one of them asks for.
    """

    address: str | None
    n_workers: int | None
    num_cpus: float
    num_gpus: float


def run_here(recipe: Recipe, tasks: Tasks) -> None:
    """One task after another, in this process."""
    worker = Worker(recipe, in_process=True)
    tasks.begun(worker.set_up())
    while (task := tasks.next_task()) is not None:
        tasks.done(task, worker.do(task))


@contextlib.contextmanager
def on_ray(pool: Pool) -> Iterator[int]:
    """A cluster for the block, and how many workers it is to have: a running one (stays), or one started here (goes again).

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster does not have what a single worker asks for.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('engine: "ray" needs Ray: pip install "captum-causalseg[ray]"') from error
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if pool.address is None:
            options["include_dashboard"] = False
            # A new one, whatever RAY_ADDRESS says.
            options["address"] = "local"
            # What can be imported here can be imported there.
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}}
            if pool.n_workers is not None:
                # Workers that were asked for are there, whatever the machine counts as its own.
                options["num_cpus"] = max(1, round(pool.n_workers * pool.num_cpus + 0.499))
            with _only_this_machine():
                ray.init(**options)
        else:
            ray.init(address=pool.address, **options)
    try:
        if started and pool.address is None and not ip_address(found := ray.util.get_node_ip_address()).is_loopback:
            raise WorkerError(
                f"engine: this version of Ray accepts connections from other machines, at {found}; start a cluster of your own (ray start --head), and give "
                "its address"
            )
        there = ray.cluster_resources()
        asked = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
        for name, wanted in asked.items():
            if wanted > there.get(name, 0):
                raise ValueError(
                    f"num_{name.lower()}s: a worker asks for {wanted:g}, the cluster has {there.get(name, 0):g} {name} in all"
                )
        fitting = min(int(there[name] / wanted) for name, wanted in asked.items() if wanted > 0)
        yield fitting if pool.n_workers is None else min(pool.n_workers, fitting)
    finally:
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _only_this_machine() -> Iterator[None]:
    """Within, a cluster that is started listens to this machine alone.

    Whoever reaches a cluster's ports can run programs on it. On Linux Ray takes the address that other machines see, also where it is told
    127.0.0.1; what it does on other systems by default is switched on here.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def run_on_ray(recipe: Recipe, tasks: Tasks, pool: Pool) -> None:
    """Tasks on a pool of actors; one that dies is replaced, and its task is given to another.

    Only as many tasks are read ahead as there are workers.
    """
    with on_ray(pool) as n_workers:
        _run_on_cluster(recipe, tasks, pool, n_workers=n_workers)


def _run_on_cluster(recipe: Recipe, tasks: Tasks, pool: Pool, *, n_workers: int) -> None:
    import ray

    actor = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, max_restarts=0, max_task_retries=0)(Worker)
    held = ray.put(recipe)
    # Workers load their models at the same time, and none waits for another's.
    starting: dict[Any, Any] = {}
    idle: list[Any] = []
    running: dict[Any, tuple[Task, Any]] = {}
    waiting: list[Task] = []
    died: Counter[int] = Counter()
    try:
        while True:
            while len(waiting) + len(running) < n_workers and (task := tasks.next_task()) is not None:
                waiting.append(task)
            while len(waiting) > len(idle) + len(starting):
                worker = actor.remote(held)
                starting[worker.set_up.remote()] = worker
            while waiting and idle:
                task, worker = waiting.pop(0), idle.pop()
                running[worker.do.remote(task)] = task, worker
            if not waiting and not running:
                return
            (ended,), _ = ray.wait([*starting, *running], num_returns=1)
            if ended in starting:
                worker = starting.pop(ended)
                tasks.begun(_loaded(ended))
                idle.append(worker)
                continue
            task, worker = running.pop(ended)
            try:
                outcome = ray.get(ended)
                idle.append(worker)
            except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                died[task.position] += 1
                reason = str(error).strip().splitlines()[0]
                logger.warning(
                    "a worker died at case %s (attempt %d): %s", task.name or task.position, died[task.position], reason
                )
                if died[task.position] < _ATTEMPTS:
                    waiting.insert(0, task)
                    continue
                said = f"its worker died {_ATTEMPTS} times; perhaps it needs more memory than there is"
                outcome = Outcome(task.name, error=f"WorkerDied: {said}", details=str(error))
            tasks.done(task, outcome)
    finally:
        for worker in (*starting.values(), *idle, *(worker for _, worker in running.values())):
            ray.kill(worker)


def _loaded(set_up: Any) -> Loaded:
    """What a worker loaded; raise if it could not."""
    import ray

    try:
        found: Loaded = ray.get(set_up)
    except ray.exceptions.RayActorError as error:
        raise WorkerError(f"engine: a worker could not start. {error}") from error
    if found.problem is not None:
        raise WorkerError(f"load_model: {found.problem}")
    return found
