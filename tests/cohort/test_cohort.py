"""Many cases in one process: what is kept, what is done once, what is refused."""

import functools
import json
import signal
import subprocess
import sys
import time

import cohort_study
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from cohort_study import (
    SHAPE,
    Reading,
    Unasked,
    contents,
    images,
    load_model,
    make_cases,
    make_target,
    other_model,
    run,
    run_until_killed,
    slow_target,
    study,
)
from monai.data import Dataset, MetaTensor
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    component_effects,
    regions,
)
from captum_causalseg.attr.parts import merge_parts, only_part
from captum_causalseg.cohort import Cohort, CohortError, explain_cohort, plot_cohort_profile, summarize
from captum_causalseg.cohort.fingerprint import described, differences, digest


def test_a_case_is_explained_as_by_hand(tmp_path):
    cohort = study(tmp_path / "s", 2)
    model, case = load_model(), make_cases(2)[1]
    _, by_hand = AverageTreatmentEffect(make_target(case, model)).attribute(
        case["image"][None], PatchBank(images(12, seed=1)), target=1, block_size=4, n_draws=6, return_statistics=True
    )
    kept = cohort.statistics("case/1")
    assert torch.equal(kept.effect.nan_to_num(7.0), by_hand.effect.nan_to_num(7.0))
    assert torch.equal(kept.standard_error.nan_to_num(7.0), by_hand.standard_error.nan_to_num(7.0))
    units = cohort.units(["case/1"])
    expected = by_hand.to_dataframe()
    pd.testing.assert_frame_equal(units[list(expected.columns)[1:]], expected.drop(columns=["example"]))
    assert units["asked"].tolist() == (units["class"] == 1).tolist()
    assert len(cohort.units(["case/1"], asked=True)) == 36
    row = cohort.cases().set_index("id").loc["case/1"]
    assert row["state"] == "finished"
    assert row["site"] == "B"
    assert row["observed_score"] == float(by_hand.observed_score[0, 1])
    assert row["n_units"] == 36
    assert row["forwards"] == by_hand.n_forwards
    assert row["seed"] == "0"
    assert json.loads(row["versions"])["torch"] == torch.__version__


def test_distances_to_the_region_of_interest(tmp_path):
    units = study(tmp_path / "s", 1).units(asked=True)
    far = np.maximum(
        np.maximum(8 - units["stop_0"] + 1, units["start_0"] - 15), np.maximum(8 - units["stop_1"] + 1, units["start_1"] - 15)
    ).clip(0)
    np.testing.assert_array_equal(units["distance"], far)


def test_tables_can_be_read_by_anything(tmp_path):
    study(tmp_path / "s", 3)
    cases = pd.read_parquet(tmp_path / "s" / "cases.parquet")
    assert cases["id"].tolist() == ["case/0", "case/1", "case/2"]
    units = pd.read_parquet(tmp_path / "s" / "units")
    assert sorted(units["case"].astype(str).unique()) == ["case/0", "case/1", "case/2"]


def test_ids_that_look_like_numbers_stay_what_they_are(tmp_path):
    cases = [case | {"id": name} for case, name in zip(make_cases(3), ["007", ".", 8])]
    cohort = study(tmp_path / "s", cases=cases)
    assert cohort.cases()["id"].tolist() == ["007", ".", "8"]
    assert sorted(cohort.units(columns=["effect"])["case"].unique()) == [".", "007", "8"]
    assert (cohort.folder / "cases" / "%2E" / "statistics.npz").exists()


def test_data_sets_are_read_once_and_not_for_what_is_finished(tmp_path):
    first = Reading(4, True)
    study(tmp_path / "s", cases=first)
    assert first.read == [0, 1, 2, 3]
    again = Reading(4, True)
    study(tmp_path / "s", cases=again)
    assert again.read == [0]  # the one that is looked at again
    without = Reading(4, False)
    study(tmp_path / "s", cases=without)
    assert without.read == [0, 0, 1, 2, 3]


def test_monai_and_generators(tmp_path):
    one = study(tmp_path / "a", cases=Dataset(make_cases(3)))
    other = study(tmp_path / "b", cases=iter(make_cases(3)))
    assert contents(one.folder) == contents(other.folder) == contents(study(tmp_path / "c", 3).folder)


def test_cases_are_not_held(tmp_path):
    """A generator is read one by one: when a case is asked for, the one before it is written."""

    def reading():
        for k, case in enumerate(make_cases(4)):
            manifest = tmp_path / "s" / "manifest.jsonl"
            done = manifest.read_text().count("\n") if manifest.exists() else 0
            assert done == k
            yield case

    study(tmp_path / "s", cases=reading())


def test_finished_cases_are_not_done_again(tmp_path):
    seen = []

    def watching(case, model):
        seen.append(case["id"])
        return make_target(case, model)

    watching = Unasked(watching)
    study(tmp_path / "s", 3, make_target=watching)
    study(tmp_path / "s", 5, make_target=watching)
    # The first is built again, to see that it is the same.
    assert seen == ["case/0", "case/1", "case/2", "case/0", "case/3", "case/4"]
    assert contents(tmp_path / "s") == contents(study(tmp_path / "t", 5, make_target=watching).folder)


def test_what_fails_is_kept_and_the_others_go_on(tmp_path):
    broken = {"case/1"}

    def sometimes(case, model):
        if case["id"] in broken:
            raise RuntimeError("no such scan")
        return make_target(case, model)

    sometimes = Unasked(sometimes)
    cohort = study(tmp_path / "s", 3, make_target=sometimes)
    assert repr(cohort) == "Cohort(2 finished, 1 failed)"
    row = cohort.cases().iloc[1]
    assert (row["id"], row["state"], row["error"], row["site"]) == ("case/1", "failed", "RuntimeError: no such scan", "B")
    report = tmp_path / "s" / "errors" / "case%2F1.txt"
    assert "in sometimes" in report.read_text()
    assert sorted(cohort.units()["case"].unique()) == ["case/0", "case/2"]
    with pytest.raises(KeyError, match="case/1"):
        cohort.units(["case/1"])
    with pytest.raises(KeyError, match="case/1"):
        cohort.statistics("case/1")
    with pytest.raises(CohortError, match=r"case 'case/1' failed: RuntimeError: no such scan") as caught:
        study(tmp_path / "s", 3, make_target=sometimes, errors="raise")
    assert isinstance(caught.value.__cause__, RuntimeError)
    # It is tried again, and the tables are those of a study in which it never failed.
    broken.clear()
    cohort = study(tmp_path / "s", 3, make_target=sometimes)
    assert repr(cohort) == "Cohort(3 finished)"
    assert not report.exists()
    whole = study(tmp_path / "t", 3, make_target=sometimes)
    assert contents(tmp_path / "s") == contents(whole.folder)


def test_a_kill_loses_nothing(tmp_path):
    run_until_killed(tmp_path / "s", "local", 3)
    before = (tmp_path / "s" / "manifest.jsonl").read_text()
    assert 3 <= before.count("\n") < 8
    assert not (tmp_path / "s" / "cases.parquet").exists()
    run(tmp_path / "s", "local")
    run(tmp_path / "t", "local")
    assert (tmp_path / "s" / "manifest.jsonl").read_text().startswith(before)
    assert contents(tmp_path / "s") == contents(tmp_path / "t")
    assert not (tmp_path / "s" / ".unfinished").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_told_to_end_clears_up(tmp_path, number):
    out = tmp_path / "s"
    program = subprocess.Popen([sys.executable, cohort_study.__file__, str(out), "local"])
    while not (out / "manifest.jsonl").exists() or not (out / "manifest.jsonl").read_bytes():
        assert program.poll() is None
        time.sleep(0.05)
    program.send_signal(number)
    assert program.wait() == 128 + number
    assert not (out / ".unfinished").exists()
    done = len(Cohort(out).records())
    assert 1 <= done < 8
    # The tables are those of what is finished.
    assert len(pd.read_parquet(out / "cases.parquet")) == done
    assert Cohort(out).verify().empty
    assert len(study(out, 8, make_target=slow_target).records()) == 8


def test_a_line_cut_off_by_a_kill_is_done_again(tmp_path):
    study(tmp_path / "s", 3)
    manifest = tmp_path / "s" / "manifest.jsonl"
    held = manifest.read_text()
    manifest.write_text(held[:-20])
    assert repr(Cohort(tmp_path / "s")) == "Cohort(2 finished)"
    study(tmp_path / "s", 3)
    assert manifest.read_text().count("\n") == 3
    assert contents(tmp_path / "s") == contents(study(tmp_path / "t", 3).folder)


def test_two_at_once(tmp_path):
    program = subprocess.Popen([sys.executable, cohort_study.__file__, str(tmp_path / "s"), "local"])
    try:
        while not (tmp_path / "s" / "manifest.jsonl").exists():
            assert program.poll() is None
            time.sleep(0.05)
        with pytest.raises(ValueError, match="out: another process is at work in"):
            study(tmp_path / "s", 8)
    finally:
        program.kill()
        program.wait()


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
    with pytest.raises(ValueError, match="was asked something else") as caught:
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
        with pytest.raises(ValueError, match="was asked something else") as caught:
            study(tmp_path / "s", 3, cases=cases(), **options)
        assert said in str(caught.value)
        held.pop()


def test_parts_of_a_case_are_the_whole(tmp_path):
    whole, parts = study(tmp_path / "a", 2), study(tmp_path / "b", 2, shards=3)
    for case in ("case/0", "case/1"):
        one, other = whole.statistics(case), parts.statistics(case)
        for name in ("effect", "standard_error", "n_draws", "status", "population", "p_values"):
            ours, theirs = (getattr(s, name) for s in (one, other))
            ours, theirs = (ours(), theirs()) if name == "p_values" else (ours, theirs)
            assert torch.equal(ours.double().nan_to_num(7.0), theirs.double().nan_to_num(7.0)), name
        left = one.settings, other.settings
        assert {k: v for k, v in left[0].items() if k != "forwards"} == {k: v for k, v in left[1].items() if k != "forwards"}
    pd.testing.assert_frame_equal(whole.units(), parts.units())
    assert not list((tmp_path / "b").rglob("part-*"))


def test_parts_of_a_call_that_was_killed_are_taken_over(tmp_path):
    """And only those: of another image or other arguments they are not."""

    class Stop(BaseException):
        pass

    left, seen = [3], []

    def stopping(case, model):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return make_target(case, model)

    def counted(target):
        seen.append(1)
        return AverageTreatmentEffect(target)

    stopping, counted = Unasked(stopping), Unasked(counted)
    options = {"shards": 5, "method": counted}
    with pytest.raises(Stop):
        study(tmp_path / "s", 1, make_target=stopping, **options)
    held = sorted((tmp_path / "s" / "parts").glob("*/part-*"))
    assert [path.name[:11] for path in held] == ["part-0-of-5", "part-1-of-5", "part-2-of-5"]
    seen.clear()
    left[0] = 100
    cohort = study(tmp_path / "s", 1, make_target=stopping, **options)
    whole = study(tmp_path / "t", 1)
    # Two parts were left; then the parts are merged, which asks for the default of an argument only.
    assert torch.equal(
        cohort.statistics("case/0").standard_error.nan_to_num(7.0), whole.statistics("case/0").standard_error.nan_to_num(7.0)
    )
    assert cohort.cases()["forwards"][0] > whole.cases()["forwards"][0]
    assert not list((tmp_path / "s").rglob("part-*"))
    for name, changed in (("u", {"n_draws": 5}), ("v", {"cases": make_cases(2)[1:]})):
        left[0] = 3
        with pytest.raises(Stop):
            study(tmp_path / name, 1, make_target=stopping, **options)
        left[0] = 100
        changed_case = [case | {"id": "case/0"} for case in changed.pop("cases", make_cases(1))]
        again = study(tmp_path / name, cases=changed_case, make_target=stopping, **options, **changed)
        fresh = study(tmp_path / f"{name}-fresh", cases=changed_case, make_target=stopping, **options, **changed)
        assert contents(again.folder) == contents(fresh.folder)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("n_parts", [2, 5, 100])
def test_moments_merge_exactly(d, n_parts):
    """More parts than units leave some without any; batches and several outputs go along."""
    shape = (12,) * d
    conv = (nn.Conv2d, nn.Conv3d)[d - 2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(conv(1, 3, 3, padding=1), nn.ReLU(), conv(3, 2, 3, padding=1)).double()
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bank = PatchBank(torch.rand(9, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    rois = torch.stack([regions.box(shape, 0, 4), regions.box(shape, 4, 4)])
    target = SegmentationTarget.from_prediction(model, x[:1], roi=rois, metric="soft_dice")
    face = AverageTreatmentEffect(target)
    options = {"baselines": bank, "target": (1, 0), "block_size": 4, "n_draws": 5, "return_statistics": True}
    whole = face.attribute(x, **options)[1]
    parts = []
    for k in range(n_parts):
        with only_part(k, n_parts):
            parts.append(face.attribute(x, **options)[1])
    merged = merge_parts(parts)
    for name in ("effect", "standard_error", "n_draws", "status"):
        one, other = (getattr(s, name).double().nan_to_num(7.0, posinf=8.0) for s in (whole, merged))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert merged.n_forwards == sum(part.n_forwards for part in parts)
    with only_part(0, 2):
        other_units = face.attribute(x, **options | {"block_size": 6})[1]
    with pytest.raises(ValueError, match="their units differ"):
        merge_parts([parts[0], other_units])


def test_geometry_is_kept(tmp_path):
    affine = torch.diag(torch.tensor([2.0, 0.5, 1.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([5.0, -7.0, 9.0])
    conv = nn.Conv3d(1, 1, 3, padding=1)
    cases = [{"id": "scan", "image": MetaTensor(torch.rand(1, 8, 8, 8), affine=affine)}]

    def target(case):
        return SegmentationTarget(conv, roi=regions.box((8, 8, 8), 2, 2), metric="logit_mean", activation="sigmoid")

    cohort = study(
        tmp_path / "s",
        cases=cases,
        load_model=None,
        make_target=target,
        columns=[],
        nifti=True,
        baselines=0.0,
        block_size=2,
        target=None,
    )
    image = nibabel.load(tmp_path / "s" / "cases" / "scan" / "effects.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    stats = cohort.statistics("scan")
    np.testing.assert_allclose(np.nan_to_num(image.get_fdata()), stats.to_map()[0, 0].nan_to_num(), atol=1e-7)
    units = cohort.units().set_index(["start_0", "start_1", "start_2"])
    # In millimeters, the largest along an axis, between centers of voxels.
    assert units.loc[(4, 2, 2), "distance"] == 2.0
    assert units.loc[(2, 4, 2), "distance"] == 0.5
    assert units.loc[(2, 6, 4), "distance"] == 1.5
    assert set(units["distance_unit"]) == {"mm"}
    summary = summarize(cohort)
    assert summary.distance_unit == "mm"
    assert repr(summary) == f"CohortSummary(1 case, {len(summary.profile)} bins of {summary.bin_width:g} mm)"
    assert plot_cohort_profile(summary).axes[0].get_xlabel() == "distance from the region of interest (mm)"


def test_layers_and_components(tmp_path):
    layer = explain_cohort(
        make_cases(2),
        make_target,
        load_model=load_model,
        method=lambda target: LayerAverageTreatmentEffect(target, target.model[0], layer_baselines=images(5, seed=3)),
        out=tmp_path / "layer",
        target=1,
        n_draws=3,
        show_progress=False,
    )
    assert len(layer.units(asked=True)) == 2 * 4
    assert layer.units()["distance"].isna().all()
    assert layer.units()["distance_unit"].isna().all()
    assert summarize(layer).distance_unit == ""
    parts = explain_cohort(
        make_cases(2),
        make_target,
        load_model=load_model,
        method=component_effects,
        out=tmp_path / "parts",
        target=1,
        baselines=images(5, seed=3),
        n_draws=3,
        show_progress=False,
    )
    assert sorted(parts.units()["module"].unique()) == ["0", "1", "2"]
    assert parts.cases()["state"].tolist() == ["finished"] * 2
    with pytest.raises(KeyError, match="no statistics"):
        parts.statistics("case/0")


def test_several_inputs_and_arguments_of_each_case(tmp_path):
    class Two(nn.Module):
        def forward(self, image, clicks):
            return image + 0.5 * clicks

    cases = [
        case | {"clicks": torch.ones(1, *SHAPE), "feature_mask": regions.grid(SHAPE, 6)[None, None]} for case in make_cases(2)
    ]
    masks = [(case["feature_mask"], case["feature_mask"] + 100) for case in cases]
    cases = [case | {"feature_mask": mask} for case, mask in zip(cases, masks)]
    cohort = explain_cohort(
        cases,
        lambda case: SegmentationTarget(Two(), roi=regions.box(SHAPE, 6, 6), metric="logit_mean", activation="none"),
        method=AverageTreatmentEffect,
        out=tmp_path / "s",
        image_key=("image", "clicks"),
        case_arguments=["feature_mask"],
        baselines=0.0,
        exclude=None,
        show_progress=False,
        errors="raise",
    )
    units = cohort.units(["case/0"])
    assert len(units) == 32
    mean = float(cases[0]["image"][0, 6:12, 6:12].mean())
    inside = units[(units["start_0"] == 6) & (units["start_1"] == 6)]
    np.testing.assert_allclose(inside["effect"], [mean, 0.5], rtol=1e-6)


def test_a_batch_of_one_is_a_batch_of_one(tmp_path):
    batched = [case | {"image": case["image"][None]} for case in make_cases(2)]

    def target(case, model):
        return SegmentationTarget.from_prediction(model, case["image"], roi=regions.box(SHAPE, 8, 8))

    one = study(tmp_path / "a", cases=batched, make_target=target)
    other = study(tmp_path / "b", 2)
    pd.testing.assert_frame_equal(one.units(), other.units())


def test_functions_that_are_no_target(tmp_path):
    cohort = explain_cohort(
        [{"id": 1, "image": torch.rand(1, 8, 8)}],
        lambda case: lambda image: image.mean((1, 2, 3)),
        method=AverageTreatmentEffect,
        out=tmp_path / "s",
        baselines=0.0,
        block_size=4,
        show_progress=False,
        errors="raise",
    )
    assert cohort.units()["distance"].isna().all()
    assert len(cohort.units()) == 4


def test_bad_arguments(tmp_path):
    out = tmp_path / "s"
    for options, error, said in (
        ({"engine": "dask"}, ValueError, 'engine: expected "local" or "ray"'),
        ({"errors": "ignore"}, ValueError, "errors: expected"),
        (
            {"n_drawz": 3},
            TypeError,
            "n_drawz: explain_cohort (with AverageTreatmentEffect) got an unexpected keyword argument 'n_drawz'; did you mean n_draws?",
        ),
        ({"show_progress": False, "return_statistics": True}, TypeError, "'return_statistics' is not an argument of a study"),
        ({"method": GradientTreatmentEffect}, TypeError, "GradientTreatmentEffect has no uncertainties"),
        ({"method": "PdCR"}, TypeError, "method: expected a callable, got str"),
        ({"cases": 3}, TypeError, "cases: expected an iterable of dicts or a data set of them, got int"),
        ({"cases": {"id": 1}}, TypeError, "cases: expected an iterable of dicts or a data set of them, got dict"),
        ({"shards": 0}, ValueError, "shards: expected at least 1, got 0"),
        ({"shards": 2, "precision": 0.1}, ValueError, "shards: not with precision"),
        ({"columns": ["device"]}, ValueError, "columns: 'device' is a column of the table already"),
        ({"load_model": 3}, TypeError, "load_model: expected a callable or None"),
        ({"num_gpus": -1}, ValueError, "num_gpus"),
        ({"address": "auto"}, ValueError, "address: it goes with"),
    ):
        with pytest.raises(error) as caught:
            study(out, 1, **options)
        assert said in str(caught.value)
        assert not out.exists()


def test_bad_folders(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"):
        study(tmp_path / "s", 1)
    with pytest.raises(ValueError, match="there is no study"):
        Cohort(tmp_path / "nowhere")
    study(tmp_path / "t", 1)
    with pytest.raises(ValueError, match="resume=True goes on with it"):
        study(tmp_path / "t", 1, resume=False)


def test_bad_cases(tmp_path):
    cases = make_cases(2)
    with pytest.raises(ValueError, match="'case/0' is the id of two cases, at positions 0 and 2"):
        study(tmp_path / "a", cases=[*cases, cases[0]])
    with pytest.raises(KeyError, match="position 1 has no 'id'"):
        study(tmp_path / "b", cases=[cases[0], {"image": cases[1]["image"]}])
    with pytest.raises(TypeError, match="cases: expected dicts, got Tensor at position 0"):
        study(tmp_path / "c", cases=[cases[0]["image"]])
    failed = study(tmp_path / "d", cases=cases[:1], image_key="scan").cases()
    assert failed["error"][0].startswith("KeyError: \"image_key: the case has no 'scan'")
    # A data set whose workers find out about two of one name.
    again = study(tmp_path / "e", cases=Reading(2, False))
    assert repr(again) == "Cohort(2 finished)"


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


def test_environment_is_left_alone(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    study(tmp_path / "s", 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_cases_may_name_files_that_workers_read(tmp_path):
    for case in make_cases(2):
        np.save(tmp_path / f"{case['id'][-1]}.npy", case["image"].numpy())
    rows = [{"id": f"case/{k}", "file": tmp_path / f"{k}.npy", "site": "AB"[k % 2]} for k in range(2)]

    def prepare(row, model):
        assert isinstance(model, nn.Module)
        return {**row, "image": torch.from_numpy(np.load(row["file"]))}

    cohort = study(tmp_path / "s", cases=rows, prepare=prepare, columns=["site", "file"])
    other = study(tmp_path / "t", 2)
    pd.testing.assert_frame_equal(cohort.units(), other.units())
    assert cohort.cases()["file"].tolist() == [str(row["file"]) for row in rows]


def test_maps_can_be_written_in_another_way(tmp_path):
    def write(path, case, statistics):
        path.write_text(f"{case['site']} {statistics.n_forwards}")

    cohort = study(tmp_path / "s", 1, nifti=write)
    written = tmp_path / "s" / "cases" / "case%2F0" / "effects.nii.gz"
    assert written.read_text() == f"A {cohort.cases()['forwards'][0]}"
