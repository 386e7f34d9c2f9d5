"""What cannot reach the region of interest is no hypothesis: no decision and no share depends on how much of it there is."""

import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import (
    AverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    compare,
    refute,
    regions,
)
from captum_causalseg.cli.commands.demo import report
from captum_causalseg.cli.results import counts
from captum_causalseg.cohort import explain_cohort, summarize
from captum_causalseg.demo.cases import Case
from captum_causalseg.evaluation import Faithfulness, influence_matrix, perception_profile
from captum_causalseg.statistics import CORRECTIONS

EDGE, BLOCK, ROI_EDGE = 16, 4, 8
"""The network reaches 4 pixels far: from an RoI of 8 x 8 just to the edge of a crop of 16 x 16."""
TARGET = 1


@dataclass(frozen=True)
class Scene:
    """A crop of an image, or the same with unreachable surroundings; its units have the same ids in both."""

    image: Tensor
    roi: Tensor
    units: Tensor
    target: SegmentationTarget
    bank: PatchBank


def network(d: int = 2, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    width = 6 if d < 3 else 2  # in volumes each channel costs a second
    model = nn.Sequential(conv(1, width, 5, padding=2), nn.ReLU(), conv(width, 2, 5, padding=2)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def scene(margin: int, d: int = 2, *, n_rois: int = 1, seed: int = 0, metric: str = "soft_dice") -> Scene:
    generator = torch.Generator().manual_seed(seed)
    crop = torch.rand(1, 1, *(EDGE,) * d, generator=generator, dtype=torch.float64)
    around = torch.rand(1, 1, *(EDGE + 2 * margin,) * d, generator=generator, dtype=torch.float64)
    inside = (..., *(slice(margin, margin + EDGE),) * d)
    image, units = around.clone(), 1000 + regions.grid(around.shape[2:], BLOCK)
    image[inside], units[inside] = crop, regions.grid((EDGE,) * d, BLOCK)
    starts = [(margin + (EDGE - ROI_EDGE) // 2,) * d, (margin + 6,) * d][:n_rois]
    roi = torch.stack([regions.box(image.shape[2:], start, size) for start, size in zip(starts, (ROI_EDGE, 4))])
    roi = roi if n_rois > 1 else roi[0]
    model = network(d)
    with torch.no_grad():
        reference = functional.avg_pool2d(image, 5, 1, 2)[:, 0] if d == 2 else functional.avg_pool3d(image, 5, 1, 2)[:, 0]
    bank = PatchBank(torch.rand(30, 1, *(8,) * d, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    return Scene(
        image, roi, units, SegmentationTarget(model, roi=roi, reference=(reference[0] > 0.5).long(), metric=metric), bank
    )


def pair(d: int = 2, **options) -> tuple[Scene, Scene]:
    return scene(0, d, **options), scene(16 if d == 2 else 4, d, **options)


def explained(one: Scene, target=TARGET, **options) -> TreatmentEffectStatistics:
    arguments = {"n_draws": 5, "n_screening_draws": 0} | options
    attribute = AverageTreatmentEffect(one.target).attribute
    return attribute(one.image, one.bank, target, feature_mask=one.units, return_statistics=True, **arguments)[1]


def common(values: Tensor, statistics: TreatmentEffectStatistics) -> np.ndarray:
    """Of the units of the crop."""
    return values[:, statistics.unit_ids < 1000].numpy()


@pytest.fixture(scope="module", params=[2, 3])
def both(request) -> list[tuple[Scene, TreatmentEffectStatistics]]:
    return [(one, explained(one)) for one in pair(request.param)]


def test_no_decision_depends_on_what_cannot_reach_the_region(both):
    crop, padded = (statistics for _, statistics in both)
    assert not bool((crop.status == Status.OUTSIDE_SUPPORT).any())
    outside = padded.status[:, padded.unit_ids >= 1000]
    assert bool((outside == Status.OUTSIDE_SUPPORT).all())
    assert outside.numel() > crop.status.numel()
    for name in ("effect", "standard_error", "degrees_of_freedom"):
        np.testing.assert_allclose(common(getattr(padded, name), padded), getattr(crop, name).numpy(), rtol=1e-6, atol=1e-12)
    found = {}
    for correction in CORRECTIONS:
        for alpha in (0.01, 0.05, 0.2):
            expected = crop.significant(alpha, correction)
            found[correction, alpha] = int(expected.sum())
            np.testing.assert_array_equal(common(padded.significant(alpha, correction), padded), expected.numpy())
        # Not only on the same side of these levels.
        adjusted = common(padded.adjusted_p_values(correction), padded)
        np.testing.assert_allclose(adjusted, crop.adjusted_p_values(correction).numpy(), rtol=1e-5, atol=1e-12)
    assert not bool(padded.significant(0.5, None)[:, padded.unit_ids >= 1000].any())
    assert bool(padded.adjusted_p_values()[:, padded.unit_ids >= 1000].isnan().all())
    assert min(found.values()) < max(found.values())


def test_no_share_of_a_profile_depends_on_it(both):
    crop, padded = (perception_profile(statistics, one.roi, TARGET) for one, statistics in both)
    assert padded.counts == crop.counts
    assert padded.shares == crop.shares
    assert padded.counts["null"] < len(crop.units)
    assert padded.summary() == pytest.approx(crop.summary(), nan_ok=True)
    for name in ("units", "by_distance", "by_direction"):
        pd.testing.assert_frame_equal(getattr(padded, name), getattr(crop, name), rtol=1e-5)
    assert (crop.n_outside, padded.n_outside > 0) == (0, True)
    assert padded.bin_width == crop.bin_width


def test_the_width_of_a_bin_is_that_of_the_units_that_count():
    """Surroundings in larger units, or in many small ones."""
    for edge in (1, 8):
        one = scene(16)
        mask = torch.where(one.units < 1000, one.units, 1000 + regions.grid(one.image.shape[2:], edge))
        profile = perception_profile(explained(Scene(one.image, one.roi, mask, one.target, one.bank)), one.roi, TARGET)
        assert profile.bin_width == BLOCK


@pytest.mark.parametrize("by_region", [False, True])
def test_no_influence_depends_on_it(by_region):
    matrices = []
    for one in pair(n_rois=2):
        # Left and right, surroundings included.
        areas = (torch.arange(one.image.shape[-1]) >= one.image.shape[-1] // 2).long().expand(one.image.shape[2:])
        statistics = explained(one, (TARGET, 0))
        matrices.append(influence_matrix(statistics, TARGET, regions=areas if by_region else None))
    crop, padded = matrices
    rows = crop.effect.index
    assert len(padded.effect) == len(rows) or not by_region
    for name in ("effect", "standard_error", "significant"):
        pd.testing.assert_frame_equal(getattr(padded, name).loc[rows], getattr(crop, name), rtol=1e-5)
    assert bool(crop.significant.any(axis=None))
    assert not bool(padded.significant.drop(rows).any(axis=None))


def test_a_region_out_of_reach_is_exactly_0_and_no_test():
    one = scene(16)
    rois = torch.stack([one.roi, one.roi])
    target = SegmentationTarget(one.target.model, roi=rois, reference=one.target.reference, metric="soft_dice")
    statistics = explained(Scene(one.image, rois, one.units, target, one.bank), (TARGET, 0))
    areas = (one.units < 1000).long()
    matrix = influence_matrix(statistics, TARGET, regions=areas)
    assert matrix.effect.loc[0].tolist() == matrix.standard_error.loc[0].tolist() == [0.0, 0.0]
    assert not matrix.significant.loc[0].any()


def test_no_verdict_depends_on_it():
    options = {"n_draws": 5, "n_screening_draws": 0, "seed": 3}
    reports = [
        refute(
            AverageTreatmentEffect(one.target), one.image, one.bank, TARGET, feature_mask=one.units, **options
        ).to_dataframe()
        for one in pair()
    ]
    columns = ["name", "verdict", "statistic", "threshold", "n_units", "message"]
    pd.testing.assert_frame_equal(*(table[columns] for table in reports), rtol=1e-5)
    assert set(reports[0]["verdict"]) - {"inconclusive"}


def test_no_faithfulness_depends_on_it():
    """But for leakage, which asks what happens in the rest of the image."""
    tables, replaceable = [], []
    for one in pair():
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(16, generator=generator, dtype=torch.float64)
        painted = torch.where(one.units < 1000, values[one.units.clamp_max(15)], 5.0)[None, None]
        judge = Faithfulness(one.target, one.image, one.bank, TARGET, feature_mask=one.units, n_steps=4, n_subsets=20)
        tables.append(judge.evaluate(painted).query("metric != 'leakage'"))
        replaceable.append(int(judge.replaceable.sum()))
    assert replaceable == [12, 12]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)
    every = Faithfulness(one.target, one.image, one.bank, TARGET, feature_mask=one.units, n_steps=4, support=None)
    assert int(every.replaceable.sum()) == 12 + int((padded_ids(one) >= 1000).sum())


def padded_ids(one: Scene) -> Tensor:
    return torch.unique(one.units)


def test_no_comparison_depends_on_it():
    tables = []
    for one in pair():
        methods = {"effects": (AverageTreatmentEffect(one.target), {"n_draws": 5})}
        found = compare(methods, one.target, one.image, one.bank, output=TARGET, feature_mask=one.units, n_controls=0)
        tables.append(found.wide().drop(columns=["leakage", "seconds", "forwards"]))
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def test_no_summary_of_a_cohort_depends_on_it(tmp_path):
    summaries = []
    # With a ring around what reaches: from distances in one ring alone the edge of a block cannot be read.
    for name, margin in (("crop", 4), ("padded", 16)):
        scenes = [scene(margin, seed=seed) for seed in range(3)]
        cases = [{"id": str(k), "image": one.image[0], "number": k} for k, one in enumerate(scenes)]
        study = explain_cohort(
            cases,
            lambda case, scenes=scenes: scenes[case["number"]].target,
            method=AverageTreatmentEffect,
            out=tmp_path / name,
            baselines=scenes[0].bank,
            target=TARGET,
            feature_mask=scenes[0].units,
            n_draws=5,
            n_screening_draws=0,
            show_progress=False,
        )
        summaries.append(summarize(study))
    crop, padded = summaries
    for name in ("values", "cases", "profile"):
        pd.testing.assert_frame_equal(getattr(padded, name), getattr(crop, name), rtol=1e-5)
    assert 0 < crop.values["share_significant"].mean() < 1
    for correction in ("fdr_bh", "fdr_by"):
        found = [one.significant_units(0.2, correction) for one in (crop, padded)]
        assert len(found[0]) > 0
        assert found[0].attrs == found[1].attrs
        pd.testing.assert_frame_equal(*found, rtol=1e-5)


def test_what_is_printed_does_not_depend_on_it():
    said = []
    for one in pair():
        statistics = explained(one)
        words = counts(SimpleNamespace(output=TARGET), SimpleNamespace(precision=None, metric="dice"), statistics)
        case = Case("a case", one.image, one.target.model, one.roi, one.roi, one.bank, TARGET, "lesion")
        found = [re.search(r"\d+ differ from 0", text) for text in (words, report(statistics, case, 0.0))]
        said.append([match.group() for match in found])
    assert said[0] == said[1]
    assert said[0][0] == said[0][1] != "0 differ from 0"


def test_moments_of_what_is_no_hypothesis_have_no_say_in_the_common_scale():
    def statistics(status):
        return TreatmentEffectStatistics(
            effect=torch.tensor([[0.1, 0.2, 0.0]]).double(),
            sample_variance=torch.tensor([[0.01, 0.04, 1e-20]]).double(),
            n_draws=torch.full((1, 3), 5),
            population=torch.full((1, 3), torch.inf).double(),
            status=torch.tensor([[0, 0, int(status)]]),
            observed_score=torch.ones(1).double(),
            unit_ids=torch.arange(3),
            feature_mask=[torch.arange(3)[None, None]],
            input_shapes=[(1, 1, 3)],
            n_forwards=1,
        )

    scale = 0.01**0.5 * 0.04**0.5
    for status in (Status.OUTSIDE_SUPPORT, Status.EXCLUDED, Status.ABSENT):
        # One other unit to learn from: half of the three degrees of freedom.
        expected = ((1.5 * scale + 4 * 0.01) / 5.5 / 5) ** 0.5
        assert float(statistics(status).standard_error[0, 0]) == pytest.approx(expected)
    assert float(statistics(Status.ESTIMATED).standard_error[0, 0]) < 0.8 * expected
