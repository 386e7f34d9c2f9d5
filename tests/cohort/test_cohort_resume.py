"""Going on with a study: what counts as the same question and the same model, and what is left of a finished case."""

import contextlib
import dataclasses
import enum
import functools
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import cohort_study
import numpy as np
import pandas as pd
import pytest
import torch
from cohort_study import SHAPE, Reading, Unasked, contents, images, load_model, make_cases, make_target, other_model, study
from monai.data import Dataset
from monai.transforms import Compose, RandFlip, ScaleIntensity
from torch import nn

from captum_causalseg import PatchBank, SegmentationTarget, regions
from captum_causalseg.cohort import Cohort
from captum_causalseg.cohort.fingerprint import described, differences, digest, model_of

PROGRAM = """
import dataclasses, enum, functools, json, sys
import numpy as np
import cohort_study
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


def test_sets_are_the_same_in_every_process(tmp_path):
    """Whatever the order that a process gives to their members: the second run goes on with the first one's study."""
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(Path(cohort_study.__file__).parent), *sys.path])
    said = [
        subprocess.run(
            [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "s"), str(n)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.splitlines()
        for n, seed in ((1, "1"), (2, "2"))
    ]
    assert said[0][0] == said[1][0]
    assert [one[1] for one in said] == ["Cohort(1 finished)", "Cohort(2 finished)"]


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
        with pytest.raises(ValueError, match="was asked something else") as caught:
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


def test_the_digest_of_a_model():
    model = load_model()
    same = load_model()
    assert model_of(model) == model_of(same)
    assert model_of(model) == model_of(nn.DataParallel(same)) == model_of(torch.compile(same))
    assert model_of(model) == model_of(lambda x: model(x)) == model_of(functools.partial(same)) == model_of(same.forward)
    assert model_of(model) != model_of(other_model())
    activation = load_model()
    activation[1] = nn.Sigmoid()  # without any weights
    padding = load_model()
    padding[0].padding = (0, 0)
    plain = Ensemble([load_model(), load_model()])
    buffered, other = load_model(), load_model()
    buffered.register_buffer("mean", torch.zeros(1), persistent=False)
    other.register_buffer("mean", torch.ones(1), persistent=False)
    scripted, changed = torch.jit.script(load_model().eval()), torch.jit.script(activation.eval())
    frozen = torch.jit.freeze(scripted)
    models = [model, activation, padding, plain, Ensemble([load_model(), other_model()]), buffered, other]
    models += [scripted, changed, frozen, torch.jit.freeze(torch.jit.script(other_model().eval()))]
    found = [model_of(one) for one in models]
    assert len({*found}) == len(found)


class Ensemble(nn.Module):
    """Its networks are in a list that torch knows nothing of."""

    def __init__(self, networks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, image):
        return sum(network(image) for network in self.networks)


def test_another_model_is_refused_before_any_work(tmp_path):
    models, seen = [load_model()], []

    def target(case, model):
        seen.append(case["id"])
        return make_target(case, model)

    options = {"load_model": Unasked(lambda: models[-1]), "make_target": Unasked(target)}
    study(tmp_path / "s", 2, **options)
    before = contents(tmp_path / "s")
    seen.clear()
    models.append(other_model())
    new = [case | {"id": f"new {case['id']}"} for case in make_cases(2)]
    with pytest.raises(ValueError, match="was asked something else") as caught:
        study(tmp_path / "s", cases=new, **options)
    assert f"load_model, model: was Sequential {model_of(models[0])}, attributes" in str(caught.value)
    assert f"now Sequential {model_of(models[1])}, attributes" in str(caught.value)
    assert not seen
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("n", [1, 2])
def test_a_model_that_targets_make_is_one_for_all_cases(tmp_path, n):
    """In one call as between calls, also where none of the finished cases is among those that are given."""
    models = iter([load_model() for _ in range(n)] + [other_model()])

    def target(case):
        return make_target(case, next(models))

    options = {"load_model": None, "make_target": Unasked(target)}
    cases = make_cases(3)
    with contextlib.ExitStack() as left:
        if n == 2:
            study(tmp_path / "s", cases=cases[:2], **options)
            cases = cases[2:]
        caught = left.enter_context(pytest.raises(ValueError, match="was asked something else"))
        study(tmp_path / "s", cases=cases, **options)
    assert f"model: was {model_of(load_model())}, now {model_of(other_model())}" in str(caught.value)
    assert len(Cohort(tmp_path / "s").records()) == n


def test_models_of_folds(tmp_path):
    """Cases may have models of their own: those that the function holds, or that load_model brings."""
    folds = {"A": load_model(), "B": other_model()}

    def of_fold(case):
        return make_target(case, folds[case["site"]])

    held = study(tmp_path / "s", 3, load_model=None, make_target=of_fold)
    assert held.cases()["model"].tolist() == [model_of(folds[site]) for site in "ABA"]
    study(tmp_path / "s", 4, load_model=None, make_target=of_fold)
    loaded = study(
        tmp_path / "t",
        4,
        load_model=lambda: {"A": load_model(), "B": other_model()},
        make_target=lambda case, models: make_target(case, models[case["site"]]),
    )
    assert loaded.cases()["model"].tolist() == [model_of(folds[site]) for site in "ABAB"]
    folds["A"] = other_model()
    with pytest.raises(ValueError, match=r"make_target.closure.folds.A: was Sequential"):
        study(tmp_path / "s", 5, load_model=None, make_target=of_fold)


def test_the_witness_is_built_before_other_cases(tmp_path):
    rois, seen = [regions.box(SHAPE, 8, 8)], []

    def target(case, model):
        seen.append(case["id"])
        return SegmentationTarget.from_prediction(model, case["image"][None], roi=rois[-1])

    target = Unasked(target)
    cases = make_cases(4)
    study(tmp_path / "s", cases=cases[2:3], make_target=target)
    rois.append(regions.box(SHAPE, 4, 8))
    for given in (cases, ReadingAll(cases)):
        seen.clear()
        with pytest.raises(ValueError, match=r"case case/2, roi: was"):
            study(tmp_path / "s", cases=given, make_target=target)
        assert seen == ["case/2"]
    assert len(Cohort(tmp_path / "s").records()) == 1


class ReadingAll(Reading):
    def __init__(self, cases) -> None:
        super().__init__(0, False)
        self.cases = cases


def test_a_finished_case_that_cannot_be_built_any_more(tmp_path):
    """Another one tells whether the study is the same; when none can, that is said."""
    gone: set[str] = set()

    def target(case, model):
        if case["id"] in gone:
            raise FileNotFoundError(case["id"])
        return make_target(case, model)

    target = Unasked(target)
    study(tmp_path / "s", 2, make_target=target)
    gone.add("case/0")
    assert repr(study(tmp_path / "s", 3, make_target=target)) == "Cohort(3 finished)"
    gone |= {"case/1", "case/2"}
    with pytest.raises(ValueError, match="cases: finished ones cannot be built any more, 'case/0': FileNotFoundError"):
        study(tmp_path / "s", 4, make_target=target)


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
    assert f"case case/2 is done again: cases/case%2F2/statistics.npz is {problem}" in caplog.text
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
    with pytest.raises(ValueError, match=r"out: .* by an earlier version, .* not gone on with: choose another folder"):
        study(tmp_path / "s", 3)
    with pytest.raises(ValueError, match=r"folder: .* by an earlier version, which noted no digests"):
        old.verify()
    (tmp_path / "s" / "study.json").write_text(json.dumps(cohort.study | {"format": 3}))
    with pytest.raises(ValueError, match="is of format 3, this version reads up to 2; install a newer one"):
        Cohort(tmp_path / "s")


def test_a_volume_that_was_just_mounted_is_empty(tmp_path):
    for name in ("lost+found", ".snapshot"):
        (tmp_path / name).mkdir()
    assert repr(study(tmp_path, 1)) == "Cohort(1 finished)"
    (tmp_path / "t" / ".cache").mkdir(parents=True)
    (tmp_path / "t" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"):
        study(tmp_path / "t", 1)
