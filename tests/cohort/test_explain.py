"""Many cases in one process: what is kept, what is done once, what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients
from cohort_study import Reading, contents, images, load_model, make_cases, make_target, study
from monai.data import Dataset
from torch import nn

from captum_causalseg import AverageTreatmentEffect, PatchBank
from captum_causalseg.cohort import Cohort


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
        ({"method": IntegratedGradients}, TypeError, "IntegratedGradients returns no statistics"),
        ({"method": "PdCR"}, TypeError, "method: expected a callable, got str"),
        ({"cases": 3}, TypeError, "cases: expected an iterable of dicts or a data set of them, got int"),
        ({"cases": {"id": 1}}, TypeError, "cases: expected an iterable of dicts or a data set of them, got dict"),
        ({"shards": 0}, ValueError, "shards: expected at least 1, got 0"),
        ({"shards": 2, "precision": 0.1}, ValueError, "shards: not with precision"),
        ({"columns": ["device"]}, ValueError, "columns: 'device' is a column of the table already"),
        ({"load_model": 3}, TypeError, "load_model: expected a callable or None"),
        ({"num_gpus": -1}, ValueError, "num_gpus"),
        ({"address": "auto"}, ValueError, "address: it works only with"),
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
    with pytest.raises(ValueError, match="resume=True continues it"):
        study(tmp_path / "t", 1, resume=False)


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
