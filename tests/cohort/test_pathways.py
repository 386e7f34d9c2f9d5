"""Studies of effects that are split at layers: what is kept of a case, and what holds over cases."""

import numpy as np
import pandas as pd
import pytest
import torch
from cohort_study import images, make_cases, make_target, study
from torch import nn

from captum_causalseg import FrozenStatistics, MediatedTreatmentEffect, PatchBank, pathway
from captum_causalseg.cohort import Cohort, summarize
from captum_causalseg.cohort.between_cases import random_effects

LAYERS = ["deep", "skip", FrozenStatistics()]
ASKED = {"target": 1, "block_size": 6, "n_draws": 8}


class TwoWays(nn.Module):
    """What is near acts through both, what is far through the norm."""

    def __init__(self):
        super().__init__()
        self.deep, self.skip = (nn.Conv2d(1, 2, 5, padding=2) for _ in range(2))
        self.norm = nn.InstanceNorm2d(2)

    def forward(self, x):
        return self.norm(torch.tanh(self.deep(x)) + self.skip(x))


def two_ways():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TwoWays()


def target_of(case, model):
    target = make_target(case, model)
    return type(target)(model, roi=target.roi, reference=target.reference, metric="soft_dice")


def mediated(out, n=4, **options):
    options = {"load_model": two_ways, "make_target": target_of, "method": MediatedTreatmentEffect, "layers": LAYERS} | options
    return study(out, n, **ASKED | options)


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    return mediated(tmp_path_factory.mktemp("units") / "s")


@pytest.fixture(scope="module")
def regional(tmp_path_factory):
    return mediated(tmp_path_factory.mktemp("region") / "s", method=pathway, region_units=[3, 7], n_draws=12)


def by_hand(case, **more):
    arguments = {"layers": LAYERS, "output": 1, "block_size": 6, "n_draws": 8} | more
    bank = PatchBank(images(12, seed=1))
    return pathway(target_of(case, two_ways()), case["image"][None], bank, **arguments)


def test_every_quantity_of_a_case_is_kept(units):
    case = make_cases(2)[1]
    bank = PatchBank(images(12, seed=1))
    _, found = MediatedTreatmentEffect(target_of(case, two_ways()), LAYERS).attribute(
        case["image"][None], bank, return_statistics=True, **ASKED
    )
    expected = found.to_dataframe().drop(columns=["example"])
    kept = units.mediation(["case/1"])
    pd.testing.assert_frame_equal(kept[list(expected.columns)], expected)
    assert kept["order"].tolist() == np.repeat([0, 1, 2], len(expected) // 3).tolist()
    assert set(kept["case"]) == {"case/1"}
    total = units.units(["case/1"])
    pd.testing.assert_frame_equal(
        total[["unit", "class", "status", "effect", "standard_error", "asked", "distance"]],
        kept[kept["layer"] == "skip"][["unit", "class", "status", "total", "total_standard_error", "asked", "distance"]]
        .rename(columns={"total": "effect", "total_standard_error": "standard_error"})
        .reset_index(drop=True),
    )
    assert units.statistics("case/1").effect.nan_to_num(7.0).equal(found.total.effect.nan_to_num(7.0))
    assert len(units.mediation(columns=["share"], asked=True)) == 4 * 3 * 16
    assert units.verify().empty


def test_shares_over_cases_are_random_effects_of_those_of_the_cases(units):
    summary = summarize(units, level=0.9)
    assert summary.pathways["layer"].tolist() == ["deep", "skip", "statistics"]
    assert set(summary.pathways["quantity"]) == {"share"}
    cases = [by_hand(case, n_screening_draws=3) for case in make_cases(4)]
    for row in summary.pathways.to_dict("records"):
        own = [one.shares(level=0.9).set_index("layer").loc[row["layer"]] for one in cases]
        known = [one for one in own if one["n_clear"]]
        assert row["n_cases"] == sum(not np.isnan(one["share"]) for one in known) >= 3
        assert row["n_units"] == sum(one["n_units"] for one in own)
        assert row["n_clear"] == sum(one["n_clear"] for one in own)
        splits = [one.statistics[row["layer"]].split().some(0) for one in cases]
        clear = [one.statistics.total.significant()[0].numpy() for one in cases]
        errors = [split.some(mask).together().share_error(0.9) for split, mask in zip(splits, clear) if mask.any()]
        expected = random_effects(np.array([one["share"] for one in known]), np.array(errors, dtype=float), 0.9)
        for name, other in (("mean", "effect"), ("standard_error",) * 2, ("lower",) * 2, ("upper",) * 2, ("tau",) * 2):
            assert row[name] == pytest.approx(expected[other], nan_ok=True)
        assert expected["lower"] < row["mean"] < expected["upper"]
    for row in summary.pathway_profile.to_dict("records"):
        own = [one.by_distance(level=0.9, bin_width=summary.bin_width) for one in cases]
        own = [one[(one["layer"] == row["layer"]) & (one["bin"] == row["bin"])] for one in own]
        assert row["n_units"] == sum(int(one["n_units"].sum()) for one in own)
        shares = [one["share"].iloc[0] for one in own if len(one) and not np.isnan(one["share"].iloc[0])]
        assert row["n_cases"] == len(shares)
        assert row["upper_distance"] - row["lower_distance"] == pytest.approx(summary.bin_width)
        if shares:
            assert min(shares) - 1e-9 <= row["mean"] <= max(shares) + 1e-9
    assert repr(summary).endswith("3 layers)")
    # The rest of the summary is that of the total effects.
    assert summary.values["n_units"].tolist() == [12] * 4
    assert len(summary.profile) > 0


def test_effects_of_one_region_over_cases(regional):
    summary = summarize(regional)
    quantities = ["total", "indirect", "direct", "interaction", "share"]
    assert summary.pathways["quantity"].tolist() == quantities * 3
    assert summary.pathway_profile.empty
    tables = [by_hand(case, region_units=[3, 7], n_draws=12).to_dataframe() for case in make_cases(4)]
    for row in summary.pathways.to_dict("records"):
        own = [table[table["layer"] == row["layer"]].iloc[0] for table in tables]
        if row["quantity"] != "share":
            effects = np.array([one[row["quantity"]] for one in own])
            errors = np.array([one[f"{row['quantity']}_standard_error"] for one in own])
            expected = random_effects(effects, errors)
            for name, other in (("mean", "effect"), ("standard_error",) * 2, ("lower",) * 2, ("tau",) * 2, ("p_value",) * 2):
                assert row[name] == pytest.approx(expected[other], nan_ok=True)
            assert row["n_cases"] == 4
        else:
            assert row["n_cases"] + row["n_unknown"] == 4
            assert row["n_unknown"] == sum(np.isnan(one["share"]) for one in own)


def test_exact_effects_give_the_plain_mean(tmp_path):
    """One donor: no error within cases, and all weigh the same."""
    cohort = mediated(tmp_path / "s", 3, baselines=0.0, layers={"both": ["deep", "skip"]})
    row = summarize(cohort).pathways.iloc[0]
    assert (row["layer"], row["mean"], row["weights"]) == ("both", pytest.approx(1.0, abs=1e-5), "equal")


def test_groups_are_told_apart(units):
    summary = summarize(units, by="site")
    assert summary.pathways[["site", "layer"]].values.tolist() == [
        [site, layer] for site in "AB" for layer in ("deep", "skip", "statistics")
    ]


def test_a_study_goes_on_with_the_same_layers_only(tmp_path, units):
    cohort = mediated(tmp_path / "s", 1)
    before = (tmp_path / "s" / "manifest.jsonl").read_bytes()
    assert mediated(tmp_path / "s", 1).records() == cohort.records()
    assert (tmp_path / "s" / "manifest.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match=r"arguments\.layers"):
        mediated(tmp_path / "s", 1, layers=["deep"])
    place = Cohort(tmp_path / "s").file("case/0", "mediation.parquet")
    place.unlink()
    assert Cohort(tmp_path / "s").verify()["problem"].tolist() == ["missing"]
    again = mediated(tmp_path / "s", 1)
    pd.testing.assert_frame_equal(again.mediation(), units.mediation(["case/0"]))


def test_the_map_is_what_attribute_returns(tmp_path):
    def write(path, case, statistics):
        np.save(path.with_suffix(".npy"), statistics.to_map("effect", 1).nan_to_num(0.0).numpy())
        path.with_suffix(".npy").rename(path)

    cohort = mediated(tmp_path / "s", 1, nifti=write, quantity="direct", layer="skip")
    case = make_cases(1)[0]
    bank = PatchBank(images(12, seed=1))
    expected = MediatedTreatmentEffect(target_of(case, two_ways()), LAYERS).attribute(
        case["image"][None], bank, quantity="direct", layer="skip", **ASKED
    )
    assert np.load(cohort.file("case/0", "effects.nii.gz")) == pytest.approx(expected.numpy())


def test_what_cannot_be_is_said(tmp_path, units):
    for options, error, said in (
        ({"shards": 2}, ValueError, "shards: effects that are split at layers are not divided among workers; give shards=1"),
        ({"shards": 2, "method": pathway}, ValueError, "shards: effects that are split at layers"),
        ({"layres": 2}, TypeError, "layres: explain_cohort (with MediatedTreatmentEffect) got an unexpected keyword argument"),
        ({"method": pathway, "quantity": "direct"}, TypeError, "quantity: explain_cohort (with pathway) got an unexpected"),
    ):
        with pytest.raises(error) as caught:
            mediated(tmp_path / "s", 1, **options)
        assert said in str(caught.value)
    failed = mediated(tmp_path / "s", 1, layers=["depe"])
    assert failed.cases()["error"][0].startswith("ValueError: layers: no module is named 'depe'; did you mean deep?")
    plain = study(tmp_path / "plain", 1)
    with pytest.raises(KeyError, match="was not split at layers"):
        plain.mediation()
    assert summarize(plain).pathways.empty
