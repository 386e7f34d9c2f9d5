"""The background effect: what replacing any far place does, as through normalization over the whole image."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, TreatmentEffectStatistics, regions
from captum_causalseg.evaluation.profile import background_effect, perception_profile, profile_of_map
from captum_causalseg.visualization import plot_effects, plot_profile


def row(effects, status=None):
    """One pixel per unit in a row; the region is the first."""
    n = len(effects)
    status = torch.zeros(1, n, dtype=torch.long) if status is None else torch.tensor([status])
    status[0, 0] = int(Status.EXCLUDED)
    effect = torch.tensor([effects], dtype=torch.float64)
    statistics = TreatmentEffectStatistics(
        effect=torch.where(status == Status.EXCLUDED, torch.nan, effect),
        sample_variance=torch.ones(1, n).double(),
        n_draws=torch.full((1, n), 5),
        population=torch.full((1, n), torch.inf).double(),
        status=status,
        observed_score=torch.ones(1).double(),
        unit_ids=torch.arange(n),
        feature_mask=[torch.arange(n)[None, None, None]],
        input_shapes=[(1, 1, 1, n)],
        n_forwards=1,
    )
    return statistics, torch.arange(n)[None] == 0


def test_it_is_the_median_of_the_farthest_quarter_by_hand():
    """40 units at the distances 1 to 40: the farthest quarter begins at 30, where the quantile falls on a unit, it included."""
    effects = np.zeros(41)
    effects[30:] = np.arange(11) / 100
    statistics, roi = row(effects.tolist())
    found = background_effect(statistics, roi)
    assert (found.n_units, found.distance) == (11, 30)
    assert (found.lower, found.effect, found.upper) == pytest.approx((0.025, 0.05, 0.075))
    assert str(found) == (
        "background effect +0.05: the median of the 11 units farthest from the region of interest (half of them from +0.025 to +0.075)"
    )
    half = background_effect(statistics, roi, share=0.5, spacing=2.0)
    assert (half.n_units, half.distance) == (21, 40)
    assert perception_profile(statistics, roi).background == found
    assert profile_of_map(effects[None], roi, block_size=1).background == found


def test_where_far_places_cannot_reach_the_region_there_is_none():
    """The farthest that can are neighbors, whose effects are their own."""
    effects = [0.0, *[0.1] * 40, *[0.0] * 100]
    statistics, roi = row(effects, [0] * 41 + [int(Status.OUTSIDE_SUPPORT)] * 100)
    assert background_effect(statistics, roi) is None
    assert perception_profile(statistics, roi).background is None
    everything, small = row(effects[:41])
    assert background_effect(everything, small).effect == pytest.approx(0.1)


def test_few_units_or_none_farther_than_others_have_none():
    statistics, roi = row([0.1] * 8)
    assert background_effect(statistics, roi) is None
    ring = torch.ones(1, 12, dtype=torch.bool)
    ring[0, ::2] = False  # every unit beside it
    assert background_effect(row([0.1] * 12)[0], ring) is None
    with pytest.raises(ValueError, match=r"^share: expected a number between 0 and 1, got 2"):
        background_effect(statistics, roi, share=2)
    with pytest.raises(TypeError, match=r"^statistics: expected .*TreatmentEffectStatistics"):
        background_effect(1, roi)


def explained(norm):
    """Air in three quarters of the image; bright tissue around the region. Replacing air changes the mean and the variance."""
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 32, 32)
    image[..., :16, :16] = 1 + 0.2 * torch.rand(16, 16)
    roi = regions.box((32, 32), 4, 8)
    model = nn.Sequential(norm, nn.Conv2d(1, 2, 3, padding=1)).eval()
    target = SegmentationTarget(model, roi=roi, reference=roi.long(), metric="soft_dice")
    bank = PatchBank(torch.rand(12, 1, 32, 32))
    _, statistics = AverageTreatmentEffect(target).attribute(image, bank, 1, block_size=4, n_draws=6, return_statistics=True)
    return image, roi, statistics


def marks(figure):
    """Lines on the scale of the effects."""
    bars = [axes for axes in figure.axes if "effect on the" in axes.get_ylabel()]
    return [float(line.get_ydata()[0]) for bar in bars for line in bar.lines if len(line.get_ydata()) == 2]


def test_normalization_over_the_image_has_one_and_it_is_drawn():
    image, roi, statistics = explained(nn.InstanceNorm2d(1))
    assert not bool((statistics.status == Status.OUTSIDE_SUPPORT).any())
    found = background_effect(statistics, roi, 1)
    assert found.effect != 0
    figure = plot_effects(image, statistics, roi, 1)
    assert any(mark == pytest.approx(found.effect) for mark in marks(figure))
    assert str(found) in " ".join(figure.get_supxlabel().split())
    profile = perception_profile(statistics, roi, 1)
    labels = [
        text.get_text() for axes in plot_profile(profile).axes if (legend := axes.get_legend()) for text in legend.get_texts()
    ]
    assert {"background", "background in every unit"} <= set(labels)
    # Without the region nobody knows what is far.
    assert "background" not in plot_effects(image, statistics, target=1).get_supxlabel()


def test_a_local_network_has_none():
    image, roi, statistics = explained(nn.BatchNorm2d(1))
    found = background_effect(statistics, roi, 1)
    assert found is None or found.effect == 0
    assert "background" not in plot_effects(image, statistics, roi, 1).get_supxlabel()


def test_a_local_network_all_of_whose_units_in_reach_matter_has_none():
    torch.manual_seed(0)
    roi = regions.box((40, 40), 16, 8)
    model = nn.Conv2d(1, 2, 9, padding=4).eval()
    image = torch.rand(1, 1, 40, 40)
    target = SegmentationTarget(model, roi=roi, reference=roi.long(), metric="soft_dice")
    bank = PatchBank(torch.rand(12, 1, 40, 40))
    _, statistics = AverageTreatmentEffect(target).attribute(image, bank, 1, block_size=2, n_draws=6, return_statistics=True)
    assert bool((statistics.status == Status.OUTSIDE_SUPPORT).any())
    assert int(statistics.of_output(1).hypotheses.sum()) == 48
    assert background_effect(statistics, roi, 1) is None
    assert "background" not in plot_effects(image, statistics, roi, 1).get_supxlabel()
