"""Many cases, several methods, several metrics: what is made once, judged once, and gone on with."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients
from cohort_study import SHAPE, Unasked, images, load_model, make_cases
from torch import nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, compare, compare_cohort, regions
from captum_causalseg.cohort import CohortComparison, CohortError
from captum_causalseg.evaluation import Faithfulness
from captum_causalseg.evaluation import faithfulness as room
from captum_causalseg.evaluation.comparison import CONTROL

FEW = {"n_draws": 2, "n_steps": 3, "n_subsets": 5, "perturbations_per_eval": 4}
METHODS = {
    "effects": (AverageTreatmentEffect, {"n_draws": 3}),
    "gradients": (lambda target: IntegratedGradients(target.surrogate()), {"n_steps": 2}),
}


def make_target(case: dict, model: nn.Module) -> SegmentationTarget:
    roi = regions.box(SHAPE, 8, 8)
    return SegmentationTarget.from_prediction(model, case["image"][None], roi=roi, metric="soft_dice")


def study(out, n: int = 2, **options) -> CohortComparison:
    options = {
        "load_model": load_model,
        "columns": ["site"],
        "show_progress": False,
        "baselines": PatchBank(images(12, seed=1)),
        "block_size": 4,
        "output": 1,
        "n_controls": 1,
        "metrics": ["irof", "mu fidelity"],
        "faithfulness": FEW,
    } | options
    methods, cases = options.pop("methods", METHODS), options.pop("cases", make_cases(n))
    return compare_cohort(methods, cases, options.pop("make_target", make_target), out=out, **options)


def without_times(found: CohortComparison) -> pd.DataFrame:
    return found.table().drop(columns="seconds")


def counting(make, seen: list):
    def made(target):
        seen.append(1)
        return make(target)

    return Unasked(made)


@pytest.mark.parametrize("d", [2, 3])
def test_each_case_is_compared_as_by_hand(tmp_path, d):
    """In two and three dimensions, one of several regions of interest."""
    shape = (12,) * d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (nn.Conv2d, nn.Conv3d)[d - 2](1, 2, 3, padding=1)
    scans = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    bank = PatchBank(torch.rand(6, 1, *shape, generator=torch.Generator().manual_seed(1)))
    rois = torch.stack([regions.box(shape, 0, 4), regions.box(shape, 4, 4)])

    def target_of(case):
        return SegmentationTarget(model, roi=rois, reference=case["label"], metric="soft_dice")

    label = regions.box(shape, 0, 6).long()
    cases = [{"id": name, "image": scan, "label": label} for name, scan in zip("ab", scans)]
    given = {"baselines": bank, "output": (1, 1), "block_size": 4, "seed": 3, "faithfulness": FEW}
    found = compare_cohort(METHODS, cases, target_of, out=tmp_path / "s", n_controls=2, show_progress=False, **given).table()
    for case in cases:
        target = target_of(case)
        by_hand = compare(
            {name: (make(target), options) for name, (make, options) in METHODS.items()},
            target,
            case["image"][None],
            n_controls=2,
            **given,
        ).table
        rows = found[found["case"] == case["id"]].reset_index(drop=True)
        assert rows["method"].tolist() == by_hand["method"].tolist()
        assert rows["metric"].tolist() == by_hand["metric"].tolist()
        np.testing.assert_array_equal(rows["value"], by_hand["value"])
        np.testing.assert_array_equal(rows["forwards"].astype(float), by_hand["forwards"])
        assert rows["observed_score"].tolist() == [float(target(case["image"][None]).detach()[0, 1, 1])] * len(rows)
        seen = (model(case["image"][None]).argmax(1)[0] == 1)[rois[1]]
        there = (label == 1)[rois[1]]
        dice = 2 * int((seen & there).sum()) / int(seen.sum() + there.sum())
        assert set(rows["roi_dice"]) == {dice}
        assert set(rows["kind"]) == {"boundary"}


def test_further_metrics_need_no_new_maps_and_further_methods_no_old_ones(tmp_path):
    seen: list[int] = []
    methods = {"effects": (counting(AverageTreatmentEffect, seen), {"n_draws": 3})}
    first = study(tmp_path / "s", methods=methods)
    assert len(seen) == 2
    assert repr(first) == "CohortComparison(2 cases, 2 methods, 2 metrics)"
    more = ["irof", "leakage", "mu fidelity"]
    study(tmp_path / "s", methods=methods, metrics=more)
    both = study(tmp_path / "s", methods=methods | {"gradients": METHODS["gradients"]}, metrics=more)
    assert len(seen) == 2
    assert both.table()["metric"].unique().tolist() == more
    # A third case is made and judged alone, and all is as if it had been asked at once.
    all_of_it = study(tmp_path / "s", 3, methods=methods | {"gradients": METHODS["gradients"]}, metrics=more)
    assert len(seen) == 3
    fresh = study(tmp_path / "t", 3, methods=methods | {"gradients": METHODS["gradients"]}, metrics=more)
    columns = ["case", "method", "metric", "value", "forwards", "observed_score", "roi_dice", "kind", "site"]
    pd.testing.assert_frame_equal(all_of_it.table()[columns], fresh.table()[columns])
    torch.testing.assert_close(all_of_it.attributions("case/2", "gradients"), fresh.attributions("case/2", "gradients"))
    assert fresh.table()["site"].unique().tolist() == ["A", "B"]


def test_a_method_that_fails_at_a_case_is_tried_again_and_the_others_go_on(tmp_path):
    broken = [True]

    def sometimes(target):
        if broken[0]:
            raise RuntimeError("no such layer")
        return AverageTreatmentEffect(target)

    methods = METHODS | {"sometimes": (Unasked(sometimes), {"n_draws": 3})}
    found = study(tmp_path / "s", methods=methods)
    assert repr(found) == "CohortComparison(2 cases, 3 methods, 2 metrics; 2 failed)"
    assert found.table()["method"].unique().tolist() == [*METHODS, CONTROL]
    assert found.failures().values.tolist() == [
        [f"case/{k}", "sometimes", "map", "RuntimeError: no such layer"] for k in range(2)
    ]
    with pytest.raises(KeyError, match="not finished"):
        found.attributions("case/0", "sometimes")
    with pytest.raises(CohortError, match="no such layer"):
        study(tmp_path / "s", methods=methods, errors="raise")
    broken.clear()
    broken.append(False)
    again = study(tmp_path / "s", methods=methods)
    assert again.failures().empty
    pd.testing.assert_frame_equal(without_times(again), without_times(study(tmp_path / "t", methods=methods)))


def test_what_is_interrupted_goes_on(tmp_path):
    class Stop(BaseException):
        pass

    left = [5]

    def stopping(case, model):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return make_target(case, model)

    stopping = Unasked(stopping)
    for allowed in (1, 4, 5, 7, 100):
        left[0] = allowed
        try:
            found = study(tmp_path / "s", make_target=stopping)
        except Stop:
            continue
    left[0] = 100
    pd.testing.assert_frame_equal(without_times(found), without_times(study(tmp_path / "t", make_target=stopping)))


def test_maps_that_are_lost_are_made_again_and_others_judged_again(tmp_path):
    factor = [1.0]

    def moody(target):
        return lambda image: image * factor[0]

    methods = {"moody": Unasked(moody)}
    found = study(tmp_path / "s", methods=methods, n_controls=0)
    before = found.table()["value"].tolist()
    found.maps()["moody"].file("case/0", "map.npz").unlink()
    factor[0] = -1.0
    again = study(tmp_path / "s", methods=methods, n_controls=0)
    torch.testing.assert_close(again.attributions("case/0", "moody")[0], -make_cases(1)[0]["image"])
    case = make_cases(1)[0]
    target = make_target(case, load_model())
    judge = Faithfulness(
        target, case["image"][None], PatchBank(images(12, seed=1)).split(parts=2, seed=0)[1], 1, block_size=4, **FEW
    )
    expected = judge.evaluate(-case["image"][None], ["irof", "mu fidelity"])["value"].tolist()
    assert expected != before[:2]
    np.testing.assert_array_equal(again.table()["value"], [*expected, *before[2:]])


def test_another_question_is_refused(tmp_path):
    study(tmp_path / "s")
    for options, said in (
        (
            {"methods": METHODS | {"effects": (AverageTreatmentEffect, {"n_draws": 4})}},
            "method's arguments.n_draws: was 3, now 4",
        ),
        ({"block_size": 6}, "arguments.block_size: was 4, now 6"),
        ({"faithfulness": FEW | {"n_draws": 3}}, "arguments.faithfulness.n_draws: was 2, now 3"),
        ({"n_controls": 2}, "n_controls: was 1, now 2"),
    ):
        with pytest.raises(ValueError) as caught:
            study(tmp_path / "s", **options)
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="resume=True continues it"):
        study(tmp_path / "s", resume=False)


def test_judging_costs_no_more_than_was_forecast(tmp_path, caplog):
    every = [*room.METRICS]
    with caplog.at_level(logging.INFO, "captum_causalseg"):
        found = study(tmp_path / "s", 2, metrics=every, n_controls=3)
    case = make_cases(1)[0]
    judge = Faithfulness(make_target(case, load_model()), case["image"][None], 0.0, 1, block_size=4, **FEW)
    one, three = judge.forecast(every), judge.forecast(every, n_maps=3)
    table = found.table()
    sums = table.groupby(["case", "method"])["judge_forwards"].sum()
    for method, most in (("effects", one), ("gradients", one), (CONTROL, three)):
        assert 0 < sums.loc["case/0", method] <= most
    said = f"judging: at most {2 * one + three:,} images a case for 3 methods, {2 * (2 * one + three):,} for 2 cases"
    assert said in caplog.text


def test_metrics_of_unknown_cost_are_named_where_judging_is_forecast(tmp_path, caplog, monkeypatch):
    """No number may be called the most where some metric is not counted in it."""
    own = room.FaithfulnessMetric("mine", room.METRICS["irof"].function, "higher", "here")
    monkeypatch.setitem(room.METRICS, "mine", own)
    with caplog.at_level(logging.INFO, "captum_causalseg"):
        study(tmp_path / "s", 1, metrics=["irof", "mine"], n_controls=0)
    said = [line for line in caplog.messages if line.startswith("judging:")]
    assert len(said) == 1
    assert said[0].endswith("besides that, what 'mine' takes, which is not known")


def test_bad_arguments(tmp_path):
    out = tmp_path / "s"
    made = AverageTreatmentEffect(make_target(make_cases(1)[0], load_model()))
    for options, error, said in (
        ({"methods": {}}, ValueError, "methods: expected at least 1 of them"),
        ({"methods": {"a": made}}, TypeError, "methods['a']: expected a function of the target that makes the method, got"),
        ({"methods": {"a": 3}}, TypeError, "methods['a']: expected a function of the target, or a pair"),
        ({"methods": {CONTROL: AverageTreatmentEffect}}, ValueError, "is taken by the control"),
        ({"metrics": ["iro"]}, ValueError, "metrics: expected names from"),
        ({"n_draws": 3}, TypeError, "n_draws: compare_cohort() got an unexpected keyword argument"),
        ({"case_arguments": ["target"]}, TypeError, "target: compare_cohort() got an unexpected"),
        ({"columns": ["kind"]}, ValueError, "columns: 'kind' is a column of the table already"),
        ({"columns": ["device"]}, ValueError, "columns: 'device' is a column of the table already"),
        ({"cases": 3}, TypeError, "cases: expected an iterable of dicts"),
        ({"address": "auto"}, ValueError, "address: it works only with"),
    ):
        with pytest.raises(error) as caught:
            study(out, 1, **options)
        assert said in str(caught.value)
        assert not out.exists()
    with pytest.raises(ValueError, match="there is no comparison"):
        CohortComparison(out)
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"):
        study(out, 1)


def test_cases_that_come_once_and_methods_by_any_name(tmp_path):
    found = study(
        tmp_path / "s",
        cases=iter(make_cases(2)),
        methods={"a/b: ü": AverageTreatmentEffect, "A/B: ü": METHODS["gradients"]},
        n_controls=0,
    )
    assert found.table()["method"].unique().tolist() == ["a/b: ü", "A/B: ü"]
    assert found.attributions("case/1", "a/b: ü").shape == (1, 1, *SHAPE)
