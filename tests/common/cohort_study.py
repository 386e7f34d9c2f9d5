"""A small study that tests run in this process, on a cluster, or as a program of its own that can be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.cohort import Cohort, explain_cohort

SHAPE = (24, 24)


def load_model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, padding=1))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def make_cases(n: int) -> list[dict]:
    return [{"id": f"case/{k}", "image": image, "site": "AB"[k % 2]} for k, image in enumerate(images(n))]


def make_target(case: dict, model: torch.nn.Module, **options) -> SegmentationTarget:
    return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box(SHAPE, 8, 8), **options)


WAITS_FROM = "COHORT_STUDY_OF_A_TEST_WAITS_FROM"


def waiting_target(case: dict, model: torch.nn.Module) -> SegmentationTarget:
    """The same; a program that is to be killed after so many cases goes no further."""
    while int(case["id"].removeprefix("case/")) >= int(os.environ.get(WAITS_FROM, "1000")):
        time.sleep(0.1)
    return make_target(case, model)


class Deadly:
    """Kills the process that it runs in: whenever it comes to one case, at another once."""

    def __init__(self, marks: Path, always: str, once: str | None = None) -> None:
        self.mark, self.always, self.once = marks / "was-here", always, once

    def __call__(self, case: dict, model: torch.nn.Module) -> SegmentationTarget:
        first = case["id"] == self.once and not self.mark.exists()
        if first:
            self.mark.touch()
        if first or case["id"] == self.always:
            os.kill(os.getpid(), signal.SIGKILL)
        return make_target(case, model)


class Unasked:
    """A function that notes something between calls, or goes by it, without a trace in what is asked."""

    def __init__(self, function) -> None:
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __getstate__(self) -> dict:
        return {}


def study(out, n: int = 5, **options) -> Cohort:
    options = {
        "load_model": load_model,
        "method": AverageTreatmentEffect,
        "columns": ["site"],
        "show_progress": False,
        "baselines": PatchBank(images(12, seed=1)),
        "block_size": 4,
        "target": 1,
        "n_draws": 6,
    } | options
    return explain_cohort(options.pop("cases", make_cases(n)), options.pop("make_target", make_target), out=out, **options)


class Reading(torch.utils.data.Dataset):
    """Counts what is read."""

    def __init__(self, n: int, with_data: bool) -> None:
        self.read: list[int] = []
        self.cases = make_cases(n)
        if with_data:
            self.data = [{"id": case["id"]} for case in self.cases]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict:
        if index >= len(self):
            raise IndexError
        self.read.append(index)
        return self.cases[index]


def other_model() -> torch.nn.Module:
    model = load_model()
    model[0].weight.data.mul_(1.001)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the results, and the table of cases without the seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npz"))}
    found |= {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "units").rglob("*.parquet"))}
    found["cases"] = pd.read_parquet(folder / "cases.parquet").drop(columns=["seconds"]).to_csv().encode()
    return found


@contextlib.contextmanager
def program(out: Path, engine: str, finished: int, **environment: str) -> Iterator[subprocess.Popen]:
    """The study as a program that stops after so many cases, from when they are finished; it is killed at the end of the block."""
    environment |= {WAITS_FROM: str(finished)}
    # As a terminal starts it: what started the tests may ignore the signal of a closed one, and its programs then do, too.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        running = subprocess.Popen([sys.executable, __file__, str(out), engine], env=os.environ | environment)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        manifest = out / "manifest.jsonl"
        while not manifest.exists() or manifest.read_bytes().count(b"\n") < finished:
            assert running.poll() is None
            time.sleep(0.05)
        yield running
    finally:
        running.kill()
        running.wait()


def processes_with(mark: str) -> Iterator[Path]:
    """The folders in /proc of the processes that have this in their environment: a program, and all that it began."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone already
            if mark.encode() in (process / "environ").read_bytes():
                yield process


if __name__ == "__main__":
    torch.set_num_threads(1)
    study(sys.argv[1], n=8, engine=sys.argv[2], make_target=waiting_target, num_workers=2 if sys.argv[2] == "ray" else None)
