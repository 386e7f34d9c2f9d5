"""What counts as the same question and the same model."""

import dataclasses
import enum
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import cohort_study
import numpy as np
import pytest
import torch
from cohort_study import SHAPE, Unasked, contents, images, load_model, make_cases, make_target, other_model, study
from monai.data import Dataset
from monai.transforms import Compose, RandFlip, ScaleIntensity
from torch import nn

from captum_causalseg import PatchBank, PdCR, SegmentationTarget, WindowedModel, regions
from captum_causalseg.cohort.code import package_of
from captum_causalseg.cohort.fingerprint import described, differences, digest


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_draws": 7}, "arguments.n_draws: was 6, now 7"),
        ({"seed": 1}, "arguments.seed: was not given, now 1"),
        ({"baselines": PatchBank(images(12, seed=2))}, "arguments.baselines.images: was tensor"),
        (
            {"method": PdCR, "block_size": 4},
            "method: was captum_causalseg.attr.average_treatment_effect.AverageTreatmentEffect",
        ),
        ({"columns": []}, "columns: was ['site'], now []"),
        ({"nifti": True}, "nifti: was False, now True"),
    ],
)
def test_changed_arguments_are_refused(tmp_path, changed, said):
    study(tmp_path / "s", 1)
    before = contents(tmp_path / "s")
    with pytest.raises(ValueError, match="has other arguments") as caught:
        study(tmp_path / "s", 1, **changed)
    assert said in str(caught.value)
    assert contents(tmp_path / "s") == before


def test_another_model_image_or_region_is_refused(tmp_path):
    """The functions are the same; what they give is not."""
    models, rois, shift = [load_model()], [regions.box(SHAPE, 8, 8)], [0.0]

    def cases():
        for case in make_cases(3):
            yield case | {"image": case["image"] + shift[-1]}

    def target(case):
        return SegmentationTarget.from_prediction(models[-1], case["image"][None], roi=rois[-1])

    options = {"load_model": None, "make_target": Unasked(target)}
    study(tmp_path / "s", 2, cases=cases(), **options)
    study(tmp_path / "s", 3, cases=cases(), **options)
    for held, changed, said in (
        (models, other_model(), "case case/0, model: was"),
        (rois, regions.box(SHAPE, 4, 8), "case case/0, roi: was"),
        (shift, 0.1, "case case/0, image: was"),
    ):
        held.append(changed)
        with pytest.raises(ValueError, match="has other arguments") as caught:
            study(tmp_path / "s", 3, cases=cases(), **options)
        assert said in str(caught.value)
        held.pop()


def test_descriptions():
    model = load_model()
    assert digest(model) == digest(load_model()) != digest(other_model())
    assert described(functools.partial(make_target, model=model)) == described(
        functools.partial(make_target, model=load_model())
    )
    assert described(functools.partial(make_target, model=model)) != described(
        functools.partial(make_target, model=other_model())
    )
    lists = [[], [1], (1,), {"a": 1}, {"a": 2}, "1", 1, 1.5, True, None, torch.ones(2), torch.ones(3), np.ones(2)]
    kinds = [json.dumps(described(one), sort_keys=True) for one in lists]
    assert len(set(kinds)) == len(kinds) - 1  # [1] and (1,)
    a, b = (lambda x: x + 1), (lambda x: x + 2)
    assert described(a)["code"] != described(b)["code"]
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": 4}) == [
        "a: was 1, now not given",
        "b.c: was 2, now 3",
        "d: was not given, now 4",
    ]
    assert digest(torch.ones(3, dtype=torch.bfloat16)) != digest(torch.zeros(3, dtype=torch.bfloat16))
    assert digest(torch.zeros(0)) != digest(torch.zeros(0, 2))


PROGRAM = """
import dataclasses, enum, functools, json, sys
import numpy as np
import cohort_study
from captum_causalseg.cohort.code import package_of
from captum_causalseg.cohort.fingerprint import described

SITES = {"A", "B", "C", "D"}
class Kind(enum.Enum):
    ONE = frozenset({"x", "y", "z"})
@dataclasses.dataclass(frozen=True)
class Options:
    names: frozenset = frozenset({"q", "w", "e"})
    kind: Kind = Kind.ONE
def helper(case, *, known={"k1", "k2", "k3"}):
    return case["site"] in {"A", "B", "E"} and case["site"] in SITES
def make_target(case, model, options=Options()):
    assert helper(case) and len({"p", "q"} | options.names)
    return cohort_study.make_target(case, model)
nested = {("b", 1): {"s", "t", "u"}, "n": [np.array([{"o", "p"}], dtype=object), SITES, functools.partial(helper, known=SITES)]}
if __name__ == "__main__":
    print(json.dumps(described([make_target, nested, Options(), Kind.ONE])))
    print(cohort_study.study(sys.argv[1], int(sys.argv[2]), make_target=make_target))
"""


def test_sets_are_the_same_in_every_process(tmp_path, monkeypatch, capsys):
    """Whatever the order that a process gives to their members: the second run goes on with the first one's study."""
    program = str(tmp_path / "program.py")
    Path(program).write_text(PROGRAM)
    path = os.pathsep.join([str(Path(cohort_study.__file__).parent), *sys.path])
    # Not as this process has it, which is the second.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    first = subprocess.run(
        [sys.executable, program, str(tmp_path / "s"), "1"],
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.splitlines()
    monkeypatch.setattr(sys, "argv", [program, str(tmp_path / "s"), "2"])
    runpy.run_path(program, run_name="__main__")
    second = capsys.readouterr().out.splitlines()
    assert first[0] == second[0]
    assert [first[1], second[1]] == ["Cohort(1 finished)", "Cohort(2 finished)"]


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@dataclasses.dataclass
class Options:
    size: int
    names: frozenset[str] = frozenset()


class Holder:
    def __init__(self, value) -> None:
        self._value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value) -> None:
        self.value = value


def closing_over(value):
    return lambda case: value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a", "b"}, {"a", "c"}),
        ({1, 2}, [1, 2]),
        ({1: "a"}, {"1": "a"}),
        ({("a", 1): 2}, {("a", 1): 3}),
        ({"a": {"b": [1, {2}]}}, {"a": {"b": [1, {3}]}}),
        (list(range(1000)), list(range(999, -1, -1))),
        (Mode.FAST, Mode.SLOW),
        (Options(3), Options(4)),
        (Options(3, frozenset({"a"})), Options(3, frozenset({"b"}))),
        (Holder(1), Holder(2)),
        (Holder(Holder([1])), Holder(Holder([2]))),
        (Slotted(1), Slotted(2)),
        (functools.partial(int, base=2), functools.partial(int, base=3)),
        (functools.partial(int, "1"), functools.partial(int, "2")),
        (np.array([{"a"}, None], dtype=object), np.array([{"b"}, None], dtype=object)),
        (np.datetime64("2026-01-01"), np.datetime64("2026-01-02")),
        (np.ones(3), np.ones(3, np.float32)),
        (torch.ones(2).to_sparse(), torch.ones(3).to_sparse()),
        (torch.device("cpu"), torch.device("cuda")),
        (Path("a"), Path("b")),
        (b"a", b"b"),
        (1j, 2j),
        (float("nan"), float("inf")),
        (1, True),
        (range(3), range(4)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (closing_over([1]), closing_over([2])),
        (closing_over({"a": 1}), closing_over({"a": 2})),
        (closing_over({"a"}), closing_over({"b"})),
        (lambda x, size=8: x, lambda x, size=9: x),
        (lambda x, *, size=8: x, lambda x, *, size=9: x),
        (lambda x: x in {"a", "b"}, lambda x: x in {"a", "c"}),
        (functools.cache(lambda x: x + 1), functools.cache(lambda x: x + 2)),
        (Compose([ScaleIntensity(0, 1)]), Compose([ScaleIntensity(0, 2)])),
    ],
)
def test_what_differs_is_described_differently(one, other):
    said = [json.dumps(described(value), sort_keys=True) for value in (one, other)]
    assert said[0] != said[1]
    assert " at 0x" not in said[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"b", "a"},
        lambda: Options(3, frozenset({"a", "b"})),
        lambda: Holder([np.float32(0.1), torch.ones(2), Mode.FAST, float("nan")]),
        lambda: closing_over({"a": [1, {2}]}),
        lambda: functools.partial(closing_over, value=Holder(Path("a"))),
        lambda: Compose([ScaleIntensity()]),  # with a random state of its own, which it does not use
        lambda: np.random.default_rng(7),
        lambda: PatchBank(images(3)),
        lambda: nn.Sequential(load_model(), nn.Dropout()),
        lambda: SegmentationTarget(load_model(), roi=regions.box(SHAPE, 8, 8), metric="volume"),
    ],
)
def test_the_same_is_described_alike(make):
    one, other = make(), make()
    assert not differences({"a": described(one)}, {"a": json.loads(json.dumps(described(other)))})


def test_order_of_a_dict_and_caches_are_not_asked():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    bank = PatchBank(images(3))
    before = described(bank)
    bank.bind(images(1))
    assert described(bank) == before


def test_what_holds_itself():
    one: list = [1]
    one.append(one)
    other: list = [1]
    other.append([1, other])
    assert described(one) != described(other)


def test_what_has_no_contents_is_refused(tmp_path):
    """Never told apart by where it lies in memory."""
    lock = threading.Lock()

    def locking(case, model):
        with lock:
            return make_target(case, model)

    with pytest.raises(
        TypeError, match=r"make_target: expected what can be compared .*, got a lock in make_target\.lock"
    ) as caught:
        study(tmp_path / "s", 1, make_target=locking)
    assert "__getstate__" in str(caught.value)
    assert not (tmp_path / "s").exists()
    with pytest.raises(TypeError, match=r"value: .* got a generator in value\.a\[1\]\._value"):
        described({"a": [1, Holder(k for k in "abc")]})
    unseeded = Compose([RandFlip()])
    assert described(unseeded) != described(Compose([RandFlip()]))  # random, so it is not the same twice


def test_donors_in_files_are_compared_by_their_contents(tmp_path):
    for k, image in enumerate(images(3)):
        np.save(tmp_path / f"{k}.npy", image.numpy())

    class Lazy:
        def __init__(self) -> None:
            self.files = sorted(tmp_path.glob("*.npy"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index):
            return torch.from_numpy(np.load(self.files[index]))

    data = [{"image": image} for image in images(3)]
    changed = [data[0], {"image": data[1]["image"] + 1}, data[2]]
    before = described(PatchBank(Lazy())), described(PatchBank.from_dataset(Dataset(data), "image"))
    assert described(PatchBank(Lazy())) == before[0]
    np.save(tmp_path / "1.npy", images(3)[1].numpy() + 1)  # as long as it was
    assert described(PatchBank(Lazy())) != before[0]
    assert described(PatchBank.from_dataset(Dataset(data), "image")) == before[1]
    assert described(PatchBank.from_dataset(Dataset(changed), "image")) != before[1]


SIZES = {"edge": [8]}
OPTIONS = {"start": 8}


def box_of(start):
    return regions.box(SHAPE, start, SIZES["edge"][0])


def reading_globals(case, model):
    return SegmentationTarget.from_prediction(model, case["image"][None], roi=box_of(OPTIONS["start"]))


def test_globals_that_a_function_reads_are_asked(tmp_path, monkeypatch):
    study(tmp_path / "s", 1, make_target=reading_globals)
    study(tmp_path / "s", 1, make_target=reading_globals)
    for held, key, value, said in (
        (OPTIONS, "start", 4, "make_target.reads.OPTIONS.start: was 8, now 4"),
        (SIZES, "edge", [4], "make_target.reads.box_of.reads.SIZES.edge: was [8], now [4]"),
    ):
        monkeypatch.setitem(held, key, value)
        with pytest.raises(ValueError, match="has other arguments") as caught:
            study(tmp_path / "s", 1, make_target=reading_globals)
        assert said in str(caught.value)
        monkeypatch.undo()
    monkeypatch.setitem(globals(), "box_of", lambda start: regions.box(SHAPE, start, 4))
    with pytest.raises(ValueError, match=r"make_target.reads.box_of.code: was"):
        study(tmp_path / "s", 1, make_target=reading_globals)


def test_a_list_that_is_closed_over_is_asked(tmp_path):
    starts = [8]

    def target(case, model):
        return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box(SHAPE, starts[0], 8))

    study(tmp_path / "s", 1, make_target=target)
    starts[0] = 4
    with pytest.raises(ValueError, match=r"make_target.closure.starts: was \[8\], now \[4\]"):
        study(tmp_path / "s", 1, make_target=target)


def test_modules_of_ones_own_and_of_others(tmp_path, monkeypatch):
    (tmp_path / "ownsettings.py").write_text("SIZE = 3\nOTHER = 1\ndef size():\n    return SIZE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import ownsettings

    names = {"ownsettings": ownsettings, "np": np, "torch": torch}
    exec("def f(x):\n    return ownsettings.SIZE + ownsettings.size() + np.pi", names)
    exec("def g(x):\n    import ownsettings\n    return ownsettings", names)
    before, whole = described(names["f"]), described(names["g"])
    assert before["reads"]["ownsettings.SIZE"] == 3
    assert before["reads"]["np"] == f"numpy {np.__version__}"
    ownsettings.OTHER = 2
    assert described(names["f"]) == before
    ownsettings.SIZE = 4
    assert differences(before, described(names["f"])) == [
        "reads.ownsettings.SIZE: was 3, now 4",
        "reads.ownsettings.size.reads.SIZE: was 3, now 4",
    ]
    (tmp_path / "ownsettings.py").write_text("SIZE = 5\n")
    assert [line.split(":")[0] for line in differences(whole, described(names["g"]))] == ["reads.import ownsettings.source"]
    monkeypatch.setattr(np, "__version__", "1.0")
    assert described(names["f"])["reads"]["np"] == "numpy 1.0"


def test_methods_of_a_class_are_its_code():
    def class_of(source):
        names = {"__name__": "of_a_test"}
        exec(source, names)
        return names["Made"]

    one = class_of("class Made:\n    SIZE = 3\n    def __call__(self, case):\n        return 1")
    for other in ("class Made:\n    SIZE = 4\n    def __call__(self, case):\n        return 1", "class Made:\n    SIZE = 3"):
        assert described(one()) != described(class_of(other)())


def test_a_sliding_window_is_what_it_is_whatever_it_has_run():
    from monai.inferers import SlidingWindowInferer

    network = nn.Conv2d(1, 2, 3, padding=1)

    def made(**options):
        return WindowedModel.from_monai(SlidingWindowInferer(8, 2, **options), network)

    model = made(overlap=0.5)
    before = described(model)
    model(torch.rand(1, 1, 20, 20))
    assert described(model) == before == described(made(overlap=0.5))
    for other in (made(overlap=0.25), made(overlap=0.5, mode="gaussian"), made(overlap=0.5, cval=1.0)):
        assert described(other) != before


def test_packages_of_another_environment_are_named_not_read(tmp_path, monkeypatch):
    """Clusters name them in PYTHONPATH; a walk through all of torch would take hours."""
    for place in ("lib/site-packages", "mine"):
        folder = tmp_path / place / f"made_{place[:3]}"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("__version__ = '1.2+cpu'\n")
        monkeypatch.syspath_prepend(str(folder.parent))
        monkeypatch.delitem(sys.modules, folder.name, raising=False)
        importlib.import_module(folder.name)
    assert package_of("made_lib") == "made_lib 1.2"
    assert package_of("made_min") is None
