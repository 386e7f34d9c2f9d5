"""Digests of models, and studies that are resumed with another one."""

import contextlib
import functools

import pytest
import torch
from cohort_study import SHAPE, Reading, Unasked, contents, load_model, make_cases, make_target, other_model, study
from torch import nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.cohort import Cohort
from captum_causalseg.cohort.fingerprint import model_of


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
    with pytest.raises(ValueError, match="has other arguments") as caught:
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
        caught = left.enter_context(pytest.raises(ValueError, match="has other arguments"))
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
    with pytest.raises(ValueError, match="cases: finished cases cannot be rebuilt, 'case/0': FileNotFoundError"):
        study(tmp_path / "s", 4, make_target=target)
