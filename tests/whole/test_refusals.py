"""Bad arguments of every public callable, a fixed sample of them: refused, and by name. The whole is ``benchmarks/refusals.py``."""

import random
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("nilearn")
pytest.importorskip("nibabel")
if not hasattr(signal, "setitimer"):
    pytest.skip("needs signal.setitimer, which Windows lacks: it stops calls that run for too long", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import refusals

# What is stopped may be stopped while an object is deleted.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PER_CALLABLE = 12
# A place of these takes seconds to draw or to write.
SLOW = ("visualization", "cohort")
LEAST = 95.0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return refusals.World(tmp_path_factory.mktemp("refusals"))


def test_no_public_callable_is_forgotten():
    """A new one needs a valid call in the catalog, or a reason for being left out."""
    public = set(refusals.public_callables())
    known = {*refusals.CALLS, *refusals.LEFT_OUT}
    assert public - known == set()
    assert known - public == set()


def sample(world) -> list[tuple[str, str, str, str]]:
    """The same trials each time: few of every callable, over all of its arguments."""
    chosen = []
    everything = refusals.all_trials(world)
    for name in refusals.CALLS:
        own = [one for one in everything if one[1] == name]
        count = PER_CALLABLE // 3 if own[0][0] in SLOW else PER_CALLABLE
        chosen += random.Random(name).sample(own, min(count, len(own)))
    return chosen


@pytest.fixture(scope="module")
def outcomes(world):
    with refusals.quiet(world.folder):
        return [refusals.trial(world, *one[1:]) for one in sample(world)]


def test_valid_calls_are_valid(world):
    """All but those that take long: what is refused there is refused for the argument that was replaced."""
    with refusals.quiet(world.folder):
        for made in refusals.CALLS.values():
            call = made(world)
            if call.room not in SLOW:
                call.function(**call.arguments)


def test_what_is_refused_is_refused_by_name(outcomes):
    table = refusals.shares(outcomes)
    said = [f"{one.name} {one.argument}={one.value}: {one.said[:150]}" for one in outcomes if one.kind in ("unnamed", "crash")]
    raised = table["named"] + table["unnamed"] + table["crash"]
    # Of a room with few callables one refusal is much of the sample.
    allowed = (raised * (1 - LEAST / 100)).clip(lower=2)
    assert (table["unnamed"] + table["crash"] <= allowed).all(), "\n".join(said)
    assert table.loc["all", "share"] >= LEAST, "\n".join(said)
    assert table.loc["all", "named"] > 500


def test_no_message_is_over_pages(outcomes):
    for one in outcomes:
        assert len(one.said) < 800, f"{one.name} {one.argument}={one.value}: {one.said[:200]}"
