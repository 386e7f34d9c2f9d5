"""One case: parts and the whole, its geometry, layers, inputs and arguments."""

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from cohort_study import SHAPE, Reading, images, load_model, make_cases, make_target, study
from monai.data import MetaTensor
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    component_effects,
    regions,
)
from captum_causalseg.attr.parts import merge_parts
from captum_causalseg.cohort import explain_cohort, plot_cohort_profile, summarize
from captum_causalseg.cohort.worker import _is_whole
from captum_causalseg.interventions.execution import Part


def test_distances_to_the_region_of_interest(tmp_path):
    units = study(tmp_path / "s", 1).units(asked=True)
    far = np.maximum(
        np.maximum(8 - units["stop_0"] + 1, units["start_0"] - 15), np.maximum(8 - units["stop_1"] + 1, units["start_1"] - 15)
    ).clip(0)
    np.testing.assert_array_equal(units["distance"], far)


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


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(("n_parts", "n_draws"), [(2, 5), (2, 6), (5, 8), (30, 6)])
def test_moments_merge_exactly(d, n_parts, n_draws):
    """More parts than units leave some without any; batches and several outputs go along. From 6 draws on units lean on each other's slopes."""
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
    options = {"baselines": bank, "target": (1, 0), "block_size": 4, "n_draws": n_draws, "return_statistics": True}
    whole = face.attribute(x, **options)[1]
    parts = []
    for k in range(n_parts):
        parts.append(face.only(Part(k, n_parts)).attribute(x, **options)[1])
    merged = merge_parts(parts)
    assert bool((whole.adjustment != 0).any()) == (n_draws >= 6)
    for name in ("effect", "standard_error", "n_draws", "status", "adjustment", "test_variance"):
        one, other = (getattr(s, name).double().nan_to_num(7.0, posinf=8.0) for s in (whole, merged))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert merged.n_forwards == sum(part.n_forwards for part in parts)
    assert not whole.effect.equal(parts[0].effect), "the method itself still explains all units"
    other_units = face.only(Part(0, 2)).attribute(x, **options | {"block_size": 6})[1]
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


def test_environment_is_left_alone(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    study(tmp_path / "s", 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_with_any_bit_changed_is_whole_or_not_and_no_error(tmp_path):
    part = tmp_path / "part.npz"
    np.savez_compressed(part, a=np.arange(40.0), b=np.random.default_rng(0).random(30))
    written = part.read_bytes()
    assert _is_whole(part)
    found = set()
    for place in range(len(written)):
        for bit in range(0, 8, 3):
            changed = bytearray(written)
            changed[place] ^= 1 << bit
            part.write_bytes(changed)
            found.add(_is_whole(part))
    assert found == {False, True}, "of a time stamp, nothing is read"
    part.unlink()
    assert not _is_whole(part)
